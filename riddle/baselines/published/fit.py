"""FIT with the published weights (github.com/laoreja/face-identity-transformer).

The key's lowest 16 bits, as -0.5 and 0.5 (`use_minus_one: half` of the published configuration), are the password; with
its negation the same network restores. The network normalises by the statistics of the faces that it sees together, in
use as in training, because its file holds no others: so a face depends on its neighbours, and a restored one is at its
best among those with which it was protected. The published program takes 12 at a time, and so does this one.
"""

from __future__ import annotations

import torch

from riddle.baselines.fit import bits_of
from riddle.baselines.published import load
from riddle.baselines.redraw import checked

BATCH = 12  # faces that are normalised together


@torch.no_grad()
def _changed(faces: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    faces, network = checked("fit", faces), load("fit")
    return torch.cat([network(*part) for part in zip(faces.split(BATCH), (bits / 2).split(BATCH), strict=True)])


def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    return _changed(faces, bits_of(keys))


def restore(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Protected faces (N, 3, 128, 128) and their keys (N,) -> the faces again; another key gives somebody else."""
    return _changed(faces, -bits_of(keys))
