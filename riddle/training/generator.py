"""Train a cut of MobileStyleGAN: the blocks and the picture layer that draw a small face.

    python -m riddle.training.generator --recipe mobile

Distillation: a target is the published network's 1024 px face, area-reduced. A third of the codes are one code in all
slots, a third two codes mixed at a slot, a third have small differences in every slot, as inverted photos have. Losses:
squared error 2, absolute error 0.2, LPIPS 0.5, squared error of `grid` 30. The picture layer is new and learns faster
than the blocks, which start from the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle.files import replace_file
from riddle.images import to_bytes, to_tensor
from riddle.machine import fast_autocast
from riddle.models.mobilestylegan import SIDES, Cut, MobileStyleGAN
from riddle.networks import published_generator
from riddle.progress import track
from riddle.training import recipe
from riddle.training.frozen import draw_codes
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, means, run
from riddle.weights import load_lpips, load_tensors

STORED = 256  # px of stored targets
HELD_OUT = 200  # targets that training never sees


@dataclass(frozen=True, kw_only=True)
class CutConfig(LoopConfig):
    """Targets and rates."""

    targets: str  # folder of the targets; drawn first where they are missing, 7 per second
    count: int = 6000  # targets to draw; the first 200 are held out
    side: int = 128  # px of the faces that the cut draws
    start: str = ""  # cut.safetensors of an earlier run of this side, to go on from
    lr: float = 4e-4  # Adam, of the published blocks
    picture_lr: float = 1e-3  # of the new picture layer
    steps: int = 100_000
    minutes: float = 15.0
    batch: int = 16
    ema: float = 0.998
    save_every: int = 250


@torch.no_grad()
def make_targets(generator: MobileStyleGAN, count: int, out: Path) -> None:
    """Write codes.npy (count, L, D) in float32 and faces.npy, uint8 (count, 256, 256, 3), into a folder."""
    codes = draw_codes(generator, count, seed=0)
    with replace_file(out / "faces.npy") as temporary:
        faces = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, STORED, STORED, 3))
        for k in track(range(0, count, 8), "targets"):
            faces[k : k + 8] = to_bytes(reduced(generator, codes[k : k + 8], STORED))
        faces.flush()
        with replace_file(out / "codes.npy") as beside:
            np.save(beside, codes.cpu().numpy())


@torch.no_grad()
def reduced(generator: MobileStyleGAN, codes: torch.Tensor, side: int) -> torch.Tensor:
    """The whole network's faces of codes (N, L, D), area-reduced to (N, 3, side, side) in [-1, 1]."""
    whole = max(SIDES[0], 8 << len(generator.blocks))
    with fast_autocast(codes.device):
        faces = (generator(w, whole).float().clamp(-1, 1) for w in codes.split(8))
        return torch.cat([F.adaptive_avg_pool2d(part, side) for part in faces])


def grid(faces: torch.Tensor) -> torch.Tensor:
    """Strength of patterns that repeat every second pixel, in faces (N, 3, S, S): (N, 9, S / 8, S / 8).

    The details of the Haar transform (lines across, lines down, dots), averaged over 8 x 8 px.
    """
    a, b, c, d = (faces[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    return F.avg_pool2d(torch.cat([a + b - c - d, a - b + c - d, a - b - c + d], 1) / 2, 4)


class CutTask(Task):
    """One cut; the frozen network before it."""

    def __init__(
        self, config: CutConfig, accelerator: Accelerator, generator: MobileStyleGAN, lpips: nn.Module,
        held_out: tuple[torch.Tensor, torch.Tensor],
    ):  # fmt: skip
        """held_out: codes (N, L, D) and their targets, uint8 (N, S, S, 3), that training never sees."""
        self.generator, self.lpips = generator, lpips
        self.held_out = [part.to(accelerator.device) for part in held_out]
        cut: Cut = generator.cuts[str(config.side)].requires_grad_(True)
        groups = [{"params": list(cut.picture.parameters()), "lr": config.picture_lr}]
        groups += [{"params": list(cut.blocks.parameters()), "lr": config.lr}]
        super().__init__(config, accelerator, "cut", cut, torch.optim.Adam(groups, betas=(0.9, 0.99)))

    def draw(self, w: torch.Tensor, cut: Cut) -> torch.Tensor:
        """Faces (N, 3, side, side) of codes (N, L, D) by a cut."""
        with torch.no_grad():
            x = self.generator.features(w, cut.first)
        return cut(x, w)

    def target(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored faces, uint8 (N, S, S, 3), area-reduced to (N, 3, side, side) in [-1, 1]."""
        return F.adaptive_avg_pool2d(to_tensor(stored), self.config.side)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        target = self.target(batch["faces"])
        with self.accelerator.autocast():
            faces = self.draw(batch["codes"], self.network)
            perceived = self.lpips(faces, target).mean()
        squared, absolute = F.mse_loss(faces, target), F.l1_loss(faces, target)
        pattern = F.mse_loss(grid(faces), grid(target))
        terms = {"mse": squared, "l1": absolute, "lpips": perceived, "grid": pattern}
        return 2 * squared + 0.2 * absolute + 0.5 * perceived + 30 * pattern, terms

    def evaluate(self) -> dict[str, float]:
        """PSNR in dB, LPIPS and the error of `grid` (a root mean square) of the average on the held-out targets, in
        float32."""

        def quality(w: torch.Tensor, stored: torch.Tensor) -> dict[str, torch.Tensor]:
            target, faces = self.target(stored), self.draw(w, self.average).clamp(-1, 1)
            psnr = 10 * torch.log10(4 / (faces - target).square().mean((1, 2, 3)))
            pattern = (grid(faces) - grid(target)).square().mean((1, 2, 3))
            return {"psnr": psnr, "lpips": self.lpips(faces, target), "grid": pattern}

        found = means(quality, *self.held_out, batch=8)
        psnr, lpips, pattern = round(found["psnr"], 3), round(found["lpips"], 5), round(found["grid"] ** 0.5, 5)
        return {"psnr": psnr, "lpips": lpips, "grid": pattern}

    @torch.no_grad()
    def samples(self) -> torch.Tensor:
        """Targets above the cut's faces, enlarged twice."""
        codes, faces = self.held_out[0][:8], self.held_out[1][:8]
        both = torch.cat([self.target(faces), self.draw(codes, self.average)])
        return F.interpolate(both, scale_factor=2, mode="nearest")


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and the held-out quality."""
    config = recipe.parse(CutConfig, "generator", __doc__, argv)
    accelerator, folder = make_accelerator(config), Path(config.targets)
    generator = published_generator().to(accelerator.device)
    generator.codes.measure(generator.map)
    if not (folder / "faces.npy").is_file():
        make_targets(generator, config.count, folder)
    codes = torch.from_numpy(np.load(folder / "codes.npy"))
    faces = torch.from_numpy(np.load(folder / "faces.npy", mmap_mode="c"))
    if config.start:
        generator.cuts[str(config.side)].load_state_dict(load_tensors(config.start))
    lpips = load_lpips("squeeze", accelerator.device)
    task = CutTask(config, accelerator, generator, lpips, (codes[:HELD_OUT], faces[:HELD_OUT]))
    last = run(task, {"codes": codes[HELD_OUT:], "faces": faces[HELD_OUT:]})
    quality = task.evaluate()
    about = {"side": config.side, "steps": last["step"], "batch": config.batch, "targets": len(codes) - HELD_OUT}
    return finish(task, "cut", last | quality, about | quality)


if __name__ == "__main__":
    recipe.command(main)
