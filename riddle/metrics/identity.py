"""Who is still recognised: verification rates, their thresholds and intervals.

Scores are similarities: larger means more alike. A score of NaN says that no face was found in one of the two
pictures; such a pair is never accepted, and never dropped from the count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import betaincinv, stdtrit  # of the beta distribution; Student's quantile

DRAWS = 2000  # of a bootstrap


@dataclass(frozen=True)
class Estimate:
    """A rate with its spread and its 95 % interval."""

    mean: float
    std: float  # over folds, or over the groups of a bootstrap
    low: float
    high: float
    n: int  # items behind the mean


def accepted(scores: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """Scores (P,) strictly above their threshold, as booleans; NaN is never accepted."""
    return np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf) > thresholds


def threshold_at_far(negatives: np.ndarray, far: float = 1e-3) -> float:
    """The lowest threshold at which no more than the share `far` of the negative scores (P,) is accepted.

    Accepting means scoring strictly above it, so it is itself one of the scores (or minus infinity, when every
    score may pass). Raises ValueError without a negative pair or for a rate outside [0, 1).
    """
    negatives = np.asarray(negatives, np.float64)
    if negatives.size == 0:
        raise ValueError("a threshold at a false accept rate needs negative pairs; there are none")
    if not 0 <= far < 1:
        raise ValueError(f"a false accept rate lies in [0, 1), not {far}")
    allowed = int(np.floor(far * negatives.size + 1e-9))
    descending = np.sort(np.nan_to_num(negatives, nan=-np.inf))[::-1]
    return float(descending[allowed])


def fold_thresholds(scores: np.ndarray, same: np.ndarray, folds: np.ndarray, far: float = 1e-3) -> dict[int, float]:
    """Per fold, the threshold at `far` of the negative pairs of all other folds (the LFW protocol).

    scores (P,); same (P,) bool; folds (P,) int. Raises ValueError for fewer than two folds.
    """
    names = np.unique(folds)
    if len(names) < 2:
        raise ValueError("held-out thresholds need at least two folds; use the recogniser's published threshold")
    return {int(f): threshold_at_far(scores[~same & (folds != f)], far) for f in names}


def best_accuracy_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The threshold that classifies most pairs rightly: scores (P,), same (P,) bool."""
    scores = np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf)
    order = np.argsort(scores, kind="stable")
    sorted_scores, sorted_same = scores[order], same[order]
    # Cutting after place k rejects the first k + 1 pairs; equal scores cannot be cut apart.
    right = np.cumsum(~sorted_same) + (same.sum() - np.cumsum(sorted_same))
    last_of_equals = np.append(sorted_scores[1:] != sorted_scores[:-1], True)
    best = int(np.argmax(np.where(last_of_equals, right, -1)))
    if same.sum() > right[best]:
        return -np.inf
    upper = sorted_scores[min(best + 1, len(scores) - 1)]
    middle = (sorted_scores[best] + upper) / 2
    return float(middle if np.isfinite(middle) else sorted_scores[best])


def fold_accuracy(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> Estimate:
    """LFW's verification accuracy: each fold at the best threshold of the others."""
    right = []
    for f in np.unique(folds):
        here = folds == f
        right.append((accepted(scores[here], best_accuracy_threshold(scores[~here], same[~here])) == same[here]).mean())
    return fold_interval(np.array(right), n=len(scores))


def fold_rates(accepts: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The mean of `accepts` (P,) within each fold, in the order of the folds' numbers: (F,)."""
    return np.array([accepts[folds == f].mean() for f in np.unique(folds)])


def exact_interval(rate: float, n: int) -> tuple[float, float]:
    """95 % bounds of a rate by n independent trials (Clopper and Pearson): where none of them differs, samples say
    nothing about their spread."""
    k = round(rate * n)
    low = betaincinv(k, n - k + 1, 0.025) if k > 0 else 0.0
    return float(low), float(betaincinv(k + 1, n - k, 0.975) if k < n else 1.0)


def fold_interval(rates: np.ndarray, n: int) -> Estimate:
    """Mean and standard deviation over folds (F,), with Student's interval for the mean, clipped to [0, 1]; the exact
    one of n trials where all folds are alike."""
    rates = np.asarray(rates, np.float64)
    if len(rates) < 2:
        raise ValueError(f"an interval over folds needs two folds or more, not {len(rates)}")
    mean, std = rates.mean(), rates.std(ddof=1)
    if std == 0:
        return Estimate(float(mean), 0.0, *exact_interval(mean, n), n)
    half = stdtrit(len(rates) - 1, 0.975) * std / np.sqrt(len(rates))
    return Estimate(float(mean), float(std), float(max(mean - half, 0)), float(min(mean + half, 1)), n)


def bootstrap_interval(values: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """Mean of values (P,) with a percentile interval that resamples whole groups (P,): identities, not pictures.

    Without groups every value is its own. `std` is the standard deviation of the resampled means. NaN is left out. One
    group has no interval; where nothing is left, there is no mean either. Where all values are 0, or all 1, the
    interval is the exact one of as many trials as there are groups.
    """
    known = np.isfinite(values)
    values = np.asarray(values, np.float64)[known]
    _, index = np.unique(np.flatnonzero(known) if groups is None else groups[known], return_inverse=True)
    sums, sizes = np.bincount(index, weights=values), np.bincount(index)
    if len(sums) < 2:
        return Estimate(float(values.mean()) if len(values) else np.nan, np.nan, np.nan, np.nan, len(values))
    if values.min() == values.max() and values[0] in (0, 1):
        return Estimate(float(values[0]), 0.0, *exact_interval(values[0], len(sums)), len(values))
    picks = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(means.std()), float(low), float(high), len(values))


def mean_of(values: np.ndarray) -> Estimate:
    """Mean of values (P,) with a bootstrap interval, NaN left out; `std` is that of the values."""
    e = bootstrap_interval(values)
    return replace(e, std=float(np.nanstd(values))) if e.n else e


def mean_found(values: np.ndarray) -> np.ndarray:
    """Mean of each row of values (N, K), NaN (no face was found) left out: (N,); NaN where nothing is left."""
    found = np.isfinite(values)
    total = np.where(found, values, 0).sum(1)
    return np.divide(total, found.sum(1), out=np.full(len(values), np.nan), where=found.any(1))


def cosine(a: Any, b: Any) -> Any:
    """Cosine of the rows of (..., E) and (..., E), arrays or tensors; NaN where a row is."""
    return (a * b).sum(-1) / ((a * a).sum(-1) * (b * b).sum(-1)) ** 0.5
