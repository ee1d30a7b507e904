"""Gather what training reads: aligned faces of the training splits, and their inverted codes.

    python -m riddle.training.prepare faces --split train --out results/runs/faces_train.npy
    python -m riddle.training.prepare codes --faces results/runs/faces_train.npy --drawn 480 --out codes.npy

`faces` joins the split's faces of FFHQ and of CelebAMask-HQ, in this order, and writes how many come from each beside
them (faces_train_sets.json); a set that is not on this machine is left out and said so. LFW is never read, and OMI is
left out: its faces were drawn by a StyleGAN2, and the generator draws better ones. `codes` inverts every face, its
mirror image, and a number of drawn faces, whose codes are shorter than those of photos.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0

from riddle.aligned import align_each
from riddle.data import DatasetMissingError, load
from riddle.files import replace_file, write_text
from riddle.images import to_bytes, to_tensor
from riddle.presets import get
from riddle.progress import track
from riddle.training import recipe
from riddle.training.frozen import draw_codes, frozen_encoder, frozen_generator

SETS = ("ffhq", "celebamask_hq")
BATCH = 64  # faces inverted at once


def faces(preset: str, split: str, out: Path, workers: int = 2, limit: int | None = None) -> dict[str, int]:
    """Write the aligned faces of all sets, uint8 (N, R, R, 3), one by one: none but the last is in memory.

    limit: photos of each set. Returns {set: its number of faces}. Raises DatasetMissingError when no set is found.
    """
    found, missing, side = {}, [], get(preset).resolution
    for name in SETS:
        try:
            found[name] = load(name, split)
        except DatasetMissingError as e:
            missing.append(str(e))
            print(f"{name} ({split}): left out: {e}")
    if not found:
        raise DatasetMissingError("no training set was found:\n" + "\n".join(missing))
    counts = dict.fromkeys(found, 0)
    with replace_file(out) as temporary, open(temporary, "wb") as file:

        def header() -> int:
            shape = (sum(counts.values()), side, side, 3)  # NumPy leaves room for a larger first number
            write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            return file.tell()

        start = header()
        for name, images in found.items():
            for _, face in islice(align_each(images, preset, workers=workers), limit):
                if face is not None:
                    file.write(face.tobytes())
                    counts[name] += 1
            print(f"{name} ({split}): {counts[name]} faces")
        file.seek(0)
        if header() != start:
            raise RuntimeError("NumPy's header has another length now")
    return counts


@torch.no_grad()
def drawn_faces(preset: str, count: int) -> np.ndarray:
    """Faces of nobody, uint8 (count, R, R, 3): half of codes by `draw_codes`, the others of one code, psi 1 and 0.7."""
    generator = frozen_generator(get(preset), "", "cpu")
    single = (count - count // 2) // 2
    w = [draw_codes(generator, count // 2, seed=11), generator.sample(count - count // 2 - single, 1.0, seed=12)]
    w = torch.cat([*w, generator.sample(single, 0.7, seed=13)])
    return np.concatenate([to_bytes(generator(part)) for part in w.split(32)])


@torch.no_grad()
def codes(preset: str, x: np.ndarray, encoder: str = "", mirror: bool = True, steps: int | None = None) -> np.ndarray:
    """uint8 faces (N, R, R, 3) -> float16 codes (N or 2N, L, D); mirrored faces follow the others.

    encoder: safetensors, "" for the preset's bundled weights; steps: of gradient, None: as many as its weights say.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = frozen_encoder(get(preset), encoder, frozen_generator(get(preset), "", device))
    options = {} if steps is None else {"steps": steps}  # only the encoder of "mobile" takes any
    parts = []
    for mirrored in (False, True)[: 1 + mirror]:
        for first in track(range(0, len(x), BATCH), "mirrored" if mirrored else "invert"):  # x may be a large file
            part = to_tensor(torch.from_numpy(x[first : first + BATCH].copy()).to(device))
            parts.append(network(part.flip(3) if mirrored else part, **options).half().cpu())
    return torch.cat(parts).numpy()


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("faces", "codes"))
    p.add_argument("--preset", default="mobile")
    p.add_argument("--split", default="train", choices=("train", "val", "test"))
    p.add_argument("--faces", help="uint8 .npy of `prepare faces`")
    p.add_argument("--encoder", default="", help="safetensors; without: the preset's bundled weights")
    p.add_argument("--no-mirror", action="store_true")
    p.add_argument("--steps", type=int, help="gradient steps a face; without: as many as the encoder's weights say")
    p.add_argument("--drawn", type=int, default=0, help="faces of nobody to invert after the others")
    p.add_argument("--workers", type=int, default=2, help="processes")
    p.add_argument("--limit", type=int, help="photos of each set; without: all")
    p.add_argument("--out", required=True, type=Path)
    a = p.parse_args(argv)
    if a.what == "codes" and not a.faces:
        p.error("codes needs --faces")
    if a.faces and not Path(a.faces).is_file():
        p.error(f"--faces: {a.faces} does not exist; make it first: prepare faces --preset {a.preset} --out {a.faces}")
    if a.what == "faces":
        counts = faces(a.preset, a.split, a.out, a.workers, a.limit)
        write_text(a.out.with_name(f"{a.out.stem}_sets.json"), json.dumps(counts))
    else:
        made = codes(a.preset, np.load(a.faces, mmap_mode="r"), a.encoder, not a.no_mirror, a.steps)
        if a.drawn:
            more = codes(a.preset, drawn_faces(a.preset, a.drawn), a.encoder, False, a.steps)
            made = np.concatenate([made, more])
        with replace_file(a.out) as temporary:
            np.save(temporary, made)
    made = np.load(a.out, mmap_mode="r")
    print(f"{a.out}: {made.shape} {made.dtype}")


if __name__ == "__main__":
    recipe.command(main)
