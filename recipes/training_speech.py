"""The speech that recipes learn from: its part of their command lines, and its loading."""

from dataclasses import dataclass, field

from datasets import Dataset

from clearspeech.processing.corpora import leave_out_long, load_corpora
from clearspeech.trainers.evaluation import spread_rows

STATISTICS_ROWS = 10_000  # of a corpus for the mean and deviation of 80 mel bins: far more than they need


@dataclass(kw_only=True)
class SpeechArguments:
    """What every such recipe can be told of its speech."""

    dataset: list[str] = field(metadata={"help": "Corpora to learn from, see processing/corpora.py."})
    max_seconds: float = field(default=30.0, metadata={"help": "Longer utterances are left out."})
    on_error: str = field(
        default="raise",
        metadata={
            "help": "At an unreadable audio file: skip it and count it, or raise.",
            "choices": ["raise", "skip"],
        },
    )


@dataclass(kw_only=True)
class ValidatedSpeechArguments(SpeechArguments):
    """With speech to validate on, while training that can be resumed."""

    max_validation_rows: int | None = field(
        default=None, metadata={"help": "Validate on so many rows, of all corpora; on all if not given."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue from the last checkpoint in output_dir."})


def load_speech(recipe: SpeechArguments, split: str, sources: list[str] | None = None) -> Dataset:
    """
    `--dataset`, or other sources, in a split, as `limit_split` leaves them. None is streamed: these recipes need their
    length, or all of their transcripts. For the errors see `load_corpora`.
    """
    sources = recipe.dataset if sources is None else sources
    return limit_split(recipe, load_corpora(sources, split, on_error=recipe.on_error, streaming=False), split)


def limit_split(recipe: SpeechArguments, speech: Dataset, split: str) -> Dataset:
    """Utterances of at most `max_seconds`, and in validation at most `max_validation_rows` of them."""
    speech = leave_out_long(speech, recipe.max_seconds)
    if split == "validation" and recipe.max_validation_rows is not None:
        speech = spread_rows(speech, recipe.max_validation_rows)
    return speech


def statistics_rows(speech: Dataset) -> Dataset:
    """Random rows, the same at each call, to measure the features' mean and deviation on."""
    return speech.shuffle(seed=0).select(range(min(STATISTICS_ROWS, len(speech))))
