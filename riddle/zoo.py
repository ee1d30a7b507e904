"""Where weights come from: bundled with the program, a folder of yours, the cache, a download.

    python -m riddle.zoo                    # what there is, and where
    python -m riddle.zoo irse50 inception   # fetch these

An asset is looked for in this order: a path given as its name, [assets] of the configuration file, data/zoo,
the folders of RIDDLE_WEIGHTS, the cache, its addresses. `riddle/assets.py` lists the assets.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from . import config
from .assets import ASSETS, Asset

_ATTEMPTS = 3  # a dropped connection is resumed this often before we give up on an address
_CHUNK = 1 << 20


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

    A file of the wrong size or sha256 is deleted. Where the registry knows no sha256, that of the first
    download is recorded in the cache and later ones must equal it.
    Raises WeightsMissingError with the reason of each address.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    reasons = []
    for url in asset.urls:
        try:
            _fetch(url, part, asset)
            _check(part, asset)
        except (OSError, http.client.HTTPException, ValueError) as e:
            if isinstance(e, (ValueError, urllib.error.HTTPError)):
                part.unlink(missing_ok=True)  # wrong bytes; what a dropped connection left is kept for next time
            reasons.append(f"{url}: {e}")
        else:
            os.replace(part, target)
            return target
    raise WeightsMissingError(asset.name, "download failed (" + "; ".join(reasons) + ")", _by_hand(asset))


def _fetch(url: str, part: Path, asset: Asset) -> None:
    """Append what is missing of `part`; tries again when the connection drops."""
    for attempt in range(_ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        if asset.size is not None and have == asset.size:
            return
        if asset.size is not None and have > asset.size:
            part.unlink()
            have = 0
        request = urllib.request.Request(url, headers={"User-Agent": "riddle"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                if reply.headers.get_content_type() == "text/html":
                    raise ValueError("the address answered with a web page, not with the file")
                resumed = reply.status == 206
                length = reply.headers.get("Content-Length")
                total = int(length) + (have if resumed else 0) if length else None
                if asset.size is not None and total is not None and total != asset.size:
                    raise ValueError(f"the file there has {total} bytes, not {asset.size}")
                _copy(reply, part, have if resumed else 0, total or asset.size, asset.name)
                if total is not None and part.stat().st_size < total:
                    raise ConnectionError(f"connection lost after {part.stat().st_size} of {total} bytes")
            return
        except urllib.error.HTTPError as e:
            if e.code == 416 and have:  # the part is no beginning of this file
                part.unlink()
                continue
            raise
        except (ConnectionError, http.client.HTTPException, TimeoutError):
            if attempt + 1 == _ATTEMPTS:
                raise


def _copy(reply, part: Path, start: int, total: int | None, name: str) -> None:
    with (
        open(part, "ab" if start else "wb") as f,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, leave=False) as bar,
    ):
        while block := reply.read(_CHUNK):
            f.write(block)
            bar.update(len(block))


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check(part: Path, asset: Asset) -> None:
    """Size and sha256 of a finished download. Raises ValueError."""
    size = part.stat().st_size
    if asset.size is not None and size != asset.size:
        raise ValueError(f"{size} bytes, not {asset.size}")
    digest = sha256(part)
    record = config.cache_folder() / "weights" / "recorded.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    expected = asset.sha256 or known.get(asset.name)
    if expected is None:
        write_text(record, json.dumps({**known, asset.name: digest}, indent=1))
    elif not digest.startswith(expected):
        raise ValueError(f"sha256 {digest}, not {expected}")


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
        f"train it (python -m riddle.training.*, --preset {preset}) or pass weights=",
    )


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write tensors as safetensors, floating ones in `dtype`; by a temporary name, then renamed.

    A tensor that `dtype` cannot hold (beyond 65504 in float16) keeps float32.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {}
    for key, value in tensors.items():
        value = value.detach().cpu()
        if value.is_floating_point():
            narrow = value.to(dtype)
            value = narrow if torch.isfinite(narrow).all() or not torch.isfinite(value).all() else value.float()
        packed[key] = value.contiguous().clone()
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(packed, tmp, metadata={k: str(v) for k, v in (metadata or {}).items()})
    os.replace(tmp, path)


def load_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, floating ones in float32. Raises ValueError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (safe_open is no dict)
    except FileNotFoundError:
        raise
    except Exception as e:  # safetensors' own error derives from Exception directly
        raise ValueError(f"{path} is no readable safetensors file ({e}); fetch it again") from e
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


def lpips_squeeze_ready() -> Path:
    """`lpips_ready` for SqueezeNet, the smallest and the one used in training."""
    return lpips_ready("squeeze")


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


def main(names: list[str]) -> None:
    """List the assets, or fetch those named."""
    for name in names or sorted(ASSETS):
        asset = ASSETS.get(name)
        path = find(name) if names else locate(name)
        print(f"{name:24} {path or 'absent'}  [{asset.licence if asset else ''}]")


if __name__ == "__main__":
    main(sys.argv[1:])
