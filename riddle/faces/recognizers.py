"""Face recognisers behind one interface: faces -> embeddings, and each one's own rule for "the same person".

    recogniser = recognizers.load("edgeface-xs")
    crops = [recogniser.align(photo, face.points, face.landmarks) for photo, face in found]
    e = recogniser.embed(torch.stack([to_tensor(crop) for crop in crops]))
    same = recogniser.similarity(e[:5], e[5:]) > recogniser.threshold

    identity = recognizers.load("arcface-mobilefacenet")         # for a loss: differentiable, one map for all faces
    e = identity.from_crop(faces)

A measure aligns each face by its own points; a loss cannot, so `from_crop` takes every framed face through one
similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from riddle.faces.alignment import crop, similarity
from riddle.faces.detection import dlib_models
from riddle.metrics.identity import cosine
from riddle.models.dlib_resnet import load_dlib_resnet
from riddle.models.fixed_map import ARCFACE_POINTS, fixed_map
from riddle.models.mobilefacenet import load_mobilefacenet
from riddle.models.onnx_network import OnnxNetwork
from riddle.published import blank
from riddle.weights import WeightsMissingError, find, load_tensors, locate

CHUNK = 32  # faces at a time on a CPU: larger batches leave its caches

# Where dlib's mean face has the 68 points in its 150 px chip of padding 0.25 (measured: spots at known places sent
# through dlib.get_face_chip). Only these count: no jaw, no brows, no lower lip.
CHIP_INDICES = np.r_[27:55, 60:65]
CHIP_POINTS = np.array([
    (73.5, 44.8), (73.5, 55.2), (73.5, 65.4), (73.5, 76.1), (61.2, 83.2), (67.1, 85.5), (73.5, 87.3), (79.9, 85.5),
    (85.8, 83.2), (36.7, 46.2), (43.3, 42.4), (51.1, 42.5), (58.0, 47.7), (50.6, 49.1), (42.8, 48.9), (89.0, 47.7),
    (95.9, 42.5), (103.8, 42.4), (110.3, 46.2), (104.2, 48.9), (96.4, 49.1), (50.0, 102.5), (58.6, 99.0),
    (67.4, 97.2), (73.5, 98.7), (79.7, 97.2), (88.4, 99.0), (97.1, 102.5), (53.6, 102.9), (67.3, 102.3),
    (73.5, 103.0), (79.7, 102.3), (93.4, 102.9),
])  # fmt: skip
# FaceNet was trained on MTCNN's boxes, made square: the mean points in them at 160 px (400 faces of FFHQ's training
# split, the two sides averaged) are those of a face stretched by 1.32 in x.
FACENET_POINTS = np.array([(43.6, 62.0), (116.4, 62.0), (80.0, 94.5), (46.9, 120.2), (113.1, 120.2)])
DLIB_POINTS = np.array([(47.1, 46.1), (99.9, 46.1), (73.5, 76.1), (50.0, 102.5), (97.1, 102.5)])


@dataclass(frozen=True)
class Spec:
    """A recogniser's properties, known before its weights are loaded; SPECS says where each threshold comes from."""

    build: Callable[[Path], nn.Module]  # weights file -> network: (N, 3, size, size) in [-1, 1] -> (N, E)
    size: int  # px, side of its crops
    dim: int  # E
    threshold: float  # the same person when the similarity is above
    targets: np.ndarray  # (5, 2) px, where its crops have the five points
    distance: str = "cosine"  # or "euclidean": then similarity is minus the distance
    differentiable: bool = True
    stretch: float = 1.0  # of x against y in its crops


class FaceNet(nn.Module):
    """facenet-pytorch's network; it was trained on (x - 127.5) / 128."""

    def __init__(self, path: Path):
        super().__init__()
        self.network = _published("facenet")(path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x * (127.5 / 128))


def _published(layout: str) -> Callable[[Path], nn.Module]:
    """A function that builds the network of a layout of riddle.published from its converted file."""

    def build(path: Path) -> nn.Module:
        network = blank(layout)
        network.load_state_dict(load_tensors(path))
        return network.eval().to(memory_format=torch.channels_last)

    return build


def _arcface(build: Callable[[Path], nn.Module], dim: int, threshold: float) -> Spec:
    return Spec(build, 112, dim, threshold, ARCFACE_POINTS, differentiable=build is not OnnxNetwork)


SPECS = {
    # dlib's documentation
    "dlib": Spec(load_dlib_resnet, 150, 128, -0.6, DLIB_POINTS, "euclidean"),
    # exceeded by 0.1 % of 60,000 pairs of different people from FFHQ's training and validation splits, 128 px
    "arcface-mobilefacenet": _arcface(load_mobilefacenet, 128, 0.41),
    "edgeface-xs": _arcface(OnnxNetwork, 512, 0.30),
    "mobilefacenet-casia": _arcface(OnnxNetwork, 128, 0.47),
    "mobileface-v2": _arcface(OnnxNetwork, 256, 0.52),
    # squared distance 1.1 (Schroff et al., CVPR 2015, fig. 1)
    "facenet-casia": Spec(FaceNet, 160, 512, 0.45, FACENET_POINTS, stretch=1.32),
    "facenet-vggface2": Spec(FaceNet, 160, 512, 0.45, FACENET_POINTS, stretch=1.32),
    # squared distance 1.5 (its published configuration)
    "irse50": _arcface(_published("irse50"), 512, 0.25),
    # customary; the authors of both choose it on LFW
    "sphereface20": _arcface(_published("sphereface20"), 512, 0.3),
    "curricularface-ir101": _arcface(_published("ir101"), 512, 0.25),
}
NAMES = tuple(SPECS)


class Recognizer:
    """A recogniser with its weights. `load` makes one."""

    def __init__(self, name: str, spec: Spec, network: nn.Module, device: str | torch.device = "cpu"):
        self.name, self.spec, self.device = name, spec, torch.device(device)
        self.size, self.dim, self.distance, self.threshold = spec.size, spec.dim, spec.distance, spec.threshold
        self.network = network.eval().requires_grad_(False).to(self.device)

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops (N, 3, size, size) in [-1, 1], at its own alignment -> (N, E), of unit length unless euclidean.

        Raises ValueError for another shape, TypeError when gradients are asked of a network that has none.
        """
        if crops.ndim != 4 or tuple(crops.shape[1:]) != (3, self.size, self.size):
            raise ValueError(f"{self.name} takes (N, 3, {self.size}, {self.size}), got {tuple(crops.shape)}")
        if crops.requires_grad and torch.is_grad_enabled() and not self.spec.differentiable:
            raise TypeError(f"{self.name} runs in onnxruntime and has no gradients; use it under torch.no_grad()")
        crops = crops.to(self.device).contiguous(memory_format=torch.channels_last)
        parts = crops.split(CHUNK if self.device.type == "cpu" else 256) if len(crops) else []
        e = torch.cat([self.network(c) for c in parts] or [crops.new_zeros(0, self.dim)])
        return F.normalize(e.float(), dim=1) if self.distance == "cosine" else e

    def align(self, image: Image.Image, points: np.ndarray, landmarks: np.ndarray | None = None) -> Image.Image:
        """Its own crop of a face in a photo: five points (5, 2) px; dlib's chip uses the 68 landmarks where given.

        What lies outside the photo is its reflection.
        """
        source, target = np.asarray(points), self.spec.targets
        if self.name == "dlib" and landmarks is not None:
            source, target = np.asarray(landmarks)[CHIP_INDICES], CHIP_POINTS
        narrow = np.array([1 / self.spec.stretch, 1.0])
        m = similarity(target * narrow, source)  # recogniser px -> photo px
        linear, offset = m[:, :2] * narrow, m[:, 2]
        matrix = np.concatenate([linear * self.size, (linear @ [-0.5, -0.5] + offset)[:, None]], axis=1)
        return crop(image, matrix, self.size)

    def from_crop(self, faces: torch.Tensor) -> torch.Tensor:
        """Framed faces (N, 3, R, R) in [-1, 1] -> (N, E), all through one fixed, upright similarity.

        Differentiable where the network is.
        """
        targets = tuple(map(tuple, self.spec.targets.tolist()))
        rows, columns = fixed_map(faces.shape[-1], targets, self.size, self.spec.stretch).to(faces.device)
        with torch.autocast(faces.device.type, enabled=False):
            crops = rows @ faces.float() @ columns.T
        return self.embed(crops)

    def similarity(self, a: Any, b: Any) -> Any:
        """(N, E), (N, E) -> (N,), arrays or tensors: cosine, or minus the Euclidean distance."""
        return similarity_of(self.name)(a, b)


def negative_distance(a: Any, b: Any) -> Any:
    """Row-wise minus Euclidean distance of (N, E) and (N, E), arrays or tensors; NaN where a row is."""
    return -(((a - b) ** 2).sum(-1) ** 0.5)


def similarity_of(name: str) -> Callable[[Any, Any], Any]:
    """A recogniser's comparison of embeddings, a function (N, E), (N, E) -> (N,), without loading it."""
    return negative_distance if SPECS[name].distance == "euclidean" else cosine


def _weights(name: str, get: Callable[[str], Path | None]) -> Path | None:
    """The file of a recogniser; get: `find` or `locate`. Raises WeightsMissingError, KeyError."""
    return dlib_models() / "dlib_face_recognition_resnet_model_v1.dat" if name == "dlib" else get(name)


def load(name: str, device: str | torch.device = "cpu") -> Recognizer:
    """A recogniser by name. Raises KeyError for an unknown name, WeightsMissingError when its weights cannot be had."""
    if name not in SPECS:
        raise KeyError(f"unknown recogniser {name!r}; choose one of {', '.join(NAMES)}")
    return Recognizer(name, SPECS[name], SPECS[name].build(_weights(name, find)), device)


@cache
def at_hand(name: str, device: str | torch.device = "cpu") -> Recognizer | None:
    """A recogniser that needs no download, loaded once; None where its weights are not here. Raises KeyError for an
    unknown name."""
    return None if available([name])[name] else load(name, device)


def available(names: Sequence[str] = NAMES) -> dict[str, str | None]:
    """{name: None when the recogniser can be loaded without a download, else the reason why not}."""
    reasons: dict[str, str | None] = {}
    for name in names:
        try:
            reasons[name] = None if _weights(name, locate) else "weights not on this machine"
        except (KeyError, WeightsMissingError) as e:
            reasons[name] = str(e)
    return reasons
