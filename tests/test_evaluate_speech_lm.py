"""The recipe that measures a speech language model: its numbers, files and pictures, and what it refuses."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clearspeech import SpeechLMForCausalLM
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor

EMOTIONS = ["sad", "calm", "sad"]


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import evaluate_speech_lm

    return evaluate_speech_lm


@pytest.fixture
def corpus_folder(tmp_path, make_speech) -> str:
    """Three utterances with text and emotion, and a folder of two kinds of noise beside them."""
    contents = {"corpus": ("text,emotion", [f"one two,{emotion}" for emotion in EMOTIONS])}
    contents["noise"] = ("noise", ["wind", "dog"])
    for name, (header, rows) in contents.items():
        folder = tmp_path / name / "test"
        folder.mkdir(parents=True)
        lines = [f"{index}.wav,{row}" for index, row in enumerate(rows)]
        (folder / "metadata.csv").write_text("\n".join([f"file_name,{header}", *lines]))
        for index in range(len(rows)):
            soundfile.write(folder / f"{index}.wav", make_speech(9000 + 2000 * index, index), 16000)
    return str(tmp_path / "corpus")


@pytest.fixture
def make_model(tmp_path, tiny_model, tiny_processor):
    """`make_model(*tasks)`: the folder of a random model of a hundred positions over 16 units of 40 ms."""

    def make(*tasks: str) -> Path:
        tokenizer = tiny_processor.tokenizer
        shape = dict(n_embd=16, n_layer=1, n_head=2, n_positions=100, bos_token_id=0, eos_token_id=0)
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "text")
        units = SpeechLMProcessor(tiny_processor.feature_extractor, tiny_model.model)
        processor = units.with_text_model(tokenizer, len(tokenizer), tasks)
        model = SpeechLMForCausalLM.from_text_model(str(tmp_path / "text"), processor.num_speech_units)
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def arguments(model: Path, corpus: str, *more: str) -> list[str]:
    return ["--model", str(model), "--dataset", corpus, "--device", "cpu", *more]


def test_words_are_measured_clean_under_noise_and_over_the_snr(recipe, make_model, corpus_folder, tmp_path, capsys):
    options = ["--noise_dataset", str(tmp_path / "noise"), "--conditions", "real", "--snr_curve", "pink", "real_ood"]
    model = make_model("asr")
    results = recipe.main(arguments(model, corpus_folder, *options, "--snrs_db", "10", "0"))
    written = json.loads((model / "evaluation" / "evaluation.json").read_text())
    assert written["metrics"] == results and written["model"] == str(model) and written["parameters"] > 1000
    conditions = ["real", "pink@10", "pink@0", "real_ood@10", "real_ood@0"]
    assert set(results["corpus"]) == {
        *("wer", "cer"),
        *(f"{name}/{condition}" for name in ("wer", "cer") for condition in conditions),
    }
    assert (model / "evaluation" / "wer_corpus.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert (
        "WER, clean" in printed
        and "WER, held-out real noise, 10 dB" in printed
        and "CER, real noise, 16 dB" in printed
    )


def test_answers_are_measured_with_prompts_where_tasks_were_mixed(recipe, make_model, corpus_folder, tmp_path, capsys):
    model = make_model("asr", "emotion")
    results = recipe.main(
        arguments(model, corpus_folder, "--snr_curve", "pink", "--output_dir", str(tmp_path / "out"))
    )
    metrics = results["corpus"]
    assert {"wer", "cer", "accuracy", "accuracy_low", "accuracy_high", "accuracy/pink@20", "unparsed"} <= set(metrics)
    assert metrics["majority"] == pytest.approx(200 / 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json",
        "wer_corpus.png",
        "accuracy_corpus.png",
    }
    assert "accuracy of the most frequent class" in capsys.readouterr().out


def test_one_task_of_several_can_be_chosen(recipe, make_model, corpus_folder):
    results = recipe.main(arguments(make_model("asr", "emotion"), corpus_folder, "--task", "emotion"))
    assert "accuracy" in results["corpus"] and "wer" not in results["corpus"]


def test_a_task_that_the_model_never_met_is_refused(recipe, make_model, corpus_folder):
    with pytest.raises(ValueError, match="--task emotion: this model was trained on asr alone"):
        recipe.main(arguments(make_model("asr"), corpus_folder, "--task", "emotion"))


def test_what_cannot_be_measured_is_refused_before_the_work(recipe, make_model, corpus_folder, monkeypatch):
    monkeypatch.setattr(recipe, "measure", lambda *given: pytest.fail("measured"))
    model = make_model("emotion")
    with pytest.raises(ValueError, match="embedded has no column emotion"):
        recipe.main([*arguments(model, corpus_folder), "--dataset", corpus_folder, "embedded"])
    with pytest.raises(ValueError, match="cannot tell apart"):
        recipe.main([*arguments(model, corpus_folder), "--dataset", corpus_folder, corpus_folder])
    with pytest.raises(ValueError, match="No clips of real"):
        recipe.main(arguments(model, corpus_folder, "--conditions", "real"))


def test_units_that_do_not_fit_the_model_are_refused(recipe, make_model, tiny_processor, tiny_model, corpus_folder):
    model, other = make_model("asr"), tiny_processor.tokenizer
    units = SpeechLMProcessor(tiny_processor.feature_extractor, tiny_model.model)
    units.with_text_model(other, len(other) + 1).save_pretrained(model)
    with pytest.raises(ValueError, match="The model has 31 rows of text, this processor 32"):
        recipe.main(arguments(model, corpus_folder))


def test_other_models_are_refused(recipe, tiny_folder, corpus_folder):
    with pytest.raises(ValueError, match="holds a 'stable_token' model"):
        recipe.main(arguments(tiny_folder, corpus_folder))


def test_the_table_keeps_a_conditions_figures_beside_those_of_clean_speech(recipe):
    one = {"wer": 5.0, "cer": 1.0, "wer/pink@7.5": 9.0, "wer/pink": 6.0}
    two = {"accuracy": 40.0, "accuracy_low": 30.0, "accuracy_high": 51.25, "majority": 13.3}
    lines = recipe.format_table({"one": one, "two": two}, {"pink": "pink, 22 dB"}).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "one two",
        "WER, clean 5.00 %",
        "WER, pink, 7.5 dB 9.00 %",
        "WER, pink, 22 dB 6.00 %",
        "CER, clean 1.00 %",
        "accuracy, clean 40.00 % (30.0 to 51.2)",
        "accuracy of the most frequent class 13.30 %",
    ]
