"""Images by name, out of a folder or out of a tar file as it is."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path, PurePosixPath

from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class FolderFiles:
    """The files under a folder; a member is its path relative to it, with slashes."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        found = (
            p for p in self.root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(self.root).parts)
        )
        self.sizes = {p.relative_to(self.root).as_posix(): p.stat().st_size for p in sorted(found) if p.is_file()}

    def read(self, member: str) -> bytes:
        """The bytes of one file."""
        return (self.root / member).read_bytes()


class TarFiles:
    """The files of an uncompressed tar, indexed once, read at random; safe in threads and processes.

    Raises ValueError for a file that is no tar, or a compressed one (which cannot be read at random).
    """

    def __init__(self, path: Path | str):
        self.root = Path(path)
        try:
            with tarfile.open(path, "r:") as archive:
                entries = [m for m in archive if m.isfile()]
        except tarfile.ReadError as e:
            raise ValueError(f"{path} is no uncompressed tar file ({e}); unpack it and give the folder") from e
        self.sizes = {m.name.removeprefix("./"): m.size for m in entries}
        self._offsets = {m.name.removeprefix("./"): m.offset_data for m in entries}
        self._file, self._pid = None, None

    def read(self, member: str) -> bytes:
        """The bytes of one file. Raises KeyError for an unknown member."""
        if self._pid != os.getpid():  # a forked process opens its own
            self._file, self._pid = open(self.root, "rb"), os.getpid()  # noqa: SIM115 (kept open)
        return os.pread(self._file.fileno(), self.sizes[member], self._offsets[member])  # no shared position

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_pid": None}


def open_files(path: Path) -> FolderFiles | TarFiles:
    """A reader for a folder or a tar file."""
    return FolderFiles(path) if path.is_dir() else TarFiles(path)


def images_of(files: FolderFiles | TarFiles) -> list[str]:
    """The members that are images, sorted."""
    return sorted(m for m in files.sizes if PurePosixPath(m).suffix.lower() in SUFFIXES)


def decode(data: bytes, mode: str | None = "RGB") -> Image.Image:
    """The image in `data`; mode None leaves it as stored (masks)."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.convert(mode) if mode else image
