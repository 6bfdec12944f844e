"""k-means of a corpus that does not fit into memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin_min
from tqdm.auto import tqdm

from .unit_extraction import check_states

SHUFFLED_BATCHES = 10  # frames among which a mini-batch is drawn: neighbours in an utterance are much alike
SQUARED = {"squared": True}


@dataclass
class Clusters:
    """
    centroids: `(clusters, dim)` float32; num_frames: how many there were in one pass; explained_variance: share of
    the variance, over the frames it started from, that the clusters take away.
    """

    centroids: np.ndarray
    num_frames: int
    explained_variance: float


def fit_kmeans(
    features: Iterable[tuple[str, np.ndarray]],
    num_clusters: int,
    batch_size: int = 10_000,
    num_passes: int = 1,
    num_inits: int = 20,
    reassignment_ratio: float = 0.01,
    seed: int = 0,
) -> Clusters:
    """
    Mini-batch k-means (Sculley, 2010) by scikit-learn's `partial_fit`: memory does not grow with the corpus.

    The defaults are those of the SLD paper's code, k-means++ and the best of 20 starts, but for one: the code goes on
    until nothing gets better for 100 batches, this goes over a stream `num_passes` times. It starts from the first
    three batches, so let `features` be in random order. The same features and seed give the same centroids.

    Args:
        features: names of utterances and their frames `(frames, dim)`; iterated over once per pass.
        batch_size: frames per step, not fewer than clusters; num_passes: how often all frames are seen.
        num_inits: how many starts are drawn, of which the one with the smallest distances is taken.
        reassignment_ratio: clusters with a smaller share of the largest cluster's frames move to a random frame.

    Raises:
        ValueError: NaN or infinite frames (the utterance is named), fewer frames than clusters, an iterator that is
            used up before the last pass, no pass or no start.
    """
    if num_passes < 1 or num_inits < 1:
        raise ValueError(f"k-means needs a pass and a start; got num_passes={num_passes}, num_inits={num_inits}.")
    kmeans, frames_seen = None, []
    batch_size = max(batch_size, num_clusters)
    for number in range(num_passes):
        frames_seen.append(0)
        progress = tqdm(features, desc=f"k-means, pass {number + 1} of {num_passes}", unit="utterance")
        for frames in shuffled_frames(progress, SHUFFLED_BATCHES * batch_size, np.random.default_rng([seed, number])):
            if kmeans is None:
                first_frames = frames[: 3 * batch_size].copy()  # as many as `MiniBatchKMeans.fit` starts from
                start = best_start(first_frames, num_clusters, num_inits, seed)
                options = dict(batch_size=batch_size, reassignment_ratio=reassignment_ratio, random_state=seed)
                kmeans = MiniBatchKMeans(num_clusters, init=start, n_init=1, compute_labels=False, **options)
            for batch in np.array_split(frames, max(len(frames) // batch_size, 1)):
                kmeans.partial_fit(batch)
            frames_seen[-1] += len(frames)
    if kmeans is None:
        raise ValueError("there are no features to cluster: the corpus has no utterances.")
    if len(set(frames_seen)) > 1:
        raise ValueError(
            f"the passes over the features saw {frames_seen} frames: give an iterable that starts anew each time, "
            "such as a list, or num_passes=1."
        )
    explained = 1.0 + kmeans.score(first_frames) / float(first_frames.var(axis=0).sum() * len(first_frames))
    return Clusters(kmeans.cluster_centers_, frames_seen[0], explained)


def best_start(frames: np.ndarray, num_clusters: int, num_inits: int, seed: int) -> np.ndarray:
    """
    Of some k-means++ starts on `(frames, dim)` the one nearest to its frames: `partial_fit` itself draws but one.

    Raises:
        ValueError: fewer frames than clusters.
    """
    if len(frames) < num_clusters:
        raise ValueError(
            f"{num_clusters} clusters cannot come from {len(frames)} frames: lower the number of clusters, or take "
            "more speech."
        )
    generator = np.random.RandomState(seed)
    frames = frames.astype(np.float64)  # once: scikit-learn would do so at every step
    starts = [kmeans_plusplus(frames, num_clusters, random_state=generator)[0] for _ in range(num_inits)]
    best = min(starts, key=lambda start: pairwise_distances_argmin_min(frames, start, metric_kwargs=SQUARED)[1].sum())
    return best.astype(np.float32)


def shuffled_frames(
    features: Iterable[tuple[str, np.ndarray]], num_frames: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """
    All frames, at least `num_frames` at a time (the last ones may be fewer), each lot `(frames, dim)` in random order.

    Raises:
        ValueError: frames that are NaN or infinite.
    """
    lot, waiting = [], 0
    for name, frames in features:
        check_states(name, frames)
        lot.append(frames)
        waiting += len(frames)
        if waiting >= num_frames:
            together, lot, waiting = np.concatenate(lot), [], 0
            together = generator.permutation(together)
            yield together
    if waiting:
        yield generator.permutation(np.concatenate(lot))
