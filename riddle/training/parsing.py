"""Train the face-parsing network of a preset on CelebAMask-HQ.

    python -m riddle.training.parsing --preset mobile --out results/runs/parsing --minutes 5

Weighted cross-entropy; faces mirrored, moved, recoloured and blurred, so that generated ones are read as well as
photographs; the weights' running average is what is kept: parser.safetensors beside the run, with the IoU of each class
on the validation split in iou.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image

from riddle.models.parsing import (
    CLASSES,
    MIRRORED,
    PARTS,
    ParsingNet,
    confusion,
    intersection_over_union,
    labels,
)
from riddle.presets import Preset, get
from riddle.training import recipe
from riddle.training.loop import (
    LoopConfig,
    faces_to_float,
    make_accelerator,
    run,
    step_optimiser,
    update_average,
)
from riddle.training.schedule import minutes_left, progress_of, rate_share


@dataclass(frozen=True)
class ParsingConfig:
    """Rates, augmentation and schedule."""

    lr: float = 3e-3  # AdamW, warm-up then cosine to zero
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the training
    ema: float = 0.995  # decay a step of the weights' average
    rarity: float = 0.3  # a class counts frequency ** -rarity: 0 is plain cross-entropy, 1 balances all classes
    turn: float = 12.0  # degrees, deviation of the rotation
    zoom: float = 0.1  # deviation of log scale
    shift: float = 0.05  # deviation of the shift, in sides
    colour: float = 0.2  # deviation of log gain; each channel and the brightness move by half of it
    blurred: float = 0.3  # share of the faces halved and enlarged again: a generator's are softer than a photo's
    grain: float = 0.02  # deviation of the noise, of the range from -1 to 1
    eval_every: int = 500  # steps
    minutes: float = float("inf")  # of the whole run: the cosine ends then, or at the last step if that is sooner


def crop_mask(mask: Image.Image | np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The part of a label map that belongs to a face's crop, nearest pixel, mirrored beyond the border.

    mask: (H, W) ids 0-18; matrix: (2, 3), the crop's unit square -> the mask's pixels. Returns (size, size) uint8, the
    pixels of `faces.alignment.crop` under the same matrix.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask holds one class a pixel, (H, W); got {mask.shape}")
    u = (np.arange(size) + 0.5) / size
    grid = np.stack([*np.meshgrid(u, u), np.ones((size, size))])  # (3, size, size): u, v, 1
    xy = np.rint(np.einsum("ij,jvu->ivu", matrix, grid)).astype(int)

    def inside(index: np.ndarray, length: int) -> np.ndarray:
        index = np.abs(index) % (2 * length - 2)
        return np.minimum(index, 2 * length - 2 - index)

    return mask[inside(xy[1], mask.shape[0]), inside(xy[0], mask.shape[1])].astype(np.uint8)


def masked_faces(preset: Preset, split: str, detector: str = "auto", workers: int = 2) -> dict[str, torch.Tensor]:
    """Aligned CelebAMask-HQ: {"faces": uint8 (N, R, R, 3), "masks": uint8 (N, R, R)}.

    Raises DatasetMissingError where the set is not on this machine.
    """
    from riddle import datasets

    source = datasets.CelebAMaskHQ(split)
    found = datasets.aligned(source, preset, detector=detector, workers=workers)
    masks = []
    for name, matrix in zip(found.names, found.matrices, strict=True):
        mask, (w, h) = source.mask(name), source.image(name).size
        scale = np.array([[mask.shape[1] / w], [mask.shape[0] / h]])  # photos as published are larger than masks
        half = np.array([[0, 0, 0.5]])
        masks.append(crop_mask(mask, (matrix + half) * scale - half, preset.resolution))
    return {"faces": torch.as_tensor(np.asarray(found.faces)), "masks": torch.from_numpy(np.stack(masks))}


def class_weights(masks: torch.Tensor, rarity: float) -> torch.Tensor:
    """(19,) weights frequency ** -rarity, of mean 1 over the pixels of `masks`; 0 for a class they lack."""
    counts = torch.bincount(masks.flatten().long(), minlength=len(CLASSES)).double()
    share = counts / counts.sum()
    weights = torch.where(counts > 0, share.clamp_min(1e-6) ** -rarity, 0.0)
    return (weights / (weights * share).sum()).float()


def augment(faces: torch.Tensor, masks: torch.Tensor, config: ParsingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Move, mirror, recolour and blur faces (N, 3, R, R), and their masks (N, R, R) along with them."""
    n, device = len(faces), faces.device
    mirrored = torch.tensor(MIRRORED, device=device)
    flip = torch.rand(n, device=device) < 0.5
    masks = torch.where(flip[:, None, None], mirrored[masks.long()].flip(2), masks.long())
    faces = torch.where(flip[:, None, None, None], faces.flip(3), faces)

    angle = torch.randn(n, device=device) * math.radians(config.turn)
    scale = torch.exp(torch.randn(n, device=device) * config.zoom)
    shift = torch.randn(n, 2, 1, device=device) * 2 * config.shift
    cos, sin = angle.cos() * scale, angle.sin() * scale
    affine = torch.cat([torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1), shift], 2)
    grid = F.affine_grid(affine, list(faces.shape), align_corners=False)
    faces = F.grid_sample(faces, grid, padding_mode="reflection", align_corners=False)
    moved = F.grid_sample(masks[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)

    gain = torch.exp(torch.randn(n, 3, 1, 1, device=device) * config.colour / 2)
    gain = gain * torch.exp(torch.randn(n, 1, 1, 1, device=device) * config.colour)
    faces = faces * gain + torch.randn(n, 1, 1, 1, device=device) * config.colour / 2
    soft = F.interpolate(F.avg_pool2d(faces, 2), scale_factor=2, mode="bilinear")
    faces = torch.where(torch.rand(n, 1, 1, 1, device=device) < config.blurred, soft, faces)
    faces = faces + torch.randn_like(faces) * config.grain
    return faces.clamp(-1, 1), moved[:, 0].long()


class ParsingTask:
    """The parser, its average and the class weights."""

    def __init__(
        self,
        config: ParsingConfig,
        accelerator: Accelerator,
        masks: torch.Tensor,
        validation: dict[str, torch.Tensor] | None = None,
    ):
        """masks: those of the training split, for the class weights; validation: faces and masks to measure on."""
        self.config, self.accelerator, self.validation = config, accelerator, validation
        self.net = ParsingNet().to(device=accelerator.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.weights = class_weights(masks, config.rarity).to(accelerator.device)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.networks = {"net": self.net, "average": self.average}
        self.optimisers = {"net": self.optimiser}
        self.counters = {"step": 0, "seconds": 0.0}

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        began, c = time.monotonic(), self.config
        progress = progress_of(self.accelerator, progress, self.counters["seconds"], c.minutes)
        for group in self.optimiser.param_groups:
            group["lr"] = c.lr * rate_share(progress, c.warmup)
        faces, masks = augment(faces_to_float(batch["faces"]), batch["masks"], c)
        with self.accelerator.autocast():
            logits = self.net(faces)
        loss = F.cross_entropy(logits.float(), masks, self.weights)
        self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        step_optimiser(self.accelerator, self.optimiser)
        self.counters["step"] += 1
        update_average(self.average, self.net, min(c.ema, 1 - 1 / (1 + self.counters["step"] / 10)))
        numbers = {"loss": loss, "accuracy": (logits.argmax(1) == masks).float().mean()}
        if self.validation is not None and self.counters["step"] % c.eval_every == 0:
            iou = evaluate(self.average, self.validation)
            numbers |= {"val_miou": iou.nanmean(), "val_parts_iou": iou[list(PARTS)].nanmean()}
        self.counters["seconds"] += time.monotonic() - began
        return numbers

    def samples(self) -> None:
        """Nothing to show: the faces are real ones."""


@torch.no_grad()
def evaluate(net: torch.nn.Module, data: dict[str, torch.Tensor], batch: int = 50) -> torch.Tensor:
    """IoU of each of the 19 classes over all pixels of a set, (19,); NaN for a class that does not occur."""
    device = next(net.parameters()).device
    counts = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)
    for faces, masks in zip(data["faces"].split(batch), data["masks"].split(batch), strict=True):
        predicted = labels(net(faces_to_float(faces.to(device))))
        counts += confusion(predicted.cpu(), masks.cpu())
    return intersection_over_union(counts)


def report(net: torch.nn.Module, data: dict[str, torch.Tensor]) -> dict[str, float | dict[str, float | None]]:
    """What iou.json holds: mean IoU over the classes present, over eq. 8's parts, and each class."""
    iou = evaluate(net, data)
    each = {c: None if math.isnan(v) else round(v, 4) for c, v in zip(CLASSES, iou.tolist(), strict=True)}
    return {
        "miou": round(iou.nanmean().item(), 4),
        "parts_iou": round(iou[list(PARTS)].nanmean().item(), 4),
        "n": len(data["faces"]),
        "classes": each,
    }


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module."""
    from riddle.allocator import keep_memory
    from riddle.weights import save_tensors

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--out", required=True)
    p.add_argument("--steps", type=int, default=4000)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr", type=float, default=ParsingConfig.lr)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--minutes", type=float, default=float("inf"))
    p.add_argument("--detector", default="auto")
    a = recipe.parse(p, "parsing", argv)
    keep_memory()
    left = minutes_left(a.out, a.minutes)
    config = LoopConfig(out=a.out, steps=a.steps, batch=a.batch, seed=a.seed, minutes=left, save_every=500)
    accelerator = make_accelerator(config)
    torch.manual_seed(a.seed)
    preset = get(a.preset)
    train = masked_faces(preset, "train", a.detector)
    validation = masked_faces(preset, "val", a.detector)
    task = ParsingTask(ParsingConfig(lr=a.lr, minutes=a.minutes), accelerator, train["masks"], validation)
    last = run(task, train, config, accelerator)
    if accelerator.is_main_process:
        measured = report(task.average, validation)
        (Path(a.out) / "iou.json").write_text(json.dumps(measured, indent=1))
        about = {"preset": preset.name, "kind": "parsing-net", "miou": measured["miou"], "steps": last["step"]}
        save_tensors(Path(a.out) / "parser.safetensors", task.average.state_dict(), about)
        print(json.dumps(measured))
        last |= {"miou": measured["miou"], "parts_iou": measured["parts_iou"]}
    return last


if __name__ == "__main__":
    main()
