"""What becomes of each face of a photo: which can be replaced, and what a second look says of those that were."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from riddle.faces import alignment, recognizers
from riddle.faces.detection import LOOK, SMALLEST, Face, FaceNotFoundError, apart, doubtful, look_again
from riddle.images import Picture, to_tensor

PICKS = ("all", "largest", "center")

INSIDE = 0.4  # share of a framed face that must lie in the photo
MOST = 5  # faces named in one message
PROFILE = 0.4  # distance of the eyes, in distances of eyes and mouth: about 1 from the front, 0.4 turned by 66 degrees
KNOWN = 40  # px, side of a framed face from which a recogniser's threshold holds; strangers look alike in smaller ones
NEAR = 0.5  # eye distances between a face's points and those found in its place
ANOTHER, RECOGNISED, GONE = "another person", "still recognised", "not found again"
REASONS = {  # of what `check` says and people should know
    RECOGNISED: "a recogniser takes it for the same person; protect it by another passphrase, or cover it",
    GONE: "no face is found in its place any more; look at it",
}


@dataclass(frozen=True)
class FaceReport:
    """One face of a photo and what became of it."""

    box: tuple[int, int, int, int]  # of its square, see `box_of`, in pixels of the upright photo
    status: str  # "protected", "restored", "skipped", or "recognised": replaced, and taken for the same person
    reason: str = ""  # why it was skipped, or what is wrong with what `checked` says
    checked: str = field(default="", kw_only=True)  # of a replaced face of a photo, what `check` says


def square_of(face: Face) -> np.ndarray:
    """The framing matrix of a face, (2, 3); where its points coincide, that of its box."""
    try:
        return alignment.framing_matrix(face.points)
    except ValueError:
        x1, y1, x2, y2 = face.box
        return alignment.matrix([(x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, y2 - y1, 1.0), 0.0])


def box_of(framing: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box around a framed square, as far as it lies in a picture of `size` (width, height): x1, y1, x2, y2, px."""
    corners = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]]) @ framing.T
    return tuple(np.rint(np.clip([corners.min(0), corners.max(0)], 0, size)).astype(int).ravel().tolist())


def why_not(face: Face, size: tuple[int, int]) -> str:
    """Why a found face cannot be protected in a photo of `size` (width, height); empty when it can."""
    try:
        matrix = alignment.framing_matrix(face.points)
    except ValueError:
        return "its eyes and mouth coincide; crop it out or cover it"
    side = float(np.hypot(*matrix[:, 0]))
    if side < SMALLEST:
        return f"too small: {side:.0f} px, and {SMALLEST} are needed; enlarge the photo or cover it"
    grid = (np.stack(np.meshgrid(np.arange(32), np.arange(32)), -1).reshape(-1, 2) + 0.5) / 32
    there = grid @ matrix[:, :2].T + matrix[:, 2]
    inside = float(((there >= 0) & (there < np.array(size))).all(1).mean())
    if inside < INSIDE or side**2 > 4 * size[0] * size[1]:
        return f"cut by the border: {inside:.0%} of it lie in the photo; crop it off or cover it"
    eyes, mouth = face.points[:2], face.points[3:5].mean(0)
    if np.hypot(*(eyes[1] - eyes[0])) < PROFILE * np.hypot(*(mouth - eyes.mean(0))):
        return "in profile: the model knows faces from the front; crop it out or cover it"
    if doubtful(face):
        doubt = face.doubt or f"score {face.score:.2f}"
        return f"doubtful ({doubt}): look whether it is a face, and cover it"
    return ""


def sorted_out(found: Sequence[Face], size: tuple[int, int]) -> tuple[list[Face], list[FaceReport]]:
    """The faces that can be replaced in a photo of `size` (width, height), and the reports of the others."""
    able, skipped = [], []
    for face in found:
        if reason := why_not(face, size):
            skipped.append(_skipped(face, size, reason))
        else:
            able.append(face)
    return able, skipped


def _skipped(face: Face, size: tuple[int, int], reason: str) -> FaceReport:
    return FaceReport(box_of(square_of(face), size), "skipped", reason)


def listed(faces: Sequence[FaceReport]) -> str:
    """Places and reasons of faces, of the first MOST."""
    return "; ".join(f"the face at {','.join(map(str, face.box))}: {face.reason}" for face in faces[:MOST])


def sure(found: Sequence[Face], name: str | Path) -> list[Face]:
    """The faces of a photo that are not doubtful, or all where all are; it warns of those left out, with the name."""
    left = [",".join(f"{v:.0f}" for v in face.box) for face in found if doubtful(face)]
    if not 0 < len(left) < len(found):
        return list(found)
    cause = f"{name}: doubtful whether a face is at {'; '.join(left)}; left as it is"
    warnings.warn(f"{cause}; look, and pass faces= to replace it too", stacklevel=3)
    return [face for face in found if not doubtful(face)]


def picked(found: Sequence[Face], pick: str, size: tuple[int, int]) -> list[Face]:
    """Of faces, largest first: "all", the "largest", or the one nearest to the "center" of a photo of `size` (width,
    height). Raises ValueError for another pick."""
    if pick not in PICKS:
        raise ValueError(f"unknown pick {pick!r}; choose one of {', '.join(PICKS)}")
    if pick == "center":
        middle = (np.array(size) / 2).tolist()
        return [min(found, key=lambda f: np.hypot(*(np.reshape(f.box, (2, 2)).mean(0) - middle)))]
    return list(found[:1] if pick == "largest" else found)


def chosen(found: Sequence[Face], picture: Picture, pick: str) -> tuple[list[Face], list[FaceReport]]:
    """The picked ones of the faces that can be replaced, and the reports of all others.

    It warns of those that cannot. Raises FaceNotFoundError where none can, ValueError as `picked` does.
    """
    size = picture.rgb.size
    able, skipped = sorted_out(found, size)
    if not able:
        raise FaceNotFoundError(f"{picture.name}: no face of it can be replaced: {listed(skipped)}")
    if skipped:
        warnings.warn(f"{picture.name}: left as they are: {listed(skipped)}", stacklevel=3)
    faces = picked(able, pick, size)
    others = (face for face in able if not any(face is one for one in faces))
    return faces, skipped + [_skipped(face, size, f"not picked: pick={pick!r}") for face in others]


def looked_at(
    before: Image.Image, faces: Sequence[Face], left: Sequence[FaceReport], detector: Any, name: str,
    device: str | torch.device, after: Image.Image,
) -> list[FaceReport]:  # fmt: skip
    """The reports of replaced faces, then of those left as they are; the other arguments are as for `check`."""
    reports = []
    for face in faces:
        said = check(before, after, face, detector, name, device)
        status = "recognised" if said == RECOGNISED else "protected"
        reports.append(FaceReport(box_of(square_of(face), before.size), status, REASONS.get(said, ""), checked=said))
    return reports + list(left)


def check(
    before: Image.Image, after: Image.Image, face: Face, detector: Any, name: str, device: str | torch.device = "cpu"
) -> str:
    """What a second look says of a face that was replaced: ANOTHER, RECOGNISED, GONE, or "not checked:" and why.

    before, after: the RGB photo and its protected picture; face: as `Riddle.protect` replaced it. It is one detection,
    in the face's place alone; name: of the recogniser, which compares where its weights are at hand.
    """
    matrix = alignment.framing_matrix(face.points)
    wanted = alignment.crop_points(face.points, matrix, LOOK)
    crop, seen = look_again(after, matrix, detector)
    near = [other.points for other in seen if apart(other.points, wanted) < NEAR]
    recogniser, why = recognizers.at_hand(name, device), ""
    if recogniser is None:
        get = f"python -m riddle weights {name} --download"
        why = f"not checked: {name}: {recognizers.available([name])[name]}; get it by {get}"
    elif np.hypot(*matrix[:, 0]) < KNOWN:
        why = f"not checked: faces below {KNOWN} px cannot be told apart"
    else:
        points = min(near, key=lambda p: apart(p, wanted), default=wanted)
        pair = recogniser.align(before, face.points), recogniser.align(crop, points)
        with torch.no_grad():
            e = recogniser.embed(torch.stack([to_tensor(one) for one in pair]))
        if recogniser.similarity(e[:1], e[1:]) >= recogniser.threshold:
            return RECOGNISED
    return (why or ANOTHER) if near else GONE
