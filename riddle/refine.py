"""A closer code for one face, by optimisation from the encoder's: what time buys where one pass is not enough."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from riddle.networks import Synthesis

RATE = 0.05  # Adam's, in units of z; falls to zero along a cosine
LPIPS, IDENTITY, LENGTH = 0.8, 0.2, 0.01  # weights beside the squared error's 1


def refine(
    generator: Synthesis,
    faces: torch.Tensor,
    w: torch.Tensor,
    steps: int,
    lpips: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Codes (N, L, D) that show faces (N, 3, R, R) better than w (N, L, D) does.

    Adam on z: squared error, LPIPS and identity where their networks are given, and the length of z beyond a normal
    distribution's. 100 steps take some 3 s a face on two cores. Source: Abdal et al., Image2StyleGAN, ICCV 2019, with
    the prior of Zhu et al., 2020.
    """
    with torch.enable_grad():
        z = generator.codes.to_gaussian(w).detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([z], lr=RATE, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with torch.no_grad():
            wanted = None if embed is None else embed(faces)
        for _ in range(steps):
            drawn = generator(generator.codes.to_w(z))
            loss = (drawn.float() - faces).square().mean((1, 2, 3))
            if lpips is not None:
                loss = loss + LPIPS * lpips(drawn, faces).flatten()
            if embed is not None:
                loss = loss + IDENTITY * (1 - F.cosine_similarity(embed(drawn), wanted))
            loss = loss + LENGTH * (z.square().mean(2) - 1).relu().mean(1) + LENGTH * (z.abs() - 3).relu().sum((1, 2))
            optimiser.zero_grad(set_to_none=True)
            loss.sum().backward()
            optimiser.step()
            schedule.step()
        return generator.codes.to_w(z.detach())
