"""BiSeNet (Yu et al., ECCV 2018) as published with weights for CelebAMask-HQ: F_s of eq. 8 at paper scale.

Module names are those of the public state dict (79999_iter.pth of face-parsing.PyTorch), so it loads as it is;
its classes come in another order, which `forward` undoes: outputs are in `riddle.models.parsing.CLASSES`' order.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from riddle.models.parsing import CLASSES

PUBLISHED_CLASSES = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r",
    "nose", "mouth", "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
SIDE = 512  # px, what the public weights were trained at


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class Basic(nn.Module):
    """ResNet's basic block."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)
        if c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        else:
            self.downsample = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """The trunk: features at 1/8, 1/16 and 1/32 of the side."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for i, (c_in, c_out) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
            setattr(self, f"layer{i}", nn.Sequential(Basic(c_in, c_out, 1 if i == 1 else 2), Basic(c_out, c_out, 1)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


def gate(x: torch.Tensor) -> torch.Tensor:
    """Mean over the picture, (N, C, 1, 1): what the attention of both modules starts from."""
    return x.mean((2, 3), keepdim=True)


class Refinement(nn.Module):
    """Attention refinement: channels weighted by what the whole picture holds."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = ConvNorm(c_in, c_out)
        self.conv_atten = nn.Conv2d(c_out, c_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(gate(x))))


class ContextPath(nn.Module):
    """From the trunk's three scales to two: at 1/8, its own and the context's."""

    def __init__(self):
        super().__init__()
        self.resnet = ResNet18()
        self.arm16, self.arm32 = Refinement(256, 128), Refinement(512, 128)
        self.conv_head32, self.conv_head16 = ConvNorm(128, 128), ConvNorm(128, 128)
        self.conv_avg = ConvNorm(512, 128, kernel=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        eighth, sixteenth, last = self.resnet(x)
        context = self.arm32(last) + self.conv_avg(gate(last))
        context = self.conv_head32(F.interpolate(context, sixteenth.shape[2:], mode="nearest"))
        context = self.arm16(sixteenth) + context
        return eighth, self.conv_head16(F.interpolate(context, eighth.shape[2:], mode="nearest"))


class Fusion(nn.Module):
    """Feature fusion of the two paths."""

    def __init__(self, channels: int):
        super().__init__()
        self.convblk = ConvNorm(channels, channels, kernel=1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, spatial: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.convblk(torch.cat([spatial, context], 1))
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(gate(x)))))


class Output(nn.Module):
    def __init__(self, c_in: int, c_mid: int, classes: int):
        super().__init__()
        self.conv = ConvNorm(c_in, c_mid)
        self.conv_out = nn.Conv2d(c_mid, classes, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """(N, 3, R, R) in [-1, 1] -> logits (N, 19, R, R), judged at 512 px as the public weights want it."""

    def __init__(self, classes: int = len(PUBLISHED_CLASSES)):
        super().__init__()
        self.cp = ContextPath()
        self.ffm = Fusion(256)
        self.conv_out = Output(256, 256, classes)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.order = [PUBLISHED_CLASSES.index(c) for c in CLASSES]

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        side = faces.shape[2:]
        x = ((faces + 1) / 2 - self.mean) / self.std
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=side[0] > SIDE)
        logits = self.conv_out(self.ffm(*self.cp(x)))
        return F.interpolate(logits, side, mode="bilinear", align_corners=True)[:, self.order]

    def load_published(self, state: dict[str, torch.Tensor]) -> BiSeNet:
        """Take the public state dict; its two heads for training only are left out. Raises RuntimeError for
        keys that do not fit."""
        trained_only = ("conv_out16.", "conv_out32.", "cp.resnet.fc.")
        kept = OrderedDict((k.removeprefix("module."), v) for k, v in state.items())
        self.load_state_dict({k: v for k, v in kept.items() if not k.startswith(trained_only)})
        return self
