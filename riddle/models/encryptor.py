"""The latent encryptor (paper, section 3.1): one network that encrypts and, with the same password, decrypts.

A code w and a password, both (N, L, D), are split into the coarse, medium and fine level of the generator. In
each level the code attends to itself and then to the password; the levels are joined and one linear layer per
slot gives the change of the code. `MLPEncryptor` is the ablation without attention (Table 5, w/o transformer).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from riddle.presets import Preset, get

# What the input code counts in the standardised output. At +1 the network starts as the identity, and stays there:
# two equal steps away from a face must cancel, so the cost of recovery outweighs the gain of every small step. At -1
# it starts as a reflection: codes leave at once, and any term of the password alone cancels on the way back.
REFLECTION = -1.0
OUTPUT_GAIN = 0.1  # of the last layer's usual initialisation where the input code counts: near the plain reflection


class Attention(nn.Module):
    """Multi-head attention: queries (N, S, D) over memory (N, T, D) -> (N, S, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} does not divide into {heads} heads")
        self.heads = heads
        self.query, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, slots, D / heads)

        key, value = self.key_value(memory).chunk(2, -1)
        y = F.scaled_dot_product_attention(split(self.query(queries)), split(key), split(value))
        return self.output(y.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Transformer decoder block, post-norm: the code's slots attend to each other, then ask the password."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.self_attention, self.cross_attention = Attention(dim, heads), Attention(dim, heads)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, code: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        code = self.norm1(code + self.self_attention(code, code))
        code = self.norm2(code + self.cross_attention(code, password))
        return self.norm3(code + self.feed_forward(code))


class _CodeModel(nn.Module):
    """What both encryptors share: standardisation, the residual, the checks.

    The statistics and the residual's factor are buffers, so a state dict alone rebuilds the function.
    """

    def __init__(
        self, n_latent: int, style_dim: int, w_mean: torch.Tensor | None, w_std: torch.Tensor | None, residual: float
    ):
        super().__init__()
        self.n_latent, self.style_dim = n_latent, style_dim
        shape = (n_latent, style_dim)
        mean = torch.zeros(shape) if w_mean is None else w_mean.detach().float().cpu().expand(shape).clone()
        std = torch.ones(shape) if w_std is None else w_std.detach().float().cpu().expand(shape).clone()
        # a direction in which w hardly varies must not blow up codes that lie off the mapping's manifold
        std = std.clamp_min(0.1 * std.mean())
        self.register_buffer("w_mean", mean)
        self.register_buffer("w_std", std)
        self.register_buffer("key_mean", mean.clone())
        self.register_buffer("key_std", std.clone())
        self.register_buffer("residual", torch.tensor(float(residual)))

    def standardise_keys(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Give passwords statistics of their own: (D,) or (L, D). Inverted codes lie elsewhere than the mapping's."""
        self.key_mean.copy_(mean.expand_as(self.key_mean))
        self.key_std.copy_(std.expand_as(self.key_std).clamp_min(0.1 * std.mean()))

    def change(self, code: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        """Standardised code and password (N, L, D) -> the standardised output, less the residual."""
        raise NotImplementedError

    def forward(self, w: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Encrypt or decrypt codes.

        w: (N, L, D); key: (N, L, D), or (1, L, D) for one password over all codes. Returns (N, L, D).
        Raises ValueError for other shapes. Source: paper, section 3.1.
        """
        shape = (self.n_latent, self.style_dim)
        if w.ndim != 3 or w.shape[1:] != shape or key.shape[1:] != shape or len(key) not in (1, len(w)):
            given = f"{tuple(w.shape)} and {tuple(key.shape)}"
            raise ValueError(f"code and key must be (N, {shape[0]}, {shape[1]}), got {given}")
        with torch.autocast(w.device.type, enabled=False):  # bfloat16 would cost digits that recovery needs
            code = (w.float() - self.w_mean) / self.w_std
            password = ((key.float() - self.key_mean) / self.key_std).expand_as(code)
            return (self.change(code, password) + self.residual * code) * self.w_std + self.w_mean


def _small(layer: nn.Linear) -> nn.Linear:
    """The last layer starts small, so that training starts near the residual alone."""
    with torch.no_grad():
        layer.weight.mul_(OUTPUT_GAIN)
        layer.bias.zero_()
    return layer


class LatentEncryptor(_CodeModel):
    """The transformer encryptor.

    style_dim: D; levels: slots of the coarse, medium and fine level (their sum is L); heads, depth: attention
    heads and decoder blocks of each level; w_mean, w_std: (D,) or (L, D), statistics of the codes to encrypt;
    residual: factor of the input code in the standardised output; 0 is the paper's network.
    Source: paper, section 3.1 and figure 2; slot embeddings, input layers and the residual are ours.
    """

    def __init__(
        self,
        style_dim: int,
        levels: tuple[int, ...],
        heads: int = 4,
        depth: int = 1,
        w_mean: torch.Tensor | None = None,
        w_std: torch.Tensor | None = None,
        residual: float = REFLECTION,
    ):
        super().__init__(sum(levels), style_dim, w_mean, w_std, residual)
        self.levels = tuple(levels)
        self.code_in, self.password_in = nn.Linear(style_dim, style_dim), nn.Linear(style_dim, style_dim)
        self.code_slots = nn.Parameter(0.02 * torch.randn(self.n_latent, style_dim))
        self.password_slots = nn.Parameter(0.02 * torch.randn(self.n_latent, style_dim))
        self.blocks = nn.ModuleList(
            nn.ModuleList(DecoderBlock(style_dim, heads) for _ in range(depth)) for _ in self.levels
        )
        last = nn.Linear(style_dim, style_dim)
        self.output = _small(last) if residual else last

    def change(self, code: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        code = (self.code_in(code) + self.code_slots).split(self.levels, 1)
        password = (self.password_in(password) + self.password_slots).split(self.levels, 1)
        joined = []
        for level, slots, answers in zip(self.blocks, code, password, strict=True):
            for block in level:
                slots = block(slots, answers)
            joined.append(slots)
        return self.output(torch.cat(joined, 1))


class MLPEncryptor(_CodeModel):
    """The ablation: per slot, code and password concatenated, three fully connected layers, leaky ReLU.

    Arguments as for `LatentEncryptor`. Source: paper, section 4.6 (w/o trans).
    """

    def __init__(
        self,
        style_dim: int,
        n_latent: int,
        w_mean: torch.Tensor | None = None,
        w_std: torch.Tensor | None = None,
        residual: float = REFLECTION,
    ):
        super().__init__(n_latent, style_dim, w_mean, w_std, residual)
        last = nn.Linear(2 * style_dim, style_dim)
        self.layers = nn.Sequential(
            nn.Linear(2 * style_dim, 2 * style_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(2 * style_dim, 2 * style_dim),
            nn.LeakyReLU(0.2),
            _small(last) if residual else last,
        )

    def change(self, code: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([code, password], -1))


ARCHITECTURES = ("transformer", "mlp")


def build_encryptor(
    preset: str | Preset,
    arch: str = "transformer",
    w_mean: torch.Tensor | None = None,
    w_std: torch.Tensor | None = None,
    residual: float = REFLECTION,
) -> LatentEncryptor | MLPEncryptor:
    """The encryptor of a preset; arch: "transformer" or "mlp". Statistics and residual come with a state dict,
    so they may be left out where one is loaded. Raises ValueError for an unknown preset or architecture."""
    p = get(preset)
    if arch == "transformer":
        return LatentEncryptor(p.style_dim, p.levels, p.heads, p.depth, w_mean, w_std, residual)
    if arch == "mlp":
        return MLPEncryptor(p.style_dim, p.n_latent, w_mean, w_std, residual)
    raise ValueError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")


def code_statistics(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation over samples of w: (N, D) or (N, L, D) -> two tensors without the first axis."""
    return w.mean(0), w.std(0)
