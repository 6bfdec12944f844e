"""Questions to the feature extractor: Whisper's numbers, exact padding, refusal of bad audio."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor

# around every stride: one hop, one token, half a window before a token's end, many tokens
EDGE_LENGTHS = [160, 161, 319, 320, 321, 439, 440, 441, 639, 640, 641, 1279, 1281, 15999, 32440, 32441, 32639, 32640]


@pytest.fixture
def extractor() -> StableTokenFeatureExtractor:
    return StableTokenFeatureExtractor(feature_size=80)


def test_values_are_whispers_when_silence_follows_the_speech(extractor, make_speech):
    speech = make_speech(29 * 16000 + 77)
    reference = WhisperFeatureExtractor(feature_size=80)(speech, sampling_rate=16000, return_tensors="pt")
    ours = extractor(speech, sampling_rate=16000, return_tensors="pt")
    num_frames = int(ours.attention_mask.sum())
    torch.testing.assert_close(
        ours.input_features[..., :num_frames], reference.input_features[..., :num_frames], atol=5e-7, rtol=0
    )


def test_a_full_window_equals_whispers_but_for_the_frame_that_whisper_reflects(extractor, make_speech):
    speech = make_speech(30 * 16000)
    reference = WhisperFeatureExtractor(feature_size=80)(speech, sampling_rate=16000, return_tensors="pt")
    ours = extractor(speech, sampling_rate=16000, return_tensors="pt")
    assert int(ours.attention_mask.sum()) == 3000
    torch.testing.assert_close(
        ours.input_features[..., :2999], reference.input_features[..., :2999], atol=5e-7, rtol=0
    )


@pytest.mark.parametrize("num_samples", EDGE_LENGTHS)
def test_an_utterance_alone_and_in_a_batch_has_the_same_features(extractor, make_speech, num_samples):
    speech, longer = make_speech(num_samples), make_speech(40000, seed=1)
    alone = extractor(speech, sampling_rate=16000, return_tensors="pt")
    batch = extractor([speech, longer], sampling_rate=16000, return_tensors="pt")
    num_frames = alone.input_features.shape[-1]
    torch.testing.assert_close(batch.input_features[0, :, :num_frames], alone.input_features[0], atol=5e-7, rtol=0)
    assert torch.equal(batch.attention_mask[0, :num_frames], alone.attention_mask[0])
    assert batch.attention_mask[0, num_frames:].sum() == 0
    assert batch.input_features[0, :, num_frames:].abs().max() == 0.0


@pytest.mark.parametrize("num_samples", EDGE_LENGTHS)
def test_frames_are_ten_milliseconds_and_lengths_are_whole_tokens(extractor, make_speech, num_samples):
    features = extractor(make_speech(num_samples), sampling_rate=16000, return_tensors="pt")
    assert int(features.attention_mask.sum()) == -(-num_samples // 160)
    assert features.input_features.shape[-1] % 4 == 0
    assert features.input_features.dtype == torch.float32
    assert features.attention_mask.dtype == torch.int64


def test_audio_beyond_thirty_seconds_is_kept(extractor, make_speech):
    assert int(extractor(make_speech(500000), sampling_rate=16000, return_tensors="pt").attention_mask.sum()) == 3125


def test_extract_ignores_what_lies_behind_the_speech(extractor, make_speech):
    speech = torch.from_numpy(make_speech(8000))
    noise_behind = torch.cat([speech, torch.full((5000,), 0.9)])
    features, mask = extractor.extract(noise_behind[None], torch.tensor([8000]))
    expected = extractor(speech, sampling_rate=16000, return_tensors="pt")
    num_frames = expected.input_features.shape[-1]
    torch.testing.assert_close(features[..., :num_frames], expected.input_features, atol=5e-7, rtol=0)
    assert torch.equal(mask[..., :num_frames], expected.attention_mask)


def test_half_precision_autocast_does_not_reach_the_spectrum(extractor, make_speech):
    speech = torch.from_numpy(make_speech(8000))[None]
    expected, _ = extractor.extract(speech, torch.tensor([8000]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = extractor.extract(speech, torch.tensor([8000]))
    assert torch.equal(features, expected)


def test_digital_silence_is_finite(extractor):
    features = extractor(np.zeros(16000, dtype=np.float32), sampling_rate=16000, return_tensors="pt")
    assert torch.isfinite(features.input_features).all()


def test_reads_a_whisper_checkpoints_file_and_its_own(make_speech, tmp_path):
    WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path / "whisper")
    ours = StableTokenFeatureExtractor.from_pretrained(tmp_path / "whisper")
    assert (ours.feature_size, ours.return_attention_mask) == (128, True)
    ours.save_pretrained(tmp_path / "ours")
    again = AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    assert isinstance(again, StableTokenFeatureExtractor)
    assert again.to_dict() == ours.to_dict()


def test_lists_of_floats_tensors_and_float64_are_accepted(extractor, make_speech):
    speech = make_speech(1600)
    expected = extractor(speech, sampling_rate=16000, return_tensors="np").input_features
    for same in (speech.tolist(), torch.from_numpy(speech), speech.astype(np.float64), [speech], (speech,)):
        assert np.array_equal(extractor(same, sampling_rate=16000, return_tensors="np").input_features, expected)


@pytest.mark.parametrize(
    ("audio", "sampling_rate", "message"),
    [
        (np.zeros(1600), 8000, "sampling_rate=16000.*got 8000"),
        (np.zeros(1600), None, "sampling_rate=16000.*got None"),
        (np.zeros((2, 1600)), 16000, r"mono.*\(2, 1600\)"),
        ([np.zeros((1600, 2))], 16000, r"mono.*\(1600, 2\)"),
        (np.zeros(1600, dtype=np.int16), 16000, "floating-point.*int16"),
        (np.full(1600, np.nan), 16000, "1600 samples that are NaN or infinite"),
        ([np.zeros(1600), np.array([np.inf] + [0.0] * 1599)], 16000, "1 samples that are NaN or infinite"),
        (np.zeros(0), 16000, "at least one hop of 160 samples.*got 0"),
        (np.zeros(159), 16000, "at least one hop of 160 samples.*got 159"),
        ([], 16000, "no audio"),
    ],
)
def test_bad_audio_is_refused_with_what_was_received(extractor, audio, sampling_rate, message):
    with pytest.raises(ValueError, match=message):
        extractor(audio, sampling_rate=sampling_rate)


def test_padding_to_thirty_seconds_and_dither_are_refused(extractor, make_speech):
    with pytest.raises(ValueError, match="got 'max_length'"):
        extractor(make_speech(1600), sampling_rate=16000, padding="max_length")
    with pytest.raises(ValueError, match="dither must be 0.0, got 0.1"):
        StableTokenFeatureExtractor(dither=0.1)


def test_the_processor_gives_features_and_labels(tiny_processor, make_speech):
    batch = tiny_processor(
        audio=[make_speech(1600), make_speech(3200)], text=["ab", "a'b c"], sampling_rate=16000, return_tensors="pt"
    )
    assert batch.input_features.shape == (2, 16, 20)
    assert batch.labels[0].tolist()[-3:] == [-100] * 3
    assert tiny_processor.tokenizer.decode(batch.labels[1], skip_special_tokens=True) == "a'b c"


def test_the_processor_refuses_mismatched_and_missing_input(tiny_processor, make_speech):
    with pytest.raises(ValueError, match="neither audio nor text"):
        tiny_processor()
    with pytest.raises(ValueError, match="1 waveforms and 2 transcripts"):
        tiny_processor(audio=make_speech(1600), text=["a", "b"], sampling_rate=16000)
