"""Questions to the level at which a codec hears an utterance."""

import numpy as np
import pytest
import torch

from clearspeech.processing.loudness import bring_to_level


def level_of(waveform: torch.Tensor) -> float:
    """Root mean square in dB below full scale."""
    return float(20 * torch.log10(waveform.double().square().mean().sqrt()))


@pytest.mark.parametrize("gain", [1e-3, 0.01, 0.1, 1.0])
def test_any_loudness_becomes_one(make_speech, gain):
    speech = torch.from_numpy(make_speech(8000, 0)) * gain
    brought = bring_to_level(speech)
    assert level_of(brought) == pytest.approx(-23.0, abs=1e-3) and brought.dtype == torch.float32
    torch.testing.assert_close(brought / brought[100], speech / speech[100])  # nothing but a factor
    assert level_of(bring_to_level(speech, -30.0)) == pytest.approx(-30.0, abs=1e-3)


def test_a_peak_is_never_clipped():
    click = torch.zeros(16000)
    click[5] = -0.2
    brought = bring_to_level(click)
    assert float(brought[5]) == pytest.approx(-1.0) and level_of(brought) < -40


@pytest.mark.parametrize("waveform", [torch.zeros(0), torch.zeros(400), torch.full((400,), 1e-6)])
def test_silence_stays_silence(waveform):
    assert torch.equal(bring_to_level(waveform), waveform)


def test_an_array_is_taken_and_left_as_it_is(make_speech):
    speech = make_speech(8000, 0)
    speech.setflags(write=False)
    before = speech.copy()
    bring_to_level(speech).zero_()
    assert np.array_equal(speech, before)
    assert torch.equal(bring_to_level(speech), bring_to_level(torch.tensor(speech)))
