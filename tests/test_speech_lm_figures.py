"""Pictures of speech language models: that they show what was logged and measured, and refuse what cannot be drawn."""

import json

import pytest
from matplotlib.figure import Figure

from clearspeech.trainers import speech_lm_figures
from clearspeech.trainers.speech_lm_figures import (
    CLEAN,
    plot_alpha_sweep,
    plot_learning_curves,
    plot_snr_curves,
    read_learning_curve,
    read_snr_curves,
)

METRICS = {
    "wer": 5.0,
    "wer/pink": 9.0,
    "wer/pink@0": 40.0,
    "wer/pink@7.5": 20.0,
    "wer/real_ood@0": 50.0,
    "cer/pink@0": 3,
}


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures in place of their files."""
    kept = []
    monkeypatch.setattr(speech_lm_figures, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def write_state(folder, *lines: dict):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": list(lines)}))


# --- reading ---


def test_a_learning_curve_is_what_the_training_logged(tmp_path):
    lines = [{"step": 10, "eval_text": 2.5}, {"step": 10, "loss": 9.0}, {"step": 20, "eval_text": 1.5}]
    write_state(tmp_path, *lines)
    assert read_learning_curve(tmp_path) == {10: 2.5, 20: 1.5}
    assert read_learning_curve(tmp_path, "loss") == {10: 9.0}


def test_a_running_training_is_read_from_its_last_checkpoint(tmp_path):
    for step in (5, 10):
        write_state(tmp_path / f"checkpoint-{step}", {"step": step, "eval_text": float(step)})
    assert read_learning_curve(tmp_path) == {10: 10.0}


def test_a_folder_without_a_log_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{folder} has no trainer_state.json"):
            read_learning_curve(folder)


def test_a_log_without_the_figure_says_what_it_has(tmp_path):
    write_state(tmp_path, {"step": 1, "loss": 3.0})
    with pytest.raises(ValueError, match="no 'eval_text'; it has loss, step"):
        read_learning_curve(tmp_path)


def test_snr_curves_are_read_by_kind_with_clean_speech_in_each():
    curves = read_snr_curves(METRICS, "wer")
    assert curves == {"pink": {CLEAN: 5.0, 0.0: 40.0, 7.5: 20.0}, "real_ood": {CLEAN: 5.0, 0.0: 50.0}}
    with pytest.raises(ValueError, match="no accuracy/<kind>@<SNR> among wer, wer/pink"):
        read_snr_curves(METRICS, "accuracy")


# --- drawing ---


def test_pictures_are_png_files(tmp_path):
    plot_learning_curves({"sld": [{1: 2.0, 2: 1.0}]}, tmp_path / "curves.png", "curves")
    plot_alpha_sweep({"dev": {0.008: 2.0}}, tmp_path / "alpha.png", "alpha")
    plot_snr_curves({"a": read_snr_curves(METRICS, "wer")}, tmp_path / "snr.png", "snr", "WER in %")
    assert all(
        (tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "alpha.png", "snr.png")
    )


def test_seeds_are_drawn_as_mean_and_range_over_their_common_steps(drawn):
    seeds = [{10: 4.0, 20: 2.0, 30: 1.0}, {10: 2.0, 20: 1.0}]
    plot_learning_curves({"sld": seeds, "none": [{10: 5.0}]}, "unused.png", "curves")
    axes = drawn[0].axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[10, 3.0], [20, 1.5]]
    assert axes.lines[1].get_xydata().tolist() == [[10, 5.0]]
    (band,) = axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices.tolist()} >= {(10, 2), (10, 4), (20, 1), (20, 2)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sld (2 seeds)", "none"]


def test_alpha_runs_on_a_logarithmic_axis_beside_loss_masking(drawn):
    curves = {"dev": {0.8: 9.0, 0.0008: 6.0, 0.008: 5.0}, "test": {0.008: 7.0}}
    plot_alpha_sweep(curves, "unused.png", "alpha", {"dev": 6.5})
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0008", "0.008", "0.8"]
    dev, masking, test = axes.lines
    assert dev.get_xydata().tolist() == [[0.0008, 6.0], [0.008, 5.0], [0.8, 9.0]]
    assert list(masking.get_ydata()) == [6.5, 6.5] and masking.get_color() == dev.get_color() != test.get_color()


def test_every_kind_has_a_panel_and_every_model_a_line_that_grows_louder_to_the_right(drawn):
    curves = {"ours": {"pink": {CLEAN: 5.0, 0.0: 40.0, 10.0: 20.0}}, "theirs": {"brown": {0.0: 9.0}}}
    plot_snr_curves(
        curves, "unused.png", "noise", "WER in %", {"ours": {"pink": dict.fromkeys(curves["ours"]["pink"], (1, 2))}}
    )
    pink, brown = drawn[0].axes
    assert [pink.get_title(), brown.get_title()] == ["pink", "brown"]
    assert pink.lines[0].get_ydata().tolist() == [5.0, 20.0, 40.0]
    assert pink.lines[0].get_xdata().tolist() == [-20.0, -10.0, 0.0]  # clean speech one step before 10 dB
    assert brown.lines[1].get_ydata().tolist() == [9.0]
    assert [label.get_text() for label in pink.get_xticklabels()] == ["clean", "10", "0"]
    assert len(pink.collections) == 1 and not brown.collections


def test_the_baseline_crosses_every_panel(drawn):
    curves = {"ours": {kind: {0.0: 30.0} for kind in ("pink", "brown")}}
    plot_snr_curves(curves, "unused.png", "noise", "accuracy in %", baseline=("most frequent class", 13.3))
    assert [axes.lines[-1].get_ydata() for axes in drawn[0].axes] == [[13.3, 13.3]] * 2
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "most frequent class"]


@pytest.mark.parametrize("curves", [{}, {"sld": []}, {"sld": [{1: 1.0}, {2: 1.0}]}])
def test_learning_curves_without_a_common_step_are_refused(curves, drawn):
    with pytest.raises(ValueError, match="no learning curve|no step in common"):
        plot_learning_curves(curves, "unused.png", "curves")


@pytest.mark.parametrize("curves", [{}, {"dev": {}}, {"dev": {0.0: 5.0, 0.008: 4.0}}])
def test_an_alpha_without_a_place_on_the_axis_is_refused(curves, drawn):
    with pytest.raises(ValueError, match="positive alphas, and at least one"):
        plot_alpha_sweep(curves, "unused.png", "alpha")


@pytest.mark.parametrize("curves", [{}, {"ours": {}}, {"ours": {"pink": {}}}])
def test_curves_without_points_are_refused(curves, drawn):
    with pytest.raises(ValueError, match="no curve over the SNR"):
        plot_snr_curves(curves, "unused.png", "noise", "WER in %")
