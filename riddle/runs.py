"""One run of the tables' stages: its settings, its folder, and the files that its stages leave there.

A stage's file is an .npz that carries `key`, the hash of everything that made it. It is made again when that
changes, so a run resumes where it stopped and never mixes old weights with new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from riddle import config, protocols

PARTS = ("generator", "encoder", "encryptor", "encryptor_datafree")  # weights behind a table


@dataclass(frozen=True)
class Run:
    """What distinguishes one run of the stages from another."""

    preset: str = "mini"
    dataset: str = "auto"  # "lfw", "samples" (the bundled synthetic faces), "auto": lfw where it is found
    seed: int = 0
    limit: int | None = None  # pairs of each kind a fold; None: all. For trying things out
    detector: str = "auto"
    device: str = "cpu"
    workers: int = 2  # processes for detection

    @cached_property
    def data(self) -> str:
        """The data set that is used in fact."""
        if self.dataset != "auto":
            return self.dataset
        from riddle.datasets import DatasetMissingError

        try:
            return "lfw" if len(self.lfw) else "samples"
        except DatasetMissingError:
            return "samples"

    @cached_property
    def lfw(self) -> Any:
        """LFW's photos and pairs. Raises DatasetMissingError."""
        from riddle.datasets import LFWPairs

        return LFWPairs()

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
        name = "table1.csv" if self.data == "lfw" else f"table1_{self.data}.csv"
        return None if self.limit is not None else config.home() / "results" / self.preset / "tables" / name

    @cached_property
    def pairs(self) -> protocols.Pairs:
        """The pairs of pictures that the protocol compares."""
        if self.data == "samples":
            return protocols.self_pairs([p.name for p in sample_files()][: self.limit])
        return protocols.verification_pairs(self.lfw.pairs, self.limit)

    @cached_property
    def split_hash(self) -> str:
        """12 hex digits of everything that says which pictures are compared."""
        p = self.pairs
        return digest(p.names, p.a.tolist(), p.b.tolist(), p.same.tolist(), p.fold.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pictures themselves (LFW: of their names and sizes)."""
        if self.data == "samples":
            return digest(*(hashlib.sha256(p.read_bytes()).hexdigest() for p in sample_files()))
        return self.lfw.fingerprint

    @cached_property
    def weights_hash(self) -> str:
        """12 hex digits over the preset's weights files; absent ones count as absent."""
        return digest(*(part_hash(self.preset, part) for part in PARTS))

    @cached_property
    def people(self) -> np.ndarray:
        """Pictures (M,) of the diversity row."""
        return self.pairs.one_per_person(protocols.DIVERSITY_FACES, self.seed)


def digest(*things: Any) -> str:
    """12 hex digits of anything that JSON can write."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def part_hash(preset: str, part: str) -> str | None:
    """sha256 of a bundled weights file, None when the preset has none; read once a process."""
    from riddle.zoo import WeightsMissingError, bundled

    try:
        return hashlib.sha256(bundled(preset, part).read_bytes()).hexdigest()
    except WeightsMissingError:
        return None


def sample_files() -> list[Path]:
    """The bundled synthetic faces. Raises FileNotFoundError when the checkout lacks them."""
    folder = config.bundled_folder("samples")
    files = sorted(folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"no pictures in {folder}; restore data/samples from the repository, or give LFW")
    return files


def stage(run: Run, path: Path, made_from: tuple, make: Callable[[], dict[str, np.ndarray]]) -> Path:
    """`path`, made unless it was made from the same things; absent weights leave their reason in it."""
    from riddle.zoo import WeightsMissingError

    key = digest(*made_from)
    if path.exists() and key_of(path) == key:
        return path
    began = time.monotonic()
    try:
        arrays = make()
    except WeightsMissingError as e:
        cause = e.cause.replace(f"{config.home()}/", "")  # tables are published: no local path
        arrays = {"reason": np.array(f"weights missing ({cause})")}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as f:
        np.savez(f, key=np.array(key), **arrays)
    os.replace(temporary, path)
    log_time(run, str(path.relative_to(run.folder).with_suffix("")), time.monotonic() - began)
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


def times(run: Run) -> dict[str, float]:
    """Seconds that each stage took when it was last made."""
    path = run.folder / "times.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["stage"]: line["seconds"] for line in lines}
