"""The recipe that measures a DisentangledWhisper folder: its figures, its pictures, and what it does without."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_noise_evaluation import disentangled

from clearspeech.trainers.metrics import relative_error_reduction


@pytest.fixture
def model():
    return disentangled()


@pytest.fixture
def speech(make_speech) -> list[np.ndarray]:
    return [make_speech(num_samples, seed) for seed, num_samples in enumerate((16000, 7000, 12345, 9000))]


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import evaluate_disentangled_whisper

    return evaluate_disentangled_whisper


def write_split(folder: Path, rows: list[tuple[np.ndarray, str]], column: str):
    """Audio files and their metadata."""
    folder.mkdir(parents=True)
    lines = [f"{index}.wav,{label}" for index, (_, label) in enumerate(rows)]
    (folder / "metadata.csv").write_text("\n".join([f"file_name,{column}", *lines]))
    for index, (waveform, _) in enumerate(rows):
        soundfile.write(folder / f"{index}.wav", waveform, 16000)


@pytest.fixture
def corpora(tmp_path, speech, make_speech) -> list[str]:
    """Arguments for four utterances and three classes of noise, of which the head knows two."""
    for split in ("train", "validation", "test"):
        write_split(tmp_path / "corpus" / split, list(zip(speech, "one two six ten".split())), "text")
        clips = [(make_speech(20000, 10 + index), name) for index, name in enumerate(("rain", "wind", "dog"))]
        write_split(tmp_path / "noise" / split, clips, "noise")
    return ["--dataset", str(tmp_path / "corpus"), "--noise_dataset", str(tmp_path / "noise"), "--device", "cpu"]


def save(model, processor, folder: Path) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_the_recipe_measures_a_folder(recipe, model, tiny_processor, corpora, tmp_path, capsys):
    folder = save(model, tiny_processor, tmp_path / "model")
    results = recipe.main(["--model", folder, *corpora, "--noise_classes", "dog"])
    written = json.loads((tmp_path / "model" / "evaluation" / "evaluation.json").read_text())
    assert written["metrics"] == results
    assert written["num_beams"] == 2  # the folder's own
    assert written["trainable_parameters"] < written["parameters"]
    expected = {"wer", "wer/dog", "wer/clean", "noise_accuracy", "latent_distance_relative", "ued", "codebook_usage"}
    assert expected | {"clean_posterior_max", "clean_unknown", "noisy_posterior_max"} <= set(results["corpus"])
    assert "wer/rain" not in results["corpus"]
    assert {path.name for path in (tmp_path / "model" / "evaluation").iterdir()} == {
        "evaluation.json",
        *(f"noise_{kind}_corpus.{suffix}" for kind in ("features", "map") for suffix in ("json", "png")),
    }
    printed = capsys.readouterr().out
    assert "noise accuracy, seen clips" in printed and "noise accuracy, new clips" in printed


@pytest.fixture
def write_pairs(tmp_path, speech, make_speech):
    """`write_pairs(noise, has_clean=True)`: a corpus `pairs` of four recordings in these noises."""

    def write(noise: list[str], has_clean: bool = True) -> list[str]:
        folder = tmp_path / "pairs" / "test"
        write_split(folder, [(waveform + make_speech(len(waveform), 9), "one") for waveform in speech], "text")
        for index, waveform in enumerate(speech):
            soundfile.write(folder / f"clean{index}.wav", waveform, 16000)
        lines = [f"{index}.wav,clean{index}.wav,one,{name}" for index, name in enumerate(noise)]
        header = f"file_name,{'clean_file_name' if has_clean else 'original'},text,noise"
        (folder / "metadata.csv").write_text("\n".join([header, *lines]))
        return ["--pairs", str(folder.parent), "--device", "cpu"]

    return write


@pytest.mark.parametrize("noise, is_known", [("rain", True), ("bus", False), ("unknown", False), ("", False)])
def test_real_pairs_need_no_noise(recipe, model, tiny_processor, tmp_path, write_pairs, capsys, noise, is_known):
    folder = save(model, tiny_processor, tmp_path / "model")
    metrics = recipe.main(["--model", folder, *write_pairs(["rain", "rain", noise, "wind"])])["pairs"]
    assert {"latent_distance", "ued", "clean_unknown"} <= set(metrics) and "wer" not in metrics
    assert ("noise_accuracy/rain" in metrics) == is_known
    assert (
        f"pairs: no noise accuracy; the head has no class for the noise '{noise}'" in capsys.readouterr().out
    ) != is_known


def test_real_pairs_have_pictures_and_on_demand_transcripts(recipe, model, tiny_processor, tmp_path, write_pairs):
    folder = save(model, tiny_processor, tmp_path / "model")
    metrics = recipe.main(["--model", folder, *write_pairs(["rain", "", "bus", "bus"]), "--transcribe_pairs", "True"])
    assert "wer/clean" in metrics["pairs"]
    pictures = tmp_path / "model" / "evaluation"
    assert (pictures / "noise_map_pairs.png").exists() and (pictures / "noise_features_pairs.png").exists()
    (rows,) = json.loads((pictures / "noise_map_pairs.json").read_text())["maps"].values()
    assert list(rows) == ["bus"]  # that of the utterance of median length, which no other shares
    (panel,) = json.loads((pictures / "noise_features_pairs.json").read_text())["panels"].values()
    assert panel["labels"] == ["clean"] * 4 + ["rain", "no class", "bus", "bus"] and len(panel["places"]) == 8


def test_speech_recorded_in_noise_is_transcribed_by_noise(recipe, model, tiny_processor, tmp_path, write_pairs):
    folder = save(model, tiny_processor, tmp_path / "model")
    metrics = recipe.main(["--model", folder, *write_pairs(["rain", "rain", "wind", "wind"], has_clean=False)])[
        "pairs"
    ]
    assert {"wer", "wer/rain", "wer/wind", "noisy_unknown", "noise_accuracy"} <= set(metrics)
    assert not {"wer/clean", "ued", "latent_distance", "clean_unknown"} & set(metrics)
    names = {path.name for path in (tmp_path / "model" / "evaluation").iterdir()}
    assert names == {"evaluation.json", "noise_features_pairs.png", "noise_features_pairs.json"}


def test_errors_are_held_against_a_base(recipe, model, tiny_processor, tiny_whisper_folder, corpora, tmp_path):
    folder = save(model, tiny_processor, tmp_path / "model")
    arguments = [*corpora, "--noise_classes", "dog", "--num_beams", "1"]
    base = recipe.main(["--model", str(tiny_whisper_folder), *arguments])["corpus"]["wer"]
    metrics = recipe.main(["--model", folder, *arguments, "--base", str(tiny_whisper_folder)])["corpus"]
    assert metrics["rer"] == pytest.approx(relative_error_reduction(metrics["wer"], base))
    assert metrics["rer/dog"] == metrics["rer"] and "rer/clean" not in metrics
    half = tmp_path / "half"
    model.model.save_pretrained(half)
    tiny_processor.save_pretrained(half)
    with pytest.raises(ValueError, match="half does not transcribe"):
        recipe.main(["--model", folder, *arguments, "--base", str(half)])


def test_the_figures_are_written_before_a_picture_fails(
    recipe, model, tiny_processor, tmp_path, write_pairs, monkeypatch
):
    def fail(*arguments):
        raise RuntimeError("no picture")

    monkeypatch.setattr(recipe, "draw_map", fail)
    folder = save(model, tiny_processor, tmp_path / "model")
    with pytest.raises(RuntimeError, match="no picture"):
        recipe.main(["--model", folder, *write_pairs(["rain"] * 4)])
    written = json.loads((tmp_path / "model" / "evaluation" / "evaluation.json").read_text())
    assert "ued" in written["metrics"]["pairs"]


def relabel(noise: Path, name: str):
    """All clips of a corpus as of one class."""
    for metadata in noise.glob("*/metadata.csv"):
        header, *lines = metadata.read_text().splitlines()
        metadata.write_text("\n".join([header, *(f"{line.split(',')[0]},{name}" for line in lines)]))


def test_a_head_of_other_classes_is_measured_without_its_accuracy(
    recipe, model, tiny_processor, corpora, tmp_path, capsys
):
    folder = save(model, tiny_processor, tmp_path / "model")
    relabel(tmp_path / "noise", "dog")
    metrics = recipe.main(["--model", folder, *corpora])["corpus"]
    assert {"wer/dog", "ued", "clean_unknown"} <= set(metrics) and "noise_accuracy" not in metrics
    assert "no noise accuracy; the noise has none of the head's classes rain, wind" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'rain'"):
        recipe.main(["--model", folder, *corpora, "--validation_noise_classes", "rain"])


def test_noise_without_classes_gives_no_map(recipe, model, tiny_processor, corpora, tmp_path, capsys):
    folder = save(model, tiny_processor, tmp_path / "model")
    relabel(tmp_path / "noise", "")
    assert "ued" in recipe.main(["--model", folder, *corpora])["corpus"]
    assert "no noise_map_corpus.png: the noise has no classes" in capsys.readouterr().out
    assert not (tmp_path / "model" / "evaluation" / "noise_map_corpus.png").exists()


@pytest.mark.parametrize("name", ["corpus", "noise"])
def test_a_corpus_without_validation_split_has_no_noise_accuracy(
    recipe, model, tiny_processor, corpora, tmp_path, capsys, name
):
    folder = save(model, tiny_processor, tmp_path / "model")
    (tmp_path / name / "validation").rename(tmp_path / "elsewhere")
    metrics = recipe.main(["--model", folder, *corpora, "--noise_classes", "dog"])["corpus"]
    assert "ued" in metrics and "noise_accuracy" not in metrics
    assert "no split 'validation'" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no split 'validation'"):
        recipe.main(["--model", folder, *corpora, "--validation_noise_classes", "rain"])


def test_models_without_tokens_get_their_wer_only(recipe, tiny_processor, tiny_whisper_folder, corpora, tmp_path):
    adapter = disentangled(bottleneck="adapter", noise_labels=[])
    folders = [str(tiny_whisper_folder), save(adapter, tiny_processor, tmp_path / "adapter")]
    for folder in folders:
        metrics = recipe.main(["--model", folder, *corpora, "--noise_classes", "dog"])["corpus"]
        assert all(name.startswith("wer") for name in metrics) and "wer/dog" in metrics
    counts = [json.loads(Path(folder, "evaluation/evaluation.json").read_text()) for folder in folders]
    assert counts[0]["trainable_parameters"] == 0 < counts[1]["trainable_parameters"]


def test_noise_that_is_not_there_is_refused(recipe, model, tiny_processor, corpora, tmp_path):
    folder = save(model, tiny_processor, tmp_path / "model")
    with pytest.raises(ValueError, match="thunder"):
        recipe.main(["--model", folder, *corpora, "--noise_classes", "thunder"])
    with pytest.raises(ValueError, match="noise head knows rain, wind; got 'dog'"):
        recipe.main(["--model", folder, *corpora, "--validation_noise_classes", "dog"])


def test_speech_without_noise_or_corpora_alike_are_refused(recipe, model, tiny_processor, corpora, tmp_path):
    folder = save(model, tiny_processor, tmp_path / "model")
    with pytest.raises(ValueError, match="give --noise_dataset"):
        recipe.main(["--model", folder, *corpora[:2], "--device", "cpu"])
    with pytest.raises(ValueError, match="--dataset or --pairs; got neither"):
        recipe.main(["--model", folder])
    with pytest.raises(ValueError, match="cannot tell apart"):
        recipe.main(["--model", folder, *corpora[:2], "--pairs", corpora[1]])


def test_a_control_without_codes_is_refused(recipe, model, tiny_processor, corpora, tmp_path):
    folder = save(model, tiny_processor, tmp_path / "model")
    adapter = save(disentangled(bottleneck="adapter", noise_labels=[]), tiny_processor, tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter has no quantizer"):
        recipe.main(["--model", folder, *corpora, "--control", adapter])


def test_other_models_are_refused(recipe, tiny_folder):
    with pytest.raises(ValueError, match="holds a 'stable_token' model"):
        recipe.load_models(str(tiny_folder), "cpu")
