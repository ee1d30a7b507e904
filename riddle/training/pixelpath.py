"""From published pixels back to a code: what makes `restore` work on a bare picture.

The authors decrypt the code that they kept. Here the encryptor also learns from what a recipient has: the encrypted
face as eight bits a channel, as JPEG, or pasted into the photo and cropped a little beside its place, inverted again.
Rounding and compression pass gradients on unchanged.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from riddle.faces.blending import core, ellipse, match_colours
from riddle.faces.pixels import jpeg, to_bytes, to_tensor

QUALITIES = (75, 95)  # of JPEG
# Deviations of the crop around a pasted face that a detector finds again, measured on 70 photos of CelebAMask-HQ's val
# split: place in shares of the side, size, radians. Size is the least certain, it follows the mouth's place.
SHIFT, SCALE, TURN = 0.01, 0.037, 0.02


def rounded(faces: torch.Tensor, qualities: tuple[int, int] | None = None) -> torch.Tensor:
    """Faces (N, 3, R, R) as eight bits a channel, or as JPEG of a drawn quality; gradients pass unchanged."""
    stored = to_bytes(faces.detach())
    if qualities is not None:
        drawn = torch.randint(qualities[0], qualities[1] + 1, (len(stored),)).tolist()
        stored = np.concatenate([jpeg(picture[None], q) for picture, q in zip(stored, drawn, strict=True)])
    return _shown_as(faces.float(), to_tensor(stored))


def _shown_as(faces: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """What is shown in the place of faces, both (N, 3, R, R), with gradients to these unchanged."""
    return faces + (shown.to(faces) - faces).detach()


def cropped_again(faces: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R) in their photos' crops `under` as `protect` puts them there, and cropped a little beside.

    Their colours are matched, with gradients unchanged, and they are blended at the rim.
    """
    n, side = len(faces), faces.shape[-1]
    at = (np.arange(side) + 0.5) / side
    mask, skin = torch.from_numpy(ellipse(at[None], at[:, None])).to(faces), core(side)
    if n:
        matched = torch.stack([match_colours(f, u, skin) for f, u in zip(faces, under, strict=True)])
        faces = _shown_as(faces, matched)
    pasted = under + mask * (faces - under)
    deviations = torch.tensor([[2 * SHIFT], [2 * SHIFT], [SCALE], [TURN]], device=faces.device)  # a side is 2 there
    moves = torch.randn(4, n, device=faces.device) * deviations
    theta = torch.zeros(n, 2, 3, device=faces.device)
    theta[:, :, 2] = moves[:2].T
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + moves[2]
    theta[:, 0, 1], theta[:, 1, 0] = -moves[3], moves[3]
    grid = F.affine_grid(theta, list(pasted.shape), align_corners=False)
    return F.grid_sample(pasted.float(), grid, padding_mode="border", align_corners=False)


def publish(faces: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """Faces and the crops of their photos, (N, 3, R, R) in [-1, 1] -> pictures of the same shape, in order: a
    quarter PNG, a quarter JPEG, half pasted, which loses most."""
    faces, under = faces.float().clamp(-1, 1), under.float()
    first, second = len(faces) // 4, len(faces) // 2
    return torch.cat(
        [
            rounded(faces[:first]),
            rounded(faces[first:second], QUALITIES),
            rounded(cropped_again(faces[second:], under[second:])),
        ]
    )


class PixelPath:
    """Encrypted faces -> the codes that their published pictures give."""

    def __init__(self, encoder: nn.Module):
        """encoder: the inversion, frozen."""
        self.encoder = encoder.eval().requires_grad_(False)

    def __call__(self, faces: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
        """Codes (N, L, D) read from the published pictures of encrypted faces (N, 3, R, R)."""
        return self.encoder(publish(faces, under)).float()
