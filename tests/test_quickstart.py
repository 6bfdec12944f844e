"""`make quickstart`, with a tiny base and two steps: it trains, measures, draws, transcribes, and can be run again."""

from pathlib import Path

import pytest


@pytest.fixture
def quickstart(monkeypatch, tmp_path, tiny_whisper_folder):
    """Runs the recipe on a tiny random Whisper; returns nothing."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    monkeypatch.chdir(tmp_path)
    import quickstart as recipe

    arguments = [
        "--base_model",
        str(tiny_whisper_folder),
        "--max_steps",
        "2",
        "--max_utterances",
        "4",
        "--num_files",
        "2",
    ]
    return lambda: recipe.main(arguments)


def test_quickstart_trains_measures_draws_and_transcribes(quickstart, tmp_path, capsys):
    quickstart()
    printed = capsys.readouterr().out
    assert "about" in printed and "minutes" in printed
    for line in (
        "WER, clean",
        "WER, stand-in noise, 16 dB",
        "UED, pink, 22 dB",
        "UED, held-out stand-in noise, 16 dB",
    ):
        assert line in printed
    assert printed.count("heard:") == 2
    folder = tmp_path / "outputs" / "quickstart"
    assert (folder / "tokens.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "model.safetensors").exists()

    trained = (folder / "model.safetensors").read_bytes()
    quickstart()
    assert "holds a trained model already" in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == trained
