"""
Explain one recording: its tokens, the residue that they leave, the noise that this residue is taken for, and the text.

    python recipes/explain_disentangled_whisper.py audio.wav --model outputs/mini_disentangled

Reads what soundfile reads (wav, flac, ogg, mp3), at any rate, of at most 30 s; channels are averaged. Prints the ids,
the likeliest noise classes and, where the folder holds a recognizer, the transcript, and draws one picture: waveform,
ids, residue over time, noise posterior. A second on one CPU core with a mini model.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from evaluate_disentangled_whisper import FRAME_SECONDS, load_models
from evaluate_stable_token import Models
from torch import Tensor

from clearspeech.processing.audio_reading import SAMPLING_RATE, read_audio
from clearspeech.trainers.evaluation import transcribe
from clearspeech.trainers.noise_figures import plot_explanation

SHOWN_CLASSES = 3
IDS_PER_LINE = 20


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", help="recording of at most 30 s")
    parser.add_argument("--model", required=True, help="folder or Hub id of a DisentangledWhisper")
    parser.add_argument("--output", help="the picture; NAME_explained.png in this folder by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    return parser.parse_args(arguments)


def read_recording(path: str) -> np.ndarray:
    """
    A file as `(samples,)` float32 at 16 kHz.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableAudioError (a ValueError): it cannot be decoded.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no audio file {path}.")
    return read_audio({"bytes": None, "path": path}, corpus="the command line")


def check_duration(path: str, waveform: np.ndarray, max_seconds: float):
    """Raises ValueError for a recording `(samples,)` of more than `max_seconds`."""
    seconds = len(waveform) / SAMPLING_RATE
    if seconds > max_seconds:
        raise ValueError(
            f"{path} lasts {seconds:.1f} s; a recording of at most {max_seconds:g} s can be explained, because the "
            "noise of one posterior should be the noise of one scene. Cut it into pieces."
        )


def explain(models: Models, waveform: np.ndarray) -> tuple[Tensor, Tensor, dict[str, float]]:
    """
    Ids and distances `(frames,)` of one recording `(samples,)` at 16 kHz, and the probability of each noise class,
    which is empty without a noise head.
    """
    features = models.feature_extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    explanation = models.tokenizer.explain(**features.to(models.tokenizer.device))
    real = explanation.attention_mask[0]
    posterior = {}
    if explanation.noise_probabilities is not None:
        probabilities = explanation.noise_probabilities[0].tolist()
        posterior = dict(zip(models.tokenizer.config.noise_classes, probabilities, strict=True))
    return explanation.audio_codes[0, real].cpu(), explanation.distances[0, real].cpu(), posterior


def recognize(models: Models, waveform: np.ndarray) -> str:
    """The transcript, with the beams of the folder's own generation config."""
    num_beams = models.recognizer.generation_config.num_beams or 1
    parts = (models.recognizer, models.feature_extractor, models.text_tokenizer)
    return transcribe(*parts, [waveform], num_beams=num_beams)[0]


def print_findings(name: str, seconds: float, codes: Tensor, posterior: dict[str, float]):
    """Ids in lines, and the likeliest noise classes."""
    print(f"{name}: {seconds:.2f} s, {len(codes)} ids, {len(codes.unique())} different")
    for line in codes.split(IDS_PER_LINE):
        print("  " + " ".join(f"{code:>4}" for code in line.tolist()))
    likeliest = sorted(posterior, key=posterior.get, reverse=True)[:SHOWN_CLASSES]
    if likeliest:
        print("noise: " + ", ".join(f"{name} {100 * posterior[name]:.1f} %" for name in likeliest))


def main(arguments: list[str] | None = None) -> Path:
    """
    Returns the path of the picture.

    Raises:
        FileNotFoundError, UnreadableAudioError: see `read_recording`.
        ValueError: a recording that is too long, or a model without a quantizer.
    """
    args = parse_arguments(arguments)
    waveform = read_recording(args.audio)
    models = load_models(args.model, args.device)
    if models.tokenizer is None:
        raise ValueError(f"{args.model} has no quantizer, so no ids and no residue to explain: give one that has.")
    config = models.tokenizer.config
    check_duration(args.audio, waveform, config.max_source_positions * 2 * FRAME_SECONDS)
    codes, distances, posterior = explain(models, waveform)
    print_findings(args.audio, len(waveform) / SAMPLING_RATE, codes, posterior)
    title = Path(args.audio).name
    if models.recognizer is not None:
        text = recognize(models, waveform)
        title = f'{title}: "{text}"'
        print(f"text: {text}")
    path = Path(args.output or f"{Path(args.audio).stem}_explained.png")
    plot_explanation(waveform, codes, distances, posterior, config.mel_frames_per_token * FRAME_SECONDS, path, title)
    print(f"picture: {path}")
    return path


if __name__ == "__main__":
    main()
