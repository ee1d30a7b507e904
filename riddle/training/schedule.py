"""The learning rate over a run that ends after so many steps or so many minutes, whichever comes first."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from accelerate import Accelerator


def rate_share(progress: float, warmup: float) -> float:
    """Share of the full rate at progress 0..1: a linear warm-up, then a cosine to zero."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1.0)))


def progress_of(accelerator: Accelerator, step_progress: float, seconds: float, minutes: float) -> float:
    """The further of two clocks, steps and wall time; all processes read the same."""
    if math.isinf(minutes):
        return step_progress
    if accelerator.num_processes > 1:
        seconds = accelerator.reduce(torch.tensor(seconds, device=accelerator.device), reduction="mean").item()
    return max(step_progress, seconds / 60 / minutes)


def minutes_left(out: str | Path, minutes: float) -> float:
    """What an interrupted run in `out` has left of its minutes; all of them for a new one."""
    state = Path(out) / "state.pt"
    if math.isinf(minutes) or not state.exists():
        return minutes
    counters = torch.load(state, map_location="cpu", weights_only=True)["counters"]
    return max(minutes - counters.get("seconds", 0.0) / 60, 0.0)
