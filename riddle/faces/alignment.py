"""The framing: the place of a face's crop in a photo, and the crop itself.

Coordinates are pixel indices (the centre of the first pixel is 0, 0), x before y. Five points are the
left eye, right eye, nose tip, left and right corner of the mouth, left meaning left in the picture.
A framing matrix is a similarity without a mirror, so four numbers say it too: a place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


def _rot90(v: np.ndarray) -> np.ndarray:
    return np.array([-v[1], v[0]])


def framing_matrix(points: np.ndarray) -> np.ndarray:
    """The affine map from a crop's unit square to the photo.

    points: (5, 2) pixels of the photo. Returns (2, 3): [x, y] = M @ [u, v, 1] for u, v in [0, 1], with u to
    the right and v downwards in the crop. Raises ValueError for degenerate points.
    Source: the FFHQ crop of Karras et al., 2019.
    """
    points = np.asarray(points, dtype=np.float64)
    eyes, mouth = points[:2].mean(0), points[3:5].mean(0)
    eye_to_eye, eye_to_mouth = points[1] - points[0], mouth - eyes
    x = eye_to_eye - _rot90(eye_to_mouth)
    norm = np.hypot(*x)
    if not np.isfinite(norm) or norm < 1e-6:
        raise ValueError("the five points coincide: no crop follows from them")
    x = x / norm * max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    y = _rot90(x)
    centre = eyes + 0.1 * eye_to_mouth
    return np.stack([2 * x, 2 * y, centre - x - y], axis=1)


def matrix(places: np.ndarray) -> np.ndarray:
    """The framing matrices (..., 2, 3) of places (..., 4): centre x and y of a square, the vector of its upper side."""
    x, y, a, b = np.moveaxis(np.asarray(places, np.float64), -1, 0)
    return np.stack([np.stack([a, -b, x - (a - b) / 2], -1), np.stack([b, a, y - (a + b) / 2], -1)], -2)


def place(framing: np.ndarray) -> np.ndarray:
    """The inverse of `matrix`."""
    return np.concatenate([framing[..., 2] + framing[..., :2].sum(-1) / 2, framing[..., 0]], -1)


def moved(framing: np.ndarray, scale: float, offset: np.ndarray | Sequence[float]) -> np.ndarray:
    """Framing matrices (..., 2, 3) in a picture where pixel p became p * scale + offset."""
    return framing * scale + np.pad(np.asarray(offset, np.float64)[:, None], ((0, 0), (2, 0)))


def bounded(places: np.ndarray, width: int, height: int) -> np.ndarray:
    """Places (n, 4) float32 that a record takes: a side of 1 px to twice the picture, the centre at most a side outside
    the picture. Others would ask for pictures of any size. Places that are so already stay to the bit."""
    places = np.array(places, np.float32)
    side, most = np.hypot(places[:, 2], places[:, 3]), 2 * float(np.sqrt(width * height))
    wrong = (side < 1) | (side > most)
    places[wrong, 2:] *= (np.clip(side, 1.01, 0.99 * most) / np.maximum(side, 1e-6))[wrong, None]
    places[side < 1e-6, 2:] = (1.01, 0.0)
    side = np.hypot(places[:, 2], places[:, 3])[:, None]
    places[:, :2] = np.clip(places[:, :2], -side, np.float32([width, height]) + side)
    return places


def crop_points(points: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Photo points (k, 2) -> pixel indices of the `size` px crop that `matrix` frames."""
    linear, offset = matrix[:, :2], matrix[:, 2]
    return (np.asarray(points, dtype=np.float64) - offset) @ np.linalg.inv(linear).T * size - 0.5


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares similarity that takes points (k, 2) to targets (k, 2): (2, 3). Umeyama, 1991."""
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    sc, tc = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(tc.T @ sc / len(source))
    d = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    r = u @ np.diag(d) @ vt
    scale = (s * d).sum() / sc.var(0).sum()
    return np.concatenate([scale * r, (target.mean(0) - scale * r @ source.mean(0))[:, None]], axis=1)


def crop(image: Image.Image, matrix: np.ndarray, size: int) -> Image.Image:
    """The `size` px square crop of an RGB photo under a framing matrix, antialiased; outside, the photo is mirrored."""
    corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]) @ matrix.T
    low = np.floor(corners.min(0)).astype(int) - 2
    high = np.ceil(corners.max(0)).astype(int) + 3
    w, h = image.size
    keep_low, keep_high = np.clip(low, 0, [w - 1, h - 1]), np.clip(high, 1, [w, h])
    keep_high = np.maximum(keep_high, keep_low + 1)
    patch = image.convert("RGB").crop((*keep_low, *keep_high))
    before, after = keep_low - low, high - keep_high
    if (before > 0).any() or (after > 0).any():
        widths = ((max(before[1], 0), max(after[1], 0)), (max(before[0], 0), max(after[0], 0)), (0, 0))
        patch = Image.fromarray(np.pad(np.asarray(patch), widths, mode="reflect"))
        keep_low = np.minimum(keep_low, low)
    side, shrink = np.hypot(*matrix[:, 0]), 1
    if side > 4 * size:  # far larger than the crop: shrink first, so that supersampling stays small
        shrink = int(side // (2 * size))
        patch = patch.reduce(shrink)
    over = max(1, int(np.ceil(side / shrink / size)))
    linear = matrix[:, :2] / (size * over) / shrink
    offset = (matrix[:, 2] + 0.5 - keep_low) / shrink
    data = (linear[0, 0], linear[0, 1], offset[0], linear[1, 0], linear[1, 1], offset[1])
    out = patch.transform((size * over, size * over), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    return out.reduce(over) if over > 1 else out
