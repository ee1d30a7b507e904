"""The numbers of Tables 1 to 5: each function measures one kind on the data of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from riddle.evaluation import facesets, protocol, recognition, rows
from riddle.evaluation.rows import Row
from riddle.evaluation.runs import NotMade, Run, digest, key_of, need, part_hash, read, stage
from riddle.evaluation.tables import Measured
from riddle.faces import detection
from riddle.faces.alignment import crop_points
from riddle.images import to_tensor
from riddle.metrics import features, restoration, utility
from riddle.metrics.diversity import kffa
from riddle.metrics.identity import cosine
from riddle.presets import get
from riddle.weights import load_lpips, locate

# ---- Tables 1 and 5: rates


def rates(run: Run, wanted: Sequence[Row]) -> Iterator[Measured]:
    """Every row by every recogniser."""
    sets, loaded = rows.sets_of(wanted), {}
    for item in sets:
        facesets.embeddings(run, item, rows.RECOGNISERS, loaded)
    protected = read(facesets.codes(run), "targets")
    people = run.people if protected is None else run.people[np.isin(run.people, protected)]
    for name in rows.RECOGNISERS:
        by = facesets.embedded(run, name, sets, loaded)
        at = {} if "photo" in by.reasons else protocol.thresholds(run.pairs, by)
        yield from (protocol.rate(row, run.pairs, by, at, people) for row in wanted)


# ---- Table 2: restored pictures

LPIPS = {"squeezenet": ("squeeze", "squeezenet1_1"), "alexnet": ("alex", "alexnet")}  # judge -> net, its weights
PIXEL_METRICS = {"MSE": restoration.mse, "SSIM": restoration.ssim, "PSNR": restoration.psnr}


def restored(run: Run, item: str) -> Path:
    """Every metric of a face set against each reference, arrays '<reference> <metric>' (M,), one stage's file."""
    made, references = facesets.faces(run, item), {name: facesets.faces(run, name) for name in rows.REFERENCES}

    def make() -> dict[str, np.ndarray]:
        faces, targets, out = to_tensor(need(made, "faces")), read(made, "targets"), {}
        for name, path in references.items():
            if item != name:
                other = to_tensor(read(path, "faces")[np.searchsorted(read(path, "targets"), targets)])
                out |= {f"{name} {metric}": measure(faces, other) for metric, measure in PIXEL_METRICS.items()}
                for judge, (net, _) in LPIPS.items():
                    if judge not in _no_lpips():
                        out[f"{name} LPIPS {judge}"] = restoration.lpips(faces, other, _lpips(net))
        return out

    made_from = ("restoration", key_of(made), digest(*map(key_of, references.values())), _no_lpips())
    return stage(run, run.folder / "restoration" / f"{item}.npz", made_from, make)


def _no_lpips() -> dict[str, str]:
    """{judge: why LPIPS has no number by it}, for backbones that are not on this machine."""
    return {judge: "weights not on this machine" for judge, (_, asset) in LPIPS.items() if locate(asset) is None}


@cache
def _lpips(net: str) -> Callable:
    """Loaded once a process."""
    return load_lpips(net)


def restorations(run: Run) -> Iterator[Measured]:
    """Every row of Table 2 on one data set."""
    total = len(read(facesets.faces(run, "photo"), "targets"))
    wanted = [*((metric, "") for metric in PIXEL_METRICS), *(("LPIPS", judge) for judge in LPIPS)]
    for reference, against in rows.REFERENCES.items():
        for method, item in rows.TABLE2.items():
            for metric, judge in wanted if item != reference else ():
                empty, path = Measured("recovery", method, metric, against, judge), restored(run, item)
                if reason := read(path, "reason") or _no_lpips().get(judge):
                    yield empty.absent(reason)
                    continue
                values = read(path, f"{reference} {metric} {judge}".strip())
                yield empty.of(protocol.mean_of(values), total - len(values), 4 if metric == "MSE" else 3)


# ---- Table 3: protected pictures


def feature_set(run: Run, network: str, item: str) -> Path:
    """Features (M, D) of a face set by a network of `rows.NETWORKS`; NaN where no face is found."""
    made = facesets.faces(run, item)
    source = facesets.embeddings(run, item, ["dlib"])[1] if network == "dlib" else made

    def make() -> dict[str, np.ndarray]:
        if network == "dlib":
            return {"features": need(source, "embeddings"), "targets": read(source, "targets")}
        made = features.extract(network, need(source, "faces"), run.device, f"{network} {item}")
        return {"features": made, "targets": read(source, "targets")}

    weights = network == "dlib" or locate({"squeezenet": "squeezenet1_1"}.get(network, network)) is not None
    made_from = ("features", network, features.RESIZE[network], key_of(source), weights)
    return stage(run, run.folder / "features" / network / f"{item}.npz", made_from, make)


def distances(run: Run, sets: Mapping[str, str], halves: bool = True) -> Iterator[Measured]:
    """Frechet distance and KID of sets of faces {method: set} to the photos that they were made from.

    halves: also half of the photos against the faces made from the others; of the photos themselves only that.
    """
    everyone = run.pairs.targets
    order = np.random.default_rng(run.seed).permutation(everyone)
    first, second = order[: len(order) // 2], order[len(order) // 2 :][: len(order) // 2]
    compared = ((rows.SAME_PHOTOS, everyone, everyone), *(((rows.OTHER_PHOTOS, first, second),) if halves else ()))
    for network, name in rows.NETWORKS.items():
        fid = network == "inception"
        titles = ("FID", "KID (FID's features)") if fid else (f"Frechet distance ({name})", f"KID ({name})")
        photos = feature_set(run, network, "photo")
        about = {"resize": features.RESIZE[network], "reference_hash": key_of(photos)}
        for method, item in sets.items():
            made = photos if read(photos, "reason") else feature_set(run, network, item)  # one try at its weights
            for metric, distance in zip(titles, (protocol.frechet, protocol.kid), strict=True):
                for against, real, protected in compared[item == "photo" :]:
                    empty = Measured("fidelity", method, metric, against, network, **about)
                    try:
                        a, here, _ = _known(photos, real)
                        b, there, lost = _known(made, protected)
                        if min(len(a), len(b)) < 2:
                            raise NotMade("fewer than two faces were found")
                        yield empty.of(distance(a, b, (here, there)), lost, digits=4)
                    except NotMade as reason:
                        yield empty.absent(str(reason))


def _known(path: Path, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Features (M, D) of the wanted pictures, these pictures (M,), and how many of the wanted have none."""
    e, targets = need(path, "features"), read(path, "targets")
    known = np.isin(targets, wanted) & np.isfinite(e).all(1)
    return e[known], targets[known], len(wanted) - int(known.sum())


def detected(run: Run, item: str) -> Path:
    """Detections in the faces of `Run.people`, by both detectors, aligned and pasted back: arrays of
    `recognition.to_arrays` under '<detector> <place> ', in pixels of the aligned face; `targets` (M,)."""
    made, photos = facesets.faces(run, item), facesets.aligned(run)

    def make() -> dict[str, np.ndarray]:
        pictures, targets = need(made, "faces"), read(made, "targets")
        few = np.isin(targets, run.people)
        pictures, targets = pictures[few], targets[few]
        seen: dict[str, list] = {}
        for name in rows.DETECTORS:
            detector = detection.load_detector(name)
            seen[f"{name} {rows.ALIGNED}"] = detection.detect_in_crop(to_tensor(pictures), detector, run.workers)
        if run.data != "samples":
            for photo, matrix in facesets.pasted(run, item, pictures, targets):
                for name in rows.DETECTORS:
                    face = facesets.find_again(photo, matrix, detection.load_detector(name))
                    face = face and _in_crop(face, matrix, pictures.shape[1])
                    seen.setdefault(f"{name} {rows.PASTED}", []).append(face)
        arrays = {f"{where} {k}": v for where, found in seen.items() for k, v in recognition.to_arrays(found).items()}
        return {k: v for k, v in arrays.items() if k.endswith((" box", " points", " landmarks"))} | {"targets": targets}

    made_from = ("detected", key_of(made), key_of(photos), run.people.tolist(), part_hash(run.preset, "parser"))
    return stage(run, run.folder / "detected" / f"{item}.npz", made_from, make)


def _in_crop(face: detection.Face, matrix: np.ndarray, side: int) -> detection.Face:
    """A face of a photo in pixels of the crop that `matrix` frames."""
    landmarks = None if face.landmarks is None else crop_points(face.landmarks, matrix, side)
    box = crop_points(face.box.reshape(2, 2), matrix, side).ravel()
    return replace(face, box=box, points=crop_points(face.points, matrix, side), landmarks=landmarks)


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
    measures = list(_measures(detector, rows.SIDE / get(run.preset).resolution))
    names = [metric for metric, *_ in measures]
    original, prefix = detected(run, "photo"), f"{detector} {place}"
    for method, item in {rows.PHOTO: "photo", **rows.TABLE3}.items():
        path = detected(run, item)
        rate = Measured("utility", method, "face detection", rows.SAME_PHOTO, detector, place=place)
        reason = read(path, "reason")
        if place == rows.PASTED and run.data == "samples":
            reason = "the bundled faces have no photo around them"
        if reason:
            yield from (replace(rate, metric=metric).absent(reason) for metric in ("face detection", *names))
            continue
        found = np.isfinite(read(path, f"{prefix} box")).all(1)
        yield rate.of(protocol.mean_of(found.astype(float)), int((~found).sum()))
        others = slice(None)
        if item == "photo":  # against itself all would be zero
            if len(found) < 2:
                continue
            others = protocol.strangers(len(found), run.seed, each=1)[:, 0]
        for metric, array, distance in measures:
            values = distance(read(original, f"{prefix} {array}"), read(path, f"{prefix} {array}")[others])
            estimate = protocol.mean_of(values)
            empty = replace(rate, metric=metric, method=rows.ANOTHER if item == "photo" else method)
            yield empty.of(estimate, int(np.isnan(values).sum())) if estimate else empty.absent("no face was found")


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


def similarity(by: protocol.Embedded, people: np.ndarray, seed: int) -> Iterator[Measured]:
    """Every row of Table 4 by one recogniser; people: (n,) pictures of different persons, ascending.

    What strangers give through the same crop and alignment stands beside: no method need do better.
    """
    sets, reasons = by.embeddings, by.reasons
    photo = sets["photo"][people] if "photo" not in reasons else None
    for item, method in rows.MANY.items():
        if reason := reasons.get("photo") or reasons.get(item):
            yield Measured("similarity", method, rows.COSINE, rows.SAME_PHOTO, by.name).absent(reason)
            yield Measured("diversity", method, rows.KFFA, rows.AMONG, by.name).absent(reason)
            continue
        yield _mean(method, rows.COSINE, rows.SAME_PHOTO, by.name, cosine(photo[:, None], sets[item]))
        angles = _mean(method, rows.KFFA, rows.AMONG, by.name, kffa(sets[item]))
        lost = np.isnan(sets[item][..., 0])
        yield replace(angles, n=lost.size, undetected=int(lost.sum()))
    for method, item in rows.SINGLE.items():
        if reason := reasons.get("photo") or reasons.get(item):
            yield Measured("similarity", method, rows.COSINE, rows.SAME_PHOTO, by.name).absent(reason)
        else:
            yield _mean(method, rows.COSINE, rows.SAME_PHOTO, by.name, cosine(photo, sets[item][people]))
        yield Measured("diversity", method, rows.KFFA, rows.AMONG, by.name).absent("it has no password")
    if photo is None or len(people) < 2:
        return
    others = protocol.strangers(len(people), seed)
    yield _mean("strangers' photos", rows.COSINE, rows.STRANGER, by.name, cosine(photo[:, None], photo[others]))
    if others.shape[1] > 1:
        yield _mean("strangers' photos", rows.KFFA, f"{others.shape[1]} strangers", by.name, kffa(photo[others]))
    if "inverted" not in reasons:
        inverted = sets["inverted"][people][others]
        yield _mean("strangers' inverted faces", rows.COSINE, rows.STRANGER, by.name, cosine(photo[:, None], inverted))


def _mean(method: str, metric: str, against: str, judge: str, values: np.ndarray) -> Measured:
    """Mean over people of per-person means of values (n, K), or of values (n,)."""
    empty = Measured("similarity" if metric == rows.COSINE else "diversity", method, metric, against, judge)
    estimate = protocol.mean_of(protocol.by_person(values.reshape(len(values), -1)))
    if estimate is None:
        return empty.absent("no face was found")
    made = empty.of(estimate, int(np.isnan(values).sum()), digits=3 if metric == rows.COSINE else 2)
    return replace(made, n=values.size)
