"""What this machine has and what it lacks: packages, weights, networks, data sets, and so each notebook.

python -m riddle doctor
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from riddle import assets, config, photos

CORE = ("generator", "encoder", "encryptor")  # the weights without which a preset is nothing

# Distribution -> (module, what it is for); "photos": nothing works without it.
PACKAGES = {
    "torch": ("torch", "photos"),
    "torchvision": ("torchvision", "photos"),
    "numpy": ("numpy", "photos"),
    "pillow": ("PIL", "photos"),
    "safetensors": ("safetensors", "photos"),
    "argon2-cffi": ("argon2", "photos"),
    "cryptography": ("cryptography", "photos"),
    "platformdirs": ("platformdirs", "photos"),
    "tqdm": ("tqdm", "photos"),
    "dlib-bin": ("dlib", "photos"),
    "face_recognition_models": ("face_recognition_models", "photos"),
    "facenet-pytorch": ("facenet_pytorch", "photos"),
    "av": ("av", "clips"),
    "accelerate": ("accelerate", "training"),
    "lpips": ("lpips", "training, tables"),
    "onnxruntime": ("onnxruntime", "tables"),
    "pytorch-fid": ("pytorch_fid", "tables"),
    "scikit-image": ("skimage", "tables"),
    "scikit-learn": ("sklearn", "tables"),
    "scipy": ("scipy", "tables"),
    "torchmetrics": ("torchmetrics", "tables"),
    "pandas": ("pandas", "tables"),
    "matplotlib": ("matplotlib", "figures"),
    "jupyterlab": ("jupyterlab", "notebooks"),
    "papermill": ("papermill", "notebooks"),
    "ipywidgets": ("ipywidgets", "widgets"),
    "anywidget": ("anywidget", "widgets"),
    "traitlets": ("traitlets", "widgets"),
    "snakemake": ("snakemake", "make reproduce"),
    "voila": ("voila", "widgets as a page"),
    "playwright": ("playwright", "browser tests"),
}
NOT_IMPORTED = ("face_recognition_models",)  # its import needs a package that newer Pythons lack; only its files count


@dataclass(frozen=True)
class Needs:
    """What a notebook uses beyond the preset's own networks."""

    packages: tuple[str, ...] = ()  # without these it does not run
    variants: tuple[str, ...] = ()  # encryptors of the ablations
    networks: tuple[str, ...] = ()  # keys of riddle.assets.ASSETS
    data: tuple[str, ...] = ()  # keys of riddle.photos.PLACES
    training: tuple[str, ...] = ()  # networks and data that only its training at full scale uses


_ALWAYS = ("torch", "jupyterlab", "papermill", "matplotlib", "pandas")
_JUDGES = (
    "arcface-mobilefacenet", "edgeface-xs", "mobilefacenet-casia", "mobileface-v2",
    "facenet-casia", "facenet-vggface2", "sphereface20",
)  # fmt: skip
_LOSSES = ("arcface-mobilefacenet", "squeezenet1_1")
_FACES = ("ffhq", "celebamask_hq")
_TESTS = ("celebamask_hq", "ffhq")
_CELEBA = ("celebamask_hq",)
_ROWS = ("encryptor_datafree", "encryptor_coupling")  # of Tables 1 to 4
_ABLATIONS = (*_ROWS, "encryptor_mlp", "encryptor_nodiv")
_ONNX = ("onnxruntime",)
NEEDS = {
    "00": Needs(("accelerate",)),
    "01": Needs(("accelerate",), training=_FACES),
    "02": Needs(("accelerate", "lpips"), training=(*_LOSSES, *_FACES)),
    "03": Needs(("accelerate",), training=_CELEBA),
    "04": Needs(("accelerate", "lpips"), training=(*_LOSSES, *_FACES)),
    "05": Needs(_ONNX, _ROWS, _JUDGES, ("lfw",)),
    "06": Needs(("lpips", "torchmetrics"), _ROWS, ("squeezenet1_1", "alexnet"), _TESTS),
    "07": Needs(("pytorch-fid", "scipy"), _ROWS, ("inception", "squeezenet1_1"), _TESTS),
    "08": Needs(_ONNX, _ROWS, (*_JUDGES, "curricularface-ir101"), ("lfw", *_TESTS)),
    "09": Needs((*_ONNX, "scikit-learn"), _ROWS, _JUDGES, _CELEBA),
    "10": Needs(_ONNX, (), _JUDGES, _CELEBA),
    "11": Needs((*_ONNX, "accelerate"), _ABLATIONS, (*_JUDGES, "squeezenet1_1"), ("lfw", *_TESTS)),
    "12": Needs((), _ROWS, (), _CELEBA),
    "13": Needs(),
    "14": Needs(("av", *_ONNX), (), ("arcface-mobilefacenet", "edgeface-xs")),
    "15": Needs(("ipywidgets", "anywidget", "traitlets")),
}


@dataclass(frozen=True)
class Item:
    """One thing that is here or not."""

    name: str
    here: bool
    detail: str  # version or place; else why it is not here and what to do
    needed: bool = False  # nothing works without it
    use: str = ""  # what it is for, or its terms


@dataclass(frozen=True)
class Notebook:
    """One notebook and what it would lack."""

    name: str
    runs: bool  # at all; what else it lacks makes it say less
    lacks: list[str]


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which they are best read."""

    preset: str
    system: list[Item]
    packages: list[Item]
    weights: list[Item]
    networks: list[Item]
    data: list[Item]
    notebooks: list[Notebook]

    @property
    def ready(self) -> bool:
        """Whether photos can be protected and restored here."""
        return all(item.here for item in (*self.system, *self.packages, *self.weights) if item.needed)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"ready": self.ready}


def examine(preset: str = "mobile") -> Report:
    """Look at this machine; nothing is downloaded."""
    found = packages(), weights(preset), networks(), data_sets()
    return Report(preset, system(), *found, notebooks(*found))


# The parts


def system() -> list[Item]:
    """Python, the accelerator, the configuration file."""
    version = platform.python_version()
    supported = (3, 11) <= sys.version_info[:2] <= (3, 12)
    python = version if supported else f"{version}; install 3.11 or 3.12"
    try:
        config.settings()
        settings = Item("configuration", True, _path(config.config_file()), needed=True)
    except (ValueError, OSError) as e:
        settings = Item("configuration", False, str(e), needed=True)
    return [Item("python", supported, python, needed=True), _accelerator(), settings]


def _path(path: Path) -> str:
    return str(path) if path.exists() else f"none (would be {path})"


def _accelerator() -> Item:
    try:
        import torch

        if torch.cuda.is_available():
            return Item("accelerator", True, f"cuda: {torch.cuda.get_device_name()}")
        if torch.backends.mps.is_available():
            return Item("accelerator", True, "mps")
        return Item("accelerator", False, f"none; the CPU is used, {torch.get_num_threads()} threads")
    except Exception as e:  # a broken installation fails in its own ways
        return Item("accelerator", False, f"torch does not load ({e})")


def packages() -> list[Item]:
    """The packages; those that photos need are imported, since an installed one can be broken."""
    return [_package(name, module, use) for name, (module, use) in PACKAGES.items()]


def _package(name: str, module: str, use: str) -> Item:
    needed = use == "photos"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Item(name, False, f"not installed: pip install {name}", needed, use)
    if needed and name not in NOT_IMPORTED:
        try:
            importlib.import_module(module)
        except Exception as e:  # as above
            return Item(name, False, f"{version} does not load ({type(e).__name__}: {e}); reinstall it", needed, use)
    return Item(name, True, version, needed, use)


def weights(preset: str) -> list[Item]:
    """The preset's own networks, and whether they load: files of another version lie there and do not fit."""
    from riddle import zoo
    from riddle.presets import get
    from riddle.weights import WHEEL, wheel_folder

    variants = dict.fromkeys(v for need in NEEDS.values() for v in need.variants)
    parts = [f"{preset}/{part}" for part in (*CORE, "parser", *variants)]
    found = [_found(name, lambda name=name: zoo.bundled(*name.split("/"))) for name in parts]
    wheel = [_found(WHEEL, wheel_folder)] if get(preset).generator == "mobilestylegan" else []
    return [_loads(preset), *wheel, *found]


def _loads(preset: str) -> Item:
    import riddle

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that smoke is untrained
            model = riddle.load(preset)
    except (ImportError, OSError, ValueError) as e:
        return Item(preset, False, str(e), needed=True)
    return Item(preset, True, f"loads; generator and encryptor {model.weights_hash[:12]}", needed=True)


def networks() -> list[Item]:
    """The networks of others; `use` is their terms."""
    from riddle import zoo

    return [_network(assets.ASSETS[name], zoo.locate) for name in sorted(assets.ASSETS)]


def _network(asset: assets.Asset, locate: Callable[[str], Path | None]) -> Item:
    item = _found(asset.name, lambda: locate(asset.name), use=asset.licence)
    return item if item.detail else Item(asset.name, False, f"absent: {comes_from(asset)}", use=asset.licence)


def comes_from(asset: assets.Asset) -> str:
    """How an absent network is had."""
    if asset.made_from:
        return f"download, converted from {' and '.join(asset.made_from)}"
    if asset.urls:
        return f"download from {', '.join(dict.fromkeys(urlparse(url).netloc for url in asset.urls))}"
    return f"by hand, from {asset.source}" + (f": {asset.note}" if asset.note else "")


def data_sets() -> list[Item]:
    """The data sets."""
    return [_found(key, lambda key=key: photos.locate(key)) for key in photos.PLACES]


def _found(name: str, locate: Callable[[], Path | None], use: str = "") -> Item:
    """What a search gives; an empty detail where it gives nothing."""
    try:
        path = locate()
    except (OSError, ValueError) as e:  # the messages say what to do
        return Item(name, False, str(e).removeprefix(f"{name}: "), use=use)
    return Item(name, path is not None, str(path or ""), use=use)


# Notebooks


def notebooks(packages: list[Item], weights: list[Item], networks: list[Item], data: list[Item]) -> list[Notebook]:
    """Each notebook of this checkout, and what it would lack given those findings."""
    absent = {item.name.split("/")[-1] for item in (*packages, *weights, *networks, *data) if not item.here}
    return [_notebook(path.stem, absent) for path in sorted((config.home() / "notebooks").glob("*.ipynb"))]


def _notebook(stem: str, absent: set[str]) -> Notebook:
    needs = NEEDS.get(stem.split("_")[0], Needs())

    def lacking(names: tuple[str, ...], then: str) -> list[str]:
        gone = [name for name in names if name in absent]
        return [f"{', '.join(gone)}: {then}"] if gone else []

    vital = lacking(_ALWAYS + needs.packages, "not installed, it does not run")
    lesser = lacking(CORE, "no trained networks, so only with preset smoke")
    lesser += lacking(needs.variants, "no weights, their rows are n/a")
    lesser += lacking(needs.networks, "absent, what they measure is n/a")
    lesser += lacking(needs.data, "absent, the bundled synthetic faces stand in")
    lesser += lacking(needs.training, "absent, only its training at full scale needs them")
    return Notebook(stem, not vital, vital + lesser)
