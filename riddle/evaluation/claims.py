"""What the paper says in words, each as an assertion on our tables, with a verdict; the only home of limits.

A verdict is 'holds', 'does not hold', 'undecided' (recognisers disagree, or an interval reaches the limit or is
missing) or 'n/a: reason'. It asks the whole 95 % interval, by every judge that took no part in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from riddle.evaluation.rows import ALIGNED, COSINE, KFFA, OURS, PHOTO, SAME_INVERTED, SAME_PHOTO, STRANGER

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
KEPT_APART, RESTORED, DIVERSE, ALIKE = 0.05, 0.95, 0.90, 0.10  # rates, rates, share of pairs, cosine
BEST_KFFA = 66.45  # degrees, the best of the other methods in the paper's Table 4
Tables = Mapping[str, pd.DataFrame]


class NotAnswered(Exception):
    """Why a claim has no verdict: a table, a column or a row is missing."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table: where each of the columns has the value (or one of the values)."""

    table: str  # stem of its CSV
    where: Mapping[str, str | tuple[str, ...]]
    column: str = ""  # of the number, when it is not `mean`; its interval: <column>_low, <column>_high

    def of(self, tables: Tables, found: bool = True) -> pd.DataFrame:
        """Those with a number by a judge unseen in training, as columns number, low, high beside the table's own.

        found: a row in which most faces were not found answers nothing; False where the number itself tells.
        Raises NotAnswered with the reason.
        """
        if self.table not in tables:
            raise NotAnswered(f"there is no {self.table}.csv")
        rows, number = tables[self.table], self.column or "mean"
        if absent := [c for c in (*self.where, number) if c not in rows]:
            raise NotAnswered(f"{self.table}.csv has no column {', '.join(absent)}")
        for column, wanted in self.where.items():
            rows = rows[rows[column].isin([wanted] if isinstance(wanted, str) else wanted)]
        if not len(rows):
            raise NotAnswered(f"{self.table}.csv has no row {', '.join(map(str, self.where.values()))}")
        rows = rows[~rows.judge_seen.astype(bool)]
        bounds = [f"{self.column}_{end}" if self.column else end for end in ("low", "high")]
        low, high = (rows[c] if c in rows else np.nan for c in bounds)
        known = rows.assign(number=rows[number], low=low, high=high)[rows[number].notna()]
        if not len(known):
            reasons = [v.removeprefix("n/a: ") for v in rows.value if v.startswith("n/a: ")]
            absent = [r for r in reasons if "encryptor" in r] or reasons  # a recogniser's absence explains less
            raise NotAnswered(absent[0] if absent else "no number by a judge unseen in training")
        if found:
            known = known[known.undetected <= known.n / 2]
            if not len(known):
                raise NotAnswered("most faces were not found")
        return known


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
    """An assertion on rows of one table; the kinds below say how it is judged. A comparison with NaN is no proof."""

    one_disproves: ClassVar[bool] = True  # False: all rows must; where they disagree, it is undecided
    text: str
    section: str  # of the paper; '' where the claim is this project's own
    paper: str  # the paper's figures for it
    rows: Rows

    def judge(self, tables: Tables) -> Verdict:
        """The verdict of these tables: {stem: table as `tables.read` gives it}."""
        try:
            ours, right, wrong = self.answer(tables)
            disproved = wrong.any() if self.one_disproves else wrong.all()
            verdict = HOLDS if right.all() else FAILS if disproved else UNDECIDED
        except NotAnswered as reason:
            ours, verdict = "", f"n/a: {reason}"
        return Verdict(self.text, self.section, self.paper, ours, verdict)

    def answer(self, tables: Tables) -> tuple[str, pd.Series, pd.Series]:
        """(our figures, which rows prove it, which rows disprove it). Raises NotAnswered."""
        raise NotImplementedError


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class AtMost(Claim):
    """Every number is at most the limit."""

    limit: float
    broken: float = np.inf  # beyond this something is wrong with the program or its weights (`broken`)

    def answer(self, tables: Tables) -> tuple[str, pd.Series, pd.Series]:
        r = self.rows.of(tables)
        return f"{_span(r.number)} (asked: at most {self.limit:g})", r.high <= self.limit, r.low > self.limit


@dataclass(frozen=True)
class AtLeast(Claim):
    """Every number is at least the limit; a face that is lost only lowers it."""

    limit: float
    broken: float = -np.inf

    def answer(self, tables: Tables) -> tuple[str, pd.Series, pd.Series]:
        r = self.rows.of(tables, found=False)
        return f"{_span(r.number)} (asked: at least {self.limit:g})", r.low >= self.limit, r.high < self.limit


@dataclass(frozen=True)
class Comparison(Claim):
    """Of two rows, by the same judge, metric and data set."""

    than: Rows

    def pairs(self, tables: Tables) -> tuple[str, pd.DataFrame]:
        """(both figures, numbers beside each other: number, low and high, each with _x and _y)."""
        first, second = self.rows.of(tables), self.than.of(tables)
        named = [*self.rows.where, *self.than.where]
        shared = [c for c in ("judge", "metric", "dataset", "against") if c not in named and c in first and c in second]
        numbers = ["number", "low", "high"]
        pairs = first[[*shared, *numbers]].merge(second[[*shared, *numbers]], on=shared)
        if not len(pairs):
            raise NotAnswered(f"no judge or metric is in both rows of {self.rows.table}.csv")
        return f"{_span(pairs.number_x)} against {_span(pairs.number_y)}", pairs


@dataclass(frozen=True)
class Below(Comparison):
    """The first rows' intervals lie below the second's; above them it does not hold."""

    one_disproves: ClassVar[bool] = False

    def answer(self, tables: Tables) -> tuple[str, pd.Series, pd.Series]:
        both, p = self.pairs(tables)
        return both, p.high_x < p.low_y, p.low_x > p.high_y


@dataclass(frozen=True)
class NotAbove(Comparison):
    """The first rows' numbers are not above the second's intervals; a whole interval above them disproves it."""

    def answer(self, tables: Tables) -> tuple[str, pd.Series, pd.Series]:
        both, p = self.pairs(tables)
        return both, p.number_x <= p.high_y, p.low_x > p.high_y


@dataclass(frozen=True)
class Near(Comparison):
    """The two rows differ by at most the margin, wherever in their intervals they lie."""

    one_disproves: ClassVar[bool] = False
    margin: float

    def answer(self, tables: Tables) -> tuple[str, pd.Series, pd.Series]:
        both, p = self.pairs(tables)
        least = np.maximum(p.low_x - p.high_y, p.low_y - p.high_x)
        most = np.maximum(p.high_x - p.low_y, p.high_y - p.low_x)
        return f"{both} (asked: within {self.margin:g})", most <= self.margin + 1e-9, least > self.margin


@dataclass(frozen=True)
class Share(Comparison):
    """The first rows' numbers are at least a share of the second's, wherever in their intervals they lie."""

    one_disproves: ClassVar[bool] = False
    share: float

    def answer(self, tables: Tables) -> tuple[str, pd.Series, pd.Series]:
        _, p = self.pairs(tables)
        if not (p.number_y > 0).all():
            raise NotAnswered("there is nothing to have a share of")
        text = f"{_span(p.number_x / p.number_y)} of it (asked: {self.share:g})"
        return text, p.low_x >= self.share * p.high_y, p.high_x < self.share * p.low_y


def verdicts(tables: Tables, only: str = "") -> list[Verdict]:
    """Every claim answered by these tables; only: the claims on one table."""
    return [claim.judge(tables) for claim in CLAIMS if only in ("", claim.rows.table)]


def broken(name: str, table: pd.DataFrame) -> list[str]:
    """What is so far from a claim on a table that the program or its weights must be at fault, in words."""
    found = []
    for claim in CLAIMS:
        if claim.rows.table == name and isinstance(claim, AtMost | AtLeast):
            try:
                numbers = claim.rows.of({name: table}, found=False).number
            except NotAnswered:
                continue
            if ((numbers > claim.broken) if isinstance(claim, AtMost) else (numbers < claim.broken)).any():
                found.append(f"{claim.text}: {_span(numbers)}, and {claim.broken:g} is the limit of what can be right")
    return found


def sentences(answers: Sequence[Verdict]) -> str:
    """Verdicts as a markdown list for readers."""
    lines = []
    for a in answers:
        beside = "; ".join(filter(None, (a.ours, a.paper and f"paper: {a.paper}")))
        lines.append(f"- {a.claim}: **{a.verdict}**" + (f" ({beside})" if beside else "") + "\n")
    return "".join(lines)


def _of(table: str, task: str, method: str | tuple[str, ...], **where: str | tuple[str, ...]) -> Rows:
    return Rows(table, {"task": task, "method": method, **where})


def _encryptor(name: str, said: str, deid: str, recovery: str, cosine: str) -> tuple[Claim, ...]:
    """What every encryptor is asked; the paper's figures beside the paper's own."""
    wrong, stranger = f"{name}, wrongly decrypted", "strangers' photos"
    return (
        AtMost(f"{said}a protected face is no longer recognised", "4.2" if deid else "", deid,
               _of("table1", "de-identification", name), KEPT_APART, broken=0.2),
        AtMost(f"{said}a wrongly decrypted face is not recognised either", "3.2" if deid else "", "",
               _of("table1", "de-identification", wrong), KEPT_APART, broken=0.2),
        Below(f"{said}a protected face is recognised less than inversion alone would leave it", "", "",
              _of("table1", "de-identification", name), _of("table1", "unprotected", "inverted")),
        AtLeast(f"{said}the right password restores the face that inversion gave", "4.3" if deid else "", "",
                _of("table1", "recovery", name, against=SAME_INVERTED), RESTORED, broken=0.8),
        AtLeast(f"{said}the restored face is recognised as its photo", "4.3" if deid else "", recovery,
                _of("table1", "recovery", name, against=SAME_PHOTO), RESTORED),
        AtLeast(f"{said}ten passwords make ten people of one face", "4.4" if deid else "", "",
                _of("table1", "diversity", name), DIVERSE),
        AtMost(f"{said}protected faces have a low cosine with the original", "4.4" if deid else "", cosine,
               _of("table4", "similarity", name, metric=COSINE), ALIKE),
        NotAbove(f"{said}a protected face is no more like its original than a stranger's photo is", "", "",
                 _of("table4", "similarity", name, metric=COSINE, against=SAME_PHOTO),
                 _of("table4", "similarity", stranger, metric=COSINE, against=STRANGER)),
    )  # fmt: skip


_OTHERS = ("CIAGAN", "FIT", "Personal")  # that the paper compares diversity with
_FRECHET = ("FID", "Frechet distance (dlib)")
_RECOVERY, _RESTORED = _of("table1", "recovery", "RiDDLE", against=SAME_PHOTO), ("table2", "recovery")
CLAIMS: tuple[Claim, ...] = (
    AtLeast("The recognisers know people on the aligned photos", "", "",
            _of("table1", "unprotected", PHOTO), 0.90),
    AtLeast("Inversion keeps the person", "", "", _of("table1", "unprotected", "inverted"), 0.80),
    *_encryptor("RiDDLE", "RiDDLE: ", "0.016 to 0.032", "0.996 to 1.000", "0.038 to 0.058"),
    Share("From the picture's pixels alone (PNG) nearly as many are recognised as from the kept code", "", "",
          _of("table1", "recovery", "RiDDLE, from PNG pixels", against=SAME_PHOTO), _RECOVERY, 0.90),
    Near("Training without data leaves de-identification almost unaffected", "3.3", "0.016 to 0.032; 0.025 to 0.037",
         _of("table1", "de-identification", "RiDDLE data-free"), _of("table1", "de-identification", "RiDDLE"), 0.02),
    Below("Restored pictures are nearer to the photos than those trained without data (MSE)", "4.3",
          "0.002 against 0.004", _of(*_RESTORED, "RiDDLE", metric="MSE", against=SAME_PHOTO),
          _of(*_RESTORED, "RiDDLE data-free", metric="MSE", against=SAME_PHOTO)),
    Below("Restored pictures are nearer to the photos than those of other methods (MSE)", "4.3",
          "0.002 against 0.003 and 0.005", _of(*_RESTORED, "RiDDLE", metric="MSE", against=SAME_PHOTO),
          _of(*_RESTORED, ("FIT", "Personal"), metric="MSE")),
    AtLeast("A protected face is still found as a face", "4.5", "1.000 (MTCNN), 0.991 (dlib)",
            _of("table3", "utility", "RiDDLE", metric="face detection", place=ALIGNED), 0.99),
    AtLeast("The detectors find the photos themselves", "", "",
            _of("table3", "utility", PHOTO, metric="face detection", place=ALIGNED), 0.99, broken=0.8),
    Below("Landmarks stay nearer to the original's than another person's are", "4.5", "1.7 px (MTCNN), 1.5 px (dlib)",
          _of("table3", "utility", "RiDDLE", metric="landmark distance", place=ALIGNED),
          _of("table3", "utility", "another person's photo", metric="landmark distance", place=ALIGNED)),
    Below("Protected faces look more like photos than those of other methods (FID)", "4.5", "15.4 against 23.7 to 32.6",
          _of("table3", "fidelity", "RiDDLE", metric="FID", against="the same photos"),
          _of("table3", "fidelity", (*_OTHERS, "DeepPrivacy"), metric="FID")),
    AtMost("Wrongly decrypted faces have a low cosine with the original", "4.4", "0.028 to 0.054",
           _of("table4", "similarity", "RiDDLE, wrongly decrypted", metric=COSINE), ALIKE),
    AtLeast("KFFA is larger than that of any other method in the paper", "4.4",
            "74.9 to 77.4 degrees; the others at most 66.5",
            _of("table4", "diversity", "RiDDLE", metric=KFFA), BEST_KFFA),
    Below("The transformer brings better de-identification", "4.6", "0.016 against 0.018",
          _of("table5", "de-identification", "full"), _of("table5", "de-identification", "without transformer")),
    Below("The transformer brings better restoration (recovery without it, with it)", "4.6", "0.985 against 0.996",
          _of("table5", "recovery", "without transformer"), _of("table5", "recovery", "full")),
    Below("The transformer greatly improves image quality", "4.6", "FID 15.4 against 22.7",
          _of("table5", "fidelity", "full", metric=_FRECHET),
          _of("table5", "fidelity", "without transformer", metric=_FRECHET)),
    Below("Training without data costs image quality", "4.6", "FID 15.4 against 26.8",
          _of("table5", "fidelity", "full", metric=_FRECHET),
          _of("table5", "fidelity", "without data", metric=_FRECHET)),
    AtMost("Without L_div all passwords make one person of a face", "4.6", "",
           _of("table5", "diversity", "without identity diversity loss"), 0.10),
    Near("Without L_div recovery is nearly unaffected", "4.6", "0.993; 0.996",
         _of("table5", "recovery", "without identity diversity loss"), _of("table5", "recovery", "full"), 0.02),
    Below("One person's faces cluster less than those of other methods (silhouette)", "4.4", "a picture",
          _of("figure7", "diversity", "RiDDLE", metric="silhouette"),
          _of("figure7", "diversity", _OTHERS, metric="silhouette")),
    AtLeast("200 passwords scatter one person wider than the best other method does in the paper", "4.4",
            "74.9 to 77.4 degrees; the others at most 66.5",
            _of("figure7", "diversity", "RiDDLE", metric="mean pairwise angle"), BEST_KFFA),
    AtMost("Between two passwords the face is never taken for the original", "4.5", "without exception",
           Rows("figure8", {"task": "interpolation", "path": ("spherical", "linear")}, "accepted"), 0.0),
    *_encryptor(OURS, f"{OURS}: ", "", "", ""),
)  # fmt: skip
