"""How different the faces are that several passwords make of one person."""

from __future__ import annotations

import numpy as np

from riddle.metrics.identity import accepted, pairwise_angles


def password_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (i, j), i < j, of the pairs among n passwords: each (n (n - 1) / 2,)."""
    return np.triu_indices(n, 1)


def distinct_pairs(scores: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """Which pairs of protected faces a judge takes for two people, as booleans of the shape of `scores` (N, P).

    thresholds: a number, or (N, 1). A pair in which a face was not found (NaN) does not count as distinct: a face
    too broken to be found is no new identity.
    """
    scores = np.asarray(scores, np.float64)
    return ~accepted(scores, thresholds) & ~np.isnan(scores)


def mean_pairwise_angle(embeddings: np.ndarray) -> float:
    """Mean angle in degrees between all pairs of embeddings (N, E); rows with NaN are left out."""
    embeddings = embeddings[~np.isnan(embeddings).any(1)]
    if len(embeddings) < 2:
        raise ValueError("a pairwise angle needs two embeddings or more")
    return float(pairwise_angles(embeddings[None]).mean())


def silhouette(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Mean silhouette by cosine distance of embeddings (N, E) under person labels (N,), in [-1, 1].

    Low means that the faces made from one person do not cluster (figure 7). Rousseeuw, 1987. Raises ValueError
    for fewer than two labels.
    """
    embeddings, labels = np.asarray(embeddings, np.float64), np.asarray(labels)
    names, index = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("a silhouette needs two persons or more")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    distance = np.clip(1 - unit @ unit.T, 0, None)
    member = np.eye(len(names))[index]  # (N, persons)
    sums, sizes = distance @ member, member.sum(0)
    own_size = sizes[index]
    rows = np.arange(len(labels))
    within = sums[rows, index] / np.maximum(own_size - 1, 1)
    others = sums / sizes
    others[rows, index] = np.inf
    nearest = others.min(1)
    score = (nearest - within) / np.maximum(np.maximum(nearest, within), 1e-12)
    return float(np.where(own_size > 1, score, 0).mean())
