"""The recipe that trains HASRD, from a fitted folder or a bare codec to a folder that encodes and decodes."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_corpora import encode, make_tone, use_own_cache, write_folder
from tiny_hasrd import make_hasrd
from transformers import AutoFeatureExtractor, AutoModelForAudioTokenization

from clearspeech import HasrdModel
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import train_hasrd

    return train_hasrd


@pytest.fixture
def speech_folder(tmp_path) -> str:
    """Six utterances of 0.2 to 0.3 s for training, two for validation."""
    for split, numbers in (("train", range(6)), ("validation", range(2))):
        files = {f"{number}.wav": encode(make_tone(0.2 + 0.02 * number)) for number in numbers}
        write_folder(tmp_path / "speech" / split, files, "file_name,text", *(f"{number}.wav,a" for number in numbers))
    return str(tmp_path / "speech")


@pytest.fixture
def flags(tmp_path, speech_folder) -> list[str]:
    """Two steps."""
    options = dict(dataset=speech_folder, output_dir=tmp_path / "trained", max_steps=2, segment_seconds=0.128)
    options |= dict(per_device_train_batch_size=3, report_to="none", discriminator_channel_factor=1 / 32)
    options |= dict(discriminator_periods=2, discriminator_fft_sizes=128, eval_steps=1, save_steps=1, logging_steps=1)
    return ["--preset", "mini", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


@pytest.fixture
def fitted_folder(tmp_path) -> str:
    make_hasrd().save_pretrained(tmp_path / "fitted")
    BestRQFeatureExtractor(8).save_pretrained(tmp_path / "fitted")
    return str(tmp_path / "fitted")


def logged(tmp_path) -> dict[str, list[float]]:
    history = json.loads((tmp_path / "trained" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    return {name: [line[name] for line in history if name in line] for line in history for name in line}


def test_the_folder_that_it_leaves_encodes_and_decodes(recipe, flags, fitted_folder, tmp_path):
    recipe.main([*flags, "--model", fitted_folder, "--quantizer_dropout", "0.25"])
    figures = logged(tmp_path)
    terms = ("mel", "generator", "feature_matching", "commitment", "codebook", "discriminator", "eval_mel_distance")
    assert all(len(figures[name]) == 2 for name in (*terms, "usage/semantic", "perplexity/acoustic_1"))
    folder = tmp_path / "trained"
    model, extractor = (
        AutoModelForAudioTokenization.from_pretrained(folder),
        AutoFeatureExtractor.from_pretrained(folder),
    )
    given = HasrdModel.from_pretrained(fitted_folder)
    assert model.config.quantizer_dropout == 0.25
    ours, theirs = model.state_dict(), given.state_dict()
    moved = {name.split(".")[0] for name, value in ours.items() if not torch.equal(value, theirs[name])}
    assert {"decoder", "acoustic_quantizer", "projection", "layer_weights"} == moved
    features = extractor([make_tone(0.3)], sampling_rate=16000, return_tensors="pt")
    audio = model.decode(model.encode(**features).audio_codes, num_samples=4800).audio_values
    assert audio.shape == (1, 4800) and audio.isfinite().all()
    with pytest.raises(FileExistsError, match="pass --resume"):
        recipe.main([*flags, "--model", fitted_folder])


def test_a_bare_codec_trains_its_front_end_and_a_resumed_run_keeps_the_statistics(
    recipe, flags, tmp_path, monkeypatch
):
    sizes = ["--hidden_size", "16", "--conv_channels", "8", "12", "16", "--decoder_channels", "32"]
    bare = [*flags, "--encoder", "fbank_sepconv", *sizes, "--num_acoustic_books", "2", "--codebook_size", "8"]
    recipe.main([*bare, "--max_steps", "1"])
    first = AutoModelForAudioTokenization.from_pretrained(tmp_path / "trained")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "trained")
    assert extractor.normalization == "global" and len(extractor.mean) == 80
    monkeypatch.setattr(BestRQFeatureExtractor, "fit", lambda *given: pytest.fail("measured again"))
    recipe.main([*bare, "--resume"])
    model = AutoModelForAudioTokenization.from_pretrained(tmp_path / "trained")
    assert len(logged(tmp_path)["mel"]) == 2 and "usage/semantic" not in logged(tmp_path)
    config = model.config
    assert (config.num_semantic_codes, config.num_books, config.codebook_size, config.separable) == (0, 2, 8, True)
    weights, before = model.encoder.state_dict(), first.encoder.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in weights.items())


def test_the_codecs_of_table_1_have_its_sizes_and_rate(recipe):
    for encoder, millions in {"fbank": 68.0, "fbank_sepconv": 48.0}.items():
        paper, args = recipe.parse_arguments(["--output_dir", "unused", "--dataset", "x", "--encoder", encoder])
        with torch.device("meta"):
            model = recipe.build_model(paper)
        assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.06)
        assert model.config.bitrate == pytest.approx(2.8125) and not args.freeze_encoder


def test_the_paper_is_the_default(recipe):
    paper, args = recipe.parse_arguments(["--output_dir", "unused", "--dataset", "x", "--model", "y"])
    assert paper.segment_seconds == 5.0 and args.freeze_encoder
    assert (args.max_steps, args.per_device_train_batch_size, args.learning_rate) == (100_000, 8, 1e-4)
    assert args.save_total_limit == 2
    assert args.discriminator_fft_sizes == [2048, 1024, 512] and args.discriminator_channel_factor == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("num_acoustic_books", "0"), "a codec needs a book"),
        (("hidden_size", "0"), "hidden_size must be at least 1"),
        (("quantizer_dropout", "1.5"), "a share in 0..1; got 1.5"),
        (("quantizer_dropout", "-1"), "a share in 0..1; got -1.0"),
    ],
)
def test_a_size_is_taken_as_it_is_given(recipe, given, message):
    """Not for the paper's."""
    name, value = given
    arguments = ["--output_dir", "unused", "--dataset", "x", "--encoder", "fbank", f"--{name}", value]
    with torch.device("meta"), pytest.raises(StrictDataclassClassValidationError, match=message):
        recipe.build_model(recipe.parse_arguments(arguments)[0])


def test_a_folders_share_of_short_segments_is_checked_too(recipe, flags, fitted_folder):
    with pytest.raises(StrictDataclassClassValidationError, match="got 1.5"):
        recipe.main([*flags, "--model", fitted_folder, "--quantizer_dropout", "1.5"])


def test_what_cannot_be_trained_is_refused(recipe, flags, fitted_folder, tiny_folder, tmp_path):
    for given in ([], ["--model", "a", "--encoder", "fbank"]):
        with pytest.raises(ValueError, match="either --model or --encoder"):
            recipe.parse_arguments([*flags, *given])
    with pytest.raises(ValueError, match="--decoder_channels belong to --encoder"):
        recipe.parse_arguments([*flags, "--model", "a", "--decoder_channels", "8"])
    with pytest.raises(ValueError, match="'facebook/hubert-base-ls960'. Give .*/fit_semantic_codebook.py --encoder"):
        recipe.parse_arguments([*flags, "--encoder", "facebook/hubert-base-ls960"])
    with pytest.raises(ValueError, match="holds a 'stable_token' model.*recipes/fit_semantic_codebook.py"):
        recipe.main([*flags, "--model", str(tiny_folder)])
    with pytest.raises(ValueError, match="give a folder of recipes/train_hasrd.py"):
        recipe.check_model_type(str(tiny_folder), "recipes/train_hasrd.py")
    unfitted = HasrdModel(make_hasrd().config)
    unfitted.save_pretrained(tmp_path / "unfitted")
    with pytest.raises(ValueError, match="no semantic book yet"):
        recipe.main([*flags, "--model", str(tmp_path / "unfitted")])
