"""K-means of an encoder's states, as recipes ask for it: its part of their command lines, its sample, and the fit."""

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from safetensors.torch import load_file, save
from torch import Tensor
from training_speech import SpeechArguments
from transformers import FeatureExtractionMixin

from clearspeech.trainers.results import write_atomically
from clearspeech.trainers.unit_clustering import fit_kmeans
from clearspeech.trainers.unit_extraction import ClusteredEncoder, claim_folder, extract_features


@dataclass(kw_only=True)
class ClusteringArguments(SpeechArguments):
    """Of a recipe, which gives those without a default their help, and their values as its paper has them."""

    num_clusters: int
    num_passes: int
    sample_share: float
    output_dir: str
    batch_frames: int = field(default=10_000, metadata={"help": "Frames per step of k-means."})
    num_inits: int = field(default=20, metadata={"help": "Starts of k-means, of which the best is taken."})
    reassignment_ratio: float = field(
        default=0.01, metadata={"help": "Clusters smaller than this share of the largest begin anew."}
    )
    batch_size: int = field(default=16, metadata={"help": "Utterances that the encoder sees at once."})
    seed: int = field(default=0, metadata={"help": "Of all that is drawn: the sample, the starts of k-means."})

    @property
    def work(self) -> Path:
        """Where states and clusters are kept."""
        return Path(self.output_dir, "work")


def draw_sample(speech: Dataset, share: float, seed: int) -> Dataset:
    """
    A random share of the utterances, in random order.

    Raises:
        ValueError: a share outside 0..1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"sample_share must lie above 0 and be at most 1; got {share}.")
    order = np.random.default_rng(seed).permutation(len(speech))
    return speech.select(order[: max(round(share * len(speech)), 1)])


def fit_centroids(
    recipe: ClusteringArguments,
    speech: Dataset,
    model: ClusteredEncoder,
    feature_extractor: FeatureExtractionMixin,
    identity: dict[str, Any],
) -> Tensor:
    """
    Centroids `(clusters, dim)` of the states of a sample of the speech. One process fits, the others wait.

    identity: of the encoder and its layer, by which finished work is known.

    Raises:
        ValueError: see `draw_sample`, `extract_features` and `claim_folder`.
    """
    description = recipe.describe("train") | {"share": recipe.sample_share, "seed": recipe.seed}
    sample = draw_sample(speech, recipe.sample_share, recipe.seed)
    states = extract_features(sample, model, feature_extractor, recipe.work / "states", description, recipe.batch_size)
    folder = recipe.work / "clusters"
    options = {
        "num_clusters": recipe.num_clusters,
        "batch_size": recipe.batch_frames,
        "num_passes": recipe.num_passes,
        "num_inits": recipe.num_inits,
        "reassignment_ratio": recipe.reassignment_ratio,
        "seed": recipe.seed,
    }
    claim_folder(folder, options | identity | {"sample": description})
    file = folder / "centroids.safetensors"
    with FileLock(folder / "fitting"):
        if not file.exists():
            start = perf_counter()
            clusters = fit_kmeans(states, **options)
            seconds = perf_counter() - start
            print(
                f"{clusters.num_frames:,} frames, {recipe.num_passes} times, in {seconds:.0f} s: "
                f"{clusters.num_frames * recipe.num_passes / seconds:,.0f} frames/s. The {recipe.num_clusters} "
                f"clusters take away {100 * clusters.explained_variance:.1f} % of the variance."
            )
            write_atomically(file, save({"centroids": torch.from_numpy(clusters.centroids)}))
    return load_file(file)["centroids"]
