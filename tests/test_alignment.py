"""The framing: where a crop lies, the way there and back, and the crop itself."""

import numpy as np
import pytest
from PIL import Image

from riddle.faces.alignment import crop, crop_points, framing_matrix, similarity

UPRIGHT = np.array([(100.0, 100.0), (160.0, 100.0), (130.0, 130.0), (110.0, 170.0), (150.0, 170.0)])


def rotated(points, degrees, scale=1.0, shift=(0.0, 0.0)):
    a = np.deg2rad(degrees)
    return scale * points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + shift


def picture_with_marks(points, size, radius=3.0):
    """Black, with a Gaussian spot at each of the points, each in a picture of its own."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    return [np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)) for px, py in points]


def centroid(spot):
    y, x = np.mgrid[0 : spot.shape[0], 0 : spot.shape[1]]
    return np.array([(spot * x).sum(), (spot * y).sum()]) / spot.sum()


def test_ffhq_crop_of_an_upright_face_by_hand():
    # Eyes 60 px apart with their centre at (130, 100), mouth centre at (130, 170): x = (60 + 70, 0) points right, its
    # length is max(2.0 * 60, 1.8 * 70) = 126, the centre is (130, 100 + 0.1 * 70) = (130, 107).
    matrix = framing_matrix(UPRIGHT)
    np.testing.assert_allclose(matrix, [[252, 0, 130 - 126], [0, 252, 107 - 126]], atol=1e-9)
    wide = UPRIGHT.copy()
    wide[[1, 3, 4], 0] = 180, 120, 160  # 80 px apart, same distance to the mouth
    assert framing_matrix(wide)[0, 0] == pytest.approx(4.0 * 80)
    with pytest.raises(ValueError, match="coincide"):
        framing_matrix(np.zeros((5, 2)))


def test_crop_follows_the_face_when_it_turns():
    """Turned, enlarged and moved, a face has its points at the same place of the crop; the crop stays a square."""
    at_rest = crop_points(UPRIGHT, framing_matrix(UPRIGHT), 64)
    for degrees in (-170, -30, 45, 90):
        turned = rotated(UPRIGHT, degrees, 1.7, (40, -9))
        matrix = framing_matrix(turned)
        np.testing.assert_allclose(crop_points(turned, matrix, 64), at_rest, atol=1e-8)
        x, y = matrix[:, 0], matrix[:, 1]
        assert x @ y == pytest.approx(0, abs=1e-6) and np.hypot(*x) == pytest.approx(np.hypot(*y))
        assert x[0] * y[1] - x[1] * y[0] > 0  # not mirrored


@pytest.mark.parametrize(
    "degrees,scale,size", [(0, 1.0, 64), (25, 1.0, 64), (-40, 3.0, 64), (10, 0.4, 128), (5, 3.0, 32)]
)
def test_crop_has_marked_points_where_crop_points_says(degrees, scale, size):
    """Under half a pixel of the crop, enlarged or reduced, also when the photo is far larger than the crop."""
    points = rotated(UPRIGHT - UPRIGHT.mean(0), degrees, scale)
    points -= points.min(0) - 170 * scale
    photo = np.ceil(points.max(0) + 170 * scale).astype(int)
    matrix = framing_matrix(points)
    spread = 2.0 * np.hypot(*matrix[:, 0]) / size
    marks = picture_with_marks(points, photo, spread)
    for spot, expected in zip(marks, crop_points(points, matrix, size), strict=True):
        image = Image.fromarray((255 * spot).round().astype(np.uint8)).convert("RGB")
        out = np.asarray(crop(image, matrix, size), np.float64)[:, :, 0]
        assert np.abs(centroid(out) - expected).max() < 0.25


def test_crop_beyond_the_photo_mirrors_it():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None] * 4 + 20, (40, 40, 3))
    image = Image.fromarray(np.ascontiguousarray(ramp))
    matrix = np.array([[80.0, 0, -20.5], [0, 80.0, -20.5]])  # the photo in the middle of a crop twice as large
    row = np.asarray(crop(image, matrix, 80), int)[40, :, 0]
    np.testing.assert_array_equal(row, np.pad(np.arange(40) * 4 + 20, 20, mode="reflect"))


def test_similarity_equals_linear_least_squares():
    """Umeyama's closed form against lstsq over (a, b, tx, ty) with x' = a x - b y + tx, y' = b x + a y + ty."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        source = rng.normal(0, 40, (5, 2))
        target = rotated(source, rng.uniform(-180, 180), rng.uniform(0.2, 5), rng.normal(0, 99, 2))
        target += rng.normal(0, 4, target.shape)
        x, y = source.T
        one, zero = np.ones(5), np.zeros(5)
        design = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        a, b, tx, ty = np.linalg.lstsq(design, np.r_[target[:, 0], target[:, 1]], rcond=None)[0]
        np.testing.assert_allclose(similarity(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-8)
