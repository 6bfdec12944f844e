"""Checkpoints of HASRD's trainer: a killed training, one and two processes, both networks, what cannot be resumed."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_hasrd_training import build, run
from tiny_training import read_run, relative_difference, run_apart

from clearspeech import HasrdModel
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.trainers import discriminator_training
from clearspeech.trainers.discriminator_training import (
    DISCRIMINATOR_OPTIMIZER,
    DISCRIMINATOR_SCHEDULER,
    DISCRIMINATOR_WEIGHTS,
)


def kill_while_saving(output_dir, saved_before, **arguments):
    """A SIGKILL in the middle of the checkpoint after `saved_before` whole ones, as the discriminators are written."""

    save, saved = discriminator_training.save_file, []

    def save_half(*given):
        saved.append(save(*given))
        if len(saved) > saved_before:
            os.truncate(given[1], 100)
            os.kill(os.getpid(), signal.SIGKILL)

    discriminator_training.save_file = save_half
    run(output_dir, **arguments)


@pytest.mark.parametrize("killed_after, steps", [(3, 6), (5, 6)])
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(killed_after, steps, tmp_path):
    """Both networks; three steps are an epoch and a half, and books drop out at random."""
    arguments = dict(max_steps=steps, save_strategy="steps", save_steps=2, learning_rate_decay=0.9)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    assert run_apart(task=run, output_dir=whole, **arguments) == [0]
    assert run_apart(task=run, output_dir=killed, killed_after=killed_after, **arguments) == [-9]
    assert run_apart(task=run, output_dir=killed, resume=True, **arguments) == [0]
    same = [read_run(folder)[0] for folder in (killed, whole)]
    assert all(torch.equal(value, same[1][name]) for name, value in same[0].items())
    discriminators = [torch.load(Path(folder, "discriminators.pt")) for folder in (killed, whole)]
    assert all(torch.equal(value, discriminators[1][name]) for name, value in discriminators[0].items())
    for name in (DISCRIMINATOR_OPTIMIZER, DISCRIMINATOR_SCHEDULER, "optimizer.pt"):
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
    saved = load_file(folder / DISCRIMINATOR_WEIGHTS)
    assert saved.keys() == trainer.discriminators.network.state_dict().keys()
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
