"""
Noisy speech made of speech: each utterance mixed with another one, for evaluation.

    for rate in (0.0, 0.1, 0.25, 0.3):
        mixed = mix_utterances(load_corpus("librispeech_asr", "test", streaming=False), rate)
"""

import numpy as np
import torch
from datasets import Dataset


def mix_utterances(dataset: Dataset, mixing_rate: float, seed: int = 0) -> Dataset:
    """
    u = (1 - a) u_a + a u_b (content and context factors, section 2.4, "Artificial Noise").

    "both utterances are magnitude normalized a-priori", which is read as a root mean square of 1, "and u_b is clipped
    to the length of u_a"; a shorter one is followed by silence. Text and speaker stay those of u_a. "the chosen mixed
    utterances are the same across evaluations": the pairs depend on the number of rows and the seed only, so that two
    models and two rates meet the same; each utterance is mixed into one other and never with itself. At rate 0 the
    utterance is normalized only. Samples exceed -1 to 1.

    dataset: rows `audio` and others, as `load_corpus` gives them, decoded in advance or not. As with `mix_pairs`,
    utterances are read and mixed when a row is read. To list texts, write `mixed.select_columns("text")["text"]`.

    Raises ValueError for a stream, rows with `clean_audio` (it would no longer belong to the audio), a rate outside
    0..0.5 (above it, the louder utterance would be the one without a text), fewer than two utterances and, when its
    row is read, a silent one.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"utterances are mixed from a Dataset, got {type(dataset).__name__}: use streaming=False")
    if "clean_audio" in dataset.column_names:
        raise ValueError(
            "the rows have clean_audio, pairs of noisy and clean speech: leave the column out or mix clean"
        )
    if not 0.0 <= mixing_rate <= 0.5:
        raise ValueError(f"mixing_rate must lie in 0..0.5, the second utterance's share, got {mixing_rate}")
    if len(dataset) < 2:
        raise ValueError(f"mixing needs at least two utterances, got {len(dataset)}")
    names = [name for name in dataset.column_names if name != "audio"]
    columns = {name: list(values) for name, values in dataset.with_format(None).select_columns(names)[:].items()}
    mixed = Dataset.from_dict(columns | {"audio": list(range(len(dataset)))})
    return mixed.with_transform(UtteranceMixer(dataset, mixing_rate, draw_partners(len(dataset), seed)))


def draw_partners(num_rows: int, seed: int) -> list[int]:
    """For each row another row; each row is partner once. Rows in random order, each with the next in a ring."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    partners = torch.empty_like(order)
    partners[order] = order.roll(-1)
    return partners.tolist()


class UtteranceMixer:
    """The transform of `mix_utterances`: from the numbers of rows to their samples."""

    def __init__(self, speech: Dataset, mixing_rate: float, partners: list[int]):
        self.speech = speech.select_columns("audio")
        self.mixing_rate = mixing_rate
        self.partners = partners

    def __deepcopy__(self, memo: dict) -> "UtteranceMixer":
        return self  # `datasets` copies the transform at every step

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "audio" not in batch:
            return batch
        return {**batch, "audio": [self.mix(number) for number in batch["audio"]]}

    def mix(self, number: int) -> np.ndarray:
        """Samples `(samples,)` float32 of one row."""
        mixed = self.read(number)
        if self.mixing_rate > 0.0:
            other = self.read(self.partners[number])[: len(mixed)]
            mixed = (1.0 - self.mixing_rate) * mixed
            mixed[: len(other)] += self.mixing_rate * other
        return mixed.astype(np.float32)

    def read(self, number: int) -> np.ndarray:
        """One utterance of root mean square 1 `(samples,)`, float64. Raises ValueError for a silent one."""
        waveform = np.array(self.speech[number]["audio"], dtype=np.float64)
        level = np.sqrt(np.square(waveform).mean())
        if not level > 0.0:
            raise ValueError(f"row {number} is silent: it cannot be brought to the level of the others. Leave it out.")
        return waveform / level
