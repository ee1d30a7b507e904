"""One record of a number, and how numbers are laid out: tidy with provenance, wide for readers; one writer, one reader.

A tidy line is a metric of one method, measured by a recogniser, a detector or a network of features; by '' where pixels
are compared. `tidy` makes lines, `write` and `read` keep them as CSV, `wide`, `notes` and `grid` show them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riddle.evaluation.rows import published
from riddle.evaluation.runs import Run
from riddle.files import replace_file
from riddle.metrics.identity import Estimate
from riddle.presets import get

SEEN = ("squeezenet",)  # took part in training beside the preset's F_e: LPIPS on SqueezeNet is F_p (eq. 7)
PAIRED, PICTURES = ("lfw",), ("celebamask_hq", "ffhq")  # data sets of pairs, and of pictures alone
FACES = {"interval": "95 %, bootstrap over faces", "undetected_rule": "left out, and counted"}  # notes on their numbers


@dataclass
class Measured:
    """One metric of one method; numbers are NaN when `value` is 'n/a: reason'."""

    task: str
    method: str
    metric: str
    against: str  # what the faces are compared with
    measured_by: str = ""  # a recogniser, a detector or a network
    value: str = ""  # mean ± std, or 'n/a: reason'
    mean: float = np.nan
    std: float = np.nan
    low: float = np.nan  # 95 % interval
    high: float = np.nan
    n: int = 0  # faces, or pairs of them, behind the mean
    undetected: int = 0  # those without a detected face
    rate_found: float = np.nan  # a rate without the undetected
    accuracy: float = np.nan  # LFW's verification accuracy, unprotected photos only
    threshold: float = np.nan  # of a rate: a similarity, mean over folds
    place: str = ""  # where the face was looked at: aligned, or pasted back into its photo
    resize: str = ""  # the filter that took pictures to a network's size
    reference_hash: str = ""  # of the set that a distance between sets refers to

    def of(self, e: Estimate, undetected: int = 0, digits: int = 3) -> Measured:
        """A copy with an estimate's numbers; an estimate of nothing says that no face was found."""
        if not e.n:
            return replace(self.absent("no face was found"), undetected=undetected)
        spread = e.std if np.isfinite(e.std) else 0.0
        largest = max(abs(e.mean), spread, 1.0)
        digits = max(0, min(digits, 3 - int(np.log10(largest))))  # large values need no decimals
        text = f"{e.mean:.{digits}f}" + (f" ± {e.std:.{digits}f}" if np.isfinite(e.std) else "")
        numbers = {"mean": e.mean, "std": e.std, "low": e.low, "high": e.high, "n": e.n}
        return replace(self, value=text, undetected=undetected, **numbers)

    def absent(self, reason: str) -> Measured:
        """A copy without numbers, with the reason."""
        return replace(self, value=f"n/a: {reason.removeprefix('n/a: ')}")


@dataclass(frozen=True)
class Part:
    """Numbers of one kind in a table."""

    datasets: tuple[str, ...]  # each that is found; where none is, the bundled samples
    measure: Callable[[Run], Iterator[Measured]]
    sets: Collection[str]  # the face sets that it needs
    recognisers: tuple[str, ...] = ()  # the recognisers that see these
    about: Mapping[str, str] = field(default_factory=dict)  # notes on how the numbers were made


def tidy(records: Iterable[Measured], run: Run, table: str = "", **about: Any) -> Iterator[dict[str, Any]]:
    """Records as lines with the paper's numbers and their provenance; about: further columns, the same in each line."""
    seen = (get(run.preset).identity, *SEEN)
    made = {
        "dataset": run.label if run.data != "samples" else f"{run.label}, no photographs",
        "version": run.version, "split_hash": run.split_hash, "seed": run.seed, "preset": run.preset,
        "weights": run.weights_hash, "detector": run.detector,
    }  # fmt: skip
    for record in records:
        line = asdict(record) | {"seen_in_training": record.measured_by in seen}
        yield line | published(table, line) | made | about


# ---- columns

# Columns that say how a table was made; `notes` prints them.
PROVENANCE = (
    "dataset", "version", "split_hash", "seed", "preset", "weights", "detector", "threshold_rule", "undetected_rule",
    "interval", "protocol", "resize", "reference_hash", "perplexity", "passwords", "people",
)  # fmt: skip
# Columns that name a row.
ROWS = ("dataset", "task", "method", "metric", "against", "place", "path", "t")
# Columns of text, which may look like numbers or be empty.
TEXTS = {f.name for f in fields(Measured) if f.type == "str"} | {*PROVENANCE, "variant", "trained otherwise"}
TEXTS -= {"seed", "perplexity", "passwords", "people"}


# ---- files


def write(table: pd.DataFrame, *paths: Path) -> Path:
    """Write a table as CSV, four decimals, atomically, to each of the paths (`Run.tables`); returns the first."""
    for path in paths:
        with replace_file(path) as temporary:
            table.to_csv(temporary, index=False, float_format="%.4f")
    return paths[0]


def read(path: Path) -> pd.DataFrame:
    """A table that `write` wrote: texts stay texts, an empty number is NaN. Raises ValueError for another file."""
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no table ({e}); remove it and make it again") from e
    texts = table.select_dtypes(exclude=["number", "bool"]).columns
    return table.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))


# ---- for readers


def wide(table: pd.DataFrame, rows: Sequence[str] = ()) -> pd.DataFrame:
    """A line for each combination of `rows`, cells as text, a column for each way to measure (and metric, where `rows`
    lack it).

    rows: default: those of ROWS that differ. Those unseen in training come first, the others are
    marked; one without any number has no column. The paper's columns come last, unless a line holds several metrics.
    """
    if table.empty or "value" not in table:
        return table.drop(columns=[c for c in PROVENANCE if c in table])
    beside = [c for c in table if c.startswith("paper") and table[c].notna().any()]
    names = [c for c in table if c in ROWS and (c == "method" or table[c].nunique(dropna=False) > 1)]
    rows = list(rows) or names
    several = "metric" not in rows and table.metric.nunique() > 1
    table = table.assign(column=table.metric if several else "")
    numbered = table[~table.value.map(is_reason)].sort_values("seen_in_training", kind="stable")
    titles = {
        (metric, by): _title(metric, by) + (" (seen in training)" if seen else "")
        for metric, by, seen in zip(numbered.column, numbered.measured_by, numbered.seen_in_training, strict=True)
    } or {("", ""): "value"}
    lines = []
    for values, part in table.groupby(rows, sort=False, dropna=False):
        known = part.set_index(["column", "measured_by"]).value.to_dict()
        for_all = {metric: v for (metric, by), v in known.items() if not by and is_reason(v)}
        cells = [known.get(key, for_all.get(key[0], "")) for key in titles]
        if not any(cells):  # nothing that measured this line has a number anywhere
            cells[0] = part.value.iloc[0]
        cells = ["n/a" if c in cells[:i] and is_reason(c) else c for i, c in enumerate(cells)]  # a reason stands once
        line = dict(zip(rows, values, strict=True)) | dict(zip(titles.values(), cells, strict=True))
        line |= part[["n", "undetected"]].max().astype(int).to_dict()
        lines.append(line if several else line | dict(part[beside].max()))
    return pd.DataFrame(lines)


def _title(metric: str, by: str) -> str:
    return ", ".join(t for t in (metric, by if by.lower() not in metric.lower() else "") if t) or "value"


def is_reason(cell: str) -> bool:
    """True for a cell that says why there is no number."""
    return cell.startswith("n/a: ")


def grid(frame: pd.DataFrame) -> str:
    """A data frame as a markdown table, whole; what looks like HTML or a column's end is escaped."""
    cells = [[_cell(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    rows = [[_cell(c) for c in frame], ["---"] * frame.shape[1], *cells]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return escape(str(value), quote=False).replace("|", "/").replace("\n", " ")


def notes(table: pd.DataFrame) -> str:
    """Notes on a table as a markdown list: provenance, and who measured without any number."""
    values = {c: [v for v in table[c].dropna().unique() if v != ""] for c in PROVENANCE if c in table}
    lines = [f"{c.replace('_', ' ')}: {'; '.join(map(str, listed))}" for c, listed in values.items() if listed]
    if "value" in table:
        by, absent = table.measured_by, table.value.map(is_reason)
        missing = table[absent & (by != "") & ~by.isin(by[~absent])].drop_duplicates("measured_by")
        lines += (missing.measured_by + ": " + missing.value).tolist()
    return "".join(f"- {_cell(line)}\n" for line in lines)


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """The lines with a number.

    Raises ValueError for a number outside its interval, and for a missing one without a reason.
    """
    known = table["mean"].notna()
    outside = table[known & ((table["mean"] < table.low) | (table["mean"] > table.high))]
    untold = table[~known & ~table.value.map(is_reason)]
    if len(outside) or len(untold):
        raise ValueError(f"numbers outside their interval:\n{outside}\nmissing without a reason:\n{untold}")
    return table[known]


def apart(table: pd.DataFrame, method: str, than: str) -> pd.DataFrame:
    """One row for each number that both methods have, by those unseen in training, and the verdict of the intervals.

    `verdict`: 'higher' or 'lower' if the 95 % intervals do not touch, else 'not told apart'.
    """
    numbers = table[table["mean"].notna() & ~table.seen_in_training]
    keys = ["dataset", "task", "metric", "measured_by", "place"]
    first, second = (numbers[numbers.method == name] for name in (method, than))
    if (first.against.isin(second.against)).any():
        keys.append("against")
    pairs = first.merge(second, on=keys, suffixes=("", " of the other"))
    higher, lower = pairs.low > pairs["high of the other"], pairs.high < pairs["low of the other"]
    verdict = np.select([higher, lower], ["higher", "lower"], "not told apart")
    columns = [*keys, "method", "value", "mean", "than", "value of the other", "mean of the other", "verdict"]
    return pairs.assign(than=than, verdict=verdict)[columns]


def sentences(pairs: pd.DataFrame, said: Mapping[str, str] | None = None) -> str:
    """Rows of `apart` as a markdown list: a line for each metric and pair of methods, over all data sets and all that
    measured it.

    said: {verdict: its meaning in words}; without it the lines in which nothing is told apart are only counted.
    """
    words, lines, silent = {"not told apart": "not told apart by the intervals"} | dict(said or {}), [], 0
    keys = [c for c in ("metric", "against", "place", "method", "than") if c in pairs]
    for names, part in pairs.groupby(keys, sort=False, dropna=False):
        *what, method, than = names
        counts = part.verdict.value_counts()
        if said is None and list(counts.index) == ["not told apart"]:
            silent += 1
            continue
        verdicts = "; ".join(f"**{words.get(v, v)}** in {n} of {len(part)}" for v, n in counts.items())
        ours, other = (span(part[c]) for c in ("mean", "mean of the other"))
        lines.append(
            f"- {', '.join(w for w in what if isinstance(w, str) and w)}: {method} {ours}, {than} {other}: {verdicts}\n"
        )
    return "".join(lines) + (f"\nComparisons in which nothing is told apart: {silent}.\n" if silent else "")


def far_from_paper(table: pd.DataFrame, methods: Collection[str]) -> str:
    """Where numbers of these methods are over twice the largest or under half the smallest of the paper's.

    A markdown list: a line for each task, method and metric, over all data sets and all unseen in training that
    measured it.
    """
    columns = [c for c in table if c.startswith("paper")]
    if not columns or "seen_in_training" not in table:
        return ""
    known = table[table.method.isin(methods) & table["mean"].notna() & ~table.seen_in_training]
    lines = []
    for (task, method, metric), part in known.groupby(["task", "method", "metric"], sort=False):
        ours, theirs = part["mean"], part[columns].stack().dropna().astype(float)
        how = "over twice" if ours.min() > 2 * theirs.max() else "under half" if ours.max() < theirs.min() / 2 else ""
        if how:
            said = f"{method} {span(ours)}, in the paper {span(theirs)}: **{how}** the paper's"
            lines.append(f"- {task}, {metric}: {said}\n")
    return "".join(lines)


def span(numbers: pd.Series, digits: str = ".3g") -> str:
    """The least and the largest number in words, or the one that both are."""
    low, high = (format(x, digits) for x in (numbers.min(), numbers.max()))
    return low if low == high else f"{low} to {high}"
