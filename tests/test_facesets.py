"""From pictures to embeddings, with stand-ins for the networks: resumption, keys, reasons, what recognisers see."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import riddle
from riddle import config
from riddle.baselines import BASELINES, Baseline, random_keys
from riddle.evaluation import facesets, recognition, runs, stages
from riddle.evaluation.rows import PASSWORDS
from riddle.evaluation.runs import PARTS, NotMade, Run, key_of, part_hash, read, runs_of, seconds
from riddle.evaluation.tables import Part
from riddle.faces import alignment, detection, recognizers
from riddle.files import digest
from riddle.images import to_bytes, to_tensor
from riddle.presets import CONTROLS, VARIANTS
from riddle.weights import WeightsMissingError, save_tensors

SAMPLES = 6


class Model:
    """Codes are 4 x 4 averages of the picture; a key is added, and taken away by the same key."""

    device = torch.device("cpu")

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


class Recogniser:
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

    def recogniser_here(name, device):
        if name.startswith("facenet"):
            raise WeightsMissingError(name, "no file", "download it")
        return Recogniser()

    def detect(faces, detector, workers):
        face = detection.Face(np.ones(4), 1.0, np.ones((5, 2)), None, "dlib")
        return [None] + [face] * (len(faces) - 1)

    recognition.load.cache_clear()
    monkeypatch.setattr(riddle, "load", load, raising=False)
    monkeypatch.setattr(recognizers, "load", recogniser_here)
    monkeypatch.setattr(
        recognizers, "available", lambda names: {n: "no file" if "facenet" in n else None for n in names}
    )
    monkeypatch.setattr(detection, "detect_in_crop", detect)
    return Run(preset="smoke", dataset="auto")


# ---- sets of faces


def test_every_picture_has_its_own_password_and_the_wrong_one_differs(run, monkeypatch):
    used = []
    for name in ("encrypt", "decrypt"):
        change = getattr(Model, name)
        monkeypatch.setattr(Model, name, lambda self, w, key, change=change: used.append(key) or change(self, w, key))
    for item in ("riddle", "riddle-wrong", "riddle-restored"):
        facesets.faces(run, item)
    first, second, wrong, third, right = used
    assert torch.equal(first, second) and torch.equal(first, third) and torch.equal(third, right)
    assert len(torch.unique(torch.cat([first, wrong]), dim=0)) == 2 * SAMPLES


def test_ten_passwords_of_each_person(run):
    path = facesets.faces(run, "riddle-passwords")
    faces, targets = read(path, "faces"), read(path, "targets")
    assert (targets == np.repeat(np.arange(SAMPLES), PASSWORDS)).all()
    assert len(np.unique(faces.reshape(len(faces), -1), axis=0)) == SAMPLES * PASSWORDS


def test_ten_wrong_passwords_decrypt_what_the_own_one_encrypted(run):
    faces, model = read(facesets.faces(run, "riddle-wrong-passwords"), "faces"), Model()
    w = torch.from_numpy(read(facesets.codes(run), "codes"))
    own, wrong = model.random_password(SAMPLES, 0), model.random_password(SAMPLES * PASSWORDS, 2)
    expected = model.synthesize(model.decrypt(model.encrypt(w[3:4], own[3:4]), wrong[35:36]))
    assert (faces[35] == to_bytes(expected)[0]).all()


def test_restoring_from_pixels_sees_only_the_picture(run):
    """PNG: the 8-bit picture is inverted again; JPEG: after compression; where codes are exact, so is the PNG."""
    encrypted, inverted = (read(facesets.faces(run, s), "faces") for s in ("riddle", "inverted"))
    model, keys = Model(), Model().random_password(SAMPLES, 0)
    expected = model.synthesize(model.decrypt(model.invert(to_tensor(encrypted)), keys))
    assert (read(facesets.faces(run, "riddle-png"), "faces") == to_bytes(expected)).all()
    errors = [np.abs(read(facesets.faces(run, f"riddle-{a}"), "faces") - inverted.astype(int)).mean()
              for a in ("restored", "png", "jpeg75")]  # fmt: skip
    assert errors[0] < 0.5 < errors[1] < errors[2]
    assert read(facesets.faces(run, "riddle-pasted"), "reason") == "the bundled faces have no photo around them"


SOME = "mlp nodiv-restored mlp-wrong mlp-passwords datafree-jpeg75 coupling-png untrained reflection-passwords"


@pytest.mark.parametrize("item", SOME.split())
def test_every_variant_has_every_set(run, item):
    assert read(facesets.faces(run, item), "reason" if item.startswith("datafree") else "faces") is not None
    assert facesets.parse(item).encryptor == VARIANTS[item.split("-")[0]].file


class Toy(Baseline):
    """A system with keys: it adds a key's last digit, and takes it away again."""

    def protect(self, faces, keys):
        return (faces / 2 + keys[:, None, None, None] % 10 / 20).clamp(-1, 1)

    def restore(self, faces, keys):
        return (2 * (faces - keys[:, None, None, None] % 10 / 20)).clamp(-1, 1)


def test_a_baseline_has_a_key_for_every_picture_and_its_weights_are_part_of_the_stage(run, monkeypatch):
    monkeypatch.setitem(BASELINES, "toy", Toy("Toy", file="toy", reversible=True))
    weights = config.bundled_folder("zoo") / "smoke" / "toy.safetensors"
    part_hash.cache_clear()
    assert "weights missing (data/zoo/smoke/toy.safetensors" in read(facesets.faces(run, "toy"), "reason")
    save_tensors(weights, {"x": torch.zeros(1)})
    part_hash.cache_clear()
    photos, protected = (read(facesets.faces(run, s), "faces") for s in ("photo", "toy"))
    keys = random_keys(SAMPLES, 0)
    assert (protected == to_bytes(Toy("").protect(to_tensor(photos), keys))).all()
    restored, wrong = (read(facesets.faces(run, f"toy-{a}"), "faces") for a in ("restored", "wrong"))
    assert np.abs(restored - photos.astype(int)).max() <= 2 and (wrong != photos).any()
    many = facesets.faces(run, "toy-passwords")
    assert (read(many, "targets") == np.repeat(np.arange(SAMPLES), PASSWORDS)).all()
    assert len(np.unique(read(many, "faces").reshape(SAMPLES, PASSWORDS, -1)[0], axis=0)) > 4
    before = key_of(many)
    save_tensors(weights, {"x": torch.ones(1)})
    part_hash.cache_clear()
    assert key_of(facesets.faces(run, "toy-passwords")) != before
    part_hash.cache_clear()
    jobs = stages.jobs([Part(("samples",), None, ("toy", "toy-passwords", "blur"))])
    assert [job.name for job in jobs] == ["baselines-faces0", "plain-faces1"]
    with pytest.raises(ValueError, match="unknown set of faces 'toy-png'"):
        facesets.parse("toy-png")


@pytest.mark.parametrize("item", ["", "riddle-", "photo-wrong", "riddle-jpeg60", "blur-restored", "ridle"])
def test_names_that_are_no_set(item):
    with pytest.raises(ValueError, match="unknown set of faces.*riddle-restored"):
        facesets.parse(item)


def test_what_a_stage_lacks_is_handed_on_without_local_paths(run):
    """Missing weights, and all that needs what they would have made."""
    for path in (facesets.faces(run, "datafree"), facesets.found(run, "datafree-png"),
                 facesets.embeddings(run, "datafree-jpeg75", ["dlib"])[1]):  # fmt: skip
        assert read(path, "reason") == "weights missing (data/zoo/datafree does not exist)"


# ---- runs and their cache


def test_a_finished_stage_is_not_made_again_and_a_changed_one_is(run):
    path = facesets.found(run, "riddle")
    made, before = path.stat().st_mtime_ns, key_of(path)
    time.sleep(0.01)
    assert facesets.found(run, "riddle").stat().st_mtime_ns == made
    assert facesets.found(Run(preset="smoke", seed=1), "riddle") == path
    reseeded = key_of(path)
    config.bundled_folder("samples").joinpath("02.jpg").unlink()
    runs._photos.cache_clear()  # another process lists the folder anew
    assert key_of(facesets.found(Run(preset="smoke", seed=1), "riddle")) not in (before, reseeded)
    assert set(seconds([run]).stage) == {"aligned", "codes", "faces", "found"}


def test_keys_name_what_made_a_stage_and_nothing_else(run):
    """Results of hours lie under these keys: a change of the recipe throws them away."""
    photos, codes, item = facesets.aligned(run), facesets.codes(run), facesets.faces(run, "inverted")
    found, embedded = facesets.embeddings(run, "inverted", ["dlib"])
    recipes = {
        photos: ("aligned", 32, run.split_hash, run.photos.fingerprint, "auto", "matrices"),
        codes: ("codes", key_of(photos), None, None),
        item: ("faces", "inverted", key_of(codes), "", (0, 10, 150)),
        found: ("found", key_of(item), "auto"),
        embedded: ("embeddings", "dlib", key_of(found), None),
        run.folder / "embeddings" / "dlib.npz": ("judge", "dlib", None),
    }
    labels = {"photo": "", "blur": "face blurring (sigma 1/16 of the crop)", "mosaic": "mosaicing (8 x 8 blocks)"}
    for name, label in labels.items():
        recipes[facesets.faces(run, name)] = ("faces", name, key_of(photos), "", label)
    for path, made_from in recipes.items():
        assert key_of(path) == digest(*made_from), path


def test_the_kept_stages_of_lfw_are_still_valid(real_data):
    """The key of LFW's aligned faces, as it was when they were made."""
    run = Run("mobile", "lfw")
    assert (run.split_hash, run.photos.fingerprint) == ("111a5efce717", "eb4c7799f5e926ae")
    assert run.version == "deep-funneled"


def test_a_test_split_is_compared_with_itself(run, home, monkeypatch):
    for name in ("00007.jpg", "00002.jpg", "00001.jpg", "00003.jpg"):
        path = home / "sets" / "ffhq" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (9, 0, 0)).save(path)
    listing = {"ffhq": {"train": ["00002.jpg"], "val": [], "test": ["00007.jpg", "00001.jpg", "00003.jpg"]}}
    (home / "sets" / "splits.json").write_text(json.dumps(listing))
    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    here = Run(preset="smoke", dataset="ffhq")
    assert here.data == "ffhq" and here.label == "FFHQ test" and here.folder.name == "ffhq"
    assert here.pairs.names == ("00001.jpg", "00003.jpg", "00007.jpg") and here.pairs.of_themselves
    assert len(here.people) == 3
    assert Run(preset="smoke", dataset="ffhq", limit=2).pairs.names == ("00001.jpg", "00003.jpg")
    assert [r.data for r in runs_of(run, ("lfw", "ffhq"))] == ["ffhq"]
    assert [p.name for p in stages.places(run, "table3")] == ["table3.csv"] * 2
    assert stages.places(here, "table3")[0].name == "table3_ffhq.csv"
    assert here.tables("figure7")[0].name == "figure7_ffhq.csv"  # which is about CelebA-HQ


def test_samples_stand_in_for_a_set_that_is_not_here(run):
    assert Run(preset="smoke", dataset="celebamask_hq").data == "samples"
    assert [r.data for r in runs_of(run, ("lfw", "ffhq"))] == ["samples"]
    with pytest.raises(ValueError, match="unknown dataset 'omi'; choose auto, lfw"):
        Run(dataset="omi")


def test_a_limited_run_leaves_alone_what_a_complete_one_made(run):
    own, kept = stages.places(Run("mobile"), "table1")
    assert own.parts[-5:] == ("results", "runs", "mobile", "tables", "table1_samples.csv")
    assert kept.parts[-4:] == ("results", "mobile", "tables", "table1_samples.csv")
    assert set(stages.places(run, "table1")) == {run.folder.parent / "tables" / "table1_samples.csv"}  # untrained
    limited = Run(preset="smoke", limit=5)
    (path,) = stages.places(limited, "table1")
    assert path.parts[-2:] == ("tables-limit5", "table1_samples.csv") and limited.folder.name == "samples-limit5"


def test_no_file_is_looked_for_behind_a_control(home):
    assert part_hash("mobile", "untrained") == "untrained" and part_hash("mobile", "encryptor_coupling") is None
    assert not set(CONTROLS) & set(PARTS) and "encryptor_coupling" in PARTS


# ---- what recognisers see


class Mean(torch.nn.Module):
    """A network that a test can run: the crop's averages on a 4 x 4 grid."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def recogniser(name):
    made = recognizers.Recognizer(name, recognizers.SPECS[name], Mean())
    made.dim = 48
    return made


@pytest.fixture
def pictures():
    """Five faces, and points a little apart in each; none in the third; landmarks in one, which only dlib follows."""
    draw = np.random.default_rng(0)
    upright, found = np.array([(20, 20), (44, 20), (32, 34), (23, 46), (41, 46)], float), []
    for i in range(5):
        landmarks = draw.uniform(10, 54, (68, 2)) if i == 1 else None
        points = upright + draw.normal(0, 1, (5, 2))
        found.append(detection.Face(np.array([5.0, 5, 60, 60]), 1.0, points, landmarks, "x"))
    found[2] = None
    return draw.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2), found


@pytest.mark.parametrize("names", [("edgeface-xs", "arcface-mobilefacenet", "dlib", "facenet-casia"), ("dlib",)])
def test_many_at_once_see_what_each_sees_alone(pictures, names):
    loaded, (faces, found) = {name: recogniser(name) for name in names}, pictures
    made = recognition.embed(loaded, faces, found)
    for name in names:
        assert made[name].shape == (5, 48) and np.isnan(made[name][2]).all()
        for i in (0, 1, 3, 4):
            crop = loaded[name].align(Image.fromarray(faces[i]), found[i].points, found[i].landmarks)
            alone = loaded[name].embed(to_tensor(np.asarray(crop))[None])[0].numpy()
            np.testing.assert_allclose(made[name][i], alone, atol=1e-6)


def test_detections_round_trip(tmp_path, pictures):
    np.savez(tmp_path / "f.npz", **recognition.to_arrays(pictures[1]))
    back = recognition.from_arrays(tmp_path / "f.npz")
    assert back[2] is None and back[0].landmarks is None and back[3].detector == "x" and back[3].score == 1
    assert (back[1].landmarks == pictures[1][1].landmarks).all() and (back[4].points == pictures[1][4].points).all()


def test_embeddings_of_a_set_are_kept_when_another_is_asked_for(run, monkeypatch):
    loaded = []
    load = recognizers.load
    monkeypatch.setattr(recognizers, "load", lambda name, device: loaded.append(name) or load(name, device))
    first = facesets.embedded(run, "dlib", ["photo", "riddle"])
    again = facesets.embedded(run, "dlib", ["riddle", "riddle-passwords"])
    assert len(loaded) == 1 and (first.embeddings["riddle"][1:] == again.embeddings["riddle"][1:]).all()
    assert np.isnan(first.embeddings["riddle"][0]).all()  # the stand-in detector loses the first face
    assert again.embeddings["riddle-passwords"].shape == (SAMPLES, PASSWORDS, 48)
    absent = facesets.embedded(run, "facenet-casia", ["photo"])
    assert absent.reasons == {"photo": "weights missing (no file)"} and len(loaded) == 2


def test_a_threshold_is_what_so_many_pairs_of_strangers_exceed():
    """Random directions in many dimensions: cosines are normal, of deviation 1 / sqrt(E)."""
    by = recogniser("edgeface-xs")
    e = np.random.default_rng(0).normal(size=(3000, 400))
    e[5] = np.nan  # a face that was not found
    measured = recognition.stranger_threshold(by, e)
    assert measured == pytest.approx(3.09 / 20, rel=0.05)  # 0.1 % of a normal lie above 3.09 deviations
    lone = recognition.stranger_threshold(by, e[:2])  # a face is never paired with itself
    assert lone == pytest.approx(e[0] @ e[1] / np.linalg.norm(e[0]) / np.linalg.norm(e[1]))


# ---- faces in photos


def test_a_face_is_pasted_into_its_photo_and_found_there(monkeypatch, tmp_path):
    points = np.array([[40.0, 40], [60, 40], [50, 52], [42, 62], [58, 62]])
    framed, photo, seen = alignment.framing_matrix(points), Image.new("RGB", (100, 100), (10, 20, 30)), {}
    np.savez(tmp_path / "aligned.npz", matrices=framed[None], faces=np.zeros((1, 32, 32, 3), np.uint8))
    codes = np.arange(6.0, dtype=np.float32).reshape(3, 2, 1)  # of pictures 0, 2 and 3: one that is not asked for
    np.savez(tmp_path / "codes.npz", codes=codes, targets=np.array([0, 2, 3]))

    def paste(image, under, faces, matrices):
        seen.update(under=under, faces=faces)
        return Image.new("RGB", image.size, (200, 0, 0))

    def draw(w, matrices):
        seen.update(w=w, at=matrices)
        return None, ["large"]

    model = SimpleNamespace(device="cpu", paste=paste, draw=draw)
    monkeypatch.setattr(riddle, "load", lambda *a, **k: model, raising=False)
    monkeypatch.setattr(facesets, "aligned", lambda run: tmp_path / "aligned.npz")
    monkeypatch.setattr(facesets, "codes", lambda run: tmp_path / "codes.npz")
    photos, pairs = SimpleNamespace(image=lambda name: photo), SimpleNamespace(names=["x"])
    here = SimpleNamespace(preset="smoke", device="cpu", detector="fake", data="lfw", pairs=pairs, photos=photos)
    pictures, targets = np.full((1, 32, 32, 3), 255, np.uint8), np.array([0])
    ((changed, matrix),) = facesets.pasted(here, "blur", pictures, targets)
    assert changed.getpixel((0, 0)) == (200, 0, 0) and (seen["faces"] == 1).all() and (seen["under"] == -1).all()
    assert matrix == pytest.approx(framed)
    ((same, _),) = facesets.pasted(here, "photo", pictures, targets)
    assert same is photo
    list(facesets.pasted(here, "inverted", pictures, targets))  # drawn anew, as large as its place
    assert seen["faces"] == ["large"] and torch.equal(seen["w"], torch.tensor([[[0.0], [1.0]]]))

    face = detection.Face(np.array([35.0, 35, 65, 70]), 1.0, points, None, "fake")
    far = detection.Face(np.array([0.0, 0, 9, 9]), 2.0, points - 70, None, "fake")
    detector = SimpleNamespace(detect=lambda image: [far, face])
    assert facesets.find_again(changed, matrix, detector) is face
    assert facesets.find_again(changed, matrix + [[0, 0, 300], [0, 0, 0]], detector) is None
    monkeypatch.setattr(detection, "load_detector", lambda name: detector)
    crops, kept = facesets.recropped(here, "blur", pictures, targets)
    assert crops.shape == (1, 32, 32, 3) and (crops[0, 16, 16] == (200, 0, 0)).all() and kept.tolist() == [0]
    detector.detect = lambda image: []
    with pytest.raises(NotMade, match="no face was found again"):
        facesets.recropped(here, "blur", pictures, targets)


# ---- the command line


def test_command_line_makes_one_stage(run, capsys):
    stages.main(["faces", "--item", "mosaic", "--preset", "smoke"])
    assert capsys.readouterr().out.strip().endswith("results/runs/smoke/samples/faces/mosaic.npz")
    stages.main(["times", "--preset", "smoke"])
    out = capsys.readouterr().out
    assert "| faces |" in out and "| aligned |" in out
