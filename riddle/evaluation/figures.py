"""The contents of the paper's Figures 1 and 3 to 9: faces for `drawing.faces_grid`, and the numbers beside them.

Pictures, codes and embeddings are the tables' own (riddle.evaluation.facesets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples

from riddle import passwords
from riddle.baselines import BASELINES, random_keys
from riddle.evaluation import facesets, recognition
from riddle.evaluation.drawing import Block
from riddle.evaluation.rows import ENCRYPTORS, KEYED, KFFA, SAME_INVERTED, SAME_PHOTO, paper
from riddle.evaluation.runs import Run, key_of, need, part_hash, read, stage, why_missing
from riddle.evaluation.tables import Measured, tidy
from riddle.faces.detection import detect_in_crop
from riddle.images import to_bytes, to_tensor
from riddle.metrics.diversity import kffa
from riddle.metrics.identity import Estimate, bootstrap_interval
from riddle.pipeline import Riddle
from riddle.progress import track
from riddle.weights import WeightsMissingError, bundled

PEOPLE, PASSWORDS = 5, 200  # figure 7
SPREAD, STRANGERS = ("mean pairwise angle", "silhouette"), "photos of different people"  # its metrics and yardstick
PATHS = {"slerp": "spherical", "linear": "linear"}  # of figure 8, as `passwords.interpolate` names them
ABOUT = {"undetected_rule": "left out, and counted", "interval": "95 %, bootstrap over people"}  # every number
# Picture -> (its reference; 1 if the most similar face is the worst, -1 if the least similar is; the worst in words).
COMPARED = {
    "protected": ("original", 1, "the protected face most like its original"),
    "restored": ("inverted", -1, "the restored face least like the inverted one"),
    "wrong password": ("original", 1, "the wrong password's face most like the original"),
}


class People(NamedTuple):
    """Some pictures of a run, each of another person."""

    rows: list[int]  # (N,) their numbers in the run
    faces: torch.Tensor  # (N, 3, R, R) in [-1, 1]
    codes: torch.Tensor  # (N, L, D)


def people(run: Run, n: int | None = None, seed: int | None = None) -> People:
    """n people of a run: the first ones, or drawn by a seed; n None: all."""
    photos, inverted = facesets.aligned(run), facesets.codes(run)
    targets, codes = need(inverted, "targets"), need(inverted, "codes")
    at = np.arange(len(targets)) if seed is None else np.random.default_rng(seed).permutation(len(targets))
    rows = targets[at[:n]]
    return People(rows.tolist(), to_tensor(read(photos, "faces")[rows]), torch.from_numpy(codes[at[:n]]))


def encryptors(run: Run, labels: Mapping[str, str] = ENCRYPTORS) -> tuple[dict[str, Riddle], dict[str, str]]:
    """({label: the model with that encryptor}, {label: why it is not here}) of variants (riddle.presets)."""
    models, reasons = {}, {}
    for variant, label in labels.items():
        try:
            models[label] = facesets.parse(variant).model(run)
        except WeightsMissingError as e:
            reasons[label] = why_missing(e)
    return models, reasons


def embed(recognisers: Mapping[str, Any], faces: torch.Tensor, detector: Any) -> dict[str, np.ndarray]:
    """Each recogniser's embeddings (N, E) of faces (N, 3, R, R), aligned by the points found in each; NaN: no face."""
    return recognition.embed(recognisers, to_bytes(faces), detect_in_crop(faces, detector))


def record(line: Measured, values: np.ndarray) -> Measured:
    """A line with the numbers of values (P,), NaN where no face was found."""
    return line.of(bootstrap_interval(values), int(np.isnan(values).sum()))


# ---- figures 1, 3, 4, 5, 6 and 9: the same people by every method


def grids(
    models: Mapping[str, Riddle], who: People, count: int = 8, seed: int = 0
) -> dict[str, dict[str, list[Block]]]:
    """Figures 1, 3, 4, 5 and 6: {figure: {label: blocks of a row}}, by the encryptors {label: model} and the baselines.

    A row is a person, a column one password for all people; figures share them. count: passwords in figure 5. Raises
    ValueError without an encryptor.
    """
    if not models:
        raise ValueError("no figure without an encryptor; choose a preset whose weights are here")
    inverted = next(iter(models.values())).synthesize(who.codes).cpu()
    inputs = Block("", ("original", "inverted"), torch.stack([who.faces, inverted], 1))
    original, numbers = Block("", ("original",), who.faces[:, None]), tuple(str(k + 1) for k in range(max(count, 4)))
    figure1, figure3, figure4, figure5, figure6 = {}, [inputs], [inputs], {}, [original]
    for label, model in models.items():
        keys = model.random_password(len(numbers), seed).split(1)
        locked = [model.encrypt(who.codes, key) for key in keys]
        opened = [model.decrypt(locked[0], keys[k]) for k in (0, 2, 3)]  # by the right password, by two wrong ones
        protected, opened = (torch.stack([model.synthesize(w).cpu() for w in many], 1) for many in (locked, opened))
        encrypted = Block("encrypted", ("password 1", "password 2"), protected[:, :2])
        figure1[label] = [inputs, encrypted, Block("decrypted", ("right password", "wrong 1", "wrong 2"), opened)]
        figure3.append(Block("", (label,), protected[:, :1]))
        pair = torch.stack([protected[:, 0], opened[:, 0]], 1)
        figure4.append(Block(label, ("encrypted", "restored"), pair))
        figure5[label] = [original, Block("password", numbers[:count], protected[:, :count])]
        figure6.append(Block(f"{label}, password", numbers[:3], protected[:, :3]))
    preset = next(iter(models.values())).preset.name
    for baseline in BASELINES.values():
        if baseline.weights and part_hash(preset, baseline.weights) is None:
            continue
        name, count = baseline.label.partition(" (")[0], 3 if baseline.keyed else 1
        keys = random_keys(count, seed).repeat_interleave(len(who.rows))  # one for all people
        protected = baseline.protect(who.faces.repeat(count, 1, 1, 1), keys).unflatten(0, (count, -1)).transpose(0, 1)
        figure3.append(Block("", (name,), protected[:, :1]))
        title, columns = (f"{name}, key", numbers[:count]) if baseline.keyed else (name, ("any",))
        figure6.append(Block(title, columns, protected))
    in_rows = {"figure3": {"": figure3}, "figure4": {"": figure4}, "figure6": {"": figure6}}
    return dict(sorted(({"figure1": figure1, "figure5": figure5} | in_rows).items()))


def figure9(models: Mapping[str, Riddle], who: People, seed: int = 0) -> dict[str, torch.Tensor]:
    """Figure 9: the same faces under the same two passwords by each encryptor {label: model}, as rows of a grid."""
    rows = {"face": who.faces}
    for label, model in reversed(models.items()):
        rows.setdefault("inverted", model.synthesize(who.codes).cpu())
        keys = model.random_password(2, seed).split(1)
        first, second = (model.encrypt(who.codes, key) for key in keys)
        made = {"password 1": first, "password 2": second, "restored": model.decrypt(second, keys[1])}
        rows |= {f"{label}: {name}": model.synthesize(w).cpu() for name, w in made.items()}
    return rows


def outcomes(run: Run, variant: str, recognisers: Sequence[str]) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Figure 1 in numbers: a run's pictures through an encryptor, each under a password of its own.

    Returns {picture: faces (N, 3, R, R)} and one tidy line for each picture of COMPARED and each measure: its
    difference from the inverted face in pixels; its similarity by each recogniser. A line also has the number of the
    `worst` face, its similarity, and the number of an `unfound` face, in which no detector finds one; -1 for none.
    """
    sets = {"original": "photo", "inverted": "inverted", "protected": variant}
    sets |= {"restored": f"{variant}-restored", "wrong password": f"{variant}-wrong"}
    made = {name: facesets.faces(run, item) for name, item in sets.items()}
    who = read(made["protected"], "targets")  # without the photos in which no face is found
    faces = {k: to_tensor(read(p, "faces")[np.isin(read(p, "targets"), who)]) for k, p in made.items()}
    embedded, lines = [facesets.embedded(run, name, [*sets.values()]) for name in recognisers], []
    for picture, (other, sign, _) in COMPARED.items():
        shift = (faces[picture] - faces["inverted"]).abs().mean((1, 2, 3)).numpy() * 127.5
        line = Measured("qualitative", ENCRYPTORS[variant], "mean absolute difference (0 to 255)", SAME_INVERTED)
        line = replace(line, place=picture)
        lines += tidy([record(line, shift)], run, **ABOUT, worst=-1, similarity=np.nan, unfound=-1)
        line = replace(line, metric="similarity", against=SAME_PHOTO if other == "original" else SAME_INVERTED)
        for by in embedded:
            alike = by.similarity(*(by.embeddings[sets[name]][who] for name in (picture, other)))
            worst, lost = int(np.nan_to_num(sign * alike, nan=-np.inf).argmax()), np.isnan(alike)
            about = {"worst": worst, "similarity": alike[worst], "unfound": int(lost.argmax()) if lost.any() else -1}
            one = replace(line, measured_by=by.name, threshold=by.published)
            lines += tidy([record(one, alike)], run, **ABOUT, **about)
    return faces, pd.DataFrame(lines)


def failures(faces: Mapping[str, torch.Tensor], table: pd.DataFrame, recogniser: str) -> dict[str, list[Block]]:
    """The worst faces of `outcomes` by one recogniser, as rows of `drawing.faces_grid`."""
    rows, shown = table[table.measured_by == recogniser], {}
    for line in rows.itertuples():
        if line.n:
            shown[f"{COMPARED[line.place][2]}\n{line.similarity:.2f}"] = line.worst
        if line.unfound >= 0:
            shown[f"{line.place}: found by no detector"] = line.unfound
    chosen = {label: torch.stack([made[i] for made in faces.values()]) for label, i in shown.items()}
    return {label: [Block(rows.method.iloc[0], tuple(faces), row[None])] for label, row in chosen.items()}


# ---- figure 7: many passwords make many people


def scatter(run: Run, variant: str, who: People, recognisers: Mapping[str, Any], count: int = PASSWORDS) -> Path:
    """Embeddings (N * count, E) by each recogniser of N people's faces, each face under a password of its own.

    variant: of riddle.presets, or a baseline that has keys.

    A stage's file: one array per recogniser, and `labels` (N * count,), the person's number.
    """
    of, setup = facesets.parse(variant), (who.rows, count, run.seed, run.detector, [*recognisers])
    made_from = ("figure7", variant, part_hash(run.preset, of.weights), key_of(facesets.codes(run)), *setup)

    def make() -> dict[str, np.ndarray]:
        if of.baseline:
            bundled(run.preset, of.weights)  # a preset without its weights says so
        model, parts, total = of.model(run), [], len(who.rows) * count
        keys = random_keys(total, run.seed) if of.baseline else model.random_password(total, run.seed)
        people = zip(who.faces.split(1), who.codes.split(1), keys.split(count), strict=True)
        for face, code, many in track([*people], variant, unit="person"):
            if of.baseline:
                faces = of.baseline.protect(face.expand(count, -1, -1, -1), many)
            else:
                faces = model.synthesize(model.encrypt(code.expand(count, -1, -1), many)).cpu()
            parts.append(embed(recognisers, faces, run.detector))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in recognisers}
        return arrays | {"labels": np.arange(len(parts)).repeat(count)}

    return stage(run, run.folder / "figure7" / f"{variant}.npz", made_from, make)


def figure7(run: Run, item: str) -> Path:
    """`scatter` for one of ENCRYPTORS or KEYED, as notebook 09 asks for it."""
    recognisers, _ = recognition.load_all(run.preset, run.device)
    return scatter(run, item, people(run, PEOPLE, run.seed), recognisers, run.limit or PASSWORDS)


def spread(e: np.ndarray, labels: np.ndarray, euclidean: bool = False) -> dict[str, Estimate | str]:
    """Figure 7 in numbers: embeddings (M, E) under the people's numbers (M,) -> each of SPREAD, or the reason for none.

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
        angle = bootstrap_interval(np.array([kffa(g[None])[0] for g in groups]))
    if len(groups) > 1:
        silhouette = silhouette_samples(e, labels, metric="euclidean" if euclidean else "cosine")
        silhouette = bootstrap_interval(silhouette, labels)
    return dict(zip(SPREAD, (angle, silhouette), strict=True))


def diversity(
    run: Run, scattered: Mapping[str, Path], recognisers: Mapping[str, Any], strangers: torch.Tensor, **about: Any
) -> pd.DataFrame:
    """Figure 7 in numbers, one tidy line per recogniser, method and metric; scattered: {method: its `scatter`}.

    strangers: faces (N, 3, R, R) of N people, which show how far apart people are; about: further columns. Lines of
    the angle also have the paper's KFFA on CelebA-HQ (table 4), the same angle for ten passwords.
    """
    records, photos = [], embed(recognisers, strangers, run.detector)
    same = "it makes the same face whatever the password"
    absent = {b.label: same for b in BASELINES.values() if not b.keyed}
    absent |= {label: "none of its faces are here" for label in KEYED.values() if label not in scattered}
    for name, recogniser in recognisers.items():
        sets = {STRANGERS: (None, photos[name], np.zeros(len(strangers), int))}
        sets |= {label: [read(path, k) for k in ("reason", name, "labels")] for label, path in scattered.items()}
        sets |= {label: (reason, np.empty((0, 1)), None) for label, reason in absent.items()}
        for method, (reason, e, labels) in sets.items():
            found = dict.fromkeys(SPREAD, reason) if reason else spread(e, labels, recogniser.distance == "euclidean")
            lost = 0 if reason else int(np.isnan(e).any(1).sum())
            for metric, value in [*found.items()][: 1 if method == STRANGERS else None]:  # strangers have one face each
                line = Measured("diversity", method, metric, "faces of the same photo", name)
                line = line.absent(value) if isinstance(value, str) else line.of(value)
                records.append(replace(line, n=0 if reason else len(e) - lost, undetected=lost))
    table, known = pd.DataFrame(tidy(records, run, **ABOUT, **about)), paper()
    known = known[(known.table == "table4") & (known.metric == KFFA) & (known.column == "paper CelebA-HQ")]
    kffa = table.method.map(known.set_index("method").value).where(table.metric == SPREAD[0])
    return table.assign(**{"paper KFFA": kffa})


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
    run: Run, label: str, model: Riddle, who: People, recognisers: Mapping[str, Any], steps: int = 9
) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Each person's face under `steps` passwords on the way between two of its own.

    Returns {path: faces (N, steps, 3, R, R)} and one tidy line per recogniser, path and place t on it: the identity
    distance to the photo (1 - cosine, or Euclidean where the recogniser compares so); `accepted`, the share still taken
    for the person, with its interval; `step`, the mean distance from the face before; `ends`, from the first to the
    last. Path "inverted": no encryption.
    """
    n, t, walks = len(who.rows), torch.linspace(0, 1, steps), {}
    a, b = model.random_password(2 * n, run.seed).unflatten(0, (n, 2)).unbind(1)
    for how, path in PATHS.items():
        keys = passwords.interpolate(a, b, t, how).transpose(0, 1).flatten(0, 1)  # (N * T, L, D)
        locked = model.encrypt(who.codes.repeat_interleave(steps, 0), keys)
        walks[path] = model.synthesize(locked).cpu().unflatten(0, (n, steps))
    photos, lines = embed(recognisers, who.faces, run.detector), []
    for path, faces in {"inverted": model.synthesize(who.codes).cpu()[:, None], **walks}.items():
        found = embed(recognisers, faces.flatten(0, 1), run.detector)
        for name, r in recognisers.items():
            zero, e = float(r.distance == "cosine"), found[name].reshape(n, faces.shape[1], -1)
            away, step = zero - r.similarity(photos[name][:, None], e), zero - r.similarity(e[:, :-1], e[:, 1:])
            ends = pd.Series(zero - r.similarity(e[:, 0], e[:, -1])).mean() if path in walks else np.nan
            line = Measured("interpolation", label, "identity distance", SAME_PHOTO, name, threshold=zero - r.threshold)
            for k, d in enumerate(away.T):
                here = {"path": path, "t": float(t[k]) if path in walks else np.nan, "ends": ends}
                here |= {"step": pd.Series(step[:, k - 1]).mean() if k else np.nan}
                share = bootstrap_interval(np.where(np.isnan(d), np.nan, d < line.threshold))
                here |= {"accepted": share.mean, "accepted_low": share.low, "accepted_high": share.high}
                lines += tidy([record(line, d)], run, **ABOUT, **here)
    return walks, pd.DataFrame(lines)
