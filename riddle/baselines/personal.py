"""Personal (Cao, Liu, Wen, Xie, Song, ICCV 2021): identity and attributes apart, and the identity turned by a password.

    python -m riddle.baselines.personal --recipe mobile

A recogniser gives the identity of a face, a unit vector; a network draws a face from the picture (its attributes: pose,
expression, light, surroundings) and an identity vector. To protect, the vector is turned by ANGLE in planes that the
key chooses; to restore, the identity of the protected face is turned back, and the network draws it from the protected
picture. Another key turns it elsewhere. Nothing is kept beside the picture.

As there: the two parts, the turn on the unit sphere, and how it is undone; losses on identity, attributes and the
restored face. Smaller or other than there: a frozen generator draws, and a code is searched in place of a picture
(riddle.baselines.redraw); the identity network is F_e; the angle is fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from riddle.baselines.redraw import PRESET, Redraw, System, checked, load, record_of
from riddle.faces import recognizers
from riddle.images import to_tensor
from riddle.models.inversion import EMBEDDING, LiteEncoder
from riddle.networks import Synthesis
from riddle.passwords import normal_from_key
from riddle.presets import get
from riddle.training import recipe
from riddle.training.frozen import LossNetworks, frozen_encoder, frozen_networks
from riddle.training.inversion import varied
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, means, run, spread

ANGLE = math.pi / 2  # of the turn: the protected identity stands at a right angle to the original one
SYSTEM = System("personal", maps=0, vector=EMBEDDING)
BATCH = 16  # faces at a time


@cache
def _planes(key: int, size: int) -> torch.Tensor:
    """An orthogonal matrix (size, size) of a key; its columns 2 k and 2 k + 1 span a plane."""
    drawn = normal_from_key(b"personal %d" % key, size * size).reshape(size, size)
    q, r = np.linalg.qr(drawn.astype(np.float64))
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))


def turn(vectors: torch.Tensor, keys: torch.Tensor, angle: float = ANGLE) -> torch.Tensor:
    """Vectors (N, E) turned by an angle, in radians, in each of the E / 2 planes of their keys (N,).

    The cosine between a vector and its turned one is that of the angle; the negative angle undoes it.
    """
    q = torch.stack([_planes(key, vectors.shape[1]) for key in keys.tolist()]).to(vectors)
    a, b = (q.mT @ vectors[:, :, None])[..., 0].unflatten(1, (-1, 2)).unbind(2)
    turned = torch.stack([math.cos(angle) * a - math.sin(angle) * b, math.sin(angle) * a + math.cos(angle) * b], 2)
    return (q @ turned.flatten(1)[:, :, None])[..., 0]


def drawn(network: Redraw, faces: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R) drawn anew with unit vectors of an identity (N, E)."""
    nothing = faces.new_zeros(len(faces), 1, *faces.shape[2:])
    return network.draw(network(faces, nothing, nothing[:, :0], identity * EMBEDDING**0.5))


@torch.no_grad()
def _turned(faces: torch.Tensor, keys: torch.Tensor, angle: float) -> torch.Tensor:
    faces = checked(SYSTEM, faces)
    network, embed = load(SYSTEM)[0], recognizers.load(get(PRESET).identity).from_crop
    parts = zip(faces.split(BATCH), keys.split(BATCH), strict=True)
    return torch.cat([drawn(network, part, turn(embed(part), key, angle)) for part, key in parts])


def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    return _turned(faces, keys, ANGLE)


def restore(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Protected faces (N, 3, 128, 128) and their keys (N,) -> the faces again; another key gives somebody else."""
    return _turned(faces, keys, -ANGLE)


# ---- training


@dataclass(frozen=True, kw_only=True)
class PersonalConfig(LoopConfig):
    """Faces, rates and loss weights."""

    data: str  # uint8 .npy (N, R, R, 3) of riddle.training.prepare faces
    val: str  # the same of held-out faces
    steps: int = 1_000_000
    minutes: float = 60.0
    batch: int = 4  # each face is drawn three times
    lr: float = 1e-3  # Adam, of what starts at random
    body_lr: float = 3e-4  # of the encoder's body
    ema: float = 0.995  # decay per step of the weights' average
    identity: float = 1.0  # 1 - cosine between the identity of a drawn face and the one asked for
    attributes: float = 0.3  # LPIPS between the protected face and the original
    restored: float = 0.8  # LPIPS between the drawn original, the restored face, and the original
    pixels: float = 1.0  # squared error of the same
    length: float = 0.02  # how far z goes beyond what a normal distribution gives


class PersonalTask(Task):
    """The network that draws a face with an identity."""

    def __init__(
        self, config: PersonalConfig, accelerator: Accelerator, generator: Synthesis, encoder: LiteEncoder,
        frozen: LossNetworks, held_out: torch.Tensor,
    ):  # fmt: skip
        """held_out: uint8 (N, R, R, 3), faces that training never sees."""
        self.frozen, self.held_out = frozen, held_out
        network = Redraw(generator, encoder, SYSTEM).to(accelerator.device)
        body = [p for p in network.body.parameters() if p.requires_grad]
        groups = [{"params": body, "lr": config.body_lr}, {"params": list(network.mix.parameters()), "lr": config.lr}]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        super().__init__(config, accelerator, "redraw", network, optimiser, shared=[generator, encoder])

    def identity(self, faces: torch.Tensor) -> torch.Tensor:
        """F_e's unit vectors (N, E) of faces (N, 3, R, R)."""
        return F.normalize(self.frozen.embed(faces).float(), dim=1)

    def apart(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """LPIPS between faces, both (N, 3, R, R)."""
        pairs = zip(self.frozen.perceive(a), self.frozen.perceive(b), strict=True)
        return sum((x - y).square().sum((1, 2, 3)).mean() for x, y in pairs)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, real = self.config, varied(to_tensor(batch["faces"]))
        keys, z = torch.randint(2**62, (len(real),)), []

        def again(faces: torch.Tensor, identity: torch.Tensor) -> torch.Tensor:
            nothing = faces.new_zeros(len(faces), 1, *faces.shape[2:])
            z.append(self.network(faces, nothing, nothing[:, :0], identity * EMBEDDING**0.5))
            return self.network.draw(z[-1])

        with self.accelerator.autocast():
            with torch.no_grad():
                own = self.identity(real)
            wanted = turn(own, keys)
            same, locked = again(torch.cat([real, real]), torch.cat([own, wanted])).chunk(2)
            found = self.identity(locked)
            opened = again(locked, turn(found, keys, -ANGLE))
            twice, back = torch.cat([same, opened]), torch.cat([real, real])
            terms = {
                "identity": (1 - (found * wanted).sum(1)).mean()
                + (1 - (self.identity(twice) * own.repeat(2, 1)).sum(1)).mean(),
                "attributes": self.apart(locked, real),
                "restored": self.apart(twice, back),
                "pixels": F.mse_loss(twice, back),
            }
        terms["length"] = F.relu(torch.cat(z).square().mean(-1) - 1).square().mean()
        seen = {"turned": (found * wanted).sum(1).mean(), "original": (found * own).sum(1).mean()}
        return sum(getattr(c, name) * value for name, value in terms.items()), terms | seen

    @torch.no_grad()
    def pictures(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """uint8 (N, R, R, 3) -> originals, protected by two keys, restored, restored by a wrong one."""
        real, draw = to_tensor(faces.to(self.accelerator.device)), torch.Generator().manual_seed(0)
        keys, other, wrong = (torch.randint(2**62, (len(real),), generator=draw) for _ in range(3))

        def change(faces: torch.Tensor, keys: torch.Tensor, angle: float) -> torch.Tensor:
            return drawn(self.average, faces, turn(self.identity(faces), keys, angle))

        with self.accelerator.autocast():
            locked = change(real, keys, ANGLE)
            rest = (change(real, other, ANGLE), change(locked, keys, -ANGLE), change(locked, wrong, -ANGLE))
        return [x.float() for x in (real, locked, *rest)]

    def validate(self) -> dict[str, float]:
        """Held-out faces: F_e's cosine of each picture with the original, and between two keys."""

        def numbers(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            own, *e = map(self.identity, self.pictures(faces))
            names = ("protected", "other", "restored", "wrong")
            alike = {name: (own * x).sum(1) for name, x in zip(names, e, strict=True)}
            return alike | {"keys": (e[0] * e[1]).sum(1)}

        return {k: round(v, 4) for k, v in means(numbers, self.held_out[:48]).items()}

    def samples(self) -> torch.Tensor:
        """Rows of eight held-out faces, as `pictures` has them."""
        return torch.cat(self.pictures(spread(self.held_out, 8)))


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and those of held-out faces."""
    config = recipe.parse(PersonalConfig, "personal", __doc__, argv)
    accelerator, preset = make_accelerator(config), get(config.preset)
    generator, frozen = frozen_networks(preset, "", accelerator.device)
    faces, held_out = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in (config.data, config.val))
    torch.manual_seed(config.seed)
    task = PersonalTask(config, accelerator, generator, frozen_encoder(preset, "", generator), frozen, held_out)
    last = run(task, {"faces": faces})
    last |= {f"val_{k}": v for k, v in task.validate().items()}
    return finish(task, "personal", last, record_of(config, last["step"], len(faces)), task.average.own_state())


if __name__ == "__main__":
    main()
