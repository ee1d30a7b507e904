"""Table 3 (section 4.5): distances between sets of faces, detection, and what becomes of a face's box and landmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from riddle.evaluation import facesets, recognition, rows
from riddle.evaluation.runs import NotMade, Run, key_of, need, part_hash, read, stage
from riddle.evaluation.tables import FACES, PICTURES, Measured, Part
from riddle.faces import detection
from riddle.faces.alignment import crop_points
from riddle.images import to_tensor
from riddle.metrics import features, fidelity, utility
from riddle.metrics.diversity import strangers
from riddle.metrics.identity import mean_of
from riddle.presets import get
from riddle.weights import locate

# ---- fidelity


def feature_set(run: Run, network: str, item: str) -> Path:
    """Features (M, D) of a face set by a network of `rows.NETWORKS`; NaN where no face is found."""
    dlib = network == "dlib"
    source = facesets.embeddings(run, item, ["dlib"])[1] if dlib else facesets.faces(run, item)

    def make() -> dict[str, np.ndarray]:
        seen = need(source, "embeddings" if dlib else "faces")
        made = seen if dlib else features.extract(network, seen, run.device, f"{network} {item}")
        return {"features": made, "targets": read(source, "targets")}

    weights = dlib or locate({"squeezenet": "squeezenet1_1"}.get(network, network)) is not None
    made_from = ("features", network, features.RESIZE[network], key_of(source), weights)
    return stage(run, run.folder / "features" / network / f"{item}.npz", made_from, make)


def distances(run: Run, sets: Mapping[str, str], halves: bool = True) -> Iterator[Measured]:
    """Frechet distance and KID of sets of faces {method: set} to the photos that they were made from.

    halves: also half of the photos against the faces made from the others; for the photos themselves, only this.
    """
    everyone = run.pairs.targets
    order, half = np.random.default_rng(run.seed).permutation(everyone), len(everyone) // 2
    compared = [(rows.SAME_PHOTOS, everyone, everyone)]
    compared += [(rows.OTHER_PHOTOS, order[:half], order[half : 2 * half])] if halves else []
    for network, name in rows.NETWORKS.items():
        fid = network == "inception"
        titles = ("FID", "KID (FID's features)") if fid else (f"Frechet distance ({name})", f"KID ({name})")
        photos = feature_set(run, network, "photo")
        about = {"resize": features.RESIZE[network], "reference_hash": key_of(photos)}
        for method, item in sets.items():
            made = photos if read(photos, "reason") else feature_set(run, network, item)  # one try only
            for metric, distance in zip(titles, (fidelity.frechet, fidelity.kid), strict=True):
                for against, real, protected in compared[item == "photo" :]:
                    number = Measured("fidelity", method, metric, against, network, **about)
                    try:
                        (a, here), (b, there) = _known(photos, real), _known(made, protected)
                        if min(len(a), len(b)) < 2:
                            raise NotMade("fewer than two faces were found")
                        yield number.of(distance(a, b, (here, there)), len(protected) - len(b), digits=4)
                    except NotMade as reason:
                        yield number.absent(str(reason))


def _known(path: Path, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (M, D) of those of the wanted pictures that have any, and these pictures (M,). Raises NotMade."""
    e, targets = need(path, "features"), read(path, "targets")
    known = np.isin(targets, wanted) & np.isfinite(e).all(1)
    return e[known], targets[known]


def detected(run: Run, item: str) -> Path:
    """Detections in the faces of `Run.people`, by both detectors, aligned and pasted back: arrays of
    `recognition.to_arrays` under '<detector> <place> ', in pixels of the aligned face; `targets` (M,)."""
    made, photos = facesets.faces(run, item), facesets.aligned(run)

    def make() -> dict[str, np.ndarray]:
        pictures, targets = facesets.of_people(made, run.people)
        detectors, seen = {name: detection.load_detector(name) for name in rows.DETECTORS}, {}
        for name, detector in detectors.items():
            seen[f"{name} {rows.ALIGNED}"] = detection.detect_in_crop(to_tensor(pictures), detector, run.workers)
        if run.data != "samples":
            for photo, matrix in facesets.pasted(run, item, pictures, targets):
                for name, detector in detectors.items():
                    face = facesets.find_again(photo, matrix, detector)
                    face = face and _in_crop(face, matrix, pictures.shape[1])
                    seen.setdefault(f"{name} {rows.PASTED}", []).append(face)
        arrays = {f"{where} {k}": v for where, found in seen.items() for k, v in recognition.to_arrays(found).items()}
        return {k: v for k, v in arrays.items() if k.endswith((" box", " points", " landmarks"))} | {"targets": targets}

    parser = part_hash(run.preset, "parser")
    made_from = ("detected", key_of(made), key_of(photos), run.people.tolist(), parser, facesets.PASTE)
    return stage(run, run.folder / "detected" / f"{item}.npz", made_from, make)


def _in_crop(face: detection.Face, matrix: np.ndarray, side: int) -> detection.Face:
    """A face of a photo in pixels of the crop that `matrix` frames."""
    landmarks = None if face.landmarks is None else crop_points(face.landmarks, matrix, side)
    box = crop_points(face.box.reshape(2, 2), matrix, side).ravel()
    return replace(face, box=box, points=crop_points(face.points, matrix, side), landmarks=landmarks)


def _change(of: Callable) -> Callable:
    """The difference between the values of a measure of one face."""
    return lambda a, b: np.abs(of(a) - of(b))


UTILITY = {  # metric -> (array that it reads, function of two arrays); lengths in pixels of the aligned face
    "box distance": ("box", utility.box_distance),
    "landmark distance": ("points", utility.landmark_distance),
    "head pose difference (degrees)": ("landmarks", utility.pose_difference),
    "eye openness difference": ("landmarks", _change(utility.eye_openness)),
    "mouth openness difference": ("landmarks", _change(utility.mouth_openness)),
}


def usefulness(run: Run, place: str, detector: str) -> Iterator[Measured]:
    """Detection rate, and distances to the same detector's findings on the original, for each method.

    Only dlib has 68 landmarks; its landmark distance uses all of them.
    """
    metrics = list(UTILITY)[: None if detector == "dlib" else 2]
    original, prefix, unit = detected(run, "photo"), f"{detector} {place}", rows.SIDE / get(run.preset).resolution
    for method, item in {rows.PHOTO: "photo", **rows.TABLE3}.items():
        path = detected(run, item)
        rate = Measured("utility", method, "face detection", rows.SAME_PHOTO, detector, place=place)
        reason = read(path, "reason")
        if place == rows.PASTED and run.data == "samples":
            reason = "the bundled faces have no photo around them"
        if reason:
            yield from (replace(rate, metric=metric).absent(reason) for metric in ("face detection", *metrics))
            continue
        found = np.isfinite(read(path, f"{prefix} box")).all(1)
        yield rate.of(mean_of(found), int((~found).sum()))
        others = slice(None)
        if item == "photo":  # compared with itself, all distances would be zero
            if len(found) < 2:
                continue
            others, rate = strangers(len(found), run.seed, each=1)[:, 0], replace(rate, method=rows.ANOTHER)
        for metric in metrics:
            array, distance = UTILITY[metric]
            array = "landmarks" if detector == "dlib" and array == "points" else array
            values = distance(read(original, f"{prefix} {array}"), read(path, f"{prefix} {array}")[others])
            values = values * unit if metric in ("box distance", "landmark distance") else values
            yield replace(rate, metric=metric).of(mean_of(values), int(np.isnan(values).sum()))


def fidelity_and_utility(run: Run) -> Iterator[Measured]:
    """Every row of Table 3 on one data set."""
    yield from distances(run, {rows.PHOTO: "photo", **rows.TABLE3})
    for place in (rows.ALIGNED, rows.PASTED):
        for detector in rows.DETECTORS:
            yield from usefulness(run, place, detector)
    for metric in rows.NO_NETWORK:
        for method in rows.TABLE3:
            yield Measured("utility", method, metric, rows.SAME_PHOTO).absent("no network for it is at hand")


_UNITS = (
    f"lengths: mean over coordinates, in pixels of the crop at {rows.SIDE} px; utility on at most {rows.PEOPLE} faces"
)
PARTS = (
    Part(PICTURES, fidelity_and_utility, ("photo", *rows.TABLE3.values()), ("dlib",), FACES | {"protocol": _UNITS}),
)
