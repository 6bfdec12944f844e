"""Questions to the runner of HASRD's tables, to what it makes of results, and to the card."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clearspeech.trainers.bootstrap import WordErrors
from clearspeech.trainers.results import Run, read_results, update_results

ROOT = Path(__file__).parents[1]
CORPORA = ("digit_strings", "an4")
KMEANS, GLOBAL_KMEANS = "BestRQ+, sentence, k-means", "BestRQ+, global, k-means"
GENERATED = "setting goals pretraining layer table3 layers table4 books voices resynthesis first_book".split()
GENERATED += "bootstrap figure2 spectrograms counts benchmarks".split()  # of results; the other sections are fixed
SECTIONS = (*GENERATED, "presets", "paper")


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """Recipes can be imported by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))


@pytest.fixture
def reproduce():
    return importlib.import_module("reproduce_hasrd")


@pytest.fixture
def args(reproduce, tmp_path):
    """The runner's arguments, its folders in a place of their own."""
    places = [part for name in ("runs", "figures") for part in (f"--{name}", str(tmp_path / name))]
    return reproduce.parse_arguments([*places, "--results", str(tmp_path / "results.json")])


def make_run(table: str, row: str, corpus: str = "an4", split: str = "test", **metrics: float) -> Run:
    return Run(table, row, 0, corpus, split, 1_000_000, "python x.py --dataset a b", metrics)


def record(args, *runs: Run):
    return update_results(args.results, "hasrd", runs)


def record_layers(args, wers: dict[str, list[float]]):
    """WER on validation by normalization and layer, the same on all corpora; one more on test."""
    runs = [
        make_run("layers", f"BestRQ+, {name}, layer {layer}", corpus, **{"wer": wer + 1, "validation/wer": wer})
        for name, of_layers in wers.items()
        for layer, wer in enumerate(of_layers)
        for corpus in CORPORA
    ]
    return record(args, *runs)


def folders_of(reproduce) -> dict[str, Path]:
    return {row.source: Path("runs", row.source) for row in reproduce.ROWS}


# --- the plan ---


def test_rows_are_three_kinds_that_need_one_another(reproduce):
    names = [row.name for row in reproduce.ROWS]
    assert len(set(names)) == len(names) == 23
    assert [row.name for row in reproduce.ROWS if row.is_codec] == ["HASRD", "RVQ alone"]
    entries = [entry for row in reproduce.ROWS for entry in row.entries]
    assert len(set(entries)) == len(entries)
    shown = {entry for entry in entries if entry[0] not in ("layers", "codec")}
    best = {("table3", f"BestRQ+, {name}, best layer") for name in ("sentence", "global")}
    tables = importlib.import_module("tables_hasrd").TABLES
    assert shown | best == {(table, row) for table, rows in tables.items() for row in rows}


def test_a_semantic_books_recognizer_serves_three_tables(reproduce):
    (row,) = (row for row in reproduce.ROWS if row.name == KMEANS)
    assert [table for table, _ in row.entries] == ["table3", "table4", "first_book"]


def test_the_recipes_understand_every_row(reproduce, args):
    from evaluate_hasrd import EvaluationArguments as CodecEvaluation
    from evaluate_hasrd_ctc import EvaluationArguments as ProbeEvaluation
    from train_hasrd import parse_arguments as parse_codec
    from train_hasrd_ctc import parse_arguments as parse_probe
    from transformers import HfArgumentParser

    args.probe_flags, args.codec_flags = ["--max_steps", "7"], ["--max_steps", "9"]
    read = {}
    for job in reproduce.plan_jobs(args, reproduce.ROWS, folders_of(reproduce)):
        is_codec = job.name in ("HASRD", "RVQ alone")
        parse, evaluation = (parse_codec, CodecEvaluation) if is_codec else (parse_probe, ProbeEvaluation)
        recipe, training = parse([*job.command[2:], "--output_dir", "x", "--resume"])
        assert training.max_steps == (9 if is_codec else 7)
        assert recipe.model == job.base
        for command in filter(None, (job.evaluation, job.validation)):
            parser = HfArgumentParser(evaluation)
            parser.parse_args_into_dataclasses([*command[2:], "--model", "m", "--output_dir", "x"])
        if not is_codec:
            read[job.name] = recipe.representation, recipe.layer, recipe.books
    assert read["Fbank"] == ("features", None, None) and read["BestRQ+, global, layer 3"] == ("layer", 3, None)
    assert read["RVQ alone, first book"] == ("books", None, [0])
    assert read["Acoustic"][0] == "acoustic" and read["BestRQ+, sentence, weighted layers"][0] == "layers"


def test_layers_are_measured_on_validation_too(reproduce, args):
    jobs = reproduce.plan_jobs(args, reproduce.ROWS, folders_of(reproduce))
    assert [job.name for job in jobs if job.validation] == [
        f"BestRQ+, {name}, layer {layer}" for name in ("sentence", "global") for layer in range(7)
    ]
    assert all(job.validation[-2:] == ["--split", "validation"] for job in jobs if job.validation)


def test_the_recipes_understand_every_stage(reproduce, args):
    from fit_semantic_codebook import parse_arguments as parse_fit
    from pretrain_best_rq import parse_arguments as parse_best_rq

    normalizations = {
        name: parse_best_rq([*stage.command[2:], "--output_dir", "x", *stage.going_on])[0].normalization
        for name, stage in reproduce.plan_encoders(args).items()
    }
    assert normalizations == {"BestRQ+, sentence": "sentence", "BestRQ+, global": "global"}
    stages = reproduce.plan_books(args, {"sentence": 4, "global": 2})
    asked = {name: parse_fit([*stage.command[2:], "--output_dir", "x"]) for name, stage in stages.items()}
    assert {name: recipe.layer for name, recipe in asked.items() if recipe.num_clusters} == {
        KMEANS: 4,
        GLOBAL_KMEANS: 2,
    }
    (alone,) = (recipe for recipe in asked.values() if not recipe.num_clusters)
    assert alone.num_acoustic_books == asked[KMEANS].num_acoustic_books + 1  # as many books
    assert alone.codebook_size == asked[KMEANS].num_clusters == asked[KMEANS].codebook_size  # of the same size


def test_the_layer_is_the_best_on_validation_and_stands_in_table_3(reproduce, args):
    record_layers(args, {"sentence": [9.0, 5.0, 7.0], "global": [9.0, 8.0, 6.0]})
    assert reproduce.choose_layers(args) == {"sentence": 1, "global": 2}
    (run,) = read_results(args.results, "hasrd").find(
        table="table3", row="BestRQ+, sentence, best layer", corpus="an4"
    )
    assert run.metrics == {"wer": 6.0, "validation/wer": 5.0, "layer": 1}


def test_the_layer_can_be_fixed(reproduce, args):
    record_layers(args, {"sentence": [9.0, 5.0, 7.0]})
    args.layer = 2
    assert reproduce.choose_layers(args) == {"sentence": 2, "global": 2}


def test_nothing_is_chosen_before_layers_are_measured(reproduce, args):
    record(args, make_run("layers", "BestRQ+, sentence, layer 0", **{"wer": 1.0, "validation/wer": 1.0}))  # on one
    assert reproduce.choose_layers(args) == {}


@pytest.fixture
def work(reproduce, args, monkeypatch):
    """What the runner does, in order, instead of doing it; layer 2 is the best."""
    done = []

    def make_all(stages, jobs):
        done.append(sorted(stages))
        for stage in stages.values():
            stage.folder.mkdir(parents=True)
            (stage.folder / "run.json").write_text(json.dumps({"trained": True}))
        return []

    def run_all(jobs, args, method):
        done.append([job.name for job in jobs])
        record_layers(args, {"sentence": [3.0, 2.0, 1.0], "global": [3.0, 2.0, 1.0]})
        for job in jobs:
            folder = args.runs / reproduce.folder_name(job.name, job.seed)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.json").write_text(json.dumps({"trained": True}))
        return []

    monkeypatch.setattr(reproduce, "make_all", make_all)
    monkeypatch.setattr(reproduce, "run_all", run_all)
    return done


def test_stages_come_in_their_order(reproduce, args, work):
    failures, jobs = reproduce.run_rows(args)
    assert failures == [] and len(jobs) == len(reproduce.ROWS)
    encoders, layers, books, codecs, nothing, probes = work
    assert encoders == ["BestRQ+, global", "BestRQ+, sentence"] and len(layers) == 16
    assert books == [GLOBAL_KMEANS, KMEANS, "RVQ alone, untrained"] and nothing == []
    assert codecs == ["HASRD", "RVQ alone", KMEANS, GLOBAL_KMEANS]
    assert probes == ["Acoustic", "Combined", "RVQ alone, first book"]
    assert (args.runs / "kmeans_sentence_layer_2").is_dir()


def test_only_what_chosen_rows_need_is_made(reproduce, args, work):
    args.rows, args.layer = ["HASRD"], 1
    failures, _ = reproduce.run_rows(args)
    assert failures == []
    assert [each for each in work if each] == [["BestRQ+, sentence"], [KMEANS], ["HASRD"]]


def test_rows_without_what_they_start_from_are_named(reproduce, args, work, monkeypatch):
    monkeypatch.setattr(reproduce, "make_all", lambda stages, jobs: ["BestRQ+: out of memory"] if stages else [])
    args.rows = ["Fbank", "Acoustic"]
    failures, jobs = reproduce.run_rows(args)
    assert jobs == [] and failures == [
        "BestRQ+: out of memory",
        "Fbank: there is no BestRQ+, sentence to start from",
        "Acoustic: there is no HASRD to start from",
    ]


# --- what is added to the results ---


def finish_training(reproduce, args, row: str, **files: str) -> Path:
    """The folder of a trained row with some JSON files."""
    folder = args.runs / reproduce.folder_name(row, 0)
    folder.mkdir(parents=True)
    for name, content in {"run": json.dumps({"trained": True, "command": "c"}), **files}.items():
        (folder / f"{name}.json").write_text(content)
    return folder


def test_weights_of_the_layers_are_read_from_both_models(reproduce, args):
    record(
        args,
        make_run("codec", "HASRD", mel_distance=1.0),
        make_run("table3", "BestRQ+, sentence, weighted layers", wer=1.0),
    )
    for row, weights in (("HASRD", [0.0, 0.0]), ("BestRQ+, sentence, weighted layers", [100.0, 0.0])):
        folder = finish_training(reproduce, args, row)
        save_file({"layer_weights": torch.tensor(weights)}, folder / "model.safetensors")
    reproduce.store_layer_weights(args)
    found = {run.row: list(run.metrics.values()) for run in read_results(args.results, "hasrd").find(table="figure2")}
    assert found == {"Reconstruction": [0.5, 0.5], "ASR": [pytest.approx(1.0), pytest.approx(0.0)]}


def test_the_recognizer_of_recordings_hears_each_codec_once(reproduce, args, monkeypatch):
    recording = importlib.import_module("record_hasrd")
    record(args, make_run("codec", "HASRD", mel_distance=1.0))
    for row in ("Fbank", "HASRD"):
        save_file({"w": torch.zeros(1)}, finish_training(reproduce, args, row) / "model.safetensors")
    commands = []

    def listen(command, log, lock):
        from evaluate_hasrd_ctc import EvaluationArguments
        from transformers import HfArgumentParser

        (asked,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(command[2:])
        commands.append(asked)
        figures = {f"{name}/{books}": 7.0 for name in ("wer", "cer") for books in asked.books}
        (log.parent / "evaluation.json").write_text(json.dumps({"metrics": dict.fromkeys(CORPORA, figures)}))

    monkeypatch.setattr(recording, "run_logged", listen)
    for _ in range(2):
        assert reproduce.store_resynthesis(args) == []
    (asked,) = commands
    assert asked.books == ["all", "acoustic", "semantic"] and Path(asked.resynthesis).name == "HASRD-0"
    found = read_results(args.results, "hasrd").find(table="resynthesis")
    assert {run.row for run in found} == {"Combined", "Acoustic", "Semantic"}


def test_books_are_compared_over_utterances(reproduce, args):
    record(args, *[make_run("first_book", "HASRD", corpus, wer=1.0) for corpus in CORPORA])
    for row, errors in (("RVQ alone, first book", [4, 2, 4]), (KMEANS, [3, 2, 3])):
        measured = {"recording": asdict(WordErrors([1, 2, 3], errors, [5, 5, 5]))}
        finish_training(reproduce, args, row, evaluation_utterances=json.dumps(dict.fromkeys(CORPORA, measured)))
    assert reproduce.store_comparisons(args) == []
    runs = read_results(args.results, "hasrd").find(table="bootstrap")
    assert {run.row for run in runs} == {"semantic book against the first of RVQ alone"}
    assert all(run.metrics["change"] == pytest.approx(-20.0) for run in runs)


def make_all_results(args):
    """A number for everything that the card shows, on one corpus."""
    codec = {
        f"{name}{suffix}": value
        for name in ("mel_distance", "stft_distance")
        for suffix, value in (("/first_1", 3.0), ("/first_2", 2.5), ("/semantic", 3.0), ("/acoustic", 2.8), ("", 2.0))
    }
    voices = {"similarity": 0.8, "similarity/semantic": 0.2, "similarity/acoustic": 0.6}
    anchors = dict(similarity_same_speaker=0.7, similarity_other_speaker=0.1, similarity_error=9.0)
    weights = {"layer 0": 0.25, "layer 1": 0.75}
    return record(
        args,
        make_run("table3", "Fbank", wer=40.0, cer=20.0),
        make_run("table3", "BestRQ+, sentence, best layer", wer=20.0, cer=10.0, layer=1),
        make_run("table3", KMEANS, wer=30.0, cer=15.0),
        make_run("table3", GLOBAL_KMEANS, wer=29.0, cer=15.0),
        *[
            make_run("layers", f"BestRQ+, sentence, layer {n}", **{"wer": 20.0 + n, "validation/wer": 19.0})
            for n in (0, 1)
        ],
        *[
            make_run("table4", row, wer=wer)
            for row, wer in (("Semantic", 30.0), ("Acoustic", 60.0), ("Combined", 25.0))
        ],
        *[make_run("resynthesis", row, wer=wer, cer=9.0) for row, wer in (("Semantic", 45.0), ("Acoustic", 90.0))],
        make_run("codec", "HASRD", **codec, **voices, **anchors),
        make_run("codec", "RVQ alone", mel_distance=1.9, stft_distance=1.9),
        *[make_run("first_book", row, wer=wer) for row, wer in (("HASRD", 30.0), ("RVQ alone", 80.0))],
        make_run("bootstrap", "x against y", change=-20.0, change_low=-30.0, change_high=-10.0, utterances=9),
        *[make_run("figure2", row, "a and b", "train", **weights) for row in ("Reconstruction", "ASR")],
        make_run("pretraining", "BestRQ+, sentence", split="validation", loss=4.1, target_entropy=4.8, accuracy=11.0),
    )


def test_goals_are_held_against_what_was_measured(args):
    from tables_hasrd import goals

    met = {goal.text: goal.is_met for goal in goals(make_all_results(args))}
    assert len(met) == 7
    assert [text for text, is_met in met.items() if not is_met] == [
        "k-means: WER with sentence normalization, with global"
    ]


def test_tables_show_tokens_voices_and_audio_side_by_side(args):
    from tables_hasrd import format_tables

    lines = [" ".join(line.split()) for line in format_tables(make_all_results(args)).splitlines()]
    assert "table3 Fbank 40.00 (35.80) 20.00 (11.80)" in lines
    assert "table4 Semantic 0.20 (0.15) 30.00 (21.00) 45.00 3.00 3.00" in lines
    assert "an4, x against y: -20.0 % (-30.0 to -10.0)" in lines


def test_pictures_are_drawn_of_what_is_measured(args):
    from tables_hasrd import draw_pictures

    draw_pictures(read_results(args.results, "hasrd"), args.figures)
    assert not args.figures.exists()
    draw_pictures(make_all_results(args), args.figures)
    assert {path.name for path in args.figures.iterdir()} == {
        f"hasrd_{name}.png" for name in ("layers", "books", "figure2")
    }


# --- the card ---


def fill_sections(results) -> dict[str, str]:
    from write_card import fill

    blocks = fill("".join(f"<!-- generated: {name} -->\n<!-- end -->\n" for name in SECTIONS), results)
    return dict(zip(SECTIONS, blocks.split("<!-- end -->")))


def test_the_card_renders_without_a_result(args):
    sections = fill_sections(read_results(args.results, "hasrd"))
    assert [name for name in GENERATED if "Not measured yet." not in sections[name]] == []
    assert "| `--num_clusters` | `256` | `1024` |" in sections["presets"]
    assert "| `--discriminator_fft_sizes` | `[512]` | `[2048, 1024, 512]` |" in sections["presets"]
    assert "| Semantic | 0.15 | 21.0 |" in sections["paper"]


def test_the_card_shows_ours_and_the_papers_figures(args):
    sections = fill_sections(make_all_results(args))
    assert "*HASRD*: 1.00 M parameters, trained on `a`, `b`" in sections["setting"]
    assert "| **BestRQ+, sentence, best layer** | 20.00 | 10.00 | 1.00 |" in sections["table3"]
    assert "| *Fbank: the paper's* | *35.80* | *11.80* |" in sections["table3"]
    assert "sentence normalization: layer 1." in sections["layer"]
    assert "| *Acoustic: the paper's* | *0.67* | *70.20* |" in sections["table4"]
    assert "| HASRD, mel distance | 3.000 | 2.500 | 2.000 |" in sections["books"]
    assert "| HASRD, Semantic | 45.00 | 9.00 |" in sections["resynthesis"]
    assert "![Weights of the layers](figures/hasrd_figure2.png)" in sections["figure2"]
    assert "**missed**" in sections["goals"] and "-30.0 to -10.0 | better | 9 |" in sections["bootstrap"]
