"""Questions to adapters: what is trained, what is saved, that merging keeps the logits, a killed training."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_training import TEXT_CONFIG, build_trainer, read_run, relative_difference, run_apart, save_text_model
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from clearspeech import SpeechLMForCausalLM
from clearspeech.trainers.adapters import add_adapters, merge_adapters, save_merged

NUM_UNITS = 20
TEXT_CONFIGS = {
    "gpt2": GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0),
    "qwen2, tied": TEXT_CONFIG,
    "qwen2, untied": Qwen2Config(**TEXT_CONFIG.to_dict() | {"tie_word_embeddings": False}),
}


@dataclass
class Training:
    """Five steps: the text model's folder, the output folder, the model with its adapters."""

    text_model: str
    folder: Path
    adapted: PeftModel

    @property
    def is_tied(self) -> bool:
        return self.adapted.config.tie_word_embeddings

    def merged(self) -> SpeechLMForCausalLM:
        return AutoModelForCausalLM.from_pretrained(self.folder).eval()


@pytest.fixture(scope="module", params=TEXT_CONFIGS.values(), ids=TEXT_CONFIGS)
def training(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    text_model = save_text_model(folder / "text", request.param)
    trainer = build_trainer("speech_lm", folder / "trained", text_model=text_model, num_rows=40)
    trainer.train()
    save_merged(trainer, text_model)
    return Training(text_model, folder / "trained", trainer.model.eval())


def tables(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def test_text_rows_rest_bit_by_bit_and_new_rows_move(training):
    """But the embedding of `<text_end>`, which nothing follows, moves only with a head that is tied to it."""
    text = AutoModelForCausalLM.from_pretrained(training.text_model)
    start = build_trainer("speech_lm", training.folder, text_model=training.text_model, num_rows=40).model
    rows = text.config.vocab_size
    for ours, theirs, before in zip(tables(training.merged()), tables(text), tables(start)):
        assert ours[:rows].equal(theirs)
        assert (ours[rows + 1 :] != before[rows + 1 :]).any(dim=1).all()


def test_all_linear_layers_have_adapters_and_nothing_else_of_the_text_model_is_trained(training):
    trained = {name for name, weight in training.adapted.named_parameters() if weight.requires_grad}
    linear = {
        name.removesuffix(".base_layer")
        for name, _ in training.adapted.named_modules()
        if name.endswith(".base_layer") and "token_adapter" not in name
    }
    assert len(linear) == 2 * (4 if training.adapted.config.text_config.model_type == "gpt2" else 7)
    adapters = {f"{name}.lora_{part}.default.weight" for name in linear for part in "AB"}
    new_rows = {name for name in trained if "trainable_tokens" in name}
    assert trained == adapters | new_rows
    assert len(new_rows) == (1 if training.is_tied else 2)


def test_the_adapters_folder_holds_the_new_rows(training):
    saved = load_file(training.folder / "adapter" / "adapter_model.safetensors")
    rows = [value for name, value in saved.items() if "trainable_tokens" in name]
    assert [tuple(value.shape) for value in rows] == [(NUM_UNITS + 2, 32)] * (1 if training.is_tied else 2)
    assert all("trainable_tokens" in name or "lora" in name for name in saved)


def test_the_merged_model_is_a_plain_one_with_the_same_logits(training):
    ids = torch.randint(training.adapted.config.vocab_size, (2, 9))
    merged = training.merged()
    assert type(merged) is SpeechLMForCausalLM
    torch.testing.assert_close(merged(ids).logits, training.adapted(input_ids=ids).logits)
    embedding, head = tables(merged)
    assert (embedding is head) == training.is_tied
    assert merged.generation_config.eos_token_id == merged.config.text_end_token_id


def test_adapters_merge_into_their_text_model_later_on(training):
    merged = merge_adapters(training.text_model, training.folder / "adapter")
    assert relative_difference(merged.state_dict(), training.merged().state_dict()) == 0.0


def test_adapters_do_not_merge_into_a_text_model_of_another_vocabulary(training, tmp_path):
    other = save_text_model(tmp_path, Qwen2Config(**TEXT_CONFIG.to_dict() | {"vocab_size": 31}))
    with pytest.raises(ValueError, match="for a text model of 30 rows; .* has 31"):
        merge_adapters(other, training.folder / "adapter")


def test_a_text_model_in_half_precision_gets_adapters_in_full(tmp_path):
    """An update below a half-precision weight's last bit would be lost."""
    folder = save_text_model(tmp_path)
    model = add_adapters(SpeechLMForCausalLM.from_text_model(folder, NUM_UNITS, dtype=torch.bfloat16), rank=4)
    kinds = {(weight.requires_grad, weight.dtype) for weight in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_rank_below_one_is_refused(tmp_path):
    model = SpeechLMForCausalLM.from_text_model(save_text_model(tmp_path), NUM_UNITS)
    with pytest.raises(ValueError, match="rank of at least 1; got 0"):
        add_adapters(model, rank=0)


def test_a_killed_training_of_adapters_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path):
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    arguments = dict(method="speech_lm", text_model=save_text_model(tmp_path / "text"), save_strategy="steps")
    assert run_apart(output_dir=whole, save_steps=2, **arguments) == [0]
    assert run_apart(output_dir=stopped, save_steps=2, killed_after=3, **arguments) == [-9]
    assert run_apart(output_dir=stopped, save_steps=2, resume=True, **arguments) == [0]
    assert relative_difference(read_run(stopped)[0], read_run(whole)[0]) == 0.0


def test_the_best_adapters_are_the_ones_saved(tmp_path):
    """With a loss that falls, and more taken for better, those of the first evaluation."""
    text_model = save_text_model(tmp_path / "text")
    evaluation = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    best = dict(load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True)
    trainer = build_trainer("speech_lm", tmp_path / "trained", text_model=text_model, **evaluation, **best)
    trainer.train()
    save_merged(trainer, text_model)
    folders = (f"checkpoint-{trainer.state.best_global_step}", "adapter")
    kept, saved = (load_file(tmp_path / "trained" / folder / "adapter_model.safetensors") for folder in folders)
    assert trainer.state.best_global_step < 5
    assert relative_difference(saved, kept) == 0.0
