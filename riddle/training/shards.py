"""Aligned training faces as compact tar shards, to carry to a training machine; and back into one array there.

    python -m riddle.training.shards --preset face128 --split train --out results/runs/shards128
    python -m riddle.training.shards unpack results/runs/shards128 --out train128.npy

The faces are those of `riddle.training.prepare faces`: UTKFace and CelebAMask-HQ of the split and, for training, OMI.
They are shuffled once by a fixed seed, so that a few shards are a fair sample of all. A shard is an uncompressed tar in
WebDataset's naming (a key, a suffix) of at most 15 MiB; its first member, `__index__`, is JSON: what made it, how many
faces, a hash. Making resumes: a finished shard is kept. Unpacking needs NumPy and Pillow, no detector and no data set.
The faces show real people: shards stay out of the repository and under their data sets' terms (data/README.md).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from riddle.presets import Preset, get
from riddle.progress import track

LIMIT = 15 * 2**20  # bytes of a shard
QUALITY = 93  # of WebP at 128 px: 5 KB a face in the tar, 42 dB; 85: 3.3 KB, 38.6 dB
SEED = 0  # of the order
INDEX = "__index__"  # WebDataset's readers pass over names of this form
VERSION = 1  # raise it when a change here alters what a shard holds
_BLOCK, _RECORD = 512, 10_240  # a tar's headers and padding, and its end
_WINDOW = 256  # faces encoded at a time

Paths = Path | str | Iterable[Path | str]  # shards, or folders of them


class ShardError(ValueError):
    """A shard that cannot be used: which file, why, what to do."""


@dataclass(frozen=True)
class Item:
    """One photo's face before it is cropped."""

    source: str  # short name of its data set
    images: object  # riddle.photos.Images
    name: str
    points: np.ndarray  # (5, 2) px of the photo


def listing(preset: Preset, split: str, limit: int | None = None, workers: int = 2) -> tuple[list[Item], dict]:
    """The faces of a split in their fixed random order, and {source: split hash}.

    Detects faces where that was not done before. Raises DatasetMissingError when no set is found.
    """
    from riddle.datasets import DatasetMissingError, aligned, load

    wanted = [("utkface", split), ("celebamask_hq", split)] + ([("omi", "all")] if split == "train" else [])
    small = replace(preset, name=f"{preset.name}-points", resolution=8)  # only the points are wanted here
    items, hashes, missing = [], {}, []
    for source, part in wanted:
        try:
            images = load(source, part)
        except DatasetMissingError as e:
            missing.append(str(e))
            print(f"{source} ({part}): left out: {e}")
            continue
        found = aligned(images, small, workers=workers)
        hashes[source] = images.split_hash
        items += [Item(source, images, n, p) for n, p in zip(found.names, found.points, strict=True)]
        print(f"{source} ({part}): {len(found)} faces, {len(found.missing)} photos without one")
    if not items:
        raise DatasetMissingError("no training set was found:\n" + "\n".join(missing))
    order = np.random.default_rng(SEED).permutation(len(items))[:limit]
    return [items[i] for i in order], hashes


def crop_item(item: Item, preset: Preset) -> np.ndarray:
    """The aligned face of one item, uint8 (R, R, 3). Raises ValueError for a photo that cannot be read."""
    from riddle.faces.alignment import crop, framing_matrix

    photo = item.images.image(item.name)
    return np.asarray(crop(photo, framing_matrix(item.points, preset.framing), preset.resolution))


def encode(face: np.ndarray, quality: int, form: str = "webp") -> bytes:
    """uint8 (R, R, 3) -> WebP or JPEG ("webp", "jpg")."""
    out = io.BytesIO()
    options = {"method": 4} if form == "webp" else {"optimize": True}
    Image.fromarray(face).save(out, {"webp": "WEBP", "jpg": "JPEG"}[form], quality=quality, **options)
    return out.getvalue()


def _padded(size: int) -> int:
    """Bytes that a member takes in a tar."""
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def write_shard(path: Path, about: dict, members: Sequence[tuple[str, bytes]]) -> None:
    """Write a shard by a temporary name, then rename: `about` becomes its index, with count and hash."""
    digest = hashlib.sha256(b"".join(data for _, data in members)).hexdigest()
    index = json.dumps({**about, "count": len(members), "sha256": digest}, indent=1).encode()
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with tarfile.open(tmp, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in [(INDEX, index), *members]:
            entry = tarfile.TarInfo(name)  # no owner, no date: the same faces give the same bytes
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    os.replace(tmp, path)


def make(
    preset: Preset,
    split: str,
    out: Path,
    items: Sequence[Item],
    hashes: dict[str, str],
    quality: int = QUALITY,
    form: str = "webp",
    limit: int = LIMIT,
    workers: int = 2,
) -> list[Path]:
    """Write the shards of `items` into `out`; those already there are kept. Returns all of them in order.

    limit: bytes of a shard; workers: threads. Raises ShardError when `out` holds shards of another set.
    """
    made_from = {
        "version": VERSION, "preset": preset.name, "resolution": preset.resolution, "framing": preset.framing,
        "split": split, "format": form, "quality": quality, "seed": SEED, "limit": limit, "total": len(items),
        "split_hashes": hashes,
    }  # fmt: skip
    listed = "\n".join(f"{i.source} {i.name} {np.round(i.points, 2).tolist()}" for i in items)
    key = hashlib.sha256((json.dumps(made_from, sort_keys=True) + listed).encode()).hexdigest()[:16]
    out.mkdir(parents=True, exist_ok=True)
    there = {}
    for path in sorted(out.glob("*.tar")):
        index = read_index(path)
        if index["key"] != key:
            raise ShardError(
                f"{path} belongs to another set ({index['preset']}, {index['split']}, quality {index['quality']}, "
                f"{index['total']} faces); choose another --out, or remove the shards there"
            )
        there[index["start"]] = (path, index["stop"])
    paths, start = [], 0
    with (
        ThreadPoolExecutor(workers) as pool,
        track(None, f"{preset.name} {split}", len(items), "face") as bar,
    ):
        while start < len(items):
            path = out / f"{preset.name}-{split}-{len(paths):06d}.tar"
            if start in there:
                path, stop = there[start]
            else:
                end = min([s for s in there if s > start], default=len(items))
                about = {**made_from, "key": key, "start": start}
                stop = _fill(path, about, items[start:end], preset, pool)
            bar.update(stop - start)
            paths.append(path)
            start = stop
    return paths


def _fill(path: Path, about: dict, items: Sequence[Item], preset: Preset, pool: ThreadPoolExecutor) -> int:
    """Write one shard of as many of `items` as it holds; returns the position after its last."""
    members, sources, start = [], Counter(), about["start"]
    size = 2 * _RECORD + _padded(4096)  # the index and the end
    for low in range(0, len(items), _WINDOW):
        window = items[low : low + _WINDOW]
        encoded = pool.map(lambda i: encode(crop_item(i, preset), about["quality"], about["format"]), window)
        for item, data in zip(window, encoded, strict=True):
            size += _padded(len(data))
            if size > about["limit"] and members:
                break
            members.append((f"{start + len(members):08d}.{about['format']}", data))
            sources[item.source] += 1
        if size > about["limit"]:
            break
    stop = start + len(members)
    write_shard(path, {**about, "stop": stop, "sources": dict(sources)}, members)
    return stop


def read_index(path: Path | str) -> dict:
    """The index of a shard. Raises ShardError for a file that is none, FileNotFoundError."""
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            if first is None or first.name != INDEX:
                raise ShardError(f"{path} has no index as its first member; make it by riddle.training.shards")
            return json.loads(archive.extractfile(first).read())
    except (tarfile.ReadError, EOFError, json.JSONDecodeError) as e:
        raise ShardError(f"{path} is no readable shard ({e}); copy or make it again") from e


def _find(paths: Paths) -> list[Path]:
    """Tars as given, and those of folders; sorted."""
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found = [q for p in map(Path, given) for q in (sorted(p.glob("*.tar")) if p.is_dir() else [p])]
    if not found or not all(p.is_file() for p in found):
        raise ShardError(f"{', '.join(map(str, given))}: no shard (*.tar) there; make them by riddle.training.shards")
    return found


def indices(paths: Paths, preset: Preset | str | None = None, partial: bool = False) -> list[tuple[Path, dict]]:
    """Shards in the order of their faces, with their indices, checked against each other.

    paths: shards or folders of them. Raises ShardError for shards of different resolutions or framings, of another
    preset than `preset`, and, unless `partial`, when some of a set are missing.
    """
    shards = [(p, read_index(p)) for p in _find(paths)]
    shards.sort(key=lambda s: (s[1]["key"], s[1]["start"]))
    wanted = get(preset) if preset is not None else None
    first_path, first = shards[0]
    for path, index in shards:
        shape = (index["resolution"], index["framing"])
        if wanted is not None and shape != (wanted.resolution, wanted.framing):
            raise ShardError(
                f"{path} holds faces of {shape[0]} px, {shape[1]} framing (preset {index['preset']}); preset "
                f"{wanted.name} wants {wanted.resolution} px, {wanted.framing}: make its own shards"
            )
        if shape != (first["resolution"], first["framing"]):
            raise ShardError(
                f"{path} holds faces of {shape[0]} px, {shape[1]} framing, {first_path} of {first['resolution']} px, "
                f"{first['framing']}: read them apart"
            )
    for key in dict.fromkeys(index["key"] for _, index in shards):
        _check_order([s for s in shards if s[1]["key"] == key], partial)
    return shards


def _check_order(shards: Sequence[tuple[Path, dict]], partial: bool) -> None:
    """The sorted shards of one set: each once, and all of them unless `partial`. Raises ShardError."""
    position, total = 0, shards[0][1]["total"]
    for path, index in shards:
        if index["start"] < position:
            raise ShardError(f"{path} repeats faces of another shard; give each shard once")
        if index["start"] > position and not partial:
            raise ShardError(f"faces {position} to {index['start']} before {path} are missing; add that shard")
        position = index["stop"]
    if position < total and not partial:
        raise ShardError(f"{shards[-1][0]} is not the last shard: {position} of {total} faces; add the others")


def read_shard(path: Path, workers: int = 4) -> np.ndarray:
    """The faces of one shard, uint8 (n, R, R, 3). Raises ShardError for a truncated or damaged one."""
    index, digest, encoded = read_index(path), hashlib.sha256(), []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.name != INDEX:
                    encoded.append((member.name, archive.extractfile(member).read()))
                    digest.update(encoded[-1][1])
    except (tarfile.ReadError, EOFError) as e:
        raise ShardError(
            f"{path} is cut short after {len(encoded)} of {index['count']} faces ({e}); copy it again"
        ) from e
    if len(encoded) != index["count"]:
        raise ShardError(f"{path} holds {len(encoded)} of the {index['count']} faces its index tells; copy it again")
    if digest.hexdigest() != index["sha256"]:
        raise ShardError(f"{path} is damaged: its faces do not have the hash of its index; copy it again")
    side = index["resolution"]
    out = np.empty((len(encoded), side, side, 3), np.uint8)

    def decode(row: int) -> None:
        name, data = encoded[row]
        try:
            image = Image.open(io.BytesIO(data), formats=("WEBP", "JPEG"))
            if image.size != (side, side):
                raise ShardError(f"{path}: {name} is {image.size[0]} x {image.size[1]} px, its index says {side}")
            out[row] = np.asarray(image.convert("RGB"))
        except OSError as e:
            raise ShardError(f"{path}: {name} is no readable picture ({e}); make the shard again") from e

    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside the interpreter's lock
        for _ in pool.map(decode, range(len(encoded))):
            pass
    return out


def read(paths: Paths, preset: Preset | str | None = None, workers: int = 4, partial: bool = False) -> np.ndarray:
    """All faces of shards, or of folders of them: uint8 (N, R, R, 3) in the set's order.

    preset: what they must have been made for. Raises ShardError: truncated, damaged, missing or repeated shards,
    mixed resolutions, another preset.
    """
    return np.concatenate([read_shard(path, workers) for path, _ in indices(paths, preset, partial)])


def unpack(
    paths: Paths,
    out: Path,
    preset: Preset | str | None = None,
    workers: int = 4,
    partial: bool = False,
) -> tuple[int, ...]:
    """Write all faces of shards as one .npy, a shard at a time in memory; returns its shape. Errors of `read`."""
    shards = indices(paths, preset, partial)
    shape = (sum(i["count"] for _, i in shards), *[shards[0][1]["resolution"]] * 2, 3)
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        target, row = np.lib.format.open_memmap(tmp, "w+", np.uint8, shape), 0
        for path, _ in track(shards, "unpack", unit="shard"):
            faces = read_shard(path, workers)
            target[row : row + len(faces)] = faces
            row += len(faces)
        target.flush()
        os.replace(tmp, out)
    finally:
        tmp.unlink(missing_ok=True)
    return shape


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    argv = sys.argv[1:] if argv is None else argv
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = max(1, os.cpu_count() or 1)
    if argv[:1] == ["unpack"]:
        p.add_argument("shards", nargs="+", type=Path, help="shards, or folders of them")
        p.add_argument("--out", type=Path, required=True, help=".npy to write")
        p.add_argument("--preset", help="refuse shards of another resolution or framing")
        p.add_argument("--partial", action="store_true", help="take the shards at hand although some are missing")
        p.add_argument("--workers", type=int, default=cores)
        a = p.parse_args(argv[1:])
        try:
            print(f"{a.out}: {unpack(a.shards, a.out, a.preset, a.workers, a.partial)} uint8")
        except ShardError as e:
            p.error(str(e))
        return
    p.add_argument("--preset", default="face128")
    p.add_argument("--split", default="train", choices=("train", "val", "test"))
    p.add_argument("--out", type=Path, required=True, help="folder of the shards")
    p.add_argument("--limit", type=int, help="so many faces at most; default: all")
    p.add_argument("--quality", type=int, default=QUALITY, help="1 to 100")
    p.add_argument("--format", default="webp", choices=("webp", "jpg"))
    p.add_argument("--workers", type=int, default=cores)
    a = p.parse_args(argv)
    preset = get(a.preset)
    items, hashes = listing(preset, a.split, a.limit, a.workers)
    try:
        paths = make(preset, a.split, a.out, items, hashes, a.quality, a.format, workers=a.workers)
    except ShardError as e:
        p.error(str(e))
    size = sum(path.stat().st_size for path in paths)
    each = f"{size / 2**20:.1f} MiB, {size / len(items):.0f} bytes a face"
    print(f"{a.out}: {len(items)} faces in {len(paths)} shards, {each}")


if __name__ == "__main__":
    main()
