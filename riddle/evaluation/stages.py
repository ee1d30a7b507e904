"""The tables' stages: aligned faces -> codes -> faces of each row -> detections -> embeddings -> tables.

Each stage is one file under results/runs/<preset>/<dataset>/ and one command; Snakemake runs them side by side:

    python -m riddle.evaluation.stages aligned --preset mobile --dataset ffhq
    python -m riddle.evaluation.stages faces --preset mobile --item riddle-wrong
    python -m riddle.evaluation.stages embeddings --preset mobile --item riddle-wrong riddle-png
    python -m riddle.evaluation.stages table1 --preset mobile        # with whatever it still lacks
    python -m riddle.evaluation.stages times --preset mobile         # seconds of each stage
    python -m riddle.evaluation.stages thresholds --recognisers edgeface-xs   # as faces/recognizers.py has them
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from riddle.evaluation import (
    facesets,
    figures,
    recognition,
    robustness,
    rows,
    security,
    setnames,
    table1,
    table2,
    table3,
    table4,
    table5,
    tables,
)  # fmt: skip
from riddle.evaluation.runs import Run, runs_of, seconds
from riddle.evaluation.tables import Measured, Part
from riddle.presets import RELEASED_FOR

# ---- the tables

TABLES: dict[str, tuple[Part, ...]] = {
    "table1": table1.PARTS, "table2": table2.PARTS, "table3": table3.PARTS, "table4": table4.PARTS,
    "table5": table5.PARTS, "security": security.PARTS, "robustness": robustness.PARTS,
}  # fmt: skip


def parts_of(run: Run, name: str) -> tuple[Part, ...]:
    """The parts of a table for a run's preset."""
    return TABLES[name] + table5.RELEASED_PARTS * (name == "table5" and run.preset == RELEASED_FOR)


def runs_behind(run: Run, name: str) -> dict[Run, list[Part]]:
    """The runs behind a table, each with the parts that it measures."""
    out: dict[Run, list[Part]] = {}
    for part in parts_of(run, name):
        for one in runs_of(run, part.datasets):
            out.setdefault(one, []).append(part)
    return out


def places(run: Run, name: str) -> list[Path]:
    """The paths of a table: `Run.tables`."""
    return run.tables(name, [d for part in parts_of(run, name) for d in part.datasets])


def table(run: Run, name: str) -> Path:
    """Measure a table and write it."""
    parts = [(one, part) for part in parts_of(run, name) for one in runs_of(run, part.datasets)]
    lines = [line for one, part in parts for line in tables.tidy(part.measure(one), one, name, **part.about)]
    systems = (Measured(**row).absent("it keeps nothing to restore from") for row in rows.without_restoration(name))
    made = pd.DataFrame([*lines, *tables.tidy(systems, parts[0][0], name)])
    made = table5.with_training(made, run.preset) if name == "table5" else made
    return tables.write(made, *places(run, name))


# ---- jobs


@dataclass(frozen=True)
class Job:
    """Sets of faces that one process makes: it spends seconds on its imports, so it makes all sets of a kind."""

    name: str
    items: tuple[str, ...]
    recognisers: tuple[str, ...]  # none: only the faces are asked for
    sources: tuple[str, ...]  # files of the run's folder that it starts from, without suffix

    @property
    def results(self) -> tuple[str, ...]:
        """The files it leaves in the run's folder, without suffix."""
        kinds = ("faces", *(("found",) if self.recognisers else ()), *(f"embeddings/{r}" for r in self.recognisers))
        return tuple(f"{kind}/{item}" for item in self.items for kind in kinds)


def _kind(item: str) -> str:
    of = facesets.parse(item)
    if of.action in rows.PIXELS:
        return f"{of.variant}-pixels"
    if of.action.endswith("passwords") and of.variant:
        return f"{of.variant}-passwords"
    return of.variant or ("baselines" if of.weights else "plain")


def jobs(parts: Collection[Part]) -> list[Job]:
    """The jobs behind parts of tables on one run's data, in an order in which they can run."""
    seen_by: dict[str, set[str]] = {}
    for part in parts:
        for item in part.sets:
            seen_by.setdefault(item, set()).update(part.recognisers)
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for item, seen in seen_by.items():
        groups.setdefault((_kind(item), tuple(r for r in rows.RECOGNISERS if r in seen)), []).append(item)
    made = []
    for (kind, seen), items in groups.items():
        sources = ["aligned"] + ["codes"] * any(i not in setnames.PLAIN or i == "inverted" for i in items)
        sources += [f"faces/{facesets.parse(items[0]).variant}"] * kind.endswith("-pixels")
        name = f"{kind}-{'embeddings' if seen else 'faces'}{len(made)}"
        made.append(Job(name, tuple(items), seen, tuple(sources)))
    return sorted(made, key=lambda job: "-pixels" in job.name)


# ---- the command line

STAGES: dict[str, Callable[[Run, str], Path]] = {
    "aligned": facesets.aligned, "codes": facesets.codes, "faces": facesets.faces, "found": facesets.found,
    "restored": table2.restored, "detected": table3.detected, "figure7": figures.figure7,
    **{name: lambda run, _, name=name: table(run, name) for name in TABLES},
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "embeddings", "times", "thresholds"])
    parser.add_argument("--item", nargs="+", default=[""], help="sets of faces (riddle.evaluation.facesets)")
    parser.add_argument("--recognisers", nargs="+", default=rows.RECOGNISERS, help="of the stage embeddings")
    for name in ("preset", "dataset", "detector", "device"):
        parser.add_argument(f"--{name}", default=getattr(Run, name))
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--limit", type=int, default=None, help="pairs of each kind a fold, or pictures")
    parser.add_argument("--workers", type=int, default=Run.workers, help="processes for detection")
    options = vars(parser.parse_args(argv))
    stage, items, names = (options.pop(k) for k in ("stage", "item", "recognisers"))
    run = Run(**options)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if stage == "times":
        print(tables.grid(seconds([run])), end="")
    elif stage == "thresholds":
        print(recognition.measure_thresholds(names, run.preset, run.workers))
    else:
        make = STAGES.get(stage) or partial(facesets.embeddings, names=names)
        for item in items:
            made = make(run, item)
            for path in made if isinstance(made, list) else [made]:
                path.touch()  # touch files that are current, because Snakemake compares times
                print(path)


if __name__ == "__main__":
    main()
