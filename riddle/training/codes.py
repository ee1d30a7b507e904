"""What a training step of the encryptor makes of codes, passwords for it, and how well it does (section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from riddle.networks import Synthesis
from riddle.passwords import to_password
from riddle.training.judges import Features
from riddle.training.loop import faces_to_float


@dataclass
class Codes:
    """What one step makes of B originals."""

    encrypted: torch.Tensor  # (B, m, L, D)
    recovered: torch.Tensor  # (B, m, L, D), each by its own password
    wrong: torch.Tensor  # (B, m n, L, D), each by a wrong one

    def joined(self) -> torch.Tensor:
        """(B, m (n + 2), L, D), in the order of the fields."""
        return torch.cat([self.encrypted, self.recovered, self.wrong], 1)


SPREAD = 0.4  # std of the differences between slots, in z; photos inverted by optimisation: 0.42


def draw_keys(generator: Synthesis, count: int, m: int, n: int) -> torch.Tensor:
    """Random passwords, all distinct: (count, m, n + 1, L, D); [:, :, 0] encrypt, the others are wrong."""
    z = torch.randn(count * m * (n + 1), generator.style_dim, device=generator.device)
    w = to_password(generator.codes, z, generator.n_latent)
    return w.reshape(count, m, n + 1, *w.shape[1:])


@torch.no_grad()
def draw_codes(generator: Synthesis, count: int, seed: int | None = None) -> torch.Tensor:
    """Codes (count, L, D) of faces of nobody, as inverted photos have them, for training without data (section 3.3).

    In turn: one code of the mapping network in all slots; two, mixed at a slot; one with small differences in every
    slot. seed: None draws from torch's own stream.
    """
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    z = torch.randn(2, count, generator.style_dim, generator=draw).to(generator.device)
    first, second = (generator.broadcast(generator.map(part)) for part in z)
    slots = torch.arange(generator.n_latent)[None, :, None]
    at = torch.randint(1, generator.n_latent, (count, 1, 1), generator=draw)
    mixed = torch.where((slots < at).to(first.device), first, second)
    differences = SPREAD * torch.randn(first.shape, generator=draw).to(first.device)
    near = generator.codes.to_w((generator.codes.to_gaussian(first) + differences) / (1 + SPREAD**2) ** 0.5)
    kind = torch.arange(count, device=first.device)[:, None, None] % 3
    return torch.where(kind == 0, first, torch.where(kind == 1, mixed, near))


@torch.no_grad()
def encode(encoder: nn.Module, faces: torch.Tensor, batch: int = 64, bfloat16: bool = False) -> torch.Tensor:
    """uint8 faces (N, R, R, 3) -> codes (N, L, D) in float32."""
    device = next(encoder.parameters()).device
    codes = []
    for part in faces.split(batch):
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            codes.append(encoder(faces_to_float(part.to(device))).float().cpu())
    return torch.cat(codes)


def encrypt_and_decrypt(encryptor: nn.Module, w: torch.Tensor, keys: torch.Tensor) -> Codes:
    """Both passes of section 3.2. w: (B, L, D); keys: (B, m, n + 1, L, D) as `draw_keys` gives them."""
    b, m, k = keys.shape[:3]
    encrypted = encryptor(w.repeat_interleave(m, 0), keys[:, :, 0].flatten(0, 1))
    decrypted = encryptor(encrypted.repeat_interleave(k, 0), keys.flatten(0, 2))
    decrypted = decrypted.reshape(keys.shape)
    return Codes(encrypted.reshape(b, m, *w.shape[1:]), decrypted[:, :, 0], decrypted[:, :, 1:].flatten(1, 2))


@torch.no_grad()
def evaluate(
    encryptor: nn.Module,
    generator: Synthesis,
    codes: torch.Tensor,
    embed: Features,
    keys: torch.Tensor,
    threshold: float = 0.3,
    batch: int = 8,
) -> dict[str, float]:
    """How well identities change and come back, judged by `embed` on faces rendered from codes.

    codes: (N, L, D), unseen in training; keys: (N, m, n + 1, L, D), m at least 2. Means of cosines with the
    original's face, shares accepted (cosine above threshold), and for pairs of encryptions of one original their
    mean cosine and the share below the threshold.
    """
    rows: dict[str, list[torch.Tensor]] = {}
    for w, key in zip(codes.split(batch), keys.split(batch), strict=True):
        made = encrypt_and_decrypt(encryptor, w, key)
        all_codes = torch.cat([w[:, None], made.joined()], 1)
        e = embed(generator(all_codes.flatten(0, 1))).float().unflatten(0, all_codes.shape[:2])
        m = key.shape[1]
        similar = (e[:, 1:] @ e[:, 0, :, None])[..., 0]
        among = e[:, 1 : m + 1] @ e[:, 1 : m + 1].transpose(1, 2)
        upper = torch.triu_indices(m, m, 1)
        for name, value in (
            ("encrypted", similar[:, :m]),
            ("recovered", similar[:, m : 2 * m]),
            ("wrong", similar[:, 2 * m :]),
            ("pairs", among[:, upper[0], upper[1]]),
        ):
            rows.setdefault(name, []).append(value.flatten())
    joined = {k: torch.cat(v) for k, v in rows.items()}
    numbers = {f"cos_{k}": v.mean().item() for k, v in joined.items()}
    for k in ("encrypted", "recovered", "wrong"):
        numbers[f"accepted_{k}"] = (joined[k] > threshold).float().mean().item()
    return numbers | {"pairs_apart": (joined["pairs"] < threshold).float().mean().item()}
