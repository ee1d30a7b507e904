"""Training in seconds, for notebooks and for trying a change: the real tasks and loop on tiny made-up data.

Networks that only large training gives (the recogniser F_e, LPIPS) are replaced by simple fixed features, so the
numbers say whether the machinery works, and nothing about faces. The real runs are the modules of riddle.training.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from riddle import drawing
from riddle.faces.detection import Face, load_detector
from riddle.losses import LossWeights
from riddle.models.stylegan2 import Generator
from riddle.pipeline import Riddle
from riddle.presets import Preset, get
from riddle.training.encryptor import EncryptorConfig, EncryptorTask, Judges
from riddle.training.loop import LoopConfig, make_accelerator, run
from riddle.training.parsing import ParsingConfig, ParsingTask

# Eyes, nose and mouth of a face whose framing is the unit square.
FRAMED_POINTS = np.array([[0.375, 0.475], [0.625, 0.475], [0.5, 0.61], [0.41, 0.725], [0.59, 0.725]])


class KnownFaces:
    """A detector that knows where the faces are: for pictures that no real detector would read."""

    name = "known"

    def __init__(self, points: list[np.ndarray]):
        self.found = [Face(np.array([*p.min(0), *p.max(0)]), 1.0, p, None, "known") for p in points]

    def detect(self, image: Image.Image) -> list[Face]:
        """The faces given, whatever the picture."""
        return list(self.found)


def photo(model: Riddle, people: int = 3, side: int = 256) -> tuple[Image.Image, Any]:
    """A photo of synthetic people, and the detector that finds them.

    The bundled synthetic faces where they are; for the untrained smoke preset its own noise, in known places.
    """
    try:
        if model.preset.name != "smoke":
            return drawing.group_photo(drawing.sample_faces(people, side), side), load_detector("auto")
    except FileNotFoundError:
        pass
    faces = model.synthesize(model.random_password(people, seed=1)).cpu()
    margin = side // 4
    points = [FRAMED_POINTS * side + [margin + i * (side + margin), margin] for i in range(people)]
    return drawing.group_photo(faces, side), KnownFaces(points)


def drawn_faces(n: int, resolution: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Cartoon faces with exact labels: {"faces": uint8 (N, R, R, 3), "masks": uint8 (N, R, R)}.

    Classes as in riddle.models.parsing: 1 skin, 2 nose, 4 and 5 eyes, 10 mouth, 13 hair.
    """
    rng = np.random.default_rng(seed)
    ys, xs = (np.mgrid[:resolution, :resolution] + 0.5) / resolution
    shapes = [  # class, centre x, y, half width, half height
        (13, 0.5, 0.42, 0.5, 0.52), (1, 0.5, 0.52, 0.4, 0.47), (2, 0.5, 0.5, 0.06, 0.12),
        (4, 0.316, 0.303, 0.09, 0.05), (5, 0.684, 0.303, 0.09, 0.05), (10, 0.5, 0.7, 0.16, 0.06),
    ]  # fmt: skip
    faces = np.empty((n, resolution, resolution, 3), np.uint8)
    masks = np.zeros((n, resolution, resolution), np.uint8)
    for face, mask in zip(faces, masks, strict=True):
        colours = {c: rng.uniform(0, 255, 3) for c in (0, 13, 1)}
        colours |= {2: colours[1] * 0.8, 4: rng.uniform(0, 90, 3), 10: np.array([150.0, 40, 50]) + rng.normal(0, 20, 3)}
        colours[5] = colours[4]
        move, grow = rng.normal(0, 0.03, 2), rng.uniform(0.85, 1.1)
        for c, x, y, w, h in shapes:
            x, y = (np.array([x, y]) - 0.5) * grow + 0.5 + move
            mask[((xs - x) / (w * grow)) ** 2 + ((ys - y) / (h * grow)) ** 2 < 1] = c
        painted = np.stack([colours[int(c)] for c in mask.ravel()]).reshape(*mask.shape, 3)
        face[:] = np.clip(painted + rng.normal(0, 6, painted.shape), 0, 255)
    return {"faces": torch.from_numpy(faces), "masks": torch.from_numpy(masks)}


def training_faces(preset: Preset, n: int = 48) -> torch.Tensor:
    """uint8 (n, R, R, 3): the bundled synthetic faces, or cartoons where data/samples is empty."""
    try:
        faces = drawing.sample_faces(n, preset.resolution)
    except FileNotFoundError:
        return drawn_faces(n, preset.resolution)["faces"]
    return faces.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous()


class RandomFeatures(nn.Module):
    """Stand-ins: fixed random convolutions for LPIPS, the coarse picture for F_e.

    Calling it with two batches compares them as LPIPS does, (N, 1, 1, 1).
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, 64))]
        self.layers = nn.ModuleList(layers).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(48))
        self.register_buffer("std", torch.ones(48))

    @torch.no_grad()
    def tell_apart(self, faces: torch.Tensor) -> RandomFeatures:
        """Standardise the embedding over these faces, so that two of them have cosines around 0."""
        x = F.adaptive_avg_pool2d(faces.float(), 4).flatten(1)
        self.mean, self.std = x.mean(0), x.std(0) + 1e-6
        return self

    def embed(self, faces: torch.Tensor) -> torch.Tensor:
        """(N, 3, R, R) -> (N, 48) of unit length: 4 x 4 mean colours."""
        x = F.adaptive_avg_pool2d(faces.float(), 4).flatten(1)
        return F.normalize((x - self.mean) / self.std, dim=1)

    def maps(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """Features of each layer, scaled so that squared differences sum to a mean over places."""
        x, kept = faces.float(), []
        with torch.autocast(faces.device.type, enabled=False):
            for layer in self.layers:
                x = F.leaky_relu(layer(x), 0.2)
                kept.append(F.normalize(x, dim=1) / (x.shape[2] * x.shape[3]) ** 0.5)
        return kept

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.maps(a), self.maps(b), strict=True)
        return sum((x - y).square().sum((1, 2, 3)) for x, y in pairs)[:, None, None, None]


def _loop(out: str, steps: int, batch: int, seed: int) -> LoopConfig:
    folder = out or tempfile.mkdtemp(prefix="riddle-demo-")
    return LoopConfig(
        out=folder, steps=steps, batch=batch, seed=seed, log_every=max(1, steps // 20), save_every=steps, bfloat16=False
    )


def train_parsing(steps: int = 120, batch: int = 16, seed: int = 0, out: str = "") -> ParsingTask:
    """A parser on 128 cartoon faces of 32 px, with 32 others for validation."""
    loop = _loop(out, steps, batch, seed)
    accelerator = make_accelerator(loop)
    torch.manual_seed(seed)
    data, held_out = drawn_faces(128, 32, seed), drawn_faces(32, 32, seed + 1)
    task = ParsingTask(ParsingConfig(ema=0.95, eval_every=max(1, steps // 6)), accelerator, data["masks"], held_out)
    run(task, {k: v.to(accelerator.device) for k, v in data.items()}, loop, accelerator)
    task.folder = loop.out
    return task


def train_encryptor(
    generator: Generator,
    preset: str = "smoke",
    steps: int = 40,
    batch: int = 4,
    seed: int = 0,
    out: str = "",
    **changes: Any,
) -> EncryptorTask:
    """The encryptor in data-free mode: codes drawn from the mapping network; identity and latent losses only.

    changes: fields of EncryptorConfig. `task.before` is its evaluation before the first step.
    """
    loop = _loop(out, steps, batch, seed)
    accelerator = make_accelerator(loop)
    torch.manual_seed(seed)
    with torch.no_grad():
        w = generator.broadcast(generator.map(torch.randn(256, generator.style_dim, device=accelerator.device)))
        features = RandomFeatures().to(accelerator.device).tell_apart(generator(w))
    weights = LossWeights(pixel=0.0, lpips=0.0, parsing=0.0)
    settings = EncryptorConfig(n=1, weights=weights, datafree=True, lr=5e-3, warmup=0.05, ema=0.8, threshold=0.5)
    settings = replace(settings, eval_every=max(1, steps // 8), **changes)
    task = EncryptorTask(get(preset), settings, accelerator, generator, Judges(features.embed), w[:16])
    task.before = task.evaluate()
    run(task, {"row": torch.arange(1 << 12, device=accelerator.device)}, loop, accelerator)
    task.folder = loop.out
    return task
