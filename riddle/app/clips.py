"""Clips of unknown origin, opened safely by PyAV: frames in order and upright, one at a time.

clip = probe("party.mp4")
for frame in frames(clip):                           # however long the clip is
    picture = frame.rgb()                            # (H, W, 3) uint8
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np

from riddle.pictures import MAX_PIXELS, PhotoError

READ = "mov,matroska,avi"  # demuxers; nothing that names further files, as playlists do
USE = "use .mp4, .mov, .mkv, .webm or .avi"
TAG = "riddle"  # the key of what a clip's own metadata carry
TECHNICAL = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "handler_name", "vendor_id",
             "language", TAG}  # fmt: skip
SHORT = 0.1  # share of its declared length that a clip may lack


@dataclass(frozen=True)
class Clip:
    """What is known of a clip before its frames are read."""

    path: Path
    size: tuple[int, int]  # width, height as stored, px
    rate: Fraction  # frames a second, on average
    time_base: Fraction  # seconds a unit of pts
    estimate: int  # frames, as far as its header tells; 0: unknown
    matrix: tuple[int, ...] | None  # display matrix, 9 numbers; None: stored upright
    aspect: Fraction | None  # of a pixel
    colours: dict[str, int]  # range, primaries, transfer, matrix
    notes: tuple[str, ...] = ()

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as it is shown, px."""
        return self.size[::-1] if _turned(self.matrix) else self.size

    @property
    def pixels(self) -> str:
        """Pixel format of its frames here: 4:2:0, which has no odd sides."""
        return "yuv444p" if self.size[0] % 2 or self.size[1] % 2 else "yuv420p"


@dataclass(eq=False)
class Frame:
    """One frame of a clip."""

    n: int  # its number, from 0
    pts: int  # when it is shown, in the clip's time base
    duration: int  # in the clip's time base; 0: unknown
    clip: Clip
    image: Any = field(repr=False)  # av.VideoFrame in clip.pixels

    @property
    def seconds(self) -> float:
        """When it is shown."""
        return float(self.pts * self.clip.time_base)

    def rgb(self) -> np.ndarray:
        """Its pixels, upright: (H, W, 3) uint8."""
        return upright(self.image.to_ndarray(format="rgb24"), self.clip.matrix)

    @cached_property
    def planes(self) -> np.ndarray:
        """Its luma and chroma as `av` lays them out, a copy that may be changed."""
        return np.array(self.image.to_ndarray())

    def replace(self, rgb: np.ndarray, box: tuple[int, int, int, int]) -> None:
        """Take the pixels in `box` (x1, y1, x2, y2) of an upright picture; all others stay to the bit."""
        height, width = self.image.height, self.image.width
        x1, y1, x2, y2 = stored_box(box, self.clip)
        x1, y1, x2, y2 = x1 // 2 * 2, y1 // 2 * 2, min(width, -(-x2 // 2) * 2), min(height, -(-y2 // 2) * 2)
        if x1 >= x2 or y1 >= y2:
            return
        part = np.ascontiguousarray(stored(rgb, self.clip.matrix)[y1:y2, x1:x2])
        patch = av.VideoFrame.from_ndarray(part, format="rgb24").reformat(
            format=self.clip.pixels, dst_colorspace=self.image.colorspace, dst_color_range=self.image.color_range
        )
        new = patch.to_ndarray()
        if self.clip.pixels == "yuv444p":
            self.planes[:, y1:y2, x1:x2] = new
            return
        h, w = y2 - y1, x2 - x1
        self.planes[y1:y2, x1:x2] = new[:h]
        for i in range(2):  # the packed array holds each quarter plane row behind row
            whole = self.planes[height:].reshape(2, height // 2, width // 2)[i]
            whole[y1 // 2 : y2 // 2, x1 // 2 : x2 // 2] = new[h:].reshape(2, h // 2, w // 2)[i]

    def changed(self) -> Any:
        """The av.VideoFrame with the replaced pixels."""
        return av.VideoFrame.from_ndarray(self.planes, format=self.clip.pixels)


# Orientation


def _turned(matrix: tuple[int, ...] | None) -> bool:
    return matrix is not None and matrix[0] == 0 and matrix[4] == 0


def upright(pixels: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """Stored pixels (H, W, ...) as they are shown: turned by quarters and mirrored as the display matrix says."""
    if matrix is None:
        return pixels
    if _turned(matrix):
        pixels, x, y = pixels.swapaxes(0, 1), matrix[3], matrix[1]
    else:
        x, y = matrix[0], matrix[4]
    return np.ascontiguousarray(pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])


def stored(pixels: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """The inverse of `upright`, a view."""
    if matrix is None:
        return pixels
    x, y = (matrix[3], matrix[1]) if _turned(matrix) else (matrix[0], matrix[4])
    pixels = pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]
    return pixels.swapaxes(0, 1) if _turned(matrix) else pixels


def stored_box(box: tuple[int, int, int, int], clip: Clip) -> tuple[int, int, int, int]:
    """Where a box of the upright picture lies in the stored one."""
    x1, y1, x2, y2 = box
    if clip.matrix is None:
        return box
    turned = _turned(clip.matrix)
    x, y = (clip.matrix[3], clip.matrix[1]) if turned else (clip.matrix[0], clip.matrix[4])
    width, height = clip.upright_size
    if x < 0:
        x1, x2 = width - x2, width - x1
    if y < 0:
        y1, y2 = height - y2, height - y1
    return (y1, x1, y2, x2) if turned else (x1, y1, x2, y2)


# In


def _regular(path: Path) -> None:
    """Raises PhotoError for what is no file with something in it."""
    try:
        state = os.stat(path)
    except (OSError, ValueError) as e:
        missing = isinstance(e, FileNotFoundError | ValueError)
        raise PhotoError(path, "there is no such file" if missing else f"it cannot be read ({e})", "check it") from None
    if stat.S_ISDIR(state.st_mode):
        raise PhotoError(path, "it is a folder", "name a clip")
    if not stat.S_ISREG(state.st_mode):
        raise PhotoError(path, "it is no regular file", "name a clip")
    if not state.st_size:
        raise PhotoError(path, "it is empty", "fetch it again")


def open_clip(path: str | Path) -> Any:
    """An av.InputContainer. Raises PhotoError for what is no clip of a known kind, or is cut off at its end."""
    path = Path(path)
    _regular(path)
    options = {"format_whitelist": READ, "protocol_whitelist": "file"}
    lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}  # 19 always is
    try:
        return av.open(f"file:{path}", container_options=options, **lenient)
    except (av.error.FFmpegError, ValueError) as e:
        cause = f"it is no clip that can be read, or is cut off ({getattr(e, 'strerror', None) or e})"
        raise PhotoError(path, cause, f"fetch it again, or {USE}") from e


def _pictures(container: Any) -> list[Any]:
    """The video streams that move; a cover picture is none."""
    still = av.stream.Disposition.attached_pic
    return [s for s in container.streams.video if not s.disposition & still]


def probe(path: str | Path) -> Clip:
    """What a clip is. Raises PhotoError when it cannot be read, has no picture or no frame, or one too large."""
    path = Path(path)
    with open_clip(path) as container:
        streams = _pictures(container)
        if not streams:
            what = "sound only" if container.streams.audio else "no picture"
            raise PhotoError(path, f"it has {what}", "name a clip with a video stream")
        video, notes = streams[0], []
        try:
            first = next(iter(container.decode(video)), None)
        except (av.error.FFmpegError, ValueError) as e:
            raise PhotoError(path, f"its pictures cannot be decoded ({e})", "convert it to H.264 in .mp4") from e
        if first is None:
            raise PhotoError(path, "it has no frame", "record or fetch it again")
        if first.width * first.height > MAX_PIXELS:
            raise PhotoError(path, f"its frames have {first.width} x {first.height} px", "reduce it first")
        extra = len(container.streams) - len(container.streams.audio) - 1
        if extra:
            notes.append(f"{extra} further streams (subtitles, data, a cover, a second picture) left out")
        if max((c.bits for c in first.format.components), default=8) > 8:
            notes.append(f"{first.format.name}: more than 8 bits a channel reduced to 8")
        if {k.lower() for k in container.metadata} | {k.lower() for k in video.metadata} - {"rotate"} > TECHNICAL:
            notes.append("the file's metadata (such as place, date and names) left out")
        rate = _fraction(video.average_rate) or _fraction(video.guessed_rate) or Fraction(25)
        estimate = video.frames or round((_declared(container, video) or 0) * rate)
        return Clip(
            path, (first.width, first.height), rate, _fraction(video.time_base), estimate,
            _matrix(first), _fraction(video.codec_context.sample_aspect_ratio),
            {name: getattr(first, name) for name in ("color_range", "color_primaries", "color_trc", "colorspace")},
            tuple(notes),
        )  # fmt: skip


def _fraction(value: Any) -> Fraction | None:
    """PyAV's rationals, of its own kind from version 19 on; None for an unset one."""
    return Fraction(value.numerator, value.denominator) if value else None


def _matrix(frame: Any) -> tuple[int, ...] | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    values = tuple(np.frombuffer(bytes(data), np.int32).tolist())
    plain = len(values) == 9 and (values[0] == values[4] == 0) != (values[1] == values[3] == 0)
    return values if plain and values[:5] != (1 << 16, 0, 0, 0, 1 << 16) else None


def _declared(container: Any, video: Any) -> float | None:
    """How long the pictures are said to last, in seconds."""
    if video.duration:
        return float(video.duration * video.time_base)
    words = {k.lower(): v for k, v in video.metadata.items()}.get("duration", "").split(":")
    try:
        return float(words[0]) * 3600 + float(words[1]) * 60 + float(words[2])
    except (ValueError, IndexError):
        alone = container.duration and not container.streams.audio
        return container.duration / av.time_base if alone else None


def frames(clip: Clip) -> Iterator[Frame]:
    """The frames of a clip in the order they are shown, one at a time, with times that increase.

    Raises PhotoError, with the time, where it is damaged, and at the end when a good part of it is missing.
    """
    with open_clip(clip.path) as container:
        video = _pictures(container)[0]
        begin = float((video.start_time or 0) * video.time_base)
        declared, last, n, end = _declared(container, video), None, 0, 0.0
        step = max(1, round(1 / (clip.rate * clip.time_base)))
        decoded = container.decode(video)
        while True:
            try:
                image = next(decoded, None)
            except (av.error.FFmpegError, ValueError) as e:
                raise PhotoError(clip.path, f"it is damaged at {end:.1f} s ({e})", "fetch it again") from e
            if image is None:
                break
            if (image.width, image.height) != clip.size:
                cause = f"its frames change to {image.width} x {image.height} px at {end:.1f} s"
                raise PhotoError(clip.path, cause, "convert it to one size first")
            pts = image.pts if image.pts is not None else (0 if last is None else last + step)
            pts = pts if last is None else max(pts, last + 1)
            if image.format.name != clip.pixels:
                image = image.reformat(format=clip.pixels)
            yield Frame(n, pts, image.duration or 0, clip, image)
            end, last, n = float((pts + (image.duration or step)) * clip.time_base), pts, n + 1
        if not n:
            raise PhotoError(clip.path, "it has no frame", "record or fetch it again")
        if declared and declared - (end - begin) > max(0.3, SHORT * declared):
            cause = f"it ends after {end - begin:.1f} of {declared:.1f} s: it is cut off"
            raise PhotoError(clip.path, cause, "fetch it again")


def tag(path: str | Path) -> str | None:
    """The text that `join` put into a clip's metadata. Raises PhotoError as `open_clip` does."""
    with open_clip(path) as container:
        return next((value for key, value in container.metadata.items() if key.lower() == TAG), None)
