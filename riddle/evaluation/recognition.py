"""Detections in a set of faces, as arrays, and embeddings of the faces by several recognisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from riddle import data
from riddle.aligned import align
from riddle.evaluation.rows import RECOGNISERS
from riddle.evaluation.runs import read
from riddle.faces import detection, recognizers
from riddle.faces.recognizers import Recognizer
from riddle.images import to_tensor
from riddle.presets import get

BATCH = 256  # faces whose crops are in memory at a time
_FIELDS = {"box": (4,), "score": (), "points": (5, 2), "landmarks": (68, 2)}


def to_arrays(found: Sequence[detection.Face | None]) -> dict[str, np.ndarray]:
    """M detections -> arrays of M rows, NaN for None and for landmarks that a detector does not give."""
    arrays = {k: np.full((len(found), *shape), np.nan) for k, shape in _FIELDS.items()}
    for i, face in enumerate(found):
        for k in _FIELDS:
            if face is not None and getattr(face, k) is not None:
                arrays[k][i] = getattr(face, k)
    return {**arrays, "detector": np.array(["" if f is None else f.detector for f in found], dtype="U16")}


def from_arrays(path: Path) -> list[detection.Face | None]:
    """Inverse of `to_arrays`, from a stage's file."""
    found = []
    for box, score, points, landmarks, detector in zip(*(read(path, k) for k in (*_FIELDS, "detector")), strict=True):
        known = None if np.isnan(landmarks).any() else landmarks
        found.append(detection.Face(box, float(score), points, known, str(detector)) if detector else None)
    return found


@cache
def load(name: str, device: str = "cpu") -> Recognizer:
    """A recogniser, loaded once per process. Raises WeightsMissingError."""
    return recognizers.load(name, device=device)


def load_all(preset: str, device: str = "cpu") -> tuple[dict[str, Recognizer], dict[str, str]]:
    """({name: recogniser}, {name: why it is not here}) of the tables' recognisers, those unseen in training first."""
    state = recognizers.available(sorted(RECOGNISERS, key=lambda name: name == get(preset).identity))
    here = {name: load(name, device) for name, reason in state.items() if reason is None}
    return here, {name: state[name] for name in RECOGNISERS if state[name] is not None}


@torch.no_grad()
def embed(
    loaded: Mapping[str, Recognizer], pictures: np.ndarray, found: Sequence[detection.Face | None]
) -> dict[str, np.ndarray]:
    """{recogniser: embeddings (M, E) float32} of pictures (M, R, R, 3) uint8, each aligned by the points found in it.

    found: as `detection.detect_in_crop` gives them, in the pictures' own pixels; rows of NaN where none was found.
    Recognisers with the same alignment share crops. Raises ValueError when the numbers of pictures and
    detections differ.
    """
    if len(pictures) != len(found):
        raise ValueError(f"{len(pictures)} pictures but {len(found)} detections")
    rows = np.array([i for i, f in enumerate(found) if f is not None], int)
    out = {name: np.full((len(pictures), r.dim), np.nan, np.float32) for name, r in loaded.items()}
    alike: dict[tuple, list[str]] = {}
    for name, recogniser in loaded.items():
        spec = recogniser.spec  # it decides the crop; that of dlib uses 68 points where there are any
        alike.setdefault((spec.size, spec.stretch, spec.targets.tobytes(), name == "dlib"), []).append(name)
    for part in np.split(rows, range(BATCH, len(rows), BATCH)):
        for names in alike.values() if len(part) else ():
            align = loaded[names[0]].align
            crops = [np.asarray(align(Image.fromarray(pictures[i]), found[i].points, found[i].landmarks)) for i in part]
            x = to_tensor(np.stack(crops))
            for name in names:
                out[name][part] = loaded[name].embed(x).float().cpu().numpy()
    return out


def stranger_threshold(recogniser: Recognizer, embeddings: np.ndarray) -> float:
    """The similarity that 0.1 % of 60,000 random pairs of different rows of embeddings (N, E) exceed.

    Rows are faces of different people; those of NaN, where no face was found, are left out.
    """
    e = embeddings[np.isfinite(embeddings).all(1)]
    rng, pairs = np.random.default_rng(0), 60_000
    a = rng.integers(len(e), size=pairs)
    b = (a + rng.integers(1, len(e), size=pairs)) % len(e)
    return float(np.quantile(recogniser.similarity(e[a], e[b]), 0.999))


def measure_thresholds(names: Sequence[str], preset: str, workers: int = 2) -> dict[str, float]:
    """`stranger_threshold` of recognisers on FFHQ's training and validation splits, the origin of the thresholds in
    faces/recognizers.py that say FFHQ. Raises DatasetMissingError."""
    sets = [align(data.load("ffhq", split), preset) for split in ("train", "val")]
    pictures = np.concatenate([s.faces[s.present] for s in sets])
    found = detection.detect_in_crop(to_tensor(pictures), "auto", workers)
    loaded = {name: load(name) for name in names}
    embedded = embed(loaded, pictures, found)
    return {name: round(stranger_threshold(r, embedded[name]), 3) for name, r in loaded.items()}
