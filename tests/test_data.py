"""Data sets: the same images from a folder and a tar, splits, LFW's pairs, masks, and aligned faces."""

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from riddle import aligned as aligning
from riddle import data, presets
from riddle.aligned import align
from riddle.data import FFHQ, LFW, CelebAMaskHQ, DatasetMissingError, load
from riddle.faces.alignment import crop, framing_matrix
from riddle.faces.detection import detect_in_crop
from riddle.images import to_tensor
from riddle.models.parsing import CLASSES


@pytest.fixture
def celeba(home, picture, monkeypatch):
    """Thirty small photos in the folder form, found by RIDDLE_DATA; {name: pixels}."""
    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    names = [f"{i:02d}.png" for i in range(30)]
    return {n: picture(home / "sets" / "celebamask_hq" / "images" / n, seed=i) for i, n in enumerate(names)}


def test_a_folder_its_tar_and_its_zip_give_the_same_set(celeba, home):
    """Read by many threads, and where the set was sent to another process, too."""
    folder = load("celebamask_hq")
    with tarfile.open(home / "celeba.tar", "w") as archive:
        archive.add(folder.root, arcname=folder.root.name)
    tar = CelebAMaskHQ(home / "celeba.tar")
    shutil.make_archive(home / "celeba", "zip", folder.root.parent, folder.root.name)
    packed = CelebAMaskHQ(home / "celeba.zip")
    assert folder.names == tar.names == packed.names == sorted(celeba) and len(folder) == 30
    assert folder.fingerprint == tar.fingerprint == packed.fingerprint
    with ThreadPoolExecutor(8) as pool:
        for images in (folder, tar, packed, *(pickle.loads(pickle.dumps(x)) for x in (tar, packed))):
            shown = pool.map(images.image, [*celeba] * 5)
            assert all(np.array_equal(a, b) for a, b in zip(shown, [*celeba.values()] * 5, strict=True))


def test_what_cannot_be_read_is_named(celeba, home):
    name = sorted(celeba)[0]
    (home / "sets" / "celebamask_hq" / "images" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=name):
        load("celebamask_hq").image(name)
    with tarfile.open(home / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(ValueError, match="unpack"):
        load(home / "x.tar")
    (home / "x.zip").write_bytes((home / "x.tar").read_bytes())
    with pytest.raises(ValueError, match="x.zip is no readable zip"):
        load(home / "x.zip")
    with zipfile.ZipFile(home / "y.zip", "w") as archive:
        archive.write(home / "sets" / "celebamask_hq" / "images" / sorted(celeba)[1], "a.png")
    content = bytearray((home / "y.zip").read_bytes())
    content[200] ^= 255
    (home / "y.zip").write_bytes(content)
    with pytest.raises(ValueError, match="a.png of .*y.zip is no readable image"):
        load(home / "y.zip").image("a.png")
    with pytest.raises(DatasetMissingError, match="not exist"):
        load(home / "nowhere")


@pytest.mark.parametrize("key", data.SOURCES)
def test_a_missing_set_says_where_to_get_and_put_it(home, monkeypatch, key):
    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    with pytest.raises(DatasetMissingError) as caught:
        load(key)
    said = (data.SOURCES[key].origin, data.SOURCES[key].places[0], str(home / "sets"), "RIDDLE_DATA")
    assert all(part in str(caught.value) for part in said)


def test_splits_follow_the_listing_beside_the_data_or_the_names(celeba, home, picture):
    names = sorted(celeba)
    with pytest.raises(ValueError, match="unknown split"):
        load("celebamask_hq", "training")
    parts = [load("celebamask_hq", split).names for split in data.SPLITS]  # by a hash of each name
    assert sorted(sum(parts, [])) == names and len(parts[0]) > 20
    listing = {"celebamask_hq": {"train": names[:20], "val": names[20:24], "test": names[24:]}}
    (home / "sets" / "splits.json").write_text(json.dumps(listing))
    for split, expected in listing["celebamask_hq"].items():
        assert load("celebamask_hq", split).names == expected
    numbers = ["00001.png", "59999.png", "60000.png", "64999.png", "65000.png"]
    for name in numbers:
        picture(home / "sets" / "ffhq" / name, size=(4, 4))
    parts = [load("ffhq", split).names for split in data.SPLITS]
    assert parts == [numbers[:2], numbers[2:4], numbers[4:]]


# ---- LFW


PAIRS = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nBob\t1\t2\nCy\t3\tAnn\t2\n"


def test_pairs_are_parsed_by_fold():
    Pair = data.Pair
    assert data.parse_pairs(PAIRS) == [
        Pair(0, "Ann_0001", "Ann_0002", True),
        Pair(0, "Ann_0001", "Bob_0001", False),
        Pair(1, "Bob_0001", "Bob_0002", True),
        Pair(1, "Cy_0003", "Ann_0002", False),
    ]
    with pytest.raises(ValueError, match="4"):
        data.parse_pairs(PAIRS + "Ann\t1\t2\n")
    with pytest.raises(ValueError, match="line 3"):
        data.parse_pairs(PAIRS.replace("Ann\t1\tBob\t1", "Bob\t1\t2"))


@pytest.mark.parametrize(
    ("folder", "version"),
    [("lfw_deepfunneled", "deep-funneled"), ("lfw_funneled", "funneled"), ("lfw", "original")],
)
def test_lfw_tells_its_version(home, picture, folder, version):
    base = home / "root"
    for person, number in [("Ann", 1), ("Ann", 2), ("Bob", 1), ("Bob", 2), ("Cy", 3), ("Dee", 1)]:
        picture(base / folder / person / f"{person}_{number:04d}.png", seed=number)
    (base / "pairs.txt").write_text(PAIRS)
    lfw = LFW(base)
    assert lfw.version == version and len(lfw.pairs) == 4
    assert lfw.names == ["Ann_0001", "Ann_0002", "Bob_0001", "Bob_0002", "Cy_0003"]  # those of pairs.txt
    assert lfw.image("Ann_0002").size == (40, 30)
    (base / folder / "Cy" / "Cy_0003.png").unlink()
    with pytest.raises(DatasetMissingError, match="Cy_0003"):
        LFW(base)


# ---- masks


def test_masks_as_published_are_merged_into_class_ids(home, picture):
    base = home / "celebamask_hq"
    picture(base / "CelebA-HQ-img" / "2001.jpg")
    parts = base / "CelebAMask-HQ-mask-anno" / "1"
    parts.mkdir(parents=True)
    expected = np.zeros((512, 512), np.uint8)
    for part, index, rows in (("skin", 1, slice(100, 400)), ("nose", 2, slice(200, 260)), ("hair", 13, slice(0, 120))):
        layer = np.zeros((512, 512), np.uint8)
        layer[rows] = 255
        expected[rows] = index
        Image.fromarray(layer).save(parts / f"02001_{part}.png")
    picture(base / "CelebA-HQ-img" / "2002.jpg")
    celeba = CelebAMaskHQ(base)
    assert celeba.names == ["2001.jpg", "2002.jpg"]  # masks are no photos
    assert np.array_equal(celeba.mask("2001.jpg"), expected)
    with pytest.raises(DatasetMissingError, match=r"no mask of 2002\.jpg"):
        celeba.mask("2002.jpg")


def test_real_masks_cover_the_face(real_data):
    celeba = load("celebamask_hq", "val")
    assert len(celeba) == 150
    for name in celeba.names[:60]:
        mask = celeba.mask(name)
        assert mask.shape == (512, 512) and mask.max() < len(CLASSES)
        assert 0.05 < np.isin(mask, [1, 2]).mean() < 0.7
        for right, left in ((5, 4), (7, 6), (9, 8)):  # the person's left lies right in the picture
            columns = [np.argwhere(mask == i)[:, 1] for i in (right, left)]
            assert min(map(len, columns)) == 0 or columns[0].mean() < columns[1].mean()


# ---- aligned sets


class ByColour:
    """A detector whose points follow from a photo's first pixel; every fifth photo has no face."""

    name = "fake"

    def __init__(self):
        self.calls = 0

    def detect(self, image):
        self.calls += 1
        first = np.asarray(image)[0, 0]
        if first[0] % 5 == 0:
            return []
        near = self.points(first)
        centre = near.mean(0)
        far = SimpleNamespace(box=(0, 0, 22, 22), points=near * 0)  # as large, but in the corner
        return [far, SimpleNamespace(box=(*(centre - 11), *(centre + 11)), points=near)]

    @staticmethod
    def points(pixel):
        shift = np.array([pixel[1] % 4, pixel[2] % 4])
        return np.array([[14.0, 10], [24, 10], [19, 15], [15, 20], [23, 20]]) + shift


@pytest.fixture
def detector(monkeypatch):
    fake = ByColour()
    monkeypatch.setattr(aligning, "load_detector", lambda name: fake)
    return fake


def test_aligned_faces_are_the_crops_of_the_central_face_and_places_are_kept(celeba, home, picture, detector):
    images = load("celebamask_hq")
    made = align(images, "smoke")
    assert made.names == sorted(celeba) and made.faces.shape == (30, 32, 32, 3) and made.faces.dtype == np.uint8
    assert made.present.tolist() == [bool(celeba[n][0, 0, 0] % 5) for n in made.names] and 0 < made.present.sum() < 30
    assert not made.faces[~made.present].any() and np.isnan(made.matrices[~made.present]).all()
    for row in np.flatnonzero(made.present):
        name = made.names[row]
        matrix = framing_matrix(ByColour.points(celeba[name][0, 0]))
        assert np.allclose(made.matrices[row], matrix)
        assert np.array_equal(made.faces[row], np.asarray(crop(images.image(name), matrix, 32)))
    larger = align(images, "mobile")  # one detection serves every preset
    assert detector.calls == 30 and larger.faces.shape[1] == presets.get("mobile").resolution
    assert np.array_equal(larger.matrices, made.matrices, equal_nan=True)
    few = sorted(celeba)[4:1:-1]
    assert align(load("celebamask_hq").only(few), "smoke").names == few and detector.calls == 33
    picture(home / "sets" / "celebamask_hq" / "images" / few[0], seed=99, size=(44, 30))
    align(load("celebamask_hq").only(few), "smoke")
    assert detector.calls == 36  # another photo of the same name


def test_an_interrupted_alignment_resumes(celeba, home, detector, monkeypatch):
    monkeypatch.setattr(aligning, "SAVE_EVERY", 10)
    images = load("celebamask_hq")
    original, broken = images.image, sorted(celeba)[17]
    images.image = lambda name: original(name if name != broken else "absent")
    with pytest.raises(KeyError):
        align(images, "smoke")
    assert detector.calls == 17
    images.image = original
    resumed = align(images, "smoke")
    assert detector.calls == 17 + 20  # ten were kept
    monkeypatch.setenv("RIDDLE_HOME", str(home / "elsewhere"))
    whole = align(images, "smoke")
    assert np.array_equal(resumed.faces, whole.faces)
    assert np.array_equal(resumed.matrices, whole.matrices, equal_nan=True)


def test_framed_pictures_are_only_resized(home, monkeypatch):
    """No detector is asked: a picture keeps its pixels at its own size."""
    monkeypatch.setattr(aligning, "load_detector", None)
    pixels = {n: np.random.default_rng(n).integers(0, 256, (128, 128, 3), dtype=np.uint8) for n in (3, 60_002)}
    for n, picture in pixels.items():
        path = home / "ffhq" / f"{n // 1000 * 1000:05d}" / f"{n:05d}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture).save(path)
    ffhq = FFHQ(home / "ffhq")
    same, small = align(ffhq, "mobile"), align(ffhq, "smoke")
    assert same.names == ["00003.png", "60002.png"] and same.present.all()
    assert np.array_equal(same.faces, np.stack(list(pixels.values())))
    resized = [Image.fromarray(p).resize((32, 32), Image.Resampling.LANCZOS) for p in pixels.values()]
    assert np.array_equal(small.faces, np.stack([np.asarray(r) for r in resized]))
    assert np.allclose(small.matrices @ [0.5, 0.5, 1], 63.5) and np.allclose(small.matrices @ [1, 0, 1], [127.5, -0.5])


def test_real_faces_are_framed_as_ffhq_by_one_process_and_by_two(real_data, tmp_path, monkeypatch):
    monkeypatch.setattr(aligning, "PROCESSES_FROM", 0)
    celeba, ffhq = load("celebamask_hq", "val"), load("ffhq", "val")
    found = []
    for workers, n in ((1, 16), (2, 6)):
        monkeypatch.setattr(aligning.config, "home", lambda folder=tmp_path / str(workers): folder)
        found.append(align(celeba.only(celeba.names[:n]), "mobile", workers=workers))
    one, two = found
    assert np.array_equal(one.matrices[:6], two.matrices) and np.array_equal(one.faces[:6], two.faces)
    assert found[0].present.sum() >= 15
    means = []
    for made in (found[0], align(ffhq.only(ffhq.names[:16]), "mobile")):
        seen = detect_in_crop(to_tensor(made.faces[made.present]))
        means.append(np.mean([f.points for f in seen if f is not None], 0) / 128)
    assert np.abs(means[0] - means[1]).max() < 0.03  # eyes, nose and mouth lie where FFHQ's own alignment puts them
    assert 0.43 < means[0][:2, 1].mean() < 0.49
