"""Paste back: where a rendered face lands, what covers it, and how it is taken out again."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from riddle.faces import alignment, blending, fitting

UPRIGHT = np.array([[70.0, 80], [110, 80], [90, 100], [74, 124], [106, 124]])
TILTED = np.array([[201.0, 60], [219, 66], [208, 72], [199, 80], [213, 85]])


def photo_points(points, matrix, size):
    """Pixel indices (k, 2) of a `size` px crop -> photo pixels."""
    return (points + 0.5) / size @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("size", [24, 64, 400])
@pytest.mark.parametrize("points", [UPRIGHT, TILTED], ids=["upright", "tilted"])
def test_paste_puts_a_crop_back_where_it_was(points, size):
    """The rendering shows a ramp as the photo would: pasting it must reproduce the photo.

    A shift moves rising and falling ramps apart; rounding moves both alike.
    """
    matrix = alignment.framing_matrix(points)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    seen = photo_points(grid, matrix, size).reshape(size, size, 2)
    there = np.stack(np.meshgrid(np.arange(260), np.arange(190)), -1)
    uv = alignment.crop_points(there.reshape(-1, 2), matrix, 1).reshape(190, 260, 2) + 0.5
    means = []
    for start, slope in ((np.array([5, 10]), 0.9), (np.array([245, 190]), -0.9)):
        ramp, face = ((start + slope * xy)[..., [0, 1, 0]] for xy in (there, seen))
        pasted = np.rint(ramp).astype(np.uint8)
        blending.paste(pasted, Image.fromarray(np.rint(face).astype(np.uint8)), matrix)
        difference = (pasted - ramp)[((uv >= 0) & (uv <= 1)).all(-1)]
        assert np.abs(difference).max() < 2.5
        means.append(difference.mean(0))
    shift = (means[0] - means[1]) / 2 / 0.9  # px
    assert np.abs(shift).max() < 0.1


def test_paste_beyond_the_photo_is_cut():
    photo, face = np.zeros((60, 50, 3), np.uint8), Image.new("RGB", (32, 32), (200, 10, 10))
    blending.paste(photo, face, np.array([[60.0, 0, -30], [0, 60, -30]]))
    assert tuple(photo[0, 0]) == (200, 10, 10) and not photo[40:, 40:].any()
    before = photo.copy()
    blending.paste(photo, face, np.array([[60.0, 0, 500], [0, 60, 500]]))
    assert np.array_equal(before, photo)
    with pytest.raises(ValueError, match="degenerate"):
        blending.paste(photo, face, np.array([[1.0, 1, 0], [1, 1, 0]]))


def test_a_pasted_face_is_taken_out_of_its_rim():
    """P = (1 - a) O + a S, solved for O along the rim; where nothing of O is left, the new face lies over it."""
    matrix = alignment.framing_matrix(UPRIGHT)
    original = np.broadcast_to(np.linspace(40, 220, 260)[None, :, None], (190, 260, 3)).round().astype(np.uint8)
    stranger, own = Image.new("RGB", (64, 64), (250, 20, 20)), Image.new("RGB", (64, 64), (20, 20, 250))
    photo = original.copy()
    blending.paste(photo, stranger, matrix)
    protected = photo.copy()
    there = np.stack(np.meshgrid(np.arange(260), np.arange(190)), -1).reshape(-1, 2)
    uv = (alignment.crop_points(there, matrix, 1) + 0.5).reshape(190, 260, 2)
    mask = blending.ellipse(uv[..., 0], uv[..., 1])
    blending.unblend(photo, stranger, matrix)
    rim = (mask > 0.02) & (mask < 0.8)
    ghost, left = (np.abs(x[rim].astype(int) - original[rim]).mean() for x in (protected, photo))
    assert ghost > 20 and left < 3
    clear = mask < blending.MOST
    rounding = 0.5 / (1 - mask[clear]) + 0.5  # of the protected photo, enlarged; of the result
    assert (np.abs(photo[clear].astype(int) - original[clear]).max(-1) < rounding + 0.01).all()
    blending.paste_inside(photo, own, matrix)
    assert np.array_equal(photo[mask == 0], original[mask == 0])
    assert (photo[mask == 1] == (20, 20, 250)).all()
    outer = (mask > 0.02) & (mask < blending.INNER - 0.02)
    assert np.abs(photo[outer].astype(int) - original[outer]).mean() < 3  # the surroundings themselves


def logits(side=64, face=(0.2, 0.8), hair_until=0.25, glasses=False, fringe=False):
    """A parser's answer (19, S, S) for a drawn face: skin between `face` across, hair above, neck below 0.9."""
    classes = torch.zeros(side, side, dtype=torch.long)
    a, b = (round(x * side) for x in face)
    classes[round(hair_until * side) : round(0.9 * side), a:b] = 1
    classes[: round(hair_until * side), a:b] = 13
    classes[round(0.9 * side) :, a:b] = 17
    if fringe:
        classes[: round(0.45 * side), a : (a + b) // 2] = 13
    if glasses:
        classes[round(0.5 * side), :] = 3  # arms reach beyond the face
    return F.one_hot(classes, 19).permute(2, 0, 1).float()


def test_the_outline_leaves_hair_in_front_and_takes_glasses_whole():
    side = 64
    same = blending.outline(logits(), logits())
    assert same.shape == (side, side) and 0 <= same.min() and same.max() <= 1
    assert same[40, 32] == 1 and same[5, 32] == 0 and same[40, 2] == 0
    assert same[60, 32] < 0.5  # neck under neck stays
    higher = blending.outline(logits(), logits(hair_until=0.4))  # the new face's hair over the old forehead
    assert higher[20, 32] < 0.1 < same[20, 32] and higher[40, 32] == 1
    covered = blending.outline(logits(fringe=True), logits())  # the old face's hair in front of the forehead
    assert covered[20, 16] < 0.1 < same[20, 16] and covered[20, 48] > 0.3
    worn = blending.outline(logits(glasses=True), logits())
    assert worn[32, 4] > 0.5 and worn[32, 60] > 0.5 and same[32, 4] == 0
    turned = logits()
    turned[0, :, 44:] = 9  # both faces end there, in profile before a wall
    aside = blending.outline(turned, turned)
    assert aside[36, 48] < 0.1 < same[36, 48] and aside[40, 32] == 1
    for sure in (1, 20):  # the true class's logit
        narrow, broad = logits(face=(0.2, 0.56)) * sure, logits() * sure  # the one ends before a wall
        beside, over = blending.outline(narrow, broad), blending.outline(broad, narrow)
        assert beside[40, 24] == 1 and beside[40, 52] < 0.1 and over[40, 40] > 0.9
        assert (beside[40, 40] > 0.9) == (sure == 1)  # an eye may look like a wall
    blind = torch.zeros(19, side, side)  # a parser that sees nothing but background
    blind[0] = 1
    assert np.allclose(blending.outline(blind, blind), blending.core(side).numpy())


def test_colours_match_alike_at_every_side():
    """A face enlarged before its colours are matched, and after: the same but for interpolation."""
    draw = torch.Generator().manual_seed(0)
    face, under = F.interpolate(torch.randn(2, 3, 4, 4, generator=draw), size=32, mode="bicubic").clamp(-0.8, 0.8)
    large = F.interpolate(face[None], size=256, mode="bilinear", align_corners=False)[0]
    small = blending.match_colours(face, under, blending.core(32))
    matched = blending.match_colours(large, under, blending.core(32))
    assert matched.shape == (3, 256, 256)
    assert (F.adaptive_avg_pool2d(matched, 32) - small).abs().mean() < 0.02
    assert (small - face).abs().mean() > 0.1


def test_a_face_that_gets_brighter_keeps_its_dark_eyes_and_fades_into_white():
    face, where = torch.full((3, 32, 32), -0.4), torch.ones(32, 32)  # a brightness of 0.3
    face[:, 10:12, 8:12], face[:, 20, 20] = -0.96, 0.8  # of 0.02, and of 0.9
    where[10:12, 8:12] = where[20, 20] = 0
    matched = (blending.match_colours(face, torch.full((3, 32, 32), 0.2), where) + 1) / 2
    assert matched[:, 28:].mean() == pytest.approx(0.6, abs=0.03)
    assert matched[:, 10:12, 8:12].max() < 0.08 and 0.9 < matched[:, 20, 20].max() <= 1


def test_protect_pastes_with_a_narrower_rim_and_replaces_old_brows_whole():
    browed = logits()
    browed[:, 24:27, 14:30] = F.one_hot(torch.tensor(6), 19).float()[:, None, None]
    wide, fine = (blending.outline(browed, logits(fringe=True), fine) for fine in (False, True))
    assert fine[25, 14:30].min() > 0.9 > 0.5 > wide[25, 14:18].min(), "a brow that the new face's hair would hide"
    soft, sharp = (
        (x > 0.1) & (x < 0.9) for x in (blending.outline(logits(), logits(), fine) for fine in (False, True))
    )
    assert 0 < sharp.sum() < 0.8 * soft.sum()
    assert np.array_equal(
        blending.outlines([(browed, browed)], torch.zeros(1, 3, 64, 64), fine=True)[0],
        blending.outline(browed, browed, True),
    )


def test_skin_gets_the_photos_grain_and_eyes_lose_nothing():
    draw = torch.Generator().manual_seed(0)
    where, noise = torch.ones(64, 64), torch.randn(3, 1, 64, 64, generator=draw).expand(3, 3, 64, 64)
    where[24:40, 20:44] = 0  # eyes

    def contrast(grain, under_grain):
        matched = blending.match_colours(grain * noise[0], under_grain * noise[1], where, torch.ones(16, 16)) / (
            grain * noise[0].std()
        )
        return matched[:, where == 1].std().item(), matched[:, where == 0].std().item()

    (skin, eyes), (rough, large), (same, _) = contrast(0.1, 0.02), contrast(0.05, 0.1), contrast(0.05, 0.05)
    assert skin == pytest.approx(blending.GRAIN[0], abs=0.1) and eyes > 0.9
    assert rough == pytest.approx(blending.GRAIN[1], abs=0.1) == large and same == pytest.approx(1, abs=0.05)


def test_skin_meets_the_photos_along_the_rim_and_stays_as_it_is_within():
    """A face with a dark forehead, as below a fringe, in the place of one that has none."""
    under, face = torch.full((3, 64, 64), 0.2), torch.full((3, 128, 128), 0.2)
    face[:, :44] = -0.3
    mask = torch.zeros(32, 32)
    mask[9:27, 6:26] = 1  # from row 18 of 64, 36 of 128
    before, after = (blending.match_colours(face, under, torch.ones(64, 64), m) for m in (None, mask))
    rim, middle = np.s_[:, 36:40, 40:88], np.s_[:, 70:80, 60:70]
    steps = [(x[rim] - 0.2).abs().mean() for x in (before, after)]
    assert steps[1] < 0.3 * steps[0] > 0.03
    assert (after[middle] - before[middle]).abs().max() < 0.02
    nowhere = blending.match_colours(face, under, torch.zeros(64, 64), mask)
    assert torch.isfinite(nowhere).all() and (nowhere[rim] < 0).any()  # no skin there: nothing to meet


def test_a_stranger_of_another_light_pose_or_no_other_identity_fits_worse():
    recogniser = SimpleNamespace(
        device="cpu",
        from_crop=lambda x: F.normalize(F.adaptive_avg_pool2d(x, 8).flatten(1) + 1, dim=1),
        similarity=lambda a, b: 0.3 * (a * b).sum(1),
    )
    draw = torch.Generator().manual_seed(0)
    old = F.interpolate(torch.randn(1, 3, 4, 4, generator=draw), size=64, mode="bicubic")[0].clamp(-1, 1) * 0.2
    shadow = old.clone()
    shadow[..., 40:48] -= 0.6
    narrow = logits(face=(0.45, 1.0))

    def misfits(*shown, sure=20.0, critic=None):
        """Of the old face itself, of one in shadow, and of a third one by what the parser sees of it."""
        parsed = iter([torch.stack([logits(), logits(), logits(), *shown]) * 20, torch.stack([logits()] * 3) * sure])
        three = torch.stack([old, shadow, old])
        return fitting.misfit(three, old, lambda x: next(parsed)[: len(x)], recogniser, critic)[0]

    own, dark, third = misfits(narrow).tolist()
    assert own == pytest.approx(fitting.LIKE * 0.1, abs=0.02)  # the similarity alone: 0.3, of which 0.2 cost nothing
    assert dark > own + 0.1 and third > own + 0.2
    assert misfits(narrow, sure=0.5)[0] > own + 0.5, "a parser that is not sure sees no face"
    liked = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    less = torch.tensor([own, dark, third]) - misfits(narrow, critic=lambda x: liked)
    assert torch.allclose(less, torch.tensor([0.0, 2.0 * fitting.TASTE[0], 3.0 * fitting.TASTE[1]]), atol=1e-5)


def test_a_new_face_beyond_the_old_ones_outline_costs():
    """The same face, and one that reaches onto the photo's background."""
    recogniser = SimpleNamespace(
        device="cpu", from_crop=lambda x: x.flatten(1), similarity=lambda a, b: torch.zeros(len(b))
    )
    shown, wide = torch.zeros(2, 3, 64, 64), logits(face=(0.0, 1.0))
    parsed = iter([torch.stack([logits(), logits(), wide]) * 20, torch.stack([logits()] * 2) * 20])
    (own, beyond), pasted = fitting.misfit(shown, shown[0], lambda x: next(parsed), recogniser)
    assert beyond > own + 0.5 and pasted.shape == shown.shape


def test_the_best_of_all_are_settled_and_compared_again(monkeypatch):
    codes, asked, under = torch.arange(20.0), [], torch.zeros(3, 8, 8)

    def drawn(chosen):
        return chosen[:, None, None, None].expand(-1, 3, 8, 8)

    def misfit(faces, *by):
        """Of the first faces the first ones are good; of the settled ones, those with the largest number. What is seen
        in its place is a hundredth brighter."""
        assert by == (under, by[1], "a recogniser", "a critic")
        asked.append(faces[:, 0, 0, 0].tolist())
        return faces[:, 0, 0, 0] * (1 if len(asked) == 1 else -1), faces + 0.01

    model = SimpleNamespace(synthesize=drawn, invert=lambda x, refine: x[:, 0, 0, 0] + refine, critic="a critic")
    model.parser = model._batched = lambda *_, **__: None
    monkeypatch.setattr(fitting, "misfit", misfit)
    turn, code = fitting.best(model, codes, under, "a recogniser")
    assert turn == fitting.FINALISTS - 1 and code == pytest.approx(turn + 0.01)
    assert asked[0] == codes.tolist() and asked[1] == pytest.approx([n + 0.01 for n in range(fitting.FINALISTS)])


def test_glasses_that_stick_out_or_that_nobody_wore_cost():
    worn, wide = logits(glasses=True), logits(face=(0.0, 1.0))
    assert (
        fitting.of_glasses(logits(), logits()) == 0 == fitting.of_glasses(worn, worn) == fitting.of_glasses(worn, wide)
    )
    assert fitting.of_glasses(worn, logits()) == pytest.approx(
        0.4 * fitting.EXPOSED, abs=0.1
    )  # of the width 0.6 are face
    assert fitting.of_glasses(logits(), worn) == fitting.UNASKED


def test_highlights_rise_to_white_without_a_step():
    x = torch.linspace(0, 3, 1000)
    y = blending.shoulder(x)
    assert torch.equal(y[x <= 0.75], x[x <= 0.75]) and y.max() <= 1
    assert (y.diff() >= 0).all() and y.diff().max() < 0.0031
