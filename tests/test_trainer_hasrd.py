"""HASRD's trainer: its losses, two networks that learn in turns, one large batch in any division."""

import functools
import os
from pathlib import Path

import pytest
import torch
from tiny_hasrd import make_hasrd
from tiny_hasrd_training import TINY, build, run
from tiny_training import read_run, relative_difference, run_apart

from clearspeech.processing.collators import SpeechTextCollator
from clearspeech.processing.loudness import bring_to_level
from clearspeech.processing.segment_collator import SegmentCollator
from clearspeech.trainers import discriminator_training, trainer_hasrd
from clearspeech.trainers.codec_losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    multi_scale_mel_loss,
)
from clearspeech.trainers.codec_metrics import mel_distance, stft_distance
from clearspeech.trainers.discriminator_training import DISCRIMINATOR_WEIGHTS, DiscriminatorTraining
from clearspeech.trainers.trainer_hasrd import HasrdTrainer, HasrdTrainingArguments

TERMS = {"mel", "feature_matching", "generator", "commitment", "codebook"}
TOLERANCE = 1e-4


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def counts_of(trainer, *batches):
    return trainer._get_num_items_in_batch(list(batches), torch.device("cpu"))


def assert_equal_runs(ours, reference, tolerance=TOLERANCE):
    """Weights of both networks after five steps, and every logged figure."""
    weights, lines = read_run(ours)
    expected_weights, expected_lines = read_run(reference)
    trained = [name for name in weights if not name.startswith("encoder.")]
    pick = lambda values: {name: values[name] for name in trained if values[name].norm() > 1e-3}  # noqa: E731
    assert relative_difference(pick(weights), pick(expected_weights)) <= tolerance
    discriminators = [torch.load(Path(folder, "discriminators.pt")) for folder in (ours, reference)]
    assert relative_difference(*discriminators) <= tolerance
    assert len(lines) == len(expected_lines) == 5
    for line, expected in zip(lines, expected_lines):
        assert line.keys() == expected.keys() >= TERMS | {"discriminator", "usage/semantic", "perplexity/acoustic_3"}
        for name in expected.keys() - {"epoch"}:
            assert line[name] == pytest.approx(expected[name], rel=10 * tolerance, abs=1e-5), name


# --- the losses ---


def test_the_terms_are_dacs_and_the_loss_is_their_weighted_sum(tmp_path):
    trainer = build(tmp_path)
    batch = first_batch(trainer)
    counts = counts_of(trainer, batch)
    outputs = trainer.reconstruct(trainer.model, batch)
    waveforms, made, tokens = batch["waveforms"], outputs.audio_values, outputs.attention_mask.sum()
    terms = trainer.terms(waveforms, outputs, counts)
    real_maps, made_maps = trainer.discriminators.network(waveforms), trainer.discriminators.network(made)
    expected = {
        "mel": multi_scale_mel_loss(made, waveforms, TINY["mel_windows"], TINY["mel_bins"]),
        "feature_matching": feature_matching_loss(real_maps, made_maps),
        "generator": generator_loss(made_maps),
        "commitment": outputs.commitment_loss.sum() / tokens,
        "codebook": outputs.codebook_loss.sum() / tokens,
    }
    assert terms.keys() == expected.keys() == TERMS
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    weights = dict(mel=15.0, feature_matching=2.0, generator=1.0, commitment=0.25, codebook=1.0)
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    torch.testing.assert_close(loss, sum(weights[name] * value for name, value in expected.items()))


def test_the_discriminators_loss_sees_both_halves_as_if_alone(tmp_path):
    trainer = build(tmp_path)
    real, made = torch.randn(3, 800), torch.randn(3, 800)
    expected = discriminator_loss(trainer.discriminators.network(real), trainer.discriminators.network(made))
    ours = trainer.discriminators.loss(real, made, torch.tensor(3))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("term", sorted(TERMS))
def test_a_weight_of_zero_is_not_computed(term, tmp_path, monkeypatch):
    trainer = build(tmp_path, **{f"{term}_weight": 0.0})
    functions = dict(mel="multi_scale_mel_loss", generator="generator_loss", feature_matching="feature_matching_loss")
    if term in functions:
        module = trainer_hasrd if term == "mel" else discriminator_training
        monkeypatch.setattr(module, functions[term], lambda *_: pytest.fail("computed"))
    batch = first_batch(trainer)
    outputs = trainer.reconstruct(trainer.model, batch)
    assert trainer.terms(batch["waveforms"], outputs, counts_of(trainer, batch)).keys() == TERMS - {term}


def test_without_an_adversarial_weight_there_are_no_discriminators(tmp_path):
    trainer = build(tmp_path, generator_weight=0.0, feature_matching_weight=0.0, max_steps=1, save_strategy="steps")
    trainer.train()
    assert trainer.discriminators is None
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert {"mel", "commitment", "codebook"} <= line.keys() and "discriminator" not in line
    assert not Path(trainer.args.output_dir, "checkpoint-1", DISCRIMINATOR_WEIGHTS).exists()


def test_the_codec_learns_nothing_for_the_discriminators_and_they_nothing_for_it(tmp_path):
    trainer = build(tmp_path)
    batch = first_batch(trainer)
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts_of(trainer, batch)).backward()
    assert all(value.grad is None for value in trainer.discriminators.network.parameters())
    assert all(value.requires_grad for value in trainer.discriminators.network.parameters())


def test_silence_trains_without_nan(tmp_path):
    trainer = build(tmp_path, max_steps=2)
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"audio": 0 * row["audio"]})
    trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert all(line["loss"] > 0 for line in trainer.state.log_history if "loss" in line)


# --- one step ---


def test_the_discriminators_step_first_and_the_codec_learns_from_what_they_became(tmp_path, monkeypatch):
    trainer, seen = build(tmp_path, max_steps=1, learning_rate=1e-2), []
    untrained = {name: value.clone() for name, value in trainer.discriminators.network.state_dict().items()}
    judged = DiscriminatorTraining.codec_terms

    def watch(self, *given):
        seen.append({name: value.clone() for name, value in self.network.state_dict().items()})
        return judged(self, *given)

    monkeypatch.setattr(DiscriminatorTraining, "codec_terms", watch)
    trainer.train()
    assert len(seen) == 1 and any(not torch.equal(seen[0][name], value) for name, value in untrained.items())
    after = trainer.discriminators.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in seen[0].items())  # once in a step


def test_each_network_has_its_rate_its_bound_and_its_decay(tmp_path):
    options = dict(max_steps=3, learning_rate=1e-3, learning_rate_decay=0.5, discriminator_max_grad_norm=1e-6)
    trainer = build(tmp_path, **options)
    network = trainer.discriminators.network
    before = [value.clone() for value in network.parameters()]
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    assert trainer.discriminators.scheduler.get_last_lr()[0] == pytest.approx(1.25e-4)
    assert all(line["discriminator_grad_norm"] > 1e-3 for line in lines)  # before it is bounded
    moved = max(float((a - b).abs().max().detach()) for a, b in zip(before, network.parameters()))
    assert 0 < moved < 3e-3
    group = trainer.discriminators.optimizer.param_groups[0]
    assert group["betas"] == (0.8, 0.99) and group["weight_decay"] == 0.01


def test_a_warm_up_is_multiplied_by_the_decay(tmp_path):
    trainer = build(tmp_path, warmup_steps=4, learning_rate_decay=0.9, learning_rate=1.0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    scheduler = trainer.exponential_schedule(torch.optim.SGD([parameter], lr=1.0), 100)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    expected = [0.25, 0.5 * 0.9, 0.75 * 0.9**2, 0.9**3, 0.9**4, 0.9**5]
    assert rates == pytest.approx(expected)


def test_the_frozen_encoder_rests_without_dropout_and_all_else_moves(tmp_path):
    trainer = build(tmp_path, encoder="hubert", learning_rate=1e-2, max_steps=3)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    seen = []
    trainer.model.encoder.register_forward_hook(lambda module, *_: seen.append(module.training))
    trainer.train()
    still = {name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])}
    assert still == {name for name in before if name.startswith("encoder.")}
    assert seen and not any(seen)
    assert torch.equal(trainer.model.semantic_quantizer.codebook, make_hasrd("hubert").semantic_quantizer.codebook)


def test_a_bare_codecs_encoder_is_trained_along(tmp_path):
    trainer = build(tmp_path, encoder="front_end", freeze_encoder=False, learning_rate=1e-2)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    still = {name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])}
    assert still <= {"layer_weights"}  # of one layer
    assert trainer.book_names == ["acoustic_1", "acoustic_2", "acoustic_3"]


def test_reconstruction_improves_and_every_term_and_book_is_logged(tmp_path):
    trainer = build(tmp_path, max_steps=20, learning_rate=1e-2, logging_steps=5, generator_weight=0.1)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert TERMS | {"discriminator", "discriminator_grad_norm", "usage/acoustic_1"} <= lines[0].keys()
    assert lines[-1]["mel"] < 0.8 * lines[0]["mel"]
    assert 0 < lines[0]["usage/semantic"] <= 100 and 1 <= lines[0]["perplexity/semantic"] <= 12


def test_a_second_training_does_not_count_the_codes_of_the_first(tmp_path):
    trainer, counted = build(tmp_path, max_steps=2, logging_steps=100), []
    for _ in range(2):
        trainer.train()
        counted.append(int(trainer._code_counts[0].sum()))
    assert counted[0] == counted[1] > 0


# --- one large batch, in any division ---


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory):
    """The folder of five steps with batches of 8 in one process."""

    @functools.cache
    def folder():
        path = str(tmp_path_factory.mktemp("one_batch"))
        assert run_apart(task=run, output_dir=path, num_rows=40) == [0]
        return path

    return folder


def test_two_processes_give_the_losses_and_weights_of_one(one_batch, tmp_path):
    arguments = dict(output_dir=str(tmp_path), num_rows=40, per_device_train_batch_size=4)
    assert run_apart(2, task=run, **arguments) == [0, 0]
    assert_equal_runs(tmp_path, one_batch())


def test_accumulated_micro_batches_give_the_losses_and_weights_of_one_batch(one_batch, tmp_path):
    arguments = dict(output_dir=str(tmp_path), num_rows=40, per_device_train_batch_size=2)
    assert run_apart(task=run, gradient_accumulation_steps=4, **arguments) == [0]
    assert_equal_runs(tmp_path, one_batch())


def test_two_processes_accumulate_to_the_weights_of_one_batch(one_batch, tmp_path):
    arguments = dict(output_dir=str(tmp_path), num_rows=40, per_device_train_batch_size=2)
    assert run_apart(2, task=run, gradient_accumulation_steps=2, **arguments) == [0, 0]
    assert_equal_runs(tmp_path, one_batch())


def test_the_codec_does_not_depend_on_random_numbers_of_the_discriminators(tmp_path, monkeypatch):
    """Neither the processor's nor a GPU's."""
    trainer = build(tmp_path)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    before = torch.get_rng_state()
    ours, others = trainer.discriminators.network.state_dict(), trainer._build_discriminators().network.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, others[name]) for name, value in ours.items())


# --- quantizer dropout ---


def test_how_deep_an_utterance_is_quantized_depends_on_it_and_the_step_alone(tmp_path):
    """Not on its batch, nor on what else is drawn."""
    trainer = build(tmp_path)
    trainer.model.train()
    batch = first_batch(trainer)
    depths = trainer.draw_depths(batch["seeds"])
    assert depths.shape == (8,)
    alone = [trainer.draw_depths(batch["seeds"][row : row + 1]) for row in range(8)]
    assert torch.equal(torch.cat(alone), depths) and torch.equal(trainer.draw_depths(batch["seeds"]), depths)
    trainer.state.global_step = 1
    assert not torch.equal(trainer.draw_depths(batch["seeds"]), depths)


@pytest.mark.parametrize(("encoder", "fewest"), [("best_rq", 0), ("front_end", 1)])
def test_a_share_of_the_utterances_uses_fewer_books(encoder, fewest, tmp_path):
    """Half of them, from none beside a semantic book, else from one, to all three, all alike."""
    trainer = build(tmp_path, encoder=encoder, freeze_encoder=encoder == "best_rq")
    trainer.model.train()
    shares = trainer.draw_depths(torch.arange(4000)).bincount(minlength=4) / 4000
    each = 0.5 / (4 - fewest)
    expected = torch.tensor([each * (depth >= fewest) for depth in range(3)] + [each + 0.5])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_all_passes_of_a_step_use_the_same_books_and_validation_all_of_them(tmp_path, monkeypatch):
    trainer = build(tmp_path, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    seen = []
    trainer.model.acoustic_quantizer.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    trainer.train()
    first, second, third, *codec = seen  # the discriminators' step needs the other two before
    assert len(codec) == 2 and torch.equal(second, codec[0]) and torch.equal(third, codec[1])
    assert not torch.equal(torch.stack([first, second, third]), torch.full((3, 2), 3))
    seen.clear()
    trainer.evaluate()
    assert seen and all(depths is None for depths in seen)


# --- validation ---


def test_validation_is_the_mean_over_whole_utterances_each_once(tmp_path):
    expected = {"mel_distance": 0.0, "stft_distance": 0.0}
    trainer = build(tmp_path, per_device_eval_batch_size=2)
    trainer.model.eval()
    for row in trainer.eval_dataset:
        target = bring_to_level(row["audio"])
        features = trainer.processing_class([target.numpy()], sampling_rate=16000, return_tensors="pt")
        codes = trainer.model.encode(**features).audio_codes
        made = trainer.model.decode(codes, num_samples=len(target)).audio_values
        expected["mel_distance"] += float(mel_distance(made, target[None])) / 5
        expected["stft_distance"] += float(stft_distance(made, target[None])) / 5
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == metrics["eval_mel_distance"]
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-4)
    again = build(tmp_path, per_device_eval_batch_size=5).evaluate()
    assert again["eval_mel_distance"] == pytest.approx(metrics["eval_mel_distance"], rel=1e-5)
    assert trainer.data_collator.segment_samples == 2048


def evaluate_in_processes(output_dir, **arguments):
    torch.save(build(output_dir, **arguments).evaluate(), Path(output_dir, f"{os.environ['RANK']}.pt"))


def test_two_processes_measure_what_one_does(tmp_path):
    assert run_apart(2, task=evaluate_in_processes, output_dir=str(tmp_path)) == [0, 0]
    ours, expected = torch.load(tmp_path / "0.pt"), build(tmp_path).evaluate()
    assert ours["eval_mel_distance"] == pytest.approx(expected["eval_mel_distance"], rel=1e-5)


# --- what cannot work ---


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fp16": True}, "fp16 scales one optimizer"),
        (
            {"lr_scheduler_type": "linear"},
            "decay by learning_rate_decay at every step; got lr_scheduler_type='linear'",
        ),
        ({"mel_weight": -1.0}, r"negative \['mel_weight'\]"),
        ({"learning_rate_decay": 0.0}, "learning_rate_decay lies in 0..1"),
        ({"freeze_encoder": False}, "The semantic book belongs to a frozen encoder"),
        ({"collator": SpeechTextCollator(None, 0)}, "got SpeechTextCollator"),
        ({"collator": SegmentCollator(None, 320, 4)}, "The collator's samples_per_token is 320, the codec's 512"),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "Persistent workers"),
        ({"discriminator_periods": [], "discriminator_fft_sizes": []}, "at least one of periods"),
    ],
)
def test_arguments_that_cannot_work_are_refused(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **fields)


def test_a_stream_is_refused(tmp_path):
    trainer = build(tmp_path)
    with pytest.raises(ValueError, match="streamed corpus"):
        HasrdTrainer(
            model=trainer.model,
            args=trainer.args,
            train_dataset=trainer.train_dataset.to_iterable_dataset(),
            data_collator=trainer.data_collator,
        )


@pytest.mark.parametrize("kind", ["deepspeed", "fsdp"])
def test_what_transformers_sets_up_for_one_network_is_refused(kind, tmp_path):
    trainer = build(tmp_path)
    setattr(trainer, f"is_{kind}_enabled", True)
    with pytest.raises(ValueError, match="builds one DeepSpeed engine and wraps one model in FSDP"):
        trainer._check_arguments()


def test_the_papers_values_are_the_defaults():
    args = HasrdTrainingArguments("unused")
    assert (args.learning_rate, args.adam_beta1, args.adam_beta2) == (1e-4, 0.8, 0.99)
    assert (args.learning_rate_decay, args.max_grad_norm, args.discriminator_max_grad_norm) == (0.999996, 1e3, 10)
    assert (args.max_steps, args.per_device_train_batch_size, args.freeze_encoder) == (100_000, 8, True)
    weights = (args.mel_weight, args.feature_matching_weight, args.generator_weight)
    assert (*weights, args.commitment_weight, args.codebook_weight) == (15, 2, 1, 0.25, 1)
    assert args.mel_windows == [32, 64, 128, 256, 512, 1024, 2048] and args.mel_bins[-1] == 320
    assert (args.discriminator_rates, args.discriminator_channel_factor) == ([], 1.0)
