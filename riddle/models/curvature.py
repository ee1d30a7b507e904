"""The curvature of a distance between faces along each direction of the Gaussian space of codes.

A few directions of z (light, background, pose) change a face a thousand times as much as most others. Plain gradients
follow those few. Divided by the curvature, a step goes as far in every direction as the distance allows: the
Gauss-Newton method (Nocedal and Wright, Numerical Optimization, chapter 10), with one matrix for all faces.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

RANK = 128  # directions that are kept; beyond them the curvature is below a thousandth of the largest
RATE, MOMENTUM = 0.3, 0.8  # of a step of `descend`, in units of the Gauss-Newton step
FASTER, SLOWER = 1.1, 0.4  # factors of a face's rate after a step that came nearer, and after one that did not
DAMPING = 1e-3  # curvature below which steps are not shortened


class Curvature(nn.Module):
    """The mean Gauss-Newton matrix of a squared distance in z (L, D), as its largest eigenvectors.

    Buffers: directions (RANK, L D), orthonormal; size (RANK,), their eigenvalues, largest first.
    """

    def __init__(self, n_latent: int, dim: int):
        super().__init__()
        rank = min(RANK, n_latent * dim)
        self.register_buffer("directions", torch.eye(n_latent * dim)[:rank])
        self.register_buffer("size", torch.zeros(rank))

    def solve(self, gradient: torch.Tensor, damping: float) -> torch.Tensor:
        """Gradients (N, L, D) with the share damping / (curvature + damping) of each direction left.

        damping: a curvature; directions that bend less are left as they are.
        """
        g = gradient.float().flatten(1)
        along = g @ self.directions.T
        g = g - (along * (self.size / (self.size + damping))) @ self.directions
        return g.view(gradient.shape)

    def equalise(self, z: torch.Tensor, damping: float) -> torch.Tensor:
        """z (N, L, D) itself; its gradient goes through `solve`."""
        z = z.clone()
        if z.requires_grad:
            z.register_hook(lambda g: self.solve(g, damping).to(g.dtype))
        return z

    @torch.no_grad()
    def measure(
        self, features: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, probes: int = 4, batch: int = 16
    ) -> Curvature:
        """Take the curvature at codes z (N, L, D); returns itself.

        features: z (N, L, D) -> (N, M), whose squared distance is the distance. A probe is the gradient of a random
        sum of the features; the mean outer product of probes is the Gauss-Newton matrix.
        """
        rows = []
        for part in z.split(batch):
            for _ in range(probes):
                with torch.enable_grad():
                    part = part.detach().requires_grad_()
                    seen = features(part)
                    rows.append(torch.autograd.grad((seen * torch.randn_like(seen)).sum(), part)[0].flatten(1))
        _, size, directions = torch.linalg.svd(torch.cat(rows).float() / (len(z) * probes) ** 0.5, full_matrices=False)
        kept = min(len(self.size), len(size))
        self.size.zero_(), self.size[:kept].copy_(size[:kept].square())
        self.directions[:kept].copy_(directions[:kept])
        return self


def descend(
    distance: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, curvature: Curvature, steps: int
) -> torch.Tensor:
    """Codes z (N, L, D) -> codes of smaller distance, face by face; never of a larger one.

    distance: z (N, L, D) -> half of a squared distance for each face, (N,). Gradient steps with momentum, equalised by
    the curvature. A step that leads away is taken back, and the face goes on at a smaller rate.
    """
    n, dtype = len(z), torch.float32
    z = z.detach().to(dtype)
    best, lowest, gradient = z, torch.full((n, 1, 1), float("inf"), device=z.device), torch.zeros_like(z)
    rate, velocity = torch.full((n, 1, 1), RATE / DAMPING, device=z.device), torch.zeros_like(z)
    for k in range(steps + 1):
        with torch.enable_grad():
            z = z.requires_grad_()
            lengths = distance(z)
            slope = torch.autograd.grad(lengths.sum(), z)[0].to(dtype) if k < steps else gradient
        lengths, z = lengths.detach().to(dtype).view(n, 1, 1), z.detach()
        nearer = lengths < lowest
        best, lowest = torch.where(nearer, z, best), torch.where(nearer, lengths, lowest)
        gradient = torch.where(nearer, slope, gradient)
        rate = rate * torch.where(nearer, FASTER, SLOWER)
        velocity = MOMENTUM * velocity * nearer - rate * curvature.solve(gradient, DAMPING)
        z = best + velocity
    return best
