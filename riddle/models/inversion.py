"""e4e (Tov et al., SIGGRAPH 2021): a face -> its code in W+, one base code and an offset for each later slot.

At paper scale (width 64, blocks 3-4-14-3, heads of 512) parameter names are those of the published encoder.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from riddle.models.eigenfaces import Eigenfaces
from riddle.models.irse import irse_body
from riddle.models.layers import EqualLinear
from riddle.presets import Preset

COARSE, MIDDLE = 3, 7  # slots below 3 read the smallest feature map, below 7 the middle one (e4e, sec. 4)


class StyleHead(nn.Module):
    """Feature map (N, C, S, S) -> one code (N, D): stride-2 convolutions down to a single pixel, then linear."""

    def __init__(self, c_in: int, width: int, d_out: int, side: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(max(1, round(math.log2(side)))):
            layers += [nn.Conv2d(c_in, width, 3, 2, 1), nn.LeakyReLU(0.01)]
            c_in = width
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(width, d_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x).mean((2, 3)))


class FlatHead(nn.Module):
    """Feature map (N, C, S, S) -> one code (N, D), read by one linear map from a flattened small map.

    e4e's head squeezes a slot through one pixel after up to four narrow convolutions and leans on a pretrained body.
    Trained from scratch its codes stay low-rank: measured at 64 px after 50,000 faces, 3 to 9 effective dimensions.
    """

    def __init__(self, c_in: int, width: int, d_out: int, side: int, flat: int):
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(c_in)]
        while side > flat:
            layers += [nn.Conv2d(c_in, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width)]
            c_in, side = width, side // 2
        if c_in != width:
            layers += [nn.Conv2d(c_in, width, 1)]
        self.convs = nn.Sequential(*layers)
        self.linear = nn.Linear(width * side * side, d_out)
        nn.init.normal_(self.linear.weight, std=0.3 / math.sqrt(width * side * side))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x).flatten(1))


class Encoder(nn.Module):
    """Faces (N, 3, R, R) in [-1, 1] -> codes (N, L, D).

    R is at most 256: larger faces are averaged down first, as e4e does. `latent_avg` (D,) is where codes start.
    """

    def __init__(self, preset: Preset):
        super().__init__()
        self.n_latent, width = preset.n_latent, preset.encoder_width
        self.side = min(preset.resolution, 256)
        self.input_layer, self.body = irse_body(width, preset.encoder_blocks, stem=preset.encoder_stem)
        ends = torch.tensor(preset.encoder_blocks).cumsum(0).tolist()
        self.taps = (ends[1] - 1, ends[2] - 1, ends[3] - 1)
        top, lateral = 8 * width, preset.encoder_fpn
        self.toplayer = None if lateral == top else nn.Conv2d(top, lateral, 1)
        self.latlayer1 = nn.Conv2d(4 * width, lateral, 1)
        self.latlayer2 = nn.Conv2d(2 * width, lateral, 1)
        sides = [self.side // (16 if i < COARSE else 8 if i < MIDDLE else 4) for i in range(self.n_latent)]
        head, dim, flat = preset.encoder_head, preset.style_dim, preset.encoder_flat
        self.styles = nn.ModuleList(
            FlatHead(lateral, head, dim, s, flat) if flat else StyleHead(lateral, head, dim, s) for s in sides
        )
        self.register_buffer("latent_avg", torch.zeros(preset.style_dim))
        self.base = Eigenfaces(preset.base, dim) if preset.base else None
        if self.base is not None:  # the components come first
            for head in self.styles:
                nn.init.normal_(head.linear.weight, std=0.03 / math.sqrt(head.linear.in_features))

    def forward(self, faces: torch.Tensor, slots: int | None = None) -> torch.Tensor:
        """slots: how many slots may differ from the base code (e4e's progressive training); None: all."""
        if faces.ndim != 4 or faces.shape[1] != 3:
            raise ValueError(f"faces must be (N, 3, R, R), got {tuple(faces.shape)}")
        if faces.shape[2] > self.side:
            faces = F.adaptive_avg_pool2d(faces, self.side)
        x, kept = self.input_layer(faces.contiguous(memory_format=torch.channels_last)), []
        for i, unit in enumerate(self.body):
            x = unit(x)
            if i in self.taps:
                kept.append(x)
        c1, c2, c3 = kept
        p3 = c3 if self.toplayer is None else self.toplayer(c3)
        p2 = self._add_up(p3, self.latlayer1(c2))
        p1 = self._add_up(p2, self.latlayer2(c1))
        base = self.styles[0](p3).float()
        components = None if self.base is None else self.base.read(faces)
        if components is not None:
            base = base + components[:, 0]
        codes = [base]
        for i in range(1, self.n_latent):
            if slots is not None and i >= slots:
                codes.append(base)
            else:
                code = base + self.styles[i](p3 if i < COARSE else p2 if i < MIDDLE else p1).float()
                codes.append(code if components is None or i >= self.base.slots else code + components[:, i])
        return torch.stack(codes, 1) + self.latent_avg

    @staticmethod
    def _add_up(small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        return F.interpolate(small, size=large.shape[2:], mode="bilinear", align_corners=True) + large


class LatentDiscriminator(nn.Module):
    """Tells codes (N, D) of the mapping network from the encoder's: logits (N,). e4e, sec. 4.2."""

    def __init__(self, dim: int, width: int | None = None, layers: int = 4):
        super().__init__()
        width = width or dim
        sizes = [dim] + [width] * (layers - 1)
        hidden = [EqualLinear(a, b, activate=True) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.net = nn.Sequential(*hidden, EqualLinear(width, 1))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return self.net(w).squeeze(-1)
