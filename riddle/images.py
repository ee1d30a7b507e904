"""Open pictures safely, write them whole or not at all, turn them into tensors and back.

Input: one still picture of JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, AVIF or HEIF, by its content and not by its
ending, upright (EXIF orientation), as RGB of 8 bits. Output: PNG, JPEG or WebP with the colour profile, an XMP
packet where one is given, and nothing else of the original's metadata: EXIF and XMP hold places, names, serial numbers,
and a thumbnail that shows the face.

An XMP packet (ISO 16684-1 and its part 3) lies in a PNG as an iTXt chunk, in a WebP as a chunk, in a JPEG as an APP1
segment. A segment holds 64 KB; a longer packet goes to the segments of "extended XMP", each with the MD5 of the whole,
its length and its own offset.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from riddle.files import replace_file

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "HEIF")
ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
WRITTEN = {"JPEG": ".jpg", "WEBP": ".webp", "HEIF": ".jpg"}  # format of a source -> ending of its result; others: .png
LONGEST = {"PNG": 2**31 - 1, "JPEG": 65_535, "WEBP": 16_383}  # px a side
MAX_BYTES = 512 << 20  # of a file
MAX_PIXELS = 120_000_000  # of a picture; at 3 bytes each 360 MB
MAX_PROFILE = 4 << 20  # bytes of a colour profile
BROKEN = "damaged metadata dropped; if the picture lies on its side, turn it first"
DEEP = "16 bits a channel reduced to 8"
_PNG_XMP = "XML:com.adobe.xmp"
_JPEG_XMP, _JPEG_MORE = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_SEGMENT = 65_000  # bytes of a packet in one JPEG segment, which has room for 65,533
XMP = (  # a packet; {}: attributes of its one description, ">", and elements
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" {}'
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_EXTENDED = XMP.format('xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{}">')  # in segment one

pillow_heif.register_heif_opener()


class PhotoError(ValueError):
    """A photo that cannot be handled: which file, why, and what to do."""

    def __init__(self, file: str | Path, cause: str, remedy: str):
        super().__init__(f"{file}: {cause}; {remedy}")
        self.file, self.cause, self.remedy = str(file), cause, remedy

    def __reduce__(self):  # so that worker processes can send it
        return type(self), (self.file, self.cause, self.remedy)


@dataclass(frozen=True)
class Picture:
    """An upright picture as RGB, and what is needed to write it again as it was."""

    rgb: Image.Image
    name: str  # for messages
    alpha: Image.Image | None = None  # None: opaque
    grey: bool = False
    profile: bytes | None = None  # ICC, of the RGB or grey pixels
    xmp: bytes = b""  # its XMP packet
    notes: tuple[str, ...] = ()  # what was changed on opening

    def with_pixels(self, rgb: Image.Image) -> Image.Image:
        """Other RGB pixels in this picture's mode: L, LA, RGB or RGBA."""
        image = rgb.convert("L") if self.grey else rgb
        if self.alpha is not None:
            image = image.copy()
            image.putalpha(self.alpha)
        return image


# ---- pixels and tensors


def to_tensor(pixels: torch.Tensor | np.ndarray | Image.Image) -> torch.Tensor:
    """RGB pixels (..., H, W, 3) uint8, or an RGB picture -> faces (..., 3, H, W) in [-1, 1], channels_last."""
    x = pixels if isinstance(pixels, torch.Tensor) else torch.from_numpy(np.array(pixels, np.uint8))
    return x.movedim(-1, -3).float().div_(127.5).sub_(1)


def to_bytes(faces: torch.Tensor) -> np.ndarray:
    """Faces (..., 3, H, W) in [-1, 1] -> pixels (..., H, W, 3) uint8."""
    x = faces.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    return x.movedim(-3, -1).contiguous().numpy()


def to_image(face: torch.Tensor) -> Image.Image:
    """One face (3, R, R) in [-1, 1] -> RGB picture."""
    return Image.fromarray(to_bytes(face))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Pixels (N, R, R, 3) uint8 after JPEG compression, with the colours at half resolution as is customary."""
    out = np.empty_like(pixels)
    for i, one in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(one).save(file, "JPEG", quality=quality)
        out[i] = np.asarray(Image.open(file))
    return out


# ---- opening


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
    except PhotoError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise PhotoError(path, f"it cannot be read ({e})", "check its permissions") from e
    if not data:
        raise PhotoError(path, "it is empty", "fetch it again")
    return data


def open_picture(source: str | Path | bytes | Image.Image | Picture, name: str = "") -> Picture:
    """A picture from a file, a file's bytes or an opened image, or the picture given; name: for messages.

    Raises PhotoError for what is no single still picture, is damaged, or has more than MAX_PIXELS pixels.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return _upright(source, name or str(getattr(source, "filename", "") or "the picture"), ())
    if not isinstance(source, bytes):
        name, source = name or str(source), read_file(source)
    name = name or "the picture"
    deep = source[:8] == b"\x89PNG\r\n\x1a\n" and source[24:25] == b"\x10"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; the limits here decide
        try:
            image = _identified(io.BytesIO(source))
        except Image.DecompressionBombError as e:
            raise PhotoError(name, f"it has more than {MAX_PIXELS // 10**6} megapixels", "reduce it first") from e
        except Exception as e:  # decoders of damaged files raise whatever they stumbled upon
            raise PhotoError(name, "it is no picture that can be read", f"use {', '.join(FORMATS)}") from e
        return _upright(image, name, (DEEP,) if deep else ())


def kind_of(path: str | Path) -> str:
    """The format of a picture file, one of FORMATS, by its first bytes; "" for what is none or cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _identified(path) as image:
                return "JPEG" if image.format == "MPO" else image.format
        except Exception:  # as above
            return ""


def _identified(file: str | Path | io.BytesIO) -> Image.Image:
    Image.init()
    return Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])


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
        xmp = _read_xmp(image)
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # as above; the pixels are sound
            notes = (*notes, BROKEN)
        return _plain(image, xmp, name, notes)
    except PhotoError:
        raise
    except Exception as e:  # as above
        remedy = "fetch it again; an editor that saves it may drop a protected photo's record"
        raise PhotoError(name, f"it is damaged ({e})", remedy) from e


def _plain(image: Image.Image, xmp: bytes, name: str, notes: tuple[str, ...]) -> Picture:
    """The parts of a loaded, upright image of any mode."""
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
        # Nobody sees what lies under full transparency, so nobody would notice a face that stayed there.
        image = Image.composite(image, Image.new("RGBA", image.size), alpha.point(lambda a: 255 if a else 0))
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    if profile is not None and profile[16:20] != (b"GRAY" if grey else b"RGB "):
        profile = None
    rgb = image.convert("RGB")
    rgb.info = {}  # nothing of the original's metadata
    return Picture(rgb, name, alpha, grey, profile, xmp, notes)


def _from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")  # no usable profile


def _read_xmp(image: Image.Image) -> bytes:
    """The XMP packet of a loaded image, empty without one; of a JPEG the extension when there is a whole one."""
    if not hasattr(image, "applist"):
        found = image.info.get(_PNG_XMP) or image.info.get("xmp") or b""
        return found.encode(errors="replace") if isinstance(found, str) else found
    main, parts, size = None, {}, 0
    for segment in (data for name, data in image.applist if name == "APP1"):
        if segment.startswith(_JPEG_XMP) and main is None:
            main = segment[len(_JPEG_XMP) :]
        elif segment.startswith(_JPEG_MORE) and main is not None:
            at = len(_JPEG_MORE)
            if segment[at : at + 32] in main and len(segment) > at + 40:
                size, start = struct.unpack(">II", segment[at + 32 : at + 40])
                parts[start] = segment[at + 40 :]
    whole = b"".join(part for _, part in sorted(parts.items()))
    if parts and len(whole) == size and _md5(whole) in main:
        return whole
    return main or b""


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).hexdigest().upper().encode()


# ---- writing


def picture_format(path: str | Path) -> str:
    """PNG, JPEG or WEBP by the ending. Raises PhotoError for another."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        kind = ending or "a name without ending"
        raise PhotoError(path, f"no picture is written as {kind}", "use .png, .jpg or .webp")
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
        options["pnginfo"] = PngInfo()
        if packet:
            options["pnginfo"].add_itxt(_PNG_XMP, packet.decode())
    else:
        options["quality"] = quality
        if kind == "WEBP" and packet:
            options["xmp"] = packet
    image.save(out, kind, **options)
    return _with_xmp(out.getvalue(), packet) if kind == "JPEG" and packet else out.getvalue()


def _with_xmp(data: bytes, packet: bytes) -> bytes:
    """A JPEG's bytes with a packet behind the JFIF segment. Pillow writes packets of one segment only."""
    segments = [_JPEG_XMP + packet]
    if len(packet) > _SEGMENT:
        more = packet[packet.index(b"<x:xmpmeta") : packet.index(b"<?xpacket end")]
        segments = [_JPEG_XMP + _EXTENDED.format(_md5(more).decode()).encode()]
        for start in range(0, len(more), _SEGMENT):
            place = _md5(more) + struct.pack(">II", len(more), start)
            segments.append(_JPEG_MORE + place + more[start : start + _SEGMENT])
    block = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    at = 2 + (2 + struct.unpack(">H", data[4:6])[0] if data[2:4] == b"\xff\xe0" else 0)
    return data[:at] + block + data[at:]


def write_file(path: str | Path, data: bytes) -> Path:
    """Write bytes whole or not at all. Raises PhotoError when the folder is missing."""
    path = Path(path)
    if not path.parent.is_dir():  # a wrong name of a folder shall not make one
        raise PhotoError(path, f"the folder {path.parent} does not exist", "create it")
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return path
