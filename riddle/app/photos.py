"""Protect and restore photo files: every face found, replaced, and accounted for.

    report = protect_file(model, "party.jpg", "party.png", "correct horse")
    report = restore_file(model, "party.png", "restored.png", "correct horse")
    report.faces                                         # each face's box and what became of it

A face that was found and not protected stands in the report as skipped, with the reason. Each one that was replaced is
looked at again in the file that is to be written (`outcomes.check`). `strict` refuses a photo with a face that was
skipped, is still recognised, or is not found again. A target is written whole, after everything else succeeded, or not
at all.

With `keep_original` the sealed record (riddle.record) also carries the faces' own pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from riddle.faces.detection import Face, find_all
from riddle.faces.outcomes import GONE, FaceReport, box_of, listed, sorted_out, square_of
from riddle.images import PhotoError, Picture, encode, open_picture, picture_format, write_file
from riddle.pipeline import Riddle
from riddle.record import encoded, read_picture, sidecar_path

TRIES = 3  # salts, while a face is still recognised
UNPROTECTED = ("skipped", "recognised")
AGAIN = (
    "the photo had been protected before: restoring this file gives the strangers of that time; protect the original"
    " instead, or keep the file that was protected first"
)
BARE = (
    "without a record the salt is the preset's public one: all faces of all such photos have one key under one"
    " passphrase; take one that you use for nothing else"
)
INVERTED = "the photo carries no record: its faces were found and inverted again, which rarely brings the people back"
NOT_OPENED = (
    "the record does not open: the passphrase is another one than that of protecting, or the file was changed; what is"
    " shown are strangers"
)


@dataclass(frozen=True)
class FileReport:
    """What became of a photo file."""

    source: Path
    target: Path
    faces: list[FaceReport]
    how: str  # "protected"; of a restored file "codes", "inversion" or "original"
    notes: list[str] = field(default_factory=list)  # what else the reader should know


def refuse(source: str | Path, faces: Sequence[FaceReport], strict: bool = False) -> None:
    """Raises PhotoError for a photo or clip without a face, or without one that can be replaced, or, with strict, with
    one that cannot, that is still recognised, or that is not found again."""
    if not faces:
        raise PhotoError(source, "no face was found", "crop it closer to the face; nothing was written")
    none = all(face.status == "skipped" for face in faces)
    left = [face for face in faces if face.status in UNPROTECTED or face.checked == GONE]
    if none or (strict and left):
        cause = "no face of it can be replaced" if none else "strict, and a face stays unprotected"
        raise PhotoError(source, f"{cause}: {listed(left)}", "nothing was written")


def _sorted_out(model: Riddle, picture: Picture, status: str) -> tuple[list[Face], list[FaceReport]]:
    """The faces to replace, and the reports of all, these first."""
    size = picture.rgb.size
    faces, skipped = sorted_out(find_all(picture.rgb, model.detector), size)
    return faces, [FaceReport(box_of(square_of(face), size), status) for face in faces] + skipped


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
    data: bytes | None = None,
) -> FileReport:
    """Write a photo in which every face that can be is an encrypted one.

    Where a face is still recognised, or with strict not found again, it tries other strangers. target: .png, .jpg or
    .webp; keep_original: the original pixels of the faces go along in the record; strict: as for `refuse`; record:
    False leaves nothing but pixels; sidecar: the record in `target`.riddle, the picture bare; quality: 1 to 100, of
    JPEG and WebP; data: the photo's bytes, where `source` names no file of this machine.
    Raises PhotoError for a photo that cannot be read, for what `refuse` names, and for a target that cannot be
    written; ValueError for a bad passphrase, and for an option that needs the record that is not wanted.
    """
    source, target = Path(source), Path(target)
    picture_format(target)  # an ending that is not written is refused before any work
    if not record and (keep_original or sidecar):
        raise ValueError("originals and a sidecar are parts of the record: leave out --no-record")
    picture = open_picture(source if data is None else data, str(source))
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
        seen = protected.look(after)
        if not any(face.reason if strict else face.status == "recognised" for face in seen):
            break
    reports = seen + reports[len(faces) :]
    refuse(source, reports, strict)
    notes = [*picture.notes]
    unseen = dict.fromkeys(face.checked for face in seen if face.checked.startswith("not checked"))
    notes += [f"whether people are still recognised was {said}" for said in unseen]
    beside = sidecar_path(target)
    if sidecar:
        write_file(beside, sealed.data)
        notes.append(f"the record lies in {beside}")
    write_file(target, data)
    if not record:
        beside.unlink(missing_ok=True)  # of an earlier result of this name
        notes.append(BARE)
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
