"""The systems that the paper compares with, and FALCO, behind one interface: faces and keys in, protected faces out.

    keys = random_keys(len(faces), seed=0)
    protected = BASELINES["ciagan"].protect(faces, keys)
    restored = BASELINES["fit"].restore(protected, keys)     # where `reversible`

Faces are (N, 3, R, R) in [-1, 1], framed as FFHQ's are; the networks take 128 px. A key is a whole number; each system
makes of it what its paper calls a password, a label or noise. Each network is a module of this package with the same
name as its weights in data/zoo; it trains there by `python -m riddle.baselines.<name> --recipe mobile`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

import torch

from .plain import BLOCKS, SIGMA, blur, mosaic


@dataclass(frozen=True)
class Baseline:
    """A de-identification system, as the tables name it."""

    label: str  # as the tables print it, with its strength
    change: Callable[[torch.Tensor], torch.Tensor] | None = None  # of a system that needs no key
    file: str = ""  # module of this package, and bundled weights of a system that has both
    uses: str = ""  # bundled weights of this project that a system without its own needs
    reversible: bool = False  # True: `restore` undoes `protect`, with the same keys

    @property
    def keyed(self) -> bool:
        """True if its faces depend on a key."""
        return bool(self.file)

    @property
    def weights(self) -> str:
        """The bundled weights behind it; '' for a system that needs none."""
        return self.file or self.uses

    def protect(self, faces: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> protected ones; keys: (N,) int64, where `keyed`. Raises WeightsMissingError
        without the weights, ValueError for faces of another size and where there are not as many keys as faces."""
        return self.change(faces) if self.change else _called("protect", self, faces, keys)

    def restore(self, faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Protected faces (N, 3, R, R) and their keys (N,) -> restored faces. Raises as `protect` does, and ValueError
        for a system that is not `reversible`."""
        if not self.reversible:
            raise ValueError(f"{self.label} keeps nothing to restore from")
        return _called("restore", self, faces, keys)


def _called(action: str, system: Baseline, faces: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
    if keys is None or len(keys) != len(faces):
        got = "none" if keys is None else str(len(keys))
        raise ValueError(f"{system.label} needs one key for each of {len(faces)} faces, got {got}; use random_keys")
    module: ModuleType = import_module(f"{__name__}.{system.file}")  # here: a network loads slowly
    return getattr(module, action)(faces, keys)


def random_keys(n: int, seed: int) -> torch.Tensor:
    """n random keys (n,), int64, the same for the same seed."""
    return torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(seed))


def _falco(faces: torch.Tensor) -> torch.Tensor:
    from .falco import protect  # here: its networks load slowly

    return protect(faces)


BASELINES = {
    "ciagan": Baseline("CIAGAN", file="ciagan"),
    "fit": Baseline("FIT", file="fit", reversible=True),
    "personal": Baseline("Personal", file="personal", reversible=True),
    "deepprivacy": Baseline("DeepPrivacy", file="deepprivacy"),
    "falco": Baseline("FALCO", _falco, uses="encoder"),
    "blur": Baseline(f"face blurring (sigma 1/{1 / SIGMA:.0f} of the crop)", blur),
    "mosaic": Baseline(f"mosaicing ({BLOCKS} x {BLOCKS} blocks)", mosaic),
}
# With their authors' weights, where these are on this machine; the tables show the bundled ones.
PUBLISHED = {
    name: replace(BASELINES[name], label=f"{BASELINES[name].label}, published weights", file=f"published.{name}")
    for name in ("ciagan", "fit", "deepprivacy")
}
