"""What every trainer of the suite shares: exact loss scaling, named loss terms, checkpoints that survive a SIGKILL."""

import os
import shutil
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from ..processing.feature_extraction_stable_token import StableTokenFeatureExtractor

STAGING_FOLDER = "unfinished-checkpoint"


class EpochSeededLengthSampler(LengthGroupedSampler):
    """Groups utterances of similar length; the order depends on seed and epoch only, so a resumed epoch repeats it."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def prepare_output_folder(folder: str, resume: bool) -> str | None:
    """
    The checkpoint to resume from, or None when training starts afresh.

    Raises:
        FileExistsError: the folder already holds a checkpoint or a model and `resume` is not set.
    """
    last = get_last_checkpoint(folder) if os.path.isdir(folder) else None
    if resume:
        return last
    if last is not None or os.path.exists(os.path.join(folder, "config.json")):
        raise FileExistsError(
            f"{folder} already holds {last or 'a model'}: pass --resume to continue it, or another --output_dir."
        )
    return None


class SpeechTrainer(Trainer):
    """
    `Trainer` for losses that are sums of several terms, each a mean over labels or frames.

    A subclass's `compute_loss` divides sums by `num_items_in_batch["labels"]` and `["frames"]`: counts over all
    accumulated batches and all processes. So batch 8, batch 4 twice accumulated and two processes with 4 give the same
    gradient and the same logged loss. Terms are logged under their own names through `log_terms`.

    Rows need a column `num_samples` when `train_sampling_strategy="group_by_length"`.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *args, feature_extractor: StableTokenFeatureExtractor, **kwargs):
        super().__init__(*args, **kwargs)
        self.feature_extractor = feature_extractor
        self._terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._staging = False

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, Tensor]:
        """Labels and waveform samples of one optimizer step, over its micro-batches and all processes."""
        labels = sum(batch["labels"].ne(-100).sum() for batch in batch_samples).to(device)
        frames = sum(self.count_frames(batch["num_samples"]).sum() for batch in batch_samples).to(device)
        counts = torch.stack([labels, frames])
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return {"labels": counts[0], "frames": counts[1]}

    def count_frames(self, num_samples: Tensor) -> Tensor:
        """Token frames of utterances with `num_samples` `(batch,)` samples."""
        return -(-num_samples // (self.feature_extractor.hop_length * self.feature_extractor.mel_frames_per_token))

    @property
    def num_replicas(self) -> int:
        """Processes whose gradients are averaged: a term that is a sum over all of them is multiplied by this."""
        return self.args.world_size

    def log_terms(self, terms: dict[str, Tensor]):
        """Add this micro-batch's share of each named term; `log` writes their means over the logged steps."""
        if self.model.training:
            for name, value in terms.items():
                self._terms[name] += value.detach().float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the named terms beside the total, averaged over the steps since the last line and all processes."""
        if "loss" in logs and self._terms:
            steps = self.state.global_step - self._last_terms_step
            for name, total in self._terms.items():
                mean = total / max(steps, 1)
                if self.args.world_size > 1:
                    mean = self.accelerator.reduce(mean, reduction="mean")
                logs[name] = round(float(mean), 6)
            self._terms.clear()
            self._last_terms_step = self.state.global_step
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        """`Trainer.train`; removes what a killed run left half-written."""
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir, STAGING_FOLDER), ignore_errors=True)
        self._last_terms_step = 0
        return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSeededLengthSampler(batch_size, list(dataset["num_samples"]), self.args.seed)

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_FOLDER) if self._staging else folder

    def _save_checkpoint(self, model, trial):
        """Write the checkpoint aside and rename it when it is whole: a folder `checkpoint-N` is always complete."""
        self._staging = True
        super()._save_checkpoint(model, trial)
        self._staging = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            target = Path(self.args.output_dir, name)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(Path(self.args.output_dir, STAGING_FOLDER, name), target)
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()
