"""Passwords: made from a passphrase or a seed, for the encryptor.

In the paper a password is a randomly sampled latent. So here: a password is the w of a standard normal z in the
Gaussian space of codes (riddle.models.codes), the same for every slot of the code. A passphrase reaches z by

    NFKC -> UTF-8 -> Argon2id (3 passes, 64 MiB, 4 lanes, 32 bytes)
         -> SHAKE-256 stream -> 52-bit uniforms -> inverse normal distribution -> z

Every arrow is a published function, so another program, in another language, finds the same z. A file with a record has
a random salt, kept in the record: no table made beforehand helps to guess. HKDF derives a key for each face and one for
the seal from the 32 bytes, so no two faces share one. A picture without a record has the preset's public salt and one
key for all its faces.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import unicodedata
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from riddle.models.codes import GaussianCodes

# RFC 9106, section 4, second recommended option (for machines with less memory than 2 GiB to spare).
PASSES, MEMORY_KIB, LANES, KEY_BYTES, SALT_BYTES = 3, 64 * 1024, 4, 32, 16


def public_salt(preset: str) -> bytes:
    """The salt of a preset, 16 bytes. It keeps tables made for one preset from serving another."""
    return hashlib.sha256(f"riddle password v1 {preset}".encode()).digest()[:SALT_BYTES]


def random_salt() -> bytes:
    """A fresh salt from the operating system, 16 bytes."""
    return secrets.token_bytes(SALT_BYTES)


def derive_key(passphrase: str, preset: str, salt: bytes | None = None) -> bytes:
    """Argon2id of the NFKC form of a passphrase: 32 bytes.

    salt: 16 bytes; None: the preset's public one. Raises ValueError for an empty or blank passphrase, for text that
    holds half a character (a lone surrogate) and for another length of salt; TypeError for anything but text.
    """
    if not isinstance(passphrase, str):
        raise TypeError(f"a passphrase is text, got {type(passphrase).__name__}")
    text = unicodedata.normalize("NFKC", passphrase)
    if not text.strip():
        raise ValueError("the passphrase is empty: choose one, or draw a key by random_password(n, seed)")
    try:
        secret = text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ValueError(
            f"the passphrase is broken text: its character {e.start + 1} is half of one (a lone surrogate);"
            " type it again, or read it as UTF-8"
        ) from None
    if salt is not None and len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes, got {len(salt)}")
    return hash_secret_raw(
        secret, public_salt(preset) if salt is None else salt,
        time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, hash_len=KEY_BYTES, type=Type.ID,
    )  # fmt: skip


def subkey(secret: bytes, purpose: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) of a derived key for one purpose: 32 bytes, which tell nothing of those for another."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"riddle 4 {purpose}".encode()).derive(secret)


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
def to_password(codes: GaussianCodes, z: torch.Tensor, n_latent: int) -> torch.Tensor:
    """z (n, D), standard normal -> passwords (n, L, D), in float32 always: rounding would make another password."""
    device = codes.mean.device
    with torch.autocast(device.type, enabled=False):
        return codes.to_w(z.to(device, torch.float32))[:, None].repeat(1, n_latent, 1)


def from_key(key: bytes, codes: GaussianCodes, n_latent: int) -> torch.Tensor:
    """The password of a derived key, (1, L, D)."""
    return to_password(codes, torch.from_numpy(normal_from_key(key, len(codes.mean)))[None], n_latent)


def face_passwords(secret: bytes, turns: Sequence[int], codes: GaussianCodes, n_latent: int) -> torch.Tensor:
    """The passwords of a file's n faces, (n, L, D), one each; turns: n numbers, which of its passwords a face has."""
    names = [f"face {i} turn {turn}" if turn else f"face {i}" for i, turn in enumerate(turns)]
    return torch.cat([from_key(subkey(secret, name), codes, n_latent) for name in names])


def password(
    passphrase: str, codes: GaussianCodes, n_latent: int, preset: str, salt: bytes | None = None
) -> torch.Tensor:
    """The password of a passphrase, (1, L, D); salt as for `derive_key`.

    It takes about 0.1 s on purpose: an attacker pays this for each guess.
    """
    return from_key(derive_key(passphrase, preset, salt), codes, n_latent)


def random_keys(n: int, seed: int, codes: GaussianCodes, n_latent: int) -> torch.Tensor:
    """n random keys (n, L, D), the same for the same seed; the first k of n are those of k.

    The paper, section 3.2: a password is a randomly sampled latent.
    """
    if n < 1:
        raise ValueError(f"at least one key must be drawn, got n={n}")
    z = torch.randn(n, len(codes.mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return to_password(codes, z, n_latent)


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
