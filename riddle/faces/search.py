"""Every face of a photo: both detectors, the photo mirrored beyond its border, a large one part by part."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from riddle.faces.detection import AutoDetector, Face

SMALLEST = 20  # px, side of a framed face; below it nobody is recognised, and no code says who
DOUBTFUL = 0.9  # MTCNN's score below which its find alone is no face
PART = 1600  # px a side of what is searched at once


def find_all(image: Image.Image, detector: Any) -> list[Face]:
    """Every face of an RGB photo, largest first.

    The "auto" detector stops where dlib finds one face; here both search, so that a turned or small face beside a
    frontal one is not missed. The photo is mirrored beyond its border, where half a face becomes a whole one. One
    larger than PART is searched reduced, and in full size part by part.
    """
    if min(image.size) < SMALLEST:
        return []
    searchers = [detector.first, detector.second] if isinstance(detector, AutoDetector) else [detector]
    size, shrink = np.array(image.size), -(-max(image.size) // PART)
    whole = image.reduce(shrink) if shrink > 1 else image
    rim = min(whole.size) // 4
    mirrored = Image.fromarray(np.pad(np.asarray(whole), ((rim, rim), (rim, rim), (0, 0)), mode="reflect"))
    views = [(mirrored, shrink, (-rim * shrink, -rim * shrink))]
    if shrink > 1:
        corners = [np.array([x, y]) for y in _starts(image.height) for x in _starts(image.width)]
        views += [(image.crop((*corner, *np.minimum(corner + PART, size))), 1, corner) for corner in corners]
    found: list[Face] = []
    for view, scale, corner in views:
        for searcher in searchers:
            for face in searcher.detect(view):
                # pixel p of a reduced picture is the mean of `scale` pixels from p * scale on
                face = face.mapped(scale, np.add(corner, (scale - 1) / 2))
                centre, margin = face.points.mean(0), 0.1 * np.sqrt(face.area)
                image_of_another = (centre < -margin).any() or (centre > size + margin).any()
                if not image_of_another and not any(_same(face, other) for other in found):
                    found.append(face)
    return sorted(found, key=lambda f: -f.area)


def doubtful(face: Face) -> bool:
    """Whether MTCNN alone takes it for a face, and is not sure."""
    return face.detector == "mtcnn" and face.score < DOUBTFUL


def _starts(length: int) -> list[int]:
    """Where parts of PART px begin that overlap by a fifth and reach the end."""
    last = max(0, length - PART)
    return sorted({min(start, last) for start in range(0, last + PART, PART - PART // 5)})


def _same(a: Face, b: Face) -> bool:
    """Whether two finds are one face: their centres are nearer than 0.4 of the larger one's side."""
    return float(np.hypot(*(a.points.mean(0) - b.points.mean(0)))) < 0.4 * float(np.sqrt(max(a.area, b.area)))
