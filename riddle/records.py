"""What a protected PNG carries: one iTXt chunk, 'riddle', with what `restore` needs besides the password.

A JSON object: version, preset, weights (sha256), size of the photo, and for each face the framing matrix (six
numbers, row by row) and the encrypted code (base64 of little-endian float16, L x D).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEYWORD, VERSION = "riddle", 1


class RecordError(ValueError):
    """The record of a protected photo is damaged, or belongs to another model or picture."""


@dataclass(frozen=True)
class Record:
    """Encrypted codes and their places."""

    preset: str
    weights: str  # sha256 of generator and encryptor, hex
    size: tuple[int, int]  # width, height of the photo, px
    matrices: np.ndarray  # (k, 2, 3): each crop's unit square -> photo pixels
    codes: torch.Tensor  # (k, L, D), encrypted, exact in float16

    def to_json(self) -> str:
        """The chunk's text."""
        faces = []
        for matrix, code in zip(self.matrices, self.codes, strict=True):
            packed = base64.b64encode(code.numpy().astype("<f2").tobytes()).decode("ascii")
            faces.append({"matrix": [float(x) for x in matrix.ravel()], "code": packed})
        shape = list(self.codes.shape[1:])
        head = {"version": VERSION, "preset": self.preset, "weights": self.weights, "size": list(self.size)}
        return json.dumps({**head, "code_shape": shape, "faces": faces}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, name: str = "the picture") -> Record:
        """The record of a chunk. Raises RecordError, with the file's name, when it is damaged or too new."""
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise RecordError(
                    f"{name} has a record of version {data['version']}, this program reads {VERSION}; update riddle"
                )
            shape = tuple(int(n) for n in data["code_shape"])
            packed = [base64.b64decode(f["code"], validate=True) for f in data["faces"]]
            codes = [np.frombuffer(p, "<f2").reshape(shape) for p in packed]
            matrices = np.array([f["matrix"] for f in data["faces"]], dtype=np.float64).reshape(-1, 2, 3)
            if len(shape) != 2 or not codes or not np.isfinite(matrices).all() or not np.isfinite(codes).all():
                raise ValueError("no faces, or numbers that are not finite")
            width, height = data["size"]
            return cls(
                str(data["preset"]), str(data["weights"]), (int(width), int(height)), matrices,
                torch.from_numpy(np.stack(codes).astype(np.float32)),
            )  # fmt: skip
        except RecordError:
            raise
        except (KeyError, TypeError, ValueError, binascii.Error) as e:
            raise RecordError(f"the record in {name} is damaged ({e}); restore from the file that protect saved") from e


def read_record(image: Image.Image) -> Record | None:
    """The record of an opened picture, None without one. Raises RecordError for a damaged one."""
    image.load()  # a chunk may follow the pixels
    text = image.info.get(KEYWORD)
    if text is None:
        return None
    return Record.from_json(str(text), getattr(image, "filename", "") or "the picture")


def save_picture(image: Image.Image, path: str | Path, record: Record | None = None) -> Path:
    """Write a picture under a temporary name, then rename; with a record only as PNG.

    Nothing of the original's metadata is written: an embedded thumbnail would show the face.
    Raises ValueError for another format with a record, FileNotFoundError when the folder is missing.
    """
    path = Path(path)
    if record is not None and path.suffix.lower() != ".png":
        raise ValueError(
            f"{path.name}: only a PNG carries the encrypted codes; save as {path.stem}.png, or pass codes=False"
            " and restore by inverting the picture again, less exactly"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path}: the folder {path.parent} does not exist; create it")
    clean = Image.fromarray(np.asarray(image.convert("RGB")))
    options: dict = {}
    if path.suffix.lower() == ".png":
        info = PngInfo()
        if record is not None:
            info.add_itxt(KEYWORD, record.to_json())
        options = {"pnginfo": info}
    elif path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        options = {"quality": 95}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        clean.save(temporary, **options)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp made it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
