"""Measuring a speech language model: WER of its transcripts and accuracy of its answers, on clean and noisy speech."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ..configuration.configuration_speech_lm import MAX_ANSWER_TOKENS
from ..processing.audio_reading import SAMPLING_RATE
from ..processing.perturbation import Perturbation, utterance_seed
from ..processing.processing_speech_lm import SpeechLMProcessor
from ..processing.speech_tasks import draw_prompt, find_task
from .evaluation import TABLE_13, length_batches, perturbed_views, snr_sweep
from .metrics import AnswerAccuracy, CharacterErrorRate, WordErrorRate

ALL_CONDITIONS = "table13"


@dataclass
class SpokenTest:
    """
    Utterances and the answers that tasks expect.

    Args:
        waveforms: `(samples,)` at 16 kHz each.
        references: by task one right answer per utterance.
        speakers: who says each; None where that is not known of all.
    """

    waveforms: list[np.ndarray]
    references: dict[str, list[str]]
    speakers: list[str] | None = None


def read_test(corpus: Dataset, tasks: Sequence[str], source: str) -> SpokenTest:
    """
    A corpus for those of the tasks that it has answers for; source: what errors call it.

    Raises ValueError for an unknown task, a corpus with answers for none of them, and a row without one.
    """
    columns = {task: find_task(task).answer_column for task in tasks}
    if not set(columns.values()) & set(corpus.column_names):
        raise ValueError(
            f"{source} has no column {' or '.join(columns.values())} to compare answers with; it has "
            f"{', '.join(corpus.column_names)}. Give another corpus or task."
        )
    waveforms = [np.asarray(waveform, dtype=np.float32) for waveform in corpus.select_columns("audio")[:]["audio"]]
    speakers = corpus.select_columns("speaker")[:]["speaker"] if "speaker" in corpus.column_names else [None]
    test = SpokenTest(waveforms, references={}, speakers=speakers if all(speakers) else None)
    for task, column in columns.items():
        if column not in corpus.column_names:
            continue
        answers = [str(answer or "") for answer in corpus.select_columns(column)[:][column]]
        empty = [row for row, answer in enumerate(answers) if not answer]
        if empty:
            raise ValueError(f"{source} has no {column} in rows {empty[:10]} ({len(empty)} in all): leave them out.")
        test.references[task] = answers
    return test


def choose_perturbations(
    conditions: Sequence[str], kinds: Sequence[str], snrs_db: Sequence[float], noise: Mapping[str, list]
) -> dict[str, Perturbation]:
    """
    What to measure under beside clean speech, for `perturbed_views`.

    conditions: of Table 13 by their names, or `table13`: all that need no clips or have some in `noise`; kinds: noises
    that are met at each of `snrs_db`, see `snr_sweep`.
    Raises ValueError for unknown names, kinds without SNRs, and real noise asked for by name that has no clips.
    """
    named = [name for name in conditions if name != ALL_CONDITIONS]
    unknown = [name for name in named if name not in TABLE_13]
    if unknown:
        raise ValueError(f"Unknown condition {', '.join(unknown)}: choose {ALL_CONDITIONS} or {', '.join(TABLE_13)}.")
    if kinds and not snrs_db:
        raise ValueError(f"A curve of {', '.join(kinds)} needs SNRs in dB, got none.")
    sweep = snr_sweep(kinds, snrs_db)
    without_clips = [name for name in [*named, *kinds] if TABLE_13[name].kind == "real" and not noise.get(name)]
    if without_clips:
        raise ValueError(f"No clips of {', '.join(without_clips)}: give a --noise_dataset that has some.")
    rows = TABLE_13 if ALL_CONDITIONS in conditions else {name: TABLE_13[name] for name in named}
    return rows | sweep


def speech_units(
    processor: SpeechLMProcessor, waveforms: list[np.ndarray], batch_size: int = 32, title: str = "units"
) -> list[list[int]]:
    """Units of `waveforms` (16 kHz), in their order; title: of the progress bar."""
    units: dict[int, list[int]] = {}
    for rows in length_batches(waveforms, batch_size, title):
        units |= zip(rows, processor.units([waveforms[row] for row in rows], SAMPLING_RATE), strict=True)
    return [units[row] for row in range(len(waveforms))]


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    processor: SpeechLMProcessor,
    units: list[list[int]],
    prompts: list[str] | None = None,
    batch_size: int = 32,
    num_beams: int = 1,
    title: str = "answer",
) -> list[str]:
    """
    What a model writes after speech `units`, in their order.

    prompts: one per utterance; None for a model that was trained without. num_beams: of the search; 1 is greedy. An
    answer has at most `MAX_ANSWER_TOKENS`, or what the longest utterance of its batch leaves of the context.
    Raises ValueError for units that leave the context no room for an answer.
    """
    was_training = model.training
    model.eval()
    texts: dict[int, str] = {}
    for rows in length_batches(units, batch_size, title):
        prompt = None if prompts is None else [prompts[row] for row in rows]
        inputs = processor(units=[units[row] for row in rows], prompt=prompt, return_tensors="pt").to(model.device)
        width = inputs["input_ids"].shape[1]
        room = model.config.max_position_embeddings - width
        if room < 1:
            raise ValueError(
                f"Utterance {rows[-1]} takes {width} tokens, the context holds {width + room}: nothing is left for an "
                "answer. Leave long utterances out (--max_seconds)."
            )
        limits = dict(max_new_tokens=min(MAX_ANSWER_TOKENS, room), num_beams=num_beams, do_sample=False)
        ids = model.generate(**inputs, **limits)[:, width:]
        texts |= zip(rows, processor.batch_decode(ids), strict=True)
    model.train(was_training)
    return [texts[row] for row in range(len(units))]


def score(task: str, answers: list[str], references: list[str], speakers: list[str] | None = None) -> dict[str, float]:
    """Of a task that answers in free text `wer` and `cer` in percent, of another the keys of `AnswerAccuracy`."""
    given = dict(predictions=answers, references=references)
    if find_task(task).answer_column != "text":
        return AnswerAccuracy().compute(**given, speakers=speakers)
    return WordErrorRate().compute(**given) | CharacterErrorRate().compute(**given)


def measure(
    model: PreTrainedModel,
    processor: SpeechLMProcessor,
    test: SpokenTest,
    noise: dict[str, list],
    perturbations: Mapping[str, Perturbation],
    batch_size: int = 32,
    num_beams: int = 1,
) -> dict[str, float]:
    """
    All tasks of one corpus, on clean speech and under each perturbation.

    A model that was trained on several tasks meets one of the task's prompts with each utterance, seeded by its clean
    samples: the same under all noise. noise, perturbations: see `perturbed_views`.
    Returns what `score` measures on clean speech under its names, under noise as `<name>/<condition>`.
    """
    prompts: dict[str, list[str] | None] = dict.fromkeys(test.references)
    if len(processor.tasks) > 1:
        seeds = [utterance_seed(waveform) for waveform in test.waveforms]
        prompts = {task: [draw_prompt(task, seed) for seed in seeds] for task in test.references}
    table: dict[str, float] = {}
    for condition, waveforms in all_views(test.waveforms, noise, perturbations):
        units = speech_units(processor, waveforms, batch_size, f"units, {condition or 'clean'}")
        for task, references in test.references.items():
            title = f"{task}, {condition or 'clean'}"
            answers = answer(model, processor, units, prompts[task], batch_size, num_beams, title)
            for name, value in score(task, answers, references, test.speakers).items():
                if not condition:
                    table[name] = value
                elif name != "majority":  # which no noise changes
                    table[f"{name}/{condition}"] = value
    return table


def all_views(
    waveforms: list[np.ndarray], noise: dict[str, list], perturbations: Mapping[str, Perturbation]
) -> Iterable[tuple[str, list]]:
    """Clean speech under the name "", then `perturbed_views`."""
    yield "", waveforms
    yield from perturbed_views(waveforms, noise, perturbations)
