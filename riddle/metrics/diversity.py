"""Measure how much one person's faces under several passwords differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from riddle.metrics.identity import accepted, cosine, mean_found


def pairs(embeddings: np.ndarray, similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Similarities of all pairs among the K faces of each original: (N, K, E) -> (N, K (K - 1) / 2).

    similarity: a recogniser's, of (M, E) and (M, E) -> (M,). A pair with a face that was not found (NaN) is NaN.
    """
    i, j = np.triu_indices(embeddings.shape[1], 1)
    return np.stack([similarity(e[i], e[j]) for e in embeddings])


def distinct(scores: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """True for pairs that a recogniser takes for two people, in the shape of their similarities (N, P).

    thresholds: a number, or (N, 1). A pair with a face that was not found (NaN) does not count as distinct: a face
    too broken to be found is no new identity.
    """
    return ~accepted(scores, thresholds) & ~np.isnan(scores)


def kffa(embeddings: np.ndarray) -> np.ndarray:
    """Known Factor Feature Angle of each original, in degrees: (N, K, E) -> (N,); its mean is the metric.

    The mean angle between all pairs of the K faces made from one original with K passwords (section 4.4; Li et al.,
    2022). A face that was not found (NaN) is left out; an original with fewer than two found is NaN.
    """
    cosines = pairs(np.asarray(embeddings, np.float64), cosine)
    return mean_found(np.degrees(np.arccos(np.clip(cosines, -1, 1))))


def strangers(people: int, seed: int, each: int) -> np.ndarray:
    """For each of n people, `each` others (fewer when there are not so many), at random: (n, each) indices."""
    order = np.random.default_rng(seed).permutation(people)
    steps = np.arange(1, min(each, people - 1) + 1)
    out = np.empty((people, len(steps)), int)
    out[order] = order[(np.arange(people)[:, None] + steps) % people]
    return out
