"""Loss weights and rates of the inversion's training, and how a command line changes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class InversionConfig:
    """Loss weights and rates; the published e4e's beside each."""

    lr: float = 5e-4  # of the encoder's vectors, Adam, cosine to a twentieth; e4e: Ranger at 1e-4, batch 8
    matrix_lr: float = 5e-3  # of its matrices, Muon
    l2: float = 3.0  # e4e: 1
    l1: float = 3.0  # e4e: none; sharper at 64 px
    lpips: float = 1.6  # e4e: 0.8
    identity: float = 1.2  # e4e: 0.1 to 0.5
    identity_share: float = 0.5  # share of each batch whose identity is compared (the costliest loss on a CPU)
    delta: float = 2e-4  # e4e: 2e-4; without eigenfaces only
    latent_adversarial: float = 0.05  # e4e: 0.1; without eigenfaces only
    latent_r1: float = 10.0  # e4e: 10, every 16 steps
    progressive: float = 0.05  # share of the steps in which slots are freed one after another; without eigenfaces only
    ema: float = 0.995  # of the encoder when the generator is frozen; tuned together they share one half-life
    mapping_steps: int = 1500  # of matching the mapping to the components
    tune_generator: bool = False
    tune_encoder: bool = True
    minutes: float = math.inf  # wall time over which the rates fall, if that ends before the steps do
    critics_first: int = 0  # steps in which only discriminator and critic learn: those that went on start new ones
    generator_lr: float = 2e-3  # without eigenfaces 8e-4: faster, and the encoder chases a moving target
    generator_beta1: float = 0.5  # a GAN wants none, a reconstruction wants some
    adversarial_every: int = 1  # steps between adversarial ones, when the generator is tuned
    adversarial_batch: int = 36  # faces drawn in each such step: samples of the mapping, and mirrored codes
    mirrored: float = 0.6  # share of mirrored codes among them
    adversarial_recon: float = 0.1  # weight of the discriminator's opinion on reconstructions (half as many)
    adversarial_sample: float = 0.7  # on samples and on faces of mirrored codes
    structure: float = 0.3  # their squared distance to their eigenfaces at 16 px: another code, another face
    parsing: float = 0.1  # eq. 8 between faces of mirrored codes and the photos, mean square: features keep places
    alike: float = 0.0  # positive cosines of mirrored faces with their photo and with each other (eq. 1 to 3)
    compared: int = 6  # photos a step whose two mirrored faces are compared so
    parsed: float = 1.0  # share of those that the parser sees
    cycle: float = 0.05  # squared error of the codes that the encoder reads from faces of mirrored codes
    projected: float = 1.5  # weight of the projected critic's opinion on the same; 0: without it
    criticised: float = 1.0  # share of the drawn faces that it sees
    projected_lr: float = 1e-3
    projected_augment: float = 0.15  # probability of each of its augmentations


def changed(config: InversionConfig, settings: list[str]) -> InversionConfig:
    """The configuration with NAME=VALUE applied. Raises ValueError for an unknown name or no number."""
    names = {f.name: f.type for f in fields(config)}
    changes = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in names:
            raise ValueError(f"--set {setting}: no such field; choose from {', '.join(names)}")
        changes[name] = int(value) if names[name] == "int" else float(value)
    return replace(config, **changes)
