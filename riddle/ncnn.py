"""Reads an ncnn network (a graph and a file of numbers), the form in which one recogniser is published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def read(weights: Path, graph: Path) -> dict[str, list[np.ndarray]]:
    """{layer: its arrays, flat, in stored order} of an ncnn network in float32.

    Raises ValueError when the two files do not belong together. Format: ncnn's wiki, "param and model file
    structure"; a convolution and an inner product start with a flag word, 0 for float32.
    """
    data = np.fromfile(weights, dtype="<f4")
    position, layers = 0, {}

    def take(count: int) -> np.ndarray:
        nonlocal position
        position += count
        if position > len(data):
            raise ValueError(f"{weights} ends inside a layer that {graph} names; fetch both again")
        return data[position - count : position]

    for line in graph.read_text().splitlines()[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        options = dict(pair.split("=") for pair in rest[int(inputs) + int(outputs) :])
        n = int(options.get("0", 0))
        if kind in ("Convolution", "ConvolutionDepthWise", "InnerProduct"):
            bias, count = ("1", "2") if kind == "InnerProduct" else ("5", "6")
            if take(1).view("<u4")[0] != 0:
                raise ValueError(f"{weights}: layer {name} is not in float32; fetch the float32 file")
            layers[name] = [take(int(options[count]))] + ([take(n)] if options.get(bias) == "1" else [])
        elif kind == "BatchNorm":  # slope, mean, variance, bias
            layers[name] = [take(n) for _ in range(4)]
        elif kind == "PReLU":
            layers[name] = [take(n)]
    if position != len(data):
        raise ValueError(f"{weights} holds {len(data) - position} numbers more than {graph} names; fetch both again")
    return layers


def mobilefacenet(weights: Path, graph: Path) -> dict[str, torch.Tensor]:
    """The ArcFace MobileFaceNet's state dict, in the names of `riddle.models.mobilefacenet`. Raises ValueError."""
    state = {}
    for name, arrays in read(weights, graph).items():
        tensors = [torch.from_numpy(a.copy()) for a in arrays]
        if name == "pre_fc1":
            state |= dict(zip(("fc.weight", "fc.bias"), [tensors[0].reshape(128, 512), *tensors[1:]], strict=False))
        elif name == "fc1":
            state |= _norm("fc_bn", tensors)
        elif name.endswith("_conv2d"):
            state[name.replace("_conv2d", ".conv.weight")] = tensors[0]
        elif name.endswith("_relu"):
            state[name.replace("_relu", ".prelu.weight")] = tensors[0]
        else:
            state |= _norm(name.replace("_batchnorm", ".bn"), tensors)
    for key in [k for k in state if k.endswith(".conv.weight")]:  # flat -> (out, in, k, k)
        out = len(state[key.replace("conv.weight", "bn.weight")])
        side = 7 if "7_7" in key else 3 if "_dw" in key or key.startswith("conv_1.") else 1
        state[key] = state[key].reshape(out, -1, side, side)
    return state


def _norm(prefix: str, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{k}": t for k, t in zip(("weight", "running_mean", "running_var", "bias"), tensors, strict=True)}
