"""Questions to the command lines of recipes: what goes before what?"""

from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import TrainingArguments

PRESETS = {"paper": {}, "mini": dict(size=2, depth=2, logging_steps=3)}


@dataclass
class Recipe:
    preset: str = "paper"
    size: int = 1
    depth: int = 1
    width: int = 1


@pytest.fixture
def presets(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import presets

    return presets


def test_what_is_given_goes_before_what_follows_from_it_and_that_before_the_preset(presets):
    def further(known):
        return dict(depth=10 * known.width, width=10)

    def parse(*words):
        return presets.parse_with_preset((Recipe,), PRESETS, list(words), further)[0]

    assert parse() == Recipe("paper", 1, 10, 10)
    assert parse("--preset", "mini", "--width", "3") == Recipe("mini", 2, 30, 3)
    assert parse("--preset", "mini", "--size", "5", "--depth", "6") == Recipe("mini", 5, 6, 10)


def test_a_training_keeps_its_columns_and_writes_logs_for_tensorboard(presets, tmp_path):
    words = ["--preset", "mini", "--output_dir", str(tmp_path)]
    recipe, args = presets.parse_with_preset((Recipe, TrainingArguments), PRESETS, words)
    assert (recipe.size, args.logging_steps, args.remove_unused_columns) == (2, 3, False)
    assert args.report_to == ["tensorboard"]
    _, args = presets.parse_with_preset((Recipe, TrainingArguments), PRESETS, [*words, "--report_to", "none"])
    assert args.report_to == []


def test_only_what_is_given_is_passed_on(presets):
    assert presets.given(a=None, b=0, c=False, d="x") == {"b": 0, "c": False, "d": "x"}
