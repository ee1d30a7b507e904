"""The generators of CIAGAN, FIT and DeepPrivacy in the size and with the names of their published weights.

`riddle.published` reads the files, `riddle.baselines.published` runs the networks. Sources: Maximov et al., CVPR 2020;
Gu et al., ECCV 2020; Hukkelas et al., ISVC 2019; and the published code of each for what a paper leaves open.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# ---- CIAGAN


class Reflected(nn.Module):
    """A convolution whose border is the picture's reflection; its spectral norm is part of the weights here."""

    def __init__(self, c_in: int, c_out: int, size: int = 3):
        super().__init__()
        self.conv2d = nn.Conv2d(c_in, c_out, size, padding=size // 2, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2d(x)


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


class Half(nn.Module):
    """Two convolutions beside a short way of one pixel's reach; then half the side."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv_r1, self.conv_r2 = Reflected(c_in, c_out), Reflected(c_out, c_out)
        self.conv_l = Reflected(c_in, c_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.conv_l(x) + self.conv_r2(F.relu(self.conv_r1(F.relu(x)))), 2)


class Twice(nn.Module):
    """The same with twice the side, normalised."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm_r1, self.norm_r2 = _norm(c_in), _norm(c_out)
        self.conv_r1, self.conv_r2 = Reflected(c_in, c_out), Reflected(c_out, c_out)
        self.conv_l = Reflected(c_in, c_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_r1(F.interpolate(F.relu(self.norm_r1(x)), scale_factor=2))
        return self.conv_l(F.interpolate(x, scale_factor=2)) + self.conv_r2(F.relu(self.norm_r2(y)))


class Same(nn.Module):
    """Two normalised convolutions, added to what they read."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = Reflected(channels, channels), Reflected(channels, channels)
        self.in1, self.in2 = _norm(channels), _norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))


class CiaganGenerator(nn.Module):
    """Landmark picture and hidden face (N, 6, 128, 128) in [0, 1], identities (N, 1200), one of them 1 -> (N, 3, 128,
    128), not bounded."""

    PEOPLE = 1200
    DOWN = (6, 32, 64, 128, 256, 256)  # channels from 128 px to 4 px
    UP = (256, 256, 128, 64, 32, 16)  # and back

    def __init__(self):
        super().__init__()
        for i in range(5):
            c_in, c_out = self.DOWN[i : i + 2]
            setattr(self, f"conv{i}", Half(c_in, c_out))
            setattr(self, f"in{i}_e", _norm(c_out))
            c_in, c_out = self.UP[i : i + 2]
            setattr(self, f"deconv{4 - i}", Twice(c_in, c_out))
            setattr(self, f"in{4 - i}_d", _norm(c_out))
        self.embed = nn.Sequential(Reflected(512, 256), _norm(256))
        for i in range(1, 5):
            setattr(self, f"res{i}", Same(256))
        self.conv_end = nn.Sequential(nn.Conv2d(16, 3, 3, padding=1))
        layers, widths = [], (self.PEOPLE, 256, 256, 256, 256, 512, 512, 512)
        for c_in, c_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(c_in, c_out), nn.LeakyReLU(0.2)]
        self.encode_one_hot, layers, widths = nn.Sequential(*layers), [], (32, 64, 128, 256)
        for c_in, c_out in zip(widths, widths[1:], strict=False):
            layers += [Reflected(c_in, c_out), nn.LeakyReLU(0.2), _norm(c_out)]
        self.encode_noise = nn.Sequential(*layers)

    def forward(self, seen: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
        x, parts = seen, self._modules
        for i in range(5):
            x = parts[f"in{i}_e"](parts[f"conv{i}"](x))
        told = self.encode_noise(self.encode_one_hot(identity).view(-1, 32, 4, 4))
        x = self.embed(torch.cat([x, told], 1))
        for i in range(1, 5):
            x = parts[f"res{i}"](x)
        for i in reversed(range(5)):
            x = parts[f"in{i}_d"](parts[f"deconv{i}"](x))
        return self.conv_end(x)


# ---- FIT


def _batch(channels: int) -> nn.Module:
    """Normalisation by the statistics of the batch, in use as in training: the file holds no others."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _padded(c_in: int, c_out: int, size: int, stride: int = 1, bias: bool = False) -> list[nn.Module]:
    return [nn.ReflectionPad2d(size // 2), nn.Conv2d(c_in, c_out, size, stride, bias=bias)]


class Block(nn.Module):
    """Two normalised convolutions, added to what they read."""

    def __init__(self, channels: int):
        super().__init__()
        first, second = (_padded(channels, channels, 3) for _ in range(2))
        self.conv_block = nn.Sequential(*first, _batch(channels), nn.ReLU(), *second, _batch(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_block(x)


class FitGenerator(nn.Module):
    """Faces (N, 3, R, R) in [-1, 1] and passwords (N, 16) of -0.5 and 0.5 -> faces; any R that 4 divides."""

    def __init__(self, width: int = 64, blocks: int = 9):
        super().__init__()
        w = width
        layers = [*_padded(3 + 16, w, 7), _batch(w), nn.ReLU()]
        for c in (w, 2 * w):
            layers += [*_padded(c, 2 * c, 3, 2), _batch(2 * c), nn.ReLU()]
        layers += [Block(4 * w) for _ in range(blocks)]
        for c in (4 * w, 2 * w):
            layers += [nn.Upsample(scale_factor=2), *_padded(c, c // 2, 3, bias=True), _batch(c // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, *_padded(w, 3, 7, bias=True), nn.Tanh())

    def forward(self, faces: torch.Tensor, passwords: torch.Tensor) -> torch.Tensor:
        planes = passwords[:, :, None, None].expand(-1, -1, *faces.shape[2:])
        return self.model(torch.cat([faces, planes], 1))


# ---- DeepPrivacy


class Scaled(nn.Conv2d):
    """A convolution whose weights are stored with unit variance (ProGAN)."""

    def __init__(self, c_in: int, c_out: int, size: int = 1):
        super().__init__(c_in, c_out, size, padding=size // 2)
        self.scale = (2 / (c_in * size**2)) ** 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.scale * self.weight, self.bias, padding=self.padding)


class PixelNorm(nn.Module):
    """Each pixel's features with a mean square of one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-7)


def _scaled(c_in: int, c_out: int, size: int = 1) -> list[nn.Module]:
    return [Scaled(c_in, c_out, size), nn.LeakyReLU(0.2), PixelNorm()]


def _named(**parts: nn.Module) -> nn.Module:
    return nn.ModuleDict(parts)


class DeepPrivacyGenerator(nn.Module):
    """Face in [-1, 1] with 0 in its box (N, 3, 128, 128), keypoints (N, 7, 2) in units of the side, noise (N, 32, 4, 4)
    -> the picture (N, 3, 128, 128), not bounded. Keypoints outside [0, 1) are not told."""

    WIDTHS = (512, 512, 512, 512, 512, 256)  # of the encoder's features at 4 to 128 px
    LAST = 128
    POINTS, NOISE = 7, (32, 4, 4)

    def __init__(self):
        super().__init__()
        read, drawn, w = {"from_rgb": _named(conv=nn.Sequential(*_scaled(3, self.LAST)))}, {}, self.WIDTHS
        for i in range(6):
            c_in = w[i + 1] if i < 5 else self.LAST
            layers = [*_scaled(c_in, w[i], 3), *_scaled(w[i], w[i], 3)]
            read[f"basic_block{i}"] = _named(layers=nn.Sequential(*layers))
            c_out = w[i + 1] if i < 5 else self.LAST
            layers = [*_scaled(w[i], c_out, 3), *_scaled(c_out, c_out, 3)]
            drawn[f"basic_block{i}"] = _named(layers=nn.Sequential(*layers))
            if i:
                layers = _scaled(2 * w[i] + self.POINTS, w[i])
                drawn[f"skip_connection{i}"] = _named(conv=_named(layers=nn.Sequential(*layers)))
        drawn["conv1x1"] = _named(conv=nn.Sequential(*_scaled(w[0] + self.POINTS + self.NOISE[0], w[0])))
        self.encoder, self.decoder = _named(**read), _named(**drawn)
        self.to_rgb = Scaled(self.LAST, 3)

    def forward(self, seen: torch.Tensor, points: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        x, kept = self.encoder.from_rgb.conv(seen), {}
        for i in reversed(range(6)):
            x = kept[i] = self.encoder[f"basic_block{i}"].layers(x)
            x = F.avg_pool2d(x, 2) if i else x
        x = self.decoder.conv1x1.conv(torch.cat([x, spots(points, 4), noise], 1))
        for i in range(6):
            if i:
                x = F.interpolate(x, scale_factor=2)
                given = torch.cat([x, kept[i], spots(points, x.shape[-1])], 1)
                x = self.decoder[f"skip_connection{i}"].conv.layers(given)
            x = self.decoder[f"basic_block{i}"].layers(x)
        return self.to_rgb(x)


def spots(points: torch.Tensor, side: int) -> torch.Tensor:
    """Points (N, K, 2) in units of the side -> maps (N, K, side, side): 1 in the point's pixel, else 0."""
    inside = ((points >= 0) & (points < 1)).all(2, keepdim=True)
    at = F.one_hot((points.clamp(0, 1 - 1e-6) * side).long(), side).float() * inside[..., None]
    return at[:, :, 1, :, None] * at[:, :, 0, None, :]
