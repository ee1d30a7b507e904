"""Speed, measured: each figure beside the naive formulation in the same run, and as a share of what the machine can do.

    python -m riddle.bench --preset mobile    # about two minutes; results/mobile/bench.json and figures/bench.png

Naive means the published formulation in float32 on (N, C, H, W) tensors: of a StyleGAN2 weights modulated for each
image and grouped convolutions, of a MobileStyleGAN pointwise and Haar convolutions.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from riddle import config, demo, zoo
from riddle.models import mobilestylegan as mobile
from riddle.models.layers import SQRT2, depthwise
from riddle.models.stylegan2 import ModulatedConv2d, StyledConv, ToRGB
from riddle.networks import Synthesis
from riddle.pipeline import Riddle, load
from riddle.presets import Preset, get


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    unit: str
    ours: float
    naive: float | None  # the same work in the published formulation
    gflops: float | None  # useful arithmetic a second, 10^9
    share: float | None  # of the measured matrix-product rate at the same precision


# The published formulation.


def naive_modulated(conv: ModulatedConv2d, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """StyleGAN2, section 2.2: a weight for each image, one grouped convolution."""
    n, c, h, w = x.shape
    weight = conv.scale * conv.weight * conv.modulation(style).view(n, 1, c, 1, 1)
    if conv.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    out, k = weight.shape[1], weight.shape[-1]
    x = x.reshape(1, n * c, h, w)
    if conv.upsample:
        weight = weight.transpose(1, 2).reshape(n * c, out, k, k)
        y = F.conv_transpose2d(x, weight, stride=2, groups=n)
        return depthwise(y.view(n, out, *y.shape[2:]), conv.blur.kernel, (1, 1))
    y = F.conv2d(x, weight.reshape(n * out, c, k, k), padding=k // 2, groups=n)
    return y.view(n, out, h, w)


class NaiveStyledConv(StyledConv):
    """The same function, computed as published."""

    def forward(self, x: torch.Tensor, style: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        y = naive_modulated(self.conv, x, style)
        y = y if noise is None else y + self.noise.weight * noise
        return F.leaky_relu(y + self.activate.bias[None, :, None, None], 0.2) * SQRT2


class NaiveToRGB(ToRGB):
    """The same function, computed as published."""

    def forward(self, x: torch.Tensor, style: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        y = naive_modulated(self.conv, x, style) + self.bias
        return y if skip is None else y + depthwise(skip, self.upsample.kernel, (2, 1), up=2)


class NaiveModulation(mobile.Modulation):
    """The same function on (N, C, H, W)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * F.linear(w, self.weight, self.bias)[:, :, None, None]


class NaiveMobileConv(mobile.StyledConv):
    """The same function on (N, C, H, W); the first layer takes the constant as it is stored."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if self.depthwise is None:
            y = F.conv2d(self.modulation(x.permute(0, 3, 1, 2).contiguous(), w), self.weight, padding=1)
        else:
            y = F.conv2d(self.modulation(x, w), self.depthwise, padding=1, groups=x.shape[1])
            y = F.conv2d(y, self.weight[:, :, None, None])
        return F.leaky_relu(y + self.bias[:, None, None] + self.noise.permute(0, 3, 1, 2), 0.2)


def _haar(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Coefficients (N, 4C, H, W) -> (N, C, 2H, 2W)."""
    n, c, h, w = x.shape
    pixels = F.conv2d(x, matrix[:, :, None, None]).view(n, 4, c // 4, h, w)
    return F.pixel_shuffle(pixels.transpose(1, 2).reshape(n, c, h, w), 2)


class NaiveUpsample(mobile.Upsample):
    """The same function on (N, C, H, W)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return _haar(self.modulation(x, w), self.haar)


class NaivePicture(mobile.Picture):
    """The same function on (N, C, H, W)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return _haar(F.conv2d(self.modulation(x, w), self.weight[:, :, None, None], self.bias), self.haar)


NAIVE = {
    StyledConv: NaiveStyledConv, ToRGB: NaiveToRGB, mobile.Modulation: NaiveModulation,
    mobile.StyledConv: NaiveMobileConv, mobile.Upsample: NaiveUpsample, mobile.Picture: NaivePicture,
}  # fmt: skip


def make_naive(generator: Synthesis) -> Synthesis:
    """Let a generator's layers compute as published; parameters, and all around the layers, stay. Returns it."""
    for layer in generator.modules():
        layer.__class__ = NAIVE.get(type(layer), type(layer))
    return generator


def naive_like(generator: Synthesis) -> Synthesis:
    """A copy of a generator that computes as published."""
    return make_naive(copy.deepcopy(generator))


# Clocks.


def rate(
    work: Callable[[], object], seconds: float, device: torch.device, middle: Callable[[list[float]], float] = np.median
) -> float:
    """Calls a second: the inverse of the median time after one call to warm up, at least three calls."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    times = [once() for _ in range(3)]
    while sum(times) < seconds:
        times.append(once())
    return 1 / float(middle(times))


def matmul_rate(dtype: torch.dtype, seconds: float, device: torch.device, side: int = 2048) -> float:
    """GFLOP/s of a square matrix product at its best: what the machine can do."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return rate(lambda: a @ b, seconds, device, np.min) * 2 * side**3 / 1e9


def gflop(work: Callable[[], object]) -> float:
    """10^9 floating-point operations of convolutions and products in one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


# What is measured.


def generator_rows(
    g: Synthesis, side: int, batch: int, seconds: float, peaks: dict[str, float], dtype: torch.dtype | None
) -> list[Row]:
    """Forward, and forward with backward to codes and weights, at `side` px, in images/s."""
    naive, device = naive_like(g), g.device
    w = g.broadcast(g.map(torch.randn(batch, g.style_dim, device=device))).contiguous()

    def forward(network: Synthesis, cast: torch.dtype | None) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, cast or torch.bfloat16, enabled=cast is not None):
            return network(w, side)

    def backward(network: Synthesis, cast: torch.dtype | None) -> None:
        codes = w.clone().requires_grad_()
        with torch.autocast(device.type, cast or torch.bfloat16, enabled=cast is not None):
            loss = network(codes, side).square().mean()
        loss.backward()
        network.zero_grad(set_to_none=True)

    def measure(name: str, work: Callable[[Synthesis, torch.dtype | None], object]) -> list[Row]:
        flops = gflop(lambda: work(g, None))
        reference = rate(lambda: work(naive, None), seconds, device) * batch
        rows = []
        for cast in dict.fromkeys([dtype, None]):
            label = "bfloat16" if cast else "float32"
            calls = rate(lambda cast=cast: work(g, cast), seconds, device)
            speed = calls * flops
            rows.append(Row(f"{name}, {label}", "images/s", calls * batch, reference, speed, speed / peaks[label]))
        return rows

    rows = measure(f"generator at {side} px, forward", forward)
    g.requires_grad_(True), naive.requires_grad_(True)
    rows += measure(f"generator at {side} px, forward and backward", backward)
    g.requires_grad_(False)
    return rows


def encryptor_row(preset: Preset, batch: int, seconds: float, bfloat16: bool) -> Row:
    """Steps of encryptor training with all losses, m = n = 2, steps/s; needs the bundled generator and judges."""
    from accelerate.state import AcceleratorState

    from riddle.training.encryptor import EncryptorConfig, EncryptorTask, frozen_networks
    from riddle.training.loop import LoopConfig, make_accelerator

    def steps(naive: bool) -> float:
        AcceleratorState._reset_state(True)  # accelerate fixes the precision of a process; here are two
        accelerator = make_accelerator(LoopConfig(out="", bfloat16=bfloat16 and not naive))
        g, judges, _ = frozen_networks(preset, None, accelerator.device)
        w = g.sample(batch)
        g = make_naive(g) if naive else g
        task = EncryptorTask(preset, EncryptorConfig(), accelerator, g, judges)
        return rate(lambda: task.step({"w": w.to(accelerator.device)}, 0.5), seconds, accelerator.device)

    return Row(f"encryptor training, {batch} originals", "steps/s", steps(False), steps(True), None, None)


def protect_rows(model: Riddle, side: int, seconds: float, faces: int = 2) -> list[Row]:
    """Photos with faces of `side` px through `protect`, in faces/s: networks and paste back, then detection as well."""
    photo, detector = demo.photo(model, faces, side)
    known = demo.KnownFaces([f.points for f in (model.detector if detector == "auto" else detector).detect(photo)])
    key = model.random_password(1, seed=2)
    networks = (model.preset, model.generator, model.encoder, model.encryptor)
    options = {"device": model.device, "dtype": model.dtype}
    ours = Riddle(*networks, detector=known, **options)
    slow = naive_like(model.generator)
    naive = Riddle(model.preset, slow, model.encoder, model.encryptor, detector=known, device=model.device)
    quick, plain = (rate(lambda m=m: m.protect(photo, key), seconds, model.device) for m in (ours, naive))
    count = len(known.found)
    rows = [Row(f"protect at {side} px, faces given", "faces/s", quick * count, plain * count, None, None)]
    if detector == "auto":  # an untrained generator shows nothing that a detector would find
        whole = rate(lambda: model.protect(photo, key), seconds, model.device) * count
        rows.append(Row(f"protect at {side} px, with detection", "faces/s", whole, None, None, None))
    return rows


def machine(device: torch.device) -> dict[str, str | int]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": shown, "threads": torch.get_num_threads(), **versions}


def figure(rows: list[Row], path: Path) -> None:
    """Bars: ours beside naive, relative to naive."""
    import matplotlib.pyplot as plt

    shown = [r for r in rows if r.naive]
    fig, axis = plt.subplots(figsize=(7, 0.5 * len(shown) + 0.9))
    axis.barh(range(len(shown)), [r.ours / r.naive for r in shown], color="#3b6ea5", label="this repository")
    axis.barh(range(len(shown)), [1.0] * len(shown), height=0.3, color="#b9b9b9", label="published formulation")
    for i, r in enumerate(shown):
        axis.text(r.ours / r.naive, i, f"  {r.ours:.3g} {r.unit} ({r.ours / r.naive:.1f}x)", va="center")
    axis.set_yticks(range(len(shown)), [r.name for r in shown])
    axis.invert_yaxis()
    axis.set_xlabel("speed, naive = 1"), axis.set_xlim(0, 1.4 * max(r.ours / r.naive for r in shown))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    fig.savefig(path, bbox_inches="tight", dpi=130)
    plt.close(fig)


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--seconds", type=float, default=3.0, help="time given to each measurement")
    p.add_argument("--out", help="folder; default: results/<preset>, results/runs/smoke for smoke")
    a = p.parse_args(argv)
    preset, device = get(a.preset), torch.device(a.device)
    kept = config.home() / "results" / ("runs" if preset.name == "smoke" else "") / preset.name
    folder = Path(a.out) if a.out else kept
    peaks = {
        "float32": matmul_rate(torch.float32, a.seconds, device),
        "bfloat16": matmul_rate(torch.bfloat16, a.seconds, device),
    }
    # bfloat16 is worth it only where the hardware has it
    dtype = torch.bfloat16 if peaks["bfloat16"] > 1.2 * peaks["float32"] else None
    try:
        model = load(preset, device=device, dtype=dtype)
    except zoo.WeightsMissingError as e:
        p.error(f"{e} (speed is measured on the real thing; `--preset smoke` needs no weights)")
    rows = [
        *generator_rows(model.generator, preset.resolution, a.batch, a.seconds, peaks, dtype),
        *protect_rows(model, preset.resolution, a.seconds),
    ]
    if preset.generator == "mobilestylegan":
        rows += generator_rows(model.generator, 1024, 1, a.seconds, peaks, dtype)
        rows += protect_rows(model, 1024, a.seconds)
    try:
        rows.append(encryptor_row(preset, 2, a.seconds, dtype is not None))
    except zoo.WeightsMissingError as e:
        print(f"encryptor training: n/a ({e})")
    result = {
        "preset": preset.name, "batch": a.batch, "machine": machine(device),
        "matmul_gflops": {k: round(v, 1) for k, v in peaks.items()},
        "rows": [{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(r).items()} for r in rows],
    }  # fmt: skip
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    zoo.write_text(folder / "bench.json", json.dumps(result, indent=1) + "\n")
    figure(rows, folder / "figures" / "bench.png")
    for r in rows:
        beside = f"   naive {r.naive:8.2f} ({r.ours / r.naive:.1f}x)" if r.naive else ""
        part = f"   {r.share:.0%} of the matrix-product rate" if r.share else ""
        print(f"{r.name:46s} {r.ours:8.2f} {r.unit}{beside}{part}")
    return result


if __name__ == "__main__":
    main()
