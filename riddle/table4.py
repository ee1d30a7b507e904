"""Table 4: identity cosine with the original, and KFFA between ten passwords (section 4.4).

Encrypted faces and wrongly decrypted ones, ten passwords for each of at most `DIVERSITY_FACES` people. Beside them
stands what the same crop and alignment give for strangers: no method need do better.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from riddle import baselines, paper, stages, tables
from riddle.metrics.identity import cosine, kffa
from riddle.protocols import DIVERSITY_FACES, DIVERSITY_SETS, JUDGES, OURS, PASSWORDS, SIMILARITY_SETS, Judge
from riddle.runs import Run, read
from riddle.tables import Measured

DATASETS = ("lfw", "celebamask_hq", "ffhq")
# dlib's descriptors of two strangers have a cosine of 0.83: it has a place in rates only.
SIMILARITY_JUDGES = tuple(j for j in JUDGES if j != "dlib")
COSINE, KFFA = "identity cosine", "KFFA (degrees)"
METRICS = (COSINE, KFFA)
ORIGINAL, AMONG = "the same photo", f"{PASSWORDS} passwords of one photo"
STRANGERS = "a stranger's photo"
METHODS = {label: item for item, label in DIVERSITY_SETS.items()}
SINGLE = {"inverted": "inverted"} | {baselines.load(name).label: name for name in ("blur", "mosaic")}
_PAPER = {"RiDDLE": "encrypted", "RiDDLE, wrongly decrypted": "wrongly decrypted"}


def strangers(people: int, seed: int, each: int = PASSWORDS) -> np.ndarray:
    """For each of n people, `each` others (fewer when there are not so many), at random: (n, each) indices."""
    order = np.random.default_rng(seed).permutation(people)
    steps = np.arange(1, min(each, people - 1) + 1)
    out = np.empty((people, len(steps)), int)
    out[order] = order[(np.arange(people)[:, None] + steps) % people]
    return out


def by_person(values: np.ndarray) -> np.ndarray:
    """Mean over the faces of each person (n, K), faces that were not found left out: (n,)."""
    known = np.isfinite(values)
    return np.divide(
        np.where(known, values, 0).sum(1), known.sum(1), out=np.full(len(values), np.nan), where=known.any(1)
    )


def _row(method: str, metric: str, against: str, judge: str, values: np.ndarray) -> Measured:
    """Mean over people of per-person means of values (n, K), or of values (n,)."""
    row = Measured("similarity" if metric == COSINE else "diversity", method, metric, against, judge)
    estimate = tables.mean_of(by_person(values.reshape(len(values), -1)))
    if estimate is None:
        return row.absent("no face was found")
    row = row.of(estimate, int(np.isnan(values).sum()), digits=3 if metric == COSINE else 2)
    row.n = values.size
    return row


def measure(judge: Judge, people: np.ndarray, seed: int) -> Iterator[Measured]:
    """Every row of Table 4 by one judge; people: (n,) pictures of different persons, ascending."""
    name, photo = judge.name, judge.embeddings["photo"][people]
    for method, item in METHODS.items():
        if reason := judge.reasons.get(item):
            yield Measured("similarity", method, COSINE, ORIGINAL, name).absent(reason)
            yield Measured("diversity", method, KFFA, AMONG, name).absent(reason)
            continue
        e = judge.embeddings[item]
        yield _row(method, COSINE, ORIGINAL, name, cosine(photo[:, None], e))
        angles = _row(method, KFFA, AMONG, name, kffa(e))
        angles.n, angles.undetected = e[..., 0].size, int(np.isnan(e[..., 0]).sum())
        yield angles
    for method, item in SINGLE.items():
        row = Measured("similarity", method, COSINE, ORIGINAL, name)
        reason = judge.reasons.get(item)
        yield (
            row.absent(reason)
            if reason
            else _row(method, COSINE, ORIGINAL, name, cosine(photo, judge.embeddings[item][people]))
        )
        yield Measured("diversity", method, KFFA, AMONG, name).absent("it has no password")
    yield from _strangers(judge, people, seed)


def _strangers(judge: Judge, people: np.ndarray, seed: int) -> Iterator[Measured]:
    """What the crop and the alignment alone give: the floor of the cosine, the ceiling of the KFFA."""
    name, photo = judge.name, judge.embeddings["photo"][people]
    if len(people) < 2:
        return
    others = strangers(len(people), seed)
    yield _row("strangers' photos", COSINE, STRANGERS, name, cosine(photo[:, None], photo[others]))
    if len(others[0]) > 1:
        yield _row("strangers' photos", KFFA, f"{len(others[0])} strangers", name, kffa(photo[others]))
    if "inverted" not in judge.reasons:
        inverted = judge.embeddings["inverted"][people]
        yield _row("strangers' inverted faces", COSINE, STRANGERS, name, cosine(photo[:, None], inverted[others]))


def records(run: Run) -> Iterator[Measured]:
    """Every row of Table 4 on one data set."""
    targets = read(stages.faces(run, "inverted"), "targets")
    for name in SIMILARITY_JUDGES:
        judge = stages.judge_of(run, name, SIMILARITY_SETS)
        if isinstance(judge, Judge):
            people = run.people if targets is None else run.people[np.isin(run.people, targets)]
            yield from measure(judge, people, run.seed)
            continue
        for method in (*METHODS, *SINGLE):
            yield Measured("similarity", method, COSINE, ORIGINAL, name).absent(judge)
            yield Measured("diversity", method, KFFA, AMONG, name).absent(judge)
    for metric, against in ((COSINE, ORIGINAL), (KFFA, AMONG)):
        task = "similarity" if metric == COSINE else "diversity"
        yield from tables.without_system(lambda m, t=task, k=metric, a=against: Measured(t, m, k, a))


def published(line: dict[str, Any]) -> dict[str, float | None]:
    """The paper's values, a column for each of its data sets; its judge is CurricularFace."""
    row = _PAPER.get(line["method"], paper.SYSTEM_OF.get(line["method"], ""))
    return {
        f"paper {dataset}": paper.TABLE4[row, dataset][METRICS.index(line["metric"])]
        if (row, dataset) in paper.TABLE4
        else None
        for dataset in paper.TABLE4_DATASETS
    }


def beside_strangers(table: pd.DataFrame) -> pd.DataFrame:
    """Is a protected face less like its original than a stranger is? A line a data set and unseen judge.

    table: as `tables.read_table` gives it. Columns: the cosines of `METHODS`, of strangers' photos and inverted faces;
    `no higher` for the paper's encryptor and ours: its cosine is not above the interval of strangers' photos, NaN
    where it has none; KFFA.
    """
    rows = table[~table.judge_seen & table["mean"].notna()]
    index = ["dataset", "judge"]
    cosines = rows[rows.metric == COSINE].pivot(index=index, columns="method", values="mean")
    out = cosines.reindex(columns=[*METHODS, "strangers' photos", "strangers' inverted faces"])
    highest = rows[(rows.metric == COSINE) & (rows.method == "strangers' photos")].set_index(index).high
    for name in ("RiDDLE", OURS):
        out[f"no higher, {name}"] = out[name].le(highest.reindex(out.index)).where(out[name].notna())
    angles = rows[(rows.metric == KFFA)].pivot(index=index, columns="method", values="mean")
    angles = angles.reindex(columns=[*METHODS, "strangers' photos"])
    return out.join(angles.add_prefix("KFFA, "))


def table4(run: Run, _: str = "") -> Path:
    """Table 4 as tidy CSV."""
    protocol = f"{PASSWORDS} passwords, at most {DIVERSITY_FACES} people; an undetected face is left out and counted"
    about = {"protocol": protocol, "interval": "95 %, bootstrap over people"}
    return tables.write(run, "table4", tables.runs_of(run, DATASETS), records, published, **about)
