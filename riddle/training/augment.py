"""Adaptive discriminator augmentation (Karras et al., NeurIPS 2020): what keeps a GAN from memorising a
small set. Differentiable; each transformation is applied to each image with probability p."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def _matrices(n: int, device: torch.device) -> torch.Tensor:
    return torch.eye(3, device=device).repeat(n, 1, 1)


def augment(x: torch.Tensor, p: float) -> torch.Tensor:
    """x: (N, 3, R, R) in [-1, 1] -> the same shape; p in [0, 1]. Geometry in one resampling, colour in one matrix."""
    if p <= 0:
        return x
    n, device = len(x), x.device

    def chosen() -> torch.Tensor:
        return (torch.rand(n, device=device) < p).float()

    def normal(std: float) -> torch.Tensor:
        return torch.randn(n, device=device) * std * chosen()

    angle = (torch.rand(n, device=device) * 2 - 1) * math.pi / 8 * chosen()
    scale, aniso = torch.exp2(normal(0.2)), torch.exp2(normal(0.1))
    affine = _matrices(n, device)[:, :2]
    cos, sin = angle.cos(), angle.sin()
    affine[:, 0, 0], affine[:, 0, 1] = cos * scale * aniso, -sin * scale * aniso
    affine[:, 1, 0], affine[:, 1, 1] = sin * scale / aniso, cos * scale / aniso
    affine[:, 0, 2], affine[:, 1, 2] = normal(0.125), normal(0.125)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    moved = F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False)

    # colour: y = C x + b with brightness, contrast, hue and saturation around the grey axis
    grey = torch.full((3, 3), 1 / 3, device=device)
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=device) / math.sqrt(3)
    hue = (torch.rand(n, device=device) * 2 - 1) * math.pi / 4 * chosen()
    eye = torch.eye(3, device=device)
    turn = grey + hue.cos()[:, None, None] * (eye - grey) + hue.sin()[:, None, None] * axis
    saturation = torch.exp2(normal(0.5))[:, None, None]
    colour = torch.exp2(normal(0.3))[:, None, None] * (grey + saturation * (eye - grey)) @ turn
    shift = normal(0.1)[:, None, None, None]
    return torch.einsum("nij,njhw->nihw", colour, moved) + shift


class AdaptiveProbability:
    """Moves p so that the share of real images the discriminator calls real nears `target` (r_t, eq. 1)."""

    def __init__(self, p: float = 0.0, target: float = 0.6, images_to_one: int = 500_000):
        self.p, self.target, self.images_to_one = p, target, images_to_one

    def update(self, real_logits: torch.Tensor) -> float:
        """Logits of one batch of real images -> the new p."""
        sign = real_logits.sign().mean().item()
        step = len(real_logits) / self.images_to_one * (1 if sign > self.target else -1)
        self.p = min(max(self.p + step, 0.0), 0.8)
        return self.p
