"""Aligned faces of a data set: the main face of each photo, cropped for a preset; places are cached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from . import config, presets
from .data import ImageSet
from .faces.alignment import crop, framing_matrix
from .faces.detection import Face, load_detector
from .files import digest, replace_file
from .processes import end_with_parent
from .progress import track

VERSION = 3  # raise it when a change here, in faces/alignment.py or in faces/detection.py moves a crop
SAVE_EVERY = 500  # photos between two saves of the matrices
PROCESSES_FROM = 200  # photos; fewer are done before a second process has started
PACKAGES = ("dlib-bin", "facenet-pytorch")  # packages of the detectors; another version may frame faces differently


@dataclass(frozen=True)
class AlignedSet:
    """The faces of a data set in one size; row i of each array is names[i]."""

    names: list[str]
    faces: np.ndarray  # uint8 (N, R, R, 3); black where no face was found
    matrices: np.ndarray  # float64 (N, 2, 3): a crop's unit square -> pixels of its photo, see `framing_matrix`; or NaN

    @property
    def present(self) -> np.ndarray:
        """(N,) bool: whether the detector found a face."""
        return np.isfinite(self.matrices[:, 0, 0])


def align_each(
    images: ImageSet, preset: str | presets.Preset, detector: str = "auto", workers: int = 2
) -> Iterator[tuple[np.ndarray | None, np.ndarray | None]]:
    """Detect and crop the main face of every photo; a picture that is framed already is only resized.

    Gives each photo's matrix (2, 3) and crop, uint8 (R, R, 3), None for both without a face; only one is in memory. Of
    several faces the main one is large and central: area minus twice the squared distance to the photo's centre. An
    interrupted call resumes: the matrices, which cost most and serve every preset, are kept in results/cache.

    detector: "auto", "dlib" or "mtcnn". workers: processes. Raises ValueError, naming the file, for a photo that cannot
    be read.
    """
    n, side, places = len(images), presets.get(preset).resolution, _places(images, detector)
    known = np.load(places)[:n] if places.exists() else np.empty((0, 2, 3))
    matrices = np.full((n, 2, 3), np.nan)
    processes = workers if workers > 1 and n >= PROCESSES_FROM and not images.framed else 0
    found = DataLoader(
        _Crops(images, side, detector, known), batch_size=None, collate_fn=tuple, num_workers=processes,
        # Spawned, not forked: a fork of a process whose torch has run in several threads can hang.
        multiprocessing_context="spawn" if processes else None, worker_init_fn=end_with_parent,
        generator=Generator(),  # so that the caller's random numbers stay as they are
    )  # fmt: skip
    for i, (matrix, face) in enumerate(track(found, f"align {images.title}", n, "photo")):
        if matrix is not None:
            matrices[i] = matrix
        if not images.framed and i >= len(known) and ((i + 1) % SAVE_EVERY == 0 or i + 1 == n):
            with replace_file(places) as temporary:
                np.save(temporary, matrices[: i + 1])
        yield matrix, face


def align(images: ImageSet, preset: str | presets.Preset, detector: str = "auto", workers: int = 2) -> AlignedSet:
    """The results of `align_each`, all in memory. Raises the same."""
    n, side = len(images), presets.get(preset).resolution
    matrices, faces = np.full((n, 2, 3), np.nan), np.zeros((n, side, side, 3), np.uint8)
    for i, (matrix, face) in enumerate(align_each(images, preset, detector, workers)):
        if matrix is not None:
            matrices[i], faces[i] = matrix, face
    return AlignedSet(images.names, faces, matrices)


def _places(images: ImageSet, detector: str) -> Path:
    """The file of a set's matrices."""
    by = ("none",) if images.framed else (detector, *map(_version, PACKAGES))
    key = digest(images.title, images.fingerprint, by, VERSION)
    label = f"{images.title.lower().replace(' ', '-')}-{images.split}"
    return config.home() / "results" / "cache" / f"places-{label}-{key}.npy"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


@dataclass(frozen=True)
class _Crops(Dataset):
    """Gives the matrix (2, 3) and the crop (R, R, 3) uint8 of each photo's face; None for both without a face."""

    images: ImageSet
    side: int  # px of the crops
    detector: str
    known: np.ndarray  # (K, 2, 3): matrices of the first K photos, NaN without a face

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        matrix = self.known[i] if i < len(self.known) else None
        if matrix is not None and np.isnan(matrix).any():
            return None, None
        photo = self.images.image(self.images.names[i])
        if self.images.framed:
            width, height = photo.size
            whole = np.array([[width, 0, -0.5], [0, height, -0.5]])
            return whole, np.asarray(photo.resize((self.side, self.side), Image.Resampling.LANCZOS))
        if matrix is None:
            matrix = main_face(photo, load_detector(self.detector))
        return matrix, None if matrix is None else np.asarray(crop(photo, matrix, self.side))


def main_face(photo: Image.Image, detector: Any) -> np.ndarray | None:
    """The matrix (2, 3) that frames a photo's main face; None without a face."""
    centre = np.array(photo.size) / 2

    def weight(face: Face) -> float:
        x1, y1, x2, y2 = face.box
        return (x2 - x1) * (y2 - y1) - 2 * float(((np.array([x1 + x2, y1 + y2]) / 2 - centre) ** 2).sum())

    found = detector.detect(photo)
    return framing_matrix(np.asarray(max(found, key=weight).points, np.float64)) if found else None
