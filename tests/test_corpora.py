"""Questions to the loading of corpora and noise: sources, columns, decoding early and late, joins, what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import IterableDataset
from tiny_corpora import (
    SHARED_DATA,
    column,
    encode,
    make_tone,
    needs_shared_data,
    use_own_cache,
    write_digits,
    write_librispeech,
    write_parquet,
    write_utterances,
)

from clearspeech.processing.corpora import (
    ESC10_CLASSES,
    leave_out_long,
    load_corpora,
    load_corpus,
    load_noise,
    parse_source,
)


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


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("embedded", ("embedded", None, None, None)),
        ("google/fleurs:de_de@raw_transcription", ("google/fleurs", "de_de", "raw_transcription", None)),
        ("../data/alphanumeric@verbalised", ("../data/alphanumeric", None, "verbalised", None)),
        ("digit_strings:../data/digits:50", ("../data/digits", "50", None, "digit_strings")),
        ("voicebank_demand:../data/DS_10283_2791", ("../data/DS_10283_2791", None, None, "voicebank_demand")),
        ("chime4:../data/CHiME4:real", ("../data/CHiME4", "real", None, "chime4")),
    ],
)
def test_a_source_names_layout_corpus_configuration_and_text_column(source, parts):
    parsed = parse_source(source)
    assert (parsed.name, parsed.config, parsed.text, parsed.layout) == parts
    assert parsed.digit_strings == (parsed.layout == "digit_strings")


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


def test_the_embedded_corpus_is_small():
    folder = Path(__file__).parents[1] / "processing" / "embedded"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000


def test_the_embedded_corpus_is_short_clean_speech():
    corpus = load_corpus("embedded", "test")
    for row in corpus:
        assert row["audio"].dtype == np.float32 and row["audio"].ndim == 1
        assert 0.5 <= len(row["audio"]) / 16000 <= 4.0
        assert 0.1 < np.abs(row["audio"]).max() <= 1.0


def test_decoding_early_late_and_streamed_gives_the_same_rows(folder):
    early, late = load_corpus(str(folder), "train", decoded=True), load_corpus(str(folder), "train")
    streamed = load_corpus(str(folder), "train", streaming=True)
    assert isinstance(streamed, IterableDataset)
    for rows in zip(early, late, streamed, strict=True):
        for row in rows:
            assert (row["text"], row["speaker"]) == (rows[0]["text"], rows[0]["speaker"])
            assert row["audio"].dtype == np.float32
            np.testing.assert_array_equal(row["audio"], rows[0]["audio"])


def test_lengths_of_encoded_files_of_every_kind_are_known_before_decoding(librispeech, digits):
    sources = [str(librispeech), f"digit_strings:{digits}:4", "embedded"]
    corpus = leave_out_long(load_corpora(sources, "train", streaming=False), 30)
    assert [len(row["audio"]) for row in corpus] == column(corpus, "num_samples")


def test_corpora_join_on_their_common_columns(folder, digits):
    corpus = load_corpora([str(folder), f"digit_strings:{digits}:3", "embedded"], "train", decoded=True)
    assert len(corpus) == 2 + 3 + len(load_corpus("embedded", "train"))
    assert set(corpus.column_names) == {"audio", "text", "speaker"}
    assert corpus[2]["audio"].dtype == np.float32


def test_pairs_do_not_join_with_speech_that_has_no_clean_half(folder, tmp_path):
    audio = {"bytes": encode(make_tone(0.1)), "path": "a.wav"}
    row = {"audio": audio, "clean_audio": audio, "text": "one", "noise": "rain"}
    write_parquet(tmp_path / "pairs" / "train.parquet", [row], "audio", "clean_audio")
    pairs = str(tmp_path / "pairs")
    assert "clean_audio" in load_corpora([pairs, pairs], "train").column_names
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"pairs'\] are pairs of noisy and clean speech, the rest of .* is not"):
            load_corpora([str(folder), pairs], "train", streaming=streaming)


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


def test_wrong_options_are_errors():
    with pytest.raises(ValueError, match="unknown on_error 'ignore'"):
        load_corpus("embedded", "test", on_error="ignore")
    with pytest.raises(ValueError, match="streaming or decoded, not both"):
        load_corpus("embedded", "test", streaming=True, decoded=True)
    with pytest.raises(ValueError, match="a list of at least one corpus"):
        load_corpora([], "test")
    with pytest.raises(ValueError, match="a list of at least one corpus"):
        load_corpora("embedded", "test")


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
