"""Gather what training reads: aligned faces of the training splits, and their inverted codes.

    python -m riddle.training.prepare faces --preset mini --split train --out results/runs/train.npy
    python -m riddle.training.prepare codes --preset mini --faces results/runs/train.npy --out results/runs/codes.npy

`faces` joins UTKFace and CelebAMask-HQ (the split's) and, for training, OMI (no real person); what is not on this
machine is left out and said so. LFW is never read. `codes` inverts every face and its mirror image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from riddle import zoo
from riddle.aligned import aligned, save_array
from riddle.datasets import DatasetMissingError, load
from riddle.models.inversion import Encoder
from riddle.presets import get
from riddle.training.codes import encode


def faces(preset: str, split: str, workers: int = 2) -> np.ndarray:
    """uint8 (N, R, R, 3): every aligned face of the split. Raises DatasetMissingError when no set is found."""
    wanted = [("utkface", split), ("celebamask_hq", split)] + ([("omi", "all")] if split == "train" else [])
    found, missing = [], []
    for name, part in wanted:
        try:
            found.append(np.asarray(aligned(load(name, part), get(preset), workers=workers).faces))
            print(f"{name} ({part}): {len(found[-1])} faces")
        except DatasetMissingError as e:
            missing.append(str(e))
            print(f"{name} ({part}): left out: {e}")
    if not found:
        raise DatasetMissingError("no training set was found:\n" + "\n".join(missing))
    return np.concatenate(found)


def codes(preset: str, x: np.ndarray, weights: str | None, mirror: bool = True) -> np.ndarray:
    """uint8 faces (N, R, R, 3) -> float16 codes (N or 2N, L, D); mirrored faces follow the others."""
    p = get(preset)
    encoder = Encoder(p)
    encoder.load_state_dict(zoo.load_tensors(weights or zoo.bundled(p.name, "encoder")))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = encoder.eval().to(device, memory_format=torch.channels_last)
    batch = torch.from_numpy(np.concatenate([x, x[:, :, ::-1]]) if mirror else x)
    return encode(encoder, batch).half().numpy()


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("faces", "codes"))
    p.add_argument("--preset", default="mini")
    p.add_argument("--split", default="train", choices=("train", "val", "test"))
    p.add_argument("--faces", help="uint8 .npy of `prepare faces`")
    p.add_argument("--encoder", help="safetensors; default: the preset's bundled weights")
    p.add_argument("--no-mirror", action="store_true")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--out", required=True)
    a = p.parse_args(argv)
    if a.what == "codes" and not a.faces:
        p.error("codes needs --faces")
    if a.what == "faces":
        made = faces(a.preset, a.split, a.workers)
    else:
        made = codes(a.preset, np.load(a.faces), a.encoder, not a.no_mirror)
    Path(a.out).parent.mkdir(parents=True, exist_ok=True)
    save_array(Path(a.out), made)
    print(f"{a.out}: {made.shape} {made.dtype}")


if __name__ == "__main__":
    main()
