"""The losses of RiDDLE, equations 1 to 10 of the paper (section 3.2), one function each.

B originals, each with K generated faces or codes: embeddings are (B, K, E), codes (B, K, L, D), faces
(B, K, 3, R, R); the original has the same shape without K. Equations 6 to 9 are a mean per image, summed over
the K images of an original; every loss is then a mean over the originals.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class LossWeights:
    """Weights of equations 5 and 10; the defaults are the paper's."""

    pixel: float = 0.05  # lambda_pix
    lpips: float = 1.0  # lambda_LPIPS
    parsing: float = 0.1  # lambda_parse
    latent: float = 0.01  # lambda_latent
    diversity: float = 1.0  # of L_div in eq. 5; 0 is the ablation "w/o identity diversity loss"
    deidentification: float = 1.0  # of L_deid in eq. 5
    recovery: float = 1.0  # of L_rec in eq. 5
    epsilon: float = 0.0  # similarity below which two faces count as different (eq. 1 and 3)

    def updated(self, changes: dict[str, float]) -> LossWeights:
        """A copy with some weights replaced. Raises ValueError for a name that is no weight."""
        names = [f.name for f in fields(self)]
        if unknown := sorted(set(changes) - set(names)):
            raise ValueError(f"unknown loss weight {', '.join(unknown)}; choose from {', '.join(names)}")
        return replace(self, **{k: float(v) for k, v in changes.items()})

    def as_dict(self) -> dict[str, float]:
        """Name -> weight, for logs and cards."""
        return asdict(self)


PAPER_WEIGHTS = LossWeights()


def identity_similarity_matrix(embeddings: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """M of eq. 1: the cosines of each pair, at least epsilon. (B, K, E) -> (B, K, K)."""
    e = F.normalize(embeddings, dim=-1)
    return (e @ e.transpose(-1, -2)).clamp_min(epsilon)


def diversity_loss(changed: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """L_div, eq. 2: mean similarity of the encrypted and wrongly decrypted faces of one original.

    changed: (B, m(n+1), E). The diagonal is zero and counts in the mean, as in the paper.
    """
    similarity = identity_similarity_matrix(changed, epsilon)
    others = 1 - torch.eye(changed.shape[1], device=changed.device)
    return (others * similarity).mean((1, 2)).mean()


def deidentification_loss(original: torch.Tensor, changed: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """L_deid, eq. 3: summed similarity to the original (B, E) of the m(n+1) changed faces (B, m(n+1), E)."""
    return F.cosine_similarity(original[:, None], changed, dim=-1).clamp_min(epsilon).sum(1).mean()


def recovery_loss(original: torch.Tensor, recovered: torch.Tensor) -> torch.Tensor:
    """L_rec, eq. 4: summed 1 - cosine between the original (B, E) and its correct decryptions (B, m, E)."""
    return (1 - F.cosine_similarity(original[:, None], recovered, dim=-1)).sum(1).mean()


def identity_loss(
    original: torch.Tensor, changed: torch.Tensor, recovered: torch.Tensor, weights: LossWeights = PAPER_WEIGHTS
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """L_id, eq. 5, and its three parts, unweighted, by name.

    original: (B, E); changed: (B, m(n+1), E), encrypted and wrongly decrypted; recovered: (B, m, E).
    """
    parts = {
        "diversity": diversity_loss(changed, weights.epsilon),
        "deidentification": deidentification_loss(original, changed, weights.epsilon),
        "recovery": recovery_loss(original, recovered),
    }
    return sum(getattr(weights, name) * part for name, part in parts.items()), parts


def pixel_loss(original: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """L_pix, eq. 6: absolute difference. original: (B, 3, R, R), generated: (B, K, 3, R, R)."""
    return (generated - original[:, None]).abs().mean((2, 3, 4)).sum(1).mean()


class PerceptualFeatures(nn.Module):
    """F_p of eq. 7: features whose squared distance is LPIPS (Zhang et al., 2018), computed once per face.

    The package compares two images and so would run the original again for each of its K faces.
    """

    def __init__(self, trunk: nn.Module, channels: Sequence[int]):
        """trunk: the backbone, which gives features of so many channels. All weights are 1 until they are loaded."""
        super().__init__()
        self.trunk = trunk
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))
        for i, count in enumerate(channels):
            self.register_buffer(f"root{i}", torch.ones(1, count, 1, 1))

    @classmethod
    def of(cls, lpips: nn.Module) -> PerceptualFeatures:
        """Those of the package's network."""
        features = cls(lpips.net, lpips.chns)
        features.shift.copy_(lpips.scaling_layer.shift)
        features.scale.copy_(lpips.scaling_layer.scale)
        for i, lin in enumerate(lpips.lins):
            getattr(features, f"root{i}").copy_(lin.model[-1].weight.detach().clamp_min(0).sqrt())
        return features

    def raw(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """faces: (N, 3, R, R) in [-1, 1] -> the backbone's features, one (N, C, h, w) per layer."""
        return list(self.trunk((faces - self.shift) / self.scale))

    def weighed(self, raw: list[torch.Tensor]) -> list[torch.Tensor]:
        """The backbone's features -> unit length at each pixel, each channel by its weight in LPIPS."""
        features = []
        for i, x in enumerate(raw):
            x, root = x.float(), getattr(self, f"root{i}")
            length = (x.square().sum(1, keepdim=True) + 1e-12).sqrt()
            features.append(x * root / (length * (x.shape[2] * x.shape[3]) ** 0.5))
        return features

    def forward(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """faces: (N, 3, R, R) in [-1, 1] -> one (N, C, h, w) per layer."""
        return self.weighed(self.raw(faces))


def random_lpips(net: str = "squeeze") -> nn.Module:
    """The package's LPIPS with a backbone of random weights, which needs no download; net: squeeze, alex or vgg."""
    import lpips  # here, because it loads torchvision, which takes seconds, and `riddle.load` does not need it

    with warnings.catch_warnings():  # lpips asks torchvision by an argument that torchvision deprecates
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def lpips_loss(original: list[torch.Tensor], generated: list[torch.Tensor]) -> torch.Tensor:
    """L_LPIPS, eq. 7, from `PerceptualFeatures` of the B originals and of the B K generated faces, in order.

    The norm is squared, as the metric's authors define it.
    """
    total = 0.0
    for a, b in zip(original, generated, strict=True):
        b = b.unflatten(0, (len(a), -1))
        total = total + (b - a[:, None]).square().sum((2, 3, 4)).sum(1).mean()
    return total


def parsing_loss(original: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """L_parse, eq. 8, as a mean square: F_s on eyes, ears, mouth and nose.

    original: (B, P, R, R) and generated: (B K, P, R, R) are a parser's outputs in `models.parsing.PARTS`.
    """
    generated = generated.unflatten(0, (len(original), -1))
    return (generated - original[:, None]).square().mean((2, 3, 4)).sum(1).mean()


def latent_loss(original: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """L_latent, eq. 9, as a mean square. original: (B, L, D); generated: (B, K, L, D), all codes made of it."""
    return (generated - original[:, None]).square().mean((2, 3)).sum(1).mean()


def total_loss(
    identity: torch.Tensor, pixel: torch.Tensor, lpips: torch.Tensor, parsing: torch.Tensor, latent: torch.Tensor,
    weights: LossWeights = PAPER_WEIGHTS,
) -> torch.Tensor:  # fmt: skip
    """L_total, eq. 10, from the values of equations 5 to 9."""
    w = weights
    return identity + w.pixel * pixel + w.lpips * lpips + w.parsing * parsing + w.latent * latent
