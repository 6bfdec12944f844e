import io
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, IterableDataset

from clearspeech.processing.audio_reading import UnreadableAudioError, read_audio
from clearspeech.processing.corpora import (
    ESC10_CLASSES,
    leave_out_long,
    load_corpora,
    load_corpus,
    load_noise,
    parse_source,
)
from clearspeech.processing.hub_corpora import COMMON_VOICE, HubCorpus, find_hub_corpus

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is left in the user's cache of data sets; the end of a stream does not wait five seconds."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


def make_tone(seconds: float, frequency: float = 440.0, sampling_rate: int = 16000) -> np.ndarray:
    """`(samples,)` float32."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * sampling_rate)) / sampling_rate)).astype(
        "f4"
    )


def encode(waveform: np.ndarray, sampling_rate: int = 16000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, sampling_rate, **{"format": "WAV", **options})
    return file.getvalue()


def write_folder(folder: Path, files: dict[str, bytes], header: str, *rows: str) -> Path:
    """Write one `audiofolder` split."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder.parent


def write_parquet(path: Path, rows: list[dict], *audio_columns: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Dataset.from_list(rows)
    for column in audio_columns or ("audio",):
        table = table.cast_column(column, Audio(decode=False))
    table.to_parquet(path)


def column(corpus: Dataset, name: str) -> list[str]:
    """One column, without decoding the audio."""
    return list(corpus.select_columns(name)[name])


@pytest.fixture
def folder(tmp_path):
    """Three utterances; the second has no text."""
    files = {f"{name}.wav": encode(make_tone(seconds)) for name, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3))}
    rows = ('a.wav,"one, two",12,s1', "b.wav,,34,s1", "c.wav,three,56,s2")
    return write_folder(tmp_path / "corpus" / "train", files, "file_name,text,number,speaker", *rows)


@pytest.fixture
def digits(tmp_path):
    """Isolated "digits" of two speakers at 8 kHz; a recording is known by the frequency of its tone."""
    for split, recordings in (("train", range(10)), ("test", range(10, 12))):
        rows = [
            {
                "audio": {"bytes": encode(make_tone(0.1, 300 + 50 * recording, 8000), 8000), "path": "digit.wav"},
                "text": text,
                "speaker": speaker,
            }
            for speaker in ("s1", "s2")
            for text in ("one", "two", "three")
            for recording in recordings
        ]
        write_parquet(tmp_path / "digits" / f"{split}.parquet", rows)
    return tmp_path / "digits"


@pytest.fixture
def librispeech(tmp_path):
    """A local copy of a Hub repository with a configuration of several splits per part."""
    copy = tmp_path / "openslr" / "librispeech_asr"
    splits = ("train.clean.100", "train.other.500", "validation.clean", "test.clean", "test.other")
    files = "".join(f"\n  - split: {split}\n    path: all/{split}/*.parquet" for split in splits)
    copy.mkdir(parents=True)
    (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: all\n  data_files:{files}\n---\n# LibriSpeech\n")
    for number, split in enumerate(splits):
        audio = {"bytes": encode(make_tone(0.1), format="FLAC"), "path": f"{number}.flac"}
        row = {"file": "x", "audio": audio, "text": f"TEXT {number}", "speaker_id": 100 + number, "chapter_id": 1}
        write_parquet(copy / "all" / split / "0000.parquet", [row])
    return copy


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("embedded", ("embedded", None, None, False)),
        ("google/fleurs:de_de@raw_transcription", ("google/fleurs", "de_de", "raw_transcription", False)),
        ("../data/alphanumeric@verbalised", ("../data/alphanumeric", None, "verbalised", False)),
        ("digit_strings:../data/digits:50", ("../data/digits", "50", None, True)),
    ],
)
def test_a_source_names_corpus_configuration_and_text_column(source, parts):
    parsed = parse_source(source)
    assert (parsed.name, parsed.config, parsed.text, parsed.digit_strings) == parts


# --- embedded ---


def test_the_embedded_corpus_is_speaker_disjoint_and_of_a_closed_vocabulary():
    splits = {split: load_corpus("embedded", split) for split in ("train", "validation", "test")}
    speakers = {split: set(column(corpus, "speaker")) for split, corpus in splits.items()}
    words = {
        split: {word for text in column(corpus, "text") for word in text.split()} for split, corpus in splits.items()
    }
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) >= 12
    assert words["validation"] | words["test"] <= words["train"]
    assert 40 <= len(words["train"]) <= 60
    assert all(re.fullmatch("[a-z' ]+", text) for corpus in splits.values() for text in column(corpus, "text"))


def test_the_embedded_corpus_is_short_clean_speech():
    corpus = load_corpus("embedded", "test")
    for row in corpus:
        assert row["audio"].dtype == np.float32 and row["audio"].ndim == 1
        assert 0.5 <= len(row["audio"]) / 16000 <= 4.0
        assert 0.1 < np.abs(row["audio"]).max() <= 1.0


# --- folders ---


def test_rows_without_text_are_dropped_and_counted(folder, caplog):
    with caplog.at_level(logging.WARNING):
        corpus = load_corpus(str(folder), "train")
    assert column(corpus, "text") == ["one, two", "three"]
    assert "dropped 1 of 3 rows without text" in caplog.text


def test_transcripts_that_hold_tags_alone_are_dropped_and_counted(folder, tmp_path, caplog):
    (folder / "train" / "metadata.csv").write_text("file_name,text\na.wav,<SIL>\nb.wav,...\nc.wav,three <COMMA>\n")
    assert column(load_corpus(str(folder), "train"), "text") == ["three <COMMA>"]
    assert "dropped 2 of 3 rows without text" in caplog.text
    audio = {"bytes": encode(make_tone(0.1)), "path": "a.wav"}
    rows = [{"audio": audio, "text": text} for text in ("<SIL>", "three <COMMA>", None)]
    write_parquet(tmp_path / "copy" / "data" / "train-00000-of-00001.parquet", rows)
    (tmp_path / "copy" / "README.md").write_text("# A corpus\n")
    rows = list(load_corpus(str(tmp_path / "copy"), "train", streaming=True))
    assert [row["text"] for row in rows] == ["three <COMMA>"]
    assert "dropped 2 of the first 3 rows: no text" in caplog.text


@pytest.mark.parametrize("sampling_rate", [16000, 44100])
def test_long_utterances_are_left_out_by_their_headers(folder, monkeypatch, sampling_rate):
    (folder / "train" / "c.wav").write_bytes(encode(make_tone(40, 100, sampling_rate), sampling_rate))
    for options in ({"decoded": True}, {"streaming": True}):
        corpus = load_corpus(str(folder), "train", **options)
        assert [row["text"] for row in leave_out_long(corpus, 30)] == ["one, two"]
    with monkeypatch.context() as patch:
        patch.delattr(soundfile, "read")
        corpus = leave_out_long(load_corpus(str(folder), "train"), 30)
        assert column(corpus, "num_samples") == [1600]
        assert column(leave_out_long(load_corpus(str(folder), "train"), 41), "num_samples") == [1600, 640000]
    assert corpus[0]["audio"].shape == (1600,)
    with pytest.raises(ValueError, match="not one of 2 utterances is of at most 0.01 s"):
        leave_out_long(load_corpus(str(folder), "train"), 0.01)


def test_lengths_of_encoded_files_of_every_kind_are_known_before_decoding(librispeech, digits):
    sources = [str(librispeech), f"digit_strings:{digits}:4", "embedded"]
    corpus = leave_out_long(load_corpora(sources, "train", streaming=False), 30)
    assert [len(row["audio"]) for row in corpus] == column(corpus, "num_samples")


def test_a_corrupt_file_is_named_when_its_header_is_read(folder):
    (folder / "train" / "c.wav").write_bytes(b"this is not a sound")
    with pytest.raises(UnreadableAudioError, match="c.wav"):
        leave_out_long(load_corpus(str(folder), "train"), 30)
    assert column(leave_out_long(load_corpus(str(folder), "train", on_error="skip"), 30), "num_samples") == [1600]


def test_another_text_column_can_be_chosen_and_stays_text(folder):
    assert list(load_corpus(f"{folder}@number", "train")["text"]) == ["12", "34", "56"]


def test_decoding_early_late_and_streamed_gives_the_same_rows(folder):
    early, late = load_corpus(str(folder), "train", decoded=True), load_corpus(str(folder), "train")
    streamed = load_corpus(str(folder), "train", streaming=True)
    assert isinstance(streamed, IterableDataset)
    for rows in zip(early, late, streamed, strict=True):
        for row in rows:
            assert (row["text"], row["speaker"]) == (rows[0]["text"], rows[0]["speaker"])
            assert row["audio"].dtype == np.float32
            np.testing.assert_array_equal(row["audio"], rows[0]["audio"])


def test_dev_is_validation_and_parquet_is_read(tmp_path):
    audio = {"bytes": encode(make_tone(0.1)), "path": "a.wav"}
    write_parquet(tmp_path / "dev.parquet", [{"audio": audio, "text": "hello", "emotion": "happy"}])
    row = load_corpus(str(tmp_path), "validation")[0]
    assert (row["text"], row["speaker"], row["emotion"], len(row["audio"])) == ("hello", "", "happy", 1600)


def test_clean_audio_comes_with_noisy_audio(tmp_path):
    files = {"noisy.wav": encode(make_tone(0.1)), "clean.wav": encode(make_tone(0.1, 220))}
    row = "noisy.wav,clean.wav,hello"
    folder = write_folder(tmp_path / "pairs" / "test", files, "file_name,clean_file_name,text", row)
    row = load_corpus(str(folder), "test", decoded=True)[0]
    assert row["audio"].shape == row["clean_audio"].shape == (1600,)
    assert not np.allclose(row["audio"], row["clean_audio"])


def test_stereo_and_other_rates_become_mono_at_16_khz(tmp_path):
    left = make_tone(0.5, sampling_rate=44100)
    content = encode(np.stack([left, 0 * left], axis=1), 44100, subtype="PCM_24")
    folder = write_folder(tmp_path / "corpus" / "test", {"a.wav": content}, "file_name,text", "a.wav,hello")
    audio = load_corpus(str(folder), "test")[0]["audio"]
    np.testing.assert_allclose(audio[800:-800], 0.5 * make_tone(0.5)[800:-800], atol=1e-3)


def test_corpora_join_on_their_common_columns(folder, digits):
    corpus = load_corpora([str(folder), f"digit_strings:{digits}:3", "embedded"], "train", decoded=True)
    assert len(corpus) == 2 + 3 + len(load_corpus("embedded", "train"))
    assert set(corpus.column_names) == {"audio", "text", "speaker"}
    assert corpus[2]["audio"].dtype == np.float32


# --- digit strings ---


def test_digit_strings_are_seeded_strings_of_one_speaker(digits):
    strings = load_corpus(f"digit_strings:{digits}:20", "train")
    again = load_corpus(f"digit_strings:{digits}:20", "train", decoded=True)
    for string, same in zip(strings, again, strict=True):
        num_digits = len(string["text"].split())
        assert 2 <= num_digits <= 8 and string["speaker"] in ("s1", "s2")
        silence = len(string["audio"]) / 16000 - 0.1 * num_digits
        assert 0.025 * (num_digits - 1) - 0.001 <= silence <= 0.150 * (num_digits - 1)
        assert string["text"] == same["text"]
        np.testing.assert_array_equal(string["audio"], same["audio"])


def test_digit_strings_of_different_splits_share_no_recording(digits):
    recordings = {}
    for split in ("train", "validation", "test"):
        tones = [row["audio"][:1600] for row in load_corpus(f"digit_strings:{digits}:60", split)]
        peaks = [np.argmax(np.abs(np.fft.rfft(tone * np.hanning(1600), 16000))) for tone in tones]
        recordings[split] = {round((peak - 300) / 50) for peak in peaks}
    assert recordings == {"train": set(range(9)), "validation": {9}, "test": {10, 11}}


def test_the_number_of_digit_strings_must_be_a_number(digits):
    with pytest.raises(ValueError, match="'many' is not a number of strings"):
        load_corpus(f"digit_strings:{digits}:many", "train")


# --- Hub repositories ---


def test_a_hub_repository_is_read_with_its_own_columns_and_all_parts_of_a_split(librispeech):
    corpus = load_corpus(str(librispeech), "train", streaming=False)
    assert isinstance(corpus, Dataset)
    assert column(corpus, "text") == ["TEXT 0", "TEXT 1"]
    assert column(corpus, "speaker") == ["100", "101"]
    assert corpus[0]["audio"].shape == (1600,)


def test_a_large_hub_repository_is_streamed_unless_told_otherwise(librispeech):
    corpus = load_corpus(f"{librispeech}:all", "test")
    assert isinstance(corpus, IterableDataset)
    rows = list(corpus)
    assert [(row["text"], row["speaker"]) for row in rows] == [("TEXT 3", "103"), ("TEXT 4", "104")]
    assert rows[0]["audio"].dtype == np.float32
    with pytest.raises(ValueError, match="streamed because of its size"):
        load_corpus(str(librispeech), "test", decoded=True)


def test_a_repository_of_separate_audio_files_is_read(folder):
    (folder / "README.md").write_text("# A corpus\n")
    for streaming in (False, True):
        rows = list(load_corpus(str(folder), "train", streaming=streaming))
        assert [(row["text"], len(row["audio"])) for row in rows] == [("one, two", 1600), ("three", 4800)]


def test_streams_take_turns_in_training_until_each_was_heard_whole(librispeech, folder, digits):
    rows = list(load_corpora([str(librispeech), str(folder)], "train"))
    assert [row["text"] for row in rows] == ["TEXT 0", "one, two", "TEXT 1", "three"]
    texts = [row["text"] for row in load_corpora([str(librispeech), f"digit_strings:{digits}:5"], "train")]
    assert texts[:8:2] == ["TEXT 0", "TEXT 1"] * 2 and len(set(texts[1::2])) == 5


def test_streams_follow_one_another_in_evaluation(librispeech, digits):
    texts = [row["text"] for row in load_corpora([str(librispeech), f"digit_strings:{digits}:3"], "test")]
    assert texts[:2] == ["TEXT 3", "TEXT 4"] and len(texts) == 5


def test_an_unknown_hub_repository_needs_a_usual_or_a_named_text_column(tmp_path):
    (tmp_path / "README.md").write_text("# A corpus\n")
    audio = {"bytes": encode(make_tone(0.1)), "path": "a.wav"}
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{"audio": audio, "words": "hello"}])
    with pytest.raises(ValueError, match=r"no text column text or .*'words'.*@COLUMN"):
        load_corpus(str(tmp_path), "test")
    for streaming in (False, True):
        row = next(iter(load_corpus(f"{tmp_path}@words", "test", streaming=streaming)))
        assert (row["text"], row["speaker"], len(row["audio"])) == ("hello", "", 1600)
    with pytest.raises(ValueError, match=r"no split 'train'; it has \['test'\]"):
        load_corpus(f"{tmp_path}@words", "train")


def test_known_repositories_are_found_by_id_by_prefix_and_by_local_copy():
    assert find_hub_corpus("mozilla-foundation/common_voice_17_0") is COMMON_VOICE
    assert find_hub_corpus("/copies/openslr/librispeech_asr") is find_hub_corpus("openslr/librispeech_asr")
    assert find_hub_corpus("someone/else") == HubCorpus()


# --- noise ---


@pytest.mark.parametrize("is_hub_copy", [False, True])
def test_esc10_classes_are_reserved(tmp_path, is_hub_copy):
    folder = tmp_path / "ashraq" / "esc50"
    audio = {"bytes": encode(make_tone(0.1, sampling_rate=44100), 44100), "path": "clip.wav"}
    classes = ("dog", "rain", "wind", "cow", "train")
    if is_hub_copy:
        rows = [{"audio": audio, "category": name, "fold": fold} for name in classes for fold in (1, 2, 3, 4, 5)]
        write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
        (folder / "README.md").write_text("# ESC-50\n")
    else:
        write_parquet(folder.parent / "noise" / "test.parquet", [{"audio": audio, "noise": name} for name in classes])
        folder = folder.parent / "noise"
    assert list(load_noise(str(folder), "test")["noise"]) == list(classes)
    known = load_noise(str(folder), "test", exclude_esc10=True)
    assert list(known["noise"]) == ["wind", "cow", "train"] and known.column_names == ["audio", "noise"]
    held_out = load_noise(str(folder), "test", only_esc10=True, decoded=True)
    assert list(held_out["noise"]) == ["dog", "rain"] and held_out[0]["audio"].shape == (1600,)
    with pytest.raises(ValueError, match="leave no clip"):
        load_noise(str(folder), "test", exclude_esc10=True, only_esc10=True)


def test_noise_of_unknown_class_is_trained_on_but_cannot_be_held_out(tmp_path):
    audio = {"bytes": encode(make_tone(0.1)), "path": "clip.wav"}
    write_parquet(tmp_path / "train.parquet", [{"audio": audio, "caption": "a dog barks"}])
    for options in ({}, {"exclude_esc10": True}):
        clips = load_noise(str(tmp_path), "train", **options)
        assert clips[0]["noise"] == "" and clips[0]["audio"].shape == (1600,)
    with pytest.raises(ValueError, match="no noise classes, so its ESC-10 clips cannot be told"):
        load_noise(str(tmp_path), "train", only_esc10=True)
    rows = [{"audio": audio, "noise": name} for name in ("dog", None, "wind")]
    write_parquet(tmp_path / "test.parquet", rows)
    assert column(load_noise(str(tmp_path), "test", exclude_esc10=True), "noise") == ["", "wind"]
    assert column(load_noise(str(tmp_path), "test", only_esc10=True), "noise") == ["dog"]


# --- bad input ---


def test_a_corrupt_file_is_named_or_skipped_and_counted(folder, caplog):
    (folder / "train" / "c.wav").write_bytes(b"this is not a sound")
    with pytest.raises(UnreadableAudioError, match="c.wav"):
        load_corpus(str(folder), "train", decoded=True)
    with pytest.raises(UnreadableAudioError, match="c.wav"):
        load_corpus(str(folder), "train")[1]
    with pytest.raises(UnreadableAudioError, match="c.wav"):
        list(load_corpus(str(folder), "train", streaming=True))
    for options in ({"decoded": True}, {}, {"streaming": True}):
        caplog.clear()
        rows = list(load_corpus(str(folder), "train", on_error="skip", **options))
        assert [row["text"] for row in rows] == ["one, two"]
        assert "skipped unreadable file number 1" in caplog.text and "c.wav" in caplog.text
        streamed = "dropped 1 of the first 2 rows: unreadable audio"
        assert (streamed if "streaming" in options else "skipped 1 unreadable files, kept 1 rows") in caplog.text


def test_a_missing_file_is_named_or_skipped(folder):
    (folder / "train" / "c.wav").unlink()
    with pytest.raises(FileNotFoundError, match="1 audio files .*c.wav"):
        load_corpus(str(folder), "train")
    assert len(load_corpus(str(folder), "train", on_error="skip")) == 1


def test_a_corpus_of_unreadable_files_is_an_error_even_when_skipping(folder):
    for path in (folder / "train").glob("*.wav"):
        path.write_bytes(b"")
    for decoded in (False, True):
        with pytest.raises(ValueError, match="not one of its audio files can be read"):
            load_corpus(str(folder), "train", on_error="skip", decoded=decoded)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [(np.zeros(0, "f4"), "holds no samples"), (np.array([0, np.nan], "f4"), "holds NaN or infinite samples")],
)
def test_empty_and_not_finite_audio_is_an_error(waveform, message):
    audio = {"bytes": encode(waveform, subtype="FLOAT"), "path": "bad.wav"}
    with pytest.raises(UnreadableAudioError, match=f"bad.wav of corpus c {message}"):
        read_audio(audio, "c")


def test_a_missing_metadata_file_or_column_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="has no metadata.csv"):
        load_corpus(str(tmp_path), "train")
    (tmp_path / "train" / "metadata.csv").write_text("path,text\na.wav,hello\n")
    with pytest.raises(ValueError, match=r"no column file_name; it has \['path', 'text'\]"):
        load_corpus(str(tmp_path), "train")


def test_an_empty_split_an_absent_split_and_an_unknown_one_are_errors(folder, tmp_path):
    empty = write_folder(tmp_path / "empty" / "test", {}, "file_name,text")
    with pytest.raises(ValueError, match="split 'test' of corpus .*empty has no rows"):
        load_corpus(str(empty), "test")
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\]"):
        load_corpus(str(folder), "test")
    with pytest.raises(ValueError, match="unknown split 'dev'; choose one of"):
        load_corpus("embedded", "dev")


def test_a_text_column_that_is_not_there_is_an_error(folder):
    with pytest.raises(ValueError, match=r"no text column words; it has \['text', 'number', 'speaker', 'audio'\]"):
        load_corpus(f"{folder}@words", "train")


def test_a_corrupt_table_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"this is not a table")
    with pytest.raises(ValueError, match="train.parquet"):
        load_corpus(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "names no corpus"),
        ("embedded:large", "no configurations; leave out 'large'"),
        ("./no/such/folder", "no corpus folder ./no/such/folder"),
    ],
)
def test_a_wrong_source_is_an_error(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_corpus(source, "train")


def test_a_repository_that_cannot_be_reached_is_an_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'no_such/corpus' is neither a folder nor a repository"):
        load_corpus("no_such/corpus", "train")


def test_wrong_options_are_errors():
    with pytest.raises(ValueError, match="unknown on_error 'ignore'"):
        load_corpus("embedded", "test", on_error="ignore")
    with pytest.raises(ValueError, match="streaming or decoded, not both"):
        load_corpus("embedded", "test", streaming=True, decoded=True)
    with pytest.raises(ValueError, match="a list of at least one corpus"):
        load_corpora([], "test")
    with pytest.raises(ValueError, match="a list of at least one corpus"):
        load_corpora("embedded", "test")


# --- real speech ---


@needs_shared_data
def test_real_corpora_are_read():
    an4 = load_corpus(str(SHARED_DATA / "an4"), "test")
    assert len(an4) == 130 and an4[0]["text"] == "ENTER TWO NINE EIGHT ONE" and len(set(column(an4, "speaker"))) == 10
    strings = load_corpus(f"digit_strings:{SHARED_DATA / 'spoken_digits'}", "test", decoded=True)
    assert len(strings) == 200 and len(set(strings["speaker"])) == 6
    spelled = load_corpus(f"{SHARED_DATA / 'alphanumeric'}@verbalised", "test")
    assert len(spelled) == 20 and all(row["audio"].ndim == 1 for row in spelled)


@needs_shared_data
def test_real_noise_is_read():
    known = load_noise(str(SHARED_DATA / "esc50_noise"), "test", exclude_esc10=True)
    held_out = load_noise(str(SHARED_DATA / "esc50_noise"), "test", only_esc10=True)
    assert set(column(held_out, "noise")) == ESC10_CLASSES and not set(column(known, "noise")) & ESC10_CLASSES
    assert len(known) == 256 and len(held_out) == 80
