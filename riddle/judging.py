"""What judges see in a set of faces: detections as arrays, and embeddings by several recognisers.

A face is cropped once for all judges of one alignment.

    python -m riddle.judging --judges edgeface-xs mobileface-v2     # the thresholds of faces/recognizers.py, anew
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from riddle.faces.detection import Face
    from riddle.faces.recognizers import Recognizer

BATCH = 256  # faces whose crops are in memory at a time
_FIELDS = {"box": (4,), "score": (), "points": (5, 2), "landmarks": (68, 2)}


def detections_to_arrays(listed: list) -> dict[str, np.ndarray]:
    """List of Face or None -> arrays of M rows, NaN for None and for landmarks that a detector does not give."""
    arrays = {k: np.full((len(listed), *shape), np.nan) for k, shape in _FIELDS.items()}
    for i, face in enumerate(listed):
        for k in _FIELDS:
            if face is not None and getattr(face, k) is not None:
                arrays[k][i] = getattr(face, k)
    return {**arrays, "detector": np.array(["" if f is None else f.detector for f in listed], dtype="U16")}


def detections(path: Path) -> list:
    """Inverse of `detections_to_arrays`, from a stage's file: list of Face or None."""
    from riddle.faces.detection import Face
    from riddle.runs import read

    a = {k: read(path, k) for k in (*_FIELDS, "detector")}
    listed = []
    for i, detector in enumerate(a["detector"]):
        landmarks = None if np.isnan(a["landmarks"][i]).any() else a["landmarks"][i]
        face = Face(a["box"][i], float(a["score"][i]), a["points"][i], landmarks, str(detector))
        listed.append(face if detector else None)
    return listed


def _alignment(judge: Recognizer) -> tuple:
    """What decides a recogniser's crops; dlib's own follows 68 points where there are any."""
    spec = judge.spec
    return spec.size, spec.stretch, spec.targets.tobytes(), judge.name == "dlib"


@torch.no_grad()
def embed(
    judges: Mapping[str, Recognizer],
    pictures: np.ndarray,
    found: Sequence[Face | None],
    spent: dict[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """{judge: embeddings (M, E) float32} of pictures (M, R, R, 3) uint8, each aligned by the points found in it.

    found: as `detection.detect_in_crop` gives them, in the pictures' own pixels; rows of NaN where none was found.
    spent: seconds are added under each judge's name, those of the crops under "crops". Raises ValueError when the
    numbers of pictures and detections differ.
    """
    if len(pictures) != len(found):
        raise ValueError(f"{len(pictures)} pictures but {len(found)} detections")
    rows = np.array([i for i, f in enumerate(found) if f is not None], int)
    out = {name: np.full((len(pictures), judge.dim), np.nan, np.float32) for name, judge in judges.items()}
    alike: dict[tuple, list[str]] = {}
    for name, judge in judges.items():
        alike.setdefault(_alignment(judge), []).append(name)
    spent = {} if spent is None else spent
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        for names in alike.values():
            began = time.monotonic()
            align = judges[names[0]].align
            crops = [np.asarray(align(Image.fromarray(pictures[i]), found[i].points, found[i].landmarks)) for i in part]
            x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            spent["crops"] = spent.get("crops", 0.0) + time.monotonic() - began
            for name in names:
                began = time.monotonic()
                out[name][part] = judges[name].embed(x).float().cpu().numpy()
                spent[name] = spent.get(name, 0.0) + time.monotonic() - began
    return out


def stranger_threshold(
    judge: Recognizer, embeddings: np.ndarray, pairs: int = 60_000, share: float = 0.001, seed: int = 0
) -> float:
    """The similarity that `share` of so many random pairs of different rows of embeddings (N, E) exceed.

    Rows are faces of different people; those of NaN, where no face was found, are left out.
    """
    e = embeddings[np.isfinite(embeddings).all(1)]
    rng = np.random.default_rng(seed)
    a = rng.integers(len(e), size=pairs)
    b = (a + rng.integers(1, len(e), size=pairs)) % len(e)
    return float(np.quantile(judge.similarity(e[a], e[b]), 1 - share))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Measure `stranger_threshold` of recognisers on FFHQ's training and validation splits. Raises
    DatasetMissingError."""
    from riddle import datasets
    from riddle.faces import recognizers
    from riddle.faces.detection import detect_in_crop
    from riddle.images import to_tensor

    p = argparse.ArgumentParser(description=main.__doc__)
    p.add_argument("--judges", nargs="+", default=[n for n, s in recognizers.SPECS.items() if "FFHQ" in s.rule])
    p.add_argument("--preset", default="mobile", help="its resolution is that of the faces")
    p.add_argument("--workers", type=int, default=2, help="processes for detection")
    a = p.parse_args(argv)
    sets = [datasets.aligned(datasets.load("ffhq", split), a.preset) for split in ("train", "val")]
    pictures = np.concatenate([s.faces for s in sets])
    found = detect_in_crop(to_tensor(pictures), "auto", a.workers)
    judges = {name: recognizers.load(name) for name in a.judges}
    embedded = embed(judges, pictures, found)
    out = {name: round(stranger_threshold(judge, embedded[name]), 3) for name, judge in judges.items()}
    print(json.dumps({"faces": len(found), "undetected": sum(f is None for f in found), **out}))
    return out


if __name__ == "__main__":
    main()
