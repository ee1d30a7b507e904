"""What the paper's Figures 1 and 3 to 9 show: faces for `drawing.faces_grid`, and the numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples

from riddle import passwords
from riddle.evaluation.drawing import Block
from riddle.methods import Method, People, embed, load_judges, methods, people, usable
from riddle.metrics.diversity import mean_pairwise_angle
from riddle.metrics.identity import Estimate, bootstrap_interval
from riddle.progress import track
from riddle.runs import Run, read, stage
from riddle.tables import Measured, mean_of, scalar, tidy

PEOPLE, PASSWORDS = 5, 200  # of figure 7
PATHS = {"slerp": "spherical", "linear": "linear"}  # of figure 8, as `passwords.interpolate` names them
SPREAD = ("mean pairwise angle", "silhouette")  # metrics of figure 7
PIXELS, DISTANCE = "mean absolute difference (0 to 255)", "identity distance"
# Picture -> (what it is compared with, +1: the farther the worse, -1: the nearer the worse, the failure in words).
COMPARED = {
    "protected": ("original", -1, "protected, most like the original"),
    "restored": ("inverted", 1, "restored, least like the inverted face"),
    "wrong password": ("original", -1, "wrong password, most like the original"),
}


def distance(recogniser: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Identity distance of embeddings (..., E): 1 - cosine, or Euclidean where the recogniser compares so; (...)."""
    return (recogniser.distance == "cosine") - recogniser.similarity(a, b)


def threshold(recogniser: Any) -> float:
    """Two faces nearer than this are one person: the recogniser's published threshold as a distance."""
    return float((recogniser.distance == "cosine") - recogniser.threshold)


def mean(values: np.ndarray) -> float:
    """The mean of what was found; NaN for nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


# ---- figures 1, 3, 4, 5, 6 and 9: the same people by every method


def grids(
    listed: Sequence[Method], faces: torch.Tensor, codes: torch.Tensor, count: int = 8, seed: int = 0
) -> dict[str, dict[str, list[Block]]]:
    """Figures 1, 3, 4, 5 and 6 of faces (N, 3, R, R) in [-1, 1] and their codes (N, L, D), by all methods that can run.

    A row is a person, a column one password for all people; figures share them. count: passwords in figure 5.
    """
    made, opened = {}, {}
    for method in usable(listed):
        if method.model is None:
            made[method.label] = method.baseline.protect(faces)[:, None]
            continue
        draw, keys = method.model, method.model.random_password(max(count, 4), seed).split(1)
        locked = [draw.encrypt(codes, key) for key in keys]
        made[method.label] = torch.stack([draw.synthesize(w).cpu() for w in locked], 1)
        back = [draw.decrypt(locked[0], keys[k]) for k in (0, 2, 3)]
        opened[method.label] = torch.stack([draw.synthesize(w).cpu() for w in back], 1)
        inverted = draw.synthesize(codes).cpu()
    original, inputs = Block("", ("original",), faces[:, None]), torch.stack([faces, inverted], 1)
    inputs, numbers = Block("", ("original", "inverted"), inputs), tuple(str(k + 1) for k in range(count))

    def figure1(label: str) -> list[Block]:
        locked = Block("encrypted", ("password 1", "password 2"), made[label][:, :2])
        right = Block("decrypted", ("right password",), opened[label][:, :1])
        return [inputs, locked, right, Block("decrypted", ("wrong 1", "wrong 2"), opened[label][:, 1:])]

    def figure4(label: str) -> Block:
        return Block(label, ("encrypted", "restored"), torch.stack([made[label][:, 0], opened[label][:, 0]], 1))

    def figure6(label: str) -> Block:
        if label in opened:
            return Block(f"{label}, password", numbers[:3], made[label][:, :3])
        return Block(label, ("any",), made[label])

    return {
        "figure1": {label: figure1(label) for label in opened},
        "figure3": {"": [inputs, *(Block("", (label,), drawn[:, :1]) for label, drawn in made.items())]},
        "figure4": {"": [inputs, *map(figure4, opened)]},
        "figure5": {label: [original, Block("password", numbers, made[label][:, :count])] for label in opened},
        "figure6": {"": [original, *map(figure6, made)]},
    }


def pictures(method: Method, faces: torch.Tensor, codes: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """Faces (N, 3, R, R) and their codes (N, L, D) under one password, opened by it and by a wrong one, by name."""
    model, (right, wrong) = method.model, method.model.random_password(2, seed).split(1)
    locked = model.encrypt(codes, right)
    made = {"inverted": codes, "protected": locked, "restored": model.decrypt(locked, right)}
    made |= {"wrong password": model.decrypt(locked, wrong)}
    return {"original": faces} | {name: model.synthesize(w).cpu() for name, w in made.items()}


def outcomes(
    run: Run,
    listed: Sequence[Method],
    opened: Mapping[str, Mapping[str, torch.Tensor]],
    who: People,
    recognisers: Mapping[str, Any],
) -> pd.DataFrame:
    """Figure 1 in numbers, a tidy line a method, picture and measure; opened: {method: `pictures` of who}.

    Measures: difference to the inverted face in pixels; identity distance by each recogniser, to what COMPARED says.
    Beside the mean stand the `worst` face and its number, and an `unfound` face, which no detector finds.
    """
    lines = []
    for m in listed:
        if m.label not in opened:
            record = Measured("qualitative", m.label, PIXELS, "its inverted face")
            lines += tidy([record.absent(m.reason or "it cannot be undone")], run)
            continue
        seen = {name: embed(recognisers, faces, run.detector) for name, faces in opened[m.label].items()}
        for picture, (other, sign, _) in COMPARED.items():
            shift = (opened[m.label][picture] - opened[m.label]["inverted"]).abs().mean((1, 2, 3)).numpy() * 127.5
            measured = [(Measured("qualitative", m.label, PIXELS, "its inverted face", place=picture), shift)]
            for name, r in recognisers.items():
                line = Measured("qualitative", m.label, DISTANCE, f"its {other} face", name, place=picture)
                measured.append((line, distance(r, seen[picture][name], seen[other][name])))
            for line, values in measured:
                lost, number = np.isnan(values), mean_of(values)
                record = line.of(number, int(lost.sum())) if number else line.absent("no face was found")
                worst = int(np.nan_to_num(sign * values, nan=-np.inf).argmax())
                about = {"worst": who.names[worst], "worst value": values[worst]}
                about |= {"unfound": who.names[int(lost.argmax())] if lost.any() else ""}
                lines += [line | about for line in tidy([record], run)]
    return pd.DataFrame(lines)


def failures(
    table: pd.DataFrame, opened: Mapping[str, Mapping[str, torch.Tensor]], who: People, recogniser: str
) -> dict[str, list[Block]]:
    """The worst faces of `outcomes` by one recogniser, as rows of `drawing.faces_grid`."""
    rows = {}
    for line in table[(table.judge == recogniser) & table["mean"].notna()].itertuples():
        named = {f"{COMPARED[line.place][2]}: {line.worst_value:.2f}": line.worst, "found by no detector": line.unfound}
        for failure, face in named.items():
            if face:
                chosen = [faces[who.names.index(face)] for faces in opened[line.method].values()]
                block = Block("", tuple(opened[line.method]), torch.stack(chosen)[None])
                rows[f"{line.method}\n{failure}"] = [block]
    return rows


# ---- figure 7: many passwords make many people


def why_absent(method: Method) -> str:
    """Why a method has no place in figure 7; '' when it has one."""
    return method.reason or ("" if method.heeds_passwords else "it makes the same face whatever the password")


def scatter(run: Run, method: Method, who: People, recognisers: Mapping[str, Any], count: int = PASSWORDS) -> Path:
    """Embeddings (N * count, E) by each recogniser of N people's faces, each face under a password of its own.

    A stage's file (riddle.runs): an array a recogniser, and `labels` (N * count,), the person's number.
    """
    setup = ("figure7", method.key, who.split_hash, who.names, count, run.seed, run.detector, [*recognisers])

    def make() -> dict[str, np.ndarray]:
        parts = []
        for i, face in enumerate(track(who.faces.split(1), method.label, unit="person")):
            drawn = method.protect(face, torch.arange(i * count, (i + 1) * count)[None], run.seed)[0]
            parts.append(embed(recognisers, drawn, run.detector))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in recognisers}
        return arrays | {"labels": np.arange(len(parts)).repeat(count)}

    return stage(run, run.folder / "figure7" / f"{method.name}.npz", setup, make)


def figure7(run: Run, item: str) -> Path:
    """The stage behind notebook 09: `scatter` for one method, a key of ENCRYPTORS."""
    (method,) = (m for m in methods(run.preset, run.device) if m.name == item)
    if method.reason:
        reason = {"reason": np.array(method.reason)}
        return stage(run, run.folder / "figure7" / f"{item}.npz", ("figure7", method.key), lambda: reason)
    who, recognisers = people(run.preset, run.data, PEOPLE, run.seed), load_judges(run.preset, run.device)[0]
    return scatter(run, method, who, recognisers, run.limit or PASSWORDS)


def spread(e: np.ndarray, labels: np.ndarray, euclidean: bool = False) -> dict[str, Estimate | str]:
    """Figure 7 in numbers: embeddings (M, E) under the people's numbers (M,) -> each of SPREAD, or why there is none.

    "mean pairwise angle": among the faces of one person, in degrees, mean over people: KFFA with as many passwords as
    there are. "silhouette": of the person labels, by cosine (or Euclidean) distance, in [-1, 1]; lower is more
    diverse. Intervals: bootstrap over people. Faces not found (NaN) are left out.
    """
    found = ~np.isnan(e).any(1)
    e, labels = e[found], labels[found]
    groups = [e[labels == i] for i in np.unique(labels) if (labels == i).sum() > 1]
    angle = silhouette = "too few faces were found"
    if euclidean:
        angle = "this recogniser compares by distance, not by angle"
    elif groups:
        angle = interval(np.array([mean_pairwise_angle(g) for g in groups]))
    if len(groups) > 1:
        values = silhouette_samples(e, labels, metric="euclidean" if euclidean else "cosine")
        silhouette = interval(values, labels)
    return dict(zip(SPREAD, (angle, silhouette), strict=True))


def interval(values: np.ndarray, people: np.ndarray | None = None) -> Estimate:
    """Mean of values (P,) with a bootstrap interval over people (P,); one value has none."""
    return bootstrap_interval(values, people) if len(values) > 1 else scalar(values[0], 1)


def diversity(
    run: Run, scattered: Mapping[str, Path | str], recognisers: Mapping[str, Any], strangers: People
) -> pd.DataFrame:
    """Figure 7 in numbers, a tidy line a recogniser, method and metric; scattered: {method: its `scatter`, or why not}.

    strangers: people whose photos show how far apart people are.
    """
    records, apart = [], embed(recognisers, strangers.faces, run.detector)
    for name, recogniser in recognisers.items():
        sets = {"photos of different people": (apart[name], np.zeros(len(apart[name]), int))}
        sets |= {m: p if isinstance(p, str) else (read(p, name), read(p, "labels")) for m, p in scattered.items()}
        for method, made in sets.items():
            absent = isinstance(made, str)
            values = dict.fromkeys(SPREAD, made) if absent else spread(*made, recogniser.distance == "euclidean")
            for metric, value in values.items():
                line = Measured("diversity", method, metric, "faces of the same photo", name)
                if isinstance(value, str):
                    line = line.absent(value)
                else:
                    line = line.of(value)
                if not absent:
                    lost = int(np.isnan(made[0]).any(1).sum())
                    line = replace(line, n=len(made[0]) - lost, undetected=lost)
                records.append(line)
    return pd.DataFrame(tidy(records, run))


def tsne(e: np.ndarray, perplexity: float = 30, seed: int = 0, euclidean: bool = False) -> np.ndarray:
    """Embeddings (M, E) -> points (M, 2) by t-SNE (van der Maaten and Hinton, 2008), NaN rows where e has them.

    A perplexity too large for M is lowered to (M - 1) / 3. Raises ValueError for fewer than four embeddings.
    """
    found = ~np.isnan(e).any(1)
    if found.sum() < 4:
        raise ValueError(f"t-SNE needs four embeddings or more, got {found.sum()}")
    perplexity, metric = min(perplexity, (found.sum() - 1) / 3), "euclidean" if euclidean else "cosine"
    fit = TSNE(perplexity=perplexity, metric=metric, init="pca", random_state=seed, n_jobs=1)
    points = np.full((len(e), 2), np.nan)
    points[found] = fit.fit_transform(e[found].astype(np.float64))
    return points


# ---- figure 8: from one password to another


def figure8(
    run: Run, method: Method, who: People, recognisers: Mapping[str, Any], steps: int = 9
) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Each person's face under `steps` passwords on the way between two of its own.

    Returns {path: faces (N, steps, 3, R, R)} and a tidy line a recogniser, path and place t on it: the identity distance
    to the photo; `accepted`, the share still taken for the person; `step`, the mean distance from the face before;
    `ends`, from the first to the last. Path "inverted": nothing encrypted.
    """
    model, n, t = method.model, len(who.names), torch.linspace(0, 1, steps)
    codes, (a, b) = model.invert(who.faces), model.random_password(2 * n, run.seed).unflatten(0, (n, 2)).unbind(1)
    walks = {}
    for how, path in PATHS.items():
        keys = passwords.interpolate(a, b, t, how).transpose(0, 1).flatten(0, 1)  # (N * T, L, D)
        locked = model.encrypt(codes.repeat_interleave(steps, 0), keys)
        walks[path] = model.synthesize(locked).cpu().unflatten(0, (n, steps))
    photo, lines = embed(recognisers, who.faces, run.detector), []
    for path, faces in {"inverted": model.synthesize(codes).cpu()[:, None], **walks}.items():
        seen = embed(recognisers, faces.flatten(0, 1), run.detector)
        for name, recogniser in recognisers.items():
            e, limit = seen[name].reshape(n, faces.shape[1], -1), threshold(recogniser)
            away, step = distance(recogniser, photo[name][:, None], e), distance(recogniser, e[:, :-1], e[:, 1:])
            line = Measured("interpolation", method.label, "identity distance", "the same photo", name)
            ends = mean(distance(recogniser, e[:, 0], e[:, -1])) if path in walks else np.nan
            for k, d in enumerate(away.T):
                found, known = mean_of(d), d[~np.isnan(d)]
                record = line.of(found, len(d) - len(known)) if found else line.absent("no face was found")
                about = {"path": path, "t": float(t[k]) if path in walks else np.nan, "threshold": limit}
                about |= {"accepted": mean(known < limit), "step": mean(step[:, k - 1]) if k else np.nan, "ends": ends}
                lines += [line | about for line in tidy([replace(record, undetected=len(d) - len(known))], run)]
    return walks, pd.DataFrame(lines)
