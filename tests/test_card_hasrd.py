"""Questions to what HASRD's tables, goals and pictures make of results, and to the card."""

from argparse import Namespace
from pathlib import Path

import pytest
from tiny_hasrd_runs import GLOBAL_KMEANS, KMEANS, make_run, record

from clearspeech.trainers.results import read_results, update_results

ROOT = Path(__file__).parents[1]
GENERATED = "setting goals pretraining layer table3 layers table4 books windows voices resynthesis first_book".split()
GENERATED += "bootstrap figure2 spectrograms counts benchmarks".split()  # of results; the other sections are fixed
SECTIONS = (*GENERATED, "presets", "paper")


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """Recipes can be imported by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))


@pytest.fixture
def args(tmp_path) -> Namespace:
    return Namespace(results=tmp_path / "results.json", figures=tmp_path / "figures")


def make_all_results(args):
    """A number for everything that the card shows, on one corpus."""
    codec = {
        f"{name}{suffix}": value
        for name in ("mel_distance", "stft_distance")
        for suffix, value in (("/first_1", 3.0), ("/first_2", 2.5), ("/semantic", 3.0), ("/acoustic", 2.8), ("", 2.0))
    }
    voices = {"similarity": 0.8, "similarity/semantic": 0.2, "similarity/acoustic": 0.6}
    voices |= {"similarity_low/acoustic": 0.5, "similarity_high/acoustic": 0.7}
    windows = {"window_agreement/book_1": 99.0, "window_agreement/book_2": 90.5, "window_seconds": 120.0}
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
        make_run("codec", "HASRD", **codec, **voices, **anchors, **windows),
        make_run("codec", "RVQ alone", mel_distance=1.9, stft_distance=1.9),
        *[
            make_run("first_book", row, wer=wer, wer_low=wer - 2, wer_high=wer + 3)
            for row, wer in (("HASRD", 30.0), ("RVQ alone", 80.0))
        ],
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


def test_one_layer_of_both_normalizations_is_compared_where_not_all_were_measured(args):
    from tables_hasrd import goals

    make_all_results(args)
    runs = [make_run(table, "BestRQ+, global, layer 1", wer=25.0, layer=1) for table in ("layers", "table3")]
    met = {goal.text: goal.is_met for goal in goals(record(args, *runs))}
    assert met["layer 1: WER with sentence normalization, with global"] and len(met) == 8


def make_costs(args):
    """Benchmarks and counts as the recipes store them."""
    whole = dict(name="codec_dac_vs_fbank", ratio=1.5, target="at least 2", seconds={"dac": 4.5, "fbank": 3.0})
    encoder = dict(name="encoder_dac_vs_fbank", ratio=15.0, seconds={"dac encoder": 1.5, "fbank encoder": 0.1})
    decoder = dict(name="decoder_dac_vs_fbank", ratio=1.03, seconds={"dac decoder": 3.0, "fbank decoder": 2.9})
    memory = dict(name="training_memory_fbank_vs_dac", ratio=0.3, target="at most 0.75")
    counts = [dict(name=name, parameters=62_900_000, paper=62.0) for name in ("BestRQ+", "DAC+fbank", "another")]
    return update_results(args.results, "hasrd", benchmarks=[whole, encoder, decoder, memory], counts=counts)


def test_costs_and_sizes_are_goals(args):
    from tables_hasrd import goals

    met = {goal.text: (goal.relation, goal.limit, goal.is_met) for goal in goals(make_costs(args))}
    assert met == {
        "size of DAC+fbank, off the paper's 62.0 M by %": ("<=", 0.1, False),
        "size of BestRQ+, off the paper's 62.0 M by %": ("<=", 3.0, True),
        "fbank: so many times as fast as DAC, on a CPU": (">=", 2.0, False),
        "fbank: memory in training, DAC's being 1": ("<=", 0.75, True),
    }


def test_the_card_says_why_a_codec_is_not_faster(args):
    sections = fill_sections(make_costs(args))
    assert "Decoding takes 67 % of DAC's time" in sections["benchmarks"]
    assert "no time it would be 1.55 times." in sections["benchmarks"]
    assert "| `noise` | 1.50 | >= 2.00 | **missed** |" in sections["goals"]


def test_the_papers_figures_are_those_of_our_rows():
    from tables_hasrd import paper_figures

    assert paper_figures("table3", "BestRQ+, global, best layer") == {"cer": 3.7, "wer": 13.2}
    assert paper_figures("table3", KMEANS) == {"cer": 9.3, "wer": 28.0}
    assert paper_figures("table3", "BestRQ+, global, layer 3") == paper_figures("codec", "HASRD") == {}
    assert paper_figures("table4", "Acoustic") == {"similarity": 0.67, "wer": 70.2}


def test_tables_show_tokens_voices_and_audio_side_by_side(args):
    from tables_hasrd import format_tables

    lines = [" ".join(line.split()) for line in format_tables(make_all_results(args)).splitlines()]
    assert "table3 Fbank 40.00 (35.80) 20.00 (11.80)" in lines
    assert "table4 Semantic 0.20 (0.15) 30.00 (21.00) 45.00 3.00 3.00" in lines
    assert "an4, x against y: -20.0 % (-30.0 to -10.0)" in lines


def test_pictures_are_drawn_of_what_is_measured(args):
    from figures_hasrd import draw_pictures

    draw_pictures(read_results(args.results, "hasrd"), args.figures)
    assert not args.figures.exists()
    draw_pictures(make_all_results(args), args.figures)
    assert {path.name for path in args.figures.iterdir()} == {
        f"hasrd_{name}.png" for name in ("layers", "books", "figure2", "table4", "first_book")
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
    assert "sentence normalization: layer 1, the best on validation." in sections["layer"]
    assert "|  | book 1 | book 2 |" in sections["windows"]
    assert "| HASRD, 120 s of `an4` | 99.0 | 90.5 |" in sections["windows"]
    assert "| *Acoustic: the paper's* | *0.67* | *70.20* |" in sections["table4"]
    assert "| HASRD, mel distance | 3.000 | 2.500 | 2.000 |" in sections["books"]
    assert "| HASRD, Semantic | 45.00 | 9.00 |" in sections["resynthesis"]
    assert "![What the books hold](figures/hasrd_table4.png)" in sections["table4"]
    assert "![What is read in the first book](figures/hasrd_first_book.png)" in sections["first_book"]
    assert "![Weights of the layers](figures/hasrd_figure2.png)" in sections["figure2"]
    assert "**missed**" in sections["goals"] and "-30.0 to -10.0 | better | 9 |" in sections["bootstrap"]
