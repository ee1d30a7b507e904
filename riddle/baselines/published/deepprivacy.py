"""DeepPrivacy, version 1 of 2019, with the published weights (github.com/hukkelas/DeepPrivacy).

The key gives the noise, drawn from a standard normal distribution. As in the published program: the network sees the
picture with 0 in the face's box, and one pixel for each keypoint; only the box is replaced. Other than there: the box
comes from this project's parser; nose and eyes are dlib's points, the ears the ends of its outline, and the shoulders,
which a framed face hardly shows, are not told. The published frame, the box with 35 % more on each side or what the
picture has, is the framed face itself.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from riddle.baselines import regions
from riddle.baselines.published import BATCH, SIDE, landmarks, load
from riddle.baselines.redraw import checked, normal
from riddle.faces.detection import five_points
from riddle.models.anonymisers import DeepPrivacyGenerator
from riddle.models.parsing import labels
from riddle.presets import get
from riddle.training.frozen import frozen_parsing_net


def keypoints(points: np.ndarray) -> torch.Tensor:
    """Landmarks (68, 2) px -> nose, eyes, ears and shoulders (7, 2), in units of the side."""
    left, right, nose = five_points(points)[:3]
    told = (np.stack([nose, left, right, points[0], points[16]]) + 0.5) / SIDE
    return torch.from_numpy(np.concatenate([told, np.full((2, 2), -1.0)])).float()


def noise(keys: torch.Tensor) -> torch.Tensor:
    """Keys (N,) -> standard normal noise (N, 32, 4, 4)."""
    shape = DeepPrivacyGenerator.NOISE
    return normal("deepprivacy", keys, math.prod(shape)).view(-1, *shape)


@torch.no_grad()
def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    faces, network, done = checked("deepprivacy", faces), load("deepprivacy"), []
    parser = frozen_parsing_net(get("mobile"), "", "cpu")
    for part, key in zip(faces.split(BATCH), keys.split(BATCH), strict=True):
        box = regions.box(labels(parser(part)))
        points = torch.stack([keypoints(p) for p in landmarks(part)])
        drawn = network(part * (1 - box), points, noise(key)).clamp(-1, 1)
        done.append(torch.where(box == 1, drawn, part))
    return torch.cat(done)
