"""Clips written by PyAV: in segments, which wait in a folder until they are joined, with the sound, to a clip."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any

import av

from riddle.app.clip import TAG, Clip, Frame, open_clip
from riddle.files import write_text
from riddle.images import PhotoError

ENDINGS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}  # what is written
# No B-frames (bf=0, lag-in-frames=0): one packet a frame, in their order. CRF 18: differences are hard to see.
ENCODERS = {
    "libx264": {"crf": "18", "preset": "medium", "bf": "0"},
    "libvpx-vp9": {
        "crf": "24", "b": "0", "lag-in-frames": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "5",
        "row-mt": "1",
    },
}  # fmt: skip


@contextmanager
def work_folder(target: Path, mark: str, resume: bool) -> Iterator[Path]:
    """The folder in which a clip is worked off, `.NAME.riddle-work` beside the target, for its owner only.

    mark            the text given, which differs with the passphrase and all else that the folder's content depends on
    faces.json      what the first reading found; record.npz, the places and codes that are painted
    00000.mp4, ...  the finished segments

    With another mark or without `resume` it begins empty. An interruption leaves it; it goes when the clip is done, or
    refused for what it is. Raises PhotoError when it cannot be made.
    """
    folder = target.with_name(f".{target.name}.riddle-work")
    file = folder / "mark"
    try:
        if not (resume and file.is_file() and file.read_bytes() == mark.encode()):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            write_text(file, mark)
    except OSError as e:
        raise PhotoError(target, f"no work folder can be made beside it ({e})", "name another place") from e
    try:
        yield folder
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def encoder_for(target: Path) -> str:
    """Which encoder makes a clip of the target's ending. Raises PhotoError when there is none."""
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
        stream, times = out.add_stream(codec, rate=rate), deque()
        stream.time_base, context = clip.time_base, stream.codec_context
        context.width, context.height, context.pix_fmt = *clip.size, clip.pixels
        context.time_base, context.options = 1 / rate, dict(ENCODERS[codec])  # a tick a frame
        if clip.aspect:
            context.sample_aspect_ratio = clip.aspect
        for name, value in clip.colours.items():
            setattr(context, name, value)

        def mux(packets: Iterable[Any]) -> None:
            for packet in packets:
                packet.time_base, (packet.pts, duration) = clip.time_base, times.popleft()
                packet.dts = packet.pts
                packet.duration = duration
                out.mux(packet)

        for i, frame in enumerate(piece):
            image = av.VideoFrame.from_ndarray(frame.planes, format=clip.pixels)
            image.pts, image.time_base = i, context.time_base
            times.append((frame.pts, frame.duration))
            mux(stream.encode(image))
        mux(stream.encode(None))


def join(target: Path, clip: Clip, segments: list[Path], tag: str = "") -> list[str]:
    """Write the clip of these segments with the sound of `clip`, and a text into its metadata; returns notes.

    Nothing is encoded again but sound of a codec that the target's container does not take; then the notes say so.
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
        packets = merge(_pictures(segments, video), _sounds(source, clip, heard), key=lambda item: item[:2])
        for _, _, packet in packets:
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
