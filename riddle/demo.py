"""Training in seconds, for notebooks and for trying a change: the real tasks and loop on tiny made-up data.

Where the weights of F_e and LPIPS are not at hand, simple fixed features stand in: then the numbers say whether the
machinery works, and nothing about faces. The real runs are the modules of riddle.training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from riddle.data import sample_codes, sample_faces
from riddle.faces import blending, recognizers
from riddle.faces.detection import Face, load_detector
from riddle.images import to_bytes, to_image
from riddle.models.encryptor import build_encryptor
from riddle.models.inversion import build_encoder
from riddle.models.mobilestylegan import SIDES, MobileStyleGAN
from riddle.networks import Synthesis, load_encryptor, published_generator
from riddle.pipeline import Riddle
from riddle.presets import CONTROLS, VARIANTS, Preset, get
from riddle.training.encryptor import EncryptorConfig, EncryptorTask
from riddle.training.frozen import LossNetworks, draw_codes
from riddle.training.generator import CutConfig, CutTask, reduced
from riddle.training.inversion import InversionConfig, InversionTask
from riddle.training.loop import make_accelerator, run
from riddle.training.parsing import ParsingConfig, ParsingTask
from riddle.weights import WeightsMissingError, load_lpips, locate

STEP = 7 / 8  # from one person of `group_photo` to the next, as a share of a face's side
TINY = {4: 32, 8: 32, 16: 32, 32: 16}  # channels of `tiny_generator`
# Samples of data/samples that stand before a grey wall, so that they make one photo.
GREY = (24, 3, 42, 45, 28, 14)
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


def write_clip(path: Path, pictures: Iterable[Any], rate: int = 25, sound: np.ndarray | None = None) -> Path:
    """Write RGB pictures of one size as a clip; sound: (samples,) in [-1, 1], mono, 44.1 kHz."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "18", "bf": "0"})
        heard = [] if sound is None else [out.add_stream("aac", rate=44_100)]
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            if n == 0:
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = "yuv444p" if frame.width % 2 or frame.height % 2 else "yuv420p"
            out.mux(stream.encode(frame))
        if heard:
            samples = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 44_100, 0
            out.mux(heard[0].encode(samples))
        for each in (stream, *heard):
            out.mux(each.encode(None))
    return path


def group_photo(faces: Sequence[torch.Tensor], side: int = 256) -> Image.Image:
    """A made-up photo of N synthetic people, for trying the program without showing anybody.

    faces: N framed ones, (3, R, R) in [-1, 1]; side: px of each. They stand beside each other, `STEP` sides apart, and
    where two portraits overlap one fades into the other.
    """
    n, step = len(faces), round(STEP * side)
    rise = blending.smoothstep((np.arange(side) + 0.5) / max(1, side - step))
    photo = np.zeros((side, (n - 1) * step + side, 3))
    for i, face in enumerate(faces):
        share = (rise if i else 1.0) * (rise[::-1] if i < n - 1 else np.ones(side))
        upright = to_image(face).resize((side, side), Image.Resampling.LANCZOS)
        photo[:, i * step : i * step + side] += share[:, None] * np.asarray(upright)
    return Image.fromarray(np.rint(photo).astype(np.uint8))


def photo(model: Riddle, people: int = 3, side: int = 256) -> tuple[Image.Image, Any]:
    """A photo of synthetic people, and the detector that finds them; side: px of a face's frame.

    The bundled people where they are, drawn anew at `side` px if the generator can; for the untrained smoke preset its
    own noise, in known places.
    """
    who = [*GREY, *(k for k in range(48) if k not in GREY)][:people]
    try:
        if model.preset.generator == "mobilestylegan":
            larger = next((s for s in SIDES if s >= side), SIDES[-1])
            faces = model.synthesize(sample_codes()[who], larger).cpu()
            return group_photo(faces, side), load_detector("auto")
        if model.preset.name != "smoke":
            return group_photo(sample_faces(48, side)[who], side), load_detector("auto")
    except FileNotFoundError:
        pass
    faces = model.synthesize(model.random_password(people, seed=1)).cpu()
    points = [FRAMED_POINTS * side + [i * round(STEP * side), 0] for i in range(people)]
    return group_photo(faces, side), KnownFaces(points)


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


def loss_networks(preset: Preset, faces: torch.Tensor) -> tuple[LossNetworks, nn.Module]:
    """F_e and LPIPS: the trained networks where they are on this machine, else stand-ins; for smoke always those.

    faces: as for `RandomFeatures`.
    """
    features, small = RandomFeatures(faces), preset.name == "smoke"
    known = not small and recognizers.available([preset.identity])[preset.identity] is None
    embed = recognizers.load(preset.identity, device=str(faces.device)).from_crop if known else features.embed
    lpips = features if small or locate("squeezenet1_1") is None else load_lpips("squeeze")
    return LossNetworks(embed, features.maps, threshold=0.5), lpips


def _options(out: str, preset: str, steps: int, batch: int, seed: int, saves: int = 1) -> dict[str, Any]:
    """The options of every training here; restarts torch's random numbers. saves: number of checkpoints."""
    torch.manual_seed(seed)
    return {
        "out": out or tempfile.mkdtemp(prefix="riddle-demo-"), "preset": preset, "steps": steps, "batch": batch,
        "seed": seed, "log_every": max(1, steps // 20), "save_every": max(1, steps // saves),
        "bfloat16": False if preset == "smoke" else None,
    }  # fmt: skip


def _train(task: Any, tensors: dict[str, torch.Tensor]) -> Any:
    run(task, {k: v.to(task.accelerator.device) for k, v in tensors.items()})
    return task


def tiny_generator() -> MobileStyleGAN:
    """A MobileStyleGAN of 64 px with random weights and a cut at 32 px: the machinery without the wheel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = MobileStyleGAN(cuts=(32,), channels=TINY, dim=32)
    generator.codes.measure(generator.map)
    return generator.eval().requires_grad_(False)


def train_cut(preset: str = "smoke", steps: int = 30, targets: int = 48, seed: int = 0, out: str = "") -> CutTask:
    """The cut of a generator, from the published blocks and a random picture layer: the last 8 targets are held out.

    `task.before` and `task.first` are its evaluation and its samples before the first step.
    """
    options = _options(out, preset, steps, 8, seed)
    generator = tiny_generator() if preset == "smoke" else published_generator()
    generator.codes.measure(generator.map, 4000)
    side, codes = int(next(iter(generator.cuts))), draw_codes(generator, targets, seed)
    faces = reduced(generator, codes, side)
    stored, lpips = torch.from_numpy(to_bytes(faces)), loss_networks(get(preset), faces)[1]
    config = CutConfig(**options, side=side, targets="")
    task = CutTask(config, make_accelerator(config), generator, lpips, (codes[-8:], stored[-8:]))
    task.before, task.first = task.evaluate(), task.samples()
    return _train(task, {"codes": codes[:-8], "faces": stored[:-8]})


def train_inversion(model: Riddle, steps: int = 20, faces: int = 72, seed: int = 0, out: str = "") -> InversionTask:
    """An encoder for the model's generator, from the published bodies where their files are at hand.

    It sees synthetic faces, the last 8 of them held out. `task.before` is its evaluation before the first step.
    """
    options, generator = _options(out, model.preset.name, steps, 8, seed), model.generator
    preset = replace(model.preset, encoder="lite", encoder_fpn=32, encoder_head=16)
    drawn = model.synthesize(draw_codes(generator, faces, seed))
    config = InversionConfig(**options, data="", ema=0.8, warmup=0.1, identity_lr=0, refine=0)
    stored, networks = torch.from_numpy(to_bytes(drawn)), loss_networks(preset, drawn)
    encoder = build_encoder(preset, generator)
    task = InversionTask(config, make_accelerator(config), encoder, generator, *networks, stored[-8:])
    with suppress(WeightsMissingError):
        task.start_from_published()
    task.before = task.evaluate()
    return _train(task, {"faces": stored[:-8]})


def train_parsing(steps: int = 120, seed: int = 0, out: str = "") -> ParsingTask:
    """A parser on 128 cartoon faces of 32 px, with 32 others for validation."""
    config = ParsingConfig(**_options(out, "smoke", steps, 16, seed, saves=6), ema=0.95)
    data = drawn_faces(128, 32, seed)
    return _train(ParsingTask(config, make_accelerator(config), data["masks"], drawn_faces(32, 32, seed + 1)), data)


@torch.no_grad()
def held_out_numbers(task: EncryptorTask) -> dict[str, float]:
    """The loss (eq. 10) and the evaluation of an encryptor on the codes and passwords that training never sees."""
    return {"loss": task.losses(task.held_out, task.held_out_keys)[0].item(), **task.validate()}


def train_encryptor(
    generator: Synthesis, steps: int = 40, seed: int = 0, out: str = "", **changes: Any
) -> EncryptorTask:
    """An encryptor of the smoke preset's size in data-free mode, with every loss but parsing.

    changes: fields of EncryptorConfig. `task.before` is its `held_out_numbers` before the first step.
    """
    options = _options(out, "smoke", steps, 4, seed, saves=4)
    codes = draw_codes(generator, 64, seed)
    frozen = loss_networks(get("smoke"), generator(codes))[0]
    settings = {"n": 1, "weights": {"parsing": 0.0}, "lr": 3e-3, "ema": 0.8, "warmup": 0.05}
    config = EncryptorConfig(**options, **(settings | changes))
    task = EncryptorTask(config, make_accelerator(config), generator, frozen, codes[:16])
    task.before = held_out_numbers(task)
    return _train(task, {"row": torch.arange(1 << 12)})


def encryptors(model: Riddle) -> dict[str, nn.Module]:
    """{variant: encryptor}, as `riddle.presets.VARIANTS` has them; for smoke those without training alone.

    Raises WeightsMissingError.
    """
    p, generator, found = model.preset, model.generator, {}
    for name, variant in VARIANTS.items():
        if name in CONTROLS or p.name != "smoke":
            found[name] = load_encryptor(p, variant.file, generator)
        elif name in ("riddle", "coupling"):
            found[name] = build_encryptor(p, variant.arch, generator.codes)
    return {name: network.to(model.device).eval().requires_grad_(False) for name, network in found.items()}
