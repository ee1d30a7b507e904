"""Table 1 (sections 4.2, 4.3), and the rates of Table 5: the comparisons, their thresholds, and the counting.

Pairs of LFW's pairs.txt, ten folds of 300 + 300. Per recogniser and fold, the threshold is that of the other
nine folds' unprotected negative pairs at a false accept rate of 0.001. De-identification: in each same-person pair the
second photo is replaced by its protected version, and the rate is the share still accepted; a wrongly decrypted face
counts as protected. Recovery: a photo (or its inversion) against its own restored version. A pair in which no face is
found is not accepted; `undetected` counts such pairs, and `rate_found` leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from riddle.evaluation import facesets
from riddle.evaluation.facesets import Embedded
from riddle.evaluation.rows import OTHER_PHOTO, RECOGNISERS, SAME_PHOTO, TABLE1, Row, sets_of
from riddle.evaluation.runs import Pairs, Run, read
from riddle.evaluation.tables import PAIRED, Measured, Part
from riddle.metrics import diversity, identity

FAR = 1e-3  # false accept rate of every threshold


def rates(run: Run, wanted: Sequence[Row]) -> Iterator[Measured]:
    """Every row by every recogniser."""
    sets = sets_of(wanted)
    for item in sets:
        facesets.embeddings(run, item)  # all recognisers share its crops
    protected = read(facesets.codes(run), "targets")
    people, few = (who if protected is None else who[np.isin(who, protected)] for who in (run.people, run.few))
    for name in RECOGNISERS:
        by = facesets.embedded(run, name, sets)
        at = {} if "photo" in by.reasons else thresholds(run.pairs, by)
        yield from (rate(row, run.pairs, by, at, people, few) for row in wanted)


def thresholds(pairs: Pairs, by: Embedded) -> dict[int, float]:
    """Per fold, the threshold under the protocol; the published one when the set has no strangers' pairs."""
    if pairs.same.all():
        return {int(f): by.published for f in np.unique(pairs.fold)}
    photo = by.embeddings["photo"]
    return identity.fold_thresholds(by.similarity(photo[pairs.a], photo[pairs.b]), pairs.same, pairs.fold, FAR)


def rate(row: Row, pairs: Pairs, by: Embedded, at: dict[int, float], people: np.ndarray, few: np.ndarray) -> Measured:
    """One row of Table 1 or 5 by one recogniser, at the thresholds `at` by fold.

    people: (M,) indices of the pictures behind many passwords; few: (F,), the same for a row of few. Diversity: the
    share of pairs, among one photo's faces under many passwords, that the recogniser takes for two people.
    """
    itself = row.itself or pairs.of_themselves
    against = SAME_PHOTO if itself and row.against == OTHER_PHOTO else row.against
    number = Measured(row.task, row.method, row.metric, against, by.name)
    if missing := [by.reasons[name] for name in (row.reference, row.faces) if name in by.reasons]:
        return number.absent(missing[0])
    if row.task == "diversity":
        fold_of = dict(zip(pairs.b, pairs.fold, strict=True))  # LFW's folds share no person
        limits = np.array([at[fold_of[i]] for i in people])[:, None]
        scores = diversity.pairs(by.embeddings[row.faces], by.similarity)
        yes = diversity.distinct(scores, limits).ravel()
        interval = identity.bootstrap_interval(yes, np.repeat(np.arange(len(scores)), scores.shape[1]))
    elif row.reference == row.faces and pairs.of_themselves:
        return number.absent("the data set has one picture of each person")
    else:
        first = pairs.b if row.itself else pairs.a
        every = by.similarity(by.embeddings[row.reference][first], by.embeddings[row.faces][pairs.b])
        same = pairs.same & np.isin(pairs.b, few) if row.few else pairs.same
        scores, folds = every[same], pairs.fold[same]
        limits = np.array([at[int(f)] for f in folds])
        yes = identity.accepted(scores, limits)
        if len(np.unique(folds)) > 1:
            interval = identity.fold_interval(identity.fold_rates(yes, folds), len(yes))
        else:
            interval = identity.bootstrap_interval(yes)
        if row.faces == "photo" and not pairs.same.all():
            number.accuracy = identity.fold_accuracy(every, pairs.same, pairs.fold).mean
    lost = np.isnan(scores).ravel()
    found = float(yes[~lost].mean()) if (~lost).any() else np.nan
    return replace(number.of(interval, int(lost.sum())), rate_found=found, threshold=float(limits.mean()))


def part(wanted: tuple[Row, ...]) -> Part:
    """The part of a table that holds these rows."""
    return Part(PAIRED, partial(rates, wanted=wanted), sets_of(wanted), RECOGNISERS, ABOUT)


ABOUT = {
    "threshold_rule": f"the other nine folds' unprotected negatives at FAR {FAR:g}; the recogniser's published one "
                      "where the data has no strangers' pairs",
    "undetected_rule": "a pair without a detected face counts as not accepted (diversity: as not distinct)",
    "interval": "95 %, over folds; over people where there is one fold, and for diversity",
}  # fmt: skip
PARTS = (part(TABLE1),)
