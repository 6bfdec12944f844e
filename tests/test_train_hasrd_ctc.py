"""The recipes that train and measure the recognizer, from a folder of speech and a HASRD to error rates."""

import json
from pathlib import Path

import pytest
import torch
from tiny_corpora import make_tone, use_own_cache
from tiny_hasrd_ctc import save_speech_model, write_speech
from transformers import AutoModelForCTC, pipeline

from clearspeech.processing.loudness import bring_to_level
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.trainers.bootstrap import WordErrors
from clearspeech.trainers.evaluation import open_short

TEXTS = {
    "train": ["one two", "Two 3", "three one", "one one two", "two", "three"],
    "validation": ["one", "two three"],
    "test": ["one two", "three two one", "two"],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import train_hasrd_ctc

    return train_hasrd_ctc


@pytest.fixture
def evaluation(recipe):
    import evaluate_hasrd_ctc

    return evaluate_hasrd_ctc


@pytest.fixture
def speech_folder(tmp_path) -> str:
    return write_speech(tmp_path / "speech", TEXTS)


@pytest.fixture
def hasrd_folder(tmp_path) -> str:
    return save_speech_model(tmp_path / "hasrd")[1]


@pytest.fixture
def flags(tmp_path, speech_folder, hasrd_folder):
    """Two steps of a tiny recognizer; `flags(name=value)` are its options."""

    def make(**fields) -> list[str]:
        options = dict(model=hasrd_folder, dataset=speech_folder, output_dir=tmp_path / "trained", max_steps=2)
        options |= dict(hidden_size=8, per_device_train_batch_size=4, report_to="none", use_cpu=True)
        options |= dict(eval_steps=1, save_steps=1, logging_steps=1) | fields
        return ["--preset", "mini", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]

    return make


def logged(tmp_path) -> dict[str, list[float]]:
    """By name what the trainer has logged."""
    history = json.loads((tmp_path / "trained" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    return {name: [line[name] for line in history if name in line] for line in history for name in line}


def test_the_folder_that_it_leaves_transcribes_by_itself(recipe, flags, hasrd_folder, tmp_path):
    recipe.main(flags(representation="combined"))
    figures = logged(tmp_path)
    assert all(len(figures[name]) == 2 for name in ("loss", "eval_loss", "eval_cer"))
    Path(hasrd_folder).rename(tmp_path / "elsewhere")
    for folder in (tmp_path / "trained", tmp_path / "trained" / "checkpoint-2"):
        transcribe = pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
        assert isinstance(transcribe(make_tone(0.5))["text"], str)
    with pytest.raises(FileExistsError, match="pass --resume"):
        recipe.main(flags())


def test_its_characters_are_those_of_the_corpora(recipe, flags, tmp_path):
    recipe.main(flags(max_steps=1))
    tokenizer = FactoredASRProcessor.from_pretrained(tmp_path / "trained").tokenizer
    letters = sorted(set("".join(TEXTS["train"]).lower()))
    assert "3" in letters and sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) == letters
    config = AutoModelForCTC.from_pretrained(tmp_path / "trained").config
    assert (config.vocab_size, config.pad_token_id) == (
        len(letters) + 3,
        tokenizer.pad_token_id,
    ) and config.pad_token_id == 0
    assert tokenizer.decode(tokenizer("two 3").input_ids, skip_special_tokens=True) == "two 3"


@pytest.mark.parametrize("encoder", ["best_rq", "hubert"])
def test_an_encoder_alone_is_measured_layer_by_layer(encoder, recipe, flags, tmp_path):
    _, folder = save_speech_model(tmp_path / "encoder", encoder, whole=False)
    recipe.main(flags(model=folder, representation="layer", layer=2, max_steps=1))
    config = AutoModelForCTC.from_pretrained(tmp_path / "trained").config
    assert (config.layer, config.hidden_size, config.speech_config.model_type) == (2, 8, encoder)


def test_a_resumed_run_goes_on(recipe, flags, tmp_path, monkeypatch):
    recipe.main(flags(max_steps=1))
    monkeypatch.setattr(recipe, "build_character_tokenizer", lambda *given: pytest.fail("made again"))
    recipe.main([*flags(), "--resume"])
    assert len(logged(tmp_path)["loss"]) == 2


def test_a_transcript_that_validation_would_stop_at_is_named_before_training(recipe, flags, speech_folder):
    rows = Path(speech_folder, "validation", "metadata.csv")
    rows.write_text(rows.read_text().replace("two three", "two é"))
    with pytest.raises(ValueError, match=r"validation, row 1: .* outside the tokenizer's vocabulary"):
        recipe.main(flags())


def test_the_paper_is_the_default(recipe):
    paper, args = recipe.parse_arguments(["--output_dir", "unused", "--dataset", "embedded", "--model", "folder"])
    assert (paper.hidden_size, paper.num_hidden_layers, paper.representation) == (1024, 2, "semantic")
    assert (args.learning_rate, args.max_steps, args.per_device_train_batch_size) == (1e-4, 30_000, 32)
    assert (args.lr_scheduler_type, args.weight_decay, args.warmup_steps) == ("constant", 0, 0)


# --- error rates ---


def test_error_rates_are_measured(recipe, evaluation, flags, speech_folder, tmp_path, capsys):
    recipe.main(flags(representation="layers", max_steps=1))
    trained = str(tmp_path / "trained")
    results = evaluation.main(["--model", trained, "--dataset", speech_folder, "--device", "cpu"])
    written = json.loads(Path(trained, "evaluation", "evaluation.json").read_text())
    assert written["metrics"] == results and set(results["speech"]) == {"wer", "cer", "wer_low", "wer_high"}
    assert written["representation"] == "layers" and written["resynthesis"] is None
    assert sum(written["layer_weights"]) == pytest.approx(1.0) and len(written["layer_weights"]) == 3
    by_utterance = json.loads(Path(trained, "evaluation", "evaluation_utterances.json").read_text())
    errors = WordErrors(**by_utterance["speech"]["recording"])
    assert errors.words == [2, 3, 1] and errors.word_error_rate == pytest.approx(results["speech"]["wer"])
    assert results["speech"]["wer_low"] <= results["speech"]["wer"] <= results["speech"]["wer_high"]
    assert "wer" in capsys.readouterr().out


def test_what_a_codec_has_made_of_the_speech_is_measured_by_books(
    recipe, evaluation, flags, speech_folder, hasrd_folder, tmp_path, monkeypatch
):
    recipe.main(flags(representation="features", max_steps=1))
    trained, seen = str(tmp_path / "trained"), []

    def transcribe(model, processor, waveforms, batch_size):
        seen.append(waveforms)
        return ["one"] * len(waveforms)

    monkeypatch.setattr(evaluation, "transcribe", transcribe)
    options = ["--resynthesis", hasrd_folder, "--books", "all", "semantic", "2"]
    results = evaluation.main(["--model", trained, "--dataset", speech_folder, "--device", "cpu", *options])
    rates = ("wer", "cer", "wer_low", "wer_high")
    assert list(results["speech"]) == [f"{rate}/{name}" for name in ("all", "semantic", "2") for rate in rates]
    codec, extractor = evaluation.load_codec(hasrd_folder, "cpu")
    speech = open_short(speech_folder, "test", 30.0, None)
    for books, heard in zip((None, [0], [0, 1]), seen, strict=True):
        for row, made in zip(speech, heard, strict=True):
            levelled = bring_to_level(row["audio"]).numpy()
            inputs = extractor(levelled, sampling_rate=16000, return_tensors="pt")
            expected = codec.decode(codec.encode(**inputs).audio_codes, books=books, num_samples=len(levelled))
            torch.testing.assert_close(torch.from_numpy(made), expected.audio_values[0], atol=1e-5, rtol=1e-4)
    by_utterance = json.loads(Path(trained, "evaluation", "evaluation_utterances.json").read_text())["speech"]
    assert by_utterance["all"]["utterances"] == by_utterance["semantic"]["utterances"]  # so they can be compared


def test_what_cannot_be_measured_is_refused(evaluation, speech_folder, hasrd_folder):
    flags = ["--dataset", speech_folder, "--device", "cpu"]
    with pytest.raises(ValueError, match="holds a 'hasrd' model; give a folder of recipes/train_hasrd_ctc.py"):
        evaluation.main(["--model", hasrd_folder, *flags])
    with pytest.raises(ValueError, match="--books semantic are a codec's"):
        evaluation.main(["--model", hasrd_folder, *flags, "--books", "semantic"])
    with pytest.raises(ValueError, match="cannot tell apart"):
        evaluation.main(["--model", hasrd_folder, *flags, "--dataset", speech_folder, speech_folder])
