"""Aligned sets: the main face of each photo, cropped for a preset; cached under everything that made them."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import config, presets
from .faces.alignment import crop, framing_matrix
from .progress import track

if TYPE_CHECKING:
    from PIL import Image

    from .faces.detection import Face
    from .photos import Images

_VERSION = 2  # raise it when a change here, in faces/alignment.py or in faces/detection.py moves a crop
_SAVE_EVERY = 500  # photos between two saves of the matrices
_PROCESSES_FROM = 200  # photos; fewer are done before a second process has started


@dataclass(frozen=True)
class AlignedSet:
    """The faces of a data set in one size; row i of each array is names[i]."""

    faces: np.ndarray  # uint8 (N, R, R, 3)
    matrices: np.ndarray  # float64 (N, 2, 3): a crop's unit square -> pixels of its photo, see `framing_matrix`
    names: list[str]
    missing: list[str]  # photos in which the detector found no face
    key: str  # of everything that made them

    def __len__(self) -> int:
        return len(self.names)

    def tensor(self, rows: slice | list[int] | np.ndarray = slice(None)) -> torch.Tensor:
        """Faces as (n, 3, R, R) in [-1, 1]."""
        return torch.from_numpy(self.faces[rows].copy()).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def aligned(
    dataset: Images,
    preset: str | presets.Preset,
    detector: str = "auto",
    workers: int = 2,
    cache: Path | str | None = None,
) -> AlignedSet:
    """Detect and crop the main face of every photo of `dataset`; a picture that is framed already is only resized.

    detector: "auto", "dlib" or "mtcnn". workers: processes. cache: folder; default results/cache. An interrupted
    call resumes. Of several faces the main one is large and central: area minus twice the squared distance to the
    photo's centre. Raises ValueError, naming the file, for a photo that cannot be read.
    """
    preset = presets.get(preset)
    folder = Path(cache) if cache is not None else config.results_cache()
    folder.mkdir(parents=True, exist_ok=True)
    made_from = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "detector": "none" if dataset.framed else _detector_version(detector),
        "version": _VERSION,
    }
    key = _key({**made_from, "resolution": preset.resolution})
    label = f"{dataset.name.lower().replace(' ', '-')}-{dataset.split}"
    places_file = folder / f"places-{label}-{_key(made_from)}.npy"
    faces_file = folder / f"faces-{label}-{preset.name}-{key}.npy"
    if not (faces_file.exists() and places_file.exists()):
        _make(dataset, preset, detector, workers, places_file, faces_file)
    matrices, faces = np.load(places_file), np.load(faces_file)
    found = ~np.isnan(matrices[:, 0, 0])
    names = np.array(dataset.names, dtype=object)
    return AlignedSet(faces, matrices[found], list(names[found]), list(names[~found]), key)


def _make(
    dataset: Images, preset: presets.Preset, detector: str, workers: int, places_file: Path, faces_file: Path
) -> None:
    """Matrices (N, 2, 3), NaN where there is no face, then the crops of those found. Matrices, which cost most, are
    saved as they come and serve every preset."""
    n, part = len(dataset), places_file.with_suffix(".part.npy")
    matrices, done = np.full((n, 2, 3), np.nan), 0
    if places_file.exists():
        matrices, done = np.load(places_file), n
    elif part.exists():
        done = min(len(known := np.load(part)), n)
        matrices[:done] = known[:done]
    job = _Job(dataset, preset.resolution, detector)
    faces = []
    with _mapper(job, workers if n >= _PROCESSES_FROM and not dataset.framed else 1) as run:
        known = [(name, matrices[i] if i < done else None) for i, name in enumerate(dataset.names)]
        bar = track(run(known), f"align {dataset.name}", n, "photo")
        for i, (matrix, face) in enumerate(bar):
            matrices[i] = matrix
            if face is not None:
                faces.append(face)
            if i >= done and (i + 1) % _SAVE_EVERY == 0:
                save_array(part, matrices[: i + 1])
    save_array(places_file, matrices)
    part.unlink(missing_ok=True)
    empty = np.empty((0, preset.resolution, preset.resolution, 3), np.uint8)
    save_array(faces_file, np.stack(faces) if faces else empty)


@dataclass(frozen=True)
class _Job:
    """What a worker process needs."""

    dataset: Images
    side: int  # px of the crops
    detector: str

    def __call__(self, item: tuple[str, np.ndarray | None]) -> tuple[np.ndarray, np.ndarray | None]:
        """(name, matrix if known) -> (matrix, crop); NaN and None without a face."""
        name, matrix = item
        if matrix is not None and np.isnan(matrix).any():
            return matrix, None
        photo = self.dataset.image(name)
        if matrix is None:
            matrix = whole(photo) if self.dataset.framed else main_face(photo, _detector(self.detector))
        if matrix is None:
            return np.full((2, 3), np.nan), None
        return matrix, np.asarray(crop(photo, matrix, self.side))


def whole(picture: Image.Image) -> np.ndarray:
    """The matrix (2, 3) of a crop that is the whole picture: copied at its own size, an average where it shrinks by
    an integer."""
    width, height = picture.size
    return np.array([[width, 0, -0.5], [0, height, -0.5]], np.float64)


def main_face(photo: Image.Image, detector: Any) -> np.ndarray | None:
    """The matrix (2, 3) that frames a photo's main face; None without a face."""
    found = detector.detect(photo)
    if not found:
        return None
    centre = np.array(photo.size) / 2

    def weight(face: Face) -> float:
        x1, y1, x2, y2 = face.box
        return (x2 - x1) * (y2 - y1) - 2 * float(((np.array([x1 + x2, y1 + y2]) / 2 - centre) ** 2).sum())

    return framing_matrix(np.asarray(max(found, key=weight).points, np.float64))


_detectors: dict[str, object] = {}  # one of each kind a process: loading costs a second
_job: _Job | None = None


def _detector(name: str):
    if name not in _detectors:
        from .faces.detection import load_detector

        _detectors[name] = load_detector(name)
    return _detectors[name]


def _start(job: _Job) -> None:
    """A worker process keeps its job, and one thread: the processes share the cores."""
    global _job
    torch.set_num_threads(1)
    _job = job


def _work(item: tuple[str, np.ndarray | None]):
    return _job(item)


@contextmanager
def _mapper(job: _Job, workers: int) -> Iterator:
    """An ordered map over items, in `workers` processes."""
    if workers <= 1:
        yield lambda items: map(job, items)
        return
    # Spawned, not forked: a fork of a process whose torch has run in several threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(job,)) as pool:
        yield lambda items: pool.map(_work, items, chunksize=16)


def _detector_version(name: str) -> str:
    """The detector and the versions of the packages behind it."""
    packages = {"dlib": ["dlib-bin"], "mtcnn": ["facenet-pytorch"]}.get(name, ["dlib-bin", "facenet-pytorch"])
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    return f"{name} ({', '.join(versions)})"


def _key(made_from: dict) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def save_array(path: Path, array: np.ndarray) -> None:
    """np.save by a temporary name: a stopped run leaves no half file."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(tmp, "wb") as f:
        np.save(f, array)
    os.replace(tmp, path)
