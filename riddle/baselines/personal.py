"""Personal (Cao, Liu, Wen, Xie, Song, ICCV 2021): identity and attributes apart, and the identity turned by a password.

    python -m riddle.baselines.personal --recipe mobile

A recogniser gives the identity of a face, a unit vector; a network draws a face from the picture (its attributes: pose,
expression, light, surroundings) and an identity vector. To protect, the vector is turned by ANGLE in planes that the
key chooses; to restore, the identity of the protected face is turned back, and the network draws it from the protected
picture. Another key turns it elsewhere. Nothing is kept beside the picture.

As there: the two parts, the turn on the unit sphere, and how it is undone; losses on identity, attributes and the
restored face. Smaller or other than there: a frozen generator draws, and a code is searched in place of a picture
(riddle.baselines.redraw); the identity network is the bundled encoder's, whose own head adds the turned identity to the
code; embeddings are whitened before the turn, since their mean and their spread are the same for all people; the angle
is fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from riddle.baselines.redraw import Redraw, System
from riddle.baselines.reversible import ReversibleConfig, ReversibleTask, beyond, changed, train
from riddle.images import to_tensor
from riddle.models.inversion import EMBEDDING
from riddle.networks import Synthesis
from riddle.passwords import normal_from_key
from riddle.training import recipe
from riddle.training.inversion import varied
from riddle.training.loop import Numbers

ANGLE = math.pi / 2  # of the turn: the protected identity stands at a right angle to the original one
SYSTEM = System("personal", maps=0, vector=EMBEDDING, identity="told")


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


def whitened(embedded: torch.Tensor, people: torch.Tensor) -> torch.Tensor:
    """Embeddings (N, E) -> the same with mean 0 and variance 1 each way; people: (E + 1, E) of `measured`."""
    return torch.linalg.solve(people[1:], (embedded - people[0]).T).T


def vectors(embedded: torch.Tensor, people: torch.Tensor, keys: torch.Tensor, angle: float) -> torch.Tensor:
    """Embeddings (N, E), turned while they are white, (N, E); people: (E + 1, E) of `measured`."""
    with torch.autocast(embedded.device.type, enabled=False):
        return turn(whitened(embedded.float(), people), keys, angle) @ people[1:].T + people[0]


@torch.no_grad()
def measured(network: Redraw, generator: Synthesis, n: int = 1024) -> torch.Tensor:
    """Embeddings of n drawn faces: their mean, above the matrix that undoes whitening, (E + 1, E)."""
    z = torch.randn(n, generator.style_dim, generator=torch.Generator().manual_seed(0))
    codes = generator.broadcast(generator.map(z.to(network.mean_face)))
    embedded = torch.cat([network.recognise(generator(part).clamp(-1, 1)) for part in codes.split(32)])
    variance, directions = torch.linalg.eigh(embedded.T.cov())
    return torch.cat([embedded.mean(0, keepdim=True), directions * variance.clamp(min=1e-4).sqrt()])


def _turned(faces: torch.Tensor, keys: torch.Tensor, angle: float) -> torch.Tensor:
    def tell(network: Redraw, part: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return vectors(network.recognise(part), network.people, key, angle)

    return changed(SYSTEM, faces, keys, tell)


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

    identity: float = 1.0  # 1 - cosine: the protected face's identity and the one asked for, the restored and the own
    attributes: float = 0.3  # LPIPS between the protected face and the original
    restored: float = 0.8  # LPIPS between the drawn original, the restored face, and the original
    pixels: float = 1.0  # squared error of the same
    length: float = 0.02  # how far z goes beyond what a normal distribution gives


class PersonalTask(ReversibleTask):
    """The network that draws a face with an identity."""

    system = SYSTEM

    def __init__(self, *parts):
        """parts: as for `ReversibleTask`."""
        super().__init__(*parts)
        people = measured(self.network, parts[2])
        self.network.people.copy_(people), self.average.people.copy_(people)

    def tell(self, faces: torch.Tensor, keys: torch.Tensor, back: bool) -> torch.Tensor:
        return vectors(self.network.recognise(faces), self.network.people, keys, -ANGLE if back else ANGLE)

    def alike(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Cosine between embeddings (N, E), whitened, a scalar."""
        with torch.autocast(a.device.type, enabled=False):
            return F.cosine_similarity(*(whitened(x.float(), self.network.people) for x in (a, b))).mean()

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, real, n = self.config, varied(to_tensor(batch["faces"])), self.network
        keys = torch.randint(2**62, (len(real),))
        with self.accelerator.autocast():
            with torch.no_grad():
                own = n.recognise(real)
                wanted = vectors(own, n.people, keys, ANGLE)
            first, drawn = n.again(torch.cat([real, real]), torch.cat([own, wanted]))
            same, locked = drawn.chunk(2)
            found = n.recognise(locked)
            second, opened = n.again(locked, vectors(found, n.people, keys, -ANGLE))
            twice, back = torch.cat([same, opened]), torch.cat([real, real])
            person, seen, again, restored = self.identity(torch.cat([real, locked, same, opened])).chunk(4)
            turned = self.alike(found, wanted)
            terms = {
                "identity": 3 - turned - (person * again).sum(1).mean() - (person * restored).sum(1).mean(),
                "attributes": self.apart(locked, real),
                "restored": self.apart(twice, back),
                "pixels": F.mse_loss(twice, back),
            }
        terms["length"] = beyond(torch.cat([first, second]))
        shown = {name: (x * person).sum(1).mean() for name, x in {"protected": seen, "opened": restored}.items()}
        return sum(getattr(c, name) * value for name, value in terms.items()), terms | shown | {"turned": turned}


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and those of held-out faces."""
    return train(PersonalTask, recipe.parse(PersonalConfig, "personal", __doc__, argv))


if __name__ == "__main__":
    recipe.command(main)
