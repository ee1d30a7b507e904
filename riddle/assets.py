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
    copies: tuple[str, ...] = ()  # sha256 of other copies that serve as well
    page: str = ""  # where it lies, when nothing downloads it alone
    note: str = ""  # what to do by hand
    made_from: str = ""  # the asset that this one is converted from
    names: tuple[str, ...] = ()  # further names under which the file is published
    layout: str = ""  # how its tensors are named, of riddle.published; such a file is converted before its first use
    presets: tuple[str, ...] = ()  # that it gives a network to

    @property
    def files(self) -> tuple[str, ...]:
        """The names under which the file is published."""
        return (Path(self.path).name, *self.names)

    @property
    def address(self) -> str:
        """Where it lies: the first download, else a page."""
        return self.urls[0] if self.urls else self.page or self.source

    @property
    def by_hand(self) -> str:
        """How to get it by hand."""
        steps = f" ({self.note})" if self.note else ""
        return (
            f"get it from {self.address}{steps}, and import it (python -m riddle weights import FOLDER) or put it at "
            f"$RIDDLE_WEIGHTS/{self.path}"
        )


ASSETS = {
    name: Asset(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
    for name, entry in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
