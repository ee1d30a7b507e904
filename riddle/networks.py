"""A preset's networks, built and filled: from the bundled weights, a folder, or a seed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from riddle import zoo
from riddle.models.bisenet import BiSeNet
from riddle.models.encryptor import build_encryptor
from riddle.models.inversion import Encoder
from riddle.models.parsing import ParsingNet
from riddle.models.stylegan2 import Generator
from riddle.presets import Preset


def untrained(preset: Preset) -> dict[str, nn.Module]:
    """Networks of a preset without training, drawn from a fixed seed."""
    torch.manual_seed(0)
    generator = Generator.of(preset)
    w = generator.map(torch.randn(1024, preset.style_dim)).detach()
    encryptor = build_encryptor(preset, w_mean=w.mean(0), w_std=w.std(0)).use_directions(generator)
    return {"generator": generator, "encoder": Encoder(preset), "encryptor": encryptor}


def trained(preset: Preset, folder: str | Path | None, part: str) -> dict[str, nn.Module | None]:
    """The networks of a preset with their weights, bundled or from a folder; "parser" is None where there is none.

    part: which encryptor. Raises WeightsMissingError, with the file, for what is not there; ValueError for weights
    of another shape.
    """

    def tensors(name: str) -> dict[str, torch.Tensor]:
        if folder is None:
            return zoo.load_tensors(zoo.bundled(preset.name, name))
        path = Path(folder) / f"{name}.safetensors"
        if not path.is_file():
            remedy = f"put that file of preset {preset.name} there, or leave `weights` out"
            raise zoo.WeightsMissingError(name, f"{path} does not exist", remedy)
        return zoo.load_tensors(path)

    def fill(network: nn.Module, name: str, state: dict[str, torch.Tensor] | None = None) -> nn.Module:
        try:
            network.load_state_dict(tensors(name) if state is None else state)
        except RuntimeError as e:
            raise ValueError(f"the weights {name!r} do not fit preset {preset.name!r}: {e}") from e
        return network

    state = tensors(part)
    arch = "mlp" if any(k.startswith("layers.") for k in state) else "transformer"
    try:
        parser = fill(ParsingNet() if preset.framing == "tight" else BiSeNet(), "parser")
    except zoo.WeightsMissingError:
        parser = None  # only mask="parser" needs it, and says so
    generator = Generator.of(preset)
    fill(generator, "generator")
    return {
        "generator": generator,
        "encoder": fill(Encoder(preset), "encoder"),
        "encryptor": fill(build_encryptor(preset, arch), part, state).use_directions(generator),
        "parser": parser,
    }
