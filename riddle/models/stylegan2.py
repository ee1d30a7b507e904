"""StyleGAN2 (Karras et al., CVPR 2020): the generator in pure PyTorch.

Layers and state dict follow the common PyTorch port, so its `g_ema` loads as it is. What differs is speed: a modulated
convolution scales its input by the style and its output by the demodulation. This is the same function as modulating
the weights (sec. 2.2), but the batch shares one weight and needs no grouped convolution. Activations stay
channels_last.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from riddle.models.codes import FaceGenerator, GaussianCodes
from riddle.presets import Preset

SQRT2 = math.sqrt(2.0)


def blur_kernel() -> torch.Tensor:
    """The 4 x 4 binomial filter of StyleGAN2, summing to 4, as a layer needs that doubles the side."""
    k = torch.tensor([1.0, 3.0, 3.0, 1.0])
    k = torch.outer(k, k)
    return k / k.sum() * 4.0


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
    """Linear layer with equalised learning rate (Karras et al., 2018); `activate` adds leaky ReLU with gain sqrt 2."""

    def __init__(self, d_in: int, d_out: int, bias_init: float = 0.0, lr_mul: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((d_out,), float(bias_init)))
        self.scale, self.lr_mul, self.activate = lr_mul / math.sqrt(d_in), lr_mul, activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = SQRT2 if self.activate else 1.0  # positive, so it may go before the leaky ReLU
        y = F.linear(x, self.weight * (self.scale * gain), self.bias * (self.lr_mul * gain))
        return F.leaky_relu(y, 0.2) if self.activate else y


class Named(nn.Module):
    """Holds tensors under names of the port's state dict that have a module of their own."""

    def __init__(self, **parameters: torch.Tensor):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))


class Kernel(nn.Module):
    """Holds `blur_kernel` under the port's name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel())


class PixelNorm(nn.Module):
    """z (N, D) -> z of mean square 1 (Karras et al., 2018)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


class ModulatedConv2d(nn.Module):
    """Style-modulated convolution; activations are scaled, not weights."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, style_dim: int, demodulate: bool = True, upsample: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, kernel, kernel))
        self.modulation = EqualLinear(style_dim, c_in, bias_init=1.0)
        self.scale = 1 / math.sqrt(c_in * kernel**2)
        self.kernel, self.demodulate = kernel, demodulate
        self.blur = Kernel() if upsample else None

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x: (N, C, H, W), style: (N, D) -> (N, C', H, W), or twice the size when upsampling, and the demodulation (N,
        C', 1, 1), by which the caller still multiplies it: one pass over the pixels does that and the rest."""
        s = self.modulation(style).float()  # (N, C)
        weight = self.weight[0] * self.scale
        x = x * s.to(x.dtype)[:, :, None, None]
        if self.blur is None:
            y = F.conv2d(x, weight, padding=self.kernel // 2)
        else:
            y = depthwise(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), self.blur.kernel, (1, 1))
        if not self.demodulate:
            return y, None
        energy = weight.float().square().sum((2, 3))  # (C', C)
        with torch.autocast(x.device.type, enabled=False):
            demod = torch.rsqrt(s.square() @ energy.T + 1e-8)
        return y, demod[:, :, None, None]


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, style_dim: int, upsample: bool = False):
        super().__init__()
        self.conv = ModulatedConv2d(c_in, c_out, 3, style_dim, upsample=upsample)
        self.noise = Named(weight=torch.zeros(1))
        self.activate = Named(bias=torch.zeros(c_out))

    def forward(self, x: torch.Tensor, style: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        y, factor = self.conv(x, style)
        shift = self.activate.bias[None, :, None, None] + self.noise.weight * noise
        # leaky ReLU commutes with the positive gain, so demodulation, gain and bias are one pass over the pixels
        y = torch.addcmul((shift * SQRT2).to(y.dtype), y, (factor * SQRT2).to(y.dtype))
        return F.leaky_relu(y, 0.2, inplace=True)


class ToRGB(nn.Module):
    """Features (N, C, H, W) and a style (N, D) -> picture (N, 3, H, W), on top of the one of half the side."""

    def __init__(self, c_in: int, style_dim: int, upsample: bool = True):
        super().__init__()
        self.conv = ModulatedConv2d(c_in, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.upsample = Kernel() if upsample else None

    def forward(self, x: torch.Tensor, style: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        y = self.conv(x, style)[0].float() + self.bias
        if skip is None:
            return y
        with torch.autocast(x.device.type, enabled=False):
            return y + depthwise(skip, self.upsample.kernel, (2, 1), up=2)


class Generator(FaceGenerator):
    """Mapping and synthesis network.

    resolution: power of two; channels: {side: channels}; style_dim: D; n_mlp: layers of the mapping. `n_latent` is
    L = 2 log2(resolution) - 2: one code for each convolution and one for the last ToRGB. `codes` is the Gaussian space
    of its codes, which the published weights lack: measure it after loading them.
    """

    def __init__(self, resolution: int, channels: dict[int, int], style_dim: int = 512, n_mlp: int = 8):
        super().__init__()
        self.resolution, self.style_dim = resolution, style_dim
        self.log_size = int(math.log2(resolution))
        self.n_latent = 2 * self.log_size - 2
        mapping = [EqualLinear(style_dim, style_dim, lr_mul=0.01, activate=True) for _ in range(n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = Named(input=torch.randn(1, channels[4], 4, 4))
        self.conv1 = StyledConv(channels[4], channels[4], style_dim)
        self.to_rgb1 = ToRGB(channels[4], style_dim, upsample=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for layer in range(2 * self.log_size - 3):
            side = 2 ** ((layer + 5) // 2)
            self.noises.register_buffer(f"noise_{layer}", torch.randn(1, 1, side, side))
        for log in range(3, self.log_size + 1):
            c_in, c_out = channels[2 ** (log - 1)], channels[2**log]
            self.convs.append(StyledConv(c_in, c_out, style_dim, upsample=True))
            self.convs.append(StyledConv(c_out, c_out, style_dim))
            self.to_rgbs.append(ToRGB(c_out, style_dim))
        self.codes = GaussianCodes(style_dim)

    @classmethod
    def of(cls, preset: Preset) -> Generator:
        """The generator of a preset, untrained."""
        return cls(preset.resolution, preset.channels, preset.style_dim, preset.n_mlp)

    def map(self, z: torch.Tensor) -> torch.Tensor:
        return self.style(z)

    def forward(self, w: torch.Tensor, side: int | None = None) -> torch.Tensor:
        """Codes (N, L, D) -> faces (N, 3, side, side), about [-1, 1]; the stored noise maps give the same face each
        time.

        side: None or R, the network's own, or a divisor of it: the mean over pixels. Raises ValueError for other shapes
        and sides.
        """
        if side is not None and (side > self.resolution or self.resolution % side):
            raise ValueError(f"no face of {side} px; this generator draws {self.resolution} px and its divisors")
        if w.ndim != 3 or w.shape[1:] != (self.n_latent, self.style_dim):
            raise ValueError(f"codes must be (N, {self.n_latent}, {self.style_dim}), got {tuple(w.shape)}")
        noises = list(self.noises.buffers())
        x = self.input.input.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        if torch.is_autocast_enabled(w.device.type):
            x = x.to(torch.get_autocast_dtype(w.device.type))
        x = self.conv1(x, w[:, 0], noises[0])
        skip = self.to_rgb1(x, w[:, 1], None)
        for k, to_rgb in enumerate(self.to_rgbs):
            i = 2 * k + 1
            x = self.convs[2 * k](x, w[:, i], noises[i])
            x = self.convs[2 * k + 1](x, w[:, i + 1], noises[i + 1])
            skip = to_rgb(x, w[:, i + 2], skip)
        return skip if side in (None, self.resolution) else F.adaptive_avg_pool2d(skip, side)
