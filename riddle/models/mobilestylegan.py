"""MobileStyleGAN (Belousov, 2021): a small synthesis network, distilled from StyleGAN2-FFHQ and fed by its mapping.

    g = riddle.networks.published_generator()
    face = g(g.broadcast(g.map(z)))              # (N, 3, 128, 128); side=1024 for the whole network

Each block doubles the side by an inverse Haar transform; two modulated convolutions follow, each depthwise 3x3 and
pointwise. The published network has one picture layer, at the end. `Cut` gives smaller pictures: it repeats the two
blocks that end at half the side and adds a picture layer there, all trained here (riddle.training.generator).

Slots follow StyleGAN2, so a code is a StyleGAN2-FFHQ W+ code: slot 0 is the 4 px layer; of block i (0 to 6), slot
2i + 1 is its upsampling and first convolution, 2i + 2 its second, 2i + 3 its picture.

Tensors are (N, H, W, C): a pointwise convolution is then a matrix product without a copy, which on a CPU is three
times as fast as the same network on (N, C, H, W).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from riddle.models.codes import FaceGenerator, GaussianCodes

CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}  # of the features at each side
DIM = 512  # D, width of a code
CUTS = (128,)  # sides with a picture layer of their own, trained here
TUNED = 2  # blocks of a cut
SIDES = (128, 256, 512, 1024)  # of the faces that it draws
# Haar synthesis: a row per coefficient (ll, lh, hl, hh), a column per pixel (00, 01, 10, 11)
HAAR = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))


def haar_matrix(channels: int) -> torch.Tensor:
    """(4C, 4C): ll of all channels, then lh, hl, hh channel by channel -> the four pixels of all channels."""
    coefficients = torch.tensor(HAAR).T.contiguous() / 2
    matrix = torch.kron(coefficients, torch.eye(channels)).reshape(4 * channels, 4, channels)  # pixel <- coefficient
    return torch.cat([matrix[:, 0], matrix[:, 1:].transpose(1, 2).flatten(1)], 1)


def unfold_pixels(x: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 4C), pixel by pixel -> (N, 2H, 2W, C)."""
    n, h, w, c = x.shape
    return x.view(n, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c // 4)


class Modulation(nn.Module):
    """Scale each channel of x (N, H, W, C) by an affine map of the code w (N, D)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels, dim) / dim**0.5), nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * F.linear(w, self.weight, self.bias).to(x.dtype)[:, None, None]


class StyledConv(nn.Module):
    """Modulate, convolve, add the fixed noise map and the bias, leaky ReLU 0.2.

    The convolution is depthwise 3x3, then pointwise; the first layer's is a full 3x3. Demodulation does not depend on
    the code here: it is part of the published weights.
    """

    def __init__(self, c_in: int, c_out: int, side: int, dim: int, separable: bool = True):
        super().__init__()
        self.modulation = Modulation(c_in, dim)
        self.depthwise = nn.Parameter(torch.randn(c_in, 1, 3, 3) / 3) if separable else None
        kernel = torch.randn(c_out, c_in) if separable else torch.randn(c_out, c_in, 3, 3) / 3
        self.weight = nn.Parameter(kernel / c_in**0.5)
        self.noise, self.bias = nn.Parameter(torch.zeros(1, side, side, 1)), nn.Parameter(torch.zeros(c_out))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = self.modulation(x, w).permute(0, 3, 1, 2)
        if self.depthwise is None:
            y = F.conv2d(y, self.weight.to(y.dtype), self.bias.to(y.dtype), padding=1).permute(0, 2, 3, 1)
        else:
            y = F.conv2d(y, self.depthwise.to(y.dtype), padding=1, groups=x.shape[3]).permute(0, 2, 3, 1)
            y = F.linear(y, self.weight, self.bias)
        return F.leaky_relu_(y + self.noise.to(y.dtype), 0.2)


class Upsample(nn.Module):
    """Modulate, then the inverse Haar transform: (N, S, S, C) -> (N, 2S, 2S, C / 4)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.modulation = Modulation(channels, dim)
        self.register_buffer("haar", haar_matrix(channels // 4), persistent=False)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return unfold_pixels(F.linear(self.modulation(x, w), self.haar.to(x.dtype)))


class Block(nn.Module):
    """Features (N, S / 2, S / 2, C) -> (N, S, S, C'), under two codes (N, D)."""

    def __init__(self, c_in: int, c_out: int, side: int, dim: int):
        super().__init__()
        self.up = Upsample(c_in, dim)
        self.conv1, self.conv2 = StyledConv(c_in // 4, c_out, side, dim), StyledConv(c_out, c_out, side, dim)

    def forward(self, x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(self.up(x, first), first), second)


class Picture(nn.Module):
    """Features (N, S, S, C) and a code (N, D) -> picture (N, 3, 2S, 2S), about [-1, 1], in float32."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.modulation = Modulation(channels, dim)
        self.weight, self.bias = nn.Parameter(torch.randn(12, channels) / channels**0.5), nn.Parameter(torch.zeros(12))
        self.register_buffer("haar", haar_matrix(3), persistent=False)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        coefficients = F.linear(self.modulation(x, w), self.weight, self.bias).float()
        with torch.autocast(x.device.type, enabled=False):
            return unfold_pixels(F.linear(coefficients, self.haar)).permute(0, 3, 1, 2)


class Cut(nn.Module):
    """The end of a smaller network: the last blocks, whose features reach half the picture's side, and a picture layer.

    first: index of its first block in the whole network, whose copies the blocks are.
    """

    def __init__(self, blocks: Sequence[Block], first: int, channels: int, dim: int):
        super().__init__()
        self.first, self.blocks = first, copy.deepcopy(nn.ModuleList(blocks))
        self.picture = Picture(channels, dim)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """x: features before the first block; w: (N, L, D) -> (N, 3, S, S)."""
        for i, block in enumerate(self.blocks, self.first):
            x = block(x, _slot(w, 2 * i + 1), _slot(w, 2 * i + 2))
        return self.picture(x, _slot(w, 2 * (self.first + len(self.blocks)) + 1))


def _slot(w: torch.Tensor, index: int) -> torch.Tensor:
    """Slot `index` of codes (N, L, D), or their last one: slots that were not given take its code."""
    return w[:, min(index, w.shape[1] - 1)]


class MobileStyleGAN(FaceGenerator):
    """Mapping and synthesis. Codes are (N, L, D), L = 10 slots at 128 px; more slots, up to 18, are read where given.

    cuts: sides with a picture layer of their own; channels: {side: channels of the features}.
    """

    resolution, n_latent, style_dim = 128, 10, DIM

    def __init__(self, cuts: Sequence[int] = CUTS, channels: Mapping[int, int] = CHANNELS, dim: int = DIM):
        super().__init__()
        self.style_dim = dim
        self.mapping = nn.ModuleList(nn.Linear(dim, dim) for _ in range(8))
        self.codes = GaussianCodes(dim)
        self.input = nn.Parameter(torch.randn(1, 4, 4, channels[4]))
        self.first = StyledConv(channels[4], channels[4], 4, dim, separable=False)
        sides = sorted(channels)[1:]
        self.blocks = nn.ModuleList(Block(channels[s // 2], channels[s], s, dim) for s in sides)
        self.picture = Picture(channels[sides[-1]], dim)
        self.cuts = nn.ModuleDict()
        for side in cuts:
            last = sides.index(side // 2)
            first = max(last + 1 - TUNED, 0)
            self.cuts[str(side)] = Cut(self.blocks[first : last + 1], first, channels[side // 2], dim)

    def map(self, z: torch.Tensor) -> torch.Tensor:
        """StyleGAN2's mapping: z (N, D), standard normal -> w (N, D). In float32 always."""
        with torch.autocast(z.device.type, enabled=False):
            x = z.float() * torch.rsqrt(z.float().square().mean(1, keepdim=True) + 1e-8)
            for layer in self.mapping:
                x = F.leaky_relu(layer(x), 0.2) * math.sqrt(2)
        return x

    def features(self, w: torch.Tensor, blocks: int) -> torch.Tensor:
        """Codes (N, L, D) -> features (N, S, S, C) after so many blocks of the published network, S = 4 * 2^blocks."""
        x = self.input.expand(len(w), -1, -1, -1)
        if torch.is_autocast_enabled(w.device.type):
            x = x.to(torch.get_autocast_dtype(w.device.type))
        x = self.first(x, w[:, 0])
        for i in range(blocks):
            x = self.blocks[i](x, _slot(w, 2 * i + 1), _slot(w, 2 * i + 2))
        return x

    def forward(self, w: torch.Tensor, side: int | None = None) -> torch.Tensor:
        """Codes (N, L, D) -> faces (N, 3, side, side), about [-1, 1].

        side: 128 (the default), 256, 512 or 1024; 256 and 512 are means over pixels of 1024. Slots from 10 on take
        slot 9's code unless w has them. Raises ValueError for other shapes and sides.
        """
        side = self.resolution if side is None else side
        if w.ndim != 3 or not self.n_latent <= w.shape[1] <= 18 or w.shape[2] != self.style_dim:
            raise ValueError(f"codes must be (N, {self.n_latent}, {self.style_dim}), got {tuple(w.shape)}")
        if side not in SIDES:
            raise ValueError(f"no face of {side} px; choose one of {', '.join(map(str, SIDES))}")
        if str(side) in self.cuts:
            cut = self.cuts[str(side)]
            return cut(self.features(w, cut.first), w)
        blocks = len(self.blocks)
        faces = self.picture(self.features(w, blocks), _slot(w, 2 * blocks + 1))
        return faces if side == faces.shape[-1] else F.adaptive_avg_pool2d(faces, side)

    def load_published(self, mapping: Mapping[str, torch.Tensor], synthesis: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of the published network; both: {name: constant}, in the order of its OpenVINO file.

        Cuts start from the published blocks. Raises KeyError or RuntimeError for another network.
        """
        state = published_state(mapping, synthesis, len(self.blocks))
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [k for k in missing if not k.startswith(("cuts.", "codes."))]
        if missing or unexpected:
            raise KeyError(f"this is no MobileStyleGAN: {', '.join([*missing, *unexpected][:4])}")
        for cut in self.cuts.values():
            cut.blocks.load_state_dict(self.blocks[cut.first : cut.first + len(cut.blocks)].state_dict())

    def own_state(self) -> dict[str, torch.Tensor]:
        """The state that is stored: the cuts and the statistics of codes; the rest is the published network."""
        return {k: v for k, v in self.state_dict().items() if k.startswith(("cuts.", "codes."))}


def published_state(
    mapping: Mapping[str, torch.Tensor], synthesis: Mapping[str, torch.Tensor], blocks: int
) -> dict[str, torch.Tensor]:
    """The state of a `MobileStyleGAN` from the constants of the two published files, in their order.

    Names survive for modulations, depthwise kernels and biases. The pointwise kernel and the noise map of a layer were
    renamed by the converter; they are the last two maps before the layer's bias.
    """
    names, state = list(synthesis), {"input": synthesis["m.input.input"].permute(0, 2, 3, 1)}

    def modulation(name: str, target: str, scaled: bool = True) -> None:
        weight, bias = synthesis[f"{name}.modulation.weight"], synthesis[f"{name}.modulation.bias"].flatten()
        later = names[names.index(f"{name}.modulation.bias") + 1 :]
        scale = synthesis[later[0]].item() if scaled else 1.0  # the equalised learning rate of the layer's kernel
        state[f"{target}.modulation.weight"], state[f"{target}.modulation.bias"] = weight * scale, bias * scale

    def convolution(name: str, target: str) -> None:
        modulation(f"{name}.conv", target)
        before = [synthesis[n] for n in names[: names.index(f"{name}.bias")]]
        maps = [v for v in before if v.ndim == 4 and v.numel() > 1]
        kernel, noise = maps[-2], maps[-1]
        depthwise = synthesis.get(f"{name}.conv.weight_dw")
        if depthwise is not None:
            state[f"{target}.depthwise"] = depthwise.reshape(-1, 1, 3, 3)
            kernel = kernel.flatten(1)
        state[f"{target}.weight"] = kernel
        state[f"{target}.noise"] = noise.permute(0, 2, 3, 1)
        state[f"{target}.bias"] = synthesis[f"{name}.bias"].flatten()

    convolution("m.conv1", "first")
    for i in range(blocks):
        modulation(f"m.layers.{i}.up", f"blocks.{i}.up", scaled=False)
        convolution(f"m.layers.{i}.conv1", f"blocks.{i}.conv1")
        convolution(f"m.layers.{i}.conv2", f"blocks.{i}.conv2")
    last = f"m.layers.{blocks - 1}.to_img"
    modulation(f"{last}.conv", "picture")
    state["picture.weight"] = synthesis[f"{last}.conv.weight"].flatten(1)
    state["picture.bias"] = synthesis[f"{last}.bias"].flatten()
    dense = [v for v in mapping.values() if v.ndim in (1, 2) and v.numel() >= DIM]
    for k, (weight, bias) in enumerate(zip(dense[::2], dense[1::2], strict=True)):
        state[f"mapping.{k}.weight"], state[f"mapping.{k}.bias"] = weight, bias
    return state
