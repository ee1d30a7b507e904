"""The record in a protected clip: the place of each face in each frame, and its encrypted codes.

The sealed record (riddle.seal) is in base64 in the tag `riddle` of the clip's metadata or, with more than MAX_INSIDE
bytes, the file `clip.mp4.riddle` beside the clip. Its size is that of the upright frames. Its content is a numpy .npz
file of these arrays:

    every    int64, the frames from one code to the next
    times    (N,) float64, each frame's, in seconds since the first
    tracks   (T, 3) int64: a face's number, its first frame, the count of its frames, which are consecutive
    places   (M, 4) float32, face by face, one row per frame: centre x and y of the face's square, and the vector of its
             upper side, in px of the upright frame
    turns    (T,) uint8, which of its keys each face has (`passwords.face_passwords`); 0 in older files
    shift    (T, L, D) float16, in z, what was added to each face's codes when it was painted; 0 in older files
    codes    (K, L, D) float16, in z, face by face, those of the frames j * every, from the last one at or before a
             face's first frame to the first one after its last; between them a code is the mean of the two, by distance
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from riddle.app.clip import TAG, open_clip
from riddle.faces.alignment import bounded
from riddle.record import SIDECAR, read_sidecar, sidecar_path
from riddle.seal import Sealed, arrays, reading, seal

MAX_INSIDE, MAX_RECORD = 4 << 20, 2 << 30  # bytes in the metadata; unpacked
MAX_EVERY, MAX_SIDE = 1 << 10, 1 << 20
APART = 0.002  # s by which a frame's time may differ from the record's: Matroska rounds to 0.001


@dataclass(frozen=True)
class ClipRecord:
    """The record's content; see the module's description."""

    size: tuple[int, int]  # width, height of the upright frames, px
    every: int
    times: np.ndarray
    tracks: np.ndarray
    places: np.ndarray
    codes: torch.Tensor  # in z; float32, exact in float16
    turns: Sequence[int] = ()  # default: 0
    shift: torch.Tensor | None = None  # default: 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns) or (0,) * len(self.tracks))

    def frame(self, seconds: float) -> int | None:
        """The number of the frame shown `seconds` after the first one; None if there is none."""
        i = int(np.abs(self.times - seconds).argmin())
        return i if abs(self.times[i] - seconds) <= APART else None

    def faces(self, n: int | None) -> list[tuple[int, np.ndarray, torch.Tensor]]:
        """The faces in frame n, the largest first: track, place (4,), code (L, D) in z; n None: no faces."""
        found, row, code = [], 0, 0
        for i, (track, first, count) in enumerate(self.tracks.tolist()):
            if n is not None and first <= n < first + count:
                k, share = code + n // self.every - first // self.every, n % self.every / self.every
                between = self.codes[k] + share * (self.codes[k + 1] - self.codes[k])
                between = between if self.shift is None else between + self.shift[i]
                found.append((track, self.places[row + n - first], between))
            row, code = row + count, code + code_count(first, count, self.every)
        return sorted(found, key=lambda face: -float(np.hypot(*face[1][2:])))

    def to_bytes(self) -> bytes:
        """The .npz file."""
        out, more = io.BytesIO(), {} if self.shift is None else {"shift": self.shift.numpy().astype("<f2")}
        np.savez_compressed(
            out, every=self.every, times=self.times, tracks=self.tracks, places=self.places,
            codes=self.codes.numpy().astype("<f2"), turns=np.array(self.turns, "u1"),
            **more,
        )  # fmt: skip
        return out.getvalue()

    def seal(self, secret: bytes, salt: bytes, preset: str, weights: str) -> Sealed:
        """The record as a clip carries it; secret: 32 bytes, of the passphrase under `salt`; preset, weights: of the
        model."""
        return seal(self.to_bytes(), secret, "clip", preset, weights, self.size, salt)

    @classmethod
    def open(cls, sealed: Sealed, secret: bytes, name: str | Path) -> ClipRecord | None:
        """Open a sealed record; None if the secret is not its own. Raises RecordError as `from_bytes` does."""
        content = sealed.open(secret)
        return None if content is None else cls.from_bytes(content, name, sealed.size)

    @classmethod
    def from_bytes(cls, content: bytes, name: str | Path, size: tuple[int, int]) -> ClipRecord:
        """The record in a .npz file. Raises RecordError, with the clip's name, when it is damaged or too large."""
        with reading(name):
            types = {"every": "i8", "times": "f8", "tracks": "i8", "places": "f4", "codes": "f4", "turns": "u1"}
            types |= {"shift": "f4"}
            every, times, tracks, places, codes, turns, shift = arrays(content, MAX_RECORD, ["turns", "shift"], **types)
            codes, shift = (None if x is None else torch.from_numpy(x) for x in (codes, shift))
            turns = () if turns is None else turns.tolist()
            record = cls(size, int(every), times, tracks, places, codes, turns, shift)
            record._check()
            return record

    @np.errstate(all="ignore")
    def _check(self) -> None:
        """Raise ValueError or TypeError for impossible values: a face of a wrong size would need a huge picture."""

        def must(holds: bool, otherwise: str) -> None:
            if not holds:
                raise ValueError(otherwise)

        must(0 < self.every <= MAX_EVERY and max(self.size) <= MAX_SIDE, "size or steps are no numbers of a clip")
        must(self.times.ndim == 1 and len(self.times) and np.isfinite(self.times).all(), "times that are none")
        must(self.times[0] == 0 and (np.diff(self.times) > 0).all(), "times that do not increase")
        must(len(self.tracks) and self.tracks.shape == (len(self.tracks), 3), f"faces of shape {self.tracks.shape}")
        _, first, count = self.tracks.T
        inside = (first >= 0).all() and (count > 0).all() and (first <= len(self.times) - count).all()
        must(inside, "a face in frames outside the clip")
        must(self.places.shape == (count.sum(), 4), f"places of shape {self.places.shape}")
        square = np.array_equal(self.places, bounded(self.places, *self.size))  # nor is a place that is not finite
        must(square, "a face's place is no square in the frame")
        must(len(self.turns) == len(self.tracks), f"{len(self.turns)} turns")
        number = code_count(first, count, self.every).sum()
        must(self.codes.ndim == 3 and len(self.codes) == number, f"codes of shape {tuple(self.codes.shape)}")
        must(self.codes.isfinite().all(), "codes that are not finite")
        if self.shift is not None:
            must(self.shift.shape == (len(self.tracks), *self.codes.shape[1:]), "a shift for other faces")
            must(self.shift.isfinite().all(), "a shift that is not finite")


def code_count(first: int | np.ndarray, count: int | np.ndarray, every: int) -> int | np.ndarray:
    """The number of codes of a face in `count` frames."""
    return (first + count - 1) // every - first // every + 2


def read_tag(path: str | Path) -> str:
    """The text that `join` put into a clip's metadata; "" without one. Raises PhotoError as `open_clip` does."""
    with open_clip(path) as container:
        return next((value for key, value in container.metadata.items() if key.lower() == TAG), "")


def read(path: str | Path) -> tuple[Sealed | None, str]:
    """A sealed record and where it is: "metadata" or "sidecar"; None and "" without one. path: a clip, or a sidecar.

    Raises PhotoError when the clip cannot be read, RecordError when what it carries is no record.
    """
    beside = Path(path)
    if beside.suffix != SIDECAR:
        if text := read_tag(path):
            return Sealed.from_text(text.encode(), path, "clip"), "metadata"
        beside = sidecar_path(path)
        if not beside.is_file():
            return None, ""
    return read_sidecar(beside, "clip", MAX_RECORD), "sidecar"
