"""One run of the tables' stages: its settings, its pairs of pictures, and the cache of the files that its stages leave.

A stage's file is an .npz that carries `key`, the hash of everything that made it. It is made again when that
changes, so a run resumes where it stopped and never mixes old weights with new ones. A stage that cannot be made
writes its `reason`, and so does every stage that needs it; the tables print it: 'n/a: reason'.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riddle import config
from riddle.data import DatasetMissingError, ImageSet, load
from riddle.evaluation.rows import FEW, LABELS, PEOPLE
from riddle.files import digest, replace_file, sha256
from riddle.presets import CONTROLS, RELEASED, RELEASED_FOR, VARIANTS
from riddle.weights import WeightsMissingError, bundled

PARTS = ("generator", "encoder", *(v.file for v in VARIANTS.values() if v.trained))  # weights behind a table

# ---- pairs of pictures


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures, by index into `names`."""

    names: tuple[str, ...]
    a: np.ndarray  # (P,) index of the first picture
    b: np.ndarray  # (P,) index of the second, the one that is replaced
    same: np.ndarray  # (P,) bool
    fold: np.ndarray  # (P,) int

    @property
    def targets(self) -> np.ndarray:
        """Indices of the pictures that get protected: the second of each same-person pair, once, ascending."""
        return np.unique(self.b[self.same])

    @property
    def of_themselves(self) -> bool:
        """True if each picture is paired with itself only."""
        return bool((self.a == self.b).all())

    @cached_property
    def persons(self) -> np.ndarray:
        """(N,) the person on each picture: LFW's name without its number; elsewhere each picture is another person."""
        names = self.names if self.of_themselves else [n.rsplit("/")[-1].rsplit("_", 1)[0] for n in self.names]
        return np.array(names)

    def one_per_person(self, n: int, seed: int) -> np.ndarray:
        """At most n targets of different people, drawn by the seed, ascending."""
        persons = self.persons[self.targets]
        draw = np.random.default_rng(seed)
        order = draw.permutation(len(persons))
        _, first = np.unique(persons[order], return_index=True)
        candidates = self.targets[order[first]]
        return np.sort(draw.permutation(candidates)[:n])


def verification_pairs(listed: Sequence, limit: int | None = None) -> Pairs:
    """Pairs from records with .a, .b, .same and .fold; `limit` keeps so many of each kind per fold."""
    kept = pd.DataFrame({k: [getattr(p, k) for p in listed] for k in ("a", "b", "same", "fold")})
    kept = kept if limit is None else kept.groupby(["fold", "same"]).head(limit)
    names, places = np.unique(kept[["a", "b"]].to_numpy(object), return_inverse=True)
    a, b = places.reshape(-1, 2).T
    return Pairs(tuple(names), a, b, kept.same.to_numpy(bool), kept.fold.to_numpy(int))


def self_pairs(names: Sequence[str]) -> Pairs:
    """Each picture with itself, one fold: for a set with one picture a person and no strangers' pairs."""
    i = np.arange(len(names))
    return Pairs(tuple(names), i, i, np.ones(len(i), bool), np.zeros(len(i), int))


# ---- a run


@dataclass(frozen=True)
class Run:
    """The settings of one run of the stages."""

    preset: str = "mobile"
    dataset: str = "auto"  # a key of `LABELS`, "auto": lfw; where it is not found, "samples" stand in for all but "lfw"
    seed: int = 0
    limit: int | None = None  # pairs of each kind per fold, or pictures; None: all. For trying things out
    detector: str = "auto"
    device: str = "cpu"
    workers: int = 2  # processes for detection

    def __post_init__(self) -> None:
        if self.dataset not in (*LABELS, "auto"):
            raise ValueError(f"unknown dataset {self.dataset!r}; choose auto, {', '.join(LABELS)}")

    @cached_property
    def data(self) -> str:
        """The data set that is actually used."""
        wanted = "lfw" if self.dataset == "auto" else self.dataset
        return wanted if self.dataset in ("lfw", "samples") or _is_here(wanted) else "samples"

    @property
    def label(self) -> str:
        """The data set as tables name it."""
        return LABELS[self.data]

    @property
    def photos(self) -> ImageSet:
        """The pictures behind the pairs. Raises DatasetMissingError."""
        return _photos(self.data, *config.data_folders())

    @property
    def version(self) -> str:
        """The version of the data set, for provenance."""
        if self.data == "samples":
            return "synthetic"
        return self.photos.version if self.data == "lfw" else f"{self.photos.title} {self.photos.split}"

    @property
    def folder(self) -> Path:
        """The folder of the stages' files; a limited run has another one than a complete run."""
        name = self.data if self.limit is None else f"{self.data}-limit{self.limit}"
        return config.home() / "results" / "runs" / self.preset / name

    def tables(self, name: str, wanted: Sequence[str] = ("celebamask_hq",)) -> list[Path]:
        """The paths of a table: beside the runs' folders; for a complete run also in the repository's results.

        wanted: the data sets that it is about; a table of others, or of fewer, has its data in the name.
        """
        found = [run.data for run in runs_of(self, wanted)]
        whole = set(found) <= set(wanted) and (self.dataset == "auto" or set(wanted) == {self.dataset})
        file = f"{name}.csv" if whole else f"{name}_{found[0]}.csv"
        if self.limit is not None:
            return [self.folder.parent / f"tables-limit{self.limit}" / file]
        return [folder / "tables" / file for folder in (self.folder.parent, config.results(self.preset))]

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of pictures that the protocol compares: LFW's, elsewhere each face with itself."""
        if self.data == "lfw":
            return verification_pairs(self.photos.pairs, self.limit)
        return self_pairs(self.photos.names[: self.limit])

    @cached_property
    def split_hash(self) -> str:
        """12 hex digits of everything that says which pictures are compared."""
        p = self.pairs
        return digest(p.names, p.a.tolist(), p.b.tolist(), p.same.tolist(), p.fold.tolist())

    @cached_property
    def weights_hash(self) -> str:
        """12 hex digits over the preset's weights files; absent ones count as absent."""
        parts = (*PARTS, RELEASED.file) if self.preset == RELEASED_FOR else PARTS
        return digest(*(part_hash(self.preset, part) for part in parts))

    @cached_property
    def people(self) -> np.ndarray:
        """Pictures (M,) of at most `PEOPLE` different people."""
        return self.pairs.one_per_person(PEOPLE, self.seed)

    @cached_property
    def few(self) -> np.ndarray:
        """`FEW` of these pictures, or `limit`, which are inverted again."""
        return self.pairs.one_per_person(min(FEW, self.limit or FEW), self.seed)


@cache
def _photos(name: str, *_: Path) -> ImageSet:
    """The photos of a data set in these folders, listed once a process: an archive's headers take half a second."""
    return load(name, "test")


def _is_here(name: str) -> bool:
    try:
        return len(_photos(name, *config.data_folders())) > 0
    except DatasetMissingError:
        return False


def runs_of(run: Run, wanted: Sequence[str]) -> list[Run]:
    """The runs behind a table: of each data set that is found, else of the bundled samples; `run` itself when it
    names a data set."""
    if run.dataset != "auto":
        return [run]
    return [replace(run, dataset=name) for name in wanted if _is_here(name)] or [replace(run, dataset="samples")]


@cache
def part_hash(preset: str, part: str) -> str | None:
    """sha256 of a bundled weights file, None when the preset has none, the name of a control; read once a process."""
    if part in CONTROLS:  # no file holds it
        return part
    try:
        return sha256(bundled(preset, part))
    except WeightsMissingError:
        return None


# ---- the cache


class NotMade(Exception):
    """A stage, or a number, cannot be made; the tables print the reason."""


def stage(run: Run, path: Path, made_from: tuple, make: Callable[[], dict[str, np.ndarray]]) -> Path:
    """Return `path`; make it unless it was made from the same things. After `NotMade` and without weights: a reason."""
    key = digest(*made_from)
    if is_current(path, key):
        return path
    began = time.monotonic()
    try:
        arrays = make()
    except WeightsMissingError as e:
        arrays = {"reason": np.array(why_missing(e))}
    except NotMade as e:
        arrays = {"reason": np.array(str(e))}
    return save(run, path, key, arrays, time.monotonic() - began)


def why_missing(e: WeightsMissingError) -> str:
    """The reason for missing weights, without local paths and addresses: tables are published."""
    cause = e.cause.replace(f"{config.home()}/", "").split(" (http")[0]
    return f"weights missing ({cause})"


def is_current(path: Path, key: str) -> bool:
    """True if a stage's file is there and was made from the things behind `key`."""
    return path.exists() and key_of(path) == key


def save(run: Run, path: Path, key: str, arrays: dict[str, np.ndarray], seconds: float) -> Path:
    """Write a stage's file, whole or not at all, and how long it took as a line of times.jsonl."""
    write(path, key, arrays)
    line = {"stage": str(path.relative_to(run.folder).with_suffix("")), "seconds": round(seconds, 2)}
    with open(run.folder / "times.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    return path


def write(path: Path, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays and the hash of what made them, whole or not at all."""
    with replace_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=np.array(key), **arrays)


def read(path: Path, name: str) -> Any:
    """One array of a stage's file, a plain str or float where it is a scalar; None where the file lacks it."""
    with np.load(path) as file:
        if name not in file.files:
            return None
        value = file[name]
    return value.item() if value.ndim == 0 else value


def need(path: Path, name: str) -> Any:
    """One array of a stage's file. Raises NotMade with the file's reason."""
    if reason := read(path, "reason"):
        raise NotMade(reason)
    return read(path, name)


def key_of(path: Path) -> str:
    """The hash of everything that made a stage's file."""
    return read(path, "key")


def seconds(runs: Iterable[Run]) -> pd.DataFrame:
    """Time of each kind of stage when it was last made, by data set, longest first, and the files that it left."""
    logs = {run.label: run.folder / "times.jsonl" for run in runs}
    logs = {label: pd.read_json(path, lines=True) for label, path in logs.items() if path.exists()}
    if not logs:
        return pd.DataFrame(columns=["dataset", "stage", "seconds", "files"])
    times = pd.concat(logs, names=["dataset"]).reset_index().drop_duplicates(["dataset", "stage"], keep="last")
    kind = times.stage.str.extract("((?:embeddings|features|notebooks)/[^/]+|[^/]+)", expand=False)
    counted = times.groupby(["dataset", kind]).seconds.agg(seconds="sum", files="size").reset_index()
    return counted.sort_values("seconds", ascending=False, ignore_index=True)
