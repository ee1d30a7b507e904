"""The latent encryptor (paper, section 3.1): one network that encrypts and, with the same password, decrypts.

A code w and a password, both (N, L, D), are split into the coarse, medium and fine level of the generator. In
each level the code attends to itself and then to the password; the levels are joined and one linear layer per
slot gives the change of the code. `MLPEncryptor` is the ablation without attention (Table 5, w/o transformer).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from riddle.models.eigenfaces import from_offsets, inner_directions, mirror, mirror_inside, to_offsets
from riddle.presets import Preset, get

# Factor of the reflected code in the standardised output; 0 is the paper's network. The reflection depends on the
# password: each pair of a slot's numbers (j, j + D/2) is mirrored in the plane at an angle, linear in the password.
# Mirroring twice at one angle is the identity, so the same password decrypts from the first step on; it keeps lengths,
# so codes stay where faces are; and mirrors at unrelated angles have nothing in common on average, so an encrypted
# face resembles neither its original nor the one of another password. What is left to learn is what the losses ask.
# A generator on eigenfaces says which directions of a code change the inside of a face (`Eigenfaces.inner`): these
# alone are mirrored, so that hair, background and light stay, as the pixel, LPIPS and parsing losses want them.
REFLECTION = 1.0
SPREAD = 2.0  # radians, deviation of the angles over passwords at the start: cosines of differences average 0.02
OUTPUT_GAIN = 0.1  # of the last layer's usual initialisation beside a reflection


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
    """What both encryptors share: standardisation, the reflection, the checks.

    The statistics and the residual's factor are buffers, so a state dict alone rebuilds the function.
    """

    def __init__(
        self,
        n_latent: int,
        style_dim: int,
        w_mean: torch.Tensor | None,
        w_std: torch.Tensor | None,
        residual: float,
        inner: int,
    ):
        super().__init__()
        self.n_latent, self.style_dim, self.n_inner = n_latent, style_dim, inner
        self.register_buffer("inner", None, persistent=False)
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
        if style_dim % 2:
            raise ValueError(f"a width of {style_dim} cannot be split into pairs; choose an even one")
        self.angles = nn.Linear(style_dim, (inner or style_dim) // 2)
        nn.init.normal_(self.angles.weight, std=SPREAD / style_dim**0.5)
        nn.init.uniform_(self.angles.bias, -torch.pi, torch.pi)

    @torch.no_grad()
    def standardise(self, codes: torch.Tensor) -> None:
        """Take mean and deviation of each slot from codes (N, L, D)."""
        mean, std = code_statistics(self.coordinates(codes))
        self.w_mean.copy_(mean)
        self.w_std.copy_(std.clamp_min(0.1 * std.mean()))

    def standardise_keys(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Give passwords statistics of their own: (D,) or (L, D). Inverted codes lie elsewhere than the mapping's."""
        self.key_mean.copy_(mean.expand_as(self.key_mean))
        self.key_std.copy_(std.expand_as(self.key_std).clamp_min(0.1 * std.mean()))

    @torch.no_grad()
    def use_directions(self, generator: nn.Module) -> _CodeModel:
        """Take the inner directions of a generator on eigenfaces; without a base nothing is needed. Returns itself."""
        if self.n_inner:
            q = generator.base.inner.detach().to(self.w_mean)
            self.inner = q @ (1.5 * torch.eye(q.shape[1]).to(q) - 0.5 * (q.T @ q))  # float16 rounded it: orthonormal
        return self

    def coordinates(self, w: torch.Tensor) -> torch.Tensor:
        """What is standardised: codes (N, L, D), over eigenfaces each slot less the first."""
        return to_offsets(w) if self.n_inner else w

    def reflect(self, code: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        """Standardised code mirrored pair by pair at the password's angles: (N, L, D) -> (N, L, D), its own inverse.

        Raises RuntimeError before `use_directions`, where it is needed.
        """
        if not self.n_inner:
            return mirror(code, self.angles(password))
        if self.inner is None:
            raise RuntimeError("the encryptor lacks the inner directions; call use_directions(generator) first")
        return mirror_inside(code, self.inner, self.angles(password.mean(1)))

    def change(self, code: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        """Standardised code and password (N, L, D) -> what is added to the reflection."""
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
            code = (self.coordinates(w.float()) - self.w_mean) / self.w_std
            password = ((key.float() - self.key_mean) / self.key_std).expand_as(code)
            kept = self.residual * self.reflect(code, password)
            made = (self.change(code, password) + kept) * self.w_std + self.w_mean
            return from_offsets(made) if self.n_inner else made


def _small(layer: nn.Linear) -> nn.Linear:
    """The last layer starts small, so that training starts near the reflection alone."""
    with torch.no_grad():
        layer.weight.mul_(OUTPUT_GAIN)
        layer.bias.zero_()
    return layer


class LatentEncryptor(_CodeModel):
    """The transformer encryptor.

    style_dim: D; levels: slots of the coarse, medium and fine level (their sum is L); heads, depth: attention
    heads and decoder blocks of each level; w_mean, w_std: (D,) or (L, D), statistics of the codes to encrypt;
    residual: factor of the reflected code in the standardised output; 0 is the paper's network; inner: how many
    directions are mirrored over eigenfaces (see `use_directions`), 0: all, in each slot.
    Source: paper, section 3.1 and figure 2; slot embeddings, input layers and the reflection are ours.
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
        inner: int = 0,
    ):
        super().__init__(sum(levels), style_dim, w_mean, w_std, residual, inner)
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
        inner: int = 0,
    ):
        super().__init__(n_latent, style_dim, w_mean, w_std, residual, inner)
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
    so they may be left out where one is loaded; over eigenfaces `use_directions` comes next. Raises ValueError for an
    unknown preset or architecture."""
    p = get(preset)
    inner = inner_directions(p.base, p.style_dim)
    if arch == "transformer":
        return LatentEncryptor(p.style_dim, p.levels, p.heads, p.depth, w_mean, w_std, residual, inner)
    if arch == "mlp":
        return MLPEncryptor(p.style_dim, p.n_latent, w_mean, w_std, residual, inner)
    raise ValueError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")


def code_statistics(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation over samples of w: (N, D) or (N, L, D) -> two tensors without the first axis."""
    return w.mean(0), w.std(0)
