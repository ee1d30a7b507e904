"""Where weights come from: bundled with the program, a folder of yours, the cache, a download.

    python -m riddle.zoo                    # what there is, and where
    python -m riddle.zoo irse50 inception   # fetch these

An asset is looked for in this order: a path given as its name, [assets] of the configuration file, data/zoo,
the folders of RIDDLE_WEIGHTS, the cache, its addresses. `riddle/assets.py` lists the assets.
"""

from __future__ import annotations

import glob
import hashlib
import http.client
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from . import config, downloads
from .assets import ASSETS, Asset

SHARED = "shared"  # metadata of a safetensors file: {file beside it: the tensors that it holds for both}, as JSON
SCALE = ".scale8"  # end of the name of an 8-bit matrix's scales, one a row


class WeightsMissingError(FileNotFoundError):
    """A network that is not on this machine: which one, why, and what to do."""

    def __init__(self, name: str, cause: str, remedy: str):
        super().__init__(f"{name}: {cause}; {remedy}")
        self.name, self.cause, self.remedy = name, cause, remedy

    def __reduce__(self):  # worker processes send it home
        return type(self), (self.name, self.cause, self.remedy)


def locate(name: str) -> Path | None:
    """The file of a named asset (or a path) on this machine, without a download; None when it is not here.

    Raises KeyError for a name that is neither an asset nor an existing file.
    """
    if name not in ASSETS:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise KeyError(f"{name!r} is neither a file nor a known network; known: {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    configured = config.named_path("assets", name)
    if configured is not None:
        if not configured.is_file():
            raise WeightsMissingError(
                name, f"{configured}, named in {config.config_file()}, does not exist", "correct [assets] there"
            )
        return configured
    places = [config.bundled_folder("zoo") / asset.path]
    for folder in config.weight_folders():
        places += [folder / asset.path, folder / asset.filename]
    places.append(config.cache_folder() / "weights" / asset.path)
    return next((p for p in places if p.is_file()), None)


def find(name: str) -> Path:
    """The file of a named asset, downloaded when it is not on this machine.

    Raises KeyError for an unknown name, WeightsMissingError when it cannot be had.
    """
    path = locate(name)
    if path is not None:
        return path
    asset = ASSETS[name]
    target = config.cache_folder() / "weights" / asset.path
    if asset.made_from:
        return _convert(asset, target)
    if not asset.urls:
        raise WeightsMissingError(name, "not on this machine, and not to be had by one download", _by_hand(asset))
    if config.offline():
        raise WeightsMissingError(name, "not on this machine, and RIDDLE_OFFLINE forbids the download", _by_hand(asset))
    return download(asset, target)


def _by_hand(asset: Asset) -> str:
    steps = f" ({asset.note})" if asset.note else ""
    source = f"get it from {asset.urls[0] if asset.urls else asset.source}{steps}"
    return f"{source} and put it at $RIDDLE_WEIGHTS/{asset.path}"


def _convert(asset: Asset, target: Path) -> Path:
    """Make an asset from upstream files of another format."""
    from . import ncnn

    weights, graph = (find(part) for part in asset.made_from)
    save_tensors(target, ncnn.mobilefacenet(weights, graph), {"source": asset.source}, dtype=torch.float32)
    return target


def download(asset: Asset, target: Path) -> Path:
    """Fetch an asset to `target`: resumed where it stopped, checked, and only then given its name.

    One process at a time; a second one waits and takes what the first fetched. A file of the wrong size or sha256 is
    deleted. Where the registry knows no sha256, that of the first download is recorded in the cache and later ones
    must equal it; until then a part that an earlier run left is not continued, since nothing could tell a mixture.
    Raises WeightsMissingError with the reason of each address.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with downloads.locked(_lock(asset.name), f"the download of {asset.name}"):
        if target.is_file():
            return target
        expected = asset.sha256 or _recorded(asset.name).get(asset.name)
        reasons = []
        for url in asset.urls:
            try:
                part = _fetch(asset, url, target, expected)
            except (OSError, http.client.HTTPException, ValueError) as e:
                reasons.append(f"{url}: {e}")
                continue
            if expected is None:
                _record(asset.name, sha256(part))
            os.replace(part, target)
            for left in target.parent.glob(f"{glob.escape(target.name)}*.part"):
                left.unlink()
            return target
    raise WeightsMissingError(asset.name, "download failed (" + "; ".join(reasons) + ")", _by_hand(asset))


def _fetch(asset: Asset, url: str, target: Path, expected: str | None) -> Path:
    """The checked part of one address; a part of an earlier run that proves wrong is fetched anew once."""
    part = downloads.part_path(target, url)
    if expected is None:
        part.unlink(missing_ok=True)
    while True:
        resumed = part.exists()
        try:
            downloads.fetch(url, part, asset.name, asset.size)
            _check(part, asset.size, expected)
        except downloads.WrongFileError:
            part.unlink(missing_ok=True)
            if not resumed:
                raise
        else:
            return part


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check(part: Path, size: int | None, expected: str | None) -> None:
    """Size in bytes and sha256 (or its beginning) of a finished download. Raises WrongFileError."""
    have = part.stat().st_size
    if size is not None and have != size:
        raise downloads.WrongFileError(f"{have} bytes, not {size}")
    if expected is not None and not (digest := sha256(part)).startswith(expected):
        raise downloads.WrongFileError(f"sha256 {digest}, not {expected}")


def _lock(name: str) -> Path:
    return config.cache_folder() / "locks" / f"{name}.lock"


def _recorded(name: str) -> dict[str, str]:
    """The sha256 of first downloads. Raises WeightsMissingError, of asset `name`, when the file is damaged."""
    path = config.cache_folder() / "weights" / "recorded.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not all(isinstance(v, str) and len(v) == 64 for v in known.values()):
            raise ValueError("it is no table of sha256")
    except FileNotFoundError:
        return {}
    except ValueError as e:
        remedy = "restore it, or remove it: then the next downloads are trusted and recorded anew"
        raise WeightsMissingError(
            name, f"{path}, which holds the sha256 of earlier downloads, is damaged ({e})", remedy
        ) from e
    return known


def _record(name: str, digest: str) -> None:
    with downloads.locked(_lock("recorded"), "the list of downloads"):
        known = _recorded(name) | {name: digest}
        write_text(config.cache_folder() / "weights" / "recorded.json", json.dumps(known, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text file by a temporary name, so that a reader never sees half of it."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tmp.write_text(text, encoding="utf-8")
    os.replace(tmp, path)


# ---- bundled weights


def bundled(preset: str, part: str) -> Path:
    """data/zoo/<preset>/<part>.safetensors. Raises WeightsMissingError."""
    path = config.bundled_folder("zoo") / preset / f"{part}.safetensors"
    if path.is_file():
        return path
    raise WeightsMissingError(
        f"{preset}/{part}",
        f"{path} does not exist",
        f"train it (python -m riddle.training.*, --preset {preset}) or pass weights= (--weights)",
    )


def bundled_metadata(preset: str, part: str) -> dict[str, str]:
    """What made a bundled file, as its metadata tell; empty where it is not bundled."""
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
    """Write tensors as safetensors, floating ones in `dtype`; by a temporary name, then renamed.

    exact: beginnings of the names that keep float32. So does a tensor that `dtype` cannot hold (beyond 65504 in
    float16). coarse: beginnings of the names whose matrices take 8 bits a number, with one scale a row.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(packed, tmp, metadata={k: str(v) for k, v in (metadata or {}).items()})
    os.replace(tmp, path)


def load_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, floating and 8-bit ones in float32, and those that it shares with a file
    beside it (`SHARED`). Raises ValueError for a damaged file, WeightsMissingError without the file beside it."""
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (safe_open is no dict)
            shared = json.loads((f.metadata() or {}).get(SHARED, "{}"))
    except FileNotFoundError:
        raise
    except Exception as e:  # safetensors' own error derives from Exception directly
        raise ValueError(f"{path} is no readable safetensors file ({e}); fetch it again") from e
    for name, keys in shared.items():
        beside = Path(path).parent / Path(name).name
        if not beside.is_file():
            raise WeightsMissingError(Path(path).stem, f"{path} shares tensors with {name}", f"put {name} beside it")
        with safe_open(beside, framework="pt") as f:
            tensors |= {key: f.get_tensor(key) for key in keys}
    for key in [k for k in tensors if k.endswith(SCALE)]:
        scale, name = tensors.pop(key), key.removesuffix(SCALE)
        tensors[name] = tensors[name] * scale.view(-1, *[1] * (tensors[name].ndim - 1))
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def load_metadata(path: Path | str) -> dict[str, str]:
    """The text entries that `save_tensors` stored."""
    with safe_open(path, framework="pt") as f:
        return dict(f.metadata() or {})


# ---- LPIPS


def lpips_ready(net: str = "squeeze") -> Path:
    """Point torch's hub at the folder with the backbone that LPIPS needs; returns the hub folder.

    Source: Zhang et al., 2018; the package `lpips` carries the linear layers, torchvision's file the backbone.
    Raises WeightsMissingError.
    """
    backbone = find({"squeeze": "squeezenet1_1", "alex": "alexnet", "vgg": "vgg16"}[net])
    hub = backbone.parent.parent  # <hub>/checkpoints/<file>, torchvision's own layout
    torch.hub.set_dir(str(hub))
    return hub


def load_lpips(net: str = "squeeze", device: torch.device | str = "cpu") -> torch.nn.Module:
    """LPIPS, frozen, in eval mode: (N, 3, R, R) x 2 in [-1, 1] -> (N, 1, 1, 1).

    Raises WeightsMissingError when the backbone cannot be had.
    """
    before = torch.hub.get_dir()
    lpips_ready(net)
    try:
        import lpips

        with warnings.catch_warnings():  # lpips asks torchvision by an argument that torchvision deprecates
            warnings.simplefilter("ignore", UserWarning)
            model = lpips.LPIPS(net=net, verbose=False)
    finally:
        torch.hub.set_dir(before)
    return model.eval().requires_grad_(False).to(device)


def main(names: list[str]) -> int:
    """List the assets, or fetch those named; the terms of what is fetched come first. Returns an exit code."""
    failed = 0
    for name in names or sorted(ASSETS):
        asset = ASSETS.get(name)
        terms = f"  [{asset.licence}]" if asset else ""
        try:
            path = locate(name)
            if names and path is None:
                print(f"{name}: fetching it; its terms: {asset.licence}; source: {asset.source}", flush=True)
                path = find(name)
            print(f"{name:24} {path or 'absent'}{terms}")
        except (KeyError, OSError, ValueError) as e:
            failed = 1
            print(f"riddle: {e.args[0] if isinstance(e, KeyError) else e}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
