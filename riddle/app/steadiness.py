"""How steady a face stays through a clip: the same person in every frame, and where it was a moment ago."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from riddle.app.clip import Clip, Frame, frames
from riddle.app.tracking import THERE, Embedder, crops, follow, overlap
from riddle.pipeline import Riddle

Measures = dict[str, dict[str, float | None]]  # measure -> "source" and "target" -> value


class Steadiness:
    """How steady a face stays from frame to frame, measured without keeping the frames."""

    def __init__(self) -> None:
        self.last, self.embedding, self.points = None, None, []  # of the last frame; of the last three
        self.sum, self.count, self.cosines, self.bends = 0.0, 0, [], []

    def add(self, n: int, embedding: np.ndarray | None, points: np.ndarray | None, side: float) -> None:
        """Take frame n; embedding: (E,), None without a recogniser; points: (5, 2) in px, None where they were not
        found; side: of the face, px."""
        if self.last != n - 1:
            self.embedding, self.points = None, []
        if embedding is not None:
            self.sum, self.count = self.sum + embedding, self.count + 1
            if self.embedding is not None:
                self.cosines.append(float(self.embedding @ embedding))
        self.last, self.embedding, self.points = n, embedding, [*self.points[-2:], points]
        if len(self.points) == 3 and all(p is not None for p in self.points):
            a, b, c = self.points
            self.bends.append(float(np.hypot(*(a - 2 * b + c).T).mean()) / side)

    def means(self) -> dict[str, float | None]:
        """identity, the cosine of consecutive frames' embeddings; person, the cosine of all with their mean; jitter,
        the second difference of the points, in sides of the face. None: nothing was measured."""
        person = float(np.linalg.norm(self.sum)) / self.count if self.count else None
        identity, jitter = (sum(v) / len(v) if v else None for v in (self.cosines, self.bends))
        found = {"identity": identity, "person": person, "jitter": jitter}
        return {name: None if value is None else round(value, 5) for name, value in found.items()}


def measure(
    model: Riddle,
    source: Clip,
    target: Clip,
    faces_in: Callable[[Frame], list[tuple[int, np.ndarray, torch.Tensor]]],
    embedder: Embedder,
    tick: Callable[[], None],
) -> dict[int, Measures]:
    """The measures of each track in a clip and in what was made of it, frame by frame the same.

    faces_in: of each frame of the source in turn, its tracks and places; tick: called for each frame.
    """
    steady: dict[tuple[int, str], Steadiness] = defaultdict(Steadiness)
    for before, after in zip(frames(source), frames(target), strict=False):
        found = faces_in(before)
        for kind, frame in (("source", before), ("target", after)) if found else ():
            image, places = Image.fromarray(frame.rgb()), [place for _, place, _ in found]
            embeddings = embedder.embed(crops(model, image, places)) if embedder.recogniser else [None] * len(found)
            for (track, place, _), embedding in zip(found, embeddings, strict=True):
                points, side = _landmarks(model, image, place), float(np.hypot(*place[2:]))
                steady[track, kind].add(before.n, embedding, points, side)
        tick()
    out: dict[int, Measures] = defaultdict(lambda: defaultdict(dict))
    for (track, kind), face in steady.items():
        for name, value in face.means().items():
            out[track][name][kind] = value
    return out


def _landmarks(model: Riddle, image: Image.Image, place: np.ndarray) -> np.ndarray | None:
    """The five points (5, 2) of the face at a place, px; None where none is found there."""
    found = {overlap(find.place, place): find.face.points for find in follow(model, image, place)}
    return found[max(found)] if found and max(found) >= THERE else None
