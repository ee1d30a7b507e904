"""Table 1's protocol on embeddings whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from riddle import baselines, protocols
from riddle.metrics.identity import cosine
from riddle.protocols import PASSWORDS, Judge, Row

FOLDS, PER_FOLD, DIM = 10, 20, 32
PAIR = "other photo"


def listed():
    """Ten folds of 20 + 20 pairs; no person is in two folds, and each has pictures 1 and 2."""
    pairs = []
    for fold in range(FOLDS):
        for kind in (True, False):
            for i in range(PER_FOLD):
                person, other = f"P{fold}_{i}", f"P{fold}_{(i + 1) % PER_FOLD}"
                second = f"{person if kind else other}_0002"
                pairs.append(SimpleNamespace(fold=fold, a=f"{person}_0001", b=second, same=kind))
    return pairs


@pytest.fixture
def pairs():
    return protocols.verification_pairs(listed())


@pytest.fixture
def judge(pairs):
    """Photos of one person are alike; RiDDLE's faces are new people; restored faces are near the inverted ones."""
    rng = np.random.default_rng(0)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    people = sorted({n.rsplit("_", 1)[0] for n in pairs.names})
    centre = {p: v for p, v in zip(people, unit(rng.normal(size=(len(people), DIM))), strict=True)}
    truth = np.stack([centre[n.rsplit("_", 1)[0]] for n in pairs.names])

    def near(x, noise):
        return unit(x + noise * unit(rng.normal(size=x.shape)))

    photo = near(truth, 0.3)
    sets = {"photo": photo, "inverted": near(photo, 0.5)}
    for name in protocols.FACE_SETS:
        restored = name.endswith("restored")
        sets.setdefault(name, near(sets["inverted"], 0.1) if restored else unit(rng.normal(size=photo.shape)))
    for name in protocols.DIVERSITY_SETS:
        sets[name] = np.broadcast_to(np.eye(DIM)[:PASSWORDS], (30, PASSWORDS, DIM)).copy()
    return Judge("toy", sets, cosine, 0.5, {})


def get(records, task, method, against):
    (found,) = [r for r in records if (r.task, r.method, r.against) == (task, method, against)]
    return found


def test_names_are_indexed_and_targets_are_the_second_photos_of_same_pairs(pairs):
    assert len(pairs.names) == 2 * FOLDS * PER_FOLD and len(pairs.a) == 2 * FOLDS * PER_FOLD
    assert {pairs.names[t][-5:] for t in pairs.targets} == {"_0002"}
    assert [pairs.names[i] for i in pairs.a] == [p.a for p in listed()]
    folds = pairs.folds_of(pairs.targets)
    assert all(pairs.names[t].startswith(f"P{f}_") for t, f in zip(pairs.targets, folds, strict=True))


def test_limit_keeps_every_fold_and_kind():
    few = protocols.verification_pairs(listed(), limit=3)
    assert [(few.same & (few.fold == f)).sum() for f in range(FOLDS)] == [3] * FOLDS
    assert len(few.a) == 6 * FOLDS


def test_people_of_the_diversity_row_are_different_and_drawn_by_the_seed(pairs):
    chosen = pairs.one_per_person(50, seed=1)
    assert len({pairs.names[i].rsplit("_", 1)[0] for i in chosen}) == len(chosen) == 50
    assert set(chosen) <= set(pairs.targets)
    assert (chosen == pairs.one_per_person(50, seed=1)).all() and (chosen != pairs.one_per_person(50, seed=2)).any()


def test_pictures_of_themselves_are_of_different_people_whatever_their_names():
    pairs = protocols.self_pairs(["25_0_1_20170109.jpg", "25_0_1_20170110.jpg", "31_1_0_20170109.jpg"])
    assert pairs.of_themselves and len(pairs.one_per_person(50, seed=0)) == 3
    assert not protocols.verification_pairs(listed()).of_themselves


def test_recovery_from_pixels_is_a_row_against_both_references(pairs, judge):
    people = pairs.one_per_person(30, 0)
    records = protocols.table1(pairs, people, judge)
    for label in protocols.PIXEL_ROWS.values():
        for against in ("its inverted face", "the same photo"):
            n = get(records, "recovery", f"RiDDLE, {label}", against).n
            assert n == int(np.isin(pairs.b[pairs.same], people).sum()) < FOLDS * PER_FOLD


def test_rates_follow_the_protocol_computed_naively(pairs, judge):
    records = protocols.table1(pairs, pairs.one_per_person(30, 0), judge)
    photo = judge.embeddings["photo"]
    for method, name in (("photo (aligned crop)", "photo"), ("inverted", "inverted"), ("RiDDLE", "riddle")):
        rates = []
        for fold in range(FOLDS):
            strangers = sorted(
                (photo[a] @ photo[b] for a, b, s, f in zip(pairs.a, pairs.b, pairs.same, pairs.fold, strict=True)
                 if f != fold and not s), reverse=True,
            )  # fmt: skip
            threshold = strangers[int(0.001 * len(strangers))]  # 180 strangers: none may pass
            here = (pairs.fold == fold) & pairs.same
            rates.append(np.mean([photo[a] @ judge.embeddings[name][b] > threshold
                                  for a, b in zip(pairs.a[here], pairs.b[here], strict=True)]))  # fmt: skip
        record = get(records, "de-identification" if name == "riddle" else "unprotected", method, PAIR)
        assert record.rate == pytest.approx(np.mean(rates)) and record.std == pytest.approx(np.std(rates, ddof=1))
        assert record.n == FOLDS * PER_FOLD and record.low <= record.rate <= record.high


def test_what_each_row_says_of_a_working_system(pairs, judge):
    records = protocols.table1(pairs, pairs.one_per_person(30, 0), judge)
    assert get(records, "unprotected", "photo (aligned crop)", PAIR).rate == 1
    assert get(records, "unprotected", "photo (aligned crop)", PAIR).accuracy == 1
    assert get(records, "de-identification", "RiDDLE", PAIR).rate < 0.05
    assert get(records, "recovery", "RiDDLE", "its inverted face").rate == 1
    assert get(records, "recovery", "RiDDLE", "the same photo").rate > 0.9
    assert get(records, "diversity", "RiDDLE", f"{PASSWORDS} passwords of one photo").rate == 1


def test_undetected_faces_are_counted_and_not_accepted(pairs, judge):
    lost = pairs.b[pairs.same][:5]
    judge.embeddings["riddle-restored"][lost] = np.nan
    record = protocols.measure(Row("recovery", "m", "inverted", "riddle-restored", True), pairs, judge,
                               protocols.thresholds(pairs, judge))  # fmt: skip
    assert (record.n, record.undetected) == (200, 5)
    assert record.rate == pytest.approx(195 / 200) and record.rate_found == 1


def test_what_is_restored_from_pixels_counts_the_few_only(pairs, judge):
    """Pictures of the others are never inverted again: they are no undetected faces."""
    people = pairs.one_per_person(30, 0)
    judge.embeddings["riddle-png"] = np.full_like(judge.embeddings["photo"], np.nan)
    judge.embeddings["riddle-png"][people[1:]] = judge.embeddings["riddle-restored"][people[1:]]
    record = get(protocols.table1(pairs, people, judge), "recovery", "RiDDLE, from PNG pixels", "its inverted face")
    count = int(np.isin(pairs.b[pairs.same], people).sum())
    lost = int((pairs.b[pairs.same] == people[0]).sum())
    assert 30 <= record.n == count < pairs.same.sum() and record.undetected == lost and record.rate_found == 1


def test_a_broken_face_is_no_new_identity(pairs, judge):
    judge.embeddings["riddle-passwords"][0, 0] = np.nan  # 9 of 45 pairs of one of 30 people
    records = protocols.table1(pairs, pairs.one_per_person(30, 0), judge)
    record = get(records, "diversity", "RiDDLE", f"{PASSWORDS} passwords of one photo")
    assert (record.n, record.undetected) == (30 * 45, 9)
    assert record.rate == pytest.approx(1 - 9 / 1350) and record.rate_found == 1


def test_one_password_for_all_is_no_diversity(pairs, judge):
    judge.embeddings["riddle-passwords"][:] = np.eye(DIM)[0]
    records = protocols.table1(pairs, pairs.one_per_person(30, 0), judge)
    assert get(records, "diversity", "RiDDLE", f"{PASSWORDS} passwords of one photo").rate == 0


def test_missing_weights_show_their_reason_and_no_number(pairs, judge):
    broken = Judge("toy", judge.embeddings, cosine, 0.5, {"datafree": "weights missing", "datafree-restored": "gone"})
    records = protocols.table1(pairs, pairs.one_per_person(30, 0), broken)
    record = get(records, "de-identification", "RiDDLE data-free", PAIR)
    assert record.value == "n/a: weights missing" and np.isnan(record.rate) and record.n == 0
    assert {r.value for r in protocols.without_judge("absent", "no file")} == {"n/a: no file"}
    assert len(protocols.without_judge("absent", "no file")) == len(records)


def test_without_strangers_the_published_threshold_decides(judge):
    names = [f"face_{i:02d}.png" for i in range(48)]
    pairs = protocols.self_pairs(names)
    small = Judge("toy", {k: v[:48] for k, v in judge.embeddings.items()}, cosine, 0.5, {})
    assert protocols.thresholds(pairs, small) == {0: 0.5}
    records = protocols.table1(pairs, pairs.one_per_person(30, 0), small)
    trivial = get(records, "unprotected", "photo (aligned crop)", "the same photo")
    assert trivial.value.startswith("n/a: ") and np.isnan(trivial.rate)
    deid = get(records, "de-identification", "RiDDLE", "the same photo")
    expected = (cosine(small.embeddings["photo"], small.embeddings["riddle"]) > 0.5).mean()
    assert deid.rate == pytest.approx(expected) and deid.n == 48


def test_our_encryptor_has_the_papers_rows_under_a_name_of_its_own():
    rows = [r for r in protocols.ROWS if r.faces.startswith("coupling")]
    assert {(r.task, r.faces) for r in rows} == {
        ("de-identification", "coupling"), ("de-identification", "coupling-wrong"), ("recovery", "coupling-restored"),
    }  # fmt: skip
    assert all(r.method.startswith("RotationCoupling (ours)") and r.system == "" for r in rows)
    named = {(r.task, r.method): r.system for r in protocols.ROWS if r.system}
    assert set(named.values()) == {"riddle", "riddle-datafree"}
    assert named["recovery", "RiDDLE"] == "riddle"


def test_systems_of_the_paper_that_cannot_be_run_say_so():
    records = protocols.without_system()
    assert {r.method for r in records} == {"CIAGAN", "FIT", "Personal", "DeepPrivacy"}
    assert all(r.value.startswith("n/a: ") and np.isnan(r.rate) for r in records)
    assert {r.method for r in records if r.task == "recovery"} == {"FIT", "Personal"}


# Baselines


def test_blur_is_a_gaussian_and_keeps_a_constant_face():
    import torch
    from scipy.ndimage import gaussian_filter

    face = torch.rand(1, 3, 64, 64).mul(2).sub(1)
    out = baselines.load("blur").protect(face)[0, 1].numpy()
    expected = gaussian_filter(face[0, 1].numpy(), 4, mode="mirror", radius=12)
    assert np.abs(out - expected).max() < 1e-5
    assert torch.allclose(baselines.load("blur").protect(torch.full((2, 3, 32, 32), 0.3)), torch.tensor(0.3))


def test_mosaic_is_the_mean_of_each_block():
    import torch

    face = torch.rand(2, 3, 64, 64)
    out = baselines.load("mosaic").protect(face)
    assert torch.allclose(out[1, 2, 8:16, 40:48], face[1, 2, 8:16, 40:48].mean())
    assert len(out[0, 0].unique()) == 64


def test_unknown_and_unavailable_baselines():
    with pytest.raises(ValueError, match="not trained"):
        baselines.load("ciagan")
    with pytest.raises(ValueError, match="blur, mosaic"):
        baselines.load("pixels")
