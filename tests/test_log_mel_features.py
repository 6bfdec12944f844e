"""Questions to what the extractors of log mel energies share: precision, their files, their input, its refusal."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor

CLASSES = pytest.mark.parametrize("extractor_class", [BestRQFeatureExtractor, FactoredASRFeatureExtractor])


def features_of(extractor, speech: np.ndarray) -> np.ndarray:
    """`(frames, features)` of one utterance."""
    return extractor(speech, sampling_rate=16000, return_tensors="np").input_features[0]


@CLASSES
def test_half_precision_autocast_does_not_reach_the_energies(extractor_class, make_speech):
    extractor, speech = extractor_class(), make_speech(8000)
    expected = features_of(extractor, speech)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(features_of(extractor, speech), expected)


@pytest.mark.parametrize(
    ("extractor_class", "options"), [(BestRQFeatureExtractor, {}), (FactoredASRFeatureExtractor, {"stack": 2})]
)
def test_reads_its_own_file_with_its_statistics(extractor_class, options, make_speech, tmp_path):
    ours = extractor_class(num_mel_bins=40, normalization="global", **options).fit([make_speech(8000)])
    ours.save_pretrained(tmp_path)
    for again in (extractor_class.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert type(again) is extractor_class and again.to_dict() == ours.to_dict()
        np.testing.assert_array_equal(features_of(again, make_speech(9000)), features_of(ours, make_speech(9000)))


@CLASSES
def test_lists_of_floats_tensors_and_float64_are_accepted(extractor_class, make_speech):
    extractor, speech = extractor_class(), make_speech(1600)
    expected = features_of(extractor, speech)
    for same in (speech.tolist(), torch.from_numpy(speech), speech.astype(np.float64), [speech], (speech,)):
        np.testing.assert_array_equal(features_of(extractor, same), expected)


@CLASSES
def test_the_mask_can_be_left_out(extractor_class, make_speech):
    features = extractor_class()(make_speech(1600), sampling_rate=16000, return_attention_mask=False)
    assert set(features) == {"input_features"}


@CLASSES
@pytest.mark.parametrize(
    ("audio", "sampling_rate", "message"),
    [
        (np.zeros(1600), 8000, "sampling_rate=16000.*got 8000"),
        (np.zeros(1600), None, "sampling_rate=16000.*got None"),
        (np.zeros((2, 1600)), 16000, r"mono.*\(2, 1600\)"),
        (np.zeros(1600, dtype=np.int16), 16000, "floating-point.*int16"),
        (np.full(1600, np.nan), 16000, "1600 samples that are NaN or infinite"),
        ([], 16000, "no audio"),
    ],
)
def test_bad_audio_is_refused_with_what_was_received(extractor_class, audio, sampling_rate, message):
    with pytest.raises(ValueError, match=message):
        extractor_class()(audio, sampling_rate=sampling_rate)


@pytest.mark.parametrize(
    ("extractor_class", "least", "message"),
    [
        (BestRQFeatureExtractor, 400, "at least one window of 400 samples, got 399"),
        (FactoredASRFeatureExtractor, 720, "at least one stacked frame of 720 samples, got 719"),
    ],
)
def test_audio_shorter_than_a_frame_is_refused(extractor_class, least, message):
    assert len(features_of(extractor_class(), np.zeros(least)))
    with pytest.raises(ValueError, match=message):
        extractor_class()(np.zeros(least - 1), sampling_rate=16000)


@CLASSES
def test_what_needs_statistics_or_has_none_says_so(extractor_class, make_speech):
    speech, extractor = make_speech(1600), extractor_class()
    with pytest.raises(ValueError, match=r"call fit\(waveforms\) first"):
        features_of(extractor_class(normalization="global"), speech)
    with pytest.raises(ValueError, match=f"got '{extractor.normalization}'"):
        extractor.fit([speech])
    with pytest.raises(ValueError, match="no audio"):
        extractor_class(normalization="global").fit([])
    with pytest.raises(ValueError, match="got 'max_length'"):
        extractor(speech, sampling_rate=16000, padding="max_length")
