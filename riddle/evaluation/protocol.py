"""What is compared with what, at which threshold, and what is counted: arrays in, numbers out.

Table 1: pairs of LFW's pairs.txt, ten folds of 300 + 300. Per recogniser and fold, the threshold is that of the other
nine folds' unprotected negative pairs at a false accept rate of 0.001. De-identification: in each same-person pair the
second photo is replaced by its protected version, and the rate is the share still accepted; a wrongly decrypted face
counts as one. Recovery: a photo (or its inversion) against its own restored version. A pair in which no face is found
is not accepted, and its number stands beside the rate; `rate_found` leaves such pairs out.

Embeddings here are (N, E) arrays over all names of the data set, with NaN rows where there is no face (or none made).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from riddle.evaluation.rows import OTHER_PHOTO, PASSWORDS, SAME_PHOTO, Row
from riddle.evaluation.tables import Measured
from riddle.metrics import diversity, fidelity
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
DRAWS = 200  # of a bootstrap of a distance between sets

# ---- pairs


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


def verification_pairs(listed: Sequence, limit: int | None = None) -> Pairs:
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


def self_pairs(names: Sequence[str]) -> Pairs:
    """Each picture with itself, one fold: for a set with one picture a person and no strangers' pairs."""
    i = np.arange(len(names))
    return Pairs(tuple(names), i, i, np.ones(len(i), bool), np.zeros(len(i), int))


def strangers(people: int, seed: int, each: int = PASSWORDS) -> np.ndarray:
    """For each of n people, `each` others (fewer when there are not so many), at random: (n, each) indices."""
    order = np.random.default_rng(seed).permutation(people)
    steps = np.arange(1, min(each, people - 1) + 1)
    out = np.empty((people, len(steps)), int)
    out[order] = order[(np.arange(people)[:, None] + steps) % people]
    return out


# ---- rates


@dataclass(frozen=True)
class Embedded:
    """A recogniser's embeddings of sets of faces, and how it compares two."""

    name: str
    embeddings: dict[str, np.ndarray]  # face set -> (N, E); many passwords of one photo: (people, PASSWORDS, E)
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (P, E), (P, E) -> (P,): same person above a threshold
    published: float  # its own threshold, used where the data has no strangers' pairs
    reasons: dict[str, str]  # face set -> why there are no embeddings


def thresholds(pairs: Pairs, by: Embedded) -> dict[int, float]:
    """Per fold, the threshold under the protocol; the published one when the set has no strangers' pairs."""
    if pairs.same.all():
        return {int(f): by.published for f in np.unique(pairs.fold)}
    photo = by.embeddings["photo"]
    return fold_thresholds(by.similarity(photo[pairs.a], photo[pairs.b]), pairs.same, pairs.fold, FAR)


def rate(row: Row, pairs: Pairs, by: Embedded, at: dict[int, float], people: np.ndarray) -> Measured:
    """One row of Table 1 or 5 by one recogniser, at the thresholds `at` by fold.

    people: (M,) indices of the pictures behind many passwords and behind a row of few.
    """
    itself = row.itself or pairs.of_themselves
    against = SAME_PHOTO if itself and row.against == OTHER_PHOTO else row.against
    empty = Measured(row.task, row.method, row.metric, against, by.name)
    if missing := [by.reasons[s] for s in (row.reference, row.faces) if s in by.reasons]:
        return empty.absent(missing[0])
    if row.task == "diversity":
        return _diversity(empty, by.embeddings[row.faces], by, np.array([at[int(f)] for f in pairs.folds_of(people)]))
    if row.reference == row.faces and pairs.of_themselves:
        return empty.absent("the data set has one picture of each person")
    first = pairs.b if row.itself else pairs.a
    scores = by.similarity(by.embeddings[row.reference][first], by.embeddings[row.faces][pairs.b])
    limit = np.array([at[int(f)] for f in pairs.fold])
    same = pairs.same & np.isin(pairs.b, people) if row.few else pairs.same
    accepts, folds = accepted(scores[same], limit[same]), pairs.fold[same]
    several = len(np.unique(folds)) > 1
    interval = fold_interval(fold_rates(accepts, folds), len(accepts)) if several else bootstrap_interval(accepts)
    if row.faces == "photo" and not pairs.same.all():
        empty.accuracy = fold_accuracy(scores, pairs.same, pairs.fold).mean
    return _filled(empty, interval, accepts, np.isnan(scores[same]), limit[same].mean())


def _diversity(empty: Measured, e: np.ndarray, by: Embedded, limit: np.ndarray) -> Measured:
    """The share of pairs among the faces that many passwords make of one photo taken for two people.

    e: (people, PASSWORDS, E); limit: (people,). A pair with an undetected face does not count as distinct.
    """
    scores = diversity.pairs(e, by.similarity)
    distinct = diversity.distinct(scores, limit[:, None]).ravel()
    interval = bootstrap_interval(distinct, np.repeat(np.arange(len(e)), scores.shape[1]))
    return _filled(empty, interval, distinct, np.isnan(scores).ravel(), limit.mean())


def _filled(empty: Measured, interval: Estimate, values: np.ndarray, lost: np.ndarray, threshold: float) -> Measured:
    number = empty.of(interval, int(lost.sum()))
    number.rate_found = float(values[~lost].mean()) if (~lost).any() else np.nan
    number.threshold = float(threshold)
    return number


# ---- means and distances


def mean_of(values: np.ndarray) -> Estimate | None:
    """Mean of values (P,) with a bootstrap interval, NaN left out; `std` is that of the values. None when nothing is
    left."""
    known = values[np.isfinite(values)]
    return replace(bootstrap_interval(known), std=float(np.std(known))) if len(known) else None


def by_person(values: np.ndarray) -> np.ndarray:
    """Mean over the faces of each person (n, K), faces that were not found left out: (n,)."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(1)
    return np.divide(total, known.sum(1), out=np.full(len(values), np.nan), where=known.any(1))


def frechet(a: np.ndarray, b: np.ndarray, people: tuple[np.ndarray, np.ndarray]) -> Estimate:
    """Frechet distance of features (N, D) and (M, D) with a bootstrap over people: (N,) and (M,), who is in a row."""
    draws = [
        fidelity.frechet_distance(a.repeat(first, axis=0), b.repeat(second, axis=0))
        for first, second in _resampled(people)
    ]
    return _centred(fidelity.frechet_distance(a, b), np.nan, draws, len(b), least=0.0)


def kid(a: np.ndarray, b: np.ndarray, people: tuple[np.ndarray, np.ndarray]) -> Estimate:
    """Kernel distance of features (N, D) and (M, D), mean and deviation over subsets of at most half a set (those of a
    whole one would be the same set each time), with a bootstrap over people: (N,) and (M,), who is in a row."""
    mean, std = fidelity.kid(a, b, size=max(2, min(1000, min(len(a), len(b)) // 2)))
    aa, bb, ab = (fidelity.kernel(x, y) for x, y in ((a, a), (b, b), (a, b)))

    def within(k: np.ndarray, w: np.ndarray) -> float:
        """Mean over pairs of rows drawn w times, a row never with its own copy."""
        return (w @ k @ w - (w**2 * k.diagonal()).sum()) / (w.sum() ** 2 - (w**2).sum())

    draws = [
        within(aa, first) + within(bb, second) - 2 * (first @ ab @ second) / (first.sum() * second.sum())
        for first, second in _resampled(people)
    ]
    return _centred(mean, std, draws, len(b))


def _resampled(people: tuple[np.ndarray, np.ndarray], seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """How often a bootstrap draws each row of two sets: a person's rows are drawn together, also across the sets."""
    everyone = np.union1d(*people)
    draw = np.random.default_rng(seed)
    for _ in range(DRAWS):
        times = np.bincount(draw.integers(len(everyone), size=len(everyone)), minlength=len(everyone))
        first, second = (times[np.searchsorted(everyone, rows)] for rows in people)
        if min((first > 0).sum(), (second > 0).sum()) > 1:  # a distance needs two different rows a set
            yield first, second


def _centred(value: float, std: float, draws: list[float], n: int, least: float = -np.inf) -> Estimate:
    """The 95 % interval of a distance between sets: the draws' spread about the value.

    A resampled set holds rows twice and so lies farther from every other set; the draws are moved back by their mean
    excess. Without a draw there is no interval.
    """
    low, high = np.quantile(draws, [0.025, 0.975]) - np.mean(draws) + value if draws else (np.nan, np.nan)
    return Estimate(float(value), float(std), float(max(low, least)), float(high), n)
