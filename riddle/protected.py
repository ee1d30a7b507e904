"""The results of `Riddle.protect` and `Riddle.restore`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from riddle.record import Record, save_picture
from riddle.seal import Sealed


@dataclass(frozen=True)
class Protected:
    """A photo whose faces are encrypted."""

    image: Image.Image  # grey if the photo is grey, and with its transparency
    faces: torch.Tensor  # (k, 3, R, R) in [-1, 1], the encrypted faces as they are pasted, in the photo's light
    record: Record | None  # what `restore` needs besides the password
    secret: bytes = field(repr=False)  # of the password, 32 bytes: it seals the record
    profile: bytes | None = None  # the photo's colour profile

    @property
    def sealed(self) -> Sealed | None:
        """The record as a file carries it."""
        return None if self.record is None else self.record.seal(self.secret)

    def save(self, path: str | Path) -> Path:
        """Write the photo as PNG, JPEG or WebP, with its sealed record. Of the photo's own metadata only its colour
        profile is kept. Raises PhotoError for another format, and for transparency in a JPEG.
        """
        return save_picture(self.image, path, self.sealed, profile=self.profile)


@dataclass(frozen=True)
class Restored:
    """A photo whose faces are decrypted; with a wrong password they are other people's."""

    image: Image.Image  # as `Protected` has it
    faces: torch.Tensor  # (k, 3, R, R) in [-1, 1], the decrypted faces
    source: str  # "codes": from the file's record; "inversion": detected and inverted again, as with a wrong password
    profile: bytes | None = None  # the photo's colour profile

    def save(self, path: str | Path) -> Path:
        """Write the photo in the format of the path's ending, with its colour profile."""
        return save_picture(self.image, path, profile=self.profile)
