"""Which sets of faces the tables need of each data set, in jobs: what the Snakefile runs side by side.

A process spends seconds on its imports, so one job makes all sets of a kind: faces, detections and, where a table asks
for judges, embeddings.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from riddle import ablations, protocols, table2, table3, table4
from riddle.facesets import FROM_PIXELS, PLAIN, parse
from riddle.runs import Run


@dataclass(frozen=True)
class Job:
    """Sets of faces that one process makes."""

    name: str
    items: tuple[str, ...]
    judges: tuple[str, ...]  # none: only the faces are asked for
    sources: tuple[str, ...]  # files of the run's folder that it starts from, without suffix

    @property
    def results(self) -> tuple[str, ...]:
        """The files it leaves in the run's folder, without suffix."""
        kinds = ("faces", *(("found",) if self.judges else ()), *(f"embeddings/{j}" for j in self.judges))
        return tuple(f"{kind}/{item}" for item in self.items for kind in kinds)


def wanted(tables: Collection[str]) -> dict[str, set[str]]:
    """{set of faces: judges that must see it} for these tables of one data set."""
    out: dict[str, set[str]] = {}
    asked = {
        "table1": (dict.fromkeys((*protocols.FACE_SETS, *protocols.DIVERSITY_SETS, *ablations.SETS)), protocols.JUDGES),
        "table2": (dict.fromkeys((*table2.REFERENCES, *table2.ITEMS.values())), ()),
        # with the distances of Table 5
        "table3": (dict.fromkeys(("photo", *table3.METHODS.values(), *ablations.LABELS)), ("dlib",)),
        "table4": (dict.fromkeys(protocols.SIMILARITY_SETS), table4.SIMILARITY_JUDGES),
    }
    for table in tables:
        sets, judges = asked[table]
        for item in sets:
            out.setdefault(item, set()).update(judges)
    return out


def _kind(item: str) -> str:
    of = parse(item)
    if of.action in FROM_PIXELS:
        return f"{of.variant}-pixels"
    return f"{of.variant}-passwords" if of.action.endswith("passwords") else of.variant or "plain"


def jobs(run: Run, tables: Collection[str]) -> list[Job]:
    """The jobs behind these tables on a run's data, in an order in which they can run."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for item, judges in wanted(tables).items():
        groups.setdefault((_kind(item), tuple(j for j in protocols.JUDGES if j in judges)), []).append(item)
    made = []
    for (kind, judges), items in groups.items():
        variant = parse(items[0]).variant
        sources = ["aligned"] + ["codes"] * any(i == "inverted" or i not in PLAIN for i in items)
        sources += [f"faces/{variant}"] * kind.endswith("-pixels")
        made.append(Job(f"{kind}-{'judged' if judges else 'faces'}{len(made)}", tuple(items), judges, tuple(sources)))
    return sorted(made, key=lambda job: "-pixels" in job.name)
