"""Questions to the stacked log mel energies: rate, scale, exact batches, statistics."""

import numpy as np
import pytest
import torch

from clearspeech.processing.feature_extraction_factored_asr import FLOOR, FactoredASRFeatureExtractor


@pytest.fixture
def extractor() -> FactoredASRFeatureExtractor:
    return FactoredASRFeatureExtractor()


@pytest.fixture
def plain() -> FactoredASRFeatureExtractor:
    return FactoredASRFeatureExtractor(normalization="none")


def features_of(extractor: FactoredASRFeatureExtractor, speech: np.ndarray) -> np.ndarray:
    """`(frames, 192)` of one utterance."""
    return extractor(speech, sampling_rate=16000, return_tensors="np").input_features[0]


@pytest.mark.parametrize(("num_samples", "num_frames"), [(720, 1), (1199, 1), (1200, 2), (16000, 32), (160000, 332)])
def test_a_frame_is_thirty_milliseconds_and_what_fills_none_is_dropped(
    extractor, make_speech, num_samples, num_frames
):
    features = extractor(make_speech(num_samples), sampling_rate=16000, return_tensors="pt")
    assert features.input_features.shape == (1, num_frames, 192)
    assert features.input_features.dtype == torch.float32
    assert features.attention_mask.tolist() == [[1] * num_frames]


def test_a_frame_is_three_frames_of_ten_milliseconds_one_after_another(make_speech):
    speech = make_speech(16000)
    stacked = features_of(FactoredASRFeatureExtractor(normalization="none"), speech)
    single = features_of(FactoredASRFeatureExtractor(normalization="none", stack=1), speech)
    assert single.shape == (98, 64)
    np.testing.assert_array_equal(stacked, single[:96].reshape(32, 192))


def test_energies_are_where_the_tone_is_and_grow_with_it(plain):
    """The bin of 1 kHz on Kaldi's mel scale; within an utterance of two halves, ten times louder is 20 dB more."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)
    features = features_of(plain, np.concatenate([tone[:16000], 0.1 * tone[16000:]])).reshape(-1, 64)
    mel = 1127 * np.log(1 + np.array([20.0, 1000.0, 8000.0]) / 700)
    expected_bin = round(65 * (mel[1] - mel[0]) / (mel[2] - mel[0])) - 1
    assert set(features[:90].argmax(axis=1)) == {expected_bin}
    louder = features[:90, expected_bin].mean() - features[110:, expected_bin].mean()
    assert louder == pytest.approx(np.log(100), abs=1e-3)


@pytest.mark.parametrize("normalization", ["utterance", "none"])
def test_loudness_and_an_offset_of_the_recording_change_nothing(normalization, make_speech):
    """ "zero mean, and unit standard deviation" """
    extractor, speech = FactoredASRFeatureExtractor(normalization=normalization), make_speech(16000)
    expected = features_of(extractor, speech)
    np.testing.assert_allclose(features_of(extractor, 0.02 * speech.astype(np.float64) + 0.3), expected, atol=5e-3)


def test_each_mel_bin_of_an_utterance_has_zero_mean_and_unit_deviation(extractor, make_speech):
    energies = features_of(extractor, make_speech(20000)).reshape(-1, 64)
    np.testing.assert_allclose(energies.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(energies.std(axis=0), 1.0, atol=1e-4)


@pytest.mark.parametrize("normalization", ["utterance", "global", "none"])
@pytest.mark.parametrize("num_samples", [720, 1199, 1200, 5000, 16001])
def test_an_utterance_alone_and_in_a_batch_has_the_same_features_bit_for_bit(normalization, num_samples, make_speech):
    extractor = FactoredASRFeatureExtractor(normalization=normalization)
    speech, longer = make_speech(num_samples), make_speech(40000, seed=1)
    if normalization == "global":
        extractor.fit([longer])
    alone = extractor(speech, sampling_rate=16000, return_tensors="pt")
    batch = extractor([speech, longer], sampling_rate=16000, return_tensors="pt")
    num_frames = alone.input_features.shape[1]
    assert torch.equal(batch.input_features[0, :num_frames], alone.input_features[0])
    assert batch.input_features[0, num_frames:].abs().max() == 0.0
    assert batch.attention_mask.sum(dim=1).tolist() == [num_frames, (1 + (40000 - 400) // 160) // 3]


def test_global_statistics_are_those_of_all_frames_together(make_speech):
    waveforms = [make_speech(num_samples, seed) for seed, num_samples in enumerate((8000, 30000, 720))]
    extractor = FactoredASRFeatureExtractor(normalization="global").fit(iter(waveforms))
    plain = FactoredASRFeatureExtractor(normalization="none")
    energies = np.concatenate([features_of(plain, waveform).reshape(-1, 64) for waveform in waveforms])
    np.testing.assert_allclose(extractor.mean, energies.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(extractor.std, energies.std(axis=0), atol=1e-4)
    together = np.concatenate([features_of(extractor, waveform).reshape(-1, 64) for waveform in waveforms])
    np.testing.assert_allclose(together.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(together.std(axis=0), 1.0, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_is_finite_and_defined(extractor, plain, level):
    silence = np.full(16000, level, dtype=np.float32)
    np.testing.assert_allclose(features_of(extractor, silence), 0.0, atol=1e-6)
    np.testing.assert_array_equal(features_of(plain, silence), np.float32(FLOOR))


def test_digital_silence_between_words_is_no_lower_than_the_noise_of_sixteen_bits(plain, make_speech):
    speech = make_speech(32000)
    rounded = np.round(speech * 32767) / 32767
    speech[8000:16000], rounded[8000:16000] = 0.0, np.random.default_rng(0).integers(0, 2, 8000) / 32767
    lowest = features_of(plain, speech).min()
    assert lowest == FLOOR
    assert np.median(features_of(plain, rounded).reshape(-1, 64)[60:90]) == pytest.approx(lowest, abs=3.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalization": "batch"}, "utterance, global, none, got 'batch'"),
        ({"mean": [0.0] * 64, "std": [1.0] * 64}, "got them with 'utterance'"),
        ({"normalization": "global", "mean": [0.0] * 64}, r"64 values .* got \[64, None\]"),
        ({"normalization": "global", "mean": [0.0] * 3, "std": [1.0] * 3}, r"64 values .* got \[3, 3\]"),
        ({"feature_size": 80}, "= 192, got 80"),
        ({"stack": 0}, "at least 1; got 0 and 64"),
    ],
)
def test_fields_that_contradict_one_another_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FactoredASRFeatureExtractor(**fields)
