"""The sets of faces that the tables compare, by name: `photo`, `inverted`, `blur`, `mosaic`, or variant and action.

    riddle                    encrypted, each picture by its own random password
    riddle-wrong              decrypted with a wrong password
    riddle-restored           decrypted with the right one, from the code that was kept
    riddle-png                restored from the encrypted picture: 8 bits a channel, inverted again, decrypted
    riddle-jpeg75             the same after JPEG compression of that quality
    riddle-pasted             the same from the photo: pasted back, detected and cropped again
                              (these three of `Run.people` only: an inversion takes a second a face)
    riddle-passwords          ten passwords for each of `Run.people`
    riddle-wrong-passwords    encrypted by their own password, decrypted with ten wrong ones

Variants are those of `riddle.runs.VARIANTS`: datafree-restored, mlp-png and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import riddle
from riddle.images import jpeg, to_bytes, to_tensor
from riddle.progress import track
from riddle.protocols import PASSWORDS
from riddle.runs import VARIANTS, Run

BATCH = 64  # faces at a time through a network
PLAIN = ("photo", "inverted", "blur", "mosaic")
JPEGS = {"jpeg75": 75}  # quality
FROM_PIXELS = ("png", *JPEGS, "pasted")
ACTIONS = ("", "wrong", "restored", *FROM_PIXELS, "passwords", "wrong-passwords")


@dataclass(frozen=True)
class FaceSet:
    """A face set's name, taken apart."""

    name: str
    variant: str  # key of VARIANTS, '' for a plain set
    action: str  # one of ACTIONS, '' for a plain set

    @property
    def encryptor(self) -> str:
        """The weights behind it; '' for a plain set."""
        return VARIANTS.get(self.variant, "")


def parse(item: str) -> FaceSet:
    """A face set by its name. Raises ValueError with the names that there are."""
    if item in PLAIN:
        return FaceSet(item, "", "")
    variant, _, action = item.partition("-")
    if variant not in VARIANTS or action not in ACTIONS or item.endswith("-"):
        raise ValueError(
            f"unknown set of faces {item!r}; choose {', '.join(PLAIN)}, a variant ({', '.join(VARIANTS)}), or one with "
            f"an action ({', '.join(filter(None, ACTIONS))}), as in riddle-restored"
        )
    return FaceSet(item, variant, action)


def keys(run: Run, model: riddle.Riddle) -> tuple[torch.Tensor, torch.Tensor]:
    """The right and the wrong password of every picture of the run, each (N, L, D).

    Drawn for all pictures, so that one keeps its password when another is missing.
    """
    right, wrong = (model.random_password(len(run.pairs.names), seed=3 * run.seed + k) for k in (0, 1))
    return right, wrong


def load_model(run: Run, of: FaceSet) -> riddle.Riddle:
    """The model behind a set, with its encryptor; a plain set asks for none. Raises WeightsMissingError."""
    return riddle.load(run.preset, device=run.device, encryptor=of.encryptor or "untrained")


def codes_of(
    run: Run, of: FaceSet, model: riddle.Riddle, codes: np.ndarray, targets: np.ndarray
) -> tuple[torch.Tensor, np.ndarray]:
    """Codes (M, L, D) of a set and the pictures behind them (M,), from inverted codes (T, L, D) of targets (T,)."""
    w = torch.from_numpy(codes)
    right, wrong = keys(run, model)
    if of.action.endswith("passwords"):
        rows = np.flatnonzero(np.isin(targets, run.people)).repeat(PASSWORDS)
        w, targets = w[rows], targets[rows]
        many = model.random_password(len(rows), seed=3 * run.seed + 2)
        first, second = (many, None) if of.action == "passwords" else (right[targets], many)
    else:
        first = right[targets]
        second = {"wrong": wrong[targets], "restored": first}.get(of.action)
    if of.name == "inverted":
        return w, targets
    out = []
    for start in range(0, len(w), BATCH):
        part = slice(start, start + BATCH)
        code = model.encrypt(w[part], first[part])
        out.append((code if second is None else model.decrypt(code, second[part])).cpu())
    return torch.cat(out), targets


def from_codes(run: Run, of: FaceSet, codes: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces (M, R, R, 3) uint8 of a set and the pictures behind them (M,), from codes (T, L, D) of targets (T,)."""
    model = load_model(run, of)
    w, targets = codes_of(run, of, model, codes, targets)
    return np.concatenate([to_bytes(model.synthesize(part)) for part in track(w.split(BATCH), of.name)]), targets


def from_pixels(run: Run, of: FaceSet, pictures: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Restored faces (M, R, R, 3) uint8 from encrypted pictures of the same shape, their targets (M,) beside them."""
    model = load_model(run, of)
    right = keys(run, model)[0][targets]
    if of.action in JPEGS:
        pictures = jpeg(pictures, JPEGS[of.action])
    out = []
    for start in track(range(0, len(pictures), BATCH), of.name):
        part = slice(start, start + BATCH)
        code = model.decrypt(model.invert(to_tensor(pictures[part])), right[part])
        out.append(to_bytes(model.synthesize(code)))
    return np.concatenate(out)
