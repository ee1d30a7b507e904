"""Figures: the numbers of figures 7 and 8 against closed forms, the faces of every grid, and where pictures go."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import riddle
from riddle import baselines, drawing, facesets, figures, gallery, methods, paper
from riddle.faces.detection import Face
from riddle.metrics.diversity import silhouette
from riddle.runs import Run


@dataclass(frozen=True)
class Centre:
    """Finds one face in the middle of every picture that is not dark."""

    name: str = "centre"

    def detect(self, image):
        pixels = np.asarray(image)
        points = np.full((5, 2), pixels.shape[0] / 2)
        return [Face(np.array([0, 0, 9, 9.0]), 1.0, points, None, "centre")] if pixels.mean() > 20 else []


class Judge:
    """Embeds a face as its four quarters' mean colours, less the first half of the range of values."""

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


def rounded(faces):
    """To the 8 bits in which judges see a face."""
    return facesets.to_tensor(facesets.to_bytes(faces))


class Seeded:
    """A baseline that paints every face in the shade of the password's number."""

    name, label, reversible = "seeded", "Seeded (toy)", False

    def protect(self, faces, seed=0):
        return torch.full_like(faces, (seed + 1) / 100)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model():
    with warnings.catch_warnings(action="ignore"):
        return riddle.load("smoke")


@pytest.fixture
def ours(model):
    return methods.Method("riddle", "RiDDLE", model=model)


@pytest.fixture
def who():
    faces = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return methods.People(faces, ("a", "b", "c"), "samples", "toys", "synthetic", "abc")


# ---- methods and people


def test_a_password_is_a_number_of_the_seed_and_the_same_for_all_who_share_it(ours, model, who):
    keys = model.random_password(5, seed=7)
    drawn = ours.protect(who.faces, torch.tensor([[4, 1], [0, 2], [4, 3]]), seed=7)
    codes = model.invert(who.faces)
    for i, row in enumerate([[4, 1], [0, 2], [4, 3]]):
        for j, k in enumerate(row):
            expected = model.synthesize(model.encrypt(codes[i : i + 1], keys[k : k + 1]))[0]
            torch.testing.assert_close(drawn[i, j], expected, atol=1e-4, rtol=0)
    assert drawn.shape == (3, 2, 3, 32, 32) and not torch.equal(drawn[0, 0], drawn[0, 1])


def test_restoring_decrypts_the_code_itself(ours, model, who):
    keys, codes = model.random_password(3, seed=0), model.invert(who.faces)
    one = torch.tensor([[1, 1]] * 3)
    back = ours.restore(who.faces, one, torch.tensor([[1, 2]] * 3))
    locked = model.encrypt(codes, keys[1:2])
    for j, k in enumerate((1, 2)):
        expected = model.synthesize(model.decrypt(locked, keys[k : k + 1]))
        torch.testing.assert_close(back[:, j], expected, atol=1e-4, rtol=0)


def test_a_baseline_is_drawn_password_by_password(who):
    seeded = methods.Method("seeded", "Seeded", baseline=Seeded())
    drawn = seeded.protect(who.faces, torch.tensor([[0, 2], [5, 1], [2, 2]]), seed=10)
    assert drawn[..., 0, 0, 0].mul(100).round().tolist() == [[11, 13], [16, 12], [13, 13]]
    assert seeded.heeds_passwords and seeded.restore(who.faces, torch.zeros(3, 1), torch.zeros(3, 1)) is None
    assert not methods.Method("blur", "blur", baseline=baselines.load("blur")).heeds_passwords
    absent = methods.Method("fit", "FIT", reason="not trained")
    assert not absent.heeds_passwords
    with pytest.raises(ValueError, match="FIT cannot be run: not trained"):
        absent.protect(who.faces, torch.zeros(3, 1, dtype=torch.long))


def test_every_system_of_the_paper_is_listed_with_its_reason():
    with warnings.catch_warnings(action="ignore"):
        listed = methods.methods("smoke")
    assert set(paper.SYSTEMS.values()) <= {m.label for m in listed}
    assert [m.name for m in listed[:5]] == ["riddle", "datafree", "coupling", "blur", "mosaic"]
    for m in listed:
        assert (m.model is None and m.baseline is None) == bool(m.reason)
        if m.name in baselines.UNAVAILABLE:
            assert m.reason == baselines.UNAVAILABLE[m.name]


def test_absent_weights_are_a_reason_without_a_local_path(home):
    first = methods.methods("ffhq256")[0]
    assert first.reason.startswith("weights missing (data/zoo/ffhq256/") and str(home) not in first.reason


def test_people_are_the_first_ones_or_drawn_by_the_seed():
    first, drawn = methods.people("smoke", "samples", 4), methods.people("smoke", "samples", 4, seed=3)
    everyone = methods.people("smoke", "samples")
    assert first.names == everyone.names[:4] and not first.real
    assert drawn.names == methods.people("smoke", "samples", 4, seed=3).names != first.names
    for name, face in zip(drawn.names, drawn.faces, strict=True):
        assert torch.equal(face, everyone.faces[everyone.names.index(name)])
    assert drawn.split_hash == first.split_hash and first.faces.shape == (4, 3, 32, 32)


def test_without_photos_the_samples_stand_in(home):
    assert methods.dataset_here() == methods.dataset_here("ffhq") == "samples"
    with pytest.raises(ValueError, match="unknown dataset"):
        methods.dataset_here("faces")


def test_judges_seen_in_training_come_last(monkeypatch):
    monkeypatch.setattr(methods.recognizers, "available", lambda names: {n: "no" if "x" in n else None for n in names})
    monkeypatch.setattr(methods.recognizers, "load", lambda name, device: name)
    here, absent = methods.load_judges("mobile")
    assert list(here)[-1] == "arcface-mobilefacenet" and list(absent) == ["edgeface-xs"]


# ---- figure 7


def test_spread_of_faces_with_known_angles():
    e = np.concatenate([np.eye(6)[:3], [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [np.nan] * 6]])
    angle, _ = figures.spread(e, np.array([0, 0, 0, 1, 1, 1]))
    assert angle["mean"] == pytest.approx((90 + 45) / 2) and (angle["n"], angle["undetected"]) == (5, 1)
    assert angle["low"] == pytest.approx(45) and angle["high"] == pytest.approx(90)  # over two people
    (alone, none) = figures.spread(np.eye(4), np.zeros(4, int))
    assert alone["mean"] == pytest.approx(90) and "low" not in alone and none["value"].startswith("n/a")
    nobody = figures.spread(np.full((4, 3), np.nan), np.array([0, 0, 1, 1]))
    assert all(line["value"] == "n/a: too few faces were found" and line["n"] == 0 for line in nobody)


def test_silhouette_agrees_with_our_own_and_has_an_interval_over_people():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 20)
    e = rng.normal(size=(100, 8)) + 2 * rng.normal(size=(5, 8))[labels]
    line = figures.spread(e, labels)[1]
    assert line["mean"] == pytest.approx(silhouette(e, labels), abs=1e-9)
    assert line["low"] < line["mean"] < line["high"]


def test_a_judge_by_distance_has_no_angle():
    e = np.array([[0, 0], [0, 1], [9, 0], [9, 1.0]])
    angle, apart = figures.spread(e, np.array([0, 0, 1, 1]), euclidean=True)
    assert angle["value"].startswith("n/a: this judge") and "mean" not in angle
    nearest = (9 + np.sqrt(82)) / 2
    assert apart["mean"] == pytest.approx((nearest - 1) / nearest)


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


def test_diversity_measures_each_method_once_and_says_who_is_missing(home, ours, who, monkeypatch):
    listed = [
        ours,
        methods.Method("seeded", "CIAGAN", baseline=Seeded()),
        methods.Method("blur", "blurring", baseline=baselines.load("blur")),
        methods.Method("fit", "FIT", reason="not trained"),
    ]
    run = Run(preset="smoke", dataset="samples", detector=Centre())
    judges = {"toy": Judge(), "far": Judge("euclidean")}
    figure = figures.Diversity(run, who, judges, listed, count=4, perplexity=2)
    table = figure.table(strangers=who)
    rows = table.set_index(["method", "metric", "judge"])
    assert rows.loc[("RiDDLE", "mean pairwise angle", "toy"), "mean"] > 0
    assert rows.loc[("FIT", "silhouette", "toy"), "value"] == "n/a: not trained"
    assert "whatever the password" in rows.loc[("blurring", "silhouette", "far"), "value"]
    assert rows.loc[("RiDDLE", "mean pairwise angle", "far"), "value"].startswith("n/a: this judge")
    assert rows.loc[("photos of different people", "mean pairwise angle", "toy"), "n"] == 3
    assert rows.loc[("RiDDLE", "mean pairwise angle", "toy"), "paper KFFA"] == 77.39
    assert rows.loc[("CIAGAN", "mean pairwise angle", "toy"), "paper KFFA"] == 62.14
    assert np.isnan(rows.loc[("RiDDLE", "silhouette", "toy"), "paper KFFA"])
    assert (table.dataset == "toys").all() and (table.passwords == 4).all() and (table.people == 3).all()
    measured = table[table.method == "RiDDLE"]
    assert (measured.n + measured.undetected == 12).all()
    saved = figures.save_table(table, "figure7", run, "samples")
    assert saved == run.folder / "figure7.csv" and not (home / "home" / "results" / "smoke").exists()

    monkeypatch.setattr(methods.Method, "protect", lambda *a: pytest.fail("the faces are made once"))
    panels = figure.panels("toy")
    points, labels, words = panels["RiDDLE"]
    assert points.shape == (12, 2) and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert "mean angle" in words and "FIT" not in panels and "blurring" not in panels
    drawn = drawing.clouds(panels)
    assert sum(len(c.get_offsets()) for c in drawn.axes[0].collections) == 12


def test_faces_of_a_person_have_passwords_of_their_own(home, who):
    listed = [methods.Method("seeded", "Seeded", baseline=Seeded())]
    run = Run(preset="smoke", dataset="samples", seed=20, detector=Centre())
    figure = figures.Diversity(run, who, {"toy": Judge()}, listed, count=2)
    e = figures.read(figure.embeddings(listed[0]), "toy")
    np.testing.assert_allclose(e[:, 0], np.arange(21, 27) / 100, atol=1 / 255)  # 8 bits; a password apart is 2.5 steps


def test_only_a_complete_table_of_a_trained_preset_is_kept(home):
    import pandas as pd

    table, results = pd.DataFrame({"mean": [1.0]}), home / "home" / "results" / "mobile" / "tables"
    figures.save_table(table, "figure8", Run("mobile", "samples", limit=2), "celebamask_hq")
    assert not results.exists()
    for dataset in ("celebamask_hq", "samples"):
        figures.save_table(table, "figure8", Run("mobile", "samples"), dataset)
    assert sorted(p.name for p in results.iterdir()) == ["figure8.csv", "figure8_samples.csv"]


# ---- figure 8


def test_distance_and_threshold_of_both_kinds_of_judge():
    a, b = np.array([[1.0, 0], [1, 0]]), np.array([[0, 2.0], [3, 0]])
    np.testing.assert_allclose(figures.distance(Judge(), a, b), [1, 0], atol=1e-12)
    np.testing.assert_allclose(figures.distance(Judge("euclidean"), a, b), [np.sqrt(5), 2])
    assert figures.threshold(Judge(threshold=0.3)) == pytest.approx(0.7)
    assert figures.threshold(Judge("euclidean", threshold=-0.6)) == pytest.approx(0.6)


@pytest.mark.parametrize("how", figures.PATHS)
def test_a_walk_goes_from_one_password_to_the_other(ours, model, who, how):
    judges = {"toy": Judge()}
    walk = figures.walk(ours, who, judges, how, steps=4, seed=5, detector=Centre())
    assert walk.faces.shape == (3, 4, 3, 32, 32) and walk.t.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    keys, codes = model.random_password(6, seed=5), model.invert(who.faces)
    for i in range(3):
        for place, k in ((0, 2 * i), (-1, 2 * i + 1)):
            expected = model.synthesize(model.encrypt(codes[i : i + 1], keys[k : k + 1]))[0]
            torch.testing.assert_close(walk.faces[i, place], expected, atol=2e-3, rtol=0)
    e = judges["toy"].embed(rounded(walk.faces.flatten(0, 1))).reshape(3, 4, -1).numpy()
    photo = judges["toy"].embed(rounded(who.faces)).numpy()
    found = ~np.isnan(walk.to_photo["toy"])
    expected = 1 - judges["toy"].similarity(photo[:, None], e)
    np.testing.assert_allclose(walk.to_photo["toy"][found], expected[found], atol=1e-5)
    steps = 1 - judges["toy"].similarity(e[:, 1:], e[:, :-1])
    found = ~np.isnan(walk.to_next["toy"])
    np.testing.assert_allclose(walk.to_next["toy"][found], steps[found], atol=1e-5)


def test_figure8_counts_who_is_still_recognised(home, who, ours):
    nan = np.nan
    walk = figures.Walk(
        "slerp", np.array([0, 0.5, 1]), torch.zeros(3, 3, 3, 8, 8),
        {"toy": np.array([[0.2, 0.9, 0.8], [0.4, nan, 0.9], [0.9, 0.7, nan]])},
        {"toy": np.array([[0.3, 0.1], [0.5, nan], [nan, nan]])},
        {"toy": np.array([0.6, 0.8, nan])}, {"toy": np.array([0.1, 0.3, 0.2])},
    )  # fmt: skip
    run = Run(preset="smoke", dataset="samples")
    table = figures.figure8(run, ours, who, {"toy": Judge(threshold=0.5)}, [walk])
    path = table[table.path == "spherical"]
    np.testing.assert_allclose(path["mean"], [0.5, 0.8, 0.85])
    np.testing.assert_allclose(path.accepted, [2 / 3, 0, 0])
    np.testing.assert_allclose(path.step, [nan, 0.4, 0.1])
    assert path.undetected.tolist() == [0, 1, 1] and (path.n == 3).all()
    assert path.ends.tolist() == pytest.approx([0.7] * 3) and (path.threshold == 0.5).all()
    assert path.low.iloc[0] >= 0.2 and path.high.iloc[0] <= 0.9 and path.low.iloc[0] < 0.5 < path.high.iloc[0]
    (inverted,) = table[table.path == "inverted"].to_dict("records")
    assert inverted["mean"] == pytest.approx(0.2) and inverted["accepted"] == 1
    strips = figures.strips(who, [walk], person=1)
    assert list(strips) == ["spherical"] and strips["spherical"][1].columns == ("0", "0.5", "1")
    drawn = drawing.paths(strips, table, ["toy"])
    assert [a.get_title() for a in drawn.axes] == ["", "toy"]


# ---- figures 1, 3, 4, 5 and 6


def test_every_grid_shows_the_same_people_and_passwords(ours, model, who):
    listed = [
        ours,
        methods.Method("seeded", "Seeded", baseline=Seeded()),
        methods.Method("blur", "blurring", baseline=baselines.load("blur")),
        methods.Method("fit", "FIT", reason="not trained"),
    ]
    grids = gallery.qualitative(listed, who.faces, count=4, seed=1)
    assert list(grids) == ["figure1", "figure3", "figure4", "figure5", "figure6"]
    inputs, encrypted, right, wrong = grids["figure1"]["RiDDLE"]
    assert torch.equal(inputs.faces[:, 0], who.faces)
    torch.testing.assert_close(inputs.faces[:, 1], model.synthesize(model.invert(who.faces)))
    assert [b.columns[0] for b in grids["figure3"][""]] == ["original", "RiDDLE", "Seeded", "blurring"]
    assert [b.title for b in grids["figure4"][""]] == ["", "RiDDLE"]  # nothing else can be undone
    many = grids["figure5"]["RiDDLE"][1]
    assert many.columns == ("1", "2", "3", "4")
    first = {k: v for k, v in (("1", encrypted.faces[:, 0]), ("3", grids["figure3"][""][1].faces[:, 0]))}
    first |= {"4": grids["figure4"][""][1].faces[:, 0], "6": grids["figure6"][""][1].faces[:, 0]}
    for name, faces in first.items():
        torch.testing.assert_close(faces, many.faces[:, 0], atol=1e-4, rtol=0, msg=name)
    torch.testing.assert_close(right.faces[:, 0], grids["figure4"][""][1].faces[:, 1], atol=1e-4, rtol=0)
    assert [b.columns for b in grids["figure6"][""]][1:] == [("1", "2", "3"), ("1", "2", "3"), ("any",)]
    table = gallery.table(grids["figure1"], listed, Run(preset="smoke", dataset="samples"), who)
    assert table[["method", "picture"]].values.tolist() == [
        ["RiDDLE", "encrypted"], ["RiDDLE", "right password"], ["RiDDLE", "wrong password"],
        ["Seeded", ""], ["blurring", ""], ["FIT", ""],
    ]  # fmt: skip
    shift = (right.faces[:, 0] - inputs.faces[:, 1]).abs().mean((1, 2, 3)) * 127.5
    line = table.iloc[1]
    assert line["mean"] == pytest.approx(float(shift.mean()), rel=1e-4) and line.n == len(who.names)
    assert float(shift.min()) - 1e-3 <= line.low <= line["mean"] <= line.high <= float(shift.max()) + 1e-3
    assert table.value[3:].tolist() == ["n/a: it cannot be undone"] * 2 + ["n/a: not trained"]
    assert (table.split_hash == who.split_hash).all()
    with pytest.raises(ValueError, match="no figure without an encryptor: not trained"):
        gallery.qualitative(listed[3:], who.faces)


def test_a_face_table_puts_each_face_in_its_place():
    shades = torch.linspace(-1, 1, 12).view(2, 2, 3)  # section, row, column
    blocks = [
        [
            drawing.Block("", ("a", "b"), s[:, :2, None, None, None].expand(-1, -1, 3, 8, 8)),
            drawing.Block("T", ("c",), s[:, 2:, None, None, None].expand(-1, -1, 3, 8, 8)),
        ]
        for s in shades
    ]
    drawn = drawing.face_table({"one": blocks[0], "two": blocks[1]})
    (axis,) = drawn.axes
    canvas = np.asarray(axis.images[0].get_array())[..., 0]
    white = np.all(canvas == 255, axis=1)
    assert not white[0] and not white[-1]  # no margin of its own
    seen = list(dict.fromkeys(canvas[canvas != 255].ravel().tolist()))
    expected = ((shades + 1) * 127.5).round().int().flatten().tolist()
    assert seen == expected[:-1]  # row by row; the last shade is white itself
    titles = [t.get_text() for t in axis.texts]
    assert titles == ["a", "b", "c", "T", "one", "two"]


def test_trials_and_real_faces_stay_out_of_the_kept_results(home):
    plt.figure()
    kept = drawing.save_fig("f", "mobile")
    assert kept == home / "home" / "results" / "mobile" / "figures" / "f.png" and kept.is_file()
    hidden = home / "home" / "results" / "runs"
    assert drawing.save_fig("f", "mobile", trial=True).is_relative_to(hidden)
    assert drawing.save_fig("f", "mobile", real_faces=True).is_relative_to(hidden)
    assert drawing.save_fig("f", "smoke").is_relative_to(hidden)
