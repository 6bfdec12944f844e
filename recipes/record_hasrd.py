"""
What HASRD's runner adds to the results beside its rows: BEST-RQ's loss, the weights of the layers, what is recognized
in resynthesized audio, and intervals. Each is taken where `--runs` has the models.
"""

import argparse
import fcntl
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from table_runs import folder_name, is_trained, labels_of, recorded, run_logged
from tables_hasrd import (
    BOOKS,
    CHOSEN,
    COMPARISONS,
    FBANK,
    HASRD,
    METHOD,
    NORMALIZATIONS,
    RECOGNITION,
    RECONSTRUCTION,
    RVQ,
    WEIGHTED,
    encoder_name,
)

from clearspeech.trainers.bootstrap import WordErrors, paired_bootstrap
from clearspeech.trainers.results import Run, read_results, update_results, write_atomically
from clearspeech.trainers.speech_lm_figures import read_learning_curve

RESYNTHESIS = {HASRD: BOOKS, RVQ: {f"{RVQ}, all books": "all", f"{RVQ}, first book": "1"}}


def store_pretraining(args: argparse.Namespace) -> None:
    """What the encoders' last validations said, and how large they are."""
    runs = []
    for name in map(encoder_name, NORMALIZATIONS):
        folder = args.runs / folder_name(name, 0)
        if is_trained(folder):
            names = ("loss", "accuracy", "target_entropy")
            curves = {each: read_learning_curve(folder, f"eval_{each}") for each in names}
            metrics = {each: curve[max(curve)] for each, curve in curves.items()}
            parameters = sum(each.numel() for each in load_file(folder / "model.safetensors").values())
            command = json.loads((folder / "run.json").read_text())["command"]
            corpus = " and ".join(labels_of(args.test_dataset))
            runs.append(Run("pretraining", name, 0, corpus, "validation", parameters, command, metrics))
    if runs:
        update_results(args.results, METHOD, runs)


def store_layer_weights(args: argparse.Namespace) -> None:
    """Fig. 2: the weights of HASRD's layers, and those of the recognizer of all layers, where `--runs` has them."""
    results, runs = read_results(args.results, METHOD), []
    for name, row, table, corpora in (
        (RECONSTRUCTION, HASRD, "codec", args.codec_dataset),
        (RECOGNITION, encoder_name(CHOSEN, WEIGHTED), "table3", args.dataset),
    ):
        folder, shown = args.runs / folder_name(row, 0), results.find(table=table, row=row, seed=0)
        if shown and is_trained(folder):
            weights = load_file(folder / "model.safetensors")["layer_weights"].float()
            shares = {f"layer {n}": share for n, share in enumerate(torch.softmax(weights, dim=0).tolist())}
            fields = (" and ".join(labels_of(corpora)), "train", shown[0].parameters, shown[0].command)
            runs.append(Run("figure2", name, 0, *fields, shares))
    if runs:
        update_results(args.results, METHOD, runs)


def store_resynthesis(args: argparse.Namespace) -> list[str]:
    """
    What Fbank's recognizer reads in audio that the codecs have made, where `--runs` has both and the results do not
    have it yet. Returns what failed, and why.
    """
    failures, recognizer = [], args.runs / folder_name(FBANK, 0)
    for codec, rows in RESYNTHESIS.items():
        folder = args.runs / folder_name(codec, 0)
        shown = read_results(args.results, METHOD).find(table="codec", row=codec, seed=0)
        if not shown or not is_trained(folder) or not is_trained(recognizer):
            continue
        command = ["python", "recipes/evaluate_hasrd_ctc.py", "--device", "cpu", "--dataset", *args.test_dataset]
        command += ["--resynthesis", str(folder), "--books", *rows.values()]
        record = f"{recorded(command, str(folder))}, {recorded([], str(recognizer)).split()[-1]}"
        known = read_results(args.results, METHOD).find(table="resynthesis", command=record)
        if {(run.row, run.corpus) for run in known} >= {
            (row, each) for row in rows for each in labels_of(args.test_dataset)
        }:
            continue
        target = folder / "resynthesis"
        target.mkdir(exist_ok=True)
        try:
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                full = [*command, "--model", str(recognizer), "--output_dir", str(target)]
                run_logged(full, target / "evaluate.log", lock)
        except RuntimeError as error:
            failures.append(f"resynthesis of {codec}: {error}")
            continue
        measured = json.loads((target / "evaluation.json").read_text())["metrics"]
        fields = dict(seed=0, split="test", parameters=shown[0].parameters, command=record)
        runs = [
            Run(
                "resynthesis",
                row,
                corpus=corpus,
                **fields,
                metrics={"wer": of[f"wer/{name}"], "cer": of[f"cer/{name}"]},
            )
            for corpus, of in measured.items()
            for row, name in rows.items()
        ]
        update_results(args.results, METHOD, runs)
    return failures


def read_word_errors(file: Path) -> dict[str, WordErrors]:
    """By corpus, of a recognizer on recordings."""
    measured = json.loads(file.read_text())
    return {corpus: WordErrors(**next(iter(of_corpus.values()))) for corpus, of_corpus in measured.items()}


def store_comparisons(args: argparse.Namespace) -> list[str]:
    """Changes of the WER with their intervals, where `--runs` has both. Returns what failed, and why."""
    results, compared, failures = read_results(args.results, METHOD), [], []
    for name, (rows, entry) in COMPARISONS.items():
        files = [args.runs / folder_name(row, 0) / "evaluation_utterances.json" for row in rows]
        if not all(map(Path.exists, files)):
            continue
        old, new = (read_word_errors(file) for file in files)
        for corpus in old:
            shown = results.find(table=entry[0], row=entry[1], seed=0, corpus=corpus)
            try:
                found = paired_bootstrap([old[corpus]], [new[corpus]])
            except ValueError as error:
                failures.append(f"{name} on {corpus}: {error}")
                continue
            metrics = {"change": found.value, "change_low": found.low, "change_high": found.high}
            metrics["utterances"] = len(old[corpus].utterances)
            if shown:
                fields = (corpus, "test", shown[0].parameters, shown[0].command)
                compared.append(Run("bootstrap", name, 0, *fields, metrics))
    if compared:
        update_results(args.results, METHOD, compared)
    return failures


def keep_spectrograms(args: argparse.Namespace) -> None:
    """The first utterance of each corpus and its reconstructions, beside the other pictures."""
    for label in labels_of(args.test_dataset):
        picture = args.runs / folder_name(HASRD, 0) / f"spectrogram_{label}_0.png"
        if picture.exists():
            write_atomically(args.figures / f"{METHOD}_spectrogram_{label}.png", picture.read_bytes())
