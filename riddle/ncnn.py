"""Reads the two files of an ncnn network (graph and weights), for the recogniser that is published as such."""

from __future__ import annotations

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
            dense = kind == "InnerProduct"
            if take(1).view("<u4")[0] != 0:
                raise ValueError(f"{weights}: layer {name} is not in float32; fetch the float32 file")
            arrays = [take(int(options["2" if dense else "6"]))]
            if options.get("1" if dense else "5") == "1":
                arrays.append(take(n))
        elif kind == "BatchNorm":  # slope, mean, variance, bias
            arrays = [take(n) for _ in range(4)]
        elif kind == "PReLU":
            arrays = [take(n)]
        else:
            continue
        layers[name] = arrays
    if position != len(data):
        raise ValueError(f"{weights} holds {len(data) - position} numbers more than {graph} names; fetch both again")
    return layers


def mobilefacenet(weights: Path, graph: Path) -> dict[str, torch.Tensor]:
    """The ArcFace MobileFaceNet's state dict, `riddle.models.mobilefacenet`'s names."""
    state = {}
    for name, arrays in read(weights, graph).items():
        tensors = [torch.from_numpy(a.copy()) for a in arrays]
        if name == "pre_fc1":
            state["fc.weight"] = tensors[0].reshape(128, 512)
            if len(tensors) > 1:
                state["fc.bias"] = tensors[1]
        elif name == "fc1":
            state.update(_norm("fc_bn", tensors))
        elif name.endswith("_conv2d"):
            state[name.replace("_conv2d", ".conv.weight")] = tensors[0]
        elif name.endswith("_relu"):
            state[name.replace("_relu", ".prelu.weight")] = tensors[0]
        else:
            state.update(_norm(name.replace("_batchnorm", ".bn"), tensors))
    return _shaped(state)


def _norm(prefix: str, tensors: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{k}": t for k, t in zip(("weight", "running_mean", "running_var", "bias"), tensors, strict=True)}


def _shaped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Flat convolution weights -> (out, in, k, k); the batch norm behind each tells the outputs."""
    for key in [k for k in state if k.endswith(".conv.weight")]:
        out = len(state[key.replace("conv.weight", "bn.weight")])
        side = 7 if "7_7" in key else 3 if "_dw" in key or key.startswith("conv_1.") else 1
        state[key] = state[key].reshape(out, -1, side, side)
    return state
