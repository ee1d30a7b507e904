"""The first look at a clip: where each face is in every frame, and its code; and the plan that follows from it.

`survey` reads the clip once and leaves finds and codes in the work folder. `Plan` draws from there, part by part, the
places and codes of each face, smoothed over time: what the second reading paints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from riddle.app import clips, tracking
from riddle.app.cliprecords import Block, Run, bounded, matrix
from riddle.app.segments import Work
from riddle.app.tracking import THERE, Find, Looks, Track, Tracker, filled, overlap, smoothed
from riddle.faces import alignment, blending
from riddle.pipeline import Riddle

SEARCH = 0.15  # s from one search of the whole frame to the next; known faces are followed in every frame
PATIENCE = 1.0  # s for which a face may be out of sight and is still covered throughout
HOLD = 0.3  # s for which a face is covered before it is first and after it is last seen
STEP = 0.2  # s from one code to the next
PART = 4.0  # s of a part, about
SIGMA = 0.12  # s, of the weights that smooth places
STEADY = 0.5  # how far a code is drawn to the mean of its face's codes: 0 keeps all expression, 1 is one picture


@dataclass(frozen=True)
class Pace:
    """The times above in frames of a clip."""

    search: int
    patience: int
    hold: int
    step: int
    part: int

    @classmethod
    def of(cls, clip: clips.Clip) -> Pace:
        """For the clip's average rate, taken as 5 to 240 frames a second."""
        rate = float(min(max(clip.rate, 5), 240))
        search, step = max(1, round(SEARCH * rate)), max(1, round(STEP * rate))
        hold = max(search, round(HOLD * rate))
        return cls(search, max(hold, round(PATIENCE * rate)), hold, step, step * max(1, round(PART * rate / step)))


def crops(model: Riddle, image: Image.Image, places: list[np.ndarray]) -> torch.Tensor:
    """The faces (k, 3, R, R) in [-1, 1] at places."""
    side = model.preset.resolution
    return torch.stack([blending.to_tensor(alignment.crop(image, matrix(p), side)) for p in places])


class _Codes:
    """Running weighted sums of a track's codes around the frames k * step."""

    def __init__(self, work: Work, pace: Pace):
        self.work, self.step, self.sums = work, pace.step, {}

    def add(self, track: int, n: int, code: np.ndarray) -> None:
        sums = self.sums.setdefault(track, {})
        sigma = 0.75 * self.step
        for k in range(-(-(n - int(3 * sigma)) // self.step), (n + int(3 * sigma)) // self.step + 1):
            weight = float(np.exp(-0.5 * ((k * self.step - n) / sigma) ** 2))
            before = sums.get(k, (0.0, 0.0))
            sums[k] = before[0] + weight, before[1] + weight * code
        self.flush(track, n - int(3 * sigma))

    def flush(self, track: int, before: float = float("inf")) -> None:
        """Hand over the sums to which nothing will be added."""
        sums = self.sums.get(track, {})
        for k in [k for k in sums if k * self.step < before]:
            self.work.add_code(track, k, *sums.pop(k))
        if not sums:
            self.sums.pop(track, None)


def survey(model: Riddle, clip: clips.Clip, work: Work, looks: Looks, tick: Callable[[], None]) -> None:
    """Find and follow every face, and leave finds, codes and tracks in the work folder."""
    pace, scenes = Pace.of(clip), tracking.Scenes()
    tracker, codes = Tracker(pace.patience, looks.same, looks.loose), _Codes(work, pace)
    scene = searched = 0
    work.restart_search()

    def close(ended: list[Track]) -> None:
        for track in ended:
            codes.flush(track.id)
            work.add_track(track, scene)

    with work.db:
        for frame in clips.frames(clip):
            n, image = frame.n, Image.fromarray(frame.rgb())
            if scenes.cut(image):
                close(tracker.end())
                scene = n
            finds: list[Find] = []
            if n == scene or n - searched >= pace.search:
                finds, searched = tracking.search(model, image), n
            for track in tracker.live:
                expected = track.expected(n)
                if all(overlap(expected, find.place) < THERE for find in finds):
                    finds += tracking.follow(model, image, expected)
            _take(model, image, n, tracking.distinct(finds), tracker, codes, work, looks)
            close(tracker.end(n))
            work.add_frame(n, frame.pts, frame.duration, scene)
            tick()
        close(tracker.end())
        _cover(work, pace)
        work.note("surveyed", "yes")


def _take(
    model: Riddle, image: Image.Image, n: int, finds: list[Find], tracker: Tracker, codes: _Codes, work: Work,
    looks: Looks,
) -> None:  # fmt: skip
    """Give the finds of a frame their tracks, and keep them."""
    if not finds:
        return
    faces = crops(model, image, [find.place for find in finds])
    tracks = tracker.take(n, finds, looks.embed(faces), image.size)
    clear = [i for i, find in enumerate(finds) if not find.doubt]
    # without gradient steps: they end elsewhere in each frame, and the stranger would change
    w = model.invert(faces[clear], refine=0).cpu().numpy() if clear else ()
    inverted = dict(zip(clear, w, strict=True))
    for i, (find, track) in enumerate(zip(finds, tracks, strict=True)):
        work.add_find(n, track.id, find.place, find.face.points)
        if i in inverted:
            codes.add(track.id, n, inverted[i].astype(np.float64))


def _cover(work: Work, pace: Pace) -> None:
    """Say in which frames each track is replaced: while it is seen, between, and a while before and after, as far as
    its scene reaches and no other face is found in its place."""
    for track in list(work.tracks()):
        if track["reason"]:
            continue
        scene_end = work.scene_end(track["scene"])
        reach = {-1: max(track["scene"], track["first"] - pace.hold), 1: min(scene_end, track["last"] + pace.hold)}
        ends = {}
        for direction, start in ((-1, track["first"]), (1, track["last"])):
            seen, places = work.places(track["id"], start - 5, start + 5)
            ends[direction] = start
            while ends[direction] != reach[direction]:
                n = ends[direction] + direction
                there = filled(seen, places, np.array([n]))[0]
                if any(overlap(there, other) >= THERE for other in work.others(n, track["id"])):
                    break
                ends[direction] = n
        work.cover(track["id"], ends[-1], ends[1])


class Plan:
    """The faces of each part: places and codes over time, smoothed; codes changed by `change` (encrypted)."""

    def __init__(self, model: Riddle, clip: clips.Clip, work: Work, change: Callable[[torch.Tensor], torch.Tensor]):
        self.model, self.clip, self.work, self.change = model, clip, work, change
        self.pace, self.total = Pace.of(clip), work.frame_count()
        self.means: dict[int, np.ndarray] = {}
        self.begin = int(work.times(0, 0)[0])

    def block(self, number: int) -> Block:
        """Part `number`: places in float32 and codes as float16 keeps them, so that the record holds what is drawn."""
        first = number * self.pace.part
        last = min(first + self.pace.part, self.total) - 1
        covering = self.work.covering(first, last)
        self.means = {i: m for i, m in self.means.items() if i in {c[0] for c in covering}}
        runs = [self._run(i, max(begin, first), min(end, last), begin, end) for i, begin, end in covering]
        return Block(first, self.work.times(first, last) - self.begin, tuple(runs))

    def _run(self, track: int, a: int, b: int, begin: int, end: int) -> Run:
        sigma = max(SIGMA, 1 / float(self.clip.rate))
        margin = int(np.ceil(3 * sigma * float(self.clip.rate))) + 1
        low, high = max(begin, a - margin), min(end, b + margin)
        reach = self.pace.hold + 5  # so that the way a face was going is seen from where it is only held
        seen, places = self.work.places(track, low - reach, high + reach)
        times = self.work.times(low, high) * float(self.clip.time_base)
        way = filled(seen, places, np.arange(low, high + 1))
        smooth = smoothed(times, way, times[a - low : b - low + 1], sigma)
        codes = self._codes(track, a // self.pace.step, b // self.pace.step + 1)
        return Run(track, a, bounded(smooth, *self.clip.upright_size), codes)

    def _codes(self, track: int, low: int, high: int) -> torch.Tensor:
        """The changed codes k of low to high, (k, L, D)."""
        if track not in self.means:
            self.means[track] = self.work.mean_code(track)
        known, codes = self.work.codes(track, low, high)
        wanted = np.arange(low, high + 1)
        left = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 1)
        right = np.minimum(left + 1, len(known) - 1)
        share = np.clip((wanted - known[left]) / np.maximum(known[right] - known[left], 1), 0, 1)[:, None]
        between = codes[left] + share * (codes[right] - codes[left])
        steady = self.means[track] + (1 - STEADY) * (between - self.means[track])
        w = torch.from_numpy(steady.astype(np.float32)).unflatten(1, (self.model.preset.n_latent, -1))
        return self.change(w).cpu().half().float()
