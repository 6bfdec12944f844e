"""
Encode a recording and decode it again, from all books of a codec or some of them.

    python recipes/resynthesize.py in.wav out.wav --model outputs/hasrd --books semantic

Hardware: one CPU core; a mini codec is faster than real time. The output is mono at 16 kHz, as long as the input, in
the format that its name says, and as loud as what the codec was trained on: features that are normalized per sentence
carry no loudness. It is written whole or not at all, over what was there. What to expect of HASRD (section
4.3): "semantic" alone is intelligible and of no speaker, "acoustic" alone is a speaker who says nothing.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch
from evaluate_hasrd import load_model
from transformers import FeatureExtractionMixin, HfArgumentParser

from clearspeech.modeling.modeling_hasrd import HasrdModel
from clearspeech.processing.audio_reading import SAMPLING_RATE, read_audio
from clearspeech.trainers.results import write_atomically


@dataclass
class RecipeArguments:
    model: str = field(metadata={"help": "Folder or Hub id of a HASRD."})
    books: str = field(
        default="all",
        metadata={"help": "all, semantic, acoustic, or how many of the first, the semantic one counted."},
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})


def parse_arguments(arguments: list[str] | None = None) -> tuple[RecipeArguments, Path, Path]:
    """
    Options, the recording and where its resynthesis goes.

    Raises:
        ValueError: both are one file, or the second has no format.
    """
    parser = HfArgumentParser(RecipeArguments)
    parser.add_argument("source", type=Path, help="Recording to read; channels are averaged, any rate.")
    parser.add_argument("target", type=Path, help="File to write.")
    recipe, files = parser.parse_args_into_dataclasses(arguments)
    if files.source.resolve() == files.target.resolve():
        raise ValueError(f"{files.target} is the recording itself: write somewhere else.")
    formats = soundfile.available_formats()
    if files.target.suffix[1:].upper() not in formats:
        raise ValueError(f"{files.target} must end in the name of a format, as .wav or .flac do.")
    return recipe, files.source, files.target


@torch.no_grad()
def resynthesize(
    model: HasrdModel, feature_extractor: FeatureExtractionMixin, waveform: np.ndarray, books: str | int
) -> tuple[np.ndarray, int]:
    """Decoded samples `(samples,)` of samples at 16 kHz, as many, and how many tokens each book had."""
    inputs = feature_extractor(
        waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True
    ).to(model.device)
    codes = model.encode(**inputs).audio_codes
    audio = model.decode(codes, books=books, num_samples=len(waveform)).audio_values
    return audio[0].cpu().numpy(), codes.shape[2]


def main(arguments: list[str] | None = None):
    recipe, source, target = parse_arguments(arguments)
    waveform = read_audio({"bytes": None, "path": str(source)}, "the command line")
    model, feature_extractor = load_model(recipe.model, recipe.device)
    books = int(recipe.books) if recipe.books.lstrip("-").isdigit() else recipe.books
    audio, num_tokens = resynthesize(model, feature_extractor, waveform, books)
    file = io.BytesIO()
    soundfile.write(file, audio, SAMPLING_RATE, format=target.suffix[1:])
    write_atomically(target, file.getvalue())
    seconds = len(waveform) / SAMPLING_RATE
    print(f"{target}: {seconds:.2f} s, {num_tokens} tokens of {model.config.num_books} books, {recipe.books} decoded.")


if __name__ == "__main__":
    main()
