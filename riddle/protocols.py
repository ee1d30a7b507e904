"""Table 1: which faces are compared with which, at which threshold, and what is counted.

Pairs of LFW's pairs.txt, ten folds of 300 + 300. Per judge and fold, the threshold is that of the other nine folds'
unprotected negative pairs at a false accept rate of 0.001. De-identification: in each same-person pair the second
photo is replaced by its protected version, and the rate is the share still accepted; a wrongly decrypted face counts
as one. Recovery: a photo (or its inversion) against its own restored version, from the kept code or from pixels. A
pair in which no face is found is not accepted, and its number stands beside the rate; `rate_found` leaves such pairs
out.

Embeddings here are (N, E) arrays over all names of the data set, with NaN rows where there is no face (or none made).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product

import numpy as np

from riddle import baselines, paper
from riddle.metrics.diversity import distinct_pairs, password_pairs
from riddle.metrics.identity import (
    Estimate,
    accepted,
    bootstrap_interval,
    fold_accuracy,
    fold_interval,
    fold_rates,
    fold_thresholds,
)

FAR = 1e-3  # false accept rate of every threshold
PASSWORDS = 10  # passwords a face in the diversity row
# People of the diversity row, of what is restored from pixels, of Table 4 and Table 3's utility: as many as CelebA-HQ's
# test split has.
DIVERSITY_FACES = 150

# Every judge; the last five are the paper's: three of Table 1, that of Table 4, and F_e, which it trains against.
JUDGES = (
    "edgeface-xs", "mobilefacenet-casia", "mobileface-v2", "dlib", "arcface-mobilefacenet",
    "facenet-casia", "facenet-vggface2", "sphereface20", "curricularface-ir101", "irse50",
)  # fmt: skip

# Encryptors with rows of their own in Tables 1 to 4: variant (riddle.runs) -> label. Ours never bears the paper's name.
OURS = "RotationCoupling (ours)"
ENCRYPTORS = {"riddle": "RiDDLE", "datafree": "RiDDLE data-free", "coupling": OURS}
# What a face is restored from when its code was not kept: action of riddle.facesets -> label.
PIXEL_ROWS = {
    "png": "from PNG pixels", "jpeg75": "from JPEG 75", "pasted": "from the pasted photo",
}  # fmt: skip
PIXEL_VARIANTS = ("riddle",)  # variants that Table 1 also restores from pixels, of which every judge sees three sets
# Many passwords of one photo, for the diversity row and Table 4: face set -> label.
DIVERSITY_SETS = {
    "riddle-passwords": "RiDDLE", "riddle-wrong-passwords": "RiDDLE, wrongly decrypted",
    "datafree-passwords": "RiDDLE data-free",
    "coupling-passwords": OURS, "coupling-wrong-passwords": f"{OURS}, wrongly decrypted",
}  # fmt: skip
SIMILARITY_SETS = ("photo", "inverted", "blur", "mosaic", *DIVERSITY_SETS)  # Table 4's, on every data set

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures, by index into `names`."""

    names: tuple[str, ...]
    a: np.ndarray  # (P,) index of the first picture
    b: np.ndarray  # (P,) index of the second, the one that is replaced
    same: np.ndarray  # (P,) bool
    fold: np.ndarray  # (P,) int

    @property
    def targets(self) -> np.ndarray:
        """Indices of the pictures that get protected: the second of each same-person pair, once, ascending."""
        return np.unique(self.b[self.same])

    def folds_of(self, pictures: np.ndarray) -> np.ndarray:
        """The fold in which each picture (T,) stands (LFW's folds share no person)."""
        fold_of = np.full(len(self.names), -1)
        fold_of[self.a], fold_of[self.b] = self.fold, self.fold
        return fold_of[pictures]

    @property
    def of_themselves(self) -> bool:
        """Whether each picture is paired with itself only."""
        return bool((self.a == self.b).all())

    @cached_property
    def persons(self) -> np.ndarray:
        """(N,) who is on each picture: LFW's name without its number; elsewhere every picture is a person's only."""
        names = self.names if self.of_themselves else [n.rsplit("/")[-1].rsplit("_", 1)[0] for n in self.names]
        return np.array(names)

    def one_per_person(self, n: int, seed: int) -> np.ndarray:
        """At most n targets of different people, drawn by the seed, ascending."""
        persons = self.persons[self.targets]
        draw = np.random.default_rng(seed)
        order = draw.permutation(len(persons))
        _, first = np.unique(persons[order], return_index=True)
        candidates = self.targets[order[first]]
        return np.sort(draw.permutation(candidates)[:n])


def verification_pairs(listed: list, limit: int | None = None) -> Pairs:
    """Pairs from records with .a, .b, .same and .fold; `limit` keeps so many of each kind a fold."""
    counts: dict[tuple[int, bool], int] = {}
    kept = []
    for p in listed:
        counts[p.fold, p.same] = counts.get((p.fold, p.same), 0) + 1
        if limit is None or counts[p.fold, p.same] <= limit:
            kept.append(p)
    names = tuple(sorted({n for p in kept for n in (p.a, p.b)}))
    index = {n: i for i, n in enumerate(names)}
    columns = [(index[p.a], index[p.b], p.same, p.fold) for p in kept]
    a, b, same, fold = (np.array(c) for c in zip(*columns, strict=True))
    return Pairs(names, a, b, same.astype(bool), fold)


def self_pairs(names: list[str]) -> Pairs:
    """Each picture with itself, one fold: for a set with one picture a person and no strangers' pairs."""
    i = np.arange(len(names))
    return Pairs(tuple(names), i, i, np.ones(len(i), bool), np.zeros(len(i), int))


@dataclass(frozen=True)
class Row:
    """One row of Table 1: `reference` faces of one picture against `faces` of another or of the same."""

    task: str
    method: str
    reference: str  # set of faces, by its name in riddle.facesets
    faces: str
    itself: bool = False  # True: the second picture against its own version; False: the first against it
    system: str = ""  # key of paper.TABLE1, where the paper has this row
    few: bool = False  # True: of the people of the diversity row only, whose pictures are inverted again

    @property
    def against(self) -> str:
        """What the faces are compared with, for readers."""
        if not self.itself:
            return "other photo"
        return "the same photo" if self.reference == "photo" else "its inverted face"


def _rows() -> Iterator[Row]:
    yield Row("unprotected", "photo (aligned crop)", "photo", "photo")
    yield Row("unprotected", "inverted", "photo", "inverted")
    systems = {variant: paper.SYSTEM_OF.get(label, "") for variant, label in ENCRYPTORS.items()}
    for variant, label in ENCRYPTORS.items():
        yield Row("de-identification", label, "photo", variant, system=systems[variant])
    for variant, label in ENCRYPTORS.items():
        yield Row("de-identification", f"{label}, wrongly decrypted", "photo", f"{variant}-wrong")
    for name in ("blur", "mosaic"):
        yield Row("de-identification", baselines.load(name).label, "photo", name)
    for reference, inverted in (("inverted", False), ("photo", True)):
        if inverted:
            yield Row("recovery", "inverted (the ceiling)", "photo", "inverted", True)
        for variant, label in ENCRYPTORS.items():
            yield Row("recovery", label, reference, f"{variant}-restored", True, systems[variant])
        for variant, (action, source) in product(PIXEL_VARIANTS, PIXEL_ROWS.items()):
            yield Row("recovery", f"{ENCRYPTORS[variant]}, {source}", reference, f"{variant}-{action}", True, few=True)


ROWS = tuple(_rows())
FACE_SETS = tuple(dict.fromkeys(k for r in ROWS for k in (r.reference, r.faces)))


@dataclass
class Record:
    """One row of Table 1 under one judge; numbers are NaN when `value` is 'n/a: reason'."""

    task: str
    method: str
    against: str
    judge: str
    value: str  # mean ± standard deviation, or 'n/a: reason'
    rate: float = np.nan
    std: float = np.nan
    low: float = np.nan  # 95 % interval
    high: float = np.nan
    n: int = 0
    undetected: int = 0  # of n: pairs in which a face was not found, counted as not accepted
    rate_found: float = np.nan  # the rate among the others
    accuracy: float = np.nan  # LFW accuracy, unprotected photos only
    threshold: float = np.nan  # mean over folds, a similarity
    system: str = ""

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Judge:
    """A recogniser's embeddings of every set of faces, and how it compares two."""

    name: str
    embeddings: dict[str, np.ndarray]  # face set -> (N, E), diversity sets: (people, PASSWORDS, E)
    similarity: Similarity  # (P, E), (P, E) -> (P,); same person when above the threshold
    published: float  # its own threshold, used where the data has no strangers' pairs
    reasons: dict[str, str]  # face set -> why there are no faces


def thresholds(pairs: Pairs, judge: Judge) -> dict[int, float]:
    """Per fold, the threshold under the protocol; the published one when the set has no strangers' pairs."""
    if pairs.same.all():
        return {int(f): judge.published for f in np.unique(pairs.fold)}
    photo = judge.embeddings["photo"]
    return fold_thresholds(judge.similarity(photo[pairs.a], photo[pairs.b]), pairs.same, pairs.fold, FAR)


def estimate(values: np.ndarray, folds: np.ndarray) -> Estimate:
    """Over folds where there are several, else a bootstrap over the pictures."""
    if len(np.unique(folds)) > 1:
        return fold_interval(fold_rates(values, folds), n=len(values))
    return bootstrap_interval(values)


def measure(row: Row, pairs: Pairs, judge: Judge, at: dict[int, float], people: np.ndarray | None = None) -> Record:
    """One row under one judge, at the thresholds `at` by fold; people: indices (M,) of pictures, for a row of few."""
    record = Record(row.task, row.method, row.against, judge.name, "", system=row.system)
    missing = [judge.reasons[s] for s in (row.reference, row.faces) if s in judge.reasons]
    single = not row.itself and pairs.of_themselves
    if single:
        record.against = "the same photo"
    trivial = single and row.reference == row.faces
    if missing or trivial:
        record.value = "n/a: " + (missing[0] if missing else "the data set has one picture of each person")
        return record
    first = pairs.b if row.itself else pairs.a
    scores = judge.similarity(judge.embeddings[row.reference][first], judge.embeddings[row.faces][pairs.b])
    limit = np.array([at[int(f)] for f in pairs.fold])
    same = pairs.same & np.isin(pairs.b, people) if row.few and people is not None else pairs.same
    s, folds = scores[same], pairs.fold[same]
    accepts = accepted(s, limit[same])
    if row.faces == "photo" and not pairs.same.all():
        record.accuracy = fold_accuracy(scores, pairs.same, pairs.fold).mean
    return _fill(record, estimate(accepts, folds), accepts, np.isnan(s), limit[same].mean())


def measure_diversity(name: str, pairs: Pairs, people: np.ndarray, judge: Judge, at: dict[int, float]) -> Record:
    """The share of pairs among the faces that PASSWORDS passwords make of one photo taken for two people.

    people: (M,) indices of the photos behind the embeddings (M, PASSWORDS, E). A pair with an undetected face does
    not count as distinct.
    """
    record = Record("diversity", DIVERSITY_SETS[name], f"{PASSWORDS} passwords of one photo", judge.name, "")
    if name in judge.reasons:
        record.value = "n/a: " + judge.reasons[name]
        return record
    e = judge.embeddings[name]
    i, j = password_pairs(e.shape[1])
    scores = judge.similarity(e[:, i].reshape(-1, e.shape[2]), e[:, j].reshape(-1, e.shape[2])).reshape(len(e), -1)
    limit = np.array([at[int(f)] for f in pairs.folds_of(people)])
    distinct = distinct_pairs(scores, limit[:, None])
    groups = np.repeat(np.arange(len(e)), len(i))
    interval = bootstrap_interval(distinct.ravel(), groups)
    return _fill(record, interval, distinct.ravel(), np.isnan(scores).ravel(), limit.mean())


def _fill(record: Record, e: Estimate, values: np.ndarray, lost: np.ndarray, threshold: float) -> Record:
    record.value, record.rate, record.std, record.low, record.high, record.n = str(e), e.mean, e.std, e.low, e.high, e.n
    record.undetected = int(lost.sum())
    record.rate_found = float(values[~lost].mean()) if (~lost).any() else np.nan
    record.threshold = float(threshold)
    return record


def table1(pairs: Pairs, people: np.ndarray, judge: Judge) -> list[Record]:
    """Every row of Table 1 under one judge."""
    at = thresholds(pairs, judge)
    records = [measure(row, pairs, judge, at, people) for row in ROWS]
    return records + [measure_diversity(name, pairs, people, judge, at) for name in DIVERSITY_SETS]


def without_judge(name: str, reason: str) -> list[Record]:
    """Every row of Table 1 for a judge that is not available."""
    value = f"n/a: {reason}"
    records = [Record(r.task, r.method, r.against, name, value, system=r.system) for r in ROWS]
    against = f"{PASSWORDS} passwords of one photo"
    return records + [Record("diversity", label, against, name, value) for label in DIVERSITY_SETS.values()]


def without_system() -> list[Record]:
    """The systems that the paper compares with and that cannot be run here: the paper's values only."""
    return [
        Record(task, paper.SYSTEMS[s], "", "", f"n/a: {baselines.UNAVAILABLE[s]}", system=s)
        for task, s in paper.TABLE1
        if s in baselines.UNAVAILABLE
    ]
