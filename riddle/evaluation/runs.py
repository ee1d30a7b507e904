"""One run of the tables' stages: its settings, its folder, and the cache of the files that its stages leave there.

A stage's file is an .npz that carries `key`, the hash of everything that made it. It is made again when that
changes, so a run resumes where it stopped and never mixes old weights with new ones. What cannot be made leaves its
`reason`, and so does everything that needs it; the tables print it: 'n/a: reason'.
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
from riddle.evaluation import protocol
from riddle.evaluation.rows import LABELS, PEOPLE
from riddle.files import digest, replace_file, sha256
from riddle.presets import CONTROLS, VARIANTS
from riddle.weights import WeightsMissingError, bundled

PARTS = ("generator", "encoder", *(v.file for v in VARIANTS.values() if v.trained))  # weights behind a table


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
        wanted = "lfw" if self.dataset == "auto" else self.dataset
        return wanted if self.dataset in ("lfw", "samples") or _is_here(wanted) else "samples"

    @property
    def label(self) -> str:
        """The data set as tables name it."""
        return LABELS[self.data]

    @cached_property
    def photos(self) -> ImageSet:
        """The pictures behind the pairs. Raises DatasetMissingError."""
        return _photos(self.data)

    @cached_property
    def version(self) -> str:
        """The version of the data set, for provenance."""
        if self.data == "samples":
            return "synthetic"
        return self.photos.version if self.data == "lfw" else f"{self.photos.title} {self.photos.split}"

    @property
    def folder(self) -> Path:
        """Where the stages leave their files; a limited run never touches a complete one."""
        name = self.data if self.limit is None else f"{self.data}-limit{self.limit}"
        return config.home() / "results" / "runs" / self.preset / name

    def kept(self, name: str) -> Path | None:
        """Where the repository keeps a table of this run, results/<preset>/tables/<name>; None for a limited run."""
        return None if self.limit is not None else config.home() / "results" / self.preset / "tables" / name

    @cached_property
    def pairs(self) -> protocol.Pairs:
        """The pairs of pictures that the protocol compares: LFW's, elsewhere each face with itself."""
        if self.data == "lfw":
            return protocol.verification_pairs(self.photos.pairs, self.limit)
        return protocol.self_pairs(self.photos.names[: self.limit])

    @cached_property
    def split_hash(self) -> str:
        """12 hex digits of everything that says which pictures are compared."""
        p = self.pairs
        return digest(p.names, p.a.tolist(), p.b.tolist(), p.same.tolist(), p.fold.tolist())

    @cached_property
    def weights_hash(self) -> str:
        """12 hex digits over the preset's weights files; absent ones count as absent."""
        return digest(*(part_hash(self.preset, part) for part in PARTS))

    @cached_property
    def people(self) -> np.ndarray:
        """Pictures (M,) of at most `PEOPLE` different people."""
        return self.pairs.one_per_person(PEOPLE, self.seed)


def _photos(name: str) -> ImageSet:
    return _opened(name, tuple(map(str, config.data_folders())))


@cache
def _opened(name: str, _: tuple[str, ...]) -> ImageSet:
    """The photos of a data set, listed once a process: an archive's headers take half a second to read."""
    return load(name, "test")


def _is_here(name: str) -> bool:
    try:
        return len(_photos(name)) > 0
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
    """Why a stage, or a number, could not be made; the tables print it."""


def stage(run: Run, path: Path, made_from: tuple, make: Callable[[], dict[str, np.ndarray]]) -> Path:
    """`path`, made unless it was made from the same things; `NotMade` and absent weights leave their reason in it."""
    key = digest(*made_from)
    if is_current(path, key):
        return path
    began = time.monotonic()
    try:
        arrays = make()
    except WeightsMissingError as e:
        arrays = {"reason": np.array(f"weights missing ({cause_of(e)})")}
    except NotMade as e:
        arrays = {"reason": np.array(str(e))}
    return save(run, path, key, arrays, time.monotonic() - began)


def cause_of(e: WeightsMissingError) -> str:
    """Why weights are missing, without local paths and addresses: tables are published."""
    return e.cause.replace(f"{config.home()}/", "").split(" (http")[0]


def is_current(path: Path, key: str) -> bool:
    """Whether a stage's file is there and was made from the things behind `key`."""
    return path.exists() and key_of(path) == key


def save(run: Run, path: Path, key: str, arrays: dict[str, np.ndarray], seconds: float) -> Path:
    """Write a stage's file, whole or not at all, and how long it took."""
    with replace_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=np.array(key), **arrays)
    log_time(run, str(path.relative_to(run.folder).with_suffix("")), seconds)
    return path


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


def log_time(run: Run, name: str, seconds: float) -> None:
    """One line of times.jsonl."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / "times.jsonl", "a") as file:
        file.write(json.dumps({"stage": name, "seconds": round(seconds, 2)}) + "\n")


def logged(run: Run) -> list[dict[str, Any]]:
    """Every line of times.jsonl."""
    path = run.folder / "times.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def seconds(runs: Iterable[Run]) -> pd.DataFrame:
    """Time of each kind of stage when it was last made, by data set, longest first, and the files that it left."""
    lines = []
    for run in runs:
        for name, spent in {line["stage"]: line["seconds"] for line in logged(run)}.items():
            parts = name.split("/")
            depth = 2 if parts[0] in ("embeddings", "features", "notebooks") else 1
            lines.append((run.label, "/".join(parts[:depth]), spent))
    times = pd.DataFrame(lines, columns=["dataset", "stage", "seconds"]).groupby(["dataset", "stage"], as_index=False)
    counted = times.agg(seconds=("seconds", "sum"), files=("seconds", "size"))
    return counted.sort_values("seconds", ascending=False, ignore_index=True)
