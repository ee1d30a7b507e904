"""The first reading of a clip: where each face is in every frame, and its code; and the record that follows from it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from scipy.interpolate import make_interp_spline

from riddle.app.clip import Clip, frames
from riddle.app.cliprecord import ClipRecord, bounded, code_count
from riddle.app.tracking import THERE, Embedder, Find, Scenes, Track, Tracker, crops, distinct, find_of, follow, overlap
from riddle.faces.detection import find_all
from riddle.pipeline import Riddle
from riddle.progress import track

SEARCH = 0.15  # s from one search of the whole frame to the next; known faces are followed in every frame
PATIENCE = 1.0  # s for which a face may be out of sight and is still covered throughout
HOLD = 0.3  # s for which a face is covered before it is first and after it is last seen
STEP = 0.2  # s from one code to the next
SIGMA = 0.12  # s, of the weights that smooth places
STEADY = 0.5  # how far a code is drawn to the mean of its face's codes: 0 keeps all expression, 1 is one picture


def frames_of(seconds: float, rate: Fraction) -> int:
    """How many frames a time is, at least one; rate: frames a second, taken as 5 to 240."""
    return max(1, round(seconds * float(min(max(rate, 5), 240))))


def survey(model: Riddle, clip: Clip, embedder: Embedder) -> tuple[np.ndarray, list[Track]]:
    """Read a clip, find and follow every face, and invert it frame by frame.

    Returns the time of each frame in seconds since the first, (N,), and the tracks. It holds one frame at a time, and
    of each face a code every STEP seconds.
    """
    search, patience, hold, step = (frames_of(s, clip.rate) for s in (SEARCH, PATIENCE, HOLD, STEP))
    scenes, tracker = Scenes(), Tracker(patience, embedder.same, embedder.loose)
    times, starts, searched = [], [], 0
    for frame in track(frames(clip), "find", clip.estimate or None, "frame", leave=False):
        n, image = frame.n, Image.fromarray(frame.rgb())
        if cut := scenes.cut(image):
            tracker.live = []
            starts.append(n)
        finds: list[Find] = []
        if cut or n - searched >= search:
            finds, searched = [find_of(face, image.size) for face in find_all(image, model.detector)], n
        for known in tracker.live:
            if all(overlap(known.expected(n), find.place) < THERE for find in finds):
                finds += follow(model, image, known.expected(n))
        if finds := distinct(finds):
            _take(model, image, n, finds, tracker, embedder, step)
        tracker.forget(n)
        times.append(frame.since)
    for face in tracker.all:
        scene = bisect(starts, face.frames[0])
        face.scene = starts[scene - 1], [*starts, len(times)][scene] - 1
    _cover([face for face in tracker.all if face.good], hold)
    return np.array(times), tracker.all


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
    found = {face.id: dict(zip(face.frames, face.places, strict=True)) for face in tracks}
    for face in tracks:
        first, last = face.frames[0], face.frames[-1]
        before = range(first - 1, max(face.scene[0], first - hold) - 1, -1)
        after = range(last + 1, min(face.scene[1], last + hold) + 1)
        face.begin = next((n + 1 for n in before if _taken(face, n, found)), before.stop + 1)
        face.end = next((n - 1 for n in after if _taken(face, n, found)), after.stop - 1)


def _taken(face: Track, n: int, found: dict[int, dict[int, np.ndarray]]) -> bool:
    """Whether another face is found where a face would be in frame n; found: id -> frame -> place."""
    there = filled(np.array(face.frames), np.stack(face.places), np.array([n]))[0]
    return any(overlap(there, at[n]) >= THERE for i, at in found.items() if i != face.id and n in at)


def record_of(
    times: np.ndarray, tracks: list[Track], clip: Clip, model: Riddle, change: Callable[[torch.Tensor], torch.Tensor]
) -> ClipRecord:
    """The record of what `survey` returned: each face's places and codes, smoothed over time.

    change: encrypts or decrypts codes (N, L, D). Places are kept in float32 and codes as float16 has them in z, so that
    what is drawn is what the record holds.
    """
    step, sigma = frames_of(STEP, clip.rate), max(SIGMA, 1 / float(clip.rate))
    shape, rows, places, codes = (model.preset.n_latent, model.preset.style_dim), [], [], []
    for face in tracks:
        if face.good:
            covered = np.arange(face.begin, face.end + 1)
            way = filled(np.array(face.frames), np.stack(face.places), covered)
            rows.append((face.id, face.begin, len(covered)))
            places.append(bounded(smoothed(times[covered], way, sigma), *clip.upright_size))
            k = face.begin // step + np.arange(code_count(face.begin, len(covered), step))
            w = torch.from_numpy(_steadied(face, k)).view(-1, *shape)
            codes += [model.generator.codes.to_record(change(part)).cpu() for part in w.split(128)]
    return ClipRecord(
        model.preset.name, model.weights_hash, clip.upright_size, step, times, np.array(rows),
        np.concatenate(places), torch.cat(codes),
    )  # fmt: skip


def _steadied(face: Track, wanted: np.ndarray) -> np.ndarray:
    """The codes k `wanted` of a face, between those that there are on the line, drawn to their mean; float32."""
    known = np.array(sorted(face.codes))
    weights = np.array([face.codes[k][0] for k in known])
    sums = np.stack([face.codes[k][1] for k in known]).reshape(len(known), -1)
    codes, mean = sums / weights[:, None], sums.sum(0) / weights.sum()
    known, codes = np.append(known, known[-1] + 1), np.append(codes, codes[-1:], 0)  # a line needs two ends
    between = make_interp_spline(known, codes, k=1)(np.clip(wanted, known[0], known[-1]))
    return (mean + (1 - STEADY) * (between - mean)).astype(np.float32)


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
        out[i] = np.polyfit(x, places[near], min(2, len(x) - 1), w=np.exp(-0.25 * x**2))[-1]  # w: roots of weights
    return out
