"""Training in seconds, for notebooks and for trying a change: the real tasks and loop on tiny made-up data.

Where the weights of F_e and LPIPS are not at hand, simple fixed features stand in: then the numbers say whether the
machinery works, and nothing about faces. The real runs are the modules of riddle.training.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import nn

from riddle import drawing
from riddle.faces import recognizers
from riddle.faces.detection import Face, load_detector
from riddle.faces.pixels import to_bytes
from riddle.losses import LossWeights
from riddle.models.encryptor import build_encryptor
from riddle.models.mobilestylegan import SIDES, MobileStyleGAN
from riddle.networks import Synthesis, control, load_encryptor, published_generator
from riddle.pipeline import Riddle
from riddle.presets import Preset, get
from riddle.training.codes import draw_codes
from riddle.training.cut import CutTask
from riddle.training.encryptor import EncryptorConfig, EncryptorTask, Judges
from riddle.training.inversion import InversionConfig, InversionTask
from riddle.training.loop import LoopConfig, bfloat16_is_faster, make_accelerator, run
from riddle.training.parsing import ParsingConfig, ParsingTask
from riddle.weights import WeightsMissingError, bundled, load_lpips, locate

COUPLING = "RotationCoupling (ours)"
TINY = {4: 32, 8: 32, 16: 32, 32: 16}  # channels of `tiny_generator`
# Samples of data/samples that stand before a grey wall, so that they make one photo.
GREY = (42, 45, 24, 3, 28, 14)
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
    """A photo of synthetic people, and the detector that finds them; side: px of a face's frame.

    The bundled people where they are, drawn anew at `side` px if the generator can; for the untrained smoke preset its
    own noise, in known places.
    """
    who = [*GREY, *(k for k in range(48) if k not in GREY)][:people]
    try:
        if model.preset.generator == "mobilestylegan":
            larger = next((s for s in SIDES if s >= side), SIDES[-1])
            faces = model.synthesize(drawing.sample_codes()[who], larger).cpu()
            return drawing.group_photo(faces, side), load_detector("auto")
        if model.preset.name != "smoke":
            return drawing.group_photo(drawing.sample_faces(48, side)[who], side), load_detector("auto")
    except FileNotFoundError:
        pass
    faces = model.synthesize(model.random_password(people, seed=1)).cpu()
    points = [FRAMED_POINTS * side + [i * round(drawing.STEP * side), 0] for i in range(people)]
    return drawing.group_photo(faces, side), KnownFaces(points)


def drawn_faces(n: int, resolution: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Cartoon faces with exact labels: {"faces": uint8 (N, R, R, 3), "masks": uint8 (N, R, R)}.

    Classes as in riddle.models.parsing: 1 skin, 2 nose, 4 and 5 eyes, 10 mouth, 13 hair.
    """
    rng = np.random.default_rng(seed)
    ys, xs = (np.mgrid[:resolution, :resolution] + 0.5) / resolution
    shapes = [  # class, centre x, y, half width, half height, in FFHQ's framing
        (13, 0.5, 0.48, 0.4, 0.44), (1, 0.5, 0.58, 0.29, 0.37), (2, 0.5, 0.58, 0.05, 0.09),
        (4, 0.375, 0.475, 0.08, 0.045), (5, 0.625, 0.475, 0.08, 0.045), (10, 0.5, 0.725, 0.12, 0.05),
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


class RandomFeatures(nn.Module):
    """Stand-ins: fixed random convolutions for LPIPS, the coarse picture for F_e; faces: those that F_e tells apart.

    Calling it with two batches compares them as LPIPS does, (N, 1, 1, 1).
    """

    def __init__(self, faces: torch.Tensor):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, 64))]
        self.layers = nn.ModuleList(layers).requires_grad_(False).to(faces.device)
        x = F.adaptive_avg_pool2d(faces.float(), 4).flatten(1)
        self.mean, self.std = x.mean(0), x.std(0) + 1e-6

    def embed(self, faces: torch.Tensor) -> torch.Tensor:
        """(N, 3, R, R) -> (N, 48) of unit length: 4 x 4 mean colours; two faces have cosines around 0."""
        x = F.adaptive_avg_pool2d(faces.float(), 4).flatten(1)
        return F.normalize((x - self.mean) / self.std, dim=1)

    def maps(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """Features of each layer, scaled so that squared differences sum to a mean over places, of LPIPS's size."""
        x, kept = faces.float(), []
        with torch.autocast(faces.device.type, enabled=False):
            for layer in self.layers:
                x = F.leaky_relu(layer(x), 0.2)
                kept.append(0.3 * F.normalize(x, dim=1) / (x.shape[2] * x.shape[3]) ** 0.5)
        return kept

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.maps(a), self.maps(b), strict=True)
        return sum((x - y).square().sum((1, 2, 3)) for x, y in pairs)[:, None, None, None]


def judges(preset: Preset, faces: torch.Tensor) -> tuple[Judges, nn.Module]:
    """F_e and LPIPS: the trained networks where they are on this machine, else stand-ins; for smoke always those.

    faces: as for `RandomFeatures`.
    """
    features, small = RandomFeatures(faces), preset.name == "smoke"
    known = not small and recognizers.available([preset.identity])[preset.identity] is None
    embed = recognizers.load(preset.identity, device=str(faces.device)).from_crop if known else features.embed
    lpips = features if small or locate("squeezenet1_1") is None else load_lpips("squeeze")
    return Judges(embed, features.maps), lpips


def _begin(out: str, steps: int, batch: int, seed: int, small: bool = True) -> tuple[LoopConfig, Accelerator]:
    torch.manual_seed(seed)
    folder, every = out or tempfile.mkdtemp(prefix="riddle-demo-"), max(1, steps // 20)
    loop = LoopConfig(folder, steps, batch, seed, log_every=every, save_every=steps, bfloat16=False if small else None)
    return loop, make_accelerator(loop)


def _train(task: Any, tensors: dict[str, torch.Tensor], loop: LoopConfig, accelerator: Accelerator) -> Any:
    run(task, {k: v.to(accelerator.device) for k, v in tensors.items()}, loop, accelerator)
    task.folder = loop.out
    return task


def tiny_generator() -> MobileStyleGAN:
    """A MobileStyleGAN of 64 px with random weights and a cut at 32 px: the machinery without the wheel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = MobileStyleGAN(cuts=(32,), channels=TINY, dim=32)
    generator.codes.measure(generator.map)
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def reduced(generator: MobileStyleGAN, codes: torch.Tensor, side: int, batch: int = 8) -> torch.Tensor:
    """What the whole network draws of codes (N, L, D), area-reduced to (N, 3, side, side) in [-1, 1]."""
    whole = max(SIDES[0], 8 << len(generator.blocks))
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_faster()):
        drawn = (generator.synthesize(w, whole).float().clamp(-1, 1) for w in codes.split(batch))
        return torch.cat([F.adaptive_avg_pool2d(faces, side) for faces in drawn])


def train_cut(preset: str = "smoke", steps: int = 30, targets: int = 48, seed: int = 0, out: str = "") -> CutTask:
    """The cut of a generator, from the published blocks and a random picture layer: the last 8 targets are held out.

    `task.before` and `task.first` are its evaluation and its samples before the first step.
    """
    loop, accelerator = _begin(out, steps, 8, seed, small=preset == "smoke")
    generator = tiny_generator() if preset == "smoke" else published_generator()
    generator.codes.measure(generator.map, 4000)
    side, codes = int(next(iter(generator.cuts))), draw_codes(generator, targets, seed)
    faces = reduced(generator, codes, side)
    stored, lpips = torch.from_numpy(to_bytes(faces)), judges(get(preset), faces)[1]
    task = CutTask(generator, side, lpips, accelerator, float("inf"))
    task.held_out = codes[-8:], stored[-8:]
    task.before, task.first = task.evaluate(), task.samples()
    return _train(task, {"codes": codes[:-8], "faces": stored[:-8]}, loop, accelerator)


def train_inversion(model: Riddle, steps: int = 20, faces: int = 72, seed: int = 0, out: str = "") -> InversionTask:
    """An encoder for the model's generator, from the published bodies where their files are at hand.

    It sees synthetic faces, the last 8 of them held out. `task.before` is its evaluation before the first step.
    """
    loop, accelerator = _begin(out, steps, 8, seed, small=model.preset.name == "smoke")
    preset = replace(model.preset, encoder="lite", encoder_fpn=32, encoder_head=16)
    drawn = model.synthesize(draw_codes(model.generator, faces, seed))
    config = InversionConfig(ema=0.8, warmup=0.1, identity_lr=0, steps=0)
    stored, networks = torch.from_numpy(to_bytes(drawn)), (model.generator, *judges(preset, drawn))
    task = InversionTask(preset, config, accelerator, *networks, stored[-8:])
    with suppress(WeightsMissingError):
        task.start_from_published()
    task.before = task.evaluate()
    return _train(task, {"faces": stored[:-8]}, loop, accelerator)


def train_parsing(steps: int = 120, seed: int = 0, out: str = "") -> ParsingTask:
    """A parser on 128 cartoon faces of 32 px, with 32 others for validation."""
    loop, accelerator = _begin(out, steps, 16, seed)
    data, config = drawn_faces(128, 32, seed), ParsingConfig(ema=0.95, eval_every=max(1, steps // 6))
    task = ParsingTask(config, accelerator, data["masks"], drawn_faces(32, 32, seed + 1))
    return _train(task, data, loop, accelerator)


@torch.no_grad()
def held_out_numbers(task: EncryptorTask) -> dict[str, float]:
    """The loss (eq. 10) and the evaluation of an encryptor on the codes and passwords that training never sees."""
    return {"loss": task.losses(task.held_out, task.held_out_keys)[0].item(), **task.evaluate()}


def train_encryptor(
    generator: Synthesis, steps: int = 40, batch: int = 4, seed: int = 0, out: str = "", **changes: Any
) -> EncryptorTask:
    """An encryptor of the smoke preset's size in data-free mode, with every loss but parsing.

    changes: fields of EncryptorConfig. `task.before` is its `held_out_numbers` before the first step.
    """
    loop, accelerator = _begin(out, steps, batch, seed)
    codes = draw_codes(generator, 64, seed)
    watching = judges(get("smoke"), generator(codes))[0]
    settings = EncryptorConfig(n=1, weights=LossWeights(parsing=0.0), datafree=True, lr=3e-3, ema=0.8, threshold=0.5)
    settings = replace(settings, warmup=0.05, eval_every=max(1, steps // 4), **changes)
    task = EncryptorTask(get("smoke"), settings, accelerator, generator, watching, codes[:16])
    task.before = held_out_numbers(task)
    return _train(task, {"row": torch.arange(1 << 12)}, loop, accelerator)


def encryptors(model: Riddle) -> dict[str, nn.Module]:
    """{name: encryptor}: the paper's, ours, the ablations of section 4.6, and two controls that nobody trained.

    Raises WeightsMissingError.
    """
    p, generator = model.preset, model.generator
    reflection, untrained = (control(p, name, generator) for name in ("reflection", "untrained"))
    if p.name == "smoke":
        rows = {"transformer (the paper's)": untrained, COUPLING: build_encryptor(p, "coupling", generator.codes)}
    else:
        files = {"transformer (the paper's)": "encryptor", COUPLING: "encryptor_coupling"}
        files |= {"data-free": "encryptor_datafree", "MLP": "encryptor_mlp", "without L_div": "encryptor_nodiv"}
        rows = {name: load_encryptor(p, bundled(p.name, part), generator) for name, part in files.items()}
    rows |= {"control: KeyedReflection": reflection, "control: untrained": untrained}
    return {name: network.to(model.device).eval().requires_grad_(False) for name, network in rows.items()}
