"""The results of `Riddle.protect` and `Riddle.restore`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from riddle.faces.outcomes import FaceReport
from riddle.images import Picture, open_picture
from riddle.record import Record, save_picture
from riddle.seal import Sealed


@dataclass(frozen=True)
class Protected:
    """A photo whose faces are encrypted."""

    image: Image.Image  # grey if the photo is grey, and with its transparency
    drawn: torch.Tensor  # (k, 3, R, R) in [-1, 1], the encrypted faces as they are pasted, in the photo's light
    record: Record | None  # what `restore` needs besides the passphrase
    secret: bytes = field(repr=False)  # of the passphrase, 32 bytes: it seals the record
    look: Callable[[Image.Image], list[FaceReport]] = field(
        repr=False
    )  # `faces`, as an RGB picture of this photo has them
    profile: bytes | None = None  # the photo's colour profile

    @cached_property
    def faces(self) -> list[FaceReport]:
        """Every face that was found, those that were replaced first: its place, what became of it and why, and what a
        second look at `image` says. A PNG holds `image` to the pixel; `look` says it of another file's pixels."""
        return self.look(self.image.convert("RGB"))

    @property
    def picture(self) -> Picture:
        """The photo as `riddle.images.open_picture` gives it."""
        return replace(open_picture(self.image, "the protected photo"), profile=self.profile)

    @property
    def sealed(self) -> Sealed | None:
        """The record as a file carries it."""
        return None if self.record is None else self.record.seal(self.secret)

    def save(self, path: str | Path) -> Path:
        """Write the photo as PNG, JPEG or WebP, with its sealed record. Of the photo's own metadata only its colour
        profile is kept. Raises PhotoError for another format, and for transparency in a JPEG."""
        return save_picture(self.image, path, self.sealed, profile=self.profile)


@dataclass(frozen=True)
class Restored:
    """A photo whose faces are decrypted; with a wrong passphrase they are other people's."""

    image: Image.Image  # as `Protected` has it
    faces: torch.Tensor  # (k, 3, R, R) in [-1, 1], the decrypted faces
    source: str  # "codes" or "original" pixels of the file's record; "inversion": detected and inverted again
    matrices: np.ndarray  # (k, 2, 3), the faces' places: each crop's unit square -> photo pixels
    profile: bytes | None = None  # the photo's colour profile

    def save(self, path: str | Path, quality: int = 95) -> Path:
        """Write the photo in the format of the path's ending, with its colour profile; quality: of JPEG and WebP."""
        return save_picture(self.image, path, profile=self.profile, quality=quality)
