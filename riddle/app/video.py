"""Protect and restore clips: every face found, followed, replaced by one stranger throughout, and accounted for.

    report = protect_video(model, "party.mp4", "safe.mp4", "correct horse")
    report = restore_video(model, "safe.mp4", "back.mp4", "correct horse")
    report.as_dict()                                     # for JSON: each face's box, times, steadiness, what was left

The clip is read twice, frame by frame: first the faces are found, followed and inverted (riddle.app.survey), then
painted by places and codes that are smoothed over time. Sound is copied, times, frame size and rotation are kept.
Finished parts stay in a work folder beside the target (riddle.app.segments), from which `resume` goes on; an
interruption during the first reading begins that one anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from riddle import passwords
from riddle.app import cliprecords, clips, encoding, tracking
from riddle.app.casts import Planned, Recorded
from riddle.app.cliprecords import ClipRecord, Header, Run, matrix
from riddle.app.clipreport import ClipFace, VideoReport, measured
from riddle.app.container import sidecar_path
from riddle.app.segments import Work, blob
from riddle.app.survey import Pace, Plan, crops, survey
from riddle.app.tracking import Looks
from riddle.faces import blending
from riddle.pictures import PhotoError
from riddle.pipeline import Riddle
from riddle.records import RecordError

__all__ = ["ClipFace", "PhotoError", "VideoReport", "inspect", "protect_video", "restore_video"]

Progress = Callable[[int, int | None], None]
NO_RECORD = (
    "the clip carries no record: its faces were found and inverted again, which is less exact than by the record"
)


def protect_video(
    model: Riddle,
    source: str | Path,
    target: str | Path,
    passphrase: str,
    *,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> VideoReport:
    """Write a clip in which every face that can be is an encrypted one, the same stranger throughout.

    target: .mp4, .m4v, .mov, .mkv or .webm; resume: go on with what an interrupted call left; on_progress: called
    with the frames done and all frames, over both readings. Raises PhotoError for a clip that cannot be read, has no
    face or none that can be protected, for a target that cannot be written; ValueError for a bad passphrase.
    """
    return _Job(model, source, target, passphrase, "protect", resume, on_progress).run()


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

    `how` of the report: "codes", from the clip's record (its own, or `source`.riddle); "inversion", the faces found
    and inverted again, where it has none. Otherwise as `protect_video`; raises RecordError, a PhotoError, for a record
    that is damaged or of another model or clip.
    """
    return _Job(model, source, target, passphrase, "restore", resume, on_progress).run()


def inspect(path: str | Path) -> dict[str, Any]:
    """What a clip, or a clip's sidecar, carries; the keys are those of `riddle.app.container.inspect`, and frames."""
    path = Path(path)
    record = cliprecords.open_sidecar(path) if path.suffix == ".riddle" else cliprecords.find(path)
    if record is None:
        return {"file": str(path), "protected": False}
    with record:
        header, start = record.header, record.file.tell()
        size = start + sum(len(b.to_bytes()) + 12 for b in record.blocks()) + 4
    return {
        "file": str(path),
        "protected": True,
        "where": record.where,
        "version": cliprecords.VERSION,
        "preset": header.preset,
        "weights": header.weights,
        "size": list(header.size),
        "faces": [list(box) for box in header.boxes],
        "salt": "public" if header.salt is None else "random",
        "originals": False,
        "record_bytes": size,
        "frames": header.frames,
    }


class _Job:
    """One clip on its way: `run` does it."""

    def __init__(
        self, model: Riddle, source: str | Path, target: str | Path, passphrase: str, verb: str, resume: bool,
        on_progress: Progress | None,
    ):  # fmt: skip
        self.model, self.verb, self.resume = model, verb, resume
        self.source, self.target = _paths(source, target)
        self.key = passwords.derive_key(passphrase, model.preset.name)
        self.clip = clips.probe(self.source)
        self.codec = encoding.encoder_for(self.target, self.clip.size)
        self.pace, self.notes = Pace.of(self.clip), list(self.clip.notes)
        self.password = model.from_key(self.key)
        self.progress, self.read, self.all = on_progress, 0, None

    def run(self) -> VideoReport:
        record = cliprecords.find(self.source) if self.verb == "restore" else None
        try:
            if record is not None:
                self._check(record)
            with Work(self.target, self._fingerprint(), self.resume) as work:
                return self._work(work, record)
        finally:
            if record is not None:
                record.file.close()

    def _work(self, work: Work, record: ClipRecord | None) -> VideoReport:
        self.looks = Looks()
        if self.looks.judge is None:
            self.notes.append(f"identity was not measured: {tracking.JUDGE} {self.looks.reason}")
        self.all = self.clip.estimate * (1 if record is not None else 2) or None
        if record is not None:
            cast: Planned | Recorded = Recorded(record, self.clip, self._change)
        else:
            if work.noted("surveyed") is None:
                survey(self.model, self.clip, work, self.looks, self._tick)
            self.read, self.all = work.frame_count(), 2 * work.frame_count()
            self._refuse_without_faces(work)
            cast = Planned(Plan(self.model, self.clip, work, self._change))
        self._paint(work, cast)
        if isinstance(cast, Recorded):
            self.notes += cast.notes(self.source)
        faces = cast.faces(work, self.verb) if isinstance(cast, Recorded) else self._surveyed(work)
        how = "protected" if self.verb == "protect" else "inversion" if record is None else "codes"
        if how == "inversion":
            self.notes.append(NO_RECORD)
        sidecar = self._write(work, how, [f.box for f in faces if f.status == "protected"])
        count = work.frame_count()
        times = work.times(0, count - 1)
        seconds = float((times[-1] - times[0]) * self.clip.time_base + 1 / self.clip.rate)
        return VideoReport(
            self.source, self.target, faces, how, self.notes, count, round(seconds, 3), self.codec, sidecar
        )  # fmt: skip

    def _change(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes encrypted, or decrypted: the same network does both."""
        return self.model.encrypt(codes, self.password)

    def _tick(self) -> None:
        self.read += 1
        if self.progress is not None:
            self.progress(self.read, None if self.all is None else max(self.all, self.read))

    def _fingerprint(self) -> str:
        """Hash of all that the work folder's content depends on."""
        state = os.stat(self.source)
        with open(self.source, "rb") as file:
            ends = [file.read(1 << 20), file.seek(max(0, state.st_size - (1 << 20))), file.read(1 << 20)]
        made = [
            self.verb, state.st_size, state.st_mtime_ns, self.key.hex(), self.model.weights_hash, asdict(self.pace),
            self.codec, encoding.ENCODERS[self.codec], av.__version__, av.library_versions, cliprecords.VERSION,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(made).encode() + ends[0] + ends[2]).hexdigest()

    def _check(self, record: ClipRecord) -> None:
        header, preset = record.header, self.model.preset
        if header.preset != preset.name:
            cause = f"it was protected by preset {header.preset!r}, this model is {preset.name!r}"
            remedy = f"load that one: riddle.load({header.preset!r}), or --preset {header.preset}"
            raise RecordError(self.source, cause, remedy)
        if header.weights != self.model.weights_hash:
            cause = f"it was protected with other weights ({header.weights[:12]}, not {self.model.weights_hash[:12]})"
            raise RecordError(self.source, cause, "load the release or the folder of weights that protected it")
        if header.size != self.clip.upright_size:
            cause = "it is {} x {} px, but its record is of {} x {}".format(*self.clip.upright_size, *header.size)
            raise RecordError(self.source, cause, "restore the file as it was saved")
        if header.code_shape != (preset.n_latent, preset.style_dim):
            raise RecordError(self.source, f"its codes are {header.code_shape}", cliprecords.AGAIN)

    def _refuse_without_faces(self, work: Work) -> None:
        tracks = list(work.tracks())
        if not tracks:
            remedy = "look whether there is one, and crop the clip closer to it; nothing was written"
            raise PhotoError(self.source, "no face was found", remedy)
        if all(t["reason"] for t in tracks):
            listed = "; ".join(f"the face at {','.join(map(str, t['box']))}: {t['reason']}" for t in tracks[:5])
            raise PhotoError(self.source, f"no face of it can be replaced: {listed}", "nothing was written")

    # Painting

    def _paint(self, work: Work, cast: Planned | Recorded) -> None:
        """The second reading: every frame with its faces replaced, encoded part by part; parts that are there stay."""
        done, length = work.done(), self.pace.part
        part, stamps, measured = None, [], []
        number = 0
        for frame in clips.frames(self.clip):
            runs = cast.at(frame)
            number = frame.n // length
            if frame.n >= done:
                part = part or encoding.Part(self.clip, self.codec)
                if runs:
                    measured += self._replace(frame, runs)
                part.add(frame.changed())
                stamps.append((frame.pts, frame.duration))
                if len(stamps) == length:
                    work.add_part(number, number * length, stamps, part.finish(), cast.block(number), measured)
                    part, stamps, measured = None, [], []
            self._tick()
        if part is not None:
            work.add_part(number, number * length, stamps, part.finish(), cast.block(number), measured)

    def _replace(self, frame: clips.Frame, runs: list[tuple[Run, torch.Tensor]]) -> Iterator[tuple]:
        """Paint the faces of a frame, each a run and its code (L, D); returns rows of the work folder's `looks`."""
        image = Image.fromarray(frame.rgb())
        places = [run.places[frame.n - run.first] for run, _ in runs]
        order = sorted(range(len(runs)), key=lambda i: -float(np.hypot(*places[i][2:])))  # the largest is in front
        runs, places = [runs[i] for i in order], [places[i] for i in order]
        under = crops(self.model, image, places).to(self.model.device)
        matrices = np.stack([matrix(p) for p in places])
        large = self.model.draw(torch.stack([code for _, code in runs]), matrices)[1]
        painted = self.model.paste(image, under, large, matrices)
        pixels = np.asarray(painted)
        for m in matrices:
            frame.replace(pixels, blending.box(m, image.size))
        before = after = [None] * len(runs)
        if self.looks.judge is not None:
            both = torch.cat([under.cpu(), crops(self.model, painted, places)])
            before, after = self.looks.embed(both).reshape(2, len(runs), -1)
        for (run, _), place, was, now in zip(runs, places, before, after, strict=True):
            finds = tracking.follow(self.model, painted, place)
            best = max(finds, key=lambda f: tracking.overlap(f.place, place), default=None)
            near = best is not None and tracking.overlap(best.place, place) >= tracking.THERE
            points = blob(best.face.points) if near else None
            yield run.track, frame.n, blob(was), blob(now), points, float(np.hypot(*place[2:]))

    def _write(self, work: Work, how: str, boxes: list[tuple[int, int, int, int]]) -> str:
        """Join the parts, with the record inside or beside; returns where a sidecar lies, else ""."""
        text, beside = "", ""
        if how == "protected":
            preset = self.model.preset
            base = self.clip.time_base.numerator, self.clip.time_base.denominator
            header = Header(
                preset.name, self.model.weights_hash, self.clip.upright_size, (preset.n_latent, preset.style_dim),
                base, self.pace.step, work.done(), tuple(boxes),
            )  # fmt: skip
            with open(work.path("record"), "wb") as file:
                file.write(header.to_bytes())
                for number, data in enumerate(work.blocks()):
                    cliprecords.write_block(file, number, data)
                cliprecords.write_end(file)
            if work.path("record").stat().st_size <= cliprecords.MAX_INSIDE:
                text = cliprecords.inside(work.path("record").read_bytes())
            else:
                beside = str(sidecar_path(self.target))
                self.notes.append(f"the record is too large for the clip and lies in {beside}: keep it beside the clip")
        result = f"result{self.target.suffix.lower()}"
        self.notes += encoding.join(work.path(result), self.clip, self.codec, work.packets(), text)
        if beside:
            work.publish("record", Path(beside))
        work.publish(result, self.target)
        self.notes.append(f"pictures encoded by {self.codec}" + (
            "; this build of PyAV has no libx264" if self.codec == "mpeg4" else ""
        ))  # fmt: skip
        return beside

    # Reporting

    def _surveyed(self, work: Work) -> list[ClipFace]:
        """The faces that the survey found, and notes on where they must be watched."""
        begin = work.times(0, 0)[0]
        faces = []

        def seconds(n: int) -> float:
            return round(float((work.times(n, n)[0] - begin) * self.clip.time_base), 3)

        for t in work.tracks():
            status = "skipped" if t["reason"] else "protected" if self.verb == "protect" else "restored"
            first, last = t["begin"], t["end"]
            measures = measured(work, t["id"]) if not t["reason"] else {}
            faces.append(ClipFace(
                t["box"], status, t["reason"], t["id"], seconds(first), seconds(last),
                0 if t["reason"] else last - first + 1, t["seen"], t["doubted"], **measures,
            ))  # fmt: skip
            if not t["reason"]:
                self._watch(work, t, seconds)
        self.notes.append(
            f"searched in full every {self.pace.search} frames and at cuts, followed in between: a face that shows"
            f" for less than {self.pace.search} frames may not be found"
        )
        return faces

    def _watch(self, work: Work, track: dict[str, Any], seconds: Callable[[int], float]) -> None:
        """A note where a face was lost, or first found, within a scene and not at the border of the frame."""
        size = np.array(self.clip.upright_size)
        ends = ((track["first"], track["begin"], track["scene"], "first found", "from"),
                (track["last"], track["end"], work.scene_end(track["scene"]), "lost", "until"))  # fmt: skip
        for found, covered, edge, what, until in ends:
            place = work.places(track["id"], found, found)[1][0]
            side = np.hypot(*place[2:])
            inside = (place[:2] > 0.6 * side).all() and (place[:2] < size - 0.6 * side).all()
            if covered != edge and inside:
                self.notes.append(
                    f"face {track['id']} was {what} at {seconds(found)} s and"
                    f" is covered {until} {seconds(covered)} s: look whether it shows beyond that"
                )


def _paths(source: str | Path, target: str | Path) -> tuple[Path, Path]:
    """Both as paths. Raises PhotoError before any work when the target cannot be written."""
    source, target = Path(source), Path(target)
    encoding.encoder_for(target, (2, 2))
    if not target.parent.is_dir():
        raise PhotoError(target, f"the folder {target.parent} does not exist", "create it")
    if target.exists() and source.exists() and os.path.samefile(source, target):
        raise PhotoError(target, "it is the clip itself", "name another file for the result")
    return source, target
