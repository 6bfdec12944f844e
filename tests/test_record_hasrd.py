"""Questions to what HASRD's runner adds to the results beside its rows."""

import importlib
import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_hasrd_runs import CORPORA, KMEANS, make_run, record, record_layers

from clearspeech.trainers.bootstrap import WordErrors
from clearspeech.trainers.results import read_results

COMMAND = "python train.py  # base 0a1b2c3d"
WEIGHTED = "BestRQ+, sentence, weighted layers"


@pytest.fixture
def recording(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    return importlib.import_module("record_hasrd")


@pytest.fixture
def args(tmp_path) -> Namespace:
    corpora = [f"data/{name}" for name in CORPORA]
    places = dict(runs=tmp_path / "runs", results=tmp_path / "results.json", figures=tmp_path / "figures")
    return Namespace(**places, test_dataset=corpora, dataset=corpora, codec_dataset=corpora)


def finish_training(args, row: str, weights: list[float] = (0.0,), **files: str) -> Path:
    """The folder of a trained row with some JSON files."""
    folder = args.runs / row
    folder.mkdir(parents=True)
    save_file({"layer_weights": torch.tensor(weights)}, folder / "model.safetensors")
    for name, content in {"run": json.dumps({"trained": True, "command": COMMAND}), **files}.items():
        (folder / f"{name}.json").write_text(content)
    return folder


def as_trained(*runs):
    """Runs of what is in the folders."""
    return [replace(run, command=COMMAND) for run in runs]


def test_table_3_has_the_best_layer_and_that_of_k_means_by_its_number(recording, args):
    layers = record_layers(args, {"sentence": [9.0, 5.0, 7.0, 8.0, 8.0, 8.0, 8.0], "global": [9.0, 8.0]})
    recording.store_table3(args, layers, {"sentence": 2, "global": 1})
    found = {
        (run.row, run.metrics["layer"], run.metrics["wer"])
        for run in read_results(args.results, "hasrd").find(table="table3", corpus="an4")
    }
    assert found == {
        ("BestRQ+, sentence, best layer", 1, 6.0),
        ("BestRQ+, sentence, layer 2", 2, 8.0),
        ("BestRQ+, global, layer 1", 1, 9.0),
    }


def test_weights_of_the_layers_are_read_from_both_models(recording, args):
    runs = make_run("codec", "HASRD", mel_distance=1.0), make_run("table3", WEIGHTED, wer=1.0)
    record(args, *as_trained(*runs))
    made = {row: finish_training(args, row, of) for row, of in (("HASRD", [0.0, 0.0]), (WEIGHTED, [100.0, 0.0]))}
    recording.store_layer_weights(args, made)
    found = {run.row: list(run.metrics.values()) for run in read_results(args.results, "hasrd").find(table="figure2")}
    assert found == {"Reconstruction": [0.5, 0.5], "ASR": [pytest.approx(1.0), pytest.approx(0.0)]}


def test_nothing_is_taken_from_folders_of_another_training(recording, args, monkeypatch):
    record(args, make_run("codec", "HASRD", mel_distance=1.0), *as_trained(make_run("table3", WEIGHTED, wer=1.0)))
    made = {row: finish_training(args, row) for row in ("Fbank", "HASRD", WEIGHTED)}
    monkeypatch.setattr(recording, "run_logged", lambda *given: pytest.fail("HASRD was measured before this training"))
    assert recording.store_resynthesis(args, made) == []
    recording.store_layer_weights(args, made)
    del made["HASRD"], made[WEIGHTED]
    recording.store_layer_weights(args, made)
    recording.keep_spectrograms(args, made)
    assert {run.row for run in read_results(args.results, "hasrd").find(table="figure2")} == {"ASR"}


def test_the_recognizer_of_recordings_hears_each_codec_once(recording, args, monkeypatch):
    record(args, *as_trained(make_run("codec", "HASRD", mel_distance=1.0)))
    made, commands = {row: finish_training(args, row) for row in ("Fbank", "HASRD")}, []

    def listen(command, log, lock):
        from evaluate_hasrd_ctc import EvaluationArguments
        from transformers import HfArgumentParser

        (asked,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(command[2:])
        commands.append(asked)
        figures = {f"{name}/{books}": 7.0 for name in ("wer", "cer", "wer_low") for books in asked.books}
        (log.parent / "evaluation.json").write_text(json.dumps({"metrics": dict.fromkeys(CORPORA, figures)}))

    monkeypatch.setattr(recording, "run_logged", listen)
    for _ in range(2):
        assert recording.store_resynthesis(args, made) == []
    (asked,) = commands
    assert asked.books == ["all", "acoustic", "semantic"] and Path(asked.resynthesis).name == "HASRD"
    found = read_results(args.results, "hasrd").find(table="resynthesis")
    assert {run.row for run in found} == {"Combined", "Acoustic", "Semantic"}
    assert all(run.metrics == {"wer": 7.0, "cer": 7.0, "wer_low": 7.0} for run in found)


def word_errors(errors: list[int], corpora=CORPORA) -> str:
    """What evaluate_hasrd_ctc.py writes of three utterances of five words."""
    return json.dumps(dict.fromkeys(corpora, {"recording": asdict(WordErrors([1, 2, 3], errors, [5, 5, 5]))}))


def test_books_are_compared_over_utterances(recording, args):
    record(args, *as_trained(*[make_run("first_book", "HASRD", corpus, wer=1.0) for corpus in CORPORA]))
    made = {
        row: finish_training(args, row, evaluation_utterances=word_errors(errors))
        for row, errors in (("RVQ alone, first book", [4, 2, 4]), (KMEANS, [3, 2, 3]))
    }
    assert recording.store_comparisons(args, made) == []
    runs = read_results(args.results, "hasrd").find(table="bootstrap")
    assert {run.row for run in runs} == {"semantic book against the first of RVQ alone"} and len(runs) == 2
    assert all(run.metrics["change"] == pytest.approx(-20.0) for run in runs)


def test_corpora_that_only_one_of_two_was_measured_on_are_named(recording, args):
    record(args, *as_trained(*[make_run("first_book", "HASRD", corpus, wer=1.0) for corpus in CORPORA]))
    made = {
        row: finish_training(args, row, evaluation_utterances=word_errors([3, 2, 3], corpora))
        for row, corpora in (("RVQ alone, first book", ["an4", "grid"]), (KMEANS, ["digit_strings", "an4"]))
    }
    name = "semantic book against the first of RVQ alone"
    assert recording.store_comparisons(args, made) == [
        f"{name}: {corpus} was measured for one of the two only" for corpus in ("digit_strings", "grid")
    ]
    assert [run.corpus for run in read_results(args.results, "hasrd").find(table="bootstrap")] == ["an4"]
