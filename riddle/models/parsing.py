"""Face parsing: F_s of eq. 8, from faces to 19 classes per pixel (CelebAMask-HQ's).

`ParsingNet` is the small network this project trains for its own presets; `riddle.models.bisenet` takes the
public weights at paper scale. Both map (N, 3, R, R) in [-1, 1] to logits (N, 19, R, R).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
# eq. 8: "the channels corresponding to the eyes, ears, mouth, and nose"
PARTS = tuple(CLASSES.index(c) for c in ("nose", "l_eye", "r_eye", "l_ear", "r_ear", "mouth", "u_lip", "l_lip"))
# class i of a face is class MIRRORED[i] of its mirror image: left and right change places
MIRRORED = (0, 1, 2, 3, 5, 4, 7, 6, 9, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18)


class Stage(nn.Module):
    """Two 3 x 3 convolutions with batch norm and ReLU around a shortcut."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ParsingNet(nn.Module):
    """U-Net whose first step folds 2 x 2 pixels into channels, so that no layer runs at full resolution.

    Any R that 16 divides; 0.6 M parameters.
    """

    def __init__(self):
        super().__init__()
        widths = (24, 48, 72, 96)  # channels at R/2, R/4, R/8 and R/16
        self.down = nn.ModuleList([Stage(12, widths[0])])
        self.down.extend(Stage(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(Stage(b + a, a) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Conv2d(widths[0], 4 * len(CLASSES), 1)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """faces: (N, 3, R, R) in [-1, 1] -> logits (N, 19, R, R)."""
        if faces.shape[-1] % 16 or faces.shape[-2] % 16:
            raise ValueError(f"the parser needs a side that 16 divides, got {tuple(faces.shape)}")
        x = F.pixel_unshuffle(faces, 2).contiguous(memory_format=torch.channels_last)
        kept = []
        for i, stage in enumerate(self.down):
            x = stage(F.avg_pool2d(x, 2) if i else x)
            kept.append(x)
        for stage, skip in zip(reversed(self.up), reversed(kept[:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = stage(torch.cat([x, skip], 1))
        return F.pixel_shuffle(self.head(x), 2)


def parts(logits: torch.Tensor) -> torch.Tensor:
    """Logits (N, 19, R, R) -> the channels that eq. 8 compares, (N, 8, R, R), in float32."""
    return logits[:, list(PARTS)].float()


def labels(logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., 19, R, R) -> the likeliest class of each pixel, (..., R, R) uint8."""
    return logits.max(-3).indices.to(torch.uint8)  # on CPUs, argmax over this dimension takes six times as long
