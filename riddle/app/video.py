"""Protect and restore clips: every face found, followed, replaced by one stranger throughout, and accounted for.

    report = protect_video(model, "party.mp4", "safe.mp4", "correct horse")
    report = restore_video(model, "safe.mp4", "back.mp4", "correct horse")
    dataclasses.asdict(report)                 # for JSON: each face's box and times, and what was left

A clip is read twice, frame by frame: first the faces are found, followed and inverted (riddle.app.survey), which
gives the record (riddle.app.cliprecord); then they are painted by the record. A clip with a record is not searched.
Last, both clips are read side by side and it is measured how steady each face stays. Sound is copied; times, frame size
and rotation are kept. The clip is written in segments, which wait in a folder beside the target until they are joined.
After an interruption `resume` goes on with them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from riddle import passwords
from riddle.app import cliprecord
from riddle.app.clip import Frame, frames, probe
from riddle.app.cliprecord import ClipRecord, matrix
from riddle.app.container import sidecar_path
from riddle.app.photos import FaceReport, FileReport, checked
from riddle.app.segments import ENCODERS, encoder_for, join, work_folder, write_segment
from riddle.app.steadiness import Measures, measure
from riddle.app.survey import Pace, record_of, survey
from riddle.app.tracking import RECOGNISER, Embedder, Track, crops
from riddle.faces import blending
from riddle.files import replace_file, sha256
from riddle.images import PhotoError
from riddle.pipeline import Riddle
from riddle.record import AGAIN, RecordError

Progress = Callable[[int, int | None], None]
NO_RECORD = (
    "the clip carries no record: its faces were found and inverted again, which is less exact than by the record"
)


@dataclass(frozen=True)
class ClipFace(FaceReport):
    """One face through its scene and what became of it; box: where it is first seen well. Times in seconds."""

    track: int = 0
    begins: float = 0.0
    ends: float = 0.0
    frames: int = 0  # in which it was replaced
    seen: int = 0  # in which it was found; between, before and after it was covered where it must have been
    doubted: int = 0  # of those, too small, in profile or cut off: covered, but not inverted
    # Means over its frames, of "source", the clip as it was, and of "target", as it was written; None: not measured.
    identity: dict[str, float | None] = field(default_factory=dict)  # cosine of consecutive frames' embeddings
    person: dict[str, float | None] = field(default_factory=dict)  # cosine of the embeddings with their mean
    jitter: dict[str, float | None] = field(default_factory=dict)  # landmarks' second difference, in sides of the face


@dataclass(frozen=True)
class VideoReport(FileReport):
    """What became of a clip; how: "protected"; of a restored one "codes", by its record, or "inversion"."""

    frames: int = 0
    seconds: float = 0.0
    encoder: str = ""
    sidecar: str = ""  # where the record lies, when it is not in the clip itself


def protect_video(
    model: Riddle,
    source: str | Path,
    target: str | Path,
    passphrase: str,
    *,
    strict: bool = False,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> VideoReport:
    """Write a clip in which every face that can be is an encrypted one, the same stranger throughout.

    target: .mp4, .m4v, .mov, .mkv or .webm; strict: refuse a clip with a face that cannot be protected; resume: go on
    with what an interrupted call left; on_progress: called with the frames done and all frames, over all readings.
    Raises PhotoError for a clip that cannot be read, has no face or none that can be protected (with strict: one that
    cannot), for a target that cannot be written; ValueError for a bad passphrase.
    """
    return _Job(model, source, target, passphrase, "protect", on_progress).run(strict, resume)


def restore_video(
    model: Riddle,
    source: str | Path,
    target: str | Path,
    passphrase: str,
    *,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> VideoReport:
    """Write a protected clip with its faces decrypted; a wrong passphrase gives other faces, not an error.

    The faces come from the clip's record, its own or that in `source`.riddle; where it has none they are found and
    inverted again. Otherwise as `protect_video`; raises RecordError, a PhotoError, for a record that is damaged or of
    another model or clip.
    """
    return _Job(model, source, target, passphrase, "restore", on_progress).run(False, resume)


def inspect(path: str | Path) -> dict[str, Any]:
    """What a clip, or a clip's sidecar, carries; the keys are those of `riddle.app.container.inspect`, and frames."""
    data, where = cliprecord.find(path)
    if not data:
        return {"file": str(path), "protected": False}
    record = ClipRecord.from_bytes(data, path)
    return {
        "file": str(path), "protected": True, "where": where, "version": cliprecord.VERSION, "preset": record.preset,
        "weights": record.weights, "size": list(record.size), "faces": record.boxes(),
        "salt": "public", "originals": False, "record_bytes": len(data), "frames": len(record.times),
    }  # fmt: skip


class _Job:
    """One clip on its way: `run` does it."""

    def __init__(
        self, model: Riddle, source: str | Path, target: str | Path, passphrase: str, verb: str, progress: Any
    ):
        self.model, self.verb, self.progress = model, verb, progress
        self.source, self.target = checked(source, target, encoder_for)
        self.codec = encoder_for(self.target)
        self.key = passwords.derive_key(passphrase, model.preset.name)
        self.password = model.from_key(self.key)
        self.clip = probe(self.source)
        self.pace, self.notes = Pace.of(self.clip.rate), list(self.clip.notes)
        self.embedder = Embedder()
        if self.embedder.absent:
            self.notes.append(f"identity was not measured: {RECOGNISER} {self.embedder.absent}")
        self.read, self.all = 0, 2 * self.clip.estimate

    def run(self, strict: bool, resume: bool) -> VideoReport:
        """All of it."""
        data = cliprecord.find(self.source)[0] if self.verb == "restore" else b""
        record = ClipRecord.from_bytes(data, self.source) if data else None
        how = "protected" if self.verb == "protect" else "codes" if record else "inversion"
        with work_folder(self.target, self._settings(data), self.key, resume) as work:
            if record is None:
                record, faces = self._surveyed(work, strict)
                painting = record
            else:
                record.must_fit(self.model.preset, self.model.weights_hash, self.clip.upright_size, str(self.source))
                space, parts = self.model.generator.codes, record.codes.to(self.model.device).split(128)
                codes = [space.to_gaussian(self._change(space.to_w(part))).cpu() for part in parts]
                painting, faces = replace(record, codes=torch.cat(codes)), None
            painter = _Painter(self.model, painting)
            segments = self._paint(work, painter)
            self.notes += painter.refuse_or_tell(self.source, exact=faces is not None)
            faces = painter.faces() if faces is None else faces
            if how == "inversion":
                self.notes.append(NO_RECORD)
            sidecar, measures = self._write(segments, record.to_bytes() if how == "protected" else b"", painting)
        faces = [replace(face, **measures.get(face.track, {})) for face in faces]
        self.notes.append(f"pictures encoded by {self.codec}")
        seconds = round(painter.seconds + float(1 / self.clip.rate), 3)
        return VideoReport(
            self.source, self.target, faces, how, self.notes, painter.count, seconds, self.codec, sidecar
        )  # fmt: skip

    def _change(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (N, L, D) encrypted, or decrypted: the same network does both."""
        return self.model.encrypt(codes, self.password)

    def _tick(self) -> None:
        self.read += 1
        if self.progress is not None:
            self.progress(self.read, max(self.all, self.read) if self.all else None)

    def _settings(self, record: bytes) -> dict[str, Any]:
        """All that the work folder's content depends on, but the passphrase."""
        model = self.model
        return {
            "verb": self.verb, "source": sha256(self.source), "record": hashlib.sha256(record).hexdigest(),
            "preset": model.preset.name, "weights": model.weights_hash, "mask": model.mask,
            "detector": getattr(model.detector, "name", type(model.detector).__name__), "pace": asdict(self.pace),
            "encoder": self.codec, "options": ENCODERS[self.codec], "av": av.__version__, "version": cliprecord.VERSION,
        }  # fmt: skip

    # The first reading

    def _surveyed(self, work: Path, strict: bool) -> tuple[ClipRecord, list[ClipFace]]:
        """The record of the clip's faces and what is known of each, from the work folder or from reading the clip."""
        kept, data = work / "faces.json", work / "record.npz"
        self.all = 3 * self.clip.estimate
        if not kept.exists():
            times, tracks = survey(self.model, self.clip, self.embedder, self._tick)
            seconds = times.round(3).tolist()
            faces = list(self._faces(seconds, tracks))
            self._refuse(faces, strict)
            with replace_file(data) as temporary:
                temporary.write_bytes(record_of(times, tracks, self.clip, self.model, self._change).to_bytes())
            told = {"faces": [asdict(face) for face in faces], "notes": self._watch(seconds, tracks)}
            with replace_file(kept) as temporary:
                temporary.write_text(json.dumps(told))
        told, record = json.loads(kept.read_text()), ClipRecord.from_bytes(data.read_bytes(), data)
        faces = [ClipFace(**face | {"box": tuple(face["box"])}) for face in told["faces"]]
        self._refuse(faces, strict)
        self.notes += told["notes"]
        self.read, self.all = len(record.times), 3 * len(record.times)
        return record, faces

    def _refuse(self, faces: list[ClipFace], strict: bool) -> None:
        if not faces:
            remedy = "look whether there is one, and crop the clip closer to it; nothing was written"
            raise PhotoError(self.source, "no face was found", remedy)
        left = [face for face in faces if face.status == "skipped"]
        if len(left) == len(faces) or (strict and left):
            listed = "; ".join(f"the face at {','.join(map(str, f.box))}: {f.reason}" for f in left[:5])
            cause = "no face of it can be replaced" if len(left) == len(faces) else "strict, and a face cannot be"
            raise PhotoError(self.source, f"{cause}: {listed}", "nothing was written")

    def _faces(self, seconds: list[float], tracks: list[Track]) -> Iterator[ClipFace]:
        done = "protected" if self.verb == "protect" else "restored"
        for t in tracks:
            begin, end = (t.begin, t.end) if t.good else (t.frames[0], t.frames[-1])
            covered = end - begin + 1 if t.good else 0
            yield ClipFace(
                t.box, done if t.good else "skipped", t.reason, t.id, seconds[begin], seconds[end], covered,
                 len(t.frames), len(t.frames) - t.good,
            )  # fmt: skip

    def _watch(self, seconds: list[float], tracks: list[Track]) -> list[str]:
        """Notes where a face was lost, or first found, within a scene and not at the border of the frame."""
        notes, size = [], np.array(self.clip.upright_size)
        for t in (t for t in tracks if t.good):
            for end, covered, what, until in ((0, t.begin, "first found", "from"), (-1, t.end, "lost", "until")):
                place, side = t.places[end], np.hypot(*t.places[end][2:])
                inside = (place[:2] > 0.6 * side).all() and (place[:2] < size - 0.6 * side).all()
                if covered != t.scene[end] and inside:
                    notes.append(
                        f"face {t.id} was {what} at {seconds[t.frames[end]]} s and is covered {until}"
                        f" {seconds[covered]} s: look whether it shows beyond that"
                    )
        return [*notes, f"searched in full every {self.pace.search} frames and at cuts, followed in between: a face"
                f" that shows for less than {self.pace.search} frames may not be found"]  # fmt: skip

    # The second reading

    def _paint(self, work: Path, painter: _Painter) -> list[Path]:
        """Write every segment that is not there; returns all of them."""
        segments = []
        for k, piece in groupby(frames(self.clip), lambda frame: frame.n // self.pace.segment):
            segments.append(work / f"{k:05}{self.target.suffix.lower()}")
            if segments[-1].exists():
                for frame in piece:
                    painter.faces_in(frame)
                    self._tick()
                continue
            with replace_file(segments[-1]) as temporary:
                write_segment(temporary, self.clip, self.codec, self._painted(painter, piece))
        return segments

    def _painted(self, painter: _Painter, piece: Iterator[Frame]) -> Iterator[Frame]:
        for frame in piece:
            painter.paint(frame)
            yield frame
            self._tick()

    def _write(self, segments: list[Path], record: bytes, painting: ClipRecord) -> tuple[str, dict[int, Measures]]:
        """Join the segments, with the record inside or beside; returns where a sidecar lies, else "", and measures."""
        inside, beside = len(record) <= cliprecord.MAX_INSIDE, ""
        result = segments[0].with_stem("result")  # a killed program leaves nothing outside the work folder
        self.notes += join(result, self.clip, segments, base64.b64encode(record).decode() if inside else "")
        places = _Painter(self.model, painting)
        measures = measure(self.model, self.clip, probe(result), places.faces_in, self.embedder, self._tick)
        if not inside:
            beside = str(sidecar_path(self.target))
            with replace_file(beside) as temporary:
                temporary.write_bytes(record)
            self.notes.append(f"the record is too large for the clip and lies in {beside}: keep it beside the clip")
        with replace_file(self.target) as temporary:
            result.rename(temporary)
        return beside, measures


class _Painter:
    """Paints the faces of a record into the frames of a clip, which it knows by their times."""

    def __init__(self, model: Riddle, record: ClipRecord):
        self.model, self.record = model, record
        self.begin, self.seconds, self.count, self.missed = None, 0.0, 0, 0
        self.shown: dict[int, list] = {}  # track -> box, first and last time, count of frames

    def faces_in(self, frame: Frame) -> list[tuple[int, np.ndarray, torch.Tensor]]:
        """The faces in the next frame: track, place and code."""
        self.begin = frame.seconds if self.begin is None else self.begin
        self.seconds = frame.seconds - self.begin
        self.count += 1
        n = self.record.frame(self.seconds)
        self.missed += n is None
        found = [] if n is None else self.record.faces(n)
        for track, place, _ in found:
            box = blending.box(matrix(place), self.record.size)
            known = self.shown.setdefault(track, [box, self.seconds, 0.0, 0])
            known[2:] = self.seconds, known[3] + 1
        return found

    def paint(self, frame: Frame) -> None:
        """Replace the faces of the next frame."""
        if not (found := self.faces_in(frame)):
            return
        _, places, codes = zip(*found, strict=True)
        before, matrices = frame.rgb(), np.stack([matrix(place) for place in places])
        image = Image.fromarray(before)
        under = crops(self.model, image, places).to(self.model.device)
        w = self.model.generator.codes.to_w(torch.stack(codes).to(self.model.device))
        drawn = self.model.draw(w, matrices)[1]
        frame.replace(before, np.asarray(self.model.paste(image, under, drawn, matrices)))

    def refuse_or_tell(self, source: Path, exact: bool) -> list[str]:
        """Notes on frames that the record does not tell of. Raises PhotoError, RecordError where that must not be."""
        if exact and self.missed:  # the record is of this very clip
            raise PhotoError(source, "it changed while it was read", "wait until it is complete")
        if self.missed == self.count:
            raise RecordError(source, "its frames are not those that its record tells of", AGAIN)
        if not self.missed:
            return []
        return [f"{self.missed} of {self.count} frames are not in its record: left as they were"]

    def faces(self) -> list[ClipFace]:
        """The faces that were restored by the record."""
        return [
            ClipFace(box, "restored", "", track, round(begins, 3), round(ends, 3), count, count)
            for track, (box, begins, ends, count) in sorted(self.shown.items())
        ]
