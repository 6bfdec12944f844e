"""Tasks of a speech language model, told apart by their prompts (StableToken, appendix E.3)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SpeechTask:
    """
    What is asked about a recording, and which column of a corpus holds the answer.

    Args:
        name: as recipes and the pipeline call it.
        prompts: all ways to ask, in the paper's order and words.
        answer_column: `text`, or a column of labels, whose words are then the answer.
    """

    name: str
    prompts: tuple[str, ...]
    answer_column: str


TASKS = {
    task.name: task
    for task in (
        SpeechTask(
            name="asr",
            prompts=(
                "Please transcribe the following audio content into text.",
                "Please convert the following recording into text.",
                "Please transcribe this audio recording into text.",
                "Transcribe the following audio content into text.",
                "Convert the following recording into text.",
                "This audio recording needs to be transcribed into text.",
                "Recognize and convert the following speech content into text.",
                "Turn the following audio file into text.",
                "Transcribe this recording into text.",
                "Transcribe the following audio file into text.",
                "Convert this speech recording into text.",
                "Recognize the following audio content and convert it into text.",
                "Transcribe the following recording into text.",
            ),
            answer_column="text",
        ),
        SpeechTask(
            name="emotion",
            prompts=(
                "What is the emotion of this text?",
                "Analyze the sentiment of the following sentence.",
                "Identify the feeling expressed in this audio.",
                "Is the tone of this message positive or negative?",
                "Detect the emotion in the user’s feedback.",
                "What emotion is being conveyed here?",
                "Classify the emotion of this statement.",
                "Tell me the emotional state of the speaker.",
                "Analyze the emotional content of this speech.",
            ),
            answer_column="emotion",
        ),
    )
}


def find_task(name: str) -> SpeechTask:
    """The task of that name. Raises ValueError for a name that `TASKS` does not have."""
    if name not in TASKS:
        raise ValueError(f"Unknown task {name!r}: choose from {', '.join(TASKS)}.")
    return TASKS[name]


def draw_prompt(task: str, seed: int) -> str:
    """
    One of a task's prompts: "a prompt was randomly selected from the corresponding set for each sample".

    task: a name in `TASKS`; seed: of the sample, so that it meets the same prompt in every run.

    Raises:
        ValueError: an unknown task.
    """
    return random.Random(seed).choice(find_task(task).prompts)


def choose_prompt(
    tasks: Sequence[str], task: str | None = None, prompt: str | list[str] | None = None
) -> str | list[str] | None:
    """
    The prompt, or the first of the task's; of the first task where neither is given. None for a model of a single
    task, which has no prompts.

    tasks: those that the model was trained on.

    Raises:
        ValueError: both, or another task.
    """
    if task is not None and prompt is not None:
        raise ValueError(f"Got task={task!r} and prompt={prompt!r}. Pass one of them.")
    if prompt is not None:
        return prompt
    task = tasks[0] if task is None else task
    if task not in tasks:
        raise ValueError(f"Got task={task!r}, but this model was trained on {', '.join(tasks)}.")
    return find_task(task).prompts[0] if len(tasks) > 1 else None
