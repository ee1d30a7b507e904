"""How fast a training step is, and what share of the machine's measured matrix-product rate that is."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def tune(device: torch.device) -> None:
    """Let cuDNN choose its convolutions by measurement: shapes stay the same over a training."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True


def compile_networks(networks: list[nn.Module], device: torch.device) -> bool:
    """torch.compile in place, on CUDA only (on two CPU cores it was slower); True where it was done.

    State dicts keep their names. A network whose gradients are differentiated again, as R1 does with the
    discriminator, must stay out: compiled code has no second derivative.
    """
    if device.type != "cuda":
        return False
    for network in networks:
        network.compile()
    return True


@dataclass
class Speed:
    """Speed of a stretch of training."""

    images_per_s: float
    steps_per_s: float
    gflops: float | None  # arithmetic of convolutions and products a second, 10^9; None before a step was counted
    peak: float  # GFLOP/s of a square matrix product, measured
    precision: str  # of both: bfloat16 or float32

    @property
    def share(self) -> float | None:
        """Of the matrix-product rate."""
        return None if self.gflops is None else self.gflops / self.peak

    def __str__(self) -> str:
        share = "" if self.share is None else f", {self.share:.1%} of the matrix-product rate"
        return f"{self.images_per_s:.1f} images/s, {self.steps_per_s:.2f} steps/s{share} ({self.precision})"


class Meter:
    """Counts the arithmetic of one step, measures the machine once, and times the rest."""

    def __init__(self, accelerator: Accelerator, seconds: float = 0.3):
        """seconds: given to the matrix product."""
        from riddle.bench import matmul_rate

        self.precision = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
        device = accelerator.device
        side = 8192 if device.type == "cuda" else 1024  # a GPU needs a large product to show its rate
        self.peak = matmul_rate(getattr(torch, self.precision), seconds, device, side)
        self.step_gflop: float | None = None
        self.device, self.steps, self.seconds = device, 0, 0.0

    def count(self) -> FlopCounterMode:
        """A context for one step; hand it to `counted` afterwards. That step is slower and is not timed."""
        return FlopCounterMode(display=False)

    def counted(self, counter: FlopCounterMode) -> None:
        self.step_gflop = counter.get_total_flops() / 1e9

    def start(self) -> float:
        """The time now, with all work on the device done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, began: float) -> None:
        """One timed step since `began`."""
        self.seconds += self.start() - began
        self.steps += 1

    def speed(self, batch: int) -> Speed | None:
        """Over the steps timed so far, `batch` images each; None before the first."""
        if not self.steps:
            return None
        rate = self.steps / self.seconds
        gflops = None if self.step_gflop is None else self.step_gflop * rate
        return Speed(rate * batch, rate, gflops, self.peak, self.precision)
