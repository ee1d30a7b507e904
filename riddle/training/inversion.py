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
from riddle.models.eigenfaces import from_offsets, match_mapping, mirror_inside, to_offsets
from riddle.models.inversion import Encoder, LatentDiscriminator
from riddle.presets import Preset, get
from riddle.training.augment import augment
from riddle.training.critic import Realism
from riddle.training.gan import (
    GANConfig,
    GANTask,
    logistic_discriminator,
    nonsaturating_generator,
    step_optimiser,
    update_average,
)
from riddle.training.loop import LoopConfig, faces_to_float, make_accelerator, run
from riddle.training.muon import Muon, split
from riddle.zoo import load_lpips, load_tensors, save_tensors


@dataclass(frozen=True)
class InversionConfig:
    """Loss weights and rates; the published e4e's beside each."""

    lr: float = 5e-4  # of the encoder's vectors, Adam, cosine to a twentieth; e4e: Ranger at 1e-4, batch 8
    matrix_lr: float = 5e-3  # of its matrices, Muon
    l2: float = 1.5  # e4e: 1
    l1: float = 1.5  # e4e: none; sharper at 64 px
    lpips: float = 1.6  # e4e: 0.8
    identity: float = 0.8  # e4e: 0.1 to 0.5
    identity_share: float = 0.5  # share of each batch whose identity is compared (the costliest loss on a CPU)
    delta: float = 2e-4  # e4e: 2e-4; without eigenfaces only
    latent_adversarial: float = 0.05  # e4e: 0.1; without eigenfaces only
    latent_r1: float = 10.0  # e4e: 10, every 16 steps
    progressive: float = 0.05  # share of the steps in which slots are freed one after another; without eigenfaces only
    ema: float = 0.995  # of the encoder when the generator is frozen; tuned together they share one half-life
    tune_generator: bool = False
    generator_lr: float = 2e-3  # without eigenfaces 8e-4: faster, and the encoder chases a moving target
    generator_beta1: float = 0.5  # a GAN wants none, a reconstruction wants some
    adversarial_every: int = 1  # steps between adversarial ones, when the generator is tuned
    adversarial_batch: int = 12  # faces drawn in each such step: samples of the mapping, and mirrored codes
    mirrored: float = 0.5  # share of mirrored codes among them
    adversarial_recon: float = 0.1  # weight of the discriminator's opinion on reconstructions (half as many)
    adversarial_sample: float = 0.5  # on samples and on faces of mirrored codes
    projected: float = 0.5  # weight of the projected critic's opinion on the same; 0: without it
    projected_lr: float = 1e-3
    projected_augment: float = 0.15  # probability of each of its augmentations


def mirror_codes(codes: torch.Tensor, centre: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Codes (N, L, D) mirrored about their centre (L, D) at random angles inside the face, as an encryptor starts.

    inner: (S D, K), see riddle.models.eigenfaces; centre: of their offsets. So the generator learns to draw a face
    wherever encryption takes a code. See riddle.models.encryptor.
    """
    angle = torch.rand(len(codes), inner.shape[1] // 2, device=codes.device) * 2 * math.pi
    return from_offsets(mirror_inside(to_offsets(codes) - centre, inner, angle) + centre)


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
        faces: torch.Tensor | None = None,
    ):
        """perceptual: LPIPS; embed: faces (N, 3, R, R) -> unit embeddings with gradients; preview: faces to show;
        faces: uint8 (M, R, R, 3), the real ones
        that the projected critic sees; without them there is none."""
        self.preset, self.config, self.accelerator, self.gan = preset, config, accelerator, gan
        self.perceptual, self.embed, self.preview = perceptual, embed, preview
        device = accelerator.device
        self.e = Encoder(preset).to(device=device, memory_format=torch.channels_last)
        if not preset.base:
            self.e.latent_avg.copy_(gan.g_ema.mean_latent())
        self.e_ema = copy.deepcopy(self.e).eval().requires_grad_(False)
        self.ld = LatentDiscriminator(preset.style_dim).to(device)
        matrices, vectors = split(self.e)
        self.matrix_opt = Muon(matrices, config.matrix_lr)
        self.e_opt = torch.optim.Adam(vectors, lr=config.lr, betas=(0.9, 0.99))
        self.ld_opt = torch.optim.Adam(self.ld.parameters(), lr=2e-4, betas=(0.0, 0.99))
        self.centre: torch.Tensor | None = None  # running mean of the codes (L, D)
        self.networks = {"e": self.e, "e_ema": self.e_ema, "ld": self.ld, **gan.networks}
        self.optimisers = {"e": self.e_opt, "matrices": self.matrix_opt, "ld": self.ld_opt}
        self.realism: Realism | None = None
        if config.tune_generator and config.projected and faces is not None:
            self.realism = Realism(perceptual, faces, accelerator, config.projected_lr, config.projected_augment)
            self.networks["critic"], self.optimisers["critic"] = self.realism.heads, self.realism.optimiser
        if config.tune_generator:
            self.optimisers |= gan.optimisers
        else:
            gan.g.requires_grad_(False)
        self.counters = gan.counters

    def start_from_eigenfaces(self, faces: torch.Tensor) -> None:
        """Fit the components to uint8 faces (N, R, R, 3), for encoder and generator alike, and the mapping to them."""
        self.e.base.fit(faces)
        with torch.no_grad():
            rows = torch.linspace(0, len(faces) - 1, min(len(faces), 8192)).long()
            codes = self.e.base.read(faces_to_float(faces[rows]).to(self.accelerator.device))[:, 0]
            for g in (self.gan.g, self.gan.g_ema):
                for name in ("mean", "basis", "deviation"):
                    getattr(g.base, name).copy_(getattr(self.e.base, name))
                for layer in (g.to_rgb1, *g.to_rgbs):  # the rest of the network draws what the components lack
                    layer.conv.weight.mul_(0.01)
        print(f"mapping: {match_mapping(self.gan.g, codes):.3f} from the components")
        self.gan.g_ema.load_state_dict(self.gan.g.state_dict())
        self.e_ema.load_state_dict(self.e.state_dict())

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

    def regularisation(self, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        """e4e's terms that keep codes near the mapping's; components are near by construction."""
        if self.preset.base:
            return {}
        offsets = codes[:, 1:] - codes[:, :1]
        picked = codes[torch.arange(len(codes)), torch.randint(codes.shape[1], (len(codes),))]
        return {
            "delta": self.config.delta * offsets.norm(dim=2).sum(1).mean(),
            "latent": self.config.latent_adversarial * F.softplus(-self.ld(picked)).mean(),
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

    def adversarial_faces(self, faces: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Reconstructions, then samples and mirrored codes drawn: (M, 3, R, R), and how many are the first."""
        total, gan = self.config.adversarial_batch, self.gan
        n, k = round(total * self.config.mirrored), min(total // 2, len(faces))
        drawn = gan.sample_codes(total - n)
        if n and gan.g.base is not None:
            codes = codes.detach().float()
            mean = to_offsets(codes).mean(0)
            self.centre = mean if self.centre is None else self.centre.lerp(mean, 0.02)
            codes = codes[torch.arange(n, device=codes.device) % len(codes)]
            drawn = torch.cat([drawn, mirror_codes(codes, self.centre, gan.g.base.inner)])
        return torch.cat([faces[:k], gan.g(drawn, gan.noise)]), k

    def set_rates(self, progress: float) -> None:
        """Warm-up, then a cosine to a twentieth, for all optimisers."""
        c = self.config
        rate = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        warm = min(1.0, (self.counters["step"] + 1) / 100)
        rates = [(self.e_opt, c.lr * rate * warm), (self.matrix_opt, c.matrix_lr * rate * warm)]
        if c.tune_generator:
            rates += [(opt, c.generator_lr * rate) for opt in self.gan.optimisers.values()]
            for group in self.gan.g_opt.param_groups:
                group["betas"] = (c.generator_beta1, group["betas"][1])
        for opt, lr in rates:
            for group in opt.param_groups:
                group["lr"] = lr

    @torch.no_grad()
    def settle_offsets(self, codes: torch.Tensor) -> None:
        """Mean and deviation of each slot's offset from slot 0, averaged over steps: where samples are to lie."""
        offsets = codes.float() - codes[:, :1].float()
        g = self.gan.g
        g.offsets.lerp_(offsets.mean(0), 0.02)
        g.deviations.copy_(g.deviations.square().lerp((offsets - g.offsets).square().mean(0), 0.02).sqrt())
        self.gan.g_ema.offsets.copy_(g.offsets)
        self.gan.g_ema.deviations.copy_(g.deviations)

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        c, gan, accelerator = self.config, self.gan, self.accelerator
        self.set_rates(progress)
        real = faces_to_float(batch["faces"])
        n = len(real)
        real = torch.where(torch.rand(n, 1, 1, 1, device=real.device) < 0.5, real.flip(3), real)
        adversarial = c.tune_generator and self.counters["step"] % c.adversarial_every == 0
        freed = self.preset.base or progress >= c.progressive
        slots = None if freed else 1 + int(progress / c.progressive * self.e.n_latent)

        gan.d.requires_grad_(False)
        self.ld.requires_grad_(False)
        with accelerator.autocast():
            codes = self.e(real, slots)
            faces = self.generator(codes, gan.noise)
            terms = self.reconstruction(real, faces) | self.regularisation(codes)
            if adversarial:
                fake, k = self.adversarial_faces(faces, codes)
                logits = gan.d(augment(fake, self.counters["ada_p"]))
                terms["adv_recon"] = c.adversarial_recon * nonsaturating_generator(logits[:k])
                terms["adv_sample"] = c.adversarial_sample * nonsaturating_generator(logits[k:])
                if self.realism is not None:
                    terms["projected"] = c.projected * self.realism.loss(fake[k:])
            loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.e.parameters(), 5.0)
        step_optimiser(accelerator, self.e_opt)
        step_optimiser(accelerator, self.matrix_opt)
        if c.tune_generator:
            step_optimiser(accelerator, gan.g_opt)
        gan.d.requires_grad_(True)
        self.ld.requires_grad_(True)
        numbers = {k: v.detach() for k, v in terms.items()}
        if adversarial:
            more = 0 if self.realism is None else max(0, len(fake) - n)
            shown = torch.cat([real, self.realism.draw(more)]) if more else real[: len(fake)]
            numbers |= gan.discriminator_step(shown, fake.detach())
            if self.realism is not None:
                numbers["critic"] = self.realism.step(fake[k:], shown[: len(fake) - k])
        if self.preset.base:
            self.settle_offsets(codes.detach())
        else:
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
        """Faces above their reconstructions and their mirrored codes, then samples of the generator."""
        drawn = self.gan.samples()
        if self.preview is None:
            return drawn
        real = faces_to_float(self.preview[:8].to(self.accelerator.device))
        self.e_ema.eval()
        with self.accelerator.autocast():
            codes = self.e_ema(real).float()
            if self.preset.base:
                codes = torch.cat([codes, mirror_codes(codes, self.gan.g_ema.offsets, self.gan.g_ema.base.inner)])
            back = self.gan.g_ema(codes)
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
        help="state.pt of riddle.training.gan, or a folder of published weights (data/zoo/mini) to go on"
        " from; without it a preset with eigenfaces starts from those of the data",
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
    config = LoopConfig(out=a.out, steps=a.steps, batch=a.batch, seed=a.seed, minutes=a.minutes, save_every=100)
    accelerator = make_accelerator(config)
    torch.manual_seed(a.seed)
    preset = get(a.preset)
    gan = GANTask(preset, GANConfig(), accelerator)
    faces = torch.from_numpy(np.load(a.data))
    if not a.generator and not preset.base:
        p.error(f"--generator is needed: preset {preset.name} has no eigenfaces to start from")
    if not a.generator:
        published = {}
    elif Path(a.generator).is_dir():
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
        faces,
    )
    if "encoder" in published:
        task.e.load_state_dict(published["encoder"])
        task.e_ema.load_state_dict(published["encoder"])
    if preset.base and not a.generator and not (Path(a.out) / "state.pt").exists():
        task.start_from_eigenfaces(faces)
    last = run(task, {"faces": faces}, config, accelerator)
    if accelerator.is_main_process:
        export(task, a.out, last["step"], a.seed)
    return last


if __name__ == "__main__":
    main()
