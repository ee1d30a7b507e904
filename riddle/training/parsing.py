"""Train the face-parsing network of a preset on CelebAMask-HQ.

    python -m riddle.training.parsing --recipe mobile

Weighted cross-entropy; faces mirrored, moved, recoloured and blurred, so that generated ones are read as well as
photographs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy.ndimage import affine_transform
from torchmetrics.classification import MulticlassJaccardIndex

from riddle.aligned import align
from riddle.data import load
from riddle.images import to_tensor
from riddle.models.parsing import CLASSES, MIRRORED, PARTS, ParsingNet, labels
from riddle.presets import Preset, get
from riddle.training import recipe
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, run


@dataclass(frozen=True, kw_only=True)
class ParsingConfig(LoopConfig):
    """Rates and augmentation."""

    steps: int = 4000
    lr: float = 3e-3  # AdamW
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the training
    ema: float = 0.995  # decay per step of the weights' average
    rarity: float = 0.3  # a class counts frequency ** -rarity: 0 is plain cross-entropy, 1 balances all classes
    turn: float = 12.0  # degrees, deviation of the rotation
    zoom: float = 0.1  # deviation of log scale
    shift: float = 0.05  # deviation of the shift, in sides
    colour: float = 0.2  # deviation of log gain; each channel and the brightness move by half of it
    blurred: float = 0.3  # share of the faces halved and enlarged again: a generator's are softer than a photo's
    grain: float = 0.02  # deviation of the noise, of the range from -1 to 1


def crop_mask(mask: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The part of a label map that belongs to a face's crop, nearest pixel, mirrored beyond the border.

    mask: (H, W) ids 0-18; matrix: (2, 3), the crop's unit square -> the mask's pixels. Returns (size, size) uint8, the
    pixels of `faces.alignment.crop` under the same matrix.
    """
    linear, offset = matrix[::-1, 1::-1] / size, matrix[::-1, 2]  # rows before columns
    first = linear.sum(1) / 2 + offset  # the middle of the first pixel
    return affine_transform(mask, linear, first, (size, size), order=0, mode="mirror").astype(np.uint8)


def masked_faces(preset: Preset, split: str) -> dict[str, torch.Tensor]:
    """Aligned CelebAMask-HQ: {"faces": uint8 (N, R, R, 3), "masks": uint8 (N, R, R)}.

    Raises DatasetMissingError where the set is not on this machine.
    """
    source = load("celebamask_hq", split)
    found = align(source, preset)
    masks, here = [], np.flatnonzero(found.present)
    for i in here:
        name, matrix = found.names[i], found.matrices[i]
        mask, (w, h) = source.mask(name), source.image(name).size
        scale = np.array([[mask.shape[1] / w], [mask.shape[0] / h]])  # photos as published are larger than masks
        half = np.array([[0, 0, 0.5]])
        masks.append(crop_mask(mask, (matrix + half) * scale - half, preset.resolution))
    return {"faces": torch.from_numpy(found.faces[here]), "masks": torch.from_numpy(np.stack(masks))}


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


class ParsingTask(Task):
    """The parser and the class weights."""

    def __init__(
        self, config: ParsingConfig, accelerator: Accelerator, masks: torch.Tensor, validation: dict[str, torch.Tensor]
    ):
        """masks: those of the training split, for the class weights; validation: faces and masks to measure on."""
        self.validation = validation
        net = ParsingNet().to(device=accelerator.device, memory_format=torch.channels_last)
        self.weights = class_weights(masks, config.rarity).to(accelerator.device)
        optimiser = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        super().__init__(config, accelerator, "net", net, optimiser)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        faces, masks = augment(to_tensor(batch["faces"]), batch["masks"], self.config)
        with self.accelerator.autocast():
            logits = self.network(faces)
        accuracy = (logits.argmax(1) == masks).float().mean()
        return F.cross_entropy(logits.float(), masks, self.weights), {"accuracy": accuracy}

    def validate(self) -> dict[str, float]:
        """Mean IoU over all classes, and over those of eq. 8."""
        iou = evaluate(self.average, self.validation)
        return {"miou": iou.nanmean().item(), "parts_iou": iou[list(PARTS)].nanmean().item()}


@torch.no_grad()
def evaluate(net: torch.nn.Module, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """IoU of each of the 19 classes over all pixels of a set, (19,); NaN for a class that does not occur."""
    device = next(net.parameters()).device
    iou = MulticlassJaccardIndex(len(CLASSES), average=None, zero_division=math.nan)
    for faces, masks in zip(data["faces"].split(50), data["masks"].split(50), strict=True):
        iou.update(labels(net(to_tensor(faces.to(device)))).cpu(), masks)
    return iou.compute()


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and the mean IoU."""
    config = recipe.parse(ParsingConfig, "parsing", __doc__, argv)
    accelerator, preset = make_accelerator(config), get(config.preset)
    torch.manual_seed(config.seed)
    train, validation = (masked_faces(preset, split) for split in ("train", "val"))
    task = ParsingTask(config, accelerator, train["masks"], validation)
    last = run(task, train)
    measured = {k: round(v, 4) for k, v in task.validate().items()}
    about = {"preset": preset.name, "kind": "parsing-net", "miou": measured["miou"], "steps": last["step"]}
    return finish(task, "parser", last | measured, about)


if __name__ == "__main__":
    recipe.command(main)
