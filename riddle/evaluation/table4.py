"""Table 4 (section 4.4): the cosine of a face's embedding with the original's, and KFFA between ten passwords."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from riddle.evaluation import facesets, rows
from riddle.evaluation.facesets import Embedded
from riddle.evaluation.runs import Run, read
from riddle.evaluation.tables import PAIRED, PICTURES, Measured, Part
from riddle.metrics.diversity import kffa, strangers
from riddle.metrics.identity import cosine, mean_found, mean_of


def similarities(run: Run) -> Iterator[Measured]:
    """Every row of Table 4 on one data set: the cosine with the original, and KFFA between ten passwords."""
    targets = read(facesets.faces(run, "inverted"), "targets")
    people = run.people if targets is None else run.people[np.isin(run.people, targets)]
    for name in rows.ANGULAR:
        yield from similarity(facesets.embedded(run, name, rows.SIMILARITY_SETS), people, run.seed)


def similarity(by: Embedded, people: np.ndarray, seed: int) -> Iterator[Measured]:
    """Every row of Table 4 by one recogniser; people: (n,) pictures of different persons, ascending.

    Strangers' photos, cropped and aligned in the same way, are the reference.
    """
    sets, reasons = by.embeddings, by.reasons
    photo = sets["photo"][people] if "photo" not in reasons else None
    for item, method in (*rows.MANY.items(), *((item, method) for method, item in rows.SINGLE.items())):
        alike = Measured("similarity", method, rows.COSINE, rows.SAME_PHOTO, by.name)
        spread = replace(alike, task="diversity", metric=rows.KFFA, against=rows.AMONG)
        reason, many = reasons.get("photo") or reasons.get(item), item in rows.MANY
        if reason:
            yield alike.absent(reason)
        else:
            made = sets[item] if many else sets[item][people][:, None]
            yield _over_people(alike, cosine(photo[:, None], made))
        if reason or not many:
            yield spread.absent(reason if many else "it has no password")
        else:
            lost = np.isnan(made[..., 0])
            yield replace(_over_people(spread, kffa(made), 2), n=lost.size, undetected=int(lost.sum()))
    if photo is None or len(people) < 2:
        return
    others = strangers(len(people), seed, rows.PASSWORDS)
    alike = Measured("similarity", "strangers' photos", rows.COSINE, rows.STRANGER, by.name)
    yield _over_people(alike, cosine(photo[:, None], photo[others]))
    if others.shape[1] > 1:
        spread = replace(alike, task="diversity", metric=rows.KFFA, against=f"{others.shape[1]} strangers")
        yield _over_people(spread, kffa(photo[others]), 2)
    if "inverted" not in reasons:
        inverted = sets["inverted"][people][others]
        yield _over_people(replace(alike, method="strangers' inverted faces"), cosine(photo[:, None], inverted))


def _over_people(number: Measured, values: np.ndarray, digits: int = 3) -> Measured:
    """Mean over people of per-person means of values (n, K), or of values (n,)."""
    estimate = mean_of(mean_found(values.reshape(len(values), -1)))
    return replace(number.of(estimate, int(np.isnan(values).sum()), digits), n=values.size if estimate.n else 0)


PARTS = (
    Part(
        PAIRED + PICTURES, similarities, rows.SIMILARITY_SETS, rows.ANGULAR,
        {"interval": "95 %, bootstrap over people", "undetected_rule": "left out, and counted",
         "protocol": f"{rows.PASSWORDS} passwords, at most {rows.PEOPLE} people"},
    ),
)  # fmt: skip
