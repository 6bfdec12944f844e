"""The discriminators of a codec's training: what they learn, what the codec learns from them, their checkpoints."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..modeling.discriminators import CodecDiscriminators
from .codec_losses import discriminator_loss, feature_matching_loss, generator_loss

DISCRIMINATOR_WEIGHTS = "discriminators.safetensors"
DISCRIMINATOR_OPTIMIZER = "discriminator_optimizer.pt"
DISCRIMINATOR_SCHEDULER = "discriminator_scheduler.pt"


class DiscriminatorTraining:
    """
    Discriminators that learn beside a codec (HASRD, section 2.3), with an optimizer, a schedule and a bound of the
    gradient's norm of their own.

    Args:
        network: the discriminators, on the device where they learn.
        max_grad_norm: the bound.
    """

    def __init__(self, network: CodecDiscriminators, max_grad_norm: float):
        self.network = network
        self.max_grad_norm = max_grad_norm
        self.accelerator: Accelerator | None = None
        self.wrapped: nn.Module = network
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: LRScheduler | None = None

    def prepare(
        self,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[torch.optim.Optimizer], LRScheduler],
    ):
        """Before a training: make them one over all processes. schedule: gives that of a prepared optimizer."""
        self.accelerator = accelerator
        self.wrapped, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.scheduler = schedule(self.optimizer)

    def step(
        self, pairs: list[tuple[Tensor, Tensor]], num_segments: Tensor, num_replicas: int
    ) -> dict[str, Tensor | float]:
        """
        One step of the optimizer.

        pairs: of all micro-batches real and made segments, each `(batch, samples)`; num_segments: what sums are
        divided by; num_replicas: processes whose gradients are averaged.

        Returns for the log `discriminator`, the loss, and `discriminator_grad_norm` before it is bounded.
        """
        total = torch.zeros((), device=num_segments.device)
        for index, pair in enumerate(pairs):
            is_last = index == len(pairs) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                loss = self.loss(*pair, num_segments) * num_replicas
                self.accelerator.backward(loss)
            total = total + loss.detach()
        state, is_synced = self.accelerator.gradient_state, self.accelerator.sync_gradients
        state._set_sync_gradients(True)  # else optimizers rest until the last micro-batch
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        state._set_sync_gradients(is_synced)
        return {"discriminator": total, "discriminator_grad_norm": norm}

    def loss(self, waveforms: Tensor, made: Tensor, num_segments: Tensor) -> Tensor:
        """
        LSGAN's, of real and made segments `(batch, samples)`, which go through in one pass: gradients are averaged
        over processes after each.
        """
        maps = self.wrapped(torch.cat([waveforms, made]))
        real = [[each[: len(waveforms)] for each in of_one] for of_one in maps]
        made = [[each[len(waveforms) :] for each in of_one] for of_one in maps]
        return discriminator_loss(real, made, num_segments)

    def codec_terms(self, waveforms: Tensor, made: Tensor, num_segments: Tensor, names: set[str]) -> dict[str, Tensor]:
        """
        What the discriminators, which stand still, say of reconstructions `(batch, samples)`.

        names: which of `generator` and `feature_matching` to compute.
        """
        terms = {}
        self.network.requires_grad_(False)
        made_maps = self.network(made)
        if "generator" in names:
            terms["generator"] = generator_loss(made_maps, num_segments)
        if "feature_matching" in names:
            with torch.no_grad():
                real_maps = self.network(waveforms)
            terms["feature_matching"] = feature_matching_loss(real_maps, made_maps, num_segments)
        self.network.requires_grad_(True)
        return terms

    def save(self, folder: str | Path):
        """Weights, optimizer and schedule into a checkpoint."""
        save_file(self.network.state_dict(), Path(folder, DISCRIMINATOR_WEIGHTS))
        for name, part in self._states().items():
            torch.save(part.state_dict(), Path(folder, name))

    def load(self, folder: str | Path):
        """
        What `save` left.

        Raises:
            FileNotFoundError: the checkpoint was written without discriminators, or without optimizers.
        """
        missing = [name for name in (DISCRIMINATOR_WEIGHTS, *self._states()) if not Path(folder, name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing)}: it was written without discriminators or with "
                "save_only_model, and cannot be resumed with them."
            )
        self.network.load_state_dict(load_file(Path(folder, DISCRIMINATOR_WEIGHTS)))
        for name, part in self._states().items():
            part.load_state_dict(torch.load(Path(folder, name), map_location="cpu", weights_only=True))

    def _states(self) -> dict:
        """By file name what is saved of them beside their weights."""
        return {DISCRIMINATOR_OPTIMIZER: self.optimizer, DISCRIMINATOR_SCHEDULER: self.scheduler}
