"""Distances between sets of pictures, on the features (N, D) of any network.

The caller names the features: a distance on dlib's features is 'Frechet distance (dlib)', only one on the FID
Inception network is 'FID'.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from riddle.metrics.identity import Estimate

DRAWS = 200  # of a bootstrap of a distance between sets
People = tuple[np.ndarray, np.ndarray]  # the person in each row of two sets: (N,) and (M,)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to features a (N, D) and b (M, D).

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). With cov = x^T x the trace of the product's root is
    the sum of the singular values of x_a x_b^T: exact for singular covariances too, and quick for few pictures.
    Heusel et al., 2017; Dowson and Landau, 1982.
    """
    _check(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean_a, mean_b = a.mean(0), b.mean(0)
    x, y = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    x, y = (np.linalg.qr(z, mode="r") if len(z) > z.shape[1] else z for z in (x, y))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + max((x**2).sum() + (y**2).sum() - 2 * cross, 0.0))


def frechet(a: np.ndarray, b: np.ndarray, people: People) -> Estimate:
    """`frechet_distance` with a bootstrap over people."""
    draws = [frechet_distance(a.repeat(i, axis=0), b.repeat(j, axis=0)) for i, j in _resampled(people)]
    return _centred(frechet_distance(a, b), np.nan, draws, len(b), least=0.0)


def kid(a: np.ndarray, b: np.ndarray, people: People, subsets: int = 100, size: int = 0) -> Estimate:
    """Kernel distance of features a (N, D) and b (M, D): mean and deviation over random subsets, bootstrap over people.

    Unbiased squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3 (Binkowski et al., 2018): it may be
    below zero, and unlike the Frechet distance does not depend on the number of pictures. size: of a subset; 0: 1,000,
    at most half a set, since those of a whole one would be the same set each time.
    """
    _check(a, b)
    size = size or max(2, min(1000, len(a) // 2, len(b) // 2))
    aa, bb, ab = (_kernel(x, y) for x, y in ((a, a), (b, b), (a, b)))

    def within(k: np.ndarray, times: np.ndarray) -> float:
        """Mean over pairs of rows drawn so many times, a row never with its own copy."""
        return (times @ k @ times - (times**2 * k.diagonal()).sum()) / (times.sum() ** 2 - (times**2).sum())

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        between = (first @ ab @ second) / (first.sum() * second.sum())
        return within(aa, first) + within(bb, second) - 2 * between

    draw = np.random.default_rng(0)
    chosen = ([np.bincount(draw.choice(n, size, replace=False), minlength=n) for n in map(len, (a, b))]
              for _ in range(subsets))  # fmt: skip
    values = [distance(*both) for both in chosen]
    draws = [distance(*both) for both in _resampled(people)]
    return _centred(float(np.mean(values)), float(np.std(values)), draws, len(b))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """KID's kernel between features x (N, D) and y (M, D): (N, M)."""
    return (np.asarray(x, np.float64) @ np.asarray(y, np.float64).T / x.shape[1] + 1) ** 3


def _resampled(people: People) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The number of times a bootstrap draws each row of two sets: a person's rows together, also across the sets."""
    everyone = np.union1d(*people)
    draw = np.random.default_rng(0)
    for _ in range(DRAWS):
        times = np.bincount(draw.integers(len(everyone), size=len(everyone)), minlength=len(everyone))
        first, second = (times[np.searchsorted(everyone, rows)] for rows in people)
        if min((first > 0).sum(), (second > 0).sum()) > 1:  # a distance needs two different rows per set
            yield first, second


def _centred(value: float, std: float, draws: list[float], n: int, least: float = -np.inf) -> Estimate:
    """The 95 % interval of a distance between sets: the draws' spread about the value.

    A resampled set holds rows twice and so lies farther from every other set; the draws are moved back by their mean
    excess. Without a draw there is no interval.
    """
    low, high = np.quantile(draws, [0.025, 0.975]) - np.mean(draws) + value if draws else (np.nan, np.nan)
    return Estimate(float(value), float(std), float(max(low, least)), float(high), n)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D) with one D, not {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"at least 2 pictures a set are needed, not {len(a)} and {len(b)}")
    for features in (a, b):
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinity: leave out faces that were not found, and count them")
