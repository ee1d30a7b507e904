"""Train the network with which the encoder compares faces: a SqueezeNet trained to reproduce LPIPS.

    python -m riddle.training.perception --recipe mobile

LPIPS needs a backbone that is downloaded. This one is trained here from random weights, so that a face is inverted in
the same way on every machine. Its teacher is LPIPS (squeeze); it sees real faces, varied, and synthetic ones. At first
each part learns alone, from what the teacher's parts before it give; then all together. The loss is the squared
distance between both networks' features of the same face, in units of LPIPS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from riddle.images import to_tensor
from riddle.losses import PerceptualFeatures, lpips_loss, random_lpips
from riddle.networks import Synthesis
from riddle.presets import get
from riddle.training import recipe
from riddle.training.frozen import draw_codes, frozen_generator
from riddle.training.inversion import varied
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, run, spread
from riddle.weights import load_lpips


@dataclass(frozen=True, kw_only=True)
class PerceptionConfig(LoopConfig):
    """Faces and rates."""

    faces: str  # uint8 .npy (N, R, R, 3) of riddle.training.prepare faces
    val: str  # the same of held-out faces
    steps: int = 1_000_000
    minutes: float = 30.0
    batch: int = 16  # real faces per step, and half as many synthetic ones
    lr: float = 2e-3  # Adam
    ema: float = 0.995  # decay per step of the weights' average
    alone: float = 0.7  # share of the training in which each part learns alone
    raw: float = 0.05  # weight of the error of features before they are normalised, which the next part reads


class PerceptionTask(Task):
    """The student; the frozen teacher and generator."""

    def __init__(
        self, config: PerceptionConfig, accelerator: Accelerator, generator: Synthesis, held_out: torch.Tensor
    ):
        """held_out: uint8 (N, R, R, 3), faces that training never sees."""
        self.generator, self.held_out = generator, held_out
        self.teacher = PerceptualFeatures.of(load_lpips("squeeze")).to(accelerator.device).requires_grad_(False)
        student = PerceptualFeatures.of(random_lpips()).requires_grad_(True).to(accelerator.device)
        optimiser = torch.optim.Adam(student.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=True)
        super().__init__(config, accelerator, "student", student, optimiser)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        real = varied(to_tensor(batch["faces"]))
        with torch.no_grad():
            with self.accelerator.autocast():
                synthetic = self.generator(draw_codes(self.generator, len(real) // 2)).clamp(-1, 1).float()
            faces = torch.cat([real, synthetic]).contiguous(memory_format=torch.channels_last)
            raw = self.teacher.raw(faces)
            wanted = self.teacher.weighed(raw)
        loss, made = 0.0, None
        if progress < self.config.alone:
            made = self.parts_alone(faces, raw)
            error = sum((a - b).square().mean() / b.square().mean() for a, b in zip(made, raw, strict=True))
            loss = self.config.raw * error
        seen = self.network(faces) if made is None else self.network.weighed(made)
        apart = lpips_loss(wanted, seen)
        return loss + apart, {"apart": apart}

    def parts_alone(self, faces: torch.Tensor, raw: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each part of the student on the teacher's features before it: like `raw`, one tensor per layer."""
        inputs = [(faces - self.network.shift) / self.network.scale, *raw[:-1]]
        return [getattr(self.network.trunk, f"slice{i}")(x.clone()) for i, x in enumerate(inputs, 1)]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On held-out faces: the loss, and how the distances of neighbours agree with the teacher's."""
        faces = to_tensor(self.held_out.to(self.accelerator.device))
        seen, wanted = self.average(faces), self.teacher(faces)
        apart = [sum((f - f.roll(1, 0)).square().sum((1, 2, 3)) for f in x) for x in (seen, wanted)]
        return {
            "error": round(lpips_loss(wanted, seen).item(), 5),
            "correlation": round(torch.corrcoef(torch.stack(apart))[0, 1].item(), 4),
            "distance": round(apart[0].mean().item(), 4),
            "lpips": round(apart[1].mean().item(), 4),
        }


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and the held-out quality."""
    config = recipe.parse(PerceptionConfig, "perception", __doc__, argv)
    accelerator = make_accelerator(config)
    generator = frozen_generator(get(config.preset), "", accelerator.device)
    faces, held_out = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in (config.faces, config.val))
    torch.manual_seed(config.seed)
    task = PerceptionTask(config, accelerator, generator, spread(held_out))
    last = run(task, {"faces": faces})
    quality = task.evaluate()
    about = {"preset": config.preset, "steps": last["step"], "batch": config.batch, "faces": len(faces), **quality}
    return finish(task, "perception", last | quality, about, task.average.trunk)


if __name__ == "__main__":
    recipe.command(main)
