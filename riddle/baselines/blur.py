"""Face blurring: a Gaussian over the whole crop. It needs no training and cannot be undone with a password."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Blur:
    """Gaussian blur whose width follows the crop, so that every resolution loses the same detail."""

    sigma: float = 1 / 16  # standard deviation as a share of the crop's side
    name: str = "blur"
    reversible: bool = False

    @property
    def label(self) -> str:
        return f"face blurring (sigma 1/{1 / self.sigma:.0f} of the crop)"

    def protect(self, faces: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> blurred ones. `seed` is not used."""
        sigma = self.sigma * faces.shape[-1]
        reach = max(1, min(round(3 * sigma), faces.shape[-1] - 1))
        x = torch.arange(-reach, reach + 1, dtype=faces.dtype, device=faces.device)
        kernel = torch.exp(-(x**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        out = F.pad(faces, (reach,) * 4, mode="reflect")
        out = F.conv2d(out, kernel, groups=3)
        return F.conv2d(out, kernel.mT, groups=3)
