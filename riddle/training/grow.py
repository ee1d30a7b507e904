"""Grow the networks of one preset to twice its resolution, then train generator and encoder on, together.

    python -m riddle.training.grow --preset face128 --from data/zoo/mini --data train128.npy --minutes 9 \
        --out results/runs/face128
    python -m riddle.training.grow plan        # the commands of a 30-minute loan of a GPU, in order

`riddle.training.growth` makes the larger networks, so that the first picture is the small one's, upsampled; the losses,
rates and steps afterwards are those of `riddle.training.inversion --tune-generator`.

OUT/start holds the grown networks as they were; OUT the trained ones (generator, encoder, discriminator.safetensors),
from which `riddle.training.inversion --preset face128 --generator OUT --tune-generator` goes on as well. The same
command again resumes from OUT/state.pt, or from its parts of at most 16 MiB in OUT/parts where only they are there.
Needs the recogniser that the preset trains against and LPIPS's SqueezeNet (`python -m riddle.zoo`), no detector.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from riddle.allocator import keep_memory
from riddle.models.inversion import Encoder
from riddle.models.stylegan2 import Generator
from riddle.presets import Preset, get
from riddle.training import shards
from riddle.training.gan import GANConfig, GANTask
from riddle.training.growth import (
    State,
    doublings,
    grow_codes,
    grow_discriminator,
    grow_encoder,
    grow_generator,
    teach,
    upsample,
)
from riddle.training.inversion import InversionTask
from riddle.training.loop import LoopConfig, make_accelerator, run
from riddle.training.parts import MANIFEST, join_state, slim, split_state
from riddle.training.settings import InversionConfig, changed
from riddle.training.start import go_on, load_published
from riddle.training.throughput import Meter, compile_networks, tune
from riddle.zoo import load_lpips, load_metadata, save_tensors, write_text

PARTS = ("generator", "discriminator", "encoder")
TEACHING = 1 / 8  # of a call's minutes, at most, for the encoder to learn the small one's codes


def load_small(folder: Path, name: str | None = None) -> tuple[Preset, dict[str, State]]:
    """A folder of published weights and the preset they are of: `name`, or what their metadata tell.

    Raises FileNotFoundError without generator and encoder, ValueError where nothing tells the preset.
    """
    found = load_published(folder)
    if "encoder" not in found:
        raise FileNotFoundError(f"{folder} holds no encoder.safetensors; pass the folder of a preset's weights")
    name = name or load_metadata(folder / "generator.safetensors").get("preset")
    if not name:
        raise ValueError(f"{folder}/generator.safetensors does not tell its preset; pass --from-preset")
    return get(name), found


def grow(
    old: dict[str, State],
    small: Preset,
    preset: Preset,
    faces: torch.Tensor,
    out: Path,
    accelerator: Accelerator,
    steps: int,
    batch: int,
    seed: int = 0,
    seconds: float = math.inf,
) -> dict[str, float]:
    """Grow the published networks `old`, teach the encoder on `faces`, write all to `out`; returns what was measured.

    steps, batch, seconds: of `teach`. "difference" is the largest one between a picture of the grown generator and
    the small one's, upsampled, over random codes ([-1, 1] is white to black).
    """
    torch.manual_seed(seed)
    g, before = grow_generator(old["generator"], small, preset).eval(), Generator.of(small).eval()
    before.load_state_dict(old["generator"])
    with torch.no_grad():
        w = before.spread(before.map(torch.randn(8, small.style_dim)))
        wanted = upsample(before(w), doublings(small, preset))
        numbers = {"difference": (g(grow_codes(w, preset.n_latent)) - wanted).abs().max().item()}
    networks: dict[str, nn.Module] = {"generator": g, "encoder": grow_encoder(old["encoder"], preset)}
    if small.resolution != preset.resolution:
        e_small = Encoder(small)
        e_small.load_state_dict(old["encoder"])
        taught = teach(networks["encoder"], e_small, faces, steps, batch, accelerator, seed, seconds)
        numbers |= {f"codes_{k}": v for k, v in taught.items()}
    if "discriminator" in old:
        networks["discriminator"] = grow_discriminator(old["discriminator"], small, preset)
    about = {"preset": preset.name, "grown_from": small.name, "seed": seed}
    for name, network in networks.items():  # float32: float16 would move the start
        save_tensors(out / f"{name}.safetensors", network.state_dict(), about, dtype=torch.float32)
    write_text(out / "grown.json", json.dumps({**about, **numbers}, indent=1) + "\n")
    return numbers


# ---- training on


@dataclass(frozen=True)
class GrowConfig:
    """The schedule of a run; losses and rates are those of InversionConfig."""

    out: Path
    minutes: float = math.inf  # of this call, from its beginning to its end
    steps: int = 100_000  # at most
    batch: int = 64
    seed: int = 0
    save_minutes: float = 2.0  # between two saves of the state
    log_every: int = 50  # steps
    slim: bool = False  # parts with averages and moments in bfloat16, for places with little room


class GrowTask(InversionTask):
    """Inversion training that measures itself."""

    meter, compiles = None, False

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        lazy = self.counters["step"] % self.gan.config.r1_every == 0  # R1 is no part of a usual step
        if self.meter is None:
            numbers = super().step(batch, progress)
        elif self.meter.step_gflop is None and not lazy:
            with self.meter.count() as counter:
                numbers = super().step(batch, progress)
            self.meter.counted(counter)
            if self.compiles:
                compile_networks([self.gan.g, self.e], self.accelerator.device)
        else:
            at = self.meter.start()
            numbers = super().step(batch, progress)
            self.meter.add(at)
        return numbers


def export(task: InversionTask, out: Path, step: int, seed: int) -> None:
    """Write generator and encoder (the averages) and discriminator as float16 safetensors."""
    about = {"preset": task.preset.name, "steps": step, "images": int(task.counters["images"]), "seed": seed}
    for name, network in zip(PARTS, (task.gan.g_ema, task.gan.d, task.e_ema), strict=True):
        save_tensors(out / f"{name}.safetensors", network.state_dict(), about)


def save_parts(out: Path, slimmed: bool) -> list[Path]:
    """OUT/state.pt as parts in OUT/parts."""
    source = out / "state.pt"
    if slimmed:
        source = out / ".slim.pt"
        torch.save(slim(torch.load(out / "state.pt", map_location="cpu", weights_only=True)), source)
    parts = split_state(source, out / "parts")
    if slimmed:
        source.unlink()
    return parts


def train(task: GrowTask, faces: torch.Tensor, config: GrowConfig, accelerator: Accelerator, began: float) -> dict:
    """Train until the steps or the minutes since `began` (time.monotonic) are over, saving on the way.

    Resumes from OUT/state.pt, or from OUT/parts. Returns the last logged numbers.
    """
    out, step, last = config.out, 0, {}
    if not (out / "state.pt").exists() and (out / "parts" / MANIFEST).exists():
        join_state(out / "parts", out / "state.pt")
    tensors = {"faces": faces.to(accelerator.device)}  # uint8: 50 KB a face at 128 px
    while step < config.steps:
        left = config.minutes - (time.monotonic() - began) / 60
        left -= min(0.3, 0.05 * config.minutes)  # for the last save
        if left <= 0:
            break
        loop = LoopConfig(
            str(out), config.steps, config.batch, config.seed, config.log_every, config.steps + 1,
            min(left, config.save_minutes),
        )  # fmt: skip
        now = run(task, tensors, loop, accelerator)
        last, done = {**last, **now}, now["step"] - step
        step = now["step"]
        if accelerator.is_main_process:
            save_parts(out, config.slim)
            if task.meter is not None and (speed := task.meter.speed(config.batch)):
                last["images_per_s"] = speed.images_per_s
                print(f"step {step}, {int(task.counters['images'])} images: {speed}")
        if not done:
            break
    if step and accelerator.is_main_process:
        export(task, out, step, config.seed)
    return {**last, "step": step}


def load_faces(path: Path, preset: Preset) -> torch.Tensor:
    """uint8 (N, R, R, 3) from a .npy or from shards. Raises ValueError for another size, ShardError."""
    if path.suffix != ".npy":
        return torch.from_numpy(shards.read(path, preset))
    faces = np.load(path)
    if faces.dtype != np.uint8 or faces.shape[1:] != (preset.resolution, preset.resolution, 3):
        side = preset.resolution
        raise ValueError(f"{path} holds {faces.dtype} {faces.shape}, not uint8 (N, {side}, {side}, 3); prepare it anew")
    return torch.from_numpy(faces)


def build(
    preset: Preset,
    folder: Path,
    config: InversionConfig,
    accelerator: Accelerator,
    perceptual: nn.Module,
    embed: Callable[[torch.Tensor], torch.Tensor],
    faces: torch.Tensor,
    preview: torch.Tensor | None = None,
) -> GrowTask:
    """The task that trains on from a folder of published-style weights; arguments as for InversionTask."""
    gan = GANTask(preset, GANConfig(), accelerator)
    published = go_on(gan, folder)
    task = GrowTask(preset, config, accelerator, gan, perceptual, embed, preview, faces)
    task.e.load_state_dict(published["encoder"])
    task.e_ema.load_state_dict(published["encoder"])
    return task


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Command line of this module."""
    cuda = torch.cuda.is_available()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="face128")
    p.add_argument("--from", dest="source", type=Path, required=True, help="folder of the small preset's weights")
    p.add_argument("--from-preset", help="the small preset; default: what its weights tell")
    p.add_argument("--data", type=Path, required=True, help="uint8 .npy (N, R, R, 3), a shard, or a folder of shards")
    p.add_argument("--preview", type=Path, help="the same of faces to show in the sample grid")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--minutes", type=float, default=math.inf, help="of this call, loading and saving included")
    p.add_argument("--total-minutes", type=float, help="of all calls, for the rates' fall; default: --minutes")
    p.add_argument("--steps", type=int, default=GrowConfig.steps)
    p.add_argument("--batch", type=int, default=64 if cuda else 12)
    p.add_argument("--teach-steps", type=int, default=1000 if cuda else 200, help="of the encoder, before the training")
    p.add_argument("--save-minutes", type=float, default=GrowConfig.save_minutes)
    p.add_argument("--log-every", type=int, default=GrowConfig.log_every)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--slim", action="store_true", help="smaller parts: averages and moments in bfloat16")
    p.add_argument("--compile", action="store_true", help="torch.compile of generator and encoder, on CUDA only")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a number of InversionConfig")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> dict:
    """Grow, unless that was done before, then train; or print the plan. Returns the last logged numbers."""
    began, argv = time.monotonic(), sys.argv[1:] if argv is None else argv
    if argv[:1] == ["plan"]:
        from riddle.training.loan import main as print_plan

        print_plan(argv[1:])
        return {}
    from riddle.faces import recognizers

    a = parse_arguments(argv)
    keep_memory()
    config = GrowConfig(
        a.out, a.minutes, a.steps, a.batch, a.seed,
        a.save_minutes, a.log_every, a.slim,
    )  # fmt: skip
    preset, accelerator = get(a.preset), make_accelerator(LoopConfig(out=str(a.out)))
    tune(accelerator.device)
    faces = load_faces(a.data, preset)
    start = a.out / "start"
    if not (start / "grown.json").exists():
        small, old = load_small(a.source, a.from_preset)
        seconds = a.minutes * 60 * TEACHING
        numbers = grow(old, small, preset, faces, start, accelerator, a.teach_steps, a.batch, a.seed, seconds)
        print("grown: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
    judge = recognizers.load(preset.identity, device=str(accelerator.device))
    settings = ["progressive=0", f"adversarial_batch={a.batch}", *a.set]
    torch.manual_seed(a.seed)
    total = a.minutes if a.total_minutes is None else a.total_minutes
    task = build(
        preset, start, changed(InversionConfig(tune_generator=True, minutes=total), settings), accelerator,
        load_lpips("squeeze").to(accelerator.device), lambda x: judge.from_crop(x, preset.framing), faces,
        load_faces(a.preview, preset) if a.preview else None,
    )  # fmt: skip
    task.meter, task.compiles = Meter(accelerator), a.compile
    print(f"{accelerator.device}, {task.meter.precision}: matrix product {task.meter.peak:,.0f} GFLOP/s")
    return train(task, faces, config, accelerator, began)


if __name__ == "__main__":
    main()
