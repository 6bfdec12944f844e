"""Measuring a speech language model: order, prompts, noise, classes, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BatchEncoding

from clearspeech.processing.perturbation import EVALUATION_PERTURBATIONS, utterance_seed
from clearspeech.processing.speech_tasks import TASKS, draw_prompt
from clearspeech.trainers.speech_lm_evaluation import (
    SpokenTest,
    answer,
    choose_perturbations,
    measure,
    read_test,
    score,
    speech_units,
)

WORDS = ["happy", "sad", "calm", "angry", "no class"]
END, FIRST_UNIT, PAD = 5, 10, 9


class LoudnessProcessor:
    """A unit for every 4000 samples: their loudness, in steps of 0.1. Counts what it is asked."""

    def __init__(self, *tasks: str):
        self.tasks = tasks or ("emotion",)
        self.prompts, self.batches = [], []

    def units(self, audio: list[np.ndarray], sampling_rate: int) -> list[list[int]]:
        assert sampling_rate == 16000
        self.batches.append(len(audio))
        pieces = [np.array_split(waveform, -(-len(waveform) // 4000)) for waveform in audio]
        return [[round(10 * float(np.sqrt(np.square(piece).mean()))) for piece in row] for row in pieces]

    def __call__(self, units: list[list[int]], prompt: list[str] | None, return_tensors: str) -> BatchEncoding:
        self.prompts.append(prompt)
        width = max(map(len, units))
        ids = torch.tensor([[PAD] * (width - len(row)) + [FIRST_UNIT + unit for unit in row] for row in units])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids != PAD).long()})

    def batch_decode(self, ids: torch.Tensor) -> list[str]:
        return [WORDS[row[0]] if row[0] < END else "" for row in ids.tolist()]


class LoudnessModel(torch.nn.Module):
    """Answers with the word of the loudness of the last unit."""

    device = torch.device("cpu")
    config = SimpleNamespace(max_position_embeddings=12)

    def generate(self, input_ids, attention_mask, max_new_tokens: int, num_beams: int, do_sample: bool):
        assert input_ids.shape[1] + max_new_tokens <= self.config.max_position_embeddings and not do_sample
        answers = (input_ids[:, -1:] - FIRST_UNIT).clamp(max=len(WORDS) - 1)
        return torch.cat([input_ids, answers, torch.full_like(answers, END)], dim=1)


def tone(loudness: int, num_samples: int = 4000) -> np.ndarray:
    """A sine whose root mean square is a tenth of `loudness`."""
    return (0.1 * loudness * np.sqrt(2) * np.sin(np.arange(num_samples))).astype(np.float32)


@pytest.fixture
def emotional() -> SpokenTest:
    """Four utterances in three lengths; the third is answered wrongly."""
    waveforms = [tone(1, 8000), tone(2), tone(3), tone(0, 12000)]
    return SpokenTest(waveforms, {"emotion": ["sad", "calm", "sad", "happy"]})


def test_units_and_answers_come_back_in_order():
    processor, waveforms = LoudnessProcessor(), [tone(3, 12000), tone(1), tone(2, 8000), tone(0)]
    units = speech_units(processor, waveforms, batch_size=3)
    assert units == [[3, 3, 3], [1], [2, 2], [0]]
    assert processor.batches == [3, 1]
    assert answer(LoudnessModel(), processor, units, batch_size=3) == ["angry", "sad", "calm", "happy"]


def test_measuring_does_not_end_training():
    model = LoudnessModel().train()
    answer(model, LoudnessProcessor(), [[1]])
    assert model.training


def test_units_that_fill_the_context_leave_no_room_for_an_answer():
    with pytest.raises(ValueError, match="Utterance 1 takes 12 tokens, the context holds 12: nothing is left"):
        answer(LoudnessModel(), LoudnessProcessor(), [[1], [1] * 12])


def test_the_table_has_clean_speech_and_every_condition(emotional):
    rows = choose_perturbations(["table13"], ["pink"], [0.0], {})
    table = measure(LoudnessModel(), LoudnessProcessor(), emotional, {}, rows)
    synthetic = [row.name for row in EVALUATION_PERTURBATIONS if row.kind != "real"]
    measured = ("accuracy", "accuracy_low", "accuracy_high", "unparsed")
    names = {f"{name}/{condition}" for name in measured for condition in [*synthetic, "pink@0"]}
    assert set(table) == {*measured, "majority", *names}
    assert table["accuracy"] == 75.0 and table["majority"] == 50.0
    assert table["unparsed"] == 25.0  # "angry", which is no class here


def test_noise_changes_the_answers(emotional):
    rows = choose_perturbations([], ["gaussian"], [20.0, -10.0], {})
    table = measure(LoudnessModel(), LoudnessProcessor(), emotional, {}, rows)
    assert table["accuracy/gaussian@20"] == 75.0
    assert table["accuracy/gaussian@-10"] == 25.0  # silence, which has no noise to an SNR, is still "happy"


def test_each_utterance_has_its_prompt_whatever_the_noise(emotional):
    processor, rows = LoudnessProcessor("asr", "emotion"), choose_perturbations(["pink"], [], [], {})
    measure(LoudnessModel(), processor, emotional, {}, rows, batch_size=8)
    clean, noisy = processor.prompts
    by_length = [1, 2, 0, 3]
    assert clean == noisy == [draw_prompt("emotion", utterance_seed(emotional.waveforms[row])) for row in by_length]
    assert set(clean) <= set(TASKS["emotion"].prompts)


def test_a_model_of_one_task_gets_no_prompt(emotional):
    processor = LoudnessProcessor()
    measure(LoudnessModel(), processor, emotional, {}, {})
    assert processor.prompts == [None]


def test_transcripts_are_scored_as_text():
    assert score("asr", ["one two"], ["ONE, three two"]) == pytest.approx({"wer": 100 / 3, "cer": 100 * 6 / 13})


# --- corpora ---


def make_corpus(**columns: list) -> Dataset:
    audio = [tone(index) for index in range(2)]
    return Dataset.from_dict({"audio": audio, **columns}).with_format(
        "numpy", columns=["audio"], output_all_columns=True
    )


def test_a_corpus_is_read_for_the_tasks_it_has_answers_for():
    corpus = make_corpus(text=["One", "two"], emotion=["sad", "calm"])
    test = read_test(corpus, ["asr", "emotion"], "here")
    assert test.references == {"asr": ["One", "two"], "emotion": ["sad", "calm"]}
    assert all(np.array_equal(waveform, tone(index)) for index, waveform in enumerate(test.waveforms))
    assert read_test(corpus.remove_columns("emotion"), ["asr", "emotion"], "here").references.keys() == {"asr"}


def test_a_corpus_without_answers_is_refused():
    with pytest.raises(ValueError, match="here has no column emotion to compare answers with; it has audio, text"):
        read_test(make_corpus(text=["one", "two"]), ["emotion"], "here")


def test_rows_without_answer_are_refused():
    with pytest.raises(ValueError, match=r"here has no emotion in rows \[1\] \(1 in all\)"):
        read_test(make_corpus(emotion=["sad", None]), ["emotion"], "here")


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="Unknown task 'translation'"):
        read_test(make_corpus(text=["one", "two"]), ["translation"], "here")


# --- conditions ---


def test_conditions_come_from_table_13_and_from_sweeps():
    clips = {"real": [tone(1)]}
    assert set(choose_perturbations(["table13"], [], [], {})) == {row.name for row in EVALUATION_PERTURBATIONS}
    rows = choose_perturbations(["brown"], ["real"], [5.0, 0.0], clips)
    assert {name: (row.name, row.minimum) for name, row in rows.items()} == {
        "brown": ("brown", 16.0),
        "real@5": ("real", 5.0),
        "real@0": ("real", 0.0),
    }


@pytest.mark.parametrize(
    ("conditions", "kinds", "snrs_db", "message"),
    [
        (["rain"], [], [], "Unknown condition rain: choose table13 or gaussian, pink"),
        ([], ["rain"], [5.0], "Unknown kinds of noise rain"),
        ([], ["pink"], [], "A curve of pink needs SNRs"),
        (["real"], [], [], "No clips of real: give a --noise_dataset"),
        (["table13"], ["real_ood"], [5.0], "No clips of real_ood"),
    ],
)
def test_conditions_that_cannot_be_measured_are_refused(conditions, kinds, snrs_db, message):
    with pytest.raises(ValueError, match=message):
        choose_perturbations(conditions, kinds, snrs_db, {})
