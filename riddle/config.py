"""Where things lie: the checkout, data, weights, caches; from the environment or a small file.

RIDDLE_DATA      folders of data sets (several: separated as in PATH)
RIDDLE_WEIGHTS   folders of networks
RIDDLE_HOME      folder that holds data/ and results/; default: the checkout, else the working directory
RIDDLE_CACHE     downloads; default: the user's cache folder
RIDDLE_OFFLINE   1: never download
RIDDLE_CONFIG    the file; default: config.toml in the user's configuration folder of riddle:

data = "/disk/faces"
weights = ["/disk/networks"]
[datasets]
lfw = "/disk/lfw.tar"
[assets]
irse50 = "/disk/model_ir_se50.pth"
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import platformdirs


def _named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None


def config_file() -> Path:
    """The configuration file, which need not exist."""
    return _named("RIDDLE_CONFIG") or platformdirs.user_config_path("riddle") / "config.toml"


def settings() -> dict:
    """The configuration file's content; empty without one. Raises ValueError for a file that is no TOML."""
    path = config_file()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is no valid TOML ({e}); correct it or remove it") from e


def named_path(section: str, name: str) -> Path | None:
    """`name` under [section] of the configuration file, as a path. Raises ValueError where it has another form."""
    table = settings().get(section, {})
    value = table.get(name) if isinstance(table, dict) else table
    if value is not None and not (isinstance(table, dict) and isinstance(value, str)):
        raise ValueError(f'{config_file()}: write [{section}] and below it {name} = "/a/path"')
    return Path(value).expanduser() if value else None


def _folders(variable: str, key: str) -> list[Path]:
    if value := os.environ.get(variable):
        listed = value.split(os.pathsep)
    else:
        entry = settings().get(key, [])
        listed = [entry] if isinstance(entry, str) else entry
        if not isinstance(listed, list) or not all(isinstance(p, str) for p in listed):
            raise ValueError(f'{config_file()}: {key} is no list of folders; write {key} = ["/a/folder"]')
    return [Path(p).expanduser() for p in listed if p]


def data_folders() -> list[Path]:
    """Where data sets are looked for, in order; ends with the checkout's data/."""
    return [*_folders("RIDDLE_DATA", "data"), home() / "data"]


def weight_folders() -> list[Path]:
    """Where networks are looked for, in order."""
    return _folders("RIDDLE_WEIGHTS", "weights")


def checkout() -> Path | None:
    """The repository this package runs from; None when it was installed from a wheel."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def home() -> Path:
    """The folder that holds data/ and results/."""
    return _named("RIDDLE_HOME") or checkout() or Path.cwd()


def bundled_folder(kind: str) -> Path:
    """data/zoo or data/samples (`kind`), which travel with the program."""
    folder, installed = home() / "data" / kind, Path(__file__).resolve().parent / "bundled" / kind
    return installed if installed.is_dir() and not folder.is_dir() else folder


def cache_folder() -> Path:
    """Downloads of this user."""
    return _named("RIDDLE_CACHE") or platformdirs.user_cache_path("riddle")


def offline() -> bool:
    """True when RIDDLE_OFFLINE forbids downloads."""
    return os.environ.get("RIDDLE_OFFLINE", "0") not in ("", "0")
