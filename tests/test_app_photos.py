"""Photo files: every kind of picture, every kind of face, and nothing half written.

The networks are untrained and the detector looks for markers: what is tested holds whatever the weights are.
"""

import io
import os
import struct
import zlib
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from riddle import images, passwords
from riddle.app import bulk
from riddle.app.photos import INVERTED, NOT_OPENED, protect_file, restore_file
from riddle.demo import FRAMED_POINTS
from riddle.faces import alignment, detection, outcomes, recognizers
from riddle.faces.detection import LOOK, AutoDetector, Face, find_all
from riddle.faces.outcomes import ANOTHER, GONE, RECOGNISED, FaceReport
from riddle.images import PhotoError, open_picture
from riddle.pipeline import Riddle
from riddle.record import read_picture, read_sidecar
from riddle.seal import RecordError

POINTS = FRAMED_POINTS * 60  # of a face whose crop is a square of 60 px
GREY = (120, 120, 120)
SQUARE = (30, 40, 90, 100)  # of the face in `photo`


class Markers:
    """Finds a face at each square of bright top left corner, wherever it lies and however the picture is reduced."""

    def __init__(self, changes=None, score=1.0, detector="dlib"):
        self.changes, self.score, self.kind = changes or {}, score, detector
        self.seen = []

    def detect(self, image):
        self.seen.append(image.size)
        grey = np.asarray(image.convert("L"))
        bright, faces = grey > 220, []
        while bright.any():
            y, x = np.argwhere(bright)[0]
            run = bright[y, x:]
            side = int(run.argmin()) if not run.all() else len(run)
            bright[y : y + side, x : x + side] = False
            beside, below = grey[y, x + side : x + 3 * side], grey[y + side : y + 3 * side, x]
            if side < 2 or min(beside.std() if beside.size else 0, below.std() if below.size else 0) < 3:
                continue  # noise, or a mirrored square: its marker is at another corner
            points = self.changes.get(len(faces), POINTS) * (side / 10) + [x, y]
            box = np.array([x, y, x + side * 6, y + side * 6], float)
            faces.append(Face(box, self.score, points, None, self.kind))
        return faces


def photo(places=((30, 40, 60),), size=(200, 160), seed=0):
    """A grey picture with a textured square and its bright corner at each (x, y, side)."""
    pixels = np.full((size[1], size[0], 3), GREY, np.uint8)
    rng = np.random.default_rng(seed)
    for x, y, side in places:
        low = Image.fromarray(rng.integers(20, 160, (6, 6, 3), dtype=np.uint8))
        square = np.array(low.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 200)
        square[: side // 6, : side // 6] = 255
        part = pixels[max(y, 0) : y + side, max(x, 0) : x + side]
        part[:] = square[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
    return Image.fromarray(pixels)


class Double:
    """A recogniser that takes all faces for one person, or each for another."""

    threshold = 0.5

    def __init__(self, same):
        self.same = same

    def align(self, image, points):
        return image.resize((8, 8))

    def embed(self, crops):
        return crops.flatten(1)

    def similarity(self, a, b):
        return torch.full((len(a),), float(self.same))


def recognises(monkeypatch, same):
    monkeypatch.setattr(recognizers, "at_hand", lambda *_: Double(same))


@pytest.fixture
def model(smoke, quick_keys, monkeypatch):
    recognises(monkeypatch, False)
    monkeypatch.setattr(passwords, "random_salt", partial(np.random.default_rng(0).bytes, 16))  # the same every time
    return with_detector(smoke, Markers())


def with_detector(model, detector):
    return Riddle("smoke", model.generator, model.encoder, model.encryptor, detector=detector)


@pytest.fixture
def source(tmp_path):
    photo().save(tmp_path / "party.png")
    return tmp_path / "party.png"


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def away(pixels):
    """Those outside the face's square and its rim."""
    mask = np.ones(pixels.shape[:2], bool)
    mask[38:103, 28:93] = False
    return pixels[mask]


def only(folder, *names):
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


# Protecting and restoring


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_protect_and_restore(model, source, tmp_path, ending):
    target, back = tmp_path / f"out.{ending}", tmp_path / "back.png"
    report = protect_file(model, source, target, "pw")
    assert report.how == "protected" and report.faces == [FaceReport(SQUARE, "protected", checked=ANOTHER)]
    before, after = pixels(source), pixels(target)
    assert np.abs(after - before)[50:90, 40:80].mean() > 5
    assert np.abs(away(after - before)).max() <= (0 if ending == "png" else 10)
    restored = restore_file(model, target, back, "pw")
    assert restored.how == "codes" and restored.faces == [FaceReport(SQUARE, "restored")]
    assert np.array_equal(pixels(back), np.asarray(model.restore(target, "pw").image))
    wrong = restore_file(model, target, tmp_path / "wrong.png", "pW")
    assert (wrong.how, wrong.notes) == ("inversion", [NOT_OPENED])
    assert wrong.faces[0].box == pytest.approx(SQUARE, abs=1) and wrong.faces[0].status == "restored"
    assert np.abs(pixels(tmp_path / "wrong.png") - pixels(back))[50:90, 40:80].mean() > 5


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_kept_originals_return_to_the_pixel_for_the_right_password_only(model, source, tmp_path, ending):
    target, back = tmp_path / f"out.{ending}", tmp_path / "back.png"
    protect_file(model, source, target, "pw", keep_original=True, quality=60)
    assert b"IHDR" not in read_picture(target)[1].data  # no PNG in clear
    report = restore_file(model, target, back, "pw")
    assert report.how == "original" and report.notes == []
    x1, y1, x2, y2 = report.faces[0].box
    assert np.array_equal(pixels(back)[y1:y2, x1:x2], pixels(source)[y1:y2, x1:x2])
    assert np.array_equal(pixels(back), pixels(source)) == (ending == "png")
    exact = model.restore(target, "pw")
    assert exact.source == "original" and np.array_equal(np.asarray(exact.image), pixels(back))
    assert torch.equal(exact.faces, model.crops(exact.image, exact.matrices))
    if ending != "png":  # compressed anew, so they are not exact
        lossy = restore_file(model, target, tmp_path / f"back.{ending}", "pw")
        assert lossy.how == "original" and lossy.notes[0].endswith("restore to .png for the exact ones")
    wrong = restore_file(model, target, back, "pW")
    assert wrong.how == "inversion" and wrong.notes == [NOT_OPENED]  # a stranger, not an error
    for other, least in ((source, 5), (target, 1)):
        assert np.abs(pixels(back) - pixels(other))[50:90, 40:80].mean() > least


def test_restoring_derives_the_key_once(model, source, tmp_path, monkeypatch):
    target, derive = tmp_path / "out.png", Mock(wraps=passwords.derive_key)
    protect_file(model, source, target, "pw")
    monkeypatch.setattr(passwords, "derive_key", derive)
    for count, (passphrase, how) in enumerate((("pw", "codes"), ("pW", "inversion")), 1):
        assert restore_file(model, target, tmp_path / "back.png", passphrase).how == how and derive.call_count == count


def test_originals_outlive_the_weights(model, source, tmp_path):
    target, back = tmp_path / "out.png", tmp_path / "back.png"
    protect_file(model, source, target, "pw", keep_original=True)
    later = with_detector(model, Markers())
    later.__dict__["weights_hash"] = "f" * 64
    assert restore_file(later, target, back, "pw").how == "original"
    with pytest.raises(RecordError, match="out.png: it was protected with other weights"):
        restore_file(later, target, back, "wrong")


def test_without_a_record_there_are_only_pixels_and_the_faces_are_inverted_again(model, source, tmp_path):
    target, back = tmp_path / "out.png", tmp_path / "back.png"
    for options in ({"keep_original": True}, {"sidecar": True}):
        with pytest.raises(ValueError, match="leave out --no-record"):
            protect_file(model, source, target, "pw", record=False, **options)
    protect_file(model, source, target, "pw", sidecar=True)  # an earlier result, whose record must not stay
    assert protect_file(model, source, target, "pw", record=False).how == "protected"
    assert only(tmp_path, "party.png", "out.png") and Image.open(target).info == {}
    for path in (target, source):
        report = restore_file(model, path, back, "pw")
        assert (report.how, report.notes) == ("inversion", [INVERTED])
    assert report.faces == [FaceReport(SQUARE, "restored")]
    assert np.array_equal(pixels(back), np.asarray(model.restore(source, "pw").image))


def test_a_sidecar_restores_a_stripped_picture(model, source, tmp_path):
    target, back = tmp_path / "out.png", tmp_path / "back.png"
    report = protect_file(model, source, target, "pw", sidecar=True)
    assert only(tmp_path, "party.png", "out.png", "out.png.riddle") and "out.png.riddle" in report.notes[-1]
    assert Image.open(target).info == {} and bulk.inspect(target)["where"] == "sidecar"
    beside = tmp_path / "out.png.riddle"
    assert read_sidecar(beside).size == (200, 160) and bulk.inspect(beside)["picture_size"] is None
    assert restore_file(model, target, back, "pw").how == "codes"
    moved = beside.rename(tmp_path / "elsewhere")
    assert read_picture(target)[1] is None
    with pytest.raises(PhotoError, match="absent.riddle: there is no such file"):
        restore_file(model, target, back, "pw", sidecar=tmp_path / "absent.riddle")
    assert restore_file(model, target, back, "pw", sidecar=moved).how == "codes"
    assert restore_file(model, target, back, "pW", sidecar=moved).how == "inversion"
    other, larger = photo(((120, 80, 60),)), photo((), size=(201, 160))  # this one without a face
    for image, message in ((other, "of another photo"), (larger, "201 x 160 px, but its record is of 200 x 160")):
        image.save(target)
        with pytest.raises(RecordError, match=message):
            restore_file(model, target, back, "pw", sidecar=moved)


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_photo_that_was_protected_before_gets_a_note(model, source, tmp_path, sidecar):
    first = tmp_path / "first.png"
    assert not any("before" in note for note in protect_file(model, source, first, "pw", sidecar=sidecar).notes)
    again = protect_file(model, first, tmp_path / "second.png", "pw")
    assert any("had been protected before" in note for note in again.notes)


# Kinds of picture


def test_orientation_is_applied_and_metadata_are_dropped(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "secret maker"  # turn by 90 degrees to view
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)  # GPS
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path, back = tmp_path / "camera.jpg", tmp_path / "back.png"
    turned = photo().transpose(Image.Transpose.ROTATE_90)
    turned.save(path, exif=exif, icc_profile=profile, quality=95, xmp=b"<secret place>", comment=b"secret comment")
    for ending in ("png", "jpg", "webp"):
        target = tmp_path / f"out.{ending}"
        report = protect_file(model, path, target, "pw")
        assert report.faces[0].box == pytest.approx(SQUARE, abs=2)
        opened = Image.open(target)
        assert opened.size == (200, 160) and b"secret" not in target.read_bytes() and not opened.getexif()
        restore_file(model, target, back, "pw")
        bare = model.protect(path, "pw", record=False).save(tmp_path / f"bare.{ending}")
        assert Image.open(bare).size == (200, 160) and b"secret" not in bare.read_bytes()
        assert opened.info["icc_profile"] == Image.open(back).info["icc_profile"] == profile


def saved(kind, image=None, **options):
    out = io.BytesIO()
    (image or photo()).save(out, kind, **options)
    return out.getvalue()


def png16():
    """An RGB PNG of 16 bits a channel, by hand: Pillow does not write one."""
    body = b"".join(b"\0" + row.tobytes() for row in np.asarray(photo()).astype(">u2") * 257)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 200, 160, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def with_alpha():
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda v: max(v, 1)))
    return image


GREY16 = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)
KINDS = {  # the file, the mode of the result, the beginning of the note
    "grey": (saved("PNG", photo().convert("L")), "L", ""),
    "grey and alpha": (saved("PNG", with_alpha().convert("LA")), "LA", ""),
    "alpha": (saved("PNG", with_alpha()), "RGBA", ""),
    "opaque alpha": (saved("PNG", photo().convert("RGBA")), "RGB", ""),
    "palette": (saved("PNG", photo().quantize(64)), "RGB", ""),
    "gif": (saved("GIF", photo().quantize(64)), "RGB", ""),
    "16-bit grey": (saved("PNG", GREY16), "L", "16"),
    "16-bit colour": (png16(), "RGB", "16"),
    "cmyk": (saved("TIFF", photo().convert("CMYK")), "RGB", "CMYK"),
    "mpo": (saved("MPO", save_all=True, append_images=[photo()], quality=95), "RGB", "further"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_picture(model, tmp_path, kind):
    data, mode, note = KINDS[kind]
    path, target, back = tmp_path / "photo.bin", tmp_path / "out.png", tmp_path / "back.png"
    path.write_bytes(data)
    report = protect_file(model, path, target, "pw", keep_original=True)
    assert [n.startswith(note) for n in report.notes] == ([True] if note else [])
    assert len(report.faces) == 1 and report.faces[0].box == pytest.approx(SQUARE, abs=3)
    opened = Image.open(target)
    assert opened.mode == mode
    plain = np.asarray((photo().convert("L") if mode.startswith("L") else photo()).convert("RGB")).astype(int)
    assert np.abs(away(pixels(target) - plain)).max() < 12
    if mode.endswith("A"):
        assert np.array_equal(np.asarray(opened.getchannel("A")), np.asarray(with_alpha().getchannel("A")))
    assert restore_file(model, target, back, "pw").how == "original"
    assert np.array_equal(pixels(back), np.asarray(open_picture(path).rgb))
    assert np.abs(pixels(back) - plain)[45:95, 45:85].mean() < 8


def test_transparency(model, tmp_path):
    """It does not go into a JPEG, and what lies under full transparency is cleared."""
    path, clear = tmp_path / "a.png", photo().convert("RGBA")
    with_alpha().save(path)
    with pytest.raises(PhotoError, match="JPEG has no transparency.*use .png"):
        protect_file(model, path, tmp_path / "out.jpg", "pw")
    assert only(tmp_path, "a.png")
    clear.putalpha(Image.new("L", clear.size, 0))
    assert not np.asarray(open_picture(saved("PNG", clear)).rgb).any()


def moving(kind):
    return saved(kind, save_all=True, append_images=[photo(seed=1)])


BAD = {
    "animated gif": (moving("GIF"), "animated or has several pages.*one frame"),
    "tiff of two pages": (moving("TIFF"), "several pages"),
    "floats": (saved("TIFF", Image.new("F", (50, 50))), "mode F; convert"),
    "empty": (b"", "it is empty"),
    "text": (b"hello" * 100, "no picture that can be read"),
    "cut png": (saved("PNG")[:900], "damaged"),
    "cut jpeg": (saved("JPEG")[:1500], "damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_say_why_and_leave_nothing(model, tmp_path, kind):
    data, message = BAD[kind]
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    for act in (protect_file, restore_file):
        with pytest.raises(PhotoError, match=f"bad.bin: .*({message})") as error:
            act(model, path, tmp_path / "out.png", "pw")
        assert error.value.file == str(path) and error.value.cause and error.value.remedy
    assert only(tmp_path, "bad.bin")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    told = {"pipe.png": "no regular file", "absent.png": "no such file", ".": "folder", "\0": "cannot be read"}
    for name, message in told.items():
        with pytest.raises(PhotoError, match=message):
            protect_file(model, tmp_path / name, tmp_path / "out.png", "pw")


def test_limits_of_size(source, tmp_path):
    with pytest.raises(PhotoError, match="16383.*use .png"):
        images.encode(Image.new("L", (16_384, 1)), tmp_path / "out.webp")
    with pytest.raises(PhotoError, match="party.png: it has 0 MB, more than 0"):
        images.read_file(source, most=10)


def test_fifty_megapixels(model, tmp_path):
    """One small face in the last corner, found where it is by the search part by part."""
    path, target = tmp_path / "large.jpg", tmp_path / "out.jpg"
    image = Image.new("L", (8660, 5774), 120)
    image.paste(photo(size=(60, 60), places=((0, 0, 60),)).convert("L"), (8600, 5700))
    image.save(path, quality=90)
    report = protect_file(model, path, target, "pw")
    assert max(max(size) for size in model.detector.seen) <= 2400 and len(model.detector.seen) > 20
    assert [f.status for f in report.faces] == ["protected"]
    assert report.faces[0].box == pytest.approx((8600, 5700, 8660, 5760), abs=4)
    assert Image.open(target).size == (8660, 5774)


# Kinds of face


def run(base, tmp_path, places, detector=None, **options):
    photo(places).save(tmp_path / "party.png")
    chosen = with_detector(base, detector or Markers())
    return protect_file(chosen, tmp_path / "party.png", tmp_path / "out.png", "pw", **options)


def test_what_cannot_be_protected_is_listed_and_strict_refuses(model, tmp_path):
    places = ((20, 20, 60), (120, 20, 18), (150, 60, 60))
    turned = POINTS.copy()
    turned[:2, 0] = 30, 34  # eyes near each other: a profile
    detector = Markers({2: turned})
    report = run(model, tmp_path, places, detector)
    told = [("protected", ""), ("skipped", "in profi"), ("skipped", "too smal")]
    assert [(f.status, f.reason[:8]) for f in report.faces] == told and report.faces[2].box == (120, 20, 138, 38)
    before, after = pixels(tmp_path / "party.png"), pixels(tmp_path / "out.png")
    assert np.array_equal(before[100:], after[100:])
    with pytest.warns(UserWarning, match="party.png: left as they are"):
        called = with_detector(model, detector).protect(tmp_path / "party.png", "pw")
    assert sorted(called.faces, key=str) == sorted(report.faces, key=str)
    (tmp_path / "out.png").unlink()
    with pytest.raises(PhotoError, match="party.png: strict.*120,20,138,38.*too small"):
        run(model, tmp_path, places, detector, strict=True)
    assert only(tmp_path, "party.png")


@pytest.mark.parametrize(
    ("places", "detector", "message"),
    [
        ((), Markers(), "no face was found"),
        (((90, 60, 12),), Markers(), "too small: 1. px"),
        (((170, 120, 60),), Markers(), "cut by the border"),
        (((60, 60, 60),), Markers({0: np.tile([30.0, 30], (5, 1))}), "coincide"),
        (((60, 60, 60),), Markers(score=0.8, detector="mtcnn"), "doubtful"),
    ],
)
def test_a_photo_without_a_face_to_protect_is_refused(model, tmp_path, places, detector, message):
    with pytest.raises(PhotoError, match=f"party.png: .*{message}.*nothing was written"):
        run(model, tmp_path, places, detector)
    assert only(tmp_path, "party.png")


@pytest.mark.parametrize("places", [((155, 40, 60),), ((60, 20, 60), (20, 60, 90))], ids=["border", "overlap"])
def test_faces_beyond_the_border_and_over_each_other_return_to_the_pixel(model, tmp_path, places):
    report = run(model, tmp_path, places, keep_original=True)
    assert [f.status for f in report.faces] == ["protected"] * len(places)
    assert all(f.box[2] <= 200 for f in report.faces)
    target, back = tmp_path / "out.png", tmp_path / "back.png"
    assert restore_file(model, target, back, "pw").how == "original"
    assert np.array_equal(pixels(back), pixels(tmp_path / "party.png"))
    assert restore_file(model, target, back, "other").how == "inversion"


def test_half_a_face_at_the_border_is_found():
    """Mirrored beyond the border it is a whole one; the mirror images of other faces are none."""

    class Symmetric:
        """Finds what is bright, as wide as it is, with the marker's points around its middle."""

        def detect(self, image):
            ys, xs = np.nonzero(np.asarray(image.convert("L")) > 220)
            middle, side = np.array([xs.mean(), ys.mean()]), np.ptp(xs) + 1
            points = (FRAMED_POINTS - [0.5, 0.58]) * side + middle
            return [Face(np.array([*middle - side / 2, *middle + side / 2]), 1.0, points, None, "dlib")]

    image = Image.new("RGB", (200, 160), GREY)
    image.paste((255, 255, 255), (170, 40, 200, 100))
    (face,) = find_all(image, Symmetric())
    assert face.points.mean(0)[0] == pytest.approx(199, abs=2) and np.ptp(face.box[::2]) == pytest.approx(59, abs=2)
    (face,) = find_all(photo(((20, 24, 60),)), Markers())
    assert face.box.tolist() == [20, 24, 80, 84]


# The look at the result


class Once(Markers):
    """Finds no face when it looks again at the place of one."""

    def detect(self, image):
        return [] if image.size == (LOOK, LOOK) else super().detect(image)


def test_what_is_still_recognised_is_not_protected(model, source, tmp_path, monkeypatch):
    recognises(monkeypatch, True)
    (face,) = protect_file(model, source, tmp_path / "out.png", "pw").faces
    assert (face.status, face.checked) == ("recognised", RECOGNISED) and "takes it for the same" in face.reason
    (tmp_path / "out.png").unlink()
    with pytest.raises(PhotoError, match="party.png: strict.*30,40,90,100: a recogniser.*nothing was written"):
        protect_file(model, source, tmp_path / "out.png", "pw", strict=True, sidecar=True)
    assert only(tmp_path, "party.png")


def test_other_strangers_are_tried_where_one_is_still_recognised(model, source, tmp_path, monkeypatch):
    said, salts = iter([RECOGNISED, RECOGNISED, ANOTHER]), []
    draw = passwords.random_salt
    monkeypatch.setattr(outcomes, "check", lambda *_: next(said))
    monkeypatch.setattr(passwords, "random_salt", lambda: salts.append(draw()) or salts[-1])
    (face,) = protect_file(model, source, tmp_path / "out.png", "pw", strict=True).faces
    assert (face.status, face.checked) == ("protected", ANOTHER) and next(said, None) is None
    assert len(set(salts)) == 3 and read_picture(tmp_path / "out.png")[1].salt == salts[-1]


def test_what_is_not_found_again_is_told(model, source, tmp_path):
    changed = with_detector(model, Once())
    with pytest.raises(PhotoError, match="party.png: strict.*30,40,90,100: no face is found.*nothing was written"):
        protect_file(changed, source, tmp_path / "out.png", "pw", strict=True)
    assert only(tmp_path, "party.png")
    report = protect_file(changed, source, tmp_path / "out.png", "pw")
    assert [(f.status, f.checked, f.reason[:16]) for f in report.faces] == [("protected", GONE, "no face is found")]


@pytest.mark.parametrize("detector", [Markers(), Once()])
def test_without_the_recogniser_the_report_says_so(model, source, tmp_path, monkeypatch, detector):
    monkeypatch.setattr(recognizers, "at_hand", lambda *_: None)
    monkeypatch.setattr(recognizers, "available", lambda names: dict.fromkeys(names, "not here"))
    there = not isinstance(detector, Once)
    report = protect_file(with_detector(model, detector), source, tmp_path / "out.png", "pw", strict=there)
    get = "python -m riddle weights arcface-mobilefacenet --download"
    told = f"not checked: arcface-mobilefacenet: not here; get it by {get}"
    assert report.faces[0].checked == (told if there else GONE)
    assert report.notes == [f"whether people are still recognised was {told}"] * there


def test_the_written_picture_is_looked_at(model, source, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Double, "align", lambda self, image, points: seen.append(image) or image.resize((8, 8)))
    protect_file(model, source, tmp_path / "out.jpg", "pw", quality=30)
    place = find_all(photo(), Markers())[0]
    wanted = alignment.crop(Image.open(tmp_path / "out.jpg"), alignment.framing_matrix(place.points), LOOK)
    assert np.array_equal(np.asarray(seen[-1]), np.asarray(wanted))


def test_a_find_that_a_second_look_does_not_confirm_gets_no_face(model, tmp_path, monkeypatch):
    detector, places = AutoDetector(), ((20, 20, 60), (120, 20, 60))
    detector.first, detector.second = Markers(), Markers(detector="mtcnn")
    assert [f.status for f in run(model, tmp_path, places, detector, strict=True).faces] == ["protected"] * 2
    (tmp_path / "out.png").unlink()
    monkeypatch.setattr(detection, "confirmed", lambda image, face, detector: float(face.box[0] < 100))
    with pytest.raises(PhotoError, match="strict.*120,20,180,80: doubtful .a second look gives its place 0.00"):
        run(model, tmp_path, places, detector, strict=True)
    assert only(tmp_path, "party.png")
    report = run(model, tmp_path, places, detector)
    assert [(f.box[0], f.status) for f in report.faces] == [(20, "protected"), (120, "skipped")]
    assert (pixels(tmp_path / "out.png") == pixels(tmp_path / "party.png"))[:, 100:].all()


@pytest.mark.parametrize(("sure", "status"), [(0.9, ["protected"]), (0.75, ["skipped"]), (0.6, [])])
def test_a_find_in_a_turned_copy_that_may_be_a_face_is_listed(model, tmp_path, monkeypatch, sure, status):
    monkeypatch.setattr(detection, "confirmed", lambda *_, **__: sure)
    image = photo(((20, 20, 60),))
    image.paste(photo(((20, 20, 60),), (100, 100), seed=1).transpose(Image.Transpose.ROTATE_90), (100, 30))
    detector = AutoDetector()
    detector.first, detector.second = Markers(), Markers(detector="mtcnn")
    faces = find_all(image, detector)
    assert [bool(face.doubt) for face in faces] == [False, *(s == "skipped" for s in status)]


# Writing


def test_targets_are_checked_before_any_work(model, source, tmp_path):
    for act in (protect_file, restore_file):
        with pytest.raises(PhotoError, match="no picture is written as .tiff"):
            act(model, source, tmp_path / "out.tiff", "pw")
    assert not model.detector.seen
    with pytest.raises(PhotoError, match="does not exist; create it"):
        protect_file(model, source, tmp_path / "absent" / "out.png", "pw")
