"""What the paper says in words, each as an assertion on our tables, with a verdict.

A verdict is 'holds', 'does not hold', 'undecided' (judges disagree, or an interval reaches the limit) or
'n/a: reason'. Only judges that took no part in training count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from riddle.protocols import OURS

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
NUMBERS = ("rate", "mean")  # column of a table's number, the first that it has; low and high: its 95 % interval
Tables = Mapping[str, pd.DataFrame]


class NotAnswered(Exception):
    """Why a claim has no verdict: a table, a column or a row is missing."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table: where each of the columns has the value (or one of the values)."""

    table: str  # stem of its CSV
    where: Mapping[str, str | tuple[str, ...]]
    column: str = ""  # of the number, when it is none of NUMBERS; it has no interval then

    def of(self, tables: Tables, found: bool = True) -> pd.DataFrame:
        """Those with a number by an unseen judge, as columns number, low, high beside the table's own.

        found: a row in which most faces were not found answers nothing; False where the number itself tells.
        Raises NotAnswered with the reason.
        """
        if self.table not in tables:
            raise NotAnswered(f"there is no {self.table}.csv")
        rows = tables[self.table]
        number = self.column or next((c for c in NUMBERS if c in rows), NUMBERS[0])
        if absent := [c for c in (*self.where, number) if c not in rows]:
            raise NotAnswered(f"{self.table}.csv has no column {', '.join(absent)}")
        for column, wanted in self.where.items():
            rows = rows[rows[column].isin([wanted] if isinstance(wanted, str) else wanted)]
        if not len(rows):
            raise NotAnswered(f"{self.table}.csv has no row {', '.join(map(str, self.where.values()))}")
        if "judge_seen" in rows:
            rows = rows[rows.judge_seen.astype(str) != "True"]
        wanted = (number,) if self.column else (number, "low", "high")
        numbers = {c: pd.to_numeric(rows[c], errors="coerce") for c in wanted if c in rows}
        values = numbers[number]
        known = rows.assign(number=values, low=numbers.get("low", values), high=numbers.get("high", values))
        known = known[values.notna()]
        if not len(known):
            reasons = [v for v in rows.get("value", ()) if str(v).startswith("n/a: ")]
            absent = [r for r in reasons if "encryptor" in r] or reasons  # a judge's absence explains less
            raise NotAnswered(absent[0].removeprefix("n/a: ") if absent else "no number by a judge unseen in training")
        if found and {"n", "undetected"} <= set(known):
            known = known[pd.to_numeric(known.undetected) <= pd.to_numeric(known.n) / 2]
            if not len(known):
                raise NotAnswered("most faces were not found")
        return known.fillna({"low": known.number, "high": known.number})


@dataclass(frozen=True)
class Verdict:
    """A claim, answered."""

    claim: str
    section: str
    paper: str
    ours: str
    verdict: str

    @property
    def answered(self) -> bool:
        """Whether our tables could say anything."""
        return not self.verdict.startswith("n/a")


@dataclass(frozen=True)
class Claim:
    """An assertion; the kinds below say how it is judged."""

    text: str
    section: str  # of the paper; '' where the claim is this project's own
    paper: str  # the paper's figures for it

    def judge(self, tables: Tables) -> Verdict:
        """The verdict of these tables: {stem: table as `reporting.read_csv` or pandas reads it}."""
        try:
            ours, verdict = self.answer(tables)
        except NotAnswered as reason:
            ours, verdict = "", f"n/a: {reason}"
        return Verdict(self.text, self.section, self.paper, ours, verdict)

    def answer(self, tables: Tables) -> tuple[str, str]:
        """(our figures, verdict). Raises NotAnswered."""
        raise NotImplementedError


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low} to {high}"


def _all_or_none(right: np.ndarray, wrong: np.ndarray) -> str:
    return HOLDS if right.all() else FAILS if wrong.any() else UNDECIDED


@dataclass(frozen=True)
class AtMost(Claim):
    """Every number is at most the limit: interval included, it holds; a whole interval above, it does not."""

    rows: Rows = field(kw_only=True)
    limit: float = field(kw_only=True)

    def answer(self, tables: Tables) -> tuple[str, str]:
        r = self.rows.of(tables)
        verdict = _all_or_none((r.high <= self.limit).to_numpy(), (r.low > self.limit).to_numpy())
        return f"{_span(r.number)} (asked: at most {self.limit:g})", verdict


@dataclass(frozen=True)
class AtLeast(Claim):
    """Every number is at least the limit: interval included, it holds; a whole interval below, it does not."""

    rows: Rows = field(kw_only=True)
    limit: float = field(kw_only=True)

    def answer(self, tables: Tables) -> tuple[str, str]:
        r = self.rows.of(tables, found=False)  # a face that is lost only lowers it
        verdict = _all_or_none((r.low >= self.limit).to_numpy(), (r.high < self.limit).to_numpy())
        return f"{_span(r.number)} (asked: at least {self.limit:g})", verdict


def _matched(a: Rows, b: Rows, tables: Tables) -> pd.DataFrame:
    """Rows of a and b that agree in what neither selects: the same judge, metric and data set."""
    first, second = a.of(tables), b.of(tables)
    shared = [c for c in ("judge", "metric", "dataset", "against") if c in first and c not in (*a.where, *b.where)]
    shared = [c for c in shared if c in second]
    numbers = ["number", "low", "high"]
    if not shared:
        return first[numbers].merge(second[numbers], how="cross")
    pairs = first[[*shared, *numbers]].merge(second[[*shared, *numbers]], on=shared)
    if not len(pairs):
        raise NotAnswered(f"no judge or metric is in both rows of {a.table}.csv")
    return pairs


def _both(pairs: pd.DataFrame) -> str:
    return f"{_span(pairs.number_x)} against {_span(pairs.number_y)}"


@dataclass(frozen=True)
class Below(Claim):
    """The first rows' numbers lie below the second's: holds with disjoint intervals under every judge; does not
    when no judge says so."""

    rows: Rows = field(kw_only=True)
    than: Rows = field(kw_only=True)

    def answer(self, tables: Tables) -> tuple[str, str]:
        p = _matched(self.rows, self.than, tables)
        clear, contrary = (p.high_x < p.low_y), (p.number_x >= p.number_y)
        return _both(p), HOLDS if clear.all() else FAILS if contrary.all() else UNDECIDED


@dataclass(frozen=True)
class Near(Claim):
    """The two rows' numbers differ by at most the margin under every judge."""

    rows: Rows = field(kw_only=True)
    than: Rows = field(kw_only=True)
    margin: float = field(kw_only=True)

    def answer(self, tables: Tables) -> tuple[str, str]:
        p = _matched(self.rows, self.than, tables)
        near = ((p.number_x - p.number_y).abs() <= self.margin + 1e-9).to_numpy()
        verdict = HOLDS if near.all() else UNDECIDED if near.any() else FAILS
        return f"{_both(p)} (asked: within {self.margin:g})", verdict


@dataclass(frozen=True)
class NotAbove(Claim):
    """The first rows' numbers are no higher than the second's: not above their interval under any judge; it does not
    hold when a whole interval is above theirs."""

    rows: Rows = field(kw_only=True)
    than: Rows = field(kw_only=True)

    def answer(self, tables: Tables) -> tuple[str, str]:
        p = _matched(self.rows, self.than, tables)
        return _both(p), _all_or_none((p.number_x <= p.high_y).to_numpy(), (p.low_x > p.high_y).to_numpy())


@dataclass(frozen=True)
class Share(Claim):
    """The first rows' numbers are at least a share of the second's under every judge."""

    rows: Rows = field(kw_only=True)
    of: Rows = field(kw_only=True)
    share: float = field(kw_only=True)

    def answer(self, tables: Tables) -> tuple[str, str]:
        p = _matched(self.rows, self.of, tables)
        if not (p.number_y > 0).all():
            raise NotAnswered("there is nothing to have a share of")
        shares = p.number_x / p.number_y
        enough = (shares >= self.share - 1e-9).to_numpy()
        verdict = HOLDS if enough.all() else UNDECIDED if enough.any() else FAILS
        return f"{_span(shares)} of it (asked: {self.share:g})", verdict


def _of(table: str, task: str, method: str | tuple[str, ...], **where: str | tuple[str, ...]) -> Rows:
    return Rows(table, {"task": task, "method": method, **where})


_INVERTED, _PHOTO = "its inverted face", "the same photo"
_OTHERS = ("CIAGAN", "FIT", "Personal")  # that the paper compares diversity with
_ALIGNED = "aligned face"
_FRECHET = ("FID", "Frechet distance (dlib)")
CLAIMS: tuple[Claim, ...] = (
    AtMost(
        "A protected face is no longer recognised", "4.2", "0.016 to 0.032",
        rows=_of("table1", "de-identification", "RiDDLE"), limit=0.05,
    ),
    Below(
        "It is recognised less than inversion alone would leave it", "", "",
        rows=_of("table1", "de-identification", "RiDDLE"), than=_of("table1", "unprotected", "inverted"),
    ),
    AtMost(
        "A wrongly decrypted face is not recognised either", "3.2", "",
        rows=_of("table1", "de-identification", "RiDDLE, wrongly decrypted"), limit=0.05,
    ),
    AtLeast(
        "The right password restores the face that inversion gave", "4.3", "",
        rows=_of("table1", "recovery", "RiDDLE", against=_INVERTED), limit=0.95,
    ),
    AtLeast(
        "The restored face is recognised as its photo", "4.3", "0.996 to 1.000",
        rows=_of("table1", "recovery", "RiDDLE", against=_PHOTO), limit=0.95,
    ),
    Share(
        "From the picture's pixels alone (PNG) nearly as many are recognised as from the kept code", "", "",
        rows=_of("table1", "recovery", "RiDDLE, from PNG pixels", against=_PHOTO),
        of=_of("table1", "recovery", "RiDDLE", against=_PHOTO), share=0.90,
    ),
    Near(
        "Training without data leaves de-identification almost unaffected", "3.3", "0.016 to 0.032; 0.025 to 0.037",
        rows=_of("table1", "de-identification", "RiDDLE data-free"),
        than=_of("table1", "de-identification", "RiDDLE"), margin=0.02,
    ),
    AtLeast(
        "Ten passwords make ten people of one face", "4.4", "",
        rows=_of("table1", "diversity", "RiDDLE"), limit=0.90,
    ),
    Below(
        "Restored pictures are nearer to the photos than those trained without data (MSE)", "4.3",
        "0.002 against 0.004",
        rows=_of("table2", "recovery", "RiDDLE", metric="MSE", against=_PHOTO),
        than=_of("table2", "recovery", "RiDDLE data-free", metric="MSE", against=_PHOTO),
    ),
    Below(
        "Restored pictures are nearer to the photos than those of other methods (MSE)", "4.3",
        "0.002 against 0.003 and 0.005",
        rows=_of("table2", "recovery", "RiDDLE", metric="MSE", against=_PHOTO),
        than=_of("table2", "recovery", ("FIT", "Personal"), metric="MSE"),
    ),
    AtLeast(
        "A protected face is still found as a face", "4.5", "1.000 (MTCNN), 0.991 (dlib)",
        rows=_of("table3", "utility", "RiDDLE", metric="face detection", place=_ALIGNED), limit=0.99,
    ),
    Below(
        "Landmarks stay nearer to the original's than another person's are", "4.5", "1.7 px (MTCNN), 1.5 px (dlib)",
        rows=_of("table3", "utility", "RiDDLE", metric="landmark distance", place=_ALIGNED),
        than=_of("table3", "utility", "another person's photo", metric="landmark distance", place=_ALIGNED),
    ),
    Below(
        "Protected faces look more like photos than those of other methods (FID)", "4.5", "15.4 against 23.7 to 32.6",
        rows=_of("table3", "fidelity", "RiDDLE", metric="FID", against="the same photos"),
        than=_of("table3", "fidelity", (*_OTHERS, "DeepPrivacy"), metric="FID"),
    ),
    AtMost(
        "Protected faces have a low cosine with the original", "4.4", "0.038 to 0.058",
        rows=_of("table4", "similarity", "RiDDLE", metric="identity cosine"), limit=0.10,
    ),
    NotAbove(
        "A protected face is no more like its original than a stranger's photo is", "", "",
        rows=_of("table4", "similarity", "RiDDLE", metric="identity cosine", against=_PHOTO),
        than=_of("table4", "similarity", "strangers' photos", metric="identity cosine", against="a stranger's photo"),
    ),
    AtMost(
        "Wrongly decrypted faces have a low cosine with the original", "4.4", "0.028 to 0.054",
        rows=_of("table4", "similarity", "RiDDLE, wrongly decrypted", metric="identity cosine"), limit=0.10,
    ),
    AtLeast(
        "KFFA is larger than that of any other method in the paper", "4.4",
        "74.9 to 77.4 degrees; the others at most 66.5",
        rows=_of("table4", "diversity", "RiDDLE", metric="KFFA (degrees)"), limit=66.45,
    ),
    Below(
        "The transformer brings better de-identification", "4.6", "0.016 against 0.018",
        rows=_of("table5", "de-identification", "full"),
        than=_of("table5", "de-identification", "without transformer"),
    ),
    Below(
        "The transformer brings better restoration (recovery without it, with it)", "4.6", "0.985 against 0.996",
        rows=_of("table5", "recovery", "without transformer"), than=_of("table5", "recovery", "full"),
    ),
    Below(
        "The transformer greatly improves image quality", "4.6", "FID 15.4 against 22.7",
        rows=_of("table5", "fidelity", "full", metric=_FRECHET),
        than=_of("table5", "fidelity", "without transformer", metric=_FRECHET),
    ),
    Below(
        "Training without data costs image quality", "4.6", "FID 15.4 against 26.8",
        rows=_of("table5", "fidelity", "full", metric=_FRECHET),
        than=_of("table5", "fidelity", "without data", metric=_FRECHET),
    ),
    AtMost(
        "Without L_div all passwords make one person of a face", "4.6", "",
        rows=_of("table5", "diversity", "without identity diversity loss"), limit=0.10,
    ),
    Near(
        "Without L_div recovery is nearly unaffected", "4.6", "0.993; 0.996",
        rows=_of("table5", "recovery", "without identity diversity loss"),
        than=_of("table5", "recovery", "full"), margin=0.02,
    ),
    Below(
        "One person's faces cluster less than those of other methods (silhouette)", "4.4", "a picture",
        rows=_of("figure7", "diversity", "RiDDLE", metric="silhouette"),
        than=_of("figure7", "diversity", _OTHERS, metric="silhouette"),
    ),
    AtLeast(
        "200 passwords scatter one person wider than the best other method does in the paper", "4.4",
        "74.9 to 77.4 degrees; the others at most 66.5",
        rows=_of("figure7", "diversity", "RiDDLE", metric="mean pairwise angle"), limit=66.45,
    ),
    AtMost(
        "Between two passwords the face is never taken for the original", "4.5", "without exception",
        rows=Rows("figure8", {"task": "interpolation", "path": ("spherical", "linear")}, "accepted"), limit=0.0,
    ),
    AtMost(
        f"{OURS}: a protected face is no longer recognised", "", "",
        rows=_of("table1", "de-identification", OURS), limit=0.05,
    ),
    AtMost(
        f"{OURS}: a wrongly decrypted face is not recognised either", "", "",
        rows=_of("table1", "de-identification", f"{OURS}, wrongly decrypted"), limit=0.05,
    ),
    AtLeast(
        f"{OURS}: the right password restores the face that inversion gave", "", "",
        rows=_of("table1", "recovery", OURS, against=_INVERTED), limit=0.95,
    ),
    AtLeast(
        f"{OURS}: ten passwords make ten people of one face", "", "",
        rows=_of("table1", "diversity", OURS), limit=0.90,
    ),
    NotAbove(
        f"{OURS}: a protected face is no more like its original than a stranger's photo is", "", "",
        rows=_of("table4", "similarity", OURS, metric="identity cosine", against=_PHOTO),
        than=_of("table4", "similarity", "strangers' photos", metric="identity cosine", against="a stranger's photo"),
    ),
)  # fmt: skip
