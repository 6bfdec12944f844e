"""Pictures of speech and noise told apart: that they show what they are given, and refuse what cannot be drawn."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from clearspeech.trainers import noise_figures
from clearspeech.trainers.noise_figures import (
    plot_explanation,
    plot_noise_features,
    plot_noise_map,
    project_features,
)

WAVEFORM = np.sin(np.arange(2560) / 9).astype(np.float32)
MAP = {"rain": [0.0, 0.5, 0.0, 1.0], "dog (seen)": [0.0, 0.0, 0.0, 0.2]}
POSTERIOR = {"rain": 0.1, "wind": 0.7, "unknown": 0.2}


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> list[Figure]:
    """The figures in place of their files."""
    monkeypatch.chdir(tmp_path)  # where their data goes
    kept = []
    monkeypatch.setattr(noise_figures, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def test_pictures_are_png_files(tmp_path):
    plot_noise_map(WAVEFORM, {"ours": MAP, "control": MAP}, 0.04, tmp_path / "map.png", "hello")
    places, labels = np.zeros((3, 2)), ["rain", "clean", "rain"]
    plot_noise_features({"left": (places, labels), "right": (places, labels)}, tmp_path / "features.png", "hello")
    plot_explanation(WAVEFORM, [1, 2, 3, 4], [0.1] * 4, POSTERIOR, 0.04, tmp_path / "explained.png", "hello")
    for name in ("map", "features", "explained"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_have_their_data_beside_them(tmp_path):
    moved = torch.tensor([0.12345, 2.0])
    plot_noise_map(WAVEFORM, {"ours": {"rain": moved}}, 0.04, tmp_path / "map.png", "hello")
    written = {"title": "hello", "seconds_per_frame": 0.04, "maps": {"ours": {"rain": [0.123, 2.0]}}}
    assert json.loads((tmp_path / "map.json").read_text()) == written
    places = np.array([[1.23456, 0.0], [-7.0, 1e-5]], dtype=np.float32)
    plot_noise_features({"test": (places, ["rain", "clean"])}, tmp_path / "features.png", "hello")
    panel = {"places": [[1.235, 0.0], [-7.0, 0.0]], "labels": ["rain", "clean"]}
    assert json.loads((tmp_path / "features.json").read_text()) == {"title": "hello", "panels": {"test": panel}}


def test_maps_share_the_time_axis_and_the_colours(drawn):
    plot_noise_map(WAVEFORM, {"ours": MAP, "control": MAP}, 0.04, "unused.png", "hello")
    waveform, ours, control, bar = drawn[0].axes
    assert waveform.get_xlim() == ours.get_xlim() == control.get_xlim() == (0, pytest.approx(0.16))
    assert waveform.lines[0].get_xdata()[-1] == pytest.approx(2559 / 16000)
    assert ours.images[0].get_clim() == control.images[0].get_clim()
    assert np.array_equal(ours.images[0].get_array(), np.array(list(MAP.values())))
    assert [label.get_text() for label in ours.get_yticklabels()] == list(MAP)
    assert ours.get_title(loc="left") == "ours: mean 0.21"
    assert control.get_xlabel() == "time in s" and "L2 distance" in bar.get_ylabel()


@pytest.mark.parametrize("maps", [{}, {"ours": {}}, {"ours": {"rain": [1.0], "wind": [1.0, 2.0]}}])
def test_maps_of_different_lengths_are_refused(maps):
    with pytest.raises(ValueError, match="Maps need rows of one length"):
        plot_noise_map(WAVEFORM, maps, 0.04, "unused.png", "hello")


def test_each_noise_has_a_colour_and_marker_of_its_own_and_its_count(drawn):
    labels = [f"class_{index}" for index in range(12)] + ["clean", "clean"]
    plot_noise_features({"test": (np.random.rand(14, 2), labels)}, "unused.png", "hello")
    axes = drawn[0].axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0] == "clean (2)" and texts[1] == "class 0 (1)" and len(texts) == 13
    styles = {(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in axes.collections}
    assert len(styles) == 13


def test_places_without_labels_are_refused():
    with pytest.raises(ValueError, match="as many labels as places"):
        plot_noise_features({"test": (np.zeros((3, 2)), ["rain"])}, "unused.png", "hello")


def test_classes_that_lie_apart_stay_apart_in_the_plane():
    features = torch.randn(40, 8) + 20 * torch.eye(2, 8).repeat_interleave(20, dim=0)
    places = project_features(features)
    assert np.array_equal(places, project_features(features))
    centres = places[:20].mean(axis=0), places[20:].mean(axis=0)
    spread = max(np.linalg.norm(places[:20] - centres[0], axis=1).max(), 1e-6)
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread


def test_a_plane_needs_three_utterances():
    assert project_features(torch.randn(3, 8)).shape == (3, 2)
    with pytest.raises(ValueError, match="at least three utterances, got 2"):
        project_features(torch.randn(2, 8))


def test_an_explanation_shows_ids_residue_and_the_likeliest_noise_first(drawn):
    distances = [0.5, 1.0, 0.0, 2.0]
    plot_explanation(WAVEFORM, torch.tensor([7, 7, 3, 30]), distances, POSTERIOR, 0.04, "unused.png", "hello")
    waveform, ids, residue, posterior = drawn[0].axes
    assert [text.get_text() for text in ids.texts] == ["7", "7", "3", "30"]
    cells = np.asarray(ids.images[0].get_array())[0]
    assert np.array_equal(cells[0], cells[1]) and not np.array_equal(cells[1], cells[2])
    assert residue.patches[0].get_data().values.tolist() == distances
    assert waveform.get_xlim() == residue.get_xlim() == (0, pytest.approx(0.16))
    assert [label.get_text() for label in posterior.get_yticklabels()] == ["wind", "unknown", "rain"]
    assert [bar.get_width() for bar in posterior.containers[0]] == pytest.approx([70.0, 20.0, 10.0])


def test_ids_that_could_not_be_read_are_left_out(drawn):
    many = list(range(noise_figures.MAX_NUMBERED_TOKENS + 1))
    plot_explanation(WAVEFORM, many, [1.0] * len(many), {}, 0.04, "unused.png", "hello")
    assert len(drawn[0].axes) == 3 and not drawn[0].axes[1].texts


def test_the_second_scale_is_the_square_of_the_first(drawn):
    plot_explanation(WAVEFORM, [1, 2], [1.0, 2.0], {}, 0.04, "unused.png", "hello")
    residue = drawn[0].axes[2]
    (energy,) = residue.child_axes
    drawn[0].draw_without_rendering()
    assert energy.get_ylim() == pytest.approx([limit**2 for limit in residue.get_ylim()])


@pytest.mark.parametrize("codes, distances", [([], []), ([1, 2], [0.5])])
def test_an_explanation_needs_a_distance_per_id(codes, distances):
    with pytest.raises(ValueError, match="one distance per id and at least one"):
        plot_explanation(WAVEFORM, codes, distances, {}, 0.04, "unused.png", "hello")
