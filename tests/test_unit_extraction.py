"""Questions to extraction and clustering: what is kept, processes that die, folders of something else, k-means."""

import multiprocessing
import os
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from transformers import HubertConfig, Wav2Vec2FeatureExtractor

from clearspeech import KMeansTokenizerConfig, KMeansTokenizerModel
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.perturbation import change_speed
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.processing.unit_pieces import UnitPieces
from clearspeech.trainers import unit_extraction
from clearspeech.trainers.unit_clustering import fit_kmeans
from clearspeech.trainers.unit_extraction import KEPT_TYPE, extract_features, extract_units, fill_folder

NUMBERS = Features(number=Value("int64"))
DESCRIPTION = {"corpora": ["tones"], "split": "train"}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(unit_extraction, "ROWS_PER_SHARD", 2)


@pytest.fixture
def corpus(make_speech) -> Dataset:
    """Five utterances of 0.5 to 0.9 s, of known speakers and unknown noise."""
    lengths = [8000, 14400, 9600, 11200, 12800]
    return Dataset.from_dict(
        {
            "audio": [make_speech(length, seed=length) for length in lengths],
            "text": [f"text {length}" for length in lengths],
            "speaker": ["a", "a", "b", "", "b"],
        }
    ).with_format("numpy", columns=["audio"], output_all_columns=True)


@pytest.fixture
def processor(tiny_model) -> SpeechLMProcessor:
    return SpeechLMProcessor(StableTokenFeatureExtractor(feature_size=16), tiny_model.model)


@pytest.fixture
def hubert() -> KMeansTokenizerModel:
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    front_end = dict(conv_dim=(16, 16), conv_kernel=(20, 16), conv_stride=(20, 16), feat_extract_norm="layer")
    config = HubertConfig(**shape, **front_end, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    return KMeansTokenizerModel(KMeansTokenizerConfig(encoder_config=config, layer=1, codebook_size=4))


WAVEFORM_EXTRACTOR = Wav2Vec2FeatureExtractor(return_attention_mask=True)


def test_units_are_the_processors_at_every_speed(corpus, processor, tmp_path):
    """In the corpus's order, one speed after the other, with what the corpus knows."""
    rows = extract_units(corpus, processor, tmp_path, DESCRIPTION, speeds=[1.0, 0.9])
    assert rows["text"] == [row["text"] for row in corpus] * 2
    assert rows["speaker"] == ["a", "a", "b", "", "b"] * 2
    assert rows["speed"] == pytest.approx([1.0] * 5 + [0.9] * 5)
    assert "noise" not in rows.column_names
    for row, kept in zip([*corpus, *corpus], rows):
        waveform = change_speed(torch.tensor(row["audio"]), kept["speed"] if kept["speed"] == 1.0 else 0.9)
        assert kept["num_samples"] == len(waveform)
        assert kept["units"] == processor.units(waveform.numpy(), 16000)[0]
    assert rows[5]["num_samples"] == round(8000 / 0.9)


def test_a_processor_with_pieces_gives_pieces(corpus, processor, tmp_path):
    codes = extract_units(corpus, processor, tmp_path / "codes", DESCRIPTION)
    pieces = UnitPieces.train(codes["units"], vocab_size=18, num_units=16)
    with_pieces = SpeechLMProcessor(processor.feature_extractor, processor.audio_tokenizer, unit_pieces=pieces)
    rows = extract_units(corpus, with_pieces, tmp_path / "pieces", DESCRIPTION)
    assert [pieces.decode(units) for units in rows["units"]] == codes["units"]
    with pytest.raises(ValueError, match="remove it, or give another"):
        extract_units(corpus, with_pieces, tmp_path / "codes", DESCRIPTION)


def test_kept_states_are_the_models(corpus, hubert, tmp_path):
    kept = extract_features(corpus, hubert, WAVEFORM_EXTRACTOR, tmp_path, DESCRIPTION)
    assert len(kept) == 5
    for _ in range(2):  # it can be iterated over again
        for row, (name, states) in zip(corpus, kept, strict=True):
            inputs = WAVEFORM_EXTRACTOR(row["audio"], sampling_rate=16000, return_tensors="pt")
            expected = hubert.features(**inputs)[0][0]
            assert repr(row["text"]) in name
            np.testing.assert_allclose(states, expected, rtol=1e-3, atol=1e-3)


def test_states_that_are_not_numbers_name_their_utterance(corpus, hubert, tmp_path):
    broken = corpus.with_format(None).map(
        lambda row: {"audio": [float("nan")] * 8000 if row["text"] == "text 9600" else row["audio"]}
    )
    with pytest.raises(ValueError, match=r"features of utterance 2 \(speaker b: 'text 9600'\) are NaN"):
        extract_features(broken, hubert, WAVEFORM_EXTRACTOR, tmp_path, DESCRIPTION)
    assert not (tmp_path / "rows.arrow").exists()


def test_a_folder_of_something_else_is_refused(corpus, hubert, processor, tmp_path):
    extract_units(corpus, processor, tmp_path / "units", DESCRIPTION)
    extract_features(corpus, hubert, WAVEFORM_EXTRACTOR, tmp_path / "states", DESCRIPTION)
    other = SpeechLMProcessor(processor.feature_extractor, processor.audio_tokenizer)
    for change in (
        lambda: extract_units(corpus, processor, tmp_path / "units", DESCRIPTION, speeds=[0.9]),
        lambda: extract_units(corpus, processor, tmp_path / "units", DESCRIPTION | {"split": "test"}),
        lambda: extract_units(corpus.select([0, 1]), processor, tmp_path / "units", DESCRIPTION),
        lambda: extract_features(corpus, hubert, WAVEFORM_EXTRACTOR, tmp_path / "units", DESCRIPTION),
    ):
        with pytest.raises(ValueError, match="remove it, or give another"):
            change()
    assert len(extract_units(corpus, other, tmp_path / "units", DESCRIPTION)) == 5
    with torch.no_grad():
        next(other.audio_tokenizer.parameters()).add_(1.0)
        list(hubert.encoder.parameters())[-1].add_(1.0)
    with pytest.raises(ValueError, match="is made from"):
        extract_units(corpus, other, tmp_path / "units", DESCRIPTION)
    with pytest.raises(ValueError, match="is made from"):
        extract_features(corpus, hubert, WAVEFORM_EXTRACTOR, tmp_path / "states", DESCRIPTION)


def fill(folder: Path, dies_at: int | None = None, num_rows: int = 12) -> Dataset:
    """Rows 0 .. num_rows - 1, noting who computes which; the process kills itself in the middle of a row."""

    def encode(rows):
        for row in rows:
            if row == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.02)
            (folder / f"{row}.{os.getpid()}").touch()
            yield {"number": row}

    folder.mkdir(exist_ok=True)
    return fill_folder(folder, DESCRIPTION, num_rows, encode, NUMBERS, "numbers")


def start(*arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=fill, args=arguments)
    process.start()
    return process


def computed(folder: Path) -> list[int]:
    """Rows in order, as often as they were computed."""
    return sorted(int(file.name.split(".")[0]) for file in folder.glob("*.*") if file.stem.isdecimal())


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    process = start(tmp_path, 7)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert computed(tmp_path) == [0, 1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "rows.arrow").exists()
    assert fill(tmp_path)["number"] == list(range(12))
    assert computed(tmp_path) == [0, 1, 2, 3, 4, 5, 6, 6, *range(7, 12)]  # the shard it died in, once more
    assert fill(tmp_path, dies_at=0)["number"] == list(range(12))  # nothing is left to compute


def test_processes_share_the_shards(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert computed(tmp_path) == list(range(12))
    assert len({file.suffix for file in tmp_path.glob("[0-9]*.*")}) > 1
    assert not (tmp_path / "shards").exists()


def test_a_process_finishes_what_a_killed_one_has_left(tmp_path):
    killed = start(tmp_path, 1)
    time.sleep(0.05)
    assert fill(tmp_path)["number"] == list(range(12))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL


def make_blobs(num_utterances: int, num_frames: int = 100, num_blobs: int = 8, dim: int = 4) -> list:
    """Frames around eight points, as named utterances of random blobs."""
    generator = np.random.default_rng(0)
    centres = 10 * generator.standard_normal((num_blobs, dim))
    return [
        (
            f"utterance {number}",
            (
                centres[generator.integers(num_blobs, size=num_frames)] + generator.standard_normal((num_frames, dim))
            ).astype(np.float32),
        )
        for number in range(num_utterances)
    ]


def test_kmeans_finds_the_points_that_frames_lie_around():
    features = make_blobs(40)
    clusters = fit_kmeans(features, num_clusters=8, batch_size=200, num_passes=3, num_inits=5)
    frames = np.concatenate([frames for _, frames in features])
    nearest = ((frames[:, None] - clusters.centroids) ** 2).sum(axis=-1).argmin(axis=-1)
    means = np.stack([frames[nearest == cluster].mean(axis=0) for cluster in range(8)])
    np.testing.assert_allclose(clusters.centroids, means, atol=0.2)
    assert clusters.num_frames == 4000
    assert clusters.explained_variance > 0.95
    assert clusters.centroids.dtype == np.float32


def test_more_starts_and_passes_come_no_less_near():
    features = make_blobs(20, num_blobs=30)
    options = dict(num_clusters=30, batch_size=100, seed=3)
    one = fit_kmeans(features, num_inits=1, num_passes=1, **options).explained_variance
    assert fit_kmeans(features, num_inits=20, num_passes=5, **options).explained_variance >= one


def test_kmeans_is_repeatable_and_seeded():
    features = make_blobs(10)
    options = dict(num_clusters=12, batch_size=100, num_inits=2)
    centroids = fit_kmeans(features, **options, seed=1).centroids
    np.testing.assert_array_equal(fit_kmeans(features, **options, seed=1).centroids, centroids)
    assert not np.array_equal(fit_kmeans(features, **options, seed=2).centroids, centroids)


def test_memory_does_not_grow_with_the_corpus():
    def peak(num_utterances: int) -> int:
        frames = (
            (str(number), np.random.default_rng(number).standard_normal((200, 64), dtype=np.float32))
            for number in range(num_utterances)
        )
        tracemalloc.start()
        fit_kmeans(frames, num_clusters=10, batch_size=200, num_inits=1)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(40)  # what is imported and cached
    assert peak(120) < 1.05 * peak(40)


def test_batches_smaller_than_the_number_of_clusters_are_enlarged():
    assert fit_kmeans(make_blobs(5), num_clusters=50, batch_size=10, num_inits=1).centroids.shape == (50, 4)


def test_frames_that_cannot_be_clustered_are_refused():
    with pytest.raises(ValueError, match="501 clusters cannot come from 500 frames"):
        fit_kmeans(make_blobs(5), num_clusters=501)
    with pytest.raises(ValueError, match="no features to cluster"):
        fit_kmeans([], num_clusters=5)
    with pytest.raises(ValueError, match="got num_passes=1, num_inits=0"):
        fit_kmeans(make_blobs(5), num_clusters=5, num_inits=0)
    broken = make_blobs(5)
    broken[3][1][7] = np.inf
    with pytest.raises(ValueError, match="features of utterance 3 are NaN, infinite .* in 1 of 100 frames"):
        fit_kmeans(broken, num_clusters=5)
    with pytest.raises(ValueError, match=r"saw \[500, 0\] frames: .* num_passes=1"):
        fit_kmeans(iter(make_blobs(5)), num_clusters=5, num_passes=2)


def test_half_precision_keeps_what_centroids_need():
    """A state of 6 is kept to 0.003; centroids lie apart by more."""
    states = np.float32(6.0) + np.linspace(0, 1, 1000, dtype=np.float32)
    assert np.abs(states.astype(KEPT_TYPE).astype(np.float32) - states).max() < 0.003
