"""One code path, several scales: a `Preset` is all that distinguishes a test from the paper."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Preset:
    """Resolution, framing, widths and judge of one scale."""

    name: str
    resolution: int  # px, side of the square face image
    framing: str  # "tight" (forehead to chin) or "ffhq"
    style_dim: int  # D, width of a code
    n_mlp: int  # layers of the mapping network; the paper's generator has 8
    channels: dict[int, int]  # {side: channels} of generator and discriminator
    levels: tuple[int, int, int]  # slots of the coarse, medium and fine level of a code
    encoder_width: int  # channels of the inversion encoder's first stage; IR-SE50 has 64
    encoder_blocks: tuple[int, ...]  # residual blocks a stage; IR-SE50 has 3, 4, 14, 3
    encoder_fpn: int  # channels of the feature pyramid; the published e4e: 512
    encoder_head: int  # channels of a slot's head; the published e4e: 512
    encoder_flat: int  # side of the map that a slot's head reads linearly; 0: e4e's own head, down to one pixel
    identity: str  # the recogniser trained against (F_e); the paper's is irse50 (ArcFace)
    critic: dict[int, int] | None = None  # channels of the discriminator; None: the generator's
    base: int = 0  # slots whose codes also weigh eigenfaces, see riddle.models.eigenfaces; the paper: none
    encoder_stem: int = 1  # stride of the encoder's first convolution; e4e: 1
    noise: bool = True  # per-pixel noise in the generator; see `_MINI`
    depth: int = 1  # transformer decoder blocks a level; the paper: 1
    heads: int = 4  # attention heads

    @property
    def n_latent(self) -> int:
        """L, slots of a code."""
        return sum(self.levels)


def _paper_channels(resolution: int) -> dict[int, int]:
    widths = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    return {side: c for side, c in widths.items() if side <= resolution}


_SMOKE = Preset(
    name="smoke", resolution=32, framing="tight", style_dim=64, n_mlp=2,
    channels={4: 32, 8: 32, 16: 32, 32: 16}, levels=(3, 3, 2),
    encoder_width=16, encoder_blocks=(1, 1, 1, 1), encoder_fpn=32, encoder_head=16, encoder_flat=4,
    identity="arcface-mobilefacenet",
)  # fmt: skip
# No noise: the inversion renders with fixed maps, and a generator tuned so learns to draw one face with them, the same
# under every code. Measured at 64 px after 36,000 faces: the mean error with the noise is higher than without it.
_MINI = Preset(
    name="mini", resolution=64, framing="tight", style_dim=256, n_mlp=4,
    channels={4: 128, 8: 128, 16: 128, 32: 128, 64: 64}, levels=(4, 4, 2),
    encoder_width=32, encoder_blocks=(2, 2, 3, 1), encoder_fpn=128, encoder_head=32, encoder_flat=4,
    base=4, encoder_stem=2, noise=False, critic={4: 128, 8: 128, 16: 128, 32: 64, 64: 32},
    identity="arcface-mobilefacenet",
)  # fmt: skip
_FFHQ256 = Preset(
    name="ffhq256", resolution=256, framing="ffhq", style_dim=512, n_mlp=8,
    channels=_paper_channels(256), levels=(4, 4, 6),
    encoder_width=64, encoder_blocks=(3, 4, 14, 3), encoder_fpn=512, encoder_head=512, encoder_flat=0,
    identity="irse50",
)  # fmt: skip

PRESETS = {
    "smoke": _SMOKE,
    "mini": _MINI,
    "face128": replace(
        _MINI, name="face128", resolution=128, levels=(4, 4, 4),
        channels={4: 128, 8: 128, 16: 128, 32: 128, 64: 128, 128: 64},
        critic={4: 128, 8: 128, 16: 128, 32: 128, 64: 64, 128: 32},
    ),
    "ffhq256": _FFHQ256,
    "ffhq1024": replace(
        _FFHQ256, name="ffhq1024", resolution=1024, levels=(4, 4, 10), channels=_paper_channels(1024)
    ),
}  # fmt: skip


def get(preset: str | Preset) -> Preset:
    """A preset by name, or the preset itself. Raises ValueError for an unknown name."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]
