"""Passwords: what a passphrase, or a seed, becomes before the encryptor sees it.

In the paper a password is a randomly sampled latent. So here: a password is w = mapping(z) of a standard
normal z, the same for every slot of the code. A passphrase reaches z by

    NFKC -> UTF-8 -> Argon2id (3 passes, 64 MiB, 4 lanes, 32 bytes; the salt is public, one for each preset)
         -> SHAKE-256 stream -> 52-bit uniforms -> inverse normal distribution -> z

Every arrow is a published function, so another program, in another language, finds the same z.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from statistics import NormalDist

import numpy as np
import torch

from riddle.models.stylegan2 import Generator

# RFC 9106, section 4, second recommended option (for machines with less memory than 2 GiB to spare).
PASSES, MEMORY_KIB, LANES, KEY_BYTES = 3, 64 * 1024, 4, 32


def salt(preset: str) -> bytes:
    """The public salt of a preset, 16 bytes. It keeps tables made for one preset from serving another."""
    return hashlib.sha256(f"riddle password v1 {preset}".encode()).digest()[:16]


def derive_key(passphrase: str, preset: str) -> bytes:
    """Argon2id of the NFKC form of a passphrase: 32 bytes.

    Raises ValueError for an empty passphrase, TypeError for anything but text.
    """
    if not isinstance(passphrase, str):
        raise TypeError(f"a passphrase is text, got {type(passphrase).__name__}")
    text = unicodedata.normalize("NFKC", passphrase)
    if not text:
        raise ValueError("the passphrase is empty: choose one, or draw a key by random_password(n, seed)")
    from argon2.low_level import Type, hash_secret_raw

    return hash_secret_raw(
        text.encode("utf-8"), salt(preset),
        time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, hash_len=KEY_BYTES, type=Type.ID,
    )  # fmt: skip


def normal_from_key(key: bytes, size: int) -> np.ndarray:
    """`size` standard normal numbers from a key, float32 (size,).

    Eight bytes each of SHAKE-256(key), little-endian; the upper 52 bits k give the quantile (k + 1/2) / 2^52.
    NumPy's own normals are not used: their stream may change between versions, and a password must not.
    """
    words = np.frombuffer(hashlib.shake_256(key).digest(8 * size), dtype="<u8") >> np.uint64(12)
    quantiles = (words.astype(np.float64) + 0.5) / 2.0**52
    inverse = NormalDist().inv_cdf
    return np.array([inverse(q) for q in quantiles], dtype=np.float32)


@torch.no_grad()
def _map(generator: Generator, z: torch.Tensor) -> torch.Tensor:
    """z (n, D) -> keys (n, L, D), in float32 always: rounding would make another password."""
    device = generator.input.input.device
    with torch.autocast(device.type, enabled=False):
        return generator.broadcast(generator.map(z.to(device, torch.float32))).contiguous()


def password(passphrase: str, generator: Generator, preset: str) -> torch.Tensor:
    """The key of a passphrase, (1, L, D). About 0.1 s, on purpose: so costs each guess of an attacker."""
    z = normal_from_key(derive_key(passphrase, preset), generator.style_dim)
    return _map(generator, torch.from_numpy(z)[None])


def random_keys(n: int, seed: int, generator: Generator) -> torch.Tensor:
    """n random keys (n, L, D), the same for the same seed; the first k of n are those of k.

    The paper, section 3.2: a password is a randomly sampled latent.
    """
    if n < 1:
        raise ValueError(f"at least one key must be drawn, got n={n}")
    z = torch.randn(n, generator.style_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _map(generator, z)


def interpolate(a: torch.Tensor, b: torch.Tensor, t: float | torch.Tensor, how: str = "linear") -> torch.Tensor:
    """Keys on the way from a to b.

    a, b: (..., L, D); t: a number, or (T,) for T keys along a new first axis. how: "linear", or "slerp": along
    the arc for the direction and along the line for the length, slot by slot. Raises ValueError otherwise.
    """
    if a.shape != b.shape:
        raise ValueError(f"keys of different shapes: {tuple(a.shape)} and {tuple(b.shape)}")
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    if t.ndim:
        t = t.view(-1, *[1] * a.ndim)
    if how == "linear":
        return a + t * (b - a)
    if how != "slerp":
        raise ValueError(f"unknown interpolation {how!r}; choose linear or slerp")
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    u, v = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    # The angle by its half-tangent: arccos loses all digits for near directions.
    angle = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    safe = angle.clamp(1e-6, math.pi - 1e-6)
    direction = (torch.sin((1 - t) * safe) * u + torch.sin(t * safe) * v) / torch.sin(safe)
    direction = torch.where(angle < 1e-6, u, direction)
    return direction * (length_a + t * (length_b - length_a))
