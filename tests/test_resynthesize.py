"""Questions to the recipes that resynthesize a recording, count parameters and measure speed."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_hasrd import make_hasrd
from transformers import Wav2Vec2FeatureExtractor

from clearspeech.processing.audio_reading import UnreadableAudioError
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipes(monkeypatch):
    """The recipes as modules."""
    monkeypatch.syspath_prepend(RECIPES)
    import benchmark_hasrd
    import count_hasrd
    import resynthesize

    threads = torch.get_num_threads()
    yield {"resynthesize": resynthesize, "count": count_hasrd, "benchmark": benchmark_hasrd}
    torch.set_num_threads(threads)


@pytest.fixture
def resynthesize(recipes):
    return recipes["resynthesize"].main


@pytest.fixture
def folder(tmp_path) -> str:
    make_hasrd().save_pretrained(tmp_path / "hasrd")
    BestRQFeatureExtractor(num_mel_bins=8).save_pretrained(tmp_path / "hasrd")
    return str(tmp_path / "hasrd")


@pytest.fixture
def recording(tmp_path, make_speech) -> str:
    soundfile.write(tmp_path / "in.wav", make_speech(10_000), 16000)
    return str(tmp_path / "in.wav")


@pytest.mark.parametrize("books", ["all", "semantic", "acoustic", "2"])
def test_a_recording_keeps_its_length(resynthesize, folder, recording, tmp_path, books):
    resynthesize([recording, str(tmp_path / "out.wav"), "--model", folder, "--books", books])
    samples, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 16000 and samples.shape == (10_000,) and np.abs(samples).max() > 0


def test_books_sound_differently_and_the_same_twice(resynthesize, folder, recording, tmp_path):
    heard = {}
    for books in ("semantic", "acoustic", "1"):
        resynthesize([recording, str(tmp_path / "out.flac"), "--model", folder, "--books", books])
        heard[books] = soundfile.read(tmp_path / "out.flac")[0]
    assert np.array_equal(heard["semantic"], heard["1"])
    assert not np.allclose(heard["semantic"], heard["acoustic"], atol=1e-4)


def test_two_channels_at_another_rate_are_read(resynthesize, folder, tmp_path, make_speech):
    stereo = np.stack([make_speech(22_050), make_speech(22_050, 1)], axis=1)
    soundfile.write(tmp_path / "in.wav", stereo, 22_050)
    resynthesize([str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--model", folder])
    assert len(soundfile.read(tmp_path / "out.wav")[0]) == 16_000


def test_a_codec_of_waveforms_is_resynthesized_too(resynthesize, recording, tmp_path):
    make_hasrd("hubert").save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hubert")
    resynthesize([recording, str(tmp_path / "out.wav"), "--model", str(tmp_path / "hubert")])
    assert len(soundfile.read(tmp_path / "out.wav")[0]) == 10_000


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("out.wav", ["--books", "9"], "got 9. This codec has 4"),
        ("out.wav", ["--books", "0"], "got 0"),
        ("out.wav", ["--books", "-1"], "got -1"),
        ("out.wav", ["--books", "speaker"], "got 'speaker'"),
        ("in.wav", [], "is the recording itself"),
        ("out.txt", [], "name of a format"),
    ],
)
def test_what_cannot_be_written_is_refused(resynthesize, folder, recording, tmp_path, target, options, message):
    before = Path(recording).read_bytes()
    with pytest.raises(ValueError, match=message):
        resynthesize([recording, str(tmp_path / target), "--model", folder, *options])
    assert Path(recording).read_bytes() == before
    assert target == "in.wav" or not (tmp_path / target).exists()


def test_files_that_are_no_recordings_are_refused(resynthesize, folder, tmp_path):
    with pytest.raises(UnreadableAudioError, match="cannot read audio file .*missing.wav"):
        resynthesize([str(tmp_path / "missing.wav"), str(tmp_path / "out.wav"), "--model", folder])
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    with pytest.raises(ValueError, match="400 samples, got 100"):
        resynthesize([str(tmp_path / "short.wav"), str(tmp_path / "out.wav"), "--model", folder])


def test_counts_are_the_papers(recipes, tmp_path):
    recipes["count"].main(["--results", str(tmp_path / "hasrd.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "hasrd.json").read_text())["counts"]}
    exact = ("DAC (baseline)", "DAC+fbank", "DAC+fbank+SepConv")
    for name in exact:
        assert round(rows[name]["parameters"] / 1e6, 1) == rows[name]["paper"]
    for name in ("BestRQ+", "HASRD (BestRQ+)", "HASRD (HuBERT)"):
        assert rows[name]["parameters"] / 1e6 == pytest.approx(rows[name]["paper"], rel=0.03)
    assert [rows[name]["kbps"] for name in (*exact[1:], "HASRD (BestRQ+)", "HASRD (HuBERT)")] == [2.8125] * 2 + [
        3.125,
        4.5,
    ]


def test_the_benchmark_runs_on_tiny_sizes(recipes, tmp_path):
    """Never a timing."""
    options = ["--size", "test", "--rounds", "1", "--seconds", "0.5", "--results", str(tmp_path / "hasrd.json")]
    entries = {entry["name"]: entry for entry in recipes["benchmark"].main(options)}
    assert {"codec_dac_vs_fbank_sepconv", "encoder_dac_vs_fbank_sepconv", "training_memory_fbank_vs_dac"} <= set(
        entries
    )
    assert all(entry["ratio"] > 0 for entry in entries.values())
