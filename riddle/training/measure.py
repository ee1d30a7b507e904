"""How well the networks of a preset do on held-out faces: what the model card says, and what a training is judged by.

    python -m riddle.training.measure --faces results/runs/faces_val.npy
    ... --encryptor encryptor encryptor_coupling reflection untrained --count 96

Cosines by each recogniser whose weights are here, all faces through one fixed alignment; those of the tables, which
align each face by its own points, differ a little. A recogniser that training used is marked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import riddle
from riddle import weights
from riddle.allocator import keep_memory
from riddle.faces import recognizers
from riddle.faces.pixels import to_tensor
from riddle.training.codes import draw_keys, encrypt_and_decrypt

JUDGES = ("arcface-mobilefacenet", "edgeface-xs", "mobilefacenet-casia", "mobileface-v2")
PASSWORDS = 4


def embeddings(faces: torch.Tensor, trained: str) -> dict[str, torch.Tensor]:
    """{recogniser: (N, E)} of those at hand; `trained`, the one used in training, carries a star."""
    found = {}
    for name in JUDGES:
        if weights.locate(name) is not None:
            judge = recognizers.load(name)
            parts = [judge.from_crop(part) for part in faces.split(64)]
            found[name + " *" * (name == trained)] = torch.cat(parts)
    return found


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean cosine of rows."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).mean().item()


@torch.no_grad()
def measure_encoder(
    model: riddle.Riddle, faces: torch.Tensor, lpips: torch.nn.Module | None, refine: int | None = None
) -> dict:
    """Inversion of held-out faces (N, 3, R, R): LPIPS, squared error, spread between slots in z, cosines.

    refine: as for `Riddle.invert`.
    """
    w = model.invert(faces, refine=refine)
    shown = model.synthesize(w)
    z = model.generator.codes.to_gaussian(w)
    row = {"what": "inverted" if refine is None else f"inverted, {refine} steps"}
    if lpips is not None:
        row["LPIPS"] = torch.cat([lpips(a, b).flatten() for a, b in zip(shown.split(32), faces.split(32), strict=True)])
        row["LPIPS"] = row["LPIPS"].mean().item()
    row |= {"MSE": (shown - faces).square().mean().item(), "z std": z.std().item(), "spread": z.std(1).mean().item()}
    before, after = (embeddings(x, model.preset.identity) for x in (faces, shown))
    return row | {name: mean_cosine(before[name], after[name]) for name in before}


@torch.no_grad()
def measure_encryptor(model: riddle.Riddle, w: torch.Tensor, lpips: torch.nn.Module | None) -> list[dict]:
    """Codes (N, L, D) under `PASSWORDS` passwords each: cosines with the inverted face, between passwords, and between
    people under one password."""
    n = len(w)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        keys = draw_keys(model.generator, n, PASSWORDS, 1)
    parts = zip(w.split(8), keys.split(8), strict=True)
    joined = torch.cat([encrypt_and_decrypt(model.encryptor, a, b).joined() for a, b in parts])
    together = torch.cat([model.encryptor(part, keys[0, :1, 0]) for part in w.split(8)])
    made = (w, joined.flatten(0, 1), together)
    original, faces, together = (model.synthesize(part) for part in made)
    e0, e, e1 = (embeddings(part, model.preset.identity) for part in (original, faces, together))
    labels = ("encrypted", "recovered", "wrong password", "two passwords", "one password, two people", "strangers")
    rows: dict[str, dict] = {k: {"what": k} for k in labels}
    m = PASSWORDS
    for name in e:
        all_ = e[name].unflatten(0, (n, -1))
        for part, label in zip(all_.split(m, 1), ("encrypted", "recovered", "wrong password"), strict=True):
            rows[label][name] = mean_cosine(part, e0[name][:, None].expand_as(part))
        rows["two passwords"][name] = mean_cosine(all_[:, 0], all_[:, 1])
        rows["one password, two people"][name] = mean_cosine(e1[name], e1[name].roll(1, 0))
        rows["strangers"][name] = mean_cosine(e0[name], e0[name].roll(1, 0))
    if lpips is not None:
        shown = faces.unflatten(0, (n, -1))
        for label, k in (("encrypted", 0), ("recovered", m), ("wrong password", 2 * m)):
            pairs = zip(shown[:, k].split(32), original.split(32), strict=True)
            rows[label]["LPIPS"] = torch.cat([lpips(a, b).flatten() for a, b in pairs]).mean().item()
        pairs = zip(original.split(32), original.roll(1, 0).split(32), strict=True)
        rows["strangers"]["LPIPS"] = torch.cat([lpips(a, b).flatten() for a, b in pairs]).mean().item()
    return list(rows.values())


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Command line of this module; returns what it prints."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--faces", required=True, help="uint8 .npy (N, R, R, 3) of held-out faces")
    p.add_argument("--weights", type=Path, help="folder of weights; default: the bundled ones")
    p.add_argument("--encryptor", nargs="*", default=["encryptor_coupling", "encryptor", "reflection"])
    p.add_argument("--count", type=int, default=96, help="faces to measure, spread evenly over the file")
    p.add_argument("--refine", type=int, nargs="*", default=[], help="rows for so many gradient steps of the inversion")
    a = p.parse_args(argv)
    keep_memory()
    faces = np.load(a.faces)
    faces = to_tensor(faces[:: max(1, len(faces) // a.count)][: a.count])
    lpips = weights.load_lpips("squeeze") if weights.locate("squeezenet1_1") else None
    rows = []
    for name in a.encryptor:
        model = riddle.load(a.preset, weights=a.weights, encryptor=name)
        if not rows:
            rows = [measure_encoder(model, faces, lpips)]
            rows += [measure_encoder(model, faces, lpips, steps) for steps in a.refine]
            w = model.invert(faces)
        rows += [{"encryptor": name} | row for row in measure_encryptor(model, w, lpips)]
    table = pd.DataFrame(rows)
    table.insert(0, "encryptor", table.pop("encryptor"))
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep=""))
    return table


if __name__ == "__main__":
    main()
