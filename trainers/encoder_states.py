"""A frozen encoder's states of a corpus of pairs, computed once and read from a file in every epoch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..modeling.pretrained_encoders import weights_checksum
from ..processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from ..processing.noisy_pairs import NoisyPairCollator
from .results import write_atomically

COLUMNS = Features(
    states=Value("binary"),
    clean_states=Value("binary"),
    num_samples=Value("int64"),
    text=Value("string"),
    noise=Value("string"),
    seed=Value("int64"),
)
KEPT_TYPE = np.float16  # half the file; states of a layer norm keep three digits


@torch.no_grad()
def cache_encoder_states(
    model: PreTrainedModel,
    pairs: Dataset,
    collator: NoisyPairCollator,
    feature_extractor: StableTokenFeatureExtractor,
    folder: str | Path,
    description: dict[str, Any],
    batch_size: int = 16,
) -> Dataset:
    """
    The rows of `pairs` with their encoder states, float16, in `folder`; read from there when they are there already.

    Worth it because nothing that they depend on is trained: an epoch then costs the bottleneck and the decoder alone.
    Several processes may ask at once: one computes, the others wait. A killed run leaves nothing half-written.

    Args:
        model: has `encoder_states`; description: what the pairs were made from, kept beside the file, so that another
            corpus, mixture or encoder is not mistaken for it. Must be JSON. The weights, the feature extractor's
            fields and some rows' samples are added.

    Returns a memory-mapped dataset for `EncoderStatesCollator`: `states` and `clean_states` (bytes of
    `(states, d_model)`), `num_samples`, `text`, `noise`, `seed`.

    Raises:
        ValueError: the folder holds the states of something else.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = description | {
        "rows": len(pairs),
        "encoder": weights_checksum(model.encoder),
        "feature_extractor": feature_extractor.to_dict(),
        "seeds": some_seeds(pairs, collator),
    }
    wanted = json.loads(json.dumps(description))
    known, file = folder / "description.json", folder / "states.arrow"
    with FileLock(folder / "lock"):
        if known.exists():
            found = json.loads(known.read_text())
            if found != wanted:
                raise ValueError(f"{folder} holds the states of {found}, not of {wanted}: remove it, or give another.")
            return Dataset.from_file(str(file))
        was_training = model.training
        model.eval()
        unfinished = folder / "unfinished.arrow"
        with ArrowWriter(path=str(unfinished), features=COLUMNS, writer_batch_size=100) as writer:
            for first in tqdm(range(0, len(pairs), batch_size), desc="encoder states"):
                rows = [pairs[row] for row in range(first, min(first + batch_size, len(pairs)))]
                for row in encode_rows(model, rows, collator, feature_extractor):
                    writer.write(row)
            writer.finalize()
        model.train(was_training)
        unfinished.rename(file)
        write_atomically(known, json.dumps(wanted, indent=2))
    return Dataset.from_file(str(file))


def encode_rows(
    model: PreTrainedModel,
    rows: list[dict[str, Any]],
    collator: NoisyPairCollator,
    feature_extractor: StableTokenFeatureExtractor,
) -> list[dict[str, Any]]:
    """Some pairs as rows of the cache."""
    batch = collator(rows)
    num_samples = batch["num_samples"].to(model.device)
    kept = []
    for waveforms in (batch["waveforms"], batch["clean_waveforms"]):
        features, mask = feature_extractor.extract(waveforms.to(model.device), num_samples)
        states = model.encoder_states(features, mask).float().cpu()
        kept.append(
            [each[real].numpy().astype(KEPT_TYPE).tobytes() for each, real in zip(states, mask[:, ::2].bool().cpu())]
        )
    lengths, seeds = batch["num_samples"].tolist(), batch["seeds"].tolist()
    return [
        dict(states=noisy, clean_states=clean, num_samples=length, text=row["text"], noise=row["noise"], seed=seed)
        for row, noisy, clean, length, seed in zip(rows, *kept, lengths, seeds, strict=True)
    ]


def some_seeds(pairs: Dataset, collator: NoisyPairCollator) -> list[int]:
    """Of the first, the middle and the last row: they depend on the samples, and show that the audio was edited."""
    if not len(pairs):
        return []
    return collator([pairs[row] for row in (0, len(pairs) // 2, len(pairs) - 1)])["seeds"].tolist()


@dataclass
class EncoderStatesCollator:
    """
    Rows of `cache_encoder_states` to the batches that `DisentangledWhisperTrainer` takes. Remove the column
    `clean_states` where no term needs the clean speech.

    Args:
        pair_collator: writes labels and noise classes as it does for the pairs themselves.
        feature_extractor: knows how many mel frames an utterance has; dim: width of the states.
    """

    pair_collator: NoisyPairCollator
    feature_extractor: StableTokenFeatureExtractor
    dim: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """
        `encoder_states` and, where rows have `clean_states`, `clean_encoder_states` `(batch, states, dim)`,
        `attention_mask` `(batch, mel frames)`, and what the pairs' collator gives beside waveforms.
        """
        extractor = self.feature_extractor
        num_samples = torch.tensor([row["num_samples"] for row in rows])
        mel_frames = -(-num_samples // extractor.hop_length)
        width = -(-int(mel_frames.max()) // extractor.mel_frames_per_token) * extractor.mel_frames_per_token
        labels = [torch.tensor(self.pair_collator.encode_text(row["text"])) for row in rows]
        batch = {
            "encoder_states": self._padded(rows, "states", width // 2),
            "attention_mask": (torch.arange(width) < mel_frames[:, None]).long(),
            "num_samples": num_samples,
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
            "seeds": torch.tensor([row["seed"] for row in rows]),
        }
        if "clean_states" in rows[0]:
            batch["clean_encoder_states"] = self._padded(rows, "clean_states", width // 2)
        if self.pair_collator.noise_classes:
            batch["noise_labels"] = torch.tensor([self.pair_collator.encode_noise(row["noise"]) for row in rows])
        return batch

    def _padded(self, rows: list[dict[str, Any]], column: str, length: int) -> Tensor:
        states = torch.zeros(len(rows), length, self.dim)
        for index, row in enumerate(rows):
            values = np.frombuffer(row[column], KEPT_TYPE).reshape(-1, self.dim)
            states[index, : len(values)] = torch.from_numpy(values.astype(np.float32))
        return states
