"""How close a set of pictures is to another, on the features (N, D) of any network.

The caller names the features: a distance on dlib's features is 'Frechet distance (dlib)', only one on the FID
Inception network is 'FID'.
"""

from __future__ import annotations

import numpy as np


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


def kid(a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Kernel distance, mean and standard deviation over random subsets of features a (N, D) and b (M, D).

    Unbiased squared maximum mean discrepancy under k(x, y) = (x.y / D + 1)^3 (Binkowski et al., 2018): it may be
    below zero, and unlike the Frechet distance does not depend on the number of pictures.
    """
    _check(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = min(size, len(a), len(b))
    draw = np.random.default_rng(seed)
    values = [
        _mmd(a[draw.choice(len(a), size, replace=False)], b[draw.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """KID's kernel (x.y / D + 1)^3 between features x (N, D) and y (M, D): (N, M)."""
    return (np.asarray(x, np.float64) @ np.asarray(y, np.float64).T / x.shape[1] + 1) ** 3


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D) with one D, not {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"at least 2 pictures a set are needed, not {len(a)} and {len(b)}")
    for features in (a, b):
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinity: leave out faces that were not found, and count them")
