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
from riddle.app.clip import Clip, Frame, frames, probe
from riddle.app.cliprecord import ClipRecord, matrix
from riddle.app.container import sidecar_path
from riddle.app.photos import FaceReport, FileReport, refuse
from riddle.app.segments import ENCODERS, encoder_for, join, work_folder, write_segment
from riddle.app.steadiness import measure
from riddle.app.survey import HOLD, PATIENCE, SEARCH, STEP, frames_of, record_of, survey
from riddle.app.tracking import RECOGNISER, Embedder, Track, crops
from riddle.files import replace_file, sha256, write_text
from riddle.images import PhotoError
from riddle.pipeline import Riddle
from riddle.progress import track
from riddle.record import AGAIN, RecordError

SEGMENT = 4.0  # s of a segment
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
    # Means over its frames, of "source", the clip as it was, and of "target", as it was written; None: not measured.
    identity: dict[str, float | None] = field(default_factory=dict)  # cosine of consecutive frames' embeddings
    person: dict[str, float | None] = field(default_factory=dict)  # cosine of the embeddings with their mean
    jitter: dict[str, float | None] = field(default_factory=dict)  # landmarks' second difference, in sides of the face


def protect_video(
    model: Riddle,
    source: str | Path,
    target: str | Path,
    passphrase: str,
    *,
    strict: bool = False,
    resume: bool = False,
) -> FileReport:
    """Write a clip in which every face that can be is an encrypted one, the same stranger throughout.

    target: .mp4, .m4v, .mov, .mkv or .webm; strict: refuse a clip with a face that cannot be protected; resume: go on
    with what an interrupted call left. Raises PhotoError for a clip that cannot be read, has no face or none that can
    be protected (with strict: one that cannot), for a target that cannot be written; ValueError for a bad passphrase.
    """
    return _work(model, Path(source), Path(target), passphrase, "protected", strict, resume)


def restore_video(
    model: Riddle, source: str | Path, target: str | Path, passphrase: str, *, resume: bool = False
) -> FileReport:
    """Write a protected clip with its faces decrypted; a wrong passphrase gives other faces, not an error.

    The faces come from the clip's record, its own or that in `source`.riddle; where it has none they are found and
    inverted again. Otherwise as `protect_video`; raises RecordError, a PhotoError, for a record that is damaged or of
    another model or clip.
    """
    return _work(model, Path(source), Path(target), passphrase, "restored", False, resume)


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


def _work(
    model: Riddle, source: Path, target: Path, passphrase: str, done: str, strict: bool, resume: bool
) -> FileReport:
    """Protect or restore a clip; done: "protected" or "restored"."""
    codec, clip = encoder_for(target), probe(source)
    key = passwords.derive_key(passphrase, model.preset.name)
    password, embedder, notes = model.from_key(key), Embedder(), list(clip.notes)
    if embedder.absent:
        notes.append(f"identity was not measured: {RECOGNISER} {embedder.absent}")
    data = cliprecord.find(source)[0] if done == "restored" else b""
    record = ClipRecord.from_bytes(data, source) if data else None

    def change(codes: torch.Tensor) -> torch.Tensor:
        """Codes (N, L, D) encrypted, or decrypted: the same network does both."""
        return model.encrypt(codes, password)

    with work_folder(target, _settings(model, clip, codec, done, data), key, resume) as work:
        if record is None:
            how = "protected" if done == "protected" else "inversion"
            record, faces, found = _surveyed(model, clip, embedder, change, done, strict, work)
            notes += found if how == "protected" else [*found, NO_RECORD]
        else:
            how = "codes"
            record.must_fit(model.preset, model.weights_hash, clip.upright_size, str(source))
            faces, record = _carried(record), _decrypted(model, record, change)
        segments, missed, count = _paint(model, clip, record, codec, target.suffix.lower(), work)
        if missed and how != "codes":  # the record is of this very clip
            raise PhotoError(source, "it changed while it was read", "wait until it is complete")
        if missed == count:
            raise RecordError(source, "its frames are not those that its record tells of", AGAIN)
        if missed:
            notes.append(f"{missed} of {count} frames are not in its record: left as they were")
        result, record_bytes = segments[0].with_stem("result"), record.to_bytes() if how == "protected" else b""
        inside = len(record_bytes) <= cliprecord.MAX_INSIDE
        notes += join(result, clip, segments, base64.b64encode(record_bytes).decode() if inside else "")
        measures = measure(model, clip, probe(result), record, embedder)
        if not inside:
            beside = sidecar_path(target)
            with replace_file(beside) as temporary:
                temporary.write_bytes(record_bytes)
            notes.append(f"the record is too large for the clip and lies in {beside}: keep it beside the clip")
        with replace_file(target) as temporary:
            result.rename(temporary)
    faces = [replace(face, **measures.get(face.track, {})) for face in faces]
    return FileReport(source, target, faces, how, [*notes, f"pictures encoded by {codec}"])


def _settings(model: Riddle, clip: Clip, codec: str, done: str, record: bytes) -> dict[str, Any]:
    """All that the work folder's content depends on, but the passphrase."""
    return {
        "done": done, "source": sha256(clip.path), "record": hashlib.sha256(record).hexdigest(),
        "preset": model.preset.name, "weights": model.weights_hash, "mask": model.mask,
        "detector": getattr(model.detector, "name", type(model.detector).__name__),
        "pace": [SEARCH, PATIENCE, HOLD, STEP, SEGMENT], "encoder": codec, "options": ENCODERS[codec],
        "av": av.__version__, "version": cliprecord.VERSION,
    }  # fmt: skip


# Where the faces are


def _surveyed(
    model: Riddle, clip: Clip, embedder: Embedder, change: Callable, done: str, strict: bool, work: Path
) -> tuple[ClipRecord, list[ClipFace], list[str]]:
    """The record of the clip's faces, what is known of each, and notes: from the work folder or from reading the
    clip."""
    kept, data = work / "faces.json", work / "record.npz"
    if not kept.exists():
        times, tracks = survey(model, clip, embedder)
        faces = [_face(times, face, done) for face in tracks]
        refuse(clip.path, faces, strict)
        with replace_file(data) as temporary:
            temporary.write_bytes(record_of(times, tracks, clip, model, change).to_bytes())
        notes = _watch(times, tracks, clip)
        write_text(kept, json.dumps({"faces": [asdict(face) for face in faces], "notes": notes}))
    told, record = json.loads(kept.read_text()), ClipRecord.from_bytes(data.read_bytes(), data)
    faces = [ClipFace(**face | {"box": tuple(face["box"])}) for face in told["faces"]]
    refuse(clip.path, faces, strict)
    return record, faces, told["notes"]


def _face(times: np.ndarray, face: Track, done: str) -> ClipFace:
    """The report of a face that was followed."""
    begin, end = (face.begin, face.end) if face.good else (face.frames[0], face.frames[-1])
    begins, ends = (round(float(times[n]), 3) for n in (begin, end))
    status, reason, covered = (done, "", end - begin + 1) if face.good else ("skipped", face.doubt, 0)
    return ClipFace(face.box, status, reason, face.id, begins, ends, covered, len(face.frames))


def _watch(times: np.ndarray, tracks: list[Track], clip: Clip) -> list[str]:
    """Notes where a face was lost, or first found, within a scene and not at the border of the frame."""
    notes, size = [], np.array(clip.upright_size)
    for t in (t for t in tracks if t.good):
        for end, covered, what, until in ((0, t.begin, "first found", "from"), (-1, t.end, "lost", "until")):
            place, side = t.places[end], np.hypot(*t.places[end][2:])
            inside = (place[:2] > 0.6 * side).all() and (place[:2] < size - 0.6 * side).all()
            if covered != t.scene[end] and inside:
                seen, shown = (round(float(times[n]), 3) for n in (t.frames[end], covered))
                told = f"face {t.id} was {what} at {seen} s and is covered {until} {shown} s"
                notes.append(f"{told}: look whether it shows beyond that")
    every = frames_of(SEARCH, clip.rate)
    return [
        *notes,
        f"searched in full every {every} frames and at cuts, followed in between: a face that shows for less than"
        f" {every} frames may not be found",
    ]


def _carried(record: ClipRecord) -> list[ClipFace]:
    """The faces that a record tells of."""
    faces = []
    for box, (number, first, count) in zip(record.boxes(), record.tracks.tolist(), strict=True):
        begins, ends = (round(float(record.times[n]), 3) for n in (first, first + count - 1))
        faces.append(ClipFace(tuple(box), "restored", "", number, begins, ends, count, count))
    return faces


def _decrypted(model: Riddle, record: ClipRecord, change: Callable) -> ClipRecord:
    space, parts = model.generator.codes, record.codes.to(model.device).split(128)
    return replace(record, codes=torch.cat([space.to_gaussian(change(space.to_w(part))).cpu() for part in parts]))


# Painting


def _paint(
    model: Riddle, clip: Clip, record: ClipRecord, codec: str, ending: str, work: Path
) -> tuple[list[Path], int, int]:
    """Write every segment that is not there. Returns all of them, how many frames the record does not tell of, and how
    many there are."""
    segments, length, missed, count = [], frames_of(SEGMENT, clip.rate), 0, 0

    def known(piece: Iterator[Frame], new: bool) -> Iterator[Frame]:
        nonlocal missed, count
        for frame in piece:
            missed, count = missed + (record.frame(frame.since) is None), count + 1
            if new and (faces := record.faces_at(frame.since)):
                paint(model, frame, faces)
            yield frame

    shown = track(frames(clip), "paint", clip.estimate or None, "frame", leave=False)
    for k, piece in groupby(shown, lambda frame: frame.n // length):
        segments.append(work / f"{k:05}{ending}")
        if segments[-1].exists():
            for _ in known(piece, new=False):
                pass
            continue
        with replace_file(segments[-1]) as temporary:
            write_segment(temporary, clip, codec, known(piece, new=True))
    return segments, missed, count


def paint(model: Riddle, frame: Frame, faces: list[tuple[int, np.ndarray, torch.Tensor]]) -> None:
    """Replace the faces of a frame; faces: as ClipRecord.faces has them, with the codes that are drawn."""
    _, places, codes = zip(*faces, strict=True)
    before, matrices = frame.rgb(), np.stack([matrix(place) for place in places])
    image = Image.fromarray(before)
    under = crops(model, image, places).to(model.device)
    w = model.generator.codes.to_w(torch.stack(codes).to(model.device))
    drawn = model.draw(w, matrices)[1]
    frame.replace(before, np.asarray(model.paste(image, under, drawn, matrices)))
