"""The tables' stages: aligned faces -> codes -> faces of each row -> detections -> embeddings -> tables.

Each stage is one file under results/runs/<preset>/<dataset>/ and one command; Snakemake runs them side by side:

    python -m riddle.stages aligned --preset mobile --dataset ffhq
    python -m riddle.stages faces --preset mobile --item riddle-wrong
    python -m riddle.stages judged --preset mobile --item riddle-wrong riddle-png
    python -m riddle.stages table1 --preset mobile        # with whatever it still lacks
    python -m riddle.stages times --preset mobile         # seconds of each stage

A stage that needs absent weights writes the reason instead, and the tables print it: 'n/a: reason'.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import riddle
from riddle import baselines, config, facesets, judging, protocols
from riddle.images import to_bytes, to_tensor
from riddle.facesets import BATCH
from riddle.judging import detections, detections_to_arrays
from riddle.presets import get
from riddle.progress import track
from riddle.runs import (
    VARIANTS,
    Run,
    digest,
    is_current,
    key_of,
    log_time,
    part_hash,
    read,
    save,
    stage,
    summary,
)

__all__ = [
    "STAGES", "VARIANTS", "aligned", "codes", "detections", "detections_to_arrays", "embeddings", "faces", "found",
    "judge_of", "judged", "sets_of", "table1", "to_bytes",
]  # fmt: skip


def sets_of(run: Run) -> tuple[str, ...]:
    """The face sets that the judges see on this run's data: Table 1's on LFW, and Table 4's on every set."""
    table1 = (*protocols.FACE_SETS, *protocols.DIVERSITY_SETS) if run.data in ("lfw", "samples") else ()
    return tuple(dict.fromkeys((*table1, *protocols.SIMILARITY_SETS)))


def aligned(run: Run, _: str = "") -> Path:
    """Faces (N, R, R, 3) uint8, in the order of the pairs' names; `present` (N,) bool.

    Of photos also `matrices` (N, 2, 3): each crop's place in its photo, as `alignment.framing_matrix` has it.
    """
    preset = get(run.preset)
    made_from = ("aligned", preset.resolution, run.split_hash, run.fingerprint, run.detector, "matrices")
    make = _samples if run.data == "samples" else _aligned_photos
    return stage(run, run.folder / "aligned.npz", made_from, lambda: make(run, preset.resolution))


def _samples(run: Run, side: int) -> dict[str, np.ndarray]:
    from PIL import Image

    files = config.sample_files()[: len(run.pairs.names)]
    pictures = [Image.open(p).convert("RGB").resize((side, side), Image.Resampling.LANCZOS) for p in files]
    present = np.ones(len(files), bool)
    return {"faces": np.stack([np.asarray(p) for p in pictures]), "present": present, "version": np.array("synthetic")}


def _aligned_photos(run: Run, side: int) -> dict[str, np.ndarray]:
    from riddle.aligned import aligned as align

    names = run.pairs.names
    photos = copy.copy(run.photos)
    photos.names = list(names)  # a limited run aligns only what it compares
    found = align(photos, run.preset, detector=run.detector, workers=run.workers)
    place = {name: i for i, name in enumerate(names)}
    faces, present = np.zeros((len(names), side, side, 3), np.uint8), np.zeros(len(names), bool)
    matrices = np.full((len(names), 2, 3), np.nan)
    rows = np.array([place[name] for name in found.names])
    faces[rows], matrices[rows], present[rows] = np.asarray(found.faces), found.matrices, True
    version = photos.version if run.data == "lfw" else f"{photos.name} {photos.split}"
    return {"faces": faces, "matrices": matrices, "present": present, "version": np.array(version)}


def _targets(run: Run, photos: Path) -> np.ndarray:
    """Indices (T,) of the pictures that get protected, without those in which no face was found."""
    return run.pairs.targets[read(photos, "present")[run.pairs.targets]]


def _pictures(path: Path, rows: np.ndarray | slice = slice(None)) -> torch.Tensor:
    """Faces (M, 3, R, R) in [-1, 1] of a stage's file."""
    return to_tensor(read(path, "faces")[rows])


def codes(run: Run, _: str = "") -> Path:
    """Codes (T, L, D) of the pictures that get protected; `targets` (T,) are their indices."""
    photos = aligned(run)

    def make() -> dict[str, np.ndarray]:
        targets = _targets(run, photos)
        model = riddle.load(run.preset, device=run.device, encryptor="untrained")  # it only inverts
        parts = track(_pictures(photos, targets).split(BATCH), "invert")
        return {"codes": torch.cat([model.invert(part).cpu() for part in parts]).numpy(), "targets": targets}

    weights = part_hash(run.preset, "generator"), part_hash(run.preset, "encoder")
    return stage(run, run.folder / "codes.npz", ("codes", key_of(photos), *weights), make)


def faces(run: Run, item: str) -> Path:
    """A set of faces (M, R, R, 3) uint8, by its name in riddle.facesets; `targets` (M,) are the pictures behind them.

    Every picture has its own random password, and its own wrong one, by the run's seed. What cannot be made leaves
    a `reason` instead. Raises ValueError for an unknown name.
    """
    of = facesets.parse(item)
    photos, path = aligned(run), run.folder / "faces" / f"{item}.npz"
    if item in ("photo", "blur", "mosaic"):
        setup = baselines.load(item).label if item != "photo" else ""
        make, made_from = _from_photos, ("faces", item, key_of(photos), "", setup)
        return stage(run, path, made_from, lambda: make(run, item, photos))
    weights = part_hash(run.preset, of.encryptor) if of.encryptor else ""
    if of.action in facesets.FROM_PIXELS:
        source = faces(run, of.variant)
        # The mask of the paste comes from the parser, the crop from the detector.
        setup = (run.seed, part_hash(run.preset, "parser"), run.detector) if of.action == "pasted" else run.seed
        return stage(
            run, path, ("faces", item, key_of(source), weights, setup), lambda: _from_pixels(run, of, source, photos)
        )
    source = codes(run)
    setup = (run.seed, protocols.PASSWORDS, protocols.DIVERSITY_FACES)
    return stage(run, path, ("faces", item, key_of(source), weights, setup), lambda: _from_codes(run, of, source))


def _from_photos(run: Run, item: str, photos: Path) -> dict[str, np.ndarray]:
    if item == "photo":
        targets = np.flatnonzero(read(photos, "present"))
        return {"faces": read(photos, "faces")[targets], "targets": targets}
    targets = _targets(run, photos)
    return {"faces": to_bytes(baselines.load(item).protect(_pictures(photos, targets), run.seed)), "targets": targets}


def _from_codes(run: Run, of: facesets.FaceSet, source: Path) -> dict[str, np.ndarray]:
    if reason := read(source, "reason"):
        return {"reason": np.array(reason)}
    made, targets = facesets.from_codes(run, of, read(source, "codes"), read(source, "targets"))
    return {"faces": made, "targets": targets}


def _from_pixels(run: Run, of: facesets.FaceSet, source: Path, photos: Path) -> dict[str, np.ndarray]:
    if reason := read(source, "reason"):
        return {"reason": np.array(reason)}
    targets = read(source, "targets")
    few = np.isin(targets, run.people)
    pictures, targets = read(source, "faces")[few], targets[few]
    if of.action == "pasted":
        from riddle.photosets import recropped

        if run.data == "samples":
            return {"reason": np.array("the bundled faces have no photo around them")}
        pictures, targets = recropped(run, photos, pictures, targets, of.variant, codes(run))
        if not len(targets):
            return {"reason": np.array("no face was found again in the photos")}
    return {"faces": facesets.from_pixels(run, of, pictures, targets), "targets": targets}


def found(run: Run, item: str) -> Path:
    """Detections in each face of a set, as `detections_to_arrays` has them."""
    source = faces(run, item)

    def make() -> dict[str, np.ndarray]:
        if reason := read(source, "reason"):
            return {"reason": np.array(reason)}
        from riddle.faces.detection import detect_in_crop, load_detector

        return detections_to_arrays(detect_in_crop(_pictures(source), load_detector(run.detector), workers=run.workers))

    return stage(run, run.folder / "found" / f"{item}.npz", ("found", key_of(source), run.detector), make)


def judged(
    run: Run, item: str, judges: Sequence[str] = protocols.JUDGES, loaded: dict[str, Any] | None = None
) -> list[Path]:
    """One set of faces by each judge, files embeddings/<judge>/<item>.npz: `embeddings` (M, E), aligned by the points
    found in each face itself, and `targets` (M,); or the `reason` why there are none.

    loaded: judges that the caller keeps between calls. Returns the file of detections, then a file a judge.
    """
    from riddle.faces import recognizers

    loaded = {} if loaded is None else loaded
    source = found(run, item)
    paths = {j: run.folder / "embeddings" / j / f"{item}.npz" for j in judges}
    absent = {j: read(_threshold(run, j, loaded), "reason") or read(source, "reason") for j in judges}
    keys = {j: digest("embeddings", j, key_of(source), absent[j]) for j in judges}
    lacking = [j for j in judges if not is_current(paths[j], keys[j])]
    arrays = {j: {"reason": np.array(absent[j])} for j in lacking if absent[j]}
    spent: dict[str, float] = {}
    if able := [j for j in lacking if not absent[j]]:
        made = faces(run, item)
        loaded |= {j: recognizers.load(j, device=run.device) for j in able if j not in loaded}
        e = judging.embed({j: loaded[j] for j in able}, read(made, "faces"), detections(source), spent)
        arrays |= {j: {"embeddings": e[j], "targets": read(made, "targets")} for j in able}
        log_time(run, f"crops/{item}", spent.pop("crops", 0.0))
    for j in lacking:
        save(run, paths[j], keys[j], arrays[j], spent.get(j, 0.0))
    return [source, *paths.values()]


def _threshold(run: Run, judge: str, loaded: dict[str, Any]) -> Path:
    """A judge's own threshold `published`, or the `reason` why it is not available."""
    from riddle.faces import recognizers

    def make() -> dict[str, np.ndarray]:
        loaded[judge] = recognizers.load(judge, device=run.device)
        return {"published": np.array(float(loaded[judge].threshold))}

    here = recognizers.available([judge])[judge]  # when the weights arrive, the stage is made again
    return stage(run, run.folder / "embeddings" / f"{judge}.npz", ("judge", judge, here), make)


def embeddings(run: Run, item: str, sets: Sequence[str] | None = None) -> Path:
    """One judge's embeddings of face sets (default: `sets_of`), as `judged` leaves them.

    Returns the judge's file: its own threshold `published`, or the `reason` why it is not available.
    """
    loaded: dict[str, Any] = {}
    path = _threshold(run, item, loaded)
    if read(path, "reason") is None:
        for name in track(sets or sets_of(run), item):
            judged(run, name, [item], loaded)
    return path


def judge_of(run: Run, name: str, sets: Sequence[str] | None = None) -> protocols.Judge | str:
    """A judge's embeddings of face sets (default: `sets_of`), spread over all names of the pairs; the reason (str)
    when it is not available. Sets of several passwords are (people, PASSWORDS, E)."""
    from riddle.faces import recognizers

    path = embeddings(run, name, sets)
    if reason := read(path, "reason"):
        return reason
    spread, reasons = {}, {}
    for item in sets or sets_of(run):
        made = path.parent / name / f"{item}.npz"
        if reason := read(made, "reason"):
            reasons[item] = reason
            continue
        e = read(made, "embeddings")
        if item.endswith("passwords"):
            spread[item] = e.reshape(-1, protocols.PASSWORDS, e.shape[1])
        else:
            spread[item] = np.full((len(run.pairs.names), e.shape[1]), np.nan, np.float32)
            spread[item][read(made, "targets")] = e
    return protocols.Judge(name, spread, recognizers.similarity_of(name), read(path, "published"), reasons)


def table1(run: Run, _: str = "") -> Path:
    """Table 1 as tidy CSV, at `run.table`; a complete run also writes `run.kept_table`."""
    from riddle import reporting

    loaded: dict[str, Any] = {}
    for item in sets_of(run):  # first, so that the time below is the table's own
        judged(run, item, protocols.JUDGES, loaded)
    began, records = time.monotonic(), []
    photos, protected = aligned(run), read(codes(run), "targets")
    people = run.people if protected is None else run.people[np.isin(run.people, protected)]
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


def _later(module: str, name: str) -> Callable[[Run, str], Path]:
    """A stage of a module that itself imports this one."""
    return lambda run, item="": getattr(importlib.import_module(f"riddle.{module}"), name)(run, item)


STAGES: dict[str, Callable[..., Path | list[Path]]] = {
    "aligned": aligned, "codes": codes, "faces": faces, "found": found, "judged": judged,
    "detected": _later("table3", "detected"), "restoration": _later("table2", "restoration"), "table1": table1,
    "figure7": _later("figures", "figure7"), **{name: _later(name, name) for name in ("table2", "table3", "table4")},
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "times"])
    parser.add_argument("--item", nargs="+", default=[""], help="sets of faces (riddle.facesets), one after another")
    parser.add_argument("--judges", nargs="+", default=protocols.JUDGES, help="of the stage judged")
    for name in ("preset", "dataset", "detector", "device"):
        parser.add_argument(f"--{name}", default=getattr(Run, name))
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--limit", type=int, default=None, help="pairs of each kind a fold, or pictures")
    parser.add_argument("--workers", type=int, default=Run.workers, help="processes for detection")
    options = vars(parser.parse_args(argv))
    name, items, judges = (options.pop(k) for k in ("stage", "item", "judges"))
    run = Run(**options)
    if name == "times":
        print("\n".join(f"{seconds:8.1f} s  {kind}" for seconds, _, kind, _ in summary([run])))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    loaded: dict[str, Any] = {}
    for item in items:
        made = judged(run, item, judges, loaded) if name == "judged" else STAGES[name](run, item)
        for path in made if isinstance(made, list) else [made]:
            path.touch()  # Snakemake goes by times: found up to date counts as made now
            print(path)


if __name__ == "__main__":
    main()
