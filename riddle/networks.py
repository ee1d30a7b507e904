"""A preset's networks, built and filled: from the bundled weights, a folder, or a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from riddle import zoo
from riddle.models.bisenet import BiSeNet
from riddle.models.encryptor import CodeModel, build_encryptor
from riddle.models.inversion import build_encoder
from riddle.models.mobilestylegan import MobileStyleGAN
from riddle.models.parsing import ParsingNet
from riddle.models.stylegan2 import Generator
from riddle.presets import CONTROLS, VARIANTS, Preset
from riddle.weights import published_generator

Synthesis = Generator | MobileStyleGAN
_ARCHITECTURES = {variant.file: variant.arch for variant in VARIANTS.values()}


def build_generator(preset: Preset) -> Synthesis:
    """The generator of a preset: a StyleGAN2 without weights, or the wheel's MobileStyleGAN without trained cuts.

    Raises WeightsMissingError without the wheel.
    """
    return published_generator() if preset.generator == "mobilestylegan" else Generator.of(preset)


def fill_generator(generator: Synthesis, state: dict[str, torch.Tensor]) -> Synthesis:
    """Load weights: all of a StyleGAN2, or what a MobileStyleGAN adds to the wheel's. Returns the generator.

    Statistics of codes that the weights lack are measured. Raises RuntimeError for weights of another shape.
    """
    own = set(generator.own_state() if isinstance(generator, MobileStyleGAN) else generator.state_dict())
    missing, unexpected = generator.load_state_dict(state, strict=False)
    missing = [k for k in missing if k in own and not k.startswith("codes.")]
    if missing or unexpected:
        raise RuntimeError(f"missing {missing[:3]}, unexpected {unexpected[:3]}")
    if not any(k.startswith("codes.") for k in state):
        generator.codes.measure(generator.map)
    return generator


def untrained(preset: Preset, part: str = "encryptor") -> dict[str, nn.Module]:
    """Networks of a preset without training, drawn from a fixed seed; part: which encryptor, as for `trained`."""
    torch.manual_seed(0)
    generator = build_generator(preset)
    generator.codes.measure(generator.map)
    encoder = build_encoder(preset, generator)
    arch = _ARCHITECTURES.get(part, "transformer")
    return {
        "generator": generator,
        "encoder": encoder,
        "encryptor": build_encryptor(preset, arch, generator.codes),
    }


def load_encryptor(preset: Preset, path: Path, generator: Synthesis) -> CodeModel:
    """An encryptor from its file, whose metadata name its kind. Raises ValueError for weights of another shape."""
    encryptor = build_encryptor(preset, zoo.load_metadata(path).get("kind", "transformer"), generator.codes)
    return _filled(encryptor, path, preset)


def control(preset: Preset, name: str, generator: Synthesis) -> CodeModel:
    """An encryptor of `CONTROLS`, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encryptor(preset, _ARCHITECTURES[name], generator.codes)


def _filled(network: nn.Module, path: Path, preset: Preset) -> nn.Module:
    with _named(path, preset):
        network.load_state_dict(zoo.load_tensors(path))
    return network


@contextmanager
def _named(path: Path, preset: Preset) -> Iterator[None]:
    """Turn torch's error about weights of another shape into one that names the file."""
    try:
        yield
    except RuntimeError as e:
        raise ValueError(f"the weights {path} do not fit preset {preset.name!r}: {str(e)[:300]}") from e


def trained(preset: Preset, folder: str | Path | None, part: str) -> dict[str, nn.Module | None]:
    """The networks of a preset with their weights, bundled or from a folder; "parser" is None where there is none.

    part: which encryptor; "untrained" and "reflection" are controls that no file holds. Raises WeightsMissingError,
    with the file, for what is not there; ValueError for weights
    of another shape.
    """

    def path(name: str) -> Path:
        if folder is None:
            return zoo.bundled(preset.name, name)
        file = Path(folder) / f"{name}.safetensors"
        if not file.is_file():
            remedy = f"put that file of preset {preset.name} there, or leave `weights` out"
            raise zoo.WeightsMissingError(name, f"{file} does not exist", remedy)
        return file

    encryptor_file = None if part in CONTROLS else path(part)
    generator = build_generator(preset)
    with _named(path("generator"), preset):
        fill_generator(generator, zoo.load_tensors(path("generator")))
    try:
        parser = _filled(BiSeNet() if preset.name.startswith("ffhq") else ParsingNet(), path("parser"), preset)
    except zoo.WeightsMissingError:
        parser = None  # only mask="parser" needs it, and says so
    return {
        "generator": generator,
        "encoder": _filled(build_encoder(preset, generator), path("encoder"), preset),
        "encryptor": control(preset, part, generator)
        if encryptor_file is None
        else load_encryptor(preset, encryptor_file, generator),
        "parser": parser,
    }
