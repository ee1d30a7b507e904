"""Table 3: fidelity and utility of de-identified faces (section 4.5).

Distances between sets bear the name of their features; 'FID' is only that of pytorch-fid's Inception. Beside each
stands what two halves of the real set give, at the same number of faces. Utility is measured on the aligned face and on
the face pasted back into its photo, by both detectors; lengths are mean absolute differences of coordinates, in pixels
of the crop at 256 px, the scale of the paper's own pictures, and what another person's photo gives stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from riddle import baselines, features, paper, stages, tables
from riddle.faces.alignment import crop_points
from riddle.images import to_tensor
from riddle.facesets import BATCH
from riddle.metrics import fidelity, utility
from riddle.metrics.identity import Estimate
from riddle.presets import get
from riddle.protocols import DIVERSITY_FACES, ENCRYPTORS
from riddle.runs import Run, key_of, part_hash, read, stage
from riddle.table4 import strangers
from riddle.tables import Measured, scalar

DATASETS = ("celebamask_hq", "ffhq")
METHODS = {
    "inverted": "inverted", **{label: variant for variant, label in ENCRYPTORS.items()},
    **{baselines.load(name).label: name for name in ("blur", "mosaic")},
}  # fmt: skip
REAL = "photo (aligned crop)"
ORIGINALS, OTHERS = "the same photos", "photos of others"
NETWORKS = {"squeezenet": "SqueezeNet pool", "dlib": "dlib", "inception": "Inception"}
FID_FACES = 5000  # fewer, and the paper's FID is no comparison
DETECTORS = ("mtcnn", "dlib")
ALIGNED, PASTED = "aligned face", "photo, face pasted back"
SIDE = 256  # px of the crop whose pixels are the unit of length
ANOTHER = "another person's photo"
# What the paper's successors measure and no network at hand can tell.
NO_NETWORK = ("gaze", "expression agreement", "age agreement", "gender agreement")


def feature_set(run: Run, network: str, item: str) -> Path:
    """Features (M, D) of a face set by a network of `NETWORKS`, one stage's file; `undetected`: faces left out."""
    made = stages.faces(run, item)
    source = made
    if network == "dlib":
        judge = stages.embeddings(run, "dlib", [item])
        source = judge if read(judge, "reason") else judge.with_suffix("") / f"{item}.npz"

    def make() -> dict[str, np.ndarray]:
        if reason := read(source, "reason"):
            return {"reason": np.array(reason)}
        if network == "dlib":
            e, targets = read(source, "embeddings"), read(source, "targets")
        else:
            pictures, targets = read(source, "faces"), read(source, "targets")
            parts = (to_tensor(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH))
            e = features.extract_all(features.load(network, run.device), parts, f"{network} {item}")
        return {"features": e, "targets": targets}

    made_from = ("features", network, features.RESIZE[network], key_of(source), _weights(network))
    return stage(run, run.folder / "features" / network / f"{item}.npz", made_from, make)


def _weights(network: str) -> bool:
    """Whether a network's weights are here: when they arrive, its features are made again."""
    from riddle.weights import locate

    return network == "dlib" or locate({"squeezenet": "squeezenet1_1"}.get(network, network)) is not None


def distances(run: Run, network: str) -> Iterator[Measured]:
    """Frechet distance and KID of each method's faces to the photos, all of them and half against half."""
    yield from between(run, network, {REAL: "photo", **METHODS})
    for metric in _names(network):
        yield from tables.without_system(lambda m, k=metric: Measured("fidelity", m, k, ORIGINALS, network))


def _names(network: str) -> tuple[str, str]:
    """Frechet distance and KID, by the features behind them."""
    if network == "inception":
        return "FID", "KID (FID's features)"
    return f"Frechet distance ({NETWORKS[network]})", f"KID ({NETWORKS[network]})"


def between(run: Run, network: str, sets: Mapping[str, str], halves: bool = True) -> Iterator[Measured]:
    """Frechet distance and KID of sets of faces {method: set} to the photos that they were made from.

    halves: also half of the photos against the faces made from the others; of the photos themselves only that.
    """
    photos = feature_set(run, network, "photo")
    about = {"judge": network, "resize": features.RESIZE[network], "reference_hash": key_of(photos)}

    def row(method: str, metric: str, against: str) -> Measured:
        return Measured("fidelity", method, metric, against, **about)

    everyone = run.pairs.targets
    order = np.random.default_rng(run.seed).permutation(everyone)
    first, second = order[: len(order) // 2], order[len(order) // 2 :][: len(order) // 2]
    compared = ((ORIGINALS, everyone, everyone), *(((OTHERS, first, second),) if halves else ()))
    for method, item in sets.items():
        made = feature_set(run, network, item)
        for metric, distance in zip(_names(network), (_frechet, _kid), strict=True):
            for against, real, protected in compared[item == "photo" :]:
                if reason := read(photos, "reason") or read(made, "reason"):
                    yield row(method, metric, against).absent(reason)
                    continue
                (a, _), (b, lost) = _known(photos, real), _known(made, protected)
                if min(len(a), len(b)) < 2:
                    yield row(method, metric, against).absent("fewer than two faces were found")
                    continue
                yield row(method, metric, against).of(distance(a, b), lost, digits=4)


def _frechet(a: np.ndarray, b: np.ndarray) -> Estimate:
    return scalar(fidelity.frechet_distance(a, b), len(b))


def _kid(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Over subsets of at most half a set: those of a whole one would be the same set each time."""
    size = max(2, min(1000, min(len(a), len(b)) // 2))
    mean, std = fidelity.kid(a, b, size=size)
    return scalar(mean, len(b), std)


def _known(path: Path, wanted: np.ndarray) -> tuple[np.ndarray, int]:
    """Features (M, D) of the wanted pictures, and how many of them have none."""
    e, targets = read(path, "features"), read(path, "targets")
    rows = np.isin(targets, wanted) & np.isfinite(e).all(1)
    return e[rows], len(wanted) - int(rows.sum())


def detected(run: Run, item: str) -> Path:
    """Detections in the faces of `Run.people`, by both detectors, aligned and pasted back: arrays of
    `detections_to_arrays` under '<detector> <place> ', in pixels of the aligned face; `targets` (M,)."""
    from riddle.faces.detection import detect_in_crop, load_detector

    made, photos = stages.faces(run, item), stages.aligned(run)

    def make() -> dict[str, np.ndarray]:
        if reason := read(made, "reason"):
            return {"reason": np.array(reason)}
        rows = np.flatnonzero(np.isin(read(made, "targets"), run.people))
        pictures, targets = read(made, "faces")[rows], read(made, "targets")[rows]
        out = {"targets": targets}
        for name in DETECTORS:
            found = detect_in_crop(to_tensor(pictures), load_detector(name), workers=run.workers)
            out |= _named(f"{name} {ALIGNED}", found)
        if run.data != "samples":
            again = _in_photos(run, item, photos, pictures, targets)
            for name in DETECTORS:
                out |= _named(f"{name} {PASTED}", again[name])
        return out

    people = run.people.tolist()
    made_from = ("detected", key_of(made), key_of(photos), people, part_hash(run.preset, "parser"))
    return stage(run, run.folder / "detected" / f"{item}.npz", made_from, make)


def _named(prefix: str, found: list) -> dict[str, np.ndarray]:
    return {
        f"{prefix} {k}": v for k, v in stages.detections_to_arrays(found).items() if k in ("box", "points", "landmarks")
    }


def _in_photos(run: Run, item: str, photos: Path, pictures: np.ndarray, targets: np.ndarray) -> dict[str, list]:
    """{detector: faces found again in the photos}, in pixels of the aligned face."""
    from riddle.faces.detection import load_detector
    from riddle.photosets import find_again, pasted

    side, out = pictures.shape[1], {name: [] for name in DETECTORS}
    pictures = None if item == "photo" else pictures
    codes = None if item in ("photo", "blur", "mosaic") else stages.codes(run)
    for photo, matrix in pasted(run, photos, pictures, targets, item, codes):
        for name in DETECTORS:
            face = find_again(photo, matrix, load_detector(name))
            if face is not None:
                landmarks = None if face.landmarks is None else crop_points(face.landmarks, matrix, side)
                box = crop_points(face.box.reshape(2, 2), matrix, side).ravel()
                face = replace(face, box=box, points=crop_points(face.points, matrix, side), landmarks=landmarks)
            out[name].append(face)
    return out


def _measures(detector: str, unit: float) -> Iterator[tuple[str, str, Callable]]:
    """(metric, array that it reads, function of two arrays); unit: of length, a pixel of the aligned face."""
    points = "landmarks" if detector == "dlib" else "points"
    yield "box distance", "box", lambda a, b: unit * utility.box_distance(a, b)
    yield "landmark distance", points, lambda a, b: unit * utility.landmark_distance(a, b)
    if detector == "dlib":
        yield "head pose difference (degrees)", points, utility.pose_difference
        for name, of in (("eye openness", utility.eye_openness), ("mouth openness", utility.mouth_openness)):
            yield f"{name} difference", points, lambda a, b, of=of: np.abs(of(a) - of(b))


def usefulness(run: Run, place: str, detector: str) -> Iterator[Measured]:
    """Detection rate, and distances to the same detector's findings on the original, for each method."""
    unit = SIDE / get(run.preset).resolution
    original = detected(run, "photo")
    prefix, measures = f"{detector} {place}", list(_measures(detector, unit))
    names = ["face detection", *(name for name, *_ in measures)]

    def row(method: str, metric: str, against: str = "the same photo") -> Measured:
        return Measured("utility", method, metric, against, detector, place=place)

    for method, item in {REAL: "photo", **METHODS}.items():
        path = detected(run, item)
        reason = read(path, "reason")
        if place == PASTED and run.data == "samples":
            reason = "the bundled faces have no photo around them"
        if reason:
            yield from (row(method, name).absent(reason) for name in names)
            continue
        found = np.isfinite(read(path, f"{prefix} box")).all(1)
        yield row(method, names[0]).of(tables.mean_of(found.astype(float)), int((~found).sum()))
        others = None
        if item == "photo":  # against itself all would be zero
            if len(found) < 2:
                continue
            others = strangers(len(found), run.seed, each=1)[:, 0]
        for name, array, distance in measures:
            a, b = read(original, f"{prefix} {array}"), read(path, f"{prefix} {array}")
            values = distance(a, b if others is None else b[others])
            estimate = tables.mean_of(values)
            empty = row(ANOTHER if others is not None else method, name)
            lost = int(np.isnan(values).sum())
            yield empty.absent("no face was found") if estimate is None else empty.of(estimate, lost)
    for name in names:
        yield from tables.without_system(lambda method, metric=name: row(method, metric))


def records(run: Run) -> Iterator[Measured]:
    """Every row of Table 3 on one data set."""
    for network in NETWORKS:
        yield from distances(run, network)
    for place in (ALIGNED, PASTED):
        for detector in DETECTORS:
            yield from usefulness(run, place, detector)
    for metric in NO_NETWORK:
        for method in METHODS:
            yield Measured("utility", method, metric, "the same photo").absent("no network for it is at hand")
        yield from tables.without_system(lambda m, k=metric: Measured("utility", m, k, "the same photo"))


def published(line: dict[str, Any]) -> dict[str, float | None]:
    """The paper's value, on CelebA-HQ; its FID not beside one of fewer than `FID_FACES` faces."""
    known = paper.TABLE3.get((line["metric"], "" if line["metric"] == "FID" else line["judge"]), {})
    fair = line["metric"] != "FID" or not 0 < line["n"] < FID_FACES
    here = line["place"] != PASTED and line["against"] in (ORIGINALS, "the same photo")
    return {"paper CelebA-HQ": known.get(paper.SYSTEM_OF.get(line["method"], "")) if fair and here else None}


def table3(run: Run, _: str = "") -> Path:
    """Table 3 as tidy CSV."""
    lengths = f"lengths: mean over coordinates, in pixels of the crop at {SIDE} px"
    about = {"protocol": f"{lengths}; utility on at most {DIVERSITY_FACES} faces"}
    return tables.write(run, "table3", tables.runs_of(run, DATASETS), records, published, **about)
