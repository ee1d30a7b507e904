"""Speed, measured: the generator beside the same network on (N, C, H, W) tensors and beside OpenVINO, and what uses it.

    python -m riddle.bench --preset mobile    # about three minutes; results/mobile/bench.json and figures/bench.png

What stands beside each other is called in turn, in one process and one precision, so that ratios hold on a busy machine
too. OpenVINO is no dependency; where it is installed, it runs the file that the generator's wheel brings.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
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

from riddle import config, demo, weights
from riddle.allocator import keep_memory
from riddle.files import write_text
from riddle.models import mobilestylegan as mobile
from riddle.networks import Synthesis
from riddle.pipeline import Riddle, load
from riddle.presets import get
from riddle.weights import WHEEL, wheel_file


@dataclass(frozen=True)
class Row:
    """One measurement; None: not measured."""

    name: str
    unit: str
    ours: float
    nchw: float | None = None  # the same work with the generator on (N, C, H, W) tensors
    openvino: float | None = None
    gflops: float | None = None  # arithmetic a second, 10^9
    share: float | None = None  # of the measured matrix-product rate at the same precision


class NCHW(mobile.MobileStyleGAN):
    """The same network on (N, C, H, W) tensors: the same weights, products and precision."""

    @classmethod
    def like(cls, generator: mobile.MobileStyleGAN) -> NCHW:
        """A copy of a generator that draws the same pictures so."""
        made = copy.deepcopy(generator)
        made.__class__ = cls
        return made

    def synthesize(self, w: torch.Tensor, side: int | None = None) -> torch.Tensor:
        side, cut = side or self.resolution, None
        if str(side) in self.cuts:
            cut = self.cuts[str(side)]
        blocks = [*self.blocks[: cut.first], *cut.blocks] if cut else self.blocks
        slots = [w[:, min(i, w.shape[1] - 1)] for i in range(2 * len(blocks) + 2)]
        x = self.input.permute(0, 3, 1, 2).contiguous().expand(len(w), -1, -1, -1)
        if torch.is_autocast_enabled(w.device.type):
            x = x.to(torch.get_autocast_dtype(w.device.type))
        x = styled(self.first, x, slots[0])
        for i, block in enumerate(blocks):
            x = haar(modulated(block.up.modulation, x, slots[2 * i + 1]), block.up.haar)
            x = styled(block.conv2, styled(block.conv1, x, slots[2 * i + 1]), slots[2 * i + 2])
        end = cut.picture if cut else self.picture
        x = F.conv2d(modulated(end.modulation, x, slots[-1]), end.weight[:, :, None, None], end.bias).float()
        with torch.autocast(x.device.type, enabled=False):
            drawn = haar(x, end.haar)
        return drawn if side == drawn.shape[-1] else F.adaptive_avg_pool2d(drawn, side)


def modulated(layer: mobile.Modulation, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A `Modulation` of (N, C, H, W)."""
    return x * F.linear(w, layer.weight, layer.bias).to(x.dtype)[:, :, None, None]


def styled(layer: mobile.StyledConv, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A `StyledConv` of (N, C, H, W)."""
    y, weight = modulated(layer.modulation, x, w), layer.weight
    if layer.depthwise is not None:
        y, weight = F.conv2d(y, layer.depthwise, padding=1, groups=x.shape[1]), weight[:, :, None, None]
    y = F.conv2d(y, weight, layer.bias, padding=weight.shape[2] // 2)
    return F.leaky_relu_(y + layer.noise.to(y.dtype).permute(0, 3, 1, 2), 0.2)


def haar(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Coefficients (N, 4C, H, W) -> (N, C, 2H, 2W)."""
    pixels = F.conv2d(x, matrix.to(x.dtype)[:, :, None, None]).unflatten(1, (4, -1))
    return F.pixel_shuffle(pixels.transpose(1, 2).flatten(1, 2), 2)


def both(generator: Synthesis) -> dict[str, Synthesis]:
    """A generator by the column of its row, and its (N, C, H, W) form where there is one."""
    return {"ours": generator} | ({"nchw": NCHW.like(generator)} if type(generator) is mobile.MobileStyleGAN else {})


# ---- clocks


def rates(works: dict[str, Callable[[], object]], seconds: float, device: torch.device) -> dict[str, float]:
    """Calls a second of each, called in turn: inverse of the median time, after one to warm up, at least three."""
    times = {name: [] for name in works}
    while min(map(len, times.values())) < 4 or sum(map(sum, times.values())) < seconds * len(works):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - began)
    return {name: 1 / float(np.median(spent[1:])) for name, spent in times.items()}


def matmul_rate(dtype: torch.dtype, seconds: float, device: torch.device, side: int = 2048) -> float:
    """GFLOP/s of a square matrix product: what the machine can do."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return rates({"": lambda: a @ b}, seconds, device)[""] * 2 * side**3 / 1e9


def gflop(work: Callable[[], object]) -> float:
    """10^9 floating-point operations of convolutions and products in one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


# ---- what is measured


def openvino_drawing(w: torch.Tensor, bfloat16: bool) -> Callable[[], object] | None:
    """A call that draws one 1024 px face of code w (1, D) by OpenVINO; None where it is not installed."""
    try:
        core = importlib.import_module("openvino").Core()
    except ImportError:
        return None
    network = core.read_model(wheel_file(WHEEL, "SynthesisNetwork.xml"))
    options = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
    run = core.compile_model(network, "CPU", {**options, "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda: run(w.numpy())


def generator_rows(g: Synthesis, side: int, batch: int, seconds: float, peaks: dict[str, float]) -> list[Row]:
    """Forward, and forward with backward to the codes, at `side` px, at each precision of `peaks`, in faces/s."""
    device, forms = g.device, both(g)
    w = g.broadcast(g.map(torch.randn(batch, g.style_dim, device=device))).contiguous()

    def work(network: Synthesis, dtype: torch.dtype, backward: bool) -> None:
        codes = w.clone().requires_grad_(backward)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            faces = network(codes, side)
        if backward:
            faces.square().mean().backward()

    rows = []
    for backward, precision in itertools.product((False, True), peaks):
        dtype, flops = getattr(torch, precision), gflop(lambda b=backward: work(g, torch.float32, b))
        works = {k: lambda n=n, d=dtype, b=backward: work(n, d, b) for k, n in forms.items()}
        if side == 1024 and device.type == "cpu" and not backward:
            other = openvino_drawing(w[:1, 0], precision == "bfloat16")
            works |= {"openvino": other} if other else {}
        calls = rates(works, seconds, device)
        speeds = {k: v * (1 if k == "openvino" else batch) for k, v in calls.items()}
        name = f"generator at {side} px, forward{' and backward' if backward else ''}, {precision}"
        speed = calls["ours"] * flops
        rows.append(Row(name, "faces/s", **speeds, gflops=speed, share=speed / peaks[precision]))
    return rows


def encryptor_row(model: Riddle, batch: int, seconds: float) -> Row:
    """Steps of encryptor training with all losses, m = n = 2. Raises WeightsMissingError without its judges."""
    from accelerate.state import AcceleratorState

    from riddle.training.encryptor import EncryptorConfig, EncryptorTask, frozen_networks
    from riddle.training.loop import LoopConfig, make_accelerator

    AcceleratorState._reset_state(True)  # accelerate fixes the precision of a process
    accelerator = make_accelerator(LoopConfig(out="", bfloat16=model.dtype is not None))
    g, judges, _ = frozen_networks(model.preset, None, accelerator.device)
    w = g.sample(batch).to(accelerator.device)
    config = EncryptorConfig()
    tasks = {k: EncryptorTask(model.preset, config, accelerator, form, judges, w) for k, form in both(g).items()}
    works = {k: lambda task=task: task.step({"w": w}, 0.5) for k, task in tasks.items()}
    return Row(f"encryptor training, {batch} originals", "steps/s", **rates(works, seconds, accelerator.device))


def protect_row(model: Riddle, side: int, seconds: float, people: int = 2) -> Row:
    """Photos with faces of `side` px through detection, networks and paste back, in faces/s."""
    photo, detector = demo.photo(model, people, side)
    others, options = (model.encoder, model.encryptor, model.parser), {"device": model.device, "dtype": model.dtype}
    models = {
        k: Riddle(model.preset, g, *others, detector=detector, **options) for k, g in both(model.generator).items()
    }
    key, count = model.random_password(1, seed=2), len(models["ours"].detect(photo))
    calls = rates({k: lambda m=m: m.protect(photo, key) for k, m in models.items()}, seconds, model.device)
    return Row(f"protect, faces of {side} px", "faces/s", **{k: v * count for k, v in calls.items()})


def slider_row(model: Riddle, seconds: float) -> Row:
    """What a position of the slider of notebook 15 costs: three faces, their distances, one JPEG of 256 px panels."""
    from riddle.app.controller import Controller

    controller, places = Controller(model), itertools.cycle(np.linspace(0, 1, 11))
    controller.samples(1)
    words = "correct horse", "battery staple", "letmein"
    work = {"ours": lambda: controller.view(*words, position=float(next(places))).picture(256)}
    return Row("slider of notebook 15 at 256 px", "pictures/s", **rates(work, seconds, model.device))


# ---- the result


def machine(device: torch.device) -> dict[str, str | int]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (names or [platform.machine()])[0]
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def figure(rows: list[Row], path: Path) -> None:
    """Bars relative to the (N, C, H, W) form; of rows without it, relative to ours."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(7.5, 0.55 * len(rows) + 0.9))
    columns = (("ours", "this repository", "#3b6ea5"), ("nchw", "(N, C, H, W)", "#b9b9b9"),
               ("openvino", "OpenVINO", "#d9761a"))  # fmt: skip
    for k, (column, label, colour) in enumerate(columns):
        lengths = [(getattr(r, column) or 0) / (r.nchw or r.ours) for r in rows]
        if any(lengths):
            axis.barh([i + 0.27 * (k - 1) for i in range(len(rows))], lengths, 0.25, color=colour, label=label)
    for i, r in enumerate(rows):
        axis.text(r.ours / (r.nchw or r.ours), i - 0.27, f"  {r.ours:.3g} {r.unit}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [r.name for r in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("speed, (N, C, H, W) = 1"), axis.set_xlim(0, 1.25 * axis.get_xlim()[1])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right", fontsize=8)
    fig.savefig(path, bbox_inches="tight", dpi=130)
    plt.close(fig)


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns what it writes."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--seconds", type=float, default=3.0, help="time given to each measurement")
    p.add_argument("--out", help="folder; default: results/<preset>, results/runs/smoke for smoke")
    a = p.parse_args(argv)
    keep_memory()  # returned pages, faulted in again at every call, would be most of the time
    preset, device = get(a.preset), torch.device(a.device)
    kept = config.home() / "results" / ("runs" if preset.name == "smoke" else "") / preset.name
    folder = Path(a.out) if a.out else kept
    peaks = {name: matmul_rate(getattr(torch, name), a.seconds, device) for name in ("bfloat16", "float32")}
    if peaks["bfloat16"] < 1.2 * peaks["float32"]:
        del peaks["bfloat16"]  # worth it only where the hardware has it
    try:
        model = load(preset, device=device, dtype=next(iter(peaks)))
    except weights.WeightsMissingError as e:
        p.error(f"{e} (speed is measured on the real thing; `--preset smoke` needs no weights)")
    sides = {preset.resolution: a.batch} | ({1024: 1} if preset.generator == "mobilestylegan" else {})
    rows = [row for s, batch in sides.items() for row in generator_rows(model.generator, s, batch, a.seconds, peaks)]
    rows += [protect_row(model, side, a.seconds) for side in sides]
    for what, measure in {
        "slider": lambda: slider_row(model, a.seconds),
        "encryptor training": lambda: encryptor_row(model, 2, a.seconds),
    }.items():
        try:
            rows.append(measure())
        except FileNotFoundError as e:
            print(f"{what}: n/a ({e})")
    rounded = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(r).items()} for r in rows]
    result = {"preset": preset.name, "batch": a.batch, "machine": machine(device),
              "matmul_gflops": {k: round(v, 1) for k, v in peaks.items()}, "rows": rounded}  # fmt: skip
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    write_text(folder / "bench.json", json.dumps(result, indent=1) + "\n")
    figure(rows, folder / "figures" / "bench.png")
    for r in rows:
        beside = f"   NCHW {r.nchw:8.2f} ({r.ours / r.nchw:.1f}x)" if r.nchw else ""
        beside += f"   OpenVINO {r.openvino:6.2f} ({r.ours / r.openvino:.1f}x)" if r.openvino else ""
        part = f"   {r.share:.0%} of the matrix-product rate" if r.share else ""
        print(f"{r.name:56s} {r.ours:8.2f} {r.unit}{beside}{part}")
    return result


if __name__ == "__main__":
    main()
