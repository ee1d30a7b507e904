"""What a protected clip carries besides its pictures: the record, in the file's metadata or in a file beside it.

    clip.mp4            its tag `riddle` holds the record in base64, as long as that has at most MAX_INSIDE bytes
    clip.mp4.riddle     else the same bytes in a file of its own

Version 2, as bytes; all integers little-endian, unsigned where nothing else is said:

    6   "RIDCLP"
    2   version: 2
    4   n, the header's length
    n   header, JSON in UTF-8: preset; weights, the sha256 of generator and encryptor; size of the upright frames,
        [width, height]; code_shape, [L, D]; time_base, [numerator, denominator] of seconds; every, frames from one
        code to the next; salt, hex, or null for the preset's public salt; boxes, x1, y1, x2, y2 of each track where it
        is first seen (at most MAX_BOXES of them); frames, how many
    8   the first bytes of the SHA-256 of all before
    then blocks, each
    4   m, its length; 0 ends the record
    m   4 first frame's number, 4 frames f, 4 runs r; f times 8 (signed) the frame's time since the first frame of the
        clip, in time_base; r times 16: track, first frame, frames c, codes k; then run by run c x 4 float32, the place
        (centre x and y, the vector of the square's upper side), and k x L x D float16, the encrypted codes
    8   the first bytes of the SHA-256 of the block's number (4) and its m bytes

A run is one face in consecutive frames. Its codes belong to the frames j * every, from the last one at or before its
first frame on; between them a code is the weighted mean of its neighbours. So a code every 0.2 s is kept, not one a
frame, and what is drawn is what the record says to the bit. A reader holds one block at a time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from riddle.app import clips
from riddle.app.container import sidecar_path
from riddle.records import MAX_HEADER, MAX_SLOTS, MAX_WIDTH, VERSION, RecordError, check_version

MAGIC = b"RIDCLP"
MAX_INSIDE = 4 << 20  # bytes of a record within the clip's own metadata
MAX_BLOCK, MAX_FRAMES, MAX_RUNS, MAX_EVERY, MAX_BOXES = 64 << 20, 1 << 16, 4096, 1 << 10, 512
_HEAD, _CHECK, _LENGTH, _COUNTS, _RUN = struct.Struct("<6sHI"), 8, struct.Struct("<I"), struct.Struct("<3I"), 16
AGAIN = "restore from the file that protect saved"


@dataclass(frozen=True)
class Run:
    """A face in consecutive frames."""

    track: int
    first: int  # number of its first frame
    places: np.ndarray  # (c, 4) float32: centre x, y, vector of the upper side, px of the upright frame
    codes: torch.Tensor  # (k, L, D) float32, exact in float16; of the frames j * every

    def has(self, n: int) -> bool:
        """Whether the face is in frame n."""
        return self.first <= n < self.first + len(self.places)

    def code(self, codes: torch.Tensor, n: int, every: int) -> torch.Tensor:
        """The code (L, D) of frame n; codes: those of the run, or what became of them, (k, L, D)."""
        at = n / every - self.first // every
        low = min(int(at), len(codes) - 1)
        high = min(low + 1, len(codes) - 1)
        return codes[low] + (at - low) * (codes[high] - codes[low])


@dataclass(frozen=True)
class Block:
    """Consecutive frames and the faces in them."""

    first: int  # number of the first frame
    times: np.ndarray  # (f,) int64, since the clip's first frame, in its time base
    runs: tuple[Run, ...]

    def to_bytes(self) -> bytes:
        """As the module's description has it, without length and check sum."""
        parts = [_COUNTS.pack(self.first, len(self.times), len(self.runs)), self.times.astype("<i8").tobytes()]
        parts += [struct.pack("<4I", r.track, r.first, len(r.places), len(r.codes)) for r in self.runs]
        for run in self.runs:
            parts += [run.places.astype("<f4").tobytes(), run.codes.numpy().astype("<f2").tobytes()]
        return b"".join(parts)


def matrix(place: np.ndarray) -> np.ndarray:
    """The framing matrix (2, 3) of a place (4,): the crop's unit square -> pixels."""
    x, y, a, b = np.asarray(place, np.float64)
    return np.array([[a, -b, x - (a - b) / 2], [b, a, y - (a + b) / 2]])


def place(framing: np.ndarray) -> np.ndarray:
    """The inverse of `matrix`."""
    centre = framing[:, 2] + framing[:, :2].sum(1) / 2
    return np.array([*centre, *framing[:, 0]])


@dataclass(frozen=True)
class Header:
    """What holds for the whole clip."""

    preset: str
    weights: str
    size: tuple[int, int]
    code_shape: tuple[int, int]
    time_base: tuple[int, int]
    every: int
    frames: int
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    salt: bytes | None = None

    def to_bytes(self) -> bytes:
        """With its check sum."""
        values = {name: getattr(self, name) for name in ("preset", "weights", "size", "code_shape", "time_base")}
        values |= {"every": self.every, "frames": self.frames, "boxes": self.boxes[:MAX_BOXES]}
        values["salt"] = None if self.salt is None else self.salt.hex()
        text = json.dumps(values, separators=(",", ":")).encode()
        body = _HEAD.pack(MAGIC, VERSION, len(text)) + text
        return body + _sum(body)


def _sum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECK]


def write_block(file: BinaryIO, number: int, data: bytes) -> None:
    """Append block `number`, as `Block.to_bytes` made it."""
    file.write(_LENGTH.pack(len(data)) + data + _sum(_LENGTH.pack(number) + data))


def write_end(file: BinaryIO) -> None:
    """The last four bytes."""
    file.write(_LENGTH.pack(0))


def inside(data: bytes) -> str:
    """A record as the text of a tag."""
    return base64.b64encode(data).decode()


class ClipRecord:
    """A record that is being read, block by block; closes its file at the end of a `with` block."""

    def __init__(self, file: BinaryIO, name: str | Path, where: str):
        """Reads the header. Raises RecordError when it is damaged, too large, too old or too new."""
        self.file, self.name, self.where = file, str(name), where
        try:
            self.header = self._header()
        except RecordError:
            file.close()
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, struct.error) as e:
            file.close()
            raise self._damaged(e) from e

    def __enter__(self) -> ClipRecord:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def _damaged(self, cause: object) -> RecordError:
        return RecordError(self.name, f"its record is damaged ({cause})", AGAIN)

    def _take(self, n: int) -> bytes:
        data = self.file.read(n)
        if len(data) != n:
            raise ValueError("it ends too early")
        return data

    def _header(self) -> Header:
        head = self._take(_HEAD.size)
        magic, version, length = _HEAD.unpack(head)
        if magic != MAGIC:
            raise ValueError("it does not begin as a clip's record does")
        if length > MAX_HEADER:
            raise ValueError("the header is longer than it may be")
        check_version(version, text := self._take(length), self.name)
        if self._take(_CHECK) != _sum(head + text):
            raise ValueError("the check sum of the header differs")
        h = json.loads(text.decode())
        if not (isinstance(h["preset"], str) and len(h["preset"]) <= 64 and len(h["weights"]) == 64):
            raise ValueError("preset or weights are no names")
        salt = None if h["salt"] is None else bytes.fromhex(h["salt"])
        if salt is not None and len(salt) != 16:
            raise ValueError("the salt has not 16 bytes")
        slots, wide = _whole(h["code_shape"], 2, MAX_WIDTH)
        if slots > MAX_SLOTS or len(h["boxes"]) > MAX_BOXES:
            raise ValueError(f"codes of {slots} slots, {len(h['boxes'])} boxes")
        boxes = tuple(tuple(_whole(box, 4, 1 << 31, 0)) for box in h["boxes"])
        size, base = _whole(h["size"], 2, 1 << 20), _whole(h["time_base"], 2, 1 << 31)
        (every,), (frames,) = _whole([h["every"]], 1, MAX_EVERY), _whole([h["frames"]], 1, 1 << 31)
        return Header(
            h["preset"], h["weights"], tuple(size), (slots, wide), tuple(base), every, frames, boxes, salt
        )  # fmt: skip

    def blocks(self) -> Iterator[Block]:
        """The blocks, one at a time. Raises RecordError where one is damaged."""
        number, expected, ended = 0, 0, False
        while not ended:
            try:
                (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
                if ended := length == 0:
                    if expected != self.header.frames:
                        raise ValueError(f"it tells of {expected} frames, not of {self.header.frames}")
                    continue
                if length > MAX_BLOCK:
                    raise ValueError("a block is longer than it may be")
                data = self._take(length)
                if self._take(_CHECK) != _sum(_LENGTH.pack(number) + data):
                    raise ValueError(f"the check sum of block {number} differs")
                block = self._block(data)
                if block.first != expected:
                    raise ValueError(f"block {number} begins with frame {block.first}, not {expected}")
                number, expected = number + 1, expected + len(block.times)
            except (TypeError, ValueError, OverflowError, struct.error) as e:
                raise e if isinstance(e, RecordError) else self._damaged(e) from e
            yield block

    def _block(self, data: bytes) -> Block:
        first, count, n = _COUNTS.unpack_from(data)
        if not 0 < count <= MAX_FRAMES or n > MAX_RUNS:
            raise ValueError(f"a block of {count} frames and {n} runs")
        at = _COUNTS.size
        times = np.frombuffer(data, "<i8", count, at).astype(np.int64)
        if (np.diff(times) <= 0).any():
            raise ValueError("times that do not increase")
        at += 8 * count
        heads = np.frombuffer(data, "<u4", 4 * n, at).astype(np.int64).reshape(n, 4)
        at += _RUN * n
        runs, (slots, wide), every = [], self.header.code_shape, self.header.every
        for track, begin, c, k in heads.tolist():
            if not (first <= begin and 0 < c and begin + c <= first + count):
                raise ValueError("a face in frames outside its block")
            if k != (begin + c - 1) // every - begin // every + 2:
                raise ValueError(f"{k} codes of {c} frames")
            places = np.frombuffer(data, "<f4", 4 * c, at).reshape(c, 4)
            at += 16 * c
            codes = np.frombuffer(data, "<f2", k * slots * wide, at).astype(np.float32).reshape(k, slots, wide)
            at += 2 * codes.size
            _check_places(places, *self.header.size)
            if not np.isfinite(codes).all():
                raise ValueError("codes that are not finite")
            runs.append(Run(track, begin, places, torch.from_numpy(codes)))
        if at != len(data):
            raise ValueError(f"a block of {len(data)} bytes, not {at}")
        return Block(first, times, tuple(runs))


def _check_places(places: np.ndarray, width: int, height: int) -> None:
    """Only squares about the size of a face in the frame: any other would ask for pictures of any size."""
    if not np.isfinite(places).all():
        raise ValueError("a face's place is not finite")
    if not np.array_equal(places, bounded(places, width, height)):
        raise ValueError("a face's place is no square in the frame")


def bounded(places: np.ndarray, width: int, height: int) -> np.ndarray:
    """Places (c, 4) float32 that a record takes: a side of 1 px to twice the frame, the centre at most a side outside
    the frame. Places that are so already stay to the bit."""
    places = np.array(places, np.float32)
    side = np.hypot(places[:, 2], places[:, 3])
    most = 2 * float(np.sqrt(width * height))
    for wrong, goal in ((side > most, 0.99 * most), (side < 1, 1.01)):
        places[wrong, 2:] *= (goal / np.maximum(side[wrong], 1e-6))[:, None]
        places[wrong & (side < 1e-6), 2:] = (1.01, 0.0)
    side = np.hypot(places[:, 2], places[:, 3])
    for axis, length in enumerate((width, height)):
        places[:, axis] = np.clip(places[:, axis], -side, length + side)
    return places


def _whole(values: list, n: int, most: int, least: int = 1) -> list[int]:
    if len(values) != n or not all(type(v) is int and least <= v <= most for v in values):
        raise ValueError(f"{n} whole numbers of {least} to {most} were expected")
    return values


def find(clip: str | Path) -> ClipRecord | None:
    """A clip's record: its own, else that of the sidecar beside it, else None.

    Raises PhotoError when the clip cannot be read, RecordError when the record is damaged.
    """
    text = clips.tag(clip)
    if text is not None:
        if len(text) > MAX_INSIDE * 4 // 3 + 4:
            raise RecordError(clip, f"its record has over {MAX_INSIDE >> 20} MB", AGAIN)
        try:
            return ClipRecord(io.BytesIO(base64.b64decode(text, validate=True)), clip, "metadata")
        except (binascii.Error, UnicodeError) as e:
            raise RecordError(clip, f"its record is damaged ({e})", AGAIN) from e
    beside = sidecar_path(clip)
    return open_sidecar(beside) if beside.is_file() else None


def open_sidecar(path: str | Path) -> ClipRecord:
    """The record in a file of its own. Raises RecordError."""
    try:
        return ClipRecord(open(path, "rb"), path, "sidecar")
    except OSError as e:
        raise RecordError(path, f"it cannot be read ({e.strerror})", "check it") from e
