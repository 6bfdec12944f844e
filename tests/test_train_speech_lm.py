"""The recipe that trains a SpeechLM, from a folder of speech and one of units to a folder that transcribes."""

import json
from pathlib import Path

import pytest
import torch
from tiny_corpora import encode, make_tone, use_own_cache, write_folder
from tiny_training import TEXT_CONFIG, save_text_model
from transformers import AutoModelForCausalLM, Qwen2Config, pipeline

from clearspeech import SpeechLMForCausalLM
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor

LETTERS = "abcdefghijkl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import train_speech_lm

    return train_speech_lm


@pytest.fixture
def speech_folder(tmp_path) -> str:
    """Six utterances of 0.2 to 0.7 s for training, two for validation, with text and emotion."""
    for split, numbers in (("train", range(6)), ("validation", range(2))):
        files = {f"{number}.wav": encode(make_tone(0.2 + 0.1 * number)) for number in numbers}
        rows = [f"{number}.wav,{LETTERS[number]},{('sad', 'calm')[number % 2]}" for number in numbers]
        write_folder(tmp_path / "speech" / split, files, "file_name,text,emotion", *rows)
    return str(tmp_path / "speech")


@pytest.fixture
def flags(tmp_path, tiny_folder, tokenizer) -> list[str]:
    """Two steps of a tiny text model on a tiny StableToken's units."""
    fields = TEXT_CONFIG.to_dict() | {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    text_model = save_text_model(tmp_path / "text", Qwen2Config(**fields))
    tokenizer.save_pretrained(text_model)
    options = dict(text_model=text_model, units=tiny_folder, output_dir=tmp_path / "trained", max_steps=2)
    options |= dict(per_device_train_batch_size=4, report_to="none", use_cpu=True, from_scratch=False, eval_steps=1)
    return ["--preset", "mini", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def logged(tmp_path, name: str) -> list[float]:
    history = json.loads((max((tmp_path / "trained").glob("checkpoint-*")) / "trainer_state.json").read_text())
    return [line[name] for line in history["log_history"] if name in line]


def test_the_folder_that_it_leaves_transcribes(recipe, flags, speech_folder, tmp_path):
    recipe.main([*flags, "--dataset", speech_folder, "--evaluation_wer_rows", "2", "--save_steps", "1"])
    assert len(logged(tmp_path, "eval_wer")) == 2 and min(logged(tmp_path, "eval_text")) > 0
    transcribe = pipeline("automatic-speech-recognition", model=str(tmp_path / "trained"), device="cpu")
    assert isinstance(transcribe(make_tone(0.5), max_new_tokens=5)["text"], str)
    with pytest.raises(FileExistsError, match="pass --resume"):
        recipe.main([*flags, "--dataset", speech_folder])


def test_tasks_are_mixed_by_their_weights_and_told_apart_by_prompts(recipe, flags, speech_folder, tmp_path):
    mixed = ["--dataset", speech_folder, "--emotion_dataset", speech_folder, "--task_weights", "1", "3"]
    recipe.main([*flags, *mixed, "--speeds", "1.0"])
    assert SpeechLMProcessor.from_pretrained(tmp_path / "trained").tasks == ("asr", "emotion")
    arguments, args = recipe.parse_arguments([*flags, *mixed, "--speeds", "1.0"])
    processor = SpeechLMProcessor.from_pretrained(tmp_path / "trained")
    given = arguments, processor, "train", 128, tmp_path / "trained" / "units", args.seed
    sequences = recipe.load_sequences(*given)
    answers = [processor.decode(row["input_ids"][row["num_prompt"] :]) for row in sequences]
    emotions = sum(answer in ("sad", "calm") for answer in answers)
    assert min(sequences["num_prompt"]) > 0
    assert emotions > len(answers) - emotions >= 6  # all transcripts, and emotions more often


def test_adapters_leave_a_merged_folder(recipe, flags, speech_folder, tmp_path):
    recipe.main([*flags, "--dataset", speech_folder, "--lora", "--lora_rank", "2"])
    assert (tmp_path / "trained" / "adapter" / "adapter_model.safetensors").exists()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "trained")) is SpeechLMForCausalLM


def test_a_text_model_in_half_precision_is_trained_in_full(recipe, flags, speech_folder, tmp_path):
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    text.to(torch.bfloat16).save_pretrained(tmp_path / "text")
    for from_scratch in ("True", "False"):
        place = ["--output_dir", str(tmp_path / from_scratch), "--unit_cache", str(tmp_path / "units")]
        recipe.main([*flags, "--dataset", speech_folder, "--from_scratch", from_scratch, *place])
        assert AutoModelForCausalLM.from_pretrained(tmp_path / from_scratch).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--max_seconds", "0.25", "--text_model", "TEXT"], "context of 3 tokens"),
        (
            ["--emotion_dataset", "DATA", "--task_weights", "1"],
            r"Got 1 --task_weights for the tasks \['asr', 'emotion'\]",
        ),
        (["--emotion_dataset", "DATA", "--task_weights", "1", "0"], r"must be above 0; got \[1.0, 0.0\]"),
        (["--lora", "--from_scratch", "True"], "pass --from_scratch False"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe, flags, speech_folder, tokenizer, tmp_path, change, message):
    short = save_text_model(
        tmp_path / "short",
        Qwen2Config(**TEXT_CONFIG.to_dict() | {"vocab_size": len(tokenizer), "max_position_embeddings": 3}),
    )
    tokenizer.save_pretrained(short)
    change = [{"TEXT": short, "DATA": speech_folder}.get(part, part) for part in change]
    with pytest.raises(ValueError, match=message):
        recipe.main([*flags, "--dataset", speech_folder, *change])


def test_units_and_a_corpus_must_be_given(recipe):
    with pytest.raises(ValueError, match="Got no --units"):
        recipe.parse_arguments(["--output_dir", "unused", "--dataset", "embedded"])
    with pytest.raises(ValueError, match="neither --dataset nor --emotion_dataset"):
        recipe.parse_arguments(["--output_dir", "unused", "--preset", "mini"])


def test_the_paper_is_the_default(recipe):
    paper, args = recipe.parse_arguments(["--output_dir", "unused", "--dataset", "embedded", "--units", "units"])
    assert (paper.text_model, paper.speeds) == ("openai-community/gpt2-medium", [1.0, 0.9, 1.1])
    assert (args.learning_rate, args.num_train_epochs, args.weight_decay, args.warmup_steps) == (3e-4, 10, 0, 0)
    assert (args.speech_loss, args.distillation_weight, args.smoothing, args.temperature) == ("sld", 0.008, 0.1, 1)
    assert (args.time_masking, args.kl_positions, args.kl_reduction) == (0.3, "speech", "batch")
    assert 8 * args.per_device_train_batch_size == 64
