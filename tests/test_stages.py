"""The stages from pictures to Table 1, with stand-ins for the networks: resumption, keys, reasons, layout."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import riddle
from riddle import config, facesets, protocols, reporting, stages
from riddle.faces import detection, recognizers
from riddle.runs import PARTS, Run, key_of, part_hash, read, times
from riddle.weights import WeightsMissingError

SAMPLES = 6


class Model:
    """Codes are 4 x 4 averages of the picture; a key is added, and taken away by the same key."""

    def invert(self, faces):
        return torch.nn.functional.adaptive_avg_pool2d(faces, 4).flatten(1)

    def random_password(self, n, seed):
        draw = torch.Generator().manual_seed(seed)
        return torch.rand(n, 48, generator=draw) * 2 - 1

    def encrypt(self, w, key):
        return (w - key) * torch.where(key > 0, 1, -1)

    def decrypt(self, w, key):
        return w * torch.where(key > 0, 1, -1) + key

    def synthesize(self, w):
        return torch.nn.functional.interpolate(w.reshape(-1, 3, 4, 4), size=32)


class Judge:
    """Its crop is the whole picture, its embedding the 4 x 4 averages."""

    threshold, dim, name = 0.9, 48, "stand-in"
    spec = SimpleNamespace(size=32, stretch=1.0, targets=np.zeros((5, 2)))

    def align(self, image, points, landmarks):
        return image

    def embed(self, crops):
        return torch.nn.functional.normalize(torch.nn.functional.adaptive_avg_pool2d(crops, 4).flatten(1))


@pytest.fixture
def run(home, monkeypatch):
    folder = home / "home" / "data" / "samples"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for i in range(SAMPLES):
        blocks = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / f"{i:02d}.jpg", quality=100, subsampling=0)

    def load(preset, device, encryptor="encryptor"):
        if encryptor == "encryptor_datafree":
            raise WeightsMissingError("datafree", f"{home}/home/data/zoo/datafree does not exist", "train it")
        return Model()

    def judge(name, device):
        if name.startswith("facenet"):
            raise WeightsMissingError(name, "no file", "download it")
        return Judge()

    def detect(faces, detector, workers):
        face = detection.Face(np.ones(4), 1.0, np.ones((5, 2)), None, "dlib")
        return [None] + [face] * (len(faces) - 1)

    monkeypatch.setattr(riddle, "load", load, raising=False)
    monkeypatch.setattr(recognizers, "load", judge)
    monkeypatch.setattr(
        recognizers, "available", lambda names: {n: "no" if "facenet" in n else None for n in names}, raising=False
    )
    monkeypatch.setattr(detection, "detect_in_crop", detect)
    return Run(preset="smoke", dataset="auto")


def test_table_of_the_samples_where_there_is_no_lfw(run):
    path = stages.table1(run)
    assert run.data == "samples" and run.kept_table.read_bytes() == path.read_bytes()
    table = reporting.read_csv(path)
    assert table.dataset.str.contains("synthetic").all()
    assert table.threshold_rule.str.contains("published").all()
    rows = table[table.judge == "edgeface-xs"].set_index(["task", "method", "against"])
    restored = rows.loc[("recovery", "RiDDLE", "its inverted face")]
    assert (restored.n, restored.undetected) == (SAMPLES, 1)  # the stand-in detector loses the first face
    assert restored.rate == pytest.approx(5 / 6, abs=1e-4) and restored.rate_found == 1
    assert rows.loc[("de-identification", "RiDDLE", "the same photo")].rate == 0
    assert rows.loc[("de-identification", "RiDDLE, wrongly decrypted", "the same photo")].rate == 0
    missing = rows.loc[("de-identification", "RiDDLE data-free", "the same photo")].value
    assert missing == "n/a: weights missing (data/zoo/datafree does not exist)"
    assert (table[table.judge == "facenet-casia"].value == "n/a: weights missing (no file)").all()
    assert table[table.judge == "arcface-mobilefacenet"].judge_seen.all()
    assert "CIAGAN" in reporting.markdown(table)


def test_without_the_papers_encryptor_ours_keeps_its_rows_and_its_name(run, monkeypatch):
    def load(preset, device, encryptor="encryptor"):
        if encryptor == "encryptor":
            raise WeightsMissingError("encryptor", "no file", "train it")
        return Model()

    monkeypatch.setattr(riddle, "load", load, raising=False)
    table = reporting.read_csv(stages.table1(run))
    rows = table[table.judge == "edgeface-xs"]
    assert (rows[rows.method.str.startswith("RiDDLE") & ~rows.method.str.contains("data-free")].value
            == "n/a: weights missing (no file)").all()  # fmt: skip
    ours = rows[rows.method == protocols.OURS]
    assert set(ours.task) == {"de-identification", "recovery", "diversity"} and ours.rate.notna().all()
    assert ours.filter(like="paper ").isna().all(axis=None) and ours[ours.task == "diversity"].n.item() == SAMPLES * 45
    wrong = rows[rows.method == f"{protocols.OURS}, wrongly decrypted"]
    assert set(wrong.task) == {"de-identification", "diversity"} and wrong.rate.notna().all()
    assert rows[rows.method.str.startswith("inverted") & (rows.task == "recovery")].rate.notna().all()


def test_no_file_is_looked_for_behind_a_control(home):
    assert part_hash("mobile", "untrained") == "untrained" and part_hash("mobile", "encryptor_coupling") is None
    assert not {"untrained", "reflection"} & set(PARTS) and "encryptor_coupling" in PARTS


def test_every_picture_has_its_own_password_and_the_wrong_one_differs(run, monkeypatch):
    used = []

    class Watched(Model):
        def encrypt(self, w, key):
            used.append(("encrypt", key))
            return super().encrypt(w, key)

        def decrypt(self, w, key):
            used.append(("decrypt", key))
            return super().decrypt(w, key)

    monkeypatch.setattr(riddle, "load", lambda *a, **k: Watched(), raising=False)
    for item in ("riddle", "riddle-wrong", "riddle-restored"):
        stages.faces(run, item)
    (_, first), (_, second), (_, wrong), (_, third), (_, right) = used
    assert torch.equal(first, second) and torch.equal(first, third) and torch.equal(third, right)
    assert len(torch.unique(torch.cat([first, wrong]), dim=0)) == 2 * SAMPLES


def test_ten_passwords_of_each_person(run):
    path = stages.faces(run, "riddle-passwords")
    faces, targets = read(path, "faces"), read(path, "targets")
    assert (targets == np.repeat(np.arange(SAMPLES), protocols.PASSWORDS)).all()
    assert len(np.unique(faces.reshape(len(faces), -1), axis=0)) == SAMPLES * protocols.PASSWORDS


def test_restoring_from_pixels_sees_only_the_picture(run):
    """PNG: the 8-bit picture is inverted again; JPEG: after compression; where codes are exact, so is the PNG."""
    encrypted, inverted = (read(stages.faces(run, s), "faces") for s in ("riddle", "inverted"))
    again = facesets.to_tensor(encrypted)
    model, keys = Model(), Model().random_password(SAMPLES, 0)
    expected = model.synthesize(model.decrypt(model.invert(again), keys))
    assert (read(stages.faces(run, "riddle-png"), "faces") == facesets.to_bytes(expected)).all()
    kept = np.abs(read(stages.faces(run, "riddle-restored"), "faces") - inverted.astype(int)).mean()
    errors = [np.abs(read(stages.faces(run, f"riddle-{a}"), "faces") - inverted.astype(int)).mean()
              for a in ("png", "jpeg75")]  # fmt: skip
    assert kept < 0.5 < errors[0] < errors[1]
    assert read(stages.faces(run, "riddle-pasted"), "reason") == "the bundled faces have no photo around them"


def test_ten_wrong_passwords_decrypt_what_the_own_one_encrypted(run):
    path = stages.faces(run, "riddle-wrong-passwords")
    faces, model = read(path, "faces"), Model()
    assert (read(path, "targets") == np.repeat(np.arange(SAMPLES), protocols.PASSWORDS)).all()
    w = torch.from_numpy(read(stages.codes(run), "codes"))
    own, wrong = model.random_password(SAMPLES, 0), model.random_password(SAMPLES * protocols.PASSWORDS, 2)
    expected = model.synthesize(model.decrypt(model.encrypt(w[3:4], own[3:4]), wrong[35:36]))
    assert (faces[35] == facesets.to_bytes(expected)[0]).all()


SOME = "mlp nodiv-restored mlp-wrong mlp-passwords datafree-jpeg75 coupling-png untrained reflection-passwords"


@pytest.mark.parametrize("item", SOME.split())
def test_every_variant_has_every_set(run, item):
    assert read(stages.faces(run, item), "reason" if item.startswith("datafree") else "faces") is not None
    assert facesets.parse(item).encryptor == stages.VARIANTS[item.split("-")[0]]


@pytest.mark.parametrize("item", ["", "riddle-", "photo-wrong", "riddle-jpeg60", "blur-restored"])
def test_names_that_are_no_set(item):
    with pytest.raises(ValueError, match="unknown set of faces"):
        facesets.parse(item)


def test_embeddings_of_a_set_are_kept_when_another_is_asked_for(run, monkeypatch):
    loaded = []
    monkeypatch.setattr(recognizers, "load", lambda name, device: loaded.append(name) or Judge())
    first = stages.judge_of(run, "dlib", ["photo", "riddle"])
    again = stages.judge_of(run, "dlib", ["riddle", "riddle-passwords"])
    assert len(loaded) == 2 and (first.embeddings["riddle"][1:] == again.embeddings["riddle"][1:]).all()
    assert again.embeddings["riddle-passwords"].shape == (SAMPLES, protocols.PASSWORDS, 48)
    stages.judge_of(run, "dlib", ["photo", "riddle-passwords"])
    assert len(loaded) == 2


# Data sets


def test_a_test_split_is_compared_with_itself(run, home, monkeypatch):
    for name, split in (("00007.jpg", "test"), ("00002.jpg", "train"), ("00001.jpg", "test"), ("00003.jpg", "test")):
        path = home / "sets" / "ffhq" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (len(split), 0, 0)).save(path)
    listing = {"ffhq": {"train": ["00002.jpg"], "val": [], "test": ["00007.jpg", "00001.jpg", "00003.jpg"]}}
    (home / "sets" / "splits.json").write_text(json.dumps(listing))
    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    here = Run(preset="smoke", dataset="ffhq")
    assert here.data == "ffhq" and here.label == "FFHQ test" and here.folder.name == "ffhq"
    assert here.pairs.names == ("00001.jpg", "00003.jpg", "00007.jpg") and here.pairs.of_themselves
    assert len(here.people) == 3
    assert Run(preset="smoke", dataset="ffhq", limit=2).pairs.names == ("00001.jpg", "00003.jpg")
    assert here.kept("table2.csv").parts[-3:] == ("smoke", "tables", "table2.csv")


def test_samples_stand_in_for_a_set_that_is_not_here(run):
    assert Run(preset="smoke", dataset="celebamask_hq").data == "samples"
    with pytest.raises(ValueError, match="unknown dataset 'omi'; choose auto, lfw"):
        Run(dataset="omi")


def test_a_finished_stage_is_not_made_again_and_a_changed_one_is(run):
    path = stages.found(run, "riddle")
    made, before = path.stat().st_mtime_ns, key_of(path)
    time.sleep(0.01)
    assert stages.found(run, "riddle").stat().st_mtime_ns == made
    assert stages.found(Run(preset="smoke", seed=1), "riddle") == path
    reseeded = key_of(path)
    picture = config.sample_files()[2]
    Image.open(picture).rotate(90).save(picture)
    assert key_of(stages.found(Run(preset="smoke", seed=1), "riddle")) not in (before, reseeded)
    assert set(times(run)) == {"aligned", "codes", "faces/riddle", "found/riddle"}


def test_detections_round_trip(tmp_path):
    with_landmarks = detection.Face(np.arange(4.0), 0.5, np.ones((5, 2)), np.ones((68, 2)), "dlib")
    without = detection.Face(np.arange(4.0), 0.7, np.full((5, 2), 3.0), None, "mtcnn")
    np.savez(tmp_path / "f.npz", **stages.detections_to_arrays([with_landmarks, None, without]))
    first, second, third = stages.detections(tmp_path / "f.npz")
    assert second is None and third.landmarks is None and third.detector == "mtcnn" and third.score == 0.7
    assert (first.landmarks == 1).all() and (third.points == 3).all() and (first.box == np.arange(4)).all()


def test_unknown_set_of_faces_is_named(run):
    with pytest.raises(ValueError, match="riddle-restored"):
        stages.faces(run, "ridle")


def test_command_line_makes_one_stage(run, capsys):
    stages.main(["faces", "--item", "mosaic", "--preset", "smoke"])
    assert capsys.readouterr().out.strip().endswith("results/runs/smoke/samples/faces/mosaic.npz")
    stages.main(["times", "--preset", "smoke"])
    assert {line.split()[2] for line in capsys.readouterr().out.splitlines()} == {"faces", "aligned"}


def test_only_a_complete_run_writes_among_the_kept_results():
    assert Run(dataset="lfw").kept_table.parts[-4:] == ("results", "mobile", "tables", "table1.csv")
    assert Run(dataset="samples").kept_table.name == "table1_samples.csv"
    assert Run(dataset="lfw", limit=5).kept_table is None
    assert Run(dataset="lfw", limit=5).folder.parts[-4:] == ("results", "runs", "mobile", "lfw-limit5")


def test_aligned_lfw_rows_follow_the_pairs(run, monkeypatch):
    from riddle import aligned, datasets

    pair = (
        SimpleNamespace(fold=0, a="A_0001", b="B_0001", same=False),
        SimpleNamespace(fold=0, a="A_0001", b="A_0002", same=True),
    )
    lfw = SimpleNamespace(
        pairs=list(pair), names=["A_0001", "A_0002", "B_0001"], version="deep-funneled", fingerprint="x"
    )
    monkeypatch.setattr(datasets, "LFWPairs", lambda: lfw)
    found = SimpleNamespace(
        names=["B_0001", "A_0001"], faces=np.stack([np.full((32, 32, 3), v, np.uint8) for v in (9, 5)]),
        matrices=np.stack([np.full((2, 3), v) for v in (9.0, 5.0)]),
    )  # fmt: skip
    monkeypatch.setattr(aligned, "aligned", lambda *a, **k: found)
    path = stages.aligned(Run(preset="smoke", dataset="lfw"))
    assert read(path, "present").tolist() == [True, False, True]
    assert read(path, "faces")[:, 0, 0, 0].tolist() == [5, 0, 9]
    assert read(path, "matrices")[[0, 2], 0, 0].tolist() == [5, 9] and np.isnan(read(path, "matrices")[1]).all()
    assert read(path, "version") == "deep-funneled"
