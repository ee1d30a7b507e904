"""What became of a clip: each face, how steady it stayed, and what the reader should know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from riddle.app import clips
from riddle.app.segments import Work
from riddle.app.survey import crops
from riddle.app.tracking import Steadiness
from riddle.faces.detection import detect_in_crop
from riddle.pipeline import Riddle


@dataclass(frozen=True)
class ClipFace:
    """One face through its scene and what became of it. Times in seconds, measures as mean over its frames."""

    box: tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the upright frame, where it is first seen well
    status: str  # "protected", "restored" or "skipped"
    reason: str = ""  # why it was skipped
    track: int = 0
    begins: float = 0.0
    ends: float = 0.0
    frames: int = 0  # in which it was replaced
    seen: int = 0  # in which it was found; between, before and after it was covered where it must have been
    doubted: int = 0  # of those, too small, in profile or cut off: covered, but not inverted
    identity: dict[str, float | None] = field(default_factory=dict)  # cosine of consecutive frames' embeddings
    person: dict[str, float | None] = field(default_factory=dict)  # cosine of the embeddings with their mean
    jitter: dict[str, float | None] = field(default_factory=dict)  # landmarks' second difference, in sides of the face


@dataclass(frozen=True)
class VideoReport:
    """What became of a clip. In the measures "source" is the clip as it was, "target" as it was written."""

    source: Path
    target: Path
    faces: list[ClipFace]
    how: str  # "protected"; of a restored clip "codes" or "inversion"
    notes: list[str] = field(default_factory=list)  # what else the reader should know
    frames: int = 0
    seconds: float = 0.0
    encoder: str = ""
    sidecar: str = ""  # where the record lies, when it is not in the clip itself

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"source": str(self.source), "target": str(self.target)}


def measured(work: Work, track: int) -> dict[str, dict[str, float | None]]:
    """identity, person and jitter of a track, from the work folder, row by row."""
    source, target, found = Steadiness(), Steadiness(), work.points(track)
    known = next(found, None)
    for n, before, after, points, side in work.looked(track):
        while known is not None and known[0] < n:
            known = next(found, None)
        source.add(n, before, known[1] if known is not None and known[0] == n else None, side)
        target.add(n, after, points, side)
    return {
        name: {
            kind: None if (value := getattr(s, name)) is None else round(value, 5)
            for kind, s in (("source", source), ("target", target))
        }
        for name in ("identity", "person", "jitter")
    }


@torch.no_grad()
def through_time(path: str | Path, places: np.ndarray, model: Riddle, judge: Any = None) -> pd.DataFrame:
    """One face of a clip frame by frame, where it is known to be: places (N, 4).

    Columns: frame; identity, the cosine with the frame before by a recogniser (NaN without one); jitter, the mean
    second difference of the five points found in the crop, in its sides (NaN where a frame lacks them); look, the
    embedding. For looking into what `ClipFace` gives as means.
    """
    faces = [
        crops(model, Image.fromarray(frame.rgb()), [place])
        for frame, place in zip(clips.frames(clips.probe(path)), places, strict=True)
    ]
    faces = torch.cat(faces)
    found = detect_in_crop(faces, model.detector)
    lost = np.full((5, 2), np.nan)
    points = np.stack([lost if f is None else f.points for f in found]) / faces.shape[-1]
    looks = np.full((len(faces), 1), np.nan) if judge is None else judge.from_crop(faces).numpy()
    bends = np.hypot(*np.moveaxis(points[2:] - 2 * points[1:-1] + points[:-2], -1, 0)).mean(1)
    table = pd.DataFrame({"frame": np.arange(len(faces))})
    table["identity"] = np.concatenate([[np.nan], (looks[1:] * looks[:-1]).sum(1)])
    table["jitter"] = np.concatenate([[np.nan], bends, [np.nan]])[: len(faces)]
    table["look"] = list(looks)
    return table
