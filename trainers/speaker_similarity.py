"""
How alike two voices are: the cosine of two embeddings, by one of three encoders of speakers.

    encoder = LdaSpeakerEncoder.fit(waveforms, speakers, corpora).centred(recordings)  # trained here
    encoder = XVectorEncoder(folder)  # or EcapaEncoder()
    cosine(encoder(made), encoder(target))

The paper's is ECAPA-TDNN. Its weights are not in the suite; what is trained here in seconds is a linear discriminant
analysis of statistics of the spectrum. It knows timbre (and the recording's channel) from a few dozen speakers and
nothing else: compare its numbers with one another, not with the paper's, and read them beside the similarity of
different speakers and of an utterance with itself, see `similarity_anchors`.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
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


def rows_of_known_speakers(speakers: Sequence[str], corpora: Sequence[str]) -> list[int]:
    """
    Positions of utterances whose speaker has a name and is heard more than once. corpora: what each utterance is from;
    a name in two of them is two speakers.
    """
    named = list(zip(corpora, speakers, strict=True))
    counts = Counter(named)
    return [row for row, each in enumerate(named) if each[1] and counts[each] > 1]


class LdaSpeakerEncoder:
    """
    Linear discriminant analysis of `spectral_statistics`: directions in which speakers differ most for how much each
    differs from himself, with that spread as their unit.

    Corpora differ more than speakers do, in microphones and rooms: around one mean of several corpora two speakers of
    the same one are alike (cosines of 0.2 to 0.9 were measured). So directions are learned from speakers of the same
    corpus, and embeddings compared around the mean of the corpus that is measured, see `centred`.

    origin, projection: `(features,)` and `(features, dim)`.
    """

    def __init__(self, origin: np.ndarray, projection: np.ndarray):
        self.origin = torch.as_tensor(origin, dtype=torch.float32)
        self.projection = torch.as_tensor(projection, dtype=torch.float32)

    @classmethod
    def fit(
        cls, waveforms: Sequence[Tensor | np.ndarray], speakers: Sequence[str], corpora: Sequence[str] | None = None
    ) -> "LdaSpeakerEncoder":
        """
        From utterances `(samples,)` of named speakers; those who are heard only once, or without a name, are left out.
        corpora: what each utterance is from; all from one when None.

        Raises:
            ValueError: fewer than three others.
        """
        corpora = corpora or [""] * len(speakers)
        kept = rows_of_known_speakers(speakers, corpora)
        names = [f"{corpora[row]} {speakers[row]}" for row in kept]
        num_speakers = len(set(names))
        if num_speakers < MIN_SPEAKERS:
            raise ValueError(
                f"Voices are learned from at least {MIN_SPEAKERS} named speakers with two utterances each; got "
                f"{num_speakers} of them, in {len(speakers)} utterances."
            )
        statistics = np.stack([spectral_statistics(torch.tensor(np.array(waveforms[row]))).numpy() for row in kept])
        origin, of_row = statistics.mean(axis=0), np.array([corpora[row] for row in kept])
        for corpus in set(of_row):
            statistics[of_row == corpus] -= statistics[of_row == corpus].mean(axis=0)
        scale = statistics.std(axis=0) + 1e-6
        num_directions = min(MAX_SPEAKER_DIM, num_speakers - 1)
        analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE, n_components=num_directions)
        analysis.fit(statistics / scale, names)
        return cls(origin, np.ascontiguousarray(analysis.scalings_[:, :num_directions] / scale[:, None]))

    def centred(self, recordings: Sequence[Tensor]) -> "LdaSpeakerEncoder":
        """The same directions around the mean of other recordings `(samples,)`, of the corpus that is measured."""
        origin = torch.stack([spectral_statistics(each.cpu()) for each in recordings]).mean(dim=0)
        return LdaSpeakerEncoder(origin, self.projection)

    def __call__(self, waveform: Tensor) -> Tensor:
        return (spectral_statistics(waveform.cpu()) - self.origin) @ self.projection


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

    def __init__(self, source: str = "speechbrain/spkrec-ecapa-voxceleb", device: str = "cpu"):
        package = import_extra(
            "speechbrain.inference.speaker", "ECAPA-TDNN", "pip install speechbrain; its weights come from the Hub"
        )
        self.classifier = package.EncoderClassifier.from_hparams(source=source, run_opts={"device": device})

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> Tensor:
        return self.classifier.encode_batch(waveform.cpu().float()[None])[0, 0].cpu()


def cosine(first: Tensor, second: Tensor) -> float:
    """Of two embeddings `(dim,)`: -1 to 1."""
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))


def similarity_anchors(embeddings: Sequence[Tensor], speakers: Sequence[str]) -> dict[str, float]:
    """
    Mean cosines over pairs of utterances, which say what a similarity means: `similarity_same_speaker` and
    `similarity_other_speaker`, and `similarity_error`, the percentage of errors where both kinds are as often wrong.

    embeddings: `(dim,)` of each utterance; speakers: their names.

    Raises:
        ValueError: no pair of one kind.
    """
    directions = torch.nn.functional.normalize(torch.stack(list(embeddings)))
    cosines = (directions @ directions.T).double().numpy()
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
