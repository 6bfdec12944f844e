"""Questions to repositories of the Hub, as local copies: their columns and splits, streams, what cannot be reached."""

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from tiny_corpora import (
    column,
    encode,
    make_tone,
    use_own_cache,
    write_digits,
    write_librispeech,
    write_parquet,
    write_utterances,
)

from clearspeech.processing.corpora import load_corpora, load_corpus
from clearspeech.processing.hub_corpora import COMMON_VOICE, HubCorpus, find_hub_corpus


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """Three utterances; the second has no text."""
    return write_utterances(tmp_path / "corpus")


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits")


@pytest.fixture
def librispeech(tmp_path):
    return write_librispeech(tmp_path)


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


def test_a_repository_that_cannot_be_reached_is_an_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="'no_such/corpus' is neither a folder nor a repository"):
        load_corpus("no_such/corpus", "train")
