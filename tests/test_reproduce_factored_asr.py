"""Questions to the runner of FactoredASR's tables, to what it makes of results, and to the card."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from clearspeech.trainers.bootstrap import WordErrors
from clearspeech.trainers.results import Run, update_results

ROOT = Path(__file__).parents[1]
CORPORA = ("digit_strings", "an4")
PROBED = ("spoken_digits", "an4")  # single digits in place of their strings
BASELINE, FULL = "RNN-T, Baseline", "RNN-T, FR + BG-C + MLM"
SECTIONS = ("setting", "preset", "goals", "table1", "table3", "bootstrap", "probes", "paper", "counts", "benchmarks")


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """Recipes can be imported by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))


@pytest.fixture
def reproduce(monkeypatch):
    """The runner, called without arguments but `--max_steps`."""
    monkeypatch.setattr("sys.argv", ["reproduce", "--max_steps", "7"])
    return importlib.import_module("reproduce_factored_asr")


@pytest.fixture
def tables():
    return importlib.import_module("tables_factored_asr")


def make_results(path, wers: dict[str, list[dict[str, float]]]):
    """Results by row: for each seed the WER at each mixing rate; on all corpora."""
    from reproduce_factored_asr import ROWS
    from table_runs import named, under_condition

    command, runs = "python x.py --dataset a b --max_steps 7", []
    entries = {row.name: row.entries for row in ROWS}
    for name, seeds in wers.items():
        for seed, rates in enumerate(seeds):
            metrics = {"wer" if rate == "0" else f"wer/{rate}": wer for rate, wer in rates.items()}
            for entry in (named(each) for each in entries[name]):
                figures = under_condition(metrics, entry["condition"])
                fields = dict(seed=seed, split="test", parameters=1_000_000, command=command, metrics=figures)
                runs += [Run(**entry, **fields, corpus=corpus) for corpus in CORPORA] if figures else []
    return update_results(path, "factored_asr", runs)


def test_rows_differ_in_their_encoder_and_their_factors_only(reproduce):
    args, flags = reproduce.parse_arguments()
    shared = set()
    for row, job in zip(reproduce.ROWS, reproduce.plan_jobs(args, flags)):
        assert job.command[-len([*row.flags, *flags]) :] == [*row.flags, *flags]
        shared.add(tuple(job.command[: -len([*row.flags, *flags])]))
    assert len(shared) == 1
    assert len({row.flags for row in reproduce.ROWS}) == len(reproduce.ROWS) == 16


def test_every_row_of_the_tables_has_its_training(reproduce, tables):
    shown = [entry for row in reproduce.ROWS for entry in row.entries]
    assert len(set(shown)) == len(shown)
    assert {entry[:2] for entry in shown} == {(table, row) for table, rows in tables.TABLES.items() for row in rows}
    conditions = [entry[2] for entry in shown if entry[0] == "table3" and entry[1] == "Conformer (Ours)"]
    assert conditions == ["0", "0.1", "0.25", "0.3"]


def test_baseline_and_full_model_have_three_seeds_and_come_first(reproduce):
    seeds = {row.name: len(row.seeds) for row in reproduce.ROWS}
    assert [name for name, number in seeds.items() if number == 3] == list(seeds)[:4]
    assert all(name.partition(", ")[2] in (reproduce.BASELINE, reproduce.FULL) for name in list(seeds)[:4])
    assert sum(seeds.values()) == 24


def test_the_recipes_understand_every_row(reproduce):
    from evaluate_factored_asr import EvaluationArguments
    from train_factored_asr import parse_arguments
    from transformers import HfArgumentParser

    args, flags = reproduce.parse_arguments()
    parts = {}
    for job in reproduce.plan_jobs(args, flags):
        recipe, training = parse_arguments([*job.command[2:], "--output_dir", "x", "--resume"])
        assert training.max_steps == 7 and recipe.factorize == bool(training.mi_weight)
        weights = (training.mi_weight, training.contrast_weight, training.mask_probability)
        parts[job.name] = recipe.encoder, *map(bool, weights)
        (evaluation,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(
            [*job.evaluation[2:], "--model", "m", "--output_dir", "x"]
        )
        assert evaluation.mixing_rates == [0.0, 0.1, 0.25, 0.3] and evaluation.split == "test"
    assert parts["RNN-T, Baseline"] == ("lstm", False, False, False)
    assert parts["Conformer, BG-C + MLM"] == ("conformer", False, True, True)
    assert parts["Conformer, FR + BG-C + MLM"] == ("conformer", True, True, True)
    assert len(set(parts.values())) == 16


def test_the_papers_changes_are_those_it_names(tables):
    from card_factored_asr import paper_change

    assert round(tables.paper_figures("table1", FULL)["rer"], 2) == 4.13
    assert tables.paper_figures("table1", "RNN-T, BG-C + MLM") == {}
    assert tables.paper_figures("table3", "Conformer (Ours)")["wer/0.3"] == 2.56
    assert round(paper_change("Conformer, FR + BG-C + MLM", "0.3"), 2) == -8.24
    assert round(paper_change("RNN-T, MLM", "0"), 2) == -1.16 and paper_change("RNN-T, BG-C + MLM", "0") is None
    for encoder, (clean, *_) in ((name, tables.PAPER_TABLE3[name]) for name in tables.ENCODERS):
        assert tables.PAPER_TABLE1[encoder][tables.BASELINE] == clean


def test_goals_are_held_against_the_paired_comparisons(reproduce, tables, compared):
    keep_errors(reproduce, compared, BASELINE, 0, {"0": [4, 4, 4], "0.3": [5, 5, 5]})
    keep_errors(reproduce, compared, BASELINE, 1, {"0": [1, 1, 1], "0.3": [1, 1, 1]})  # the other has no such seed
    keep_errors(reproduce, compared, FULL, 0, {"0": [3, 3, 3], "0.3": [5, 6, 5]})
    reproduce.store_comparisons(compared)
    results = reproduce.read_results(compared.results, "factored_asr")
    found = [goal for goal in tables.goals(results) if goal.corpus == "an4"]
    assert [(round(goal.value, 1), goal.relation, goal.is_met) for goal in found] == [
        (-25.0, "<", True),
        (6.7, "<", False),
        (-31.7, ">", False),
    ]
    assert ["covers zero" in goal.text for goal in found] == [False, True, False]
    assert "in % (its interval covers zero) | `an4` | 6.67 | < 0.00 | **missed** |" in fill_sections(results)["goals"]


def test_tables_show_conditions_side_by_side_with_the_papers_figures(tables, tmp_path):
    wers = {BASELINE: [{"0": 10.0, "0.3": 20.0}], FULL: [{"0": 9.0, "0.3": 16.0}], "RNN-T, MLM": [{"0": 9.5}]}
    text = tables.format_tables(make_results(tmp_path / "a.json", wers))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "table1 RNN-T, MLM 9.50 (5.98) 5.00 (1.16)" in lines
    assert "table3 RNN-T (Ours) 9.00 (5.80) 16.00 (8.21)" in lines


def keep_errors(reproduce, args, name: str, seed: int, errors: dict[str, list[int]]):
    """The word errors of a row's training as its evaluation leaves them in `--runs`, by mixing rate."""
    folder = args.runs / reproduce.folder_name(name, seed)
    folder.mkdir(parents=True)
    measured = {rate: asdict(WordErrors([1, 2, 3], each, [5, 5, 5])) for rate, each in errors.items()}
    (folder / "evaluation_utterances.json").write_text(json.dumps(dict.fromkeys(CORPORA, measured)))


@pytest.fixture
def compared(reproduce, tmp_path):
    """The runner's arguments with results of two seeds of both models, whose errors are not kept yet."""
    args, _ = reproduce.parse_arguments()
    args.runs, args.results = tmp_path / "runs", tmp_path / "results.json"
    make_results(args.results, {BASELINE: [{"0": 10.0}] * 2, FULL: [{"0": 9.0}] * 2})
    return args


def test_the_full_model_is_compared_with_the_baseline_over_utterances(reproduce, compared):
    for name, errors in ((BASELINE, [4, 2, 4]), (FULL, [3, 2, 3])):
        for seed in range(2):
            keep_errors(reproduce, compared, name, seed, {"0": errors})
    assert reproduce.store_comparisons(compared) == []
    results = reproduce.read_results(compared.results, "factored_asr")
    run, _ = results.find(table="bootstrap", row=FULL, condition="0")
    assert run.metrics["change"] == pytest.approx(-20.0)
    assert run.metrics["change_low"] < -20.0 < run.metrics["change_high"] <= 0
    assert (run.metrics["utterances"], run.metrics["trainings"]) == (3, 2)
    assert f"an4, {FULL}, alpha 0: -20.0 % (" in reproduce.format_tables(results)
    assert f"| {FULL} | `an4` | -20.0 |" in fill_sections(results)["bootstrap"]


def test_seeds_that_only_one_of_the_models_has_are_left_out(reproduce, compared):
    keep_errors(reproduce, compared, BASELINE, 0, {"0": [4, 2, 4]})
    keep_errors(reproduce, compared, FULL, 0, {"0": [3, 2, 3]})
    keep_errors(reproduce, compared, FULL, 1, {"0": [1, 1, 1]})
    reproduce.store_comparisons(compared)
    results = reproduce.read_results(compared.results, "factored_asr")
    for run in results.find(table="bootstrap"):
        assert run.metrics["change"] == pytest.approx(-20.0) and run.metrics["trainings"] == 1


def test_the_gain_at_the_loudest_rate_is_compared_with_that_on_clean_speech(reproduce, compared):
    keep_errors(reproduce, compared, BASELINE, 0, {"0": [4, 2, 4], "0.1": [4, 2, 4], "0.3": [5, 5, 5]})
    keep_errors(reproduce, compared, FULL, 0, {"0": [3, 2, 3], "0.1": [3, 2, 4], "0.3": [4, 3, 2]})
    assert reproduce.store_comparisons(compared) == []
    results = reproduce.read_results(compared.results, "factored_asr")
    runs = results.find(table="bootstrap_growth", row=FULL)
    assert {(run.corpus, run.condition) for run in runs} == {(corpus, "0.3") for corpus in CORPORA}
    metrics = runs[0].metrics
    assert metrics["change"] == pytest.approx(20.0)  # 40 % of 15 errors at 0.3, 20 % of 10 at 0
    assert metrics["change_low"] < 20.0 < metrics["change_high"] and metrics["trainings"] == 1
    assert metrics["change_low"] <= 0
    lines = reproduce.format_tables(results).splitlines()
    (line,) = (line for line in lines if line.startswith(f"an4, {FULL}, alpha 0.3: +20.0 points ("))
    assert line.endswith("covers zero")
    section = fill_sections(results)["bootstrap"]
    assert "gain at alpha 0.3 minus that at alpha 0, in points" in section
    assert f"| {FULL} | `an4` | +20.0 |" in section and "covers zero: open | *+1.0* | 3 | 1 |" in section


def test_every_row_is_compared_with_the_baseline_on_speech_without_mixing(reproduce, compared):
    update = {BASELINE: [{"0": 10.0}], "RNN-T, MLM": [{"0": 9.0, "0.3": 20.0}]}
    make_results(compared.results, update)
    keep_errors(reproduce, compared, BASELINE, 0, {"0": [4, 2, 4], "0.3": [5, 5, 5]})
    keep_errors(reproduce, compared, "RNN-T, MLM", 0, {"0": [3, 2, 3], "0.3": [4, 4, 4]})
    assert reproduce.store_comparisons(compared) == []
    results = reproduce.read_results(compared.results, "factored_asr")
    runs = results.find(table="bootstrap", row="RNN-T, MLM")
    assert {(run.corpus, run.condition) for run in runs} == {(corpus, "0") for corpus in CORPORA}
    assert results.find(table="bootstrap_growth") == []
    assert "| RNN-T, MLM | `an4` | -20.0 |" in (section := fill_sections(results)["bootstrap"])
    assert "| *-1.2* | 3 | 1 |" in section


def test_a_comparison_that_fails_is_named_and_the_others_are_stored(reproduce, compared):
    keep_errors(reproduce, compared, BASELINE, 0, {"0": [0, 0, 1], "0.3": [5, 5, 5]})
    keep_errors(reproduce, compared, FULL, 0, {"0": [0, 0, 0], "0.3": [4, 3, 2]})
    failures = reproduce.store_comparisons(compared)
    assert [failure.partition(": ")[0] for failure in failures] == [
        f"{table} of {FULL} on {corpus}, alpha {rate}"
        for table, rate in (("bootstrap", "0"), ("bootstrap_growth", "0.3"))
        for corpus in CORPORA
    ]
    assert all("errors in only 1 of 3 utterances" in failure for failure in failures)
    runs = reproduce.read_results(compared.results, "factored_asr").find(table="bootstrap")
    assert [run.condition for run in runs] == ["0.3", "0.3"]


def test_the_report_names_what_it_does_not_show(reproduce, compared, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "parse_arguments", lambda: (compared, []))
    monkeypatch.setattr(reproduce, "run_all", lambda jobs, args, method: [])
    monkeypatch.setattr(reproduce, "store_probes", lambda args: [])
    keep_errors(reproduce, compared, BASELINE, 0, {"0": [0, 0, 1]})
    keep_errors(reproduce, compared, FULL, 0, {"0": [0, 0, 0]})
    with pytest.raises(SystemExit, match="2 comparisons and probes are missing"):
        reproduce.main()
    printed = capsys.readouterr()
    assert "table1 RNN-T, Baseline" in printed.out
    assert f"bootstrap of {FULL} on an4, alpha 0: The baseline makes errors in only 1 of 3" in printed.err


def test_nothing_is_compared_where_no_model_is_kept(reproduce, tmp_path):
    args, _ = reproduce.parse_arguments()
    args.runs, args.results = tmp_path / "runs", tmp_path / "results.json"
    make_results(args.results, {BASELINE: [{"0": 10.0}], FULL: [{"0": 9.0}]})
    reproduce.store_comparisons(args)
    assert reproduce.read_results(args.results, "factored_asr").find(table="bootstrap") == []


def test_the_full_models_are_probed_beside_their_baselines_once(reproduce, tmp_path, monkeypatch, tables):
    args, _ = reproduce.parse_arguments()
    args.runs, args.results, args.figures = tmp_path / "runs", tmp_path / "results.json", tmp_path / "figures"
    make_results(args.results, {BASELINE: [{"0": 10.0}], FULL: [{"0": 9.0}], "Conformer, Baseline": [{"0": 9.0}]})
    for name in (BASELINE, FULL):
        folder = args.runs / reproduce.folder_name(name, 0)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"trained": True}))
    commands = []

    def run_probe(command, log, lock):
        from probe_factored_asr import ProbeArguments
        from transformers import HfArgumentParser

        (asked,) = HfArgumentParser(ProbeArguments).parse_args_into_dataclasses(command[2:])
        commands.append((asked.model, asked.baseline, asked.dataset))
        (log.parent / "probe.png").write_bytes(b"picture")
        (log.parent / "probe.json").write_text(json.dumps(make_probe()))

    monkeypatch.setattr(reproduce, "run_logged", run_probe)
    for _ in range(2):
        assert reproduce.store_probes(args) == []
    of_rows = [str(args.runs / reproduce.folder_name(name, 0)) for name in (FULL, BASELINE)]
    folders = [f"{args.data}/{name}" for name in PROBED]
    assert commands == [(*of_rows, folder) for folder in folders]
    assert {path.name for path in args.figures.iterdir()} == {f"factored_asr_probe_lstm_{each}.png" for each in PROBED}
    results = reproduce.read_results(args.results, "factored_asr")
    assert "| RNN-T, context | 12 | 80.0 (70.0 to 90.0) |" in (section := fill_sections(results)["probes"])
    assert "| RNN-T, chance |  | 10.0 | 10.0 | 10.0 |" in section
    verdicts = {goal.text: goal.is_met for goal in tables.goals(results) if "lower end" in goal.text}
    assert list(verdicts.values()) == [True, True, False]


def test_a_probe_that_fails_is_named(reproduce, tmp_path, monkeypatch):
    args, _ = reproduce.parse_arguments()
    args.runs, args.results = tmp_path / "runs", tmp_path / "results.json"
    make_results(args.results, {FULL: [{"0": 9.0}]})
    monkeypatch.setattr(reproduce, "is_trained", lambda folder: True)

    def fail(*given):
        raise RuntimeError("too few")

    monkeypatch.setattr(reproduce, "probe", fail)
    assert reproduce.store_probes(args) == [f"probe of RNN-T on {corpus}: too few" for corpus in PROBED]


def make_probe() -> dict:
    """What the probe's recipe writes."""
    names, rates = ("speaker", "noise", "characters_cer"), {"content": 30.0, "context": 80.0, "states": 60.0}
    return {
        **dict.fromkeys(names, rates),
        "intervals": dict.fromkeys(names, {each: [rate - 10, rate + 10] for each, rate in rates.items()}),
        "context_minus_content": dict.fromkeys(names[:2], [50.0, 40.0, 60.0]) | {names[2]: [1.0, -1.0, 2.0]},
        "widths": dict.fromkeys(rates, 12),
        "chance": dict.fromkeys(names, 10.0),
    }


# --- the card ---


def fill_sections(results) -> dict[str, str]:
    from write_card import fill

    blocks = fill("".join(f"<!-- generated: {name} -->\n<!-- end -->\n" for name in SECTIONS), results)
    return dict(zip(SECTIONS, blocks.split("<!-- end -->")))


def test_the_card_renders_without_a_result(tmp_path):
    sections = fill_sections(make_results(tmp_path / "a.json", {}))
    for name in sorted(set(SECTIONS) - {"preset", "paper"}):
        assert "Not measured yet." in sections[name]
    mini = importlib.import_module("train_factored_asr").PRESETS["mini"]
    assert f"| `--max_steps` | `{mini['max_steps']}` |" in sections["preset"]
    assert "`--encoder lstm` sets `--stack 6 --encoder_hidden_size 256 --num_encoder_layers 2 " in sections["preset"]
    assert "| FR + BG-C + MLM, alpha 0.3 | 8.21 | 20.41 | 2.56 | 5.86 |" in sections["paper"]


def test_the_card_shows_ours_and_the_papers_figures(tmp_path):
    wers = {BASELINE: [{"0": 10.0, "0.3": 20.0}] * 2, FULL: [{"0": 8.0, "0.3": 16.0}, {"0": 9.0, "0.3": 18.0}]}
    sections = fill_sections(make_results(tmp_path / "a.json", wers))
    assert f"| **{FULL}**, 2 seeds | 8.50 (8.00 to 9.00) | 15.00 | 17.00 (16.00 to 18.00) |" in sections["table1"]
    assert f"| *{FULL}: the paper's* | *5.80* | *4.13* |  |" in sections["table1"]
    assert "| **RNN-T (Ours)**, 2 seeds | 8.50 (8.00 to 9.00) | 17.00 (16.00 to 18.00) |" in sections["table3"]
    assert "| *RNN-T (Ours): the paper's* | *5.80* | *8.21* |" in sections["table3"]
    assert f"1.00 M (*{FULL}*, 7 steps) parameters" in sections["setting"]
    assert "trained on `a`, `b`, greedy search" in sections["setting"]
