"""Table 2 (section 4.3): how far restored pictures are from the inverted faces and from the photos."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from riddle.evaluation import facesets, rows
from riddle.evaluation.runs import Run, key_of, need, read, stage
from riddle.evaluation.tables import FACES, PICTURES, Measured, Part
from riddle.files import digest
from riddle.images import to_tensor
from riddle.metrics import restoration
from riddle.metrics.identity import mean_of
from riddle.weights import load_lpips, locate

# Network of LPIPS -> its name in the package lpips, its weights.
LPIPS = {"squeezenet": ("squeeze", "squeezenet1_1"), "alexnet": ("alex", "alexnet")}
PIXEL_METRICS = {"MSE": restoration.mse, "SSIM": restoration.ssim, "PSNR": restoration.psnr}
_lpips = cache(load_lpips)  # loaded once per process


def restored(run: Run, item: str) -> Path:
    """Every metric of a face set against each reference, arrays '<reference> <metric>' (M,), one stage's file."""
    made, references = facesets.faces(run, item), {name: facesets.faces(run, name) for name in rows.REFERENCES}

    def make() -> dict[str, np.ndarray]:
        faces, targets, out = to_tensor(need(made, "faces")), read(made, "targets"), {}
        for name, path in references.items():
            if item != name:
                other = to_tensor(read(path, "faces")[np.searchsorted(read(path, "targets"), targets)])
                out |= {f"{name} {metric}": measure(faces, other) for metric, measure in PIXEL_METRICS.items()}
                for network in LPIPS.keys() - _absent():
                    out[f"{name} LPIPS {network}"] = restoration.lpips(faces, other, _lpips(LPIPS[network][0]))
        return out

    made_from = ("restoration", key_of(made), digest(*map(key_of, references.values())), _absent())
    return stage(run, run.folder / "restoration" / f"{item}.npz", made_from, make)


def _absent() -> dict[str, str]:
    """{network: why LPIPS has no number by it}, for backbones that are not on this machine."""
    return {network: "weights not on this machine" for network, (_, asset) in LPIPS.items() if locate(asset) is None}


def restorations(run: Run) -> Iterator[Measured]:
    """Every row of Table 2 on one data set."""
    total = len(read(facesets.faces(run, "photo"), "targets"))
    wanted = [*((metric, "") for metric in PIXEL_METRICS), *(("LPIPS", network) for network in LPIPS)]
    for reference, against in rows.REFERENCES.items():
        for method, item in rows.TABLE2.items():
            for metric, network in wanted if item != reference else ():
                number, path = Measured("recovery", method, metric, against, network), restored(run, item)
                if reason := read(path, "reason") or _absent().get(network):
                    yield number.absent(reason)
                    continue
                values = read(path, f"{reference} {metric} {network}".strip())
                yield number.of(mean_of(values), total - len(values), 4 if metric == "MSE" else 3)


PARTS = (
    Part(
        PICTURES, restorations, dict.fromkeys((*rows.REFERENCES, *rows.TABLE2.values())),
        about=FACES | {"protocol": "8-bit pictures at the preset's size, intensities in [0, 1]"},
    ),
)  # fmt: skip
