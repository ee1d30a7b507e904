"""Hostile bytes: only our errors, in bounded time and memory.

Random bytes, and valid files with a part changed, cut, doubled or moved, go to everything that reads a file it did
not write. The check sums of records and PNG chunks are made right again, and contents sealed again, so that changes
reach what lies behind them.
"""

import hashlib
import io
import json
import resource
import struct
import sys
import zlib
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_video import two_faces

from riddle.app.cliprecord import ClipRecord
from riddle.images import PhotoError, Picture, encode, open_picture
from riddle.record import Record, find_record, look_of, packet, read_sidecar
from riddle.seal import Sealed, seal

LIMITS = settings(
    max_examples=120, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
GROWTH = 600  # MB that this module's reading may add at the most: a picture of 120 megapixels is refused or fits
PNG = b"\x89PNG\r\n\x1a\n"
MAGIC = [PNG, b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBP", b"II*\0", b"GIF89a", b"BM", b"P6"]


@cache
def make(faces=2):
    codes = torch.linspace(-2, 2, faces * 8 * 64).view(faces, 8, 64).half().float()
    matrices = np.tile(np.array([[20.0, 0, 5], [0, 20, 5]]), (faces, 1, 1))
    png = encode(Image.new("RGB", (20, 20), (200, 100, 0)), "x.png")
    look = look_of(Image.linear_gradient("L"))
    return Record("smoke", "ab" * 32, (40, 36), bytes(16), matrices, codes, look, (png,) * faces).seal(bytes(32))


@cache
def valid():
    """Files of every kind that is read, with and without a record."""
    image = Image.effect_mandelbrot((40, 36), (-2, -1, 1, 1), 20)
    files = [encode(image, f"x.{kind}", packet=packet(make(), "x")) for kind in ("png", "jpg", "webp")]
    files.append(encode(image, "x.jpg", packet=packet(make(80), "x")))
    exif = Image.Exif()
    exif[0x0112] = 6
    sources = [(image, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")]
    sources += [(image.convert("RGB").convert(mode), "PNG") for mode in ("RGBA", "P")]
    sources += [(Image.new("I;16", (40, 36), 700), "PNG"), (image.convert("CMYK"), "TIFF")]
    for source, kind in sources:
        out = io.BytesIO()
        source.save(out, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
        files.append(out.getvalue())
    return files


def repaired(data):
    """A PNG with right check sums."""
    if not data.startswith(PNG):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        length = struct.unpack(">I", out[at : at + 4])[0]
        if at + 12 + length > len(out):
            break
        out[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(out[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(out)


@st.composite
def mutated(draw, originals):
    """A valid file with one to four changes, most of them near its beginning, where headers lie."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        end = len(data) if draw(st.booleans()) else min(len(data), 300)
        at, n = draw(st.integers(0, max(end - 1, 0))), draw(st.integers(1, 8))
        match draw(st.sampled_from(["set", "flip", "huge", "cut", "drop", "double", "insert"])):
            case "set":
                data[at : at + n] = draw(st.binary(min_size=n, max_size=n))
            case "flip":
                data[at : at + 1] = bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) if data else b""
            case "huge":
                data[at : at + n] = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f"])) * n
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + n]
            case "double":
                data[at:at] = data[at : at + 50 * n]
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
    return repaired(bytes(data)) if draw(st.booleans()) else bytes(data)


@pytest.fixture(scope="module", autouse=True)
def bounded():
    def most():  # memory that this process has held, MB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)

    valid()
    before = most()
    yield
    assert most() - before < GROWTH


def read_everything(data):
    """All that reads a picture file's bytes. Raises only PhotoError."""
    try:
        picture = open_picture(data)
        assert picture.rgb.mode == "RGB" and np.asarray(picture.rgb).shape == (*picture.rgb.size[::-1], 3)
        record = find_record(picture)
    except PhotoError as e:
        assert e.cause and e.remedy
        return
    opened = record and Record.open(record, bytes(32), "x")
    assert opened is None or len(opened.boxes()) == len(opened.codes) == len(opened.originals) in (2, 80)


@LIMITS
@given(st.sampled_from([b"", *MAGIC]), st.binary(max_size=400))
def test_random_bytes_alone_and_behind_a_magic_number(magic, data):
    read_everything(magic + data)
    with pytest.raises(PhotoError):
        Sealed.from_bytes(data, "x", "photo")


@settings(LIMITS, max_examples=400)
@given(mutated(valid()))
def test_changed_files(data):
    read_everything(data)


@settings(LIMITS, max_examples=200)
@given(mutated([make().data]), st.booleans())
def test_changed_records(tmp_path, data, signed):
    """They are refused, or do not open; a sidecar holds nothing else."""
    if signed:
        data = data[:-8] + hashlib.sha256(data[:-8]).digest()[:8]
    (tmp_path / "x.riddle").write_bytes(data)
    with suppress(PhotoError):
        assert read_sidecar(tmp_path / "x.riddle").data == data
    try:
        record = Sealed.from_bytes(data, "x", "photo")
    except PhotoError:
        return
    assert record.open(bytes(32)) is None or record == make()


@settings(LIMITS, max_examples=400)
@given(mutated([make().open(bytes(32)), two_faces().to_bytes()]))
def test_changed_contents_under_the_right_key(content):
    sealed = seal(content, bytes(32), "photo", "smoke", "ab" * 32, (40, 36), bytes(16))
    try:
        record = Record.open(sealed, bytes(32), "x")
    except PhotoError:
        pass
    else:
        assert len(record.boxes()) == len(record.codes) == len(record.matrices) and record.codes.isfinite().all()
        Record.open(record.seal(bytes(32)), bytes(32), "x")
    with suppress(PhotoError):  # else the change was in a byte that no reader needs, such as a date
        assert ClipRecord.from_bytes(content, "x", (60, 50)).to_bytes() == two_faces().to_bytes()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@LIMITS
@given(st.sampled_from(["kind", "preset", "weights", "size", "salt"]), VALUES)
def test_any_value_in_a_header(key, value):
    data = make().data
    n = struct.unpack("<I", data[8:12])[0]
    text = json.dumps(json.loads(data[12 : 12 + n]) | {key: value}).encode()
    body = data[:8] + struct.pack("<I", len(text)) + text + data[12 + n : -8]
    with suppress(PhotoError):
        Sealed.from_bytes(body + hashlib.sha256(body).digest()[:8], "x", "photo")


@LIMITS
@given(st.binary(max_size=300))
def test_any_text_in_a_packet(data):
    for text in (data, b"<riddle:record>" + data, b'riddle:record="' + data.hex().encode()):
        with suppress(PhotoError):
            find_record(Picture(Image.new("RGB", (1, 1)), "x.png", xmp=text))
    with suppress(PhotoError):
        Sealed.from_text(data, "x.mp4", "clip")  # the tag of a clip


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((12_001, 10_000), "12001 x 10000 px, more than 120 megapixels; reduce it"),
        ((10_000, 10_000_000), "more than 120 megapixels; reduce it"),
        ((2**31 - 1, 2**31 - 1), "more than 120 megapixels; reduce it"),
    ],
)
def test_small_files_of_large_pictures(size, said):
    """Refused by what the header says, before a pixel is unpacked."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10_000)))]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    with pytest.raises(PhotoError, match=said):
        open_picture(PNG + b"".join(chunks))
