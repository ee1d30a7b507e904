"""Faces through time: which find belongs to whom, where a face is between its finds, and how steady it stays.

A place is a face's square as four numbers: centre x and y, and the vector of its upper side, in pixels. A look is a
unit vector that tells faces apart: a recogniser's embedding, or, where none is on this machine, the face's pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from riddle.app import photos
from riddle.app.cliprecords import place
from riddle.faces import alignment, recognizers
from riddle.faces.detection import AutoDetector, Face
from riddle.pipeline import Riddle

JUDGE = "arcface-mobilefacenet"
THERE = 0.45  # overlap from which two squares may be one face
ONE = 0.6  # overlap from which two finds of one frame are one face
REACH = 1.0  # sides that a face may have moved while it was not seen
CUT = 28.0  # mean change of grey levels (of 255) from frame to frame that is another scene, where a usual one is small
AROUND = 1.6  # sides of the region in which a known face is looked for
SEEN_AS = 160  # px of a face's square in that region


# Looks


class Looks:
    """How faces are told apart.

    same: cosine from which two looks are one person wherever they are; loose: where they are in one place.
    """

    def __init__(self) -> None:
        self.judge, self.reason = None, recognizers.available([JUDGE])[JUDGE]
        if self.reason is None:
            self.judge = recognizers.load(JUDGE)
        self.same, self.loose = (self.judge.threshold, 0.1) if self.judge is not None else (0.85, 0.5)

    def embed(self, faces: torch.Tensor) -> np.ndarray:
        """Crops (N, 3, R, R) in [-1, 1] -> looks (N, E), float32."""
        if self.judge is not None:
            with torch.no_grad():
                return self.judge.from_crop(faces).float().cpu().numpy()
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


def search(model: Riddle, image: Image.Image) -> list[Find]:
    """Every face of a frame."""
    return [find_of(face, image.size) for face in photos.find_faces(model, image)]


def follow(model: Riddle, image: Image.Image, where: np.ndarray) -> list[Find]:
    """The faces around a place: of a face that was there a frame ago, far cheaper than `search`."""
    side = max(float(np.hypot(*where[2:])), 8.0)
    low = np.floor(np.clip(where[:2] - AROUND / 2 * side, 0, image.size)).astype(int)
    high = np.ceil(np.clip(where[:2] + AROUND / 2 * side, 0, image.size)).astype(int)
    if (high - low < 12).any():
        return []
    scale = min(SEEN_AS / side, 4.0)
    size = np.maximum(np.rint((high - low) * scale).astype(int), 1)
    view = image.resize(tuple(size.tolist()), Image.Resampling.BICUBIC, box=(*low.tolist(), *high.tolist()))
    detector = model.detector
    searchers = [detector.first, detector.second] if isinstance(detector, AutoDetector) else [detector]
    factor = float(((high - low) / size).mean())
    for searcher in searchers:
        found = [face.mapped(factor, low + (factor - 1) / 2) for face in searcher.detect(view)]
        if found:
            return [find_of(face, image.size) for face in found]
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
    common = np.clip(np.minimum((ra + rb) / 2 - near, min(ra, rb)), 0, None)
    both = float(common.prod())
    return both / max(float(ra**2 + rb**2) - both, 1e-9)


class Scenes:
    """Tells where a clip cuts to another scene: the picture changes much, and much more than lately."""

    def __init__(self) -> None:
        self.last, self.usual = None, 0.0

    def cut(self, image: Image.Image) -> bool:
        """Whether this frame begins a scene; the first one does."""
        grey = np.asarray(image.convert("L").resize((32, 18), Image.Resampling.BOX), np.float32)
        if self.last is None:
            self.last = grey
            return True
        change = float(np.abs(grey - self.last).mean())
        cut = change > max(CUT, 3 * self.usual)
        self.last = grey
        self.usual = 0.0 if cut else 0.8 * self.usual + 0.2 * change
        return cut


# Tracks


@dataclass
class Track:
    """A face while it is followed."""

    id: int
    first: int  # frames
    last: int
    place: np.ndarray
    look: np.ndarray  # running mean
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # px a frame
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # where it is first seen well
    seen: int = 0
    good: int = 0
    doubts: Counter = field(default_factory=Counter)

    def expected(self, n: int) -> np.ndarray:
        """Where it should be in frame n: on its way for a few frames, then at rest."""
        return np.array([*(self.place[:2] + self.velocity * min(n - self.last, 5)), *self.place[2:]])

    def update(self, n: int, find: Find, look: np.ndarray, size: tuple[int, int]) -> None:
        """Take a find of frame n."""
        if self.seen:
            speed = (find.place[:2] - self.place[:2]) / max(1, n - self.last)
            self.velocity = 0.5 * self.velocity + 0.5 * speed
            mixed = 0.9 * self.look + 0.1 * look
            self.look = mixed / max(float(np.linalg.norm(mixed)), 1e-9)
        if not self.good:
            x1, y1, x2, y2 = np.rint(np.clip(find.face.box, 0, np.tile(size, 2))).astype(int).tolist()
            self.box = x1, y1, x2, y2
        self.place, self.last = find.place, n
        self.seen += 1
        self.good += not find.doubt
        if find.doubt:
            self.doubts[find.doubt.split(":")[0].split("(")[0].strip()] += 1

    @property
    def reason(self) -> str:
        """Why no code follows from any find of it; "" when one does."""
        return (
            "" if self.good else ", ".join(why for why, _ in self.doubts.most_common(3)) + "; cover it, or cut it off"
        )


class Tracker:
    """Gives each find its track, frame by frame.

    patience: frames after which a face that is not seen is lost; same, loose: of the looks.
    """

    def __init__(self, patience: int, same: float, loose: float):
        self.patience, self.same, self.loose = patience, same, loose
        self.live: list[Track] = []
        self.count = 0

    def end(self, n: int | None = None) -> list[Track]:
        """The tracks that end: all of them, or those not seen for `patience` frames before n."""
        ended = [t for t in self.live if n is None or n - t.last > self.patience]
        self.live = [t for t in self.live if t not in ended]
        return ended

    def take(self, n: int, finds: Sequence[Find], looks: np.ndarray, size: tuple[int, int]) -> list[Track]:
        """The track of each find of frame n; a find that continues none begins one.

        The pairs that fit best, by overlap and likeness together, go first: so two people who cross keep their own.
        """
        chosen: list[Track | None] = [None] * len(finds)
        pairs = [(self._fit(t, n, f, looks[i]), i, t) for t in self.live for i, f in enumerate(finds)]
        free = {t.id for t in self.live}
        for fit, i, track in sorted(pairs, key=lambda p: -p[0]):
            if fit > 0 and chosen[i] is None and track.id in free:
                chosen[i] = track
                free.discard(track.id)
        for i, find in enumerate(finds):
            if chosen[i] is None:
                chosen[i] = Track(self.count, n, n, find.place, looks[i])
                self.count += 1
                self.live.append(chosen[i])
            chosen[i].update(n, find, looks[i], size)
        return chosen

    def _fit(self, track: Track, n: int, find: Find, look: np.ndarray) -> float:
        """How well a find continues a track; 0: not at all."""
        where, alike = track.expected(n), float(track.look @ look)
        shared = overlap(where, find.place)
        sides = np.hypot(*where[2:]), np.hypot(*find.place[2:])
        apart = float(np.hypot(*(where[:2] - find.place[:2]))) / max(sides)
        near = apart < REACH and max(sides) < 2 * min(sides)
        fits = (shared >= THERE and alike >= self.loose) or (near and alike >= self.same)
        return shared + alike + 1 if fits else 0.0


# Between the finds


def filled(seen: np.ndarray, places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places (M, 4) in the frames `wanted` (M,), of a face seen in the frames `seen` (N,) at `places` (N, 4).

    Between two finds on the straight line; before the first and after the last one on the way it was going, at most
    half a side of it.
    """
    wanted = np.asarray(wanted)
    out = np.stack([np.interp(wanted, seen, column) for column in places.T], 1)
    for end, direction in ((0, -1), (-1, 1)):
        beyond = (wanted - seen[end]) * direction
        near = np.abs(seen - seen[end]) <= 4
        if (beyond > 0).any() and near.sum() > 1:
            speed = np.polyfit(seen[near] - seen[end], places[near, :2], 1)[0] * direction
            moved = np.clip(beyond, 0, 5)[:, None] * speed
            most = 0.5 * float(np.hypot(*places[end, 2:]))
            moved *= np.minimum(1, most / np.maximum(np.hypot(*moved.T), 1e-9))[:, None]
            out[:, :2] += np.where(beyond[:, None] > 0, moved, 0)
    return out


def smoothed(times: np.ndarray, places: np.ndarray, at: np.ndarray, sigma: float) -> np.ndarray:
    """Places (M, 4) at the times `at` (M,): a parabola through the places (N, 4) at `times` (N,) around each.

    Weights fall with the distance in time as a Gaussian of `sigma` does. A mean would lag where a face speeds up.
    """
    out = np.empty((len(at), places.shape[1]))
    for i, t in enumerate(at):
        near = np.abs(times - t) <= 3 * sigma + 1e-9
        x = (times[near] - t) / sigma
        root = np.exp(-0.25 * x**2)  # the square root of the weight
        powers = np.stack([np.ones_like(x), x, x**2][: min(3, len(x))], 1)
        out[i] = np.linalg.lstsq(powers * root[:, None], places[near] * root[:, None], rcond=None)[0][0]
    return out


# Steadiness


class Steadiness:
    """How steady one face is over time, from frame to frame, without keeping the frames."""

    def __init__(self) -> None:
        self.cosines, self.jumps, self.last, self.points = [0.0, 0], [0.0, 0], None, []
        self.sum, self.looks = 0.0, 0

    def add(self, n: int, look: np.ndarray | None, points: np.ndarray | None, side: float) -> None:
        """Frame n: the face's look, its five points (5, 2) in px, None where it was not found; side: px."""
        if look is not None:
            if self.last is not None and self.last[0] == n - 1:
                self.cosines[0] += float(self.last[1] @ look)
                self.cosines[1] += 1
            self.last = n, look
            self.sum, self.looks = self.sum + look, self.looks + 1
        if points is None:
            return
        self.points = [*self.points[-2:], (n, points)]
        if [k for k, _ in self.points] == [n - 2, n - 1, n]:
            (_, a), (_, b), (_, c) = self.points
            self.jumps[0] += float(np.hypot(*(a - 2 * b + c).T).mean()) / side
            self.jumps[1] += 1

    @property
    def identity(self) -> float | None:
        """Mean cosine of the looks of consecutive frames."""
        return self.cosines[0] / self.cosines[1] if self.cosines[1] else None

    @property
    def person(self) -> float | None:
        """Mean cosine of all looks with their mean: whether it is one person throughout."""
        return float(np.linalg.norm(self.sum)) / self.looks if self.looks else None

    @property
    def jitter(self) -> float | None:
        """Mean length of the landmarks' second difference, in sides of the face."""
        return self.jumps[0] / self.jumps[1] if self.jumps[1] else None
