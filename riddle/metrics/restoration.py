"""Distances of restored faces from the faces that they should be, picture by picture (Table 2).

Faces are tensors (N, 3, R, R) in [-1, 1]; every metric gives one number per picture, (N,), on intensities in [0, 1].
The paper's MSE of 0.002 and PSNR of 26.5 dB agree only on this scale.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

BATCH = 64  # pictures at a time
ROUNDING = 1 / (12 * 255**2)  # mean square error that rounding to 8 bits makes; below it PSNR says nothing


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x.double().add(1).div(2)


def mse(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Mean square error, (N,)."""
    _check(a, b)
    return (_unit(a) - _unit(b)).square().mean((1, 2, 3)).numpy()


def psnr(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, (N,); an error below 8-bit rounding counts as that, 58.9 dB."""
    _check(a, b)
    ratio = peak_signal_noise_ratio(_unit(a), _unit(b), data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratio.clamp(max=float(-10 * np.log10(ROUNDING))).numpy()


def ssim(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Structural similarity, Gaussian window of 1.5 px, (N,) in [-1, 1]; around its rim the picture is mirrored.

    In float32 and in batches: a thousand faces at once in float64 take 23 GB. Wang et al., 2004.
    """
    _check(a, b)
    pairs = zip(a.split(BATCH), b.split(BATCH), strict=True)
    ssim_of, options = structural_similarity_index_measure, {"data_range": 1.0, "reduction": "none"}
    parts = [ssim_of(_unit(x).float(), _unit(y).float(), **options) for x, y in pairs]
    return torch.cat(parts).double().numpy()


def lpips(a: torch.Tensor, b: torch.Tensor, network: Callable) -> np.ndarray:
    """LPIPS by a network of the package `lpips` (riddle.weights.load_lpips), (N,). Zhang et al., 2018."""
    _check(a, b)
    with torch.no_grad():
        pairs = zip(a.split(BATCH), b.split(BATCH), strict=True)
        return torch.cat([network(x, y).flatten().double() for x, y in pairs]).numpy()


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or not len(a):
        raise ValueError(f"two sets of faces (N, 3, R, R) of one shape are needed, not {a.shape} and {b.shape}")
