"""All tables and figures of a preset on one page, paper beside ours, as markdown and HTML.

    python -m riddle.report --preset mobile        # results/mobile/report.md, report.html and verdicts.csv

It reads the CSV files under results/<preset>/tables and recomputes nothing. A table that is not there becomes
'n/a: run notebook NN'. The HTML file holds its pictures and needs nothing else.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import pandas as pd

from riddle import config, reporting
from riddle.claims import CLAIMS, FAILS, HOLDS, UNDECIDED, Verdict
from riddle.files import write_text
from riddle.reporting import grid, write_csv


@dataclass(frozen=True)
class Source:
    """One table of the report."""

    name: str  # stem of its CSV
    title: str
    notebook: str  # number of the notebook that makes it
    section: str  # of the paper


SOURCES = (
    Source("table1", "Table 1: identification rates", "05", "4.2, 4.3"),
    Source("table2", "Table 2: quality of restored faces", "06", "4.3"),
    Source("table3", "Table 3: fidelity and utility", "07", "4.5"),
    Source("table4", "Table 4: identity similarity and KFFA", "08", "4.4"),
    Source("figure7", "Figure 7: diversity of identities", "09", "4.4"),
    Source("figure8", "Figure 8: interpolation of passwords", "10", "4.5"),
    Source("table5", "Table 5: ablations", "11", "4.6"),
)

# Columns that say how a table was made, printed below it; data sets are a column where there are several.
PROVENANCE = (
    "dataset", "version", "split_hash", "seed", "preset", "weights", "detector", "threshold_rule", "undetected_rule",
    "interval", "protocol", "resize", "reference", "reference_hash", "perplexity", "passwords", "people",
)  # fmt: skip
SPREAD = ("rate", "mean", "std", "low", "high", "rate_found", "accuracy", "threshold")  # `value` says it for readers
LONGEST = 40  # rows of a table on the page; the CSV has them all


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    text: tuple[str, ...] = ()
    table: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    picture: Path | None = None


def results(preset: str) -> Path:
    """Where the results that the repository keeps lie."""
    return config.home() / "results" / preset


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """{stem: table} of the CSV files in `folder` that the report knows; cells are text, absent ones are ''.

    Raises ValueError for a file that is no table.
    """
    tables = {}
    for source in SOURCES:
        path = folder / f"{source.name}.csv"
        if not path.is_file():
            continue
        try:
            tables[source.name] = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as e:
            raise ValueError(f"{path} is no table ({e}); run notebook {source.notebook} again") from e
    return tables


def _is_shared(table: pd.DataFrame, column: str) -> bool:
    """Whether a column says which row it is, not what a judge measured: text, or the same numbers for every judge."""
    filled = table[column][table[column] != ""]
    if pd.to_numeric(filled, errors="coerce").isna().any():
        return True
    each = {tuple(sorted(rows[column])) for judge, rows in table.groupby("judge") if judge}
    return len(each) == 1


def layout(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A tidy table for readers, and notes: (frame of text, lines).

    A column a judge where there are several, those unseen in training first; the paper's columns last; what is the
    same in every row, and judges without a number, go to the notes. Columns that it does not know stay.
    """
    made = [c for c in PROVENANCE if c in table and (c != "dataset" or table[c].nunique() == 1)]
    values = {c: [v for v in dict.fromkeys(table[c]) if v != ""] for c in made}
    notes = [f"{c.replace('_', ' ')}: {'; '.join(listed)}" for c, listed in values.items() if listed]
    kept = table.drop(columns=made)
    paper = [c for c in kept if c.startswith("paper") and (kept[c] != "").any()]
    kept = kept.drop(columns=[c for c in kept if c.startswith("paper") and c not in paper])
    kept = kept.drop(columns=[c for c in kept if (kept[c] == "").all()])
    if "value" not in kept:
        return kept.reset_index(drop=True), tuple(notes)
    if {"low", "high"} <= set(kept):
        kept["95 %"] = [f"{lo} to {hi}" if lo and hi else "" for lo, hi in zip(kept.low, kept.high, strict=True)]
    several = "judge" in kept and kept.judge[kept.judge != ""].nunique() > 1
    numbers = [c for c in kept if c in SPREAD]
    if not several:
        kept = kept.drop(columns=[c for c in (*numbers, "judge_seen") if c in kept])
        return kept[[c for c in kept if c not in paper] + paper].reset_index(drop=True), tuple(notes)
    frame, absent = _by_judge(kept, paper)
    return frame, (*notes, *(f"{judge}: {reason}" for judge, reason in absent.items()))


def _by_judge(table: pd.DataFrame, paper: list[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A line for what the judges share, a column a judge; and {judge without a number: reason}."""
    counts = [c for c in ("n", "undetected") if c in table]
    per_judge = {"judge", "judge_seen", "value", "95 %", *SPREAD, *counts, *paper}
    keys = [c for c in table if c not in per_judge and _is_shared(table, c)]
    numbered = table[~table.value.str.startswith("n/a")]
    seen = set(table.judge[table.get("judge_seen", pd.Series("", table.index)) == "True"])
    order = sorted(dict.fromkeys(numbered.judge[numbered.judge != ""]), key=lambda j: j in seen)
    titles = {j: f"{j} (seen in training)" if j in seen else j for j in order}
    absent = {j: rows.value.iloc[0] for j, rows in table.groupby("judge", sort=False) if j and j not in order}
    lines = []
    for values, rows in table.groupby(keys, sort=False):
        line = dict(zip(keys, values, strict=True))
        cells = dict(zip(rows.judge, rows.value, strict=True))
        said = [v for j, v in cells.items() if j not in absent]  # a system without numbers says why in each column
        if said:
            shown = [cells.get(j, cells.get("", "")) for j in order]
            if len(set(shown)) == 1 and shown[0].startswith("n/a"):
                shown[1:] = ["n/a"] * (len(shown) - 1)  # a reason once a line is enough
            line |= {titles[j]: cell for j, cell in zip(order, shown, strict=True)}
        line |= {c: max(rows[c], key=lambda v: float(v or 0)) for c in counts}
        lines.append(line | {c: rows[c].iloc[0] for c in paper})
    return pd.DataFrame(lines).fillna(""), absent


def _weights_note(tables: dict[str, pd.DataFrame]) -> Iterator[str]:
    """A sentence where the tables were not all made with the same weights."""
    made = {name: t.weights.iloc[0] for name, t in tables.items() if "weights" in t and len(t)}
    if len(set(made.values())) > 1:
        listed = ", ".join(f"{name}: {value}" for name, value in made.items())
        yield f"The tables were made with different weights ({listed}): run `make reproduce` to make them alike."


def sections(preset: str, tables: dict[str, pd.DataFrame], figures: Sequence[Path] = ()) -> list[Section]:
    """The page: verdicts, then every table, then the figures."""
    answers = verdicts(tables)
    counts = {v: sum(a.verdict == v for a in answers) for v in (HOLDS, FAILS, UNDECIDED)}
    counts["without an answer"] = sum(not a.answered for a in answers)
    summary = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    text = (
        f"{len(answers)} claims: {summary}. A claim is judged by the worst of the recognisers that took no part in "
        "training; 'undecided' says that they disagree or that an interval reaches the limit.",
        *_weights_note(tables),
    )
    page = [Section("What holds and what does not", text, pd.DataFrame([asdict(a) for a in answers]))]
    for source in SOURCES:
        where = (f"Section {source.section} of the paper; notebook {source.notebook}.",)
        if source.name not in tables:
            page.append(Section(source.title, (*where, f"n/a: run notebook {source.notebook}")))
        elif not len(tables[source.name]):
            page.append(Section(source.title, (*where, f"n/a: the table is empty; run notebook {source.notebook}")))
        else:
            frame, notes = layout(tables[source.name])
            if len(frame) > LONGEST:
                notes = (f"the first {LONGEST} of {len(frame)} rows", *notes)
            notes = (f"all numbers: tables/{source.name}.csv", *notes)
            page.append(Section(source.title, where, frame.head(LONGEST), notes))
    page += [Section(p.stem.replace("_", " ").capitalize(), picture=p) for p in figures]
    return page


def verdicts(tables: dict[str, pd.DataFrame]) -> list[Verdict]:
    """Every claim of the paper, answered by these tables."""
    return [claim.judge(tables) for claim in CLAIMS]


def title(preset: str) -> str:
    """The page's heading."""
    return f"RiDDLE, preset {preset}: the paper's results and ours"


def to_markdown(preset: str, page: Sequence[Section]) -> str:
    """The page as markdown; pictures by their place beside it."""
    parts = [f"# {title(preset)}\n"]
    for s in page:
        parts.append(f"## {s.title}\n")
        parts += [f"{line}\n" for line in s.text]
        if s.table is not None:
            parts.append(grid(s.table))
        if s.notes:
            parts.append("".join(f"- {note}\n" for note in s.notes))
        if s.picture is not None:
            parts.append(f"![{s.title}](figures/{s.picture.name})\n")
    return "\n".join(parts)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px } img { max-width: 100% }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #888 } tr:hover td { background: #f6f6f6 } ul { color: #555; font-size: 13px }
.holds { color: #14691f; font-weight: 600 } .fails { color: #a01414; font-weight: 600 } .undecided { color: #8a5a00 }
.absent { color: #777 } .number { white-space: nowrap }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #ddd } th, td { border-color: #444 } tr:hover td { background: #22252b }
  ul, .absent { color: #aaa } .holds { color: #6fce7c } .fails { color: #ff8d84 } .undecided { color: #f0b95a }
}
"""
_NUMBER = re.compile(r"-?[\d.]+( ± [\d.]+)?")  # kept on one line
_CLASSES = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "undecided"}


def to_html(preset: str, page: Sequence[Section]) -> str:
    """The page as one HTML file, pictures inside; every text is escaped."""
    parts = [f"<h1>{escape(title(preset))}</h1>"]
    for s in page:
        parts.append(f"<h2>{escape(s.title)}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in s.text]
        if s.table is not None:
            parts.append(_html_table(s.table))
        if s.notes:
            parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in s.notes) + "</ul>")
        if s.picture is not None:
            parts.append(f'<img alt="{escape(s.title)}" src="data:image/jpeg;base64,{_jpeg(s.picture)}">')
    head = f'<meta charset="utf-8"><title>{escape(title(preset))}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _html_table(frame: pd.DataFrame) -> str:
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in frame)
    rows = []
    for values in frame.astype(str).itertuples(index=False, name=None):
        rows.append("<tr>" + "".join(_html_cell(v) for v in values) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table></div>'


def _html_cell(text: str) -> str:
    kind = _CLASSES.get(text) or ("absent" if text.startswith("n/a") else "number" if _NUMBER.fullmatch(text) else "")
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _jpeg(path: Path, width: int = 640) -> str:
    from PIL import Image

    with Image.open(path) as opened:
        return reporting.jpeg(opened, width, quality=80)


def write(preset: str, folder: Path | None = None) -> list[Verdict]:
    """Write report.md, report.html and verdicts.csv into `folder` (default: results/<preset>), from results/<preset>.

    Returns the verdicts. Raises ValueError for a table that cannot be read.
    """
    source = results(preset)
    tables, figures = read_tables(source / "tables"), sorted((source / "figures").glob("figure*.png"))
    page = sections(preset, tables, figures)
    folder = folder or source
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", to_markdown(preset, page))
    write_text(folder / "report.html", to_html(preset, page))
    answers = verdicts(tables)
    write_csv(pd.DataFrame([asdict(a) for a in answers]), folder / "verdicts.csv")
    return answers


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mobile")
    parser.add_argument("--out", type=Path, help="folder; default: results/<preset>")
    options = parser.parse_args(argv)
    for answer in write(options.preset, options.out):
        print(f"{answer.verdict:14.60}  {answer.claim}  {answer.ours}")


if __name__ == "__main__":
    main()
