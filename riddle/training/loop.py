"""The one training loop: seeded, resumable to the same numbers, logged, on a CPU, one GPU or several.

A task holds a network, its running average and its optimiser, and gives the loss of a batch. The loop does the rest.
Each step seeds every generator from (seed, step, rank), so a resumed run draws what an uninterrupted one would have
drawn, and no generator state is stored.

    python -m riddle.training.parsing --recipe mobile                          # one CPU or GPU
    torchrun --nproc-per-node 4 -m riddle.training.parsing --recipe mobile     # several GPUs
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from PIL import Image
from torch import nn

from riddle.files import replace_file, write_text
from riddle.images import to_bytes
from riddle.machine import bfloat16_is_faster
from riddle.presets import get
from riddle.progress import track

Numbers = dict[str, torch.Tensor | float]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training is told; each network's own configuration adds to it."""

    out: str  # folder of the run: config.json, state.pt, log.jsonl, samples/
    preset: str = "mobile"  # of riddle.presets
    steps: int = 1000  # at most
    minutes: float = float("inf")  # at most, over all parts of an interrupted run
    batch: int = 32  # over all processes
    seed: int = 0
    warmup: float = 0.02  # share of the run in which the rate rises; then it falls to zero as a cosine
    ema: float = 0.999  # decay a step of the weights' running average, which is what is kept
    clip: float = 1.0  # largest norm of the gradient
    log_every: int = 50  # steps between two lines of log.jsonl
    save_every: int = 500  # steps between two checkpoints, each with samples and with numbers of held-out data
    bfloat16: bool | None = None  # without: where the device is faster so

    def __post_init__(self) -> None:
        get(self.preset)


EXTENDED = ("out", "steps", "minutes", "log_every", "save_every")  # options that may change when a run goes on


class Task:
    """A network, its running average and its optimiser, which a checkpoint holds by name; a subclass adds the loss."""

    def __init__(
        self, config: LoopConfig, accelerator: Accelerator, name: str, network: nn.Module,
        optimiser: torch.optim.Optimizer, shared: Sequence[nn.Module] = (),
    ):  # fmt: skip
        """name: of the network in a checkpoint; shared: frozen modules that it and its average refer to."""
        self.config, self.accelerator = config, accelerator
        self.network, self.optimiser = network, optimiser
        self.average = copy.deepcopy(network, {id(m): m for m in shared}).eval().requires_grad_(False)
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.networks: dict[str, nn.Module] = {name: network, "average": self.average}
        self.optimisers = {name: optimiser}
        self.counters: dict[str, float] = {"step": 0, "seconds": 0.0}

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        """The loss of a batch, and numbers for the log; progress: share of the run that is done."""
        raise NotImplementedError

    def part(self, progress: float) -> float:
        """Where the learning rate is on its way from warm-up to zero, 0 to 1."""
        return progress

    def after_backward(self) -> Numbers:
        """What else a step does before the optimiser's, and numbers for the log."""
        return {}

    def validate(self) -> dict[str, float]:
        """Numbers of held-out data, logged at each checkpoint under val_<name>."""
        return {}

    def samples(self) -> torch.Tensor | None:
        """Faces (N, 3, R, R) that show how far the network is."""
        return None

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> Numbers:
        """One step of the optimiser; a gradient that is not finite is left out."""
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_share(self.part(progress), self.config.warmup)
        loss, numbers = self.loss(batch, progress)
        self.accelerator.backward(loss)
        numbers = {"loss": loss, **numbers, **self.after_backward()}
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            for p in parameters:
                p.grad = self.accelerator.reduce(p.grad, reduction="mean")
        numbers["gradient"] = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        if torch.isfinite(numbers["gradient"]):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.counters["step"] += 1
        update_average(self.average, self.network, min(self.config.ema, 1 - 1 / (1 + self.counters["step"] / 10)))
        return numbers

    def load(self, state: dict) -> None:
        """Go on from a checkpoint."""
        for kind in ("networks", "optimisers"):
            for name, part in getattr(self, kind).items():
                part.load_state_dict(state[kind][name])
        self.counters.update(state["counters"])

    def save(self, step: int) -> None:
        """Write `<out>/state.pt` and a grid of samples."""
        out, kinds = Path(self.config.out), ("networks", "optimisers")
        parts = {kind: {k: v.state_dict() for k, v in getattr(self, kind).items()} for kind in kinds}
        with replace_file(out / "state.pt") as temporary:
            torch.save({**parts, "counters": dict(self.counters), "step": step}, temporary)
        if (faces := self.samples()) is not None:
            save_grid(faces, out / "samples" / f"{step:07d}.png")


def rate_share(progress: float, warmup: float) -> float:
    """Share of the full rate at progress 0 to 1: a linear warm-up, then a cosine to zero."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1.0)))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network; buffers are copied."""
    for a, b in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(b.to(a.dtype), 1 - decay)
    for a, b in zip(average.buffers(), network.buffers(), strict=True):
        a.copy_(b)


def batches(tensors: dict[str, torch.Tensor], batch: int, seed: int, start: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless shuffled batches from step `start` on; epoch e has its own permutation, seeded by (seed, e)."""
    n = len(next(iter(tensors.values())))
    if n < batch:
        raise ValueError(f"{n} training items are fewer than one batch of {batch}")
    per_epoch, order, epoch, step = n // batch, None, -1, start
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng([seed, epoch]).permutation(n)
        rows = torch.from_numpy(order[step % per_epoch * batch :][:batch])
        yield {k: v[rows] for k, v in tensors.items()}
        step += 1


def faces_to_float(x: torch.Tensor) -> torch.Tensor:
    """uint8 (N, R, R, 3) -> float (N, 3, R, R) in [-1, 1], channels_last in memory."""
    return x.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def save_grid(faces: torch.Tensor, path: Path, columns: int = 8) -> None:
    """Faces (N, 3, R, R) in [-1, 1] -> one PNG, row by row."""
    pictures = to_bytes(faces)
    pictures = pictures[: len(pictures) // columns * columns or len(pictures)]
    rows = np.split(pictures, -(-len(pictures) // columns))
    with replace_file(path) as temporary:
        Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows])).save(temporary)


def make_accelerator(config: LoopConfig) -> Accelerator:
    """The device, the processes and the precision of this run."""
    wanted = bfloat16_is_faster(PartialState().device) if config.bfloat16 is None else config.bfloat16
    return Accelerator(mixed_precision="bf16" if wanted else "no")


def claim_folder(config: LoopConfig) -> None:
    """Write `<out>/config.json` before a run starts. Raises ValueError where another configuration's run lies there."""
    path, now = Path(config.out) / "config.json", asdict(config)
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := [k for k in now if k not in EXTENDED and k in before and before[k] != now[k]]:
            raise ValueError(
                f"{path} is of another run ({', '.join(differing)} differ); give the same options to go on with it, "
                "or another --out"
            )
    write_text(path, json.dumps(now, indent=1) + "\n")


def progress_of(task: Task, step: int, seconds: float) -> float:
    """Share of a run that is done, by steps or by minutes, whichever is further; all processes get the same."""
    if math.isinf(task.config.minutes):
        return step / task.config.steps
    if task.accelerator.num_processes > 1:
        spent = torch.tensor(seconds, device=task.accelerator.device)
        seconds = task.accelerator.reduce(spent, reduction="mean").item()
    return max(step / task.config.steps, seconds / 60 / task.config.minutes if task.config.minutes else 1.0)


def run(task: Task, tensors: dict[str, torch.Tensor]) -> dict:
    """Train on `tensors` (aligned rows) until the steps or the minutes are over; goes on from `<out>/state.pt`.

    Returns the last logged numbers. Raises ValueError where the folder holds a run of another configuration.
    """
    config, accelerator, out = task.config, task.accelerator, Path(task.config.out)
    main, rank, step = accelerator.is_main_process, accelerator.process_index, 0
    if main:
        claim_folder(config)
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", map_location=accelerator.device, weights_only=True)
        task.load(state)
        step = state["step"]
    share = config.batch // accelerator.num_processes
    rows = slice(rank * share, (rank + 1) * share)
    stream = batches(tensors, config.batch, config.seed, step)
    bar = track(None, out.name, config.steps, "step", initial=step, disable=not main)
    first, began, before, seen, last = step, time.monotonic(), task.counters["seconds"], {}, {}
    while (progress := progress_of(task, step, before + time.monotonic() - began)) < 1:
        set_seed(hash_seed(config.seed, step, rank))
        batch = {k: v[rows].to(accelerator.device, non_blocking=True) for k, v in next(stream).items()}
        numbers, step = task.step(batch, progress), step + 1
        saving, spent = step % config.save_every == 0, time.monotonic() - began
        task.counters["seconds"] = before + spent
        if saving:
            numbers |= {f"val_{k}": v for k, v in task.validate().items()}
        for key, value in numbers.items():
            seen.setdefault(key, []).append(torch.as_tensor(value).detach().float().cpu())
        bar.update()
        if step % config.log_every == 0 or step == config.steps:
            last = {k: round(torch.stack(v).mean().item(), 6) for k, v in seen.items()}
            rate = (step - first) * config.batch / spent
            seen = {}
            bar.set_postfix({k: f"{v:.3g}" for k, v in list(last.items())[:5]})
            if main:
                line = {"step": step, "images": step * config.batch, "images_per_s": round(rate, 2), **last}
                with open(out / "log.jsonl", "a") as f:
                    f.write(json.dumps(line) + "\n")
        if saving and main:
            task.save(step)
    if main and not (step > first and step % config.save_every == 0):
        task.save(step)
    bar.close()
    return {"step": step, **last}


def hash_seed(seed: int, step: int, rank: int) -> int:
    """One 32-bit seed from three numbers."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
