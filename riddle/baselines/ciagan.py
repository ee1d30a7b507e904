"""CIAGAN (Maximov, Elezi, Leal-Taixe, CVPR 2020): a face inpainted from its landmarks, with one of 1,200 identities.

    python -m riddle.baselines.ciagan --recipe mobile

The network sees the picture with the face in grey, a landmark picture (outline, mouth, bridge of the nose: eyes and
brows belong to the new identity), and one identity of 1,200, which the key chooses. An adversarial loss judges the
picture with the drawn face in it; an identity loss by proxies draws it to the chosen person and away from the others.
Nothing restores the original.

As there: condition, number of identities, the two losses. Smaller or other than there: a frozen generator draws, and a
code is searched in place of a picture (riddle.baselines.redraw); the identities are people of nobody, fixed codes of
that generator, so that a label stands for its code in place of a one-hot vector; the identity network is the project's
frozen recogniser F_e in place of a siamese one trained on CelebA; the critic's loss is non-saturating with R1 in place
of least squares; the drawn face is mixed into the four pixels around the mask, and losses on the surroundings and on
the shape make up for the frozen decoder.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F

from riddle.baselines import regions
from riddle.baselines.inpainting import RedrawTask, train
from riddle.baselines.redraw import System, normal
from riddle.baselines.redraw import protect as redrawn
from riddle.networks import Synthesis
from riddle.progress import track
from riddle.training import recipe

IDENTITIES = 1200  # as in the paper, sec. 4
SCALE = 12.0  # of the cosines in the identity loss (Proxy-NCA)


def look(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (N, R, R) -> the face's region (N, 1, R, R) and the landmark picture (N, 3, R, R)."""
    return regions.region(labels), regions.landmarks(labels)


@torch.no_grad()
def person(generator: Synthesis, keys: torch.Tensor) -> torch.Tensor:
    """Keys (N,) -> z (N, D) of the person of nobody whose number is the key modulo IDENTITIES."""
    drawn = normal("ciagan identity", keys % IDENTITIES, generator.style_dim)
    return generator.codes.to_gaussian(generator.map(drawn.to(generator.device)))


# the pose, in the first slots, and the light, in the last ones, follow from the surroundings
SYSTEM = System("ciagan", 3, look, person, (0.1, 0.2, 0.6, 0.8, 0.8, 0.8, 0.8, 0.6, 0.1, 0.1))


def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    return redrawn(SYSTEM, faces, keys)


class CiaganTask(RedrawTask):
    """The adversarial loss of redraw, the identity loss, and the shape of the drawn face."""

    @cached_property
    @torch.no_grad()
    def proxies(self) -> torch.Tensor:
        """F_e's embeddings (IDENTITIES, E) of the people of nobody."""
        parts = torch.arange(IDENTITIES).split(40)
        z = (person(self.generator, part) for part in track(parts, "identities"))
        faces = (self.generator(self.generator.broadcast(self.generator.codes.to_w(part))) for part in z)
        return torch.cat([self.frozen.embed(part).float() for part in faces])

    def own_terms(
        self, drawn: torch.Tensor, shown: torch.Tensor, seen: torch.Tensor, maps: torch.Tensor, keys: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        cosines = self.frozen.embed(shown).float() @ F.normalize(self.proxies).T
        identity = F.cross_entropy(SCALE * cosines, (keys % IDENTITIES).to(cosines.device))
        return {"identity": identity, "landmarks": regions.shape_loss(self.parser(drawn), seen)}


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers."""
    return train(CiaganTask, SYSTEM, __doc__, argv)


if __name__ == "__main__":
    recipe.command(main)
