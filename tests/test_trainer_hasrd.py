"""HASRD's trainer: its losses, two networks that learn in turns, one large batch in any division, resuming."""

import functools
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_hasrd import make_hasrd
from tiny_training import ARGUMENTS, KillAfterStep, read_run, relative_difference, run_apart, speech_corpus
from transformers import Wav2Vec2FeatureExtractor

from clearspeech import HasrdModel
from clearspeech.processing.collators import SpeechTextCollator
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.processing.segment_collator import SegmentCollator
from clearspeech.trainers import trainer_hasrd
from clearspeech.trainers.codec_losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    multi_scale_mel_loss,
)
from clearspeech.trainers.codec_metrics import mel_distance, stft_distance
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_hasrd import HasrdTrainer, HasrdTrainingArguments

TINY = dict(
    mel_windows=[64, 256],
    mel_bins=[10, 20],
    discriminator_periods=[2, 3],
    discriminator_fft_sizes=[128],
    discriminator_channel_factor=1 / 32,
    warmup_steps=0,
)
TERMS = {"mel", "feature_matching", "generator", "commitment", "codebook"}
TOLERANCE = 1e-4


def build(
    output_dir, num_rows=12, encoder="best_rq", config_fields=None, segment_samples=2048, collator=None, **arguments
) -> HasrdTrainer:
    """A trainer with the same random weights each time, on segments of an eighth of a second."""
    model = make_hasrd(encoder, **{"quantizer_dropout": 0.0, **(config_fields or {})})
    reads_waveforms = model.config.reads_waveforms
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True) if reads_waveforms else BestRQFeatureExtractor(8)
    speech = speech_corpus(num_rows)
    return HasrdTrainer(
        model=model,
        args=HasrdTrainingArguments(**{**ARGUMENTS, **TINY, "output_dir": str(output_dir), **arguments}),
        train_dataset=speech,
        eval_dataset=speech.select(range(5)),
        data_collator=collator or collator_of(model, extractor, segment_samples),
        processing_class=extractor,
    )


def collator_of(model, extractor, segment_samples=2048, source_samples=None) -> SegmentCollator:
    config = model.config
    return SegmentCollator(
        extractor, config.samples_per_token, config.inputs_per_token, segment_samples, source_samples
    )


def run(output_dir, resume=False, killed_after=None, **arguments):
    """Train, save and leave the log and the discriminators, as a recipe does."""
    checkpoint = prepare_output_folder(output_dir, resume)
    trainer = build(output_dir, **arguments)
    if killed_after is not None:
        trainer.add_callback(KillAfterStep(killed_after))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.args.should_save:
        torch.save(trainer.discriminators.state_dict(), Path(output_dir, "discriminators.pt"))


def kill_while_saving(output_dir, saved_before, **arguments):
    """A SIGKILL in the middle of the checkpoint after `saved_before` whole ones, as the discriminators are written."""

    save, saved = trainer_hasrd.save_file, []

    def save_half(*given):
        saved.append(save(*given))
        if len(saved) > saved_before:
            os.truncate(given[1], 100)
            os.kill(os.getpid(), signal.SIGKILL)

    trainer_hasrd.save_file = save_half
    run(output_dir, **arguments)


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
    real_maps, made_maps = trainer.discriminators(waveforms), trainer.discriminators(made)
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
    expected = discriminator_loss(trainer.discriminators(real), trainer.discriminators(made))
    ours = trainer.discriminator_loss(trainer.discriminators, real, made, torch.tensor(3))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("term", sorted(TERMS))
def test_a_weight_of_zero_is_not_computed(term, tmp_path, monkeypatch):
    trainer = build(tmp_path, **{f"{term}_weight": 0.0})
    functions = dict(mel="multi_scale_mel_loss", generator="generator_loss", feature_matching="feature_matching_loss")
    if term in functions:
        monkeypatch.setattr(trainer_hasrd, functions[term], lambda *_: pytest.fail("computed"))
    batch = first_batch(trainer)
    outputs = trainer.reconstruct(trainer.model, batch)
    assert trainer.terms(batch["waveforms"], outputs, counts_of(trainer, batch)).keys() == TERMS - {term}


def test_without_an_adversarial_weight_there_are_no_discriminators(tmp_path):
    trainer = build(tmp_path, generator_weight=0.0, feature_matching_weight=0.0, max_steps=1, save_strategy="steps")
    trainer.train()
    assert trainer.discriminators is None
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert {"mel", "commitment", "codebook"} <= line.keys() and "discriminator" not in line
    assert not Path(trainer.args.output_dir, "checkpoint-1", trainer_hasrd.DISCRIMINATOR_WEIGHTS).exists()


def test_the_codec_learns_nothing_for_the_discriminators_and_they_nothing_for_it(tmp_path):
    trainer = build(tmp_path)
    batch = first_batch(trainer)
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts_of(trainer, batch)).backward()
    assert all(value.grad is None for value in trainer.discriminators.parameters())
    assert all(value.requires_grad for value in trainer.discriminators.parameters())


def test_silence_trains_without_nan(tmp_path):
    trainer = build(tmp_path, max_steps=2)
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"audio": 0 * row["audio"]})
    trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert all(line["loss"] > 0 for line in trainer.state.log_history if "loss" in line)


# --- one step ---


def test_the_discriminators_step_first_and_the_codec_learns_from_what_they_became(tmp_path, monkeypatch):
    trainer, seen = build(tmp_path, max_steps=1, learning_rate=1e-2), []
    untrained = {name: value.clone() for name, value in trainer.discriminators.state_dict().items()}
    judged = HasrdTrainer.adversarial_terms

    def watch(self, *given):
        seen.append({name: value.clone() for name, value in self.discriminators.state_dict().items()})
        return judged(self, *given)

    monkeypatch.setattr(HasrdTrainer, "adversarial_terms", watch)
    trainer.train()
    assert len(seen) == 1 and any(not torch.equal(seen[0][name], value) for name, value in untrained.items())
    after = trainer.discriminators.state_dict()
    assert all(torch.equal(after[name], value) for name, value in seen[0].items())  # once in a step


def test_each_network_has_its_rate_its_bound_and_its_decay(tmp_path):
    options = dict(max_steps=3, learning_rate=1e-3, learning_rate_decay=0.5, discriminator_max_grad_norm=1e-6)
    trainer = build(tmp_path, **options)
    before = [value.clone() for value in trainer.discriminators.parameters()]
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    assert trainer.discriminator_scheduler.get_last_lr()[0] == pytest.approx(1.25e-4)
    assert all(line["discriminator_grad_norm"] > 1e-3 for line in lines)  # before it is bounded
    moved = max(float((a - b).abs().max().detach()) for a, b in zip(before, trainer.discriminators.parameters()))
    assert 0 < moved < 3e-3
    group = trainer.discriminator_optimizer.param_groups[0]
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


def test_the_codec_does_not_depend_on_random_numbers_of_the_discriminators(tmp_path):
    """Dropout of books draws the same with discriminators and without."""
    weights = []
    for factor in (0.0, 1e-12):
        trainer = build(
            tmp_path / str(factor), generator_weight=factor, feature_matching_weight=0.0, max_steps=2,
            config_fields={"quantizer_dropout": 0.5}, learning_rate=1e-3,
        )  # fmt: skip
        torch.manual_seed(7)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert relative_difference(*[{name: each[name] for name in ("projection.weight",)} for each in weights]) < 1e-5


# --- checkpoints ---


@pytest.mark.parametrize("killed_after, steps", [(3, 6), (5, 6)])
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(killed_after, steps, tmp_path):
    """Both networks; three steps are an epoch and a half, and books drop out at random."""
    arguments = dict(max_steps=steps, save_strategy="steps", save_steps=2, config_fields={"quantizer_dropout": 0.5})
    arguments |= dict(learning_rate_decay=0.9)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    assert run_apart(task=run, output_dir=whole, **arguments) == [0]
    assert run_apart(task=run, output_dir=killed, killed_after=killed_after, **arguments) == [-9]
    assert run_apart(task=run, output_dir=killed, resume=True, **arguments) == [0]
    same = [read_run(folder)[0] for folder in (killed, whole)]
    assert all(torch.equal(value, same[1][name]) for name, value in same[0].items())
    discriminators = [torch.load(Path(folder, "discriminators.pt")) for folder in (killed, whole)]
    assert all(torch.equal(value, discriminators[1][name]) for name, value in discriminators[0].items())
    names = [trainer_hasrd.DISCRIMINATOR_OPTIMIZER, trainer_hasrd.DISCRIMINATOR_SCHEDULER, "optimizer.pt"]
    for name in names:
        states = [torch.load(Path(folder, f"checkpoint-{steps}", name)) for folder in (killed, whole)]
        assert str(states[0]) == str(states[1]), name


def test_a_kill_while_discriminators_are_written_leaves_the_checkpoint_before(tmp_path):
    arguments = dict(output_dir=str(tmp_path), max_steps=3, save_strategy="steps", save_steps=1)
    assert run_apart(task=kill_while_saving, saved_before=1, **arguments) == [-9]
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-1"]
    assert run_apart(task=run, resume=True, **arguments) == [0]


def test_two_processes_resume_to_the_weights_of_an_uninterrupted_run(tmp_path):
    arguments = dict(max_steps=4, per_device_train_batch_size=2, save_strategy="steps", save_steps=2, task=run)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    assert run_apart(2, output_dir=whole, **arguments) == [0, 0]
    assert run_apart(2, output_dir=killed, killed_after=3, **arguments) == [-9, -9]
    assert run_apart(2, output_dir=killed, resume=True, **arguments) == [0, 0]
    assert relative_difference(*[torch.load(Path(each, "discriminators.pt")) for each in (killed, whole)]) == 0.0
    ours, expected = (read_run(folder)[0] for folder in (killed, whole))
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())


def test_a_checkpoint_is_a_codec_with_its_discriminators_beside_it(tmp_path):
    trainer = build(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    saved = load_file(folder / trainer_hasrd.DISCRIMINATOR_WEIGHTS)
    assert saved.keys() == trainer.discriminators.state_dict().keys()
    model = HasrdModel.from_pretrained(folder)
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in model.state_dict().items())
    extractor = BestRQFeatureExtractor.from_pretrained(folder)
    features = extractor([torch.randn(2000).numpy()], sampling_rate=16000, return_tensors="pt")
    assert model.encode(**features).audio_codes.shape == (1, 4, 4)


def test_a_checkpoint_without_discriminators_is_not_resumed_with_them(tmp_path):
    arguments = dict(save_strategy="steps", save_steps=1)
    build(tmp_path, max_steps=1, generator_weight=0.0, feature_matching_weight=0.0, **arguments).train()
    with pytest.raises(FileNotFoundError, match="lacks discriminators.safetensors"):
        build(tmp_path, max_steps=2, **arguments).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# --- validation ---


def test_validation_is_the_mean_over_whole_utterances_each_once(tmp_path):
    expected = {"mel_distance": 0.0, "stft_distance": 0.0}
    trainer = build(tmp_path, per_device_eval_batch_size=2)
    trainer.model.eval()
    for row in trainer.eval_dataset:
        features = trainer.processing_class([row["audio"]], sampling_rate=16000, return_tensors="pt")
        codes = trainer.model.encode(**features).audio_codes
        made = trainer.model.decode(codes, num_samples=len(row["audio"])).audio_values
        target = torch.tensor(row["audio"])[None]
        expected["mel_distance"] += float(mel_distance(made, target)) / 5
        expected["stft_distance"] += float(stft_distance(made, target)) / 5
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


def test_deepspeed_is_refused(tmp_path, monkeypatch):
    trainer = build(tmp_path)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="which DeepSpeed and FSDP do not carry"):
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
