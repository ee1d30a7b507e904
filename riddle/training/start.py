"""What a training of the inversion goes on from: published weights, or a generator of riddle.training.gan."""

from __future__ import annotations

from pathlib import Path

import torch

from riddle.presets import Preset
from riddle.training.gan import GANTask
from riddle.training.judges import Features, frozen_parser
from riddle.zoo import WeightsMissingError, load_tensors


def load_published(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The published networks of a folder that training can go on from, by part."""
    parts = ("generator", "discriminator", "encoder")
    found = {p: load_tensors(folder / f"{p}.safetensors") for p in parts if (folder / f"{p}.safetensors").is_file()}
    if "generator" not in found:
        raise FileNotFoundError(f"{folder} holds no generator.safetensors; pass the folder of a preset's weights")
    return found


def bundled_parser(preset: Preset, device: torch.device) -> Features | None:
    """The preset's bundled parser: faces (N, 3, R, R) -> logits of eq. 8's parts; None where none is bundled."""
    try:
        return frozen_parser(preset, None, device)
    except WeightsMissingError:
        return None


def go_on(gan: GANTask, source: Path | str) -> dict[str, dict[str, torch.Tensor]]:
    """Fill a GAN from a folder of published weights, or from a run's state.pt; returns what the folder holds, by part.

    Raises FileNotFoundError for a folder without a generator.
    """
    if Path(source).is_dir():
        published = load_published(Path(source))
        gan.g.load_state_dict(published["generator"])
        gan.g_ema.load_state_dict(published["generator"])
        if "discriminator" in published:
            gan.d.load_state_dict(published["discriminator"])
        return published
    trained = torch.load(source, map_location=gan.accelerator.device, weights_only=True)
    for name, network in gan.networks.items():
        network.load_state_dict(trained["networks"][name])
    gan.counters.update(trained["counters"], step=0)
    return {}
