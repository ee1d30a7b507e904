"""The sets of faces that the tables compare (riddle.evaluation.setnames), as stages.

Each function below makes one: it returns the stage's file and makes it first where it is not there
(riddle.evaluation.runs).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import riddle
from riddle.aligned import align
from riddle.baselines import random_keys
from riddle.evaluation import recognition
from riddle.evaluation.rows import FEW, PASSWORDS, PEOPLE, PIXELS, RECOGNISERS
from riddle.evaluation.runs import NotMade, Run, is_current, key_of, need, part_hash, read, save, stage, write
from riddle.evaluation.setnames import UNDONE, FaceSet, parse
from riddle.faces import alignment, detection, recognizers
from riddle.files import digest
from riddle.images import jpeg, to_bytes, to_tensor
from riddle.models.codes import lit
from riddle.presets import get
from riddle.progress import track
from riddle.weights import bundled

BATCH = 64  # faces at a time through a network
PASTE = "lit, with what is in front"  # the way of pasting, a part of the stages' keys
NEAR = 0.35  # share of the crop's side; a face found farther from its place in the photo is another one

# ---- photos and their codes


def aligned(run: Run, _: str = "") -> Path:
    """Faces (N, R, R, 3) uint8, in the order of the pairs' names; `present` (N,) bool.

    Also `matrices` (N, 2, 3): each crop's place in its photo, as `alignment.framing_matrix` has it.
    """
    wanted = run.photos.only(run.pairs.names)  # a limited run aligns only what it compares

    def make() -> dict[str, np.ndarray]:
        found = align(wanted, run.preset, run.detector, run.workers)
        arrays = {"faces": found.faces, "matrices": found.matrices, "present": found.present}
        return arrays | {"version": np.array(run.version)}

    side = get(run.preset).resolution
    made_from = ("aligned", side, run.split_hash, run.photos.fingerprint, run.detector, "matrices")
    return stage(run, run.folder / "aligned.npz", made_from, make)


def _targets(run: Run, photos: Path) -> np.ndarray:
    """Indices (T,) of the pictures that get protected, without those in which no face was found."""
    return run.pairs.targets[read(photos, "present")[run.pairs.targets]]


def codes(run: Run, _: str = "") -> Path:
    """Codes (T, L, D) of the pictures that get protected; `targets` (T,) are their indices.

    Inverting takes seconds a face, so each batch is kept in a file until all are done, and a killed run goes on.
    """
    photos = aligned(run)
    made_from = ("codes", key_of(photos), *(part_hash(run.preset, part) for part in ("generator", "encoder")))

    def make() -> dict[str, np.ndarray]:
        targets, kept = _targets(run, photos), []
        model = parse("inverted").model(run)
        for n, part in enumerate(track(to_tensor(read(photos, "faces")[targets]).split(BATCH), "invert")):
            path, key = run.folder / "inverted" / f"{n:04}.npz", digest(*made_from, n)
            if not is_current(path, key):
                write(path, key, {"codes": model.invert(part).cpu().numpy()})
            kept.append(path)
        return {"codes": np.concatenate([read(path, "codes") for path in kept]), "targets": targets}

    whole = stage(run, run.folder / "codes.npz", made_from, make)
    shutil.rmtree(run.folder / "inverted", ignore_errors=True)
    return whole


# ---- sets of faces


def faces(run: Run, item: str) -> Path:
    """A set of faces (M, R, R, 3) uint8 by its name; `targets` (M,) are the pictures behind them.

    Every picture has its own random password, and its own wrong one, by the run's seed. Raises ValueError for an
    unknown name.
    """
    of, source = parse(item), aligned(run)
    weights = part_hash(run.preset, of.weights) if of.weights else ""
    if of.baseline:
        make, setup = _by_baseline, of.baseline.label
        setup = (setup, run.seed, PASSWORDS, PEOPLE) if of.baseline.keyed else setup
        source = faces(run, of.baseline.file) if of.action in UNDONE else source
    elif item == "photo":
        make, setup = _plain, ""
    elif of.action in PIXELS:
        source, make, setup = faces(run, of.variant), _from_pixels, (run.seed, FEW)
        if of.action == "pasted":  # the mask of the paste comes from the parser, the crop from the detector
            setup += (part_hash(run.preset, "parser"), run.detector, PASTE)
    else:
        source, make, setup = codes(run), _from_codes, (run.seed, PASSWORDS, PEOPLE)
    made_from = ("faces", item, key_of(source), weights, setup)
    return stage(run, run.folder / "faces" / f"{item}.npz", made_from, lambda: make(run, of, source))


def _plain(run: Run, of: FaceSet, photos: Path) -> dict[str, np.ndarray]:
    """The photos."""
    targets = np.flatnonzero(read(photos, "present"))
    return {"faces": read(photos, "faces")[targets], "targets": targets}


def _by_baseline(run: Run, of: FaceSet, source: Path) -> dict[str, np.ndarray]:
    """The photos to protect after a baseline, or what it restores from its own pictures."""
    if of.weights:
        bundled(run.preset, of.weights)  # a preset without its weights says so
    if of.action in UNDONE:
        pictures, targets, change = need(source, "faces"), read(source, "targets"), of.baseline.restore
    else:
        targets, change = _targets(run, source), of.baseline.protect
        targets = targets[np.isin(targets, run.people)].repeat(PASSWORDS) if of.action else targets
        pictures = read(source, "faces")[targets]
    keys = random_keys(len(run.pairs.names), 3 * run.seed + (of.action == "wrong"))[targets]
    if of.action == "passwords":
        keys = random_keys(len(targets), 3 * run.seed + 2)
    parts = zip(track(to_tensor(pictures).split(BATCH), of.name), keys.split(BATCH), strict=True)
    return {"faces": np.concatenate([to_bytes(change(*both)) for both in parts]), "targets": targets}


def _from_codes(run: Run, of: FaceSet, source: Path) -> dict[str, np.ndarray]:
    need(source, "codes")  # without codes no model is needed
    model = of.model(run)
    w, targets = codes_of(run, of, model)
    made = [to_bytes(model.synthesize(part)) for part in track(w.split(BATCH), of.name)]
    return {"faces": np.concatenate(made), "targets": targets}


def codes_of(run: Run, of: FaceSet, model: riddle.Riddle) -> tuple[torch.Tensor, np.ndarray]:
    """Codes (M, L, D) of a set and the pictures behind them (M,)."""
    source = codes(run)
    w, targets = torch.from_numpy(read(source, "codes")), read(source, "targets")
    if of.name == "inverted":
        return w, targets
    if of.action.endswith("passwords"):
        rows = np.flatnonzero(np.isin(targets, run.people)).repeat(PASSWORDS)
        w, targets = w[rows], targets[rows]
        many = model.random_password(len(rows), seed=3 * run.seed + 2)
        first, second = (many, None) if of.action == "passwords" else (own_password(run, model)[targets], many)
    else:
        first = own_password(run, model)[targets]
        second = first if of.action == "restored" else None
        if of.action == "wrong":
            second = own_password(run, model, wrong=True)[targets]
    out = [model.encrypt(*both) for both in zip(w.split(BATCH), first.split(BATCH), strict=True)]
    if second is not None:
        out = [model.decrypt(*both) for both in zip(out, second.split(BATCH), strict=True)]
    if of.action == "lit":
        out = [lit(e, light.to(e.device)) for e, light in zip(out, w.split(BATCH), strict=True)]
    return torch.cat(out).cpu(), targets


def own_password(run: Run, model: riddle.Riddle, wrong: bool = False) -> torch.Tensor:
    """The right, or a wrong, password of every picture of the run: (N, L, D).

    Drawn for all pictures, so that one keeps its password when another is missing.
    """
    return model.random_password(len(run.pairs.names), seed=3 * run.seed + wrong)


def of_people(path: Path, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The faces (M, R, R, 3) of these pictures in a set's file, and which pictures (M,). Raises NotMade."""
    pictures, targets = need(path, "faces"), read(path, "targets")
    wanted = np.isin(targets, people)
    return pictures[wanted], targets[wanted]


def _from_pixels(run: Run, of: FaceSet, source: Path) -> dict[str, np.ndarray]:
    """Restored faces of few people from encrypted pictures alone."""
    pictures, targets = of_people(source, run.few)
    if of.action == "pasted":
        pictures, targets = recropped(run, of.variant, pictures, targets)
    elif of.action.startswith("jpeg"):
        pictures = jpeg(pictures, int(of.action.removeprefix("jpeg")))
    model = of.model(run)
    keys = own_password(run, model)[targets].split(BATCH)
    parts = zip(track(to_tensor(pictures).split(BATCH), of.name), keys, strict=True)
    made = [to_bytes(model.synthesize(model.decrypt(model.invert(part), key))) for part, key in parts]
    return {"faces": np.concatenate(made), "targets": targets}


# ---- back in the photos


def pasted(run: Run, item: str, pictures: np.ndarray, targets: np.ndarray) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """Each target's photo with its picture pasted back, and the picture's matrix (2, 3).

    As `protect` does, but with the wider rim, without matched grain and rim, and without a choice among strangers.

    pictures: (M, R, R, 3) uint8 of the set `item`, in the order of the targets (M,). A set with codes is drawn from
    them, in the photo's light, as large as its places need; the set "photo" leaves the photos as they are. Raises
    DatasetMissingError; NotMade for the samples.
    """
    if run.data == "samples":
        raise NotMade("the bundled faces have no photo around them")
    of, source = parse(item), aligned(run)
    matrices, under, w = read(source, "matrices")[targets], read(source, "faces")[targets], None
    model = None if item == "photo" else of.model(run)
    if model is not None and of.baseline is None:
        w, rows = codes_of(run, parse(f"{item}-lit") if of.variant else of, model)
        w = w[np.searchsorted(rows, targets)]
    for i, target in enumerate(track(targets, f"{item} in photos")):
        photo, matrix = run.photos.image(run.pairs.names[target]), matrices[i]
        if model is not None:
            before, shown = (to_tensor(p[i : i + 1]).to(model.device) for p in (under, pictures))
            if w is not None:
                shown = model.draw(w[i : i + 1], matrix[None])[1]
            photo = model.paste(photo, before, shown, matrix[None])
        yield photo, matrix


def find_again(photo: Image.Image, matrix: np.ndarray, detector: Any) -> detection.Face | None:
    """The face at the place that `matrix` frames, in the photo's pixels; None when the detector finds none there."""
    place = matrix @ [0.5, 0.5, 1.0]

    def away(face: detection.Face) -> float:
        return float(np.hypot(*(face.points.mean(0) - place)))

    nearest = min(detector.detect(photo), key=away, default=None)
    return nearest if nearest is not None and away(nearest) <= NEAR * np.hypot(*matrix[:, 0]) else None


def recropped(run: Run, item: str, pictures: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (M, R, R, 3) uint8 pasted into their photos, detected and cropped anew, and their targets (M,).

    A picture whose face is not found again is left out. Raises NotMade where none is found.
    """
    side, detector, crops, kept = get(run.preset).resolution, detection.load_detector(run.detector), [], []
    for target, (photo, matrix) in zip(targets, pasted(run, item, pictures, targets), strict=True):
        face = find_again(photo, matrix, detector)
        if face is not None:
            crops.append(np.asarray(alignment.crop(photo, alignment.framing_matrix(face.points), side)))
            kept.append(target)
    if not crops:
        raise NotMade("no face was found again in the photos")
    return np.stack(crops), np.array(kept, targets.dtype)


# ---- detections and embeddings


def found(run: Run, item: str) -> Path:
    """Detections in each face of a set, as `recognition.to_arrays` has them."""
    source = faces(run, item)

    def make() -> dict[str, np.ndarray]:
        pictures, detector = to_tensor(need(source, "faces")), detection.load_detector(run.detector)
        return recognition.to_arrays(detection.detect_in_crop(pictures, detector, workers=run.workers))

    return stage(run, run.folder / "found" / f"{item}.npz", ("found", key_of(source), run.detector), make)


def embeddings(run: Run, item: str, names: Sequence[str] = RECOGNISERS) -> list[Path]:
    """One set of faces by each recogniser, files embeddings/<recogniser>/<item>.npz: `embeddings` (M, E), aligned by
    the points found in each face itself, and `targets` (M,).

    Returns the file of detections, then one file per recogniser.
    """
    source, began = found(run, item), time.monotonic()
    paths = {name: run.folder / "embeddings" / name / f"{item}.npz" for name in names}
    absent = {name: read(_recogniser(run, name), "reason") or read(source, "reason") for name in names}
    keys = {name: digest("embeddings", name, key_of(source), absent[name]) for name in names}
    lacking = [name for name in names if not is_current(paths[name], keys[name])]
    arrays = {name: {"reason": np.array(absent[name])} for name in lacking}
    if able := {name: recognition.load(name, run.device) for name in lacking if not absent[name]}:
        made = faces(run, item)
        e = recognition.embed(able, read(made, "faces"), recognition.from_arrays(source))
        arrays |= {name: {"embeddings": e[name], "targets": read(made, "targets")} for name in able}
    for name in lacking:  # the time is divided equally between them
        save(run, paths[name], keys[name], arrays[name], (time.monotonic() - began) / len(lacking))
    return [source, *paths.values()]


def _recogniser(run: Run, name: str) -> Path:
    """A recogniser's own threshold `published`, or the `reason` why it is not available."""

    def make() -> dict[str, np.ndarray]:
        return {"published": np.array(float(recognition.load(name, run.device).threshold))}

    here = recognizers.available([name])[name]  # part of the key: the stage is made again when the weights arrive
    made_from = ("judge", name, here)  # "judge": a word of the key, under which results of hours lie
    return stage(run, run.folder / "embeddings" / f"{name}.npz", made_from, make)


@dataclass(frozen=True)
class Embedded:
    """A recogniser's embeddings of sets of faces, and how it compares two.

    Embeddings are spread over all names of the pairs, NaN where there is no face (or none made).
    """

    name: str
    embeddings: dict[str, np.ndarray]  # face set -> (N, E); many passwords of one photo: (people, PASSWORDS, E)
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (P, E), (P, E) -> (P,): same person above a threshold
    published: float  # its own threshold, used where the data has no strangers' pairs
    reasons: dict[str, str]  # face set -> why there are no embeddings


def embedded(run: Run, name: str, sets: Sequence[str]) -> Embedded:
    """A recogniser's embeddings of face sets."""
    out, reasons = {}, {}
    for item in track(sets, name):
        path = embeddings(run, item, [name])[1]
        if reason := read(path, "reason"):
            reasons[item] = reason
            continue
        e = read(path, "embeddings")
        if item.endswith("passwords"):
            out[item] = e.reshape(-1, PASSWORDS, e.shape[1])
        else:
            out[item] = np.full((len(run.pairs.names), e.shape[1]), np.nan, np.float32)
            out[item][read(path, "targets")] = e
    published = read(_recogniser(run, name), "published")
    return Embedded(name, out, recognizers.similarity_of(name), np.nan if published is None else published, reasons)
