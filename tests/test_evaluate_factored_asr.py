"""The recipe that measures a FactoredASR: its numbers and files, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_factored import make_factored

from clearspeech.processing.corpora import load_corpus
from clearspeech.processing.perturbation import utterance_seed
from clearspeech.processing.utterance_mixing import mix_utterances
from clearspeech.trainers.bootstrap import WordErrors, paired_bootstrap

TEXTS = ("one two", "two", "one one two")


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import evaluate_factored_asr

    return evaluate_factored_asr


@pytest.fixture
def corpus_folder(tmp_path, make_speech) -> str:
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    rows = [f"{index}.wav,{text}" for index, text in enumerate(TEXTS)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    for index in range(len(TEXTS)):
        soundfile.write(folder / f"{index}.wav", make_speech(9000 + 2000 * index, index), 16000)
    return str(tmp_path / "corpus")


@pytest.fixture
def model_folder(tmp_path) -> str:
    for part in make_factored():
        part.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def arguments(model: str, corpus: str, *more: str) -> list[str]:
    return ["--model", model, "--dataset", corpus, "--device", "cpu", *more]


def test_errors_are_measured_at_each_mixing_rate(recipe, model_folder, corpus_folder, capsys):
    results = recipe.main(arguments(model_folder, corpus_folder, "--mixing_rates", "0", "0.3"))
    folder = Path(model_folder, "evaluation")
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["metrics"] == results and written["parameters"] > 1000 and written["num_beams"] == 1
    assert set(results["corpus"]) == {"wer", "cer", "wer/0.3", "cer/0.3"}
    by_utterance = json.loads((folder / "evaluation_utterances.json").read_text())["corpus"]
    errors = {rate: WordErrors(**parts) for rate, parts in by_utterance.items()}
    assert errors["0"].words == errors["0.3"].words == [2, 1, 3]
    assert errors["0"].utterances != errors["0.3"].utterances  # other samples
    assert errors["0"].word_error_rate == pytest.approx(results["corpus"]["wer"])
    assert errors["0.3"].word_error_rate == pytest.approx(results["corpus"]["wer/0.3"])
    assert "WER, mixing rate 0 " in (printed := capsys.readouterr().out) and "CER, mixing rate 0.3 " in printed


def test_speech_has_one_level_at_all_rates(recipe, model_folder, corpus_folder):
    """The error at rate 0 is that of normalized speech: rates do not differ in loudness."""
    recipe.main(arguments(model_folder, corpus_folder, "--mixing_rates", "0", "0.3"))
    content = json.loads(Path(model_folder, "evaluation", "evaluation_utterances.json").read_text())["corpus"]
    corpus = load_corpus(corpus_folder, "test", streaming=False)
    for rate in ("0", "0.3"):
        expected = [utterance_seed(row["audio"]) for row in mix_utterances(corpus, float(rate))]
        assert content[rate]["utterances"] == expected


def test_of_pairs_the_noisy_half_is_measured(recipe, model_folder, corpus_folder):
    model, processor = recipe.load_model(model_folder, "cpu")
    speech = load_corpus(corpus_folder, "test", streaming=False, decoded=True)
    pairs = speech.with_format(None).add_column("clean_audio", [[0.0]] * len(speech))
    args = recipe.EvaluationArguments(model=model_folder, dataset=[corpus_folder], mixing_rates=[0.0])
    assert recipe.measure(model, processor, pairs, args) == recipe.measure(model, processor, speech, args)


def test_two_models_can_be_compared_utterance_by_utterance(recipe, model_folder, corpus_folder, tmp_path):
    errors = []
    for place in ("greedy", "beam"):
        beams = ["--num_beams", "1" if place == "greedy" else "2", "--output_dir", str(tmp_path / place)]
        recipe.main(arguments(model_folder, corpus_folder, "--mixing_rates", "0.25", *beams))
        content = json.loads((tmp_path / place / "evaluation_utterances.json").read_text())
        errors.append([WordErrors(**content["corpus"]["0.25"])])
    assert errors[0][0].utterances == errors[1][0].utterances  # the very same mixtures
    assert np.isfinite(paired_bootstrap(*errors).value)


def test_transcripts_are_those_of_the_utterances_one_by_one(recipe, model_folder, make_speech):
    model, processor = recipe.load_model(model_folder, "cpu")
    waveforms = [make_speech(12000, 0), make_speech(7000, 1), make_speech(9000, 2)]
    alone = [recipe.transcribe(model, processor, [waveform])[0] for waveform in waveforms]
    assert recipe.transcribe(model, processor, waveforms, batch_size=3) == alone
    assert len(set(alone)) > 1


def test_what_cannot_be_measured_is_refused(recipe, model_folder, corpus_folder, tiny_folder):
    with pytest.raises(ValueError, match="cannot tell apart"):
        recipe.main([*arguments(model_folder, corpus_folder), "--dataset", corpus_folder, corpus_folder])
    with pytest.raises(ValueError, match="holds a 'stable_token' model"):
        recipe.main(arguments(str(tiny_folder), corpus_folder))
    with pytest.raises(ValueError, match="got 0.7"):
        recipe.main(arguments(model_folder, corpus_folder, "--mixing_rates", "0.7"))
