"""Measure a preset's networks on held-out faces: for the model card, and to judge a training.

    python -m riddle.training.measure --faces results/runs/faces_val.npy
    ... --encryptor encryptor encryptor_coupling reflection untrained --count 96
    ... --encryptor --baseline deepprivacy ciagan

Cosines by each recogniser whose weights are here, all faces through one fixed alignment; those of the tables, which
align each face by its own points, differ a little. A recogniser that training used is marked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

import riddle
from riddle.baselines import BASELINES, Baseline, random_keys
from riddle.faces import recognizers
from riddle.images import to_tensor
from riddle.machine import keep_memory
from riddle.presets import get
from riddle.training import recipe
from riddle.training.frozen import draw_keys
from riddle.training.passes import encrypt_and_decrypt
from riddle.weights import load_lpips, locate

RECOGNISERS = ("arcface-mobilefacenet", "edgeface-xs", "mobilefacenet-casia", "mobileface-v2")
PASSWORDS = 4


class Comparison:
    """Mean LPIPS of pairs of faces and their mean cosine by each recogniser, where weights are at hand."""

    def __init__(self, trained: str):
        """trained: the recogniser that training used, which gets a star."""
        found = [name for name in RECOGNISERS if locate(name) is not None]
        self.recognisers = {name + " *" * (name == trained): recognizers.load(name) for name in found}
        self.lpips = load_lpips("squeeze") if locate("squeezenet1_1") else None

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
        """Two batches of faces (N, 3, R, R) in [-1, 1] -> {measure: mean over pairs}."""
        pairs = list(zip(a.split(32), b.split(32), strict=True))
        means = {}
        if self.lpips is not None:
            means["LPIPS"] = torch.cat([self.lpips(x, y).flatten() for x, y in pairs]).mean().item()
        for name, recogniser in self.recognisers.items():
            cosines = [F.cosine_similarity(recogniser.from_crop(x), recogniser.from_crop(y)) for x, y in pairs]
            means[name] = torch.cat(cosines).mean().item()
        return means


@torch.no_grad()
def measure_encoder(model: riddle.Riddle, faces: torch.Tensor, w: torch.Tensor, compare: Comparison) -> dict:
    """Held-out faces (N, 3, R, R) compared with those of their codes (N, L, D): squared error, spread of slots in z."""
    shown, z = model.synthesize(w), model.generator.codes.to_gaussian(w)
    row = {
        "what": "inverted",
        "MSE": (shown - faces).square().mean().item(),
        "z std": z.std().item(),
        "spread": z.std(1).mean().item(),
    }
    return row | compare(shown, faces)


@torch.no_grad()
def measure_encryptor(model: riddle.Riddle, w: torch.Tensor, compare: Comparison) -> Iterator[dict]:
    """Codes (N, L, D) under `PASSWORDS` passwords each: compared with the inverted face, two passwords with each other,
    and two people under one password."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        keys = draw_keys(model.generator, len(w), PASSWORDS, 1)
    parts = zip(w.split(8), keys.split(8), strict=True)
    joined = torch.cat([torch.cat(encrypt_and_decrypt(model.encryptor, a, b), 1) for a, b in parts])
    faces, original = model.synthesize(joined.flatten(0, 1)).unflatten(0, joined.shape[:2]), model.synthesize(w)
    together = model.synthesize(torch.cat([model.encryptor(part, keys[0, :1, 0]) for part in w.split(8)]))
    repeated = original.repeat_interleave(PASSWORDS, 0)
    labels = ("encrypted", "recovered", "wrong password")
    for label, shown in zip(labels, faces.split(PASSWORDS, 1), strict=True):
        yield {"what": label} | compare(shown.flatten(0, 1), repeated)
    yield {"what": "two passwords"} | compare(faces[:, 0], faces[:, 1])
    yield {"what": "one password, two people"} | compare(together, together.roll(1, 0))
    yield {"what": "strangers"} | compare(original, original.roll(1, 0))


@torch.no_grad()
def measure_baseline(system: Baseline, faces: torch.Tensor, compare: Comparison) -> Iterator[dict]:
    """Held-out faces (N, 3, R, R) by a baseline: compared with themselves; two keys; two people under one key; restored
    faces where there are any."""
    n = len(faces)
    keys, others = random_keys(2 * n, 3).split(n)
    shown = system.protect(faces, keys)
    yield {"what": "protected"} | compare(shown, faces)
    if system.reversible:
        yield {"what": "restored"} | compare(system.restore(shown, keys), faces)
        yield {"what": "wrong key"} | compare(system.restore(shown, others), faces)
    yield {"what": "two keys"} | compare(shown, system.protect(faces, others))
    together = system.protect(faces, keys[:1].expand(n))
    yield {"what": "one key, two people"} | compare(together, together.roll(1, 0))
    yield {"what": "strangers"} | compare(faces, faces.roll(1, 0))


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Command line of this module; returns what it prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--faces", required=True, help="uint8 .npy (N, R, R, 3) of held-out faces")
    p.add_argument("--weights", type=Path, help="folder of weights; default: the bundled ones")
    p.add_argument("--encryptor", nargs="*", default=["encryptor_coupling", "encryptor", "reflection"])
    p.add_argument("--baseline", nargs="*", default=[], help="systems of riddle.baselines")
    p.add_argument("--count", type=int, default=96, help="faces to measure, spread evenly over the file")
    a = p.parse_args(argv)
    keep_memory()
    faces = np.load(a.faces, mmap_mode="r")
    faces = to_tensor(faces[:: max(1, len(faces) // a.count)][: a.count])
    rows: list[dict] = []
    compare = Comparison(get(a.preset).identity)
    for name in a.encryptor:
        model = riddle.load(a.preset, weights=a.weights, encryptor=name)
        if not rows:
            w = model.invert(faces)
            rows.append(measure_encoder(model, faces, w, compare))
        rows += [{"encryptor": name} | row for row in measure_encryptor(model, w, compare)]
    for name in a.baseline:
        rows += [{"encryptor": name} | row for row in measure_baseline(BASELINES[name], faces, compare)]
    table = pd.DataFrame(rows)
    table.insert(0, "encryptor", table.pop("encryptor"))
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep=""))
    return table


if __name__ == "__main__":
    recipe.command(main)
