"""The latent encryptor (paper, section 3.1): one network that encrypts and, with the same password, decrypts.

`LatentEncryptor` is the paper's transformer. `MLPEncryptor` is its ablation (Table 5, w/o transformer).
`RotationCoupling` is ours: the same losses, but its own inverse by construction. `KeyedReflection` is a control that
nobody trains. They work in the Gaussian space of codes (riddle.models.codes). `ReleasedEncryptor`, the network that
the paper's authors published, works on W+ itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from riddle.models.codes import GaussianCodes, soft_bound
from riddle.presets import Preset, get

HEADS = 4  # of the attention
KEPT = 10  # leading components of z that reflections leave alone: pose, light, hair
SOFTENED = 0.6  # power of a component's size in S: at 0 people look alike, at 1 more faces look odd
POSE = 3  # components that couplings leave alone: pose and light; the first ten hold half of a face's identity
ROUNDS = 4  # of a coupling


class CodeModel(nn.Module):
    """Base of all encryptors: from W+ to z and back, and the checks.

    codes: the generator's Gaussian space, which is not part of the state.
    """

    in_w = False  # True: `change` takes and gives codes in W+

    def __init__(self, n_latent: int, codes: GaussianCodes):
        super().__init__()
        self.n_latent, self.style_dim = n_latent, len(codes.mean)
        self._codes = [codes]  # shared with the generator

    def change(self, z: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        """z and password, both (N, L, D) and about N(0, I) -> z (N, L, D). Codes in W+ instead where `in_w`."""
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
        codes = self._codes[0]
        with torch.autocast(w.device.type, enabled=False):  # bfloat16 would cost digits that recovery needs
            if self.in_w:
                return self.change(w.float(), key.float().expand_as(w))
            z, password = codes.to_gaussian(w), codes.to_gaussian(key).expand_as(w)
            return codes.to_w(self.change(z, password))


class Attention(nn.Module):
    """Multi-head attention: queries (N, S, D) over memory (N, T, D) -> (N, S, D)."""

    def __init__(self, dim: int):
        super().__init__()
        if dim % HEADS:
            raise ValueError(f"a width of {dim} does not divide into {HEADS} heads")
        self.query, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (N, heads, slots, D / heads)

        key, value = self.key_value(memory).chunk(2, -1)
        y = F.scaled_dot_product_attention(split(self.query(queries)), split(key), split(value))
        return self.output(y.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    """Transformer decoder block, post-norm: the code's slots attend to each other, then ask the password."""

    def __init__(self, dim: int):
        super().__init__()
        self.self_attention, self.cross_attention = Attention(dim), Attention(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, code: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        code = self.norm1(code + self.self_attention(code, code))
        code = self.norm2(code + self.cross_attention(code, password))
        return self.norm3(code + self.feed_forward(code))


class LatentEncryptor(CodeModel):
    """The transformer encryptor: no reflection, and no skip beyond the blocks' own.

    levels: slots of the coarse, medium and fine level (their sum is L), each with one decoder block; width: channels
    inside. Source: paper, section 3.1 and figure 2; slot embeddings, the input layers and the
    soft bound at the end are ours.
    """

    def __init__(self, levels: tuple[int, ...], width: int, codes: GaussianCodes):
        super().__init__(sum(levels), codes)
        self.levels, dim = tuple(levels), self.style_dim
        self.code_in, self.password_in = nn.Linear(dim, width), nn.Linear(dim, width)
        self.code_slots = nn.Parameter(0.02 * torch.randn(self.n_latent, width))
        self.password_slots = nn.Parameter(0.02 * torch.randn(self.n_latent, width))
        # A list of one block per level: the names in the bundled weights.
        self.blocks = nn.ModuleList(nn.ModuleList([DecoderBlock(width)]) for _ in self.levels)
        self.output = nn.Linear(width, dim)

    def change(self, z: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        code = (self.code_in(z) + self.code_slots).split(self.levels, 1)
        password = (self.password_in(password) + self.password_slots).split(self.levels, 1)
        levels = zip(self.blocks, code, password, strict=True)
        return soft_bound(self.output(torch.cat([level[0](slots, answers) for level, slots, answers in levels], 1)))


class ReleasedEncryptor(CodeModel):
    """The encryptor as the paper's authors released it; its state dict is that of their `TransformerMapperSplit`.

    It reads and writes W+, without standardisation. Code and password pass a linear layer each, and slot embeddings are
    added to the code. Each level has one decoder block with ReLU; its last layer norm is the output. No fully
    connected layer follows, unlike in the paper.
    levels: slots of the coarse, medium and fine level. Source: github.com/ldz666666/RiDDLE, mapper/.
    """

    in_w = True

    def __init__(self, levels: tuple[int, ...], codes: GaussianCodes):
        super().__init__(sum(levels), codes)
        self.levels, dim = tuple(levels), self.style_dim
        self.linear_ori, self.linear_pwd = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.pos_embedding = nn.Parameter(torch.randn(self.n_latent, 1, dim))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(dim, HEADS, 2 * dim, dropout=0.1, batch_first=True) for _ in self.levels
        )

    def change(self, w: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        code = (self.linear_ori(w) + self.pos_embedding[:, 0]).split(self.levels, 1)
        password = self.linear_pwd(password).split(self.levels, 1)
        return torch.cat([layer(*level) for layer, *level in zip(self.layers, code, password, strict=True)], 1)


class MLPEncryptor(CodeModel):
    """The ablation: per slot, code and password concatenated, three fully connected layers, leaky ReLU.

    Source: paper, section 4.6 (w/o trans).
    """

    def __init__(self, n_latent: int, hidden: int, codes: GaussianCodes):
        super().__init__(n_latent, codes)
        dim = self.style_dim
        self.layers = nn.Sequential(
            nn.Linear(2 * dim, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, dim),
        )  # fmt: skip

    def change(self, z: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        return soft_bound(self.layers(torch.cat([z, password], -1)))


def rotate_pairs(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Turn pairs of numbers (0, 1), (2, 3), ... of x (..., 2P) by angles (..., P), in radians."""
    u, v = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * u - sin * v, sin * u + cos * v], -1).flatten(-2)


class RotationCoupling(CodeModel):
    """Ours: enc = S Q f^-1 R f Q^T S^-1, which is its own inverse, for every password and whatever its networks learn.

    The first POSE components stay as they are. S says how large each of the others is in inverted faces, see
    `measure`; Q is a learned rotation of them (Cayley form). f is a stack of rounds: a small network reads one half of
    them, the kept components and the password, all averaged over the slots, and computes angles by which pairs of the
    other half turn, in all slots alike; then the halves change roles. The half that the network reads is first brought
    to the same length, which no turn changes. R flips the signs of half of the components. Every step keeps the length
    of S^-1 z, so that a right password, a wrong one and none at all give codes of equally probable faces.
    """

    def __init__(self, n_latent: int, hidden: int, codes: GaussianCodes):
        super().__init__(n_latent, codes)
        self.kept, free = POSE, self.style_dim - POSE
        self.half = free // 2
        self.turned = self.half - self.half % 2  # an odd component stays
        draw = torch.Generator().manual_seed(0)
        self.register_buffer("orders", torch.stack([torch.randperm(free, generator=draw) for _ in range(ROUNDS)]))
        sign = torch.ones(free)
        sign[torch.randperm(free, generator=draw)[: free // 2]] = -1
        self.register_buffer("sign", sign)
        self.register_buffer("size", torch.ones(free))
        inputs = free - self.half + self.kept + self.style_dim
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, self.turned // 2))
            for _ in range(ROUNDS)
        )
        self.skew = nn.Parameter(torch.zeros(free, free))
        for net in self.nets:  # another password, another angle, of every size
            nn.init.normal_(net[2].weight, std=3 / hidden**0.5)
            nn.init.uniform_(net[2].bias, -torch.pi, torch.pi)

    @torch.no_grad()
    def measure(self, z: torch.Tensor) -> RotationCoupling:
        """Take S, the root mean square of each component to the power of `SOFTENED`, from z (N, L, D) of inverted
        faces; returns itself."""
        self.size.copy_(z[..., self.kept :].square().mean((0, 1)).sqrt() ** SOFTENED)
        return self

    def basis(self) -> torch.Tensor:
        """Q, (F, F), orthogonal, for F = D - kept: the identity before training."""
        skew, one = self.skew - self.skew.T, torch.eye(len(self.skew), device=self.skew.device)
        return torch.linalg.solve(one + skew, one - skew)

    def turn(self, x: torch.Tensor, told: torch.Tensor, back: bool = False) -> torch.Tensor:
        """f, or its inverse, of x (N, L, F); told: what the networks read beside it, (N, T)."""
        scale = torch.rsqrt(x.mean(1).square().mean(1, keepdim=True) + 1e-8)
        rounds = range(len(self.nets))
        for i in reversed(rounds) if back else rounds:
            mixed = x[..., self.orders[i]]
            turned, rest, asked = mixed.split([self.turned, self.half - self.turned, mixed.shape[-1] - self.half], -1)
            angle = self.nets[i](torch.cat([asked.mean(1) * scale, told], -1))[:, None]
            turned = rotate_pairs(turned, -angle if back else angle)
            x = torch.cat([turned, rest, asked], -1)[..., self.orders[i].argsort()]
        return x

    def change(self, z: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        q, kept, x = self.basis(), z[..., : self.kept], z[..., self.kept :]
        told = torch.cat([kept.mean(1), password.mean(1)], -1)
        x = self.turn(self.turn(x / self.size @ q, told) * self.sign, told, back=True)
        return torch.cat([kept, x @ q.T * self.size], -1)


class KeyedReflection(CodeModel):
    """A control without training: pairs of components of z, mirrored at angles that are linear in the password."""

    def __init__(self, n_latent: int, codes: GaussianCodes):
        super().__init__(n_latent, codes)
        draw, pairs = torch.Generator().manual_seed(0), (self.style_dim - KEPT) // 2
        self.register_buffer("weight", 2 * torch.randn(pairs, self.style_dim, generator=draw) / self.style_dim**0.5)

    def change(self, z: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        pairs = len(self.weight)
        kept, x, rest = z.split([KEPT, 2 * pairs, self.style_dim - KEPT - 2 * pairs], -1)
        mirrored = x * torch.tensor([1.0, -1.0], device=x.device).repeat(pairs)
        angle = 2 * F.linear(password.mean(1), self.weight)[:, None]
        return torch.cat([kept, rotate_pairs(mirrored, angle), rest], -1)


class FirstSlots(CodeModel):
    """An encryptor of fewer slots on the first ones of longer codes; the others, of fine detail, stay as they are."""

    def __init__(self, inner: CodeModel, n_latent: int, codes: GaussianCodes):
        super().__init__(n_latent, codes)
        self.inner = inner

    def change(self, z: torch.Tensor, password: torch.Tensor) -> torch.Tensor:
        first = self.inner.n_latent
        return torch.cat([self.inner.change(z[:, :first], password[:, :first]), z[:, first:]], 1)


ARCHITECTURES = ("transformer", "mlp", "coupling", "reflection", "released")


def build_encryptor(preset: str | Preset, arch: str, codes: GaussianCodes) -> CodeModel:
    """The untrained encryptor of a preset, one of `ARCHITECTURES`; codes: its generator's Gaussian space.

    Raises ValueError for an unknown preset or architecture.
    """
    p = get(preset)
    if arch == "transformer":
        return LatentEncryptor(p.levels, p.width, codes)
    if arch == "mlp":
        return MLPEncryptor(p.n_latent, p.hidden, codes)
    if arch == "coupling":
        return RotationCoupling(p.n_latent, p.hidden, codes)
    if arch == "reflection":
        return KeyedReflection(p.n_latent, codes)
    if arch == "released":
        return ReleasedEncryptor(p.levels, codes)
    raise ValueError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
