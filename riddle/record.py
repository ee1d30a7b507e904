"""What a protected photo carries besides its pixels: the sealed record, in its XMP packet or in a file beside it.

The seal's content (riddle.seal) is a numpy .npz file of these arrays:

    codes      (k, L, D) float16, the encrypted codes in z (`models.codes`), where every component counts alike
    matrices   (k, 2, 3) float64, each crop's unit square -> the photo's pixels
    look       (8, 8) uint8, the protected photo in grey, by which the record of another photo is refused
    originals  uint8, PNG files of the faces' own squares, one behind the other, or none
    lengths    (k,) int64, theirs
    masks      (k, M, M) uint8, 0 to 255, by which the faces were pasted; older files lack them
    turns      (k,) uint8, which of its keys each face has (`passwords.face_passwords`); 0 in older files
    shown      (k, L, D) float16, the codes of the faces that were pasted, in z, where these are not `codes` itself in
               the photo's light (`Riddle.settled`)

In XMP the sealed record is one property, `riddle:record`, in base64.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from riddle.faces.alignment import bounded, matrix, moved, place
from riddle.faces.blending import box
from riddle.faces.detection import Face, FaceNotFoundError
from riddle.faces.registration import SAME, likeness, register
from riddle.images import XMP, Picture, encode, open_picture, read_file, write_file
from riddle.presets import Preset
from riddle.seal import AGAIN, RecordError, Sealed, arrays, reading, seal

SIDECAR = ".riddle"  # added to the picture's whole name
MAX_RECORD = 40 << 20  # bytes; Pillow reads at most 64 MB of text from a PNG
LOOK, ALIKE = 8, 0.5  # px of `look`; the correlation of two of one photo, edited in between, is more
OTHER = "its record is that of another photo"
SURE = 0.9  # the same of photos that are surely one; of portraits framed alike at most 0.86
_PACKET = XMP.format('xmlns:riddle="urn:riddle-faces:protected/"><riddle:record>{}</riddle:record>')
# An editor may turn the element into an attribute.
_PROPERTY = re.compile(rb"riddle:record\s*(?:>|=\s*[\"'])([A-Za-z0-9+/=\s]*)")


@dataclass(frozen=True)
class Record:
    """Encrypted codes and their places."""

    preset: str
    weights: str  # sha256 of generator and encryptor, hex
    size: tuple[int, int]  # width, height of the photo, px
    salt: bytes  # of the passphrase
    matrices: np.ndarray  # (k, 2, 3): each crop's unit square -> photo pixels
    codes: torch.Tensor  # (k, L, D) in z, encrypted, exact in float16
    look: np.ndarray  # (8, 8) uint8
    originals: tuple[bytes, ...] = ()  # PNG files; none, or one a face
    masks: np.ndarray | None = None  # (k, M, M) in [0, 1], by which the faces were pasted, rounded to 1/255
    turns: Sequence[int] = ()  # k, which of its keys each face has; default: 0
    shown: torch.Tensor | None = None  # (k, L, D) in z, of the faces that were pasted, exact in float16

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns) or (0,) * len(self.codes))

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Where each face's square lies in the photo: x1, y1, x2, y2, whole pixels, x2 and y2 beyond the last."""
        return [box(m, self.size) for m in self.matrices]

    def seal(self, secret: bytes) -> Sealed:
        """The record as a file carries it; secret: 32 bytes, of the passphrase under `salt`."""
        out, halves = io.BytesIO(), {"codes": self.codes, "shown": self.shown}
        more = {name: z.cpu().numpy().astype("<f2") for name, z in halves.items() if z is not None}
        more |= {} if self.masks is None else {"masks": np.rint(255 * self.masks).astype("u1")}
        np.savez(
            out, matrices=np.asarray(self.matrices, "<f8"), look=self.look,
            originals=np.frombuffer(b"".join(self.originals), np.uint8), turns=np.array(self.turns, "u1"),
            lengths=np.array([len(png) for png in self.originals], "<i8"), **more,
        )  # fmt: skip
        return seal(out.getvalue(), secret, "photo", self.preset, self.weights, self.size, self.salt)

    @classmethod
    def open(cls, sealed: Sealed, secret: bytes, name: str | Path) -> Record | None:
        """The record within; None with the secret of another passphrase. Raises RecordError, with the file's name, when
        it is authentic and yet none."""
        content = sealed.open(secret)
        if content is None:
            return None
        with reading(name):
            codes, matrices, look, png, lengths, masks, turns, shown = arrays(
                content, MAX_RECORD, ["masks", "turns", "shown"], codes="f4", matrices="f8", look="u1", originals="u1",
                lengths="i8", masks="u1", turns="u1", shown="f4",
            )  # fmt: skip
            k = len(codes)
            if codes.ndim != 3 or not k or not np.isfinite(codes).all():
                raise ValueError(f"codes of shape {codes.shape}")
            if matrices.shape != (k, 2, 3) or not _squares(matrices, *sealed.size):
                raise ValueError("a face's place is no square in the photo")
            if look.shape != (LOOK, LOOK) or lengths.shape not in ((0,), (k,)) or lengths.sum() != png.size:
                raise ValueError("not every face has its original")
            if masks is not None:
                if masks.shape != (k, *masks.shape[-1:] * 2) or not masks.size:
                    raise ValueError(f"masks of shape {masks.shape}")
                masks = masks / np.float32(255)
            if turns is not None and turns.shape != (k,):
                raise ValueError(f"turns of shape {turns.shape}")
            if shown is not None and (shown.shape != codes.shape or not np.isfinite(shown).all()):
                raise ValueError(f"shown codes of shape {shown.shape}")
            ends = np.cumsum([0, *lengths])
            originals = tuple(png[a:b].tobytes() for a, b in zip(ends, ends[1:], strict=False))
            codes, shown = (None if x is None else torch.from_numpy(x) for x in (codes, shown))
            own = sealed.preset, sealed.weights, sealed.size, sealed.salt
            turns = () if turns is None else turns.tolist()
            return cls(*own, matrices, codes, look, originals, masks, turns, shown)

    @classmethod
    def fitting(cls, sealed: Sealed, secret: bytes, picture: Picture, preset: Preset, weights: str) -> Record | None:
        """`open` for a picture and a model of `preset` and `weights` (sha256, hex). Raises RecordError, with the
        picture's name, also where they do not fit; the originals need no weights, so they outlive them. The picture may
        be resized or cropped since: see `places_in`."""
        record = cls.open(sealed, secret, picture.name)
        exact = record is not None and record.originals
        sealed.must_fit(preset, sealed.weights if exact else weights, sealed.size, picture.name)
        if record is not None:
            record.must_fit(preset, picture.rgb, picture.name)
        return record

    def places_in(
        self, picture: Picture, drawn: Callable[[], torch.Tensor], found: Callable[[], Sequence[Face]]
    ) -> np.ndarray:
        """The faces' places (k, 2, 3) in the protected picture, which may be resized or cropped since.

        drawn: gives the faces as they were pasted, (k, 3, R, R); found: those that are found in the picture, or raises
        FaceNotFoundError. Raises RecordError, with the picture's name, where none of them is in a cropped one, and
        where a picture of the same size shows others.
        """
        if picture.rgb.size == self.size:
            if self.similar(picture.rgb) < SURE and likeness(picture.rgb, self.matrices, drawn(), self.masks) < SAME:
                raise RecordError(picture.name, OTHER, AGAIN)
            return self.matrices
        faces = drawn()
        (w, h), (now_w, now_h) = self.size, picture.rgb.size
        if abs(now_w / w * h - now_h) < 1 or abs(now_h / h * w - now_w) < 1:
            scale = now_w / w
            resized = moved(self.matrices, scale, np.full(2, (scale - 1) / 2))
            if likeness(picture.rgb, resized, faces, self.masks) >= SAME:  # else it was cropped alike on both sides
                return resized
        places = None
        with suppress(FaceNotFoundError):
            places = register(picture.rgb, self.size, self.matrices, faces, found(), self.masks)
        if places is None:
            sizes = "it is {} x {} px, but its record is of {} x {}".format(*picture.rgb.size, *self.size)
            raise RecordError(picture.name, f"{sizes} and none of its faces is found", AGAIN)
        return places

    def uncovered(self, picture: Picture, places: np.ndarray) -> Image.Image:
        """The picture with the originals in these places (k, 2, 3), RGB."""
        rgb = picture.rgb.copy()
        scale = np.hypot(*places[0, :, 0]) / np.hypot(*self.matrices[0, :, 0])
        shift = (places - scale * self.matrices)[0, :, 2] + (1 - scale) / 2  # of edges, not of pixels' centres
        for (x1, y1, x2, y2), png in zip(self.boxes(), self.originals, strict=True):
            ends = np.round(np.array([(x1, y1), (x2, y2)]) * scale + shift, 6)
            low, high = np.ceil(ends[0]).clip(0), np.floor(ends[1]).clip(None, rgb.size)
            if (low < high).all():
                seen = (np.concatenate([low, high]) - np.tile(shift, 2)) / scale - np.tile([x1, y1], 2)
                seen = np.clip(seen, 0, np.tile([x2 - x1, y2 - y1], 2))
                size, original = tuple((high - low).astype(int).tolist()), open_picture(png, picture.name).rgb
                shown = original.resize(size, Image.Resampling.LANCZOS, box=tuple(seen))
                rgb.paste(shown, tuple(low.astype(int).tolist()))
        return rgb

    def must_fit(self, preset: Preset, photo: Image.Image, name: str | Path) -> None:
        """Raises RecordError, with the file's name, for a photo of the record's size that does not look like the one of
        this record, and for codes that are none of `preset`; `places_in` sees to other sizes."""
        if self.codes.shape[1:] != (preset.n_latent, preset.style_dim):
            raise RecordError(name, f"its codes are {tuple(self.codes.shape[1:])}, none of {preset.name!r}", AGAIN)
        if photo.size == self.size and self.similar(photo) < ALIKE:
            raise RecordError(name, OTHER, AGAIN)

    def similar(self, photo: Image.Image) -> float:
        """The correlation of a photo with the one of this record, in 8 x 8 grey; 1 where one of them is even."""
        looks = np.stack([look_of(photo), self.look]).reshape(2, -1).astype(float)
        return float(np.corrcoef(looks)[0, 1]) if looks.std(1).min() > 2 else 1.0


def look_of(photo: Image.Image) -> np.ndarray:
    """A photo in grey, (8, 8) uint8."""
    return np.asarray(photo.convert("L").resize((LOOK, LOOK), Image.Resampling.BOX))


@np.errstate(all="ignore")
def _squares(matrices: np.ndarray, width: int, height: int) -> bool:
    """Whether all are squares about the size of a face in the photo (`bounded`)."""
    places = place(matrices).astype(np.float32)
    near = 1e-3 * np.hypot(*places[:, 2:].T).max()
    return np.array_equal(places, bounded(places, width, height)) and np.allclose(matrix(places), matrices, atol=near)


# ---- in a picture


def packet(record: Sealed, name: str | Path) -> bytes:
    """A sealed record as an XMP packet. Raises RecordError when it is too large for a picture's metadata."""
    if len(record.data) > MAX_RECORD:
        cause = f"its record has {len(record.data) >> 20} MB, and a picture carries {MAX_RECORD >> 20}"
        raise RecordError(name, cause, "keep fewer originals, or reduce the photo")
    return _PACKET.format(record.text).encode()


def find_record(picture: Picture) -> Sealed | None:
    """The record in a picture's XMP packet; None without one. Raises RecordError for a damaged one."""
    match = _PROPERTY.search(picture.xmp)
    if match is None:
        return None
    text = b"".join(match[1].split())
    if len(text) > MAX_RECORD * 4 // 3 + 4:
        raise RecordError(picture.name, f"its record is damaged (larger than {MAX_RECORD >> 20} MB)", AGAIN)
    return Sealed.from_text(text, picture.name, "photo")


def encoded(
    image: Image.Image, path: str | Path, record: Sealed | None = None, sidecar: bool = False, **options: Any
) -> bytes:
    """The file of a PNG, JPEG or WebP, by the path's ending, with its record when one is given.

    sidecar: the record will lie beside the picture, not in it; options: of `riddle.images.encode`. Nothing of the
    original's metadata is written. Raises PhotoError for another ending, RecordError for a record of more than
    MAX_RECORD bytes.
    """
    block = packet(record, path) if record is not None else b""  # refuses what is too large, for a sidecar too
    return encode(image, path, packet=b"" if sidecar else block, **options)


def save_picture(image: Image.Image, path: str | Path, record: Sealed | None = None, **options: Any) -> Path:
    """Write the file that `encoded` gives, whole or not at all. Raises as it does; PhotoError for a missing folder."""
    return write_file(path, encoded(image, path, record, **options))


# ---- beside a picture


def sidecar_path(picture: str | Path) -> Path:
    """Where a picture's sidecar lies: photo.jpg -> photo.jpg.riddle."""
    return Path(f"{picture}{SIDECAR}")


def read_sidecar(path: str | Path, kind: str = "photo", most: int | None = None) -> Sealed:
    """The record in a sidecar of at most `most` bytes, default MAX_RECORD. Raises PhotoError when it cannot be read,
    RecordError when it is damaged or not of this kind of file."""
    return Sealed.from_bytes(read_file(path, most or MAX_RECORD), path, kind)


def read_picture(path: str | Path, sidecar: str | Path | None = None) -> tuple[Picture, Sealed | None, str]:
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
