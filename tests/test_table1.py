"""The protocol of the tables on embeddings and features whose answer is known, and the baselines."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from riddle.baselines import BASELINES
from riddle.evaluation import rows, runs, table1
from riddle.evaluation.facesets import Embedded
from riddle.evaluation.rows import PASSWORDS
from riddle.metrics import fidelity
from riddle.metrics.diversity import strangers
from riddle.metrics.identity import cosine, mean_found, mean_of

FOLDS, PER_FOLD, DIM = 10, 20, 32


def listed():
    """Ten folds of 20 + 20 pairs; no person is in two folds, and each has pictures 1 and 2."""
    for fold, kind, i in itertools.product(range(FOLDS), (True, False), range(PER_FOLD)):
        person, other = f"P{fold}_{i}", f"P{fold}_{(i + 1) % PER_FOLD}"
        yield SimpleNamespace(fold=fold, a=f"{person}_0001", b=f"{person if kind else other}_0002", same=kind)


@pytest.fixture
def pairs():
    return runs.verification_pairs(list(listed()))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def by(pairs):
    """Photos of one person are alike; encrypted faces are new people; restored faces are near the inverted ones."""
    rng = np.random.default_rng(0)
    people = sorted({n.rsplit("_", 1)[0] for n in pairs.names})
    centre = dict(zip(people, unit(rng.normal(size=(len(people), DIM))), strict=True))

    def near(x, noise):
        return unit(x + noise * unit(rng.normal(size=x.shape)))

    photo = near(np.stack([centre[n.rsplit("_", 1)[0]] for n in pairs.names]), 0.3)
    sets = {"photo": photo, "inverted": near(photo, 0.5)}
    for name in rows.sets_of(rows.TABLE1):
        if name.endswith("passwords"):
            sets[name] = np.broadcast_to(np.eye(DIM)[:PASSWORDS], (30, PASSWORDS, DIM)).copy()
        else:
            restored = name.endswith("restored")
            sets.setdefault(name, near(sets["inverted"], 0.1) if restored else unit(rng.normal(size=photo.shape)))
    return Embedded("toy", sets, cosine, 0.5, {})


def measured(task, method, against, pairs, by, people=None):
    """The one row of Table 1 that is asked for."""
    people = pairs.one_per_person(30, 0) if people is None else people
    at = table1.thresholds(pairs, by)
    asked = [row for row in rows.TABLE1 if (row.task, row.method) == (task, method)]
    made = [table1.rate(row, pairs, by, at, people, people) for row in asked]
    (found,) = [number for number in made if number.against == against]
    return found


# ---- pairs


def test_targets_are_the_second_photos_of_same_pairs_and_a_limit_keeps_every_fold_and_kind(pairs):
    assert len(pairs.names) == 2 * FOLDS * PER_FOLD and len(pairs.a) == 2 * FOLDS * PER_FOLD
    assert {pairs.names[t][-5:] for t in pairs.targets} == {"_0002"}
    assert [pairs.names[i] for i in pairs.a] == [p.a for p in listed()]
    few = runs.verification_pairs(list(listed()), limit=3)
    assert [(few.same & (few.fold == f)).sum() for f in range(FOLDS)] == [3] * FOLDS
    assert len(few.a) == 6 * FOLDS


def test_people_are_different_and_drawn_by_the_seed_and_pictures_of_themselves_are_of_as_many_people(pairs):
    chosen = pairs.one_per_person(50, seed=1)
    assert len({pairs.names[i].rsplit("_", 1)[0] for i in chosen}) == len(chosen) == 50
    assert set(chosen) <= set(pairs.targets)
    assert (chosen == pairs.one_per_person(50, seed=1)).all() and (chosen != pairs.one_per_person(50, seed=2)).any()
    alone = runs.self_pairs(["25_0_1_20170109.jpg", "25_0_1_20170110.jpg", "31_1_0_20170109.jpg"])
    assert alone.of_themselves and len(alone.one_per_person(50, seed=0)) == 3 and not pairs.of_themselves


def test_strangers_are_never_oneself():
    others = strangers(7, 3, PASSWORDS)
    assert others.shape == (7, 6) and strangers(30, 0, PASSWORDS).shape == (30, PASSWORDS)
    assert all(sorted([i, *row]) == list(range(7)) for i, row in enumerate(others))


# ---- rates


@pytest.mark.parametrize(("task", "method", "item"), [
    ("unprotected", rows.PHOTO, "photo"), ("unprotected", "inverted", "inverted"),
    ("de-identification", "RiDDLE", "riddle"),
])  # fmt: skip
def test_rates_follow_the_protocol_computed_naively(pairs, by, task, method, item):
    photo, rates = by.embeddings["photo"], []
    for fold in range(FOLDS):
        other = np.flatnonzero((pairs.fold != fold) & ~pairs.same)
        alike = sorted((photo[pairs.a[i]] @ photo[pairs.b[i]] for i in other), reverse=True)
        threshold = alike[int(0.001 * len(alike))]  # 180 strangers: none may pass
        here = (pairs.fold == fold) & pairs.same
        alike = [photo[a] @ by.embeddings[item][b] for a, b in zip(pairs.a[here], pairs.b[here], strict=True)]
        rates.append(np.mean(np.array(alike) > threshold))
    number = measured(task, method, rows.OTHER_PHOTO, pairs, by)
    assert number.mean == pytest.approx(np.mean(rates)) and number.std == pytest.approx(np.std(rates, ddof=1))
    assert number.n == FOLDS * PER_FOLD and number.low <= number.mean <= number.high


def test_what_each_row_says_of_a_working_system(pairs, by):
    photo = measured("unprotected", rows.PHOTO, rows.OTHER_PHOTO, pairs, by)
    assert (photo.mean, photo.accuracy) == (1, 1)
    assert measured("de-identification", "RiDDLE", rows.OTHER_PHOTO, pairs, by).mean < 0.05
    assert measured("recovery", "RiDDLE", rows.SAME_INVERTED, pairs, by).mean == 1
    assert measured("recovery", "RiDDLE", rows.SAME_PHOTO, pairs, by).mean > 0.9
    assert measured("diversity", "RiDDLE", rows.AMONG, pairs, by).mean == 1


def test_undetected_faces_are_counted_and_not_accepted(pairs, by):
    by.embeddings["riddle-restored"][pairs.b[pairs.same][:5]] = np.nan
    number = measured("recovery", "RiDDLE", rows.SAME_INVERTED, pairs, by)
    assert (number.n, number.undetected) == (200, 5)
    assert number.mean == pytest.approx(195 / 200) and number.rate_found == 1


@pytest.mark.parametrize("against", [rows.SAME_INVERTED, rows.SAME_PHOTO])
@pytest.mark.parametrize("source", rows.PIXELS.values())
def test_what_is_restored_from_pixels_counts_the_few_only(pairs, by, source, against):
    """Pictures of the others are never inverted again: they are no undetected faces."""
    people, item = pairs.one_per_person(30, 0), next(k for k, v in rows.PIXELS.items() if v == source)
    by.embeddings[f"riddle-{item}"] = np.full_like(by.embeddings["photo"], np.nan)
    by.embeddings[f"riddle-{item}"][people[1:]] = by.embeddings["inverted"][people[1:]]
    number = measured("recovery", f"RiDDLE, {source}", against, pairs, by, people)
    count = int(np.isin(pairs.b[pairs.same], people).sum())
    lost = int((pairs.b[pairs.same] == people[0]).sum())
    assert 30 <= number.n == count < pairs.same.sum() and number.undetected == lost


def test_a_broken_face_is_no_new_identity_and_one_face_for_all_no_diversity(pairs, by):
    by.embeddings["riddle-passwords"][0, 0] = np.nan  # 9 of 45 pairs of one of 30 people
    number = measured("diversity", "RiDDLE", rows.AMONG, pairs, by)
    assert (number.n, number.undetected) == (30 * 45, 9)
    assert number.mean == pytest.approx(1 - 9 / 1350) and number.rate_found == 1
    by.embeddings["riddle-passwords"][:] = np.eye(DIM)[0]
    assert measured("diversity", "RiDDLE", rows.AMONG, pairs, by).mean == 0


def test_missing_faces_show_their_reason_and_no_number(pairs, by):
    broken = Embedded("toy", by.embeddings, cosine, 0.5, {"datafree": "weights missing", "datafree-restored": "gone"})
    number = measured("de-identification", "RiDDLE data-free", rows.OTHER_PHOTO, pairs, broken)
    assert number.value == "n/a: weights missing" and np.isnan(number.mean) and number.n == 0


def test_without_strangers_the_published_threshold_decides(by):
    pairs = runs.self_pairs([f"face_{i:02d}.png" for i in range(48)])
    small = Embedded("toy", {k: v[:48] for k, v in by.embeddings.items()}, cosine, 0.5, {})
    assert table1.thresholds(pairs, small) == {0: 0.5}
    trivial = measured("unprotected", rows.PHOTO, rows.SAME_PHOTO, pairs, small)
    assert trivial.value == "n/a: the data set has one picture of each person"
    number = measured("de-identification", "RiDDLE", rows.SAME_PHOTO, pairs, small)
    expected = (cosine(small.embeddings["photo"], small.embeddings["riddle"]) > 0.5).mean()
    assert number.mean == pytest.approx(expected) and number.n == 48


# ---- distances between sets


@pytest.fixture
def sets():
    """Features of 300 people in two sets of the same 300, the second one shifted."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 4)), rng.normal(0.3, 1, size=(300, 4)), (np.arange(300), np.arange(300))


@pytest.mark.parametrize("distance", [fidelity.frechet, fidelity.kid])
def test_the_interval_of_a_distance_is_as_wide_as_its_spread_over_samples(sets, distance):
    """Sets drawn anew from the same distributions: their distances have the spread that one bootstrap foretells."""
    rng, (a, b, people), alone = np.random.default_rng(1), sets, (np.zeros(300, int),) * 2
    kid = lambda x, y: fidelity.kid(x, y, alone, 20, 150).mean  # noqa: E731
    exact = fidelity.frechet_distance if distance is fidelity.frechet else kid
    anew = [exact(rng.normal(size=(300, 4)), rng.normal(0.3, 1, size=(300, 4))) for _ in range(200)]
    e = distance(a, b, people)
    assert e.low < e.mean < e.high and e.mean == pytest.approx(exact(a, b), rel=0.3)
    assert (e.high - e.low) == pytest.approx(np.subtract(*np.quantile(anew, [0.975, 0.025])), rel=0.35)


def test_people_of_both_sets_are_drawn_together(sets):
    """A set against itself with the same people: every draw compares equal sets."""
    a, _, people = sets
    e = fidelity.frechet(a, a, people)
    assert (e.mean, e.low, e.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_two_rows_that_no_draw_can_tell_apart_have_no_interval():
    e = fidelity.frechet(np.eye(2), np.eye(2), (np.zeros(2, int), np.zeros(2, int)))
    assert np.isfinite(e.low)  # one person's two rows are drawn together
    alone = fidelity._centred(1.0, np.nan, [], 2)
    assert np.isnan([alone.low, alone.high]).all()


def test_means_leave_out_what_was_not_found():
    assert mean_of(np.array([np.nan, np.nan])).n == 0
    e = mean_of(np.array([1.0, np.nan, 3.0]))
    assert (e.mean, e.std, e.n) == (2, 1, 2)
    assert mean_found(np.array([[1.0, np.nan, 3.0], [np.nan] * 3]))[0] == 2


# ---- baselines


def test_blur_is_a_gaussian_and_keeps_a_constant_face():
    face = torch.rand(1, 3, 64, 64).mul(2).sub(1)
    out = BASELINES["blur"].protect(face)[0, 1].numpy()
    expected = gaussian_filter(face[0, 1].numpy(), 4, mode="mirror", radius=12)
    assert np.abs(out - expected).max() < 1e-5
    assert torch.allclose(BASELINES["blur"].protect(torch.full((2, 3, 32, 32), 0.3)), torch.tensor(0.3))


def test_mosaic_is_the_mean_of_each_block():
    face = torch.rand(2, 3, 64, 64)
    out = BASELINES["mosaic"].protect(face)
    assert torch.allclose(out[1, 2, 8:16, 40:48], face[1, 2, 8:16, 40:48].mean())
    assert len(out[0, 0].unique()) == 64
