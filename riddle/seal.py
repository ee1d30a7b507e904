"""The sealed record of a protected file: what depends on the faces is encrypted, and nobody can change it unseen.

Version 4, as bytes; integers little-endian, unsigned:

    6   "RIDDLE"
    2   version: 4
    4   n, the header's length
    n   header, JSON in UTF-8: kind, "photo" or "clip"; preset; weights, the sha256 of generator and encryptor; size of
        the picture, [width, height]; salt, hex
    12  nonce
    .   AES-256-GCM of: 8, the content's length; the content (riddle.record, riddle.app.cliprecord); zeros up to one of
        few sizes (Padmé: Nikitin et al., 2019, "Reducing Metadata Leakage from Encrypted Files"). All before the nonce
        is authenticated with it.
    8   the first bytes of the SHA-256 of all before, which tell damage from a wrong passphrase

The key is HKDF-SHA256 (RFC 5869) of the file's secret, Argon2id of the passphrase under the file's own random salt. A
guess can be tested on the seal, and costs one Argon2id. Versions 1 to 3 were not sealed and are not read any more.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
import secrets
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from riddle.images import PhotoError
from riddle.passwords import SALT_BYTES, subkey
from riddle.presets import Preset

MAGIC, VERSION = b"RIDDLE", 4
KINDS = ("photo", "clip")
AGAIN = "restore from the file that protect saved"
MAX_HEADER = 1 << 12
_OLD_CLIPS = {b"RIDC": 2, b"PK\3\4": 3}  # how clips' records of these versions began
_HEAD, _LENGTH, _NONCE, _CHECK = struct.Struct("<6sHI"), struct.Struct("<Q"), 12, 8


class RecordError(PhotoError):
    """The record of a protected file is damaged, or belongs to another model or picture."""


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """Any error inside the block becomes a RecordError, with the file's name: bytes that nobody vouches for make
    numpy, zipfile, json and base64 raise errors of many kinds."""
    try:
        yield
    except RecordError:
        raise
    except Exception as e:
        raise RecordError(name, f"its record is damaged ({e})", AGAIN) from e


@dataclass(frozen=True)
class Sealed:
    """A record as a file carries it: what everybody can read, and the ciphertext."""

    kind: str
    preset: str
    weights: str  # sha256 of generator and encryptor, hex
    size: tuple[int, int]  # width, height of the picture, px
    salt: bytes  # of the passphrase
    data: bytes = field(repr=False)  # all of it, as the module's description has it

    def open(self, secret: bytes) -> bytes | None:
        """The content; None with the secret of another passphrase. secret: 32 bytes (riddle.passwords)."""
        start = _HEAD.size + _HEAD.unpack_from(self.data)[2]
        nonce, ciphertext = self.data[start : start + _NONCE], self.data[start + _NONCE : -_CHECK]
        try:
            plain = _cipher(secret).decrypt(nonce, ciphertext, self.data[:start])
        except InvalidTag:
            return None
        return plain[_LENGTH.size : _LENGTH.size + _LENGTH.unpack_from(plain)[0]]

    def must_fit(self, preset: Preset, weights: str, size: tuple[int, int], name: str | Path) -> None:
        """Raises RecordError, with the file's name, unless a model of `preset` and `weights` (sha256, hex) can restore
        a picture of `size` (width, height) by this record."""
        if self.preset != preset.name:
            cause = f"it was protected by preset {self.preset!r}, this model is {preset.name!r}"
            raise RecordError(name, cause, f"load that one: riddle.load({self.preset!r}), or --preset {self.preset}")
        if self.weights != weights:
            cause = f"it was protected with other weights ({self.weights[:12]}, not {weights[:12]})"
            raise RecordError(name, cause, "load the release or the folder of weights that protected it")
        if self.size != size:
            cause = "it is {} x {} px, but its record is of {} x {}".format(*size, *self.size)
            raise RecordError(name, cause, "restore the file as it was saved")

    @property
    def text(self) -> str:
        """The bytes in base64, as metadata carry them."""
        return base64.b64encode(self.data).decode()

    @classmethod
    def from_text(cls, text: bytes, name: str | Path, kind: str) -> Sealed:
        """A sealed record in base64. Raises RecordError as `from_bytes` does."""
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as e:
            raise RecordError(name, f"its record is damaged (no base64: {e})", AGAIN) from e
        return cls.from_bytes(data, name, kind)

    @classmethod
    def from_bytes(cls, data: bytes, name: str | Path, kind: str) -> Sealed:
        """A sealed record in bytes. Raises RecordError, with the file's name, when it is damaged, of another kind of
        file, too old or too new."""
        with reading(name):
            if old := _OLD_CLIPS.get(bytes(data[:4])):
                _check_version(old, b"", name)
            magic, version, length = _HEAD.unpack_from(data)
            if magic != MAGIC:
                raise ValueError("it does not begin as a record does")
            _check_version(version, data[_HEAD.size : _HEAD.size + min(length, MAX_HEADER)], name)
            if hashlib.sha256(data[:-_CHECK]).digest()[:_CHECK] != data[-_CHECK:]:
                raise ValueError("the check sum differs")
            if length > MAX_HEADER or _HEAD.size + length + _NONCE + _LENGTH.size + 16 + _CHECK > len(data):
                raise ValueError("it is shorter than it may be")
            header = json.loads(data[_HEAD.size : _HEAD.size + length].decode())
            made = cls(**{k: header[k] for k in ("kind", "preset", "weights")}, size=tuple(header["size"]),
                       salt=bytes.fromhex(header["salt"]), data=bytes(data))  # fmt: skip
            made._check(kind)
            return made

    def _check(self, kind: str) -> None:
        """Raises ValueError or TypeError for a header that no program of ours writes."""
        if self.kind != kind:
            raise ValueError(f"it is the record of a {self.kind}" if self.kind in KINDS else "of no kind of file")
        names = isinstance(self.preset, str) and len(self.preset) <= 64 and isinstance(self.weights, str)
        if not names or len(self.weights) != 64 or len(self.salt) != SALT_BYTES:
            raise ValueError("preset, weights or salt are none")
        if len(self.size) != 2 or not all(type(v) is int and 0 < v < 1 << 31 for v in self.size):
            raise ValueError("the size is none of a picture")


def seal(
    content: bytes, secret: bytes, kind: str, preset: str, weights: str, size: tuple[int, int], salt: bytes
) -> Sealed:
    """Seal a record's content; secret: 32 bytes of the passphrase under `salt`; the rest as `Sealed` has it."""
    header = {"kind": kind, "preset": preset, "weights": weights, "size": list(size), "salt": salt.hex()}
    text = json.dumps(header, separators=(",", ":")).encode()
    clear = _HEAD.pack(MAGIC, VERSION, len(text)) + text
    plain = _LENGTH.pack(len(content)) + content
    nonce = secrets.token_bytes(_NONCE)
    body = clear + nonce + _cipher(secret).encrypt(nonce, plain.ljust(padded(len(plain)), b"\0"), clear)
    return Sealed(kind, preset, weights, tuple(size), salt, body + hashlib.sha256(body).digest()[:_CHECK])


def arrays(content: bytes, most: int, optional: Sequence[str] = (), **types: str) -> list[np.ndarray | None]:
    """The arrays of a record's content, a numpy .npz file, in the order of their names; types: what each is safely cast
    to; optional: names of those that are None where they are not there. Raises errors of many kinds where it is none or
    has more than `most` bytes unpacked: see `reading`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        if sum(member.file_size for member in stored.zip.infolist()) > most:
            raise ValueError(f"it is larger than {most >> 20} MB")
        absent = set(optional) - set(stored.files)
        cast = {name: stored[name].astype(kind, casting="safe") for name, kind in types.items() if name not in absent}
        return [cast.get(name) for name in types]


def padded(length: int) -> int:
    """The size up to which `length` bytes are filled: at most 12 % more (Padmé)."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    last = (1 << (exponent - exponent.bit_length())) - 1
    return (length + last) & ~last


def _cipher(secret: bytes) -> AESGCM:
    return AESGCM(subkey(secret, "record"))


def _check_version(version: int, header: bytes, name: str | Path) -> None:
    if version > VERSION:
        cause = f"its record is of version {version}, this program reads version {VERSION}"
        raise RecordError(name, cause, "update riddle")
    if version < VERSION:
        found = re.search(rb'"preset": *"([\w-]{1,64})"', header)  # of many faces it is cut off
        preset = found[1].decode() if found else "unknown"
        cause = f"this file was protected by an older riddle (record version {version}, preset {preset})"
        raise RecordError(name, cause, "only that one restores it: take the original, and protect it again")
