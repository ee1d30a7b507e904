"""Protect and restore photo files: every face found, replaced, and accounted for.

    report = protect_file(model, "party.jpg", "party.png", "correct horse")
    report = restore_file(model, "party.png", "restored.png", "correct horse")
    report.faces                                         # each face's box and what became of it

A face that was found and not protected stands in the report as skipped, with the reason. Each one that was replaced is
looked at again in the file that is to be written (`check`). `strict` refuses a photo with a face that was skipped or is
still recognised. A target is written whole, after everything else succeeded, or not at all.

With `keep_original` the sealed record (riddle.record) also carries the faces' own pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from riddle.faces import alignment, recognizers
from riddle.faces.detection import LOOK, SMALLEST, Face, apart, doubtful, find_all, look_again
from riddle.images import PhotoError, Picture, encode, open_picture, picture_format, to_tensor, write_file
from riddle.pipeline import Riddle
from riddle.record import encoded, read_picture, sidecar_path

INSIDE = 0.4  # share of a framed face that must lie in the photo
MOST = 5  # faces named in one message
PROFILE = 0.4  # distance of the eyes, in distances of eyes and mouth: about 1 from the front, 0.4 turned by 66 degrees
KNOWN = 40  # px, side of a framed face from which a recogniser's threshold holds; strangers look alike in smaller ones
NEAR = 0.5  # eye distances between a face's points and those found in its place
TRIES = 3  # salts, while a face is still recognised
ANOTHER, RECOGNISED, GONE = "another person", "still recognised", "not found again"
REASONS = {  # of what `check` says and people should know
    RECOGNISED: "a recogniser takes it for the same person; protect it by another passphrase, or cover it",
    GONE: "no face is found in its place any more; look at it",
}
UNPROTECTED = ("skipped", "recognised")
AGAIN = (
    "the photo had been protected before: restoring this file gives the strangers of that time; protect the original"
    " instead, or keep the file that was protected first"
)
INVERTED = "the photo carries no record: its faces were found and inverted again, which rarely brings the people back"
NOT_OPENED = (
    "the record does not open: the passphrase is another one than that of protecting, or the file was changed; what is"
    " shown are strangers"
)


@dataclass(frozen=True)
class FaceReport:
    """One face of a photo and what became of it."""

    box: tuple[int, int, int, int]  # of its square, see `box_of`, in pixels of the upright photo
    status: str  # "protected", "restored", "skipped", or "recognised": replaced, and taken for the same person
    reason: str = ""  # why it was skipped, or what is wrong with what `checked` says
    checked: str = field(default="", kw_only=True)  # of a replaced face of a photo, what `check` says


@dataclass(frozen=True)
class FileReport:
    """What became of a photo file."""

    source: Path
    target: Path
    faces: list[FaceReport]
    how: str  # "protected"; of a restored file "codes", "inversion" or "original"
    notes: list[str] = field(default_factory=list)  # what else the reader should know


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


def refuse(source: str | Path, faces: Sequence[FaceReport], strict: bool = False) -> None:
    """Raises PhotoError for a photo or clip without a face, or without one that can be replaced, or, with strict, with
    one that cannot or that is still recognised."""
    if not faces:
        raise PhotoError(source, "no face was found", "crop it closer to the face; nothing was written")
    none = all(face.status == "skipped" for face in faces)
    left = [face for face in faces if face.status in UNPROTECTED]
    if none or (strict and left):
        listed = "; ".join(f"the face at {','.join(map(str, face.box))}: {face.reason}" for face in left[:MOST])
        cause = "no face of it can be replaced" if none else "strict, and a face stays unprotected"
        raise PhotoError(source, f"{cause}: {listed}", "nothing was written")


def _sorted_out(model: Riddle, picture: Picture, status: str) -> tuple[list[Face], list[FaceReport]]:
    """The faces to replace, and the reports of all, these first."""
    size, faces, done, skipped = picture.rgb.size, [], [], []
    for face in find_all(picture.rgb, model.detector):
        square = box_of(square_of(face), size)
        if reason := why_not(face, size):
            skipped.append(FaceReport(square, "skipped", reason))
        else:
            faces.append(face)
            done.append(FaceReport(square, status))
    return faces, done + skipped


def check(model: Riddle, before: Image.Image, after: Image.Image, face: Face) -> str:
    """What a second look says of a face that was replaced: ANOTHER, RECOGNISED, GONE, or "not checked:" and why.

    before, after: the RGB photo and its protected picture; face: as `Riddle.protect` replaced it. It is one detection,
    in the face's place alone; the recogniser is the preset's `identity`, where its weights are at hand.
    """
    matrix, name = alignment.framing_matrix(face.points), model.preset.identity
    wanted = alignment.crop_points(face.points, matrix, LOOK)
    crop, seen = look_again(after, matrix, model.detector)
    near = [other.points for other in seen if apart(other.points, wanted) < NEAR]
    recogniser, why = recognizers.at_hand(name, model.device), ""
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


def protect_file(
    model: Riddle,
    source: str | Path,
    target: str | Path,
    passphrase: str,
    *,
    keep_original: bool = False,
    strict: bool = False,
    record: bool = True,
    sidecar: bool = False,
    quality: int = 95,
) -> FileReport:
    """Write a photo in which every face that can be is an encrypted one.

    Where a face is still recognised, it tries other strangers. target: .png, .jpg or .webp; keep_original: the
    original pixels of the faces go along in the record; strict: refuse a photo with a face that cannot be protected
    or is still recognised; record: False leaves nothing but pixels; sidecar: the record in `target`.riddle, the
    picture bare; quality: 1 to 100, of JPEG and WebP.
    Raises PhotoError for a photo that cannot be read, for what `refuse` names, and for a target that cannot be
    written; ValueError for a bad passphrase, and for an option that needs the record that is not wanted.
    """
    source, target = Path(source), Path(target)
    picture_format(target)  # an ending that is not written is refused before any work
    if not record and (keep_original or sidecar):
        raise ValueError("originals and a sidecar are parts of the record: leave out --no-record")
    picture = open_picture(source)
    faces, reports = _sorted_out(model, picture, "protected")
    refuse(source, reports, strict)
    for _ in range(TRIES if record else 1):  # each with a salt of its own, and so with other strangers
        protected = model.protect(picture, passphrase, faces=faces, record=record)
        if keep_original:
            crops = [encode(picture.rgb.crop(corners), "x.png") for corners in protected.record.boxes()]
            protected = replace(protected, record=replace(protected.record, originals=tuple(crops)))
        sealed = protected.sealed
        data = encoded(protected.image, target, sealed, sidecar, profile=picture.profile, quality=quality)
        after = open_picture(data, str(target)).rgb
        said = [check(model, picture.rgb, after, face) for face in faces]
        if RECOGNISED not in said:
            break
    for i, checked in enumerate(said):
        status = "recognised" if checked == RECOGNISED else "protected"
        reports[i] = replace(reports[i], status=status, reason=REASONS.get(checked, ""), checked=checked)
    refuse(source, reports, strict)
    notes = [*picture.notes]
    notes += {f"whether people are still recognised was {s}": 0 for s in said if s.startswith("not checked")}
    beside = sidecar_path(target)
    if sidecar:
        write_file(beside, sealed.data)
        notes.append(f"the record lies in {beside}")
    write_file(target, data)
    if not record:
        beside.unlink(missing_ok=True)  # of an earlier result of this name
    if b"riddle:record" in picture.xmp or sidecar_path(source).is_file():
        notes.append(AGAIN)
    return FileReport(source, target, reports, "protected", notes)


def restore_file(
    model: Riddle,
    source: str | Path,
    target: str | Path,
    passphrase: str,
    *,
    sidecar: str | Path | None = None,
    quality: int = 95,
) -> FileReport:
    """Write a protected photo with its faces decrypted; a wrong passphrase gives other faces, not an error.

    `how` of the report: "original", the pixels that the record keeps; "codes", from the record's codes; "inversion",
    the faces found and inverted again, where the photo has no record or it does not open. sidecar: default
    `source`.riddle where there is one. Raises PhotoError; RecordError, a PhotoError, for a record that is damaged, of
    another model, or of another photo.
    """
    source, target = Path(source), Path(target)
    lossless = picture_format(target) == "PNG"
    picture, sealed, _ = read_picture(source, sidecar)
    notes, reports = list(picture.notes), []

    def found() -> list[Face]:  # without an opened record
        faces, reports[:] = _sorted_out(model, picture, "restored")
        refuse(source, reports)
        notes.append(NOT_OPENED if sealed else INVERTED)
        return faces

    restored = model.restore(picture, passphrase, record=sealed, faces=found)
    if restored.source == "original" and not lossless:
        notes.append(f"{target.suffix} compresses the original pixels again; restore to .png for the exact ones")
    boxes = [box_of(m, picture.rgb.size) for m in restored.matrices]
    there = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]  # not those of people who were cropped off
    reports = reports or [FaceReport(box, "restored") for box in there]
    restored.save(target, quality)
    return FileReport(source, target, reports, restored.source, notes)
