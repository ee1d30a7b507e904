"""Faces of a set back in the photos that they came from: pasted, found again, and cropped again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from riddle import facesets
from riddle.faces import alignment
from riddle.faces.detection import Face, load_detector
from riddle.images import to_tensor
from riddle.presets import get
from riddle.progress import track
from riddle.runs import Run, read

NEAR = 0.35  # of the crop's side: a face found farther from its place is another one


def pasted(
    run: Run, photos: Path, pictures: np.ndarray | None, targets: np.ndarray, label: str, codes: Path | None = None
) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """Each target's photo with its picture (R, R, 3) uint8 pasted back as `protect` does, and its matrix (2, 3).

    pictures: (M, R, R, 3) of the set `label`, in the order of the targets (M,), None for the photos as they are; codes:
    the file of the run's inverted codes, from which a picture is drawn as large as its place needs, as `protect` does;
    None for a set without codes. Raises DatasetMissingError.
    """
    matrices, under = read(photos, "matrices")[targets], read(photos, "faces")[targets]
    of, w = facesets.parse(label), None
    model = None if pictures is None else facesets.load_model(run, of)
    if model is not None and codes is not None:
        w, rows = facesets.codes_of(run, of, model, read(codes, "codes"), read(codes, "targets"))
        w = w[np.searchsorted(rows, targets)]
    for i, target in enumerate(track(targets, f"{label} in photos")):
        photo = run.photos.image(run.pairs.names[target])
        matrix = matrices[i]
        if model is not None:
            before, faces = (to_tensor(p[i : i + 1]).to(model.device) for p in (under, pictures))
            if w is not None:
                faces = model.draw(w[i : i + 1], matrix[None])[1]
            photo = model.paste(photo, before, faces, matrix[None])
        yield photo, matrix


def find_again(photo: Image.Image, matrix: np.ndarray, detector: Any) -> Face | None:
    """The face at the place that `matrix` frames, in the photo's pixels; None when the detector finds none there."""
    place = matrix @ [0.5, 0.5, 1.0]
    found = detector.detect(photo)
    distances = [float(np.hypot(*(f.points.mean(0) - place))) for f in found]
    if not found or min(distances) > NEAR * np.hypot(*matrix[:, 0]):
        return None
    return found[int(np.argmin(distances))]


def recropped(
    run: Run, photos: Path, pictures: np.ndarray, targets: np.ndarray, label: str, codes: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (M, R, R, 3) uint8 pasted into their photos, detected and cropped anew, and their targets (M,).

    The arguments are those of `pasted`. A picture whose face is not found again is left out.
    """
    preset, detector = get(run.preset), load_detector(run.detector)
    crops, kept = [], []
    photos_with_faces = pasted(run, photos, pictures, targets, label, codes)
    for target, (photo, matrix) in zip(targets, photos_with_faces, strict=True):
        face = find_again(photo, matrix, detector)
        if face is not None:
            again = alignment.framing_matrix(face.points)
            crops.append(np.asarray(alignment.crop(photo, again, preset.resolution)))
            kept.append(target)
    return np.stack(crops) if crops else pictures[:0], np.array(kept, targets.dtype)
