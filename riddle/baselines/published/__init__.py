"""The published networks of the paper's other systems, from their authors' files, behind the interface of the others.

    protected = riddle.baselines.PUBLISHED["ciagan"].protect(faces, keys)

`python -m riddle weights` says where each file lies and on which terms. The tables show the bundled networks. Here the
networks are the authors'; what stands around them (landmarks, boxes, frames) follows their code with the means of this
project, as each module says. No published file was at hand when these were written: the layouts come from the authors'
code, and the tests build them from random numbers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from riddle.faces import detection
from riddle.images import to_bytes
from riddle.published import blank
from riddle.weights import find, load_tensors

SIDE = 128  # px of the faces that the networks take
BATCH = 16  # faces at a time
# left, top, right, bottom, as shares of the side, of the box in which dlib's mean face lies as an average framed one
BOX = (0.175, 0.265, 0.825, 0.915)


@cache
def load(name: str) -> nn.Module:
    """A published generator. Raises WeightsMissingError, and ValueError for a damaged file."""
    network = blank(name)
    network.load_state_dict(load_tensors(find(name)))
    return network.eval().requires_grad_(False)


def landmarks(faces: torch.Tensor) -> np.ndarray:
    """dlib's 68 points (N, 68, 2) in px of framed faces; where no face is found, at the place of an average one."""
    detector, box = detection.load_detector("dlib"), np.array(BOX) * faces.shape[-1]
    found = detection.detect_in_crop(faces, detector)
    pictures = to_bytes(faces)
    return np.stack([f.landmarks if f else detector.predict(p, box) for f, p in zip(found, pictures, strict=True)])
