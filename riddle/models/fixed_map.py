"""The fixed map from a framed face to a recogniser's crop: what a loss uses, because no detector sits inside it.

Framed faces are upright and near each other, so a similarity without rotation takes them all to the crop. It
is separable: one matrix for rows and one for columns, antialiased, differentiable, and two matrix products cheap.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

# ArcFace's targets at 112 px, as measured with the 68-point predictor (eye centres, nose tip, mouth corners).
ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
# Left eye, right eye, mouth centre of an average face in the crop's unit square: means over FFHQ's training split.
FRAMED_POINTS = np.array([(0.378, 0.476), (0.622, 0.476), (0.5, 0.729)])


@cache
def fixed_map(side: int, points: tuple[tuple[float, float], ...], size: int, stretch: float = 1.0) -> torch.Tensor:
    """Matrices for rows and columns, (2, size, side): rows @ face @ columns.T is a `size` px crop of a framed face.

    The crop has the face's five points near `points` (5, 2) px, x `stretch` times as large as y. What lies outside
    the `side` px face is its reflection.
    """
    targets = np.array(points)
    targets = np.stack([targets[0], targets[1], targets[3:].mean(0)]) / [stretch, 1.0]
    source = FRAMED_POINTS * side - 0.5
    s, t = source - source.mean(0), targets - targets.mean(0)
    scale = (s * s).sum() / (s * t).sum()  # crop px per recogniser px; upright, so no rotation
    offset = source.mean(0) - scale * targets.mean(0)
    rows = _resampling(size, side, scale, offset[1])
    return torch.stack([rows, _resampling(size, side, scale / stretch, offset[0])])


def _resampling(n_out: int, n_in: int, scale: float, offset: float) -> torch.Tensor:
    """Matrix (n_out, n_in): output i is the input at scale * i + offset; antialiased bicubic (a = -1/2), reflecting."""
    width = max(scale, 1.0)
    matrix = torch.zeros(n_out, n_in)
    period = 2 * (n_in - 1)
    for i in range(n_out):
        centre = scale * i + offset
        taps = np.arange(math.floor(centre - 2 * width), math.ceil(centre + 2 * width) + 1)
        d = np.abs(taps - centre) / width
        weights = np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, np.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0))
        index = np.abs(taps) % period
        index = np.where(index >= n_in, period - index, index)
        matrix[i].index_add_(0, torch.from_numpy(index), torch.from_numpy(weights / weights.sum()).float())
    return matrix
