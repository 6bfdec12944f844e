"""Pictures: that they are written whole, show what they are given, and refuse what cannot be drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from clearspeech.trainers import figures
from clearspeech.trainers.figures import CHANGED, plot_token_strips, plot_unit_edit_distance, plot_voter_counts

STRIPS = {"clean": [1, 2, 3, 4], "pink, 22 dB": [1, 9, 3, 8], "brown, 16 dB": [1, 2, 3, 4]}


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures in place of their files."""
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def is_png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_pictures_are_png_files(tmp_path):
    bars = {"full": {"pink": 9.0, "brown": 8.0}, "single": {"pink": 20.0}}
    plot_unit_edit_distance(bars, tmp_path / "new" / "bars.png", "UED", {"full": {"pink": (8.0, 10.0)}})
    plot_voter_counts({"an4": {1: 20.0, 3: 10.0}, "paper": {3: 15.0}}, tmp_path / "voters.png", "Voters")
    plot_token_strips(STRIPS, 0.04, tmp_path / "tokens.png", "hello", np.zeros(2560, dtype=np.float32))
    assert is_png(tmp_path / "new" / "bars.png")
    assert is_png(tmp_path / "voters.png")
    assert is_png(tmp_path / "tokens.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "tokens.png", "voters.png"]


def test_changed_tokens_and_only_they_are_marked(drawn):
    plot_token_strips(STRIPS, 0.04, "unused.png", "hello")
    axes = drawn[0].axes[-1]
    marked = [text.get_text() for text in axes.texts if text.get_color() == CHANGED]
    assert marked == ["9", "8"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "clean",
        "pink, 22 dB\n2 of 4 changed",
        "brown, 16 dB\n0 of 4 changed",
    ]


def test_tokens_lie_on_a_time_axis_in_seconds(drawn):
    plot_token_strips(STRIPS, 0.04, "unused.png", "hello", np.zeros(2560))
    waveform, tokens = drawn[0].axes
    assert tokens.get_xlabel() == "seconds"
    assert tokens.get_xlim() == (0, pytest.approx(0.16))
    assert waveform.lines[0].get_xdata()[-1] == pytest.approx(2559 / 16000)
    assert tokens.texts[1].get_position()[0] == pytest.approx(0.06)  # the second token's middle


def test_bars_stand_over_their_conditions(drawn):
    plot_unit_edit_distance({"full": {"pink": 9.0}, "single": {"pink": 20.0, "brown": 8.0}}, "unused.png", "UED")
    axes = drawn[0].axes[0]
    assert [bar.get_height() for bars in axes.containers for bar in bars] == [9.0, 20.0, 8.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pink", "brown"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["full", "single"]


@pytest.mark.parametrize("strips", [{}, {"clean": []}, {"clean": [1, 2], "pink": [1]}])
def test_strips_of_different_lengths_are_refused(strips, tmp_path):
    with pytest.raises(ValueError, match="must all have one length of at least 1"):
        plot_token_strips(strips, 0.04, tmp_path / "tokens.png", "hello")


def test_bars_without_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no row to draw"):
        plot_unit_edit_distance({}, tmp_path / "bars.png", "UED")
