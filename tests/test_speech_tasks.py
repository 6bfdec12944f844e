"""Questions to the tasks of a speech language model: the paper's prompts, and who meets which."""

from collections import Counter
from pathlib import Path

import pytest

from clearspeech.processing.speech_tasks import TASKS, draw_prompt, find_task

PAPER = Path(__file__).parents[2] / "shared" / "papers" / "004_c6b35567525a8b8b.txt"


def test_each_task_has_the_papers_number_of_prompts_and_names_its_answer():
    assert {name: len(set(task.prompts)) for name, task in TASKS.items()} == {"asr": 13, "emotion": 9}
    assert [TASKS[name].answer_column for name in ("asr", "emotion")] == ["text", "emotion"]
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.skipif(not PAPER.exists(), reason="the papers are not here")
@pytest.mark.parametrize(("name", "heading", "following"), [("asr", "E.3.1", "E.3.2"), ("emotion", "E.3.2", "E.3.3")])
def test_prompts_are_those_of_the_appendix_in_its_order(name, heading, following):
    appendix = PAPER.read_text(encoding="utf-8").partition(heading)[2].partition(following)[0]
    assert TASKS[name].prompts == tuple(line.strip() for line in appendix.splitlines()[1:] if line.strip())


def test_a_sample_meets_the_same_prompt_in_every_run_and_all_prompts_are_used():
    drawn = [draw_prompt("emotion", seed) for seed in range(2000)]
    assert drawn == [draw_prompt("emotion", seed) for seed in range(2000)]
    counts = Counter(drawn)
    assert set(counts) == set(TASKS["emotion"].prompts)
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="Unknown task 'translate': choose from asr, emotion"):
        find_task("translate")
    with pytest.raises(ValueError, match="'translate'"):
        draw_prompt("translate", 0)
