"""Files as people have them: broken metadata, wrong endings, odd shapes, names that clash."""

import io
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from riddle.app import bulk
from riddle.faces import detection, recognizers
from riddle.faces.outcomes import ANOTHER, GONE, RECOGNISED, check
from riddle.images import BROKEN, kind_of, open_picture


def pixels(seed: int = 0, side: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels()).save(file, kind, **options)
    return file.getvalue()


def test_a_picture_with_damaged_metadata_opens_and_loses_them(tmp_path):
    broken = saved("PNG", exif=b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03")
    raw = PngInfo()
    raw.add_text("Raw profile type exif", "\nexif\n 12\nnot hexadecimal")
    for data in (broken, saved("PNG", pnginfo=raw)):
        picture = open_picture(data)
        assert (np.asarray(picture.rgb) == pixels()).all() and picture.notes == (BROKEN,)
        assert not picture.rgb.info
    assert open_picture(saved("PNG")).notes == ()


def test_damaged_pixels_stay_an_error():
    data = bytearray(saved("PNG"))
    at = data.index(b"IDAT") + 4
    data[at : at + 40] = bytes(40)
    data[at + 40 :] = zlib.compress(b"x")
    with pytest.raises(ValueError, match="the picture: it is damaged"):
        open_picture(bytes(data))


@pytest.mark.parametrize("size", [(11, 1600), (3000, 19), (1, 1)])
def test_a_thin_strip_holds_no_face(size):
    assert detection.load_detector("mtcnn").detect(Image.new("RGB", size)) == []
    assert detection.find_all(Image.new("RGB", (size[0] + 10, size[1] + 10)), detection.load_detector()) == []


def test_heic_is_read(tmp_path):
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 120, 40))).save(file)
    picture = open_picture(file.getvalue())
    assert picture.rgb.size == (64, 48) and np.abs(np.asarray(picture.rgb) - [200, 120, 40]).max() < 12


def test_a_folder_is_read_by_content_and_written_by_it(tmp_path):
    """A photo of an unknown ending is one; a photo's ending is tried, so that damage is told; other files are left."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    contents = {
        "a.jpeg": saved("JPEG"), "b.jfif": saved("JPEG"), "c.heic": saved("JPEG"), "d": saved("WEBP"),
        "e.tif": saved("TIFF"), "f.jpg": b"no picture", "g.txt": b"a text", "h.mp4": b"\0\0\0\x18ftypisom",
        "i.riddle": b"",
    }  # fmt: skip
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    pairs, left_out = bulk.plan([folder], out, bulk.PHOTOS, "protect")
    written = {pair.source.name: pair.target.name for pair in pairs}
    assert written == {
        "a.jpeg": "a.jpeg", "b.jfif": "b.jpg", "c.heic": "c.jpg", "d": "d.webp", "e.tif": "e.png", "f.jpg": "f.jpg"
    }  # fmt: skip
    assert [path.name for path in left_out] == ["g.txt", "h.mp4"]
    assert kind_of(folder / "b.jfif") == "JPEG" and kind_of(folder / "g.txt") == kind_of(tmp_path / "absent") == ""


def test_results_that_would_share_a_name_get_two(tmp_path):
    sources = [tmp_path / name for name in ("a.tif", "a.gif", "a.png", "b.png")]
    for source in sources:
        source.write_bytes(b"")
    pairs, _ = bulk.plan(sources, tmp_path / "out", bulk.PHOTOS, "protect")
    assert [Path(pair.target).name for pair in pairs] == ["a.png", "a.gif.png", "a.png.png", "b.png"]


def test_a_result_that_is_a_source_stops_no_other(tmp_path):
    """`protect *.jpg` once more, beside the results of the first time."""
    sources = [tmp_path / name for name in ("a.jpg", "a.protected.jpg", "b.jpg")]
    for source in sources:
        source.write_bytes(source.name.encode())

    def work(pair):
        pair.target.write_bytes(b"made")
        return detection.Face(np.zeros(4), 1.0, np.zeros((5, 2)), None, "none")

    for force, status in ((False, ["failed", "done", "done"]), (True, ["failed", "done", "done"])):
        pairs, _ = bulk.plan(sources, None, bulk.PHOTOS, "protect")
        outcomes = list(bulk.run(pairs, work, "protect", force))
        assert [outcome["status"] for outcome in outcomes] == status
        assert "a.protected.jpg is" in outcomes[0]["reason"] and sources[1].read_bytes() == b"a.protected.jpg"
        for made in (tmp_path / "a.protected.protected.jpg", tmp_path / "b.protected.jpg"):
            made.unlink()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_a_call_keeps_grey_transparency_and_the_colour_profile(tmp_path, smoke, quick_keys, mode):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.fromarray(pixels(side=96)).convert(mode)
    if mode.endswith("A"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / "a.png", icc_profile=profile, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    points = np.array([(36.0, 40), (60, 40), (48, 52), (38, 66), (58, 66)])
    face = detection.Face(np.array([20.0, 20, 76, 76]), 1.0, points, None, "none")
    protected = smoke.protect(tmp_path / "a.png", "correct horse", faces=[face])
    file = protected.save(tmp_path / "b.png")
    right, same = smoke.restore(file, "correct horse"), smoke.restore(protected, "correct horse")
    wrong = smoke.restore(file, "wrong horse", faces=[face])
    assert (right.source, wrong.source) == ("codes", "inversion")
    for restored in (right, same, wrong):
        restored.save(tmp_path / "c.png")
        for name in ("b.png", "c.png"):
            with Image.open(tmp_path / name) as made:
                assert made.mode == mode and not made.getexif()
                assert made.info.get("icc_profile") == (None if mode.startswith("L") else profile)
                if mode.endswith("A"):
                    assert made.getchannel("A").tobytes() == picture.getchannel("A").tobytes()


@pytest.mark.parametrize("angle", [45, 60, 75, 90, 180])
def test_a_face_that_lies_is_found_where_it_is(root, angle):
    face = Image.open(root / "data" / "samples" / "002.jpg").resize((160, 160))
    photo = Image.new("RGB", (320, 320), (120, 120, 120))
    photo.paste(face, (80, 80))
    detector = detection.load_detector()
    (upright,) = detection.find_all(photo, detector)
    (found,) = detection.find_all(photo.rotate(angle, fillcolor=(120, 120, 120)), detector)
    turn = np.exp(-1j * np.deg2rad(angle))  # y points down
    x, y = (upright.points - 159.5).T
    wanted = (x + 1j * y) * turn
    eyes = np.hypot(*(upright.points[1] - upright.points[0]))
    assert np.abs(found.points - 159.5 - np.stack([wanted.real, wanted.imag], 1)).mean() < 0.15 * eyes


def test_a_find_on_its_head_with_the_same_eyes_is_the_same_face():
    """MTCNN takes a fringe for the mouth of a face on its head, below the eyes of the true one."""
    upright = np.array([(200.0, 250), (340, 250), (260, 280), (210, 390), (310, 390)])
    eyes, box = upright[1::-1], np.array([170.0, 200, 370, 420])
    head = np.concatenate([eyes + 5, upright[2:] * [1, -1] + [0, 505]])
    beside = upright + [230.0, 20]
    true, turned, other = (detection.Face(box, 1.0, points, None, "none") for points in (upright, head, beside))
    assert detection._same(true, turned) and not detection._same(true, other)


def test_a_find_of_a_turned_picture_is_told_in_the_pixels_of_the_picture_itself():
    marks = np.array([(3.0, 1), (7, 1), (5, 4), (4, 6), (6, 6)])
    picture = np.zeros((8, 12), np.uint8)
    for i, (x, y) in enumerate(marks.astype(int), 1):
        picture[y, x] = i
    for quarters in (1, 2, 3):
        view = np.asarray(Image.fromarray(picture).rotate(90 * quarters, expand=True))
        seen = np.array([np.argwhere(view == i)[0][::-1] for i in range(1, 6)], float)
        box = np.concatenate([seen.min(0), seen.max(0)])
        face = detection.Face(box, 1.0, seen, None, "none").turned_back(quarters, (12, 8))
        assert (face.points == marks).all() and face.box.tolist() == [3, 1, 7, 6] and face.landmarks is None


def test_a_look_at_the_result_tells_another_person_from_the_same_and_from_none(root, smoke):
    if recognizers.at_hand(smoke.preset.identity) is None:
        pytest.skip("needs the recogniser's weights")
    photos = [Image.new("RGB", (200, 200), (120, 120, 120)) for _ in range(3)]
    for image, name in zip(photos, ("002", "003"), strict=False):
        image.paste(Image.open(root / "data" / "samples" / f"{name}.jpg").resize((160, 160)), (20, 20))
    (face,) = smoke.detect(photos[0])
    looks = [check(photos[0], after, face, smoke.detector, smoke.preset.identity) for after in photos]
    assert looks == [RECOGNISED, ANOTHER, GONE]
