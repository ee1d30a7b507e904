"""Train the StyleGAN2 generator of a preset.

    python -m riddle.training.gan --preset mini --data aligned.npy --out results/runs/gan --steps 10000

The recipe is StyleGAN2-ADA's: non-saturating loss, lazy R1, path-length regularisation, style mixing, EMA of
the generator, adaptive augmentation, horizontal flips.
"""

from __future__ import annotations

import argparse
import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle.allocator import keep_memory
from riddle.models.stylegan2 import Discriminator, Generator
from riddle.presets import Preset, get
from riddle.training.augment import AdaptiveProbability, augment
from riddle.training.loop import LoopConfig, average_gradients, faces_to_float, make_accelerator, run
from riddle.zoo import save_tensors


@dataclass(frozen=True)
class GANConfig:
    """Loss weights and rates; StyleGAN2-ADA's values beside each."""

    lr: float = 0.0025  # both networks; ADA: 0.0025
    r1_gamma: float = 0.05  # ADA's rule 0.0002 R^2 / batch gives 0.026 at 64 px and batch 32
    r1_every: int = 16  # steps; lazy regularisation
    path_weight: float = 2.0
    path_every: int = 8  # steps; StyleGAN2: 4
    mixing: float = 0.9  # probability of two codes in one face
    ema_images: float = 10_000  # half-life of the generator's average, images
    ema_rampup: float = 0.05  # the half-life is at most this share of the images seen so far
    ada_target: float = 0.6


def logistic_discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Discriminator loss of StyleGAN2 from two sets of logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def nonsaturating_generator(fake: torch.Tensor) -> torch.Tensor:
    """Generator loss of StyleGAN2 from logits."""
    return F.softplus(-fake).mean()


def r1_penalty(real_logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean squared gradient norm of the logits with respect to real images (Mescheder et al., 2018)."""
    (grad,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return grad.float().square().sum((1, 2, 3)).mean()


def path_lengths(faces: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """|J_w^T y| per image (StyleGAN2, sec. 3.2): faces (N, 3, R, R) made from codes (N, L, D) -> (N,)."""
    noise = torch.randn_like(faces) / math.sqrt(faces.shape[2] * faces.shape[3])
    (grad,) = torch.autograd.grad((faces * noise).sum(), codes, create_graph=True)
    return grad.float().square().sum(2).mean(1).sqrt()


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network; buffers are copied."""
    for a, b in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(b.to(a.dtype), 1 - decay)
    for a, b in zip(average.buffers(), network.buffers(), strict=True):
        a.copy_(b)


def step_optimiser(accelerator: Accelerator, optimiser: torch.optim.Optimizer) -> None:
    """Average gradients over processes, then step and clear."""
    average_gradients(accelerator, [p for g in optimiser.param_groups for p in g["params"]])
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


class GANTask:
    """Generator, its average, discriminator."""

    def __init__(self, preset: Preset, config: GANConfig, accelerator: Accelerator):
        self.preset, self.config, self.accelerator = preset, config, accelerator
        device = accelerator.device
        g = Generator.of(preset)
        d = Discriminator(preset.resolution, preset.critic or preset.channels).to(memory_format=torch.channels_last)
        self.g, self.d = g.to(device), d.to(device)
        if not preset.noise:  # the weights stay at zero
            for layer in (self.g.conv1, *self.g.convs):
                layer.noise.weight.requires_grad_(False)
        self.g_ema = copy.deepcopy(self.g).eval().requires_grad_(False)
        self.networks = {"g": self.g, "g_ema": self.g_ema, "d": self.d}
        self.noise = "random" if preset.noise else "none"
        lazy_g, lazy_d = config.path_every / (config.path_every + 1), config.r1_every / (config.r1_every + 1)
        adam = torch.optim.Adam
        self.g_opt = adam(self.g.parameters(), lr=config.lr * lazy_g, betas=(0.0, 0.99**lazy_g), eps=1e-8)
        self.d_opt = adam(self.d.parameters(), lr=config.lr * lazy_d, betas=(0.0, 0.99**lazy_d), eps=1e-8)
        self.optimisers = {"g": self.g_opt, "d": self.d_opt}
        self.counters = {"step": 0, "images": 0, "ada_p": 0.0, "path_mean": 0.0}

    def sample_codes(self, n: int) -> torch.Tensor:
        """n codes (n, L, D) from the training mapping, with style mixing; over eigenfaces, with drawn details."""
        if self.g.base is not None:
            return self.g.detailed(self.g.map(torch.randn(n, self.preset.style_dim, device=self.accelerator.device)))
        z = torch.randn(2, n, self.preset.style_dim, device=self.accelerator.device)
        w1, w2 = self.g.spread(self.g.map(z[0])), self.g.spread(self.g.map(z[1]))
        cut = torch.randint(1, self.g.n_latent, (n, 1, 1), device=w1.device)
        cut = torch.where(torch.rand(n, 1, 1, device=w1.device) < self.config.mixing, cut, self.g.n_latent)
        return torch.where(torch.arange(self.g.n_latent, device=w1.device)[None, :, None] < cut, w1, w2)

    def discriminator_step(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step of the discriminator on real faces and detached generated ones."""
        c, p = self.config, self.counters["ada_p"]
        with self.accelerator.autocast():
            real_logits = self.d(augment(real, p))
            fake_logits = self.d(augment(fake, p))
            loss = logistic_discriminator(real_logits, fake_logits)
        self.accelerator.backward(loss)
        step_optimiser(self.accelerator, self.d_opt)
        if self.counters["step"] % c.r1_every == 0:
            shown = augment(real[: max(4, len(real) // 2)], p).detach().requires_grad_()
            with self.accelerator.autocast():
                logits = self.d(shown)
            penalty = r1_penalty(logits, shown) * (c.r1_gamma / 2 * c.r1_every)
            self.accelerator.backward(penalty)
            step_optimiser(self.accelerator, self.d_opt)
        ada = AdaptiveProbability(p, c.ada_target)
        self.counters["ada_p"] = ada.update(real_logits.detach())
        return {"d_loss": loss, "real": real_logits.mean(), "fake": fake_logits.mean(), "ada_p": self.counters["ada_p"]}

    def path_step(self, n: int) -> torch.Tensor:
        """Lazy path-length regularisation on n faces; returns the mean length."""
        c = self.config
        codes = self.sample_codes(n)
        with self.accelerator.autocast():
            faces = self.g(codes, self.noise)
        lengths = path_lengths(faces, codes)
        mean = self.counters["path_mean"]
        mean = mean + 0.01 * (lengths.detach().mean().item() - mean)
        self.counters["path_mean"] = mean
        penalty = (lengths - mean).square().mean() * c.path_weight * c.path_every
        self.accelerator.backward(penalty)
        step_optimiser(self.accelerator, self.g_opt)
        return lengths.mean()

    def decay(self, n: int) -> float:
        """How much of the average a step of n images keeps."""
        half = min(self.config.ema_images, self.counters["images"] * self.config.ema_rampup)
        return 0.5 ** (n / max(half, 1e-8))

    def average(self, n: int) -> None:
        """Count n images and move the generator's average."""
        self.counters["images"] += n
        update_average(self.g_ema, self.g, self.decay(n))
        self.counters["step"] += 1

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        real = faces_to_float(batch["faces"])
        n = len(real)
        real = torch.where(torch.rand(n, 1, 1, 1, device=real.device) < 0.5, real.flip(3), real)
        with self.accelerator.autocast(), torch.no_grad():
            fake = self.g(self.sample_codes(n), self.noise)
        numbers = self.discriminator_step(real, fake)
        self.d.requires_grad_(False)
        with self.accelerator.autocast():
            fake = self.g(self.sample_codes(n), self.noise)
            loss = nonsaturating_generator(self.d(augment(fake, self.counters["ada_p"])))
        self.accelerator.backward(loss)
        step_optimiser(self.accelerator, self.g_opt)
        if self.counters["step"] % self.config.path_every == 0:
            numbers["path"] = self.path_step(max(2, n // 4))
        self.d.requires_grad_(True)
        self.average(n * self.accelerator.num_processes)
        return {"g_loss": loss, **numbers}

    @torch.no_grad()
    def samples(self) -> torch.Tensor:
        with self.accelerator.autocast():
            return self.g_ema(self.g_ema.sample(32))


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mini")
    p.add_argument("--data", required=True, help="uint8 .npy (N, R, R, 3) of aligned faces")
    p.add_argument("--out", required=True)
    p.add_argument("--steps", type=int, default=10_000)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--minutes", type=float, default=float("inf"))
    a = p.parse_args(argv)
    keep_memory()
    config = LoopConfig(out=a.out, steps=a.steps, batch=a.batch, seed=a.seed, minutes=a.minutes)
    accelerator = make_accelerator(config)
    torch.manual_seed(a.seed)
    task = GANTask(get(a.preset), GANConfig(), accelerator)
    last = run(task, {"faces": torch.from_numpy(np.load(a.data))}, config, accelerator)
    if accelerator.is_main_process:
        about = {"preset": a.preset, "steps": last["step"], "images": int(task.counters["images"]), "seed": a.seed}
        save_tensors(Path(a.out) / "generator.safetensors", task.g_ema.state_dict(), about)
    return last


if __name__ == "__main__":
    main()
