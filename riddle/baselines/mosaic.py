"""Mosaicing: each block of the crop becomes its mean colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Mosaic:
    """A grid of blocks over the crop; on an FFHQ crop 12 blocks put three between the eyes."""

    blocks: int = 8  # blocks along a side
    name: str = "mosaic"
    reversible: bool = False

    @property
    def label(self) -> str:
        return f"mosaicing ({self.blocks} x {self.blocks} blocks)"

    def protect(self, faces: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> mosaiced ones. `seed` is not used."""
        small = F.adaptive_avg_pool2d(faces, self.blocks)
        return F.interpolate(small, size=faces.shape[-2:], mode="nearest-exact")
