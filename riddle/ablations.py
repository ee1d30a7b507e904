"""Table 5 and Figure 9: what the encryptor loses without data, without the transformer, without L_div (section 4.6).

Beside the paper's rows stand our own encryptor and two controls that nobody trained: what they reach, no training did.
Rates are Table 1's, on the same pairs and passwords; distances between sets are Table 3's, on its data sets as the
paper's FID is, each under the name of its features. Weights that a preset lacks give 'n/a: reason';
riddle.training.ablations trains them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import riddle
from riddle import paper, protocols, reporting, stages, table3, tables
from riddle.metrics.diversity import distinct_pairs, password_pairs
from riddle.metrics.identity import bootstrap_interval
from riddle.presets import CONTROLS, VARIANTS, get
from riddle.protocols import Judge, Record, Row
from riddle.runs import Run, log_time, read
from riddle.weights import WeightsMissingError, bundled, load_metadata

# In the paper's order, then ours, then the controls.
LABELS = {name: VARIANTS[name].label for name in ("datafree", "mlp", "nodiv", "riddle", "coupling", *CONTROLS)}
INVERTED = "inverted, no encryption"  # what inversion alone does: read the others beside it
# Task -> what its number is; a distance between sets says it itself.
METRICS = {"de-identification": "share accepted", "recovery": "share accepted", "diversity": "share of pairs apart"}
SETS = ("photo", "inverted", *(f"{v}{action}" for v in LABELS for action in ("", "-restored", "-passwords")))


def _rows(variant: str) -> Iterator[Row]:
    label = LABELS[variant]
    yield Row("de-identification", label, "photo", variant)
    yield Row("recovery", label, "inverted", f"{variant}-restored", itself=True)
    yield Row("recovery", label, "photo", f"{variant}-restored", itself=True)


def measure(pairs: protocols.Pairs, people: dict[str, np.ndarray], judge: Judge) -> list[Record]:
    """Every rate of Table 5 under one judge. people: {variant: (M,) indices of the photos of its diversity row}."""
    at = {} if "photo" in judge.reasons else protocols.thresholds(pairs, judge)
    records = [protocols.measure(Row("de-identification", INVERTED, "photo", "inverted"), pairs, judge, at)]
    for variant in LABELS:
        records += [protocols.measure(row, pairs, judge, at) for row in _rows(variant)]
        records.append(_diversity(variant, pairs, people.get(variant), judge, at))
    return records


def _diversity(
    variant: str, pairs: protocols.Pairs, people: np.ndarray | None, judge: Judge, at: dict[int, float]
) -> Record:
    """The share of pairs among one photo's encryptions that the judge takes for two people."""
    item = f"{variant}-passwords"
    record = Record("diversity", LABELS[variant], f"{protocols.PASSWORDS} passwords of one photo", judge.name, "")
    if item in judge.reasons:
        return replace(record, value=f"n/a: {judge.reasons[item]}")
    e = judge.embeddings[item]
    i, j = password_pairs(e.shape[1])
    scores = judge.similarity(e[:, i].reshape(-1, e.shape[2]), e[:, j].reshape(-1, e.shape[2])).reshape(len(e), -1)
    limit = np.array([at[int(f)] for f in pairs.folds_of(people)])
    distinct = distinct_pairs(scores, limit[:, None])
    s = bootstrap_interval(distinct.ravel(), np.repeat(np.arange(len(e)), len(i)))
    lost = int(np.isnan(scores).sum())
    return replace(
        record, value=str(s), rate=s.mean, std=s.std, low=s.low, high=s.high, n=s.n, undetected=lost,
        threshold=float(limit.mean()),
    )  # fmt: skip


def distances(run: Run) -> Iterator[dict[str, Any]]:
    """Tidy lines of the distances between the photos of Table 3's data sets and the faces each variant makes of them.

    Faces without features (not found) are left out and counted in `undetected`.
    """
    sets = {INVERTED: "inverted", **{label: variant for variant, label in LABELS.items()}}
    for part in tables.runs_of(run, table3.DATASETS):
        rows = (row for network in table3.NETWORKS for row in table3.between(part, network, sets, halves=False))
        yield from tables.tidy(rows, part, undetected_rule="a face that is not found is left out of a distance")


def trained(preset: str, variant: str) -> dict:
    """What a variant's weights say of their training: {} for weights that are absent or say nothing.

    Numbers of riddle.training.encryptor's metadata, and those that riddle.training.ablations adds; a control: 0 steps.
    """
    if variant in CONTROLS:
        return {"steps done": "0"}
    try:
        about = load_metadata(bundled(preset, stages.VARIANTS[variant]))
    except WeightsMissingError:
        return {}
    record = json.loads(about.get("ablation", "{}"))
    weights = json.loads(about.get("weights", "{}"))
    weights.pop("diversity", None)  # what a variant may change
    known = {k: about[k] for k in ("m", "n", "seed") if k in about} | {f"weight {k}": v for k, v in weights.items()}
    asked = {k: v for k, v in record.get("shared", {}).items() if k not in ("weight", "m", "n", "seed")}
    files = {k: v for k, v in record.get("files", {}).items() if k in ("generator", "parser")}
    done = {"steps done": about["steps"]} if "steps" in about else {}
    return {k: str(v) for k, v in (known | asked | files | done).items()}


def differences(preset: str) -> dict[str, str]:
    """{variant: how its training differs from the full method's beyond what it ablates}; '' where it does not.

    Variants without weights and controls are left out. Steps done are no difference: a budget of minutes buys each its
    own.
    """
    full, found = trained(preset, "riddle"), {}
    for variant in LABELS:
        own = trained(preset, variant)
        if variant in ("riddle", *CONTROLS) or not own:
            continue
        keys = sorted((set(full) | set(own)) - {"steps done"})
        pairs = [(k, own.get(k, "unknown"), full.get(k, "unknown")) for k in keys]
        found[variant] = "; ".join(f"{k} {mine} (full: {its})" for k, mine, its in pairs if mine != its)
    return found


def tidy(
    records: Iterable[Record],
    sets: Iterable[dict[str, Any]],
    provenance: reporting.Provenance,
    preset: str,
    seen: tuple[str, ...],
) -> pd.DataFrame:
    """Rates, and lines of `distances`, as a tidy table: the paper's value and the training behind each variant beside.

    `mean` is the number, of the metric; `steps` and `trained otherwise` tell of the variant's weights.
    """
    by_label = {label: variant for variant, label in LABELS.items()}
    differing, lines = differences(preset), []
    rates = (
        {"task": r.task, "method": r.method, "metric": METRICS[r.task]}
        | {k: getattr(r, k) for k in ("against", "judge", "value")} | {"mean": r.rate}
        | {k: getattr(r, k) for k in ("std", "low", "high", "n", "undetected", "threshold")}
        | {"judge_seen": r.judge in seen} | asdict(provenance)
        for r in records
    )  # fmt: skip
    for line in (*rates, *sets):
        variant = by_label.get(line["method"], "")
        published = paper.TABLE5.get(line["method"], {})
        fid = published.get("FID") if line["metric"].startswith(("FID", "Frechet")) else None
        about = {"variant": variant, "steps": trained(preset, variant).get("steps done", "") if variant else ""}
        about |= {"trained otherwise": differing.get(variant, "")}
        lines.append(line | about | {"paper": published.get(line["task"]), "paper FID": fid})
    return pd.DataFrame(lines)


def table5(run: Run) -> Path:
    """Table 5 as tidy CSV in the run's folder; a complete run also leaves it among the results that are kept."""
    began, records = time.monotonic(), []
    people = {}
    for variant in LABELS:
        made = stages.faces(run, f"{variant}-passwords")
        if not read(made, "reason"):
            people[variant] = read(made, "targets")[:: protocols.PASSWORDS]
    for name in protocols.JUDGES:
        judge = stages.judge_of(run, name, SETS)
        if isinstance(judge, str):
            judge = _absent(name, judge)
        records += measure(run.pairs, people, judge)
    provenance = reporting.Provenance(
        dataset="LFW" if run.data == "lfw" else "bundled synthetic faces, not LFW",
        version=read(stages.aligned(run), "version"), split_hash=run.split_hash, seed=run.seed, preset=run.preset,
        weights=run.weights_hash, detector=run.detector,
        threshold_rule="the recogniser's published threshold" if run.pairs.same.all()
        else f"other nine folds' unprotected negatives at FAR {protocols.FAR:g}",
    )  # fmt: skip
    table = tidy(records, distances(run), provenance, run.preset, seen=(get(run.preset).identity, *tables.SEEN))
    path = run.folder / "table5.csv"
    for place in filter(None, (path, run.kept("table5.csv" if run.data == "lfw" else f"table5_{run.data}.csv"))):
        reporting.write_csv(table, place)
    log_time(run, "table5", time.monotonic() - began)
    return path


def _absent(name: str, reason: str) -> Judge:
    """A judge that is not available: every set of faces lacks its embeddings for one reason."""
    return Judge(name, {}, lambda a, b: a, np.nan, dict.fromkeys(SETS, reason))


def same_faces(
    preset: str, faces: torch.Tensor, passwords: int = 2, seed: int = 0, device: str = "cpu"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Figure 9: the same faces (N, 3, R, R) in [-1, 1] under the same passwords by each variant.

    Returns rows for `drawing.faces_grid` (inverted; per variant each password's face, then the restored one) and
    {variant: reason} for those without weights.
    """
    rows: dict[str, torch.Tensor] = {"face": faces}
    reasons = {}
    for variant, label in reversed(LABELS.items()):
        try:
            model = riddle.load(preset, device=device, encryptor=stages.VARIANTS[variant])
        except WeightsMissingError as e:
            reasons[variant] = f"weights missing ({Path(e.name).name})"
            continue
        if "inverted" not in rows:
            w = model.invert(faces)
            rows["inverted"] = model.synthesize(w).cpu()
        keys = model.random_password(passwords, seed=seed)
        for k in range(passwords):
            locked = model.encrypt(w, keys[k : k + 1])
            rows[f"{label}: password {k + 1}"] = model.synthesize(locked).cpu()
        rows[f"{label}: restored"] = model.synthesize(model.decrypt(locked, keys[k : k + 1])).cpu()
    return rows, reasons
