"""Questions to speech recognition through a HasrdForCTC: folders, every input, batches, long audio, bad input."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from tiny_hasrd_ctc import make_recognizer
from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2FeatureExtractor, pipeline

from clearspeech import hub
from clearspeech.processing import pipeline_factored_asr
from clearspeech.processing.pipeline_hasrd import HasrdPipeline
from clearspeech.processing.pipeline_speech_recognition import SpeechRecognitionPipeline, cut_at_quiet_places
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor


@pytest.fixture
def transcriber() -> HasrdPipeline:
    model, processor = make_recognizer("layers")
    return SpeechRecognitionPipeline(model=model, processor=processor, device="cpu")


@pytest.mark.parametrize(
    "representation, encoder",
    [("semantic", "best_rq"), ("features", "best_rq"), ("layers", "hubert"), ("combined", "wav2vec2")],
)
def test_a_folder_transcribes_alone_and_in_batches(representation, encoder, make_speech, tmp_path):
    for part in make_recognizer(representation, encoder):
        part.save_pretrained(tmp_path)
    transcribe = pipeline("automatic-speech-recognition", model=str(tmp_path), device="cpu")
    assert type(transcribe) is HasrdPipeline
    model, processor = AutoModelForCTC.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is FactoredASRProcessor
    recordings, expected = [make_speech(samples, seed=samples) for samples in (9000, 16000, 5000)], []
    for speech in recordings:
        inputs = processor(audio=speech, sampling_rate=16000, return_tensors="pt")
        expected.append({"text": processor.decode(model.generate(**inputs)[0]).strip()})
    assert any(answer["text"] for answer in expected)
    assert [transcribe(speech) for speech in recordings] == expected
    assert transcribe(recordings, batch_size=3) == expected


def test_files_arrays_and_dicts_agree(transcriber, make_speech, tmp_path):
    speech = make_speech(8000)
    expected = transcriber(speech)
    assert type(transcriber) is HasrdPipeline and expected["text"]
    soundfile.write(tmp_path / "speech.wav", np.stack([speech, speech], axis=1), 16000, subtype="FLOAT")
    assert transcriber(str(tmp_path / "speech.wav")) == expected
    assert transcriber({"raw": speech, "sampling_rate": 16000}) == expected
    assert transcriber(torch.from_numpy(speech)) == expected


def test_long_audio_is_cut_at_quiet_places_and_its_texts_are_joined(transcriber, make_speech, monkeypatch):
    monkeypatch.setattr(pipeline_factored_asr, "WINDOW_SECONDS", 2)
    speech = make_speech(5 * 16000)
    pieces = cut_at_quiet_places(torch.from_numpy(speech), 32000)
    assert len(pieces) >= 3
    texts = [transcriber(piece)["text"] for piece in pieces]
    assert transcriber(speech)["text"] == " ".join(text for text in texts if text)


def test_windows_have_30_seconds(transcriber):
    lengths = [int(piece["num_samples"]) for piece in transcriber.preprocess(np.zeros(70 * 16000, "f4"))]
    assert len(lengths) >= 3 and max(lengths) <= 30 * 16000 and sum(lengths) == 70 * 16000


def test_speech_of_which_nothing_is_written_has_an_empty_text(transcriber, make_speech):
    with torch.no_grad():
        transcriber.model.head.bias[0] = 1e4  # blank
    assert transcriber([make_speech(9000), make_speech(4000)], batch_size=2) == [{"text": ""}, {"text": ""}]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((2, 16000), dtype=np.float32), "mono"),
        (np.full(16000, np.nan, dtype=np.float32), "NaN"),
        (np.zeros(399, dtype=np.float32), "at least one window of 400 samples, got 399"),
    ],
)
def test_bad_audio_is_refused(transcriber, audio, message):
    with pytest.raises(ValueError, match=message):
        transcriber(audio)


def test_silence_is_transcribed(transcriber):
    assert isinstance(transcriber(np.zeros(16000, dtype=np.float32))["text"], str)


def test_half_a_model_and_beams_are_refused(transcriber, make_speech):
    model, processor = transcriber.model, transcriber.processor
    with pytest.raises(ValueError, match="HasrdForCTC without its feature extractor or tokenizer"):
        HasrdPipeline(model=model, tokenizer=processor.tokenizer, device="cpu")
    with pytest.raises(ValueError, match="best_rq encoder takes input_features.*Wav2Vec2.*makes input_values"):
        parts = dict(tokenizer=processor.tokenizer, feature_extractor=Wav2Vec2FeatureExtractor())
        pipeline("automatic-speech-recognition", model=model, **parts, device="cpu")
    with pytest.raises(ValueError, match="decoded greedily"):
        transcriber(make_speech(8000), generate_kwargs={"num_beams": 4})


# runs in a process of its own: argument 1 is the folder, 2 an audio file
STRANGER = """
import json, sys
sys.modules["clearspeech"] = None  # as if it were not installed
from transformers import AutoModelForCTC, pipeline
path, audio = sys.argv[1:]
model = AutoModelForCTC.from_pretrained(path, trust_remote_code=True)
transcribe = pipeline("automatic-speech-recognition", model=path, trust_remote_code=True, device="cpu")
parts = (model, transcribe, transcribe.feature_extractor)
print(json.dumps({
    "text": transcribe(audio)["text"],
    "classes": [type(part).__name__ for part in parts],
    "modules": [type(part).__module__.split(".")[0] for part in parts],
}))
"""


def test_a_published_folder_transcribes_without_the_suite(make_speech, tmp_path):
    model, processor = make_recognizer("combined")
    published = hub.publish(model, processor, tmp_path / "published", card="")
    speech = make_speech(16000)
    soundfile.write(tmp_path / "speech.wav", speech, 16000, subtype="FLOAT")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name in ("HF_MODULES_CACHE", "HF_HUB_CACHE", "PYTHONPATH"):
        environment.pop(name, None)
    command = [sys.executable, "-c", STRANGER, str(published), str(tmp_path / "speech.wav")]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["text"] == HasrdPipeline(model=model, processor=processor, device="cpu")(speech)["text"] != ""
    assert seen["classes"] == ["HasrdForCTC", "HasrdPipeline", "BestRQFeatureExtractor"]
    assert set(seen["modules"]) == {"transformers_modules"}
