"""Weights between two trainings of one network that began at the same weights (WiSE-FT, Wortsman et al., 2022).

    python -m riddle.training.blend encoder --between results/runs/generator results/runs/encoder --share 0.4 \
        --out results/runs/blend

An encoder that learns alone against a frozen generator reads photos more exactly, and its codes leave the place where
the generator learned to draw encrypted faces. On the straight line between the two lies a better trade than either.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from riddle import zoo


def blend(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """(1 - share) a + share b, tensor by tensor; counters, which are no numbers between, are those of b.

    Raises ValueError for networks of different forms, and for a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} lies between no two networks; choose one in 0..1")
    if differing := sorted(k for k in a.keys() | b.keys() if k not in a or k not in b or a[k].shape != b[k].shape):
        raise ValueError(f"these are not two trainings of one network: {', '.join(differing[:3])} differ")
    return {k: a[k].float().lerp(b[k].float(), share) if a[k].is_floating_point() else b[k] for k in a}


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", help="the network: encoder, generator, encryptor, ...")
    p.add_argument("--between", nargs=2, required=True, metavar="FOLDER", help="folders with <part>.safetensors")
    p.add_argument("--share", type=float, required=True, help="of the second, 0..1")
    p.add_argument("--out", required=True)
    a = p.parse_args(argv)
    first, second = (Path(folder) / f"{a.part}.safetensors" for folder in a.between)
    made = blend(zoo.load_tensors(first), zoo.load_tensors(second), a.share)
    hashes = [zoo.sha256(path)[:12] for path in (first, second)]
    about = zoo.load_metadata(second) | {"blend": json.dumps({"share": a.share, "between": hashes})}
    about.pop(zoo.SHARED, None)  # they are all in this file
    zoo.save_tensors(Path(a.out) / f"{a.part}.safetensors", made, about)


if __name__ == "__main__":
    main()
