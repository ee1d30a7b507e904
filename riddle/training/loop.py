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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from torch import nn
from torchvision.utils import save_image

from riddle.files import replace_file, write_text
from riddle.machine import bfloat16_is_faster, keep_memory
from riddle.presets import get
from riddle.progress import track
from riddle.weights import save_tensors

Numbers = dict[str, torch.Tensor | float]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The options of every training; each network's own configuration adds to them."""

    out: str  # folder of the run: config.json, state.pt, log.jsonl, samples/
    preset: str = "mobile"  # of riddle.presets
    steps: int = 1000  # at most
    minutes: float = float("inf")  # at most, over all parts of an interrupted run
    batch: int = 32  # over all processes
    accumulate: int = 1  # parts of a process's share of a batch, whose gradients are added up: less memory
    seed: int = 0
    warmup: float = 0.02  # share of the run in which the rate rises; then it falls to zero as a cosine
    ema: float = 0.999  # decay per step of the weights' running average, which is what is kept
    clip: float = 1.0  # largest norm of the gradient
    log_every: int = 50  # steps between two lines of log.jsonl
    save_every: int = 500  # steps between two checkpoints, each with samples and with numbers of held-out data
    bfloat16: bool | None = None  # without: where the device is faster so

    def __post_init__(self) -> None:
        get(self.preset)


EXTENDED = (  # options that may change when a run goes on
    "out", "steps", "minutes", "log_every", "save_every", "accumulate", "checkpoint",
)  # fmt: skip


class Task:
    """A network, its running average and its optimiser; a subclass adds the loss."""

    def __init__(
        self, config: LoopConfig, accelerator: Accelerator, name: str, network: nn.Module,
        optimiser: torch.optim.Optimizer, shared: Sequence[nn.Module] = (),
    ):  # fmt: skip
        """name: of the network in a checkpoint; shared: frozen modules that it and its average refer to.

        Raises ValueError for a batch that does not divide into equal parts.
        """
        parts = accelerator.num_processes * config.accumulate
        if parts < 1 or config.batch % parts:
            raise ValueError(
                f"--batch {config.batch} does not divide into {accelerator.num_processes} (processes) x "
                f"{config.accumulate} (--accumulate) equal parts; change one of them"
            )
        self.config, self.accelerator = config, accelerator
        self.network, self.optimiser = network, optimiser
        self.average = copy.deepcopy(network, {id(m): m for m in shared}).eval().requires_grad_(False)
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.networks: dict[str, nn.Module] = {name: network, "average": self.average}
        self.optimisers = {name: optimiser}
        self.counters: dict[str, float] = {"step": 0, "seconds": 0.0}

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        """The loss of a batch {name: (B, ...)}, a scalar, and numbers for the log; progress: share of the run done."""
        raise NotImplementedError

    def part(self, progress: float) -> float:
        """Progress of the learning rate from warm-up to zero, 0 to 1."""
        return progress

    def validate(self) -> dict[str, float]:
        """Numbers of held-out data, logged at each checkpoint under val_<name>."""
        return {}

    def samples(self) -> torch.Tensor | None:
        """Faces (N, 3, R, R) that show the progress of the network."""
        return None

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> Numbers:
        """One step of the optimiser; a gradient that is not finite is left out."""
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_share(self.part(progress), self.config.warmup)
        numbers = self.gradients(batch, progress)
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            for p in parameters:
                p.grad = self.accelerator.reduce(p.grad, reduction="mean")
        gradient = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        if torch.isfinite(gradient):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.counters["step"] += 1
        update_average(self.average, self.network, min(self.config.ema, 1 - 1 / (1 + self.counters["step"] / 10)))
        return numbers | {"gradient": gradient}

    def gradients(self, batch: dict[str, torch.Tensor], progress: float) -> Numbers:
        """Add the gradients of the batch's mean loss, part by part; returns the means of the parts' numbers.

        The sum is that of the whole batch where the loss is a mean over independent rows. It differs where rows meet
        or something is drawn: `linked` pairs rows of one part, `pixels` publishes shares of it in different ways, every
        part draws its own helper codes, passwords and noise, and a critic or a coach learns from the last part alone.
        """
        n, seen = self.config.accumulate, []
        for rows in zip(*(v.chunk(n) for v in batch.values()), strict=True):
            loss, numbers = self.loss(dict(zip(batch, rows, strict=True)), progress)
            self.accelerator.backward(loss / n)
            seen.append({k: torch.as_tensor(v).detach() for k, v in {"loss": loss, **numbers}.items()})
        return {k: sum(part[k] for part in seen) / n for k in seen[0]}

    def load(self, state: dict) -> None:
        """Go on from a checkpoint, as `save` writes it."""
        for kind in ("networks", "optimisers"):
            for name, part in getattr(self, kind).items():
                part.load_state_dict(state[kind][name])
        self.counters.update(state["counters"])

    def save(self) -> None:
        """Write `<out>/state.pt` and a grid of samples."""
        out, kinds = Path(self.config.out), ("networks", "optimisers")
        parts = {kind: {k: v.state_dict() for k, v in getattr(self, kind).items()} for kind in kinds}
        with replace_file(out / "state.pt") as temporary:
            torch.save({**parts, "counters": dict(self.counters)}, temporary)
        if (faces := self.samples()) is not None:
            with replace_file(out / "samples" / f"{self.counters['step']:07d}.png") as temporary:
                save_image(faces.float(), temporary, nrow=8, padding=0, normalize=True, value_range=(-1, 1))


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
    """Endless shuffled batches {name: (batch, ...)} of tensors {name: (N, ...)}, from step `start` on.

    Epoch e has its own permutation, seeded by (seed, e). Raises ValueError where N is less than one batch.
    """
    n = len(next(iter(tensors.values())))
    if n < batch:
        raise ValueError(f"{n} training items are fewer than one batch of {batch}: prepare more, or hold out fewer")
    for step in count(start):
        epoch, place = divmod(step, n // batch)
        if step == start or place == 0:
            order = np.random.default_rng([seed, epoch]).permutation(n)
        rows = torch.from_numpy(order[place * batch :][:batch])
        yield {k: v[rows] for k, v in tensors.items()}


def spread(items: torch.Tensor, n: int = 96) -> torch.Tensor:
    """An evenly spaced subset (at most n, ...) of items (N, ...), for evaluation."""
    return items[:: max(1, len(items) // n)][:n]


@torch.no_grad()
def means(numbers: Callable[..., dict[str, torch.Tensor]], *items: torch.Tensor, batch: int = 16) -> dict[str, float]:
    """The mean of each of the `numbers` (N, ...) that a function gives of N items, batch by batch."""
    rows = [numbers(*part) for part in zip(*(x.split(batch) for x in items), strict=True)]
    return {k: torch.cat([row[k].flatten().float() for row in rows]).mean().item() for k in rows[0]}


def make_accelerator(config: LoopConfig) -> Accelerator:
    """The device, the processes and the precision of this run, whose process keeps its memory from here on."""
    keep_memory()
    processes = PartialState(cpu=not torch.accelerator.is_available())  # otherwise torchrun's would not meet on a CPU
    wanted = bfloat16_is_faster(processes.device) if config.bfloat16 is None else config.bfloat16
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


def progress_of(task: Task, seconds: float) -> float:
    """Share of a run that is done, by steps or by minutes, whichever is further; all processes get the same."""
    config, accelerator = task.config, task.accelerator
    if accelerator.num_processes > 1 and math.isfinite(config.minutes):
        seconds = accelerator.reduce(torch.tensor(seconds, device=accelerator.device), reduction="mean").item()
    return max(task.counters["step"] / config.steps, seconds / 60 / config.minutes if config.minutes else 1.0)


def run(task: Task, tensors: dict[str, torch.Tensor]) -> dict:
    """Train on `tensors` (aligned rows) until the steps or the minutes are over; goes on from `<out>/state.pt`.

    Returns the last logged numbers. Raises ValueError where the folder holds a run of another configuration.
    """
    config, accelerator, counters, out = task.config, task.accelerator, task.counters, Path(task.config.out)
    main, rank = accelerator.is_main_process, accelerator.process_index
    if main:
        claim_folder(config)
    if (out / "state.pt").exists():
        task.load(torch.load(out / "state.pt", map_location="cpu", weights_only=True))
    first, before, began, seen, last = counters["step"], counters["seconds"], time.monotonic(), {}, {}
    share = config.batch // accelerator.num_processes
    rows = slice(rank * share, (rank + 1) * share)
    stream = batches(tensors, config.batch, config.seed, first)
    bar = track(None, out.name, config.steps, "step", initial=first, disable=not main)
    while (progress := progress_of(task, before + time.monotonic() - began)) < 1:
        set_seed(int(np.random.SeedSequence([config.seed, counters["step"], rank]).generate_state(1)[0]))
        batch = {k: v[rows].to(accelerator.device, non_blocking=True) for k, v in next(stream).items()}
        numbers = task.step(batch, progress)
        step, spent = counters["step"], time.monotonic() - began
        counters["seconds"] = before + spent
        if step % config.save_every == 0:
            if main:  # first, so that an evaluation that ends the program, as by a lack of memory, loses no step
                task.save()
            numbers |= {f"val_{k}": v for k, v in task.validate().items()}
        for key, value in numbers.items():
            seen.setdefault(key, []).append(torch.as_tensor(value).detach().float().cpu())
        bar.update()
        if step % config.log_every == 0 or step == config.steps:
            last = {k: round(torch.stack(v).mean().item(), 6) for k, v in seen.items()}
            rate, seen = (step - first) * config.batch / spent, {}
            bar.set_postfix({k: f"{v:.3g}" for k, v in list(last.items())[:5]})
            if main:
                line = {"step": step, "images": step * config.batch, "images_per_s": round(rate, 2), **last}
                with open(out / "log.jsonl", "a") as f:
                    f.write(json.dumps(line) + "\n")
    if main and (counters["step"] == first or counters["step"] % config.save_every):
        task.save()
    bar.close()
    return {"step": counters["step"], **last}


def finish(
    task: Task, name: str, numbers: dict, about: dict, network: nn.Module | dict[str, torch.Tensor] | None = None,
    evaluate: Callable[[], dict[str, float]] = dict,
) -> dict:  # fmt: skip
    """End a run: write `<out>/<name>.safetensors` with `about` in it, evaluate, print the numbers and return them.

    network: whose weights are written, or the weights; without: the average's. evaluate: gives more numbers,
    val_<name>.
    """
    if task.accelerator.is_main_process:
        network = task.average if network is None else network
        state = network if isinstance(network, dict) else network.state_dict()
        save_tensors(Path(task.config.out) / f"{name}.safetensors", state, about)
    numbers = numbers | {f"val_{k}": round(v, 4) for k, v in evaluate().items()}
    if task.accelerator.is_main_process:
        print(json.dumps(numbers))
    return numbers
