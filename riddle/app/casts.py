"""Who is painted in each frame of a clip, by which code: from a survey's plan, or from a protected clip's record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from riddle.app import cliprecords, clips
from riddle.app.cliprecords import Block, ClipRecord, Run, matrix
from riddle.app.clipreport import ClipFace, measured
from riddle.app.segments import Work
from riddle.app.survey import Plan
from riddle.faces import blending
from riddle.pictures import PhotoError
from riddle.records import RecordError

APART = 0.002  # s by which a frame's time may differ from its record's: Matroska rounds to 0.001


class Planned:
    """Runs and codes of each frame by the plan of a survey."""

    def __init__(self, plan: Plan):
        self.plan, self.number, self.now = plan, -1, None

    def _part(self, number: int) -> Block:
        if number != self.number:
            self.number, self.now = number, self.plan.block(number)
        return self.now

    def at(self, frame: clips.Frame) -> list[tuple[Run, torch.Tensor]]:
        """The faces of a frame and their codes."""
        if frame.n >= self.plan.total:
            raise PhotoError(frame.clip.path, "it grew while it was read", "wait until it is complete")
        if frame.n < self.plan.work.done():
            return []
        block, step = self._part(frame.n // self.plan.pace.part), self.plan.pace.step
        return [(run, run.code(run.codes, frame.n, step)) for run in block.runs if run.has(frame.n)]

    def block(self, number: int) -> bytes:
        """A part as the record keeps it."""
        return self._part(number).to_bytes()


class Recorded:
    """Runs and codes of each frame by a clip's record; frames are known by their times."""

    def __init__(self, record: ClipRecord, clip: clips.Clip, change: Callable[[torch.Tensor], torch.Tensor]):
        self.record, self.clip, self.change = record, clip, change
        numerator, denominator = record.header.time_base
        self.unit, self.begin = numerator / denominator, None
        self.blocks, self.block_now, self.codes = record.blocks(), None, {}
        self.matched = self.missed = 0
        self.tracks: dict[int, list] = {}

    def at(self, frame: clips.Frame) -> list[tuple[Run, torch.Tensor]]:
        """The faces of a frame, numbered as in this clip, and their codes, decrypted."""
        self.begin = frame.pts if self.begin is None else self.begin
        t = float((frame.pts - self.begin) * self.clip.time_base)
        while self.block_now is None or self.block_now.times[-1] * self.unit < t - APART:
            self.block_now, self.codes = next(self.blocks, None), {}
            if self.block_now is None:
                self.missed += 1
                self.block_now = Block(0, np.array([np.iinfo(np.int64).max // 2]), ())  # nothing comes after
                return []
        times = self.block_now.times * self.unit
        i = int(np.abs(times - t).argmin())
        if abs(times[i] - t) > APART:
            self.missed += 1
            return []
        self.matched += 1
        n, out = self.block_now.first + i, []
        for j, run in enumerate(self.block_now.runs):
            if not run.has(n):
                continue
            if j not in self.codes:
                self.codes[j] = self.change(run.codes).cpu()
            known = self.tracks.setdefault(run.track, [_box(run, self.clip), t, t, 0])
            known[2:] = t, known[3] + 1
            here = Run(run.track, frame.n, run.places[n - run.first :][:1], run.codes)
            out.append((here, run.code(self.codes[j], n, self.record.header.every)))
        return out

    def block(self, number: int) -> bytes:
        """Nothing: a restored clip carries no record."""
        return b""

    def faces(self, work: Work, verb: str) -> list[ClipFace]:
        """The faces that were restored."""
        return [
            ClipFace(box, "restored", "", track, round(a, 3), round(b, 3), n, n, **measured(work, track))
            for track, (box, a, b, n) in sorted(self.tracks.items())
        ]

    def notes(self, source: Path) -> list[str]:
        """What did not fit. Raises RecordError when no frame did."""
        if not self.matched:
            raise RecordError(source, "its frames are not those that its record tells of", cliprecords.AGAIN)
        if self.missed:
            return [f"{self.missed} of {self.missed + self.matched} frames are not in its record: left as they were"]
        return []


def _box(run: Run, clip: clips.Clip) -> tuple[int, int, int, int]:
    return blending.box(matrix(run.places[0]), clip.upright_size)
