"""Results and a runner of HASRD's tables for the tests: invented figures, and recipes that only pretend."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from clearspeech.trainers.bootstrap import WordErrors
from clearspeech.trainers.results import Results, Run, update_results

CORPORA = ("digit_strings", "an4")
KMEANS, GLOBAL_KMEANS = "BestRQ+, sentence, k-means", "BestRQ+, global, k-means"


def make_run(table: str, row: str, corpus: str = "an4", split: str = "test", **metrics: float) -> Run:
    return Run(table, row, 0, corpus, split, 1_000_000, "python x.py --dataset a b", metrics)


def record(args, *runs: Run) -> Results:
    return update_results(args.results, "hasrd", runs)


def record_layers(args, wers: dict[str, list[float]]) -> Results:
    """WER on validation by normalization and layer, the same on all corpora; one more on test."""
    runs = [
        make_run("layers", f"BestRQ+, {name}, layer {layer}", corpus, **{"wer": wer + 1, "validation/wer": wer})
        for name, of_layers in wers.items()
        for layer, wer in enumerate(of_layers)
        for corpus in CORPORA
    ]
    return record(args, *runs)


def option(command: list[str], name: str) -> list[str]:
    """The values of an option of a command."""
    first = command.index(f"--{name}") + 1
    behind = [place for place, word in enumerate(command) if word.startswith("--") and place > first]
    return command[first : min([*behind, len(command)])]


def pretend(command: list[str], log: Path, lock) -> None:
    """
    Leave what a recipe would leave. A recognizer's WER is 20 less its layer, 30 of other representations; that of
    validation is the same.
    """
    folder, recipe = Path(*option(command, "output_dir")), Path(command[1]).stem
    folder.mkdir(parents=True, exist_ok=True)
    if not recipe.startswith("evaluate"):
        save_file({"layer_weights": torch.zeros(7)}, folder / "model.safetensors")
        log_history = [{"step": 1, **dict.fromkeys(("eval_loss", "eval_accuracy", "eval_target_entropy"), 2.0)}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log_history}))
        return
    trained = json.loads(Path(*option(command, "model"), "run.json").read_text())["command"]
    trained = shlex.split(trained, comments=True)
    if recipe == "evaluate_hasrd":
        figures = {f"mel_distance{suffix}": 2.0 for suffix in ("", "/first_1", "/semantic", "/acoustic")}
        figures |= {name.replace("mel", "stft"): 3.0 for name in figures}
    else:
        books = [f"/{name}" for name in option(command, "books")] if "--books" in command else [""]
        wer = 20.0 - int(*option(trained, "layer")) if "--layer" in trained else 30.0
        figures = {f"{name}{suffix}": wer for suffix in books for name in ("wer", "cer", "wer_low", "wer_high")}
        errors = {"recording": asdict(WordErrors([1, 2, 3], [int(wer), 1, 2], [40, 40, 40]))}
        (folder / "evaluation_utterances.json").write_text(json.dumps(dict.fromkeys(CORPORA, errors)))
    (folder / "evaluation.json").write_text(json.dumps({"parameters": 7, "metrics": dict.fromkeys(CORPORA, figures)}))
