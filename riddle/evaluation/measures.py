"""The numbers of Tables 2 to 4: each function measures one kind on the data of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from riddle.evaluation import facesets, recognition, rows
from riddle.evaluation.facesets import Embedded
from riddle.evaluation.runs import NotMade, Run, key_of, need, part_hash, read, stage
from riddle.evaluation.tables import Measured
from riddle.faces import detection
from riddle.faces.alignment import crop_points
from riddle.files import digest
from riddle.images import to_tensor
from riddle.metrics import features, fidelity, restoration, utility
from riddle.metrics.diversity import kffa
from riddle.metrics.identity import Estimate, bootstrap_interval, cosine, mean_found
from riddle.presets import get
from riddle.weights import load_lpips, locate


def mean_of(values: np.ndarray) -> Estimate:
    """Mean of values (P,) with a bootstrap interval, NaN left out; `std` is that of the values."""
    e = bootstrap_interval(values)
    return replace(e, std=float(np.nanstd(values))) if e.n else e


# ---- Table 2: restored pictures

LPIPS = {"squeezenet": ("squeeze", "squeezenet1_1"), "alexnet": ("alex", "alexnet")}  # judge -> net, its weights
PIXEL_METRICS = {"MSE": restoration.mse, "SSIM": restoration.ssim, "PSNR": restoration.psnr}
_lpips = cache(load_lpips)  # loaded once per process


def restored(run: Run, item: str) -> Path:
    """Every metric of a face set against each reference, arrays '<reference> <metric>' (M,), one stage's file."""
    made, references = facesets.faces(run, item), {name: facesets.faces(run, name) for name in rows.REFERENCES}

    def make() -> dict[str, np.ndarray]:
        faces, targets, out = to_tensor(need(made, "faces")), read(made, "targets"), {}
        for name, path in references.items():
            if item != name:
                other = to_tensor(read(path, "faces")[np.searchsorted(read(path, "targets"), targets)])
                out |= {f"{name} {metric}": measure(faces, other) for metric, measure in PIXEL_METRICS.items()}
                for judge in LPIPS.keys() - _no_lpips():
                    out[f"{name} LPIPS {judge}"] = restoration.lpips(faces, other, _lpips(LPIPS[judge][0]))
        return out

    made_from = ("restoration", key_of(made), digest(*map(key_of, references.values())), _no_lpips())
    return stage(run, run.folder / "restoration" / f"{item}.npz", made_from, make)


def _no_lpips() -> dict[str, str]:
    """{judge: why LPIPS has no number by it}, for backbones that are not on this machine."""
    return {judge: "weights not on this machine" for judge, (_, asset) in LPIPS.items() if locate(asset) is None}


def restorations(run: Run) -> Iterator[Measured]:
    """Every row of Table 2 on one data set."""
    total = len(read(facesets.faces(run, "photo"), "targets"))
    wanted = [*((metric, "") for metric in PIXEL_METRICS), *(("LPIPS", judge) for judge in LPIPS)]
    for reference, against in rows.REFERENCES.items():
        for method, item in rows.TABLE2.items():
            for metric, judge in wanted if item != reference else ():
                number, path = Measured("recovery", method, metric, against, judge), restored(run, item)
                if reason := read(path, "reason") or _no_lpips().get(judge):
                    yield number.absent(reason)
                    continue
                values = read(path, f"{reference} {metric} {judge}".strip())
                yield number.of(mean_of(values), total - len(values), 4 if metric == "MSE" else 3)


# ---- Table 3: protected pictures


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

    made_from = ("detected", key_of(made), key_of(photos), run.people.tolist(), part_hash(run.preset, "parser"), "lit")
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


# ---- Table 4: identities


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
    others = strangers(len(people), seed)
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


def strangers(people: int, seed: int, each: int = rows.PASSWORDS) -> np.ndarray:
    """For each of n people, `each` others (fewer when there are not so many), at random: (n, each) indices."""
    order = np.random.default_rng(seed).permutation(people)
    steps = np.arange(1, min(each, people - 1) + 1)
    out = np.empty((people, len(steps)), int)
    out[order] = order[(np.arange(people)[:, None] + steps) % people]
    return out
