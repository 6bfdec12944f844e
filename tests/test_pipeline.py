"""Questions to the speech recognition pipeline: every kind of input, batches, long audio, other people's models."""

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

from clearspeech.processing.pipeline_speech_recognition import SpeechRecognitionPipeline, cut_at_quiet_places


@pytest.fixture(params=["stable_token", "disentangled_whisper"])
def tiny_model(request, tiny_model, tiny_disentangled):
    """Each method's in turn."""
    return {"stable_token": tiny_model, "disentangled_whisper": tiny_disentangled}[request.param]


@pytest.fixture
def transcriber(tiny_folder) -> SpeechRecognitionPipeline:
    return pipeline("automatic-speech-recognition", model=str(tiny_folder), device="cpu")


@pytest.fixture
def echo(transcriber, monkeypatch) -> SpeechRecognitionPipeline:
    """A pipeline whose model writes one letter per token of speech, so that the text says what the model heard."""

    def generate(input_features, attention_mask, **kwargs):
        num_tokens = -(-attention_mask.sum(dim=1) // 4)
        tokens = torch.zeros(len(num_tokens), int(num_tokens.max()), dtype=torch.long)
        for row, count in enumerate(num_tokens):
            tokens[row, :count] = 5
        return tokens

    monkeypatch.setattr(transcriber.model, "generate", generate)
    return transcriber


def test_a_checkpoint_folder_gives_the_suites_pipeline(transcriber, tiny_model):
    assert isinstance(transcriber, SpeechRecognitionPipeline)
    assert type(transcriber.model) is type(tiny_model)


def test_text_is_what_generate_writes(transcriber, tiny_model, tiny_processor, make_speech):
    speech = make_speech(9000)
    features = tiny_processor(audio=speech, sampling_rate=16000, return_tensors="pt")
    tokens = tiny_model.generate(**features)
    expected = tiny_processor.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
    assert expected
    assert transcriber(speech) == {"text": expected}


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_files_are_read_without_ffmpeg(echo, make_speech, tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("PATH", "")  # no ffmpeg to be found
    path = tmp_path / f"speech.{suffix}"
    soundfile.write(path, make_speech(16000), 16000)
    text = echo(str(path))["text"]
    assert 25 <= len(text) <= 28  # lossy formats pad a little
    assert echo(path.read_bytes())["text"] == text
    assert echo({"path": str(path), "bytes": None})["text"] == text


def test_files_at_another_rate_and_with_two_channels_are_converted(transcriber, make_speech, tmp_path):
    speech = soxr.resample(make_speech(8000), 16000, 44100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([speech, speech], axis=1), 44100, subtype="FLOAT")
    expected = transcriber({"raw": speech, "sampling_rate": 44100})
    assert transcriber(str(tmp_path / "stereo.wav")) == expected
    assert transcriber(soxr.resample(speech, 44100, 16000)) == expected


def test_arrays_tensors_and_dicts_agree_and_stay_untouched(transcriber, make_speech):
    speech = make_speech(8000)
    expected = transcriber(speech)
    given = {"array": speech, "sampling_rate": 16000, "path": None}
    assert transcriber(given) == expected
    assert given.keys() == {"array", "sampling_rate", "path"}
    assert transcriber({"raw": speech, "sampling_rate": 16000}) == expected
    assert transcriber(torch.from_numpy(speech)) == expected


def test_a_batch_of_different_lengths_gives_what_each_gives_alone(transcriber, make_speech):
    recordings = [make_speech(n, seed=n) for n in (161, 5000, 100000, 20000, 639)]
    alone = [transcriber(recording) for recording in recordings]
    assert transcriber(recordings) == alone
    assert transcriber(recordings, batch_size=3) == alone


def test_nothing_of_long_audio_is_lost_or_doubled(echo, make_speech):
    num_samples = 40 * 6400 + 77  # 16 s through a window of 2 s
    letters = echo(make_speech(num_samples))["text"].split(" ")
    assert len(letters) >= 9
    whole_tokens = -(-num_samples // 640)
    assert whole_tokens <= len("".join(letters)) <= whole_tokens + len(letters) - 1  # each cut may split one token


@pytest.mark.parametrize("num_samples", [31800, 31801])
def test_every_piece_fits_the_models_window(transcriber, make_speech, num_samples):
    """The tiny model's table has 100 positions of 20 ms: 32000 samples, of which 200 are the silence behind."""
    assert transcriber._samples_per_window() == 31800
    pieces = list(transcriber.preprocess(make_speech(num_samples)))
    assert [piece["is_last"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) == 1 + (num_samples > 31800)
    transcriber(make_speech(num_samples))


def test_cuts_fall_into_pauses_and_pieces_add_up():
    speech = torch.ones(100000)
    speech[25000:26500] = 0.01  # the only pause in the last third of 30000
    speech[5000:6000] = 0.0  # quieter still, but would waste the window
    pieces = cut_at_quiet_places(speech, 30000)
    assert 25000 < len(pieces[0]) < 26500
    assert all(len(piece) <= 30000 for piece in pieces)
    assert torch.equal(torch.cat(pieces), speech)


def test_generation_arguments_reach_the_model(transcriber, make_speech):
    speech = make_speech(8000)
    assert len(transcriber(speech, generate_kwargs={"max_new_tokens": 3})["text"]) <= 3


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((2, 16000), dtype=np.float32), "mono"),
        (np.zeros(16000, dtype=np.int16), "floating-point"),
        ({"raw": np.zeros(16000, dtype=np.int16), "sampling_rate": 44100}, "floating-point"),
        (np.full(16000, np.nan, dtype=np.float32), "NaN"),
        (np.zeros(100, dtype=np.float32), "at least one hop"),
        ({"array": np.zeros(16000, dtype=np.float32)}, "sampling_rate"),
    ],
)
def test_bad_audio_is_refused(transcriber, audio, message):
    with pytest.raises(ValueError, match=message):
        transcriber(audio)


def test_missing_and_corrupt_files_are_named(transcriber, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.wav"):
        transcriber(str(tmp_path / "missing.wav"))
    (tmp_path / "corrupt.wav").write_bytes(b"not audio")
    with pytest.raises(ValueError, match="corrupt.wav"):
        transcriber(str(tmp_path / "corrupt.wav"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"chunk_length_s": 30}, "chunk_length_s=30.*cut at quiet places already"),
        ({"stride_length_s": (4, 2)}, r"stride_length_s=\(4, 2\).*cut at quiet places already"),
        ({"return_timestamps": True}, "return_timestamps=True.*without times"),
        ({"return_timestamps": "word"}, "return_timestamps='word'.*without times"),
        ({"return_language": True}, "return_language=True.*the language"),
        ({"decoder_kwargs": {"beam_width": 5}}, "decoder_kwargs=.*generate_kwargs"),
    ],
)
def test_stock_options_that_do_not_apply_are_refused(transcriber, make_speech, tiny_folder, option, message):
    with pytest.raises(ValueError, match=message):
        transcriber(make_speech(8000), **option)
    with pytest.raises(ValueError, match=message):
        pipeline("automatic-speech-recognition", model=str(tiny_folder), device="cpu", **option)


def test_stock_options_that_ask_for_nothing_change_nothing(transcriber, make_speech):
    speech = make_speech(8000)
    options = {"chunk_length_s": 0, "stride_length_s": None, "ignore_warning": True, "return_timestamps": False}
    assert transcriber(speech, **options) == transcriber(speech)


def test_a_plain_whisper_with_the_suites_features_is_refused(tiny_whisper_folder):
    message = "got WhisperForConditionalGeneration with a StableTokenFeatureExtractor.*base to train.*--base_model"
    with pytest.raises(ValueError, match=message):
        pipeline("automatic-speech-recognition", model=str(tiny_whisper_folder), device="cpu")


def test_the_suites_model_with_stock_features_is_refused(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="suite's feature extractor.*got WhisperFeatureExtractor"):
        pipeline(
            "automatic-speech-recognition",
            model=tiny_model,
            tokenizer=tokenizer,
            feature_extractor=WhisperFeatureExtractor(feature_size=16),
            device="cpu",
        )


def test_other_models_get_the_stock_pipeline(tiny_whisper_folder, tokenizer):
    stock = pipeline(
        "automatic-speech-recognition",
        model=WhisperForConditionalGeneration.from_pretrained(tiny_whisper_folder),
        tokenizer=tokenizer,
        feature_extractor=WhisperFeatureExtractor(),
        device="cpu",
    )
    assert type(stock) is AutomaticSpeechRecognitionPipeline
    assert stock.type == "seq2seq_whisper"


def test_a_tokenizer_without_text_is_refused(tiny_model, tiny_processor):
    with pytest.raises(ValueError, match=f"writes text.*{type(tiny_model.model).__name__}"):
        SpeechRecognitionPipeline(
            model=tiny_model.model,
            tokenizer=tiny_processor.tokenizer,
            feature_extractor=tiny_processor.feature_extractor,
            device="cpu",
        )
