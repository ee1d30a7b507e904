"""Figures: the numbers of figures 1, 7 and 8 against closed forms, the faces of every grid, and where pictures go."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import riddle
from riddle.evaluation import drawing, facesets, figures
from riddle.evaluation.facesets import Embedded
from riddle.evaluation.runs import Run, read
from riddle.faces.detection import Face
from riddle.images import to_bytes, to_tensor


class Centre:
    """Finds one face in the middle of every picture that is not dark."""

    name = "centre"

    def detect(self, image):
        pixels = np.asarray(image)
        points = np.full((5, 2), pixels.shape[0] / 2)
        return [Face(np.array([0, 0, 9, 9.0]), 1.0, points, None, "centre")] if pixels.mean() > 20 else []


class Recogniser:
    """Embeds a face as its four quarters' mean colours."""

    name, dim = "toy", 12
    spec = SimpleNamespace(size=32, stretch=1.0, targets=np.zeros((5, 2)))

    def __init__(self, distance="cosine", threshold=0.5):
        self.distance, self.threshold = distance, threshold

    def align(self, image, points, landmarks):
        return image

    def embed(self, crops):
        return F.adaptive_avg_pool2d(crops, 2).flatten(1)

    def similarity(self, a, b):
        if self.distance == "euclidean":
            return -np.linalg.norm(a - b, axis=-1)
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def seen(faces):
    """A recogniser's embeddings of faces in the 8 bits in which it sees them."""
    return Recogniser().embed(to_tensor(to_bytes(faces))).numpy()


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def run(home, root):
    """Three bundled faces, in a home of their own."""
    (home / "home").mkdir()
    (home / "home" / "data").symlink_to(root / "data")
    return Run(preset="smoke", dataset="samples", limit=3, seed=5, detector=Centre())


@pytest.fixture
def models(run):
    with warnings.catch_warnings(action="ignore"):
        return {"A": riddle.load("smoke"), "B": riddle.load("smoke", encryptor="reflection")}


@pytest.fixture
def who(run):
    with warnings.catch_warnings(action="ignore"):
        return figures.people(run)


def test_people_are_the_first_ones_or_chosen_by_the_seed(run, who, models):
    assert who.rows == [0, 1, 2] and who.faces.shape == (3, 3, 32, 32)
    torch.testing.assert_close(who.codes, models["A"].invert(who.faces), atol=1e-4, rtol=0)
    chosen, order = figures.people(run, 2, seed=3), np.random.default_rng(3).permutation(3)[:2]
    assert chosen.rows == order.tolist() and torch.equal(chosen.faces, who.faces[order])
    assert torch.equal(chosen.codes, who.codes[order]) and figures.people(run, 1).rows == [0]


def test_an_encryptor_without_weights_has_its_reason(run, home):
    here, absent = figures.encryptors(replace(run, preset="ffhq256"), {"mlp": "without transformer"})
    assert not here and list(absent) == ["without transformer"]
    assert absent["without transformer"].startswith("weights missing (data/zoo/ffhq256/")
    assert str(home) not in str(absent)


# ---- figures 1, 3, 4, 5, 6 and 9


def test_every_grid_shows_the_same_people_and_passwords(models, who):
    grids = figures.grids(models, who, count=4, seed=1)
    assert list(grids) == ["figure1", "figure3", "figure4", "figure5", "figure6"]
    model, keys = models["B"], models["B"].random_password(4, seed=1).split(1)
    locked = [model.encrypt(who.codes, key) for key in keys]
    inputs, encrypted, decrypted = (block.faces for block in grids["figure1"]["B"])
    assert torch.equal(inputs[:, 0], who.faces)
    torch.testing.assert_close(inputs[:, 1], model.synthesize(who.codes))
    torch.testing.assert_close(encrypted[:, 1], model.synthesize(locked[1]))
    for column, k in enumerate((0, 2, 3)):
        torch.testing.assert_close(decrypted[:, column], model.synthesize(model.decrypt(locked[0], keys[k])))
    assert [b.columns[0] for b in grids["figure3"][""]] == ["original", "A", "B", "face blurring", "mosaicing"]
    assert [b.title for b in grids["figure4"][""]] == ["", "A", "B"]  # nothing else can be undone
    many = grids["figure5"]["B"][1]
    assert many.columns == ("1", "2", "3", "4")
    for k, code in enumerate(locked):
        torch.testing.assert_close(many.faces[:, k], model.synthesize(code))
    assert torch.equal(grids["figure4"][""][2].faces, torch.stack([encrypted[:, 0], decrypted[:, 0]], 1))
    assert torch.equal(grids["figure6"][""][2].faces, many.faces[:, :3])
    assert [b.columns for b in grids["figure6"][""]][3:] == [("any",), ("any",)]
    with pytest.raises(ValueError, match="no figure without an encryptor"):
        figures.grids({}, who)


def test_figure_9_restores_the_second_password(models, who):
    rows = figures.figure9(models, who, seed=2)
    names = [f"{label}: {name}" for label in "BA" for name in ("password 1", "password 2", "restored")]
    assert list(rows) == ["face", "inverted", *names]
    model, keys = models["A"], models["A"].random_password(2, seed=2).split(1)
    locked = model.encrypt(who.codes, keys[1])
    torch.testing.assert_close(rows["A: password 2"], model.synthesize(locked))
    torch.testing.assert_close(rows["A: restored"], model.synthesize(model.decrypt(locked, keys[1])))


def test_the_worst_faces_are_picked_by_the_numbers(run, monkeypatch):
    """Known similarities: an angle is a picture's embedding; nobody finds the face of the third photo.

    The run has one more picture, the first; it shows no face, so no set has it.
    """
    angles = {"photo": [0, 0, np.nan], "inverted": [0, 0, 0], "coupling": [80, 30, 0]}
    angles |= {"coupling-restored": [10, 20, 60], "coupling-wrong": [90, np.nan, 0]}
    e = {k: np.radians([np.nan, *v]) for k, v in angles.items()}
    e = {k: np.stack([np.cos(v), np.sin(v)], 1) for k, v in e.items()}
    shades = dict.fromkeys(angles, 100) | {"coupling": 150, "coupling-restored": 101}
    for item, shade in shades.items():
        path = run.folder / f"{item}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, faces=np.full((3, 8, 8, 3), shade, np.uint8), targets=np.arange(1, 4))
    monkeypatch.setattr(facesets, "faces", lambda run, item: run.folder / f"{item}.npz")
    toy = Embedded("toy", e, Recogniser().similarity, 0.5, {})
    monkeypatch.setattr(facesets, "embedded", lambda run, name, sets: toy)
    faces, table = figures.outcomes(run, "coupling", ["toy"])
    alike = table[table.measured_by == "toy"].set_index("place")
    assert alike.worst.to_dict() == {"protected": 1, "restored": 2, "wrong password": 0}
    assert alike.similarity.tolist() == pytest.approx([np.cos(np.radians(a)) for a in (30, 60, 90)], abs=1e-9)
    assert alike.undetected.tolist() == [1, 0, 2] and alike.unfound.tolist() == [2, -1, 1]
    assert alike["mean"]["restored"] == pytest.approx(np.cos(np.radians([10, 20, 60])).mean())
    assert np.isnan(alike.low["wrong password"])  # one face has no interval
    pixels = table[table.measured_by == ""].set_index("place")["mean"]
    assert pixels.to_dict() == pytest.approx({"protected": 50, "restored": 1, "wrong password": 0}, abs=1e-4)
    rows = figures.failures(faces, table, "toy")
    assert list(rows) == [
        "the protected face most like its original\n0.87", "protected: found by no detector",
        "the restored face least like the inverted one\n0.50",
        "the wrong password's face most like the original\n0.00", "wrong password: found by no detector",
    ]  # fmt: skip
    (block,) = rows["the protected face most like its original\n0.87"]
    assert block.columns == ("original", "inverted", "protected", "restored", "wrong password")
    assert torch.equal(block.faces[0, 2], faces["protected"][1])


# ---- figure 7


def test_spread_of_faces_with_known_angles():
    e = np.concatenate([np.eye(6)[:3], [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [np.nan] * 6]])
    angle, _ = figures.spread(e, np.array([0, 0, 0, 1, 1, 1])).values()
    assert angle.mean == pytest.approx((90 + 45) / 2) and angle.low == pytest.approx(45)  # over two people
    alone, none = figures.spread(np.eye(4), np.zeros(4, int)).values()
    assert alone.mean == pytest.approx(90) and np.isnan(alone.low) and none == "too few faces were found"
    nobody = figures.spread(np.full((4, 3), np.nan), np.array([0, 0, 1, 1]))
    assert list(nobody.values()) == ["too few faces were found"] * 2


def test_silhouette_is_rousseeuws_and_has_an_interval_over_people():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 8)
    e = rng.normal(size=(40, 8)) + 2 * rng.normal(size=(5, 8))[labels]
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    naive = []
    for i, own in enumerate(labels):
        away = [np.mean([1 - unit[i] @ unit[j] for j in np.flatnonzero(labels == k) if j != i]) for k in range(5)]
        nearest = min(away[k] for k in range(5) if k != own)
        naive.append((nearest - away[own]) / max(nearest, away[own]))
    found = figures.spread(e, labels)["silhouette"]
    assert found.mean == pytest.approx(np.mean(naive)) and found.low < found.mean < found.high


def test_a_recogniser_by_distance_has_no_angle():
    e = np.array([[0, 0], [0, 1], [9, 0], [9, 1.0]])
    angle, apart = figures.spread(e, np.array([0, 0, 1, 1]), euclidean=True).values()
    nearest = (9 + np.sqrt(82)) / 2
    assert angle.startswith("this recogniser compares by distance")
    assert apart.mean == pytest.approx((nearest - 1) / nearest)


def test_tsne_keeps_neighbours_and_the_seed():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 12)
    e = rng.normal(size=(24, 6)) * 0.1 + np.eye(6)[labels]
    e[3] = np.nan
    points = figures.tsne(e, perplexity=500, seed=2)
    assert np.isnan(points[3]).all() and np.isfinite(np.delete(points, 3, 0)).all()
    gap = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(24, np.inf))
    gap[3] = gap[:, 3] = np.inf
    rows = np.delete(np.arange(24), 3)
    assert (labels[gap.argmin(1)] == labels)[rows].all()
    np.testing.assert_array_equal(points, figures.tsne(e, perplexity=500, seed=2))
    with pytest.raises(ValueError, match="four"):
        figures.tsne(e[1:4])


def test_each_face_has_a_password_of_its_own_and_is_made_once(run, who, models, monkeypatch):
    recognisers = {"toy": Recogniser()}
    path = figures.scatter(run, "reflection", who, recognisers, count=4)
    keys = models["B"].random_password(12, seed=5)
    made = [models["B"].synthesize(models["B"].encrypt(who.codes[k // 4][None], keys[k][None])) for k in range(12)]
    np.testing.assert_allclose(read(path, "toy"), seen(torch.cat(made)), atol=2 / 255)
    assert read(path, "labels").tolist() == [0] * 4 + [1] * 4 + [2] * 4
    monkeypatch.setattr(riddle.Riddle, "encrypt", lambda *a: pytest.fail("the faces are made once"))
    assert figures.scatter(run, "reflection", who, recognisers, count=4) == path


def test_diversity_has_a_line_for_everybody_and_says_who_is_missing(run, who):
    recognisers = {"toy": Recogniser(), "far": Recogniser("euclidean")}
    scattered = {"RiDDLE": figures.scatter(run, "reflection", who, recognisers, 4)}
    scattered["without transformer"] = figures.scatter(replace(run, preset="ffhq256"), "mlp", who, recognisers, 4)
    table = figures.diversity(run, scattered, recognisers, who.faces, passwords=4)
    rows = table.set_index(["method", "metric", "measured_by"])
    angle = "mean pairwise angle"
    assert rows["mean"]["RiDDLE", angle, "toy"] > 0 and rows.value["RiDDLE", angle, "far"].startswith("n/a: this recog")
    assert rows.value["without transformer", "silhouette", "toy"].startswith("n/a: weights missing")
    assert rows.value["FIT", "silhouette", "toy"] == "n/a: none of its faces are here"
    for method in ("FALCO", next(m for m in table.method if "blurring" in m)):
        assert rows.value[method, "silhouette", "far"] == "n/a: it makes the same face whatever the password"
    assert rows.n["photos of different people", angle, "toy"] == 3
    assert rows["paper KFFA"]["RiDDLE", angle, "toy"] == 77.39 and rows["paper KFFA"]["CIAGAN", angle, "toy"] == 62.14
    assert np.isnan(rows["paper KFFA"]["RiDDLE", "silhouette", "toy"])
    measured = table[table.method == "RiDDLE"]
    assert (measured.n + measured.undetected == 12).all() and (table.passwords == 4).all()
    assert (table.split_hash == run.split_hash).all()


# ---- figure 8


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_walk_goes_from_one_password_to_the_other_and_is_measured(run, who, models, distance):
    r, model = Recogniser(distance, 0.9 if distance == "cosine" else -0.6), models["B"]
    walks, table = figures.figure8(run, "RiDDLE", model, who, {"toy": r}, steps=4)
    keys = model.random_password(6, seed=5)
    for path, faces in walks.items():
        assert path in ("spherical", "linear") and faces.shape == (3, 4, 3, 32, 32)
        for i in range(3):
            for place, k in ((0, 2 * i), (-1, 2 * i + 1)):
                expected = model.synthesize(model.encrypt(who.codes[i : i + 1], keys[k : k + 1]))[0]
                torch.testing.assert_close(faces[i, place], expected, atol=2e-3, rtol=0)
        rows = table[table.path == path]
        photo, e = seen(who.faces), seen(faces.flatten(0, 1)).reshape(3, 4, -1)
        zero = 1 if distance == "cosine" else 0
        away = zero - r.similarity(photo[:, None], e)  # (people, steps)
        assert rows.t.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
        np.testing.assert_allclose(rows["mean"], away.mean(0), atol=1e-5)
        np.testing.assert_allclose(rows.accepted, (away < zero - r.threshold).mean(0))
        assert (rows.accepted_low <= rows.accepted).all() and (rows.accepted <= rows.accepted_high).all()
        np.testing.assert_allclose(rows.step, [np.nan, *(zero - r.similarity(e[:, 1:], e[:, :-1])).mean(0)], atol=1e-5)
        np.testing.assert_allclose(rows.ends, (zero - r.similarity(e[:, 0], e[:, -1])).mean(), atol=1e-5)
        assert (rows.low <= rows["mean"]).all() and (rows["mean"] <= rows.high).all() and (rows.undetected == 0).all()
    (inverted,) = table[table.path == "inverted"].to_dict("records")
    plain = zero - r.similarity(photo, seen(model.synthesize(who.codes)))
    assert inverted["mean"] == pytest.approx(plain.mean(), abs=1e-5) and np.isnan(inverted["t"])
    assert inverted["threshold"] == pytest.approx(0.1 if distance == "cosine" else 0.6)
    assert [a.get_title() for a in drawing.paths(table).axes] == ["toy"]


def test_a_face_that_is_not_found_is_counted_and_left_out(run, who, models):
    who = who._replace(faces=torch.cat([who.faces[:2], torch.full_like(who.faces[:1], -1)]))  # a dark photo
    _, table = figures.figure8(run, "RiDDLE", models["B"], who, {"toy": Recogniser()}, steps=2)
    assert (table.undetected == 1).all() and (table.n == 2).all()
    blind = SimpleNamespace(name="blind", detect=lambda image: [])
    run = Run(preset="smoke", dataset="samples", limit=3, detector=blind)
    _, table = figures.figure8(run, "RiDDLE", models["B"], who, {"toy": Recogniser()}, steps=2)
    assert (table.value == "n/a: no face was found").all() and (table.undetected == 3).all()


# ---- drawing


def test_a_grid_puts_each_face_in_its_place():
    shades = torch.linspace(-1, 1, 12).view(2, 2, 3)  # label, row, column
    faces = shades[..., None, None, None].expand(-1, -1, -1, 3, 8, 8)
    blocks = ([drawing.Block("", ("a", "b"), f[:, :2]), drawing.Block("T", ("c",), f[:, 2:])] for f in faces)
    (axis,) = drawing.faces_grid(dict(zip(("one", "two"), blocks, strict=True))).axes
    canvas = np.asarray(axis.images[0].get_array())[..., 0]
    order = list(dict.fromkeys(canvas[canvas != 255].ravel().tolist()))
    assert order == ((shades + 1) * 127.5).round().int().flatten().tolist()[:-1]  # row by row; the last one is white
    texts = {t.get_text(): t for t in axis.texts}
    assert list(texts) == ["one", "two", "a", "b", "c", "T"] and texts["one"].get_rotation() == 90
    for title, shade in (("a", shades[0, 0, 0]), ("c", shades[0, 0, 2])):
        columns = np.flatnonzero((canvas == int((shade + 1) * 127.5 + 0.5)).any(0))
        assert texts[title].get_position()[0] == pytest.approx(columns.mean(), abs=5)


def test_a_row_of_a_grid_may_be_shorter_and_faces_need_not_be_square():
    rows = {"long": torch.zeros(3, 3, 8, 16), "short": torch.zeros(2, 3, 8, 16)}
    (axis,) = drawing.faces_grid(rows, ["x", "y", "z"], size=1.0).axes
    canvas = np.asarray(axis.images[0].get_array())[..., 0]
    widths = (canvas < 255).sum(1)
    assert sorted(set(widths[widths > 0].tolist())) == [720, 1080] and (widths == 1080).sum() == 180
    assert [t.get_text() for t in axis.texts] == ["long", "short", "x", "y", "z"]


def test_trials_and_real_faces_stay_out_of_the_kept_results(home):
    plt.figure()
    kept, hidden = (home / "home" / "results" / name for name in ("mobile", "runs"))
    assert drawing.save_fig("f", "mobile", trial=True).is_relative_to(hidden)
    assert drawing.save_fig("f", "mobile", real_faces=True).is_relative_to(hidden)
    assert drawing.save_fig("f", "smoke").is_relative_to(hidden) and not kept.exists()
    plt.plot([0, 1], [0, 1])
    chart = Image.open(drawing.save_fig("chart", "mobile"))
    plt.imshow(np.zeros((2, 2)))
    picture = Image.open(drawing.save_fig("picture", "mobile"))
    assert sorted(p.name for p in (kept / "figures").iterdir()) == ["chart.webp", "picture.webp"]
    assert picture.width > 1.3 * chart.width  # faces are seen at more pixels an inch


def test_curves_show_what_a_log_has(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "cos": 0.5}\n')
    log = drawing.read_log(tmp_path / "log.jsonl")
    figure = drawing.curves({"here": log, "absent": None}, {"loss": "L", "cos": "cosine", "other": "none"}, smooth=0)
    assert [axis.get_title() for axis in figure.axes] == ["L", "cosine"]
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[1, 2], [2, 1]]


def test_marks_show_each_judges_number_its_interval_and_the_papers():
    columns = ("method", "measured_by", "mean", "low", "high", "paper")
    lines = [("ours", "a", 0.5, 0.4, 0.7, 0.45), ("ours", "b", 0.6, np.nan, np.nan, 0.45),
             ("other", "a", 0, 0, 0, np.nan)]  # fmt: skip
    table = pd.DataFrame(lines, columns=columns)
    first, second = drawing.marks({"rate": table, "few": table[:1]}).axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["ours", "other"] and second.get_title() == "few"
    (of_a, of_b), strokes = first.containers, [line for line in first.lines if line.get_marker() == "|"]
    assert of_a[0].get_xdata().tolist() == [0.5, 0] and of_b[0].get_xdata().tolist() == [0.6]
    assert of_a[2][0].get_segments()[0][:, 0].tolist() == [0.4, 0.7]
    assert [line.get_xdata()[0] for line in strokes] == [0.45, 0.45]
    assert abs(of_a[0].get_ydata()[0] - of_b[0].get_ydata()[0]) == pytest.approx(0.3)  # beside each other, of one row
