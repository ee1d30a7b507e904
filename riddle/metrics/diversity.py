"""How different the faces are that several passwords make of one person."""

from __future__ import annotations

import numpy as np

from riddle.metrics.identity import accepted


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
