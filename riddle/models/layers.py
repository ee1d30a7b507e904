"""Layers with equalised learning rate (Karras et al., 2018) and the filters of StyleGAN2."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

SQRT2 = math.sqrt(2.0)


def blur_kernel(gain: float = 1.0) -> torch.Tensor:
    """The 4 x 4 binomial filter of StyleGAN2, summing to `gain`."""
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])
    k = torch.outer(k, k)
    return k / k.sum() * gain


def depthwise(x: torch.Tensor, kernel: torch.Tensor, pad: tuple[int, int], up: int = 1) -> torch.Tensor:
    """Filter each channel of x (N, C, H, W) with a symmetric kernel; up=2 puts zeros between the samples."""
    c = x.shape[1]
    weight = kernel.to(x.dtype).expand(c, 1, *kernel.shape)
    if up == 1:
        padded = (x, pad[0]) if pad[0] == pad[1] else (F.pad(x, (*pad, *pad)), 0)
        return F.conv2d(padded[0], weight, padding=padded[1], groups=c)
    y = F.conv_transpose2d(x, weight, stride=up, groups=c)  # full support; cut to what the padding asks for
    cut0, cut1 = kernel.shape[0] - 1 - pad[0], kernel.shape[0] - up - pad[1]
    return y[:, :, cut0 : y.shape[2] - cut1, cut0 : y.shape[3] - cut1]


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate; `activate` adds leaky ReLU with gain sqrt 2."""

    def __init__(self, d_in: int, d_out: int, bias_init: float = 0.0, lr_mul: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((d_out,), float(bias_init)))
        self.scale, self.lr_mul, self.activate = lr_mul / math.sqrt(d_in), lr_mul, activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = SQRT2 if self.activate else 1.0  # positive, so it may go before the leaky ReLU
        y = F.linear(x, self.weight * (self.scale * gain), self.bias * (self.lr_mul * gain))
        return F.leaky_relu(y, 0.2) if self.activate else y
