"""Measure speed: the generator, the same network on (N, C, H, W) tensors and in OpenVINO, and the generator's users.

    python -m riddle.bench --preset mobile    # about three minutes; results/mobile/bench.json and figures/bench.png

A row has the speeds of `ours` and, where the network has that form, of `nchw` and `openvino`. They are called in turn,
in one process and one precision, so that ratios hold on a busy machine, too. OpenVINO is no dependency: where it is
installed, it runs the file that the generator's wheel brings. `share` is the arithmetic per second of `ours`, divided
by that of a square matrix product at the same precision.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode
from typer import Option

from riddle import config, demo
from riddle.app.controller import SIDE, Controller, contact_sheet
from riddle.files import replace_file, write_text
from riddle.machine import bfloat16_is_faster, keep_memory
from riddle.models import mobilestylegan as mobile
from riddle.networks import Synthesis
from riddle.pipeline import Riddle, load
from riddle.presets import get
from riddle.training.encryptor import EncryptorConfig, EncryptorTask
from riddle.training.frozen import frozen_networks
from riddle.training.loop import make_accelerator
from riddle.weights import WHEEL, WeightsMissingError, wheel_file

# ---- the same network on (N, C, H, W) tensors: the same weights, products and precision


class Modulation(mobile.Modulation):
    """In (N, C, H, W)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * F.linear(w, self.weight, self.bias).to(x.dtype)[:, :, None, None]


class StyledConv(mobile.StyledConv):
    """In (N, C, H, W)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y, weight = self.modulation(x, w), self.weight
        if self.depthwise is not None:
            y, weight = F.conv2d(y, self.depthwise, padding=1, groups=x.shape[1]), weight[:, :, None, None]
        y = F.conv2d(y, weight, self.bias, padding=weight.shape[2] // 2)
        return F.leaky_relu_(y + self.noise.to(y.dtype).permute(0, 3, 1, 2), 0.2)


class Upsample(mobile.Upsample):
    """In (N, C, H, W)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return haar(self.modulation(x, w), self.haar)


class Picture(mobile.Picture):
    """In (N, C, H, W)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(self.modulation(x, w), self.weight[:, :, None, None], self.bias).float()
        with torch.autocast(x.device.type, enabled=False):
            return haar(x, self.haar)


def haar(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Coefficients (N, 4C, H, W) -> (N, C, 2H, 2W)."""
    pixels = F.conv2d(x, matrix.to(x.dtype)[:, :, None, None]).unflatten(1, (4, -1))
    return F.pixel_shuffle(pixels.transpose(1, 2).flatten(1, 2), 2)


def both(generator: Synthesis) -> dict[str, Synthesis]:
    """{column: generator}: the generator, and a copy in (N, C, H, W) form if there is one."""
    if type(generator) is not mobile.MobileStyleGAN:
        return {"ours": generator}
    other = copy.deepcopy(generator)
    other.input.data = other.input.data.permute(0, 3, 1, 2).contiguous()
    for module in other.modules():
        if form := {c.__base__: c for c in (Modulation, StyledConv, Upsample, Picture)}.get(type(module)):
            module.__class__ = form
    return {"ours": generator, "nchw": other}


# ---- measuring


def rates(works: dict[str, Callable[[], object]], seconds: float, device: torch.device) -> dict[str, float]:
    """Calls per second of each, called in turn: the inverse of the median of at least three times after a warm-up."""
    times = {name: [] for name in works}
    while min(map(len, times.values())) < 4 or sum(map(sum, times.values())) < seconds * len(works):
        for name, work in works.items():
            began = perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(perf_counter() - began)
    return {name: 1 / float(np.median(spent[1:])) for name, spent in times.items()}


def matmul_rate(precision: str, seconds: float, device: torch.device, side: int = 2048) -> float:
    """Floating-point operations a second of a square matrix product: what the machine can do."""
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in range(2))
    return rates({"": lambda: a @ b}, seconds, device)[""] * 2 * side**3


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and products in one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def openvino_drawing(w: torch.Tensor, precision: str) -> Callable[[], object] | None:
    """A call that draws one 1024 px face of code w (1, D) by OpenVINO; None where it is not installed."""
    try:
        core = importlib.import_module("openvino").Core()
    except ImportError:
        return None
    hint = {"bfloat16": "bf16", "float32": "f32"}[precision]
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    run = core.compile_model(core.read_model(wheel_file(WHEEL, "SynthesisNetwork.xml")), "CPU", options)
    return lambda: run(w.numpy())


def generator_rows(g: Synthesis, side: int, batch: int, seconds: float, precisions: Sequence[str]) -> Iterator[dict]:
    """Forward, and forward with backward to the codes, at `side` px, at each precision, in faces/s."""
    device, forms = g.device, both(g)
    w = g.broadcast(g.map(torch.randn(batch, g.style_dim, device=device))).contiguous()

    def work(network: Synthesis, precision: str, backward: bool) -> None:
        codes = w.clone().requires_grad_(backward)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            faces = network(codes, side)
        if backward:
            faces.square().mean().backward()

    for backward, precision in itertools.product((False, True), precisions):
        works = {k: lambda n=n, p=precision, b=backward: work(n, p, b) for k, n in forms.items()}
        if side == 1024 and device.type == "cpu" and not backward:
            other = openvino_drawing(w[:1, 0], precision)
            works |= {"openvino": other} if other else {}
        calls = rates(works, seconds, device)
        done = calls["ours"] * operations(lambda b=backward: work(g, "float32", b))
        speeds = {k: v * (1 if k == "openvino" else batch) for k, v in calls.items()}
        name = f"generator at {side} px, forward{' and backward' if backward else ''}, {precision}"
        yield {"name": name, "unit": "faces/s", **speeds, "share": done / matmul_rate(precision, seconds, device)}


def encryptor_row(model: Riddle, batch: int, seconds: float) -> dict:
    """Steps of encryptor training with all losses, m = n = 2. Raises WeightsMissingError without its networks."""
    AcceleratorState._reset_state(True)  # accelerate fixes the precision of a process
    settings = EncryptorConfig(out="", preset=model.preset.name, bfloat16=model.dtype is not None)
    accelerator = make_accelerator(settings)
    g, frozen = frozen_networks(model.preset, "", accelerator.device, parser="")
    w = g.sample(batch).to(accelerator.device)
    tasks = {k: EncryptorTask(settings, accelerator, form, frozen, w) for k, form in both(g).items()}
    works = {k: lambda task=task: task.step({"w": w}, 0.5) for k, task in tasks.items()}
    return {"name": f"encryptor training, {batch} originals", "unit": "steps/s", **rates(works, seconds, g.device)}


def protect_row(model: Riddle, side: int, seconds: float) -> dict:
    """Photos with faces of `side` px through detection, networks and paste back, in faces/s."""
    photo, detector = demo.photo(model, 2, side)
    others, options = (model.encoder, model.encryptor, model.parser), {"device": model.device, "dtype": model.dtype}
    forms = both(model.generator)
    models = {k: Riddle(model.preset, g, *others, detector=detector, **options) for k, g in forms.items()}
    key, count = model.random_password(1, seed=2), len(models["ours"].detect(photo))
    calls = rates({k: lambda m=m: m.protect(photo, key) for k, m in models.items()}, seconds, model.device)
    return {"name": f"protect, faces of {side} px", "unit": "faces/s", **{k: v * count for k, v in calls.items()}}


def slider_rows(model: Riddle, seconds: float) -> list[dict]:
    """A position of the slider of notebook 15: while it moves, one face of R px as JPEG; where it rests, three of 256
    px, their distances, and the JPEG of all."""
    controller, places = Controller(model), itertools.cycle(np.linspace(0, 1, 11))
    controller.samples(1)
    words = "correct horse", "battery staple", "letmein"
    drag = lambda: controller.moving(*words[:2], float(next(places)))  # noqa: E731
    work = {
        f"moving, {model.preset.resolution} px": lambda: contact_sheet(drag(), SIDE),
        f"at rest, {SIDE} px": lambda: controller.view(*words, float(next(places))).picture(SIDE),
    }
    return [
        {"name": f"slider of notebook 15, {how}", "unit": "updates/s"} | rates({"ours": each}, seconds, model.device)
        for how, each in work.items()
    ]


def machine(device: torch.device) -> dict:
    """The machine on which the numbers were measured."""
    info = Path("/proc/cpuinfo")
    known = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else [*known, platform.machine()][0]
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def chart(table: pd.DataFrame, path: Path) -> None:
    """A chart of the rows that were measured in several forms: each form's speed, where (N, C, H, W) has 1."""
    speeds = table.set_index("name").filter(["ours", "nchw", "openvino"]).dropna(subset="nchw")
    shape = {"figsize": (7.5, 0.55 * len(speeds) + 0.9), "ylabel": "", "xlabel": "speed, (N, C, H, W) = 1"}
    axis = speeds.div(speeds.nchw, axis=0)[::-1].plot.barh(**shape)
    with replace_file(path) as temporary:
        axis.figure.savefig(temporary, bbox_inches="tight", dpi=130)


def main(
    preset: str = "mobile",
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    batch: int = 16,
    seconds: Annotated[float, Option(help="time given to each measurement")] = 3.0,
    out: Annotated[Path | None, Option(help="folder; default: results/<preset>, results/runs/smoke for smoke")] = None,
) -> dict:
    """Measure speed and write bench.json, and figures/bench.png for several forms; returns what bench.json holds."""
    keep_memory()  # returned pages, faulted in again at every call, would be most of the time
    folder = out or config.home() / "results" / ("runs" if preset == "smoke" else "") / preset
    at, scale = torch.device(device), get(preset)
    precisions = ("bfloat16", "float32") if bfloat16_is_faster(at) else ("float32",)
    model = load(preset, device=device, dtype=precisions[0])
    sides = {scale.resolution: batch} | ({1024: 1} if scale.generator == "mobilestylegan" else {})
    rows = [row for each in sides.items() for row in generator_rows(model.generator, *each, seconds, precisions)]
    rows += [*(protect_row(model, side, seconds) for side in sides), *slider_rows(model, seconds)]
    try:
        rows.append(encryptor_row(model, 2, seconds))
    except WeightsMissingError as e:
        print(f"encryptor training: n/a ({e})")
    table = pd.DataFrame(rows, columns=["name", "unit", "ours", "nchw", "openvino", "share"]).dropna(axis=1, how="all")
    print(table.to_string(index=False, float_format="{:.4g}".format, na_rep=""))
    rounded = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    result = {"preset": preset, "batch": batch, "machine": machine(at), "rows": rounded}
    write_text(folder / "bench.json", json.dumps(result, indent=1) + "\n")
    if "nchw" in table:
        chart(table, folder / "figures" / "bench.png")
    return result


if __name__ == "__main__":
    typer.run(main)
