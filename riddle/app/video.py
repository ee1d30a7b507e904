"""Protect and restore clips: every face found, followed, replaced by one stranger throughout, and accounted for.

    report = protect_video(model, "party.mp4", "safe.mp4", "correct horse")
    report = restore_video(model, "safe.mp4", "back.mp4", "correct horse")
    dataclasses.asdict(report)                 # for JSON: each face's box and times, and what was left

A clip is read twice, frame by frame: first the faces are found, followed and inverted (riddle.app.tracking), which
gives the record (riddle.app.cliprecord); then they are painted by the record. A clip with a record is not searched.
Sound is copied; times, frame size and rotation are kept. The clip is written in segments, which wait in a folder beside
the target until they are joined. After an interruption `resume` goes on with them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from riddle import passwords
from riddle.app import cliprecord, tracking
from riddle.app.clip import ENCODERS, Clip, Frame, encoder_for, frames, join, probe, write_segment
from riddle.app.cliprecord import ClipRecord, code_count
from riddle.app.photos import NOT_OPENED, FileReport, refuse
from riddle.app.tracking import Track, frames_of, record_of, survey
from riddle.faces import fitting
from riddle.faces.alignment import matrix
from riddle.faces.outcomes import FaceReport, box_of
from riddle.files import replace_file, sha256, write_text
from riddle.images import PhotoError, write_file
from riddle.models.codes import lit
from riddle.pipeline import Riddle
from riddle.progress import track
from riddle.record import sidecar_path
from riddle.seal import AGAIN, VERSION, RecordError, Sealed

SEGMENT = 4.0  # s of a segment
NO_RECORD = "the clip carries no record: its faces were found and inverted again, which does not bring the people back"


@dataclass(frozen=True)
class ClipFace(FaceReport):
    """One face through its scene and what became of it; box: its square where it begins. Times in seconds."""

    track: int = 0
    begins: float = 0.0
    ends: float = 0.0
    frames: int = 0  # in which it was replaced
    seen: int = 0  # in which it was found; between, before and after it was covered where it must have been


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

    The faces come from the clip's record, its own or that in `source`.riddle; where it has none, or it does not open,
    they are found and inverted again. Otherwise as `protect_video`; raises RecordError, a PhotoError, for a record that
    is damaged or of another model or clip.
    """
    return _work(model, Path(source), Path(target), passphrase, "restored", False, resume)


def _work(
    model: Riddle, source: Path, target: Path, passphrase: str, done: str, strict: bool, resume: bool
) -> FileReport:
    """Protect or restore a clip; done: "protected" or "restored"."""
    codec, clip, protects = encoder_for(target), probe(source), done == "protected"
    sealed = None if protects else cliprecord.read(source)[0]
    settings = _settings(model, clip, codec, done, sealed)
    mark = passwords.derive_key(passphrase, model.preset.name, settings).hex()  # of no use elsewhere: a salt of its own
    with work_folder(target, mark, resume) as work:
        salt = (work / "salt").read_bytes() if protects else sealed.salt if sealed else None
        secret = model.secret(passphrase, salt)
        keys = partial(model.keys, passphrase, secret, salt)
        carried, notes = None, []
        if sealed is not None:
            sealed.must_fit(model.preset, model.weights_hash, clip.upright_size, source)
            carried = ClipRecord.open(sealed, secret, source)
        if carried is not None:
            faces, record = _faces(carried, done), replace(changed(model, carried, keys), shift=None)
        else:
            record, faces, notes = _surveyed(model, clip, keys, secret, done, strict, work)
            if not protects:
                notes.append(NOT_OPENED if sealed else NO_RECORD)
        if protects:  # painted in the light of the faces behind them
            sealed = record.seal(secret, salt, model.preset.name, model.weights_hash)
            record = replace(record, codes=lit(record.codes, changed(model, record, keys).codes))
        segments, missed, count = _paint(model, clip, record, codec, target.suffix.lower(), work)
        if missed and carried is None:  # the record is of this very clip
            raise PhotoError(source, "it changed while it was read", "wait until it is complete")
        if missed == count:
            raise RecordError(source, "its frames are not those that its record tells of", AGAIN)
        if missed:
            notes.append(f"{missed} of {count} frames are not in its record: left as they were")
        result = segments[0].with_stem("result")
        inside = protects and len(sealed.data) <= cliprecord.MAX_INSIDE
        notes += join(result, clip, segments, sealed.text if inside else "")
        if protects and not inside:
            beside = write_file(sidecar_path(target), sealed.data)
            notes.append(f"the record is too large for the clip and lies in {beside}: keep it beside the clip")
        with replace_file(target) as temporary:
            result.rename(temporary)
            _remove(work)  # before the clip has its name: one that is there is not worked on again
    how = "codes" if carried else "protected" if protects else "inversion"
    return FileReport(source, target, faces, how, [*clip.notes, *notes, f"pictures encoded by {codec}"])


def _settings(model: Riddle, clip: Clip, codec: str, done: str, sealed: Sealed | None) -> bytes:
    """16 bytes that differ with all that the work folder's content depends on, but the passphrase."""
    settings = [
        done, sha256(clip.path), hashlib.sha256(sealed.data if sealed else b"").hexdigest(),
        model.preset.name, model.weights_hash, model.mask,
        getattr(model.detector, "name", type(model.detector).__name__),
        tracking.PACE, SEGMENT, codec, ENCODERS[codec], av.__version__, VERSION,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(settings).encode()).digest()[: passwords.SALT_BYTES]


@contextmanager
def work_folder(target: Path, mark: str, resume: bool) -> Iterator[Path]:
    """The folder in which a clip is worked off, `.NAME.riddle-work` beside the target, for its owner only.

    mark            the text given, which differs with the passphrase and all else that the folder's content depends on
    salt            of a clip that is being protected: a random one, the same after an interruption
    faces.json      what the first reading found
    record          the places and the encrypted or decrypted codes, sealed
    00000.mp4, ...  the finished segments

    With another mark or without `resume` it begins empty. An interruption leaves it; it goes when the clip is done, or
    refused for what it is. Raises PhotoError when it cannot be made.
    """
    folder = target.with_name(f".{target.name}.riddle-work")
    file = folder / "mark"
    try:
        if not (resume and file.is_file() and file.read_bytes() == mark.encode()):
            _remove(folder)
            folder.mkdir(mode=0o700)
            write_file(folder / "salt", passwords.random_salt())
            write_text(file, mark)
    except OSError as e:
        raise PhotoError(target, f"no work folder can be made beside it ({e})", "name another place") from e
    try:
        yield folder
    except ValueError:
        _remove(folder)
        raise


def _remove(folder: Path) -> None:
    """Remove a work folder; without its mark, nobody goes on with what a kill leaves of it."""
    (folder / "mark").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


# Where the faces are


def _surveyed(
    model: Riddle, clip: Clip, keys: Callable, secret: bytes, done: str, strict: bool, work: Path
) -> tuple[ClipRecord, list[ClipFace], list[str]]:
    """The record of the clip's faces, what is known of each, and notes: from the work folder or from reading the
    clip."""
    kept, data = work / "faces.json", work / "record"
    if not kept.exists():
        times, tracks = survey(model, clip)
        skipped = [_skipped(times, face, clip.upright_size) for face in tracks if not face.good]
        if len(skipped) == len(tracks):
            refuse(clip.path, skipped)
        own = record_of(times, tracks, clip, model)
        if done == "protected":
            turns, shift = _fitted(model, [face for face in tracks if face.good], keys)
            own = replace(own, turns=turns, shift=shift)
        record = changed(model, own, keys)
        if done == "restored":
            record = replace(record, codes=lit(record.codes, own.codes))
        faces = _faces(record, done, {face.id: len(face.frames) for face in tracks}) + skipped
        write_file(data, record.seal(secret, bytes(passwords.SALT_BYTES), model.preset.name, model.weights_hash).data)
        write_text(kept, json.dumps({"faces": [asdict(face) for face in faces], "notes": _watch(times, tracks, clip)}))
    told, sealed = json.loads(kept.read_text()), Sealed.from_bytes(data.read_bytes(), data, "clip")
    record = ClipRecord.open(sealed, secret, data)
    faces = [ClipFace(**face | {"box": tuple(face["box"])}) for face in told["faces"]]
    refuse(clip.path, faces, strict)
    return record, faces, told["notes"]


def _fitted(model: Riddle, tracks: list[Track], keys: Callable) -> tuple[list[int], torch.Tensor]:
    """Which of its keys each face has: that of the stranger who fits best where the face is largest; and the shift
    (n, L, D) in z by which the stranger of its mean code becomes the settled one (`Riddle.settled`).

    A clip has one shift a face: to settle each frame anew would make the face flicker.
    """
    space, means = model.generator.codes, np.stack([face.mean_code() for face in tracks])
    w = space.to_w(torch.from_numpy(means).to(model.device, torch.float32))
    z, _, turns = fitting.strangers(model, w, torch.stack([face.crop for face in tracks]), keys, many=True)
    codes = space.to_w(z)
    plain, place = lit(codes, model.decrypt(codes, keys(turns))), model.synthesize(w)  # the pose of the mean code
    return turns, (space.to_record(model.settled(plain, place)) - space.to_record(plain)).cpu().half().float()


def _faces(record: ClipRecord, done: str, seen: dict[int, int] | None = None) -> list[ClipFace]:
    """The faces that a record tells of; seen: in how many frames each was found, default: in all of its own."""
    faces, row = [], 0
    for number, first, count in record.tracks.tolist():
        box = box_of(matrix(record.places[row]), record.size)
        begins, ends = record.times[[first, first + count - 1]].round(3).tolist()
        faces.append(ClipFace(box, done, "", number, begins, ends, count, (seen or {}).get(number, count)))
        row += count
    return faces


def _skipped(times: np.ndarray, face: Track, size: tuple[int, int]) -> ClipFace:
    """The report of a face that cannot be replaced."""
    begins, ends = times[[face.frames[0], face.frames[-1]]].round(3).tolist()
    box = box_of(matrix(face.places[0]), size)
    return ClipFace(box, "skipped", face.doubt, face.id, begins, ends, 0, len(face.frames))


def _watch(times: np.ndarray, tracks: list[Track], clip: Clip) -> list[str]:
    """Notes where a face was lost, or first found, within a scene and not at the border of the frame."""
    notes, size, every = [], np.array(clip.upright_size), frames_of(tracking.SEARCH, clip.rate)
    for t in (t for t in tracks if t.good):
        for end, covered, what, until in ((0, t.begin, "first found", "from"), (-1, t.end, "lost", "until")):
            place, side = t.places[end], np.hypot(*t.places[end][2:])
            inside = (place[:2] > 0.6 * side).all() and (place[:2] < size - 0.6 * side).all()
            if covered != t.scene[end] and inside:
                seen, shown = (round(float(times[n]), 3) for n in (t.frames[end], covered))
                told = f"face {t.id} was {what} at {seen} s and is covered {until} {shown} s"
                notes.append(f"{told}: look whether it shows beyond that")
    told = f"searched in full every {every} frames and at cuts, followed in between: a face that shows for less than"
    return [*notes, f"{told} {every} frames may not be found"] if every > 1 else notes


def changed(model: Riddle, record: ClipRecord, keys: Callable[[int], torch.Tensor]) -> ClipRecord:
    """A record with its codes encrypted, or decrypted; keys: turns of its n faces -> passwords (1 or n, L, D)."""
    _, first, count = record.tracks.T
    face = torch.from_numpy(np.repeat(np.arange(len(first)), code_count(first, count, record.every)))
    space, given, codes = model.generator.codes, keys(record.turns).expand(len(first), -1, -1), []
    for part in torch.arange(len(face)).split(128):
        w = space.to_w(record.codes[part].to(model.device))
        codes.append(space.to_record(model.encrypt(w, given[face[part]])).cpu())
    return replace(record, codes=torch.cat(codes))


# Painting


def _paint(
    model: Riddle, clip: Clip, record: ClipRecord, codec: str, ending: str, work: Path
) -> tuple[list[Path], int, int]:
    """Write every segment that is not there. Returns all of them, how many frames the record does not tell of, and how
    many there are."""
    segments, numbers, length = [], [], frames_of(SEGMENT, clip.rate)

    def painted(piece: Iterator[Frame]) -> Iterator[Frame]:
        for frame in piece:
            numbers.append(record.frame(frame.since))
            if faces := record.faces(numbers[-1]):
                paint(model, frame, faces)
            yield frame

    shown = track(frames(clip), "paint", clip.estimate or None, "frame", leave=False)
    for k, piece in groupby(shown, lambda frame: frame.n // length):
        segments.append(work / f"{k:05}{ending}")
        if segments[-1].exists():
            numbers += [record.frame(frame.since) for frame in piece]
            continue
        with replace_file(segments[-1]) as temporary:
            write_segment(temporary, clip, codec, painted(piece))
    return segments, numbers.count(None), len(numbers)


def paint(model: Riddle, frame: Frame, faces: list[tuple[int, np.ndarray, torch.Tensor]]) -> None:
    """Replace the faces of a frame; faces: as ClipRecord.faces has them, with the codes that are drawn."""
    _, places, codes = zip(*faces, strict=True)
    before, matrices = frame.rgb(), matrix(places)
    image = Image.fromarray(before)
    w = model.generator.codes.to_w(torch.stack(codes).to(model.device))
    drawn = model.draw(w, matrices)[1]
    frame.replace(before, np.asarray(model.paste(image, model.crops(image, matrices), drawn, matrices, fine=True)))
