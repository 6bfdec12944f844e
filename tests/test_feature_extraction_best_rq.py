"""Questions to BEST-RQ's log mel frames: rate, place in time, exact batches, normalization."""

import numpy as np
import pytest
import torch

from clearspeech.processing import feature_extraction_best_rq
from clearspeech.processing.feature_collator import FeatureCollator
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor


@pytest.fixture
def extractor() -> BestRQFeatureExtractor:
    return BestRQFeatureExtractor()


def features_of(extractor: BestRQFeatureExtractor, speech: np.ndarray) -> np.ndarray:
    """`(frames, mel bins)` of one utterance."""
    return extractor(speech, sampling_rate=16000, return_tensors="np").input_features[0]


@pytest.mark.parametrize(
    ("num_samples", "num_tokens"), [(400, 1), (512, 1), (513, 2), (1024, 2), (16000, 32), (80000, 157), (80384, 157)]
)
def test_512_samples_are_four_frames_and_one_token(extractor, make_speech, num_samples, num_tokens):
    features = extractor(make_speech(num_samples), sampling_rate=16000, return_tensors="pt")
    assert features.input_features.shape == (1, 4 * num_tokens, 80)
    assert features.input_features.dtype == torch.float32
    assert features.attention_mask.tolist() == [[1] * 4 * num_tokens]


@pytest.mark.parametrize("frame", [0, 10, 63])
def test_a_frame_is_centred_on_its_own_128_samples(extractor, frame):
    """A click in the middle of them is loudest there, and as loud on either side."""
    click = np.zeros(64 * 128, dtype=np.float32)
    click[frame * 128 + 63 : frame * 128 + 65] = [0.5, -0.5]
    energies = extractor.log_mel(extractor.check_waveform(click)).mean(dim=1)
    assert int(energies.argmax()) == frame
    if frame == 10:
        torch.testing.assert_close(energies[9], energies[11], atol=0.2, rtol=0)


def test_energies_are_where_the_tone_is_and_grow_with_it(extractor):
    """The bin of 1 kHz on Kaldi's mel scale; ten times louder is 20 dB more."""
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16384) / 16000)
    energies = extractor.log_mel(0.5 * tone)
    mel = 1127 * np.log(1 + np.array([20.0, 1000.0, 8000.0]) / 700)
    expected_bin = round(81 * (mel[1] - mel[0]) / (mel[2] - mel[0])) - 1
    assert set(energies[4:-4].argmax(dim=1).tolist()) == {expected_bin}
    quieter = extractor.log_mel(0.05 * tone)
    torch.testing.assert_close(
        (energies - quieter)[4:-4, expected_bin], torch.full((120,), float(np.log(100))), atol=1e-2, rtol=0
    )


def test_the_missing_samples_of_the_last_token_are_no_silence(extractor, make_speech):
    """Its frames are as loud as those before: nothing is far from the mean."""
    noise = np.random.default_rng(0).standard_normal(16000 - 384).astype(np.float32)  # half a token too few
    assert np.abs(features_of(extractor, 0.1 * noise)).max() < 8


def test_each_mel_bin_of_a_sentence_has_zero_mean_and_unit_deviation(extractor, make_speech):
    for num_samples in (20000, 3000):
        features = features_of(extractor, make_speech(num_samples))
        np.testing.assert_allclose(features.mean(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose(features.std(axis=0), 1.0, atol=1e-4)


@pytest.mark.parametrize("normalization", ["sentence", "global"])
@pytest.mark.parametrize("num_samples", [400, 513, 5000, 16001])
def test_an_utterance_alone_and_in_a_batch_has_the_same_features_bit_for_bit(normalization, num_samples, make_speech):
    extractor = BestRQFeatureExtractor(normalization=normalization)
    speech, longer = make_speech(num_samples), make_speech(40000, seed=1)
    if normalization == "global":
        extractor.fit([longer])
    alone = extractor(speech, sampling_rate=16000, return_tensors="pt")
    batch = extractor([speech, longer], sampling_rate=16000, return_tensors="pt")
    num_frames = alone.input_features.shape[1]
    assert torch.equal(batch.input_features[0, :num_frames], alone.input_features[0])
    assert batch.input_features[0, num_frames:].abs().max() == 0.0
    assert batch.attention_mask.sum(dim=1).tolist() == [num_frames, 4 * 79]


@pytest.mark.parametrize("num_samples", [5119, 5121, 10240, 10241, 16001])
def test_long_audio_is_read_in_blocks_whose_frames_are_those_of_one_pass(
    extractor, make_speech, monkeypatch, num_samples
):
    """Bit for bit, so that its memory is that of a block."""
    speech, seen = make_speech(num_samples), []
    expected = features_of(extractor, speech)
    fbank = feature_extraction_best_rq.kaldi.fbank
    monkeypatch.setattr(
        feature_extraction_best_rq.kaldi,
        "fbank",
        lambda waveform, **options: (seen.append(waveform.shape[1]), fbank(waveform, **options))[1],
    )
    monkeypatch.setattr(feature_extraction_best_rq, "BLOCK", 40)
    np.testing.assert_array_equal(features_of(extractor, speech), expected)
    assert len(seen) == -(-num_samples // 5120) and max(seen) <= (40 + 2 * 2) * 128


def test_features_are_the_same_each_time(extractor, make_speech):
    """No dither."""
    speech = make_speech(8000)
    np.testing.assert_array_equal(features_of(extractor, speech), features_of(extractor, speech))


def test_global_statistics_are_those_of_all_frames_together(make_speech):
    waveforms = [make_speech(num_samples, seed) for seed, num_samples in enumerate((8000, 30000, 720))]
    extractor = BestRQFeatureExtractor(normalization="global").fit(iter(waveforms))
    together = np.concatenate([features_of(extractor, waveform) for waveform in waveforms])
    np.testing.assert_allclose(together.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(together.std(axis=0), 1.0, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_is_finite_and_defined(extractor, make_speech, level):
    silence = np.full(16000, level, dtype=np.float32)
    np.testing.assert_allclose(features_of(extractor, silence), 0.0, atol=1e-6)
    fitted = BestRQFeatureExtractor(normalization="global").fit([make_speech(16000)])
    assert np.isfinite(features_of(fitted, silence)).all()


def test_a_batch_of_rows_has_seeds_of_the_utterances(extractor, make_speech):
    rows = [{"audio": make_speech(4000, seed)} for seed in (0, 1)]
    batch = FeatureCollator(extractor)(rows)
    assert batch.keys() == {"input_features", "attention_mask", "seeds"}
    assert batch["input_features"].shape == (2, 32, 80) and batch["seeds"].shape == (2,)
    turned = FeatureCollator(extractor)([*rows[::-1], {"audio": make_speech(9000, 2)}])
    assert turned["seeds"][:2].tolist() == batch["seeds"].tolist()[::-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalization": "utterance"}, "sentence, global, got 'utterance'"),
        ({"mean": [0.0] * 80, "std": [1.0] * 80}, "got them with 'sentence'"),
        ({"normalization": "global", "std": [1.0] * 80}, r"80 values .* got \[None, 80\]"),
        ({"feature_size": 81}, "= 80, got 81"),
        ({"num_mel_bins": 0}, "at least 1; got 0"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BestRQFeatureExtractor(**fields)
