"""
How alike two voices are: the cosine of two embeddings, by one of three encoders of speakers.

    similarity = LdaSpeakerEncoder.fit(waveforms, speakers)  # trained here; or XVectorEncoder(folder), EcapaEncoder()
    cosine(similarity(made), similarity(target))

The paper's is ECAPA-TDNN. Its weights are not in the suite; what is trained here in seconds is a linear discriminant
analysis of statistics of the spectrum. It knows timbre (and the recording's channel) from a few dozen speakers and
nothing else: compare its numbers with one another, not with the paper's, and read them beside the similarity of
different speakers and of an utterance with itself, see `similarity_anchors`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor
from torchaudio.functional import create_dct
from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

from .codec_losses import log_mel_spectrogram
from .codec_metrics import SAMPLING_RATE, import_extra, zero_padded

WINDOW, NUM_MELS, NUM_CEPSTRA = 512, 40, 24  # samples, bins, coefficients without the first, which is loudness
QUIET = 1.5  # decades below the loudest frame: pauses say nothing about the voice
MAX_SPEAKER_DIM, MIN_SPEAKERS = 32, 3
SHRINKAGE = 0.1  # of the spread within speakers towards equal in all directions: few utterances know no better

SpeakerEncoder = Callable[[Tensor], Tensor]  # `(samples,)` at 16 kHz to an embedding `(dim,)`


def spectral_statistics(waveform: Tensor) -> Tensor:
    """
    Means and deviations over the louder frames of a waveform `(samples,)`, of its cepstra and of their changes from
    frame to frame: `(4 * 24,)`, whatever its loudness.
    """
    logs = log_mel_spectrogram(zero_padded(waveform[None].float(), 2 * WINDOW), WINDOW, NUM_MELS)[0]
    cepstra = create_dct(NUM_CEPSTRA + 1, NUM_MELS, "ortho")[:, 1:].T @ logs  # (coefficients, frames)
    changes = torch.diff(cepstra, dim=1, append=cepstra[:, -1:])
    loudness = logs.mean(dim=0)
    kept = loudness >= loudness.max() - QUIET
    parts = (values[:, kept] for values in (cepstra, changes))
    return torch.cat([each for values in parts for each in (values.mean(dim=1), values.std(dim=1, correction=0))])


def rows_of_known_speakers(speakers: Sequence[str]) -> list[int]:
    """Positions of utterances whose speaker has a name and is heard more than once."""
    counts = Counter(speakers)
    return [row for row, speaker in enumerate(speakers) if speaker and counts[speaker] > 1]


class LdaSpeakerEncoder:
    """
    Linear discriminant analysis of `spectral_statistics`: directions in which speakers differ most for how much each
    differs from himself. Directions have that spread as their unit and the training speakers' mean as their origin.

    shift, projection: `(features,)` and `(features, dim)`.
    """

    def __init__(self, shift: np.ndarray, projection: np.ndarray):
        self.shift = torch.as_tensor(shift, dtype=torch.float32)
        self.projection = torch.as_tensor(projection, dtype=torch.float32)

    @classmethod
    def fit(cls, waveforms: Sequence[Tensor | np.ndarray], speakers: Sequence[str]) -> "LdaSpeakerEncoder":
        """
        From utterances `(samples,)` of named speakers; those who are heard only once, or without a name, are left out.

        Raises:
            ValueError: fewer than three others.
        """
        kept = rows_of_known_speakers(speakers)
        names = {speakers[row] for row in kept}
        if len(names) < MIN_SPEAKERS:
            raise ValueError(
                f"Voices are learned from at least {MIN_SPEAKERS} named speakers with two utterances each; got "
                f"{len(names)} of them, in {len(speakers)} utterances."
            )
        statistics = np.stack([spectral_statistics(torch.tensor(np.array(waveforms[row]))).numpy() for row in kept])
        scale = statistics.std(axis=0) + 1e-6
        analysis = LinearDiscriminantAnalysis(
            solver="eigen", shrinkage=SHRINKAGE, n_components=min(MAX_SPEAKER_DIM, len(names) - 1)
        )
        analysis.fit(statistics / scale, [speakers[row] for row in kept])
        projection = analysis.scalings_[:, : min(MAX_SPEAKER_DIM, len(names) - 1)] / scale[:, None]
        return cls(statistics.mean(axis=0), np.ascontiguousarray(projection))

    def __call__(self, waveform: Tensor) -> Tensor:
        return (spectral_statistics(waveform.cpu()) - self.shift) @ self.projection

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({"shift": self.shift.numpy(), "projection": self.projection.numpy()}, path)

    @classmethod
    def load(cls, path: str | Path) -> "LdaSpeakerEncoder":
        """What `save` wrote."""
        return cls(**load_file(path))


class XVectorEncoder:
    """Embeddings of a speaker verification model of Transformers, such as WavLM's: a folder or Hub id."""

    def __init__(self, folder: str, device: str = "cpu"):
        self.model = AutoModelForAudioXVector.from_pretrained(folder).eval().to(device)
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> Tensor:
        samples = zero_padded(waveform.cpu().float(), SAMPLING_RATE // 2).numpy()  # its layers look at 15 frames
        inputs = self.feature_extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return self.model(**inputs.to(self.model.device)).embeddings[0].cpu()


class EcapaEncoder:
    """ECAPA-TDNN, the paper's (section 4.3), by SpeechBrain. Raises ImportError where that is not installed."""

    def __init__(self, source: str = "speechbrain/spkrec-ecapa-voxceleb"):
        package = import_extra(
            "speechbrain.inference.speaker", "ECAPA-TDNN", "pip install speechbrain; its weights come from the Hub"
        )
        self.classifier = package.EncoderClassifier.from_hparams(source=source)

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> Tensor:
        return self.classifier.encode_batch(waveform.cpu().float()[None])[0, 0].cpu()


def cosine(first: Tensor, second: Tensor) -> float:
    """Of two embeddings `(dim,)`: -1 to 1."""
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))


def similarity_anchors(encoder: SpeakerEncoder, waveforms: Sequence, speakers: Sequence[str]) -> dict[str, float]:
    """
    Mean cosines over pairs of utterances, which say what a similarity means: `similarity_same_speaker` and
    `similarity_other_speaker`, and `similarity_error`, the percentage of errors where both kinds are as often wrong.

    Raises:
        ValueError: no pair of one kind.
    """
    embeddings = torch.nn.functional.normalize(torch.stack([encoder(torch.as_tensor(each)) for each in waveforms]))
    cosines = (embeddings @ embeddings.T).double().numpy()
    alike = np.array(speakers)[:, None] == np.array(speakers)
    pairs = np.triu(np.ones_like(alike), k=1)
    same, other = cosines[alike & pairs], cosines[~alike & pairs]
    if not len(same) or not len(other):
        raise ValueError(f"Pairs of one and of two speakers are needed; got {len(same)} and {len(other)}.")
    thresholds = np.sort(np.concatenate([same, other]))
    rejected = np.searchsorted(np.sort(same), thresholds) / len(same)
    accepted = 1 - np.searchsorted(np.sort(other), thresholds) / len(other)
    closest = np.abs(rejected - accepted).argmin()
    return {
        "similarity_same_speaker": float(same.mean()),
        "similarity_other_speaker": float(other.mean()),
        "similarity_error": 50.0 * float(rejected[closest] + accepted[closest]),
    }
