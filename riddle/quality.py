"""How good a preset's generator is: precision, recall and Frechet distances of what it draws at psi = 1.

    python -m riddle.quality --preset mobile --data faces.npy

faces.npy: aligned faces (N, R, R, 3) uint8, as `riddle.training.prepare faces` writes them.
Beside the generator's numbers stand those of real faces against real ones, and of real faces blurred to half the
resolution: what the measure gives at best, and what it still gives where detail is lost.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

import riddle
from riddle import features
from riddle.images import to_bytes, to_tensor
from riddle.metrics.fidelity import frechet_distance, precision_recall
from riddle.presets import get
from riddle.progress import track

BATCH = 64
NEIGHBOURS = 3  # k of Kynkaanniemi et al., 2019


def load_faces(path: Path | str, side: int) -> np.ndarray:
    """Aligned faces (N, side, side, 3) uint8, left on disk. Raises ValueError for anything else."""
    try:
        faces = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as e:
        raise ValueError(f"{path} is no array file ({e}); make it with riddle.training.prepare faces") from e
    if faces.dtype != np.uint8 or faces.shape[1:] != (side, side, 3):
        raise ValueError(
            f"{path} holds {faces.dtype} {faces.shape}, not uint8 (N, {side}, {side}, 3); prepare it for this preset"
        )
    return faces


def blurred(faces: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R) reduced to half the side and enlarged again, bilinearly: 64 px keep what 32 px show."""
    small = F.interpolate(faces, scale_factor=0.5, mode="area")
    return F.interpolate(small, size=faces.shape[-2:], mode="bilinear", align_corners=False)


def generated(model: riddle.Riddle, n: int, seed: int = 0) -> np.ndarray:
    """n faces (n, R, R, 3) uint8 of the generator at psi = 1."""
    codes = model.generator.sample(n, seed=seed)
    parts = track(codes.split(BATCH), "generate")
    return np.concatenate([to_bytes(model.synthesize(part)) for part in parts])


def _parts(faces: np.ndarray, rows: np.ndarray) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), BATCH):
        yield to_tensor(faces[rows[start : start + BATCH]])


def extractors(device: str = "cpu") -> dict[str, features.Extractor]:
    """{features: extractor}: SqueezeNet's pool, and dlib's recogniser through one fixed alignment."""
    from riddle.faces import recognizers

    dlib = recognizers.load("dlib", device=device)
    return {
        "SqueezeNet pool": features.load("squeezenet", device),
        "dlib, fixed alignment": lambda x: dlib.from_crop(x.to(device)).cpu().numpy(),
    }


def measure(
    real: np.ndarray, made: np.ndarray, extract: dict[str, features.Extractor], seed: int = 0, k: int = NEIGHBOURS
) -> pd.DataFrame:
    """A row a comparison: precision and recall (first features), Frechet distances (all), n of each side.

    real: (N, R, R, 3) uint8; made: (M, R, R, 3) uint8. Frechet distances depend on n: compare equal ones.
    """
    order = np.random.default_rng(seed).permutation(len(real))
    half = len(real) // 2
    lines: dict[str, dict] = {}
    for name, of in extract.items():
        sets = {
            "all": features.extract_all(of, _parts(real, order), f"{name}, real"),
            "made": features.extract_all(of, _parts(made, np.arange(len(made))), f"{name}, generated"),
            "blurred": features.extract_all(of, map(blurred, _parts(real, order[half : 2 * half])), f"{name}, blurred"),
        }
        sets |= {"first": sets["all"][:half], "second": sets["all"][half : 2 * half]}
        for label, against, these in (
            ("generated, psi = 1", "all", "made"), ("generated, psi = 1", "first", "made"),
            ("real, the other half", "first", "second"), ("real, blurred to half the side", "first", "blurred"),
        ):  # fmt: skip
            reference, points = sets[against], sets[these]
            if against == "first":
                points = points[: len(reference)]
            line = lines.setdefault(f"{label} {against}", {
                "faces": label, "against": "all real faces" if against == "all" else "half of the real faces",
                "n": len(points), "n real": len(reference),
            })  # fmt: skip
            if "precision" not in line:
                line["precision"], line["recall"] = precision_recall(reference, points, k)
            line[f"Frechet distance ({name})"] = frechet_distance(reference, points)
    return pd.DataFrame(lines.values())


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mobile")
    parser.add_argument("--data", required=True, type=Path, help="aligned faces, .npy")
    parser.add_argument("--weights", type=Path, help="folder of weights; default: the bundled ones")
    parser.add_argument("--generated", type=int, default=10_000, help="faces to draw")
    parser.add_argument("--limit", type=int, help="real faces to use, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    preset = get(options.preset)
    try:
        real = load_faces(options.data, preset.resolution)
    except (ValueError, FileNotFoundError) as e:
        parser.error(str(e))
    if options.limit is not None:
        rows = np.random.default_rng(options.seed).permutation(len(real))[: options.limit]
        real = real[np.sort(rows)]
    model = riddle.load(preset, options.device, weights=options.weights)
    made = generated(model, options.generated, options.seed)
    table = measure(real, made, extractors(options.device), options.seed)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4f}"))


if __name__ == "__main__":
    main()
