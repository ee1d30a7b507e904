"""Take a pasted face out of a photo again, and put another in its place.

A protected photo shows P = (1 - a) O + a S: the original O under the stranger S, by the mask a. Who has the record can
draw S, and so a; along the mask's soft rim, where a < 1, O follows: (P - a S) / (1 - a). Pasting the restored face over
P itself would leave a share a (1 - a) of the stranger there, a ghost of up to a quarter around the face.

The rim needs no password: whoever hides something must not leave it to the rim.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from riddle.faces import blending

MOST = 0.95  # of a: beyond it, rounding and compression would be enlarged over twentyfold
INNER = 0.4  # of a: where the restored face begins; farther out the surroundings themselves are better


def _strips(photo: np.ndarray, matrix: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of `photo` (views) that cover the face's square, each with the framing matrix in its own pixels."""
    x1, y1, x2, y2 = blending.box(matrix, (photo.shape[1], photo.shape[0]))
    for top in range(y1, y2, blending.STRIP):
        yield photo[top : min(top + blending.STRIP, y2), x1:x2], matrix - [[0, 0, x1], [0, 0, top]]


def _layers(
    shape: tuple[int, ...], face: Image.Image, matrix: np.ndarray, outline: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The mask a (H, W, 1) in [0, 1] and a * face (H, W, 3), 0 to 255, as `blending.paste` blends them."""
    layers = []
    for picture in (Image.new("RGB", face.size, (255, 255, 255)), face):
        canvas = np.zeros(shape, np.uint8)  # over black nothing but the share of the face remains
        blending.paste(canvas, picture, matrix, outline)
        layers.append(canvas.astype(np.float32))
    return layers[0][..., :1] / 255, layers[1]


def unblend(photo: np.ndarray, shown: Image.Image, matrix: np.ndarray, outline: np.ndarray | None = None) -> None:
    """Take a face out of `photo` in place, as far as something of the original is left under it.

    photo: uint8 (H, W, 3); shown: the face as it was pasted, its colours matched; matrix, outline: as for
    `blending.paste`. Inside, where nothing is left of the original, what remains has no meaning.
    """
    for part, there in _strips(photo, matrix):
        a, share = _layers(part.shape, shown, there, outline)
        less = np.minimum(1, MOST / np.maximum(a, MOST))
        original = (part - share * less) / (1 - a * less)
        part[:] = np.where(a > 0, np.rint(np.clip(original, 0, 255)), part).astype(np.uint8)


def paste_inside(photo: np.ndarray, face: Image.Image, matrix: np.ndarray, outline: np.ndarray | None = None) -> None:
    """`blending.paste` with a narrower rim, which leaves more of the surroundings: the mask from INNER on."""
    for part, there in _strips(photo, matrix):
        a, share = _layers(part.shape, face, there, outline)
        inner = np.clip((a - INNER) / (1 - INNER), 0, 1)
        blended = part + inner * (share / np.maximum(a, INNER) - part)
        part[:] = np.where(inner > 0, np.rint(np.clip(blended, 0, 255)), part).astype(np.uint8)
