"""SphereFace's 20-layer network (Liu et al., CVPR 2017), with the parameter names of the common PyTorch weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = ((64, 3), (128, 5), (256, 9), (512, 3))  # channels and convolutions of a stage; its first halves the side
LEFT, WIDTH = 8, 96  # px of ArcFace's 112 px crop that it sees: the same five points, 8 px further left
INPUT_SCALE = 127.5 / 128


class SphereFace20(nn.Module):
    """(N, 3, 112, 112) RGB in [-1, 1], aligned as for ArcFace -> (N, 512) of unit length.

    It takes the middle 96 columns itself, and blue, green, red as it was trained. A stage is a strided convolution and
    residual pairs; every convolution has a PReLU.
    """

    def __init__(self) -> None:
        super().__init__()
        c_in = 3
        for stage, (c_out, count) in enumerate(LAYERS, 1):
            for k in range(1, count + 1):
                self.add_module(f"conv{stage}_{k}", nn.Conv2d(c_in, c_out, 3, 2 if k == 1 else 1, 1))
                self.add_module(f"relu{stage}_{k}", nn.PReLU(c_out))
                c_in = c_out
        self.fc5 = nn.Linear(512 * 7 * 6, 512)

    def _layer(self, stage: int, k: int, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, f"relu{stage}_{k}")(getattr(self, f"conv{stage}_{k}")(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :, LEFT : LEFT + WIDTH].flip(1) * INPUT_SCALE
        for stage, (_, count) in enumerate(LAYERS, 1):
            x = self._layer(stage, 1, x)
            for k in range(2, count + 1, 2):
                x = x + self._layer(stage, k + 1, self._layer(stage, k, x))
        return F.normalize(self.fc5(x.flatten(1)).float(), dim=1)
