"""Questions to the sequences that a SpeechLM is trained on: order, prompts, padding, labels, and what is refused."""

import pytest
import torch
from datasets import Dataset

from clearspeech.processing.speech_tasks import TASKS, draw_prompt
from clearspeech.processing.unit_sequences import UnitSequenceCollator, make_sequences, units_seed

UNITS = [[3, 0, 15], [1], [2, 2, 2, 2, 2]]
TEXT_END, SPEECH_END, FIRST_UNIT = 31, 32, 33  # behind the character tokenizer's 31 rows


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict(
        {"units": UNITS, "text": ["One", "two, three", "four"], "emotion": ["sad", "calm", "sad"]}
    )


def test_a_sequence_is_the_processors(rows, tiny_speech_processor):
    made = make_sequences(rows, tiny_speech_processor, max_tokens=64)
    assert made.column_names == ["input_ids", "num_prompt", "num_tokens", "task"]
    for row, sequence in zip(rows, made, strict=True):
        expected = tiny_speech_processor.sequence(row["units"], row["text"])
        assert sequence["input_ids"] == expected["input_ids"]
        assert (sequence["num_prompt"], sequence["num_tokens"]) == (0, len(expected["input_ids"]))
    assert made[0]["input_ids"][3] == SPEECH_END and made[0]["input_ids"][-1] == TEXT_END


def test_with_prompts_each_utterance_meets_one_of_its_task(rows, tiny_speech_processor):
    made = make_sequences(rows, tiny_speech_processor, 200, task="emotion", prompted=True)
    for row, sequence in zip(rows, made, strict=True):
        prompt = draw_prompt("emotion", units_seed(row["units"]))
        assert prompt in TASKS["emotion"].prompts
        expected = tiny_speech_processor.sequence(row["units"], row["emotion"], prompt)
        assert sequence["input_ids"] == expected["input_ids"]
        assert sequence["num_prompt"] == expected["num_prompt"] > 0


def test_batches_are_padded_on_the_right_and_prompts_and_padding_have_no_labels():
    first = {"input_ids": [5, 6, FIRST_UNIT, SPEECH_END, 7, TEXT_END], "num_prompt": 2}
    second = {"input_ids": [FIRST_UNIT + 1, SPEECH_END, 8, TEXT_END], "num_prompt": 0}
    batch = UnitSequenceCollator(pad_token_id=0)([first, second])
    assert batch["input_ids"].tolist() == [first["input_ids"], [*second["input_ids"], 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert batch["labels"].tolist() == [[-100, -100, *first["input_ids"][2:]], [*second["input_ids"], -100, -100]]
    alone = UnitSequenceCollator(pad_token_id=0)([second])
    assert torch.equal(alone["seeds"], batch["seeds"][1:]) and len(set(batch["seeds"].tolist())) == 2


def test_sequences_longer_than_the_context_are_counted_and_named(rows, tiny_speech_processor):
    lengths = [len(tiny_speech_processor.sequence(row["units"], row["text"])["input_ids"]) for row in rows]
    assert make_sequences(rows, tiny_speech_processor, max_tokens=max(lengths)).num_rows == 3
    message = rf"2 of 3 sequences are longer than the model's context of 10 tokens: row 1 \({lengths[1]} tokens: 'two"
    with pytest.raises(ValueError, match=message):
        make_sequences(rows, tiny_speech_processor, max_tokens=10)
    many = rows.select([1] * 7)
    with pytest.raises(ValueError, match=r"7 of 7 .*row 4 \(12 tokens: 'two, three'\) \.\.\."):
        make_sequences(many, tiny_speech_processor, max_tokens=10)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", ["one", None, "two"], "row 1: nothing is left of the transcript ''"),
        ("text", ["one", "two", "?!"], r"row 2: nothing is left of the transcript '\?!'"),
        ("text", ["one <speech_end>", "two", "three"], "row 0: .*special tokens <speech_end>"),
        ("units", [[1], [2], [16]], "row 2: Speech units must be 0 to 15; got 16 to 16"),
        ("units", [[1], [], [2]], "row 1: Got no speech units"),
    ],
)
def test_a_row_that_cannot_be_a_sequence_is_named(rows, tiny_speech_processor, column, values, message):
    rows = Dataset.from_dict(rows.to_dict() | {column: values})
    with pytest.raises(ValueError, match=message):
        make_sequences(rows, tiny_speech_processor, max_tokens=64)


def test_a_task_without_its_answers_is_refused(rows, tiny_speech_processor):
    with pytest.raises(ValueError, match="'emotion' answers with the column 'emotion'; these rows have"):
        make_sequences(rows.remove_columns("emotion"), tiny_speech_processor, 64, task="emotion")
