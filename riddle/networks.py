"""A preset's networks, built and filled: from the bundled weights, a folder, or a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from .models.bisenet import BiSeNet
from .models.critic import Critic
from .models.encryptor import CodeModel, FirstSlots, build_encryptor
from .models.inversion import build_encoder
from .models.mobilestylegan import MobileStyleGAN
from .models.parsing import ParsingNet
from .models.stylegan2 import Generator
from .presets import ALL_VARIANTS, CONTROLS, Preset, get
from .weights import WHEEL, WeightsMissingError, bundled, ir_constants, load_metadata, load_tensors, wheel_file

Synthesis = Generator | MobileStyleGAN
_ARCHITECTURES = {variant.file: variant.arch for variant in ALL_VARIANTS.values()}


def published_generator() -> MobileStyleGAN:
    """The wheel's network, with the statistics of its codes not yet measured and its cuts not yet trained.

    Raises WeightsMissingError, ValueError.
    """
    mapping, synthesis = (ir_constants(wheel_file(WHEEL, f"{name}Network.xml")) for name in ("Mapping", "Synthesis"))
    with torch.random.fork_rng(devices=[]):
        generator = MobileStyleGAN()
    generator.load_published(mapping, synthesis)
    return generator.eval().requires_grad_(False)


def build_generator(preset: Preset) -> Synthesis:
    """The generator of a preset: a StyleGAN2 without weights, or the wheel's MobileStyleGAN without trained cuts.

    Raises WeightsMissingError without the wheel.
    """
    return published_generator() if preset.generator == "mobilestylegan" else Generator.of(preset)


def fill_generator(generator: Synthesis, state: Mapping[str, torch.Tensor], borrows: str = "") -> Synthesis:
    """Load weights: all of a StyleGAN2, or what a MobileStyleGAN adds to the wheel's. Returns the generator.

    Statistics of codes that the weights lack are those of the preset `borrows`, or are measured: then a component may
    have the other sign, and no encryptor of another preset fits. Raises RuntimeError for weights of another shape.
    """
    if borrows and "codes.mean" not in state:
        lent = load_tensors(bundled(borrows, "generator"))
        state = {**state, **{k: v for k, v in lent.items() if k.startswith("codes.")}}
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
    return {
        "generator": generator,
        "encoder": build_encoder(preset, generator),
        "encryptor": build_encryptor(preset, _ARCHITECTURES.get(part, "transformer"), generator.codes),
    }


def trained(preset: Preset, folder: str | Path | None, part: str) -> dict[str, nn.Module | None]:
    """The networks of a preset with their weights, bundled or from a folder; None for a parser or critic without any.

    part: which encryptor: a file's name without its suffix, or one of `CONTROLS`, which no file holds. Raises
    WeightsMissingError for what is not there, ValueError for weights of another shape; both name the file.
    """
    if part not in CONTROLS:
        _file(preset, part, folder)  # a wrong name is reported before the others load
    generator = _filled(build_generator(preset), preset, "generator", folder)
    try:
        parser = BiSeNet() if preset.name.startswith("ffhq") else ParsingNet()
        parser = _filled(parser, preset, "parser", folder)
    except WeightsMissingError:
        parser = None  # only mask="parser" needs it, and says so
    encoder = _filled(build_encoder(preset, generator), preset, "encoder", folder)
    try:
        critic = _filled(Critic(encoder), preset, "critic", folder)
    except WeightsMissingError:
        critic = None  # then the choice among strangers does without
    return {
        "generator": generator,
        "encoder": encoder,
        "encryptor": load_encryptor(preset, part, generator, folder),
        "parser": parser,
        "critic": critic,
    }


def default_encryptor(preset: Preset, folder: str | Path | None = None) -> str:
    """The encryptor that a model has unless it is told: the preset's choice, or what stands in for it."""
    with suppress(WeightsMissingError):
        bundled(preset.name, preset.encryptor, folder)
        return preset.encryptor
    return preset.fallback or preset.encryptor


def load_encryptor(preset: Preset, part: str, generator: Synthesis, folder: str | Path | None = None) -> CodeModel:
    """An encryptor of a preset, as `trained` has it; its file's metadata name its kind. Raises the same."""
    if part in CONTROLS:
        with torch.random.fork_rng(devices=[]):  # the same at every call
            torch.manual_seed(0)
            return build_encryptor(preset, _ARCHITECTURES[part], generator.codes)
    owner, file = _file(preset, part, folder)
    network = build_encryptor(owner, load_metadata(file).get("kind", "transformer"), generator.codes)
    _fill(network, file, owner)
    return network if owner is preset else FirstSlots(network, preset.n_latent, generator.codes)


def _file(preset: Preset, part: str, folder: str | Path | None) -> tuple[Preset, Path]:
    """The weights of an encryptor, and the preset that they are of: this one, else the one from which it borrows."""
    try:
        return preset, bundled(preset.name, part, folder)
    except WeightsMissingError as e:
        if not preset.borrows or folder:
            raise
        try:
            return get(preset.borrows), bundled(preset.borrows, part)
        except WeightsMissingError:
            raise e from None


def _filled(network: nn.Module, preset: Preset, part: str, folder: str | Path | None) -> nn.Module:
    """The network with the weights of a part. Raises WeightsMissingError; ValueError where they do not fit."""
    return _fill(network, bundled(preset.name, part, folder), preset)


def _fill(network: nn.Module, file: Path, preset: Preset) -> nn.Module:
    state = load_tensors(file)
    try:
        if isinstance(network, Synthesis):
            fill_generator(network, state, preset.borrows)
        else:
            network.load_state_dict(state)
    except RuntimeError as e:
        cause = f"do not fit preset {preset.name!r}: {str(e)[:300]}"
        raise ValueError(f"the weights {file} {cause}; replace the file") from e
    return network


def sha256(*networks: nn.Module) -> str:
    """A hash of the names and values of all weights and buffers: 64 hex digits."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
