"""Training faces as tar shards: sizes, contents, resumption, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from riddle import aligned as aligned_module
from riddle import datasets
from riddle.datasets import DatasetMissingError, Folder, aligned
from riddle.faces.detection import Face
from riddle.presets import get
from riddle.training import shards
from riddle.training.shards import Item, ShardError

SMOKE = get("smoke")
POINTS = np.array([(24.0, 26.0), (40.0, 26.0), (32.0, 34.0), (26.0, 42.0), (38.0, 42.0)])


class Photos:
    """Smooth synthetic pictures, 64 px; counts what was read, and may hold a damaged one."""

    def __init__(self, damaged: str | None = None):
        self.read, self.damaged = [], damaged

    def image(self, name: str) -> Image.Image:
        if name == self.damaged:
            raise ValueError(f"{name} is no readable image")
        self.read.append(name)
        coarse = np.random.default_rng(int(name)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


def items_of(photos: Photos, count: int) -> list[Item]:
    return [Item("utkface" if k % 3 else "omi", photos, str(k), POINTS) for k in range(count)]


def make(out, photos=None, count=60, limit=40_000, preset=SMOKE, quality=90, **options):
    photos = photos or Photos()
    return shards.make(preset, "train", out, items_of(photos, count), {"omi": "x"}, quality, limit=limit, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of several shards, never altered."""
    out = tmp_path_factory.mktemp("set")
    return out, make(out)


def truth(count=60):
    photos = Photos()
    return np.stack([shards.crop_item(item, SMOKE) for item in items_of(photos, count)])


def test_shards_keep_their_size_and_say_what_they_hold(made):
    out, paths = made
    assert len(paths) > 2
    assert [p.name for p in paths] == [f"smoke-train-{k:06d}.tar" for k in range(len(paths))]
    assert all(p.stat().st_size <= 40_000 for p in paths)
    found = [shards.read_index(p) for p in paths]
    assert [i["start"] for i in found] == [0, *[i["stop"] for i in found[:-1]]] and found[-1]["stop"] == 60
    assert all(i["count"] == i["stop"] - i["start"] == sum(i["sources"].values()) for i in found)
    assert sum(i["sources"]["omi"] for i in found) == 20 and sum(i["sources"]["utkface"] for i in found) == 40
    about = {"preset": "smoke", "resolution": 32, "framing": "tight", "split": "train", "quality": 90, "total": 60}
    assert all(about.items() <= i.items() and len({i["key"] for i in found}) == 1 for i in found)
    with tarfile.open(paths[1]) as archive:  # WebDataset: a key and a suffix; its readers skip names like __index__
        names = archive.getnames()
    assert names[0] == "__index__"
    assert names[1:] == [f"{k:08d}.webp" for k in range(found[1]["start"], found[1]["stop"])]
    assert sorted(p.name for p in out.iterdir()) == [p.name for p in paths]  # nothing temporary stays


@pytest.mark.parametrize("form", ["webp", "jpg"])
def test_faces_come_back_in_order(tmp_path, form):
    make(tmp_path, quality=95, form=form)
    faces = shards.read(tmp_path, "smoke")
    assert faces.shape == (60, 32, 32, 3) and faces.dtype == np.uint8
    errors = ((faces.astype(float) - truth()) ** 2).mean((1, 2, 3))
    assert 10 * np.log10(255**2 / errors.max()) > 33  # dB: each is the face at its place
    assert shards.unpack([tmp_path], tmp_path / "x" / "faces.npy") == (60, 32, 32, 3)
    assert np.array_equal(np.load(tmp_path / "x" / "faces.npy"), faces)


def test_a_finished_shard_is_not_made_again(tmp_path, made):
    paths = make(tmp_path)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in made[1]]  # the same faces, the same bytes
    removed = paths[1].read_bytes()
    index = shards.read_index(paths[1])
    paths[1].unlink()
    photos = Photos()
    assert make(tmp_path, photos) == paths
    assert paths[1].read_bytes() == removed
    assert set(photos.read) <= {str(k) for k in range(index["start"], 60)}
    assert len(set(photos.read) & {str(k) for k in range(index["start"], index["stop"])}) == index["count"]
    photos = Photos()
    make(tmp_path, photos)
    assert photos.read == []


def test_an_interrupted_run_leaves_whole_shards(tmp_path, made):
    with pytest.raises(ValueError, match="50 is no readable image"):
        make(tmp_path, Photos(damaged="50"))
    left = sorted(tmp_path.iterdir())
    assert left and all(shards.read_shard(p).shape[0] == shards.read_index(p)["count"] for p in left)
    assert [p.read_bytes() for p in make(tmp_path)] == [p.read_bytes() for p in made[1]]


def test_another_set_in_the_folder_is_refused(tmp_path):
    make(tmp_path, count=6)
    with pytest.raises(ShardError, match="another set .*choose another --out"):
        make(tmp_path, count=6, quality=50)
    with pytest.raises(ShardError, match="another set"):
        make(tmp_path, count=7)


def test_damage_is_told(tmp_path, made):
    source = made[1][0]
    data, path = source.read_bytes(), tmp_path / "a.tar"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match=r"a\.tar .*copy it again"):
        shards.read_shard(path)
    whole = [*tarfile.open(source)]  # cut between two members, where a tar reader sees nothing wrong
    path.write_bytes(data[: whole[4].offset])
    with pytest.raises(ShardError, match="holds 3 of the"):
        shards.read_shard(path)
    flipped = bytearray(data)
    flipped[whole[5].offset_data + 40] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ShardError, match="damaged"):
        shards.read_shard(path)
    for content in (b"", b"no tar at all" * 100):
        path.write_bytes(content)
        with pytest.raises(ShardError, match="a.tar"):
            shards.read_index(path)
    with tarfile.open(path, "w") as archive:
        archive.add(made[1][0], "x.webp")
    with pytest.raises(ShardError, match="no index"):
        shards.read_index(path)
    (tmp_path / "empty").mkdir()
    for nothing in ("nowhere", "empty"):
        with pytest.raises(ShardError, match=f"{nothing}: no shard"):
            shards.read(tmp_path / nothing)


def test_a_failed_unpack_leaves_no_file(tmp_path, made):
    for path in made[1]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    last = tmp_path / made[1][-1].name
    content = bytearray(last.read_bytes())
    content[tarfile.open(last).getmembers()[2].offset_data + 40] ^= 1
    last.write_bytes(content)
    with pytest.raises(ShardError, match="damaged"):
        shards.unpack(tmp_path, tmp_path / "out.npy")
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob(".*tmp"))


def test_wrong_missing_and_mixed_shards_are_refused(tmp_path, made):
    paths = made[1]
    with pytest.raises(ShardError, match="32 px, tight .*mini wants 64 px"):
        shards.read(paths, "mini")
    with pytest.raises(ShardError, match="missing; add that shard"):
        shards.read([paths[0], *paths[2:]])
    with pytest.raises(ShardError, match="not the last shard"):
        shards.read(paths[:2])
    with pytest.raises(ShardError, match="each shard once"):
        shards.read([*paths, paths[0]])
    some = shards.read(paths[1:3], partial=True)
    low, high = shards.read_index(paths[1])["start"], shards.read_index(paths[2])["stop"]
    assert np.array_equal(some, shards.read(paths)[low:high])
    larger = make(tmp_path, count=4, preset=replace(SMOKE, name="larger", resolution=48))
    with pytest.raises(ShardError, match="48 px.* of 32 px|32 px.* of 48 px"):
        shards.read([*paths, *larger])
    false = shards.read_index(larger[0])  # an index that lies about the size of its pictures
    members = [(m.name, tarfile.open(larger[0]).extractfile(m).read()) for m in tarfile.open(larger[0])][1:]
    shards.write_shard(tmp_path / "false.tar", {**false, "resolution": 32}, members)
    with pytest.raises(ShardError, match="48 x 48 px, its index says 32"):
        shards.read_shard(tmp_path / "false.tar")


def test_listing_takes_the_splits_and_faces_of_prepare(home, tmp_path, monkeypatch):
    (tmp_path / "faces").mkdir()
    for k in range(5):
        Photos().image(str(k)).save(tmp_path / "faces" / f"{k}.png")
    asked = []

    def load(name, split):
        asked.append((name, split))
        if name == "celebamask_hq":
            raise DatasetMissingError("celebamask_hq: not here")
        return Folder(tmp_path / "faces", name)

    class Detector:
        def detect(self, photo):
            return [Face(np.array([8.0, 8, 56, 56]), 1.0, POINTS, None, "fixed")]

    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setattr(aligned_module, "_detector", lambda name: Detector())
    items, hashes = shards.listing(SMOKE, "train", workers=1)
    assert asked == [("utkface", "train"), ("celebamask_hq", "train"), ("omi", "all")]
    assert set(hashes) == {"utkface", "omi"} and len(items) == 10
    assert sorted((i.source, i.name) for i in items) != [(i.source, i.name) for i in items]  # shuffled
    again = [(i.source, i.name) for i in shards.listing(SMOKE, "train", limit=4, workers=1)[0]]
    assert again == [(i.source, i.name) for i in items[:4]]
    shards.make(SMOKE, "train", tmp_path / "set", items, hashes, quality=100)
    whole = aligned(Folder(tmp_path / "faces", "utkface"), SMOKE, workers=1)
    faces = dict(zip(whole.names, whole.faces, strict=True))
    wanted = np.stack([faces[i.name] for i in items]).astype(float)
    assert np.abs(shards.read(tmp_path / "set") - wanted).mean() < 4
    asked.clear()
    shards.listing(SMOKE, "val", workers=1)
    assert asked == [("utkface", "val"), ("celebamask_hq", "val")]  # OMI is for training


def test_unpacking_needs_neither_detector_nor_torch_nor_data(home, tmp_path, made):
    code = (
        "import sys\n"
        "for name in ('dlib', 'torch', 'facenet_pytorch', 'onnxruntime', 'riddle.datasets', 'riddle.faces'):\n"
        "    sys.modules[name] = None\n"
        "from riddle.training import shards\n"
        f"shards.main(['unpack', {str(made[0])!r}, '--out', {str(tmp_path / 'f.npy')!r}, '--preset', 'smoke'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "(60, 32, 32, 3)" in done.stdout
    assert np.array_equal(np.load(tmp_path / "f.npy"), shards.read(made[0]))


def test_command_line_refuses_in_words(tmp_path, made, capsys):
    with pytest.raises(SystemExit) as stop:
        shards.main(["unpack", str(made[0]), "--out", str(tmp_path / "f.npy"), "--preset", "face128"])
    assert stop.value.code == 2 and "make its own shards" in capsys.readouterr().err
    assert not (tmp_path / "f.npy").exists()
