"""What a protected photo carries besides its pixels: the record, in the picture's XMP packet or in a file beside it.

Version 3, as bytes; all integers little-endian, unsigned:

    6   "RIDDLE"
    2   version: 3
    4   n, the header's length
    n   header, JSON in UTF-8: preset; weights, the sha256 of generator and encryptor; size of the photo, [width,
        height]; code_shape, [L, D]; matrices, six numbers a face, row by row: crop's unit square -> photo's pixels;
        salt, hex, or null for the preset's public salt; originals, the length of each sealed original (or [])
    .   the encrypted codes in z (`models.codes`), where every component counts alike, float16, face by face: k x L x D
        x 2 bytes
    .   the sealed originals, one behind the other (riddle.app.photos says what is in them)
    8   the first bytes of the SHA-256 of all before

A reader ignores fields that it does not know; a change that it must not ignore is another version. Versions 1 and 2
have the same form, with codes in w of models that riddle no longer has. Nothing in the record opens a face without the
passphrase; all of it is public. In XMP the record is one property, `riddle:record`, in base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from riddle.faces.blending import box
from riddle.images import PhotoError, Picture, encode, open_picture, read_file, write_file
from riddle.presets import Preset

MAGIC, VERSION = b"RIDDLE", 3  # riddle 0.1 wrote version 1, riddle 0.2 version 2
SIDECAR = ".riddle"  # added to the picture's whole name
MAX_RECORD = 40 << 20  # bytes; Pillow reads at most 64 MB of text from a PNG
MAX_HEADER, MAX_FACES, MAX_SLOTS, MAX_WIDTH = 1 << 20, 2048, 64, 4096
AGAIN = "restore from the file that protect saved"
_HEAD, _CHECK = struct.Struct("<6sHI"), 8
_NAMESPACE = "urn:riddle-faces:protected/"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    f' xmlns:riddle="{_NAMESPACE}"><riddle:record>{{}}</riddle:record></rdf:Description></rdf:RDF></x:xmpmeta>'
    '<?xpacket end="r"?>'
)
# An editor may turn the element into an attribute.
_PROPERTY = re.compile(rb"riddle:record\s*(?:>|=\s*[\"'])([A-Za-z0-9+/=\s]*)")


class RecordError(PhotoError):
    """The record of a protected photo is damaged, or belongs to another model or picture."""


@dataclass(frozen=True)
class Record:
    """Encrypted codes and their places."""

    version = VERSION
    preset: str
    weights: str  # sha256 of generator and encryptor, hex
    size: tuple[int, int]  # width, height of the photo, px
    matrices: np.ndarray  # (k, 2, 3): each crop's unit square -> photo pixels
    codes: torch.Tensor  # (k, L, D) in z, encrypted, exact in float16
    salt: bytes | None = None  # of the passphrase; None: the preset's public one
    originals: tuple[bytes, ...] = ()  # sealed; none, or one a face

    def boxes(self) -> list[list[int]]:
        """Where each face's square lies in the photo: x1, y1, x2, y2, whole pixels, x2 and y2 beyond the last."""
        return [list(box(m, self.size)) for m in self.matrices]

    def must_fit(self, preset: Preset, weights: str, size: tuple[int, int], name: str) -> None:
        """Raises RecordError, with the file's name, unless a model of `preset` and `weights` (sha256, hex) can decrypt
        these codes for a picture of `size` (width, height)."""
        if self.preset != preset.name:
            cause = f"it was protected by preset {self.preset!r}, this model is {preset.name!r}"
            raise RecordError(name, cause, f"load that one: riddle.load({self.preset!r}), or --preset {self.preset}")
        if self.weights != weights:
            cause = f"it was protected with other weights ({self.weights[:12]}, not {weights[:12]})"
            raise RecordError(name, cause, "load the release or the folder of weights that protected it")
        if self.size != size:
            cause = "it is {} x {} px, but its record is of {} x {}".format(*size, *self.size)
            raise RecordError(name, cause, "restore the file as it was saved")
        if self.codes.shape[1:] != (preset.n_latent, preset.style_dim):
            cause = f"its codes are {tuple(self.codes.shape[1:])}, and preset {self.preset!r} has others"
            raise RecordError(name, cause, AGAIN)

    def to_bytes(self) -> bytes:
        """The record as the module's description has it."""
        header = {
            "preset": self.preset,
            "weights": self.weights,
            "size": list(self.size),
            "code_shape": list(self.codes.shape[1:]),
            "matrices": [[float(x) for x in m.ravel()] for m in self.matrices],
            "salt": None if self.salt is None else self.salt.hex(),
            "originals": [len(sealed) for sealed in self.originals],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        body = _HEAD.pack(MAGIC, VERSION, len(text)) + text
        body += self.codes.numpy().astype("<f2").tobytes() + b"".join(self.originals)
        return body + hashlib.sha256(body).digest()[:_CHECK]

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the picture") -> Record:
        """The record in bytes. Raises RecordError, with the file's name, when it is damaged, too large, too old or too
        new."""
        try:
            if len(data) < _HEAD.size + _CHECK:
                raise ValueError(f"{len(data)} bytes are too few for a record")
            magic, version, length = _HEAD.unpack_from(data)
            if magic != MAGIC:
                raise ValueError("it does not begin as a record does")
            _check_version(version, data[_HEAD.size : _HEAD.size + min(length, MAX_HEADER)], name)
            if hashlib.sha256(data[:-_CHECK]).digest()[:_CHECK] != data[-_CHECK:]:
                raise ValueError("the check sum differs")
            if length > MAX_HEADER or _HEAD.size + length > len(data):
                raise ValueError("the header is longer than it may be")
            header = json.loads(data[_HEAD.size : _HEAD.size + length].decode())
            return cls._checked(header, memoryview(data)[_HEAD.size + length : -_CHECK])
        except RecordError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, struct.error) as e:
            raise RecordError(name, f"its record is damaged ({e})", AGAIN) from e

    @classmethod
    def _checked(cls, header: dict, body: memoryview) -> Record:
        """The record of a header and what follows it. Raises ValueError, KeyError or TypeError."""
        preset, weights = header["preset"], header["weights"]
        if not (isinstance(preset, str) and len(preset) <= 64 and isinstance(weights, str) and len(weights) == 64):
            raise ValueError("preset or weights are no names")
        width, height = _whole(header["size"], 2, 1 << 31)
        slots, wide = _whole(header["code_shape"], 2, MAX_WIDTH)
        k = len(header["matrices"])
        if not 0 < k <= MAX_FACES or slots > MAX_SLOTS:
            raise ValueError(f"{k} faces of {slots} slots")
        matrices = np.array(header["matrices"], dtype=np.float64).reshape(k, 2, 3)
        _check_places(matrices, width, height)
        salt = None if header["salt"] is None else bytes.fromhex(header["salt"])
        if salt is not None and len(salt) != 16:
            raise ValueError("the salt has not 16 bytes")
        lengths = header["originals"]
        if lengths and len(lengths) != k:
            raise ValueError("not every face has its original")
        at = 2 * k * slots * wide
        ends = np.cumsum([at, *_whole(lengths, len(lengths), MAX_RECORD)]).tolist()
        if ends[-1] != len(body):
            raise ValueError(f"{len(body)} bytes behind the header, not {ends[-1]}")
        codes = np.frombuffer(body[:at], "<f2").astype(np.float32).reshape(k, slots, wide)
        if not np.isfinite(codes).all():
            raise ValueError("codes that are not finite")
        originals = tuple(bytes(body[a:b]) for a, b in zip(ends, ends[1:], strict=False))
        return cls(preset, weights, (width, height), matrices, torch.from_numpy(codes), salt, originals)


def _check_version(version: int, header: bytes, name: str | Path) -> None:
    if version > VERSION:
        cause = f"its record is of version {version}, this program reads version {VERSION}"
        raise RecordError(name, cause, "update riddle")
    if version < VERSION:
        try:
            preset = str(json.loads(header)["preset"])[:64]
        except (KeyError, TypeError, ValueError, RecursionError):
            preset = "unknown"
        model = f"an older model (version {version}, preset {preset})"
        cause = f"this file was protected with {model}, which this version of riddle no longer has"
        raise RecordError(name, cause, f"open it with riddle 0.{version}")


def _whole(values: list, n: int, most: int) -> list[int]:
    if len(values) != n or not all(type(v) is int and 0 < v <= most for v in values):
        raise ValueError(f"{n} whole numbers of 1 to {most} were expected")
    return values


@np.errstate(all="ignore")
def _check_places(matrices: np.ndarray, width: int, height: int) -> None:
    """Only squares about the size of a face in the photo: any other would ask for pictures of any size."""
    u, v, offset = matrices[..., 0], matrices[..., 1], matrices[..., 2]
    side = np.hypot(*u.T)
    square = np.allclose(v, np.stack([-u[:, 1], u[:, 0]], 1), atol=1e-3 * side.max(initial=0))
    centre = offset + (u + v) / 2
    inside = (centre >= -side[:, None]).all() and (centre <= np.array([width, height]) + side[:, None]).all()
    if not (np.isfinite(matrices).all() and square and inside and (side >= 1).all()):
        raise ValueError("a face's place is no square in the photo")
    if (side**2 > 4 * width * height).any():
        raise ValueError("a face is larger than the photo")


# ---- in a picture


def packet(record: Record, name: str | Path) -> bytes:
    """The record as an XMP packet. Raises RecordError when it is too large for a picture's metadata."""
    data = record.to_bytes()
    if len(data) > MAX_RECORD:
        cause = f"its record has {len(data) >> 20} MB, and a picture carries {MAX_RECORD >> 20}"
        raise RecordError(name, cause, "keep fewer originals, or reduce the photo")
    return _PACKET.format(base64.b64encode(data).decode()).encode()


def find_record(picture: Picture) -> Record | None:
    """The record in a picture's XMP packet; None without one. Raises RecordError for a damaged one."""
    match = _PROPERTY.search(picture.xmp)
    if match is None:
        return None
    text = b"".join(match[1].split())
    if len(text) > MAX_RECORD * 4 // 3 + 4:
        raise RecordError(picture.name, f"its record is damaged (larger than {MAX_RECORD >> 20} MB)", AGAIN)
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise RecordError(picture.name, f"its record is damaged (no base64: {e})", AGAIN) from e
    return Record.from_bytes(data, picture.name)


def save_picture(
    image: Image.Image, path: str | Path, record: Record | None = None, sidecar: bool = False, **options: Any
) -> Path:
    """Write a PNG, JPEG or WebP, with its record when one is given; each file whole or not at all, the sidecar first.

    sidecar: the record beside the picture, not in it; options: of `riddle.images.encode`. Nothing of the original's
    metadata is written. Raises PhotoError for another ending or a missing folder, RecordError for a record of more than
    MAX_RECORD bytes.
    """
    block = packet(record, path) if record is not None else b""  # refuses what is too large, for a sidecar too
    data = encode(image, path, packet=b"" if sidecar else block, **options)
    if sidecar:
        write_file(sidecar_path(path), record.to_bytes())
    return write_file(path, data)


# ---- beside a picture


def sidecar_path(picture: str | Path) -> Path:
    """Where a picture's sidecar lies: photo.jpg -> photo.jpg.riddle."""
    return Path(f"{picture}{SIDECAR}")


def read_sidecar(path: str | Path) -> Record:
    """The record in a photo's sidecar. Raises PhotoError when it cannot be read, RecordError when it is damaged."""
    return Record.from_bytes(read_file(path, MAX_RECORD), str(path))


def read_picture(path: str | Path, sidecar: str | Path | None = None) -> tuple[Picture, Record | None, str]:
    """A picture, its record, and where that is: in the "sidecar" when one is named, else in the "metadata", else in the
    sidecar beside it; None and "" without one.

    Raises PhotoError when a file cannot be read, RecordError when the record is damaged.
    """
    picture = open_picture(path)
    if sidecar is None and (record := find_record(picture)) is not None:
        return picture, record, "metadata"
    if sidecar is None and not sidecar_path(path).is_file():
        return picture, None, ""
    return picture, read_sidecar(sidecar or sidecar_path(path)), "sidecar"
