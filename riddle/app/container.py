"""The protected file: a picture that any viewer opens, and the record that restores it.

    photo.jpg           a PNG, JPEG or WebP; its XMP block carries the record
    photo.jpg.riddle    or, where metadata would be stripped on the way, the same record in a file of its own

A record may also carry the original pixels, sealed. A sealed original is

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
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from PIL import Image

from riddle.images import PhotoError, Picture, encode, open_picture, read_file, write_file
from riddle.record import MAX_RECORD, Record, find_record, packet

SIDECAR = ".riddle"  # added to the picture's whole name
Crop = tuple[tuple[int, int], Image.Image]  # corner x, y in the photo; pixels
_NONCE, _CORNER = 12, struct.Struct("<II")


def sidecar_path(picture: str | Path) -> Path:
    """Where a picture's sidecar lies: photo.jpg -> photo.jpg.riddle."""
    return Path(f"{picture}{SIDECAR}")


def read_sidecar(path: str | Path) -> Record:
    """The record in a photo's sidecar. Raises PhotoError when it cannot be read, RecordError when it is damaged."""
    return Record.from_bytes(read_file(path, MAX_RECORD), str(path))


def read(path: str | Path, sidecar: str | Path | None = None) -> tuple[Picture, Record | None, str]:
    """A picture, its record, and where that is: in the "sidecar" when one is named, else in the "metadata", else in the
    sidecar beside it; None and "" without one.

    Raises PhotoError when a file cannot be read, RecordError when the record is damaged.
    """
    picture = open_picture(path)
    record = find_record(picture) if sidecar is None else read_sidecar(sidecar)
    if record is not None:
        return picture, record, "metadata" if sidecar is None else "sidecar"
    if sidecar_path(path).is_file():
        return picture, read_sidecar(sidecar_path(path)), "sidecar"
    return picture, None, ""


def write(target: str | Path, image: Image.Image, record: Record, sidecar: bool = False, **options: Any) -> None:
    """Write a protected picture, and its sidecar when asked; each whole or not at all, the sidecar first.

    options: of `riddle.images.encode`, whose errors it raises; RecordError for a record of more than MAX_RECORD bytes.
    """
    block = packet(record, target)  # refuses a record that is too large, for a sidecar too: `read` would
    data = encode(image, target, packet=b"" if sidecar else block, **options)
    if sidecar:
        write_file(sidecar_path(target), record.to_bytes())
    write_file(target, data)


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
