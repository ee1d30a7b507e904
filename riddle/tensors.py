"""Our files of weights: tensors and text entries in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .files import replace_file

SCALE = ".scale8"  # ends the name of the scales of an 8-bit matrix, one per row


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
