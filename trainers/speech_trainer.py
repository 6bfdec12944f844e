"""What every trainer of the suite shares: loss scaling, named terms, streams, checkpoints that survive a SIGKILL."""

import itertools
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints, speed_metrics

from ..processing.feature_extraction_stable_token import StableTokenFeatureExtractor

STAGING_FOLDER = "unfinished-checkpoint"


class EpochSeededSampler(Sampler):
    """Every row once in random order; the order depends on seed and epoch only, so a resumed epoch repeats it."""

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(torch.randperm(self.num_rows, generator=generator).tolist())


class EpochSeededLengthSampler(LengthGroupedSampler):
    """Groups utterances of similar length; the order depends on seed and epoch only, so a resumed epoch repeats it."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int):
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


class EndlessStream(torch.utils.data.IterableDataset):
    """
    One process's share of a stream, pass after pass, so that no process ends before the others.

    Each pass is an epoch of the stream: what `IterableDataset.shuffle` shuffles, it shuffles anew. A share without
    rows (a pass over nothing) ends at once.
    """

    def __init__(self, stream: IterableDataset, process_index: int = 0, num_processes: int = 1):
        self.stream = split_dataset_by_node(stream, process_index, num_processes)

    def __iter__(self):
        for epoch in itertools.count():
            self.stream.set_epoch(epoch)
            is_empty = True
            for row in self.stream:
                is_empty = False
                yield row
            if is_empty:
                return


def prepare_output_folder(folder: str, resume: bool) -> str | None:
    """
    The checkpoint to resume from, or None when training starts afresh: also with `resume` when there is none yet, so
    that one command, repeated after every interruption, finishes the training.

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

    A subclass's `compute_loss` divides sums by `num_items_in_batch["labels"]`, `["frames"]` and what else its
    `count_items` counts, over all accumulated batches and all processes. So batch 8, batch 4 twice accumulated and two
    processes with 4 give the same gradient and the same logged loss. Terms are logged under their own names through
    `log_terms`.

    Rows need the `length_column` when `train_sampling_strategy="group_by_length"`. A streamed corpus is divided
    among the processes and repeated until `max_steps`; shuffle it with `IterableDataset.shuffle`.
    """

    loss_is_scaled_for_ga = True
    length_column = "num_samples"

    def __init__(self, *args, feature_extractor: StableTokenFeatureExtractor | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(f"One process drives one GPU; got {self.args.n_gpu}. Start with `accelerate launch`.")
        self.feature_extractor = feature_extractor
        self._terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._first_terms_step = 0
        self._sampler: EpochSeededSampler | EpochSeededLengthSampler | None = None
        self._staging = False
        self._evaluated: dict[str, float] = {}  # when the last validation began, and what went through it

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> dict[str, Tensor]:
        """`count_items` of one optimizer step, summed over its micro-batches and all processes."""
        if not batch_samples:
            raise ValueError(
                f"process {self.args.process_index} of {self.args.world_size} got no rows of the streamed corpus: "
                "take fewer processes or data loader workers, or a larger corpus."
            )
        items = [self.count_items(batch) for batch in batch_samples]
        counts = torch.stack([sum(each[name] for each in items) for name in items[0]]).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return dict(zip(items[0], counts, strict=True))

    def count_items(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the loss terms are means over, in one micro-batch: `labels` and token `frames`."""
        return {"labels": batch["labels"].ne(-100).sum(), "frames": self.count_frames(batch["num_samples"]).sum()}

    def count_frames(self, num_samples: Tensor) -> Tensor:
        """Token frames of utterances with `num_samples` `(batch,)` samples."""
        return -(-num_samples // (self.feature_extractor.hop_length * self.feature_extractor.mel_frames_per_token))

    @property
    def num_replicas(self) -> int:
        """Processes whose gradients are averaged: a term that is a sum over all of them is multiplied by this."""
        return self.args.world_size

    def step_seed(self, seed: int = 0) -> int:
        """Mixes a seed with the run's seed and the step; neighbouring steps give unrelated values."""
        mixed = (seed * 2_654_435_761 + self.args.seed * 40_503 + self.state.global_step) * 0x9E3779B1
        return (mixed ^ (mixed >> 15)) % 2**32

    @torch.no_grad()
    def sum_over_rows(self, dataset, batch_sums: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, float]:
        """
        What `batch_sums` gives for each batch of `dataset`, added up over all processes; every row counts once.

        Raises:
            ValueError: fewer rows than processes.
        """
        if dataset is None or len(dataset) < self.args.world_size:
            raise ValueError(f"{self.args.world_size} process(es) need a validation row each; got {dataset}.")
        size, world = self.args.eval_batch_size, self.args.world_size
        mine = range(self.args.process_index, len(dataset), world)
        totals: dict[str, Tensor] = {}
        firsts = range(0, -(-len(dataset) // world), size)  # as often on every process, as ZeRO-3 needs
        self._evaluated = dict(start_time=time.time(), num_samples=len(dataset), num_steps=len(firsts))
        hides_bar = self.args.disable_tqdm or not self.is_local_process_zero()
        was_training = self.model.training
        self.model.eval()
        for first in tqdm(firsts, desc="validation", leave=False, dynamic_ncols=True, disable=hides_bar):
            rows = mine[first : first + size] or mine[:1]
            batch = self.data_collator([dataset[row] for row in rows])
            for name, value in batch_sums(self._prepare_inputs(batch)).items():
                counted = value.double() if first < len(mine) else torch.zeros_like(value, dtype=torch.double)
                totals[name] = totals.get(name, 0.0) + counted
        self.model.train(was_training)
        names = sorted(totals)
        sums = torch.stack([totals[name] for name in names])
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        return dict(zip(names, sums.tolist(), strict=True))

    def report_evaluation(self, metrics: dict[str, float]) -> dict[str, float]:
        """
        Log metrics of validation rows and tell the callbacks, as `Trainer.evaluate` does; its figures of speed, in s
        and per s, are logged beside them.

        metrics: by name, `<prefix>_loss` first; they are returned.
        """
        prefix = next(iter(metrics)).removesuffix("_loss")
        self.log(metrics | speed_metrics(prefix, **self._evaluated))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log_terms(self, terms: dict[str, Tensor]):
        """Add this micro-batch's share of each named term; `log` writes their means over the logged steps."""
        if self.model.training:
            if not self._terms:
                self._first_terms_step = self.state.global_step
            for name, value in terms.items():
                self._terms[name] += value.detach().float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the named terms beside the total, averaged over the steps since the last line and all processes."""
        if "loss" in logs and self._terms:
            steps = self.state.global_step - self._first_terms_step
            for name, total in self._terms.items():
                mean = total / steps
                if self.args.world_size > 1:
                    mean = self.accelerator.reduce(mean, reduction="mean")
                logs[name] = round(float(mean), 6)
            self._terms.clear()
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        """`Trainer.train`; removes what a killed run left half-written."""
        if self.args.should_save:
            shutil.rmtree(Path(self.args.output_dir, STAGING_FOLDER), ignore_errors=True)
        self._terms.clear()
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """`Trainer`'s; for a stream one of our own, as `accelerate` would cut up batches of different widths."""
        if not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        return DataLoader(
            EndlessStream(self.train_dataset, self.args.process_index, self.args.world_size),
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if isinstance(dataset, IterableDataset) or strategy not in ("random", "group_by_length"):
            return super()._get_train_sampler(train_dataset)
        if strategy == "random":
            self._sampler = EpochSeededSampler(len(dataset), self.args.seed)
        else:
            lengths = list(
                dataset.select_columns(self.length_column)[self.length_column]
            )  # without decoding the audio
            rows_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            self._sampler = EpochSeededLengthSampler(rows_per_step, lengths, self.args.seed)
        return self._sampler

    def _run_epoch(self, *, epoch: int, **kwargs):
        """
        Tells the sampler itself: a resumed data loader of several processes does not pass the epoch on. A run that was
        killed after its last step takes no further one.
        """
        if self.state.global_step >= self.state.max_steps:  # resumed from the last checkpoint of all
            self.control.should_training_stop = True
            return
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_FOLDER) if self._staging else folder

    def _save_checkpoint(self, model, trial):
        """Write the checkpoint aside and rename it when it is whole: a folder `checkpoint-N` is always complete."""
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        is_best = best is not None and Path(best) == folder / STAGING_FOLDER / name
        if is_best:  # on every process: with DeepSpeed each loads its part of it in the end
            self.state.best_model_checkpoint = str(folder / name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish_checkpoint(folder, name, is_best)
        self.accelerator.wait_for_everyone()

    def _publish_checkpoint(self, folder: Path, name: str, is_best: bool):
        """Move the staged checkpoint to its place in `folder` and delete those beyond `save_total_limit`."""
        staging = folder / STAGING_FOLDER
        if is_best:
            self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
        if (folder / name).exists():  # moved, not deleted, before the new one is there
            os.replace(folder / name, staging / "replaced")
        os.replace(staging / name, folder / name)
        shutil.rmtree(staging)
        rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)
