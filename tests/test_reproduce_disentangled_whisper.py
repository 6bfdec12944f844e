"""Questions to DisentangledWhisper's tables: rows, noises, goals, the paper's figures, the card's sections."""

from pathlib import Path

import pytest

from clearspeech.processing.corpora import ESC10_CLASSES
from clearspeech.trainers.results import Run, update_results

ROOT = Path(__file__).parents[1]
NOISE = ROOT.parent / "shared" / "data" / "esc50_noise"


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    """Recipes can be imported by their names."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))


def test_the_papers_reductions_are_those_it_names():
    from reproduce_disentangled_whisper import PAPER, paper_figures

    from clearspeech.trainers.metrics import relative_error_reduction

    assert round(paper_figures("table1", "TR")["rer"]) == 82  # "82% over the zero-shot whisper baseline"
    for name, reduction in (("+Adapter", 35), ("Speechless", 80)):
        reference = PAPER["table1", name]["wer"]
        assert round(relative_error_reduction(2.47, reference)) == reduction
    alone, noise, whole = (
        PAPER["table2", name]["wer"] for name in ("Only VQ and L_ASR", "+ L_NC", "+ L_alpha + L_beta")
    )
    assert relative_error_reduction(noise, alone) == pytest.approx(6.7, abs=0.05)
    assert PAPER["table1", "N_CB=512"]["wer"] == whole
    assert paper_figures("table1", "Whisper") == {"wer": 13.72, "wer/clean": 12.79}


def test_the_recipe_understands_every_row(monkeypatch):
    import reproduce_disentangled_whisper as reproduce
    from train_disentangled_whisper import parse_arguments

    monkeypatch.setattr("sys.argv", ["reproduce"])
    args, flags = reproduce.parse_arguments()
    for job in reproduce.plan_jobs(args, flags)[1:]:
        assert "--state_cache" not in job.command  # not part of what was trained
        recipe, _ = parse_arguments([*job.command[2:], *job.unrecorded, "--output_dir", "x", "--resume"])
        assert recipe.state_cache == "outputs/reproduce_disentangled_whisper/states"
        assert recipe.noise_classes == list(reproduce.TRAINING_NOISES)


def test_only_models_with_codes_meet_the_real_pairs(monkeypatch):
    import reproduce_disentangled_whisper as reproduce

    monkeypatch.setattr("sys.argv", ["reproduce", "--rows", "adapter", "MR", "--seeds", "0"])
    base, ours, adapter = reproduce.plan_jobs(*reproduce.parse_arguments())
    assert base.command is None and (ours.name, adapter.name) == ("MR", "adapter")
    assert "--pairs" not in base.evaluation and "--pairs" not in adapter.evaluation
    assert adapter.corpora == ["digit_strings", "an4"]
    assert ours.corpora == [*adapter.corpora, "voicebank_demand_pairs"] and ours.evaluation[-2] == "--pairs"


def test_rows_that_are_only_compared_with_one_another_train_shorter(monkeypatch):
    import reproduce_disentangled_whisper as reproduce

    def steps(*flags):
        monkeypatch.setattr("sys.argv", ["reproduce", "--rows", "MR", "MR, short", "--seeds", "0", *flags])
        _, *jobs = reproduce.plan_jobs(*reproduce.parse_arguments())
        last = [len(job.command) - job.command[::-1].index("--max_steps") for job in jobs]  # argparse takes the last
        return [int(job.command[position]) for job, position in zip(jobs, last)]

    assert steps() == [reproduce.MAX_STEPS, reproduce.COMPARISON_STEPS]
    assert steps("--max_steps", "7") == [7, 7]  # a flag of the user's is the last word


def test_test_noises_are_never_trained_on():
    from reproduce_disentangled_whisper import TEST_NOISES, TRAINING_NOISES

    assert set(TEST_NOISES) <= ESC10_CLASSES and not set(TRAINING_NOISES) & ESC10_CLASSES
    assert len(set(TRAINING_NOISES)) == 10 and len(set(TEST_NOISES)) == 5


@pytest.mark.skipif(not NOISE.exists(), reason=f"needs {NOISE}")
def test_the_noise_corpus_has_the_classes():
    import pyarrow.parquet
    from reproduce_disentangled_whisper import TEST_NOISES, TRAINING_NOISES

    for split, names in (("train", TRAINING_NOISES), ("dev", TRAINING_NOISES), ("test", TEST_NOISES)):
        clips = pyarrow.parquet.read_table(NOISE / f"{split}.parquet", columns=["noise"])
        assert set(names) <= set(clips["noise"].to_pylist())


def make_measured(path, **wers):
    """Results of DisentangledWhisper with the named rows' WER, and distances on real pairs of ours and Speechless."""
    from reproduce_disentangled_whisper import ALL_TERMS, NO_TERMS

    rows = {"Whisper": "Whisper", "adapter": "+Adapter", "ours": "Ours", "speechless": "Speechless"}
    runs = []
    for name, wer in wers.items():
        table, row = {"alone": NO_TERMS, "all": ALL_TERMS}.get(name) or ("table1", rows[name])
        command = "python x.py --dataset a b --noise_dataset c --noise_classes d_e --max_steps 7 --copies 2"
        metrics = {"wer": wer, "wer/rain": wer + 1, "wer/clean": wer - 1}
        if name == "ours":
            metrics |= {"noise_accuracy": 91.0, "noise_accuracy_new_clips": 62.0, "clean_unknown": 80.0}
            metrics |= {"noise_accuracy/crow": 93.0, "noise_accuracy_new_clips/crow": 64.0}
        runs.append(Run(table, row, 0, "an4", "test", 3_500_000, command, metrics))
        distance = {"ours": 1.0, "speechless": 3.0}.get(name)
        if distance:
            metrics = {"latent_distance": distance, "ued": 10 * distance}
            metrics |= {"clean_unknown": 95.0} if name == "ours" else {}
            runs.append(Run(table, row, 0, "pairs", "test", 3_500_000, command, metrics))
    return update_results(path, "disentangled_whisper", runs)


def test_goals_are_held_against_the_figures(tmp_path):
    from reproduce_disentangled_whisper import goals

    wers = {"Whisper": 40.0, "adapter": 20.0, "ours": 20.0, "all": 25.0, "alone": 25.0, "speechless": 50.0}
    measured = make_measured(tmp_path / "a.json", **wers)
    known = [
        (goal.corpus, goal.is_met) for goal in goals(measured) if goal.text == "clean speech called unknown, in %"
    ]
    assert known == [("an4", False), ("pairs", True)]  # of every corpus, with transcripts or without
    found = {goal.text: goal for goal in goals(measured) if goal.corpus == "an4" or "unknown" not in goal.text}
    assert found["WER noisy, 0.6 x the frozen base's"].limit == pytest.approx(24.0)
    met = {text: goal.is_met for text, goal in found.items()}
    assert met == {
        "WER noisy, 0.6 x the frozen base's": True,
        "WER noisy, the adapter's": False,  # below it, not level with it
        "WER noisy, all terms: quantizer and L_ASR alone": True,
        "noise accuracy on seen classes": True,
        "noise accuracy on seen classes, new clips": False,
        "clean speech called unknown, in %": False,
        "latents L2, half of Speechless'": True,
        "UED, half of Speechless'": True,
    }
    assert list(goals(make_measured(tmp_path / "b.json", Whisper=40.0))) == []


def test_tables_show_the_reduction_against_the_base_and_the_papers_figures(tmp_path):
    from reproduce_disentangled_whisper import format_tables

    text = format_tables(make_measured(tmp_path / "results.json", Whisper=40.0, ours=10.0, speechless=50.0))
    assert "10.00 (2.82)" in text and "75.00 (79.45)" in text
    assert "40.00 (13.72)" in text and "39.00 (12.79)" in text
    (goal,) = (line for line in text.splitlines() if "0.6 x the frozen base's" in line)
    assert goal.startswith("met")


def test_each_method_has_its_own_sections(tmp_path):
    from write_card import fill

    measured = make_measured(tmp_path / "results.json", Whisper=40.0, ours=10.0, speechless=50.0)
    names = ("setting", "goals", "table1", "table2", "noise_classes", "residue", "real_pairs", "counts", "benchmarks")
    filled = fill("".join(f"<!-- generated: {name} -->\n<!-- end -->\n" for name in names), measured)
    sections = dict(zip(names, filled.split("<!-- end -->")))
    assert "each utterance under 2 noises from `c` (d e)" in sections["setting"]
    assert "| WER noisy, 0.6 x the frozen base's | `an4` | 10.00 | <= 24.00 | met |" in sections["goals"]
    assert "| WER clean | noise accuracy | noise accuracy, new clips |" in sections["table1"]
    assert "| **Ours** | 10.00 | 75.00 | 11.00 | 9.00 | 91.00 | 62.00 |" in sections["table1"]
    assert "| *Ours: the paper's* | *2.82* | *79.45* |  |  |  |  |" in sections["table1"]
    old, new = (line.split(" | ") for line in sections["noise_classes"].splitlines() if line.startswith("| `an4`"))
    assert old[:2] == ["| `an4`, clips of training", "91.00"] and new[:2] == ["| `an4`, new clips", "62.00"]
    assert "93.00" in old and "64.00" in new
    assert "`pairs`" in sections["real_pairs"] and "`an4`" not in sections["real_pairs"]
    assert "| **Ours** | 1.00 | 10.00 |\n| **Speechless** | 3.00 | 30.00 |" in sections["real_pairs"]
    assert "80.00" in sections["residue"] and "2.40 nats" in sections["residue"]
    assert all("Not measured yet." in sections[name] for name in ("table2", "counts", "benchmarks"))
