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

from riddle.baselines.redraw import PRESET, System
from riddle.baselines.reversible import ReversibleConfig, ReversibleTask, beyond, changed, train
from riddle.faces import recognizers
from riddle.images import to_tensor
from riddle.models.inversion import EMBEDDING
from riddle.passwords import normal_from_key
from riddle.presets import get
from riddle.training import recipe
from riddle.training.inversion import varied
from riddle.training.loop import Numbers

ANGLE = math.pi / 2  # of the turn: the protected identity stands at a right angle to the original one
SYSTEM = System("personal", maps=0, vector=EMBEDDING)


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


def vectors(identity: torch.Tensor, keys: torch.Tensor, angle: float) -> torch.Tensor:
    """Unit vectors of an identity (N, E), turned, as the network takes them: of variance 1."""
    return turn(identity, keys, angle) * EMBEDDING**0.5


def _turned(faces: torch.Tensor, keys: torch.Tensor, angle: float) -> torch.Tensor:
    embed = recognizers.load(get(PRESET).identity).from_crop
    return changed(SYSTEM, faces, keys, lambda part, key: vectors(embed(part), key, angle))


def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    return _turned(faces, keys, ANGLE)


def restore(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Protected faces (N, 3, 128, 128) and their keys (N,) -> the faces again; another key gives somebody else."""
    return _turned(faces, keys, -ANGLE)


# ---- training


@dataclass(frozen=True, kw_only=True)
class PersonalConfig(ReversibleConfig):
    """Loss weights."""

    identity: float = 1.0  # 1 - cosine between the identity of a drawn face and the one asked for
    attributes: float = 0.3  # LPIPS between the protected face and the original
    restored: float = 0.8  # LPIPS between the drawn original, the restored face, and the original
    pixels: float = 1.0  # squared error of the same
    length: float = 0.02  # how far z goes beyond what a normal distribution gives


class PersonalTask(ReversibleTask):
    """The network that draws a face with an identity."""

    system = SYSTEM

    def tell(self, faces: torch.Tensor, keys: torch.Tensor, back: bool) -> torch.Tensor:
        return vectors(self.identity(faces), keys, -ANGLE if back else ANGLE)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, real = self.config, varied(to_tensor(batch["faces"]))
        keys = torch.randint(2**62, (len(real),))
        with self.accelerator.autocast():
            with torch.no_grad():
                own = self.identity(real)
                wanted = turn(own, keys)
            first, drawn = self.network.again(torch.cat([real, real]), torch.cat([own, wanted]) * EMBEDDING**0.5)
            same, locked = drawn.chunk(2)
            found = self.identity(locked)
            second, opened = self.network.again(locked, vectors(found, keys, -ANGLE))
            twice, back = torch.cat([same, opened]), torch.cat([real, real])
            terms = {
                "identity": (1 - (found * wanted).sum(1)).mean()
                + (1 - (self.identity(twice) * own.repeat(2, 1)).sum(1)).mean(),
                "attributes": self.apart(locked, real),
                "restored": self.apart(twice, back),
                "pixels": F.mse_loss(twice, back),
            }
        terms["length"] = beyond(torch.cat([first, second]))
        seen = {"turned": (found * wanted).sum(1).mean(), "original": (found * own).sum(1).mean()}
        return sum(getattr(c, name) * value for name, value in terms.items()), terms | seen


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and those of held-out faces."""
    return train(PersonalTask, recipe.parse(PersonalConfig, "personal", __doc__, argv))


if __name__ == "__main__":
    main()
