"""Questions to the recipe that makes speech units: what it leaves, what it does again, what it refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_corpora import encode, use_own_cache, write_folder
from transformers import AutoFeatureExtractor, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from clearspeech import KMeansTokenizerModel
from clearspeech.processing.corpora import load_corpus
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.trainers import unit_extraction

ROOT = Path(__file__).parent.parent


@pytest.fixture
def recipe(monkeypatch):
    """The recipe as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import fit_speech_units

    return fit_speech_units


@pytest.fixture
def corpus(tmp_path, monkeypatch, make_speech) -> str:
    """Twelve utterances of about a second."""
    use_own_cache(tmp_path, monkeypatch)
    files = {f"{seed}.wav": encode(make_speech(12000 + 1000 * seed, seed)) for seed in range(12)}
    rows = [f"{name},text {name},s{number % 3}" for number, name in enumerate(files)]
    return str(write_folder(tmp_path / "corpus" / "train", files, "file_name,text,speaker", *rows))


@pytest.fixture
def arguments(corpus, tiny_whisper_folder, tmp_path) -> list[str]:
    options = dict(
        dataset=corpus,
        encoder=str(tiny_whisper_folder),
        layer=2,
        num_clusters=20,
        sample_share=0.5,
        batch_frames=100,
        num_inits=2,
        vocab_size=30,
        speeds="1.0 0.9",
        output_dir=str(tmp_path / "units"),
    )
    return [part for name, value in options.items() for part in (f"--{name}", *str(value).split())]


def units_of(folder: Path, corpus: str) -> list[list[int]]:
    processor = SpeechLMProcessor.from_pretrained(folder)
    return [processor.units(row["audio"], 16000)[0] for row in load_corpus(corpus, "train")]


def test_clusters_of_an_encoder_become_a_processor(recipe, arguments, corpus, tmp_path):
    recipe.main(arguments)
    processor = SpeechLMProcessor.from_pretrained(tmp_path / "units")
    assert processor.num_speech_units == 30
    model = processor.audio_tokenizer
    assert type(model) is KMeansTokenizerModel
    assert (model.config.layer, model.config.codebook_size) == (2, 20)
    units = units_of(tmp_path / "units", corpus)
    assert all(0 <= unit < 30 for row in units for unit in row)
    codes = [processor.unit_pieces.decode(row) for row in units]
    assert [len(row) for row in codes] == [(12000 + 1000 * seed + 319) // 320 for seed in range(12)]
    assert sum(map(len, units)) < sum(map(len, codes))


def test_the_audio_tokenizer_is_one_to_be_measured(recipe, arguments, tmp_path):
    """`recipes/evaluate_stable_token.py` loads it by itself."""
    recipe.main(arguments)
    folder = tmp_path / "units" / "audio_tokenizer"
    processor = SpeechLMProcessor.from_pretrained(folder)
    assert processor.num_speech_units == 20
    assert AutoFeatureExtractor.from_pretrained(folder).mel_frames_per_token == 2


def test_the_same_seed_gives_the_same_units(recipe, arguments, corpus, tmp_path):
    recipe.main(arguments)
    recipe.main([*arguments, "--output_dir", str(tmp_path / "again")])
    assert units_of(tmp_path / "again", corpus) == units_of(tmp_path / "units", corpus)
    recipe.main([*arguments, "--output_dir", str(tmp_path / "other"), "--seed", "1"])
    assert units_of(tmp_path / "other", corpus) != units_of(tmp_path / "units", corpus)


def test_what_is_done_is_not_done_again(recipe, arguments, tmp_path, monkeypatch):
    recipe.main(arguments)
    monkeypatch.setattr(unit_extraction, "encode_states", None)
    monkeypatch.setattr("clustering.fit_kmeans", None)
    monkeypatch.setattr(recipe.UnitPieces, "train", None)
    monkeypatch.setattr(SpeechLMProcessor, "units", None)
    recipe.main(arguments)


@pytest.mark.parametrize(
    "change", [["--layer", "1"], ["--num_clusters", "19"], ["--sample_share", "1.0"], ["--speeds", "1.0"]]
)
def test_a_folder_of_other_units_is_refused(recipe, arguments, change):
    recipe.main(arguments)
    with pytest.raises(ValueError, match="remove it, or give another"):
        recipe.main([*arguments, *change])


def test_codes_may_stay_as_they_are(recipe, arguments, corpus, tmp_path):
    recipe.main([*arguments, "--vocab_size", "0"])
    processor = SpeechLMProcessor.from_pretrained(tmp_path / "units")
    assert processor.unit_pieces is None
    assert processor.num_speech_units == 20
    assert len(units_of(tmp_path / "units", corpus)[0]) == 38  # 0.75 s at 50 Hz


def test_another_tokenizers_codes_are_merged_without_clusters(recipe, arguments, tiny_folder, corpus, tmp_path):
    recipe.main([*arguments, "--tokenizer", str(tiny_folder), "--vocab_size", "20"])
    processor = SpeechLMProcessor.from_pretrained(tmp_path / "units")
    assert processor.num_speech_units == 20
    own = SpeechLMProcessor.from_pretrained(tiny_folder)
    units = units_of(tmp_path / "units", corpus)
    assert [processor.unit_pieces.decode(row) for row in units] == units_of(tiny_folder, corpus)
    assert own.num_speech_units == 16
    assert not (tmp_path / "units" / "work" / "states").exists()


def test_encoders_of_waveforms_are_clustered_too(recipe, arguments, corpus, tmp_path):
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    front_end = dict(conv_dim=(16, 16), conv_kernel=(20, 16), conv_stride=(20, 16), feat_extract_norm="group")
    HubertModel(HubertConfig(**shape, **front_end, num_conv_pos_embeddings=16)).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hubert")  # says nothing of masks, as many on the Hub do
    recipe.main([*arguments, "--encoder", str(tmp_path / "hubert"), "--layer", "1"])
    processor = SpeechLMProcessor.from_pretrained(tmp_path / "units")
    assert processor.feature_extractor.return_attention_mask
    assert processor.num_speech_units == 30
    speech = [torch.tensor(row["audio"]).numpy() for row in load_corpus(corpus, "train")]
    assert processor.units(speech, 16000) == units_of(tmp_path / "units", corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--layer", "4"], "layer 4 does not exist"),
        (["--num_clusters", "2000"], "2000 clusters cannot come from"),
        (["--vocab_size", "19"], "19 pieces cannot hold 20 units"),
        (["--sample_share", "1.5"], "sample_share must lie above 0"),
    ],
)
def test_what_cannot_be_done_is_refused(recipe, arguments, change, message):
    with pytest.raises(ValueError, match=message):
        recipe.main([*arguments, *change])


def test_the_paper_is_the_default(recipe):
    paper = recipe.parse_arguments(["--dataset", "embedded", "--output_dir", "x"])
    assert (paper.encoder, paper.layer, paper.num_clusters) == ("microsoft/wavlm-large", 23, 2000)
    assert paper.sample_share * 960 == pytest.approx(100)
    assert (paper.vocab_size, paper.speeds) == (6000, [1.0, 0.9, 1.1])
    assert (paper.batch_frames, paper.num_inits, paper.reassignment_ratio) == (10_000, 20, 0.01)


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_to_the_units_of_one(recipe, arguments, corpus, tmp_path):
    recipe.main(arguments)
    folder = tmp_path / "two"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    script = ["--main_process_port", "0", str(ROOT / "recipes" / "fit_speech_units.py")]
    command = [*launch, *script, *arguments, "--output_dir", str(folder)]
    first = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    while not (folder / "work" / "states" / "description.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (folder / "processor_config.json").exists()
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    assert units_of(folder, corpus) == units_of(tmp_path / "units", corpus)
