"""Train the e4e encoder of a preset, with the generator frozen or tuned along with it to real faces.

    python -m riddle.training.inversion --preset mini --data aligned.npy --generator results/runs/gan/state.pt \
        --out results/runs/inversion --steps 6000 --tune-generator
    ... --generator data/zoo/mini --set identity=0.8 --set lr=5e-4     # go on from the published weights

Losses of e4e: L2, LPIPS, identity, delta regularisation, latent discriminator. With --tune-generator the
generator learns from the same reconstruction, keeps its adversarial training on samples, and its discriminator
also judges the reconstructions; a generator that saw few images inverts real faces far better so.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from riddle.allocator import keep_memory
from riddle.models.inversion import Encoder, LatentDiscriminator
from riddle.presets import Preset, get
from riddle.training.augment import augment
from riddle.training.gan import (
    GANConfig,
    GANTask,
    logistic_discriminator,
    nonsaturating_generator,
    step_optimiser,
    update_average,
)
from riddle.training.loop import LoopConfig, faces_to_float, make_accelerator, run
from riddle.zoo import load_lpips, load_tensors, save_tensors


@dataclass(frozen=True)
class InversionConfig:
    """Loss weights and rates; the published e4e's beside each."""

    lr: float = 5e-4  # of the encoder, Adam, cosine to a twentieth; e4e: Ranger at 1e-4, batch 8
    l2: float = 1.5  # e4e: 1
    l1: float = 1.5  # e4e: none; sharper at 64 px
    lpips: float = 1.6  # e4e: 0.8
    identity: float = 0.8  # e4e: 0.1 to 0.5; from the first step on it keeps the structure from forming
    identity_share: float = 0.5  # share of each batch whose identity is compared (the costliest loss on a CPU)
    delta: float = 2e-4  # e4e: 2e-4
    latent_adversarial: float = 0.05  # e4e: 0.1
    latent_r1: float = 10.0  # e4e: 10, every 16 steps
    progressive: float = 0.05  # share of the steps in which slots are freed one after another
    ema: float = 0.995  # of the encoder when the generator is frozen; tuned together they share one half-life
    tune_generator: bool = False
    generator_lr: float = 8e-4  # faster, and the encoder chases a moving target
    generator_beta1: float = 0.8  # a GAN wants none, a reconstruction wants some
    adversarial_every: int = 6  # steps between adversarial ones, when the generator is tuned
    adversarial_recon: float = 0.1  # weight of the discriminator's opinion on reconstructions
    adversarial_sample: float = 0.5  # and on samples


class InversionTask:
    """Encoder, its average, the latent discriminator, and the GAN it inverts."""

    def __init__(
        self,
        preset: Preset,
        config: InversionConfig,
        accelerator: Accelerator,
        gan: GANTask,
        perceptual: torch.nn.Module,
        embed: Callable[[torch.Tensor], torch.Tensor],
        preview: torch.Tensor | None = None,
    ):
        """perceptual: LPIPS; embed: faces (N, 3, R, R) -> unit embeddings with gradients; preview: faces to show."""
        self.preset, self.config, self.accelerator, self.gan = preset, config, accelerator, gan
        self.perceptual, self.embed, self.preview = perceptual, embed, preview
        device = accelerator.device
        self.e = Encoder(preset).to(device=device, memory_format=torch.channels_last)
        self.e.latent_avg.copy_(gan.g_ema.mean_latent())
        self.e_ema = copy.deepcopy(self.e).eval().requires_grad_(False)
        self.ld = LatentDiscriminator(preset.style_dim).to(device)
        self.e_opt = torch.optim.Adam(self.e.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.ld_opt = torch.optim.Adam(self.ld.parameters(), lr=2e-4, betas=(0.0, 0.99))
        self.networks = {"e": self.e, "e_ema": self.e_ema, "ld": self.ld, **gan.networks}
        self.optimisers = {"e": self.e_opt, "ld": self.ld_opt}
        if config.tune_generator:
            self.optimisers |= gan.optimisers
        else:
            gan.g.requires_grad_(False)
        self.counters = gan.counters

    @property
    def generator(self) -> torch.nn.Module:
        """The network that renders: the one being tuned, or the frozen average."""
        return self.gan.g if self.config.tune_generator else self.gan.g_ema

    def reconstruction(self, real: torch.Tensor, faces: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weighted terms that compare a face with its reconstruction."""
        c, n = self.config, max(1, int(len(real) * self.config.identity_share))
        rows = torch.randperm(len(real), device=real.device)[:n]
        with torch.no_grad():
            wanted = self.embed(real[rows])
        return {
            "l2": c.l2 * F.mse_loss(faces, real),
            "l1": c.l1 * F.l1_loss(faces, real),
            "lpips": c.lpips * self.perceptual(faces, real).mean(),
            "identity": c.identity * (1 - F.cosine_similarity(self.embed(faces[rows]), wanted)).mean(),
        }

    def latent_step(self, codes: torch.Tensor) -> torch.Tensor:
        """One step of the latent discriminator: codes of the mapping network against the encoder's (N, L, D)."""
        n = len(codes)
        with torch.no_grad():
            real = self.gan.g_ema.map(torch.randn(n, self.preset.style_dim, device=codes.device))
        slot = torch.randint(codes.shape[1], (n,), device=codes.device)
        loss = logistic_discriminator(self.ld(real), self.ld(codes.detach()[torch.arange(n), slot]))
        if self.counters["step"] % 16 == 0:
            shown = real.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.ld(shown).sum(), shown, create_graph=True)
            loss = loss + self.config.latent_r1 / 2 * 16 * grad.square().sum(1).mean()
        self.accelerator.backward(loss)
        step_optimiser(self.accelerator, self.ld_opt)
        return loss

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        c, gan, accelerator = self.config, self.gan, self.accelerator
        rate = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        warm = min(1.0, (self.counters["step"] + 1) / 100)
        for group in self.e_opt.param_groups:
            group["lr"] = c.lr * rate * warm
        if c.tune_generator:
            for opt in gan.optimisers.values():
                for group in opt.param_groups:
                    group["lr"] = c.generator_lr * rate
            for group in gan.g_opt.param_groups:
                group["betas"] = (c.generator_beta1, group["betas"][1])
        real = faces_to_float(batch["faces"])
        n = len(real)
        real = torch.where(torch.rand(n, 1, 1, 1, device=real.device) < 0.5, real.flip(3), real)
        adversarial = c.tune_generator and self.counters["step"] % c.adversarial_every == 0
        slots = None if progress >= c.progressive else 1 + int(progress / c.progressive * self.e.n_latent)

        gan.d.requires_grad_(False)
        self.ld.requires_grad_(False)
        with accelerator.autocast():
            codes = self.e(real, slots)
            faces = self.generator(codes)
            terms = self.reconstruction(real, faces)
            offsets = codes[:, 1:] - codes[:, :1]
            terms["delta"] = c.delta * offsets.norm(dim=2).sum(1).mean()
            picked = codes[torch.arange(n), torch.randint(codes.shape[1], (n,))]
            terms["latent"] = c.latent_adversarial * F.softplus(-self.ld(picked)).mean()
            if adversarial:
                half = n // 2
                fake = torch.cat([faces[:half], gan.g(gan.sample_codes(n - half), gan.noise)])
                logits = gan.d(augment(fake, self.counters["ada_p"]))
                terms["adv_recon"] = c.adversarial_recon * nonsaturating_generator(logits[:half])
                terms["adv_sample"] = c.adversarial_sample * nonsaturating_generator(logits[half:])
            loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.e.parameters(), 5.0)
        step_optimiser(accelerator, self.e_opt)
        if c.tune_generator:
            step_optimiser(accelerator, gan.g_opt)
        gan.d.requires_grad_(True)
        self.ld.requires_grad_(True)
        numbers = {k: v.detach() for k, v in terms.items()}
        if adversarial:
            numbers |= gan.discriminator_step(real, fake.detach())
        numbers["latent_d"] = self.latent_step(codes)
        if c.tune_generator:
            gan.average(n * accelerator.num_processes)
        else:
            self.counters["step"] += 1
        decay = gan.decay(n) if c.tune_generator else min(c.ema, 1 - 1 / (1 + self.counters["step"] / 10))
        update_average(self.e_ema, self.e, decay)
        return {"loss": loss, **numbers}

    @torch.no_grad()
    def samples(self) -> torch.Tensor | None:
        """Faces above their reconstructions, then samples of the generator."""
        drawn = self.gan.samples()
        if self.preview is None:
            return drawn
        real = faces_to_float(self.preview[:8].to(self.accelerator.device))
        self.e_ema.eval()
        with self.accelerator.autocast():
            back = self.gan.g_ema(self.e_ema(real))
        return torch.cat([real, back.float(), drawn.float()])


@torch.no_grad()
def encode(encoder: Encoder, faces: torch.Tensor, batch: int = 64, bfloat16: bool = False) -> torch.Tensor:
    """uint8 faces (N, R, R, 3) -> codes (N, L, D) in float32."""
    device = next(encoder.parameters()).device
    codes = []
    for part in faces.split(batch):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            codes.append(encoder(faces_to_float(part.to(device))).float().cpu())
    return torch.cat(codes)


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


def load_published(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The published networks of a folder that training can go on from, by part."""
    parts = ("generator", "discriminator", "encoder")
    found = {p: load_tensors(folder / f"{p}.safetensors") for p in parts if (folder / f"{p}.safetensors").is_file()}
    if "generator" not in found:
        raise FileNotFoundError(f"{folder} holds no generator.safetensors; pass the folder of a preset's weights")
    return found


def export(task: InversionTask, out: str, step: int, seed: int) -> None:
    """Write generator.safetensors and encoder.safetensors (the averages) into the run's folder."""
    about = {"preset": task.preset.name, "steps": step, "images": int(task.counters["images"]), "seed": seed}
    for name, network in (("generator", task.gan.g_ema), ("encoder", task.e_ema)):
        save_tensors(Path(out) / f"{name}.safetensors", network.state_dict(), about)


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module."""
    from riddle.faces import recognizers

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mini")
    p.add_argument("--data", required=True, help="uint8 .npy (N, R, R, 3) of aligned training faces")
    p.add_argument("--preview", help="uint8 .npy of faces to show in the sample grid")
    p.add_argument(
        "--generator",
        required=True,
        help="state.pt of riddle.training.gan, or a folder of published weights (data/zoo/mini) to go on from",
    )
    p.add_argument("--out", required=True)
    p.add_argument("--steps", type=int, default=6000)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--minutes", type=float, default=float("inf"))
    p.add_argument("--tune-generator", action="store_true")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a number of InversionConfig")
    a = p.parse_args(argv)
    keep_memory()
    config = LoopConfig(out=a.out, steps=a.steps, batch=a.batch, seed=a.seed, minutes=a.minutes, save_every=250)
    accelerator = make_accelerator(config)
    torch.manual_seed(a.seed)
    preset = get(a.preset)
    gan = GANTask(preset, GANConfig(), accelerator)
    if Path(a.generator).is_dir():
        published = load_published(Path(a.generator))
        gan.g.load_state_dict(published["generator"])
        gan.g_ema.load_state_dict(published["generator"])
        if "discriminator" in published:
            gan.d.load_state_dict(published["discriminator"])
    else:
        published = {}
        trained = torch.load(a.generator, map_location=accelerator.device, weights_only=True)
        for name, network in gan.networks.items():
            network.load_state_dict(trained["networks"][name])
        gan.counters.update(trained["counters"], step=0)
    settled = ["progressive=0"] if "encoder" in published else []  # its slots have been freed long ago
    judge = recognizers.load(preset.identity, device=str(accelerator.device))
    perceptual = load_lpips("squeeze").to(accelerator.device)
    task = InversionTask(
        preset,
        changed(InversionConfig(tune_generator=a.tune_generator), settled + a.set),
        accelerator,
        gan,
        perceptual,
        lambda faces: judge.from_crop(faces, preset.framing),
        torch.from_numpy(np.load(a.preview)) if a.preview else None,
    )
    if "encoder" in published:
        task.e.load_state_dict(published["encoder"])
        task.e_ema.load_state_dict(published["encoder"])
    last = run(task, {"faces": torch.from_numpy(np.load(a.data))}, config, accelerator)
    if accelerator.is_main_process:
        export(task, a.out, last["step"], a.seed)
    return last


if __name__ == "__main__":
    main()
