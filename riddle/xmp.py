"""The standard metadata block that carries a record: an XMP packet in PNG, JPEG or WebP.

Where XMP lies (ISO 16684-1 and its part 3): in PNG an iTXt chunk `XML:com.adobe.xmp`; in JPEG an APP1 segment, which
holds 64 KB, and for more the segments of "extended XMP", each with the MD5 of the whole, its length and its own
offset; in WebP a chunk `XMP `. The packet has one property of ours, `riddle:record`, base64.

Files are walked by their own structure, without decoding a pixel; every length is checked against the file's end.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterator

from PIL import Image

NAMESPACE = "urn:riddle-faces:protected/"
PNG_KEYWORD = "XML:com.adobe.xmp"
MAX_RECORD = 40 << 20  # bytes; Pillow reads at most 64 MB of text from a PNG
_PNG, _JPEG_XMP, _JPEG_MORE = (
    b"\x89PNG\r\n\x1a\n",
    b"http://ns.adobe.com/xap/1.0/\0",
    b"http://ns.adobe.com/xmp/extension/\0",
)
_SEGMENT = 65_000  # bytes of a packet in one JPEG segment, which has room for 65,533
_RECORD = re.compile(
    rb"riddle:record\s*(?:>|=\s*[\"'])([A-Za-z0-9+/=\s]*)"
)  # an editor may turn elements to attributes


def _packet(body: str, about: str = "") -> bytes:
    head = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{head}{_meta(body, about)}<?xpacket end="r"?>'.encode()


def _meta(body: str, attributes: str = "") -> str:
    rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    description = f'<rdf:Description rdf:about="" xmlns:riddle="{NAMESPACE}"{attributes}>{body}</rdf:Description>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{rdf}">{description}</rdf:RDF></x:xmpmeta>'


def packet(record: bytes) -> bytes:
    """The XMP packet of a record."""
    return _packet(f"<riddle:record>{base64.b64encode(record).decode()}</riddle:record>")


def record(packet: bytes | None) -> bytes | None:
    """The record in a packet; None without one. Raises ValueError for text that is no base64 or over MAX_RECORD."""
    match = _RECORD.search(packet or b"")
    if match is None:
        return None
    text = b"".join(match[1].split())
    if len(text) > MAX_RECORD * 4 // 3 + 4:
        raise ValueError(f"it is larger than {MAX_RECORD >> 20} MB")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise ValueError(f"it is no base64: {e}") from e


def into_jpeg(data: bytes, packet: bytes) -> bytes:
    """A JPEG's bytes with a packet, behind the JFIF segment; a long packet becomes extended XMP."""
    segments = []
    if len(packet) > _SEGMENT:
        more = packet[packet.index(b"<x:xmpmeta") : packet.index(b"<?xpacket end")]
        digest = hashlib.md5(more, usedforsecurity=False).hexdigest().upper()
        note = f' xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{digest}"'
        segments.append(_JPEG_XMP + _packet("", note))
        for start in range(0, len(more), _SEGMENT):
            place = digest.encode() + struct.pack(">II", len(more), start)
            segments.append(_JPEG_MORE + place + more[start : start + _SEGMENT])
    else:
        segments.append(_JPEG_XMP + packet)
    block = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    at = 2 + (2 + struct.unpack(">H", data[4:6])[0] if data[2:4] == b"\xff\xe0" else 0)
    return data[:at] + block + data[at:]


def _extended(segments: Iterator[bytes]) -> bytes | None:
    """The packet of a JPEG's APP1 segments, the extension when there is a whole one."""
    main, parts, size = None, {}, 0
    for segment in segments:
        if segment.startswith(_JPEG_XMP) and main is None:
            main = segment[len(_JPEG_XMP) :]
        elif segment.startswith(_JPEG_MORE) and main is not None:
            at = len(_JPEG_MORE)
            if segment[at : at + 32] in main and len(segment) > at + 40:
                size, start = struct.unpack(">II", segment[at + 32 : at + 40])
                parts[start] = segment[at + 40 :]
    whole = b"".join(part for _, part in sorted(parts.items()))
    if parts and len(whole) == size and hashlib.md5(whole, usedforsecurity=False).hexdigest().upper().encode() in main:
        return whole
    return main


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0xDA, 0xD9) or length < 2 or at + 2 + length > len(data):
            return
        if marker == 0xE1:
            yield data[at + 4 : at + 2 + length]
        at += 2 + length


def _png_packet(data: bytes) -> bytes | None:
    at = len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if at + 12 + length > len(data):
            return None
        if kind == b"iTXt" and data[at + 8 : at + 8 + length].startswith(PNG_KEYWORD.encode() + b"\0\0\0"):
            return data[at + 8 : at + 8 + length].split(b"\0", 5)[-1]
        at += 12 + length
    return None


def _webp_packet(data: bytes) -> bytes | None:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[at : at + 8])
        if at + 8 + length > len(data):
            return None
        if kind == b"XMP ":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return None


def read(data: bytes) -> bytes | None:
    """The XMP packet of a PNG's, JPEG's or WebP's bytes; None for another file, without a packet, or when cut off."""
    if data.startswith(_PNG):
        return _png_packet(data)
    if data.startswith(b"\xff\xd8"):
        return _extended(_jpeg_segments(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_packet(data)
    return None


def read_image(image: Image.Image) -> bytes | None:
    """Like `read`, of an image that Pillow opened."""
    image.load()  # a PNG's chunk may follow the pixels
    if hasattr(image, "applist"):
        return _extended(data for name, data in image.applist if name == "APP1")
    found = image.info.get(PNG_KEYWORD) or image.info.get("xmp")
    return found.encode(errors="replace") if isinstance(found, str) else found
