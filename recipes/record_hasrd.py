"""
What HASRD's runner adds to the results beside its rows: Table 3's layers, BEST-RQ's loss, the weights of the layers,
what is recognized in resynthesized audio, and intervals.

`made` is everywhere the folders, by name of row or stage, of what is trained as the command line has it: a folder that
holds another training is not in it, and nothing is taken from there.
"""

import argparse
import fcntl
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from table_runs import labels_of, recorded, run_logged, trained_command
from tables_hasrd import (
    BEST,
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
    best_layer,
    encoder_name,
    layer_name,
)

from clearspeech.trainers.bootstrap import WordErrors, paired_bootstrap
from clearspeech.trainers.results import Results, Run, read_results, update_results, write_atomically
from clearspeech.trainers.speech_lm_figures import read_learning_curve

RESYNTHESIS = {HASRD: BOOKS, RVQ: {f"{RVQ}, all books": "all", f"{RVQ}, first book": "1"}}


def store_table3(args: argparse.Namespace, measured: Results, layers: Mapping[str, int]) -> None:
    """
    Table 3's layers: of each normalization the best on validation, where all were measured, and, where k-means has
    another one, that too, by its number. measured: the rows of `layers`; layers: k-means', by normalization.
    """
    shown = []
    for normalization in NORMALIZATIONS:
        best = best_layer(measured, normalization, labels_of(args.test_dataset))
        parts = {} if best is None else {BEST: best}
        if layers.get(normalization, best) != best:
            parts[f"layer {layers[normalization]}"] = layers[normalization]
        for part, layer in parts.items():
            for run in measured.find(row=layer_name(normalization, layer)):
                row, metrics = encoder_name(normalization, part), run.metrics | {"layer": layer}
                shown.append(replace(run, table="table3", row=row, metrics=metrics))
    if shown:
        update_results(args.results, METHOD, shown)


def store_pretraining(args: argparse.Namespace, made: Mapping[str, Path]) -> None:
    """What the encoders' last validations said, and how large they are."""
    runs = []
    for name in map(encoder_name, NORMALIZATIONS):
        if name in made:
            names = ("loss", "accuracy", "target_entropy")
            curves = {each: read_learning_curve(made[name], f"eval_{each}") for each in names}
            metrics = {each: curve[max(curve)] for each, curve in curves.items()}
            parameters = sum(each.numel() for each in load_file(made[name] / "model.safetensors").values())
            corpus = " and ".join(labels_of(args.test_dataset))
            command = trained_command(made[name])
            runs.append(Run("pretraining", name, 0, corpus, "validation", parameters, command, metrics))
    if runs:
        update_results(args.results, METHOD, runs)


def store_layer_weights(args: argparse.Namespace, made: Mapping[str, Path]) -> None:
    """Fig. 2: the weights of HASRD's layers, and those of the recognizer of all layers."""
    runs = []
    for name, row, table, corpora in (
        (RECONSTRUCTION, HASRD, "codec", args.codec_dataset),
        (RECOGNITION, encoder_name(CHOSEN, WEIGHTED), "table3", args.dataset),
    ):
        shown = measured_as_made(args, table, row, made)
        if shown:
            weights = load_file(made[row] / "model.safetensors")["layer_weights"].float()
            shares = {f"layer {n}": share for n, share in enumerate(torch.softmax(weights, dim=0).tolist())}
            fields = (" and ".join(labels_of(corpora)), "train", shown[0].parameters, shown[0].command)
            runs.append(Run("figure2", name, 0, *fields, shares))
    if runs:
        update_results(args.results, METHOD, runs)


def measured_as_made(args: argparse.Namespace, table: str, row: str, made: Mapping[str, Path]) -> list[Run]:
    """A row's runs that are of the very training in its folder."""
    if row not in made:
        return []
    results = read_results(args.results, METHOD)
    return results.find(table=table, row=row, seed=0, command=trained_command(made[row]))


def store_resynthesis(args: argparse.Namespace, made: Mapping[str, Path]) -> list[str]:
    """
    What Fbank's recognizer reads in audio that the codecs have made, where the results do not have it yet. Returns
    what failed, and why.
    """
    failures = []
    for codec, rows in RESYNTHESIS.items():
        shown = measured_as_made(args, "codec", codec, made)
        if not shown or FBANK not in made:
            continue
        folder, recognizer = made[codec], str(made[FBANK])
        command = ["python", "recipes/evaluate_hasrd_ctc.py", "--device", "cpu", "--dataset", *args.test_dataset]
        command += ["--resynthesis", str(folder), "--books", *rows.values()]
        record = f"{recorded(command, str(folder))}, {recorded([], recognizer).split()[-1]}"
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
                full = [*command, "--model", recognizer, "--output_dir", str(target)]
                run_logged(full, target / "evaluate.log", lock)
        except RuntimeError as error:
            failures.append(f"resynthesis of {codec}: {error}")
            continue
        measured = json.loads((target / "evaluation.json").read_text())["metrics"]
        fields = dict(seed=0, split="test", parameters=shown[0].parameters, command=record)
        runs = [
            Run("resynthesis", row, corpus=corpus, **fields, metrics=of_books(figures, name))
            for corpus, figures in measured.items()
            for row, name in rows.items()
        ]
        update_results(args.results, METHOD, runs)
    return failures


def of_books(figures: Mapping[str, float], books: str) -> dict[str, float]:
    """The figures of one subset of books under their plain names."""
    return {name.removesuffix(f"/{books}"): value for name, value in figures.items() if name.endswith(f"/{books}")}


def read_word_errors(file: Path) -> dict[str, WordErrors]:
    """By corpus, of a recognizer on recordings."""
    measured = json.loads(file.read_text())
    return {corpus: WordErrors(**next(iter(of_corpus.values()))) for corpus, of_corpus in measured.items()}


def store_comparisons(args: argparse.Namespace, made: Mapping[str, Path]) -> list[str]:
    """
    Changes of the WER with their intervals, on the corpora that both trainings were measured on. Returns what failed,
    and why.
    """
    results, compared, failures = read_results(args.results, METHOD), [], []
    for name, (rows, entry) in COMPARISONS.items():
        files = [made[row] / "evaluation_utterances.json" for row in rows if row in made]
        if len(files) < len(rows) or not all(map(Path.exists, files)):
            continue
        old, new = (read_word_errors(file) for file in files)
        failures += [f"{name}: {corpus} was measured for one of the two only" for corpus in sorted({*old} ^ {*new})]
        for corpus in [corpus for corpus in old if corpus in new]:
            shown = results.find(table=entry[0], row=entry[1], corpus=corpus, command=trained_command(made[rows[1]]))
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


def keep_spectrograms(args: argparse.Namespace, made: Mapping[str, Path]) -> None:
    """The first utterance of each corpus and its reconstructions, beside the other pictures."""
    for label in labels_of(args.test_dataset) if HASRD in made else ():
        picture = made[HASRD] / f"spectrogram_{label}_0.png"
        if picture.exists():
            write_atomically(args.figures / f"{METHOD}_spectrogram_{label}.png", picture.read_bytes())
