"""What this machine has and what it lacks: packages, weights, networks of others, data sets.

python -m riddle doctor
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tomllib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

import riddle
from riddle import assets, config, data, weights
from riddle.faces.detection import find_all

Item = dict[str, Any]  # name; here; detail: its version or place, else why it is not here; needed; use or terms


def examine(preset: str = "mobile") -> dict[str, list[Item]]:
    """What was found, by sections; nothing is downloaded. Photos can be protected where all `needed` items are here."""
    own = sorted((config.bundled_folder("zoo") / preset).glob("*.safetensors"))
    return {
        "system": [
            _item("python", platform.python_version),
            _item("accelerator", _accelerator),
            _item("configuration", lambda: config.settings() and config.config_file() or "none", needed=True),
        ],
        "packages": [_item(name, lambda name=name: _version(name)) for name in _declared()],
        "weights": [
            _item("photos", lambda: _tried(preset), needed=True),
            *(_item(f"{preset}/{path.stem}", lambda path=path: path) for path in own),
        ],
        "networks": [_network(assets.ASSETS[name]) for name in sorted(assets.ASSETS)],
        "data": [_item(key, lambda key=key: data.locate(key)) for key in data.SOURCES],
    }


def _item(name: str, find: Callable[[], Any], needed: bool = False, use: str = "") -> Item:
    """What `find` gives, or the message of what it raises, which says what to do."""
    try:
        detail, here = str(find()), True
    except Exception as e:  # a broken installation fails in its own ways
        detail, here = str(e).removeprefix(f"{name}: ") or type(e).__name__, False
    return {"name": name, "here": here, "detail": detail, "needed": needed, "use": use}


def _accelerator() -> torch.device:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        raise LookupError(f"none; the CPU is used, {torch.get_num_threads()} threads")
    return device


def _declared() -> list[str]:
    """The packages that this one depends on, and the wheels of weights."""
    root = config.checkout()
    if root is not None:
        lines = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires("riddle-faces") or () if "extra ==" not in line]
    return [re.match(r"[\w.-]+", line)[0] for line in lines] + [weights.WHEEL, weights.BODY]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise LookupError(f"not installed: pip install {package}") from None


def _tried(preset: str) -> str:
    """Load all that protecting a photo needs, and search an empty picture: what is installed may still be broken."""
    from riddle.app import photos  # noqa: F401

    with warnings.catch_warnings(action="ignore"):  # smoke says that it is untrained
        model = riddle.load(preset)
    find_all(Image.new("RGB", (64, 64)), model.detector)
    return f"preset {preset} and the detectors load; generator and encryptor {model.weights_hash[:12]}"


def _network(asset: assets.Asset) -> Item:
    def find() -> Any:
        path = weights.locate(asset.name)
        if path is None:
            way = "download" if asset.urls or asset.made_from else "by hand"
            raise LookupError(f"absent: {way}, from {asset.source}: python -m riddle.weights {asset.name}")
        return path

    return _item(asset.name, find, use=asset.licence)
