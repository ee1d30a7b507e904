"""Picture files of unknown origin: opened safely, written whole or not at all.

What is opened: one still picture of JPEG, PNG, WebP, TIFF, BMP, GIF, PPM or AVIF, upright (EXIF orientation), as RGB of
8 bits. What is written: PNG, JPEG or WebP with the colour profile and nothing else of the original's metadata: EXIF
and XMP hold places, names, serial numbers, and a thumbnail that shows the face.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from riddle import xmp

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
READ_ONLY = frozenset({".tif", ".tiff", ".bmp", ".gif", ".ppm", ".avif"})  # endings of what is opened and not written
LONGEST = {"PNG": 2**31 - 1, "JPEG": 65_535, "WEBP": 16_383}  # px a side
MAX_BYTES = 512 << 20  # of a file
MAX_PIXELS = 120_000_000  # of a picture; at 3 bytes each 360 MB
MAX_PROFILE = 4 << 20  # bytes of a colour profile
DEEP = "16 bits a channel reduced to 8"


class PhotoError(ValueError):
    """A photo that cannot be handled: which file, why, and what to do."""

    def __init__(self, file: str | Path, cause: str, remedy: str):
        super().__init__(f"{file}: {cause}; {remedy}")
        self.file, self.cause, self.remedy = str(file), cause, remedy

    def __reduce__(self):  # worker processes send it home
        return type(self), (self.file, self.cause, self.remedy)


@dataclass(frozen=True)
class Picture:
    """An upright picture as RGB, and what is needed to write it again as it was."""

    rgb: Image.Image
    name: str
    alpha: Image.Image | None = None  # None: opaque
    grey: bool = False
    profile: bytes | None = None  # ICC, of the RGB or grey pixels
    notes: tuple[str, ...] = ()  # what was changed on opening

    def with_pixels(self, rgb: Image.Image) -> Image.Image:
        """Other RGB pixels in this picture's mode: L, LA, RGB or RGBA."""
        image = rgb.convert("L") if self.grey else rgb
        if self.alpha is not None:
            image = image.copy()
            image.putalpha(self.alpha)
        return image


def read_file(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file. Raises PhotoError when it is missing, no file, empty or larger than `most`."""
    path = Path(path)
    try:
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise PhotoError(path, "it is no regular file", "name a picture file")
            if state.st_size > most:
                raise PhotoError(path, f"it has {state.st_size >> 20} MB, more than {most >> 20}", "reduce it first")
            data = file.read(most)
    except FileNotFoundError:
        raise PhotoError(path, "there is no such file", "check the name") from None
    except IsADirectoryError:
        raise PhotoError(path, "it is a folder", "name a picture file") from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise PhotoError(path, f"it cannot be read ({e})", "check its permissions") from e
    if not data:
        raise PhotoError(path, "it is empty", "fetch it again")
    return data


def open_picture(source: str | Path | bytes | Image.Image, name: str = "") -> Picture:
    """A picture from a file, a file's bytes or an opened image; name: for messages.

    Raises PhotoError for what is no single still picture, is damaged, or has more than MAX_PIXELS pixels.
    """
    if isinstance(source, Image.Image):
        return _upright(source, name or str(getattr(source, "filename", "") or "the picture"), ())
    if not isinstance(source, bytes):
        name, source = name or str(source), read_file(source)
    name = name or "the picture"
    deep = source[:8] == b"\x89PNG\r\n\x1a\n" and source[24:25] == b"\x10"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; the limits here decide
        try:
            Image.init()
            image = Image.open(io.BytesIO(source), formats=[f for f in FORMATS if f in Image.OPEN])
        except Image.DecompressionBombError as e:
            raise PhotoError(name, f"it has more than {MAX_PIXELS // 10**6} megapixels", "reduce it first") from e
        except Exception as e:  # decoders of damaged files raise whatever they stumbled upon
            raise PhotoError(name, "it is no picture that can be read", f"use {', '.join(FORMATS)}") from e
        return _upright(image, name, (DEEP,) if deep else ())


def _upright(image: Image.Image, name: str, notes: tuple[str, ...]) -> Picture:
    width, height = image.size
    if width * height > MAX_PIXELS:
        most = f"more than {MAX_PIXELS // 10**6} megapixels"
        raise PhotoError(name, f"it has {width} x {height} px, {most}", "reduce it first")
    if getattr(image, "is_animated", False):
        if image.format != "MPO":  # a camera's JPEG with further pictures behind it: the first is the photo
            raise PhotoError(name, "it is animated or has several pages", "save one frame of it, or make it a video")
        notes = (*notes, "further pictures behind the first (preview, depth) dropped")
    try:
        image.load()
        return _plain(ImageOps.exif_transpose(image), image.format, name, notes)
    except PhotoError:
        raise
    except Exception as e:  # as above
        raise PhotoError(name, f"it is damaged ({e})", "fetch it again, or open and save it in an editor") from e


def _plain(image: Image.Image, kind: str | None, name: str, notes: tuple[str, ...]) -> Picture:
    """RGB, alpha and profile of a loaded, upright image of any mode."""
    profile, mode = image.info.get("icc_profile"), image.mode
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= MAX_PROFILE:
        profile = None
    if mode in ("F", "LAB", "HSV"):
        raise PhotoError(name, f"its pixels are of mode {mode}", "convert it to RGB")
    if mode == "I" or mode.startswith("I;16"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65_535:
            raise PhotoError(name, "its grey levels do not fit 16 bits", "convert it to 8 bits")
        image = Image.fromarray(((levels.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8))
        notes = (*(n for n in notes if n != DEEP), DEEP)
    elif mode == "CMYK":
        image, profile = _from_cmyk(image, profile), None
        notes = (*notes, "CMYK converted to sRGB")
    grey, alpha = image.mode in ("1", "L", "LA", "La"), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        # What lies under full transparency is not seen, so no look at the result would find a face there.
        image = Image.composite(image, Image.new("RGBA", image.size), alpha.point(lambda a: 255 if a else 0))
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    if profile is not None and profile[16:20] != (b"GRAY" if grey else b"RGB "):
        profile = None
    rgb = image.convert("RGB")
    rgb.info = {}  # nothing of the original's metadata
    return Picture(rgb, name, alpha, grey, profile, notes)


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    try:
        return ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")  # no usable profile


def picture_format(path: str | Path) -> str:
    """PNG, JPEG or WEBP by the ending. Raises PhotoError for another."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise PhotoError(
            path, f"no picture is written as {ending or 'a name without ending'}", "use .png, .jpg or .webp"
        )
    return ENDINGS[ending]


def encode(
    image: Image.Image, path: str | Path, *, packet: bytes = b"", profile: bytes | None = None, quality: int = 95
) -> bytes:
    """The file's bytes in the format of the path's ending.

    image: L, LA, RGB or RGBA; packet: an XMP packet; profile: ICC; quality: 1 to 100, of JPEG and WebP.
    Raises PhotoError for an unknown ending, for transparency in a JPEG, and for a side too long for the format.
    """
    kind = picture_format(path)
    if max(image.size) > LONGEST[kind]:
        raise PhotoError(path, f"{kind} has no side of {max(image.size)} px, only {LONGEST[kind]}", "use .png")
    if kind == "JPEG" and image.mode in ("LA", "RGBA"):
        raise PhotoError(path, "JPEG has no transparency, and this picture has", "use .png or .webp")
    if image.info:
        image = image.copy()
        image.info = {}
    out, options = io.BytesIO(), {} if profile is None else {"icc_profile": profile}
    if kind == "PNG":
        info = PngInfo()
        if packet:
            info.add_itxt(xmp.PNG_KEYWORD, packet.decode())
        options["pnginfo"] = info
    else:
        options["quality"] = quality
        if kind == "WEBP" and packet:
            options["xmp"] = packet
    image.save(out, kind, **options)
    return xmp.into_jpeg(out.getvalue(), packet) if kind == "JPEG" and packet else out.getvalue()


def write_file(path: str | Path, data: bytes) -> Path:
    """Write bytes under a temporary name in the same folder, then rename: a reader sees the old file or the new one.

    Raises PhotoError when the folder is missing.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise PhotoError(path, f"the folder {path.parent} does not exist", "create it")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".riddle-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp made it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
