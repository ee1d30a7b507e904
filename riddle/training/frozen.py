"""Inputs that training does not change: frozen networks, and drawn codes and passwords."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from riddle.faces import recognizers
from riddle.losses import PerceptualFeatures
from riddle.models.bisenet import BiSeNet
from riddle.models.inversion import Encoder, LiteEncoder, build_encoder
from riddle.models.parsing import ParsingNet, parts
from riddle.networks import Synthesis, build_generator, fill_generator
from riddle.passwords import to_password
from riddle.presets import Preset
from riddle.weights import bundled, find, load_lpips, load_tensors

Features = Callable[[torch.Tensor], torch.Tensor]
SPREAD = 0.4  # std of the differences between slots, in z; photos inverted by optimisation: 0.42


@dataclass
class LossNetworks:
    """The frozen networks of the losses (section 3.2), as functions of faces (N, 3, R, R)."""

    embed: Features  # F_e: (N, E) of unit length
    perceive: Callable[[torch.Tensor], list[torch.Tensor]] | None = None  # F_p: losses.PerceptualFeatures
    parse: Features | None = None  # F_s: (N, P, R, R), the parts of eq. 8
    threshold: float = 0.3  # cosine above which F_e takes two faces for one person


def frozen_generator(preset: Preset, path: str, device: torch.device | str) -> Synthesis:
    """A preset's generator with the weights of `path`, "" for the bundled ones. Raises WeightsMissingError."""
    state = load_tensors(path or bundled(preset.name, "generator"))
    generator = fill_generator(build_generator(preset), state, preset.borrows)
    return generator.to(device).eval().requires_grad_(False)


def frozen_encoder(preset: Preset, path: str, generator: Synthesis) -> Encoder | LiteEncoder:
    """The inversion, with the weights of `path`, "" for the bundled ones. Raises WeightsMissingError."""
    encoder = build_encoder(preset, generator)
    encoder.load_state_dict(load_tensors(path or bundled(preset.name, "encoder")))
    return encoder.to(generator.device, memory_format=torch.channels_last).eval().requires_grad_(False)


def frozen_parsing_net(preset: Preset, path: str, device: torch.device | str) -> ParsingNet | BiSeNet:
    """The parser, faces (N, 3, R, R) -> logits (N, 19, R, R).

    path: safetensors of a `ParsingNet`, "" for the preset's bundled weights, which at paper scale are the published
    parser's. Raises WeightsMissingError.
    """
    published = preset.name.startswith("ffhq") and not path
    net = BiSeNet() if published else ParsingNet()
    net.load_state_dict(load_tensors(find("bisenet") if published else path or bundled(preset.name, "parser")))
    return net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def frozen_parser(preset: Preset, path: str, device: torch.device) -> Features:
    """F_s: faces (N, 3, R, R) -> logits of eq. 8's parts. path: as for `frozen_parsing_net`."""
    net = frozen_parsing_net(preset, path, device)
    return lambda faces: parts(net(faces))


def frozen_networks(
    preset: Preset, generator: str, device: torch.device, parser: str | None = None, lpips: str = "squeeze"
) -> tuple[Synthesis, LossNetworks]:
    """The generator and the loss networks; paths, "" for the preset's bundled weights.

    parser: None leaves out F_s; lpips: network of F_p, as for `load_lpips`. Raises WeightsMissingError.
    """
    g = frozen_generator(preset, generator, device)
    f_e = recognizers.load(preset.identity, device=str(device))
    f_p = PerceptualFeatures.of(load_lpips(lpips)).to(device, memory_format=torch.channels_last)
    f_s = None if parser is None else frozen_parser(preset, parser, device)
    return g, LossNetworks(f_e.from_crop, f_p.eval().requires_grad_(False), f_s, f_e.threshold)


def draw_keys(generator: Synthesis, count: int, m: int, n: int) -> torch.Tensor:
    """Random passwords, all distinct: (count, m, n + 1, L, D); [:, :, 0] encrypt, the others are wrong."""
    z = torch.randn(count * m * (n + 1), generator.style_dim, device=generator.device)
    w = to_password(generator.codes, z, generator.n_latent)
    return w.reshape(count, m, n + 1, *w.shape[1:])


@torch.no_grad()
def draw_codes(generator: Synthesis, count: int, seed: int | None = None) -> torch.Tensor:
    """Codes (count, L, D) of faces of nobody, as inverted photos have them, for training without data (section 3.3).

    In turn: one code of the mapping network in all slots; two, mixed at a slot; one with small differences in every
    slot. seed: None draws from torch's own stream.
    """
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    z = torch.randn(2, count, generator.style_dim, generator=draw).to(generator.device)
    first, second = (generator.broadcast(generator.map(part)) for part in z)
    slots = torch.arange(generator.n_latent)[None, :, None]
    at = torch.randint(1, generator.n_latent, (count, 1, 1), generator=draw)
    mixed = torch.where((slots < at).to(first.device), first, second)
    differences = SPREAD * torch.randn(first.shape, generator=draw).to(first.device)
    near = generator.codes.to_w((generator.codes.to_gaussian(first) + differences) / (1 + SPREAD**2) ** 0.5)
    kind = torch.arange(count, device=first.device)[:, None, None] % 3
    return torch.where(kind == 0, first, torch.where(kind == 1, mixed, near))
