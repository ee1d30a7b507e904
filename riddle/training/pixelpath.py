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

from riddle.faces.blending import ellipse
from riddle.faces.pixels import jpeg, to_bytes, to_tensor

QUALITIES = (75, 95)  # of JPEG
JITTER = 0.02  # of the crop's side: deviation of a detector that finds the pasted face again


def rounded(faces: torch.Tensor, qualities: tuple[int, int] | None = None) -> torch.Tensor:
    """Faces (N, 3, R, R) as eight bits a channel, or as JPEG of a drawn quality; gradients pass unchanged."""
    stored = to_bytes(faces.detach())
    if qualities is not None:
        drawn = torch.randint(qualities[0], qualities[1] + 1, (len(stored),)).tolist()
        stored = np.concatenate([jpeg(picture[None], q) for picture, q in zip(stored, drawn, strict=True)])
    faces = faces.float()
    return faces + (to_tensor(stored).to(faces) - faces).detach()


def cropped_again(faces: torch.Tensor, under: torch.Tensor, jitter: float = JITTER) -> torch.Tensor:
    """Faces (N, 3, R, R) blended into their photos' crops `under` as `protect` does, and cropped a little beside."""
    n, side = len(faces), faces.shape[-1]
    at = (np.arange(side) + 0.5) / side
    mask = torch.from_numpy(ellipse(at[None], at[:, None])).to(faces)
    pasted = under + mask * (faces - under)
    moves = torch.randn(4, n, device=faces.device) * jitter * torch.tensor([[2.0], [2], [1], [1]], device=faces.device)
    theta = torch.zeros(n, 2, 3, device=faces.device)
    theta[:, :, 2] = moves[:2].T  # a crop's side is 2 there
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + moves[2]
    theta[:, 0, 1], theta[:, 1, 0] = -moves[3], moves[3]
    grid = F.affine_grid(theta, list(pasted.shape), align_corners=False)
    return F.grid_sample(pasted.float(), grid, padding_mode="border", align_corners=False)


def publish(faces: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
    """Faces and the crops of their photos, (N, 3, R, R) in [-1, 1] -> pictures of the same shape, in order: a third
    PNG, a third JPEG, a third pasted."""
    faces, under = faces.float().clamp(-1, 1), under.float()
    first, second = len(faces) // 3, 2 * len(faces) // 3
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
