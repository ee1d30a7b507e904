"""The frozen networks that the encryptor is trained against: generator, F_e, F_p and F_s of the paper, section 3.2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from riddle.losses import PerceptualFeatures
from riddle.models.bisenet import BiSeNet
from riddle.models.parsing import ParsingNet, parts
from riddle.networks import Synthesis, build_generator, fill_generator
from riddle.presets import Preset

Features = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Judges:
    """The frozen networks of the losses, as functions of faces (N, 3, R, R)."""

    embed: Features  # F_e: (N, E) of unit length
    perceive: Callable[[torch.Tensor], list[torch.Tensor]] | None = None  # F_p: losses.PerceptualFeatures
    parse: Features | None = None  # F_s: (N, P, R, R), the parts of eq. 8


def load_network(network: nn.Module, path: str | Path, part: str) -> nn.Module:
    """Fill a network from safetensors, from a run's state.pt (`part` of its networks) or a port's {part: state}.

    Raises FileNotFoundError, or KeyError naming what the file holds instead.
    """
    from riddle.weights import load_tensors

    if str(path).endswith(".safetensors"):
        state = load_tensors(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("networks", state)
        if part not in state:
            raise KeyError(f"{path} holds no {part!r} but {', '.join(map(str, list(state)[:6]))}; pass another file")
        state = state[part]
    network.load_state_dict(state)
    return network


def frozen_parser(preset: Preset, path: str | None, device: torch.device) -> Features:
    """F_s: faces (N, 3, R, R) -> logits of eq. 8's parts; path, or None for the preset's bundled weights (FFHQ framing:
    the published parser). Raises WeightsMissingError."""
    from riddle.weights import bundled, find

    if preset.name.startswith("ffhq") and path is None:  # the paper's own scale: the public parser
        net = BiSeNet().load_published(torch.load(find("bisenet"), map_location="cpu", weights_only=True))
    else:
        net = load_network(ParsingNet(), path or bundled(preset.name, "parser"), "average")
    net = net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return lambda faces: parts(net(faces))


def frozen_networks(
    preset: Preset, generator: str | Path | None, device: torch.device, parser: str | None = None, parse: bool = True
) -> tuple[Synthesis, Judges, float]:
    """The generator, the loss networks and F_e's threshold; paths, or None for the preset's bundled weights.

    parse: False leaves out F_s. Raises WeightsMissingError.
    """
    from riddle.faces import recognizers
    from riddle.weights import bundled, load_lpips, load_tensors

    g = fill_generator(build_generator(preset), load_tensors(generator or bundled(preset.name, "generator"))).to(device)
    perceive = PerceptualFeatures(load_lpips("squeeze")).to(device, memory_format=torch.channels_last)
    judge = recognizers.load(preset.identity, device=str(device))
    judges = Judges(
        embed=judge.from_crop,
        perceive=perceive.eval().requires_grad_(False),
        parse=frozen_parser(preset, parser, device) if parse else None,
    )
    return g.eval().requires_grad_(False), judges, judge.threshold
