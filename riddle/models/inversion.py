"""e4e (Tov et al., SIGGRAPH 2021): a face -> its code in W+, one base code and an offset for each later slot.

`Encoder` is the published network: at paper scale (width 64, blocks 3-4-14-3, heads of 512) parameter names are those
of its weights. `LiteEncoder` is the same idea for a CPU: a smaller body, and codes in the Gaussian space.
"""

from __future__ import annotations

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import nn

from riddle.losses import PerceptualFeatures
from riddle.machine import fast_autocast
from riddle.models.codes import soft_bound
from riddle.models.curvature import Curvature, descend
from riddle.models.efficientnet import TAPS, EfficientNetLite0
from riddle.models.fixed_map import ARCFACE_POINTS, fixed_map
from riddle.models.irse import irse_body
from riddle.models.mobilefacenet import MobileFaceNet
from riddle.models.squeezenet import CHANNELS, SqueezeNet
from riddle.models.stylegan2 import EqualLinear
from riddle.presets import Preset

EMBEDDING, POOLED = 128, 512  # of MobileFaceNet
TOGETHER = 16  # faces that `refine` takes at once, for memory
SQUARED, PERCEIVED, IDENTITY, LENGTH = 1.0, 1.2, 0.25, 0.01  # weights of the distance that `refine` makes smaller
COARSE, MIDDLE = 3, 7  # first slots of the middle and of the largest feature map (e4e, sec. 4)


def _level(slot: int) -> int:
    """The feature map of a slot: 0, the smallest, to 2."""
    return 0 if slot < COARSE else 1 if slot < MIDDLE else 2


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


class Encoder(nn.Module):
    """Faces (N, 3, R, R) in [-1, 1] -> codes (N, L, D).

    R is at most 256: larger faces are averaged down first, as e4e does. `latent_avg` (L, D) is where codes start.
    """

    def __init__(self, preset: Preset):
        super().__init__()
        self.n_latent, width = preset.n_latent, preset.encoder_width
        self.side = min(preset.resolution, 256)
        self.input_layer, self.body = irse_body(width, preset.encoder_blocks)
        ends = list(accumulate(preset.encoder_blocks))
        self.taps = (ends[1] - 1, ends[2] - 1, ends[3] - 1)
        top, lateral = 8 * width, preset.encoder_fpn
        self.toplayer = None if lateral == top else nn.Conv2d(top, lateral, 1)
        self.latlayer1 = nn.Conv2d(4 * width, lateral, 1)
        self.latlayer2 = nn.Conv2d(2 * width, lateral, 1)
        sides = [self.side // (16, 8, 4)[_level(i)] for i in range(self.n_latent)]
        self.styles = nn.ModuleList(StyleHead(lateral, preset.encoder_head, preset.style_dim, s) for s in sides)
        self.register_buffer("latent_avg", torch.zeros(preset.n_latent, preset.style_dim))

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
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
        others = [base + self.styles[i]((p3, p2, p1)[_level(i)]).float() for i in range(1, self.n_latent)]
        return torch.stack([base, *others], 1) + self.latent_avg

    @staticmethod
    def _add_up(small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        return F.interpolate(small, size=large.shape[2:], mode="bilinear", align_corners=True) + large


class _Head(nn.Module):
    """Map (N, S, S, C) -> numbers (N, d_out): convolutions of stride 2 down to 4 x 4, then one linear map."""

    def __init__(self, c_in: int, width: int, d_out: int, side: int):
        super().__init__()
        layers: list[nn.Module] = []
        while side > 4:
            layers += [nn.Conv2d(c_in, width, 3, 2, 1), nn.LeakyReLU(0.2)]
            c_in, side = width, side // 2
        self.convs = nn.Sequential(*layers) if layers else nn.Sequential(nn.Conv2d(c_in, width, 1), nn.LeakyReLU(0.2))
        self.linear = nn.Linear(width * side * side, d_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1))


class LiteEncoder(nn.Module):
    """Faces (N, 3, R, R) in [-1, 1] -> codes (N, L, D), in passes: each sees the face and what the generator draws so
    far, and adds to z what is missing (ReStyle, Alaluf et al., ICCV 2021). The first pass sees the mean face.

    e4e's body is a recogniser. Here an image body reads what a face looks like, and a recogniser's body reads its
    identity: the embedding, and its difference from that of the face drawn so far, go to all slots. Then `refine`
    follows the gradient of a distance between both faces.
    generator: frozen, and not part of the state. The buffer `passes` says how many passes the weights were trained for,
    `steps` how many steps of `refine` follow them.
    """

    def __init__(self, preset: Preset, generator: nn.Module):
        super().__init__()
        self.n_latent, self.side, width = preset.n_latent, preset.resolution, preset.encoder_fpn
        self._generator = [generator]
        self.register_buffer("passes", torch.tensor(1))
        self.register_buffer("steps", torch.tensor(0))
        self.body = EfficientNetLite0(channels=6)
        self.lateral = nn.ModuleList(nn.Linear(c, width) for c in list(TAPS.values())[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in self.lateral)
        sides = [self.side // (32, 16, 8)[_level(i)] for i in range(self.n_latent)]
        head = preset.encoder_head
        self.styles = nn.ModuleList(
            _Head(width, head if i else 2 * head, preset.style_dim, side) for i, side in enumerate(sides)
        )
        self.identity = MobileFaceNet()
        told = 2 * EMBEDDING + POOLED + width
        self.mix = nn.Sequential(
            nn.Linear(told, 256), nn.LeakyReLU(0.2), nn.Linear(256, 256), nn.LeakyReLU(0.2),
            nn.Linear(256, self.n_latent * preset.style_dim),
        )  # fmt: skip
        nn.init.normal_(self.mix[-1].weight, std=0.01)
        nn.init.zeros_(self.mix[-1].bias)
        self.perception = PerceptualFeatures(SqueezeNet(), CHANNELS).requires_grad_(False)
        self.curvature = Curvature(self.n_latent, preset.style_dim)
        crop = fixed_map(self.side, tuple(map(tuple, ARCFACE_POINTS.tolist())), 112)
        self.register_buffer("crop", crop, persistent=False)
        for i, style in enumerate(self.styles):  # differences between slots start small
            nn.init.normal_(style.linear.weight, std=(0.02 if i else 0.3) / style.linear.in_features**0.5)
            nn.init.zeros_(style.linear.bias)

    def recognise(self, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Faces (N, 3, R, R) -> embeddings (N, 128) of variance 1, and pooled features (N, 512)."""
        with torch.autocast(faces.device.type, enabled=False):
            crops = self.crop[0] @ faces.float() @ self.crop[1].T
        embedded, pooled = self.identity.describe(crops.contiguous(memory_format=torch.channels_last))
        return F.normalize(embedded.float(), dim=1) * EMBEDDING**0.5, pooled.float()

    def missing(
        self, faces: torch.Tensor, shown: torch.Tensor, who: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """One pass: the correction of z (N, L, D), from faces and those drawn so far, both (N, 3, R, R).

        who: `recognise(faces)`, where it is known.
        """
        pair = torch.cat([faces, shown.to(faces.dtype)], 1).permute(0, 2, 3, 1)
        z, read = self.slots(self.body(pair))
        return z + self.told(faces, shown, read, who)

    def told(
        self, faces: torch.Tensor, shown: torch.Tensor, read: torch.Tensor,
        who: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """What the identity says of z (N, L, D); read: (N, C) of `slots`; the rest as for `missing`."""
        embedded, pooled = self.recognise(faces) if who is None else who
        with torch.no_grad():
            difference = embedded - self.recognise(shown)[0]
        return self.mix(torch.cat([embedded, difference, pooled, read], 1)).float().view(len(faces), self.n_latent, -1)

    def slots(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The body's maps -> what they say of z (N, L, D), and the mean (N, C) of the smallest map of the pyramid."""
        kept, above = [], None
        for x, lateral, smooth in zip(maps[:0:-1], list(self.lateral)[::-1], list(self.smooth)[::-1], strict=True):
            x = lateral(x)
            if above is not None:
                x = x + above.repeat_interleave(2, 1).repeat_interleave(2, 2)
            above = x + F.leaky_relu(smooth(x.permute(0, 3, 1, 2)), 0.2).permute(0, 2, 3, 1)
            kept.append(above)
        base = self.styles[0](kept[0]).float()
        others = [base + self.styles[i](kept[_level(i)]).float() for i in range(1, self.n_latent)]
        return torch.stack([base, *others], 1), kept[0].mean((1, 2))

    def draw(self, z: torch.Tensor) -> torch.Tensor:
        """z (N, L, D), not yet bounded -> drawn faces (N, 3, R, R)."""
        return self._generator[0](self.to_w(z)).clamp(-1, 1)

    def to_w(self, z: torch.Tensor) -> torch.Tensor:
        """z (N, L, D), not yet bounded -> codes (N, L, D)."""
        with torch.autocast(z.device.type, enabled=False):
            return self._generator[0].codes.to_w(soft_bound(z.float()))

    def read(
        self, faces: torch.Tensor, passes: int, who: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """z (N, L, D) after `passes`, before the bound, and the faces drawn from it; 0 passes: the mean face.

        who: `recognise(faces)`, where it is known.
        """
        z = torch.zeros(1, self.n_latent, self._generator[0].style_dim, device=faces.device)
        z, shown = z.expand(len(faces), -1, -1), self.draw(z).expand(len(faces), -1, -1, -1)
        if passes and who is None:
            who = self.recognise(faces)
        for _ in range(passes):
            z = z + self.missing(faces, shown, who)
            shown = self.draw(z)
        return z, shown

    def compared(self, faces: torch.Tensor) -> torch.Tensor:
        """Faces (N, 3, R, R) -> numbers (N, M) whose squared distance compares two faces: pixels, LPIPS by
        `perception`, and identity."""
        parts = [x.flatten(1) * PERCEIVED**0.5 for x in self.perception(faces)]
        parts.append(faces.flatten(1) * (SQUARED / faces[0].numel()) ** 0.5)
        parts.append(self.recognise(faces)[0] * (IDENTITY / 2 / EMBEDDING) ** 0.5)
        return torch.cat([x.float() for x in parts], 1)

    def refine(self, faces: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """z (N, L, D) -> z that shows faces (N, 3, R, R) better, by `steps` gradient steps."""
        with fast_autocast(faces.device):
            with torch.no_grad():
                wanted = self.compared(faces)

            def distance(z: torch.Tensor) -> torch.Tensor:
                shown = self._generator[0](self.to_w(z))
                beyond = (z.square().mean(2) - 1).relu().mean(1) + (z.abs() - 3).relu().sum((1, 2))
                return ((self.compared(shown) - wanted).square().sum(1) + LENGTH * beyond) / 2

            return descend(distance, z, self.curvature, steps)

    def forward(self, faces: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """steps: of `refine`; None: as many as the buffer says. Gradients reach the faces only with 0 steps."""
        if faces.ndim != 4 or faces.shape[1] != 3:
            raise ValueError(f"faces must be (N, 3, R, R), got {tuple(faces.shape)}")
        who = self.recognise(faces)
        z, shown = self.read(faces, int(self.passes) - 1, who)
        z = z + self.missing(faces, shown, who)
        steps = int(self.steps) if steps is None else steps
        if steps:
            parts = zip(faces.split(TOGETHER), z.split(TOGETHER), strict=True)
            z = torch.cat([self.refine(*part, steps) for part in parts])
        return self.to_w(z)


def build_encoder(preset: Preset, generator: nn.Module) -> Encoder | LiteEncoder:
    """The encoder of a preset, without weights; generator: the one it inverts."""
    return LiteEncoder(preset, generator) if preset.encoder == "lite" else Encoder(preset)
