"""What the paper says in words, each as an assertion on our tables, with a verdict.

The claims lie in claims.csv beside this module, a line each, and their limits there alone: rows of a table, a relation
(`RELATIONS`), a limit or other rows.

A verdict is 'holds', 'does not hold', 'undecided' (recognisers disagree, or an interval reaches the limit or is
missing) or 'n/a: reason'. It asks the whole 95 % interval, by everything that measured and took no part in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from riddle.evaluation.tables import is_reason, span

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
# Relation -> what proves and what disproves it, of our numbers and intervals (x) and those of the other rows (y), and
# whether one row disproves it: else all must, and where they disagree, it is undecided. NaN proves nothing.
RELATIONS = {
    "at most": ("high_x <= @limit", "low_x > @limit", True),
    "at least": ("low_x >= @limit", "high_x < @limit", True),
    "below": ("high_x < low_y", "low_x > high_y", False),
    "not above by": ("high_x - low_y <= @limit + 1e-9", "low_x - high_y > @limit", True),
    "near": (
        "high_x - low_y <= @limit + 1e-9 and high_y - low_x <= @limit + 1e-9",
        "low_x - high_y > @limit or low_y - high_x > @limit", False,
    ),
    "a share of": ("low_x >= @limit * high_y", "high_x < @limit * low_y", False),
}  # fmt: skip
Tables = Mapping[str, pd.DataFrame]
_span = partial(span, digits=".3f")


class NotAnswered(Exception):
    """Why a claim has no verdict: a table, a column or a row is missing."""


@dataclass(frozen=True)
class Selection:
    """Rows of a table: where each of the columns has one of the values."""

    table: str  # stem of its CSV
    where: Mapping[str, tuple[str, ...]]
    column: str = ""  # of the number, when it is not `mean`; its interval: <column>_low, <column>_high

    def of(self, tables: Tables, found: bool = True) -> pd.DataFrame:
        """Those with a number by one unseen in training, as columns number, low, high beside the table's own.

        found: a row in which most faces were not found answers nothing; False where the number itself tells.
        Raises NotAnswered with the reason.
        """
        if self.table not in tables:
            raise NotAnswered(f"there is no {self.table}.csv")
        rows, number = tables[self.table], self.column or "mean"
        if absent := [c for c in (*self.where, number) if c not in rows]:
            raise NotAnswered(f"{self.table}.csv has no column {', '.join(absent)}")
        for column, wanted in self.where.items():
            rows = rows[rows[column].isin(wanted)]
        if not len(rows):
            raise NotAnswered(f"{self.table}.csv has no row {', '.join(map(' or '.join, self.where.values()))}")
        rows = rows[~rows.seen_in_training.astype(bool)]
        bounds = [f"{self.column}_{end}" if self.column else end for end in ("low", "high")]
        low, high = (rows[c] if c in rows else np.nan for c in bounds)
        known = rows.assign(number=rows[number], low=low, high=high)[rows[number].notna()]
        if not len(known):
            reasons = [v.removeprefix("n/a: ") for v in rows.value if is_reason(v)]
            absent = [r for r in reasons if "encryptor" in r] or reasons  # a recogniser's absence explains less
            raise NotAnswered(absent[0] if absent else "no number by a recogniser unseen in training")
        if found:
            known = known[known.undetected <= known.n / 2]
            if not len(known):
                raise NotAnswered("most faces were not found")
        return known


@dataclass(frozen=True)
class Claim:
    """Rows of one table are in a relation to a limit, or to other rows of the same data set, measured by the same."""

    text: str
    section: str  # of the paper; '' where the claim is this project's own
    paper: str  # the paper's figures for it
    rows: Selection
    relation: str  # a key of RELATIONS
    limit: float = np.nan  # a number, or of the difference or the share
    than: Selection | None = None
    broken: float = np.nan  # beyond this limit something is wrong with the program or its weights (`broken`)

    def verdict(self, tables: Tables) -> tuple[str, str]:
        """The verdict of these tables {stem: table as `tables.read` gives it}, and our figures in words."""
        proof, disproof, one_disproves = RELATIONS[self.relation]
        try:
            pairs = self.pairs(tables)
        except NotAnswered as reason:
            return f"n/a: {reason}", ""
        right, wrong = (pairs.eval(how, local_dict={"limit": self.limit}) for how in (proof, disproof))
        disproved = wrong.any() if one_disproves else wrong.all()
        return HOLDS if right.all() else FAILS if disproved else UNDECIDED, self.figures(pairs)

    def pairs(self, tables: Tables) -> pd.DataFrame:
        """Our rows' number, low and high as number_x and so on, those beside them as number_y. Raises NotAnswered."""
        numbers = ["number", "low", "high"]
        first = self.rows.of(tables, found=self.relation != "at least")  # a face that is lost only lowers its number
        if self.than is None:
            return first[numbers].add_suffix("_x")
        second, named = self.than.of(tables), {*self.rows.where, *self.than.where}
        shared = [
            c for c in ("measured_by", "metric", "dataset", "against") if c not in named and c in first and c in second
        ]
        pairs = first[[*shared, *numbers]].merge(second[[*shared, *numbers]], on=shared)
        if not len(pairs):
            raise NotAnswered(f"no recogniser or metric is in both rows of {self.rows.table}.csv")
        if self.relation == "a share of" and not (pairs.number_y > 0).all():
            raise NotAnswered("there is nothing to have a share of")
        return pairs

    def figures(self, pairs: pd.DataFrame) -> str:
        """Our figures in words."""
        if self.than is None:
            return f"{_span(pairs.number_x)} (asked: {self.relation} {self.limit:g})"
        if self.relation == "a share of":
            return f"{_span(pairs.number_x / pairs.number_y)} of it (asked: {self.limit:g})"
        asked = f" (asked: within {self.limit:g})" if self.relation == "near" else ""
        return f"{_span(pairs.number_x)} against {_span(pairs.number_y)}{asked}"


def verdicts(tables: Tables, only: str = "") -> pd.DataFrame:
    """Every claim by these tables: columns claim, section, paper, ours, verdict. only: the claims on one table."""
    claims = [claim for claim in CLAIMS if only in ("", claim.rows.table)]
    lines = [(c.text, c.section, c.paper, *reversed(c.verdict(tables))) for c in claims]
    return pd.DataFrame(lines, columns=["claim", "section", "paper", "ours", "verdict"])


def broken(name: str, table: pd.DataFrame) -> list[str]:
    """What is so far from a claim on a table that the program or its weights must be at fault, in words."""
    found = []
    for claim in CLAIMS:
        if claim.rows.table == name and not np.isnan(claim.broken):
            try:
                numbers = claim.rows.of({name: table}, found=False).number
            except NotAnswered:
                continue
            if (numbers > claim.broken if claim.relation == "at most" else numbers < claim.broken).any():
                found.append(f"{claim.text}: {_span(numbers)}, and {claim.broken:g} is the limit of what can be right")
    return found


def sentences(answers: pd.DataFrame) -> str:
    """Lines of `verdicts` as a markdown list for readers."""
    lines = []
    for a in answers.itertuples():
        beside = "; ".join(filter(None, (a.ours, a.paper and f"paper: {a.paper}")))
        lines.append(f"- {a.claim}: **{a.verdict}**" + (f" ({beside})" if beside else "") + "\n")
    return "".join(lines)


def _selection(table: str, where: str, column: str = "") -> Selection:
    """Rows from a cell of claims.csv: 'column=value; column=one value|another'."""
    pairs = (pair.split("=") for pair in where.split("; "))
    return Selection(table, {name: tuple(values.split("|")) for name, values in pairs}, column)


def _claims() -> Iterator[Claim]:
    lines = pd.read_csv(Path(__file__).with_name("claims.csv"), dtype=str, keep_default_na=False)
    for c in lines.itertuples():
        ours = _selection(c.table, c.rows, c.column)
        than = _selection(c.table, c.than) if c.than else None
        limit, broken = float(c.limit or "nan"), float(c.broken or "nan")
        yield Claim(c.claim, c.section, c.paper, ours, c.relation, limit, than, broken)


CLAIMS = tuple(_claims())
