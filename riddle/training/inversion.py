"""Train the e4e encoder of a preset, with the generator frozen or tuned along with it to real faces.

    python -m riddle.training.inversion --preset mini --data faces.npy --batch 12 --minutes 120 --tune-generator \
        --out results/runs/inversion
    ... --generator data/zoo/mini --set lr=3e-4 --set matrix_lr=2e-3    # go on from the published weights
    ... --generator results/runs/gan/state.pt                           # from a generator of riddle.training.gan

Losses of e4e: L2, LPIPS, identity, delta regularisation, latent discriminator. With --tune-generator the generator
learns from the same reconstruction and keeps its adversarial training, on samples, on reconstructions and, over
eigenfaces, on faces of codes mirrored as encryption mirrors them; these also keep the photo's eyes, ears, mouth and
nose in place (eq. 8).
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from riddle.allocator import keep_memory
from riddle.models.inversion import Encoder, LatentDiscriminator
from riddle.presets import Preset, get
from riddle.training.components import mirror_codes, settle_offsets, start_from_eigenfaces, teach_mapping
from riddle.training.critic import Critics, Realism
from riddle.training.drawn import alike, misread, places_error, structure_error
from riddle.training.gan import (
    GANConfig,
    GANTask,
    logistic_discriminator,
    step_optimiser,
    update_average,
)
from riddle.training.loop import LoopConfig, faces_to_float, make_accelerator, run
from riddle.training.muon import Muon, split
from riddle.training.pixelpath import publish
from riddle.training.schedule import minutes_left, progress_of
from riddle.training.settings import InversionConfig, changed
from riddle.training.start import bundled_parser, go_on
from riddle.zoo import load_lpips, save_tensors


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
        parse: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        """perceptual: LPIPS; embed: faces (N, 3, R, R) -> unit embeddings with gradients; preview: faces to show;
        faces: uint8 (M, R, R, 3), the real ones that the projected critic sees; without them there is none."""
        self.preset, self.config, self.accelerator, self.gan = preset, config, accelerator, gan
        self.perceptual, self.embed, self.preview, self.parse = perceptual, embed, preview, parse
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
        self.networks = {"e": self.e, "e_ema": self.e_ema, "ld": self.ld, **gan.networks}
        self.optimisers = {"e": self.e_opt, "matrices": self.matrix_opt, "ld": self.ld_opt}
        realism = None
        if config.tune_generator and config.projected and faces is not None:
            realism = Realism(perceptual, faces, accelerator, config.projected_lr, config.projected_augment)
            self.networks["critic"], self.optimisers["critic"] = realism.heads, realism.optimiser
        self.critics = Critics(gan, config, realism)
        if config.tune_generator:
            self.optimisers |= gan.optimisers
            if preset.base:  # matched to the faces' codes; adversarial training would let it forget most of them
                gan.g.style.requires_grad_(False)
        else:
            gan.g.requires_grad_(False)
        self.counters = gan.counters
        self.counters["seconds"] = 0.0

    @property
    def generator(self) -> torch.nn.Module:
        """The network that renders: the one being tuned, or the frozen average."""
        return self.gan.g if self.config.tune_generator else self.gan.g_ema

    @property
    def mirrored(self) -> int:
        """How many mirrored codes an adversarial step draws."""
        return round(self.config.adversarial_batch * self.config.mirrored) if self.preset.base else 0

    def drawn_terms(self, drawn: torch.Tensor, codes: torch.Tensor, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        """What faces (M, 3, R, R) drawn from codes (M, L, D) owe these and, the last `mirrored` of them, their photos.

        photos: (K, 3, R, R); the mirrored codes are of photo 0, 1, ... K - 1, 0, 1, ...
        """
        c, n = self.config, self.mirrored
        terms = {"structure": c.structure * structure_error(self.gan.g.base, drawn, codes)}
        if not n:
            return terms
        faces, codes = drawn[-n:], codes[-n:]
        if c.parsing and self.parse is not None:
            rows = torch.arange(n, device=photos.device) % len(photos)
            rows = rows[: max(1, round(n * c.parsed))]
            terms["parsing"] = c.parsing * places_error(self.parse, faces[: len(rows)], photos[rows])
        if c.alike:
            terms["alike"] = c.alike * alike(self.embed, faces, photos, c.compared)
        if c.cycle:
            some = (n + 1) // 2 if c.tune_encoder else (n + 3) // 4  # each costs a pass of the encoder
            terms["cycle"] = c.cycle * self.misread(faces[:some], codes[:some])
        return terms

    def misread(self, faces: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the components that the encoder reads from faces (N, 3, R, R) of codes (N, L, D): the
        encoder is to read better or, where it is kept, the generator to draw what it reads."""
        read = self.e(faces.detach()) if self.config.tune_encoder else self.e_ema(faces)
        return misread(read, codes, self.gan.g.base.slots)

    def published_terms(self, faces: torch.Tensor, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        """With the generator frozen: what the encoder reads from published pictures of mirrored codes.

        faces, codes: reconstructions (N, 3, R, R) and their codes (N, L, D); the first half is mirrored.
        """
        g, half = self.gan.g_ema, (len(codes) + 1) // 2
        with torch.no_grad():
            mirrored = mirror_codes(codes[:half].float(), g.offsets, g.base.inner)
            shown = publish(g(mirrored, self.gan.noise), faces[:half], self.preset.framing)
        return {"cycle": self.config.cycle * self.misread(shown, mirrored)}

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

    def adversarial_faces(
        self, faces: torch.Tensor, codes: torch.Tensor, real: torch.Tensor, owed: bool = True
    ) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
        """Reconstructions, then samples and mirrored codes drawn: (M, 3, R, R), how many are the first, and the terms
        of the others, where `owed`."""
        total, gan, n = self.config.adversarial_batch, self.gan, self.mirrored
        k, drawn, terms = min(total // 2, len(faces)), gan.sample_codes(total - n), {}
        if n:
            rows = torch.arange(n, device=codes.device) % len(codes)
            mirrored = mirror_codes(codes[rows].detach().float(), gan.g.offsets, gan.g.base.inner)
            drawn = torch.cat([drawn, mirrored])
        shown = gan.g(drawn, gan.noise)
        if owed and gan.g.base is not None:
            terms = self.drawn_terms(shown, drawn, real)
        return torch.cat([faces[:k], shown]), k, terms

    def warm_critics(self, real: torch.Tensor) -> dict[str, torch.Tensor]:
        """A step in which only they learn: new ones would mislead a generator that is no longer new."""
        with torch.no_grad(), self.accelerator.autocast():
            codes = self.e_ema(real)
            fake, k, _ = self.adversarial_faces(self.generator(codes, self.gan.noise), codes, real, owed=False)
        self.counters["step"] += 1
        return self.critics.step(real, fake, k)

    def set_rates(self, progress: float) -> None:
        """Warm-up, then a cosine to a twentieth, for all optimisers."""
        c = self.config
        rate = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        warm = min(1.0, max(0, self.counters["step"] + 1 - c.critics_first) / 100)
        rates = [(self.e_opt, c.lr * rate * warm), (self.matrix_opt, c.matrix_lr * rate * warm)]
        if c.tune_generator:
            rates += [(opt, c.generator_lr * rate) for opt in self.gan.optimisers.values()]
            for group in self.gan.g_opt.param_groups:
                group["betas"] = (c.generator_beta1, group["betas"][1])
        for opt, lr in rates:
            for group in opt.param_groups:
                group["lr"] = lr

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        began, c, gan, accelerator = time.monotonic(), self.config, self.gan, self.accelerator
        progress = min(1.0, progress_of(accelerator, progress, self.counters["seconds"], c.minutes))
        self.set_rates(progress)
        real = faces_to_float(batch["faces"])
        n = len(real)
        real = torch.where(torch.rand(n, 1, 1, 1, device=real.device) < 0.5, real.flip(3), real)
        if c.tune_generator and self.counters["step"] < c.critics_first:
            numbers = self.warm_critics(real)
            self.counters["seconds"] += time.monotonic() - began
            return numbers
        adversarial = c.tune_generator and self.counters["step"] % c.adversarial_every == 0
        freed = self.preset.base or progress >= c.progressive
        slots = None if freed else 1 + int(progress / c.progressive * self.e.n_latent)

        gan.d.requires_grad_(False)
        self.ld.requires_grad_(False)
        with accelerator.autocast():
            with torch.set_grad_enabled(c.tune_encoder):
                codes = self.e(real, slots) if c.tune_encoder else self.e_ema(real)
            faces = self.generator(codes, gan.noise)
            terms = self.reconstruction(real, faces) | self.regularisation(codes)
            if adversarial:
                fake, k, drawn_terms = self.adversarial_faces(faces, codes, real)
                terms |= drawn_terms
                terms |= self.critics.terms(fake, k)
            elif self.preset.base and c.cycle and not c.tune_generator:
                terms |= self.published_terms(faces.detach(), codes.detach())
            loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss)
        if c.tune_encoder:
            torch.nn.utils.clip_grad_norm_(self.e.parameters(), 5.0)
            step_optimiser(accelerator, self.e_opt)
            step_optimiser(accelerator, self.matrix_opt)
        if c.tune_generator:
            step_optimiser(accelerator, gan.g_opt)
        gan.d.requires_grad_(True)
        self.ld.requires_grad_(True)
        numbers = {k: v.detach() for k, v in terms.items()}
        if adversarial:
            numbers |= self.critics.step(real, fake.detach(), k)
        if self.preset.base:
            if c.tune_encoder and c.tune_generator:
                settle_offsets(gan, codes.detach())
        else:
            numbers["latent_d"] = self.latent_step(codes)
        if c.tune_generator:
            gan.average(n * accelerator.num_processes)
        else:
            self.counters["step"] += 1
        if c.tune_encoder:
            decay = gan.decay(n) if c.tune_generator else min(c.ema, 1 - 1 / (1 + self.counters["step"] / 10))
            update_average(self.e_ema, self.e, decay)
        self.counters["seconds"] += time.monotonic() - began
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


def export(task: InversionTask, out: str, step: int, seed: int) -> None:
    """Write encoder.safetensors and, where it was tuned, generator.safetensors (the averages) into the run's folder."""
    about = {"preset": task.preset.name, "steps": step, "images": int(task.counters["images"]), "seed": seed}
    made = {"encoder": task.e_ema} | ({"generator": task.gan.g_ema} if task.config.tune_generator else {})
    for name, network in made.items():
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
    p.add_argument("--keep-encoder", action="store_true", help="tune the generator alone, with the encoder frozen")
    p.add_argument("--match-mapping", action="store_true", help="teach the mapping the components anew")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a number of InversionConfig")
    a = p.parse_args(argv)
    keep_memory()
    left = minutes_left(a.out, a.minutes)
    config = LoopConfig(out=a.out, steps=a.steps, batch=a.batch, seed=a.seed, minutes=left, save_every=100)
    accelerator = make_accelerator(config)
    torch.manual_seed(a.seed)
    preset = get(a.preset)
    gan = GANTask(preset, GANConfig(), accelerator)
    faces = torch.from_numpy(np.load(a.data))
    if not a.generator and not preset.base:
        p.error(f"--generator is needed: preset {preset.name} has no eigenfaces to start from")
    published = go_on(gan, a.generator) if a.generator else {}
    settled = ["progressive=0"] if "encoder" in published else []  # its slots have been freed long ago
    judge = recognizers.load(preset.identity, device=str(accelerator.device))
    perceptual = load_lpips("squeeze").to(accelerator.device)
    task = InversionTask(
        preset,
        changed(
            InversionConfig(tune_generator=a.tune_generator, tune_encoder=not a.keep_encoder, minutes=a.minutes),
            settled + a.set,
        ),
        accelerator,
        gan,
        perceptual,
        lambda faces: judge.from_crop(faces, preset.framing),
        torch.from_numpy(np.load(a.preview)) if a.preview else None,
        faces,
        bundled_parser(preset, accelerator.device) if a.tune_generator and preset.base else None,
    )
    if "encoder" in published:
        task.e.load_state_dict(published["encoder"])
        task.e_ema.load_state_dict(published["encoder"])
    if preset.base and not (Path(a.out) / "state.pt").exists():
        if not a.generator:
            start_from_eigenfaces(gan, task.e, faces, task.config.mapping_steps)
            task.e_ema.load_state_dict(task.e.state_dict())
        elif a.match_mapping:
            teach_mapping(gan, task.e, faces, task.config.mapping_steps)
    last = run(task, {"faces": faces}, config, accelerator)
    if accelerator.is_main_process:
        export(task, a.out, last["step"], a.seed)
    return last


if __name__ == "__main__":
    main()
