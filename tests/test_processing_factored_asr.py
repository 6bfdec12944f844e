"""Questions to FactoredASR's processor: features of several encoders, labels, text, reload, bad input."""

import numpy as np
import pytest
from transformers import ParakeetFeatureExtractor, Wav2Vec2FeatureExtractor

from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.processing.subword_tokenizer import train_subword_tokenizer


@pytest.fixture(scope="module")
def subwords():
    return train_subword_tokenizer(["one two three", "two two", "it's nine"], vocab_size=20)


@pytest.fixture
def processor(subwords) -> FactoredASRProcessor:
    return FactoredASRProcessor(FactoredASRFeatureExtractor(), subwords)


def test_it_gives_features_and_normalized_labels(processor, make_speech):
    audio, text = [make_speech(8000), make_speech(4000)], ["Two!", "it's one"]
    batch = processor(audio=audio, text=text, sampling_rate=16000, return_tensors="pt")
    assert batch.input_features.shape == (2, 16, 192)
    assert batch.attention_mask.sum(dim=1).tolist() == [16, 7]
    assert batch.labels[0].tolist()[-1] == -100
    assert processor.decode(batch.labels[1]) == "it's one"


def test_one_utterance_or_one_text_alone(processor, make_speech):
    features = processor(make_speech(8000), sampling_rate=16000, return_tensors="np")
    assert set(features) == {"input_features", "attention_mask"}
    assert set(processor(text="one two")) == {"labels"}


@pytest.mark.parametrize(
    ("extractor", "name", "shape"),
    [
        (StableTokenFeatureExtractor(feature_size=16), "input_features", (2, 16, 52)),
        (ParakeetFeatureExtractor(), "input_features", (2, 51, 80)),
        (Wav2Vec2FeatureExtractor(), "input_values", (2, 8000)),
    ],
)
def test_features_are_those_of_the_encoder_that_was_taken_over(
    extractor, name, shape, subwords, make_speech, tmp_path
):
    processor = FactoredASRProcessor(extractor, subwords)
    audio = [make_speech(8000), make_speech(4000)]
    features = processor(audio, sampling_rate=16000, return_tensors="pt")
    assert features[name].shape == shape
    assert features["attention_mask"].sum(dim=1).diff() < 0
    processor.save_pretrained(tmp_path)
    again = FactoredASRProcessor.from_pretrained(tmp_path)
    assert type(again.feature_extractor) is type(extractor)
    assert again(audio, sampling_rate=16000, return_tensors="pt")[name].equal(features[name])


def test_generated_ids_become_text_without_padding(processor):
    ids = processor.tokenizer("two one").input_ids
    padded = np.array([ids + [processor.tokenizer.pad_token_id] * 3])
    assert processor.batch_decode(padded) == ["two one"]
    assert processor.decode([]) == ""


def test_a_saved_processor_is_the_same(subwords, make_speech, tmp_path):
    extractor = FactoredASRFeatureExtractor(normalization="global").fit([make_speech(8000)])
    processor = FactoredASRProcessor(extractor, subwords)
    processor.save_pretrained(tmp_path)
    again = FactoredASRProcessor.from_pretrained(tmp_path)
    call = dict(audio=make_speech(8000), text="it's nine", sampling_rate=16000, return_tensors="pt")
    expected, got = processor(**call), again(**call)
    assert all(got[name].equal(value) for name, value in expected.items())
    assert again.decode(got.labels[0]) == "it's nine"


def test_missing_and_mismatched_input_is_refused(processor, subwords, make_speech):
    with pytest.raises(ValueError, match="neither audio nor text"):
        processor()
    with pytest.raises(ValueError, match="2 waveforms and 1 transcripts"):
        processor([make_speech(8000)] * 2, "one", sampling_rate=16000)
    with pytest.raises(ValueError, match="sampling_rate=16000.*got None"):
        FactoredASRProcessor(Wav2Vec2FeatureExtractor(), subwords)(make_speech(8000))
    with pytest.raises(ValueError, match="NaN or infinite"):
        FactoredASRProcessor(Wav2Vec2FeatureExtractor(), subwords)(np.full(800, np.nan), sampling_rate=16000)
    with pytest.raises(ValueError, match=r"characters outside .*: \['2'\]"):
        processor(text="2 two")
    with pytest.raises(ValueError, match="nothing is left"):
        processor(text=["one", "?"])
