"""Eigenfaces (Turk and Pentland, 1991): a linear map between codes and small faces, under the small generators.

Ours, not the paper's. A StyleGAN2 that saw a hundred thousand images, not 25 million, keeps less of a person than as
many principal components do: measured at 64 px on validation faces, an encoder and generator trained for hours gave
cosines of 0.3 with unseen recognisers, 512 components give 0.78. So the generator of a preset with `base` slots draws
the components' face first, at 32 px, and its convolutions see it at every scale from 4 px on, correct it and add what
is finer, like a network that repairs old photographs; the encoder reads the components and adds the rest. Slot 0 weighs
the first D components, slot i (as an offset from slot 0, like e4e's codes) the i-th further D. So w, the same in every
slot, is a face of D components, and W+ adds detail.

Codes are whitened: a component's weight in faces has variance 1. An encryptor turns `inner`, directions that change
the inside of the face more than its rim, and none of the dozen first components: so pose, light, the colour of the
skin, hair and background stay the photo's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from riddle.models.layers import EqualConv2d

LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
BLUE, RED = 1.772, 1.402  # its colour differences: B = Y + 1.772 Cb, R = Y + 1.402 Cr
KEPT = 12 / 1024  # share of the components, the first ones, that are never turned
INNER = 0.75  # share of the other directions that are; see notebook 04 for what other shares gave
BLOCKS = 6  # parts of the directions, from the middle of the face outwards; partners are of one part
OVAL = (0.0, 0.05, 0.62, 0.78)  # centre and half axes of the face in the tight framing, the crop's side being 2


def inner_directions(slots: int, style_dim: int) -> int:
    """K, how many directions an encryptor turns: even."""
    count = slots * style_dim
    return int((count - round(count * KEPT)) * INNER) // 2 * 2


class FacePyramid(nn.Module):
    """What a generator's convolutions see of a face at 32 px: (N, 3, 32, 32) -> {side: (N, C, side, side)}, 4 to 32 px.

    channels: {side: C} of the generator. What is seen starts at zero.
    """

    WIDTHS = {32: 64, 16: 96, 8: 128, 4: 128}

    def __init__(self, channels: dict[int, int]):
        super().__init__()
        widths = list(self.WIDTHS.values())
        self.stem = EqualConv2d(3, widths[0], 3)
        self.down = nn.ModuleList(
            nn.Sequential(EqualConv2d(a, b, 3, down=True), EqualConv2d(b, b, 3))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.shown = nn.ModuleList(EqualConv2d(c, channels[s], 1, activate=False) for s, c in self.WIDTHS.items())
        for layer in self.shown:
            nn.init.zeros_(layer.weight)

    def forward(self, face: torch.Tensor) -> dict[int, torch.Tensor]:
        levels = [self.stem(face.contiguous(memory_format=torch.channels_last))]
        for down in self.down:
            levels.append(down(levels[-1]))
        return {x.shape[2]: show(x) for x, show in zip(levels, self.shown, strict=True)}


class Eigenfaces(nn.Module):
    """Codes (N, L, D) -> faces (N, 3, 32, 32), and faces -> codes of the first slots.

    Pictures are luma at 32 px and two colour differences at 16 px, 1,536 numbers. All of it is fixed (buffers): `fit`
    finds it from faces. `features` shows the face to the generator's convolutions.
    """

    SIDE = 32
    SIZE = SIDE**2 + 2 * (SIDE // 2) ** 2

    def __init__(self, slots: int, style_dim: int, channels: dict[int, int] | None = None):
        """channels: {side: C} of the generator; None for an encoder, which only reads."""
        super().__init__()
        self.slots, self.style_dim = slots, style_dim
        self.register_buffer("mean", torch.zeros(self.SIZE))
        self.register_buffer("basis", torch.zeros(self.SIZE, slots * style_dim))  # orthonormal columns
        self.register_buffer("deviation", torch.ones(slots * style_dim))
        if channels:
            self.to_features = nn.Parameter(torch.zeros(channels[self.SIDE], 3))
            self.pyramid = FacePyramid(channels)
            self.register_buffer("inner", torch.zeros(slots * style_dim, inner_directions(slots, style_dim)))

    def features(self, face: torch.Tensor) -> dict[int, torch.Tensor]:
        """What the convolutions see of the face: (N, 3, 32, 32) -> {side: (N, C, side, side)}, 4 to 32 px."""
        seen = self.pyramid(face)
        colours = F.conv2d(face.contiguous(memory_format=torch.channels_last), self.to_features[:, :, None, None])
        return seen | {self.SIDE: seen[self.SIDE] + colours}

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """Codes (N, L, D) -> faces (N, 3, 32, 32), about [-1, 1]."""
        with torch.autocast(w.device.type, enabled=False):
            w = w.float()
            weights = torch.cat([w[:, :1], w[:, 1 : self.slots] - w[:, :1]], 1).flatten(1)
            return self._picture(F.linear(weights * self.deviation, self.basis, self.mean))

    def read(self, faces: torch.Tensor) -> torch.Tensor:
        """Faces (N, 3, R, R), R at least 32 -> the whitened components (N, slots, D)."""
        with torch.autocast(faces.device.type, enabled=False):
            weights = (self._vector(faces.float()) - self.mean) @ self.basis / self.deviation
        return weights.unflatten(1, (self.slots, self.style_dim))

    @classmethod
    def _vector(cls, faces: torch.Tensor) -> torch.Tensor:
        """Faces (N, 3, R, R) -> (N, SIZE); colour weighs as if it had all 32 x 32 pixels."""
        small = F.adaptive_avg_pool2d(faces, cls.SIDE)
        y = torch.einsum("c,nchw->nhw", LUMA.to(small), small)
        colour = torch.stack([(small[:, 2] - y) / BLUE, (small[:, 0] - y) / RED], 1)
        return torch.cat([y.flatten(1), 2 * F.avg_pool2d(colour, 2).flatten(1)], 1)

    @classmethod
    def _picture(cls, vector: torch.Tensor) -> torch.Tensor:
        """The inverse, up to the colours' resolution."""
        y = vector[:, : cls.SIDE**2].unflatten(1, (cls.SIDE, cls.SIDE))
        colour = vector[:, cls.SIDE**2 :].unflatten(1, (2, cls.SIDE // 2, cls.SIDE // 2)) / 2
        colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
        blue, red = y + BLUE * colour[:, 0], y + RED * colour[:, 1]
        green = (y - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
        return torch.stack([red, green, blue], 1)

    @torch.no_grad()
    def fit(self, faces: torch.Tensor, batch: int = 1024) -> None:
        """Principal components of uint8 faces (N, R, R, 3) and their mirror images. Raises ValueError for too few."""
        wanted = self.slots * self.style_dim
        if 2 * len(faces) <= wanted:
            raise ValueError(f"{len(faces)} faces and their mirror images do not span {wanted} components; give more")
        rows = []
        for part in faces.split(batch):
            x = part.permute(0, 3, 1, 2).float().div(127.5).sub(1)
            rows += [self._vector(x), self._vector(x.flip(3))]
        x = torch.cat(rows)
        mean = x.mean(0)
        x -= mean
        variance, vectors = torch.linalg.eigh(x.T @ x / len(x))
        self.mean.copy_(mean)
        self.basis.copy_(vectors.flip(1)[:, :wanted])
        self.deviation.copy_(variance.flip(0)[:wanted].clamp_min(1e-8).sqrt())
        if hasattr(self, "inner"):
            self.find_inner()

    @torch.no_grad()
    def find_inner(self) -> None:
        """Fill `inner`: orthonormal directions of whitened weights, (S D, K), without the first components, by the
        share of their energy that falls inside the oval of a face (generalised eigenvectors).

        `mirror` turns column j towards column j + K/2: partners change pictures about as much and in about the same
        place, so that a turned face keeps its sharpness, and what lies behind it does not end up in it.
        """
        kept = round(self.slots * self.style_dim * KEPT)
        ticks = (torch.arange(self.SIDE) + 0.5) * 2 / self.SIDE - 1
        y, x = torch.meshgrid(ticks, ticks, indexing="ij")
        inside = torch.sigmoid(6 * (1 - ((x - OVAL[0]) / OVAL[2]) ** 2 - ((y - OVAL[1]) / OVAL[3]) ** 2))
        colour = F.avg_pool2d(inside[None], 2).flatten()
        inside = torch.cat([inside.flatten(), colour, colour]).to(self.basis).double()
        pictures = (self.basis * self.deviation).double()[:, kept:]  # of one unit in each direction
        within = pictures.T @ (inside[:, None] * pictures)
        energy = self.deviation.double().square()[kept:]
        scale = (energy + 1e-4 * energy.mean()).rsqrt()
        share, vectors = torch.linalg.eigh(scale[:, None] * within * scale)
        best = torch.linalg.qr(scale[:, None] * vectors.flip(1)[:, : self.inner.shape[1]])[0]
        ordered = []
        for part in best.chunk(BLOCKS, 1):
            _, turn = torch.linalg.eigh(part.T @ (energy[:, None] * part))
            ordered.append(part @ turn.flip(1))
        ordered = torch.cat(ordered, 1)
        self.inner.zero_()
        self.inner[kept:] = torch.cat([ordered[:, ::2], ordered[:, 1::2]], 1).to(self.inner)


def to_offsets(w: torch.Tensor) -> torch.Tensor:
    """Codes (N, L, D) -> slot 0, and the other slots less slot 0: whitened weights, in the slots of a base."""
    return torch.cat([w[:, :1], w[:, 1:] - w[:, :1]], 1)


def from_offsets(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_offsets`."""
    return torch.cat([x[:, :1], x[:, 1:] + x[:, :1]], 1)


def mirror(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Each pair (j, j + K/2) of x (..., K) mirrored in its plane at an angle (..., K/2): its own inverse."""
    first, second = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos * first + sin * second, sin * first - cos * second], -1)


def mirror_inside(x: torch.Tensor, inner: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Centred offsets x (N, L, D) mirrored in the directions `inner` (S D, K) alone, at angles (N, K/2)."""
    slots = len(inner) // x.shape[2]
    weights = x[:, :slots].flatten(1) @ inner
    change = (mirror(weights, angle) - weights) @ inner.T
    return torch.cat([x[:, :slots] + change.unflatten(1, (slots, -1)), x[:, slots:]], 1)


def match_mapping(generator: nn.Module, codes: torch.Tensor, steps: int = 300, seed: int = 0) -> float:
    """Teach a mapping network the distribution of codes (N, D): covariance and sliced Wasserstein distance.

    Half of the lines on which it is compared weigh each component by its deviation in pictures, so that light and
    colour, a few components, come right as well as detail. A start for adversarial training: without it the first
    samples lie where no face is. Returns the last distance.
    """
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(generator.style.parameters(), lr=1.0, betas=(0.9, 0.99))
    n, dim, device = 1024, codes.shape[1], codes.device
    scale = generator.base.deviation[:dim].sqrt()
    weight = torch.outer(scale, scale) / scale.square().mean()
    loss, covariance = torch.tensor(math.inf), codes.T.cov()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1.0 * (1 - step / steps)
        z = torch.randn(n, dim, generator=draw).to(device)
        lines = torch.randn(dim, 256, generator=draw).to(device)
        lines[:, ::2] *= generator.base.deviation[:dim, None]
        lines = lines / lines.norm(dim=0)
        rows = torch.randint(len(codes), (n,), generator=draw).to(device)
        made, real = generator.map(z), codes[rows]
        loss = ((made @ lines).sort(0).values - (real @ lines).sort(0).values).square().mean()
        spread = (weight * (made.T.cov() - covariance).square()).sum(1).mean()
        total = loss + 0.3 * spread + made.mean(0).square().mean()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    optimiser.zero_grad()
    return loss.item()
