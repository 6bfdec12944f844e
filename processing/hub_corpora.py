"""Public corpora on the Hugging Face Hub, and local copies of such repositories: their columns and splits."""

import logging
from dataclasses import dataclass
from pathlib import Path

from datasets import (
    Audio,
    Dataset,
    Features,
    IterableDataset,
    Value,
    concatenate_datasets,
    get_dataset_split_names,
    load_dataset,
)
from datasets.exceptions import DatasetNotFoundError

from .folder_corpora import SPLIT_NAMES

logger = logging.getLogger(__name__)

PARQUET_CONVERSION = "refs/convert/parquet"  # for repositories whose loader is a script, which `datasets` 5 refuses
# what `Audio(decode=False)` stores; a stream of the feature itself is re-encoded row by row, with torchcodec
ENCODED_STRUCT = {"bytes": Value("binary"), "path": Value("string")}


@dataclass(frozen=True)
class HubCorpus:
    """Where a repository keeps what the suite needs; a column that is `None` is looked for under its usual names."""

    text: str | None = None
    speaker: str | None = None
    config: str | None = None
    streaming: bool = False
    revision: str | None = None
    columns: tuple[tuple[str, str], ...] = ()  # further (ours, theirs) pairs


LIBRISPEECH = HubCorpus("text", "speaker_id", "all", streaming=True)
MULTILINGUAL_LIBRISPEECH = HubCorpus("transcript", "speaker_id", streaming=True)
PEOPLES_SPEECH = HubCorpus(
    "text", None, "clean", streaming=True
)  # validation and test are configurations of their own
GIGASPEECH = HubCorpus("text", "speaker", "xl", streaming=True, revision=PARQUET_CONVERSION)
YODAS = HubCorpus("text", None, "en000", streaming=True, revision=PARQUET_CONVERSION)
HIFI_TTS = HubCorpus("text_normalized", "speaker", "all", streaming=True)
VCTK = HubCorpus("text", "speaker_id")
LIBRITTS = HubCorpus("text_normalized", "speaker_id", "all", streaming=True)
VOICE_ASSISTANT = HubCorpus("question", streaming=True, columns=(("audio", "question_audio"),))
COMMON_VOICE = HubCorpus("sentence", "client_id", "en", streaming=True, revision=PARQUET_CONVERSION)
FLEURS = HubCorpus("transcription", None, "en_us", revision=PARQUET_CONVERSION)
VOICEBANK_DEMAND = HubCorpus(columns=(("audio", "noisy"), ("clean_audio", "clean")))
ESC50 = HubCorpus(columns=(("noise", "category"),))

# StableToken, Table 7, as far as the Hub has it as tables of audio and text (not AISHELL-1, WenetSpeech, Emilia), and
# the corpora of evaluation. An id that ends in * stands for all that begin so.
HUB_CORPORA = {
    "librispeech_asr": LIBRISPEECH,
    "openslr/librispeech_asr": LIBRISPEECH,
    "facebook/multilingual_librispeech": MULTILINGUAL_LIBRISPEECH,
    "parler-tts/mls_eng*": MULTILINGUAL_LIBRISPEECH,
    "MLCommons/peoples_speech": PEOPLES_SPEECH,
    "speechcolab/gigaspeech": GIGASPEECH,
    "espnet/yodas": YODAS,
    "MikhailT/hifi-tts": HIFI_TTS,
    "sanchit-gandhi/vctk": VCTK,
    "mythicinfinity/libritts*": LIBRITTS,
    "parler-tts/libritts_r_filtered": LIBRITTS,
    "gpt-omni/VoiceAssistant-400K": VOICE_ASSISTANT,
    "mozilla-foundation/common_voice_*": COMMON_VOICE,
    "google/fleurs": FLEURS,
    "JacobLinCool/VoiceBank-DEMAND-16k": VOICEBANK_DEMAND,
    "ashraq/esc50": ESC50,
}


def find_hub_corpus(name: str) -> HubCorpus:
    """The table's entry for a Hub id, or for a local copy whose path ends in that id; an empty one if unknown."""
    for known, corpus in HUB_CORPORA.items():
        id = "/".join(Path(name).parts[-known.count("/") - 1 :])
        if id == known or (known.endswith("*") and id.startswith(known[:-1])):
            return corpus
    return HubCorpus()


def is_hub_copy(folder: Path) -> bool:
    """Whether a folder is a copy of a Hub repository of tables; one of separate files is read as a plain folder."""
    return (folder / "README.md").exists() and not any(folder.glob("*/metadata.csv"))


def open_hub_split(
    name: str, config: str | None, split: str, streaming: bool, revision: str | None
) -> Dataset | IterableDataset:
    """
    All splits of a repository that belong to `split`: LibriSpeech's "train" is train.clean.100 + train.clean.360 + ...

    Raises FileNotFoundError when there is no such repository, ValueError when it has no such split.
    """
    try:
        available = get_dataset_split_names(name, config, revision=revision)
    except (DatasetNotFoundError, ConnectionError) as error:
        message = f"{name!r} is neither a folder nor a repository of the Hugging Face Hub that can be reached: {error}"
        raise FileNotFoundError(message) from error
    wanted = [each for each in available if each.split(".")[0] in SPLIT_NAMES[split]]
    if not wanted:
        raise ValueError(f"corpus {name} (configuration {config}) has no split {split!r}; it has {available}")
    logger.info("corpus %s: %s is %s", name, split, " + ".join(wanted))
    parts = [load_dataset(name, config, split=each, streaming=streaming, revision=revision) for each in wanted]
    return concatenate_datasets([_leave_encoded(part) for part in parts])


def _leave_encoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Audio columns as `{"bytes", "path"}`: `datasets` decodes with torchcodec, which wants a system FFmpeg."""
    if dataset.features is None:  # a stream without a schema: its audio is such a struct already
        return dataset
    names = [name for name, feature in dataset.features.items() if isinstance(feature, Audio)]
    if isinstance(dataset, Dataset):
        for name in names:
            dataset = dataset.cast_column(name, Audio(decode=False))
        return dataset
    return dataset.cast(Features(dataset.features | dict.fromkeys(names, ENCODED_STRUCT)))
