"""Train the network that the encoder compares faces by: SqueezeNet's form, taught to see them as LPIPS does.

    python -m riddle.training.perception --faces results/runs/faces_train.npy --val results/runs/faces_val.npy \
        --minutes 30 --out results/runs/perception

LPIPS needs a backbone that is downloaded. This one is trained here from random weights, so that a face is inverted in
the same way on every machine. Its teacher is LPIPS (squeeze); it sees real faces, varied, and synthetic ones. At first
each part learns alone, from what the teacher's parts before it give; then all together. The loss is the squared
distance between both networks' features of the same face, in units of LPIPS.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from riddle.allocator import keep_memory
from riddle.losses import PerceptualFeatures, blank_perception
from riddle.networks import Synthesis, build_generator, fill_generator
from riddle.presets import get
from riddle.training import recipe
from riddle.training.codes import draw_codes
from riddle.training.inversion import varied
from riddle.training.loop import LoopConfig, faces_to_float, make_accelerator, run, update_average
from riddle.training.schedule import minutes_left, progress_of, rate_share
from riddle.weights import bundled, load_lpips, load_tensors, save_tensors

LR, DECAY = 2e-3, 0.995  # Adam's rate; of the weights' average, a step
ALONE = 0.7  # share of the training in which each part learns alone
RAW = 0.05  # weight, in that time, of the parts' error before their features are normalised: the next part reads those


class PerceptionTask:
    """Student and its average; the frozen teacher and generator."""

    def __init__(self, accelerator: Accelerator, generator: Synthesis, held_out: torch.Tensor, minutes: float):
        self.accelerator, self.generator, self.held_out, self.minutes = accelerator, generator, held_out, minutes
        device = accelerator.device
        self.teacher = PerceptualFeatures(load_lpips("squeeze")).to(device).requires_grad_(False)
        self.student, self.average = blank_perception().to(device), blank_perception().to(device).requires_grad_(False)
        self.average.load_state_dict(self.student.state_dict())
        self.optimiser = torch.optim.Adam(self.student.parameters(), lr=LR, betas=(0.9, 0.99), fused=True)
        self.networks = {"student": self.student, "average": self.average}
        self.optimisers = {"student": self.optimiser}
        self.counters = {"step": 0, "seconds": 0.0}

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        began = time.monotonic()
        progress = progress_of(self.accelerator, progress, self.counters["seconds"], self.minutes)
        for group in self.optimiser.param_groups:
            group["lr"] = LR * rate_share(progress, 0.02)
        real = faces_to_float(batch["faces"])
        real = varied(torch.where(torch.rand(len(real), 1, 1, 1, device=real.device) < 0.5, real.flip(3), real))
        with torch.no_grad():
            with self.accelerator.autocast():
                drawn = self.generator(draw_codes(self.generator, len(real) // 2)).clamp(-1, 1).float()
            faces = torch.cat([real, drawn]).contiguous(memory_format=torch.channels_last)
            raw = self.teacher.raw(faces)
            wanted = self.teacher.weighed(raw)
        if progress < ALONE:
            made = self.parts_alone(faces, raw)
            error = sum((a - b).square().mean() / b.square().mean() for a, b in zip(made, raw, strict=True))
            seen, loss = self.student.weighed(made), RAW * error
        else:
            seen, loss = self.student(faces), 0.0
        apart = sum((a - b).square().sum((1, 2, 3)).mean() for a, b in zip(seen, wanted, strict=True))
        loss = loss + apart
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.counters["step"] += 1
        update_average(self.average, self.student, min(DECAY, 1 - 1 / (1 + self.counters["step"] / 10)))
        self.counters["seconds"] += time.monotonic() - began
        return {"loss": loss, "apart": apart, "gradient": norm}

    def parts_alone(self, faces: torch.Tensor, raw: list[torch.Tensor]) -> list[torch.Tensor]:
        """What each part of the student makes of the teacher's features before it: like `raw`, one a layer."""
        inputs = [(faces - self.student.shift) / self.student.scale, *raw[:-1]]
        return [getattr(self.student.trunk, f"slice{i}")(x.clone()) for i, x in enumerate(inputs, 1)]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On held-out faces: the loss, and how the distances of neighbours agree with the teacher's."""
        faces = faces_to_float(self.held_out.to(self.accelerator.device))
        seen, wanted = self.average(faces), self.teacher(faces)
        apart = [sum((f - f.roll(1, 0)).square().sum((1, 2, 3)) for f in x) for x in (seen, wanted)]
        error = sum((a - b).square().sum((1, 2, 3)).mean() for a, b in zip(seen, wanted, strict=True))
        return {
            "error": round(error.item(), 5),
            "correlation": round(torch.corrcoef(torch.stack(apart))[0, 1].item(), 4),
            "distance": round(apart[0].mean().item(), 4),
            "lpips": round(apart[1].mean().item(), 4),
        }

    def samples(self) -> torch.Tensor | None:
        """A network of features draws no picture."""
        return None


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and the held-out quality."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--faces", required=True, help="uint8 .npy (N, R, R, 3) of riddle.training.prepare faces")
    p.add_argument("--val", required=True, help="the same of held-out faces")
    p.add_argument("--batch", type=int, default=16, help="real faces a step, and half as many synthetic ones")
    p.add_argument("--steps", type=int, default=1_000_000)
    p.add_argument("--minutes", type=float, default=30.0)
    p.add_argument("--out", required=True)
    a = recipe.parse(p, "perception", argv)
    keep_memory()
    preset = get(a.preset)
    loop = LoopConfig(a.out, a.steps, a.batch, save_every=500, minutes=minutes_left(a.out, a.minutes))
    accelerator = make_accelerator(loop)
    generator = fill_generator(build_generator(preset), load_tensors(bundled(preset.name, "generator")))
    generator = generator.to(accelerator.device).eval().requires_grad_(False)
    faces, held_out = (torch.from_numpy(np.load(path)) for path in (a.faces, a.val))
    torch.manual_seed(0)
    task = PerceptionTask(accelerator, generator, held_out[:: max(1, len(held_out) // 96)][:96], a.minutes)
    last = run(task, {"faces": faces}, loop, accelerator)
    quality = task.evaluate()
    last |= quality
    about = {"preset": preset.name, "steps": last["step"], "batch": a.batch, "faces": len(faces), **quality}
    save_tensors(Path(a.out) / "perception.safetensors", task.average.trunk.state_dict(), about)
    print(json.dumps(last))
    return last


if __name__ == "__main__":
    main()
