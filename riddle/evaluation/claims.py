"""What the paper says in words, each as an assertion on our tables, with a verdict; the only home of limits.

A verdict is 'holds', 'does not hold', 'undecided' (recognisers disagree, or an interval reaches the limit or is
missing) or 'n/a: reason'. It asks the whole 95 % interval, by every judge that took no part in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from riddle.evaluation.rows import ALIGNED, COSINE, KFFA, OURS, PHOTO, SAME_INVERTED, SAME_PHOTO, STRANGER
from riddle.evaluation.tables import is_reason

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
KEPT_APART, RESTORED, DIVERSE, ALIKE = 0.05, 0.95, 0.90, 0.10  # rates, rates, share of pairs, cosine
BEST_KFFA = 66.45  # degrees, the best of the other methods in the paper's Table 4
# Relation -> what proves and what disproves it, of our numbers and intervals (x) and those of the other rows (y), and
# whether one row disproves it: else all must, and where they disagree, it is undecided. NaN proves nothing.
RELATIONS = {
    "at most": ("high_x <= @limit", "low_x > @limit", True),
    "at least": ("low_x >= @limit", "high_x < @limit", True),
    "below": ("high_x < low_y", "low_x > high_y", False),
    "not above": ("number_x <= high_y", "low_x > high_y", True),
    "near": (
        "high_x - low_y <= @limit + 1e-9 and high_y - low_x <= @limit + 1e-9",
        "low_x - high_y > @limit or low_y - high_x > @limit", False,
    ),
    "a share of": ("low_x >= @limit * high_y", "high_x < @limit * low_y", False),
}  # fmt: skip
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
            reasons = [v.removeprefix("n/a: ") for v in rows.value if is_reason(v)]
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
        return not is_reason(self.verdict)


@dataclass(frozen=True)
class Claim:
    """Rows of one table are in a relation to a limit, or to other rows by the same judge, metric and data set."""

    text: str
    section: str  # of the paper; '' where the claim is this project's own
    paper: str  # the paper's figures for it
    rows: Rows
    relation: str  # a key of RELATIONS
    limit: float = np.nan  # a number, or of the difference or the share
    than: Rows | None = None
    broken: float = np.nan  # beyond this limit something is wrong with the program or its weights (`broken`)

    def judge(self, tables: Tables) -> Verdict:
        """The verdict of these tables: {stem: table as `tables.read` gives it}."""
        proof, disproof, one_disproves = RELATIONS[self.relation]
        try:
            pairs = self.pairs(tables)
        except NotAnswered as reason:
            return Verdict(self.text, self.section, self.paper, "", f"n/a: {reason}")
        right, wrong = (pairs.eval(how, local_dict={"limit": self.limit}) for how in (proof, disproof))
        disproved = wrong.any() if one_disproves else wrong.all()
        verdict = HOLDS if right.all() else FAILS if disproved else UNDECIDED
        return Verdict(self.text, self.section, self.paper, self.figures(pairs), verdict)

    def pairs(self, tables: Tables) -> pd.DataFrame:
        """Our rows' number, low and high as number_x and so on, those beside them as number_y. Raises NotAnswered."""
        numbers = ["number", "low", "high"]
        first = self.rows.of(tables, found=self.relation != "at least")  # a face that is lost only lowers its number
        if self.than is None:
            return first[numbers].add_suffix("_x")
        second, named = self.than.of(tables), {*self.rows.where, *self.than.where}
        shared = [c for c in ("judge", "metric", "dataset", "against") if c not in named and c in first and c in second]
        pairs = first[[*shared, *numbers]].merge(second[[*shared, *numbers]], on=shared)
        if not len(pairs):
            raise NotAnswered(f"no judge or metric is in both rows of {self.rows.table}.csv")
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


def _span(values: pd.Series) -> str:
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low} to {high}"


def verdicts(tables: Tables, only: str = "") -> list[Verdict]:
    """Every claim answered by these tables; only: the claims on one table."""
    return [claim.judge(tables) for claim in CLAIMS if only in ("", claim.rows.table)]


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


def sentences(answers: Sequence[Verdict]) -> str:
    """Verdicts as a markdown list for readers."""
    lines = []
    for a in answers:
        beside = "; ".join(filter(None, (a.ours, a.paper and f"paper: {a.paper}")))
        lines.append(f"- {a.claim}: **{a.verdict}**" + (f" ({beside})" if beside else "") + "\n")
    return "".join(lines)


def _of(table: str, task: str, method: str | tuple[str, ...], **where: str | tuple[str, ...]) -> Rows:
    return Rows(table, {"task": task, "method": method, **where})


def _encryptor(name: str, deid: str = "", recovery: str = "", cosine: str = "") -> tuple[Claim, ...]:
    """What every encryptor is asked; the paper's figures, and where it claims so, beside the paper's own."""
    protected, restored = _of("table1", "de-identification", name), _of("table1", "recovery", name, against=SAME_PHOTO)
    alike = _of("table4", "similarity", name, metric=COSINE)
    stranger = _of("table4", "similarity", "strangers' photos", metric=COSINE, against=STRANGER)
    claims = (
        ("a protected face is no longer recognised", "4.2", deid, protected, "at most", KEPT_APART, None, 0.2),
        ("a wrongly decrypted face is not recognised either", "3.2", "",
         _of("table1", "de-identification", f"{name}, wrongly decrypted"), "at most", KEPT_APART, None, 0.2),
        ("a protected face is recognised less than inversion alone would leave it", "", "",
         protected, "below", np.nan, _of("table1", "unprotected", "inverted")),
        ("the right password restores the face that inversion gave", "4.3", "",
         _of("table1", "recovery", name, against=SAME_INVERTED), "at least", RESTORED, None, 0.8),
        ("the restored face is recognised as its photo", "4.3", recovery, restored, "at least", RESTORED),
        ("ten passwords make ten people of one face", "4.4", "", _of("table1", "diversity", name), "at least", DIVERSE),
        ("protected faces have a low cosine with the original", "4.4", cosine, alike, "at most", ALIKE),
        ("a protected face is no more like its original than a stranger's photo is", "", "",
         _of("table4", "similarity", name, metric=COSINE, against=SAME_PHOTO), "not above", np.nan, stranger),
    )  # fmt: skip
    return tuple(Claim(f"{name}: {said}", section if deid else "", *more) for said, section, *more in claims)


_OTHERS = ("CIAGAN", "FIT", "Personal")  # that the paper compares diversity with
_FRECHET = ("FID", "Frechet distance (dlib)")
_MSE = _of("table2", "recovery", "RiDDLE", metric="MSE", against=SAME_PHOTO)
_FOUND, _LANDMARKS = ({"metric": metric, "place": ALIGNED} for metric in ("face detection", "landmark distance"))
CLAIMS: tuple[Claim, ...] = (
    Claim("The recognisers know people on the aligned photos", "", "",
          _of("table1", "unprotected", PHOTO), "at least", 0.90),
    Claim("Inversion keeps the person", "", "", _of("table1", "unprotected", "inverted"), "at least", 0.80),
    *_encryptor("RiDDLE", "0.016 to 0.032", "0.996 to 1.000", "0.038 to 0.058"),
    Claim("From the picture's pixels alone (PNG) nearly as many are recognised as from the kept code", "", "",
          _of("table1", "recovery", "RiDDLE, from PNG pixels", against=SAME_PHOTO), "a share of", 0.90,
          _of("table1", "recovery", "RiDDLE", against=SAME_PHOTO)),
    Claim("Training without data leaves de-identification almost unaffected", "3.3", "0.016 to 0.032; 0.025 to 0.037",
          _of("table1", "de-identification", "RiDDLE data-free"), "near", 0.02,
          _of("table1", "de-identification", "RiDDLE")),
    Claim("Restored pictures are nearer to the photos than those trained without data (MSE)", "4.3",
          "0.002 against 0.004", _MSE, "below",
          than=_of("table2", "recovery", "RiDDLE data-free", metric="MSE", against=SAME_PHOTO)),
    Claim("Restored pictures are nearer to the photos than those of other methods (MSE)", "4.3",
          "0.002 against 0.003 and 0.005", _MSE, "below",
          than=_of("table2", "recovery", ("FIT", "Personal"), metric="MSE")),
    Claim("A protected face is still found as a face", "4.5", "1.000 (MTCNN), 0.991 (dlib)",
          _of("table3", "utility", "RiDDLE", **_FOUND), "at least", 0.99),
    Claim("The detectors find the photos themselves", "", "",
          _of("table3", "utility", PHOTO, **_FOUND), "at least", 0.99, broken=0.8),
    Claim("Landmarks stay nearer to the original's than another person's are", "4.5", "1.7 px (MTCNN), 1.5 px (dlib)",
          _of("table3", "utility", "RiDDLE", **_LANDMARKS), "below",
          than=_of("table3", "utility", "another person's photo", **_LANDMARKS)),
    Claim("Protected faces look more like photos than those of other methods (FID)", "4.5", "15.4 against 23.7 to 32.6",
          _of("table3", "fidelity", "RiDDLE", metric="FID", against="the same photos"), "below",
          than=_of("table3", "fidelity", (*_OTHERS, "DeepPrivacy"), metric="FID")),
    Claim("Wrongly decrypted faces have a low cosine with the original", "4.4", "0.028 to 0.054",
          _of("table4", "similarity", "RiDDLE, wrongly decrypted", metric=COSINE), "at most", ALIKE),
    Claim("KFFA is larger than that of any other method in the paper", "4.4",
          "74.9 to 77.4 degrees; the others at most 66.5",
          _of("table4", "diversity", "RiDDLE", metric=KFFA), "at least", BEST_KFFA),
    Claim("The transformer brings better de-identification", "4.6", "0.016 against 0.018",
          _of("table5", "de-identification", "full"), "below",
          than=_of("table5", "de-identification", "without transformer")),
    Claim("The transformer brings better restoration (recovery without it, with it)", "4.6", "0.985 against 0.996",
          _of("table5", "recovery", "without transformer"), "below", than=_of("table5", "recovery", "full")),
    Claim("The transformer greatly improves image quality", "4.6", "FID 15.4 against 22.7",
          _of("table5", "fidelity", "full", metric=_FRECHET), "below",
          than=_of("table5", "fidelity", "without transformer", metric=_FRECHET)),
    Claim("Training without data costs image quality", "4.6", "FID 15.4 against 26.8",
          _of("table5", "fidelity", "full", metric=_FRECHET), "below",
          than=_of("table5", "fidelity", "without data", metric=_FRECHET)),
    Claim("Without L_div all passwords make one person of a face", "4.6", "",
          _of("table5", "diversity", "without identity diversity loss"), "at most", 0.10),
    Claim("Without L_div recovery is nearly unaffected", "4.6", "0.993; 0.996",
          _of("table5", "recovery", "without identity diversity loss"), "near", 0.02,
          _of("table5", "recovery", "full")),
    Claim("One person's faces cluster less than those of other methods (silhouette)", "4.4", "a picture",
          _of("figure7", "diversity", "RiDDLE", metric="silhouette"), "below",
          than=_of("figure7", "diversity", _OTHERS, metric="silhouette")),
    Claim("200 passwords scatter one person wider than the best other method does in the paper", "4.4",
          "74.9 to 77.4 degrees; the others at most 66.5",
          _of("figure7", "diversity", "RiDDLE", metric="mean pairwise angle"), "at least", BEST_KFFA),
    Claim("Between two passwords the face is never taken for the original", "4.5", "without exception",
          Rows("figure8", {"task": "interpolation", "path": ("spherical", "linear")}, "accepted"), "at most", 0.0),
    *_encryptor(OURS),
)  # fmt: skip
