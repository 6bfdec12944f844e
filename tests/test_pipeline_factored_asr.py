"""Questions to speech recognition through a FactoredASR: every encoder, input and search, long audio, bad input."""

import numpy as np
import pytest
import soundfile
import soxr
import torch
from tiny_factored import ENCODERS, make_factored
from transformers import AutoModelForRNNT, AutoProcessor, Wav2Vec2FeatureExtractor, pipeline

from clearspeech.processing import pipeline_factored_asr
from clearspeech.processing.pipeline_factored_asr import FactoredASRPipeline
from clearspeech.processing.pipeline_speech_recognition import cut_at_quiet_places


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder(encoder)`: a checkpoint folder as a trainer leaves it."""

    def make(encoder: str):
        model, processor = make_factored(encoder)
        model.save_pretrained(tmp_path / encoder)
        processor.save_pretrained(tmp_path / encoder)
        return tmp_path / encoder

    return make


@pytest.fixture
def transcriber() -> FactoredASRPipeline:
    model, processor = make_factored()
    return FactoredASRPipeline(model=model, processor=processor, device="cpu")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_folder_of_any_encoder_transcribes(encoder, make_folder, make_speech):
    folder = make_folder(encoder)
    transcribe = pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    assert type(transcribe) is FactoredASRPipeline
    model, processor = AutoModelForRNNT.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    recordings = [make_speech(samples, seed=samples) for samples in (9000, 16000, 5000)]
    expected = []
    for speech in recordings:
        inputs = processor(audio=speech, sampling_rate=16000, return_tensors="pt")
        expected.append({"text": processor.decode(model.generate(**inputs)[0]).strip()})
    assert all(answer["text"] for answer in expected)
    assert [transcribe(speech) for speech in recordings] == expected
    assert transcribe(recordings, batch_size=3) == expected


def test_files_arrays_dicts_and_bytes_agree(transcriber, make_speech, tmp_path):
    speech = make_speech(8000)
    expected = transcriber(speech)
    soundfile.write(tmp_path / "speech.wav", np.stack([speech, speech], axis=1), 16000, subtype="FLOAT")
    assert transcriber(str(tmp_path / "speech.wav")) == expected
    assert transcriber((tmp_path / "speech.wav").read_bytes()) == expected
    assert transcriber({"raw": speech, "sampling_rate": 16000}) == expected
    assert transcriber(torch.from_numpy(speech)) == expected
    fast = soxr.resample(speech, 16000, 44100)
    assert transcriber({"array": fast, "sampling_rate": 44100}) == transcriber(soxr.resample(fast, 44100, 16000))


def test_beams_come_from_the_call_or_the_models_own_configuration(transcriber, make_speech):
    speech = make_speech(8000)
    model, processor = transcriber.model, transcriber.processor
    inputs = processor(audio=speech, sampling_rate=16000, return_tensors="pt")
    greedy, found = (processor.decode(model.generate(**inputs, num_beams=beams)[0]) for beams in (1, 3))
    assert greedy != found
    assert transcriber(speech)["text"] == greedy
    assert transcriber(speech, generate_kwargs={"num_beams": 3})["text"] == found
    model.generation_config.num_beams = 3
    assert transcriber(speech)["text"] == found


def piece_lengths(transcriber, num_samples: int) -> list[int]:
    """Of silent audio, in samples."""
    return [int(piece["num_samples"]) for piece in transcriber.preprocess(np.zeros(num_samples, "f4"))]


def test_long_audio_is_cut_into_windows_of_at_most_30_seconds(transcriber):
    assert piece_lengths(transcriber, 30 * 16000) == [30 * 16000]
    lengths = piece_lengths(transcriber, 70 * 16000)
    assert len(lengths) >= 3 and max(lengths) <= 30 * 16000 and sum(lengths) == 70 * 16000


@pytest.mark.parametrize("beyond", [1, 300, 700, 900, 2000])
def test_a_little_more_than_a_window_leaves_no_piece_too_short_to_read(transcriber, beyond):
    lengths = piece_lengths(transcriber, 30 * 16000 + beyond)
    assert sum(lengths) == 30 * 16000 + beyond and min(lengths) >= 1600


def test_the_texts_of_the_windows_are_joined(transcriber, make_speech, monkeypatch):
    monkeypatch.setattr(pipeline_factored_asr, "WINDOW_SECONDS", 2)
    speech = make_speech(5 * 16000)
    pieces = cut_at_quiet_places(torch.from_numpy(speech), 32000)
    assert len(pieces) >= 3
    assert transcriber(speech)["text"] == " ".join(transcriber(piece)["text"] for piece in pieces)


def test_a_whisper_encoders_window_is_that_of_its_position_table(make_speech):
    model, processor = make_factored("whisper")
    transcribe = FactoredASRPipeline(model=model, processor=processor, device="cpu")
    assert transcribe._samples_per_window() == 31800  # 100 positions of 20 ms, of which 200 samples are silence behind
    assert transcribe(make_speech(31800))["text"] and transcribe(make_speech(40000))["text"]


def test_speech_of_which_nothing_is_written_has_an_empty_text(transcriber, make_speech):
    with torch.no_grad():
        transcriber.model.joint.head.bias[-1] = 1e4  # blank
    assert transcriber([make_speech(9000), make_speech(4000)], batch_size=2) == [{"text": ""}, {"text": ""}]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((2, 16000), dtype=np.float32), "mono"),
        (np.zeros(16000, dtype=np.int16), "floating-point"),
        (np.full(16000, np.nan, dtype=np.float32), "NaN"),
        (np.zeros(719, dtype=np.float32), "at least one stacked frame of 720 samples, got 719"),
    ],
)
def test_bad_audio_is_refused(transcriber, audio, message):
    with pytest.raises(ValueError, match=message):
        transcriber(audio)


def test_half_a_model_is_refused(transcriber):
    model, processor = transcriber.model, transcriber.processor
    with pytest.raises(ValueError, match="FactoredASRForRNNT without its feature extractor or tokenizer"):
        FactoredASRPipeline(model=model, tokenizer=processor.tokenizer, device="cpu")
    with pytest.raises(ValueError, match="lstm_encoder encoder takes input_features.*Wav2Vec2.*makes input_values"):
        parts = dict(tokenizer=processor.tokenizer, feature_extractor=Wav2Vec2FeatureExtractor())
        pipeline("automatic-speech-recognition", model=model, **parts, device="cpu")
