"""Faces followed through a clip: what is found in a frame, and which find belongs to whom.

A place is a face's square as four numbers: centre x and y, and the vector of its upper side, in pixels. An embedding
is a unit vector that tells faces apart: a recogniser's or, where none is on this machine, the face's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from riddle.app import photos
from riddle.app.cliprecord import matrix, place
from riddle.faces import alignment, recognizers
from riddle.faces.detection import AutoDetector, Face
from riddle.images import to_tensor
from riddle.pipeline import Riddle

RECOGNISER = "arcface-mobilefacenet"
THERE = 0.45  # overlap from which two squares may be one face
ONE = 0.6  # overlap from which two finds of one frame are one face
REACH = 1.0  # sides that a face may have moved while it was not seen
CUT = 28.0  # mean change of grey levels (of 255) from frame to frame that is another scene, where a usual one is small
AROUND = 1.6  # sides of the region in which a known face is looked for
SEEN_AS = 160  # px of a face's square in that region


class Embedder:
    """Embeddings, and the cosine from which two are one person: `same` anywhere, `loose` in one place."""

    def __init__(self) -> None:
        self.absent = recognizers.available([RECOGNISER])[RECOGNISER]  # why there is no recogniser; "" when there is
        self.recogniser = None if self.absent else recognizers.load(RECOGNISER)
        self.same, self.loose = (self.recogniser.threshold, 0.1) if self.recogniser else (0.85, 0.5)

    @torch.no_grad()
    def embed(self, faces: torch.Tensor) -> np.ndarray:
        """Crops (N, 3, R, R) in [-1, 1] -> (N, E) float32."""
        if self.recogniser:
            return self.recogniser.from_crop(faces).float().cpu().numpy()
        x = F.adaptive_avg_pool2d(faces.float(), 12).flatten(1)
        return F.normalize(x - x.mean(1, keepdim=True), dim=1).cpu().numpy()


# Finding


@dataclass(frozen=True)
class Find:
    """A face in one frame."""

    face: Face
    place: np.ndarray  # (4,)
    doubt: str  # why no code follows from it (too small, in profile, ...); "" when one does


def find_of(face: Face, size: tuple[int, int]) -> Find:
    """The find of a detected face in a frame of `size` (width, height)."""
    try:
        where = place(alignment.framing_matrix(face.points))
    except ValueError:  # the points coincide: the box must do
        x1, y1, x2, y2 = face.box
        where = np.array([(x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, y2 - y1, 1.0), 0.0])
    return Find(face, where, photos.why_not(face, size))


def follow(model: Riddle, image: Image.Image, where: np.ndarray) -> list[Find]:
    """The faces around a place: of a face that was there a frame ago, far cheaper than a search of the frame."""
    side = max(float(np.hypot(*where[2:])), 8.0)
    low = np.floor(np.clip(where[:2] - AROUND / 2 * side, 0, image.size)).astype(int)
    high = np.ceil(np.clip(where[:2] + AROUND / 2 * side, 0, image.size)).astype(int)
    if (high - low < 12).any():
        return []
    size = np.maximum(np.rint((high - low) * min(SEEN_AS / side, 4.0)).astype(int), 1)
    view = image.resize(tuple(size.tolist()), Image.Resampling.BICUBIC, box=(*low.tolist(), *high.tolist()))
    factor = float(((high - low) / size).mean())
    detector = model.detector
    for each in [detector.first, detector.second] if isinstance(detector, AutoDetector) else [detector]:
        if found := each.detect(view):
            return [find_of(face.mapped(factor, low + (factor - 1) / 2), image.size) for face in found]
    return []


def distinct(finds: Sequence[Find]) -> list[Find]:
    """The finds without those of a face that an earlier one is."""
    kept: list[Find] = []
    for find in finds:
        if all(overlap(find.place, other.place) < ONE for other in kept):
            kept.append(find)
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two places' squares, taken as upright."""
    (ra, rb), near = (np.hypot(*a[2:]), np.hypot(*b[2:])), np.abs(np.asarray(a[:2]) - np.asarray(b[:2]))
    common = float(np.clip(np.minimum((ra + rb) / 2 - near, min(ra, rb)), 0, None).prod())
    return common / max(float(ra**2 + rb**2) - common, 1e-9)


def crops(model: Riddle, image: Image.Image, places: Sequence[np.ndarray]) -> torch.Tensor:
    """The faces (k, 3, R, R) in [-1, 1] at places."""
    side = model.preset.resolution
    return torch.stack([to_tensor(alignment.crop(image, matrix(p), side)) for p in places])


class Scenes:
    """Tells where a clip cuts to another scene: the picture changes much, and much more than lately."""

    def __init__(self) -> None:
        self.last, self.usual = None, 0.0

    def cut(self, image: Image.Image) -> bool:
        """Whether this frame begins a scene; the first one does."""
        grey = np.asarray(image.convert("L").resize((32, 18), Image.Resampling.BOX), np.float32)
        change = np.inf if self.last is None else float(np.abs(grey - self.last).mean())
        cut = change > max(CUT, 3 * self.usual)
        self.last, self.usual = grey, 0.0 if cut else 0.8 * self.usual + 0.2 * change
        return cut


# Tracks


@dataclass(eq=False)
class Track:
    """A face while it is followed, and after."""

    id: int
    embedding: np.ndarray  # running mean
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # px a frame
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # where it is first seen well
    frames: list[int] = field(default_factory=list)  # in which it was found
    places: list[np.ndarray] = field(default_factory=list)
    good: int = 0  # from how many of its finds a code follows
    doubt: str = ""  # why none follows from the last of the others
    codes: dict[int, tuple[float, np.ndarray]] = field(default_factory=dict)  # weights and sums around frames k * step
    begin: int = 0  # first and last frame in which it is covered
    end: int = 0
    scene: tuple[int, int] = (0, 0)  # its first and last frame

    def expected(self, n: int) -> np.ndarray:
        """Where it should be in frame n: on its way for a few frames, then at rest."""
        last = self.places[-1]
        return np.array([*(last[:2] + self.velocity * min(n - self.frames[-1], 5)), *last[2:]])

    def update(self, n: int, find: Find, embedding: np.ndarray, size: tuple[int, int]) -> None:
        """Take a find of frame n."""
        if self.frames:
            speed = (find.place[:2] - self.places[-1][:2]) / max(1, n - self.frames[-1])
            self.velocity = 0.5 * self.velocity + 0.5 * speed
            mixed = 0.9 * self.embedding + 0.1 * embedding
            self.embedding = mixed / max(float(np.linalg.norm(mixed)), 1e-9)
        if not self.good:
            self.box = photos.whole_box(find.face, size)
        self.frames.append(n)
        self.places.append(find.place)
        self.good, self.doubt = self.good + (not find.doubt), find.doubt or self.doubt

    def add_code(self, n: int, code: np.ndarray, step: int) -> None:
        """Count the code of frame n among those of the frames k * step around it, by a Gaussian weight."""
        sigma = 0.75 * step
        for k in range(-(-(n - int(3 * sigma)) // step), (n + int(3 * sigma)) // step + 1):
            weight = float(np.exp(-0.5 * ((k * step - n) / sigma) ** 2))
            before = self.codes.get(k, (0.0, 0.0))
            self.codes[k] = before[0] + weight, before[1] + weight * code


class Tracker:
    """Gives each find its track, frame by frame.

    patience: frames after which a face that is not seen is lost; same, loose: of the embeddings.
    """

    def __init__(self, patience: int, same: float, loose: float):
        self.patience, self.same, self.loose = patience, same, loose
        self.all: list[Track] = []
        self.live: list[Track] = []

    def forget(self, n: int) -> None:
        """End the tracks that were not seen for `patience` frames before n."""
        self.live = [track for track in self.live if n - track.frames[-1] <= self.patience]

    def take(self, n: int, finds: Sequence[Find], embeddings: np.ndarray, size: tuple[int, int]) -> list[Track]:
        """The track of each find of frame n; a find that continues none begins one.

        The pairs that fit best, by overlap and likeness together, go first: so two people who cross keep their own.
        """
        chosen: list[Track | None] = [None] * len(finds)
        pairs = [(self._fit(t, n, f, embeddings[i]), i, t) for t in self.live for i, f in enumerate(finds)]
        for fit, i, track in sorted(pairs, key=lambda p: -p[0]):
            if fit > 0 and chosen[i] is None and track not in chosen:
                chosen[i] = track
        for i, find in enumerate(finds):
            if chosen[i] is None:
                chosen[i] = Track(len(self.all), embeddings[i])
                self.all.append(chosen[i])
                self.live.append(chosen[i])
            chosen[i].update(n, find, embeddings[i], size)
        return chosen

    def _fit(self, track: Track, n: int, find: Find, embedding: np.ndarray) -> float:
        """How well a find continues a track; 0: not at all."""
        where, alike = track.expected(n), float(track.embedding @ embedding)
        shared = overlap(where, find.place)
        sides = np.hypot(*where[2:]), np.hypot(*find.place[2:])
        near = float(np.hypot(*(where[:2] - find.place[:2]))) < REACH * max(sides) and max(sides) < 2 * min(sides)
        fits = (shared >= THERE and alike >= self.loose) or (near and alike >= self.same)
        return shared + alike + 1 if fits else 0.0
