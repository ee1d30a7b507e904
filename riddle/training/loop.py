"""The one training loop: seeded, resumable to the same numbers, logged, on a CPU, one GPU or several.

A task owns networks and optimisers and knows one step. The loop owns everything else. Each step seeds every
generator from (seed, step, rank), so a resumed run draws what an uninterrupted one would have drawn, and no
generator state is stored.

    python -m riddle.training.parsing --preset mobile --out results/runs/parsing   # one CPU or GPU
    torchrun --nproc-per-node 4 -m riddle.training.parsing ...                    # several GPUs
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from torch import nn

from riddle.progress import track


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know; each task adds its own dataclass."""

    out: str  # folder of the run: state.pt, log.jsonl, samples/
    steps: int = 1000
    batch: int = 32  # over all processes
    seed: int = 0
    log_every: int = 50  # steps a line of log.jsonl
    save_every: int = 500  # steps a checkpoint and a sample grid
    minutes: float = float("inf")  # stop early, cleanly, after this much wall-clock time
    bfloat16: bool | None = None  # None: where the device is faster so, see `bfloat16_is_faster`


class Task(Protocol):
    """Networks, optimisers and one step."""

    networks: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    counters: dict[str, float]  # further numbers that a resumed run needs

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]: ...

    def samples(self) -> torch.Tensor | None: ...


def batches(tensors: dict[str, torch.Tensor], batch: int, seed: int, start: int) -> Iterator[dict[str, torch.Tensor]]:
    """Endless shuffled batches from step `start` on; epoch e has its own permutation, seeded by (seed, e)."""
    n = len(next(iter(tensors.values())))
    if n < batch:
        raise ValueError(f"{n} training items are fewer than one batch of {batch}")
    per_epoch = n // batch
    order, epoch = None, -1
    step = start
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


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Mean of the gradients over the processes; nothing to do for one."""
    if accelerator.num_processes > 1:
        for p in parameters:
            if p.grad is not None:
                p.grad = accelerator.reduce(p.grad, reduction="mean")


def step_optimiser(accelerator: Accelerator, optimiser: torch.optim.Optimizer) -> None:
    """Average gradients over processes, then step and clear."""
    average_gradients(accelerator, [p for g in optimiser.param_groups for p in g["params"]])
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * network; buffers are copied."""
    for a, b in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(b.to(a.dtype), 1 - decay)
    for a, b in zip(average.buffers(), network.buffers(), strict=True):
        a.copy_(b)


def write_atomically(path: Path, state: object) -> None:
    """torch.save to a temporary name, then rename: a stopped run never leaves half a checkpoint."""
    tmp = path.with_name(path.name + ".tmp")
    torch.save(state, tmp)
    os.replace(tmp, path)


def bfloat16_is_faster(device: str | torch.device = "cpu") -> bool:
    """Whether a convolution of the generator's kind runs faster in bfloat16 than in float32: measured, a few ms.

    A GPU with bfloat16 and a CPU with AMX gain severalfold; of CPUs with the AVX512-bf16 instructions alone one took
    twice as long in them, another half as long (measured: 168 against 291, and 602 against 325 GFLOP/s on two cores).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    seconds = {}
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.ones(4, 128, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.ones(128, 128, 3, 3, dtype=dtype)
            runs = []
            for _ in range(4):  # the first one compiles
                began = time.perf_counter()
                F.conv2d(x, weight, padding=1)
                runs.append(time.perf_counter() - began)
            seconds[dtype] = min(runs[1:])
    return seconds[torch.bfloat16] < seconds[torch.float32]


def make_accelerator(config: LoopConfig) -> Accelerator:
    """The device, the processes and the precision of this run."""
    wanted = bfloat16_is_faster(PartialState().device) if config.bfloat16 is None else config.bfloat16
    return Accelerator(mixed_precision="bf16" if wanted else "no")


def run(task: Task, tensors: dict[str, torch.Tensor], config: LoopConfig, accelerator: Accelerator) -> dict:
    """Train `task` on `tensors` (aligned rows) up to `config.steps`; resumes from config.out/state.pt.

    Returns the last logged numbers.
    """
    out = Path(config.out)
    state_file = out / "state.pt"
    main = accelerator.is_main_process
    if main:
        (out / "samples").mkdir(parents=True, exist_ok=True)
    step = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=accelerator.device, weights_only=True)
        for kind in ("networks", "optimisers"):
            for name, part in getattr(task, kind).items():
                part.load_state_dict(state[kind][name])
        task.counters.update(state["counters"])
        step = state["step"]
    share = config.batch // accelerator.num_processes
    rows = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    stream = batches(tensors, config.batch, config.seed, step)
    bar = track(None, out.name, config.steps, "step", initial=step, disable=not main)
    began, sums, count, last = time.monotonic(), {}, 0, {}

    def save() -> None:
        if not main:
            return
        kinds = ("networks", "optimisers")
        parts = {kind: {k: v.state_dict() for k, v in getattr(task, kind).items()} for kind in kinds}
        write_atomically(state_file, {**parts, "counters": dict(task.counters), "step": step})
        if (grid := task.samples()) is not None:
            save_grid(grid, out / "samples" / f"{step:07d}.png")

    while step < config.steps and (time.monotonic() - began) / 60 < config.minutes:
        set_seed(hash_seed(config.seed, step, accelerator.process_index))
        batch = {k: v[rows].to(accelerator.device, non_blocking=True) for k, v in next(stream).items()}
        numbers = task.step(batch, step / config.steps)
        step, count = step + 1, count + 1
        for key, value in numbers.items():
            value = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(float(value))
            sums.setdefault(key, []).append(value.float().cpu())
        bar.update()
        if step % config.log_every == 0 or step == config.steps:
            last = {k: round(torch.stack(v).mean().item(), 6) for k, v in sums.items()}
            rate = count * config.batch / (time.monotonic() - began)
            line = {"step": step, "images": step * config.batch, "images_per_s": round(rate, 2), **last}
            sums = {}
            bar.set_postfix({k: f"{v:.3g}" for k, v in list(last.items())[:5]})
            if main:
                with open(out / "log.jsonl", "a") as f:
                    f.write(json.dumps(line) + "\n")
        if step % config.save_every == 0:
            save()
    save()
    bar.close()
    if main:
        (out / "config.json").write_text(json.dumps(asdict(config), indent=1, default=str))
    return {"step": step, **last}


def hash_seed(seed: int, step: int, rank: int) -> int:
    """One 32-bit seed from three numbers."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def save_grid(faces: torch.Tensor, path: Path, columns: int = 8) -> None:
    """Faces (N, 3, R, R) in [-1, 1] -> one PNG."""
    from PIL import Image

    x = faces.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    x = x[: len(x) // columns * columns or len(x)]
    columns = min(columns, len(x))
    grid = np.concatenate([np.concatenate(list(row), 1) for row in np.split(x, len(x) // columns)], 0)
    Image.fromarray(grid).save(path)
