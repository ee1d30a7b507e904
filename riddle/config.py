"""Places of the checkout, data, weights and caches. The environment sets them:

RIDDLE_DATA      folders of data sets (several: separated as in PATH)
RIDDLE_WEIGHTS   folders of networks (the same)
RIDDLE_HOME      folder that holds data/ and results/; default: the checkout, else the working directory
RIDDLE_CACHE     downloads; default: the user's cache folder
RIDDLE_OFFLINE   1: never download
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def _folders(variable: str) -> list[Path]:
    return [Path(p).expanduser() for p in os.environ.get(variable, "").split(os.pathsep) if p]


def data_folders() -> list[Path]:
    """The folders searched for data sets, in order; the last is the checkout's data/."""
    return [*_folders("RIDDLE_DATA"), home() / "data"]


def weight_folders() -> list[Path]:
    """The folders searched for networks, in order."""
    return _folders("RIDDLE_WEIGHTS")


def checkout() -> Path | None:
    """The repository this package runs from; None when it was installed from a wheel."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def home() -> Path:
    """The folder that holds data/ and results/."""
    named = os.environ.get("RIDDLE_HOME")
    return Path(named).expanduser() if named else checkout() or Path.cwd()


def results(preset: str) -> Path:
    """The folder of a preset's results; git ignores that of the untrained smoke preset."""
    return home() / "results" / ("runs" if preset == "smoke" else "") / preset


def bundled_folder(kind: str) -> Path:
    """data/zoo or data/samples (`kind`), which travel with the program."""
    folder, installed = home() / "data" / kind, Path(__file__).resolve().parent / "bundled" / kind
    return installed if installed.is_dir() and not folder.is_dir() else folder


def cache_folder() -> Path:
    """Downloads of this user."""
    named = os.environ.get("RIDDLE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("riddle")


def offline() -> bool:
    """True when RIDDLE_OFFLINE forbids downloads."""
    return os.environ.get("RIDDLE_OFFLINE", "0") not in ("", "0")
