"""MobileFaceNet (Chen et al., CCBR 2018) with ArcFace weights: the recogniser that the small presets train against.

Written naively it costs more than the generator whose faces it sees. So each batch norm is merged into the layer before
it, a frozen PReLU has a gradient of its own, depthwise convolutions stay in float32, and activations are channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

# name of the stage, residual blocks, channels after it, expanded channels, stride of the first convolution
STAGES = (
    ("dconv_23", None, 64, 128, 2),
    ("res_3", 4, 64, 128, 1),
    ("dconv_34", None, 128, 256, 2),
    ("res_4", 6, 128, 256, 1),
    ("dconv_45", None, 128, 512, 2),
    ("res_5", 2, 128, 256, 1),
)
INPUT_SCALE = 127.5 / 128  # the network was trained on (x - 127.5) / 128; here faces lie in [-1, 1]


class FrozenPReLU(torch.autograd.Function):
    """PReLU whose slope gets no gradient: PyTorch's own backward computes one, at ten times the cost."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, slope = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(grad, x, 0)
        return torch.lerp(positive, grad, slope[:, None, None]), None


class ConvBlock(nn.Module):
    """Convolution with a bias, into which the published batch norm is merged, and PReLU where `activate`."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1, activate: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, pad, groups=groups)
        nn.init.zeros_(self.conv.bias)
        self.prelu = nn.PReLU(c_out) if activate else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv.groups > 1:
            with torch.autocast(x.device.type, enabled=False):  # a CPU takes up to 40 times as long through bfloat16
                y = self.conv(x.float()).to(x.dtype)
        else:
            y = self.conv(x)
        if self.prelu is None:
            return y
        slope = self.prelu.weight.to(y.dtype)
        if slope.requires_grad:
            return F.relu(y) * (1 - slope[:, None, None]) + y * slope[:, None, None]
        return FrozenPReLU.apply(y, slope)


class MobileFaceNet(nn.Module):
    """(N, 3, 112, 112) RGB in [-1, 1], aligned as for ArcFace -> (N, 128) of unit length. It starts frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = ConvBlock(3, 64, 3, 2, 1)
        self.conv_2_dw = ConvBlock(64, 64, 3, 1, 1, groups=64)
        self.blocks: list[tuple[str, bool]] = []  # (prefix, residual)
        c_in = 64
        for stage, repeats, c_out, wide, stride in STAGES:
            for prefix in [stage] if repeats is None else [f"{stage}_block{i}" for i in range(repeats)]:
                self.add_module(f"{prefix}_conv_sep", ConvBlock(c_in, wide, 1))
                self.add_module(f"{prefix}_conv_dw", ConvBlock(wide, wide, 3, stride, 1, groups=wide))
                self.add_module(f"{prefix}_conv_proj", ConvBlock(wide, c_out, 1, activate=False))
                self.blocks.append((prefix, repeats is not None))
                c_in = c_out
        self.conv_6sep = ConvBlock(c_in, 512, 1)
        self.conv_6dw7_7 = ConvBlock(512, 512, 7, groups=512, activate=False)
        self.fc = nn.Linear(512, 128)
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.describe(x)[0].float(), dim=1)

    def describe(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedding before it is made unit length, (N, 128), and the vector that it is read from, (N, 512)."""
        x = self.conv_2_dw(self.conv_1(x * INPUT_SCALE))
        for prefix, residual in self.blocks:
            y = x
            for part in ("sep", "dw", "proj"):
                y = getattr(self, f"{prefix}_conv_{part}")(y)
            x = x + y if residual else y
        pooled = self.conv_6dw7_7(self.conv_6sep(x)).flatten(1)
        return self.fc(pooled), pooled


def merged(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published state dict (`arcface_mobilefacenet_ms1m.safetensors`) with each batch norm in the layer before it.

    The norms' epsilon is in the stored variance already.
    """
    merged = {k: v for k, v in state.items() if ".bn." not in k and not k.startswith("fc_bn.")}
    for name in [k.removesuffix(".running_var") for k in state if k.endswith(".running_var")]:
        layer = "fc" if name == "fc_bn" else name.replace(".bn", ".conv")
        gain = state[f"{name}.weight"] / state[f"{name}.running_var"].sqrt()
        weight, bias = state[f"{layer}.weight"], state.get(f"{layer}.bias", 0)
        merged[f"{layer}.weight"] = weight * gain.view(-1, *[1] * (weight.ndim - 1))
        merged[f"{layer}.bias"] = (bias - state[f"{name}.running_mean"]) * gain + state[f"{name}.bias"]
    return merged


def read_ncnn(path: Path) -> dict[str, torch.Tensor]:
    """The published state dict, for `merged`, from the file in which ncnn has it, MobileFaceNet.bin.

    It holds float32 numbers without names, layer by layer: a convolution, after a word that says float32, its batch
    norm and its PReLU; at the end the linear layer and its norm. Raises ValueError for a file of another length.
    """
    layout: dict[str, tuple[int, ...]] = {}
    for name, layer in MobileFaceNet().named_children():
        linear, norm = ("fc", "fc_bn") if name == "fc" else (f"{name}.conv", f"{name}.bn")
        shape = tuple(layer.weight.shape if name == "fc" else layer.conv.weight.shape)
        layout |= {f"{linear}.kind": (1,), f"{linear}.weight": shape}
        layout |= {"fc.bias": shape[:1]} if name == "fc" else {}
        layout |= {f"{norm}.{part}": shape[:1] for part in ("weight", "running_mean", "running_var", "bias")}
        layout |= {f"{name}.prelu.weight": shape[:1]} if getattr(layer, "prelu", None) else {}
    numbers, counts = torch.from_numpy(np.fromfile(path, "<f4")), [math.prod(shape) for shape in layout.values()]
    if len(numbers) != sum(counts):
        raise ValueError(f"{path} holds {len(numbers)} numbers, MobileFaceNet {sum(counts)}; fetch the file again")
    parts = zip(layout.items(), numbers.split(counts), strict=True)
    return {key: part.view(shape) for (key, shape), part in parts if not key.endswith(".kind")}


def load_mobilefacenet(path: str | Path) -> MobileFaceNet:
    """The frozen network with the weights of a safetensors file.

    Raises FileNotFoundError, or RuntimeError naming the keys that do not fit.
    """
    net = MobileFaceNet().eval()
    net.load_state_dict(merged({k: v.float() for k, v in load_file(path).items()}))
    return net
