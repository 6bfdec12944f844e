"""Questions to corpora in folders: their columns and texts, lengths from headers, broken and missing files."""

import logging

import numpy as np
import pytest
import soundfile
from tiny_corpora import column, encode, make_tone, use_own_cache, write_folder, write_parquet, write_utterances

from clearspeech.processing.audio_reading import UnreadableAudioError, read_audio
from clearspeech.processing.corpora import leave_out_long, load_corpus


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """Three utterances; the second has no text."""
    return write_utterances(tmp_path / "corpus")


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


def test_another_text_column_can_be_chosen_and_stays_text(folder):
    assert list(load_corpus(f"{folder}@number", "train")["text"]) == ["12", "34", "56"]


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
    assert row["noise"] == ""


def test_a_missing_clean_file_is_named_or_skipped_and_counted(tmp_path, caplog):
    files = {f"{name}.wav": encode(make_tone(0.1)) for name in ("noisy", "other", "clean")}
    rows = ("noisy.wav,clean.wav,hello", "other.wav,absent.wav,hello again")
    folder = write_folder(tmp_path / "pairs" / "test", files, "file_name,clean_file_name,text", *rows)
    with pytest.raises(FileNotFoundError, match="1 audio files .*absent.wav"):
        load_corpus(str(folder), "test")
    assert column(load_corpus(str(folder), "test", on_error="skip"), "text") == ["hello"]
    assert "absent.wav" in caplog.text and "skipped 1 unreadable files, kept 1 rows" in caplog.text


def test_a_row_without_a_clean_half_is_an_error_or_skipped_and_counted(tmp_path, caplog):
    audio = {"bytes": encode(make_tone(0.1)), "path": "a.wav"}
    rows = [{"audio": audio, "clean_audio": clean, "text": text} for clean, text in ((audio, "one"), (None, "two"))]
    write_parquet(tmp_path / "test.parquet", rows, "audio", "clean_audio")
    for options in ({"decoded": True}, {"streaming": True}, {}):
        with pytest.raises(UnreadableAudioError, match="has a row without audio"):
            list(load_corpus(str(tmp_path), "test", **options))
        caplog.clear()
        rows = list(load_corpus(str(tmp_path), "test", on_error="skip", **options))
        assert [row["text"] for row in rows] == ["one"]
        assert "skipped unreadable file number 1" in caplog.text
    with pytest.raises(UnreadableAudioError, match="has a row without audio"):
        leave_out_long(load_corpus(str(tmp_path), "test"), 30)


def test_an_empty_file_name_is_refused_with_its_row_or_skipped(tmp_path, caplog):
    files = {f"{name}.wav": encode(make_tone(0.1)) for name in ("noisy", "other", "clean")}
    rows = ("noisy.wav,clean.wav,hello", "other.wav,,hello again")
    folder = write_folder(tmp_path / "pairs" / "test", files, "file_name,clean_file_name,text", *rows)
    with pytest.raises(ValueError, match=r"1 rows of .*metadata.csv have no clean_file_name: numbers \[2\]"):
        load_corpus(str(folder), "test")
    assert column(load_corpus(str(folder), "test", on_error="skip"), "text") == ["hello"]
    assert "has a row without audio" in caplog.text and "skipped 1 unreadable files, kept 1 rows" in caplog.text


def test_pairs_of_unequal_length_are_named_by_their_headers_or_skipped(tmp_path, monkeypatch, caplog):
    files = {f"{name}.wav": encode(make_tone(seconds)) for name, seconds in (("noisy", 0.2), ("clean", 0.2))}
    files |= {"long.wav": encode(make_tone(0.2)), "short.wav": encode(make_tone(0.1))}
    rows = ("noisy.wav,clean.wav,equal", "long.wav,short.wav,unequal")
    folder = str(write_folder(tmp_path / "pairs" / "train", files, "file_name,clean_file_name,text", *rows))
    message = "1 of 2 pairs .*long.wav has 3200 and .*short.wav has 1600"
    with pytest.raises(UnreadableAudioError, match=message):
        leave_out_long(load_corpus(folder, "train"), 30)
    with pytest.raises(UnreadableAudioError, match="differ in samples: .*long.wav has 3200"):
        load_corpus(folder, "train", decoded=True)
    for decoded in (False, True):
        caplog.clear()
        corpus = leave_out_long(load_corpus(folder, "train", on_error="skip", decoded=decoded), 30)
        assert column(corpus, "num_samples") == [3200] and corpus[0]["text"] == "equal"
        assert "short.wav has 1600" in caplog.text and "skipped 1 unreadable files, kept 1 rows" in caplog.text
    corpus = load_corpus(folder, "train").select([0])
    monkeypatch.delattr(soundfile, "read")  # headers of equal length are enough
    assert column(leave_out_long(corpus, 30), "num_samples") == [3200]


def test_stereo_and_other_rates_become_mono_at_16_khz(tmp_path):
    left = make_tone(0.5, sampling_rate=44100)
    content = encode(np.stack([left, 0 * left], axis=1), 44100, subtype="PCM_24")
    folder = write_folder(tmp_path / "corpus" / "test", {"a.wav": content}, "file_name,text", "a.wav,hello")
    audio = load_corpus(str(folder), "test")[0]["audio"]
    np.testing.assert_allclose(audio[800:-800], 0.5 * make_tone(0.5)[800:-800], atol=1e-3)


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


def test_a_corrupt_file_is_named_when_its_header_is_read(folder):
    (folder / "train" / "c.wav").write_bytes(b"this is not a sound")
    with pytest.raises(UnreadableAudioError, match="c.wav"):
        leave_out_long(load_corpus(str(folder), "train"), 30)
    assert column(leave_out_long(load_corpus(str(folder), "train", on_error="skip"), 30), "num_samples") == [1600]


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
