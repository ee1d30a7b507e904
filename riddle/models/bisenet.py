"""BiSeNet (Yu et al., ECCV 2018) as published with weights for CelebAMask-HQ: F_s of eq. 8 at paper scale.

Module names are those of the public state dict (79999_iter.pth of face-parsing.PyTorch), without its two heads for
training only. Its classes come in another order, which `forward` undoes: outputs are in
`riddle.models.parsing.CLASSES`' order.
"""

from __future__ import annotations

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


class Refinement(nn.Module):
    """Attention refinement: channels weighted by what the whole picture holds."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = ConvNorm(c_in, c_out)
        self.conv_atten = nn.Conv2d(c_out, c_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))))


class ContextPath(nn.Module):
    """From a ResNet-18's features at 1/8, 1/16 and 1/32 of the side to two maps at 1/8: its own and the context's."""

    def __init__(self):
        super().__init__()
        from torchvision.models import resnet18  # here, so that `import riddle.pipeline` stays light

        self.resnet = resnet18()
        del self.resnet.fc
        self.arm16, self.arm32 = Refinement(256, 128), Refinement(512, 128)
        self.conv_head32, self.conv_head16 = ConvNorm(128, 128), ConvNorm(128, 128)
        self.conv_avg = ConvNorm(512, 128, kernel=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r = self.resnet
        eighth = r.layer2(r.layer1(r.maxpool(r.relu(r.bn1(r.conv1(x))))))
        sixteenth = r.layer3(eighth)
        last = r.layer4(sixteenth)
        context = self.arm32(last) + self.conv_avg(last.mean((2, 3), keepdim=True))
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
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))))


class Output(nn.Module):
    """Features (N, C, h, w) -> logits (N, classes, h, w)."""

    def __init__(self, c_in: int, c_mid: int, classes: int):
        super().__init__()
        self.conv = ConvNorm(c_in, c_mid)
        self.conv_out = nn.Conv2d(c_mid, classes, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """(N, 3, R, R) in [-1, 1] -> logits (N, 19, R, R), computed at 512 px as the public weights want it."""

    def __init__(self) -> None:
        super().__init__()
        self.cp = ContextPath()
        self.ffm = Fusion(256)
        self.conv_out = Output(256, 256, len(PUBLISHED_CLASSES))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.order = [PUBLISHED_CLASSES.index(c) for c in CLASSES]

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        side = faces.shape[2:]
        x = ((faces + 1) / 2 - self.mean) / self.std
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=side[0] > SIDE)
        logits = self.conv_out(self.ffm(*self.cp(x)))
        return F.interpolate(logits, side, mode="bilinear", align_corners=True)[:, self.order]
