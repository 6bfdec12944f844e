"""The recipe that pre-trains BEST-RQ, from folders of speech without transcripts to an encoder that loads."""

import json
from pathlib import Path

import pytest
import torch
from tiny_corpora import encode, make_tone, use_own_cache, write_folder
from transformers import AutoFeatureExtractor, AutoModel

from clearspeech.modeling.modeling_best_rq import BestRQModel
from clearspeech.processing.audio_reading import UnreadableAudioError
from clearspeech.processing.untranscribed_corpora import load_untranscribed


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import pretrain_best_rq

    return pretrain_best_rq


@pytest.fixture
def folders(tmp_path) -> list[str]:
    """Four utterances with a text or an empty one, two for validation; and two of a corpus without texts."""
    for split, numbers in (("train", range(4)), ("validation", range(2))):
        files = {f"{number}.wav": encode(make_tone(0.3 + 0.1 * number)) for number in numbers}
        rows = [f"{number}.wav,{'one' * (number % 2)}" for number in numbers]
        write_folder(tmp_path / "read" / split, files, "file_name,text", *rows)
    files = {f"{number}.wav": encode(make_tone(0.5)) for number in range(2)}
    write_folder(tmp_path / "orders" / "train", files, "file_name,intent", "0.wav,coffee", "1.wav,tea")
    return [str(tmp_path / "read"), str(tmp_path / "orders")]


@pytest.fixture
def flags(tmp_path, folders) -> list[str]:
    """Two steps of a tiny model."""
    options = dict(output_dir=tmp_path / "trained", max_steps=2, hidden_size=16, num_attention_heads=2)
    options |= dict(num_hidden_layers=1, intermediate_size=16, codebook_size=32, per_device_train_batch_size=4)
    options |= dict(eval_steps=1, save_steps=1, logging_steps=1, warmup_steps=0, report_to="none")
    flags = ["--preset", "mini", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    flags += ["--conv_channels", "8", "8", "8", "--dataset", *folders, "--validation_dataset", folders[0]]
    return flags


def logged(tmp_path, step: int = 2) -> dict[str, list[float]]:
    """By name what the trainer has logged."""
    state = json.loads((tmp_path / "trained" / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return {
        name: [line[name] for line in state["log_history"] if name in line]
        for line in state["log_history"]
        for name in line
    }


def test_the_folder_that_it_leaves_is_an_encoder(recipe, flags, tmp_path):
    recipe.main(flags)
    figures = logged(tmp_path)
    for name in ("loss", "accuracy", "target_entropy", "target_perplexity", "target_usage"):
        assert len(figures[name]) == len(figures[f"eval_{name}"]) == 2
    for folder in (tmp_path / "trained", tmp_path / "trained" / "checkpoint-2"):
        extractor, encoder = AutoFeatureExtractor.from_pretrained(folder), AutoModel.from_pretrained(folder)
        assert type(encoder) is BestRQModel and extractor.normalization == "sentence"
        features = extractor(make_tone(0.5), sampling_rate=16000, return_tensors="pt")
        states = encoder(**features, output_hidden_states=True).hidden_states
        assert [state.shape for state in states] == [(1, 16, 16)] * 2
    with pytest.raises(FileExistsError, match="pass --resume"):
        recipe.main(flags)


def test_a_resumed_run_keeps_its_statistics(recipe, flags, tmp_path, monkeypatch):
    flags = [*flags, "--normalization", "global"]
    recipe.main([*flags, "--max_steps", "1"])
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "trained")
    assert extractor.normalization == "global" and len(extractor.mean) == 80
    monkeypatch.setattr(recipe.BestRQFeatureExtractor, "fit", lambda *given: pytest.fail("measured again"))
    recipe.main([*flags, "--resume"])
    assert len(logged(tmp_path)["loss"]) == 2
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "trained").to_dict() == extractor.to_dict()


def test_all_speech_is_read_whatever_its_text(folders):
    speech = load_untranscribed([*folders, "embedded"], "train")
    assert speech.column_names == ["audio"] and len(speech) > 6
    assert [len(speech[row]["audio"]) for row in range(6)] == [4800, 6400, 8000, 9600, 8000, 8000]
    assert speech[0]["audio"].dtype == "float32" and len(speech[len(speech) - 1]["audio"]) > 400


def test_an_unreadable_file_is_named_or_left_out(folders):
    Path(folders[1], "train", "1.wav").write_bytes(b"noise")
    with pytest.raises(UnreadableAudioError, match="1.wav"):
        load_untranscribed(folders, "train")[5]
    assert len(load_untranscribed(folders, "train", on_error="skip")) == 5


@pytest.mark.parametrize("sources", [[], "embedded"])
def test_sources_are_a_list(sources):
    with pytest.raises(ValueError, match="a list of at least one corpus"):
        load_untranscribed(sources, "train")


def test_the_paper_is_the_default(recipe):
    paper, args = recipe.parse_arguments(["--output_dir", "unused", "--dataset", "embedded"])
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (8e-4, "inverse_sqrt", 25_000)
    assert (args.max_steps, args.gradient_accumulation_steps, args.max_grad_norm) == (300_000, 2, 10.0)
    assert args.per_device_train_batch_size == 50  # utterances of 12 s: "600 seconds per GPU"
    with torch.device("meta"):
        model = recipe.build_model(paper)
    ours, default = model.config.to_dict(), type(model.config)().to_dict()
    assert {**ours, "conv_channels": tuple(ours["conv_channels"])} == default | {
        "architectures": ours["architectures"],
        "dtype": ours["dtype"],
        "conv_channels": tuple(default["conv_channels"]),
    }


def test_the_mini_has_two_and_a_half_million_parameters_at_most(recipe):
    mini, _ = recipe.parse_arguments(["--preset", "mini", "--output_dir", "unused", "--dataset", "embedded"])
    with torch.device("meta"):
        model = recipe.build_model(mini)
    assert 1.5e6 < sum(value.numel() for value in model.parameters()) < 2.5e6
