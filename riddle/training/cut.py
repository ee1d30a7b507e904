"""Train a cut of MobileStyleGAN: the blocks and the picture layer that draw a small face.

    python -m riddle.training.cut targets --count 6000 --out results/runs/cut_targets       # 1024 px, reduced
    python -m riddle.training.cut train --side 128 --targets results/runs/cut_targets --out results/runs/cut128

Distillation: a target is the published network's 1024 px face, area-reduced. A third of the codes are one code in all
slots, a third two codes mixed at a slot, a third have small differences in every slot, as inverted photos have.
Losses: squared error 2, absolute error 0.2, LPIPS 0.5, squared error of `grid` 30. The picture layer is new and learns
ten times as fast as the blocks, which start from the published ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle.allocator import keep_memory
from riddle.models.mobilestylegan import MobileStyleGAN
from riddle.networks import published_generator
from riddle.training.codes import draw_codes
from riddle.training.loop import LoopConfig, faces_to_float, make_accelerator, run, update_average
from riddle.training.schedule import minutes_left, progress_of, rate_share
from riddle.weights import load_lpips, load_tensors, save_tensors

STORED = 256  # px of stored targets
HELD_OUT = 200  # targets that training never sees


@torch.no_grad()
def make_targets(generator: MobileStyleGAN, count: int, out: Path, seed: int = 0, batch: int = 8) -> None:
    """Write codes.npy (count, L, D) in float32 and faces.npy, uint8 (count, 256, 256, 3), into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    codes = draw_codes(generator, count, seed)
    np.save(out / "codes.npy", codes.numpy())
    faces = np.lib.format.open_memmap(out / "faces.npy", "w+", np.uint8, (count, STORED, STORED, 3))
    for k in range(0, count, batch):
        with torch.autocast("cpu", torch.bfloat16):
            drawn = generator(codes[k : k + batch], 1024)
        small = F.adaptive_avg_pool2d(drawn.float().clamp(-1, 1), STORED)
        faces[k : k + batch] = small.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
        if k % (40 * batch) == 0:
            print(f"{k + len(small)} of {count} targets", flush=True)
    faces.flush()


def grid(faces: torch.Tensor) -> torch.Tensor:
    """What of a pattern that repeats every second pixel is in faces (N, 3, S, S): (N, 9, S / 8, S / 8).

    The details of the Haar transform (lines across, lines down, dots), averaged over 8 x 8 px.
    """
    a, b, c, d = (faces[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    return F.avg_pool2d(torch.cat([a + b - c - d, a - b + c - d, a - b - c + d], 1) / 2, 4)


class CutTask:
    """One cut, its average, and the frozen network before it."""

    def __init__(
        self, generator: MobileStyleGAN, side: int, lpips: nn.Module, accelerator: Accelerator, minutes: float
    ):
        self.generator, self.side, self.lpips, self.accelerator = generator, side, lpips, accelerator
        self.minutes = minutes
        self.cut = generator.cuts[str(side)].requires_grad_(True)
        self.average = copy.deepcopy(self.cut).requires_grad_(False)
        groups = [{"params": list(self.cut.picture.parameters()), "rate": 1e-3}]
        groups += [{"params": list(self.cut.blocks.parameters()), "rate": 4e-4}]
        self.optimiser = torch.optim.Adam(groups, lr=2e-4, betas=(0.9, 0.99))
        self.networks = {"cut": self.cut, "average": self.average}
        self.optimisers = {"cut": self.optimiser}
        self.counters = {"step": 0, "seconds": 0.0}
        self.held_out: tuple[torch.Tensor, torch.Tensor] | None = None

    def draw(self, w: torch.Tensor, cut: nn.Module) -> torch.Tensor:
        """Faces (N, 3, side, side) of codes (N, L, D) by a cut."""
        with torch.no_grad():
            x = self.generator.features(w, cut.first)
        return cut(x, w)

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        began = time.monotonic()
        progress = progress_of(self.accelerator, progress, self.counters["seconds"], self.minutes)
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * rate_share(progress, 0.02)
        target = F.adaptive_avg_pool2d(faces_to_float(batch["faces"]), self.side)
        with self.accelerator.autocast():
            drawn = self.draw(batch["codes"], self.cut)
            perceived = self.lpips(drawn, target).mean()
        squared, absolute = F.mse_loss(drawn, target), F.l1_loss(drawn, target)
        pattern = F.mse_loss(grid(drawn), grid(target))
        self.accelerator.backward(2 * squared + 0.2 * absolute + 0.5 * perceived + 30 * pattern)
        norm = nn.utils.clip_grad_norm_(self.cut.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.counters["step"] += 1
        update_average(self.average, self.cut, min(0.998, 1 - 1 / (1 + self.counters["step"] / 10)))
        self.counters["seconds"] += time.monotonic() - began
        return {"mse": squared, "l1": absolute, "lpips": perceived, "grid": pattern, "gradient": norm}

    @torch.no_grad()
    def evaluate(self, batch: int = 8) -> dict[str, float]:
        """PSNR in dB, LPIPS and the error of `grid` (a root mean square) of the average on the held-out targets, in
        float32."""
        codes, faces = self.held_out
        errors, perceived, patterns = [], [], []
        for w, face in zip(codes.split(batch), faces.split(batch), strict=True):
            target = F.adaptive_avg_pool2d(faces_to_float(face), self.side)
            drawn = self.draw(w, self.average).clamp(-1, 1)
            errors.append((drawn - target).square().mean((1, 2, 3)))
            perceived.append(self.lpips(drawn, target).flatten())
            patterns.append((grid(drawn) - grid(target)).square().mean((1, 2, 3)))
        psnr, lpips = 10 * torch.log10(4 / torch.cat(errors)).mean(), torch.cat(perceived).mean()
        pattern = torch.cat(patterns).mean().sqrt()
        return {"psnr": round(psnr.item(), 3), "lpips": round(lpips.item(), 5), "grid": round(pattern.item(), 5)}

    @torch.no_grad()
    def samples(self) -> torch.Tensor | None:
        """Targets above what the cut draws, enlarged twice."""
        codes, faces = self.held_out[0][:8], self.held_out[1][:8]
        target = F.adaptive_avg_pool2d(faces_to_float(faces), self.side)
        return F.interpolate(torch.cat([target, self.draw(codes, self.average)]), scale_factor=2, mode="nearest")


def main(argv: list[str] | None = None) -> dict[str, float] | None:
    """Command line of this module; returns the held-out quality after training."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("targets", "train"))
    p.add_argument("--count", type=int, default=6000)
    p.add_argument("--side", type=int, default=128)
    p.add_argument("--targets")
    p.add_argument("--start", help="safetensors of an earlier run of this side, to go on from")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--steps", type=int, default=100_000)
    p.add_argument("--minutes", type=float, default=15.0)
    p.add_argument("--out", required=True)
    a = p.parse_args(argv)
    keep_memory()
    generator = published_generator()
    generator.codes.measure(generator.map)
    if a.what == "targets":
        make_targets(generator, a.count, Path(a.out))
        return None
    loop = LoopConfig(a.out, a.steps, a.batch, save_every=250, minutes=minutes_left(a.out, a.minutes))
    accelerator = make_accelerator(loop)
    if a.start:
        generator.cuts[str(a.side)].load_state_dict(load_tensors(a.start))
    codes = torch.from_numpy(np.load(Path(a.targets) / "codes.npy"))
    faces = torch.from_numpy(np.load(Path(a.targets) / "faces.npy", mmap_mode="c"))
    task = CutTask(generator, a.side, load_lpips("squeeze"), accelerator, a.minutes)
    task.held_out = codes[:HELD_OUT], faces[:HELD_OUT]
    last = run(task, {"codes": codes[HELD_OUT:], "faces": faces[HELD_OUT:]}, loop, accelerator)
    quality = task.evaluate()
    last |= quality
    about = {
        "side": a.side,
        "steps": last["step"],
        "batch": a.batch,
        "targets": len(codes) - HELD_OUT,
        **quality,
    }
    save_tensors(Path(a.out) / "cut.safetensors", task.average.state_dict(), about)
    print(json.dumps(last))
    return last


if __name__ == "__main__":
    main()
