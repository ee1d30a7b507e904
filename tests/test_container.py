"""The protected file: what it carries, byte for byte, in every format, and what damaged ones do."""

import base64
import hashlib
import io
import json
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from PIL import Image

from riddle import passwords, record
from riddle.app import bulk, photos
from riddle.images import encode, open_picture
from riddle.record import Record, RecordError, find_record, packet, read_picture, save_picture, sidecar_path

GOLDEN = Path(__file__).parent / "golden" / "protected_v1.png"
ENDINGS = ("png", "jpg", "webp")
SALT = bytes(range(16))


def make(k=2, shape=(8, 64), size=(80, 60), **fields):
    codes = torch.randn(k, *shape, generator=torch.Generator().manual_seed(k)).half().float()
    matrices = np.tile(np.array([[20.0, -3, 12], [3, 20, 9]]), (k, 1, 1)) + np.arange(k)[:, None, None] * [0, 0, 1e-3]
    return Record("smoke", "ab" * 32, size, matrices, codes, **fields)


def equal(a, b):
    same = (a.preset, a.weights, a.size, a.salt, a.originals) == (b.preset, b.weights, b.size, b.salt, b.originals)
    return same and np.array_equal(a.matrices, b.matrices) and torch.equal(a.codes, b.codes)


def picture(size=(80, 60)):
    return Image.effect_mandelbrot(size, (-2, -1, 1, 1), 20).convert("RGB")


# The record


def test_the_bytes_are_as_documented_and_the_record_returns_from_them():
    record = make(salt=SALT, originals=(b"one", b"second one"))
    data = record.to_bytes()
    assert data[:6] == b"RIDDLE" and struct.unpack("<HI", data[6:12])[0] == 3
    n = struct.unpack("<I", data[8:12])[0]
    header = json.loads(data[12 : 12 + n])
    assert header == {
        "preset": "smoke", "weights": "ab" * 32, "size": [80, 60], "code_shape": [8, 64], "salt": SALT.hex(),
        "matrices": [m.ravel().tolist() for m in record.matrices], "originals": [3, 10],
    }  # fmt: skip
    codes = data[12 + n : 12 + n + 2 * 2 * 8 * 64]
    assert np.array_equal(np.frombuffer(codes, "<f2").reshape(2, 8, 64), record.codes.numpy())
    assert data[12 + n + len(codes) : -8] == b"onesecond one"
    assert data[-8:] == hashlib.sha256(data[:-8]).digest()[:8]
    later = rewritten(record, {"mood": "sunny"})  # a field of a later program is ignored
    assert equal(Record.from_bytes(data), record) and equal(Record.from_bytes(later), record)


def rewritten(record, change, body=None):
    """The record's bytes with another header and a right check sum."""
    data = record.to_bytes()
    n = struct.unpack("<I", data[8:12])[0]
    header = json.loads(data[12 : 12 + n])
    header = change(header) if callable(change) else {**header, **change}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = data[:8] + struct.pack("<I", len(text)) + text + (data[12 + n : -8] if body is None else body)
    return data + hashlib.sha256(data).digest()[:8]


@pytest.mark.parametrize(
    "change",
    [
        {"size": [80]}, {"size": [80, -1]}, {"size": [80, 1 << 40]}, {"size": ["80", "60"]}, {"size": [True, 60]},
        {"code_shape": [16, 64]}, {"code_shape": [8, 64, 1]}, {"code_shape": None}, {"code_shape": [1 << 30, 1 << 30]},
        {"matrices": []}, {"matrices": [[1, 2]]}, {"matrices": "abcdef"}, {"matrices": {}},
        {"matrices": [[20, 0, 0, 0, 20, 0], [float("nan"), 0, 0, 0, 20, 0]]},
        {"matrices": [[20, 0, 0, 0, 20, 0], [1e300, 0, 0, 0, 1e300, 0]]},
        {"matrices": [[20, 0, 0, 0, 20, 0], [20, 0, 0, 0, 40, 0]]},
        {"matrices": [[20, 0, 0, 0, 20, 0], [20, 0, 5000, 0, 20, 0]]},
        {"matrices": [[20, 0, 0, 0, 20, 0], [0.01, 0, 5, 0, 0.01, 5]]},
        {"matrices": [[20, 0, 0, 0, 20, 0], [4000, 0, -2000, 0, 4000, -2000]]},
        {"salt": "00"}, {"salt": 5}, {"salt": "zz" * 16}, {"preset": ["smoke"]}, {"weights": "ab"},
        {"originals": [1]}, {"originals": [1, 2]}, {"originals": [-1, 1]}, {"originals": 3},
        lambda h: b"[" * 100_000, lambda h: b"\xff\xfe", lambda h: [1, 2], lambda h: {}, lambda h: b"9" * 100_000,
    ],
)  # fmt: skip
def test_headers_that_make_no_sense(change):
    with pytest.raises(RecordError, match=r"party\.png: its record is damaged"):
        Record.from_bytes(rewritten(make(), change), "party.png")


def test_damage_and_versions():
    data = make().to_bytes()
    for broken in (b"", data[:5], data[:40], data[:-1], data + b"x", b"X" + data[1:], data[:200] + b"#" + data[201:]):
        with pytest.raises(RecordError, match="damaged"):
            Record.from_bytes(broken)
    with pytest.raises(RecordError, match="version 4.*update riddle"):
        Record.from_bytes(data[:6] + b"\4\0" + data[8:])
    infinite = make().codes.numpy().astype("<f2").copy()
    infinite[1, 2, 3] = np.inf
    with pytest.raises(RecordError, match="finite"):
        Record.from_bytes(rewritten(make(), {}, infinite.tobytes()))


# The metadata block


@pytest.mark.parametrize("faces", [1, 100], ids=["short", "long"])  # long: several segments of a JPEG
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_block_is_standard_and_the_pixels_are_the_pictures(tmp_path, ending, faces):
    """Pillow and an XML parser, which know nothing of ours, find the packet and the record in it."""
    carried = make(faces)
    path = save_picture(picture(), tmp_path / f"out.{ending}", carried)
    assert equal(find_record(open_picture(path)), carried)
    with Image.open(path) as opened:
        assert equal(find_record(open_picture(opened)), carried)
        seen = opened.info.get("XML:com.adobe.xmp") or opened.info["xmp"]
        assert np.array_equal(np.asarray(opened), np.asarray(Image.open(io.BytesIO(encode(picture(), path)))))
    text = seen if isinstance(seen, str) else seen.decode()
    root = ElementTree.fromstring(re.sub(r"<\?xpacket.*?\?>", "", text))
    found = root.find(".//{urn:riddle-faces:protected/}record")
    if ending == "jpg" and faces == 100:
        assert found is None and "HasExtendedXMP" in text
    else:
        assert base64.b64decode(found.text) == carried.to_bytes()


def test_extended_segments_are_as_documented(tmp_path):
    """XMP specification, part 3, 1.1.3.1: GUID, length and offset; a reader may meet them in any order."""
    path = save_picture(picture(), tmp_path / "out.jpg", make(100))
    main, *more = (data for name, data in Image.open(path).applist if name == "APP1")
    assert len(more) > 2 and all(len(s) < 65_534 for s in (main, *more))
    head = len(b"http://ns.adobe.com/xmp/extension/\0")
    places = [struct.unpack(">II", s[head + 32 : head + 40]) for s in more]
    whole = b"".join(s[head + 40 :] for s in more)
    assert {size for size, _ in places} == {len(whole)}
    assert [start for _, start in places] == np.cumsum([0, *(len(s) - head - 40 for s in more[:-1])]).tolist()
    guid = hashlib.md5(whole).hexdigest().upper().encode()
    assert all(s[head : head + 32] == guid for s in more) and guid in main
    bare = encode(picture(), "out.jpg")

    def rejoined(segments):
        return bare[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + bare[2:]

    assert equal(find_record(open_picture(rejoined([main, *more[::-1]]))), make(100))
    assert find_record(open_picture(rejoined([main, *more[1:]]))) is None  # one is missing


def test_an_editors_form_of_the_packet_is_read():
    text = packet(make(), "x").decode()
    code = re.search("<riddle:record>(.*)</riddle:record>", text)[1]
    wrapped = re.sub("(.{76})", r"\1\n   ", code)
    attribute = f'<rdf:Description riddle:record = "{code}" dc:format="image/png"/>'
    for form in (text.replace(code, wrapped), attribute):
        assert equal(find_record(replace(open_picture(picture()), xmp=form.encode())), make())
    assert find_record(replace(open_picture(picture()), xmp=b"<riddle:other>")) is None
    with pytest.raises(RecordError, match="base64"):
        find_record(replace(open_picture(picture()), xmp=b"<riddle:record>abc</riddle:record>"))


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_record_too_large_is_refused(monkeypatch, tmp_path, sidecar):
    block = packet(make(), "x")
    monkeypatch.setattr(record, "MAX_RECORD", 1000)
    with pytest.raises(RecordError, match="originals"):
        save_picture(picture(), tmp_path / "out.png", make(), sidecar=sidecar)
    with pytest.raises(RecordError, match="larger"):
        find_record(replace(open_picture(picture()), xmp=block))
    assert not list(tmp_path.iterdir())


# The file


def test_inspect_tells_what_a_file_carries(tmp_path):
    path = tmp_path / "out.jpg"
    save_picture(picture(), path, make(salt=SALT, originals=(b"a", b"b")))
    seen = bulk.inspect(path)
    size = len(make(salt=SALT, originals=(b"a", b"b")).to_bytes())
    assert seen == {
        "file": str(path), "protected": True, "where": "metadata", "version": 3, "preset": "smoke",
        "weights": "ab" * 32, "size": [80, 60], "faces": [[9, 9, 33, 33], [9, 9, 34, 34]], "salt": "random",
        "originals": True, "record_bytes": size, "picture_size": [80, 60],
    }  # fmt: skip
    json.dumps(seen)
    save_picture(picture((40, 30)), path, make())  # scaled since
    seen = bulk.inspect(path)
    assert (seen["size"], seen["picture_size"]) == ([80, 60], [40, 30])
    sidecar_path(path).write_bytes(make(3).to_bytes())  # what lies inside goes before
    assert equal(read_picture(path)[1], make()) and bulk.inspect(path)["where"] == "metadata"
    picture().save(tmp_path / "bare.jpg")
    assert bulk.inspect(tmp_path / "bare.jpg") == {"file": str(tmp_path / "bare.jpg"), "protected": False}


# Sealed originals


def test_seals_open_with_the_key_and_no_other():
    key, crops = b"k" * 32, [((9, 9), picture((24, 24))), ((0, 30), picture((10, 12)).convert("L"))]
    record = make(salt=SALT, originals=photos.seal(crops, key, SALT))
    opened = photos.unseal(record, key)
    assert [corner for corner, _ in opened] == [(9, 9), (0, 30)]
    for (_, a), (_, b) in zip(crops, opened, strict=True):
        assert np.array_equal(np.asarray(a.convert("RGB")), np.asarray(b))
    assert photos.unseal(record, b"j" * 32) is None
    assert photos.unseal(make(), key) is None
    first, second = record.originals
    for changed in ((second, first), (first, second[:-1]), (first, b""), (first[:20] + b"#" + first[21:], second)):
        assert photos.unseal(replace(record, originals=changed), key) is None
    assert photos.unseal(replace(record, salt=bytes(16)), key) is None


def test_seals_are_as_documented():
    """Opened here by hand."""
    key = passwords.derive_key("correct horse", "smoke", SALT)
    sealed = photos.seal([((7, 300), picture((5, 6)))] * 2, key, SALT)
    cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=b"riddle original v1").derive(key))
    plain = cipher.decrypt(sealed[1][:12], sealed[1][12:], SALT + b"\1\0\0\0")
    assert struct.unpack("<II", plain[:8]) == (7, 300)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(plain[8:]))), np.asarray(picture((5, 6))))
    assert sealed[0][:12] != sealed[1][:12]  # a nonce is used once


# Files of earlier programs


@pytest.mark.parametrize("where", ["metadata", "sidecar"])
def test_a_file_of_an_older_model_says_so(tmp_path, where):
    """Written by riddle 0.1: one face of a 44 x 42 px photo, preset smoke, its original sealed inside."""
    path = tmp_path / "old.png"
    path.write_bytes(GOLDEN.read_bytes())
    if where == "sidecar":
        path = sidecar_path(path)
        path.write_bytes(base64.b64decode(re.search(b"<riddle:record>(.*?)</", open_picture(GOLDEN).xmp)[1]))
    said = (
        rf"{path.name}: this file was protected with an older model \(version 1, preset smoke\), which this version of"
        r" riddle no longer has; open it with riddle 0\.1"
    )
    with pytest.raises(RecordError, match=said):
        bulk.inspect(path)
