"""RiDDLE: reversible and diversified face de-identification with a latent encryptor (Li et al., CVPR 2023).

    import riddle
    model = riddle.load("mobile")
    model.protect("photo.jpg", "correct horse").save("protected.png")
    model.restore("protected.png", "correct horse").save("restored.png")

Start with notebooks/00_quickstart.ipynb.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.3.0"
# Names that come from modules which need torch; they load at the first use, so that `import riddle` stays light.
_LAZY = {"load": "riddle.pipeline", "Riddle": "riddle.pipeline", "Preset": "riddle.presets"}

__all__ = ["Preset", "Riddle", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'riddle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
