"""Questions to SpeechLM's trainer: eq. 1 to 6, time masking, what is logged, a killed training."""

import math

import pytest
import torch
from tiny_training import build_trainer, read_run, relative_difference, run_apart

from clearspeech.trainers import trainer_speech_lm
from clearspeech.trainers.losses import smoothed_label_divergence
from clearspeech.trainers.trainer_speech_lm import SpeechLMTrainingArguments

METHOD = "speech_lm"
TERMS = {
    "none": {"text"},
    "ce": {"text", "speech"},
    "label_smoothing": {"text", "speech"},
    "kl": {"text", "divergence"},
    "sld": {"text", "speech", "divergence"},
}


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def counts_of(trainer, batch):
    return trainer._get_num_items_in_batch([batch], torch.device("cpu"))


def slow_target(label: int, num_units: int, smoothing: float, temperature: float) -> torch.Tensor:
    """q' of eq. 5, all values of it."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(label), num_units).double()
    return ((1 - smoothing) * one_hot + smoothing / num_units).div(temperature).softmax(dim=0)


@torch.no_grad()
def slow_terms(trainer, batch):
    """Eq. 1, 2 and 4, utterance by utterance and token by token."""
    config, args = trainer.model.config, trainer.args
    sums = {"text": 0.0, "speech": 0.0, "divergence": 0.0}
    counts = {"text": 0, "speech": 0, "distilled": 0, "utterances": 0}
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
        length = int(mask.sum())
        logits = trainer.model(ids[None, :length]).logits[0].double()
        counts["utterances"] += 1
        for position in range(1, length):
            label, before = int(labels[position]), logits[position - 1]
            if label == -100:
                continue
            loss = -before.log_softmax(dim=0)[label]
            if args.speech_loss == "label_smoothing" and label >= config.speech_end_token_id:
                loss = (1 - args.smoothing) * loss - args.smoothing * before.log_softmax(dim=0).mean()
            kind = "text" if label <= config.text_end_token_id else "speech"
            sums[kind] += loss
            counts[kind] += 1
            unit = label - config.first_unit_token_id
            if unit < 0 and args.kl_positions == "speech":
                continue
            counts["distilled"] += 1
            target = slow_target(max(unit, 0), config.num_speech_units, args.smoothing, args.temperature)
            ours = before[config.first_unit_token_id :].log_softmax(dim=0)
            sums["divergence"] += args.temperature**2 * (target * (target.log() - ours)).sum()
    divisor = "utterances" if args.kl_reduction == "batch" else "distilled"
    return {
        "text": sums["text"] / counts["text"],
        "speech": sums["speech"] / counts["speech"],
        "divergence": sums["divergence"] / counts[divisor],
    }


@pytest.mark.parametrize("speech_loss", TERMS)
def test_the_terms_are_the_papers_equations(tmp_path, speech_loss):
    trainer = build_trainer(METHOD, tmp_path, speech_loss=speech_loss)
    trainer.model.eval()
    batch = first_batch(trainer)
    terms, _ = trainer.terms(trainer.model, batch, counts_of(trainer, batch))
    expected = slow_terms(trainer, batch)
    assert terms.keys() == TERMS[speech_loss]
    for name, (weight, value) in terms.items():
        assert value.item() == pytest.approx(float(expected[name]), rel=1e-4), name
        assert weight == (0.008 if name == "divergence" else 1.0)


@pytest.mark.parametrize("fields", [{"kl_positions": "reference"}, {"kl_reduction": "token"}, {"temperature": 0.1}])
def test_the_divergence_follows_positions_reduction_and_temperature(tmp_path, fields):
    trainer = build_trainer(METHOD, tmp_path, **fields)
    trainer.model.eval()
    batch = first_batch(trainer)
    terms, _ = trainer.terms(trainer.model, batch, counts_of(trainer, batch))
    assert terms["divergence"][1].item() == pytest.approx(float(slow_terms(trainer, batch)["divergence"]), rel=1e-4)


def test_without_a_speech_loss_the_loss_is_the_models_own_with_speech_masked(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, speech_loss="none", time_masking=0.0)
    batch = first_batch(trainer)
    masked = batch["labels"].masked_fill(batch["labels"] >= trainer.model.config.speech_end_token_id, -100)
    own = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=masked).loss
    ours = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts_of(trainer, batch))
    torch.testing.assert_close(ours, own)


def test_logits_taken_in_parts_give_the_same_loss_and_gradients(tmp_path, monkeypatch):
    trainer = build_trainer(METHOD, tmp_path, time_masking=0.0)
    batch = first_batch(trainer)
    gradients = []
    for limit in (trainer_speech_lm.LOGITS_AT_ONCE["cpu"], 300):
        monkeypatch.setitem(trainer_speech_lm.LOGITS_AT_ONCE, "cpu", limit)
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts_of(trainer, batch))
        gradients.append([loss, *torch.autograd.grad(loss, list(trainer.model.parameters()))])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole)


def test_the_released_codes_target_is_nearly_uniform():
    """Two probabilities at the paper's sizes, and the sum that `F.kl_div` gives with all 6000 of them."""
    torch.manual_seed(0)
    target = slow_target(7, 6000, smoothing=0.1, temperature=1.0)
    assert float(target[7]) == pytest.approx(4.098e-4, rel=1e-3)
    assert float(target[8]) == pytest.approx(1.666e-4, rel=1e-3)
    assert float(-(target * target.log()).sum()) == pytest.approx(8.6994, abs=1e-4)

    logits, units = torch.randn(2, 3, 6000), torch.randint(6000, (2, 3))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    targets = torch.stack([slow_target(int(unit), 6000, 0.1, 1.0) for unit in units[mask]])
    expected = torch.nn.functional.kl_div(logits[mask].double().log_softmax(dim=-1), targets, reduction="sum")
    assert float(smoothed_label_divergence(logits, units, mask)) == pytest.approx(float(expected), rel=1e-4)


def test_a_sharp_temperature_leaves_the_label_more_than_half():
    logits = torch.zeros(1, 6000, requires_grad=True)
    smoothed_label_divergence(logits, torch.tensor([7]), torch.tensor([True]), 0.1, temperature=0.1).backward()
    target = 1 / 6000 - logits.grad[0] / 0.1**2  # the gradient is p - q', times the temperature squared
    assert float(target[7]) == pytest.approx(0.57, abs=0.01)
    assert float(target.sum()) == pytest.approx(1.0, abs=1e-4)


def test_the_divergence_of_the_target_from_itself_is_zero():
    target = slow_target(3, 50, smoothing=0.1, temperature=0.5).log().float()[None, None]
    value = smoothed_label_divergence(target, torch.tensor([[3]]), torch.tensor([[True]]), 0.1, 0.5)
    assert abs(float(value)) < 1e-6


def test_time_masking_hides_three_in_ten_inputs_while_training_only(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, num_rows=200, per_device_train_batch_size=200)
    batch = first_batch(trainer)
    real = batch["attention_mask"].bool()
    hidden = trainer.mask_time(batch) != batch["input_ids"]
    assert not hidden[~real].any()
    assert hidden[real].float().mean() == pytest.approx(0.3, abs=0.05)
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    trainer.evaluate()
    assert [int((ids != 0).sum()) for ids in seen] == [sum(trainer.eval_dataset["num_tokens"])]


def test_what_time_masking_hides_depends_on_the_row_not_on_its_batch(tmp_path):
    trainer = build_trainer(METHOD, tmp_path)
    rows = [trainer.train_dataset[row] for row in range(4)]
    together = trainer.mask_time(trainer.data_collator(rows))
    for index, row in enumerate(rows):
        alone = trainer.mask_time(trainer.data_collator([row]))[0]
        torch.testing.assert_close(together[index, : len(alone)], alone)
    trainer.state.global_step = 1
    assert not torch.equal(trainer.mask_time(trainer.data_collator(rows)), together)


def test_the_logged_loss_is_the_weighted_sum_of_the_logged_terms(tmp_path):
    trainer = build_trainer(METHOD, tmp_path)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 5
    for line in lines:
        assert line["loss"] == pytest.approx(line["text"] + line["speech"] + 0.008 * line["divergence"], rel=1e-3)


def test_evaluation_counts_every_row_once(tmp_path):
    """Five rows in batches of two: a mean over tokens, not over batches."""
    trainer = build_trainer(METHOD, tmp_path, per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    batch = trainer.data_collator([trainer.eval_dataset[row] for row in range(5)])
    trainer.model.eval()
    for name, value in slow_terms(trainer, batch).items():
        assert metrics[f"eval_{name}"] == pytest.approx(float(value), rel=1e-4)


def test_it_learns_to_read_units(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, max_steps=60, learning_rate=1e-2, time_masking=0.0, logging_steps=60)
    before = trainer.evaluate()["eval_text"]
    trainer.train()
    assert trainer.evaluate()["eval_text"] < 0.7 * before
    assert before > 0.9 * math.log(52)


def test_a_killed_training_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path):
    arguments = dict(method=METHOD, max_steps=6, save_strategy="steps", save_steps=2, dropout=0.1)
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    assert run_apart(output_dir=whole, **arguments) == [0]
    assert run_apart(output_dir=stopped, killed_after=5, **arguments) == [-9]
    assert run_apart(output_dir=stopped, resume=True, **arguments) == [0]
    assert relative_difference(read_run(stopped)[0], read_run(whole)[0]) == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speech_loss": "mse"}, "mse"),
        ({"kl_positions": "text"}, "text"),
        ({"kl_reduction": "sum"}, "sum"),
        ({"time_masking": 1.0}, "1.0"),
        ({"smoothing": -0.1}, "-0.1"),
        ({"temperature": 0.0}, "0.0"),
    ],
)
def test_an_impossible_argument_is_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"{next(iter(fields))} must be .*{message}"):
        SpeechLMTrainingArguments(output_dir=str(tmp_path), **fields)
