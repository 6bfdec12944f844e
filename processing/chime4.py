"""
CHiME-4 (Vincent et al. 2016, LDC2017S24): sentences read or mixed in a bus, a cafe, a pedestrian area and a street.

The folder is laid out as distributed: `data/transcriptions/et05_real.trn_all` lists "F05_440C0201_BUS THE WORDS", and
the audio lies in `data/audio/16kHz/TRACK/et05_bus_real`. TRACK is the first that is there of `isolated_1ch_track`
(`F05_440C0201_BUS.wav`), `isolated_6ch_track` and `isolated` (`F05_440C0201_BUS.CH5.wav`, the microphone that is used
where there is one channel only).

Simulated noise was added to recordings made in a booth: the channel of the headset, `isolated/et05_bth/
F05_440C0201_BTH.CH0.wav`, is the clean half. What was recorded in noise (`real`) has none. The layout follows the
descriptions and recipes that are public; it was not tried on the corpus itself, which is licensed.
"""

from pathlib import Path

from datasets import Dataset

from .folder_corpora import encoded_cell, gather_rows

NOISE_CLASSES = {"BUS": "bus", "CAF": "cafe", "PED": "pedestrian", "STR": "street"}
KINDS = ("real", "simu")
SETS = {"validation": "dt05", "test": "et05"}
TRACKS = ("isolated_1ch_track", "isolated_6ch_track", "isolated")
CHANNEL = "CH5"
BOOTH_CHANNEL = "CH0"


def open_chime4(folder: Path, kind: str | None, split: str, on_error: str) -> Dataset:
    """
    Rows `audio` (encoded), `text`, `speaker`, `noise`, and `clean_audio` for simulated noise.

    kind: "real" or "simu". on_error: with "raise", a missing audio file raises FileNotFoundError; with "skip" it is
    left to the decoder.

    Raises FileNotFoundError for a missing folder or list of transcripts, ValueError for another kind, the training
    split and a list of another format.
    """
    if kind not in KINDS:
        raise ValueError(f"CHiME-4 is read as chime4:FOLDER:real or chime4:FOLDER:simu, got {kind!r} after the folder")
    if split not in SETS:
        raise ValueError(f"CHiME-4 is read for evaluation: split {split!r} is not one of {list(SETS)}")
    part = SETS[split]
    transcripts = folder / "data" / "transcriptions" / f"{part}_{kind}.trn_all"
    if not transcripts.exists():
        raise FileNotFoundError(f"CHiME-4 has no list of transcripts {transcripts}")
    audio = folder / "data" / "audio" / "16kHz"
    rows = []
    for line in filter(str.strip, transcripts.read_text(encoding="utf-8").splitlines()):
        utterance, _, text = line.partition(" ")
        speaker, sentence, place = _take_apart(utterance, transcripts)
        row = {"audio": encoded_cell(_find_audio(audio, f"{part}_{place.lower()}_{kind}", utterance))}
        if kind == "simu":
            booth = audio / "isolated" / f"{part}_bth" / f"{speaker}_{sentence}_BTH.{BOOTH_CHANNEL}.wav"
            row["clean_audio"] = encoded_cell(booth)
        rows.append(row | {"text": text.strip(), "speaker": speaker, "noise": NOISE_CLASSES[place]})
    return gather_rows(rows, str(transcripts), on_error)


def _take_apart(utterance: str, transcripts: Path) -> list[str]:
    """Speaker, sentence and place of an utterance's name."""
    parts = utterance.split("_")
    if len(parts) != 3 or parts[2] not in NOISE_CLASSES:
        places = ", ".join(NOISE_CLASSES)
        raise ValueError(f"{transcripts} lists {utterance!r}; expected SPEAKER_SENTENCE_PLACE, the place of {places}")
    return parts


def _find_audio(audio: Path, place: str, utterance: str) -> Path:
    """The file of an utterance in the first track that has its folder."""
    track = next((track for track in TRACKS if (audio / track / place).is_dir()), None)
    if track is None:
        raise FileNotFoundError(f"CHiME-4 has none of the folders {[str(audio / track / place) for track in TRACKS]}")
    name = f"{utterance}.wav" if track == "isolated_1ch_track" else f"{utterance}.{CHANNEL}.wav"
    return audio / track / place / name
