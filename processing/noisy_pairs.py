"""
Pairs of noisy and clean speech: mixed on the fly from clean speech and labelled noise, or as a paired corpus has them.

    noise = load_noise("embedded", "train")
    perturber = noise_perturber(noise, snrs_db=[0, 5, 10, 15])
    pairs = mix_pairs(load_corpus("embedded", "train"), perturber, copies=2)
    collator = NoisyPairCollator(tokenizer, start_token_id, noise_classes=["babble", "engine", "unknown"])

Pairs of either kind have the columns `audio` (noisy), `clean_audio` (as many samples; both float32, 16 kHz) and
`noise` (a class, "" where unknown) beside those of the speech.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..configuration.configuration_disentangled_whisper import UNKNOWN_NOISE
from .audio_reading import AUDIO_COLUMNS
from .collators import SpeechTextCollator
from .perturbation import Perturbation, Perturber, utterance_seed

FRAME = 400  # samples, 25 ms
SWAPPED_DB = 1.0  # in the right order, the clean floor was at most 0.01 dB above the noisy one


def noise_perturber(noise: Dataset, snrs_db: Sequence[float], classes: Sequence[str] | None = None) -> Perturber:
    """
    A perturber that adds noise of one class at one SNR, each class and each SNR equally likely.

    noise: rows `audio`, `noise`, as `load_noise` gives them; snrs_db: points in dB; classes: those to draw from, by
    default all there are, clips of unknown class ("") as one of them.

    Raises ValueError for no SNR, and for classes that the noise does not have, with those it has.
    """
    names = list(noise.select_columns("noise")["noise"])
    if classes is None:
        classes = sorted(set(names))
    unknown = [name for name in classes if name not in names]
    if unknown or not classes or not snrs_db:
        raise ValueError(
            f"need noise classes among {sorted(set(names))} and at least one SNR, got classes {list(classes)} "
            f"({unknown} are not there) and SNRs {list(snrs_db)}"
        )
    pools = {name: [] for name in classes}
    for row in noise.select([row for row, name in enumerate(names) if name in pools]):
        pools[row["noise"]].append(torch.from_numpy(np.array(row["audio"], dtype=np.float32)))
    return Perturber([Perturbation(name, "real", snr, snr) for name in pools for snr in snrs_db], pools)


def mix_pairs(speech: Dataset, perturber: Perturber, copies: int = 1) -> Dataset:
    """
    Clean speech to pairs: `copies` of each utterance with different noise, all of copy 0 first, then all of copy 1 ...

    speech: rows `audio` and others, as `load_corpus` gives them, decoded in advance or not. They are read and mixed
    when a row of the pairs is read, and nothing is stored: until then `audio`, `clean_audio` and `noise` hold the
    number of the pair. The noise depends on the clean samples and the number of the copy only, so that a row is the
    same in any order and process. `noise` is the name that the perturber drew.

    To list texts, write `pairs.select_columns("text")["text"]`: without it, all rows are mixed. For the same reason,
    leave out long utterances before you mix.

    Raises ValueError for a stream, for speech that comes with noise already, for less than one copy, and for bit
    crush, which adds no noise.
    """
    if not isinstance(speech, Dataset):
        raise ValueError(f"pairs are mixed from a Dataset, got {type(speech).__name__}: load it with streaming=False")
    if "clean_audio" in speech.column_names or "noise" in speech.column_names:
        raise ValueError(f"the speech is noisy already, it has the columns {speech.column_names}; give clean speech")
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    crushes = [perturbation.name for perturbation in perturber.perturbations if perturbation.kind == "bit_crush"]
    if crushes:
        raise ValueError(f"pairs are clean speech and clean speech plus noise: leave out the perturbations {crushes}")
    others = speech.with_format(None).select_columns([name for name in speech.column_names if name != "audio"])
    columns = {name: list(values) * copies for name, values in others[:].items()}
    numbers = list(range(copies * len(speech)))
    pairs = Dataset.from_dict(columns | {name: numbers for name in PairMixer.COLUMNS})
    return pairs.with_transform(PairMixer(speech, perturber))


class PairMixer:
    """The transform of `mix_pairs`: from the numbers of pairs to their samples and the noise in them."""

    COLUMNS = (*AUDIO_COLUMNS, "noise")

    def __init__(self, speech: Dataset, perturber: Perturber):
        self.speech = speech.select_columns("audio")
        self.perturber = perturber

    def __deepcopy__(self, memo: dict) -> "PairMixer":
        return self  # `datasets` copies the transform at every step, and with it all clips of the noise

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        numbers = next((batch[name] for name in self.COLUMNS if name in batch), None)
        if numbers is None:
            return batch
        pairs = [self.mix(number) for number in numbers]
        mixed = {name: list(values) for name, values in zip(self.COLUMNS, zip(*pairs))}
        return {name: mixed.get(name, values) for name, values in batch.items()}

    def mix(self, number: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Noisy and clean samples `(samples,)` float32, and the name of the noise, of one pair."""
        copy, row = divmod(number, len(self.speech))
        clean = torch.from_numpy(np.array(self.speech[row]["audio"], dtype=np.float32))
        noisy, name, _ = self.perturber.perturb(clean, utterance_seed(clean, salt=copy))
        return noisy.numpy(), clean.numpy(), name


@dataclass
class NoisyPairCollator(SpeechTextCollator):
    """
    Rows of pairs to batches: what `SpeechTextCollator` makes of the noisy half, the clean half, and the noise class.

    Args:
        noise_classes: the classes of the noise head, "unknown" last; [] without a head.
        unseen_as_unknown: a class that is not among them counts as unknown (for test noise that training has not met).
        check_order: whether to refuse pairs in the wrong order; for corpora in which `is_swapped` is mistaken.

    Returns in addition `clean_waveforms` `(batch, samples)` and, where there are classes, `noise_labels` `(batch,)`,
    indices of `noise_classes`; noise that is "" or missing is unknown.

    Raises:
        ValueError: what `SpeechTextCollator` raises; classes that do not end in "unknown"; an unseen class; a pair of
            unequal lengths or, with `check_order`, in the wrong order (`is_swapped`), named by its text and speaker.
    """

    noise_classes: list[str] = field(default_factory=list)
    unseen_as_unknown: bool = False
    check_order: bool = True

    def __post_init__(self):
        if self.noise_classes and self.noise_classes[-1] != UNKNOWN_NOISE:
            raise ValueError(f"the last of the noise classes must be {UNKNOWN_NOISE!r}, got {self.noise_classes}")

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        for row in rows:
            check_pair(row, self.check_order)
        batch = super().__call__(rows)
        clean = [torch.from_numpy(np.array(row["clean_audio"], dtype=np.float32)) for row in rows]
        batch["clean_waveforms"] = torch.nn.utils.rnn.pad_sequence(clean, batch_first=True)
        if self.noise_classes:
            batch["noise_labels"] = torch.tensor([self.encode_noise(row.get("noise")) for row in rows])
        return batch

    def encode_noise(self, noise: str | None) -> int:
        """The index of a class; "" and None are unknown. Raises ValueError for an unseen one."""
        if noise and noise in self.noise_classes:
            return self.noise_classes.index(noise)
        if noise and not self.unseen_as_unknown:
            raise ValueError(
                f"noise class {noise!r} is not one of {self.noise_classes}: train with it, leave its rows out, or set "
                "unseen_as_unknown"
            )
        return len(self.noise_classes) - 1


def is_swapped(noisy: np.ndarray, clean: np.ndarray) -> bool:
    """
    Whether the `clean` half of a pair `(samples,)` is the noisier one: its noise floor is 1 dB above that of `noisy`,
    after it was brought to the level that it has in `noisy` (least squares), so that either half may have any gain.

    The noise floor is the 10th percentile of the power of 25 ms frames. Added noise raises it, unless the noise pauses
    for a tenth of the utterance, as dogs and clocks do; nothing that is added lowers it. Measured, at any gain: all of
    45 pairs of VoiceBank-DEMAND are told when swapped, and none gives a false alarm. With 390 pairs each of `an4` and
    of digit strings in ESC-50 noise there is none either, and 86 % (an4, 0 to 10 dB), 90 % (an4, 12.5 to 17.5 dB) and
    91 to 98 % (digits) are told: enough to stop at the first batch of a swapped corpus, but not to sort the pairs of a
    mixed-up one. Floors relative to each half's total power tell 90 to 92 % of an4, but have false alarms at 0 dB.
    """
    noisy, clean = noisy.astype(np.float64), clean.astype(np.float64)
    energy = clean @ clean
    if energy == 0:
        return False
    gain = (noisy @ clean) / energy
    return _noise_floor(gain * clean) > 10 ** (SWAPPED_DB / 10) * _noise_floor(noisy)


def _noise_floor(waveform: np.ndarray) -> float:
    """The 10th percentile of the mean power of 25 ms frames; of shorter audio, its mean power."""
    num_frames = max(len(waveform) // FRAME, 1)
    frames = waveform[: num_frames * FRAME].reshape(num_frames, -1)
    return float(np.percentile(np.square(frames).mean(axis=1), 10))


def check_pair(row: dict[str, Any], check_order: bool = True) -> None:
    """Raises ValueError for a pair of unequal lengths or, with `check_order`, in the wrong order (`is_swapped`)."""
    noisy, clean = np.asarray(row["audio"]), np.asarray(row["clean_audio"])
    speaker = f" of speaker {row['speaker']!r}" if row.get("speaker") else ""
    name = f"the pair with the text {row['text']!r}{speaker}"
    if len(noisy) != len(clean):
        raise ValueError(f"{name} has {len(noisy)} noisy and {len(clean)} clean samples: the halves must be aligned")
    if check_order and is_swapped(noisy, clean):
        raise ValueError(
            f"{name} seems to be swapped: its clean_audio has more noise in its pauses than its audio; swap the "
            "columns, or turn check_order off if they are right"
        )
