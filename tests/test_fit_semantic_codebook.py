"""Questions to the recipe that makes HASRD's semantic book: what it leaves, what it does again, what it refuses."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_corpora import encode, use_own_cache, write_folder
from tiny_hasrd import ENCODERS, make_hasrd
from transformers import AutoFeatureExtractor, AutoModelForAudioTokenization, Wav2Vec2FeatureExtractor

from clearspeech.processing.corpora import load_corpus
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.trainers import unit_extraction

ROOT = Path(__file__).parent.parent


@pytest.fixture
def recipe(monkeypatch):
    """The recipe as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import fit_semantic_codebook

    return fit_semantic_codebook


@pytest.fixture
def corpus(tmp_path, monkeypatch, make_speech) -> str:
    """Eight utterances of about a second."""
    use_own_cache(tmp_path, monkeypatch)
    files = {f"{seed}.wav": encode(make_speech(12000 + 1000 * seed, seed)) for seed in range(8)}
    rows = [f"{name},text {name},s{number % 3}" for number, name in enumerate(files)]
    return str(write_folder(tmp_path / "corpus" / "train", files, "file_name,text,speaker", *rows))


def save_encoder(name: str, folder: Path) -> str:
    """A pretrained encoder with its feature extractor."""
    encoder = make_hasrd(name).encoder
    encoder.save_pretrained(folder)
    extractor = BestRQFeatureExtractor(num_mel_bins=8) if name == "best_rq" else Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def arguments(corpus, tmp_path) -> list[str]:
    options = dict(
        encoder=save_encoder("best_rq", tmp_path / "best_rq"),
        dataset=corpus,
        layer=2,
        num_clusters=10,
        sample_share=0.5,
        batch_frames=50,
        num_inits=2,
        num_acoustic_books=2,
        codebook_size=16,
        decoder_channels=32,
        output_dir=str(tmp_path / "hasrd"),
    )
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def load(folder: Path):
    return AutoModelForAudioTokenization.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["best_rq", "hubert"])
def test_a_layers_clusters_become_a_codecs_first_book(recipe, arguments, corpus, tmp_path, name):
    folder = save_encoder(name, tmp_path / "encoder")
    ratios = [] if name == "best_rq" else ["--upsampling_ratios", "5", "8", "4"]
    recipe.main([*arguments, "--encoder", folder, *ratios])
    model, extractor = load(tmp_path / "hasrd")
    config = model.config
    assert (config.semantic_layer, config.num_semantic_codes, config.num_books) == (2, 10, 3)
    assert config.encoder_config.model_type == ENCODERS[name]().model_type
    speech = [row["audio"] for row in load_corpus(corpus, "train")]
    inputs = extractor(speech, sampling_rate=16000, padding=True, return_tensors="pt", return_attention_mask=True)
    output = model.encode(**inputs)
    assert output.audio_codes[:, 0].unique().numel() > 5
    lengths = [-(-len(each) // config.samples_per_token) for each in speech]
    assert output.attention_mask.sum(dim=1).tolist() == lengths


def test_centroids_are_those_of_the_layer(recipe, arguments, tmp_path, monkeypatch):
    """The nearest one takes away more than half of the variance of noise that swings."""
    seen = []
    from clustering import fit_kmeans as fit

    monkeypatch.setattr("clustering.fit_kmeans", lambda states, **kwargs: fit(seen.append(states) or states, **kwargs))
    recipe.main(arguments)
    model, _ = load(tmp_path / "hasrd")
    states = torch.cat([torch.from_numpy(each) for _, each in seen[0]])
    distances = torch.cdist(states, model.semantic_quantizer.codebook).min(dim=1).values
    assert distances.square().mean() < 0.5 * (states - states.mean(dim=0)).square().sum(dim=1).mean()


def test_the_minis_layer_is_one_of_its_encoder(recipe, tmp_path):
    """That of recipes/pretrain_best_rq.py, as the docstring's commands follow one another."""
    import pretrain_best_rq

    given = ["--preset", "mini", "--dataset", "embedded", "--output_dir"]
    encoder, _ = pretrain_best_rq.parse_arguments([*given, "unused"])
    pretrain_best_rq.build_model(encoder).save_pretrained(tmp_path)
    BestRQFeatureExtractor().save_pretrained(tmp_path)
    model, _ = recipe.build_model(recipe.parse_arguments([*given, "unused", "--encoder", str(tmp_path)]))
    assert model.config.semantic_layer < model.config.encoder_config.num_hidden_layers == 6


def test_the_same_seed_gives_the_same_model(recipe, arguments, tmp_path):
    recipe.main(arguments)
    recipe.main([*arguments, "--output_dir", str(tmp_path / "again")])
    weights = [load(tmp_path / name)[0].state_dict() for name in ("hasrd", "again")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_is_done_is_not_done_again(recipe, arguments, monkeypatch):
    recipe.main(arguments)
    monkeypatch.setattr(unit_extraction, "encode_states", None)
    monkeypatch.setattr("clustering.fit_kmeans", None)
    recipe.main(arguments)


def test_a_codec_can_go_without_a_semantic_book(recipe, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("clustering.fit_kmeans", None)
    recipe.main([*arguments, "--num_clusters", "0", "--num_acoustic_books", "3"])
    model, extractor = load(tmp_path / "hasrd")
    assert model.config.book_sizes == [16, 16, 16]
    speech = torch.randn(1, 4000).numpy() / 10
    inputs = extractor(list(speech), sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    assert model.encode(**inputs).audio_codes.shape[:2] == (1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--layer", "4"], "semantic_layer 4 does not exist"),
        (["--num_clusters", "2000"], "2000 clusters cannot come from"),
        (["--sample_share", "1.5"], "sample_share must lie above 0"),
        (["--decoder_channels", "30"], "must halve 4 times"),
    ],
)
def test_what_cannot_be_done_is_refused(recipe, arguments, change, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        recipe.main([*arguments, *change])


def test_the_paper_is_the_default(recipe):
    paper = recipe.parse_arguments(["--encoder", "x", "--dataset", "embedded", "--output_dir", "x"])
    assert (paper.layer, paper.num_clusters, paper.sample_share, paper.decoder_channels) == (8, 1024, 0.1, 1536)
