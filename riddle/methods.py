"""Who de-identifies, whom, and who judges: the methods, the people and the recognisers behind the paper's figures.

A method that cannot be run stays in the list, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

import riddle
from riddle import baselines, config, datasets, drawing, judging, paper
from riddle.faces import recognizers
from riddle.faces.detection import detect_in_crop
from riddle.images import to_bytes
from riddle.pipeline import Riddle
from riddle.presets import get
from riddle.protocols import ENCRYPTORS, JUDGES
from riddle.runs import LABELS, VARIANTS, Run, digest, part_hash
from riddle.weights import WeightsMissingError

PAPER_DATA = "celebamask_hq"  # the paper draws figures 5 to 7 on CelebA-HQ


@dataclass(frozen=True)
class Method:
    """One way to de-identify: RiDDLE with one of its encryptors, or a baseline. `reason`: why it cannot be run."""

    name: str  # a key of runs.VARIANTS or a name of riddle.baselines
    label: str
    model: Riddle | None = None
    baseline: baselines.Baseline | None = None
    reason: str = ""

    @cached_property
    def key(self) -> str:
        """Names what the method's faces depend on besides the photo and the password."""
        if self.model is not None:
            return digest(self.model.weights_hash, part_hash(self.model.preset.name, "encoder"))
        return digest(self.name, self.label, self.reason)

    @cached_property
    def heeds_passwords(self) -> bool:
        """Whether another password makes another face; a baseline is tried out."""
        if self.baseline is None:
            return self.model is not None
        probe = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return not torch.equal(self.baseline.protect(probe, 0), self.baseline.protect(probe, 1))

    @torch.no_grad()
    def protect(self, faces: torch.Tensor, numbers: torch.Tensor, seed: int = 0) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] under the passwords (N, P), by number -> (N, P, 3, R, R).

        Password k is the k-th that `seed` draws. Raises ValueError for a method that cannot be run.
        """
        return self._draw(faces, numbers, None, seed)

    @torch.no_grad()
    def restore(
        self, faces: torch.Tensor, locked: torch.Tensor, opened: torch.Tensor, seed: int = 0
    ) -> torch.Tensor | None:
        """Faces protected by the passwords `locked` (N, P) and opened by `opened` (N, P) -> (N, P, 3, R, R).

        The code is decrypted as it was encrypted, without a detour through the picture. None: not reversible.
        """
        return None if self.model is None else self._draw(faces, locked, opened, seed)

    def _draw(self, faces: torch.Tensor, locked: torch.Tensor, opened: torch.Tensor | None, seed: int) -> torch.Tensor:
        if self.reason:
            raise ValueError(f"{self.label} cannot be run: {self.reason}")
        n, p = locked.shape
        if self.baseline is not None:
            drawn = [self.baseline.protect(faces, seed + int(k)) for k in locked.unique()]
            at = dict(zip(locked.unique().tolist(), drawn, strict=True))
            return torch.stack([torch.stack([at[int(k)][i] for k in row]) for i, row in enumerate(locked)])
        numbers = locked if opened is None else torch.cat([locked, opened])
        keys = self.model.random_password(int(numbers.max()) + 1, seed)
        codes = self.model.invert(faces).repeat_interleave(p, 0)
        codes = self.model.encrypt(codes, keys[locked.flatten()])
        if opened is not None:
            codes = self.model.decrypt(codes, keys[opened.flatten()])
        return self.model.synthesize(codes).cpu().unflatten(0, (n, p))


def methods(preset: str, device: str = "cpu") -> list[Method]:
    """The encryptors of Tables 1 to 4, blurring, mosaicing and the paper's other systems, in the paper's order."""
    others = [s for s, label in paper.SYSTEMS.items() if label not in ENCRYPTORS.values()]
    ours = [_variant(preset, name, label, device) for name, label in ENCRYPTORS.items()]
    return ours + [_baseline(name) for name in ("blur", "mosaic", *others)]


def _variant(preset: str, name: str, label: str, device: str) -> Method:
    try:
        return Method(name, label, riddle.load(preset, device=device, encryptor=VARIANTS[name]))
    except WeightsMissingError as e:
        return Method(name, label, reason=_absent(e))


def _baseline(name: str) -> Method:
    try:
        made = baselines.load(name)
        return Method(name, made.label.split(" (")[0], baseline=made)
    except WeightsMissingError as e:
        return Method(name, paper.SYSTEMS[name], reason=_absent(e))
    except ValueError:
        return Method(name, paper.SYSTEMS[name], reason=baselines.UNAVAILABLE[name])


def _absent(e: WeightsMissingError) -> str:
    return f"weights missing ({e.cause.replace(f'{config.home()}/', '')})"  # it is published: no local path


def usable(listed: Iterable[Method]) -> list[Method]:
    """Those that can be run."""
    return [m for m in listed if not m.reason]


# ---- people


@dataclass(frozen=True)
class People:
    """Photos of different people, aligned for a preset."""

    faces: torch.Tensor  # (N, 3, R, R) in [-1, 1]
    names: tuple[str, ...]
    dataset: str  # key of runs.LABELS
    title: str  # as tables print it
    version: str
    split_hash: str

    @property
    def real(self) -> bool:
        """Whether these are photos of people, which no committed picture may show."""
        return self.dataset != "samples"


def dataset_here(name: str = "auto") -> str:
    """`name`, for "auto" CelebA-HQ; the bundled synthetic faces where it is not found."""
    return Run(dataset=PAPER_DATA if name == "auto" else name).data


def people(preset: str, dataset: str, n: int | None = None, seed: int | None = None) -> People:
    """n people of a data set's test split: the first ones by name, or drawn by a seed; n None: all.

    dataset: a key of runs.LABELS. Raises DatasetMissingError, FileNotFoundError.
    """
    p = get(preset)
    if dataset == "samples":
        photos, version = datasets.load("samples"), "synthetic"
        faces, names = drawing.sample_faces(len(photos), p.resolution), tuple(photos.names)
    else:
        photos = datasets.load(dataset, "test")
        version = photos.name
        found = datasets.aligned(photos, p)
        faces, names = found.tensor(), tuple(found.names)
    order = np.arange(len(names)) if seed is None else np.random.default_rng(seed).permutation(len(names))
    rows = order[:n].tolist()
    return People(faces[rows], tuple(names[r] for r in rows), dataset, LABELS[dataset], version, photos.split_hash)


# ---- judges


def load_judges(preset: str, device: str = "cpu") -> tuple[dict[str, Any], dict[str, str]]:
    """({name: recogniser}, {name: why it is not here}) of the tables' judges, those unseen in training first."""
    state = recognizers.available(JUDGES)
    order = sorted(JUDGES, key=lambda j: j == get(preset).identity)
    here = {j: recognizers.load(j, device=device) for j in order if state[j] is None}
    return here, {j: state[j] for j in order if state[j] is not None}


def embed(judges: Mapping[str, Any], faces: torch.Tensor, detector: Any = "auto") -> dict[str, np.ndarray]:
    """Each judge's embeddings (N, E) of faces (N, 3, R, R), aligned by the points found in each; NaN: none found."""
    return judging.embed(judges, to_bytes(faces), detect_in_crop(faces, detector))
