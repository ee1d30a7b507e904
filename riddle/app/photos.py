"""Protect and restore photo files: every face found, replaced, and accounted for.

    report = protect_file(model, "party.jpg", "party.png", "correct horse")
    report = restore_file(model, "party.png", "restored.png", "correct horse")
    report.faces                                         # each face's box and what became of it

A face that was found and not protected stands in the report as skipped, with the reason; `strict` refuses such a photo.
A target is written whole, after everything else succeeded, or not at all.

A record (riddle.record) may also carry the original pixels, sealed. A sealed original is

    12  nonce
    .   AES-256-GCM of: x, y of its corner in the photo (two little-endian u32), then a PNG of the pixels;
        the authenticated data are the salt and the face's number (u32)

under the key HKDF-SHA256(Argon2id(passphrase, the file's random salt), info="riddle original v1"). The passphrase's
password comes from the same Argon2id key through SHAKE-256, so the two share no bytes and cost one derivation. Sealing
tells whoever has the file whether a guessed passphrase is right, which encrypted codes alone do not say.
"""

from __future__ import annotations

import io
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from PIL import Image

from riddle import passwords
from riddle.faces import alignment
from riddle.faces.detection import SMALLEST, Face, doubtful, find_all
from riddle.images import PhotoError, Picture, open_picture, picture_format
from riddle.pipeline import Riddle
from riddle.record import Record, read_picture, save_picture, sidecar_path

Crop = tuple[tuple[int, int], Image.Image]  # corner x, y in the photo; pixels
_NONCE, _CORNER = 12, struct.Struct("<II")
INSIDE = 0.4  # share of a framed face that must lie in the photo
MOST = 5  # faces named in one message
PROFILE = 0.4  # distance of the eyes, in distances of eyes and mouth: about 1 from the front, 0.4 turned by 66 degrees
AGAIN = (
    "the photo had been protected before: restoring this file gives the strangers of that time; protect the original"
    " instead, or keep the file that was protected first"
)
INVERTED = (
    "the photo carries no record: its faces were found and inverted again, which is less exact, and fails if it was"
    " protected with a random salt"
)
SEALED = (
    "the originals sealed inside do not open: the passphrase is another one than that of protecting, or the file was"
    " changed; what is shown comes from the codes"
)


@dataclass(frozen=True)
class FaceReport:
    """One face of a photo and what became of it."""

    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the upright photo
    status: str  # "protected", "restored" or "skipped"
    reason: str = ""  # why it was skipped


@dataclass(frozen=True)
class FileReport:
    """What became of a photo file."""

    source: Path
    target: Path
    faces: list[FaceReport]
    how: str  # "protected"; of a restored file "codes", "inversion" or "original"
    notes: list[str] = field(default_factory=list)  # what else the reader should know


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
        return f"doubtful (score {face.score:.2f}): look whether it is a face, and cover it"
    return ""


def refuse(source: str | Path, faces: Sequence[FaceReport], strict: bool = False) -> None:
    """Raises PhotoError for a photo or clip without a face, or without one that can be replaced, or, with strict, with
    one that cannot."""
    left = [face for face in faces if face.status == "skipped"]
    if not faces:
        raise PhotoError(source, "no face was found", "crop it closer to the face; nothing was written")
    if len(left) == len(faces) or (strict and left):
        listed = "; ".join(f"the face at {','.join(map(str, face.box))}: {face.reason}" for face in left[:MOST])
        cause = "no face of it can be replaced" if len(left) == len(faces) else "strict, and a face cannot be replaced"
        raise PhotoError(source, f"{cause}: {listed}", "nothing was written")


def _sorted_out(model: Riddle, picture: Picture, status: str) -> tuple[list[Face], list[FaceReport]]:
    """The faces to replace, and the reports of all, these first."""
    size, faces, done, skipped = picture.rgb.size, [], [], []
    for face in find_all(picture.rgb, model.detector):
        box = tuple(np.rint(np.clip(face.box, 0, np.tile(size, 2))).astype(int).tolist())
        if reason := why_not(face, size):
            skipped.append(FaceReport(box, "skipped", reason))
        else:
            faces.append(face)
            done.append(FaceReport(box, status))
    return faces, done + skipped


def protect_file(
    model: Riddle,
    source: str | Path,
    target: str | Path,
    passphrase: str,
    *,
    salt: str = "public",
    keep_original: bool = False,
    strict: bool = False,
    sidecar: bool = False,
    quality: int = 95,
) -> FileReport:
    """Write a photo in which every face that can be is an encrypted one.

    target: .png, .jpg or .webp; salt: "public", so that the passphrase alone opens even a bare picture, or "random",
    kept in the file; keep_original: the original pixels of the faces go along, sealed (random salt); strict: refuse
    a photo with a face that cannot be protected; sidecar: the record in `target`.riddle, the picture bare; quality:
    1 to 100, of JPEG and WebP.
    Raises PhotoError for a photo that cannot be read, for what `refuse` names, and for a target that cannot be
    written; ValueError for a bad passphrase.
    """
    source, target = Path(source), Path(target)
    picture_format(target)  # an ending that is not written is refused before any work
    own_salt = passwords.random_salt() if salt == "random" or keep_original else None
    key = passwords.derive_key(passphrase, model.preset.name, own_salt)
    picture = open_picture(source)
    faces, reports = _sorted_out(model, picture, "protected")
    refuse(source, reports, strict)
    protected = model.protect(picture.rgb, model.from_key(key), faces=faces, salt=own_salt)
    record, notes = protected.record, list(picture.notes)
    if keep_original:
        crops = [((x1, y1), picture.rgb.crop((x1, y1, x2, y2))) for x1, y1, x2, y2 in record.boxes()]
        record = replace(record, originals=seal(crops, key, own_salt))
    image = picture.with_pixels(protected.image)
    save_picture(image, target, record, sidecar, profile=picture.profile, quality=quality)
    if sidecar:
        notes.append(f"the record lies in {sidecar_path(target)}")
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

    `how` of the report: "original", the sealed pixels themselves; "codes", from the record's codes; "inversion",
    the faces found and inverted again, less exact, where the photo has no record. sidecar: default `source`.riddle
    where there is one. Raises PhotoError; RecordError, a PhotoError, for a record that is damaged or of another model.
    """
    source, target = Path(source), Path(target)
    lossless = picture_format(target) == "PNG"
    picture, record, _ = read_picture(source, sidecar)
    key = passwords.derive_key(passphrase, model.preset.name, record and record.salt)
    notes, faces, originals = list(picture.notes), None, None
    if record is None:
        faces, reports = _sorted_out(model, picture, "restored")
        refuse(source, reports)
        notes.append(INVERTED)
    else:
        reports = [FaceReport(tuple(box), "restored") for box in record.boxes()]
        originals = unseal(record, key, str(source))
    if originals is not None:
        if picture.rgb.size != record.size:
            cause = "it is {} x {} px, but its record is of {} x {}".format(*picture.rgb.size, *record.size)
            raise PhotoError(source, cause, "restore the file as it was saved")
        rgb, how = picture.rgb.copy(), "original"
        for corner, pixels in originals:
            rgb.paste(pixels, corner)
        if not lossless:
            notes.append(f"{target.suffix} compresses the original pixels again; restore to .png for the exact ones")
    else:
        if record is not None:
            record.must_fit(model.preset, model.weights_hash, picture.rgb.size, str(source))
            notes += [SEALED] if record.originals else []
        restored = model.restore(picture.rgb, model.from_key(key), record=record, faces=faces)
        rgb, how = restored.image, restored.source
    save_picture(picture.with_pixels(rgb), target, profile=picture.profile, quality=quality)
    return FileReport(source, target, reports, how, notes)


# Sealed originals


def _cipher(key: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=b"riddle original v1").derive(key))


def seal(crops: list[Crop], key: bytes, salt: bytes) -> tuple[bytes, ...]:
    """Seal crops; key: of the passphrase, 32 bytes; salt: the file's, 16 bytes."""
    cipher, sealed = _cipher(key), []
    for number, (corner, pixels) in enumerate(crops):
        out = io.BytesIO()
        pixels.save(out, "PNG")
        nonce, plain = secrets.token_bytes(_NONCE), _CORNER.pack(*corner) + out.getvalue()
        sealed.append(nonce + cipher.encrypt(nonce, plain, salt + struct.pack("<I", number)))
    return tuple(sealed)


def unseal(record: Record, key: bytes, name: str = "the picture") -> list[Crop] | None:
    """The original crops; None with a wrong key, or where the record has none.

    Raises PhotoError for a sealed crop that is authentic and yet no picture.
    """
    if not record.originals or record.salt is None:
        return None
    cipher, crops = _cipher(key), []
    for number, sealed in enumerate(record.originals):
        try:
            plain = cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], record.salt + struct.pack("<I", number))
        except (InvalidTag, ValueError):
            return None
        if len(plain) < _CORNER.size:
            raise PhotoError(name, "a sealed original is empty", "protect the photo again")
        crops.append((_CORNER.unpack_from(plain), open_picture(plain[_CORNER.size :], name).rgb))
    return crops
