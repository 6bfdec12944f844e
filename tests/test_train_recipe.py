"""The training recipe on a stream, on long and bad files, and on noise without classes."""

import logging
from pathlib import Path

import pytest
from test_corpora import column, encode, make_tone, write_folder, write_parquet

from clearspeech import StableTokenModel
from clearspeech.processing.audio_reading import UnreadableAudioError

LETTERS = "abcdefghijkl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is left in the user's cache of data sets; the end of a stream does not wait five seconds."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)


@pytest.fixture
def recipe(monkeypatch):
    """The recipe as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import train_stable_token

    return train_stable_token


@pytest.fixture
def streamed(tmp_path):
    """A local copy of a Hub repository that is streamed: twelve utterances of 0.2 to 1.3 s in two files."""
    copy = tmp_path / "openslr" / "librispeech_asr"
    copy.mkdir(parents=True)
    files = "\n  - split: train.clean.100\n    path: data/*.parquet"
    (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: all\n  data_files:{files}\n---\n# LibriSpeech\n")
    for part in (0, 1):
        rows = [
            {"audio": {"bytes": encode(make_tone(0.2 + 0.1 * number)), "path": "a.wav"}, "text": LETTERS[number]}
            for number in range(6 * part, 6 * part + 6)
        ]
        write_parquet(copy / "data" / f"{part}.parquet", [row | {"speaker_id": 1} for row in rows])
    return str(copy)


@pytest.fixture
def folder(tmp_path):
    """An utterance of 0.1 s, one of 40 s, and a file that is no audio."""
    files = {"a.wav": encode(make_tone(0.1)), "b.wav": encode(make_tone(40)), "c.wav": b"this is not a sound"}
    rows = ("a.wav,one", "b.wav,two", "c.wav,three")
    return str(write_folder(tmp_path / "corpus" / "train", files, "file_name,text", *rows))


def parse(recipe, *arguments):
    return recipe.parse_arguments(["--output_dir", "unused", *arguments])


def test_a_stream_is_shuffled_by_the_seed_and_anew_each_epoch(recipe, streamed):
    arguments = parse(recipe, "--dataset", streamed, "--shuffle_buffer", "12", "--max_seconds", "1")[0]

    def order(seed: int, epoch: int) -> str:
        speech = recipe.load_training_speech(arguments, seed)
        speech.set_epoch(epoch)
        return "".join(row["text"] for row in speech)

    orders = [order(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(each) == list("abcdefghi") for each in orders)  # the last three are longer than 1 s
    assert len({*orders, "abcdefghi"}) == 4
    assert order(0, 1) == orders[1]


def test_long_and_unreadable_files_are_left_out_of_a_corpus_with_a_length(recipe, folder):
    speech = recipe.load_training_speech(parse(recipe, "--dataset", folder, "--on_error", "skip")[0], 0)
    assert column(speech, "text") == ["one"] and column(speech, "num_samples") == [1600]
    with pytest.raises(UnreadableAudioError, match="c.wav"):
        recipe.load_training_speech(parse(recipe, "--dataset", folder)[0], 0)


def test_noise_without_classes_is_trained_on(recipe, tmp_path, caplog):
    files = {"a.wav": encode(make_tone(0.1)), "b.wav": b"this is not a sound"}
    noise = write_folder(tmp_path / "noise" / "train", files, "file_name,caption", "a.wav,rain falls", "b.wav,wind")
    flags = ("--dataset", "embedded", "--noise_dataset", str(noise))
    with pytest.raises(UnreadableAudioError, match="b.wav"):
        recipe.build_perturber(parse(recipe, *flags)[0])
    with caplog.at_level(logging.WARNING):
        assert recipe.build_perturber(parse(recipe, *flags, "--on_error", "skip")[0]) is not None
    assert "skipped 1 unreadable files, kept 1 rows" in caplog.text


@pytest.mark.parametrize("more", [(), ("--train_sampling_strategy", "group_by_length")])
def test_the_recipe_trains_on_streams_and_by_length(recipe, streamed, folder, tiny_whisper_folder, tmp_path, more):
    """Without a length it goes round and round; with one, `num_samples` groups rows that are decoded when read."""
    corpora = [folder] if more else [streamed, "embedded"]
    base = ["--base_model", str(tiny_whisper_folder), "--num_bits", "4", "--max_steps", "3", "--use_cpu"]
    train = ["--dataset", *corpora, "--on_error", "skip", "--per_device_train_batch_size", "4", "--report_to", "none"]
    output_dir = tmp_path / "trained"
    recipe.main([*base, *train, *more, "--output_dir", str(output_dir)])
    assert StableTokenModel.from_pretrained(output_dir).config.num_bits == 4
