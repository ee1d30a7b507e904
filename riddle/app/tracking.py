"""Faces through a clip: which find belongs to whom, where a face is between its finds, by which code it is drawn.

A place is a face's square as four numbers: centre x and y, and the vector of its upper side, in pixels. An embedding
is a unit vector that tells faces apart: a recogniser's or, where none is on this machine, the face's pixels.
"""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from riddle.app import photos
from riddle.app.clip import Clip, frames
from riddle.app.cliprecord import ClipRecord, bounded, code_count, matrix, place
from riddle.faces import alignment, blending, recognizers
from riddle.faces.detection import AutoDetector, Face
from riddle.pipeline import Riddle

RECOGNISER = "arcface-mobilefacenet"
THERE = 0.45  # overlap from which two squares may be one face
ONE = 0.6  # overlap from which two finds of one frame are one face
REACH = 1.0  # sides that a face may have moved while it was not seen
CUT = 28.0  # mean change of grey levels (of 255) from frame to frame that is another scene, where a usual one is small
AROUND = 1.6  # sides of the region in which a known face is looked for
SEEN_AS = 160  # px of a face's square in that region
SEARCH = 0.15  # s from one search of the whole frame to the next; known faces are followed in every frame
PATIENCE = 1.0  # s for which a face may be out of sight and is still covered throughout
HOLD = 0.3  # s for which a face is covered before it is first and after it is last seen
STEP = 0.2  # s from one code to the next
SEGMENT = 4.0  # s of a segment, about
SIGMA = 0.12  # s, of the weights that smooth places
STEADY = 0.5  # how far a code is drawn to the mean of its face's codes: 0 keeps all expression, 1 is one picture


@dataclass(frozen=True)
class Pace:
    """The times above in frames."""

    search: int
    patience: int
    hold: int
    step: int
    segment: int

    @classmethod
    def of(cls, rate: Fraction) -> Pace:
        """For frames a second, taken as 5 to 240."""
        rate = float(min(max(rate, 5), 240))
        search, step = max(1, round(SEARCH * rate)), max(1, round(STEP * rate))
        hold = max(search, round(HOLD * rate))
        return cls(search, max(hold, round(PATIENCE * rate)), hold, step, step * max(1, round(SEGMENT * rate / step)))


class Embedder:
    """Embeddings, and the cosine from which two are one person: `same` anywhere, `loose` in one place."""

    def __init__(self) -> None:
        self.reason = recognizers.available([RECOGNISER])[RECOGNISER]  # why there is no recogniser
        self.recogniser = None if self.reason else recognizers.load(RECOGNISER)
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
    return torch.stack([blending.to_tensor(alignment.crop(image, matrix(p), side)) for p in places])


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
    points: list[np.ndarray] = field(default_factory=list)  # (5, 2)
    doubts: Counter = field(default_factory=Counter)
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
            self.box = tuple(np.rint(np.clip(find.face.box, 0, np.tile(size, 2))).astype(int).tolist())
        self.frames.append(n)
        self.places.append(find.place)
        self.points.append(find.face.points)
        if find.doubt:
            self.doubts[find.doubt.split(":")[0].split("(")[0].strip()] += 1

    def add_code(self, n: int, code: np.ndarray, step: int) -> None:
        """Count the code of frame n among those of the frames k * step around it, by a Gaussian weight."""
        sigma = 0.75 * step
        for k in range(-(-(n - int(3 * sigma)) // step), (n + int(3 * sigma)) // step + 1):
            weight = float(np.exp(-0.5 * ((k * step - n) / sigma) ** 2))
            before = self.codes.get(k, (0.0, 0.0))
            self.codes[k] = before[0] + weight, before[1] + weight * code

    @property
    def good(self) -> int:
        """From how many of its finds a code follows."""
        return len(self.frames) - self.doubts.total()

    @property
    def reason(self) -> str:
        """Why no code follows from any find of it; "" when one does."""
        why = ", ".join(why for why, _ in self.doubts.most_common(3))
        return "" if self.good else f"{why}; cover it, or cut it off"


class Tracker:
    """Gives each find its track, frame by frame.

    patience: frames after which a face that is not seen is lost; same, loose: of the embeddings.
    """

    def __init__(self, patience: int, same: float, loose: float):
        self.patience, self.same, self.loose = patience, same, loose
        self.all: list[Track] = []
        self.live: list[Track] = []

    def take(self, n: int, finds: Sequence[Find], embeddings: np.ndarray, size: tuple[int, int]) -> list[Track]:
        """The track of each find of frame n; a find that continues none begins one.

        The pairs that fit best, by overlap and likeness together, go first: so two people who cross keep their own.
        """
        self.live = [track for track in self.live if n - track.frames[-1] <= self.patience]
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


# The first reading


@dataclass(frozen=True)
class Survey:
    """What the first reading of a clip found."""

    times: np.ndarray  # (N,) s, of each frame, since the first
    tracks: list[Track]


def survey(model: Riddle, clip: Clip, embedder: Embedder, tick: Callable[[], None]) -> Survey:
    """Read a clip, find and follow every face, and invert it frame by frame; tick: called for each frame.

    It holds one frame at a time; of each face it keeps a code every STEP seconds.
    """
    pace, scenes = Pace.of(clip.rate), Scenes()
    tracker = Tracker(pace.patience, embedder.same, embedder.loose)
    pts, starts, searched = [], [], 0
    for frame in frames(clip):
        n, image = frame.n, Image.fromarray(frame.rgb())
        if cut := scenes.cut(image):
            tracker.live = []
            starts.append(n)
        finds: list[Find] = []
        if cut or n - searched >= pace.search:
            finds, searched = [find_of(face, image.size) for face in photos.find_faces(model, image)], n
        for track in tracker.live:
            if all(overlap(track.expected(n), find.place) < THERE for find in finds):
                finds += follow(model, image, track.expected(n))
        if finds := distinct(finds):
            _take(model, image, n, finds, tracker, embedder, pace.step)
        pts.append(frame.pts)
        tick()
    for track in tracker.all:
        scene = bisect(starts, track.frames[0])
        track.scene = starts[scene - 1], [*starts, len(pts)][scene] - 1
    _cover([track for track in tracker.all if track.good], pace.hold)
    return Survey((np.array(pts) - pts[0]) * float(clip.time_base), tracker.all)


def _take(
    model: Riddle, image: Image.Image, n: int, finds: list[Find], tracker: Tracker, embedder: Embedder, step: int
) -> None:
    """Give the finds of a frame their tracks, and the tracks their codes."""
    faces = crops(model, image, [find.place for find in finds])
    tracks = tracker.take(n, finds, embedder.embed(faces), image.size)
    clear = [i for i, find in enumerate(finds) if not find.doubt]
    # without gradient steps: they end elsewhere in each frame, and the stranger would change
    for i, code in zip(clear, model.invert(faces[clear], refine=0).cpu().numpy() if clear else (), strict=True):
        tracks[i].add_code(n, code, step)


def _cover(tracks: list[Track], hold: int) -> None:
    """Set the frames in which each track is covered: while it is seen, between, and `hold` frames before and after, as
    far as its scene reaches and no other face is found in its place."""
    found = {track.id: dict(zip(track.frames, track.places, strict=True)) for track in tracks}
    for track in tracks:
        first, last = track.frames[0], track.frames[-1]
        seen, places = np.array(track.frames), np.stack(track.places)

        def free(n: int) -> bool:
            there = filled(seen, places, np.array([n]))[0]  # noqa: B023
            others = [at[n] for i, at in found.items() if i != track.id and n in at]  # noqa: B023
            return all(overlap(there, other) < THERE for other in others)

        before = range(first - 1, max(track.scene[0], first - hold) - 1, -1)
        after = range(last + 1, min(track.scene[1], last + hold) + 1)
        track.begin = next((n + 1 for n in before if not free(n)), before.stop + 1)
        track.end = next((n - 1 for n in after if not free(n)), after.stop - 1)


def record(survey: Survey, clip: Clip, model: Riddle, change: Callable[[torch.Tensor], torch.Tensor]) -> ClipRecord:
    """The record of a survey: each face's places and codes, smoothed over time; change: encrypts codes (N, L, D).

    Places are of float32 and codes as float16 keeps them, so that what is drawn is what the record holds.
    """
    step, sigma = Pace.of(clip.rate).step, max(SIGMA, 1 / float(clip.rate))
    shape, tracks, places, codes = (model.preset.n_latent, model.preset.style_dim), [], [], []
    for track in survey.tracks:
        if track.good:
            covered = np.arange(track.begin, track.end + 1)
            way = filled(np.array(track.frames), np.stack(track.places), covered)
            tracks.append((track.id, track.begin, len(covered)))
            places.append(bounded(smoothed(survey.times[covered], way, sigma), *clip.upright_size))
            k = track.begin // step + np.arange(code_count(track.begin, len(covered), step))
            w = torch.from_numpy(_steadied(track, k)).view(-1, *shape)
            codes += [change(part).cpu().half().float() for part in w.split(128)]
    return ClipRecord(
        model.preset.name, model.weights_hash, clip.upright_size, step, survey.times, np.array(tracks),
        np.concatenate(places), torch.cat(codes),
    )  # fmt: skip


def _steadied(track: Track, wanted: np.ndarray) -> np.ndarray:
    """The codes k `wanted` of a track, between those that there are on the line, drawn to their mean; float32."""
    known = np.array(sorted(track.codes))
    weights = np.array([track.codes[k][0] for k in known])
    sums = np.stack([track.codes[k][1] for k in known]).reshape(len(known), -1)
    codes, mean = sums / weights[:, None], sums.sum(0) / weights.sum()
    left = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 1)
    right = np.minimum(left + 1, len(known) - 1)
    share = np.clip((wanted - known[left]) / np.maximum(known[right] - known[left], 1), 0, 1)[:, None]
    between = codes[left] + share * (codes[right] - codes[left])
    return (mean + (1 - STEADY) * (between - mean)).astype(np.float32)


# Between the finds


def filled(seen: np.ndarray, places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places (M, 4) in the frames `wanted` (M,), of a face seen in the frames `seen` (N,) at `places` (N, 4).

    Between two finds on the straight line; before the first and after the last one on the way it was going, at most
    half a side of it.
    """
    out = np.stack([np.interp(wanted, seen, column) for column in places.T], 1)
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
        root = np.exp(-0.25 * x**2)[:, None]  # the square root of the weight
        powers = np.stack([np.ones_like(x), x, x**2][: min(3, len(x))], 1)
        out[i] = np.linalg.lstsq(powers * root, places[near] * root, rcond=None)[0][0]
    return out


# Steadiness


def steadiness(frames: np.ndarray, embeddings: np.ndarray, points: np.ndarray, sides: np.ndarray) -> dict:
    """How steady one face is over its frames (N,); None where nothing can be measured.

    embeddings: (N, E), E = 0 without a recogniser; points: (N, 5, 2) px, NaN where they were not found; sides: (N,) px.
    Returns identity, the mean cosine of consecutive frames' embeddings; person, the mean cosine of all embeddings with
    their mean; jitter, the mean length of the points' second difference, in sides of the face.
    """
    together = np.diff(frames) == 1
    cosines = (embeddings[1:] * embeddings[:-1]).sum(1)[together] if embeddings.size else np.empty(0)
    person = np.linalg.norm(embeddings.mean(0, keepdims=True), axis=1) if embeddings.size else np.empty(0)
    bends = np.hypot(*np.moveaxis(points[2:] - 2 * points[1:-1] + points[:-2], -1, 0)).mean(1) / sides[2:]
    bends = bends[together[1:] & together[:-1] & np.isfinite(bends)]
    values = {"identity": cosines, "person": person, "jitter": bends}
    return {name: round(float(v.mean()), 5) if v.size else None for name, v in values.items()}
