"""Other ways to de-identify, one system a module, behind one interface.

A system takes faces (N, 3, R, R) in [-1, 1] and gives protected ones of the same shape. Systems that the paper
compares with and that are not available here are named in `UNAVAILABLE`, each with its reason.
"""

from __future__ import annotations

from typing import Protocol

import torch

UNAVAILABLE = {
    "ciagan": "not trained by this project",
    "fit": "not trained by this project",
    "personal": "not trained by this project",
    "deepprivacy": "not trained by this project",
}


class Baseline(Protocol):
    """A de-identification system."""

    name: str
    label: str  # as the tables print it, with its strength
    reversible: bool

    def protect(self, faces: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> protected faces of the same shape and range."""
        ...


def load(name: str) -> Baseline:
    """A baseline by name: 'blur' or 'mosaic'. Raises ValueError for another, with the reason where one is known."""
    from riddle.baselines import blur, mosaic

    systems = {"blur": blur.Blur, "mosaic": mosaic.Mosaic}
    if name in UNAVAILABLE:
        raise ValueError(f"baseline {name!r} cannot be run: {UNAVAILABLE[name]}")
    if name not in systems:
        raise ValueError(f"unknown baseline {name!r}; choose one of {', '.join(systems)}")
    return systems[name]()
