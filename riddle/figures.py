"""The paper's figures 7 and 8: how the identities of protected faces spread, and what lies between two passwords.

Notebooks 09 and 10 put them together; riddle.drawing draws, riddle.gallery has the figures that only show faces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from riddle import paper, passwords, reporting
from riddle.drawing import Block
from riddle.methods import PAPER_DATA, Method, People, embed, load_judges, methods, people
from riddle.metrics.diversity import mean_pairwise_angle
from riddle.metrics.identity import bootstrap_interval
from riddle.presets import get
from riddle.progress import track
from riddle.protocols import ENCRYPTORS
from riddle.runs import Run, read, stage

PEOPLE, PASSWORDS = 5, 200  # figure 7
OURS = tuple(ENCRYPTORS)  # methods with a stage of figure 7: those whose faces follow the password
PATHS = {"slerp": "spherical", "linear": "linear"}  # ways between two passwords, as `passwords.interpolate` names them
METRICS = ("mean pairwise angle", "silhouette")  # of figure 7
COLUMNS = ("value", "mean", "low", "high", "n", "undetected")
INTERVAL = "95 %, over people"
_ONE_FACE = "it makes the same face whatever the password"


def provenance(run: Run, who: People, **changes: str) -> dict:
    """What every line of figure7.csv and figure8.csv carries besides its numbers."""
    made = reporting.Provenance(
        dataset=who.title, version=who.version, split_hash=who.split_hash, seed=run.seed, preset=run.preset,
        weights=run.weights_hash, detector=run.detector, **changes,
    )  # fmt: skip
    return asdict(made)


def save_table(table: pd.DataFrame, name: str, run: Run, dataset: str) -> Path:
    """Write a table where the run keeps its own, and a complete run's among the results that the repository keeps."""
    path = reporting.write_csv(table, run.folder / f"{name}.csv")
    kept = run.kept(f"{name}.csv" if dataset == PAPER_DATA else f"{name}_{dataset}.csv")
    return path if kept is None or run.preset == "smoke" else reporting.write_csv(table, kept)


# ---- figure 7


def spread(e: np.ndarray, labels: np.ndarray, euclidean: bool = False) -> list[dict]:
    """Figure 7 in numbers, one line a metric: embeddings (M, E) under the people's numbers (M,).

    "mean pairwise angle": among the faces of one person, in degrees, mean over people: KFFA with as many passwords as
    there are. "silhouette": of the person labels, by cosine (or Euclidean) distance, in [-1, 1]; lower is more
    diverse. Intervals: bootstrap over people. Faces not found (NaN) are counted and left out. For embeddings that
    are compared by Euclidean distance an angle means nothing: n/a.
    """
    from sklearn.metrics import silhouette_samples

    found = ~np.isnan(e).any(1)
    e, labels = e[found], labels[found]
    groups = [e[labels == i] for i in np.unique(labels)]
    groups = [g for g in groups if len(g) > 1]
    angle, silhouette = ({"value": "n/a: too few faces were found"} for _ in range(2))
    if euclidean:
        angle["value"] = "n/a: this judge compares by distance, not by angle"
    elif groups:
        angle = estimate(np.array([mean_pairwise_angle(g) for g in groups]))
    if len(groups) > 1:
        metric = "euclidean" if euclidean else "cosine"
        silhouette = estimate(silhouette_samples(e, labels, metric=metric), labels)
    shared = {"n": len(e), "undetected": int((~found).sum())}
    return [{"metric": m} | x | shared for m, x in zip(METRICS, (angle, silhouette), strict=True)]


def estimate(values: np.ndarray, groups: np.ndarray | None = None) -> dict:
    """Mean and 95 % interval as columns of a table; one value has no interval."""
    if len(values) == 1:
        return {"value": f"{values[0]:.3f}", "mean": float(values[0])}
    e = bootstrap_interval(values, groups)
    return {"value": str(e), "mean": e.mean, "low": e.low, "high": e.high}


def tsne(e: np.ndarray, perplexity: float = 30, seed: int = 0, euclidean: bool = False) -> np.ndarray:
    """Embeddings (M, E) -> points (M, 2) by t-SNE (van der Maaten and Hinton, 2008), NaN rows where e has them.

    A perplexity too large for M is lowered to (M - 1) / 3. Raises ValueError for fewer than four embeddings.
    """
    from sklearn.manifold import TSNE

    found = ~np.isnan(e).any(1)
    if found.sum() < 4:
        raise ValueError(f"t-SNE needs four embeddings or more, got {found.sum()}")
    fit = TSNE(
        perplexity=min(perplexity, (found.sum() - 1) / 3), metric="euclidean" if euclidean else "cosine", init="pca",
        random_state=seed, n_jobs=1,
    )  # fmt: skip
    points = np.full((len(e), 2), np.nan)
    points[found] = fit.fit_transform(e[found].astype(np.float64))
    return points


def why_absent(method: Method) -> str:
    """Why a method has no place in figure 7; '' when it has one."""
    return method.reason or ("" if method.heeds_passwords else _ONE_FACE)


def _paper_kffa(label: str) -> float:
    """KFFA of table 4 on CelebA-HQ, NaN for a method without one."""
    system = paper.SYSTEM_OF.get(label, "")
    return paper.TABLE4.get(("encrypted" if system == "riddle" else system, "CelebA-HQ"), (np.nan, np.nan))[1]


@dataclass(frozen=True)
class Diversity:
    """Figure 7: many passwords for each of a few people, and what the judges make of it."""

    run: Run
    who: People
    judges: Mapping[str, Any]  # name -> recogniser
    listed: Sequence[Method]
    count: int = PASSWORDS  # a person
    perplexity: float = 30

    def embeddings(self, method: Method) -> Path:
        """The judges' embeddings (N * count, E) of `count` faces of each of N people, each with its own password.

        A stage's file (riddle.runs): an array a judge, and `labels` (N * count,), the person's number.
        """
        who, run, n = self.who, self.run, len(self.who.names)
        made_from = (
            "figure7",
            method.key,
            who.split_hash,
            who.names,
            self.count,
            run.seed,
            run.detector,
            [*self.judges],
        )

        def make() -> dict[str, np.ndarray]:
            parts = []
            for i in track(range(n), method.label, unit="person"):
                numbers = torch.arange(i * self.count, (i + 1) * self.count)[None]
                drawn = method.protect(who.faces[i : i + 1], numbers, run.seed)[0]
                parts.append(embed(self.judges, drawn, run.detector))
            arrays = {j: np.concatenate([part[j] for part in parts]) for j in self.judges}
            return arrays | {"labels": np.repeat(np.arange(n), self.count)}

        return stage(run, run.folder / "figure7" / f"{method.name}.npz", made_from, make)

    def table(self, strangers: People) -> pd.DataFrame:
        """A tidy line a judge, method and metric, the paper's KFFA (table 4) beside the angle.

        strangers: people whose photos show how far apart people are.
        """
        lines, apart = [], embed(self.judges, strangers.faces, self.run.detector)
        for judge, recogniser in self.judges.items():
            here = {"task": "diversity", "judge": judge, "judge_seen": judge == get(self.run.preset).identity}
            euclidean = recogniser.distance == "euclidean"
            photos = spread(apart[judge], np.zeros(len(apart[judge]), int), euclidean)[:1]
            lines += [here | {"method": "photos of different people"} | line for line in photos]
            for m in self.listed:
                if reason := why_absent(m):
                    numbers = [{"metric": k, "value": f"n/a: {reason}"} for k in METRICS]
                else:
                    path = self.embeddings(m)
                    numbers = spread(read(path, judge), read(path, "labels"), euclidean)
                lines += [here | {"method": m.label} | line for line in numbers]
        table = pd.DataFrame(lines, columns=["task", "method", "metric", "judge", "judge_seen", *COLUMNS])
        table[["n", "undetected"]] = table[["n", "undetected"]].fillna(0).astype(int)
        angle = table.metric == METRICS[0]
        table["paper KFFA"] = table.method.map(_paper_kffa).where(angle, np.nan)
        note = provenance(self.run, self.who, threshold_rule="", undetected_rule="left out", interval=INTERVAL)
        return table.assign(passwords=self.count, people=len(self.who.names), perplexity=self.perplexity, **note)

    def panels(self, judge: str) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
        """What `drawing.clouds` shows: {method: (t-SNE points (M, 2), people's numbers (M,), numbers in words)}.

        A method of which the detector finds fewer than four faces has no panel.
        """
        shown, euclidean = {}, self.judges[judge].distance == "euclidean"
        for m in (m for m in self.listed if not why_absent(m)):
            path = self.embeddings(m)
            e, labels = read(path, judge), read(path, "labels")
            if (~np.isnan(e).any(1)).sum() < 4:
                continue
            angle, silhouette = (line.get("mean") for line in spread(e, labels, euclidean))
            words = [] if angle is None else [f"mean angle {angle:.1f}°"]
            words += [] if silhouette is None else [f"silhouette {silhouette:.3f}"]
            shown[m.label] = tsne(e, self.perplexity, self.run.seed, euclidean), labels, ", ".join(words)
        return shown


def figure7(run: Run, item: str) -> Path:
    """The embeddings behind figure 7 for one method (a key of runs.VARIANTS), as notebook 09 asks for them."""
    listed, judges = methods(run.preset, run.device), load_judges(run.preset, run.device)[0]
    who = people(run.preset, run.data, PEOPLE, run.seed)
    (method,) = (m for m in listed if m.name == item)
    figure = Diversity(run, who, judges, listed, run.limit or PASSWORDS)
    if method.reason:
        reason = {"reason": np.array(method.reason)}
        return stage(run, run.folder / "figure7" / f"{item}.npz", ("figure7", method.key), lambda: reason)
    return figure.embeddings(method)


# ---- figure 8


@dataclass(frozen=True)
class Walk:
    """Faces under the passwords between two, and where each judge finds them; distances are `distance`'s."""

    how: str  # key of PATHS
    t: np.ndarray  # (T,) from 0, the first password, to 1, the second
    faces: torch.Tensor  # (N, T, 3, R, R)
    to_photo: dict[str, np.ndarray]  # judge -> (N, T)
    to_next: dict[str, np.ndarray]  # judge -> (N, T - 1), from each face to the next
    ends: dict[str, np.ndarray]  # judge -> (N,), from the first to the last
    inverted: dict[str, np.ndarray]  # judge -> (N,), from the inverted face to the photo: nothing encrypted


def distance(judge: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A judge's identity distance of embeddings (..., E) and (..., E): 1 - cosine, or Euclidean; (...)."""
    return (judge.distance == "cosine") - judge.similarity(a, b)


def threshold(judge: Any) -> float:
    """Two faces nearer than this are one person to the judge: its published threshold as a distance."""
    return float((judge.distance == "cosine") - judge.threshold)


def walk(
    method: Method,
    who: People,
    judges: Mapping[str, Any],
    how: str,
    steps: int = 9,
    seed: int = 0,
    detector: Any = "auto",
) -> Walk:
    """Encrypt each person's face with `steps` passwords from one to another, a pair of its own for each person."""
    n, model = len(who.names), method.model
    a, b = model.random_password(2 * n, seed).unflatten(0, (n, 2)).unbind(1)
    t = torch.linspace(0, 1, steps)
    keys = passwords.interpolate(a, b, t, how).transpose(0, 1).flatten(0, 1)  # (N * T, L, D)
    codes = model.invert(who.faces)
    inverted = model.synthesize(codes).cpu()
    faces = model.synthesize(model.encrypt(codes.repeat_interleave(steps, 0), keys)).cpu()
    made = embed(judges, torch.cat([who.faces, inverted, faces]), detector)
    measured: dict[str, dict] = {"to_photo": {}, "to_next": {}, "ends": {}, "inverted": {}}
    for name, judge in judges.items():
        photo, plain, e = made[name][:n], made[name][n : 2 * n], made[name][2 * n :].reshape(n, steps, -1)
        measured["to_photo"][name] = distance(judge, photo[:, None], e)
        measured["to_next"][name] = distance(judge, e[:, :-1], e[:, 1:])
        measured["ends"][name] = distance(judge, e[:, 0], e[:, -1])
        measured["inverted"][name] = distance(judge, photo, plain)
    return Walk(how, t.numpy(), faces.unflatten(0, (n, steps)), **measured)


def figure8(run: Run, method: Method, who: People, judges: Mapping[str, Any], walks: Sequence[Walk]) -> pd.DataFrame:
    """Figure 8 as a tidy table: a line a path, judge and place t on it.

    `mean`: identity distance to the photo, with its 95 % interval over people; `accepted`: the share that the judge
    still takes for the person; `step`: mean distance from the face before; `ends`: from the first to the last. Path
    "inverted": nothing encrypted. Faces not found are counted and left out.
    """
    lines = []
    for name, judge in judges.items():
        at, seen = threshold(judge), name == get(run.preset).identity
        rows = [("inverted", np.nan, walks[0].inverted[name], np.nan, np.nan)]
        for w in walks:
            steps, ends = [np.nan, *map(_mean, w.to_next[name].T)], _mean(w.ends[name])
            rows += [
                (PATHS[w.how], float(t), d, s, ends) for t, d, s in zip(w.t, w.to_photo[name].T, steps, strict=True)
            ]
        for path, t, d, step, ends in rows:
            found = d[~np.isnan(d)]
            line = {"task": "interpolation", "method": method.label, "path": path, "t": t, "judge": name}
            line |= {"judge_seen": seen, "mean": np.nan, "low": np.nan, "high": np.nan, "threshold": at}
            line |= estimate(found) if len(found) else {"value": "n/a: no face was found"}
            line |= {"accepted": _mean(found < at), "step": step, "ends": ends}
            lines.append(line | {"n": len(d), "undetected": len(d) - len(found)})
    rule = "the recogniser's published threshold, as a distance"
    note = provenance(run, who, threshold_rule=rule, undetected_rule="left out", interval=INTERVAL)
    return pd.DataFrame(lines).assign(**note)


def _mean(values: np.ndarray) -> float:
    """The mean of what was found; NaN for nothing."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def strips(who: People, walks: Sequence[Walk], person: int = 0) -> dict[str, list[Block]]:
    """One person's faces along each path, for `drawing.paths`."""
    original = Block("", ("original",), who.faces[person][None, None])
    titles = [tuple(f"{t:.2g}" for t in w.t) for w in walks]
    return {
        PATHS[w.how]: [original, Block("from password 1 to password 2", title, w.faces[person][None])]
        for w, title in zip(walks, titles, strict=True)
    }
