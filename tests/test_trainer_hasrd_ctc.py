"""Questions to the trainer of the recognizer: its loss, its divisors, what is trained, two processes, a killed run."""

import pytest
import torch
from rapidfuzz.distance import Levenshtein
from tiny_hasrd_ctc import build_ctc_trainer, train_recognizer
from tiny_training import read_run, relative_difference, run_apart

from clearspeech.modeling.modeling_hasrd_ctc import HasrdForCTC


def counts_of(trainer, *batches):
    return trainer._get_num_items_in_batch(list(batches), torch.device("cpu"))


def trained_weights(folder):
    """What a run has changed, and its log."""
    weights, lines = read_run(folder)
    return {name: value for name, value in weights.items() if not name.startswith("encoder.")}, lines


def test_the_loss_is_ctc_per_label_of_the_whole_step(tmp_path):
    trainer = build_ctc_trainer(tmp_path, per_device_train_batch_size=4)
    first, second, *_ = trainer.get_train_dataloader()
    counts = counts_of(trainer, first, second)
    together = sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts) for batch in (first, second))
    trainer.model.eval()
    total = num_labels = 0
    for batch in (first, second):
        for row in range(4):  # one by one, by PyTorch's own loss
            labels = batch["labels"][row][batch["labels"][row] != -100]
            frames = int(batch["attention_mask"][row].sum())
            features = batch["input_features"][row, None, :frames]
            with torch.no_grad():
                log_probabilities = trainer.model(features).logits[0].log_softmax(dim=-1)
            lengths = (len(log_probabilities),), (len(labels),)
            cost = torch.nn.functional.ctc_loss(log_probabilities, labels, *lengths, reduction="sum")
            total += float(cost) if cost.isfinite() else 0.0
            num_labels += len(labels)
    assert counts["labels"] == num_labels
    assert float(together.detach()) == pytest.approx(total / num_labels, rel=1e-4)


def test_the_recognizer_and_the_layers_weights_are_trained_and_what_is_measured_is_not(tmp_path):
    trainer = build_ctc_trainer(tmp_path, representation="layers")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name.split(".")[0] for name, value in trainer.model.state_dict().items() if (value != before[name]).any()}
    assert moved == {"lstm", "head", "layer_weights"}


def test_gradients_have_no_bound_as_in_the_paper(tmp_path, monkeypatch):
    trainer, bounds = build_ctc_trainer(tmp_path, max_steps=1), []
    clip = trainer.accelerator.clip_grad_norm_
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *given: bounds.append(given[1]) or clip(*given))
    trainer.train()
    assert bounds == [float("inf")]  # Transformers measures the norm so


def test_the_semantic_book_is_not_trained_and_still_belongs_to_its_encoder(tmp_path):
    trainer = build_ctc_trainer(tmp_path, representation="combined")
    before = {name: value.clone() for name, value in trainer.model.codec.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.codec.state_dict().items())
    assert trainer.model.codec.encoder_fingerprint().startswith("layer 1 of ")


def test_a_few_utterances_are_learned_by_heart(tmp_path):
    trainer = build_ctc_trainer(
        tmp_path, representation="features", num_rows=5, max_steps=60, learning_rate=3e-2, lr_scheduler_type="linear"
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.4 * before["eval_loss"] and after["eval_cer"] < 0.7 * before["eval_cer"]


def test_validation_counts_each_row_once_whatever_the_batches(tmp_path):
    figures = [build_ctc_trainer(tmp_path, per_device_eval_batch_size=size).evaluate() for size in (1, 5)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    trainer = build_ctc_trainer(tmp_path)
    edits = num_labels = 0
    for row in trainer.eval_dataset:
        batch = trainer.data_collator([row])
        written = trainer.model.generate(batch["input_features"], batch["attention_mask"])[0]
        edits += Levenshtein.distance(written.tolist(), batch["labels"][0].tolist())
        num_labels += len(batch["labels"][0])
    assert figures[0]["eval_cer"] == pytest.approx(100 * edits / num_labels)


@pytest.mark.parametrize("representation", ["layers", "combined", "features"])
def test_representations_that_are_kept_train_the_same_and_are_computed_once(representation, tmp_path, monkeypatch):
    losses, seen = [], []
    represent = HasrdForCTC.represent

    def watched(model, **inputs):
        seen.append(len(inputs["attention_mask"]))
        return represent(model, **inputs)

    for kept in (False, True):
        if kept:
            monkeypatch.setattr(HasrdForCTC, "represent", watched)
        arguments = dict(keep_representations=kept, max_steps=6, per_device_train_batch_size=4)
        trainer = build_ctc_trainer(tmp_path, representation=representation, **arguments)
        trainer.train()
        trainer.evaluate()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert sum(seen) == 12  # each row of two epochs and of the validation


def test_two_processes_and_two_accumulated_batches_are_one_large_batch(tmp_path):
    arguments = dict(task=train_recognizer, num_rows=16, max_steps=2, optim="sgd", learning_rate=0.1)
    runs = {
        "one": dict(per_device_train_batch_size=8),
        "two": dict(per_device_train_batch_size=4, num_processes=2),
        "accumulated": dict(per_device_train_batch_size=4, gradient_accumulation_steps=2),
    }
    for name, fields in runs.items():
        codes = run_apart(output_dir=str(tmp_path / name), **arguments | fields)
        assert set(codes) == {0}
    weights, lines = trained_weights(tmp_path / "one")
    for name in ("two", "accumulated"):
        others, other_lines = trained_weights(tmp_path / name)
        assert relative_difference(others, weights) < 1e-4
        assert [line["loss"] for line in other_lines] == pytest.approx([line["loss"] for line in lines], rel=1e-4)


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    arguments = dict(task=train_recognizer, max_steps=6, save_strategy="steps", save_steps=2, dropout=0.1)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    assert run_apart(output_dir=whole, **arguments) == [0]
    assert run_apart(output_dir=killed, killed_after=3, **arguments) == [-9]
    assert run_apart(output_dir=killed, resume=True, **arguments) == [0]
    assert relative_difference(trained_weights(killed)[0], trained_weights(whole)[0]) == 0.0
