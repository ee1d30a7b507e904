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
from PIL import Image, ImageEnhance

from riddle import passwords, record
from riddle.app import bulk
from riddle.faces.alignment import crop
from riddle.images import encode, open_picture, to_tensor
from riddle.presets import get
from riddle.record import Record, encoded, find_record, look_of, packet, read_picture, save_picture, sidecar_path
from riddle.seal import RecordError, Sealed, padded, seal

GOLDEN = Path(__file__).parent / "golden" / "protected_v1.png"
ENDINGS = ("png", "jpg", "webp")
SALT, SECRET = bytes(range(16)), bytes(range(32))


def picture(size=(80, 60)):
    return Image.effect_mandelbrot(size, (-2, -1, 1, 1), 20).convert("RGB")


def masks(k, side=32):
    return np.tile(np.arange(side, dtype=np.uint8), (k, side, 1)) / np.float32(255)


def make(k=2, shape=(8, 64), seed=0, **fields):
    codes = torch.randn(k, *shape, generator=torch.Generator().manual_seed(seed)).half().float()
    matrices = np.tile(np.array([[20.0, -3, 12], [3, 20, 9]]), (k, 1, 1)) + np.arange(k)[:, None, None] * [0, 0, 1e-3]
    fields = {"salt": SALT, "look": look_of(picture()), "masks": masks(k)} | fields
    return Record("smoke", "ab" * 32, (80, 60), matrices=matrices + [0, 0, 1e-3 * seed], codes=codes, **fields)


def equal(sealed, b):
    """Whether a sealed record holds this one."""
    a = Record.open(sealed, SECRET, "x")
    same = (a.preset, a.weights, a.size, a.salt, a.originals) == (b.preset, b.weights, b.size, b.salt, b.originals)
    return same and all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("matrices", "codes", "look", "masks"))


def read(data):
    return Sealed.from_bytes(data, "party.png", "photo")


def parts(data):
    """A sealed record's header, its nonce and its ciphertext."""
    start = 12 + struct.unpack("<I", data[8:12])[0]
    return json.loads(data[12:start]), data[start : start + 12], data[start + 12 : -8]


def joined(header, *rest, version=4):
    """The bytes of a header and what follows, with the right check sum."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return summed(b"RIDDLE" + struct.pack("<HI", version, len(text)) + text + b"".join(rest))


def summed(data):
    return data + hashlib.sha256(data).digest()[:8]


# The seal


def test_the_bytes_are_as_documented_and_the_record_returns_from_them():
    """Opened here by hand."""
    record = make(originals=(b"one", b"second one"))
    data = record.seal(SECRET).data
    header, nonce, ciphertext = parts(data)
    known = {"kind": "photo", "preset": "smoke", "weights": "ab" * 32, "size": [80, 60], "salt": SALT.hex()}
    assert header == known and joined(header, nonce, ciphertext) == data
    clear = data[: -len(nonce + ciphertext) - 8]
    plain = AESGCM(passwords.subkey(SECRET, "record")).decrypt(nonce, ciphertext, clear)
    n = struct.unpack("<Q", plain[:8])[0]
    assert len(plain) == padded(n + 8) and not any(plain[n + 8 :])
    with np.load(io.BytesIO(plain[8 : n + 8])) as stored:
        assert np.array_equal(stored["codes"], record.codes) and stored["codes"].dtype == np.float16
        assert np.array_equal(stored["matrices"], record.matrices) and np.array_equal(stored["look"], record.look)
        assert (stored["originals"].tobytes(), stored["lengths"].tolist()) == (b"onesecond one", [3, 10])
    assert equal(read(data), record) and equal(make().seal(SECRET), make())
    assert Record.open(read(data), bytes(32), "x") is None
    later = joined(header | {"mood": "sunny"}, nonce, ciphertext)  # a field more is read, but it was not sealed
    assert read(later).size == (80, 60) and read(later).open(SECRET) is None


def test_masks_may_be_absent_but_not_of_another_shape():
    assert Record.open(read(make(masks=None).seal(SECRET).data), SECRET, "x").masks is None
    for wrong in (masks(1), masks(2)[:, :-1], masks(2)[0], masks(2, 0)):
        with pytest.raises(RecordError, match=r"party\.png: "):
            Record.open(read(make(masks=wrong).seal(SECRET).data), SECRET, "party.png")


def test_what_is_in_clear_depends_on_no_face():
    """Everything else differs from file to file, and the length with the number of faces alone."""
    looks = [np.full((8, 8), v, np.uint8) for v in (0, 99)]
    made = [make(seed=i, salt=passwords.random_salt(), look=look) for i, look in enumerate(looks)]
    (a, nonce_a, text_a), (b, nonce_b, text_b) = (parts(record.seal(SECRET).data) for record in made)
    assert a | {"salt": ""} == b | {"salt": ""} and a["salt"] != b["salt"]
    assert len(text_a) == len(text_b) and nonce_a != nonce_b
    _, again, text = parts(made[0].seal(SECRET).data)
    assert again != nonce_a and sum(x == y for x, y in zip(text, text_a, strict=True)) < 0.02 * len(text)


def test_few_sizes_and_little_filling():
    lengths = range(1, 1 << 18)
    filled = [padded(n) for n in lengths]
    assert all(n <= m <= 1.12 * n for n, m in zip(lengths, filled, strict=True)) and filled == sorted(filled)
    assert len(set(filled[1 << 16 : 1 << 17])) <= 33 and all(padded(m) == m for m in set(filled))


def test_every_changed_byte_is_seen():
    """By the check sum, or, where that was made right again, by the seal."""
    data = make(1, (2, 8)).seal(SECRET).data
    assert read(data).open(SECRET) is not None
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :]
        for broken in (changed, data[:i], data[:i] + data[i + 1 :], data + b"x"):
            with pytest.raises(RecordError, match=r"party\.png: (its record is damaged|.* version)"):
                read(broken)
        for forged in (changed[:-8], data[: max(i - 8, 0)]) if i < len(data) - 8 else ():
            try:
                assert read(summed(forged)).open(SECRET) is None
            except RecordError:
                pass


def test_what_was_sealed_together_opens_together_only():
    mine, other = make().seal(SECRET), make(seed=1, salt=bytes(16)).seal(SECRET)
    (header, nonce, text), (header2, nonce2, text2) = parts(mine.data), parts(other.data)
    forged = [(header, nonce2, text2), (header2, nonce, text), (header, nonce, text2), (header, nonce2, text)]
    changes = {"salt": "00" * 16, "size": [60, 80], "weights": "cd" * 32, "preset": "mobile"}
    forged += [({**header, k: v}, nonce, text) for k, v in changes.items()]
    assert not any(read(joined(*f)).open(SECRET) for f in forged)
    assert mine.open(SECRET[::-1]) is None
    clip = joined({**header, "kind": "clip"}, nonce, text)
    assert Sealed.from_bytes(clip, "x", "clip").open(SECRET) is None
    with pytest.raises(RecordError, match="the record of a clip"):
        read(clip)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [80]}, {"size": [80, -1]}, {"size": [80, 1 << 40]}, {"size": ["80", "60"]}, {"size": [True, 60]},
        {"size": None}, {"salt": "00"}, {"salt": 5}, {"salt": None}, {"salt": "zz" * 16}, {"preset": ["smoke"]},
        {"preset": "x" * 65}, {"weights": "ab"}, {"kind": "film"}, {"kind": ["photo"]},
        b"[" * 4000, b"\xff\xfe", b"[1,2]", b"{}", b"9" * 4000, b" " * 5000,
    ],
)  # fmt: skip
def test_headers_that_make_no_sense(change):
    header, *rest = parts(make().seal(SECRET).data)
    with pytest.raises(RecordError, match=r"party\.png: its record is damaged"):
        read(joined(change if isinstance(change, bytes) else header | change, *rest))


def test_a_newer_version_says_so():
    with pytest.raises(RecordError, match="version 5.*update riddle"):
        read(joined(*parts(make().seal(SECRET).data), version=5))


SQUARE, BYTES = [[20, 0, 0], [0, 20, 0]], np.zeros(41 << 20, np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        {"matrices": np.zeros((0, 2, 3))}, {"matrices": np.ones((2, 2))}, {"matrices": np.array(["a", "b"])},
        {"matrices": [SQUARE]}, {"matrices": [[[20, 0, 0, 0], [0, 20, 0, 0]]] * 2},
        {"matrices": [SQUARE, [[np.nan, 0, 0], [0, 20, 0]]]}, {"matrices": [SQUARE, [[1e300, 0, 0], [0, 1e300, 0]]]},
        {"matrices": [SQUARE, [[20, 0, 0], [0, 40, 0]]]}, {"matrices": [SQUARE, [[20, 0, 5000], [0, 20, 0]]]},
        {"matrices": [SQUARE, [[0.01, 0, 5], [0, 0.01, 5]]]},
        {"matrices": [SQUARE, [[4000, 0, -2000], [0, 4000, -2000]]]},
        {"codes": np.full((2, 8, 64), np.inf, np.float16)}, {"codes": np.full((2, 8, 64), 1e300)},
        {"codes": np.zeros((2, 512), np.float16)}, {"codes": np.zeros((1, 8, 64), np.float16)},
        {"codes": np.zeros((2, 8, 64), "M8[s]")}, {"codes": np.zeros((0, 8, 64)), "matrices": np.zeros((0, 2, 3))},
        {"look": np.zeros((8, 9), np.uint8)}, {"look": np.full((8, 8), "x")}, {"look": np.zeros((8, 8))},
        {"lengths": [1], "originals": BYTES[:1]}, {"lengths": [1, 2]}, {"lengths": [0.0, 1.0], "originals": BYTES[:1]},
        {"lengths": [[1], [0]], "originals": BYTES[:1]}, {"lengths": [1, len(BYTES) - 1], "originals": BYTES},
        b"", b"PK\3\4", b"\x93NUMPY", b"text" * 99,
    ],
)  # fmt: skip
def test_content_that_makes_no_sense(change):
    """Sealed with the right key, and yet by no program of ours."""
    content, out = make().seal(SECRET).open(SECRET), io.BytesIO()
    with np.load(io.BytesIO(content)) as stored:
        np.savez_compressed(out, **{**stored, **(change if isinstance(change, dict) else {})})
    content = change if isinstance(change, bytes) else out.getvalue()
    sealed = seal(content, SECRET, "photo", "smoke", "ab" * 32, (80, 60), SALT)
    assert sealed.open(SECRET) == content
    with pytest.raises(RecordError, match=r"party\.png: its record is damaged"):
        Record.open(sealed, SECRET, "party.png")


def test_the_record_of_another_photo_is_refused():
    photo, record = picture(), make()
    small = photo.resize((20, 15)).resize(photo.size)
    brighter, duller = ImageEnhance.Brightness(photo).enhance(1.4), ImageEnhance.Contrast(photo).enhance(0.6)
    for same in (photo, open_picture(encode(photo, "x.jpg", quality=30)).rgb, small, brighter, duller):
        record.must_fit(get("smoke"), same, "party.png")
    for other in (photo.transpose(Image.Transpose.ROTATE_180), Image.linear_gradient("L").resize(photo.size)):
        with pytest.raises(RecordError, match=r"party\.png: its record is that of another photo"):
            record.must_fit(get("smoke"), other, "party.png")


def test_a_portrait_framed_alike_is_refused_by_its_faces():
    """As grey as the record's photo, but its faces are others: then it is another photo."""
    record, noise = make(), np.random.default_rng(0)
    shaded = 0.7 * np.asarray(picture()) + np.linspace(0, 60, 80)[None, :, None] + noise.normal(0, 3, (60, 80, 3))
    portrait = replace(open_picture(encode(picture(), "x.png")), rgb=Image.fromarray(shaded.clip(0, 255).astype("u1")))
    record.must_fit(get("smoke"), portrait.rgb, "party.png")
    assert 0.5 < record.similar(portrait.rgb) < 0.9
    shown = torch.cat([to_tensor(crop(portrait.rgb, m, 32))[None] for m in record.matrices])
    assert record.places_in(portrait, lambda: shown, list) is record.matrices
    with pytest.raises(RecordError, match="its record is that of another photo"):
        record.places_in(portrait, lambda: torch.rand(2, 3, 32, 32), list)


def test_codes_of_another_model_are_refused():
    with pytest.raises(RecordError, match=r"its codes are \(\d+, \d+\), none of 'mobile'"):
        make().must_fit(get("mobile"), picture(), "party.png")


# The metadata block


@pytest.mark.parametrize("faces", [1, 100], ids=["short", "long"])  # long: several segments of a JPEG
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_block_is_standard_and_the_pixels_are_the_pictures(tmp_path, ending, faces):
    """Pillow and an XML parser, which know nothing of ours, find the packet and the record in it."""
    carried = make(faces).seal(SECRET)
    path = save_picture(picture(), tmp_path / f"out.{ending}", carried)
    assert find_record(open_picture(path)) == carried and equal(read_picture(path)[1], make(faces))
    with Image.open(path) as opened:
        assert find_record(open_picture(opened)) == carried
        seen = opened.info.get("XML:com.adobe.xmp") or opened.info["xmp"]
        assert np.array_equal(np.asarray(opened), np.asarray(Image.open(io.BytesIO(encode(picture(), path)))))
    text = seen if isinstance(seen, str) else seen.decode()
    root = ElementTree.fromstring(re.sub(r"<\?xpacket.*?\?>", "", text))
    found = root.find(".//{urn:riddle-faces:protected/}record")
    if ending == "jpg" and faces == 100:
        assert found is None and "HasExtendedXMP" in text
    else:
        assert base64.b64decode(found.text) == carried.data


def test_extended_segments_are_as_documented(tmp_path):
    """XMP specification, part 3, 1.1.3.1: GUID, length and offset; a reader may meet them in any order."""
    path = save_picture(picture(), tmp_path / "out.jpg", make(100).seal(SECRET))
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
    text = packet(make().seal(SECRET), "x").decode()
    code = re.search("<riddle:record>(.*)</riddle:record>", text)[1]
    wrapped = re.sub("(.{76})", r"\1\n   ", code)
    attribute = f'<rdf:Description riddle:record = "{code}" dc:format="image/png"/>'
    for form in (text.replace(code, wrapped), attribute):
        assert equal(find_record(replace(open_picture(picture()), xmp=form.encode())), make())
    assert find_record(replace(open_picture(picture()), xmp=b"<riddle:other>")) is None
    with pytest.raises(RecordError, match="base64"):
        find_record(replace(open_picture(picture()), xmp=b"<riddle:record>abc</riddle:record>"))


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_record_too_large_is_refused(monkeypatch, sidecar):
    sealed = make().seal(SECRET)
    block = packet(sealed, "x")
    monkeypatch.setattr(record, "MAX_RECORD", 1000)
    with pytest.raises(RecordError, match="originals"):
        encoded(picture(), "out.png", sealed, sidecar)
    with pytest.raises(RecordError, match="larger"):
        find_record(replace(open_picture(picture()), xmp=block))


# The file


def test_inspect_tells_whether_the_picture_was_scaled_and_what_lies_inside_goes_before(tmp_path):
    path, sealed = tmp_path / "out.jpg", make(originals=(b"a", b"b")).seal(SECRET)
    for size in ((80, 60), (40, 30)):
        save_picture(picture(size), path, sealed)
        seen = bulk.inspect(path)
        assert (seen["size"], seen["picture_size"], seen["where"]) == ([80, 60], [*size], "metadata")
    sidecar_path(path).write_bytes(make(3).seal(SECRET).data)
    assert read_picture(path)[1:] == (sealed, "metadata") and bulk.inspect(path)["where"] == "metadata"


# Files of earlier programs


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("where", ["metadata", "sidecar"])
def test_a_file_of_an_older_riddle_says_so(tmp_path, where, version):
    """Written by riddle 0.1: one face of a 44 x 42 px photo, preset smoke. Versions 2 and 3 have the same form."""
    path, photo = tmp_path / "old.png", open_picture(GOLDEN)
    code = re.search(b"<riddle:record>(.*?)</", photo.xmp)[1]
    data = base64.b64decode(code)
    data = data[:6] + bytes([version]) + data[7:]
    path.write_bytes(encode(photo.rgb, path, packet=photo.xmp.replace(code, base64.b64encode(data))))
    if where == "sidecar":
        path = sidecar_path(path)
        path.write_bytes(data)
    said = (
        rf"{path.name}: this file was protected by an older riddle \(record version {version}, preset smoke\);"
        " only that one restores it"
    )
    with pytest.raises(RecordError, match=said):
        bulk.inspect(path)
    many = data[:8] + struct.pack("<I", 1 << 19) + data[12:100] + b" " * (1 << 19)
    with pytest.raises(RecordError, match="preset smoke"):
        read(many)
