"""The speech that models are measured on: its part of the recipes' command lines, its names, and its loading."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset

from clearspeech.processing.corpora import parse_source
from clearspeech.trainers.evaluation import open_short


@dataclass(kw_only=True)
class MeasuringArguments:
    """What every recipe that measures a model can be told; each says itself which models those are."""

    model: str
    split: str = field(default="test", metadata={"help": "Split of all that is measured on."})
    max_utterances: int | None = field(default=None, metadata={"help": "Measure on the first so many of each corpus."})
    max_seconds: float = field(default=30.0, metadata={"help": "Longer utterances are left out."})
    batch_size: int = field(default=32, metadata={"help": "Utterances at once."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cpu or cuda."})
    output_dir: str | None = field(default=None, metadata={"help": "For the results; MODEL/evaluation by default."})

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path(self.output_dir or Path(self.model, "evaluation"))

    def load(self, source: str) -> Dataset:
        """One corpus; for its errors see `load_corpus` and `leave_out_long`."""
        return open_short(source, self.split, self.max_seconds, self.max_utterances)


@dataclass(kw_only=True)
class MeasuredSpeechArguments(MeasuringArguments):
    """With the corpora of a table."""

    dataset: list[str] = field(metadata={"help": "Corpora to measure on, see processing/corpora.py."})


def corpus_label(source: str) -> str:
    """
    A short name for tables and files: `an4` for a folder, `fleurs-en_us` for a Hub id with a configuration,
    `digit_strings` for composed ones; a folder that stands for a configuration gives its last part.
    """
    parsed = parse_source(source)
    if parsed.digit_strings:
        return "digit_strings"
    return "-".join(Path(part).name for part in (parsed.name, parsed.config) if part)


def label_sources(sources: Sequence[str]) -> dict[str, str]:
    """
    Sources by their labels.

    Raises:
        ValueError: two have the same.
    """
    labels = [corpus_label(source) for source in sources]
    if len(set(labels)) < len(labels):
        raise ValueError(f"Got corpora that tables cannot tell apart: {labels}. Measure them in turn.")
    return dict(zip(labels, sources, strict=True))
