"""Train the e4e encoder of a preset; the generator is frozen.

    python -m riddle.training.inversion --recipe mobile
    ... --passes 3 --start results/runs/inversion/encoder.safetensors     # ReStyle's feedback passes, from one pass

Squared error, LPIPS and identity (F_e) on real faces, varied a little, and on some synthetic ones, drawn at every step.
For all synthetic faces the distance to the z that they were drawn from. For real ones the size of the differences
between slots. In place of e4e's latent discriminator a prior: in the Gaussian space the length of z says how probable a
code is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle.images import to_tensor
from riddle.losses import PerceptualFeatures, random_lpips
from riddle.models.inversion import LiteEncoder, build_encoder
from riddle.models.mobilefacenet import load_mobilefacenet
from riddle.networks import Synthesis
from riddle.presets import get
from riddle.training import recipe
from riddle.training.frozen import LossNetworks, draw_codes, frozen_networks
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, means, run, spread
from riddle.weights import BODY, bundled, find, load_lpips, load_tensors, wheel_file


@dataclass(frozen=True, kw_only=True)
class InversionConfig(LoopConfig):
    """Faces, loss weights and rates; the published e4e's beside each."""

    data: str  # uint8 .npy (N, R, R, 3) of riddle.training.prepare faces
    val: str = ""  # the same of held-out faces; without: the last 96 of `data`, which training leaves out
    generator: str = ""  # safetensors; without: the bundled weights
    start: str = ""  # encoder.safetensors to go on from; without: published bodies, the rest random
    perception: str = ""  # perception.safetensors of riddle.training.perception; without: the bundled one
    steps: int = 1_000_000
    minutes: float = 60.0
    batch: int = 8  # real faces per step; e4e: 8
    lr: float = 1e-3  # Adam, of what starts at random; e4e: Ranger at 1e-4
    body_lr: float = 3e-4  # of the pretrained body
    identity_lr: float = 1e-4  # of the recogniser's body; 0: frozen, which saves a tenth of the time
    warmup: float = 0.01  # share of the training
    ema: float = 0.998  # decay per step of the weights' average
    l2: float = 1.0  # e4e: 1
    lpips: float = 0.8  # e4e: 0.8
    identity: float = 0.5  # e4e: 0.1 to 0.5
    identity_from: float = 0.05  # share of the training after which identity counts; an untrained encoder exploits it
    length: float = 0.02  # how far z goes beyond what a normal distribution gives; e4e: a latent discriminator
    delta: float = 0.03  # mean square of the differences between slots; e4e: 2e-4 of their norms
    known: float = 0.3  # squared error of the z of synthetic faces; e4e: none
    synthetic: float = 0.5  # synthetic faces per real one; real ones are few and are memorised
    passes: int = 1  # feedback passes; a step trains one of them, drawn at random
    refine: int = 28  # gradient steps that follow the passes when a face is inverted; no part of the training


class InversionTask(Task):
    """The encoder; the frozen generator and loss networks."""

    def __init__(
        self, config: InversionConfig, accelerator: Accelerator, encoder: LiteEncoder, generator: Synthesis,
        frozen: LossNetworks, lpips: nn.Module, held_out: torch.Tensor,
    ):  # fmt: skip
        """held_out: uint8 (N, R, R, 3), faces that training never sees."""
        self.frozen, self.lpips, self.held_out = frozen, lpips, held_out
        self.generator = generator.eval().requires_grad_(False)
        encoder = encoder.to(accelerator.device)
        encoder.passes.fill_(config.passes), encoder.steps.fill_(config.refine)
        encoder.identity.requires_grad_(config.identity_lr > 0)
        rates = {"body": config.body_lr, "identity": config.identity_lr, "perception": 0.0}
        groups = [
            {"params": list(part.parameters()), "lr": rate}
            for name, part in encoder.named_children()
            if (rate := rates.get(name, config.lr))
        ]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        super().__init__(config, accelerator, "encoder", encoder, optimiser, shared=[generator])
        self.importance = generator.codes.importance  # what hardly shows in a face need not be read

    def start_from(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from other weights, of fewer passes or of as many."""
        for network in (self.network, self.average):
            network.load_state_dict(state | {k: getattr(network, k) for k in ("passes", "steps")})

    def start_from_published(self) -> None:
        """Take the published weights of the two bodies, and those of `perception`. Raises WeightsMissingError."""
        own, path = "perception.trunk.", self.config.perception
        state = load_tensors(path or bundled("mobile", "encoder"))
        state = state if path else {k.removeprefix(own): v for k, v in state.items() if k.startswith(own)}
        perception = PerceptualFeatures.of(random_lpips())
        perception.trunk.load_state_dict(state)
        for network in (self.network, self.average):
            network.perception.load_state_dict(perception.state_dict())
            network.body.load_published(efficientnet_weights())
            network.identity.load_state_dict(load_mobilefacenet(find("arcface-mobilefacenet")).state_dict())

    def measure_curvature(self, faces: torch.Tensor) -> None:
        """Give the average the curvature of its distance at the codes of faces, uint8 (N, R, R, 3)."""

        def seen(z: torch.Tensor) -> torch.Tensor:
            with self.accelerator.autocast():
                return self.average.compared(self.generator(self.average.to_w(z)))

        with torch.no_grad(), self.accelerator.autocast():
            parts = [to_tensor(f.to(self.accelerator.device)) for f in faces.split(16)]
            z = torch.cat([self.average.read(f, self.config.passes)[0].float() for f in parts])
        self.average.curvature.measure(seen, z)

    def z_terms(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Regularisation of z (N, L, D): its length (our prior) and the differences between slots (e4e)."""
        length = F.relu(z.square().mean(-1) - 1).square() + F.relu(z.abs() - 3).square().mean(-1)
        return {"length": length.mean(), "delta": (z[:, 1:] - z[:, :1]).square().mean()}

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, real = self.config, to_tensor(batch["faces"])
        n, real = len(real), varied(real)
        made = draw_codes(self.generator, round(n * c.synthetic))
        with self.accelerator.autocast():
            with torch.no_grad():
                both = torch.cat([real, self.generator(made).clamp(-1, 1).float()])
                z, shown = self.network.read(both, int(torch.randint(c.passes, ())))
            z = z + self.network.missing(both, shown)
            faces = self.generator(self.network.to_w(z))
            terms = {"l2": F.mse_loss(faces, both), "lpips": self.lpips(faces, both).mean()}
            if progress >= c.identity_from:
                with torch.no_grad():
                    wanted = self.frozen.embed(both)
                terms["identity"] = (1 - F.cosine_similarity(self.frozen.embed(faces), wanted)).mean()
        terms |= self.z_terms(z[:n])
        error = (z[n:] - self.generator.codes.to_gaussian(made)).square()
        terms["known"] = (error * self.importance).mean()
        loss = sum(getattr(c, name) * value for name, value in terms.items())
        return loss, terms | {"z2": z[:n].detach().square().mean()}

    def evaluate(self) -> dict[str, float]:
        """LPIPS, squared error and F_e's cosine of held-out faces, without and with the steps of gradient descent that
        follow the passes, and measures of the codes."""

        def quality(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            real, numbers = to_tensor(faces.to(self.accelerator.device)), {}
            with self.accelerator.autocast():
                z, shown = self.average.read(real, self.config.passes)
                refined = self.generator(self.average(real)).clamp(-1, 1)
                wanted = self.frozen.embed(real)
                for suffix, made in (("", shown), ("_refined", refined)):
                    numbers[f"lpips{suffix}"] = self.lpips(made, real)
                    numbers[f"cosine{suffix}"] = F.cosine_similarity(self.frozen.embed(made), wanted)
            spread_of_slots = (z - z.mean(1, keepdim=True)).std((1, 2))
            error = (shown - real).square().mean((1, 2, 3))
            return numbers | {"mse": error, "spread": spread_of_slots, "z_std": z.std((1, 2))}

        return {k: round(v, 4) for k, v in means(quality, self.held_out).items()}

    @torch.no_grad()
    def samples(self) -> torch.Tensor:
        """Held-out faces above their inversions."""
        real = to_tensor(spread(self.held_out, 16).to(self.accelerator.device))
        with self.accelerator.autocast():
            shown = self.average.read(real, self.config.passes)[1].float()
        return torch.cat([x for pair in zip(real.split(8), shown.split(8), strict=True) for x in pair])


def varied(faces: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R), half of them mirrored, in other light and framed a little beside: brightness, contrast and
    colour within 15 %, size within 4 %, place within 1 %."""
    n, device = len(faces), faces.device
    faces = torch.where(torch.rand(n, 1, 1, 1, device=device) < 0.5, faces.flip(3), faces)
    spread = torch.rand(6, n, device=device) * 2 - 1
    grey = faces.mean(1, keepdim=True)
    faces = grey + (faces - grey) * (1 + 0.15 * spread[0])[:, None, None, None]
    faces = (faces * (1 + 0.15 * spread[1])[:, None, None, None] + 0.15 * spread[2][:, None, None, None]).clamp(-1, 1)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + 0.04 * spread[3]
    theta[:, :, 2] = 0.02 * spread[4:].T  # a side is 2 there
    grid = F.affine_grid(theta, list(faces.shape), align_corners=False)
    return F.grid_sample(faces, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)


def efficientnet_weights() -> dict[str, torch.Tensor]:
    """The state of EfficientNet-Lite0, trained on ImageNet, for `EfficientNetLite0.load_published`.

    Raises WeightsMissingError.
    """
    return torch.load(wheel_file(BODY, "efficientnet-lite0-*.pth"), map_location="cpu", weights_only=True)


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and the held-out quality."""
    config = recipe.parse(InversionConfig, "inversion", __doc__, argv)
    accelerator, preset = make_accelerator(config), get(config.preset)
    generator, frozen = frozen_networks(preset, config.generator, accelerator.device)
    faces = torch.from_numpy(np.load(config.data, mmap_mode="c"))  # the file may be larger than the memory
    held_out = torch.from_numpy(np.load(config.val, mmap_mode="c")) if config.val else faces[-96:]
    faces = faces if config.val else faces[:-96]
    torch.manual_seed(config.seed)
    lpips, encoder = load_lpips("squeeze", accelerator.device), build_encoder(preset, generator)
    task = InversionTask(config, accelerator, encoder, generator, frozen, lpips, spread(held_out))
    task.start_from(load_tensors(config.start)) if config.start else task.start_from_published()
    last = run(task, {"faces": faces})
    task.measure_curvature(spread(faces, 192))
    about = {k: getattr(config, k) for k in ("preset", "batch", "passes", "refine")}
    about |= {"steps": last["step"], "faces": len(faces), "perception": Path(config.perception or "bundled").name}
    return finish(task, "encoder", last, about, evaluate=task.evaluate)


if __name__ == "__main__":
    recipe.command(main)
