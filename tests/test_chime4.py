"""Questions to the loader of CHiME-4, on a hand-made folder: tracks, places, clean halves, missing pieces."""

from pathlib import Path

import pytest
from tiny_corpora import column, encode, make_tone

from clearspeech.processing.corpora import load_corpus

PLACES = ("BUS", "CAF", "PED", "STR")


def write_wav(path: Path, frequency: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(make_tone(0.1, frequency)))


@pytest.fixture
def chime4(tmp_path):
    """One sentence in each place, recorded and simulated, in the track of one channel."""
    data = tmp_path / "CHiME4" / "data"
    (data / "transcriptions").mkdir(parents=True)
    for kind, speaker in (("real", "F05"), ("simu", "M06")):
        names = [f"{speaker}_440C020{number}_{place}" for number, place in enumerate(PLACES)]
        lines = "".join(f"{name} THE TEXT OF {name[-3:]}\n" for name in names)
        (data / "transcriptions" / f"et05_{kind}.trn_all").write_text(lines)
        for number, (name, place) in enumerate(zip(names, PLACES)):
            track = data / "audio" / "16kHz" / "isolated_1ch_track"
            write_wav(track / f"et05_{place.lower()}_{kind}" / f"{name}.wav", 300 + 100 * number)
    for number in range(len(PLACES)):
        write_wav(data / f"audio/16kHz/isolated/et05_bth/M06_440C020{number}_BTH.CH0.wav", 1000)
    return data.parent


def test_real_noise_has_classes_and_texts_but_no_clean_half(chime4):
    corpus = load_corpus(f"chime4:{chime4}:real", "test")
    assert set(corpus.column_names) == {"audio", "text", "speaker", "noise"}
    assert column(corpus, "noise") == ["bus", "cafe", "pedestrian", "street"]
    assert column(corpus, "text")[1] == "THE TEXT OF CAF" and column(corpus, "speaker") == ["F05"] * 4
    assert corpus[0]["audio"].shape == (1600,)


def test_simulated_noise_has_the_booth_recording_as_its_clean_half(chime4):
    row = load_corpus(f"chime4:{chime4}:simu", "test", decoded=True)[2]
    assert (row["noise"], row["speaker"]) == ("pedestrian", "M06")
    assert abs(row["audio"] - make_tone(0.1, 500)).max() < 1e-3
    assert abs(row["clean_audio"] - make_tone(0.1, 1000)).max() < 1e-3


@pytest.mark.parametrize("track", ["isolated_6ch_track", "isolated"])
def test_of_several_channels_the_fifth_is_read(chime4, track):
    audio = chime4 / "data" / "audio" / "16kHz"
    for path in sorted((audio / "isolated_1ch_track").glob("*_real/*.wav")):
        write_wav(audio / track / path.parent.name / f"{path.stem}.CH1.wav", 2000)
        path.rename(audio / track / path.parent.name / f"{path.stem}.CH5.wav")
        path.parent.rmdir()
    corpus = load_corpus(f"chime4:{chime4}:real", "test")
    assert abs(corpus[0]["audio"] - make_tone(0.1, 300)).max() < 1e-3


# --- bad input ---


def test_missing_pieces_are_named_and_missing_files_can_be_skipped(chime4):
    with pytest.raises(FileNotFoundError, match="transcriptions/dt05_real.trn_all"):
        load_corpus(f"chime4:{chime4}:real", "validation")
    (chime4 / "data/audio/16kHz/isolated/et05_bth/M06_440C0201_BTH.CH0.wav").unlink()
    with pytest.raises(FileNotFoundError, match="1 audio files .*M06_440C0201_BTH.CH0.wav"):
        load_corpus(f"chime4:{chime4}:simu", "test")
    assert len(load_corpus(f"chime4:{chime4}:simu", "test", on_error="skip")) == 3
    bus = chime4 / "data/audio/16kHz/isolated_1ch_track/et05_bus_real"
    bus.rename(bus.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"none of the folders .*isolated_6ch_track/et05_bus_real"):
        load_corpus(f"chime4:{chime4}:real", "test")


@pytest.mark.parametrize("source", ["chime4:{}", "chime4:{}:booth"])
def test_the_kind_of_noise_must_be_named(chime4, source):
    with pytest.raises(ValueError, match="chime4:FOLDER:real or chime4:FOLDER:simu"):
        load_corpus(source.format(chime4), "test")


def test_training_splits_and_unknown_places_are_errors(chime4):
    with pytest.raises(ValueError, match="split 'train' is not one of"):
        load_corpus(f"chime4:{chime4}:real", "train")
    (chime4 / "data" / "transcriptions" / "et05_real.trn_all").write_text("F05_440C0200_CAR HELLO\n")
    with pytest.raises(ValueError, match=r"lists 'F05_440C0200_CAR'; .* BUS, CAF, PED, STR"):
        load_corpus(f"chime4:{chime4}:real", "test")
