"""Questions to the runner of HASRD's tables: its plan, its layers, what goes on after a failure."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from tiny_corpora import use_own_cache
from tiny_hasrd_runs import GLOBAL_KMEANS, KMEANS, option, pretend, record_layers

from clearspeech.trainers.results import read_results

ROOT = Path(__file__).parents[1]


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
    tables = importlib.import_module("tables_hasrd").TABLES
    others = {(table, row) for table, rows in tables.items() for row in rows} - shown
    parts = ("best layer", *[f"layer {layer}" for layer in range(7)])  # of the recognizers of layers
    assert others == {("table3", f"BestRQ+, {name}, {part}") for name in ("sentence", "global") for part in parts}


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


# --- the semantic layer ---

ALL_LAYERS = ["BestRQ+, sentence, layer 0", "BestRQ+, global, layer 6"]  # of each normalization, one is enough


def test_the_layer_is_the_best_on_validation(reproduce, args):
    wers = {"sentence": [9.0, 5.0, 7.0, 9.0, 9.0, 9.0, 9.0], "global": [9.0, 8.0, 6.0, 9.0, 9.0, 9.0, 9.0]}
    assert reproduce.choose_layers(args, record_layers(args, wers), ALL_LAYERS) == {"sentence": 1, "global": 2}


def test_the_layer_can_be_fixed(reproduce, args):
    args.layer = 2
    measured = record_layers(args, {"sentence": [9.0, 5.0, 7.0, 9.0, 9.0, 9.0, 9.0]})
    assert reproduce.choose_layers(args, measured, ALL_LAYERS) == {"sentence": 2, "global": 2}


def test_a_layer_that_is_missing_does_not_decide(reproduce, args):
    whole, missing = [9.0, 5.0, 7.0, 9.0, 9.0, 9.0, 9.0], [9.0, 5.0, 7.0, 9.0, 9.0, 9.0]
    measured = record_layers(args, {"sentence": missing, "global": whole})
    assert reproduce.choose_layers(args, measured, ALL_LAYERS) == {"global": 1}


def test_a_normalization_whose_layers_are_left_out_is_compared_at_the_others_best(reproduce, args):
    measured = record_layers(args, {"sentence": [9.0, 5.0, 7.0, 9.0, 9.0, 9.0, 9.0]})
    assert reproduce.choose_layers(args, measured, ALL_LAYERS) == {"sentence": 1}
    assert reproduce.choose_layers(args, measured, [GLOBAL_KMEANS]) == {"sentence": 1, "global": 1}


# --- runs, with recipes that pretend ---


@pytest.fixture
def work(reproduce, monkeypatch):
    """What is run, in order: the commands. Those that have a word in `failing` fail."""
    work = SimpleNamespace(done=[], failing=[])

    def run(command, log, lock):
        work.done.append(command)
        if any(word in " ".join(command) for word in work.failing):
            raise RuntimeError("out of memory")
        pretend(command, log, lock)

    for module in ("table_runs", "record_hasrd"):
        monkeypatch.setattr(importlib.import_module(module), "run_logged", run)
    return work


def trained(work) -> list[str]:
    """The folders that were trained in, in order."""
    return [Path(*option(each, "output_dir")).name for each in work.done if not each[1].startswith("recipes/eval")]


def run_main(reproduce, args, *more: str) -> list[str]:
    """Run all; what failed."""
    places = ["--runs", str(args.runs), "--figures", str(args.figures), "--results", str(args.results)]
    return reproduce.run(reproduce.parse_arguments([*places, *more]))


def test_stages_come_in_their_order(reproduce, args, work):
    assert run_main(reproduce, args) == []
    names = trained(work)
    assert names[:2] == ["BestRQ+_sentence-0", "BestRQ+_global-0"] and len(names) == 2 + 16 + 3 + 4 + 3
    assert names[18:21] == ["RVQ_alone_untrained-0", "kmeans_sentence_layer_6", "kmeans_global_layer_6"]
    assert names[21:25] == ["HASRD-0", "RVQ_alone-0", "BestRQ+_sentence_k-means-0", "BestRQ+_global_k-means-0"]
    assert names[25:] == ["Acoustic-0", "Combined-0", "RVQ_alone_first_book-0"]
    results = read_results(args.results, "hasrd")
    (best,) = results.find(table="table3", row="BestRQ+, global, best layer", corpus="an4")
    assert (best.metrics["layer"], best.metrics["wer"]) == (6, 14.0)
    tables = {run.table for run in results.runs}
    assert tables == set("table3 layers table4 codec first_book resynthesis bootstrap figure2 pretraining".split())
    assert {path.name for path in args.figures.iterdir()} >= {"hasrd_table4.png", "hasrd_first_book.png"}


def test_nothing_is_made_twice(reproduce, args, work):
    run_main(reproduce, args)
    work.done.clear()
    assert run_main(reproduce, args) == [] and work.done == []


def test_only_what_chosen_rows_need_is_made(reproduce, args, work):
    assert run_main(reproduce, args, "--rows", "HASRD", "--layer", "1") == []
    assert trained(work) == ["BestRQ+_sentence-0", "kmeans_sentence_layer_1", "HASRD-0"]


def test_normalizations_are_compared_at_one_layer_without_all_layers_of_both(reproduce, args, work):
    left_out = {f"BestRQ+, global, layer {layer}" for layer in range(7)}
    rows = [row.name for row in reproduce.ROWS if row.name not in left_out]
    assert run_main(reproduce, args, "--rows", *rows) == []
    assert [name for name in trained(work) if "global" in name] == [
        "BestRQ+_global-0",
        "kmeans_global_layer_6",
        "BestRQ+_global_layer_6-0",
        "BestRQ+_global_k-means-0",
    ]
    found = {run.row for run in read_results(args.results, "hasrd").find(table="table3", corpus="an4")}
    assert {"BestRQ+, sentence, best layer", "BestRQ+, global, layer 6", GLOBAL_KMEANS, KMEANS} <= found
    assert "BestRQ+, global, best layer" not in found


def test_a_fixed_layer_is_not_called_the_best(reproduce, args, work):
    assert run_main(reproduce, args, "--rows", KMEANS, "--layer", "2") == []
    found = {run.row: run.metrics for run in read_results(args.results, "hasrd").find(table="table3", corpus="an4")}
    assert set(found) == {KMEANS, "BestRQ+, sentence, layer 2"}
    assert found["BestRQ+, sentence, layer 2"]["layer"] == 2


def test_an_encoder_that_fails_is_named_and_all_else_goes_on(reproduce, args, work):
    work.failing.append("--normalization global")
    failures = run_main(reproduce, args)
    assert failures[0] == "BestRQ+, global: out of memory" and len(failures) == 1 + 7 + 2
    assert all("there is no " in failure or "no layer is chosen" in failure for failure in failures[1:])
    results = read_results(args.results, "hasrd")
    assert {run.row for run in results.find(table="table4")} == {"Combined", "Acoustic", "Semantic"}
    assert not any("global" in run.row for run in results.runs if run.table != "bootstrap")


def test_a_layer_that_fails_decides_nothing(reproduce, args, work):
    work.failing.append("--representation layer --layer 3")
    failures = run_main(reproduce, args)
    assert {f"BestRQ+, {name}, layer 3, seed 0: out of memory" for name in ("sentence", "global")} < set(failures)
    assert not any(name.startswith("kmeans") for name in trained(work))
    assert not read_results(args.results, "hasrd").find(table="codec", row="HASRD")
    assert read_results(args.results, "hasrd").find(table="codec", row="RVQ alone")


def test_nothing_starts_from_a_codec_of_another_command(reproduce, args, work):
    run_main(reproduce, args)
    args.results.unlink()
    failures = run_main(reproduce, args, "--codec_flags", "--max_steps 7")
    assert [failure.partition(":")[0] for failure in failures] == [
        "HASRD, seed 0",
        "RVQ alone, seed 0",
        "Acoustic",
        "Combined",
        "RVQ alone, first book",
    ]
    results = read_results(args.results, "hasrd")
    assert "resynthesis" not in {run.table for run in results.runs}
    assert {run.row for run in results.find(table="figure2")} == {"ASR"}


def test_a_seed_that_no_row_has_is_refused(reproduce, args):
    with pytest.raises(ValueError, match="these rows have the seeds 0; got --seeds 1"):
        run_main(reproduce, args, "--seeds", "1")


def test_failures_end_the_run_with_an_error(reproduce, args, work, capsys):
    work.failing.append("pretrain_best_rq")
    places = ["--runs", str(args.runs), "--figures", str(args.figures), "--results", str(args.results)]
    with pytest.raises(SystemExit, match="failures; the same command goes on where they stopped"):
        reproduce.main([*places, "--rows", "Fbank"])
    assert "Fbank: there is no BestRQ+, sentence to start from" in capsys.readouterr().err


# --- a run of the recipes themselves ---


@pytest.fixture
def corpus(tmp_path, make_speech) -> str:
    """Three speakers for training, two for validation and test, of two utterances each."""
    for split, num_speakers in (("train", 3), ("validation", 2), ("test", 2)):
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        rows = [f"{row}.wav,one two,s{row % num_speakers}" for row in range(2 * num_speakers)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,text,speaker", *rows]))
        for row in range(2 * num_speakers):
            samples = 28_000 if split == "train" else 9_000
            soundfile.write(folder / f"{row}.wav", make_speech(samples + 500 * row, row), 16000)
    return str(tmp_path / "corpus")


@pytest.mark.slow
def test_the_recipes_make_all_tables(reproduce, args, corpus, tmp_path, monkeypatch):
    """In this process, with tiny models of one step each."""
    use_own_cache(tmp_path, monkeypatch)

    def run(command, log, lock):
        importlib.import_module(Path(command[1]).stem).main(command[2:])

    for module in ("table_runs", "record_hasrd"):
        monkeypatch.setattr(importlib.import_module(module), "run_logged", run)
    step = "--max_steps 1 --eval_steps 1 --save_steps 1 --logging_steps 1 --report_to none"
    encoder = "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 32"
    flags = {
        "best_rq": f"{step} {encoder} --conv_channels 8 8 16 --codebook_size 16 --per_device_train_batch_size 2",
        "codec": f"{step} --discriminator_channel_factor 0.03125 --per_device_train_batch_size 2",
        "probe": f"{step} --hidden_size 8 --per_device_train_batch_size 4",
    }
    options = [part for name, value in flags.items() for part in (f"--{name}_flags", value)]
    corpora = [
        part for name in ("dataset", "codec_dataset", "speech", "test_dataset") for part in (f"--{name}", corpus)
    ]
    rows = ["HASRD", "RVQ alone", "Fbank", KMEANS, "BestRQ+, sentence, weighted layers", "Acoustic", "Combined"]
    failures = run_main(reproduce, args, "--layer", "1", *options, *corpora, "--rows", *rows, "RVQ alone, first book")
    assert failures == []
    results = read_results(args.results, "hasrd")
    tables = {run.table for run in results.runs}
    assert tables == set("table3 layers table4 codec first_book resynthesis bootstrap figure2 pretraining".split())
    (codec,) = results.find(table="codec", row="HASRD")
    assert {"similarity_other_speaker", "mel_distance/first_5", "si_sdr/acoustic"} <= set(codec.metrics)
    pictures = {path.name for path in args.figures.iterdir()}
    names = ("layers", "books", "table4", "first_book", "figure2", "spectrogram_corpus")
    assert pictures == {f"hasrd_{name}.png" for name in names}
