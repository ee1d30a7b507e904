"""Turn encrypted faces into published pictures, from which the encryptor learns with `--pixels`.

The authors decrypt the code that they kept. A bare picture has eight bits per channel, perhaps as JPEG, or shows the
face pasted into its photo, where a detector finds it a little beside its place.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from riddle.faces.blending import core, ellipse, match_colours
from riddle.images import jpeg, to_bytes, to_tensor

QUALITIES = (75, 95)  # of JPEG
# Deviations of the crop around a pasted face that a detector finds again, measured on 70 photos of CelebAMask-HQ's val
# split: place in shares of the side, size, radians. Size is the least certain, it follows the mouth's place.
SHIFT, SCALE, TURN = 0.01, 0.037, 0.02


def shown_as(faces: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """`shown` in the place of faces, both (N, 3, R, R); the gradient goes to the faces, unchanged."""
    return faces + (shown.to(faces) - faces).detach()


def stored(faces: torch.Tensor, quality: int | None = None) -> torch.Tensor:
    """Faces (N, 3, R, R) in [-1, 1] as a file has them: eight bits per channel, or JPEG of a quality from 1 to 100."""
    pixels = to_bytes(faces)
    return shown_as(faces, to_tensor(pixels if quality is None else jpeg(pixels, quality)))


def cropped_again(faces: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """Faces pasted into their photos' crops as `protect` does it, and cropped a little beside; all (N, 3, R, R) in
    [-1, 1]."""
    side, at = faces.shape[-1], (np.arange(faces.shape[-1]) + 0.5) / faces.shape[-1]
    matched = torch.stack([match_colours(f, u, core(side)) for f, u in zip(faces, under, strict=True)])
    mask = torch.from_numpy(ellipse(at[None], at[:, None])).to(faces)
    pasted = under + mask * (shown_as(faces, matched) - under)
    deviations = torch.tensor([2 * SHIFT, 2 * SHIFT, SCALE, TURN], device=faces.device)  # a side is 2 there
    x, y, size, turn = torch.randn(4, len(faces), device=faces.device) * deviations[:, None]
    theta = torch.stack([1 + size, -turn, x, turn, 1 + size, y], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(theta, list(pasted.shape), align_corners=False)
    return F.grid_sample(pasted, grid, padding_mode="border", align_corners=False)


def publish(faces: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """Encrypted faces and the crops of their photos, (N, 3, R, R) in [-1, 1] -> published pictures of that shape.

    In order: a quarter as PNG, a quarter as JPEG, half pasted, which loses most.
    """
    faces, under, quarter, half = faces.float().clamp(-1, 1), under.float(), len(faces) // 4, len(faces) // 2
    quality = int(torch.randint(QUALITIES[0], QUALITIES[1] + 1, ()))
    pasted = stored(cropped_again(faces[half:], under[half:]))
    return torch.cat([stored(faces[:quarter]), stored(faces[quarter:half], quality), pasted])
