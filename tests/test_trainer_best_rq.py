"""Questions to BEST-RQ's trainer: eq. 1 over a whole step, masks, what is logged, processes, a killed training."""

import math

import pytest
import torch
from tiny_best_rq import build_best_rq_trainer, pretrain
from tiny_training import read_run, relative_difference, run_apart
from transformers.optimization import get_scheduler

from clearspeech.trainers.trainer_best_rq import BestRQTrainingArguments, target_statistics


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def counts_of(trainer, *batches):
    return trainer._get_num_items_in_batch(list(batches), torch.device("cpu"))


def test_the_loss_is_eq_1_over_the_tokens_that_the_step_masks(tmp_path):
    trainer = build_best_rq_trainer(tmp_path)
    batch = first_batch(trainer)
    loss, outputs = trainer.compute_loss(trainer.model, batch, True, counts_of(trainer, batch))
    assert counts_of(trainer, batch)["masked_tokens"] == outputs.masked_tokens.sum()
    log_probabilities = outputs.logits.log_softmax(dim=-1)
    chosen = [row[label] for row, label in zip(log_probabilities, outputs.labels)]
    torch.testing.assert_close(loss, -torch.stack(chosen).mean())
    torch.testing.assert_close(outputs.labels, trainer.model.quantize(*features(batch))[outputs.masked_tokens])
    halved = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts_of(trainer, batch, batch))
    torch.testing.assert_close(halved, loss / 2)


def features(batch):
    return batch["input_features"], batch["attention_mask"]


def test_masks_are_those_of_the_utterance_and_the_step(tmp_path):
    trainer = build_best_rq_trainer(tmp_path)
    batch = first_batch(trainer)
    mask = trainer.model.token_mask(batch["attention_mask"])
    masked = trainer.model.draw_masks(mask, trainer.mask_seeds(batch))
    row = {name: value[2:3] for name, value in batch.items()}
    assert torch.equal(trainer.model.draw_masks(mask[2:3], trainer.mask_seeds(row))[0], masked[2])
    assert bool(masked.any(dim=1).all()) and not masked[~mask].any()
    assert 0.5 < float(masked[mask].float().mean()) < 0.7
    trainer.state.global_step = 1
    assert not torch.equal(trainer.model.draw_masks(mask, trainer.mask_seeds(batch)), masked)


def test_two_micro_batches_and_two_processes_are_one_batch(tmp_path):
    """The same weights and log, but for rounding, after three steps of plain gradient descent."""
    arguments = dict(task=pretrain, num_rows=16, max_steps=3, optim="sgd", learning_rate=0.3, max_grad_norm=1e6)
    one, two, apart = (str(tmp_path / name) for name in ("one", "two", "apart"))
    assert run_apart(output_dir=one, per_device_train_batch_size=8, **arguments) == [0]
    halves = dict(per_device_train_batch_size=4)
    assert run_apart(output_dir=two, gradient_accumulation_steps=2, **halves, **arguments) == [0]
    assert run_apart(num_processes=2, output_dir=apart, **halves, **arguments) == [0, 0]
    weights, log = read_run(one)
    for folder in (two, apart):
        ours, our_log = read_run(folder)
        assert relative_difference(ours, weights) < 1e-4
        for line, expected in zip(our_log, log, strict=True):
            for name in ("loss", "accuracy", "target_entropy", "target_perplexity", "target_usage"):
                assert line[name] == pytest.approx(expected[name], rel=1e-3)


def test_prediction_improves_and_figures_are_logged(tmp_path):
    trainer = build_best_rq_trainer(tmp_path, max_steps=60, learning_rate=1e-2, logging_steps=10)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[-1]["loss"] < lines[-1]["target_entropy"] < lines[0]["loss"]
    assert lines[-1]["accuracy"] > lines[0]["accuracy"]
    for line in lines:
        assert line["target_perplexity"] == pytest.approx(math.exp(line["target_entropy"]), rel=1e-3)
        assert 0 < line["target_usage"] <= 100


def test_entropy_is_that_of_the_counts():
    """A quarter, a quarter, a half."""
    ours = target_statistics(torch.tensor([2, 2, 4, 0]))
    entropy = 0.5 * math.log(4) + 0.5 * math.log(2)
    assert ours == pytest.approx(
        {"target_entropy": entropy, "target_perplexity": math.exp(entropy), "target_usage": 75.0}
    )


def test_validation_counts_each_row_once_and_asks_the_same_each_time(tmp_path):
    metrics = []
    for size in (5, 2):
        trainer = build_best_rq_trainer(tmp_path / str(size), per_device_eval_batch_size=size)
        trainer.state.global_step = size
        metrics.append(trainer.evaluate())
    names = {"loss", "accuracy", "target_entropy", "target_perplexity", "target_usage"}
    assert metrics[0].keys() - {"epoch"} == {f"eval_{name}" for name in names}
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)


def test_validation_is_not_counted_among_the_targets_of_training(tmp_path):
    trainer = build_best_rq_trainer(tmp_path)
    trainer.evaluate()
    assert trainer._code_counts is None


def test_every_weight_moves_and_the_quantizer_rests(tmp_path):
    trainer = build_best_rq_trainer(tmp_path, weight_decay=0.0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    still = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert still == {"quantizer.projection", "quantizer.codebook"}


@pytest.mark.parametrize("killed_after", [3])
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(killed_after, tmp_path):
    arguments = dict(task=pretrain, max_steps=5, save_strategy="steps", save_steps=2, dropout=0.1)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    assert run_apart(output_dir=whole, **arguments) == [0]
    assert run_apart(output_dir=killed, killed_after=killed_after, **arguments) == [-9]
    assert run_apart(output_dir=killed, resume=True, **arguments) == [0]
    assert relative_difference(read_run(killed)[0], read_run(whole)[0]) == 0.0


def test_the_schedule_is_noams():
    """As SpeechBrain has it: `lr * sqrt(warmup) * min(step ** -0.5, step * warmup ** -1.5)`, steps from 1."""
    args = BestRQTrainingArguments(output_dir="unused", use_cpu=True)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (8e-4, 0.01, 10.0)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.98, 1e-9)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    warmup = args.get_warmup_steps(300_000)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps=warmup).lr_lambdas[0]
    assert warmup == 25_000
    for step in (1, 100, 25_000, 25_001, 100_000, 300_000):
        noam = warmup**0.5 * min(step**-0.5, step * warmup**-1.5)
        assert schedule(step) == pytest.approx(noam, rel=1e-6)
