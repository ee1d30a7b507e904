"""Files of weights as others published them: read without running their pickles, recognised by what they hold, and
renamed to our modules' names.

    layout, parts = load("550000.pt")                              # "stylegan2", {"generator": {name: tensor}}
    parts = fitting("550000.pt", "stylegan2", get("ffhq256"))      # the same, or an error that says what it is instead
    network = blank("stylegan2", get("ffhq256"))                   # our module for it, without weights

`riddle.weights` finds the files, converts each once and keeps the result as safetensors.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .models.anonymisers import CiaganGenerator, DeepPrivacyGenerator, FitGenerator
from .models.bisenet import BiSeNet
from .models.codes import GaussianCodes
from .models.encryptor import ReleasedEncryptor
from .models.inversion import Encoder
from .models.irse import ArcFaceIR
from .models.sphereface import SphereFace20
from .models.stylegan2 import Generator, blur_kernel
from .presets import Preset

State = dict[str, torch.Tensor]
# layout -> an entry that only its files have; of two that fit, the first
MARKS = {
    "stylegan2": "to_rgb1.conv.modulation.weight",
    "encryptor": "layers.0.multihead_attn.in_proj_weight",
    "bisenet": "cp.resnet.conv1.weight",
    "sphereface20": "conv1_1.weight",
    "facenet": "conv2d_1a.conv.weight",
    "irse50": "body.0.res_layer.5.fc1.weight",
    "ir101": "body.0.res_layer.4.weight",
    "ciagan": "encode_one_hot.0.weight",
    "fit": "model.12.conv_block.1.weight",
    "deepprivacy": "decoder.conv1x1.conv.0.weight",
}
# layout -> the parts of a preset that its files give; other layouts give one "network"
PARTS = {
    "stylegan2": ("generator",),
    "e4e": ("encoder", "generator"),
    "encryptor": ("encryptor_released",),
    "bisenet": ("parser",),
    "codes": ("codes",),
}
TITLES = {
    "stylegan2": "a StyleGAN2 generator", "e4e": "an e4e encoder", "encryptor": "a released RiDDLE encryptor",
    "codes": "codes of inverted faces", "bisenet": "a BiSeNet face parser", "sphereface20": "a SphereFace network",
    "facenet": "a FaceNet", "irse50": "an IR-SE network", "ir101": "an IR network", "ciagan": "CIAGAN's generator",
    "fit": "FIT's generator", "deepprivacy": "DeepPrivacy's generator of 2019",
}  # fmt: skip
UNUSED = ("conv_out16.", "conv_out32.", "cp.resnet.fc.", "fc6.", "logits.")  # heads that only training needs
# where a file with several networks has the one that is used; state_dict_G: FIT's, the last one: DeepPrivacy's
NETWORKS = ("g_ema", "mapper_state_dict", "state_dict", "state_dict_G", "running_average_generator")
SENTENCE = re.compile(r"\.\s|\n")  # where a message's first sentence ends
COUNTERS = "num_batches_tracked"  # of batch norms; files from before PyTorch 0.4.1 lack them


def load(path: Path | str) -> tuple[str, dict[str, State]]:
    """(layout, {part: its tensors by our modules' names}) of a file; layout: a key of `TITLES`; parts: see `PARTS`.

    Raises ValueError, with the path and the cause, for a web page, a damaged file, one that holds objects other than
    tensors, plain containers and `argparse.Namespace`, an unknown network, and a variant that our modules do not have.
    """
    try:
        return _recognised(_read(path))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def check_readable(path: Path | str) -> None:
    """Raises ValueError, with the path and the cause, for a file that PyTorch cannot read as tensors."""
    try:
        _read(path)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def is_web_page(path: Path | str) -> bool:
    """Whether a file is a page that a server sent in its place, as Google Drive does over its quota."""
    return _start(path).startswith(b"<")


def _start(path: Path | str) -> bytes:
    with open(path, "rb") as file:
        return file.read(512).lstrip()


def _read(path: Path | str) -> Any:
    if is_web_page(path):
        raise ValueError("it is a web page that was saved in the place of the file")
    if _start(path).startswith(b"7z"):
        raise ValueError("it is a packed archive; unpack it beside with 7z")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                spoilt = archive.testzip()  # torch.load reads over wrong bytes
            if spoilt:
                raise EOFError(f"the checksum of {spoilt} differs")
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, LookupError) as e:
        if foreign := re.search(r"GLOBAL (\S+)", str(e)):
            raise ValueError(f"it holds a {foreign[1]} beside weights; nothing in it was run") from e
        why = f" ({SENTENCE.split(str(e))[0]})" if e.args and not isinstance(e, pickle.UnpicklingError) else ""
        raise ValueError(f"it is damaged, cut off, or no file of weights{why}") from e


def _recognised(content: Any) -> tuple[str, dict[str, State]]:
    if isinstance(content, torch.Tensor):
        if content.ndim == 3 and content.is_floating_point():
            return "codes", {"codes": {"codes": content.float()}}
        raise ValueError(f"it holds one tensor of shape {tuple(content.shape)}; codes are (N, L, D)")
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, no network")
    named = (content.get(k) for k in NETWORKS)
    inner = next((inner for inner in named if isinstance(inner, Mapping)), content)
    state = {str(k).removeprefix("module."): v for k, v in inner.items() if isinstance(v, torch.Tensor)}
    state = {k: v for k, v in state.items() if not k.startswith(UNUSED)}
    options = content.get("opts")
    options = options if isinstance(options, Mapping) else getattr(options, "__dict__", {})
    if "encoder.styles.0.linear.weight" in state:
        if (kind := options.get("encoder_type", "Encoder4Editing")) != "Encoder4Editing":
            raise ValueError(f"it holds a {kind}, whose names are those of e4e, but not its codes")
        parts = {"encoder": _inside(state, "encoder.")}
        parts["encoder"]["latent_avg"] = _latent_avg(content, options, parts["encoder"])
        if generator := _inside(state, "decoder."):
            parts["generator"] = _whole(generator)
        return "e4e", parts
    layout = next((layout for layout, mark in MARKS.items() if mark in state), None)
    if layout is None:
        raise ValueError(
            f"it holds no network that is known here; its entries: {', '.join(map(str, [*inner][:3])) or 'none'}"
        )
    if layout == "stylegan2":
        state = _whole(state)
    elif layout == "encryptor":
        state = _encryptor(state, options)
    elif layout == "ciagan":
        state = _divided(state)
    return layout, {PARTS.get(layout, ("network",))[0]: state}


def load_codes(path: str, preset: Preset) -> torch.Tensor:
    """Codes (N, L, D) of a .npy file, or of a published .pt file for a preset. Raises ValueError for another file."""
    if path.endswith(".npy"):
        return torch.from_numpy(np.load(path, mmap_mode="c"))  # processes share what they read
    return fitting(path, "codes", preset)["codes"]["codes"]


def _inside(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _latent_avg(content: Mapping, options: Mapping, encoder: State) -> torch.Tensor:
    """Where codes start, (L, D): stored as (D,), (1, D), (L, D) or (1, L, D); zeros where training did not use it."""
    slots = len({k.split(".")[1] for k in encoder if k.startswith("styles.")})
    dim = len(encoder["styles.0.linear.weight"])
    if not options.get("start_from_latent_avg", True):
        return torch.zeros(slots, dim)
    stored = content.get("latent_avg")
    if not isinstance(stored, torch.Tensor) or stored.numel() not in (dim, slots * dim):
        shape = tuple(stored.shape) if isinstance(stored, torch.Tensor) else stored
        raise ValueError(f"it is an e4e file whose latent_avg is {shape}, not ({dim},) or ({slots}, {dim})")
    return stored.float().reshape(-1, dim).expand(slots, dim)


def _whole(state: State) -> State:
    """A generator's tensors with what some files leave out: noise maps, drawn from a fixed seed, and the filter."""
    depth = len({k.split(".")[1] for k in state if k.startswith("to_rgbs.")})
    draw, state = torch.Generator().manual_seed(0), dict(state)
    for i in range(2 * depth + 1):
        side = 4 << (i + 1) // 2
        drawn = torch.randn(1, 1, side, side, generator=draw)
        state.setdefault(f"noises.noise_{i}", drawn)
    for i in range(depth):
        state.setdefault(f"convs.{2 * i}.conv.blur.kernel", blur_kernel())
        state.setdefault(f"to_rgbs.{i}.upsample.kernel", blur_kernel())
    return state


def _encryptor(state: State, options: Mapping) -> State:
    """The released encryptor's tensors; a network without input layers or slot embeddings gets ones that do nothing."""
    norm = options.get("transformer_normalize_type", "layernorm")
    if norm != "layernorm" or "layers.0.norm1.weight" not in state:
        raise ValueError(f"it is an encryptor with the normalisation {norm!r}; only 'layernorm' is known here")
    dim = state["layers.0.norm1.weight"].numel()
    for name in ("linear_ori", "linear_pwd"):
        state.setdefault(f"{name}.weight", torch.eye(dim))
        state.setdefault(f"{name}.bias", torch.zeros(dim))
    if "pos_embedding" not in state and "transformer_split_list" in options:
        state["pos_embedding"] = torch.zeros(sum(options["transformer_split_list"]), 1, dim)
    return state


def _divided(state: State) -> State:
    """Weights in the place of what spectral norm stores of each: divided by the singular value that u and v give.

    Files from before PyTorch 1.1 have the divided weights beside.
    """
    out = {k: v for k, v in state.items() if not k.endswith(("_orig", "_u", "_v"))}
    for name in (k.removesuffix("_orig") for k in state if k.endswith("_orig")):
        if name in out:
            continue
        if not {f"{name}_u", f"{name}_v"} <= state.keys():
            raise ValueError(f"it lacks {name}_u or {name}_v, the vectors of spectral norm")
        matrix = state[f"{name}_orig"].flatten(1)
        out[name] = state[f"{name}_orig"] / (state[f"{name}_u"] @ matrix @ state[f"{name}_v"])
    return out


def blank(layout: str, preset: Preset | None = None) -> nn.Module:
    """Our module for the first part of a layout, without weights; preset: of a generator, encoder or encryptor.

    Raises KeyError for "codes".
    """
    if layout == "stylegan2":
        return Generator.of(preset)
    if layout == "e4e":
        return Encoder(preset)
    if layout == "encryptor":
        return ReleasedEncryptor(preset.levels, GaussianCodes(preset.style_dim))
    if layout == "irse50":
        return ArcFaceIR((3, 4, 14, 3))
    if layout == "ir101":
        return ArcFaceIR((3, 13, 30, 3), squeeze=False, affine=False)
    if layout == "facenet":
        from facenet_pytorch import InceptionResnetV1  # here, because only this recogniser needs the package

        return InceptionResnetV1()
    plain = {"bisenet": BiSeNet, "sphereface20": SphereFace20, "ciagan": CiaganGenerator, "fit": FitGenerator}
    return (plain | {"deepprivacy": DeepPrivacyGenerator})[layout]()


def fitting(path: Path | str, layout: str, preset: Preset | None = None) -> dict[str, State]:
    """The parts of a file of this layout, whose names and shapes are those of our modules; preset: as for `blank`.

    Raises ValueError as `load` does, and for a file of another network.
    """
    found, parts = load(path)
    if found != layout:
        raise ValueError(f"{path}: it holds {TITLES[found]}, wanted {TITLES[layout]}")
    for part, state in parts.items():
        if part == "codes":
            shape, wanted = state["codes"].shape[1:], (preset.n_latent, preset.style_dim)
            why = "" if tuple(shape) == wanted else f"(N, {shape[0]}, {shape[1]}), wanted (N, {wanted[0]}, {wanted[1]})"
        else:
            with torch.device("meta"):
                network = blank("stylegan2" if part == "generator" else layout, preset)
            why = misfit(network, state)
        if why:
            raise ValueError(f"{path}: it holds {TITLES[layout]} of another size or make: {why}")
    return parts


def misfit(network: nn.Module, state: State) -> str:
    """What keeps a state from filling a network, in words; '' where it fits. Statistics of codes may be missing."""
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.startswith("codes.")}
    given = {k: tuple(v.shape) for k, v in state.items()}
    missing = [k for k in wanted if k not in given and not k.endswith(COUNTERS)]
    shapes = [f"{k} is {given[k]}, wanted {wanted[k]}" for k in wanted if given.get(k, wanted[k]) != wanted[k]]
    unknown = [k for k in given if k not in wanted and not k.endswith(COUNTERS)]
    return "; ".join(
        f"{title} {', '.join(found[:2])}{f' and {len(found) - 2} more' if len(found) > 2 else ''}"
        for title, found in (("missing", missing), ("unknown", unknown), ("shapes:", shapes))
        if found
    )
