"""Training around the eigenfaces: where networks start, where samples lie, and codes turned as in encryption."""

from __future__ import annotations

import math

import torch

from riddle.models.eigenfaces import from_offsets, match_mapping, mirror_inside, to_offsets
from riddle.models.inversion import Encoder
from riddle.models.layers import EqualLinear
from riddle.training.gan import GANTask
from riddle.training.loop import faces_to_float


def mirror_codes(codes: torch.Tensor, centre: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Codes (N, L, D) mirrored about their centre (L, D) at random angles inside the face, as an encryptor starts.

    inner: (S D, K), see riddle.models.eigenfaces; centre: of their offsets. So the generator learns to draw a face
    wherever encryption takes a code. See riddle.models.encryptor.
    """
    angle = torch.rand(len(codes), inner.shape[1] // 2, device=codes.device) * 2 * math.pi
    return from_offsets(mirror_inside(to_offsets(codes) - centre, inner, angle) + centre)


def teach_mapping(gan: GANTask, encoder: Encoder, faces: torch.Tensor, steps: int) -> None:
    """Start the mapping anew and teach it the first components of uint8 faces (N, R, R, 3)."""
    device = next(encoder.parameters()).device
    with torch.no_grad():
        rows = torch.linspace(0, len(faces) - 1, min(len(faces), 8192)).long()
        codes = encoder.base.read(faces_to_float(faces[rows]).to(device))[:, 0]
    for layer in gan.g.style.requires_grad_(True):
        if isinstance(layer, EqualLinear):
            torch.nn.init.normal_(layer.weight, std=1 / layer.lr_mul)
            torch.nn.init.zeros_(layer.bias)
    print(f"mapping: {match_mapping(gan.g, codes, steps):.3f} from the components")
    gan.g.style.requires_grad_(False)
    gan.g_ema.style.load_state_dict(gan.g.style.state_dict())


def start_from_eigenfaces(gan: GANTask, encoder: Encoder, faces: torch.Tensor, steps: int) -> None:
    """Fit the components to uint8 faces (N, R, R, 3), for encoder and generator alike, and the mapping to them."""
    encoder.base.fit(faces)
    with torch.no_grad():
        for name in ("mean", "basis", "deviation"):
            getattr(gan.g.base, name).copy_(getattr(encoder.base, name))
        gan.g.base.find_inner()
        for layer in (gan.g.to_rgb1, *gan.g.to_rgbs):  # the rest of the network draws what the components lack
            layer.conv.weight.mul_(0.01)
    teach_mapping(gan, encoder, faces, steps)
    gan.g_ema.load_state_dict(gan.g.state_dict())


@torch.no_grad()
def settle_offsets(gan: GANTask, codes: torch.Tensor) -> None:
    """Mean and deviation of each slot's offset from slot 0, averaged over steps: where samples are to lie."""
    offsets, g = codes.float() - codes[:, :1].float(), gan.g
    g.offsets.lerp_(offsets.mean(0), 0.02)
    g.deviations.copy_(g.deviations.square().lerp((offsets - g.offsets).square().mean(0), 0.02).sqrt())
    gan.g_ema.offsets.copy_(g.offsets)
    gan.g_ema.deviations.copy_(g.deviations)
