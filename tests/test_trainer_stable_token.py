"""Questions to the trainers: named terms, schedule, voters, noise, learning, bad settings, training that is killed."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from tiny_training import build_trainer, read_run, relative_difference, run_apart, run_until_killed, speech_corpus
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint

from clearspeech.trainers import trainer_stable_token
from clearspeech.trainers.speech_trainer import (
    STAGING_FOLDER,
    EndlessStream,
    EpochSeededLengthSampler,
    EpochSeededSampler,
    prepare_output_folder,
)

TERMS = {"cross_entropy", "consensus", "commitment", "bit_entropy", "batch_entropy"}
CODEBOOK = {"codebook_usage", "codebook_perplexity", "codebook_entropy"}


def in_groups(values: list, size: int) -> list[list]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def logged_lines(trainer) -> list[dict]:
    return [line for line in trainer.state.log_history if "loss" in line]


def test_every_term_and_codebook_figure_is_logged_under_its_own_name(tmp_path):
    trainer = build_trainer("stable_token", tmp_path)
    trainer.train()
    for line in logged_lines(trainer):
        assert TERMS | CODEBOOK <= line.keys()
        total = line["cross_entropy"] + 0.25 * line["consensus"] + 0.25 * line["commitment"]
        total += line["bit_entropy"] - line["batch_entropy"]
        assert line["loss"] == pytest.approx(total, abs=1e-5)
        assert 0 < line["codebook_usage"] <= 100
        assert line["codebook_perplexity"] == pytest.approx(2 ** line["codebook_entropy"])


def test_logged_terms_are_means_over_the_logged_steps(tmp_path):
    every, third = (build_trainer("stable_token", tmp_path, max_steps=6, logging_steps=steps) for steps in (1, 3))
    every.train()
    third.train()
    for line, steps in zip(logged_lines(third), in_groups(logged_lines(every), 3), strict=True):
        for name in TERMS | {"loss"}:
            assert line[name] == pytest.approx(sum(step[name] for step in steps) / 3, abs=1e-5)


def test_joint_ctc_logs_both_terms(tmp_path):
    trainer = build_trainer("whisper_ctc", tmp_path, ctc_weight=0.3)
    trainer.train()
    for line in logged_lines(trainer):
        assert line["loss"] == pytest.approx(0.7 * line["cross_entropy"] + 0.3 * line["ctc"], abs=1e-5)


@pytest.mark.parametrize(
    "weights, losses",
    [
        ({"consensus_weight": 0.0}, ["consensus_loss"]),
        ({"commitment_weight": 0.0}, ["commitment_loss"]),
        ({"batch_entropy_weight": 0.0}, ["batch_entropy"]),
        ({"entropy_weight": 0.0}, ["bit_entropy", "batch_entropy"]),
    ],
)
def test_a_term_of_weight_zero_is_not_computed(tmp_path, monkeypatch, weights, losses):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    for name in losses:
        monkeypatch.setattr(trainer_stable_token, name, refuse)
    trainer = build_trainer("stable_token", tmp_path, max_steps=1, **weights)
    trainer.train()
    absent = {name.removesuffix("_loss") for name in losses}
    assert not absent & logged_lines(trainer)[0].keys()


def test_the_defaults_are_table_8s():
    args = trainer_stable_token.StableTokenTrainingArguments(output_dir="unused")
    assert (args.optim, args.learning_rate, args.warmup_steps) == ("adamw_torch_fused", 1.5e-5, 1000)
    assert (args.weight_decay, args.max_grad_norm) == (0.01, 1.0)
    assert (args.consensus_weight, args.commitment_weight, args.entropy_weight) == (0.25, 0.25, 1.0)


def test_the_learning_rate_follows_one_cycle_with_warm_up(tmp_path):
    trainer = build_trainer("stable_token", tmp_path, max_steps=12, warmup_steps=4)
    trainer.train()
    rates = [line["learning_rate"] for line in logged_lines(trainer)]
    peak = rates.index(max(rates))
    assert peak in (3, 4)
    assert rates[peak] == pytest.approx(3e-3, rel=0.02)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] == pytest.approx(3e-3 / 25) and rates[-1] < 3e-3 / 25


def test_noisy_voters_are_a_random_minority_drawn_by_seed_and_step(tmp_path):
    trainer = build_trainer("stable_token", tmp_path)
    again = build_trainer("stable_token", tmp_path)
    drawn = []
    for step in range(40):
        trainer.state.global_step = again.state.global_step = step
        voters = trainer._draw_noisy_voters()
        assert int(voters.sum()) == 1  # the largest minority of three
        assert torch.equal(again._draw_noisy_voters(), voters)
        drawn.append(int(voters.nonzero()))
    assert set(drawn) == {0, 1, 2}


@pytest.mark.parametrize("num_noisy_voters", [2, 3, -1])
def test_noisy_voters_must_be_a_minority(tmp_path, num_noisy_voters):
    with pytest.raises(ValueError, match=f"strict minority of the 3 voters; got {num_noisy_voters}"):
        build_trainer("stable_token", tmp_path, num_noisy_voters=num_noisy_voters)


def test_a_fresh_run_fits_the_quantizer_and_a_resumed_one_does_not(tmp_path, monkeypatch):
    trainer = build_trainer("stable_token", tmp_path, fit_quantizer_rows=8, save_strategy="steps", save_steps=5)
    weights = trainer.model.model.quantizer.project_in.weight
    before = weights.detach().clone()
    trainer.fit_quantizer()
    assert not torch.equal(weights, before)
    trainer.train()
    monkeypatch.setattr(trainer, "fit_quantizer", lambda: pytest.fail("fitted again"))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))


def test_noise_as_augmentation_is_all_that_the_voters_see(tmp_path):
    trainer = build_trainer("stable_token", tmp_path, noise_as_augmentation=True)
    inputs = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    views = trainer.both_views(inputs)
    clean, _ = trainer.feature_extractor.extract(inputs["waveforms"], inputs["num_samples"])
    assert views.keys() == {"input_features", "attention_mask"}
    assert not torch.allclose(views["input_features"], clean)
    with pytest.raises(ValueError, match="noise_as_augmentation needs a perturber"):
        trainer_stable_token.StableTokenTrainer(
            trainer.model, trainer.args, feature_extractor=trainer.feature_extractor, perturber=None
        )


def test_an_utterance_meets_new_noise_in_every_step_but_the_same_in_every_batch(tmp_path):
    trainer = build_trainer("stable_token", tmp_path)
    rows = [trainer.train_dataset[row] for row in range(3)]
    alone, batch = trainer.data_collator(rows[1:2]), trainer.data_collator(rows)
    num_samples = int(alone["num_samples"])

    def noisy_features(inputs, row):
        mask = trainer.both_views(inputs)["attention_mask"][row].bool()
        return trainer.both_views(inputs)["perturbed_input_features"][row][:, mask]

    torch.testing.assert_close(noisy_features(batch, 1), noisy_features(alone, 0))
    before = noisy_features(alone, 0)
    trainer.state.global_step += 1
    assert not torch.allclose(noisy_features(alone, 0), before, atol=1e-3)
    assert num_samples == len(rows[1]["audio"])


def test_without_a_perturber_all_voters_hear_clean_speech(tmp_path):
    trainer = build_trainer("stable_token", tmp_path)
    trainer.perturber = None
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert trainer.both_views(batch).keys() == {"input_features", "attention_mask"}


def test_a_feature_extractor_of_another_token_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="8 mel frames per token, the model has 4"):
        build_trainer("stable_token", tmp_path, mel_frames_per_token=8)


def test_a_small_model_learns(tmp_path):
    arguments = dict(max_steps=60, num_rows=4, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=5)
    trainer = build_trainer("stable_token", tmp_path, **arguments)
    trainer.train()
    lines = logged_lines(trainer)
    assert lines[-1]["cross_entropy"] < 0.6 * lines[0]["cross_entropy"]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_activation_checkpointing_trains_alike(tmp_path):
    plain = build_trainer("stable_token", tmp_path, max_steps=3)
    frugal = build_trainer("stable_token", tmp_path, max_steps=3, activation_checkpointing=True)
    plain.train()
    frugal.train()
    assert frugal.model.upper_layers[0].gradient_checkpointing
    for line, expected in zip(logged_lines(frugal), logged_lines(plain), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_bfloat16_trains_alike_to_its_precision(tmp_path):
    plain = build_trainer("stable_token", tmp_path, max_steps=3)
    half = build_trainer("stable_token", tmp_path, max_steps=3, bf16=True)
    plain.train()
    half.train()
    for line, expected in zip(logged_lines(half), logged_lines(plain), strict=True):
        for name in TERMS:
            assert line[name] == pytest.approx(expected[name], rel=0.05, abs=0.01), name


def test_a_stream_without_a_length_trains_for_max_steps(tmp_path):
    trainer = build_trainer("stable_token", tmp_path, max_steps=7, per_device_train_batch_size=4)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()  # three batches, started over
    trainer.train()
    assert [line["step"] for line in logged_lines(trainer)] == list(range(1, 8))


def test_a_resumed_stream_goes_on_where_it_was(tmp_path):
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    arguments = dict(method="stable_token", num_shards=2, save_strategy="steps", save_steps=3)
    arguments["per_device_train_batch_size"] = 4  # three batches are a pass
    assert run_apart(output_dir=whole, **arguments) == [0]
    assert run_apart(output_dir=stopped, killed_after=4, **arguments) == [-9]
    assert run_apart(output_dir=stopped, resume=True, **arguments) == [0]
    assert relative_difference(read_run(stopped)[0], read_run(whole)[0]) == 0.0


@pytest.mark.parametrize("num_shards", [1, 3])
def test_processes_share_a_stream_and_each_pass_has_its_own_order(num_shards):
    stream = speech_corpus(13).map(lambda row, number: {"text": str(number)}, with_indices=True)
    stream = stream.to_iterable_dataset(num_shards).shuffle(seed=0, buffer_size=13)
    texts = [row["text"] for row in itertools.islice(EndlessStream(stream), 39)]
    again = [row["text"] for row in itertools.islice(EndlessStream(stream), 39)]
    passes = in_groups(texts, 13)
    assert texts == again and all(set(each) == set(map(str, range(13))) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    share = [{row["text"] for row in itertools.islice(EndlessStream(stream, rank, 2), 6)} for rank in (0, 1)]
    assert not share[0] & share[1] and len(share[0] | share[1]) == 12


def test_a_stream_without_rows_is_an_error(tmp_path):
    trainer = build_trainer("stable_token", tmp_path, num_shards=1)
    trainer.train_dataset = trainer.train_dataset.filter(lambda row: False)
    with pytest.raises(ValueError, match="process 0 of 1 got no rows of the streamed corpus"):
        trainer.train()


def test_another_learning_rate_schedule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="OneCycleLR; got lr_scheduler_type 'cosine'"):
        build_trainer("stable_token", tmp_path, lr_scheduler_type="cosine")
    build_trainer("whisper_ctc", tmp_path, lr_scheduler_type="cosine")


def test_evaluation_reports_the_training_loss_without_counting_codes(tmp_path):
    trainer = build_trainer("stable_token", tmp_path)
    trainer.perturber = None
    one_by_one = trainer.evaluate(trainer.train_dataset.select(range(8)))["eval_loss"]
    assert math.isfinite(one_by_one)
    assert int(trainer._code_counts.sum()) == 0


@pytest.mark.parametrize("sampler", [EpochSeededSampler(50, 7), EpochSeededLengthSampler(4, list(range(50)), 7)])
def test_the_order_of_rows_depends_on_seed_and_epoch_only(sampler):
    sampler.set_epoch(0)
    first, again = list(sampler), list(sampler)
    torch.manual_seed(99)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first == again != second
    assert sorted(first) == sorted(second) == list(range(50)) and len(sampler) == 50


def test_rows_of_similar_length_share_a_batch():
    lengths = [100 * (row % 10) for row in range(80)]
    order = list(EpochSeededLengthSampler(4, lengths, seed=0))
    spans = [max(batch) - min(batch) for batch in in_groups([lengths[row] for row in order], 4)]
    assert sum(spans) / len(spans) < 200


def test_an_output_folder_that_holds_a_checkpoint_is_refused_unless_resumed(tmp_path):
    assert prepare_output_folder(str(tmp_path / "new"), resume=False) is None
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(FileExistsError, match="checkpoint-20: pass --resume to continue it, or another --output_dir"):
        prepare_output_folder(str(tmp_path), resume=False)
    assert prepare_output_folder(str(tmp_path), resume=True) == str(tmp_path / "checkpoint-20")


def test_an_output_folder_that_holds_a_finished_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a model"):
        prepare_output_folder(str(tmp_path), resume=False)


def test_resuming_in_an_empty_folder_starts_afresh(tmp_path):
    """The command that is repeated after every interruption is one, also when the first came before a checkpoint."""
    assert prepare_output_folder(str(tmp_path), resume=True) is None
    assert prepare_output_folder(str(tmp_path / "absent"), resume=True) is None


def test_an_unfinished_checkpoint_never_counts_and_is_removed(tmp_path):
    unfinished = tmp_path / STAGING_FOLDER / "checkpoint-3"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert prepare_output_folder(str(tmp_path), resume=True) is None
    assert prepare_output_folder(str(tmp_path), resume=False) is None
    build_trainer("stable_token", tmp_path, max_steps=1).train()
    assert not (tmp_path / STAGING_FOLDER).exists()


def test_checkpoints_beyond_the_limit_are_deleted_and_the_best_is_kept(tmp_path):
    arguments = dict(save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=4)
    trainer = build_trainer(
        "stable_token", tmp_path, **arguments, metric_for_best_model="loss", greater_is_better=True
    )
    trainer.args.eval_strategy, trainer.args.eval_steps = IntervalStrategy.STEPS, 1
    trainer.evaluate = lambda *args, **kwargs: {"eval_loss": float(trainer.state.global_step == 2)}
    trainer.train()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-4"}
    assert Path(trainer.state.best_model_checkpoint) == tmp_path / "checkpoint-2"
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]) == tmp_path / "checkpoint-2"


KILLED = dict(
    method="stable_token",
    per_device_train_batch_size=2,
    num_rows=8,
    max_steps=7,
    save_strategy="steps",
    save_steps=2,
    save_total_limit=1,
    dropout=0.1,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Final weights of `KILLED` when nothing kills it; seven steps are almost two epochs."""
    folder = str(tmp_path_factory.mktemp("uninterrupted"))
    assert run_apart(output_dir=folder, **KILLED) == [0]
    return read_run(folder)[0]


def assert_survives(folder: Path, event: int, uninterrupted: dict[str, torch.Tensor]) -> bool:
    """Whether the kill at `event` came before the end; the resumed run then has the weights it would have had."""
    exit_codes = run_apart(task=run_until_killed, event=event, output_dir=str(folder), **KILLED)
    assert exit_codes in ([-9], [0])
    if exit_codes == [0]:
        return False
    last = get_last_checkpoint(str(folder)) if folder.exists() else None
    if last is not None:
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= {
            path.name for path in Path(last).iterdir()
        }
    assert run_apart(output_dir=str(folder), resume=True, **KILLED) == [0]
    weights, _ = read_run(folder)
    assert weights.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        assert torch.equal(weights[name], value), (event, name)
    return True


def test_a_killed_training_resumes_to_the_same_weights(tmp_path, uninterrupted):
    killed = [assert_survives(tmp_path / str(event), event, uninterrupted) for event in (1, 7, 13, 22)]
    assert all(killed)


def test_a_finished_training_that_is_resumed_takes_no_further_step(tmp_path, uninterrupted):
    """Its last checkpoint was written, then it was killed before the model was."""
    assert run_apart(output_dir=str(tmp_path), **KILLED) == [0]
    (tmp_path / "model.safetensors").unlink()
    assert run_apart(output_dir=str(tmp_path), resume=True, **KILLED) == [0]
    for name, value in read_run(tmp_path)[0].items():
        assert torch.equal(value, uninterrupted[name])


@pytest.mark.slow
def test_a_training_killed_at_any_point_resumes_to_the_same_weights(tmp_path, uninterrupted):
    for event in itertools.count(1):
        if not assert_survives(tmp_path / str(event), event, uninterrupted):
            break
    assert event > 40
