"""Ways to de-identify that need no training: blurring and mosaicing."""

from __future__ import annotations

import torch
from torch.nn import functional as F

SIGMA = 1 / 16  # std of the blur, as a share of the crop's side: every resolution loses the same detail
BLOCKS = 8  # blocks along a side; at 12, three lie between the eyes of an FFHQ crop


def blur(faces: torch.Tensor) -> torch.Tensor:
    """A Gaussian over the whole crop (N, 3, R, R), mirrored at the rim and cut at three deviations."""
    sigma = SIGMA * faces.shape[-1]
    reach = max(1, min(round(3 * sigma), faces.shape[-1] - 1))
    x = torch.arange(-reach, reach + 1, dtype=faces.dtype, device=faces.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    out = F.conv2d(F.pad(faces, (reach,) * 4, mode="reflect"), kernel, groups=3)
    return F.conv2d(out, kernel.mT, groups=3)


def mosaic(faces: torch.Tensor) -> torch.Tensor:
    """Each block of the crop (N, 3, R, R) becomes its mean colour."""
    return F.interpolate(F.adaptive_avg_pool2d(faces, BLOCKS), size=faces.shape[-2:], mode="nearest-exact")
