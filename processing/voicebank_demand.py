"""
VoiceBank-DEMAND (Valentini-Botinhao 2017, https://datashare.ed.ac.uk/handle/10283/2791), noisy and clean speech.

The folder is laid out as distributed: `clean_PART_wav`, `noisy_PART_wav` (48 kHz; `_wav_16k` is also found),
`PART_txt` and `log_PART.txt` (also in `logfiles`), where PART is `trainset_28spk`, `trainset_56spk` or `testset`. The
files of the log say "p226_001 babble 15": utterance, noise class, SNR in dB. The classes of the training sets are
babble, cafeteria, car, kitchen, meeting, metro, restaurant, ssn, station and traffic; those of the test set bus, cafe,
living, office and psquare.

There is no official validation set. Here it is two speakers of each training set, who are left out of training: p226
and p287 of the 28, as is customary, and p234 and p237 of the 56.
"""

from pathlib import Path

from datasets import Dataset, Value

from .folder_corpora import encoded_cell, gather_rows
from .hub_corpora import open_hub_split

SUBSETS = ("28spk", "56spk")
VALIDATION_SPEAKERS = ("p226", "p287", "p234", "p237")
LABELS = ("text", "speaker", "noise", "snr_db")


def open_voicebank_demand(folder: Path, subset: str | None, split: str, on_error: str) -> Dataset:
    """
    Rows `audio`, `clean_audio` (encoded), `text`, `speaker`, `noise`, `snr_db` of the distributed folder.

    subset: of the training and validation split, "28spk" or "56spk"; None for both, as in the paper's experiments.
    on_error: with "raise", a missing audio file raises FileNotFoundError; with "skip" it is left to the decoder. An
    utterance without a text file has the text "".

    Raises FileNotFoundError for a missing folder or log, ValueError for an unknown subset, a log of another format and
    a split without rows.
    """
    if subset not in (None, *SUBSETS):
        raise ValueError(
            f"unknown subset {subset!r} of VoiceBank-DEMAND; choose one of {list(SUBSETS)} or leave it out"
        )
    rows = []
    for part in _parts(split, [subset] if subset else SUBSETS):
        noisy, clean = (_find(folder, f"{kind}_{part}_wav", f"{kind}_{part}_wav_16k") for kind in ("noisy", "clean"))
        for utterance, labels in read_labels(folder, part).items():
            if is_of_split(utterance, split):
                audio, clean_audio = (encoded_cell(each / f"{utterance}.wav") for each in (noisy, clean))
                rows.append({"audio": audio, "clean_audio": clean_audio} | labels)
    return gather_rows(rows, f"the {split} split of {folder}", on_error)


def open_voicebank_demand_hub(name: str, folder: str | None, split: str, streaming: bool | None) -> Dataset:
    """
    The 28 speakers' subset on the Hub: rows `noisy`, `clean` (encoded), `text`, `speaker`, `noise`, `snr_db`.

    name: of the repository, or a copy of it; folder: where text and log files of the distribution lie, because the
    repository has audio and the names of utterances (`id`) alone.

    Raises ValueError without that folder, for an `id` that the log does not have, and for streaming, FileNotFoundError
    for missing files.
    """
    if folder is None:
        raise ValueError(
            f"{name} has audio alone, neither transcripts nor noise classes. They are in small files of the original "
            "distribution (https://datashare.ed.ac.uk/handle/10283/2791): unpack trainset_28spk_txt, testset_txt and "
            f"the log files into one FOLDER and write {name}:FOLDER"
        )
    if streaming:
        raise ValueError(f"{name} is joined with its texts, which a stream cannot be: leave out streaming")
    (part,) = _parts(split, ["28spk"])
    labels = read_labels(Path(folder), part)
    pairs = open_hub_split(name, None, "test" if split == "test" else "train", False, None)
    utterances = list(pairs["id"])
    unknown = [utterance for utterance in utterances if utterance not in labels]
    if unknown:
        raise ValueError(f"{len(unknown)} utterances of {name} are not in the log of {folder}: {unknown[:5]}")
    for label in LABELS:  # before rows are left out: later, a new column would copy their audio
        values = [labels[utterance][label] for utterance in utterances]
        pairs = pairs.add_column(label, values, feature=Value("string"))
    return pairs.select([row for row, utterance in enumerate(utterances) if is_of_split(utterance, split)])


def read_labels(folder: Path, part: str) -> dict[str, dict[str, str]]:
    """`LABELS` of each utterance of a part, from its log and text files."""
    log = _find(folder, f"log_{part}.txt", f"logfiles/log_{part}.txt")
    texts = _find(folder, f"{part}_txt")
    labels = {}
    for line in filter(str.strip, log.read_text(encoding="utf-8").splitlines()):
        words = line.split()
        if len(words) != 3:
            raise ValueError(f"{log} has the line {line!r}; expected an utterance, a noise class and an SNR in dB")
        utterance, noise, snr_db = words
        text = texts / f"{utterance}.txt"
        text = text.read_text(encoding="utf-8").strip() if text.exists() else ""
        labels[utterance] = dict(zip(LABELS, (text, speaker_of(utterance), noise, snr_db)))
    return labels


def is_of_split(utterance: str, split: str) -> bool:
    return split == "test" or (speaker_of(utterance) in VALIDATION_SPEAKERS) == (split == "validation")


def speaker_of(utterance: str) -> str:
    return utterance.split("_")[0]


def _parts(split: str, subsets: list[str] | tuple[str, ...]) -> list[str]:
    return ["testset"] if split == "test" else [f"trainset_{subset}" for subset in subsets]


def _find(folder: Path, *names: str) -> Path:
    """The first of several places in a folder that is there."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    hint = "; for the other training set alone, write voicebank_demand:FOLDER:28spk" if "56spk" in names[0] else ""
    raise FileNotFoundError(f"VoiceBank-DEMAND in {folder} has no {' or '.join(names)}{hint}")
