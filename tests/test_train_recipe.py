"""The training recipes on a stream, on long and bad files, on noise with and without classes, and on pairs."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_corpora import column, encode, make_tone, use_own_cache, write_folder, write_parquet

from clearspeech import DisentangledWhisperForConditionalGeneration, StableTokenModel
from clearspeech.processing.audio_reading import UnreadableAudioError

LETTERS = "abcdefghijkl"
NOISES = ("babble", "rain", "wind")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def recipe(monkeypatch):
    """StableToken's recipe as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import train_stable_token

    return train_stable_token


@pytest.fixture
def pair_recipe(monkeypatch):
    """DisentangledWhisper's recipe as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import train_disentangled_whisper

    return train_disentangled_whisper


@pytest.fixture
def speech_folder(tmp_path):
    """Six utterances of 0.2 to 0.7 s for training, two for validation."""
    for split, numbers in (("train", range(6)), ("validation", range(2))):
        files = {f"{number}.wav": encode(make_tone(0.2 + 0.1 * number)) for number in numbers}
        rows = [f"{number}.wav,{LETTERS[number]}" for number in numbers]
        write_folder(tmp_path / "speech" / split, files, "file_name,text", *rows)
    return str(tmp_path / "speech")


@pytest.fixture
def pair_folder(tmp_path):
    """Four pairs for training and two for validation, with noise of two classes and of none."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(4800).astype("f4")
    for split, names in (("train", ("rain", "wind", "rain", "")), ("validation", ("wind", "rain"))):
        rows = []
        for number, name in enumerate(names):
            clean = make_tone(0.3, 300 + 100 * number)
            halves = {"audio": clean + noise, "clean_audio": clean}
            audio = {column: {"bytes": encode(half), "path": "a.wav"} for column, half in halves.items()}
            rows.append(audio | {"text": LETTERS[number], "noise": name})
        write_parquet(tmp_path / "pairs" / f"{split}.parquet", rows, "audio", "clean_audio")
    return str(tmp_path / "pairs")


@pytest.fixture
def noise_folder(tmp_path):
    """A clip of each of three classes for training and validation."""
    for split in ("train", "validation"):
        files = {f"{name}.wav": encode(make_tone(1, 200 + 200 * number)) for number, name in enumerate(NOISES)}
        write_folder(tmp_path / "noise" / split, files, "file_name,noise", *[f"{name}.wav,{name}" for name in NOISES])
    return str(tmp_path / "noise")


@pytest.fixture
def mini(tiny_whisper_folder, tmp_path):
    """Flags of a training of seconds, on the mini preset with a smaller base."""
    flags = ["--preset", "mini", "--base_model", str(tiny_whisper_folder), "--codebook_size", "8", "--use_cpu"]
    flags += ["--fit_bottleneck_rows", "0", "--per_device_train_batch_size", "4", "--report_to", "none"]
    return [*flags, "--output_dir", str(tmp_path / "trained")]


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


def test_the_defaults_are_the_papers_and_the_command_line_overrules_a_preset(recipe):
    paper, args = parse(recipe, "--dataset", "embedded")
    assert (paper.base_model, paper.num_voters, paper.num_bits) == ("openai/whisper-large-v3", 5, 13)
    assert paper.noise_aware and (args.learning_rate, args.warmup_steps) == (1.5e-5, 1000)
    mini, args = parse(recipe, "--dataset", "embedded", "--preset", "mini", "--max_steps", "3")
    assert (mini.num_bits, mini.num_voters, args.max_steps, args.learning_rate) == (8, 5, 3, 5e-4)


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


# --- recipes/train_disentangled_whisper.py ---


def trained(tmp_path) -> DisentangledWhisperForConditionalGeneration:
    return DisentangledWhisperForConditionalGeneration.from_pretrained(tmp_path / "trained")


def test_clean_speech_and_labelled_noise_become_pairs_whose_kept_states_a_resumed_training_reads(
    pair_recipe, speech_folder, noise_folder, mini, tmp_path, monkeypatch
):
    corpora = ["--dataset", speech_folder, "--noise_dataset", noise_folder, "--noise_classes", "wind", "babble"]
    flags = [*mini, *corpora, "--copies", "2", "--save_steps", "1", "--state_cache", str(tmp_path / "states")]
    pair_recipe.main([*flags, "--max_steps", "2"])
    assert trained(tmp_path).config.noise_labels == ["babble", "wind"]
    assert json.loads((tmp_path / "states" / "train" / "description.json").read_text())["rows"] == 12
    with pytest.raises(FileExistsError, match="already holds .*checkpoint-2: pass --resume"):
        pair_recipe.main([*flags, "--max_steps", "3"])
    monkeypatch.setattr("clearspeech.trainers.encoder_states.encode_rows", None)
    pair_recipe.main([*flags, "--max_steps", "3", "--resume"])
    state = json.loads((tmp_path / "trained" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    with pytest.raises(ValueError, match="holds the states of .*remove it, or give another"):
        pair_recipe.main([*flags, "--copies", "1", "--max_steps", "3", "--resume"])


def test_pairs_are_taken_as_they_are_with_their_classes(pair_recipe, pair_folder, mini, tmp_path):
    pair_recipe.main([*mini, "--dataset", pair_folder, "--max_steps", "1"])
    assert trained(tmp_path).config.noise_labels == ["rain", "wind"]


def test_a_baseline_without_noise_head_trains_on_pairs(pair_recipe, pair_folder, mini, tmp_path):
    pair_recipe.main([*mini, "--dataset", pair_folder, "--max_steps", "1", "--bottleneck", "adapter"])
    config = trained(tmp_path).config
    assert (config.bottleneck, config.noise_labels) == ("adapter", [])


def test_a_validation_noise_that_training_has_not_is_refused_before_training(pair_recipe, pair_folder, mini, tmp_path):
    validation = tmp_path / "pairs" / "validation.parquet"
    rows = [row | {"noise": "thunder"} for row in Dataset.from_parquet(str(validation), keep_in_memory=True)]
    write_parquet(validation, rows, "audio", "clean_audio")
    with pytest.raises(ValueError, match=r"noises that training has not: \['thunder'\]"):
        pair_recipe.main([*mini, "--dataset", pair_folder, "--max_steps", "1"])


def test_trained_modules_move_to_the_same_base_and_go_on(pair_recipe, pair_folder, mini, tmp_path):
    flags = [*mini, "--dataset", pair_folder, "--max_steps", "1"]
    pair_recipe.main(flags)
    onwards = ["--latent_model", str(tmp_path / "trained"), "--output_dir", str(tmp_path / "onwards")]
    pair_recipe.main([*flags, *onwards])
    assert DisentangledWhisperForConditionalGeneration.from_pretrained(tmp_path / "onwards").config.codebook_size == 8


def test_a_language_is_for_a_multilingual_base(pair_recipe, pair_folder, mini, monkeypatch):
    """Its tokenizer starts the labels with it, its generation config knows what to ask for."""
    flags = [*mini, "--dataset", pair_folder, "--max_steps", "1", "--language", "en"]
    with pytest.raises(ValueError, match="which knows no languages"):
        pair_recipe.main(flags)
    asked = []
    base = pair_recipe.parse_arguments(flags)[0].base_model
    tokenizer = SimpleNamespace(set_prefix_tokens=lambda **settings: asked.append(settings))
    monkeypatch.setattr(pair_recipe.AutoTokenizer, "from_pretrained", lambda _: tokenizer)
    assert pair_recipe.load_tokenizer(base, "en") is tokenizer
    assert asked == [{"language": "en", "task": "transcribe", "predict_timestamps": False}]
    with pytest.raises(ValueError, match="language 'en' is not one of this Whisper's"):
        pair_recipe.build_model(pair_recipe.parse_arguments(flags)[0], [])


def test_a_latent_model_brings_its_shape_and_is_not_fitted_anew(pair_recipe, pair_folder, mini, tmp_path):
    shape = ["--downsampling", "conv", "--codebook_distance", "cosine", "--noise_head_layers", "0"]
    flags = [*mini, "--dataset", pair_folder, "--max_steps", "1"]
    pair_recipe.main([*flags, *shape])
    onwards = ["--preset", "mini", "--dataset", pair_folder, "--latent_model", str(tmp_path / "trained")]
    onwards += ["--output_dir", str(tmp_path / "onwards")]
    recipe, args = pair_recipe.parse_arguments(onwards)
    assert (recipe.downsampling, recipe.codebook_distance, recipe.noise_head_layers) == ("conv", "cosine", 0)
    assert (recipe.codebook_size, recipe.codebook_decay, args.fit_bottleneck_rows) == (8, 0.99, 0)
    with pytest.raises(ValueError, match="--fit_bottleneck_rows 512 would overwrite"):
        pair_recipe.parse_arguments([*onwards, "--fit_bottleneck_rows", "512"])
    with pytest.raises(ValueError, match="downsampling='mean' contradicts .*, which has downsampling='conv'"):
        pair_recipe.main([*flags, *onwards, "--downsampling", "mean"])


def test_modules_for_other_noises_are_not_taken_over(pair_recipe, pair_folder, mini, tmp_path):
    flags = [*mini, "--dataset", pair_folder, "--max_steps", "1"]
    pair_recipe.main(flags)
    for split in ("train", "validation"):
        file = tmp_path / "pairs" / f"{split}.parquet"
        rows = [row | {"noise": "crow"} for row in Dataset.from_parquet(str(file), keep_in_memory=True)]
        write_parquet(file, rows, "audio", "clean_audio")
    onwards = ["--latent_model", str(tmp_path / "trained"), "--output_dir", str(tmp_path / "onwards")]
    with pytest.raises(ValueError, match=r"noise_labels=\['crow'\] contradicts .*noise_labels=\['rain', 'wind'\]"):
        pair_recipe.main([*flags, *onwards])


def test_a_baseline_reads_no_clean_states(pair_recipe, pair_folder, mini, tmp_path, monkeypatch):
    columns = {}
    keep_states = pair_recipe.keep_states

    def spy(recipe, *arguments):
        states = keep_states(recipe, *arguments)
        columns[recipe.bottleneck] = states.column_names
        return states

    monkeypatch.setattr(pair_recipe, "keep_states", spy)
    flags = [*mini, "--dataset", pair_folder, "--max_steps", "1", "--state_cache", str(tmp_path / "states")]
    pair_recipe.main(flags)
    pair_recipe.main([*flags, "--bottleneck", "adapter", "--output_dir", str(tmp_path / "adapter")])
    assert set(columns["quantizer"]) - set(columns["adapter"]) == {"clean_states"}


def test_the_paper_preset_trains_thirty_epochs_and_keeps_two_checkpoints(pair_recipe):
    _, args = pair_recipe.parse_arguments(["--dataset", "embedded", "--output_dir", "unused"])
    assert (args.num_train_epochs, args.save_total_limit, args.dataloader_num_workers) == (30, 2, 8)


@pytest.mark.parametrize("is_kept", [False, True], ids=["mixed on the fly", "kept states"])
def test_worker_processes_give_the_training_of_none(pair_recipe, speech_folder, noise_folder, mini, tmp_path, is_kept):
    corpora = ["--dataset", speech_folder, "--noise_dataset", noise_folder, "--max_steps", "2"]
    corpora += ["--state_cache", str(tmp_path / "states")] * is_kept
    weights = []
    for workers in ("0", "2"):
        folder = tmp_path / f"workers-{workers}"
        pair_recipe.main([*mini, *corpora, "--dataloader_num_workers", workers, "--output_dir", str(folder)])
        weights.append(DisentangledWhisperForConditionalGeneration.from_pretrained(folder).state_dict())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-6), name


def test_long_utterances_are_left_out_and_validation_takes_rows_from_all_over(pair_recipe, speech_folder):
    flags = ["--dataset", speech_folder, "--noise_dataset", "embedded", "--output_dir", "unused"]
    recipe = pair_recipe.parse_arguments([*flags, "--max_seconds", "0.55", "--max_validation_rows", "1"])[0]
    assert column(pair_recipe.load_pairs(recipe, "train")[0], "text") == ["a", "b", "c", "d"]
    assert column(pair_recipe.load_pairs(recipe, "validation")[0], "text") == ["a"]


@pytest.mark.parametrize(
    ("corpus", "flags", "message"),
    [
        ("speech_folder", [], "are not pairs.*needs a --noise_dataset"),
        ("pair_folder", ["--noise_dataset", "embedded"], "are pairs, noisy already: leave out --noise_dataset"),
    ],
)
def test_corpora_that_give_no_pairs_are_refused(pair_recipe, request, corpus, flags, message):
    arguments = ["--dataset", request.getfixturevalue(corpus), *flags, "--output_dir", "unused"]
    with pytest.raises(ValueError, match=message):
        pair_recipe.load_pairs(pair_recipe.parse_arguments(arguments)[0], "train")


def test_a_large_hub_repository_is_read_whole_for_pairs(pair_recipe, streamed):
    """They need its length; StableToken's recipe streams it."""
    flags = ["--dataset", streamed, "--noise_dataset", "embedded", "--output_dir", "unused"]
    pairs, _ = pair_recipe.load_pairs(pair_recipe.parse_arguments(flags)[0], "train")
    assert len(pairs) == 12
