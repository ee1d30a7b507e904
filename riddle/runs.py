"""One run of the tables' stages: its settings, its folder, and the files that its stages leave there.

A stage's file is an .npz that carries `key`, the hash of everything that made it. It is made again when that
changes, so a run resumes where it stopped and never mixes old weights with new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from riddle import config, presets, protocols
from riddle.presets import CONTROLS

# First word of a face set -> the encryptor behind it, as `riddle.load` names it.
VARIANTS = {name: variant.file for name, variant in presets.VARIANTS.items()}
PARTS = ("generator", "encoder", *(e for e in VARIANTS.values() if e not in CONTROLS))  # weights behind a table
# Sets whose test split is compared with itself, picture by picture; LFW has pairs of its own.
TEST_SETS = ("celebamask_hq", "ffhq")
# Data sets as the tables name them.
LABELS = {
    "lfw": "LFW", "celebamask_hq": "CelebA-HQ test", "ffhq": "FFHQ test", "samples": "bundled synthetic faces",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What distinguishes one run of the stages from another."""

    preset: str = "mobile"
    dataset: str = "auto"  # a key of `LABELS`, "auto": lfw; where it is not found, "samples" stand in for all but "lfw"
    seed: int = 0
    limit: int | None = None  # pairs of each kind a fold, or pictures; None: all. For trying things out
    detector: str = "auto"
    device: str = "cpu"
    workers: int = 2  # processes for detection

    def __post_init__(self) -> None:
        if self.dataset not in (*LABELS, "auto"):
            raise ValueError(f"unknown dataset {self.dataset!r}; choose auto, {', '.join(LABELS)}")

    @cached_property
    def data(self) -> str:
        """The data set that is used in fact."""
        if self.dataset in ("lfw", "samples"):
            return self.dataset
        from riddle.datasets import DatasetMissingError

        wanted = "lfw" if self.dataset == "auto" else self.dataset
        try:
            return wanted if len(_photos(wanted)) else "samples"
        except DatasetMissingError:
            return "samples"

    @property
    def label(self) -> str:
        """The data set as tables name it."""
        return LABELS[self.data]

    @cached_property
    def photos(self) -> Any:
        """The photos behind the pairs. Raises DatasetMissingError; ValueError for the samples, which have none."""
        if self.data == "samples":
            raise ValueError("the bundled faces are aligned crops: there is no photo around them")
        return _photos(self.data)

    @property
    def folder(self) -> Path:
        """Where the stages leave their files; a limited run never touches a complete one."""
        name = self.data if self.limit is None else f"{self.data}-limit{self.limit}"
        return config.home() / "results" / "runs" / self.preset / name

    @property
    def table(self) -> Path:
        """Table 1 of this run."""
        return self.folder / "table1.csv"

    @property
    def kept_table(self) -> Path | None:
        """Its copy among the results that the repository keeps; None for a limited run, which leaves none."""
        return self.kept("table1.csv" if self.data == "lfw" else f"table1_{self.data}.csv")

    def kept(self, name: str) -> Path | None:
        """Where the repository keeps a result of this run, results/<preset>/tables/<name>; None for a limited run."""
        return None if self.limit is not None else config.home() / "results" / self.preset / "tables" / name

    @cached_property
    def pairs(self) -> protocols.Pairs:
        """The pairs of pictures that the protocol compares: LFW's, elsewhere each face with itself."""
        if self.data == "lfw":
            return protocols.verification_pairs(self.photos.pairs, self.limit)
        names = [p.name for p in config.sample_files()] if self.data == "samples" else self.photos.names
        return protocols.self_pairs(names[: self.limit])

    @cached_property
    def split_hash(self) -> str:
        """12 hex digits of everything that says which pictures are compared."""
        p = self.pairs
        return digest(p.names, p.a.tolist(), p.b.tolist(), p.same.tolist(), p.fold.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pictures themselves (photos: of their names and sizes)."""
        if self.data == "samples":
            return digest(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in config.sample_files()))
        return self.photos.fingerprint

    @cached_property
    def weights_hash(self) -> str:
        """12 hex digits over the preset's weights files; absent ones count as absent."""
        return digest(*(part_hash(self.preset, part) for part in PARTS))

    @cached_property
    def people(self) -> np.ndarray:
        """Pictures (M,) of the diversity row."""
        return self.pairs.one_per_person(protocols.DIVERSITY_FACES, self.seed)


def _photos(name: str) -> Any:
    return _opened(name, tuple(map(str, config.data_folders())))


@cache
def _opened(name: str, _: tuple[str, ...]) -> Any:
    """The photos of a data set, listed once a process: an archive's headers take half a second to read."""
    from riddle import datasets

    return datasets.LFWPairs() if name == "lfw" else datasets.load(name, "test")


def digest(*things: Any) -> str:
    """12 hex digits of anything that JSON can write."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def part_hash(preset: str, part: str) -> str | None:
    """sha256 of a bundled weights file, None when the preset has none, the name of a control; read once a process."""
    from riddle.weights import WeightsMissingError, bundled

    if part in CONTROLS:  # no file holds it
        return part
    try:
        return hashlib.sha256(bundled(preset, part).read_bytes()).hexdigest()
    except WeightsMissingError:
        return None


def stage(run: Run, path: Path, made_from: tuple, make: Callable[[], dict[str, np.ndarray]]) -> Path:
    """`path`, made unless it was made from the same things; absent weights leave their reason in it."""
    from riddle.weights import WeightsMissingError

    key = digest(*made_from)
    if is_current(path, key):
        return path
    began = time.monotonic()
    try:
        arrays = make()
    except WeightsMissingError as e:
        cause = e.cause.replace(f"{config.home()}/", "")  # tables are published: no local path, no list of addresses
        cause = cause.split(" (http")[0]
        arrays = {"reason": np.array(f"weights missing ({cause})")}
    return save(run, path, key, arrays, time.monotonic() - began)


def is_current(path: Path, key: str) -> bool:
    """Whether a stage's file is there and was made from the things behind `key`."""
    return path.exists() and key_of(path) == key


def save(run: Run, path: Path, key: str, arrays: dict[str, np.ndarray], seconds: float) -> Path:
    """Write a stage's file, whole or not at all, and how long it took."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as f:
        np.savez(f, key=np.array(key), **arrays)
    os.replace(temporary, path)
    log_time(run, str(path.relative_to(run.folder).with_suffix("")), seconds)
    return path


def read(path: Path, name: str) -> Any:
    """One array of a stage's file, a plain str or float where it is a scalar; None where the file lacks it."""
    with np.load(path) as f:
        if name not in f.files:
            return None
        value = f[name]
    return value.item() if value.ndim == 0 else value


def key_of(path: Path) -> str:
    """The hash of everything that made a stage's file."""
    return read(path, "key")


def log_time(run: Run, name: str, seconds: float) -> None:
    """One line of times.jsonl."""
    with open(run.folder / "times.jsonl", "a") as f:
        f.write(json.dumps({"stage": name, "seconds": round(seconds, 2)}) + "\n")


def logged(run: Run) -> list[dict[str, Any]]:
    """Every line of times.jsonl."""
    path = run.folder / "times.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def times(run: Run) -> dict[str, float]:
    """Seconds that each stage took when it was last made."""
    return {line["stage"]: line["seconds"] for line in logged(run)}


def summary(runs: Iterable[Run]) -> list[tuple[float, str, str, int]]:
    """(seconds, data set, kind of stage, files) over runs, longest first; judges are kinds of their own."""
    kinds: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for name, seconds in times(run).items():
            parts = name.split("/")
            depth = 2 if parts[0] in ("embeddings", "features", "notebooks") else 1
            kinds.setdefault((run.label, "/".join(parts[:depth])), []).append(seconds)
    return sorted(((sum(s), label, kind, len(s)) for (label, kind), s in kinds.items()), reverse=True)
