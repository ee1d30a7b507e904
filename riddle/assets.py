"""The networks of others that are not part of this program; `assets.toml` lists them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """One file of weights."""

    name: str
    path: str  # relative to a folder of RIDDLE_WEIGHTS, to data/zoo and to the cache
    licence: str
    source: str  # upstream project
    urls: tuple[str, ...] = ()  # tried in order
    size: int | None = None  # bytes
    sha256: str | None = None
    note: str = ""  # what to do by hand
    made_from: str = ""  # the asset that this one is converted from


ASSETS = {
    name: Asset(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
    for name, entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
