"""What Tables 2, 3 and 4 share: which data they are measured on, their rows, where they are written.

Table 1 has rates and thresholds of its own (riddle.protocols). Here a row is a metric of one method on one data set,
with its interval, the number of faces behind it and the paper's value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riddle import baselines, config, paper, reporting, stages
from riddle.metrics.identity import Estimate, bootstrap_interval
from riddle.presets import get
from riddle.runs import Run, log_time, logged, read, summary

INTERVAL = "95 %, bootstrap over faces"
# Judges that took part in training beside the preset's F_e: LPIPS on SqueezeNet is F_p (eq. 7).
SEEN = ("squeezenet",)


@dataclass
class Measured:
    """One metric of one method; numbers are NaN when `value` is 'n/a: reason'."""

    task: str
    method: str
    metric: str
    against: str  # what the faces are compared with
    judge: str = ""  # network behind the metric, '' for pixel metrics
    value: str = ""
    mean: float = np.nan
    std: float = np.nan
    low: float = np.nan  # 95 % interval
    high: float = np.nan
    n: int = 0  # faces behind the mean
    undetected: int = 0  # faces (of how many there were) that no detector found, left out of the mean
    place: str = ""  # where the face was looked at: aligned, or pasted back into its photo
    resize: str = ""  # the filter that took pictures to a network's size
    reference_hash: str = ""  # of the set that a distance between sets refers to

    def of(self, e: Estimate, undetected: int = 0, digits: int = 3) -> Measured:
        """With an estimate's numbers."""
        digits = max(0, min(digits, 3 - _magnitude(e)))  # of a distance of thousands no decimals are read
        text = f"{e.mean:.{digits}f}" + (f" ± {e.std:.{digits}f}" if np.isfinite(e.std) else "")
        made = replace(self, mean=e.mean, std=e.std, low=e.low, high=e.high, n=e.n, undetected=undetected)
        made.value = text
        return made

    def absent(self, reason: str) -> Measured:
        """Without numbers, for a reason."""
        return replace(self, value=f"n/a: {reason.removeprefix('n/a: ')}")


def _magnitude(e: Estimate) -> int:
    """The power of ten of the larger of a mean and its spread, 0 below ten."""
    largest = max(abs(e.mean), e.std if np.isfinite(e.std) else 0.0)
    return int(np.log10(largest)) if largest >= 10 else 0


def mean_of(values: np.ndarray) -> Estimate | None:
    """Mean of values (P,) with a bootstrap interval, NaN left out; `std` is that of the values. None when nothing is
    left."""
    known = values[np.isfinite(values)]
    return replace(bootstrap_interval(known), std=float(np.std(known))) if len(known) else None


def scalar(value: float, n: int, std: float = np.nan) -> Estimate:
    """A number that has no interval, such as a distance between two sets."""
    return Estimate(float(value), float(std), np.nan, np.nan, n)


def without_system(row: Callable[[str], Measured], names: Iterable[str] = baselines.UNAVAILABLE) -> Iterator[Measured]:
    """The systems of the paper that cannot be run here; row: method -> its empty row."""
    for name in names:
        yield row(paper.SYSTEMS[name]).absent(baselines.UNAVAILABLE[name])


def runs_of(run: Run, wanted: Sequence[str]) -> list[Run]:
    """The runs behind a table: of each data set that is found, else of the bundled samples; `run` itself when it
    names a data set."""
    if run.dataset != "auto":
        return [run]
    found = [r for r in (replace(run, dataset=name) for name in wanted) if _is_here(r)]
    return found or [replace(run, dataset="samples")]


def _is_here(run: Run) -> bool:
    from riddle.datasets import DatasetMissingError

    try:
        return run.data != "samples" and len(run.photos.names) > 0
    except DatasetMissingError:
        return False


def places(run: Run, name: str, runs: Sequence[Run]) -> list[Path]:
    """Where a table is written: in results/runs/, and for a complete run among the results that are kept."""
    real = any(r.data != "samples" for r in runs)
    of = "" if run.dataset == "auto" and real else f"_{runs[0].data}"
    limited = "" if run.limit is None else f"-limit{run.limit}"
    here = config.home() / "results" / "runs" / run.preset / f"tables{limited}" / f"{name}{of}.csv"
    return [here, *filter(None, [run.kept(f"{name}{of}.csv")])]


def write(
    run: Run,
    name: str,
    runs: Sequence[Run],
    measure: Callable[[Run], Iterable[Measured]],
    published: Callable[[dict[str, Any]], dict[str, float | None]],
    **about: str,
) -> Path:
    """Measure on each run and write the tidy table; published: a row's columns -> the paper's columns beside it.

    about: further columns on how it was made, the same in every row.
    """
    lines = []
    for part in runs:
        began, before = time.monotonic(), len(logged(part))
        lines += [line | published(line) for line in tidy(measure(part), part, **about)]
        stages_made = sum(line["seconds"] for line in logged(part)[before:])
        log_time(part, name, max(0.0, time.monotonic() - began - stages_made))
    table = pd.DataFrame(lines)
    written = places(run, name, runs)
    for path in written:
        reporting.write_csv(table, path)
    return written[0]


def tidy(records: Iterable[Measured], run: Run, **about: str) -> Iterator[dict[str, Any]]:
    """Records as lines, with their provenance."""
    seen = (get(run.preset).identity, *SEEN)
    dataset = run.label if run.data != "samples" else f"{run.label}, no photographs"
    for record in records:
        yield asdict(record) | {
            "judge_seen": record.judge in seen, "dataset": dataset, "version": read(stages.aligned(run), "version"),
            "split_hash": run.split_hash, "seed": run.seed, "preset": run.preset, "weights": run.weights_hash,
            "detector": run.detector, "interval": INTERVAL, **about,
        }  # fmt: skip


def read_table(path: Path) -> pd.DataFrame:
    """A table that `write` wrote; texts stay texts, an empty number is NaN."""
    numbers = ("mean", "std", "low", "high")
    columns = pd.read_csv(path, nrows=0).columns
    known = {c: [""] for c in columns if c in numbers or c.startswith("paper")}
    texts = dict.fromkeys(("split_hash", "weights", "version", "reference_hash"), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=known)


def wide(table: pd.DataFrame, rows: Sequence[str] = ("dataset", "method", "against")) -> pd.DataFrame:
    """A line for each combination of `rows`, a column for each metric and judge, cells as text.

    A judge that took part in training is marked; one without any number has no column.
    """
    shown = table[~table.value.str.startswith("n/a")]
    named = dict.fromkeys(zip(shown.metric, shown.judge, shown.judge_seen, strict=True))
    lines = []
    for values, part in table.groupby(list(rows), sort=False):
        cells = {(m, j): v for m, j, v in zip(part.metric, part.judge, part.value, strict=True)}
        line = dict(zip(rows, values, strict=True))
        for metric, judge, seen in named:
            title = f"{metric}, {judge}" if judge and judge.lower() not in metric.lower() else metric
            cell = cells.get((metric, judge), cells.get((metric, ""), ""))
            line[title + (" (seen in training)" if seen else "")] = cell
        reasons = {k: v for k, v in line.items() if k not in rows and v.startswith("n/a")}
        for column in list(reasons)[1:]:  # one reason for all is said once
            line[column] = "n/a" if reasons[column] == next(iter(reasons.values())) else reasons[column]
        lines.append(line | {"n": int(part.n.max()), "undetected": int(part.undetected.max())})
    return pd.DataFrame(lines)


def beside_paper(table: pd.DataFrame, rows: Sequence[str] = ("dataset", "method", "metric")) -> pd.DataFrame:
    """The rows that the paper has too: ours by judge, and the paper's columns. A judge that is not available has no
    line where another has a number."""
    columns = [c for c in table if c.startswith("paper")]
    known = table[table[columns].notna().any(axis=1)]
    numbered = known["mean"].notna()
    answered = numbered.groupby([known[c] for c in rows]).transform("any")
    known = known[numbered | ~answered]
    kept = [c for c in columns if known[c].notna().any()]
    return known[[*rows, "judge", "value", *kept]].reset_index(drop=True)


def notes(table: pd.DataFrame) -> str:
    """What a reader needs beside the numbers, as a markdown list."""
    lines = []
    for dataset, part in table.groupby("dataset", sort=False):
        first = part.iloc[0]
        lines.append(f"{dataset} ({first.version}), pictures {first.split_hash}, at most {part.n.max()} a row.")
    first = table.iloc[0]
    lines.append(f"Preset {first.preset}, weights {first.weights}, seed {first.seed}. Interval: {first.interval}.")
    missing = table[table.value.str.startswith("n/a") & (table.judge != "")]
    numbered = set(table.judge[~table.value.str.startswith("n/a")])
    absent = missing[~missing.judge.isin(numbered)].drop_duplicates("judge")
    lines += [f"{judge}: {reason}." for judge, reason in zip(absent.judge, absent.value, strict=True)]
    return "".join(f"- {line}\n" for line in lines)


def seconds(runs: Iterable[Run]) -> pd.DataFrame:
    """Time of each kind of stage behind a table, by data set, longest first, and the files that it left."""
    lines = [(label, kind, seconds, files) for seconds, label, kind, files in summary(runs)]
    return pd.DataFrame(lines, columns=["dataset", "stage", "seconds", "files"])
