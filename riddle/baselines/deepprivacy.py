"""DeepPrivacy (Hukkelas, Mester, Lindseth, ISVC 2019): a face inpainted from its surroundings and its keypoints.

    python -m riddle.baselines.deepprivacy --recipe mobile

The network sees the picture with the face's box in grey, the box, five keypoints (eyes, nose, ears), and noise, which
comes from the key; it never sees what lies inside the box. An adversarial loss under the same condition judges the
picture with the drawn face in the box. Nothing restores the original.

As there: condition, noise, adversarial loss. Smaller or other than there: a frozen generator draws, and a code is
searched in place of a picture (riddle.baselines.redraw); 128 px; box and keypoints come from the parser and leave the
shoulders out; the critic's loss is non-saturating with R1 in place of WGAN-GP; the drawn face is mixed into the four
pixels around the box, and losses on the surroundings and on the place of the keypoints make up for the frozen decoder.
"""

from __future__ import annotations

import torch

from riddle.baselines import regions
from riddle.baselines.inpainting import RedrawTask, train
from riddle.baselines.redraw import System, normal
from riddle.baselines.redraw import protect as redrawn
from riddle.networks import Synthesis
from riddle.training import recipe


def look(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (N, R, R) -> the box (N, 1, R, R) and the keypoints' maps (N, 5, R, R)."""
    return regions.box(labels), regions.points(labels)


def noise(generator: Synthesis, keys: torch.Tensor) -> torch.Tensor:
    """Keys (N,) -> standard normal noise (N, D)."""
    return normal("deepprivacy", keys, generator.style_dim).to(generator.device)


# the pose, in the first slots, and the light, in the last ones, follow from the surroundings
SYSTEM = System("deepprivacy", len(regions.POINTS), look, noise, (0.1, 0.1, 0.4, 0.7, 0.7, 0.7, 0.7, 0.5, 0.1, 0.1))


def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    return redrawn(SYSTEM, faces, keys)


class DeepPrivacyTask(RedrawTask):
    """The adversarial loss of redraw, and the keypoints' place in the drawn face."""

    def own_terms(
        self, drawn: torch.Tensor, shown: torch.Tensor, seen: torch.Tensor, maps: torch.Tensor, keys: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {"landmarks": regions.points_loss(self.parser(drawn), maps)}


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers."""
    return train(DeepPrivacyTask, SYSTEM, __doc__, argv)


if __name__ == "__main__":
    recipe.command(main)
