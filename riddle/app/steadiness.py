"""Measure how steady each face of a clip is: its identity and its landmarks from frame to frame."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from PIL import Image

from riddle.app import tracking
from riddle.app.clip import Clip, frames
from riddle.app.cliprecord import ClipRecord, matrix
from riddle.app.tracking import Embedder, follow, overlap
from riddle.pipeline import Riddle
from riddle.progress import track

Values = dict[str, float | None]


def measure(
    model: Riddle, clips: dict[str, Clip], record: ClipRecord, embedder: Embedder
) -> dict[int, dict[str, Values]]:
    """`steadiness` of each face of a record in each clip: number of the face -> measure -> clip's name -> value."""
    out: dict[int, dict[str, Values]] = defaultdict(lambda: defaultdict(dict))
    for name, clip in clips.items():
        seen: dict[int, list[tuple]] = defaultdict(list)
        for frame in track(frames(clip), f"measure {name}", len(record.times), "frame", leave=False):
            if not (found := record.faces(record.frame(frame.since))):
                continue
            image, places = Image.fromarray(frame.rgb()), [place for _, place, _ in found]
            embeddings = np.full((len(found), 1), np.nan)
            if embedder.recogniser is not None:
                embeddings = embedder.embed(model.crops(image, matrix(places)))
            for (number, place, _), embedding in zip(found, embeddings, strict=True):
                row = frame.n, embedding, _landmarks(model, image, place), float(np.hypot(*place[2:]))
                seen[number].append(row)
        for number, rows in seen.items():
            for what, value in steadiness(*map(np.array, zip(*rows, strict=True))).items():
                out[number][what][name] = value
    return out


def _landmarks(model: Riddle, image: Image.Image, place: np.ndarray) -> np.ndarray:
    """The five points (5, 2) of the face at a place, px; NaN where none is found there."""
    found = {overlap(find.place, place): find.face.points for find in follow(model, image, place)}
    return found[max(found)] if found and max(found) >= tracking.THERE else np.full((5, 2), np.nan)


def steadiness(
    numbers: np.ndarray, embeddings: np.ndarray, points: np.ndarray, sides: np.ndarray
) -> dict[str, float | None]:
    """Measure how steady a face is from frame to frame.

    numbers: (N,), those of its frames; embeddings: (N, E); points: (N, 5, 2) in px, NaN where they were not found;
    sides: (N,) of the face, px. Returns identity, the cosine of consecutive frames' embeddings; person, that of
    all with their mean; jitter, the second difference of the points, in sides of the face. None: nothing was measured.
    """
    follows = np.diff(numbers) == 1
    bends = np.hypot(*np.moveaxis(np.diff(points, 2, axis=0), -1, 0)).mean(1) / sides[2:]
    measured = {
        "identity": (embeddings[1:] * embeddings[:-1]).sum(1)[follows],
        "person": np.linalg.norm(embeddings.mean(0, keepdims=True), axis=1),
        "jitter": bends[follows[1:] & follows[:-1]],
    }
    known = {name: values[np.isfinite(values)] for name, values in measured.items()}
    return {name: round(float(values.mean()), 5) if len(values) else None for name, values in known.items()}
