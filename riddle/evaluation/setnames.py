"""The names of the sets of faces that the tables compare: `photo`, `inverted`, a baseline, or variant and action.

    riddle                    encrypted, each picture by its own random password
    riddle-lit                encrypted, drawn in the light of the photo, as `protect` does before it fits
    riddle-wrong              decrypted with a wrong password
    riddle-restored           decrypted with the right one, from the code that was kept
    riddle-png                restored from the encrypted picture: 8 bits per channel, inverted again, decrypted
    riddle-jpeg75             the same after JPEG compression of that quality
    riddle-pasted             the same from the photo: pasted back, detected and cropped again
                              (these three for `Run.few` only: inverting a face takes seconds)
    riddle-passwords          ten passwords for each of `Run.people`
    riddle-wrong-passwords    encrypted by their own password, decrypted with ten wrong ones

Variants are those of `riddle.presets.ALL_VARIANTS`: datafree-restored, mlp-png and so on. A system of
`riddle.baselines` that has keys also has -passwords, and -restored and -wrong where it can restore, from the 8-bit
picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import riddle
from riddle.baselines import BASELINES, Baseline
from riddle.evaluation.rows import PIXELS
from riddle.evaluation.runs import Run
from riddle.presets import ALL_VARIANTS

PLAIN = ("photo", "inverted", *BASELINES)
UNDONE = ("restored", "wrong")  # actions of a baseline that can restore
ACTIONS = ("lit", "wrong", "restored", *PIXELS, "passwords", "wrong-passwords")


@dataclass(frozen=True)
class FaceSet:
    """A face set's name, taken apart."""

    name: str
    variant: str  # key of ALL_VARIANTS, '' for a plain set and a baseline's
    action: str  # one of ACTIONS, or ''
    baseline: Baseline | None = None

    @property
    def encryptor(self) -> str:
        """The encryptor's weights behind it; '' for a plain set and a baseline's."""
        return ALL_VARIANTS[self.variant].file if self.variant else ""

    @property
    def weights(self) -> str:
        """The weights behind it, an encryptor's or a baseline's; '' for a set that needs none."""
        return self.baseline.weights if self.baseline else self.encryptor

    def model(self, run: Run) -> riddle.Riddle:
        """The model behind it, with its encryptor; a plain set asks for none. Raises WeightsMissingError."""
        return riddle.load(run.preset, device=run.device, encryptor=self.encryptor or "untrained")


def parse(item: str) -> FaceSet:
    """A face set by its name. Raises ValueError with the names that there are."""
    variant, _, action = item.partition("-")
    system = BASELINES.get(variant)
    actions = ("passwords",) * system.keyed + UNDONE * system.reversible if system else ()
    if item in PLAIN or item in BASELINES or action in actions:
        return FaceSet(item, "", action, system)
    if item in ALL_VARIANTS or (variant in ALL_VARIANTS and action in ACTIONS):
        return FaceSet(item, variant, action)
    raise ValueError(
        f"unknown set of faces {item!r}; choose {', '.join(PLAIN)}, a variant ({', '.join(ALL_VARIANTS)}), or one "
        f"with an action ({', '.join(ACTIONS)}), as in riddle-restored"
    )
