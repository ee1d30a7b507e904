"""Faces as stored pictures: eight bits a channel, JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(N, R, R, 3) uint8 -> faces (N, 3, R, R) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_bytes(x: torch.Tensor) -> np.ndarray:
    """Faces (N, 3, R, R) in [-1, 1] -> (N, R, R, 3) uint8."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu().permute(0, 2, 3, 1).contiguous().numpy()


def jpeg(pictures: np.ndarray, quality: int) -> np.ndarray:
    """Pictures (N, R, R, 3) uint8 after JPEG compression (with the colours at half resolution, as is customary)."""
    out = np.empty_like(pictures)
    for i, pixels in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        out[i] = np.asarray(Image.open(file))
    return out
