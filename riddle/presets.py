"""Several scales of one code path: a test differs from the paper only in its `Preset`.

A `Variant` is an encryptor that stands in the tables: the paper's, its ablations, ours, and the controls. Every preset
may have those of `VARIANTS`; `RELEASED`, by the paper's authors, was published for one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Preset:
    """Networks, resolution and widths of one scale. Faces are framed as FFHQ's are."""

    name: str
    resolution: int  # px, side of the square face image that encoder, losses and tables see
    style_dim: int  # D, width of a code
    levels: tuple[int, int, int]  # slots of the coarse, medium and fine level of a code
    identity: str  # the recogniser trained against (F_e); the paper's is irse50 (ArcFace)
    generator: str = "stylegan2"  # or "mobilestylegan", whose weights come in a wheel
    n_mlp: int = 8  # layers of the mapping network
    channels: dict[int, int] | None = None  # {side: channels} of a StyleGAN2
    encoder: str = "irse"  # the published e4e's body, or "lite": EfficientNet-Lite0
    encoder_width: int = 64  # irse: channels of the first stage; IR-SE50 has 64
    encoder_blocks: tuple[int, ...] = (3, 4, 14, 3)  # irse: residual blocks per stage; IR-SE50's
    encoder_fpn: int = 512  # channels of the feature pyramid; the published e4e: 512
    encoder_head: int = 512  # channels of a slot's head; the published e4e: 512
    encryptor: str = "encryptor"  # the one that `riddle.load` takes; the paper's is "encryptor"
    fallback: str = ""  # the one that it takes while nobody has trained that
    borrows: str = ""  # the preset with the same W, whose space of codes, and encryptors for its slots, serve here
    width: int = 512  # channels inside the transformer encryptor; the paper does not give it
    hidden: int = 1024  # channels inside the MLP and the coupling

    @property
    def n_latent(self) -> int:
        """L, slots of a code."""
        return sum(self.levels)


def _paper_channels(resolution: int) -> dict[int, int]:
    widths = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    return {side: c for side, c in widths.items() if side <= resolution}


_SMOKE = Preset(
    name="smoke", resolution=32, style_dim=64, levels=(3, 3, 2), identity="arcface-mobilefacenet",
    n_mlp=2, channels={4: 32, 8: 32, 16: 32, 32: 16},
    encoder_width=16, encoder_blocks=(1, 1, 1, 1), encoder_fpn=32, encoder_head=16, width=64, hidden=128,
)  # fmt: skip
_MOBILE = Preset(
    name="mobile", resolution=128, style_dim=512, levels=(4, 4, 2), identity="arcface-mobilefacenet",
    generator="mobilestylegan", encoder="lite", encoder_fpn=192, encoder_head=64,
    encryptor="encryptor_coupling", width=320, hidden=512,
)  # fmt: skip
_FFHQ256 = Preset(
    name="ffhq256", resolution=256, style_dim=512, levels=(4, 4, 6), identity="irse50", channels=_paper_channels(256),
    fallback="encryptor_released",
)  # fmt: skip

PRESETS = {
    "smoke": _SMOKE,
    "mobile": _MOBILE,
    "ffhq256": _FFHQ256,
    "ffhq1024": replace(
        _FFHQ256, name="ffhq1024", resolution=1024, levels=(4, 4, 10), channels=_paper_channels(1024),
        fallback="encryptor_coupling", borrows="mobile",
    ),
}  # fmt: skip


def get(preset: str | Preset) -> Preset:
    """A preset by name, or the preset itself. Raises ValueError for an unknown name."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


@dataclass(frozen=True)
class Variant:
    """An encryptor of Table 5: its name there, its weights, and the settings of its training."""

    label: str  # as in the paper, where the paper has it
    file: str  # <file>.safetensors of a preset, and what `riddle.load(encryptor=...)` takes; no file holds a control
    arch: str = "transformer"  # one of models.encryptor.ARCHITECTURES
    datafree: bool = False  # trained on codes drawn from the mapping network (section 3.3)
    diversity: bool = True  # trained with L_div (eq. 5)
    trained: bool = True  # False: a control, as it starts from seed 0


VARIANTS = {
    "riddle": Variant("full", "encryptor"),
    "datafree": Variant("without data", "encryptor_datafree", datafree=True),
    "mlp": Variant("without transformer", "encryptor_mlp", arch="mlp"),
    "nodiv": Variant("without identity diversity loss", "encryptor_nodiv", diversity=False),
    "coupling": Variant("RotationCoupling (ours)", "encryptor_coupling", arch="coupling"),
    "untrained": Variant("untrained transformer (control)", "untrained", trained=False),
    "reflection": Variant("keyed reflection (control)", "reflection", arch="reflection", trained=False),
}
RELEASED = Variant("full, as the authors released it", "encryptor_released", arch="released")
RELEASED_FOR = "ffhq256"  # the preset that it was published for
ALL_VARIANTS = VARIANTS | {"released": RELEASED}
CONTROLS = tuple(name for name, variant in VARIANTS.items() if not variant.trained)
