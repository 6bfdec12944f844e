"""Measuring a model: order, batches, noise, and the recipe that measures."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForAudioTokenization

from clearspeech.processing.corpora import ESC10_CLASSES, load_noise
from clearspeech.processing.perturbation import EVALUATION_PERTURBATIONS
from clearspeech.trainers.evaluation import (
    load_noise_conditions,
    noise_table,
    perturbed_views,
    snr_sweep,
    tokenize,
    transcribe,
)

RECIPES = Path(__file__).parents[1] / "recipes"
SYNTHETIC = ["gaussian", "pink", "brown", "bit_crush"]


@pytest.fixture
def recipes(monkeypatch):
    """Recipes can be imported by their names."""
    monkeypatch.syspath_prepend(str(RECIPES))


@pytest.fixture
def speech(make_speech) -> list[np.ndarray]:
    return [make_speech(num_samples, seed) for seed, num_samples in enumerate((16000, 7000, 12345, 9000))]


@pytest.fixture
def feature_extractor(tiny_processor):
    return tiny_processor.feature_extractor


@pytest.fixture
def corpus_folder(tmp_path, speech) -> str:
    """A corpus of four utterances and a folder of two kinds of noise, as `corpus` and `noise`."""
    for name, column, labels in (
        ("corpus", "text", "one two six ten".split()),
        ("noise", "noise", "wind wind dog dog".split()),
    ):
        folder = tmp_path / name / "test"
        folder.mkdir(parents=True)
        rows = [f"{index}.wav,{label}" for index, label in enumerate(labels)]
        (folder / "metadata.csv").write_text("\n".join([f"file_name,{column}", *rows]))
        for index, waveform in enumerate(speech):
            soundfile.write(folder / f"{index}.wav", waveform, 16000)
    return str(tmp_path / "corpus")


# --- functions ---


def test_tokens_come_back_in_order_and_do_not_depend_on_the_batch(tiny_model, feature_extractor, speech):
    batched = tokenize(tiny_model.model, feature_extractor, speech, batch_size=3)
    alone = [tokenize(tiny_model.model, feature_extractor, [waveform]).codes[0] for waveform in speech]
    assert all(torch.equal(one, other) for one, other in zip(batched.codes, alone))
    assert [len(codes) for codes in batched.codes] == [-(-len(waveform) // 640) for waveform in speech]
    assert [tuple(votes.shape) for votes in batched.votes] == [(len(codes), 4) for codes in batched.codes]


def test_transcripts_come_back_in_order(tiny_model, feature_extractor, tokenizer, speech):
    batched = transcribe(tiny_model, feature_extractor, tokenizer, speech, batch_size=3)
    alone = [transcribe(tiny_model, feature_extractor, tokenizer, [waveform])[0] for waveform in speech]
    assert batched == alone
    assert len(set(batched)) > 1


def test_measuring_does_not_end_training(tiny_model, feature_extractor, tokenizer, speech):
    tiny_model.train()
    tokenize(tiny_model.model, feature_extractor, speech)
    transcribe(tiny_model, feature_extractor, tokenizer, speech)
    assert tiny_model.training and tiny_model.model.training


def test_every_model_meets_the_same_noise(speech):
    first, second = list(perturbed_views(speech, {})), list(perturbed_views(list(reversed(speech)), {}))
    assert [name for name, _ in first] == SYNTHETIC
    for (_, one), (_, other) in zip(first, second):
        assert all(np.array_equal(a, b) for a, b in zip(one, reversed(other)))
        assert not any(np.array_equal(a, b) for a, b in zip(one, speech))


def test_conditions_of_real_noise_need_clips(speech, make_speech):
    noise = {"real_ood": [make_speech(8000, 9)]}
    assert [name for name, _ in perturbed_views(speech, noise)] == [*SYNTHETIC, "real_ood"]


def test_a_sweep_is_one_noise_at_every_snr(speech, make_speech):
    noise = {"real_ood": [make_speech(8000, 9)]}
    views = dict(perturbed_views(speech, noise, snr_sweep(["pink", "real_ood"], [20, 7.5])))
    assert list(views) == ["pink@20", "pink@7.5", "real_ood@20", "real_ood@7.5"]
    for kind in ("pink", "real_ood"):
        for clean, quiet, loud in zip(speech, views[f"{kind}@20"], views[f"{kind}@7.5"]):
            scale = 10 ** (12.5 / 20)
            assert np.allclose(scale * (quiet - clean), loud - clean, atol=1e-6)
            snr_db = 10 * np.log10(np.square(clean).mean() / np.square(loud - clean).mean())
            assert snr_db == pytest.approx(7.5, abs=0.1)


def test_a_sweep_over_what_has_no_snr_is_refused():
    with pytest.raises(ValueError, match="Unknown kinds of noise bit_crush: choose from gaussian, pink, brown, real"):
        snr_sweep(["pink", "bit_crush"], [10])


def test_speech_that_is_read_only_is_no_trouble(speech, recwarn):
    for waveform in speech:
        waveform.setflags(write=False)
    list(perturbed_views(speech, {}))
    assert not recwarn.list


def test_the_table_has_every_condition_and_their_mean(tiny_model, feature_extractor, tokenizer, speech, make_speech):
    noise = {"real": [make_speech(8000, 8)], "real_ood": [make_speech(8000, 9)]}
    table = noise_table(
        tiny_model.model,
        feature_extractor,
        speech,
        noise,
        tiny_model,
        tokenizer,
        ["a b", "c", "d", "e"],
        ["clean", "pink"],
    )
    distances = [table[f"ued/{perturbation.name}"] for perturbation in EVALUATION_PERTURBATIONS]
    assert table["ued_mean"] == pytest.approx(np.mean(distances))
    assert {"wer", "wer/pink", "codebook_usage", "unanimous_bits"} <= set(table)
    assert "wer/brown" not in table


def test_a_tokenizer_without_recognizer_has_no_wer(tiny_model, feature_extractor, speech):
    table = noise_table(tiny_model.model, feature_extractor, speech, {})
    assert not any(name.startswith("wer") for name in table)
    assert [name for name in table if name.startswith("ued/")] == [f"ued/{name}" for name in SYNTHETIC]


# --- the embedded stand-in for noise ---


def test_stand_in_noise_has_held_out_classes_and_its_own_clips_in_each_split():
    known, held_out = (
        load_noise("embedded", "test", exclude_esc10=True),
        load_noise("embedded", "test", only_esc10=True),
    )
    assert not set(known["noise"]) & ESC10_CLASSES
    assert set(held_out["noise"]) < ESC10_CLASSES
    train = {row["audio"].tobytes() for row in load_noise("embedded", "train")}
    test = {row["audio"].tobytes() for row in load_noise("embedded", "test")}
    assert not train & test
    assert test == {row["audio"].tobytes() for row in load_noise("embedded", "test")}


def test_stand_in_noise_is_audible_and_finite():
    for row in load_noise("embedded", "validation"):
        assert row["audio"].shape == (80000,) and row["audio"].dtype == np.float32
        assert np.isfinite(row["audio"]).all()
        assert np.abs(row["audio"]).max() == pytest.approx(0.5, abs=1e-3)


def test_conditions_without_noise_corpora_are_empty():
    assert load_noise_conditions([], "test") == {}


# --- recipes/evaluate_stable_token.py ---


def test_the_recipe_measures_a_folder(recipes, tiny_folder, corpus_folder, tmp_path, capsys):
    import evaluate_stable_token

    noise = str(tmp_path / "noise")
    results = evaluate_stable_token.main(
        ["--model", str(tiny_folder), "--dataset", corpus_folder, "--noise_dataset", noise, "--device", "cpu"]
    )
    written = json.loads((tiny_folder / "evaluation" / "evaluation.json").read_text())
    assert written["metrics"] == results
    assert {"wer", "wer/real", "ued/real_ood", "ued_mean"} <= set(results["corpus"])
    assert {path.name for path in (tiny_folder / "evaluation").iterdir()} == {
        "evaluation.json",
        "tokens_corpus.png",
        "ued_corpus.png",
    }
    printed = capsys.readouterr().out
    assert "UED, held-out real noise, 16 dB" in printed and "WER, clean" in printed


def test_the_recipe_measures_a_tokenizer_without_recognizer(
    recipes, tiny_folder, tiny_processor, corpus_folder, tmp_path
):
    import evaluate_stable_token

    folder = tmp_path / "tokenizer"
    AutoModelForAudioTokenization.from_pretrained(tiny_folder).save_pretrained(folder)
    tiny_processor.feature_extractor.save_pretrained(folder)
    arguments = ["--model", str(folder), "--dataset", corpus_folder, "--max_utterances", "2", "--device", "cpu"]
    metrics = evaluate_stable_token.main(arguments)["corpus"]
    assert "wer" not in metrics and "ued_mean" in metrics and "ued/real" not in metrics


def test_the_recipe_gives_a_whisper_its_wer(recipes, tiny_whisper_folder, corpus_folder, tmp_path):
    import evaluate_stable_token

    arguments = [
        "--model",
        str(tiny_whisper_folder),
        "--dataset",
        corpus_folder,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert set(evaluate_stable_token.main(arguments)["corpus"]) == {"wer"}


def test_the_recipe_measures_tokenizers_without_voters(recipes, tiny_disentangled, tiny_processor, tmp_path):
    from evaluate_stable_token import main

    tiny_disentangled.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    arguments = ["--dataset", "embedded", "--max_utterances", "2", "--device", "cpu"]
    main(["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path), *arguments])
    metrics = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["embedded"]
    assert {"wer", "ued/gaussian", "ued_mean", "codebook_usage"} <= metrics.keys()
    assert "unanimous_bits" not in metrics


def test_the_recipe_refuses_other_models(recipes, tmp_path):
    import evaluate_stable_token
    from transformers import BertConfig

    BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'bert' model"):
        evaluate_stable_token.load_models(str(tmp_path), "cpu")


def test_stand_in_noise_is_called_so(recipes):
    from evaluate_stable_token import condition_titles

    assert "stand-in" in condition_titles(["embedded"])["real"]
    assert "stand-in" not in condition_titles(["noise"])["real"]


def test_corpora_that_tables_cannot_tell_apart_are_refused(recipes, tiny_folder):
    from evaluate_stable_token import main

    with pytest.raises(ValueError, match="cannot tell apart.*'embedded', 'embedded'"):
        main(["--model", str(tiny_folder), "--dataset", "embedded", "embedded"])


def test_audio_beyond_the_window_is_transcribed_in_pieces(tiny_model, tiny_processor, make_speech):
    parts = (tiny_model, tiny_processor.feature_extractor, tiny_processor.tokenizer)
    window = tiny_model.config.max_source_positions * 2 * 160  # samples
    long = make_speech(5 * window // 2)
    with pytest.raises(ValueError, match="cut longer audio"):
        features = parts[1](long, sampling_rate=16000, return_tensors="pt")
        tiny_model.generate(**features)
    assert isinstance(transcribe(*parts, [long])[0], str)
