"""The space of codes in which a face is a standard normal (Zhu et al., 2020, "Improved StyleGAN Embedding", P_N+).

The mapping network ends in a leaky ReLU of slope 0.2. Undone, w becomes p, which is close to a normal distribution;
whitened by its principal components, p becomes z, close to N(0, I): its kurtosis is 3.0 to 3.3, that of w is 7.
Encoder, encryptor and passwords live in z, because whatever keeps lengths there gives the code of a face.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

SLOPE = 0.2  # of the mapping network's last leaky ReLU
FLOOR = 1e-2  # of a component's std: what hardly varies is not whitened into noise
BOUND = 3.5  # z beyond this draws no face any more


class GaussianCodes(nn.Module):
    """W <-> z, for codes (..., D) of any leading shape.

    Buffers: mean (D,) of p; basis (D, D), a principal component a column; std (D,) along each, largest first.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim))
        self.register_buffer("std", torch.ones(dim))

    def to_gaussian(self, w: torch.Tensor) -> torch.Tensor:
        """w (..., D) -> z (..., D), about N(0, I) for codes of the mapping network."""
        p = F.leaky_relu(w.float(), 1 / SLOPE)
        return (p - self.mean) @ self.basis / self.std

    def to_w(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., D) -> w (..., D), the inverse of `to_gaussian`."""
        return F.leaky_relu((z.float() * self.std) @ self.basis.T + self.mean, SLOPE)

    @torch.no_grad()
    def measure(self, mapping: Callable[[torch.Tensor], torch.Tensor], n: int = 20_000, seed: int = 0) -> GaussianCodes:
        """Take the statistics of n codes of a mapping network z (N, D) -> w (N, D); returns itself."""
        draw, dim = torch.Generator().manual_seed(seed), len(self.mean)
        device = self.mean.device
        z = torch.randn(n, dim, generator=draw).to(device)
        p = torch.cat([F.leaky_relu(mapping(part).float(), 1 / SLOPE) for part in z.split(4096)]).double()
        centred = p - p.mean(0)
        variance, basis = torch.linalg.eigh(centred.T @ centred / (n - 1))
        self.mean.copy_(p.mean(0))
        self.basis.copy_(basis.flip(1))
        self.std.copy_(variance.flip(0).clamp_min(0).sqrt().clamp_min(FLOOR))
        return self


def soft_bound(z: torch.Tensor, bound: float = BOUND) -> torch.Tensor:
    """z with each number held within +-bound, smoothly: the identity near zero."""
    return bound * torch.tanh(z / bound)
