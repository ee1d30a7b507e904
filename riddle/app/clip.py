"""Read clips of unknown origin safely with PyAV: frames in order and upright, one at a time. Write clips in segments,
and join these with the sound.

`frames(probe("party.mp4"))` gives frames in the order they are shown; `frame.rgb()` is upright, (H, W, 3) uint8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from heapq import merge
from pathlib import Path
from typing import Any

import av
import numpy as np

from riddle.images import MAX_PIXELS, PhotoError

READ = "mov,matroska,avi"  # demuxers; none that opens further files, as playlists do
COLOURS = ("color_range", "color_primaries", "color_trc", "colorspace")
TAG = "riddle"  # key of our text in a clip's metadata
ENDINGS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}  # formats that we write
# No B-frames (bf=0, lag-in-frames=0): one packet for each frame, in their order. CRF 18: differences are hard to see.
# force-cfr: the headers tell frames per second, as they are on average, and not the unit of time.
ENCODERS = {
    "libx264": {"crf": "18", "preset": "medium", "bf": "0", "x264-params": "force-cfr=1"},
    "libvpx-vp9": {
        "crf": "24", "b": "0", "lag-in-frames": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "5",
        "row-mt": "1",
    },
}  # fmt: skip
SHORT = 0.1  # share of its declared length that a clip may lack
OF_FORMAT = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", TAG}  # tags that tell nothing

_VENDOR = re.compile(r"(?s)^com\.(apple\.quicktime|android)\.|\W.*$")  # what is no part of a tag's plain name


@dataclass(frozen=True)
class Clip:
    """A clip's properties, known before its frames are read."""

    path: Path
    size: tuple[int, int]  # width, height as stored, px
    rate: Fraction  # frames per second, on average
    time_base: Fraction  # seconds per unit of pts
    estimate: int  # number of frames by its header; 0: unknown
    matrix: tuple[int, ...] | None  # display matrix, 9 numbers; None: stored upright
    aspect: Fraction | None  # of one pixel, width over height; None: unknown
    colours: dict[str, int]  # those of COLOURS
    notes: tuple[str, ...] = ()
    start: int = 0  # pts of its first frame

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as it is shown, px."""
        return self.size[::-1] if _turn(self.matrix)[0] else self.size

    @property
    def pixels(self) -> str:
        """Pixel format of its frames here: 4:2:0, or 4:4:4 for odd sides."""
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
    def since(self) -> float:
        """Seconds since the first frame."""
        return float((self.pts - self.clip.start) * self.clip.time_base)

    def rgb(self) -> np.ndarray:
        """Its pixels, upright: (H, W, 3) uint8."""
        return upright(self.image.to_ndarray(format="rgb24"), self.clip.matrix)

    @cached_property
    def planes(self) -> np.ndarray:
        """Its luma and chroma as PyAV lays them out, a copy."""
        return np.array(self.image.to_ndarray())

    def replace(self, before: np.ndarray, after: np.ndarray) -> None:
        """Take from `after` the pixels that differ from `before`, both upright (H, W, 3); others stay to the bit."""
        differs = stored((before != after).any(-1), self.clip.matrix)
        picture = av.VideoFrame.from_ndarray(stored(after, self.clip.matrix), format="rgb24").reformat(
            format=self.clip.pixels, dst_colorspace=self.image.colorspace, dst_color_range=self.image.color_range
        )
        if self.clip.pixels == "yuv420p":  # a chroma sample belongs to 2 x 2 pixels
            h, w = differs.shape
            quarter = differs.reshape(h // 2, 2, w // 2, 2).any((1, 3))
            luma, chroma = quarter.repeat(2, 0).repeat(2, 1).ravel(), quarter.ravel()
            differs = np.concatenate([luma, chroma, chroma]).reshape(-1, w)
        np.copyto(self.planes, picture.to_ndarray(), where=differs)


def _turn(matrix: tuple[int, ...] | None) -> tuple[bool, int, int]:
    """True if a display matrix swaps rows and columns; then the step (1 or -1) along each."""
    if matrix is None:
        return False, 1, 1
    swapped = matrix[0] == 0
    x, y = (matrix[3], matrix[1]) if swapped else (matrix[0], matrix[4])
    return swapped, -1 if y < 0 else 1, -1 if x < 0 else 1


def upright(pixels: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """Stored pixels (H, W, ...) as they are shown: turned by quarters and mirrored as the display matrix says."""
    swapped, rows, columns = _turn(matrix)
    return np.ascontiguousarray((pixels.swapaxes(0, 1) if swapped else pixels)[::rows, ::columns])


def stored(pixels: np.ndarray, matrix: tuple[int, ...] | None) -> np.ndarray:
    """The inverse of `upright`."""
    swapped, rows, columns = _turn(matrix)
    pixels = pixels[::rows, ::columns]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if swapped else pixels)


# Reading


def open_clip(path: str | Path) -> Any:
    """An av.InputContainer. Raises PhotoError for a file that is no known clip or is cut off."""
    path = Path(path)
    if not path.is_file():
        raise PhotoError(path, "it is no regular file" if path.exists() else "there is no such file", "check the name")
    if not path.stat().st_size:
        raise PhotoError(path, "it is empty", "fetch it again")
    options = {"format_whitelist": READ, "protocol_whitelist": "file"}
    lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}  # 19 always is
    try:
        return av.open(f"file:{path}", container_options=options, **lenient)
    except (av.error.FFmpegError, ValueError) as e:
        cause = f"it is no clip that can be read, or is cut off ({getattr(e, 'strerror', None) or e})"
        raise PhotoError(path, cause, "fetch it again, or use .mp4, .mov, .mkv, .webm or .avi") from e


def _moving(container: Any) -> list[Any]:
    """The video streams, without cover pictures."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def probe(path: str | Path) -> Clip:
    """A clip's properties. Raises PhotoError when it cannot be read, has no picture or no frame, or one too large."""
    path = Path(path)
    with open_clip(path) as container:
        if not (streams := _moving(container)):
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
        if extra := len(container.streams) - len(container.streams.audio) - 1:
            notes.append(f"{extra} further streams (subtitles, data, a cover, a second picture) left out")
        tags = {_VENDOR.sub("", key.lower()) for key in container.metadata} - OF_FORMAT
        if told := sorted(tags) + ["chapters"] * bool(container.chapters()):
            notes.append(f"its metadata left out: {', '.join(told)}")
        if max((c.bits for c in first.format.components), default=8) > 8:
            notes.append(f"{first.format.name}: more than 8 bits a channel reduced to 8")
        rate = _fraction(video.average_rate) or _fraction(video.guessed_rate) or Fraction(25)
        length = max(0.0, (_declared_end(container, video) or 0.0) - _begin(video))
        return Clip(
            path, (first.width, first.height), rate, _fraction(video.time_base),
            video.frames or round(length * rate), _matrix(first),
            _fraction(video.codec_context.sample_aspect_ratio), {name: getattr(first, name) for name in COLOURS},
            tuple(notes), first.pts or 0,
        )  # fmt: skip


def _fraction(value: Any) -> Fraction | None:
    """PyAV's rationals, of its own kind from version 19 on; None for an unset one."""
    return Fraction(value.numerator, value.denominator) if value else None


def _matrix(frame: Any) -> tuple[int, ...] | None:
    """A frame's display matrix; None where it turns nothing, or by other angles than quarters."""
    data = frame.side_data.get("DISPLAYMATRIX")
    values = () if data is None else tuple(np.frombuffer(bytes(data), np.int32).tolist())
    quarters = len(values) == 9 and (values[0] == values[4] == 0) != (values[1] == values[3] == 0)
    return values if quarters and _turn(values) != (False, 1, 1) else None


def _begin(video: Any) -> float:
    """The time of the first picture, in seconds."""
    return float((video.start_time or 0) * video.time_base)


def _declared_end(container: Any, video: Any) -> float | None:
    """When the pictures end by the headers, in seconds. Matroska tells the end, and not the length."""
    if video.duration:
        return _begin(video) + float(video.duration * video.time_base)
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
        video = _moving(container)[0]
        begin, declared = _begin(video), _declared_end(container, video)
        last, end, step = None, 0.0, max(1, round(1 / (clip.rate * clip.time_base)))
        try:
            for n, image in enumerate(container.decode(video)):
                if (image.width, image.height) != clip.size:
                    cause = f"its frames change to {image.width} x {image.height} px at {end:.1f} s"
                    raise PhotoError(clip.path, cause, "convert it to one size first")
                follows = 0 if last is None else last + step
                pts = follows if image.pts is None else image.pts if last is None else max(image.pts, last + 1)
                if image.format.name != clip.pixels:
                    image = image.reformat(format=clip.pixels)
                yield Frame(n, pts, image.duration or 0, clip, image)
                last, end = pts, float((pts + (image.duration or step)) * clip.time_base)
        except PhotoError:
            raise
        except (av.error.FFmpegError, ValueError) as e:
            raise PhotoError(clip.path, f"it is damaged at {end:.1f} s ({e})", "fetch it again") from e
        if declared and declared - end > max(0.3, SHORT * (declared - begin)):
            cause = f"it ends at {end:.1f} of {declared:.1f} s: it is cut off"
            raise PhotoError(clip.path, cause, "fetch it again")


# Writing


def encoder_for(target: Path) -> str:
    """The encoder for a clip with the target's ending. Raises PhotoError when there is none."""
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        named = ending or "a name without ending"
        raise PhotoError(target, f"no clip is written as {named}", f"use {', '.join(ENDINGS)}")
    name = "libvpx-vp9" if ending == ".webm" else "libx264"
    if name not in av.codecs_available:
        raise PhotoError(target, f"this build of PyAV has no encoder {name}", "install PyAV's own: pip install av")
    return name


def _create(path: Path, clip: Clip) -> Any:
    """An av.OutputContainer of the path's ending."""
    kind, options = ENDINGS[path.suffix.lower()], {}
    if kind in ("mp4", "mov"):  # movie_timescale: the first time is rounded to it, and 1/1000 s is not exact
        options = {"movflags": "use_metadata_tags", "movie_timescale": str(max(1000, clip.time_base.denominator))}
    return av.open(str(path), "w", format=kind, options=options)


def write_segment(path: Path, clip: Clip, codec: str, piece: Iterable[Frame]) -> None:
    """Write consecutive frames of a clip, at their own times, as a clip without sound.

    Each segment has an encoder of its own and no frame that refers to a later one, so that `join` can put the packets
    of all segments one behind the other.
    """
    with _create(path, clip) as out:
        rate = min(max(clip.rate, Fraction(1)), Fraction(240)).limit_denominator(1001)
        stream = out.add_stream(codec, rate=rate)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = *clip.size, clip.pixels
        context.options = dict(ENCODERS[codec])
        stream.time_base = context.time_base = clip.time_base
        if clip.aspect:
            context.sample_aspect_ratio = clip.aspect
        for name, value in clip.colours.items():
            setattr(context, name, value)
        for frame in piece:
            image = av.VideoFrame.from_ndarray(frame.planes, format=clip.pixels)
            image.pts, image.duration, image.time_base = frame.pts, frame.duration, clip.time_base
            out.mux(stream.encode(image))
        out.mux(stream.encode(None))


def join(target: Path, clip: Clip, segments: list[Path], tag: str = "") -> list[str]:
    """Write the clip of these segments with the sound of `clip`, and a text into its metadata; returns notes.

    Only sound whose codec the target's container does not take is encoded again; the notes say so.
    Raises PhotoError when the sound cannot be read.
    """
    notes: list[str] = []
    with open_clip(clip.path) as source, av.open(f"file:{segments[0]}") as first, _create(target, clip) as out:
        video = out.add_stream_from_template(first.streams.video[0])
        video.time_base = clip.time_base
        if clip.matrix is not None:
            video.set_display_matrix(clip.matrix)
        if tag:
            out.metadata[TAG] = tag
        heard = {}  # index of a stream in the source -> ours, and whether its packets are copied
        for stream in source.streams.audio:
            try:
                ours, copied = out.add_stream_from_template(stream), True
            except ValueError:
                codec, kind = out.default_audio_codec, ENDINGS[target.suffix.lower()]
                ours, copied = out.add_stream(codec, rate=48_000 if "opus" in codec else stream.rate), False
                notes.append(f"{kind} takes no {stream.codec_context.name}: sound encoded as {codec}")
            if language := stream.metadata.get("language"):
                ours.metadata["language"] = language
            heard[stream.index] = ours, copied
        out.start_encoding()
        both = _pictures(segments, video), _sounds(source, clip, heard)
        for _, _, packet in merge(*both, key=lambda item: item[:2]):
            out.mux(packet)
    return notes


def _pictures(segments: list[Path], video: Any) -> Iterator[tuple[float, int, Any]]:
    """Packets of pictures: time, 0, packet."""
    for path in segments:
        with av.open(f"file:{path}") as segment:
            for packet in segment.demux(video=0):
                if packet.pts is not None:  # Matroska keeps no dts
                    packet.dts, packet.stream = packet.pts, video
                    yield float(packet.pts * packet.time_base), 0, packet


def _sounds(source: Any, clip: Clip, heard: dict[int, tuple[Any, bool]]) -> Iterator[tuple[float, int, Any]]:
    """Packets of sound by time, the source's own or encoded again: time, 1, packet."""
    late = float("-inf")
    try:
        for packet in source.demux([source.streams[i] for i in heard]) if heard else ():
            ours, copied = heard[packet.stream.index]
            if copied:
                made = [packet] if packet.dts is not None else []
                packet.stream = ours
            else:
                made = [new for sound in packet.decode() for new in ours.encode(sound)]
            for new in made:
                late = max(late, float((new.dts or 0) * new.time_base))
                yield late, 1, new
        for ours in (ours for ours, copied in heard.values() if not copied):
            yield from ((late, 1, new) for new in ours.encode(None))
    except (av.error.FFmpegError, ValueError) as e:
        raise PhotoError(clip.path, f"its sound cannot be read ({e})", "convert it to AAC or Opus") from e
