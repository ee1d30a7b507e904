"""The tables' stages: aligned faces -> codes -> faces of each row -> detections -> embeddings -> tables.

Each stage is one file under results/runs/<preset>/<dataset>/ and one command; Snakemake runs them side by side:

    python -m riddle.stages aligned --preset mini
    python -m riddle.stages faces --preset mini --item riddle-wrong
    python -m riddle.stages table1 --preset mini          # with whatever it still lacks
    python -m riddle.stages times --preset mini           # seconds of each stage

A stage that needs absent weights writes the reason instead, and the tables print it: 'n/a: reason'.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import riddle
from riddle import baselines, protocols
from riddle.presets import get
from riddle.runs import Run, key_of, log_time, part_hash, read, sample_files, stage, times

BATCH = 64  # faces at a time through a network
VARIANTS = {"riddle": "encryptor", "datafree": "encryptor_datafree"}  # first word of a face set -> its weights
SETS = (*protocols.FACE_SETS, *protocols.DIVERSITY_SETS)


def aligned(run: Run, _: str = "") -> Path:
    """Faces (N, R, R, 3) uint8 in the preset's framing, in the order of the pairs' names; `present` (N,) bool."""
    preset = get(run.preset)
    made_from = ("aligned", preset.resolution, preset.framing, run.split_hash, run.fingerprint, run.detector)
    make = _samples if run.data == "samples" else _aligned_lfw
    return stage(run, run.folder / "aligned.npz", made_from, lambda: make(run, preset.resolution))


def _samples(run: Run, side: int) -> dict[str, np.ndarray]:
    from PIL import Image

    files = sample_files()[: len(run.pairs.names)]
    pictures = [Image.open(p).convert("RGB").resize((side, side), Image.Resampling.LANCZOS) for p in files]
    present = np.ones(len(files), bool)
    return {"faces": np.stack([np.asarray(p) for p in pictures]), "present": present, "version": np.array("synthetic")}


def _aligned_lfw(run: Run, side: int) -> dict[str, np.ndarray]:
    from riddle.aligned import aligned as align

    names = run.pairs.names
    photos = copy.copy(run.lfw)
    photos.names = list(names)  # a limited run aligns only what it compares
    found = align(photos, run.preset, detector=run.detector, workers=run.workers)
    place = {name: i for i, name in enumerate(names)}
    faces, present = np.zeros((len(names), side, side, 3), np.uint8), np.zeros(len(names), bool)
    rows = np.array([place[name] for name in found.names])
    faces[rows], present[rows] = np.asarray(found.faces), True
    return {"faces": faces, "present": present, "version": np.array(photos.version)}


def _targets(run: Run, photos: Path) -> np.ndarray:
    """Indices (T,) of the pictures that get protected, without those in which no face was found."""
    return run.pairs.targets[read(photos, "present")[run.pairs.targets]]


def _pictures(path: Path, rows: np.ndarray | slice = slice(None)) -> torch.Tensor:
    """Faces (M, 3, R, R) in [-1, 1] of a stage's file."""
    return torch.from_numpy(read(path, "faces")[rows]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_bytes(x: torch.Tensor) -> np.ndarray:
    """Faces (N, 3, R, R) in [-1, 1] -> (N, R, R, 3) uint8."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu().permute(0, 2, 3, 1).contiguous().numpy()


def codes(run: Run, _: str = "") -> Path:
    """Codes (T, L, D) of the pictures that get protected; `targets` (T,) are their indices."""
    photos = aligned(run)

    def make() -> dict[str, np.ndarray]:
        targets = _targets(run, photos)
        model = riddle.load(run.preset, device=run.device)
        parts = tqdm(_pictures(photos, targets).split(BATCH), desc="invert", mininterval=5)
        return {"codes": torch.cat([model.invert(part).cpu() for part in parts]).numpy(), "targets": targets}

    weights = part_hash(run.preset, "generator"), part_hash(run.preset, "encoder")
    return stage(run, run.folder / "codes.npz", ("codes", key_of(photos), *weights), make)


def faces(run: Run, item: str) -> Path:
    """A set of faces (M, R, R, 3) uint8, by its key in riddle.protocols; `targets` (M,) are the pictures behind them.

    Every picture has its own random password, and its own wrong one, by the run's seed.
    """
    if item not in SETS:
        raise ValueError(f"unknown set of faces {item!r}; choose one of {', '.join(SETS)}")
    photos = aligned(run)
    if item in ("photo", "blur", "mosaic"):
        source, weights, make = photos, "", lambda: _from_photos(run, item, photos)
        setup = baselines.load(item).label if item != "photo" else ""
    else:
        source, setup = codes(run), (run.seed, protocols.PASSWORDS, protocols.DIVERSITY_FACES)
        weights = part_hash(run.preset, VARIANTS[item.split("-")[0]]) if item != "inverted" else ""
        make = lambda: _from_codes(run, item, source)  # noqa: E731
    return stage(run, run.folder / "faces" / f"{item}.npz", ("faces", item, key_of(source), weights, setup), make)


def _from_photos(run: Run, item: str, photos: Path) -> dict[str, np.ndarray]:
    if item == "photo":
        targets = np.flatnonzero(read(photos, "present"))
        return {"faces": read(photos, "faces")[targets], "targets": targets}
    targets = _targets(run, photos)
    return {"faces": to_bytes(baselines.load(item).protect(_pictures(photos, targets), run.seed)), "targets": targets}


def _from_codes(run: Run, item: str, source: Path) -> dict[str, np.ndarray]:
    if reason := read(source, "reason"):
        return {"reason": np.array(reason)}
    w, targets = torch.from_numpy(read(source, "codes")), read(source, "targets")
    variant, _, action = item.partition("-")
    model = riddle.load(run.preset, device=run.device, encryptor=VARIANTS.get(variant, "encryptor"))
    if action == "passwords":
        rows = np.flatnonzero(np.isin(targets, run.people)).repeat(protocols.PASSWORDS)
        w, targets = w[rows], targets[rows]
        keys = model.random_password(len(rows), seed=3 * run.seed + 2)
    elif item != "inverted":
        # Drawn for all pictures, so that one keeps its password when another is missing.
        keys, wrong = (model.random_password(len(run.pairs.names), seed=3 * run.seed + k)[targets] for k in (0, 1))
    out = []
    for start in tqdm(range(0, len(w), BATCH), desc=item, mininterval=5):
        part = slice(start, start + BATCH)
        code = w[part]
        if item != "inverted":
            code = model.encrypt(code, keys[part])
        if action in ("wrong", "restored"):
            code = model.decrypt(code, wrong[part] if action == "wrong" else keys[part])
        out.append(to_bytes(model.synthesize(code)))
    return {"faces": np.concatenate(out), "targets": targets}


def found(run: Run, item: str) -> Path:
    """Detections in each face of a set, as `detections_to_arrays` has them."""
    source = faces(run, item)

    def make() -> dict[str, np.ndarray]:
        if reason := read(source, "reason"):
            return {"reason": np.array(reason)}
        from riddle.faces.detection import detect_in_crop, load_detector

        return detections_to_arrays(detect_in_crop(_pictures(source), load_detector(run.detector), workers=run.workers))

    return stage(run, run.folder / "found" / f"{item}.npz", ("found", key_of(source), run.detector), make)


_FIELDS = {"box": (4,), "score": (), "points": (5, 2), "landmarks": (68, 2)}


def detections_to_arrays(listed: list) -> dict[str, np.ndarray]:
    """List of Face or None -> arrays of M rows, NaN for None and for landmarks that a detector does not give."""
    arrays = {k: np.full((len(listed), *shape), np.nan) for k, shape in _FIELDS.items()}
    for i, face in enumerate(listed):
        for k in _FIELDS:
            if face is not None and getattr(face, k) is not None:
                arrays[k][i] = getattr(face, k)
    return {**arrays, "detector": np.array(["" if f is None else f.detector for f in listed], dtype="U16")}


def detections(path: Path) -> list:
    """Inverse of `detections_to_arrays`, from a stage's file: list of Face or None."""
    from riddle.faces.detection import Face

    a = {k: read(path, k) for k in (*_FIELDS, "detector")}
    listed = []
    for i, detector in enumerate(a["detector"]):
        landmarks = None if np.isnan(a["landmarks"][i]).any() else a["landmarks"][i]
        face = Face(a["box"][i], float(a["score"][i]), a["points"][i], landmarks, str(detector))
        listed.append(face if detector else None)
    return listed


def embeddings(run: Run, item: str) -> Path:
    """One judge's embeddings (M, E) of every set of faces, aligned by the points found in each face itself."""
    from riddle.faces import recognizers

    sources = {name: (faces(run, name), found(run, name)) for name in SETS}

    def make() -> dict[str, np.ndarray]:
        judge = recognizers.load(item, device=run.device)
        arrays = {"published": np.array(float(judge.threshold))}
        for name, (made, detected) in tqdm(sources.items(), desc=item, mininterval=5):
            if not read(made, "reason"):
                arrays[name] = embed(judge, made, detections(detected))
        return arrays

    here = recognizers.available([item])[item]  # when the weights arrive, the stage is made again
    made_from = ("embeddings", item, here, {name: key_of(path) for name, (_, path) in sources.items()})
    return stage(run, run.folder / "embeddings" / f"{item}.npz", made_from, make)


def embed(judge: Any, made: Path, listed: list) -> np.ndarray:
    """Embeddings (M, E) float32 of the faces in a stage's file; NaN rows where no face was found."""
    parts = []
    for start in range(0, len(listed), 4 * BATCH):
        part = slice(start, start + 4 * BATCH)
        parts.append(judge.embed_faces(_pictures(made, part), listed[part]).float().cpu())
    return torch.cat(parts).numpy()


def judge_of(run: Run, name: str) -> protocols.Judge | str:
    """A judge's embeddings, spread over all names of the pairs; the reason (str) when it is not available."""
    from riddle.faces import recognizers

    path = embeddings(run, name)
    if reason := read(path, "reason"):
        return reason
    spread, reasons = {}, {}
    for item in SETS:
        made = faces(run, item)
        if reason := read(made, "reason"):
            reasons[item] = reason
        elif item in protocols.DIVERSITY_SETS:
            e = read(path, item)
            spread[item] = e.reshape(-1, protocols.PASSWORDS, e.shape[1])
        else:
            e = read(path, item)
            spread[item] = np.full((len(run.pairs.names), e.shape[1]), np.nan, np.float32)
            spread[item][read(made, "targets")] = e
    return protocols.Judge(name, spread, recognizers.similarity_of(name), read(path, "published"), reasons)


def table1(run: Run, _: str = "") -> Path:
    """Table 1 as tidy CSV, at `run.table`; a complete run also writes `run.kept_table`."""
    from riddle import reporting

    for name in protocols.JUDGES:
        embeddings(run, name)  # first, so that the time below is the table's own
    began, records = time.monotonic(), []
    photos, passwords = aligned(run), faces(run, next(iter(protocols.DIVERSITY_SETS)))
    people = None if read(passwords, "reason") else read(passwords, "targets")[:: protocols.PASSWORDS]
    for name in protocols.JUDGES:
        judge = judge_of(run, name)
        known = isinstance(judge, protocols.Judge)
        records += protocols.table1(run.pairs, people, judge) if known else protocols.without_judge(name, judge)
    records += protocols.without_system()
    provenance = reporting.Provenance(
        dataset="LFW" if run.data == "lfw" else "bundled synthetic faces, not LFW",
        version=read(photos, "version"), split_hash=run.split_hash, seed=run.seed, preset=run.preset,
        weights=run.weights_hash, detector=run.detector,
        threshold_rule="the recogniser's published threshold" if run.pairs.same.all()
        else f"other nine folds' unprotected negatives at FAR {protocols.FAR:g}",
    )  # fmt: skip
    table = reporting.tidy(records, provenance, seen=(get(run.preset).identity,))
    for path in filter(None, (run.table, run.kept_table)):
        reporting.write_csv(table, path)
    log_time(run, "table1", time.monotonic() - began)
    return run.table


STAGES: dict[str, Callable[[Run, str], Path]] = {
    "aligned": aligned, "codes": codes, "faces": faces, "found": found, "embeddings": embeddings, "table1": table1,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "times"])
    parser.add_argument("--item", default="", help="set of faces, or judge")
    for name in ("preset", "dataset", "detector", "device"):
        parser.add_argument(f"--{name}", default=getattr(Run, name))
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--limit", type=int, default=None, help="pairs of each kind a fold")
    parser.add_argument("--workers", type=int, default=Run.workers, help="processes for detection")
    options = vars(parser.parse_args(argv))
    name, item = options.pop("stage"), options.pop("item")
    run = Run(**options)
    if name == "times":
        print("\n".join(f"{seconds:8.1f} s  {what}" for what, seconds in times(run).items()))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    path = STAGES[name](run, item)
    path.touch()  # Snakemake goes by times: found up to date counts as made now
    print(path)


if __name__ == "__main__":
    main()
