"""Metrics against closed forms, naive code and scikit-learn."""

import numpy as np
import pytest
from scipy import linalg
from sklearn.metrics import roc_curve
from sklearn.metrics.pairwise import polynomial_kernel

from riddle.metrics import diversity, fidelity, identity


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Thresholds and rates


@pytest.mark.parametrize("far", [0.0, 0.001, 0.01, 0.1])
@pytest.mark.parametrize("ties", [False, True])
def test_tar_at_far_is_the_best_point_of_scikit_learns_roc(rng, far, ties):
    positives, negatives = rng.normal(1.5, 1, 900), rng.normal(0, 1, 2700)
    if ties:
        positives, negatives = positives.round(1), negatives.round(1)
    threshold = identity.threshold_at_far(negatives, far)
    labels = np.r_[np.ones(900), np.zeros(2700)]
    fpr, tpr, _ = roc_curve(labels, np.r_[positives, negatives], drop_intermediate=False)
    assert identity.accepted(positives, threshold).mean() == pytest.approx(tpr[fpr <= far].max())
    assert identity.accepted(negatives, threshold).mean() <= far


def test_threshold_needs_strangers_and_a_rate():
    negatives = np.arange(2700.0)
    assert (negatives > identity.threshold_at_far(negatives, 0.001)).sum() == 2
    with pytest.raises(ValueError, match="negative pairs"):
        identity.threshold_at_far(np.array([]))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        identity.threshold_at_far(np.ones(3), 1.5)


def test_fold_threshold_never_sees_its_own_fold(rng):
    folds, same = np.repeat(np.arange(10), 60), np.tile(np.repeat([True, False], 30), 10)
    scores = rng.normal(size=600)
    before = identity.fold_thresholds(scores, same, folds, 0.01)
    scores[(folds == 3) & ~same] += 100
    after = identity.fold_thresholds(scores, same, folds, 0.01)
    assert after[3] == before[3]
    assert all(after[f] > before[f] for f in range(10) if f != 3)
    with pytest.raises(ValueError, match="two folds"):
        identity.fold_thresholds(scores, same, np.zeros(600, int))


def test_an_undetected_face_is_never_accepted_and_stays_in_the_count():
    scores = np.array([0.9, np.nan, 0.1, 0.8])
    assert identity.accepted(scores, 0.5).tolist() == [True, False, False, True]
    assert identity.accepted(scores, -np.inf).tolist() == [True, False, True, True]
    assert identity.threshold_at_far(np.array([0.0, np.nan, 0.5]), 0) == 0.5


def test_accuracy_is_at_the_threshold_that_beats_every_other(rng):
    scores, same = np.r_[rng.normal(1, 1, 200), rng.normal(0, 1, 300)].round(1), np.arange(500) < 200
    best = identity.best_accuracy_threshold(scores, same)
    naive = max(((scores > t) == same).mean() for t in np.r_[scores, -np.inf])
    assert ((scores > best) == same).mean() == pytest.approx(naive)
    same = np.tile([True, False], 50)
    result = identity.fold_accuracy(np.where(same, 0.8, 0.2), same, np.repeat(np.arange(10), 10))
    assert (result.mean, result.std, result.n) == (1.0, 0.0, 100)


def test_fold_interval_is_students(rng):
    rates = rng.uniform(0.4, 0.6, 10)
    result = identity.fold_interval(rates, n=3000)
    half = 2.262157 * rates.std(ddof=1) / np.sqrt(10)  # the 97.5 % point of t with nine degrees of freedom
    assert result.mean == pytest.approx(rates.mean())
    assert (result.low, result.high) == pytest.approx((rates.mean() - half, rates.mean() + half), rel=1e-5)


def test_bootstrap_over_groups_is_wider_than_over_values(rng):
    groups = np.repeat(np.arange(50), 20)
    values = np.repeat(rng.random(50), 20)
    grouped, alone = identity.bootstrap_interval(values, groups), identity.bootstrap_interval(values)
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)
    assert alone.std == pytest.approx(values.std() / np.sqrt(1000), rel=0.1)
    assert identity.bootstrap_interval(values, groups) == grouped


# Diversity


def test_kffa_is_the_mean_pairwise_angle(rng):
    angles = np.radians([0, 60, 90])
    flat = np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)
    together = np.repeat([[[2.0, 0, 0]]], 3, axis=1)  # length must not matter
    result = diversity.kffa(np.concatenate([flat[None], together, np.eye(3)[None]]))
    assert result == pytest.approx([(60 + 90 + 30) / 3, 0, 90])
    assert diversity.kffa(np.array([[[1, 0], [0.25, np.sqrt(1 - 0.0625)]]]))[0] == pytest.approx(75.52, abs=0.01)
    x = rng.normal(size=(60, 8))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    naive = [np.degrees(np.arccos(unit[i] @ unit[j])) for i in range(60) for j in range(i)]
    assert diversity.kffa(x[None])[0] == pytest.approx(np.mean(naive))


def test_kffa_leaves_out_only_the_pairs_of_an_undetected_face():
    faces = np.stack([np.eye(3), np.eye(3)])
    faces[0, 2], faces[1, 1:] = np.nan, np.nan
    assert diversity.kffa(faces)[0] == pytest.approx(90)
    assert np.isnan(diversity.kffa(faces)[1])


def test_a_face_that_is_not_found_is_no_new_identity():
    faces = np.array([[[1.0, 0], [0.1, 1], [1, 0.5], [np.nan, np.nan]]])
    scores = diversity.pairs(faces, lambda a, b: (a * b).sum(-1))
    np.testing.assert_allclose(scores, [[0.1, 1, np.nan, 0.6, np.nan, np.nan]])
    assert diversity.distinct(scores, 0.5).tolist() == [[True, False, False, False, False, False]]


# Sets of pictures


def test_frechet_distance_against_the_matrix_square_root(rng):
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(1, 2, size=(200, 6))
    ca, cb = np.cov(a.T), np.cov(b.T)
    naive = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert fidelity.frechet_distance(a, b) == pytest.approx(naive)
    few = rng.normal(size=(4, 20))  # rank 3 of 20
    assert fidelity.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert fidelity.frechet_distance(few, few + 2) == pytest.approx(80)


def test_kid_against_scikit_learns_kernel(rng):
    a, b = rng.normal(size=(40, 7)), rng.normal(0.5, 1, size=(40, 7))
    xx, yy, xy = (polynomial_kernel(p, q, degree=3, gamma=1 / 7, coef0=1) for p, q in ((a, a), (b, b), (a, b)))
    off = ~np.eye(40, dtype=bool)
    e = fidelity.kid(a, b, (np.arange(40), np.arange(40)), subsets=3, size=40)
    assert e.mean == pytest.approx(xx[off].mean() + yy[off].mean() - 2 * xy.mean())
    assert e.std == pytest.approx(0, abs=1e-9)  # a subset of all 40 is always the same set


def test_kid_of_one_distribution_is_zero_within_its_spread(rng):
    people = np.arange(900), np.arange(900, 1800)
    e = fidelity.kid(rng.normal(size=(900, 8)), rng.normal(size=(900, 8)), people, subsets=50, size=300)
    assert abs(e.mean) < 3 * e.std


def test_features_of_faces_not_found_are_refused(rng):
    a, b = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    b[3] = np.nan
    for metric, *more in ((fidelity.frechet_distance,), (fidelity.kid, (np.arange(30), np.arange(30)))):
        with pytest.raises(ValueError, match="not found"):
            metric(a, b, *more)
    with pytest.raises(ValueError, match="one D"):
        fidelity.frechet_distance(a, a[:, :2])


def test_a_rate_without_an_exception_has_an_interval_all_the_same():
    none = identity.fold_interval(np.zeros(10), n=3000)
    assert (none.mean, none.low) == (0, 0) and none.high == pytest.approx(1 - 0.025 ** (1 / 3000))
    half = identity.fold_interval(np.full(4, 0.5), n=20)
    assert (half.low, half.high) == pytest.approx((0.2720, 0.7280), abs=1e-4)  # Clopper and Pearson, 10 of 20
    every = identity.bootstrap_interval(np.ones(60), np.arange(60) // 6)  # ten people, not sixty faces
    assert (every.mean, every.high) == (1, 1) and every.low == pytest.approx(0.025**0.1)
