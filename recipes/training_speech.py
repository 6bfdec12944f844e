"""The speech that recipes learn from: its part of their command lines, and its loading."""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from clearspeech.processing.corpora import leave_out_long, load_corpora
from clearspeech.trainers.evaluation import spread_rows

STATISTICS_ROWS = 10_000  # of a corpus for the mean and deviation of mel bins: far more than they need


@dataclass(kw_only=True)
class SpeechArguments:
    """What every recipe that learns from speech can be told of it."""

    dataset: list[str] = field(metadata={"help": "Corpora to learn from, see processing/corpora.py."})
    max_seconds: float = field(default=30.0, metadata={"help": "Longer utterances are left out."})
    on_error: str = field(
        default="raise",
        metadata={
            "help": "At an unreadable audio file: skip it and count it, or raise.",
            "choices": ["raise", "skip"],
        },
    )

    def load(self, split: str, sources: list[str] | None = None) -> Dataset:
        """
        `--dataset`, or other sources, in a split, without long utterances. None is streamed: these recipes need their
        length, or all of their transcripts. For the errors see `load_corpora` and `leave_out_long`.
        """
        return self.limit(load_corpora(sources or self.dataset, split, on_error=self.on_error, streaming=False), split)

    def limit(self, speech: Dataset, split: str) -> Dataset:
        """Those utterances of a split that are used."""
        return leave_out_long(speech, self.max_seconds)

    def describe(self, split: str, sources: list[str] | None = None) -> dict[str, Any]:
        """What `load` loads, for whoever finds what was made of it."""
        return {"corpora": sources or self.dataset, "split": split, "max_seconds": self.max_seconds}


@dataclass(kw_only=True)
class ValidatedSpeechArguments(SpeechArguments):
    """With speech to validate on."""

    max_validation_rows: int | None = field(
        default=None, metadata={"help": "Validate on so many rows, of all corpora; on all if not given."}
    )

    def limit(self, speech: Dataset, split: str) -> Dataset:
        """The same, and of validation at most `max_validation_rows`, from all over."""
        speech = super().limit(speech, split)
        if split == "validation" and self.max_validation_rows is not None:
            return spread_rows(speech, self.max_validation_rows)
        return speech


@dataclass(kw_only=True)
class ResumableArguments:
    """Of a training."""

    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})


def statistics_rows(speech: Dataset) -> Dataset:
    """Random rows, the same at each call, to measure the features' mean and deviation on."""
    return speech.shuffle(seed=0).select(range(min(STATISTICS_ROWS, len(speech))))
