"""Data sets: the same images from a folder and a tar, splits, LFW's pairs, masks, and the aligned cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from riddle import aligned as aligning
from riddle import datasets, presets
from riddle.archives import FolderFiles, TarFiles
from riddle.faces.alignment import crop, framing_matrix


def pack(folder, path):
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=folder.name)
    return path


@pytest.fixture
def celeba(home, picture, monkeypatch):
    """Thirty small photos in the folder form, found by RIDDLE_DATA; {name: pixels}."""
    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    names = [f"{i:02d}.png" for i in range(30)]
    return {n: picture(home / "sets" / "celeba_hq" / n, seed=i) for i, n in enumerate(names)}


def test_a_folder_and_its_tar_give_the_same_set(celeba, home):
    folder = datasets.CelebAHQ("all")
    tar = datasets.CelebAHQ("all", pack(home / "sets" / "celeba_hq", home / "celeba_hq.tar"))
    assert folder.names == tar.names == sorted(celeba)
    assert folder.split_hash == tar.split_hash and folder.fingerprint == tar.fingerprint
    for name, pixels in celeba.items():
        assert np.array_equal(np.asarray(folder.image(name)), pixels)
        assert np.array_equal(np.asarray(tar.image(name)), pixels)
    assert len(folder) == 30


def test_a_tar_is_read_by_many_threads_and_forked_or_pickled(celeba, home):
    tar = TarFiles(pack(home / "sets" / "celeba_hq", home / "celeba_hq.tar"))
    plain = FolderFiles(home / "sets")
    members = [f"celeba_hq/{n}" for n in celeba] * 20
    tar.read(members[0])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tar.read, members)) == [plain.read(m) for m in members]
    assert pickle.loads(pickle.dumps(tar)).read(members[1]) == plain.read(members[1])
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(tar.read(m) == plain.read(m) for m in members) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_compressed_tar_is_refused_with_a_remedy(home):
    with tarfile.open(home / "x.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(ValueError, match="unpack"):
        TarFiles(home / "x.tar")


def test_splits_follow_the_listing_beside_the_data(celeba, home):
    names = sorted(celeba)
    listing = {"celeba_hq": {"train": names[:20], "val": names[20:24], "test": names[24:]}}
    (home / "sets" / "splits.json").write_text(json.dumps(listing))
    for split, expected in listing["celeba_hq"].items():
        assert datasets.CelebAHQ(split).names == expected
    by_hand = hashlib.sha256("\n".join(names[24:]).encode()).hexdigest()[:12]
    assert datasets.CelebAHQ("test").split_hash == by_hand
    with pytest.raises(ValueError, match="unknown split"):
        datasets.CelebAHQ("training")


def test_splits_without_a_listing_are_disjoint_complete_and_near_90_5_5(home, picture):
    for i in range(400):
        picture(home / "celeba_hq" / f"{i}.png", seed=0, size=(2, 2))
    parts = [datasets.CelebAHQ(s, home / "celeba_hq").names for s in ("train", "val", "test")]
    assert sorted(sum(parts, [])) == datasets.CelebAHQ("all", home / "celeba_hq").names
    assert sum(len(set(p)) for p in parts) == 400
    assert 340 <= len(parts[0]) <= 378 and min(len(parts[1]), len(parts[2])) >= 8


def test_a_missing_set_says_where_to_get_and_put_it(home, monkeypatch):
    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    with pytest.raises(datasets.DatasetMissingError) as caught:
        datasets.LFWPairs()
    for part in ("vis-www.cs.umass.edu/lfw", "lfw.tar", str(home / "sets"), "RIDDLE_DATA"):
        assert part in str(caught.value)
    with pytest.raises(datasets.DatasetMissingError, match="not exist"):
        datasets.CelebAHQ(root=home / "nowhere")


def test_the_configuration_file_names_a_set(celeba, home, monkeypatch):
    monkeypatch.delenv("RIDDLE_DATA")
    (home / "config.toml").write_text(f'[datasets]\nceleba_hq = "{home / "sets" / "celeba_hq"}"\n')
    assert len(datasets.CelebAHQ("all")) == 30


def test_a_damaged_image_is_named(celeba, home):
    name = sorted(celeba)[0]
    (home / "sets" / "celeba_hq" / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=name):
        datasets.CelebAHQ("all").image(name)


# ---- LFW


PAIRS = "2\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\nBob\t1\t2\nCy\t3\tAnn\t2\n"


def test_pairs_are_parsed_by_fold():
    Pair = datasets.Pair
    assert datasets.parse_pairs(PAIRS) == [
        Pair(0, "Ann_0001", "Ann_0002", True),
        Pair(0, "Ann_0001", "Bob_0001", False),
        Pair(1, "Bob_0001", "Bob_0002", True),
        Pair(1, "Cy_0003", "Ann_0002", False),
    ]
    with pytest.raises(ValueError, match="4"):
        datasets.parse_pairs(PAIRS + "Ann\t1\t2\n")
    with pytest.raises(ValueError, match="line 3"):
        datasets.parse_pairs(PAIRS.replace("Ann\t1\tBob\t1", "Bob\t1\t2"))


@pytest.mark.parametrize(
    ("folder", "version"),
    [("lfw_deepfunneled", "deep-funneled"), ("lfw_funneled", "funneled"), ("lfw", "original")],
)
def test_lfw_tells_its_version(home, picture, folder, version):
    base = home / "root"
    for person, number in [("Ann", 1), ("Ann", 2), ("Bob", 1), ("Bob", 2), ("Cy", 3), ("Dee", 1)]:
        picture(base / folder / person / f"{person}_{number:04d}.png", seed=number)
    (base / "pairs.txt").write_text(PAIRS)
    lfw = datasets.LFWPairs(base)
    assert lfw.version == version and len(lfw.pairs) == 4
    assert lfw.names == ["Ann_0001", "Ann_0002", "Bob_0001", "Bob_0002", "Cy_0003"]  # those of pairs.txt
    assert lfw.image("Ann_0002").size == (40, 30)
    (base / folder / "Cy" / "Cy_0003.png").unlink()
    with pytest.raises(datasets.DatasetMissingError, match="Cy_0003"):
        datasets.LFWPairs(base)


def test_lfw_of_scikit_learn_is_found(home, picture):
    base = home / "sklearn" / "lfw_home"
    for person, number in [("Ann", 1), ("Ann", 2), ("Bob", 1), ("Bob", 2), ("Cy", 3)]:
        picture(base / "lfw_funneled" / person / f"{person}_{number:04d}.jpg")
    (base / "pairs.txt").write_text(PAIRS)
    (base / "pairsDevTest.txt").write_text("1\n")
    assert datasets.LFWPairs().version == "funneled"


def test_the_real_lfw_has_the_published_counts(real_data):
    lfw = datasets.LFWPairs()
    assert len(lfw.pairs) == 6000 and len(lfw.names) == 7701
    for fold in range(10):
        assert [sum(p.fold == fold and p.same is s for p in lfw.pairs) for s in (True, False)] == [300, 300]
    assert all(p.same == (p.a[:-5] == p.b[:-5]) for p in lfw.pairs)
    assert lfw.image(lfw.names[0]).size == (250, 250)


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
    celeba = datasets.CelebAMaskHQ("all", base)
    assert celeba.names == ["2001.jpg"]
    assert np.array_equal(celeba.mask("2001.jpg"), expected)


def test_real_masks_cover_the_face(real_data):
    celeba = datasets.CelebAMaskHQ("val")
    assert len(celeba) == 150
    for name in celeba.names[:60]:
        mask = celeba.mask(name)
        assert mask.shape == (512, 512) and mask.max() < len(datasets.CLASSES)
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
    monkeypatch.setitem(aligning._detectors, "auto", fake)
    return fake


def test_aligned_faces_are_the_crops_of_the_central_face(celeba, home, detector):
    dataset = datasets.CelebAHQ("all")
    made = datasets.aligned(dataset, "smoke", cache=home / "c")
    with_face = [n for n in sorted(celeba) if celeba[n][0, 0, 0] % 5]
    assert made.names == with_face and made.missing == [n for n in sorted(celeba) if n not in with_face]
    assert 0 < len(made.missing) < 30
    assert made.faces.shape == (len(made), 32, 32, 3) and made.faces.dtype == np.uint8
    for row, name in enumerate(made.names):
        matrix = framing_matrix(ByColour.points(celeba[name][0, 0]))
        assert np.allclose(made.matrices[row], matrix)
        expected = crop(dataset.image(name), matrix, 32)
        assert np.array_equal(made.faces[row], np.asarray(expected))
    x = made.tensor([1, 0])
    assert x.shape == (2, 3, 32, 32)
    assert np.allclose(x[0].permute(1, 2, 0), made.faces[1] / 127.5 - 1, atol=1e-6)


def test_aligned_sets_are_cached_and_detection_is_shared_by_presets(celeba, home, detector):
    dataset = datasets.CelebAHQ("all")
    first = datasets.aligned(dataset, "smoke", cache=home / "c")
    again = datasets.aligned(dataset, "smoke", cache=home / "c")
    assert detector.calls == 30 and np.array_equal(first.faces, again.faces) and first.key == again.key
    larger = datasets.aligned(dataset, "mobile", cache=home / "c")
    assert detector.calls == 30 and larger.faces.shape[1] == presets.get("mobile").resolution
    assert np.array_equal(larger.matrices, first.matrices) and larger.key != first.key


def test_the_cache_key_follows_the_images(celeba, home, detector, picture):
    before = datasets.aligned(datasets.CelebAHQ("all"), "smoke", cache=home / "c")
    picture(home / "sets" / "celeba_hq" / sorted(celeba)[3], seed=99, size=(44, 30))
    after = datasets.aligned(datasets.CelebAHQ("all"), "smoke", cache=home / "c")
    assert before.key != after.key and detector.calls == 60


def test_an_interrupted_alignment_resumes(celeba, home, detector, monkeypatch):
    monkeypatch.setattr(aligning, "_SAVE_EVERY", 10)
    dataset = datasets.CelebAHQ("all")
    whole = datasets.aligned(dataset, "smoke", cache=home / "whole")
    detector.calls = 0
    original, broken = dataset.image, sorted(celeba)[17]
    dataset.image = lambda name: original(name if name != broken else "absent")
    with pytest.raises(KeyError):
        datasets.aligned(dataset, "smoke", cache=home / "c")
    assert detector.calls == 17
    dataset.image = original
    resumed = datasets.aligned(dataset, "smoke", cache=home / "c")
    assert detector.calls == 17 + 20  # ten were kept
    assert np.array_equal(resumed.faces, whole.faces) and resumed.names == whole.names
    assert not list((home / "c").glob("*.part*")) and not list((home / "c").glob(".*"))


def test_framed_pictures_are_used_as_they_are(home, monkeypatch):
    """No detector is asked: a picture keeps its pixels at its own size, and shrinks to averages of them."""
    monkeypatch.setitem(aligning._detectors, "auto", None)
    pixels = {n: np.random.default_rng(n).integers(0, 256, (128, 128, 3), dtype=np.uint8) for n in (3, 60_002)}
    for n, picture in pixels.items():
        path = home / "ffhq" / f"{n // 1000 * 1000:05d}" / f"{n:05d}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(picture).save(path)
    ffhq = datasets.FFHQ("all", home / "ffhq")
    same = datasets.aligned(ffhq, "mobile", cache=home / "c")
    assert same.names == ["00003.png", "60002.png"] and not same.missing
    assert np.array_equal(same.faces, np.stack(list(pixels.values())))
    small = datasets.aligned(ffhq, "smoke", cache=home / "c")
    means = np.stack(list(pixels.values())).reshape(2, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(small.faces - means).max() <= 1.5  # two roundings
    assert np.allclose(small.matrices @ [0.5, 0.5, 1], 63.5) and np.allclose(small.matrices @ [1, 0, 1], [127.5, -0.5])


def test_ffhq_splits_by_number_unless_a_listing_names_them(home, picture):
    names = ["00001.png", "59999.png", "60000.png", "64999.png", "65000.png"]
    for name in names:
        picture(home / "ffhq" / name, size=(4, 4))
    parts = {split: datasets.FFHQ(split, home / "ffhq").names for split in ("train", "val", "test")}
    assert parts == {"train": names[:2], "val": names[2:4], "test": names[4:]}
    listing = {"ffhq": {"train": names[3:], "val": names[:1], "test": names[1:3]}}
    (home / "splits.json").write_text(json.dumps(listing))
    assert {split: datasets.FFHQ(split, home / "ffhq").names for split in listing["ffhq"]} == listing["ffhq"]
    with pytest.raises(ValueError, match="unknown split"):
        datasets.FFHQ("training", home / "ffhq")


def test_the_real_splits_are_the_listed_ones(real_data):
    counts = {"train": 3915, "val": 250, "test": 500}
    assert {split: len(datasets.FFHQ(split)) for split in counts} == counts
    assert {split: len(datasets.CelebAMaskHQ(split)) for split in counts} == {"train": 692, "val": 150, "test": 150}
    assert datasets.FFHQ("val").image("00032.jpg").size == (128, 128)


def test_real_faces_are_framed_as_ffhq_by_one_process_and_by_two(real_data, tmp_path, monkeypatch):
    from riddle.faces.detection import detect_in_crop

    monkeypatch.setattr(aligning, "_PROCESSES_FROM", 0)
    dataset = datasets.CelebAMaskHQ("val")
    dataset.names = dataset.names[:16]
    one = datasets.aligned(dataset, "mobile", workers=1, cache=tmp_path / "1")
    two = datasets.aligned(dataset, "mobile", workers=2, cache=tmp_path / "2")
    assert one.names == two.names and np.array_equal(one.faces, two.faces)
    assert len(one) >= 15
    framed = datasets.FFHQ("val")
    framed.names = framed.names[:16]
    means = []
    for made in (one, datasets.aligned(framed, "mobile", cache=tmp_path)):
        found = detect_in_crop(made.tensor())
        means.append(np.mean([f.points for f in found if f is not None], 0) / 128)
    assert np.abs(means[0] - means[1]).max() < 0.03  # eyes, nose and mouth lie where FFHQ's own alignment puts them
    assert 0.43 < means[0][:2, 1].mean() < 0.49


def test_preparation_joins_the_sets_and_counts_them(home, detector, picture, monkeypatch, capsys):
    from riddle.training import prepare

    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    with pytest.raises(datasets.DatasetMissingError, match="(?s)ffhq.*celebamask_hq"):
        prepare.faces("smoke", "val")
    for i in range(3):
        picture(home / "sets" / "ffhq" / f"{i:05d}.png", seed=i, size=(32, 32))
        picture(home / "sets" / "celebamask_hq" / "images" / f"{i}.png", seed=i)
    names = {"ffhq": "{:05d}.png", "celebamask_hq": "{}.png"}
    listing = {k: {"train": [n.format(2)], "val": [n.format(0), n.format(1)], "test": []} for k, n in names.items()}
    (home / "sets" / "splits.json").write_text(json.dumps(listing))
    prepare.main(["faces", "--preset", "smoke", "--split", "val", "--out", str(home / "runs" / "faces_val.npy")])
    made = np.load(home / "runs" / "faces_val.npy")
    first = np.asarray(Image.open(home / "sets" / "ffhq" / "00000.png"))
    counts = json.loads((home / "runs" / "faces_val_sets.json").read_text())
    assert np.array_equal(made[0], first) and counts["ffhq"] == 2 and made.dtype == np.uint8
    assert len(made) == sum(counts.values())
