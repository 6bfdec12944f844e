"""The recipe that trains FactoredASR, from a folder of speech to a folder that transcribes."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_corpora import encode, make_tone, use_own_cache, write_folder
from transformers import AutoModelForRNNT, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, pipeline

from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor

TEXTS = ("one two", "two three", "three one", "one one", "two", "three two one")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    use_own_cache(tmp_path, monkeypatch)


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    import train_factored_asr

    return train_factored_asr


@pytest.fixture
def speech_folder(tmp_path) -> str:
    """Six utterances of 0.5 to 1 s for training, two for validation."""
    for split, numbers in (("train", range(6)), ("validation", range(2))):
        files = {f"{number}.wav": encode(make_tone(0.5 + 0.1 * number)) for number in numbers}
        rows = [f"{number}.wav,{TEXTS[number]}" for number in numbers]
        write_folder(tmp_path / "speech" / split, files, "file_name,text", *rows)
    return str(tmp_path / "speech")


@pytest.fixture
def flags(tmp_path, speech_folder) -> list[str]:
    """Two steps of a tiny model."""
    options = dict(dataset=speech_folder, output_dir=tmp_path / "trained", max_steps=2, vocab_size=16)
    options |= dict(decoder_hidden_size=8, factor_dim=8, per_device_train_batch_size=4, report_to="none")
    options |= dict(use_cpu=True, eval_steps=1, save_steps=1, logging_steps=1)
    return ["--preset", "mini", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


@pytest.fixture
def tiny_encoder(flags) -> list[str]:
    return [*flags, "--encoder", "lstm", "--encoder_hidden_size", "8", "--num_encoder_layers", "1"]


def logged(tmp_path) -> dict[str, list[float]]:
    """By name what the trainer has logged."""
    history = json.loads((tmp_path / "trained" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    return {name: [line[name] for line in history if name in line] for line in history for name in line}


def test_the_folder_that_it_leaves_transcribes(recipe, tiny_encoder, tmp_path):
    recipe.main(tiny_encoder)
    figures = logged(tmp_path)
    assert all(len(figures[name]) == 2 for name in ("transducer", "mi", "contrast", "eval_transducer", "eval_mi"))
    processor = FactoredASRProcessor.from_pretrained(tmp_path / "trained")
    model = AutoModelForRNNT.from_pretrained(tmp_path / "trained")
    assert processor.feature_extractor.normalization == "global" and len(processor.feature_extractor.mean) == 64
    assert model.config.encoder_config.input_size == processor.feature_extractor.feature_size == 6 * 64
    assert model.config.blank_token_id == len(processor.tokenizer) == model.config.vocab_size - 1 <= 16
    transcribe = pipeline("automatic-speech-recognition", model=str(tmp_path / "trained"), device="cpu")
    assert isinstance(transcribe(make_tone(0.5))["text"], str)
    with pytest.raises(FileExistsError, match="pass --resume"):
        recipe.main(tiny_encoder)


def test_a_checkpoint_transcribes_and_its_collator_goes_to_any_worker(recipe, tiny_encoder, tmp_path):
    recipe.main(tiny_encoder)
    folder = tmp_path / "trained" / "checkpoint-2"
    transcribe = pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    assert isinstance(transcribe(make_tone(0.5))["text"], str)
    processor = FactoredASRProcessor.from_pretrained(folder)
    collator = recipe.build_collator(processor, AutoModelForRNNT.from_pretrained(folder))
    copy = pickle.loads(pickle.dumps(collator))
    rows = [{"audio": make_tone(0.5), "text": "one two"}]
    torch.testing.assert_close(copy(rows)["labels"], collator(rows)["labels"])
    with pytest.raises(ValueError, match="more than 10 for each of its 8 frames"):
        copy([{"audio": make_tone(0.5), "text": "one two " * 100}])


def test_a_transcript_that_validation_would_stop_at_is_named_before_training(recipe, tiny_encoder, speech_folder):
    rows = Path(speech_folder, "validation", "metadata.csv")
    rows.write_text(rows.read_text().replace("two three", "two é"))
    with pytest.raises(ValueError, match=r"validation, row 1: .* outside the tokenizer's vocabulary"):
        recipe.main(tiny_encoder)


def test_dropout_is_that_of_the_encoder_and_the_factors_may_have_their_own(recipe, flags, tmp_path):
    rates = ["--dropout", "0.25", "--factor_dropout", "0.5"]
    recipe.main([*flags, "--encoder", "conformer", "--encoder_hidden_size", "16", *rates])
    config = AutoModelForRNNT.from_pretrained(tmp_path / "trained").config
    encoder = config.encoder_config
    assert {encoder.dropout, encoder.activation_dropout, encoder.attention_dropout} == {0.25}
    assert config.dropout == 0.5


def test_a_resumed_run_keeps_its_subwords_and_statistics(recipe, tiny_encoder, tmp_path, monkeypatch):
    recipe.main([*tiny_encoder, "--max_steps", "1"])
    monkeypatch.setattr(recipe, "train_subword_tokenizer", lambda *given: pytest.fail("trained again"))
    recipe.main([*tiny_encoder, "--resume"])
    assert len(logged(tmp_path)["transducer"]) == 2


def test_each_part_of_the_method_can_be_left_out(recipe, tiny_encoder, tmp_path):
    recipe.main(
        [
            *tiny_encoder,
            "--factorize",
            "False",
            "--mi_weight",
            "0",
            "--contrast_weight",
            "0",
            "--mask_probability",
            "0",
        ]
    )
    figures = logged(tmp_path)
    assert "transducer" in figures and "mi" not in figures and "contrast" not in figures
    model = AutoModelForRNNT.from_pretrained(tmp_path / "trained")
    assert not model.config.factorize and model.config.content_size == 8


def test_the_conformer_is_as_wide_as_asked(recipe, flags, tmp_path):
    recipe.main([*flags, "--encoder", "conformer", "--encoder_hidden_size", "16", "--num_encoder_layers", "1"])
    config = AutoModelForRNNT.from_pretrained(tmp_path / "trained").config.encoder_config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (16, 64, 1)


def test_a_pretrained_encoder_is_taken_over_with_its_feature_extractor(recipe, flags, tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    convolutions = dict(conv_dim=[8] * 7, num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4)
    encoder = Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions))
    encoder.save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "encoder")
    recipe.main([*flags, "--encoder", str(tmp_path / "encoder"), "--max_steps", "1", "--learning_rate", "0"])
    ours = AutoModelForRNNT.from_pretrained(tmp_path / "trained").frame_encoder.encoder.state_dict()
    for name, weight in encoder.state_dict().items():
        torch.testing.assert_close(ours[name], weight)
    extractor = FactoredASRProcessor.from_pretrained(tmp_path / "trained").feature_extractor
    assert type(extractor) is Wav2Vec2FeatureExtractor and extractor.return_attention_mask


def test_sizes_of_a_pretrained_encoder_cannot_be_chosen(recipe, flags):
    with pytest.raises(
        ValueError, match="--normalization, --num_encoder_layers belong to --encoder lstm or conformer"
    ):
        recipe.parse_arguments([*flags, "--encoder", "x/y", "--normalization", "none", "--num_encoder_layers", "2"])


def test_the_paper_is_the_default(recipe):
    paper, args = recipe.parse_arguments(["--output_dir", "unused", "--dataset", "embedded", "--encoder", "conformer"])
    assert (paper.vocab_size, paper.factorize) == (640, True)
    assert (args.learning_rate, args.num_train_epochs, args.weight_decay, args.warmup_steps) == (3e-4, 65, 0, 0)
    assert (args.mi_weight, args.contrast_weight, args.mask_probability) == (0.1, 0.3, 0.15)
    assert (args.spec_augment, args.ctc_weight) == (True, 0.0)
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == 2048

    class Pieces(list):
        pad_token_id = 0

    class Processor:
        tokenizer = Pieces(range(640))
        feature_extractor = FactoredASRFeatureExtractor()

    with torch.device("meta"):
        config = recipe.build_model(paper, Processor()).config
    assert (config.vocab_size, config.blank_token_id, config.pad_token_id) == (641, 640, 0)
    assert (config.factor_dim, config.factor_hidden_size, config.num_factor_layers) == (512, 512, 3)
    assert (config.decoder_hidden_size, config.num_decoder_layers) == (1024, 2)
    assert (config.encoder_config.hidden_size, config.encoder_config.num_hidden_layers) == (512, 17)
    assert config.encoder_config.input_size == 192


def test_the_mini_preset_has_its_sizes_for_each_encoder(recipe):
    for encoder, sizes in {"lstm": (256, 2), "conformer": (144, 4), "some/encoder": (None, None)}.items():
        mini, _ = recipe.parse_arguments(
            ["--preset", "mini", "--output_dir", "unused", "--dataset", "embedded", "--encoder", encoder]
        )
        assert (mini.encoder_hidden_size, mini.num_encoder_layers) == sizes
