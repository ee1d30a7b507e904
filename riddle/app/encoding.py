"""Clips written by PyAV: pictures encoded in parts, sound copied packet by packet, times as they were.

Each part is made by an encoder of its own, without frames that refer to later ones (no B-frames): so a frame is a
packet, and the parts, one behind the other, are the clip. `join` gives them their times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from riddle.app.clips import TAG, Clip, open_clip
from riddle.pictures import PhotoError

ENDINGS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}  # what is written
# No B-frames (bf=0, lag-in-frames=0): packets come in the order of frames. CRF 18: differences are hard to see.
ENCODERS = {
    "libx264": {"crf": "18", "preset": "medium", "bf": "0"},
    "mpeg4": {"qmin": "2", "qmax": "3"},
    "libvpx-vp9": {
        "crf": "24", "b": "0", "lag-in-frames": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "5",
        "row-mt": "1",
    },
}  # fmt: skip


def encoder_for(target: str | Path, size: tuple[int, int]) -> str:
    """Which encoder makes a clip of the target's ending. Raises PhotoError when there is none."""
    ending = Path(target).suffix.lower()
    if ending not in ENDINGS:
        named = ending or "a name without ending"
        raise PhotoError(target, f"no clip is written as {named}", f"use {', '.join(ENDINGS)}")
    wanted = ("libvpx-vp9",) if ending == ".webm" else ("libx264", "mpeg4")
    for name in wanted:
        if name in av.codecs_available and not (name == "mpeg4" and (size[0] % 2 or size[1] % 2)):
            return name
    raise PhotoError(target, f"this build of PyAV has no encoder for it ({', '.join(wanted)})", "pip install av")


def _set_up(context: Any, clip: Clip, codec: str) -> None:
    context.width, context.height, context.pix_fmt = *clip.size, clip.pixels
    rate = min(max(clip.rate, Fraction(1)), Fraction(240)).limit_denominator(1001)
    context.time_base, context.framerate = 1 / rate, rate
    context.options = dict(ENCODERS[codec])
    if clip.aspect:
        context.sample_aspect_ratio = clip.aspect
    for name, value in clip.colours.items():
        setattr(context, name, value)


class Part:
    """The encoder of one part of a clip: frames in, packets out, as many and in the same order."""

    def __init__(self, clip: Clip, codec: str):
        self.context = av.CodecContext.create(codec, "w")
        _set_up(self.context, clip, codec)
        self.context.flags |= av.codec.context.Flags.global_header
        self.count, self.packets = 0, []

    def add(self, image: Any) -> None:
        """Encode an av.VideoFrame."""
        image.pts, image.time_base, image.pict_type = self.count, self.context.time_base, 0
        self.count += 1
        self._keep(self.context.encode(image))

    def finish(self) -> list[tuple[bool, bytes]]:
        """The packets: (whether it is a key frame, its bytes). Raises RuntimeError when they are not one a frame."""
        self._keep(self.context.encode(None))
        if len(self.packets) != self.count:
            raise RuntimeError(f"the encoder made {len(self.packets)} packets of {self.count} frames")
        return self.packets

    def _keep(self, packets: Iterable[Any]) -> None:
        self.packets += [(p.is_keyframe, bytes(p)) for p in packets]


def join(
    target: Path,
    clip: Clip,
    codec: str,
    packets: Iterable[tuple[int, int, bool, bytes]],
    text: str = "",
) -> list[str]:
    """Write a clip of encoded frames (pts, duration, key frame, bytes) with the sound of `clip`; returns notes.

    text: goes into the metadata, see `clips.tag`. Sound is copied; where the container does not take its codec it is
    encoded again, and the notes say so. Raises PhotoError when the sound cannot be read.
    """
    kind, options = ENDINGS[target.suffix.lower()], {}
    if kind in ("mp4", "mov"):  # movie_timescale: a start is rounded to it, and 1/1000 s is not exact
        options = {"movflags": "use_metadata_tags", "movie_timescale": str(max(1000, clip.time_base.denominator))}
    notes: list[str] = []
    with open_clip(clip.path) as source, av.open(str(target), "w", format=kind, options=options) as out:
        video = out.add_stream(codec, rate=clip.rate.limit_denominator(1 << 16))
        video.time_base = clip.time_base
        _set_up(video.codec_context, clip, codec)
        if clip.matrix is not None:
            video.set_display_matrix(clip.matrix)
        if text:
            out.metadata[TAG] = text
        copies, again = {}, {}
        for heard in source.streams.audio:
            try:
                copies[heard.index] = out.add_stream_from_template(heard)
            except ValueError:
                other = out.default_audio_codec
                again[heard.index] = out.add_stream(other, rate=48_000 if "opus" in other else heard.rate)
                notes.append(f"{kind} takes no {heard.codec_context.name}: sound encoded as {out.default_audio_codec}")
            language = heard.metadata.get("language")
            if language:
                (copies | again)[heard.index].metadata["language"] = language
        out.start_encoding()
        pictures = _stamped(packets, video, clip.time_base)
        sounds = _sounds(source, clip, copies, again)
        for _, _, packet in merge(pictures, sounds, key=lambda item: item[:2]):
            out.mux(packet)
    return notes


def _stamped(packets: Iterable[tuple[int, int, bool, bytes]], stream: Any, base: Fraction) -> Iterator[tuple]:
    for pts, duration, key, data in packets:
        packet = av.Packet(data)
        packet.stream, packet.time_base = stream, base
        packet.pts = packet.dts = pts
        packet.is_keyframe = key
        if duration:
            packet.duration = duration
        yield float(pts * base), 0, packet


def _sounds(source: Any, clip: Clip, copies: dict[int, Any], again: dict[int, Any]) -> Iterator[tuple]:
    """Packets of sound by time: the source's own, or encoded again."""
    streams = [s for s in source.streams.audio if s.index in copies or s.index in again]
    if not streams:
        return
    late = float("-inf")
    try:
        for packet in source.demux(streams):
            stream = packet.stream
            if stream.index in copies:
                if packet.dts is None:
                    continue
                made = [packet]
                packet.stream = copies[stream.index]
            else:
                made = [p for sound in packet.decode() for p in again[stream.index].encode(sound)]
            for new in made:
                late = max(late, float((new.dts or 0) * new.time_base))
                yield late, 1, new
        for stream in again.values():
            for new in stream.encode(None):
                yield late, 1, new
    except (av.error.FFmpegError, ValueError) as e:
        raise PhotoError(clip.path, f"its sound cannot be read ({e})", "convert it to AAC or Opus") from e


def write(
    path: str | Path,
    pictures: Iterable[Image.Image | np.ndarray],
    rate: int = 25,
    sound: np.ndarray | None = None,
    sampling: int = 44_100,
) -> Path:
    """Write RGB pictures of one size as a clip, to try things on; sound: (samples,) in [-1, 1], mono, `sampling` Hz."""
    path, stream = Path(path), None
    with av.open(str(path), "w", format=ENDINGS[path.suffix.lower()]) as out:
        for n, picture in enumerate(pictures):
            pixels = np.asarray(picture)
            if stream is None:
                clip = Clip(path, pixels.shape[1::-1], Fraction(rate), Fraction(1, rate), 0, None, None, {})
                codec = encoder_for(path, clip.size)
                stream = out.add_stream(codec, rate=rate)
                _set_up(stream.codec_context, clip, codec)
                if sound is not None:
                    heard = out.add_stream(out.default_audio_codec, rate=sampling)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=clip.pixels)
            frame.pts, frame.time_base = n, Fraction(1, rate)
            out.mux(stream.encode(frame))
            if sound is not None:
                part = sound[n * sampling // rate : (n + 1) * sampling // rate].astype(np.float32)
                samples = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
                samples.sample_rate, samples.pts = sampling, n * sampling // rate
                out.mux(heard.encode(samples))
        for each in [stream] if sound is None else [stream, heard]:
            out.mux(each.encode(None))
    return path
