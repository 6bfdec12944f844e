"""Questions to the runner of SpeechLM's tables, to what it makes of results, and to the card."""

import importlib
from pathlib import Path

import pytest

from clearspeech.trainers.results import Run, update_results

ROOT = Path(__file__).parents[1]
CORPORA = ("digit_strings", "an4")
SECTIONS = (
    "setting",
    "preset",
    "goals",
    "table1",
    "paper",
    "figure2",
    "snr",
    "emotion",
    "counts",
    "benchmarks",
)


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """Recipes can be imported by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))


@pytest.fixture
def reproduce(monkeypatch):
    """The runner, called without arguments but `--max_steps`."""
    monkeypatch.setattr("sys.argv", ["reproduce", "--max_steps", "7"])
    return importlib.import_module("reproduce_speech_lm")


def make_results(path, wers: dict[str, tuple[float, ...]], runs=()):
    """Results of Table 1 on both corpora: WER by row, one per seed; `runs` besides."""
    command = "python x.py --dataset a b --max_steps 7"
    made = [
        Run("table1", row, seed, corpus, "test", 1_000_000, command, {"wer": wer, "wer/pink": wer + 2})
        for row, seeds in wers.items()
        for seed, wer in enumerate(seeds)
        for corpus in CORPORA
    ]
    return update_results(path, "speech_lm", [*made, *runs])


def snr_run(source: str, clean: float, noisy: float, seed=0, name="wer", table="section4.2", corpus="an4", **others):
    metrics = {name: clean, f"{name}/gaussian@20": clean + (noisy - clean) / 4, f"{name}/gaussian@0": noisy} | others
    return Run(table, source, seed, corpus, "test", 7, "command", metrics)


def emotion_run(low: float):
    figures = {"accuracy_low": low, "accuracy_high": 50.0, "majority": 13.3}
    figures |= {f"accuracy_{end}/gaussian@{snr}": 20.0 for end in ("low", "high") for snr in (20, 0)}
    return snr_run("k-means", 30.0, 20.0, name="accuracy", table="emotion", corpus="ravdess", **figures)


# --- recipes/reproduce_speech_lm.py ---


def test_rows_differ_in_their_flags_units_and_tasks_only(reproduce):
    args, flags = reproduce.parse_arguments()
    assert flags == ["--max_steps", "7"]
    shared = set()
    for row in reproduce.ROWS:
        command = reproduce.training_command(args, row, 0, flags)
        assert command[-len([*row.flags, *flags]) :] == [*row.flags, *flags]
        start = command[: -len([*row.flags, *flags])]
        assert ("--emotion_dataset" in start) == (row.task == "emotion")
        start = start[: start.index("--emotion_dataset")] if row.task == "emotion" else start
        assert start[4:6] == ["--units", reproduce.units_folder(args, row.source)]
        shared.add(tuple(start[:4] + start[6:]))
    assert len(shared) == 1
    assert len({(row.flags, row.source, row.task) for row in reproduce.ROWS}) == len(reproduce.ROWS)


def test_every_row_of_the_tables_has_its_training(reproduce):
    from tables_speech_lm import TABLES

    shown = [entry for row in reproduce.ROWS for entry in row.entries]
    assert len(set(shown)) == len(shown)
    assert set(shown) == {(table, row) for table, rows in TABLES.items() for row in rows}


def test_loss_masking_and_sld_have_three_seeds_and_come_first(reproduce):
    seeds = {row.name: len(row.seeds) for row in reproduce.ROWS}
    assert [name for name, number in seeds.items() if number == 3] == list(seeds)[:4]
    assert {name.split(",")[0] for name in list(seeds)[:4]} == {"Loss Masking", "SLD"}
    assert set(seeds.values()) == {1, 3}


def test_the_recipes_understand_every_row(reproduce):
    from evaluate_speech_lm import EvaluationArguments
    from fit_speech_units import parse_arguments as parse_fitting
    from train_speech_lm import parse_arguments
    from transformers import HfArgumentParser

    args, flags = reproduce.parse_arguments()
    for job in reproduce.plan_jobs(args, flags):
        assert "--unit_cache" not in job.command  # not part of what was trained
        recipe, training = parse_arguments([*job.command[2:], *job.unrecorded, "--output_dir", "x", "--resume"])
        assert training.max_steps == 7 and recipe.units == job.base
        assert recipe.unit_cache.startswith("outputs/reproduce_speech_lm/unit_cache/")
        for command in (job.evaluation, job.validation):
            arguments = [*command[2:], "--model", "m", "--output_dir", "x"]
            (evaluation,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(arguments)
            assert evaluation.split == ("validation" if command is job.validation else "test")
    assert parse_fitting([*reproduce.fit_command(args)[2:], "--output_dir", "x"]).encoder == args.base_model


def test_emotions_are_measured_on_their_corpus_and_transcripts_on_the_others(reproduce):
    args, flags = reproduce.parse_arguments()
    jobs = {job.name: job for job in reproduce.plan_jobs(args, flags)}
    emotion, asr = jobs["emotion, k-means"], jobs["SLD, k-means"]
    assert emotion.corpora == ["ravdess", *CORPORA] and asr.corpora == list(CORPORA)
    assert emotion.evaluation[4:8] == ["--task", "emotion", "--dataset", "../shared/data/ravdess"]
    assert asr.validation == emotion.validation and "--snr_curve" in emotion.evaluation
    assert "--snr_curve" not in jobs["CE, k-means"].evaluation


def test_units_are_fitted_once_and_only_where_a_row_needs_them(reproduce, tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    args, flags = reproduce.parse_arguments()
    args.base_model, args.runs = str(tmp_path / "base"), tmp_path / "runs"
    calls = []
    monkeypatch.setattr("table_runs.run_logged", lambda command, log, lock: calls.append(command))
    jobs = reproduce.plan_jobs(args, flags)
    reproduce.fit_units(args, [job for job in jobs if job.base == args.stable_token])
    assert calls == []
    for _ in range(2):
        reproduce.fit_units(args, jobs)
    ((*command, option, folder),) = calls
    assert command == reproduce.fit_command(args) and (option, folder) == ("--output_dir", jobs[0].base)


def test_learning_curves_are_kept_where_models_are_trained(reproduce, tmp_path):
    import json

    args, _ = reproduce.parse_arguments()
    args.runs, args.results = tmp_path, tmp_path / "results.json"
    make_results(args.results, {"SLD, k-means": (5.0, 6.0)})
    folder = tmp_path / "SLD_k-means-1"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"trained": True}))
    history = [{"step": 5, "loss": 9.0}, {"step": 5, "eval_text": 3.0}, {"step": 10, "eval_text": 2.0}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    reproduce.store_learning_curves(args)
    results = reproduce.read_results(args.results, "speech_lm")
    (run,) = results.find(table="figure3")
    assert (run.row, run.seed, run.metrics) == ("SLD, k-means", 1, {"text_ce@5": 3.0, "text_ce@10": 2.0})
    from tables_speech_lm import learning_curves

    assert learning_curves(results, "k-means") == {"SLD": [{5: 3.0, 10: 2.0}]}


# --- recipes/tables_speech_lm.py ---


def test_the_papers_reductions_are_those_it_names():
    from tables_speech_lm import PAPER, paper_figures

    from clearspeech.trainers.noise_evaluation import relative_error_reduction

    masking, ce, ours = (PAPER["WavLM"][loss][2:] for loss in ("Loss Masking", "CE", "SLD"))
    assert [round(relative_error_reduction(*pair)) for pair in zip(ours, masking)] == [9, 4]
    assert [round(relative_error_reduction(*pair)) for pair in zip(ours, ce)] == [9, 7]
    assert paper_figures("table1", "SLD, k-means")["wer"] == 2.7
    assert paper_figures("table1", "SLD, StableToken") == paper_figures("figure2", "T=0.1, alpha=0.8") == {}


def test_goals_are_held_against_the_means_of_seeds(tmp_path):
    from tables_speech_lm import goals

    wers = {"Loss Masking, k-means": (9.0, 11.0), "SLD, k-means": (8.0, 12.0), "SLD, StableToken": (1.0,)}
    runs = [snr_run("k-means", 10.0, 60.0), snr_run("StableToken", 9.0, 20.0), emotion_run(low=13.0)]
    found = list(goals(make_results(tmp_path / "a.json", wers, runs)))
    verdicts = {(goal.corpus, goal.text.partition(",")[0].partition("'")[0]): goal.is_met for goal in found}
    assert verdicts == {
        ("digit_strings", "WER of SLD"): True,
        ("an4", "WER of SLD"): True,
        ("an4", "WER of k-means above StableToken"): True,
        ("an4", "steps from clean speech to gaussian noise of 0 dB at which that gap grows"): True,
        ("ravdess", "lower end of the emotion accuracy"): False,
    }
    (gap,) = (goal for goal in found if goal.text.startswith("WER of k-means"))
    assert (gap.value, gap.relation, gap.limit) == (40.0, ">", 1.0)
    assert "gaussian noise of 0 dB against clean speech" in gap.text


def test_tables_show_the_reduction_against_loss_masking_over_the_same_units(tmp_path):
    from tables_speech_lm import format_tables

    wers = {"Loss Masking, k-means": (10.0,), "SLD, k-means": (9.0,), "SLD, StableToken": (1.0,)}
    runs = [snr_run("k-means", 10.0, 60.0), snr_run("StableToken", 9.0, 9.5), emotion_run(low=14.0)]
    text = format_tables(make_results(tmp_path / "a.json", wers, runs))
    assert "9.00 (2.70)" in text and "10.00 (10.00)" in text  # ours and the paper's, in both columns
    assert "an4, k-means, gaussian: clean 10.00   20 dB 22.50   0 dB 60.00" in text
    assert "met" in text and "MISSED" not in text and "majority class" in text


def test_pictures_are_drawn_of_what_is_measured(tmp_path):
    from tables_speech_lm import draw_figures

    curve = Run("figure3", "SLD, k-means", 0, "all", "validation", 7, "c", {"text_ce@5": 3.0, "text_ce@10": 2.0})
    sweep = [
        Run("figure2", f"alpha={alpha}", 0, "an4", "test", 7, "c", {"validation/wer": wer})
        for alpha, wer in ((0.0008, 9.0), (0.8, 11.0))
    ]
    runs = [snr_run("k-means", 10.0, 60.0), snr_run("k-means", 12.0, 66.0, seed=1), emotion_run(14.0), curve, *sweep]
    results = make_results(tmp_path / "a.json", {}, runs)
    draw_figures(results, tmp_path)
    names = ("emotion_ravdess", "figure2", "figure3_kmeans", "snr_an4")
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == [f"speech_lm_{name}" for name in names]


def test_bands_span_the_seeds(tmp_path):
    from tables_speech_lm import seed_bands

    runs = [snr_run("k-means", 10.0, 60.0), snr_run("k-means", 12.0, 58.0, seed=1)]
    bands = seed_bands(make_results(tmp_path / "a.json", {}, runs), "an4")
    assert bands["k-means"]["gaussian"][0.0] == (58.0, 60.0)


# --- the card ---


def fill_sections(results) -> dict[str, str]:
    from write_card import fill

    blocks = fill("".join(f"<!-- generated: {name} -->\n<!-- end -->\n" for name in SECTIONS), results)
    return dict(zip(SECTIONS, blocks.split("<!-- end -->")))


def test_the_card_renders_without_a_result(tmp_path):
    sections = fill_sections(make_results(tmp_path / "a.json", {}))
    for name in sorted(set(SECTIONS) - {"preset", "paper"}):
        assert "Not measured yet." in sections[name]
    mini = importlib.import_module("train_speech_lm").PRESETS["mini"]
    assert f"| `--max_steps` | `{mini['max_steps']}` |" in sections["preset"]
    assert "| SLD | 2.90 | 6.60 | 3.00 | 6.70 | 2.60 | 5.80 | 2.70 | 6.10 |" in sections["paper"]


def test_the_card_shows_ours_and_the_papers_figures(tmp_path):
    wers = {"Loss Masking, k-means": (9.0, 11.0, 10.0), "SLD, k-means": (8.0, 9.0, 10.0)}
    runs = [snr_run("k-means", 10.0, 60.0), snr_run("StableToken", 9.0, 20.0), emotion_run(low=14.0)]
    runs += [Run("figure2", "T=0.1", seed, "an4", "test", 7, "c", {"wer": wer}) for seed, wer in ((0, 12.0), (1, 1.0))]
    sections = fill_sections(make_results(tmp_path / "a.json", wers, runs))
    assert "| **SLD, k-means**, 3 seeds | 9.00 (8.00 to 10.00) | 10.00 |" in sections["table1"]
    assert "| *SLD, k-means: the paper's* | *2.70* | *10.00* |" in sections["table1"]
    assert "| **T=0.1** | 12.00 | -33.33 |" in sections["figure2"]
    assert "| k-means, gaussian | 10.00 | 22.50 | 60.00 |" in sections["snr"]
    assert "| **k-means** | 30.00 | 14.00 | 50.00 | 13.30 |" in sections["emotion"]
    assert "7 steps, trained on `a`, `b`, greedy search" in sections["setting"]
    assert "met" in sections["goals"] and "**missed**" not in sections["goals"]
