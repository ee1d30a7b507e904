"""The first reading of a clip: find its faces, follow them from frame to frame, and make the record.

A place is a face's square as four numbers: centre x and y, and the vector of its upper side, in pixels. An embedding
is a unit vector that tells faces apart: a recogniser's or, where none is on this machine, the face's pixels.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import linear_sum_assignment

from riddle.app.clip import Clip, frames
from riddle.app.cliprecord import ClipRecord, code_count
from riddle.faces import outcomes, recognizers
from riddle.faces.alignment import bounded, matrix, place
from riddle.faces.detection import Face, find_all
from riddle.pipeline import Riddle
from riddle.progress import track

RECOGNISER = "arcface-mobilefacenet"
SEARCH = 0.15  # s from one search of the whole frame to the next; known faces are followed in every frame
PATIENCE = 1.0  # s; longest gap in which an unseen face is still covered
HOLD = 0.3  # s that are covered before a face is first seen and after it is last seen
STEP = 0.2  # s from one code to the next
SIGMA = 0.12  # s, of the weights that smooth places
STEADY = 0.5  # how far each code moves towards the mean of its face: 0 keeps all expression, 1 gives one picture
PACE = (SEARCH, PATIENCE, HOLD, STEP, SIGMA, STEADY)
THERE = 0.45  # overlap from which two squares may be one face
ONE = 0.6  # overlap from which two finds of one frame are one face
REACH = 1.0  # sides that a face may have moved while it was not seen
CUT = 28.0  # mean change of grey levels (0 to 255) that starts a new scene, if the changes before were small
AROUND = 1.6  # sides of the region in which a known face is looked for
SEEN_AS = 160  # px of a face's square in that region


class Embedder:
    """Makes embeddings. Two of them are one person from a cosine of `same` on; in one place, of `loose` on."""

    def __init__(self) -> None:
        absent = recognizers.available([RECOGNISER])[RECOGNISER]
        self.recogniser = None if absent else recognizers.load(RECOGNISER)
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

    place: np.ndarray  # (4,)
    doubt: str  # why the face cannot be inverted (too small, in profile, ...); "" when it can


def find_of(face: Face, size: tuple[int, int]) -> Find:
    """The find of a detected face in a frame of `size` (width, height)."""
    return Find(place(outcomes.square_of(face)), outcomes.why_not(face, size))


def follow(model: Riddle, image: Image.Image, where: np.ndarray) -> list[Find]:
    """Find the faces around the place of a face one frame ago: far cheaper than a search of the whole frame."""
    side = max(float(np.hypot(*where[2:])), 8.0)
    low = np.floor(np.clip(where[:2] - AROUND / 2 * side, 0, image.size)).astype(int)
    high = np.ceil(np.clip(where[:2] + AROUND / 2 * side, 0, image.size)).astype(int)
    if (high - low < 12).any():
        return []
    size = np.maximum(np.rint((high - low) * min(SEEN_AS / side, 4.0)).astype(int), 1)
    view = image.resize(tuple(size.tolist()), Image.Resampling.BICUBIC, box=(*low.tolist(), *high.tolist()))
    factor = float(((high - low) / size).mean())
    found = model.detector.detect(view)
    return [find_of(face.mapped(factor, low + (factor - 1) / 2), image.size) for face in found]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two places' squares, taken as upright."""
    (ra, rb), near = (np.hypot(*a[2:]), np.hypot(*b[2:])), np.abs(np.asarray(a[:2]) - np.asarray(b[:2]))
    common = float(np.clip(np.minimum((ra + rb) / 2 - near, min(ra, rb)), 0, None).prod())
    return common / max(float(ra**2 + rb**2) - common, 1e-9)


class Scenes:
    """Tells where a clip cuts to another scene: the picture changes much, and much more than lately."""

    def __init__(self) -> None:
        self.last, self.usual = None, 0.0

    def cut(self, image: Image.Image) -> bool:
        """True if this frame begins a scene; the first one does."""
        grey = np.asarray(image.convert("L").resize((32, 18), Image.Resampling.BOX), np.float32)
        change = np.inf if self.last is None else float(np.abs(grey - self.last).mean())
        cut = change > max(CUT, 3 * self.usual)
        self.last, self.usual = grey, 0.0 if cut else 0.8 * self.usual + 0.2 * change
        return cut


# Following


@dataclass(eq=False)
class Track:
    """A face while it is followed, and after."""

    id: int
    embedding: np.ndarray  # running mean
    frames: list[int] = field(default_factory=list)  # in which it was found
    places: list[np.ndarray] = field(default_factory=list)
    good: int = 0  # number of its finds that can be inverted
    doubt: str = ""  # why the latest of the others cannot be inverted
    codes: dict[int, tuple[float, np.ndarray]] = field(default_factory=dict)  # weights and sums around frames k * step
    crop: torch.Tensor | None = None  # (3, R, R), the largest of those that can be inverted
    side: float = 0.0  # px, of that one's square
    begin: int = 0  # first and last frame in which it is covered
    end: int = 0
    scene: tuple[int, int] = (0, 0)  # its first and last frame

    def expected(self, n: int) -> np.ndarray:
        """Its expected place in frame n, from its last finds; see `filled`."""
        return filled(np.array(self.frames[-5:]), np.stack(self.places[-5:]), np.array([n]))[0]

    def update(self, n: int, find: Find, embedding: np.ndarray) -> None:
        """Take a find of frame n."""
        if self.frames:
            mixed = 0.9 * self.embedding + 0.1 * embedding
            self.embedding = mixed / max(float(np.linalg.norm(mixed)), 1e-9)
        self.frames.append(n)
        self.places.append(find.place)
        self.good, self.doubt = self.good + (not find.doubt), find.doubt or self.doubt

    def place_in(self, wanted: np.ndarray) -> np.ndarray:
        """Its places (M, 4) in the frames `wanted` (M,); see `filled`."""
        return filled(np.array(self.frames), np.stack(self.places), wanted)

    def mean_code(self) -> np.ndarray:
        """The mean of its codes, by their weights, (L, D) in z."""
        weights, sums = zip(*self.codes.values(), strict=True)
        return np.sum(sums, 0) / np.sum(weights)

    def show(self, crop: torch.Tensor) -> None:
        """Keep the crop (3, R, R) of the latest find if its face is larger than those before."""
        side = float(np.hypot(*self.places[-1][2:]))
        if side > self.side:
            self.crop, self.side = crop, side

    def add_code(self, n: int, code: np.ndarray, step: int) -> None:
        """Add the code of frame n to the sums of the frames k * step around it, with Gaussian weights."""
        sigma = 0.75 * step
        for k in range(-(-(n - int(3 * sigma)) // step), (n + int(3 * sigma)) // step + 1):
            weight = float(np.exp(-0.5 * ((k * step - n) / sigma) ** 2))
            before = self.codes.get(k, (0.0, 0.0))
            self.codes[k] = before[0] + weight, before[1] + weight * code


class Tracker:
    """Gives each find its track, frame by frame; patience: frames after which a face that is not seen is lost; same,
    loose: see `Embedder`."""

    def __init__(self, patience: int, same: float, loose: float):
        self.patience, self.same, self.loose = patience, same, loose
        self.all: list[Track] = []
        self.live: list[Track] = []

    def forget(self, n: int) -> None:
        """End the tracks that were not seen for `patience` frames before n."""
        self.live = [face for face in self.live if n - face.frames[-1] <= self.patience]

    def take(self, n: int, finds: Sequence[Find], embeddings: np.ndarray) -> list[Track]:
        """The track of each find of frame n; a find that continues none begins one.

        The pairs have the best sum of overlap and likeness, so two people who cross keep their own tracks.
        """
        fits = [[self._fit(t, n, f, e) for f, e in zip(finds, embeddings, strict=True)] for t in self.live]
        fits = np.array(fits).reshape(len(self.live), len(finds))
        pairs = zip(*linear_sum_assignment(fits, maximize=True), strict=True)
        chosen = {i: self.live[k] for k, i in pairs if fits[k, i] > 0}
        for i, find in enumerate(finds):
            if i not in chosen:
                chosen[i] = Track(len(self.all), embeddings[i])
                self.all.append(chosen[i])
                self.live.append(chosen[i])
            chosen[i].update(n, find, embeddings[i])
        return [chosen[i] for i in range(len(finds))]

    def _fit(self, track: Track, n: int, find: Find, embedding: np.ndarray) -> float:
        """Score of a find as the continuation of a track; 0: it is none."""
        where, alike = track.expected(n), float(track.embedding @ embedding)
        shared = overlap(where, find.place)
        sides = np.hypot(*where[2:]), np.hypot(*find.place[2:])
        near = float(np.hypot(*(where[:2] - find.place[:2]))) < REACH * max(sides) and max(sides) < 2 * min(sides)
        fits = (shared >= THERE and alike >= self.loose) or (near and alike >= self.same)
        return shared + alike + 1 if fits else 0.0


# Reading


def frames_of(seconds: float, rate: Fraction) -> int:
    """A time in frames, at least one; rate: frames per second, taken as 5 to 240."""
    return max(1, round(seconds * float(min(max(rate, 5), 240))))


def survey(model: Riddle, clip: Clip) -> tuple[np.ndarray, list[Track]]:
    """Read a clip, find and follow every face, and invert it frame by frame.

    Returns the time of each frame in seconds since the first, (N,), and the tracks. It keeps one frame at a time,
    and for each face a code every STEP seconds.
    """
    search, patience, hold, step = (frames_of(s, clip.rate) for s in (SEARCH, PATIENCE, HOLD, STEP))
    scenes, embedder = Scenes(), Embedder()
    tracker = Tracker(patience, embedder.same, embedder.loose)
    times, starts, searched = [], [], 0
    for frame in track(frames(clip), "find", clip.estimate or None, "frame", leave=False):
        n, image = frame.n, Image.fromarray(frame.rgb())
        if cut := scenes.cut(image):
            tracker.live = []
            starts.append(n)
        finds: list[Find] = []
        if cut or n - searched >= search:
            finds, searched = [find_of(face, image.size) for face in find_all(image, model.detector, turned=False)], n
        for known in tracker.live:
            where = known.expected(n)
            if all(overlap(where, find.place) < THERE for find in finds):
                near = follow(model, image, where)
                finds += [f for f in near if all(overlap(f.place, other.place) < ONE for other in finds)]
        if finds:
            faces = model.crops(image, matrix([find.place for find in finds]))
            tracks = tracker.take(n, finds, embedder.embed(faces))
            if clear := [i for i, find in enumerate(finds) if not find.doubt]:
                # without gradient steps: these end differently in each frame, so the stranger would change
                codes = model.generator.codes.to_gaussian(model.invert(faces[clear], refine=0)).cpu().numpy()
                for i, code in zip(clear, codes, strict=True):
                    tracks[i].add_code(n, code, step)
                    tracks[i].show(faces[i])
        tracker.forget(n)
        times.append(frame.since)
    for face in tracker.all:
        scene = bisect(starts, face.frames[0])
        face.scene = starts[scene - 1], [*starts, len(times)][scene] - 1
    _cover([face for face in tracker.all if face.good], hold)
    return np.array(times), tracker.all


def _cover(tracks: list[Track], hold: int) -> None:
    """Set the frames in which each track is covered: while it is seen, between, and `hold` frames before and after, as
    far as its scene reaches and no other face is found in its place."""
    found: dict[int, list[tuple[Track, np.ndarray]]] = defaultdict(list)
    for face in tracks:
        for n, where in zip(face.frames, face.places, strict=True):
            found[n].append((face, where))

    def free(face: Track, n: int) -> bool:
        there = face.place_in(np.array([n]))[0]
        return all(overlap(there, where) < THERE for other, where in found[n] if other is not face)

    for face in tracks:
        face.begin, face.end = face.frames[0], face.frames[-1]
        while face.begin > max(face.scene[0], face.frames[0] - hold) and free(face, face.begin - 1):
            face.begin -= 1
        while face.end < min(face.scene[1], face.frames[-1] + hold) and free(face, face.end + 1):
            face.end += 1


def record_of(times: np.ndarray, tracks: list[Track], clip: Clip, model: Riddle) -> ClipRecord:
    """The record of what `survey` returned, not encrypted: the places and codes, smoothed over time, of each face that
    can be inverted, of which there must be one."""
    step, sigma = frames_of(STEP, clip.rate), max(SIGMA, 1 / float(clip.rate))
    rows, places, codes = [], [], []
    for face in (face for face in tracks if face.good):
        covered = np.arange(face.begin, face.end + 1)
        rows.append((face.id, face.begin, len(covered)))
        places.append(bounded(smoothed(times[covered], face.place_in(covered), sigma), *clip.upright_size))
        k = face.begin // step + np.arange(code_count(face.begin, len(covered), step))
        z = torch.from_numpy(_steadied(face, k)).view(-1, model.preset.n_latent, model.preset.style_dim)
        codes.append(z.half().float())  # as a record keeps them
    return ClipRecord(clip.upright_size, step, times, np.array(rows), np.concatenate(places), torch.cat(codes))


def _steadied(face: Track, wanted: np.ndarray) -> np.ndarray:
    """A face's codes k `wanted`, interpolated along straight lines and moved towards their mean; float32."""
    known = np.array(sorted(face.codes))
    weights = np.array([face.codes[k][0] for k in known])
    sums = np.stack([face.codes[k][1] for k in known]).reshape(len(known), -1)
    between, mean = _between(known, sums / weights[:, None], wanted), face.mean_code().ravel()
    return (mean + (1 - STEADY) * (between - mean)).astype(np.float32)


def _between(known: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rows (M, C) at `wanted` (M,), on straight lines between those (N, C) `known` at (N,), constant beyond."""
    return np.stack([np.interp(wanted, known, column) for column in rows.T], 1)


def filled(seen: np.ndarray, places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places (M, 4) in the frames `wanted` (M,), of a face seen in the frames `seen` (N,) at `places` (N, 4).

    Between two finds the face moves on a straight line. Before the first and after the last one it keeps its
    direction, for at most half a side.
    """
    out = _between(seen, places, wanted)
    for end, direction in ((0, -1), (-1, 1)):
        beyond = (wanted - seen[end]) * direction
        near = np.abs(seen - seen[end]) <= 4
        if (beyond > 0).any() and near.sum() > 1:
            speed = np.polyfit(seen[near] - seen[end], places[near, :2], 1)[0] * direction
            moved = np.clip(beyond, 0, 5)[:, None] * speed
            most = 0.5 * float(np.hypot(*places[end, 2:]))
            out[:, :2] += moved * np.minimum(1, most / np.maximum(np.hypot(*moved.T), 1e-9))[:, None]
    return out


def smoothed(times: np.ndarray, places: np.ndarray, sigma: float) -> np.ndarray:
    """Places (N, 4) at times (N,), each replaced by the value of a parabola through those around it.

    Weights fall with the distance in time as a Gaussian of `sigma` does. A mean would lag where a face speeds up.
    """
    out = np.empty_like(places)
    reach = 3 * sigma + 1e-9
    for i, t in enumerate(times):
        near = slice(np.searchsorted(times, t - reach), np.searchsorted(times, t + reach, side="right"))
        x = (times[near] - t) / sigma
        out[i] = np.polyfit(x, places[near], min(2, len(x) - 1), w=np.exp(-0.25 * x**2))[-1]  # w: roots of weights
    return out
