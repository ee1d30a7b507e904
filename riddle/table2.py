"""Table 2: how close restored faces are to the inverted face and to the photo (section 4.3).

Against the inverted face the encryptor is measured alone, against the photo the whole chain; the inverted row is what
inversion leaves to restore. The paper's values are against the original picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riddle import baselines, paper, stages, tables
from riddle.images import to_tensor
from riddle.facesets import FROM_PIXELS
from riddle.protocols import ENCRYPTORS, PIXEL_ROWS
from riddle.runs import Run, digest, key_of, read, stage
from riddle.tables import Measured

DATASETS = ("celebamask_hq", "ffhq")
REFERENCES = {"inverted": "its inverted face", "photo": "the same photo"}
LPIPS_NETS = {"squeezenet": ("squeeze", "squeezenet1_1"), "alexnet": ("alex", "alexnet")}  # judge -> net, its asset
METRICS = ("MSE", "SSIM", "PSNR", *(f"LPIPS {judge}" for judge in LPIPS_NETS))


def _items() -> Iterator[tuple[str, str]]:
    """(method, face set), in the table's order."""
    yield "inverted (the ceiling)", "inverted"
    for variant, method in ENCRYPTORS.items():
        yield method, f"{variant}-restored"
        for action in FROM_PIXELS:
            yield f"{method}, {PIXEL_ROWS[action]}", f"{variant}-{action}"
    for variant, method in ENCRYPTORS.items():
        yield f"{method}, wrong password", f"{variant}-wrong"


ITEMS = dict(_items())


def restoration(run: Run, item: str) -> Path:
    """Every metric of a face set against each reference, arrays '<reference> <metric>' (M,), one stage's file."""
    made, references = stages.faces(run, item), {name: stages.faces(run, name) for name in REFERENCES}

    def make() -> dict[str, np.ndarray]:
        if reason := read(made, "reason"):
            return {"reason": np.array(reason)}
        faces, targets = read(made, "faces"), read(made, "targets")
        out = {}
        for name, path in references.items():
            if item != name:
                rows = np.searchsorted(read(path, "targets"), targets)
                out |= {f"{name} {k}": v for k, v in measure(faces, read(path, "faces")[rows]).items()}
        return out

    made_from = ("restoration", key_of(made), digest(*map(key_of, references.values())), _reasons())
    return stage(run, run.folder / "restoration" / f"{item}.npz", made_from, make)


def _reasons() -> dict[str, str]:
    """{judge: why LPIPS has no number by it}, for backbones that are not on this machine."""
    from riddle.weights import locate

    return {judge: "weights not on this machine" for judge, (_, asset) in LPIPS_NETS.items() if locate(asset) is None}


@cache
def _lpips(net: str) -> Callable:
    """Loaded once a process."""
    from riddle.weights import load_lpips

    return load_lpips(net)


def measure(faces: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: (N,)} of two sets of pictures (N, R, R, 3) uint8."""
    from riddle.metrics import restoration as metrics

    a, b = to_tensor(faces), to_tensor(reference)
    out = {"MSE": metrics.mse(a, b), "SSIM": metrics.ssim(a, b), "PSNR": metrics.psnr(a, b)}
    absent = _reasons()
    for judge, (net, _) in LPIPS_NETS.items():
        if judge not in absent:
            out[f"LPIPS {judge}"] = metrics.lpips(a, b, _lpips(net))
    return out


def records(run: Run) -> Iterator[Measured]:
    """Every row of Table 2 on one data set."""
    absent = _reasons()
    total = len(read(stages.faces(run, "photo"), "targets"))
    for reference, against in REFERENCES.items():
        for method, item in ITEMS.items():
            if item == reference:
                continue
            path = restoration(run, item)
            for metric in METRICS:
                name, _, judge = metric.partition(" ")
                row = Measured("recovery", method, name, against, judge)
                if reason := read(path, "reason") or absent.get(judge):
                    yield row.absent(reason)
                    continue
                values = read(path, f"{reference} {metric}")
                yield row.of(tables.mean_of(values), total - len(values), digits=4 if name == "MSE" else 3)
    for metric in METRICS:
        name, _, judge = metric.partition(" ")
        yield from _others(name, judge)


def _others(metric: str, judge: str) -> Iterator[Measured]:
    """Systems that are not trained here, and those that keep nothing to restore from."""

    def row(method: str) -> Measured:
        return Measured("recovery", method, metric, REFERENCES["photo"], judge)

    yield from tables.without_system(row, ("fit", "personal"))
    names = [paper.SYSTEMS["ciagan"], paper.SYSTEMS["deepprivacy"]]
    names += [baselines.load(name).label for name in ("blur", "mosaic")]
    for method in names:
        yield row(method).absent("it keeps nothing to restore from")


def published(line: dict[str, Any]) -> dict[str, float | None]:
    """The paper's value, on CelebA-HQ and FFHQ, against the original picture."""
    known = paper.TABLE2.get(paper.SYSTEM_OF.get(line["method"], ""), {})
    return {"paper": known.get(line["metric"]) if line["against"] == REFERENCES["photo"] else None}


def table2(run: Run, _: str = "") -> Path:
    """Table 2 as tidy CSV."""
    about = {"protocol": "8-bit pictures at the preset's size, intensities in [0, 1]"}
    return tables.write(run, "table2", tables.runs_of(run, DATASETS), records, published, **about)


def from_pixels(table1: pd.DataFrame) -> pd.DataFrame:
    """Recovery rates of Table 1 when the code was not kept, each with its share of the kept code's rate.

    table1: as `reporting.read_csv` gives it. One line a reference, source and judge.
    """
    rows = table1[(table1.task == "recovery") & table1.rate.notna()]
    kept = rows[rows.method == "RiDDLE"].set_index(["against", "judge"]).rate
    lines = []
    for r in rows[rows.method.isin([f"RiDDLE, {label}" for label in PIXEL_ROWS.values()])].itertuples():
        full = kept[r.against, r.judge]
        line = {"from": r.method.removeprefix("RiDDLE, from "), "against": r.against, "judge": r.judge}
        line |= {"judge_seen": r.judge_seen, "rate": r.rate, "kept code": full}
        lines.append(line | {"share": r.rate / full if full > 0 else np.nan})
    return pd.DataFrame(lines)
