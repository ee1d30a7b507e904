"""The space of codes in which a face is a standard normal (Zhu et al., 2020, "Improved StyleGAN Embedding", P_N+).

The mapping network ends in a leaky ReLU of slope 0.2. Undone, w becomes p, which is close to a normal distribution;
whitened by its principal components, p becomes z, close to N(0, I): its kurtosis is 3.0 to 3.3, that of w is 7.
Encoder, encryptor and passwords live in z, because a map that keeps lengths there turns codes of faces into such codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

SLOPE = 0.2  # of the mapping network's last leaky ReLU
FLOOR = 1e-2  # least std of a component: whitening must not turn a nearly constant one into noise
BOUND = 3.5  # beyond this value of z the generator produces no face
FINE = 8  # slots from here on, of 64 px and more, set light and colours (StyleGAN, section 3.1)


class GaussianCodes(nn.Module):
    """W <-> z, for codes (..., D) of any leading shape.

    Buffers: mean (D,) of p; basis (D, D), one principal component per column; std (D,) along each, largest first.
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

    def to_record(self, w: torch.Tensor) -> torch.Tensor:
        """w (..., D) -> z (..., D) as a record keeps it: rounded to half precision, in float32.

        A face drawn from it is exactly the one drawn from the record.
        """
        return self.to_gaussian(w).half().float()

    def to_w(self, z: torch.Tensor) -> torch.Tensor:
        """z (..., D) -> w (..., D), the inverse of `to_gaussian`."""
        return F.leaky_relu((z.float() * self.std) @ self.basis.T + self.mean, SLOPE)

    @property
    def importance(self) -> torch.Tensor:
        """The effect of each component of z on a face: (D,), 1 on average."""
        return self.std / self.std.mean()

    @torch.no_grad()
    def measure(self, mapping: Callable[[torch.Tensor], torch.Tensor], n: int = 20_000) -> GaussianCodes:
        """Take the statistics of n codes of a mapping network z (N, D) -> w (N, D); returns itself."""
        z = torch.randn(n, len(self.mean), generator=torch.Generator().manual_seed(0)).to(self.mean.device)
        p = torch.cat([F.leaky_relu(mapping(part).float(), 1 / SLOPE) for part in z.split(4096)]).double()
        centred = p - p.mean(0)
        variance, basis = torch.linalg.eigh(centred.T @ centred / (n - 1))
        self.mean.copy_(p.mean(0))
        self.basis.copy_(basis.flip(1))
        self.std.copy_(variance.flip(0).clamp_min(0).sqrt().clamp_min(FLOOR))
        return self


def lit(codes: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    """Faces in the light of others: codes (N, L, D) with the fine slots of `light` (N, L, D), either in w or in z."""
    return torch.cat([codes[:, :FINE], light[:, FINE:]], 1)


def soft_bound(z: torch.Tensor) -> torch.Tensor:
    """z with each number held within +-BOUND, smoothly: the identity near zero."""
    return BOUND * torch.tanh(z / BOUND)


class FaceGenerator(nn.Module):
    """Base of all generators. They have `n_latent` (L), `style_dim` (D), `codes`, their Gaussian space, `map`, z
    (N, D) -> w (N, D), and `forward`, codes (N, L, D) and a side in px -> faces (N, 3, side, side), about [-1, 1].
    """

    n_latent: int
    style_dim: int
    codes: GaussianCodes

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def map(self, z: torch.Tensor) -> torch.Tensor:
        """z (N, D), standard normal -> w (N, D)."""
        raise NotImplementedError

    def broadcast(self, w: torch.Tensor) -> torch.Tensor:
        """w (N, D) -> the same code for every slot, (N, L, D)."""
        return w[:, None].expand(-1, self.n_latent, -1)

    def _draw(self, n: int, seed: int) -> torch.Tensor:
        z = torch.randn(n, self.style_dim, generator=torch.Generator().manual_seed(seed))
        return self.map(z.to(self.device))

    @torch.no_grad()
    def mean_latent(self) -> torch.Tensor:
        """The centre of w, (D,), from samples."""
        return self._draw(4096, 0).mean(0)

    @torch.no_grad()
    def sample(self, n: int, psi: float = 1.0, seed: int = 0) -> torch.Tensor:
        """Codes (n, L, D) of faces of nobody; psi: truncation towards the mean, 1 is none (StyleGAN, sec. B)."""
        mean = self.mean_latent()
        return self.broadcast(mean + psi * (self._draw(n, seed) - mean))
