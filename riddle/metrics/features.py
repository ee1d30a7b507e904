"""Features of faces for distances between sets: SqueezeNet's pool, and the Inception network of the FID.

    f = features.extract("squeezenet", pictures)       # (N, R, R, 3) uint8 -> (N, 512)

The FID is the Frechet distance on the Inception features of pytorch-fid, and bears that name only there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pytorch_fid.inception import InceptionV3
from torch import nn
from torchvision.models import squeezenet1_1

from riddle.images import to_tensor
from riddle.progress import track
from riddle.weights import find

# name -> how pictures are resized for it: a distance depends on the filter (Parmar et al., CVPR 2022).
RESIZE = {
    "squeezenet": "none",
    "inception": "bilinear to 299 px, no antialiasing (pytorch-fid)",
    "dlib": "aligned by its landmarks to 150 px, bicubic",
}
BATCH = 64  # pictures at a time


class SqueezeNetPool(nn.Module):
    """SqueezeNet 1.1's last feature map, averaged over its places, at the faces' own size. Iandola et al., 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = squeezenet1_1(weights=None).features
        # ImageNet's mean and deviation, for intensities in [-1, 1].
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) * 2 - 1)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 2)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> (N, 512)."""
        return self.trunk((faces - self.mean) / self.std).mean((2, 3))


def _squeezenet() -> nn.Module:
    state = torch.load(find("squeezenet1_1"), map_location="cpu", weights_only=True)
    network = SqueezeNetPool()
    network.trunk.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("feat")})
    return network


class InceptionPool(nn.Module):
    """pytorch-fid's Inception, its 2048 pool features. Raises WeightsMissingError."""

    def __init__(self) -> None:
        super().__init__()
        before = torch.hub.get_dir()
        torch.hub.set_dir(str(find("inception").parent.parent))  # where pytorch-fid looks for its weights
        try:
            self.network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]])
        finally:
            torch.hub.set_dir(before)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> (N, 2048)."""
        return self.network((faces + 1) / 2)[0].flatten(1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"squeezenet": _squeezenet, "inception": InceptionPool}


@torch.no_grad()
def extract(name: str, pictures: np.ndarray, device: torch.device | str = "cpu", label: str = "features") -> np.ndarray:
    """Features (N, D) float32 of pictures (N, R, R, 3) uint8 by a network of `NETWORKS`; label: of the progress bar.

    Raises ValueError for an unknown name, WeightsMissingError when the weights cannot be had.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown features {name!r}; choose one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]().eval().to(device, memory_format=torch.channels_last)
    parts = track([pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)], label)
    return torch.cat([network(to_tensor(part).to(device)).float().cpu() for part in parts]).numpy()
