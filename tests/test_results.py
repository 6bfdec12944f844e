"""The results file: what it accepts, that it is whole at any moment, and the card that is written from it."""

import json
import multiprocessing
import os
from dataclasses import replace

import pytest

from clearspeech.trainers.results import Run, read_results, update_results, write_atomically


def make_run(row="full", seed=0, corpus="an4", table="table4", **metrics) -> Run:
    return Run(table, row, seed, corpus, "test", 1000, "python recipes/x.py", metrics or {"wer": 5.0, "ued_mean": 9.0})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "method.json"


def test_a_file_that_is_not_there_holds_nothing(path):
    assert read_results(path, "method").runs == []
    assert not path.exists()


def test_what_was_added_is_read_again(path):
    update_results(
        path, "method", [make_run()], [{"name": "speed", "ratio": 1.02}], [{"name": "large", "parameters": 3}]
    )
    results = read_results(path, "method")
    assert results.runs == [make_run()]
    assert results.benchmarks == [{"name": "speed", "ratio": 1.02}]
    assert results.counts == [{"name": "large", "parameters": 3}]
    assert set(results.environment) == {"python", "torch", "transformers", "device"}
    assert json.loads(path.read_text())["runs"][0]["metrics"] == {"wer": 5.0, "ued_mean": 9.0}


def test_an_entry_of_the_same_identity_is_replaced_in_place(path):
    update_results(path, "method", [make_run(), make_run(seed=1)])
    results = update_results(path, "method", [make_run(wer=1.0), make_run(corpus="digits")])
    assert [(run.seed, run.corpus, run.metrics["wer"]) for run in results.runs] == [
        (0, "an4", 1.0),
        (1, "an4", 5.0),
        (0, "digits", 5.0),
    ]


def test_seeds_are_averaged(path):
    results = update_results(
        path, "method", [make_run(wer=1.0), make_run(seed=1, wer=2.0), make_run("other", wer=9.0)]
    )
    assert results.seeds_mean("wer", row="full") == 1.5
    assert results.seeds_mean("cer", row="full") is None
    assert len(results.find(table="table4", seed=0)) == 2


def add_run(arguments):
    path, seed = arguments
    update_results(path, "method", [make_run(seed=seed)])


def test_processes_that_write_at_once_lose_nothing(path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(add_run, [(path, seed) for seed in range(12)])
    assert sorted(run.seed for run in read_results(path, "method").runs) == list(range(12))


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    write_atomically(path, "old")

    def fail(*arguments):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_a_row_may_have_an_entry_for_each_condition(path):
    conditions = [None, "0", "0.3"]
    update_results(path, "method", [replace(make_run(), condition=condition) for condition in conditions])
    assert [run.get("condition") for run in json.loads(path.read_text())["runs"]] == conditions
    assert "null" not in path.read_text()
    results = update_results(path, "method", [replace(make_run(wer=1.0), condition="0.3")])
    assert [run.metrics["wer"] for run in results.runs] == [5.0, 5.0, 1.0]
    assert results.find(condition="0") == [replace(make_run(), condition="0")]
    assert results.find(condition=None) == [make_run()]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(condition=""), "condition of a run must be a string that is not empty"),
        (dict(table=""), "table of a run must be a string that is not empty"),
        (dict(seed=-1), "seed of run 'full' must be a whole number"),
        (dict(parameters=1.5), "parameters of run 'full'"),
        (dict(metrics={}), "has no metrics"),
        (dict(metrics={"wer": float("nan")}), "metric 'wer' of run 'full' must be a finite number; got nan"),
        (dict(metrics={"wer": "5"}), "must be a finite number; got '5'"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Run(**{**make_run().__dict__, **change})


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not valid JSON"),
        ('{"method": "method", "runs": []}', "does not have the fields"),
        ('{"method": "method", "runs": [{"row": "full"}]}', "does not have the fields"),
        (
            '{"method": "other", "environment": {}, "runs": [], "benchmarks": [], "counts": []}',
            "holds results of 'other', not of 'method'",
        ),
        (
            '{"method": "method", "environment": {}, "runs": [], "benchmarks": [{"name": "a"}, {"name": "a"}],'
            ' "counts": []}',
            "twice in benchmarks",
        ),
    ],
)
def test_a_file_that_is_not_ours_is_refused(path, content, message):
    write_atomically(path, content)
    with pytest.raises(ValueError, match=message):
        read_results(path, "method")


def test_a_benchmark_needs_a_name(path):
    with pytest.raises(ValueError, match="an entry of benchmarks needs name"):
        update_results(path, "method", benchmarks=[{"ratio": 1.0}])
    assert not path.exists()
