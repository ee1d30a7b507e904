"""IR and IR-SE residual networks (Deng et al., CVPR 2019; Hu et al., CVPR 2018): the body, and ArcFace's recogniser.

Parameter names are those of the published PyTorch weights (`input_layer.*`, `body.<i>.res_layer.*`,
`output_layer.*`): IR-SE50 of InsightFace_Pytorch and e4e, IR101 of CurricularFace.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class SqueezeExcite(nn.Module):
    """Channel attention; `fc1`, `fc2` are 1 x 1 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 1)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class IRSEUnit(nn.Module):
    """Batch norm, two 3 x 3 convolutions, squeeze-and-excitation (unless it is plain IR), shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int, squeeze: bool = True):
        super().__init__()
        if c_in == c_out:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.Conv2d(c_in, c_out, 3, 1, 1, bias=False),
            nn.PReLU(c_out),
            nn.Conv2d(c_out, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            *([SqueezeExcite(c_out)] if squeeze else []),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


def irse_body(width: int, blocks: Sequence[int], squeeze: bool = True) -> tuple[nn.Sequential, nn.Sequential]:
    """`input_layer` and `body` of an IR-SE network; stage k has width * 2^k channels and halves the side.

    IR-SE50: width 64, blocks (3, 4, 14, 3). The indices at which the stages end are cumulative sums of blocks.
    """
    input_layer = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
    units, c_in = [], width
    for stage, n in enumerate(blocks):
        c_out = width * 2**stage
        for k in range(n):
            units.append(IRSEUnit(c_in, c_out, 1 if k else 2, squeeze))
            c_in = c_out
    return input_layer, nn.Sequential(*units)


class ArcFaceIR(nn.Module):
    """Recogniser: (N, 3, 112, 112) RGB in [-1, 1], aligned as for ArcFace -> (N, 512) of unit length.

    IR-SE50: blocks (3, 4, 14, 3), squeeze. CurricularFace's IR101: (3, 13, 30, 3), no squeeze, and a last batch norm
    without gain and bias (`affine`).
    """

    def __init__(self, blocks: Sequence[int], squeeze: bool = True, affine: bool = True):
        super().__init__()
        self.input_layer, self.body = irse_body(64, blocks, squeeze)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512, affine=affine),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.output_layer(self.body(self.input_layer(x))).float(), dim=1)
