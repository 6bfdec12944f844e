"""Corpora of speech units as sequences for a SpeechLM."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from .processing_speech_lm import SpeechLMProcessor
from .speech_tasks import TASKS, draw_prompt

NUM_NAMED = 5  # rows that an error lists


def make_sequences(
    rows: Dataset, processor: SpeechLMProcessor, max_tokens: int, task: str = "asr", prompted: bool = False
) -> Dataset:
    """
    Rows of `extract_units` as sequences of one task.

    Args:
        rows: with `units` and the task's answer: `text`, or `emotion`.
        max_tokens: the model's context.
        prompted: begin with one of the task's prompts, always the same for an utterance.

    Returns columns `input_ids` (prompt, units, `<speech_end>`, answer, `<text_end>`), `num_prompt`, `num_tokens` and
    `task`.

    Raises:
        ValueError: a task without its column, an answer that is empty or holds special tokens or units that are not
            the processor's (the row is named), or sequences longer than `max_tokens`: counted, the first ones named.
    """
    column = TASKS[task].answer_column
    if column not in rows.column_names:
        raise ValueError(f"the task {task!r} answers with the column {column!r}; these rows have {rows.column_names}.")

    def encode(row: dict[str, Any], number: int) -> dict[str, Any]:
        prompt = draw_prompt(task, units_seed(row["units"])) if prompted else None
        try:
            sequence = processor.sequence(row["units"], row[column] or "", prompt)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        return {
            "input_ids": sequence["input_ids"],
            "num_prompt": sequence["num_prompt"],
            "num_tokens": len(sequence["input_ids"]),
            "task": task,
        }

    options = dict(remove_columns=rows.column_names, desc=f"sequences of {task}", keep_in_memory=True)
    sequences = rows.map(encode, with_indices=True, **options)
    lengths = np.array(sequences["num_tokens"])
    long = np.flatnonzero(lengths > max_tokens)
    if len(long):
        named = ", ".join(f"row {row} ({lengths[row]} tokens: {rows[int(row)][column]!r})" for row in long[:NUM_NAMED])
        raise ValueError(
            f"{len(long)} of {len(lengths)} sequences are longer than the model's context of {max_tokens} tokens: "
            f"{named}{' ...' if len(long) > NUM_NAMED else ''}. Leave long audio out (--max_seconds), or take units "
            "of fewer tokens per second."
        )
    return sequences


def units_seed(units: list[int]) -> int:
    """A number that depends on the units only."""
    return zlib.crc32(np.asarray(units, dtype=np.int64).tobytes())


@dataclass
class UnitSequenceCollator:
    """
    Rows of `make_sequences` to batches padded on the right.

    Args:
        pad_token_id: written behind shorter sequences.

    Returns `input_ids`, `attention_mask` and `labels` `(batch, tokens)`, labels -100 on padding and prompt; `seeds`
    `(batch,)`, which depend on a row's tokens only.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        for index, row in enumerate(rows):
            tokens = torch.tensor(row["input_ids"])
            input_ids[index, : len(tokens)] = tokens
            attention_mask[index, : len(tokens)] = 1
            labels[index, row["num_prompt"] : len(tokens)] = tokens[row["num_prompt"] :]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "seeds": torch.tensor([units_seed(row["input_ids"]) for row in rows]),
        }
