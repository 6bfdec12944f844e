"""Explaining one recording: recipes/explain_disentangled_whisper.py."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_training import SHAPE
from transformers import AutoModelForAudioTokenization

from clearspeech import DisentangledWhisperConfig, DisentangledWhisperForConditionalGeneration
from clearspeech.processing.audio_reading import UnreadableAudioError


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import explain_disentangled_whisper

    return explain_disentangled_whisper


def save_model(folder: Path, processor, **overrides) -> str:
    torch.manual_seed(0)
    fields = SHAPE | dict(codebook_size=32, codebook_dim=8, noise_head_dim=16, window_overlap=10) | overrides
    DisentangledWhisperForConditionalGeneration(DisentangledWhisperConfig(**fields)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path, tiny_processor) -> str:
    return save_model(tmp_path / "model", tiny_processor, noise_labels=["rain", "wind"])


@pytest.fixture
def recording(tmp_path, make_speech) -> str:
    soundfile.write(tmp_path / "speech.wav", make_speech(16000), 16000)
    return str(tmp_path / "speech.wav")


def test_a_recording_is_explained_in_words_and_in_a_picture(recipe, folder, recording, tmp_path, capsys):
    picture = recipe.main([recording, "--model", folder, "--output", str(tmp_path / "out" / "it.png")])
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "1.00 s, 25 ids" in printed and "noise: " in printed and "text: " in printed
    assert all(name in printed for name in ("rain", "wind", "unknown"))


def test_the_picture_is_written_here_unless_told_otherwise(recipe, folder, recording, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe.main([recording, "--model", folder]) == Path("speech_explained.png")
    assert (tmp_path / "speech_explained.png").exists()


def test_any_rate_and_any_number_of_channels_is_read(recipe, tmp_path, make_speech):
    stereo = np.stack([make_speech(44100)] * 2, axis=1)
    soundfile.write(tmp_path / "music.flac", stereo, 44100)
    waveform = recipe.read_recording(str(tmp_path / "music.flac"))
    assert waveform.shape == (16000,) and waveform.dtype == np.float32


def test_half_a_model_explains_without_a_transcript(recipe, folder, tiny_processor, recording, tmp_path, capsys):
    tokenizer = tmp_path / "tokenizer"
    AutoModelForAudioTokenization.from_pretrained(folder).save_pretrained(tokenizer)
    tiny_processor.feature_extractor.save_pretrained(tokenizer)
    recipe.main([recording, "--model", str(tokenizer), "--output", str(tmp_path / "it.png")])
    printed = capsys.readouterr().out
    assert "25 ids" in printed and "text: " not in printed


def test_a_model_without_a_noise_head_names_no_noise(recipe, tiny_processor, recording, tmp_path, capsys):
    folder = save_model(tmp_path / "plain", tiny_processor)
    recipe.main([recording, "--model", folder, "--output", str(tmp_path / "it.png")])
    assert "noise: " not in capsys.readouterr().out


def test_a_model_without_a_quantizer_is_refused(recipe, tiny_processor, recording, tmp_path):
    folder = save_model(tmp_path / "adapter", tiny_processor, bottleneck="adapter")
    with pytest.raises(ValueError, match="has no quantizer, so no ids and no residue"):
        recipe.main([recording, "--model", folder])


def test_a_recording_beyond_the_window_is_refused(recipe, folder, tmp_path, make_speech):
    soundfile.write(tmp_path / "long.wav", make_speech(33000), 16000)  # the tiny model's window is 2 s
    with pytest.raises(ValueError, match="long.wav lasts 2.1 s; a recording of at most 2 s can be explained"):
        recipe.main([str(tmp_path / "long.wav"), "--model", folder])


def test_missing_and_broken_files_are_named(recipe, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio file .*missing.wav"):
        recipe.main([str(tmp_path / "missing.wav"), "--model", folder])
    (tmp_path / "broken.wav").write_text("this is no audio")
    with pytest.raises(UnreadableAudioError, match="cannot read audio file .*broken.wav"):
        recipe.main([str(tmp_path / "broken.wav"), "--model", folder])
