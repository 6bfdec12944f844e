"""From rows to cards: trained once, measured once, resumed, reported, and shown beside the paper's figures."""

import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from clearspeech.trainers.results import Run, read_results, update_results

ROOT = Path(__file__).parents[1]
TRAIN = """
import json, pathlib, sys
flags = sys.argv[1:]
folder = pathlib.Path(flags[flags.index("--output_dir") + 1])
with pathlib.Path("calls.txt").open("a") as calls:
    print("train", *flags, file=calls)
if "--fails_once" in flags and not (folder / "checkpoint").exists():
    (folder / "checkpoint").touch()
    raise SystemExit("out of paper")
"""
EVALUATE = """
import json, pathlib, sys
flags = sys.argv[1:]
folder = pathlib.Path(flags[flags.index("--output_dir") + 1])
with pathlib.Path("calls.txt").open("a") as calls:
    print("evaluate", flags[flags.index("--model") + 1], file=calls)
corpora = flags[flags.index("--dataset") + 1 : flags.index("--model")]
metrics = {corpus: {"wer": 5.0} for corpus in corpora}
(folder / "evaluation.json").write_text(json.dumps({"parameters": 7, "metrics": metrics}))
"""


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """Recipes can be imported by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Namespace:
    """A folder with a base and recipes that only write down how they were called; a runner's arguments."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "train.py").write_text(TRAIN)
    (tmp_path / "recipes" / "evaluate.py").write_text(EVALUATE)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    return Namespace(base_model="base", results=Path("results.json"), runs=Path("runs"), jobs=1)


def make_job(name="full", seed=0, flags=(), entries=(("table1", "full"),), corpora=("an4",), **others):
    from table_runs import Job

    command = ["python", "recipes/train.py", "--seed", str(seed), *flags]
    evaluation = ["python", "recipes/evaluate.py", "--dataset", *corpora]
    return Job(name, entries, seed, command, evaluation, list(corpora), **others)


def calls() -> list[str]:
    return Path("calls.txt").read_text().splitlines()


# --- recipes/table_runs.py ---


def test_an_entry_with_a_condition_takes_its_figures(workplace, monkeypatch):
    import table_runs

    metrics = {"wer": 5.0, "cer": 1.0, "wer/0.3": 9.0, "cer/0.3": 4.0}
    monkeypatch.setattr(table_runs, "measure", lambda *given: (7, {"an4": metrics}))
    workplace.base_model = None  # from random weights
    entries = (("table1", "full"), ("table3", "ours", "0"), ("table3", "ours", "0.3"))
    for _ in range(2):
        assert table_runs.run_all([make_job(entries=entries)], workplace, "factored_asr") == []
    runs = read_results("results.json", "factored_asr").runs
    assert [(run.table, run.condition, run.metrics) for run in runs] == [
        ("table1", None, metrics),
        ("table3", "0", {"wer": 5.0, "cer": 1.0}),
        ("table3", "0.3", {"wer": 9.0, "cer": 4.0}),
    ]
    assert {run.command for run in runs} == {"python recipes/train.py --seed 0"}  # no base to tell apart
    assert len(calls()) == 1


def test_one_training_fills_all_rows_that_show_it(workplace):
    from table_runs import run_all

    entries = (("table1", "full"), ("table2", "N=5"))
    job = make_job(entries=entries, corpora=("an4", "digits"), unrecorded=("--state_cache", "states"))
    assert run_all([job], workplace, "stable_token") == []
    runs = read_results("results.json", "stable_token").runs
    assert {(run.table, run.row, run.corpus) for run in runs} == {
        (*entry, corpus) for entry in entries for corpus in job.corpora
    }
    assert {run.command.partition("  # base ")[0] for run in runs} == {"python recipes/train.py --seed 0"}
    assert calls() == [
        "train --seed 0 --state_cache states --output_dir runs/full-0 --resume",
        "evaluate runs/full-0",
    ]


def test_what_is_in_the_results_is_not_run_again(workplace, capsys):
    from table_runs import run_all

    run_all([make_job()], workplace, "stable_token")
    shutil.rmtree("runs")
    run_all([make_job(), make_job(seed=1)], workplace, "stable_token")
    assert [call.split()[-1] for call in calls() if call.startswith("evaluate")] == ["runs/full-0", "runs/full-1"]
    assert "full, seed 0: in results.json already" in capsys.readouterr().out


def test_a_failure_is_reported_and_stops_nothing_else(workplace, capsys):
    from table_runs import exit_on_failures, run_all

    jobs = [make_job(flags=("--fails_once",)), make_job("w/o noise, really", entries=(("table1", "w/o"),))]
    failures = run_all(jobs, workplace, "stable_token")
    assert len(failures) == 1 and failures[0].startswith("full, seed 0: recipes/train.py ended with 1")
    assert "out of paper" in failures[0] and "out of paper" in capsys.readouterr().err
    assert [run.row for run in read_results("results.json", "stable_token").runs] == ["w/o"]
    assert calls()[-1] == "evaluate runs/without_noise_really-0"
    with pytest.raises(SystemExit, match="1 of 2 models failed; the same command goes on"):
        exit_on_failures(failures, jobs)
    exit_on_failures([], jobs)


def test_the_same_command_goes_on_where_it_stopped(workplace):
    from table_runs import is_trained, run_all

    job = make_job(flags=("--fails_once",))
    run_all([job], workplace, "stable_token")
    assert not is_trained(Path("runs/full-0"))
    assert run_all([job], workplace, "stable_token") == []
    assert is_trained(Path("runs/full-0"))
    assert all(call.endswith("--resume") for call in calls() if call.startswith("train"))
    Path("results.json").unlink()
    run_all([job], workplace, "stable_token")  # only measured again: the model is there
    assert [call.split()[0] for call in calls()] == ["train", "train", "evaluate", "evaluate"]


def test_a_run_folder_is_not_used_for_another_training(workplace):
    from table_runs import run_all

    run_all([make_job()], workplace, "stable_token")
    (failure,) = run_all([make_job(flags=("--max_steps", "7"))], workplace, "stable_token")
    assert "holds another training: python recipes/train.py --seed 0  # base" in failure
    Path("base/model.safetensors").write_bytes(b"other weights")
    (failure,) = run_all([make_job()], workplace, "stable_token")
    assert "remove it, or give another --runs folder" in failure


def test_the_base_is_measured_only(workplace):
    from table_runs import Job, run_all

    evaluation = ["python", "recipes/evaluate.py", "--dataset", "an4"]
    run_all([Job("base", (("base", "Whisper"),), 0, None, evaluation, ["an4"])], workplace, "stable_token")
    (run,) = read_results("results.json", "stable_token").runs
    assert run.command.startswith("python recipes/pretrain_mini_whisper.py  # base ")
    assert calls() == ["evaluate base"]


def test_figures_of_the_validation_split_stand_beside_those_of_the_test(workplace):
    from table_runs import run_all

    validation = ["python", "recipes/evaluate.py", "--dataset", "digits"]
    job = make_job(corpora=("an4", "digits"), validation=validation)
    job.evaluation.remove("digits")
    assert run_all([job], workplace, "stable_token") == []
    metrics = {run.corpus: run.metrics for run in read_results("results.json", "stable_token").runs}
    assert metrics == {"an4": {"wer": 5.0}, "digits": {"validation/wer": 5.0}}
    assert Path("runs/full-0/validation/evaluation.json").exists()
    run_all([job], workplace, "stable_token")
    assert len(calls()) == 3  # trained once, measured twice, then in the results


def test_a_job_may_have_its_own_base(workplace):
    from table_runs import recorded, run_all

    Path("units/audio_tokenizer").mkdir(parents=True)
    Path("units/audio_tokenizer/model.safetensors").write_bytes(b"weights")
    run_all([make_job(base="units")], workplace, "stable_token")
    (run,) = read_results("results.json", "stable_token").runs
    assert run.command == recorded(["python", "recipes/train.py", "--seed", "0"], "units")
    Path("units/unit_pieces.model").write_bytes(b"pieces")
    assert run.command != recorded(["python", "recipes/train.py", "--seed", "0"], "units")


def test_a_base_without_weights_is_refused(tmp_path):
    from table_runs import recorded

    with pytest.raises(FileNotFoundError, match="has none of model.safetensors"):
        recorded(["python"], str(tmp_path))


def test_a_job_whose_base_is_missing_fails_alone(workplace):
    from table_runs import run_all

    failures = run_all([make_job(base="nowhere"), make_job(name="other", seed=1)], workplace, "stable_token")
    assert len(failures) == 1 and "nowhere has none of model.safetensors" in failures[0]
    assert [run.seed for run in read_results("results.json", "stable_token").runs] == [1]


def test_a_folder_tells_which_training_it_holds(tmp_path):
    from table_runs import is_trained, trained_command

    assert trained_command(tmp_path) is None and not is_trained(tmp_path)
    for trained, expected in (("false", None), ("true", "python x.py")):
        (tmp_path / "run.json").write_text(f'{{"command": "python x.py", "trained": {trained}}}')
        assert trained_command(tmp_path) == expected and is_trained(tmp_path) == bool(expected)


def test_figures_of_other_corpora_are_refused(workplace):
    from dataclasses import replace

    from table_runs import run_all

    (failure,) = run_all([replace(make_job(), corpora=["an4", "digits"])], workplace, "stable_token")
    assert "was measured on ['an4'], not on ['an4', 'digits']" in failure
    assert not Path("results.json").exists()


def test_every_row_comes_once_before_further_seeds():
    from table_runs import Row, chosen_rows

    rows = (Row("a", (), (0, 1), ()), Row("b", (), (0,), ()), Row("c", (), (0, 1), ()))
    chosen = [(row.name, seed) for row, seed in chosen_rows(rows, ["a", "b", "c"], None)]
    assert chosen == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1)]
    assert [(row.name, seed) for row, seed in chosen_rows(rows, ["c"], [1])] == [("c", 1)]


def test_seeds_that_no_row_has_are_refused():
    from table_runs import Row, chosen_rows

    rows = (Row("a", (), (0, 2), ()), Row("b", (), (0, 1), ()))
    with pytest.raises(ValueError, match=r"these rows have the seeds 0, 2; got --seeds 1 5\."):
        chosen_rows(rows, ["a"], [1, 5])


def make_results(path, command="command", table="table4", row="full", **metrics):
    metrics = {"wer": 5.0, "wer/real": 6.0, "ued_mean": 9.0, "ued/pink": 9.5} | metrics
    return update_results(path, "stable_token", [Run(table, row, 0, "an4", "test", 3_500_000, command, metrics)])


def test_a_row_is_finished_when_all_its_entries_have_its_command(tmp_path):
    from table_runs import is_finished

    entries = (("table4", "full"), ("table5", "N=5"))
    results = make_results(tmp_path / "results.json")
    assert not is_finished(results, entries, 0, "command", ["an4"])
    results = make_results(tmp_path / "results.json", table="table5", row="N=5")
    assert is_finished(results, entries, 0, "command", ["an4"])
    assert not is_finished(results, entries, 0, "another command", ["an4"])
    assert not is_finished(results, entries, 1, "command", ["an4"])
    assert not is_finished(results, entries, 0, "command", ["an4", "digit_strings"])


def test_another_base_is_another_training(tmp_path):
    from table_runs import recorded

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = recorded(["python", "a b"], str(tmp_path))
    assert first.startswith("python 'a b'  # base ")
    assert recorded(["python", "a b"], str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert recorded(["python", "a b"], str(tmp_path)) != first


# --- recipes/reproduce_<method>.py ---


@pytest.mark.parametrize("method", ["stable_token", "disentangled_whisper"])
def test_rows_differ_in_their_flags_only(method, monkeypatch):
    import importlib

    reproduce = importlib.import_module(f"reproduce_{method}")
    monkeypatch.setattr("sys.argv", ["reproduce", "--max_steps", "7"])
    args, flags = reproduce.parse_arguments()
    commands = [(row, reproduce.training_command(args, row, 0, flags)) for row in reproduce.ROWS]
    shared = {tuple(command[: -len([*row.flags, *flags])]) for row, command in commands}
    assert len(shared) == 1 and len({row.flags for row in reproduce.ROWS}) == len(reproduce.ROWS)
    assert all(command == [*shared.copy().pop(), *row.flags, *flags] for row, command in commands)
    assert flags[:2] == ["--max_steps", "7"] and flags.count("--max_steps") == 1


@pytest.mark.parametrize("method, base", [("stable_token", []), ("disentangled_whisper", [("table1", "Whisper")])])
def test_every_row_of_the_tables_has_its_training(method, base):
    import importlib

    reproduce = importlib.import_module(f"reproduce_{method}")
    shown = [entry for row in reproduce.ROWS for entry in row.entries] + base
    assert len(set(shown)) == len(shown)
    assert set(shown) == {(table, row) for table, rows in reproduce.TABLES.items() for row in rows}


def test_the_papers_means_are_those_it_prints():
    from reproduce_stable_token import paper_figures

    assert paper_figures("table4", "full")["ued_mean"] == 10.17  # Table 1
    assert paper_figures("table5", "N=1") == {}


# --- recipes/write_card.py ---


def test_the_card_shows_ours_and_the_papers_figures(tmp_path):
    from write_card import fill

    command = "python x.py --dataset a b --noise_dataset c --max_steps 7"
    results = make_results(tmp_path / "results.json", command=command)
    card = "by hand\n<!-- generated: setting -->\nold\n<!-- end -->\n<!-- generated: table4 -->\n<!-- end -->\nby hand"
    filled = fill(card, results)
    assert filled.startswith("by hand\n") and filled.endswith("\nby hand") and "old" not in filled
    assert "7 steps, trained on `a`, `b` with noise from `c`" in filled
    assert "| **full** | 5.00 | 6.00 | 9.00 |" in filled
    assert "| *full: the paper's* | *2.03* |  | *10.17* |" in filled
    assert fill(filled, results) == filled


def test_a_card_with_an_unknown_section_is_refused(tmp_path):
    from write_card import fill

    with pytest.raises(ValueError, match="asks for 'table9'"):
        fill("<!-- generated: table9 -->\n<!-- end -->", make_results(tmp_path / "results.json"))


def test_the_cards_in_the_repository_are_up_to_date(monkeypatch):
    import write_card

    monkeypatch.chdir(ROOT)
    write_card.main(["--check"])


def test_a_stale_card_is_named_and_written(tmp_path):
    import write_card

    card = tmp_path / "stable_token.md"
    card.write_text("<!-- generated: table4 -->\nold\n<!-- end -->\n")
    arguments = ["stable_token", "--cards", str(tmp_path)]
    with pytest.raises(SystemExit, match="stable_token.md does not show"):
        write_card.main([*arguments, "--check"])
    assert "old" in card.read_text()
    write_card.main(arguments)
    assert "Not measured yet." in card.read_text()
    write_card.main([*arguments, "--check"])


def test_a_method_without_card_is_refused(capsys):
    import write_card

    with pytest.raises(SystemExit):
        write_card.main(["best_guess"])
    assert "no card of best_guess" in capsys.readouterr().err
