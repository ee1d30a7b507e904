"""FALCO (Barattin, Tzelepis, Patras, Sebe, CVPR 2023): another face by optimising the face's code, attributes kept.

A face is inverted. Slots 3 to 7 of its code become those of the nearest of many drawn faces of nobody, and are
optimised: |cos - MARGIN| to the photo by a frozen recogniser, and the L1 distance of attributes to the photo. The other
slots, pose and colours, stay. There is no key: a photo has one protected face, and nothing restores the original.

As there: the slots, which draw the same sides here, the start, both losses, margin 0, Adam and the decay of its rate.
Smaller or other than there: our encoder without its gradient steps, our generator at 128 px, 500 drawn faces, not
60,000; 8 steps in place of 50, in z in place of w, where steps so large spoil the picture. The recogniser is F_e of our
training. FaRL is not in this package: attributes are the features of the encoder's perceptual network (LPIPS,
distilled) in 4 x 4 fields, for the neighbour and for the loss, and weigh more for their small numbers.

16 bundled faces on one CPU core with AVX2, beside other work: 2.4 s a face, and 46 s once for the drawn faces; cosine
with the photo -0.004 by F_e itself, at most 0.061 (inverted: 0.803); LPIPS 0.134 by the distilled network (inverted:
0.078). The faces look real. Pose, light and background stay; age, sex, colour of hair and glasses often do not.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from riddle import config
from riddle.faces import recognizers
from riddle.machine import fast_autocast
from riddle.models.inversion import LiteEncoder
from riddle.networks import Synthesis, sha256
from riddle.presets import get
from riddle.progress import track
from riddle.tensors import load_tensors, save_tensors
from riddle.training.frozen import Features, frozen_encoder, frozen_generator
from riddle.weights import WeightsMissingError

PRESET = "mobile"
DRAWN = 500  # faces of nobody
SLOTS = slice(3, 8)  # those that change
MARGIN = 0.0  # cosine to the photo that is aimed at; the paper's setting for the best protection
STEPS, RATE = 8, 0.08  # of Adam, in z
MILESTONES, DECAY = (0.75, 0.9), 0.8  # shares of the steps after which the rate is multiplied
IDENTITY, ATTRIBUTES = 10.0, 2000.0  # weights of the losses
BATCH = 8  # faces at a time


def attributes(encoder: LiteEncoder, faces: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R) -> what they look like, (N, F): perceptual features in 4 x 4 fields."""
    return torch.cat([F.adaptive_avg_pool2d(m.float(), 4).flatten(1) for m in encoder.perception(faces)], 1)


@cache
def load() -> tuple[Synthesis, LiteEncoder, Features]:
    """The generator, the encoder and F_e. Raises WeightsMissingError."""
    preset = get(PRESET)
    generator = frozen_generator(preset, "", "cpu")
    return generator, frozen_encoder(preset, "", generator), recognizers.load(preset.identity).from_crop


@cache
@torch.no_grad()
def nobody() -> tuple[torch.Tensor, torch.Tensor]:
    """z (DRAWN, L, D) of faces of nobody, from a fixed seed, and their attributes (DRAWN, F); kept in the cache."""
    generator, encoder, _ = load()
    path = config.cache_folder() / "falco" / f"{DRAWN}-{sha256(generator, encoder)[:16]}.safetensors"
    if not path.is_file():
        z = torch.randn(DRAWN, generator.style_dim, generator=torch.Generator().manual_seed(0))
        w = generator.broadcast(generator.map(z))
        looks = torch.cat([attributes(encoder, generator(part).clamp(-1, 1)) for part in track(w.split(32), "nobody")])
        save_tensors(path, {"z": generator.codes.to_gaussian(w), "attributes": looks}, dtype=torch.float32)
    kept = load_tensors(path)
    return kept["z"], kept["attributes"]


def optimised(faces: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R) -> z (N, L, D) of protected ones, before the bound."""
    (generator, encoder, embed), (drawn, looks) = load(), nobody()
    with torch.no_grad():
        own, wanted, who = encoder.read(faces, int(encoder.passes))[0], attributes(encoder, faces), embed(faces)
        near = torch.cdist(wanted, looks, p=1).argmin(1)
    free = drawn[near, SLOTS].clone().requires_grad_()
    adam = torch.optim.Adam([free], lr=RATE)
    rates = torch.optim.lr_scheduler.MultiStepLR(adam, [int(m * STEPS) for m in MILESTONES], DECAY)

    def code() -> torch.Tensor:
        return torch.cat([own[:, : SLOTS.start], free, own[:, SLOTS.stop :]], 1)

    for _ in range(STEPS):
        adam.zero_grad()
        with fast_autocast(faces.device):
            shown = generator(encoder.to_w(code()))
            identity = (F.cosine_similarity(embed(shown), who) - MARGIN).abs()
            look = (attributes(encoder, shown) - wanted).abs().mean(1)
        (IDENTITY * identity + ATTRIBUTES * look).sum().backward()
        adam.step(), rates.step()
    return code().detach()


def protect(faces: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] -> protected faces. Raises WeightsMissingError, also for another size."""
    side = get(PRESET).resolution
    if faces.shape[1:] != (3, side, side):
        cause = f"its networks are those of {PRESET}, for faces (N, 3, {side}, {side}), not {tuple(faces.shape)}"
        raise WeightsMissingError("falco", cause, f"align the faces with preset {PRESET}")
    z = torch.cat([optimised(part) for part in faces.float().cpu().split(BATCH)])
    with torch.no_grad():
        return load()[1].draw(z)
