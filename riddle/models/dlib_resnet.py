"""dlib's ResNet face recogniser (King, 2017; public domain) as a PyTorch module: the same numbers, with gradients.

Its `.dat` holds, after a header, each tensor as packed integers (version 2, num_samples, k, nr, nc) followed by
raw little-endian float32. In order: 29 convolutions (filters, then biases, in one tensor), each followed by an
affine layer (gamma, then beta, in one tensor), then the fully connected layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

MEAN = (122.782, 117.001, 104.298)  # RGB, subtracted; then divided by 256
# (channels, blocks, whether the first block halves the side)
STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))


def _conv(c_in: int, c_out: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution into which dlib's affine layer (its batch norm at test time) is merged."""
    return nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2 if stride == 1 else 0)


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; a halving block averages its shortcut and pads it with zeros."""

    def __init__(self, c_in: int, c_out: int, down: bool):
        super().__init__()
        self.first = _conv(c_in, c_out, 3, 2 if down else 1)
        self.second = _conv(c_out, c_out, 3, 1)
        self.down = down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.down:
            x = F.avg_pool2d(x, 2, 2)
            rows, columns = y.shape[2] - x.shape[2], y.shape[3] - x.shape[3]
            x = F.pad(x, (0, max(columns, 0), 0, max(rows, 0), 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, max(-columns, 0), 0, max(-rows, 0)))
        return F.relu(x + y)


class DlibResNet(nn.Module):
    """(N, 3, 150, 150) RGB in [-1, 1], dlib's chips -> (N, 128), raw: compare by Euclidean distance."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 7, 2)
        blocks, c_in = [], 32
        for c_out, count, down in STAGES:
            for k in range(count):
                blocks.append(Residual(c_in, c_out, down and k == 0))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(256, 128, bias=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    def convolutions(self) -> Iterator[nn.Conv2d]:
        """The 29 convolutions in the order of dlib's file."""
        yield self.stem
        for block in self.blocks:
            yield from (block.first, block.second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = ((x + 1) * 127.5 - self.mean.to(x.dtype)) / 256
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        return self.fc(self.blocks(x).mean((2, 3))).float()


def _tensor(data: bytes, at: int) -> tuple[torch.Tensor, int] | None:
    """The tensor that starts at an offset: (values, next offset); None where there is none."""
    numbers = []
    for _ in range(5):  # packed integers: the control byte has the sign and the count of the bytes that follow
        size = data[at] & 0x0F if at < len(data) else 9
        if size > 8 or data[at] & 0xF0 or at + 1 + size > len(data):
            return None
        numbers.append(int.from_bytes(data[at + 1 : at + 1 + size], "little"))
        at += 1 + size
    version, *shape = numbers
    count = math.prod(shape)
    if version != 2 or min(shape) < 1 or at + 4 * count > len(data):
        return None
    return torch.frombuffer(bytearray(data[at : at + 4 * count]), dtype=torch.float32), at + 4 * count


def _next_tensor(data: bytes, at: int, count: int, path: str | Path) -> tuple[torch.Tensor, int]:
    """The first tensor of `count` values at or after an offset; what lies between is layer settings."""
    while (at := data.find(b"\x01\x02", at)) >= 0:
        found = _tensor(data, at)
        if found is not None and found[0].numel() == count:
            return found
        at += 1
    raise ValueError(f"{path}: no tensor of {count} values where dlib's face recogniser has one; fetch the file again")


def load_dlib_resnet(path: str | Path) -> DlibResNet:
    """The frozen network with the weights of dlib_face_recognition_resnet_model_v1.dat.

    The affine layers are merged into the convolutions and weights are channels_last, which makes it about thirty
    times as fast as dlib on a CPU. Raises FileNotFoundError, or ValueError when the file is another's.
    """
    data, at, net = Path(path).read_bytes(), 0, DlibResNet()
    for conv in net.convolutions():
        c = conv.out_channels
        stored, at = _next_tensor(data, at, conv.weight.numel() + c, path)
        affine, at = _next_tensor(data, at, 2 * c, path)
        gamma, beta = affine[:c], affine[c:]
        conv.weight.data = stored[:-c].view_as(conv.weight) * gamma[:, None, None, None]
        conv.bias.data = stored[-c:] * gamma + beta
    stored, at = _next_tensor(data, at, net.fc.weight.numel(), path)
    net.fc.weight.data = stored.view(256, 128).T.contiguous()
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
