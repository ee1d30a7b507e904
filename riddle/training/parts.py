"""A run's state.pt in numbered parts of at most 16 MiB, and back: for places that take no larger file.

A set of parts is complete when its manifest is there: the parts are written first, under names of their own, the
manifest replaces the one before in one rename, and only then the older parts go. So a stopped writer leaves the
previous set, never half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

LIMIT = 16 * 2**20  # bytes of a part
MANIFEST = "parts.json"


class PartsError(ValueError):
    """Parts that do not make a state: which one, why, what to do."""


def split_state(path: Path | str, folder: Path | str, limit: int = LIMIT, about: dict | None = None) -> list[Path]:
    """Cut a file into parts of at most `limit` bytes in `folder`; returns them in order.

    about: further entries of the manifest. Older parts in the folder are removed once the new ones stand.
    """
    path, folder = Path(path), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    parts = []
    for number, low in enumerate(range(0, max(len(data), 1), limit)):
        piece = data[low : low + limit]
        target = folder / f"state-{digest[:8]}-{number:03d}.part"  # named by what they hold: sets never mix
        _write(target, piece)
        parts.append({"name": target.name, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    manifest = {**(about or {}), "file": path.name, "bytes": len(data), "sha256": digest, "parts": parts}
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    kept = {part["name"] for part in parts}
    for old in folder.glob("state-*.part"):
        if old.name not in kept:
            old.unlink()
    return [folder / part["name"] for part in parts]


def join_state(folder: Path | str, path: Path | str) -> dict:
    """Put the parts of a folder together as `path`, by a temporary name; returns the manifest.

    Raises FileNotFoundError without a manifest, PartsError for a missing, cut or altered part; `path` then stays
    as it was.
    """
    folder, path = Path(folder), Path(path)
    listed = folder / MANIFEST
    if not listed.is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: no complete set of parts; copy it with the parts")
    try:
        manifest = json.loads(listed.read_text())
        parts, wanted = manifest["parts"], manifest["sha256"]
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise PartsError(f"{listed} is no manifest of parts ({e!r}); copy it again") from e
    pieces = []
    for part in parts:
        piece = folder / Path(part["name"]).name
        if not piece.is_file():
            raise PartsError(f"{piece} is missing, one of {len(parts)} parts; copy it again")
        data = piece.read_bytes()
        if len(data) != part["bytes"]:
            raise PartsError(f"{piece} has {len(data)} bytes, not {part['bytes']}: cut short; copy it again")
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise PartsError(f"{piece} is damaged: its hash is not that of {MANIFEST}; copy it again")
        pieces.append(data)
    whole = b"".join(pieces)
    if hashlib.sha256(whole).hexdigest() != wanted:
        raise PartsError(f"the parts in {folder} do not make the file that {MANIFEST} tells; copy them again")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, whole)
    return manifest


def _write(path: Path, data: bytes) -> None:
    """Write a file by a temporary name, then rename."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tmp.write_bytes(data)
    os.replace(tmp, path)


def slim(state: dict) -> dict:
    """A smaller state.pt to carry: averages and moments of the optimisers in bfloat16, equal tensors stored once.

    state: what `riddle.training.loop.run` saves. The networks that learn stay as they are, so training goes on from
    the same point; what the roundings of the rest change is less than a step does. Loading needs nothing special:
    PyTorch copies into float32.
    """
    seen: dict[tuple, torch.Tensor] = {}

    def once(x: torch.Tensor) -> torch.Tensor:
        key = (x.dtype, tuple(x.shape), hashlib.sha256(x.contiguous().flatten().view(torch.uint8).numpy()).digest())
        return seen.setdefault(key, x)

    def walk(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
        if isinstance(value, torch.Tensor):
            return change(value.detach().cpu())
        if isinstance(value, dict):
            return {k: walk(v, change) for k, v in value.items()}
        return [walk(v, change) for v in value] if isinstance(value, list) else value

    def narrow(x: torch.Tensor) -> torch.Tensor:
        return once(x.bfloat16() if x.dtype == torch.float32 and x.numel() > 1 else x)

    def average(name: str, network: dict) -> dict:
        learner = state["networks"].get(name.removesuffix("_ema"))
        if learner is None or learner is network:
            return walk(network, once)
        same = {k for k, v in network.items() if k in learner and torch.equal(v, learner[k])}
        return {k: walk(v, once if k in same else narrow) for k, v in network.items()}

    return {
        **state,
        "networks": {k: average(k, v) for k, v in state["networks"].items()},
        "optimisers": walk(state["optimisers"], narrow),
    }
