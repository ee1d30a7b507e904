"""SqueezeNet 1.1 (Iandola et al., 2016) as LPIPS cuts it: the features after seven of its layers.

torchvision has the network; but it takes three seconds to load, and the page of notebook 15 would show its first faces
later by that. The layers have the names of the package lpips, so that either's weights fit the other.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

FIRES = {
    3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128), 9: (256, 48, 192), 10: (384, 48, 192),
    11: (384, 64, 256), 12: (512, 64, 256),
}  # layer: channels that come in, are squeezed to, and leave by each of two convolutions  # fmt: skip
SLICES = ((0, 1), (2, 3, 4), (5, 6, 7), (8, 9), (10,), (11,), (12,))  # layers between the features
CHANNELS = (64, 128, 256, 384, 384, 512, 512)  # of the features


class Fire(nn.Module):
    """Few channels, seen by a convolution of 1 px and one of 3 px."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


def _layer(i: int) -> nn.Module:
    if i in FIRES:
        return Fire(*FIRES[i])
    return {0: nn.Conv2d(3, 64, 3, stride=2), 1: nn.ReLU()}.get(i, nn.MaxPool2d(3, 2, ceil_mode=True))


class SqueezeNet(nn.Module):
    """Normalised faces (N, 3, R, R) -> features, one (N, C, h, w) for each of CHANNELS."""

    def __init__(self):
        super().__init__()
        for k, layers in enumerate(SLICES, 1):
            self.add_module(f"slice{k}", nn.Sequential(OrderedDict((str(i), _layer(i)) for i in layers)))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for part in self.children():
            x = part(x)
            features.append(x)
        return features
