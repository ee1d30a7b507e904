"""What this machine has and what it lacks: packages, weights, networks of others, data sets.

The modules that need torch are imported where they are used: without torch the rest is still told.
"""

from __future__ import annotations

import platform
import re
import tomllib
import warnings
from collections.abc import Callable
from importlib.metadata import requires, version
from typing import Any

from riddle import __version__, config
from riddle.assets import ASSETS

Item = dict[str, Any]  # name; here; detail: its version or place, else why it is not here; needed; use or terms


def examine(preset: str = "mobile") -> dict[str, list[Item]]:
    """What was found, by sections; nothing is downloaded. Photos can be protected where all `needed` items are here."""
    found = {
        "system": [
            _item("riddle", lambda: __version__),
            _item("python", platform.python_version),
            _item("accelerator", _accelerator),
        ],
        "packages": [_item(name, lambda name=name: version(name)) for name in _declared()],
        "weights": [_item("photos", lambda: _tried(preset), needed=True)],
    }
    try:
        from riddle import data, weights
    except ImportError:  # the item "photos" says which
        return found
    bundled = sorted((config.bundled_folder("zoo") / preset).glob("*.safetensors"))
    found["weights"] += [_item(wheel, lambda wheel=wheel: version(wheel)) for wheel in (weights.WHEEL, weights.BODY)]
    found["weights"] += [_item(f"{preset}/{path.stem}", lambda path=path: path) for path in bundled]
    sets = [_item(key, lambda key=key: data.locate(key)) for key in data.SOURCES]
    return found | {"networks": networks(), "data": sets}


def networks() -> list[Item]:
    """The networks of others, by name; `use` is their terms."""
    from riddle import weights

    return [_item(n, lambda n=n: weights.locate(n) or _absent(n), use=ASSETS[n].licence) for n in sorted(ASSETS)]


def _item(name: str, find: Callable[[], Any], needed: bool = False, use: str = "") -> Item:
    """What `find` gives, or the message of what it raises, which says what to do."""
    try:
        detail, here = str(find()), True
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
    """Load all that protecting a photo needs, and search an empty picture: what is installed may still be broken."""
    from PIL import Image

    import riddle
    from riddle.app import photos

    with warnings.catch_warnings(action="ignore"):  # smoke says that it is untrained
        model = riddle.load(preset)
    photos.find_all(Image.new("RGB", (64, 64)), model.detector)
    return f"preset {preset} and the detectors load; generator and encryptor {model.weights_hash[:12]}"


def _absent(name: str) -> None:
    asset = ASSETS[name]
    if asset.urls or asset.made_from:
        raise LookupError(f"absent: download, from {asset.source}: python -m riddle weights {name} --download")
    raise LookupError(f"absent: by hand, from {asset.source}: {asset.note or 'see its page'}")
