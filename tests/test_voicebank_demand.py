"""Questions to VoiceBank-DEMAND, as the original folder and as the Hub repository: halves, labels, splits, gaps."""

from pathlib import Path

import numpy as np
import pytest
from tiny_corpora import SHARED_DATA, column, encode, make_tone, needs_shared_data, use_own_cache, write_parquet

from clearspeech.processing.corpora import load_corpus
from clearspeech.processing.voicebank_demand import VALIDATION_SPEAKERS

PARTS = {
    "trainset_28spk": ("p226_001 babble 15", "p228_002 ssn 0", "p228_003 car 5", "p287_001 kitchen 10"),
    "trainset_56spk": ("p234_001 metro 0", "p241_001 station 5"),
    "testset": ("p232_001 bus 2.5", "p257_002 psquare 17.5"),
}
HUB_ID = "JacobLinCool/VoiceBank-DEMAND-16k"


def write_labels(folder: Path) -> Path:
    """The text and log files of the distribution."""
    for part, lines in PARTS.items():
        (folder / f"{part}_txt").mkdir(parents=True)
        (folder / f"log_{part}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            utterance = line.split()[0]
            (folder / f"{part}_txt" / f"{utterance}.txt").write_text(f"Text of {utterance}.\n")
    return folder


def noisy_and_clean(utterance: str, sampling_rate: int) -> tuple[bytes, bytes]:
    clean = make_tone(0.1, 300 + int(utterance[-1]) * 100, sampling_rate)
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(clean)).astype("f4")
    return encode(clean + noise, sampling_rate), encode(clean, sampling_rate)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def distribution(tmp_path):
    folder = write_labels(tmp_path / "DS_10283_2791")
    for part, lines in PARTS.items():
        for kind in ("noisy", "clean"):
            (folder / f"{kind}_{part}_wav").mkdir()
        for line in lines:
            utterance = line.split()[0]
            noisy, clean = noisy_and_clean(utterance, 48000)
            (folder / f"noisy_{part}_wav" / f"{utterance}.wav").write_bytes(noisy)
            (folder / f"clean_{part}_wav" / f"{utterance}.wav").write_bytes(clean)
    return folder


@pytest.fixture
def hub_copy(tmp_path):
    """What the repository has: ids and two halves, a training and a test split of the 28 speakers' subset."""
    copy = tmp_path / HUB_ID
    for split, part in (("train", "trainset_28spk"), ("test", "testset")):
        rows = []
        for line in reversed(PARTS[part]):
            utterance = line.split()[0]
            halves = zip(("noisy", "clean"), noisy_and_clean(utterance, 16000))
            audio = {name: {"bytes": content, "path": f"{utterance}.wav"} for name, content in halves}
            rows.append({"id": utterance} | audio)
        write_parquet(copy / "data" / f"{split}-00000-of-00001.parquet", rows, "noisy", "clean")
    (copy / "README.md").write_text("# VoiceBank-DEMAND\n")
    return copy


def test_the_distributed_folder_gives_aligned_halves_with_all_labels(distribution):
    corpus = load_corpus(f"voicebank_demand:{distribution}", "test")
    row = corpus[1]
    assert row["audio"].shape == row["clean_audio"].shape == (1600,)  # from 48 kHz
    assert np.abs(row["clean_audio"][100:-100] - make_tone(0.1, 500)[100:-100]).max() < 1e-3
    assert np.std(row["audio"] - row["clean_audio"]) > 0.03
    assert {name: row[name] for name in ("text", "speaker", "noise", "snr_db")} == {
        "text": "Text of p257_002.",
        "speaker": "p257",
        "noise": "psquare",
        "snr_db": "17.5",
    }


def test_validation_is_speakers_that_training_leaves_out(distribution):
    speakers = {}
    for split in ("train", "validation"):
        both = load_corpus(f"voicebank_demand:{distribution}", split)
        small = load_corpus(f"voicebank_demand:{distribution}:28spk", split)
        large = load_corpus(f"voicebank_demand:{distribution}:56spk", split)
        assert column(both, "speaker") == column(small, "speaker") + column(large, "speaker")
        speakers[split] = set(column(both, "speaker"))
    assert speakers == {"train": {"p228", "p241"}, "validation": {"p226", "p287", "p234"}}
    assert speakers["validation"] <= set(VALIDATION_SPEAKERS)


def test_halves_at_16_khz_and_logs_in_a_folder_of_their_own_are_found(distribution):
    for kind in ("noisy", "clean"):
        (distribution / f"{kind}_testset_wav").rename(distribution / f"{kind}_testset_wav_16k")
    (distribution / "logfiles").mkdir()
    (distribution / "log_testset.txt").rename(distribution / "logfiles" / "log_testset.txt")
    assert len(load_corpus(f"voicebank_demand:{distribution}", "test")) == 2


def test_the_hub_repository_is_joined_with_the_text_files_of_the_distribution(hub_copy, tmp_path):
    labels = write_labels(tmp_path / "labels")
    train = load_corpus(f"{hub_copy}:{labels}", "train")
    assert column(train, "text") == ["Text of p228_003.", "Text of p228_002."]
    assert column(train, "noise") == ["car", "ssn"] and column(train, "snr_db") == ["5", "0"]
    assert set(column(load_corpus(f"{hub_copy}:{labels}", "validation"), "speaker")) == {"p226", "p287"}
    row = load_corpus(f"{hub_copy}:{labels}", "test", decoded=True)[0]
    assert (row["noise"], row["speaker"]) == ("psquare", "p257")
    assert row["audio"].shape == row["clean_audio"].shape == (1600,)
    assert np.std(row["audio"] - row["clean_audio"]) > 0.03


@needs_shared_data
def test_the_real_pairs_have_both_halves():
    pairs = load_corpus(str(SHARED_DATA / "voicebank_demand_pairs"), "test", decoded=True)
    assert len(pairs) == 33 and set(column(pairs, "noise")) == {""} and float(column(pairs, "snr_db")[0]) == 15.5
    for row in pairs:
        assert row["audio"].dtype == row["clean_audio"].dtype == np.float32
        assert row["audio"].shape == row["clean_audio"].shape


# --- bad input ---


def test_the_hub_repository_alone_is_an_error_that_says_where_its_texts_are(hub_copy, tmp_path):
    with pytest.raises(ValueError, match=r"neither transcripts nor noise classes.*VoiceBank-DEMAND-16k:FOLDER"):
        load_corpus(HUB_ID, "train")
    labels = write_labels(tmp_path / "labels")
    with pytest.raises(ValueError, match="leave out streaming"):
        load_corpus(f"{hub_copy}:{labels}", "train", streaming=True)
    (labels / "log_testset.txt").write_text("p232_001 bus 2.5\n")
    with pytest.raises(ValueError, match=r"1 utterances of .* not in the log .*'p257_002'"):
        load_corpus(f"{hub_copy}:{labels}", "test")


def test_a_missing_clean_file_is_named_or_skipped_and_counted(distribution, caplog):
    (distribution / "clean_testset_wav" / "p232_001.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 audio files .*clean_testset_wav/p232_001.wav"):
        load_corpus(f"voicebank_demand:{distribution}", "test")
    corpus = load_corpus(f"voicebank_demand:{distribution}", "test", on_error="skip")
    assert column(corpus, "speaker") == ["p257"]
    assert "clean_testset_wav/p232_001.wav" in caplog.text and "skipped 1 unreadable files, kept 1 rows" in caplog.text


def test_an_utterance_without_text_is_dropped(distribution):
    (distribution / "testset_txt" / "p232_001.txt").unlink()
    assert column(load_corpus(f"voicebank_demand:{distribution}", "test"), "speaker") == ["p257"]


@pytest.mark.parametrize("piece", ["noisy_testset_wav", "clean_testset_wav", "testset_txt", "log_testset.txt"])
def test_a_missing_piece_of_the_distribution_is_named(distribution, piece):
    (distribution / piece).rename(distribution / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"DS_10283_2791 has no {piece}"):
        load_corpus(f"voicebank_demand:{distribution}", "test")


def test_a_missing_subset_an_unknown_one_a_broken_log_and_an_empty_split_are_errors(distribution):
    with pytest.raises(ValueError, match=r"unknown subset '30spk' .*'28spk', '56spk'"):
        load_corpus(f"voicebank_demand:{distribution}:30spk", "train")
    (distribution / "noisy_trainset_56spk_wav").rename(distribution / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no noisy_trainset_56spk_wav .*voicebank_demand:FOLDER:28spk"):
        load_corpus(f"voicebank_demand:{distribution}", "train")
    (distribution / "log_testset.txt").write_text("p232_001 bus\n")
    with pytest.raises(ValueError, match="log_testset.txt has the line 'p232_001 bus'"):
        load_corpus(f"voicebank_demand:{distribution}", "test")
    (distribution / "log_trainset_28spk.txt").write_text("p228_002 ssn 0\n")
    with pytest.raises(ValueError, match="the validation split of .* has no rows"):
        load_corpus(f"voicebank_demand:{distribution}:28spk", "validation")
