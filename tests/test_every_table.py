"""Tables 1 to 5 with stand-ins for the networks: numbers, reasons, provenance, the paper's values, resumption."""

import json

import numpy as np
import pytest
import torch
from test_facesets import SAMPLES, Model, run  # noqa: F401 (a fixture)

import riddle
from riddle.evaluation import claims, facesets, rows, stages, table2, table3, table4, table5, tables
from riddle.evaluation.runs import read, seconds
from riddle.faces import detection
from riddle.images import to_tensor
from riddle.metrics import features
from riddle.metrics.fidelity import frechet_distance
from riddle.metrics.identity import cosine
from riddle.presets import CONTROLS, VARIANTS
from riddle.weights import WeightsMissingError, save_tensors

DATAFREE = "n/a: weights missing (data/zoo/datafree does not exist)"


def line(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    (found,) = table.to_dict("records")
    return found


# ---- Table 1


def test_table1_on_the_samples(run):  # noqa: F811
    path = stages.table(run, "table1")
    assert path.name == "table1_samples.csv"
    table = tables.read(path)
    assert (table.dataset == "bundled synthetic faces, no photographs").all()
    here = table[table.measured_by == "edgeface-xs"]
    restored = line(here, task="recovery", method="RiDDLE", against=rows.SAME_INVERTED)
    assert (restored["n"], restored["undetected"]) == (SAMPLES, 1)  # the stand-in detector loses the first face
    assert restored["mean"] == pytest.approx(5 / 6, abs=1e-4) and restored["rate_found"] == 1
    for method in ("RiDDLE", "RiDDLE, wrongly decrypted"):
        assert line(here, task="de-identification", method=method)["mean"] == 0
    assert line(here, task="de-identification", method="RiDDLE data-free")["value"] == DATAFREE
    assert (table[table.measured_by == "facenet-casia"].value == "n/a: weights missing (no file)").all()
    assert set(table[table.seen_in_training].measured_by) == {"arcface-mobilefacenet"}
    published = line(here, task="de-identification", method="RiDDLE").items()
    assert [v for k, v in published if k.startswith("paper")] == [0.016, 0.032, 0.025]
    system = line(here, task="recovery", method="FIT")
    assert system["value"].startswith("n/a: ") and system["paper SphereFace"] == 1
    assert line(here, task="de-identification", method="FALCO")["value"].startswith("n/a: weights missing")
    assert line(table, task="recovery", method="CIAGAN")["value"] == "n/a: it keeps nothing to restore from"


def test_without_the_papers_encryptor_ours_keeps_its_rows_and_its_name(run, monkeypatch):  # noqa: F811
    def load(preset, device, encryptor="encryptor"):
        if encryptor == "encryptor":
            raise WeightsMissingError("encryptor", "no file", "train it")
        return Model()

    monkeypatch.setattr(riddle, "load", load, raising=False)
    table = tables.read(stages.table(run, "table1"))
    here = table[table.measured_by == "edgeface-xs"]
    papers = here[here.method.isin(["RiDDLE", "RiDDLE, from PNG pixels"])]
    assert papers.value.eq("n/a: weights missing (no file)").all()
    ours = here[here.method == rows.OURS]
    assert set(ours.task) == {"de-identification", "recovery", "diversity"} and ours["mean"].notna().all()
    assert ours.filter(like="paper ").isna().all(axis=None) and ours[ours.task == "diversity"].n.item() == SAMPLES * 45


# ---- Table 2


def test_table2_on_the_samples(run):  # noqa: F811
    table = tables.read(stages.table(run, "table2"))
    alone = table[table.against == rows.SAME_INVERTED]
    errors = [line(alone, method=f"RiDDLE{m}", metric="MSE") for m in ("", ", from PNG pixels", ", wrong password")]
    assert errors[0]["mean"] < 1e-4 < errors[1]["mean"] < errors[2]["mean"]
    assert errors[0]["n"] == SAMPLES and errors[0]["low"] <= errors[0]["mean"] <= errors[0]["high"]
    beside = table[table.against == rows.SAME_PHOTO]
    assert line(beside, method=rows.CEILING, metric="PSNR")["mean"] == 58.9226
    faces, photos = (to_tensor(read(facesets.faces(run, s), "faces")) for s in ("riddle-jpeg75", "photo"))
    expected = 10 * torch.log10(4 / (faces - photos).square().mean((1, 2, 3))).mean()
    compressed = line(beside, method="RiDDLE, from JPEG 75", metric="PSNR")["mean"]
    assert compressed == pytest.approx(float(expected), abs=1e-3)
    assert line(beside, method="RiDDLE", metric="PSNR")["paper"] == 26.499
    assert np.isnan(line(alone, method="RiDDLE", metric="PSNR")["paper"])
    assert np.isnan(line(beside, method=rows.OURS, metric="PSNR")["paper"])
    assert line(beside, method="FIT", metric="SSIM")["value"].startswith("n/a: ")
    assert line(table, method="mosaicing (8 x 8 blocks)", metric="SSIM")["value"].endswith("nothing to restore from")
    lpips = table[(table.metric == "LPIPS") & (table.measured_by != "")]
    assert lpips.value.str.startswith("n/a").all() and lpips[lpips.measured_by == "squeezenet"].seen_in_training.all()
    assert line(beside, method="RiDDLE data-free", metric="SSIM")["value"] == DATAFREE
    assert (table.split_hash == run.split_hash).all() and (table.weights == run.weights_hash).all()
    before = table2.restored(run, "riddle-png").stat().st_mtime_ns
    stages.table(run, "table2")
    assert table2.restored(run, "riddle-png").stat().st_mtime_ns == before


# ---- Table 3


@pytest.fixture
def moving(run, monkeypatch):  # noqa: F811
    """Detections that move right by a pixel from set to set; mtcnn loses the first face, dlib none."""
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(9.0)), -1).reshape(-1, 2)[:68]
    shifts: dict[float, int] = {}

    def detect(faces, detector, workers=1):
        shift = shifts.setdefault(float(faces.double().sum()), len(shifts))
        name = getattr(detector, "name", "auto")
        dlib = detection.Face(np.array([1.0, 1, 9, 9]) + shift * np.array([1, 0, 1, 0]), 1.0,
                              grid[:5] + [shift, 0], grid + [shift, 0], "dlib")  # fmt: skip
        return [None if name == "mtcnn" and i == 0 else dlib for i in range(len(faces))]

    monkeypatch.setattr(detection, "detect_in_crop", detect)
    return run


def test_utility_in_pixels_of_the_crop_at_256_px(moving):
    by = {(r.method, r.metric): r for r in table3.usefulness(moving, rows.ALIGNED, "mtcnn")}
    photo, protected = by[rows.PHOTO, "face detection"], by["RiDDLE", "face detection"]
    assert photo.mean == protected.mean == pytest.approx((SAMPLES - 1) / SAMPLES) and protected.undetected == 1
    first = [read(table3.detected(moving, item), "dlib aligned face box")[0, 0] for item in ("photo", "riddle")]
    moved = 256 / 32 * abs(first[1] - first[0]) / 2  # to the right alone: half of the coordinates
    assert moved > 0 and by["RiDDLE", "box distance"].mean == pytest.approx(moved)
    assert by["RiDDLE", "landmark distance"].mean == pytest.approx(moved) and by["RiDDLE", "box distance"].n == 5
    assert by[rows.ANOTHER, "box distance"].mean == pytest.approx(0)
    assert by["RiDDLE data-free", "box distance"].value == DATAFREE


def test_dlib_measures_pose_and_openness_too(moving):
    names = {r.metric for r in table3.usefulness(moving, rows.ALIGNED, "dlib") if np.isfinite(r.mean)}
    assert {"head pose difference (degrees)", "eye openness difference", "mouth openness difference"} <= names
    again = table3.usefulness(moving, rows.PASTED, "dlib")
    assert all(r.value == "n/a: the bundled faces have no photo around them" for r in again)


def test_distances_between_sets_and_between_halves_of_the_real_one(run, monkeypatch):  # noqa: F811
    pooled = lambda pictures: pictures.mean((1, 2))  # noqa: E731
    monkeypatch.setattr(features, "extract", lambda name, pictures, device, label: pooled(pictures))
    made = table3.distances(run, {rows.PHOTO: "photo", **rows.TABLE3})
    found = {(r.method, r.metric, r.against): r for r in made}
    metric = "Frechet distance (SqueezeNet pool)"
    a, b = (pooled(read(facesets.faces(run, s), "faces")) for s in ("photo", "mosaic"))
    number = found["mosaicing (8 x 8 blocks)", metric, rows.SAME_PHOTOS]
    assert number.mean == pytest.approx(frechet_distance(a, b)) and number.low <= number.mean <= number.high
    halves = found[rows.PHOTO, metric, rows.OTHER_PHOTOS]
    assert halves.n == SAMPLES // 2 == found["RiDDLE", metric, rows.OTHER_PHOTOS].n
    assert halves.resize == "none" and halves.reference_hash
    order = np.random.default_rng(run.seed).permutation(SAMPLES)
    assert halves.mean == pytest.approx(frechet_distance(a[order[:3]], a[order[3:]]))


def test_table3_is_written_where_no_network_of_features_is_here(moving):
    table = tables.read(stages.table(moving, "table3"))
    fid = table[table.metric == "FID"]
    assert len(fid) and fid.value.str.startswith("n/a").all()
    assert line(fid, method="RiDDLE", against=rows.SAME_PHOTOS)["paper CelebA-HQ"] == 15.389
    box = line(table, method="RiDDLE", metric="box distance", measured_by="mtcnn", place=rows.ALIGNED)
    assert box["paper CelebA-HQ"] == 3.824
    frechet = line(table, method=rows.OURS, metric="Frechet distance (dlib)", against=rows.SAME_PHOTOS)
    assert np.isfinite(frechet["mean"]) and frechet["n"] + frechet["undetected"] == SAMPLES
    assert "inception: n/a: weights missing" in tables.notes(table)
    gaze = table[table.metric == "gaze"].set_index("method").value
    assert set(gaze.index) == set(rows.TABLE3) and gaze.eq("n/a: no network for it is at hand").all()


def test_pixels_reach_the_pool_as_its_training_had_them():
    network, face = features.SqueezeNetPool().eval(), torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = network.trunk(((face + 1) / 2 - mean) / std).mean((2, 3))
        assert torch.allclose(network(face), expected, atol=1e-5)
    with pytest.raises(ValueError, match="squeezenet, inception"):
        features.extract("vgg", np.zeros((1, 8, 8, 3), np.uint8))


def test_the_papers_fid_is_not_beside_one_of_few_faces():
    fid = {"task": "fidelity", "method": "RiDDLE", "metric": "FID", "measured_by": "inception"}
    fid["against"] = rows.SAME_PHOTOS
    assert rows.published("table3", fid | {"n": 150}) == {"paper CelebA-HQ": None}
    assert rows.published("table3", fid | {"n": 5000}) == {"paper CelebA-HQ": 15.389}


# ---- Table 4


def embedded(sets, reasons=None):
    return facesets.Embedded("r", sets, cosine, 0.5, reasons or {})


def test_cosine_and_kffa_of_known_angles():
    photo = np.eye(12)[:4]
    passwords = np.broadcast_to(np.eye(12)[2:12], (4, 10, 12)).copy()  # two of the four photos are among them
    passwords[3, 9] = np.nan
    sets = {"photo": photo, "inverted": photo * 2, "blur": photo + photo[::-1], "mosaic": photo,
            "riddle-passwords": passwords, "riddle-wrong-passwords": np.ones((4, 10, 12)),
            "coupling-passwords": np.broadcast_to(photo[:, None], (4, 10, 12)),  # nothing is encrypted
            "coupling-wrong-passwords": passwords}  # fmt: skip
    absent = ("falco", "datafree-passwords", *(f"{name}-passwords" for name in rows.KEYED))
    reasons = dict.fromkeys(absent, "weights missing")
    made = table4.similarity(embedded(sets, reasons), np.arange(4), seed=0)
    by = {(r.method, r.metric): r for r in made}
    similar = by["RiDDLE", rows.COSINE]
    assert similar.mean == pytest.approx((0 + 0 + 1 / 10 + 1 / 9) / 4) and (similar.n, similar.undetected) == (40, 1)
    expected = {
        ("RiDDLE", rows.KFFA): 90, ("RiDDLE, wrongly decrypted", rows.KFFA): 0,
        ("RiDDLE, wrongly decrypted", rows.COSINE): 1 / np.sqrt(12),
        (rows.OURS, rows.COSINE): 1, (rows.OURS, rows.KFFA): 0,
        ("inverted", rows.COSINE): 1, (next(k for k in rows.SINGLE if "blur" in k), rows.COSINE): np.sqrt(0.5),
        ("strangers' photos", rows.COSINE): 0, ("strangers' photos", rows.KFFA): 90,
    }  # fmt: skip
    for key, value in expected.items():
        assert by[key].mean == pytest.approx(value, abs=1e-5), key
    assert by["RiDDLE data-free", rows.KFFA].value == "n/a: weights missing"
    assert by["mosaicing (8 x 8 blocks)", rows.KFFA].value == "n/a: it has no password"


def test_table4_on_the_samples(run):  # noqa: F811
    table = tables.read(stages.table(run, "table4"))
    row = line(table, method="RiDDLE", metric=rows.KFFA, measured_by="edgeface-xs")
    assert 0 < row["mean"] < 180 and row["n"] == SAMPLES * 10 and not row["seen_in_training"]
    assert (row["paper LFW"], row["paper CelebA-HQ"], row["paper FFHQ"]) == (75.83, 77.39, 74.88)
    assert set(table[table.seen_in_training].measured_by) == {"arcface-mobilefacenet"}
    assert "dlib" not in set(table.measured_by)
    assert np.isnan(line(table, method=rows.OURS, metric=rows.KFFA, measured_by="edgeface-xs")["paper LFW"])
    missing = line(table, method="RiDDLE", metric=rows.COSINE, measured_by="facenet-casia")["value"]
    assert missing == "n/a: weights missing (no file)"
    assert line(table, method="Personal", metric=rows.COSINE, measured_by="edgeface-xs")["paper LFW"] == 0.205
    assert (table.interval[table.measured_by != ""] == "95 %, bootstrap over people").all()
    spent = seconds([run]).set_index("stage")
    assert {"codes", "embeddings/edgeface-xs"} <= set(spent.index) and (spent.seconds >= 0).all()


# ---- Table 5


def test_table5_on_the_samples(run):  # noqa: F811
    table = tables.read(stages.table(run, "table5"))
    assert set(table.variant) - {""} == set(rows.ABLATIONS)
    here = table[table.measured_by == "edgeface-xs"]
    first = line(here, task="de-identification", method="without transformer")
    assert first["paper"] == 0.018 and np.isnan(first["steps"])
    recovered = here[(here.task == "recovery") & (here.method == "full")]
    assert set(recovered.against) == {rows.SAME_INVERTED, rows.SAME_PHOTO} and (recovered.paper == 0.996).all()
    assert line(here, task="diversity", method="full")["n"] == SAMPLES * 45
    assert line(here, task="de-identification", method="without data")["value"] == DATAFREE
    assert (table[table.variant.isin(CONTROLS)].steps == 0).all()
    sets = table[table.task == "fidelity"]
    assert set(sets.against) == {rows.SAME_PHOTOS} and (sets.interval == "95 %, bootstrap over faces").all()
    frechet = line(sets, method="full", metric="Frechet distance (dlib)")
    assert frechet["paper FID"] == 15.389 and np.isnan(frechet["paper"]) and frechet["low"] <= frechet["high"]
    assert np.isnan(line(sets, method="full", metric="KID (dlib)")["paper FID"])
    answers = claims.verdicts({"table5": table}, only="table5")
    assert len(answers) >= 6 and answers.verdict.ne("").all()


def test_training_that_differs_is_named(home):
    folder = home / "home" / "data" / "zoo" / "mobile"

    def put(part, steps, minutes, **weights):
        about = {"steps": steps, "seed": 0, "weights": json.dumps({"recovery": 1.0, "diversity": 8.0} | weights)}
        about["ablation"] = json.dumps({"shared": {"minutes": minutes, "seed": 0}, "files": {"generator": "abc"}})
        save_tensors(folder / f"{part}.safetensors", {"x": torch.zeros(1)}, about)

    put("encryptor", 100, 20.0)
    put("encryptor_nodiv", 140, 20.0, diversity=0.0)
    put("encryptor_mlp", 300, 30.0, recovery=3.0)
    assert table5.trained("mobile", "nodiv")["steps done"] == "140" and table5.trained("mobile", "datafree") == {}
    differing = table5.differences("mobile")
    assert differing == {"mlp": "minutes 30.0 (full: 20.0); weight recovery 3.0 (full: 1.0)", "nodiv": ""}
    assert table5.trained("mobile", "reflection") == {"steps done": "0"}


# ---- what the rows promise


def test_the_papers_tables_are_whole():
    counts = rows.paper().groupby("table").size().to_dict()
    assert counts == {"table1": 30, "table2": 16, "table3": 42, "table4": 30, "table5": 12}
    assert set(rows.paper()[rows.paper().table == "table5"].method) == {v.label for v in VARIANTS.values()} - {
        rows.OURS, *(VARIANTS[c].label for c in CONTROLS)}  # fmt: skip
    wrong = {"task": "similarity", "method": "RiDDLE, wrongly decrypted", "metric": rows.COSINE, "measured_by": "any"}
    assert rows.published("table4", wrong) == {"paper FFHQ": 0.052, "paper CelebA-HQ": 0.054, "paper LFW": 0.028}
