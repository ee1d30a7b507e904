"""Both passes of an encryptor, and what they do to identities on held-out codes."""

from __future__ import annotations

import torch
from torch import nn

from riddle.networks import Synthesis
from riddle.training.frozen import Features
from riddle.training.loop import means

PIXELS = 80 * 128**2  # of the faces that are drawn at a time without gradients


def portions(codes: torch.Tensor, side: int) -> tuple[torch.Tensor, ...]:
    """Codes (N, L, D) in portions whose faces of `side` px have at most `PIXELS` pixels together, or are one face."""
    return codes.split(max(1, PIXELS // side**2))


def encrypt_and_decrypt(encryptor: nn.Module, w: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Both passes of section 3.2.

    w: (B, L, D); keys: (B, m, n + 1, L, D) as `draw_keys` gives them. Returns for each original: encrypted
    codes (B, m, L, D), each recovered by its own password (B, m, L, D), and by wrong ones (B, m n, L, D).
    """
    b, m, k = keys.shape[:3]
    encrypted = encryptor(w.repeat_interleave(m, 0), keys[:, :, 0].flatten(0, 1))
    opened = encryptor(encrypted.repeat_interleave(k, 0), keys.flatten(0, 2)).reshape(keys.shape)
    return encrypted.reshape(b, m, *w.shape[1:]), opened[:, :, 0], opened[:, :, 1:].flatten(1, 2)


@torch.no_grad()
def evaluate(
    encryptor: nn.Module, generator: Synthesis, codes: torch.Tensor, embed: Features, keys: torch.Tensor,
    threshold: float = 0.3,
) -> dict[str, float]:  # fmt: skip
    """Measure by `embed`, on faces drawn from codes, how identities change and come back.

    codes: (N, L, D), unseen in training; keys: (N, m, n + 1, L, D), m at least 2. Means of cosines with the
    original's face, shares accepted (cosine above threshold), and for pairs of encryptions of one original their
    mean cosine and the share below the threshold.
    """
    m, n = keys.shape[1], keys.shape[2] - 1
    first, second = torch.triu_indices(m, m, 1)

    def compared(w: torch.Tensor, key: torch.Tensor) -> dict[str, torch.Tensor]:
        made = torch.cat([w[:, None], *encrypt_and_decrypt(encryptor, w, key)], 1)
        e = torch.cat([embed(generator(part)).float() for part in portions(made.flatten(0, 1), generator.resolution)])
        e = e.unflatten(0, made.shape[:2])
        cosines = e @ e.transpose(1, 2)
        similar = dict(zip(("encrypted", "recovered", "wrong"), cosines[:, 0, 1:].split([m, m, m * n], 1), strict=True))
        pairs = cosines[:, 1 : m + 1, 1 : m + 1][:, first, second]
        numbers = {f"cos_{k}": v for k, v in (similar | {"pairs": pairs}).items()}
        numbers |= {f"accepted_{k}": v > threshold for k, v in similar.items()}
        return numbers | {"pairs_apart": pairs < threshold}

    return means(compared, codes, keys, batch=8)
