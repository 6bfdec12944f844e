"""Command lines of recipes: what is given there, over a preset's defaults, over the paper's."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

OF_TRAINING = dict(remove_unused_columns=False, report_to=["tensorboard"])  # whatever the preset


def parse_with_preset(
    classes: Sequence[type],
    presets: Mapping[str, Mapping[str, Any]],
    arguments: list[str] | None = None,
    further: Callable[[Namespace], Mapping[str, Any]] = lambda known: {},
) -> tuple:
    """
    Instances of these dataclasses, one of which has a `preset`.

    presets: defaults, by the preset's name; further: more of them, from what is given; arguments: words of the command
        line, sys.argv when None.
    """
    parser = HfArgumentParser(classes)
    known = parser.parse_known_args(arguments)[0]
    of_training = OF_TRAINING if any(issubclass(each, TrainingArguments) for each in classes) else {}
    parser.set_defaults(**{**of_training, **presets[known.preset], **further(known)})
    return parser.parse_args_into_dataclasses(arguments)


def given(**fields: Any) -> dict[str, Any]:
    """Those that are not None; the others keep the paper's values."""
    return {name: value for name, value in fields.items() if value is not None}
