"""The recipe that measures a HASRD: its numbers by books, its pictures, voices, and what it refuses."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from tiny_hasrd import make_hasrd

from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.trainers.codec_metrics import mel_distance
from clearspeech.trainers.evaluation import open_short


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import evaluate_hasrd

    return evaluate_hasrd


@pytest.fixture
def corpus_folder(tmp_path, make_speech) -> str:
    """Three speakers of two utterances each for training, two for the test."""
    for split, count in (("train", 6), ("test", 4)):
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        rows = [f"{index}.wav,word,s{index % (count // 2)}" for index in range(count)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,text,speaker", *rows]))
        for index in range(count):
            soundfile.write(folder / f"{index}.wav", make_speech(4000 + 1000 * index, index), 16000)
    return str(tmp_path / "corpus")


def save_model(folder, encoder="best_rq") -> str:
    make_hasrd(encoder).save_pretrained(folder)
    BestRQFeatureExtractor(8).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model_folder(tmp_path) -> str:
    return save_model(tmp_path / "model")


def arguments(model: str, corpus: str, *more: str) -> list[str]:
    return ["--model", model, "--dataset", corpus, "--device", "cpu", *more]


def test_each_measure_is_taken_for_each_subset_of_books(recipe, model_folder, corpus_folder, capsys):
    results = recipe.main(arguments(model_folder, corpus_folder, "--num_spectrograms", "1"))
    folder = Path(model_folder, "evaluation")
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["metrics"] == results and written["speaker_model"] == "lda" and written["parameters"] > 1000
    measures = {"mel_distance", "stft_distance", "si_sdr", "similarity"}
    subsets = {"", "/semantic", "/acoustic", "/first_1", "/first_2", "/first_3"}
    ends = {"similarity_low", "similarity_high"}
    anchors = {"similarity_same_speaker", "similarity_other_speaker", "similarity_error"}
    assert set(results["corpus"]) == {f"{name}{subset}" for name in measures | ends for subset in subsets} | anchors
    assert results["corpus"]["mel_distance/semantic"] == results["corpus"]["mel_distance/first_1"]
    low, value, high = (results["corpus"][f"similarity{end}/acoustic"] for end in ("_low", "", "_high"))
    assert low < value < high
    bits = 31.25 * np.log2([12, 16, 16, 16]).cumsum() / 1000
    expected = [written["bitrates"][name] for name in ("first_1", "first_2", "first_3", "all")]
    assert expected == pytest.approx(bits)
    for name, least in (("spectrogram_corpus_0.png", 300), ("books.png", 300)):
        picture = matplotlib.image.imread(folder / name)
        assert min(picture.shape[:2]) > least and picture.std() > 0.05
    assert not (folder / "spectrogram_corpus_1.png").exists()
    assert "mel_distance/acoustic " in capsys.readouterr().out


def test_reconstructions_are_those_of_the_utterances_one_by_one(recipe, model_folder, make_speech):
    model, extractor = recipe.load_model(model_folder, "cpu")
    waveforms = [make_speech(5000, 0), make_speech(2000, 1), make_speech(3300, 2)]
    subsets = recipe.book_subsets(model).values()
    ((rows, together),) = recipe.reconstruct(model, extractor, waveforms, subsets, batch_size=3)
    assert rows == [1, 2, 0] and set(together) == set(subsets)
    for place, row in enumerate(rows):
        ((_, alone),) = recipe.reconstruct(model, extractor, [waveforms[row]], subsets)
        for books, made in together.items():
            assert made[place].shape == waveforms[row].shape
            torch.testing.assert_close(made[place], alone[books][0], atol=1e-5, rtol=0)
    assert not torch.allclose(together[(0,)][0], together[(1, 2, 3)][0])


def test_no_batch_is_encoded_twice_and_no_subset_decoded_twice(recipe, model_folder, make_speech, monkeypatch):
    model, extractor = recipe.load_model(model_folder, "cpu")
    calls = []
    for name in ("encode", "decode"):
        done = getattr(model, name)
        monkeypatch.setattr(
            model, name, lambda *args, _name=name, _done=done, **o: calls.append(_name) or _done(*args, **o)
        )
    list(recipe.reconstruct(model, extractor, [make_speech(3000)] * 3, [(0,), (0, 1), (0,)], batch_size=2))
    assert calls == ["encode", "decode", "decode"] * 2


def test_loudness_is_not_counted(recipe, model_folder, corpus_folder):
    """What is measured is at one level, whatever that of the recording."""
    model, extractor = recipe.load_model(model_folder, "cpu")
    args = recipe.EvaluationArguments(model=model_folder, dataset=[corpus_folder], num_spectrograms=1)
    corpus = open_short(corpus_folder, "test", 30.0, 2)
    rows = [dict(row, audio=np.asarray(row["audio"], dtype=np.float32)) for row in corpus]
    loud, quiet = ([dict(row, audio=scale * row["audio"]) for row in rows] for scale in (1.0, 0.1))
    (of_loud, _), (of_quiet, drawn) = (
        recipe.measure(model, extractor, Dataset.from_list(each).with_format("numpy"), args, None)
        for each in (loud, quiet)
    )
    assert of_quiet == pytest.approx(of_loud, rel=1e-2)
    assert 10 * np.log10(drawn[0]["input"].square().mean()) == pytest.approx(-23.0, abs=0.1)


def test_tokens_of_windows_are_held_against_those_of_one_pass(recipe, model_folder, make_speech):
    model, extractor = recipe.load_model(model_folder, "cpu")
    waveforms = [make_speech(16_000, seed) for seed in range(6)]
    assert recipe.window_agreement(model, extractor, waveforms, 5.0) == {}  # one window holds them all
    model.config.max_source_tokens = 40
    found = recipe.window_agreement(model, extractor, waveforms, 5.0)
    assert list(found) == [f"window_agreement/book_{book}" for book in (1, 2, 3, 4)] + ["window_seconds"]
    assert found["window_seconds"] == 5.0
    assert all(20 < found[f"window_agreement/book_{book}"] <= 100 for book in (1, 2, 3, 4))
    assert recipe.window_agreement(model, extractor, waveforms, 0) == {}


def test_the_mel_distance_is_the_mean_over_utterances(recipe, model_folder, corpus_folder):
    model, extractor = recipe.load_model(model_folder, "cpu")
    args = recipe.EvaluationArguments(model=model_folder, dataset=[corpus_folder], measures=["mel_distance"])
    corpus = open_short(corpus_folder, "test", 30.0, 2)
    figures, drawn = recipe.measure(model, extractor, corpus, args, None)
    expected = [float(mel_distance(each["all"][None], each["input"][None])) for each in drawn]
    assert figures["mel_distance"] == pytest.approx(np.mean(expected), rel=1e-5) and len(drawn) == 2
    assert not any(name.startswith("similarity") for name in figures)


def test_a_codec_without_a_semantic_book_is_measured_by_its_number_of_books(recipe, tmp_path, corpus_folder):
    model = save_model(tmp_path / "bare", "front_end")
    results = recipe.main(arguments(model, corpus_folder, "--measures", "si_sdr", "--max_utterances", "2"))
    names = set(results["corpus"])
    assert {"si_sdr", "si_sdr/first_1", "si_sdr/first_2"} <= names and not any("semantic" in name for name in names)
    assert Path(model, "evaluation", "spectrogram_corpus_1.png").exists()


def test_without_speakers_voices_are_not_compared(recipe, model_folder, corpus_folder, capsys):
    for split in ("train", "test"):
        table = Path(corpus_folder, split, "metadata.csv")
        table.write_text("\n".join(line.rpartition(",")[0] for line in table.read_text().splitlines()))
    results = recipe.main(arguments(model_folder, corpus_folder, "--num_spectrograms", "0"))
    assert "Voices are not compared: " in capsys.readouterr().out
    assert not any(name.startswith("similarity") for name in results["corpus"])


def test_what_cannot_be_measured_is_refused(recipe, model_folder, corpus_folder, tiny_folder, monkeypatch):
    with pytest.raises(ValueError, match="cannot tell apart"):
        recipe.main([*arguments(model_folder, corpus_folder), "--dataset", corpus_folder, corpus_folder])
    with pytest.raises(ValueError, match="holds a 'stable_token' model"):
        recipe.main(arguments(str(tiny_folder), corpus_folder))
    with pytest.raises(ValueError, match="Measures are mel_distance"):
        recipe.main(arguments(model_folder, corpus_folder, "--measures", "mos"))
