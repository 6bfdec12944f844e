"""Where speech units come from: audio tokenizers and pieces, loaded, checked and saved."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForAudioTokenization, PreTrainedModel
from transformers.utils import cached_file

from .unit_pieces import UnitPieces


def load_audio_tokenizer(name: str, **options: Any) -> PreTrainedModel:
    """
    An audio tokenizer with all its weights; name and options as `from_pretrained` takes them.

    Raises:
        ValueError: its configuration or weights cannot be found, or its file lacks some, such as the centroids.
    """
    place = "/".join(part for part in (name, options.get("subfolder")) if part)
    try:
        model, report = AutoModelForAudioTokenization.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot load the audio tokenizer of {place}: {error}") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(
            f"The weights in {place} lack {missing}, so its units would be random. Save the processor again with "
            "`save_pretrained`."
        )
    return model


def save_audio_tokenizer(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    """
    Save an audio tokenizer in a folder of a processor's; options as `save_pretrained` takes them.

    One that was loaded with `trust_remote_code` brings its source, which Transformers looks for in the root, and its
    `auto_map`, which Transformers would write anew, taking a class with "Tokenizer" in its name for one of text.
    """
    auto_map = dict(vars(model.config).get("auto_map", {}))
    model.save_pretrained(folder, **options)
    if model._auto_class is None:
        return
    model.config.auto_map = auto_map
    for source in folder.glob("*.py"):
        source.replace(folder.parent / source.name)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": auto_map}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_pieces(name: str, file: str, **options: Any) -> UnitPieces:
    """The pieces that a processor's configuration names. Raises OSError when they are missing."""
    try:
        return UnitPieces.load(cached_file(name, file, **options))
    except OSError as error:
        raise OSError(
            f"processor_config.json of {name} says that units are pieces of {file}, which cannot be found: {error}"
        ) from error


def check_pieces(unit_pieces: UnitPieces, codebook_size: int) -> None:
    """Refuse pieces of another codebook; in `reference` mode they know no more than the codes that were seen."""
    num_codes = unit_pieces.num_units
    if num_codes > codebook_size or (unit_pieces.mode == "single_script" and num_codes < codebook_size):
        raise ValueError(
            f"The pieces are of {num_codes} codes, but the audio tokenizer has {codebook_size}. Fit pieces to its own "
            "codes (recipes/fit_speech_units.py)."
        )
