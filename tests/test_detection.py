"""Detection: one interface, points that land where the face is, crops found again."""

import numpy as np
import pytest
import torch
from PIL import Image

from riddle.data import load
from riddle.faces.alignment import crop, crop_points, framing_matrix
from riddle.faces.detection import Face, detect_in_crop, load_detector
from riddle.images import to_tensor


class SpotDetector:
    """Takes each bright spot (pure red, green, blue) for a face whose five points are the spot's centre."""

    name = "spot"

    def detect(self, image):
        pixels = np.asarray(image, np.float64)
        y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
        faces = []
        for channel in range(3):
            weight = np.clip(pixels[:, :, channel] - 60, 0, None)
            if weight.sum() > 0:
                centre = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()
                box = np.r_[centre - 10, centre + 10]
                faces.append(Face(box, 1.0, np.tile(centre, (5, 1)), np.tile(centre, (68, 1)), self.name))
        return faces


def spots(side, centres):
    """A (3, side, side) face in [-1, 1] with one spot a channel."""
    y, x = np.mgrid[0:side, 0:side]
    face = np.zeros((3, side, side), np.float32)
    for channel, (px, py) in enumerate(centres):
        face[channel] = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (side / 20) ** 2))
    return torch.from_numpy(face) * 2 - 1


@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_points_come_back_in_the_crops_own_pixels(side):
    expected = np.array([0.43, 0.61]) * side
    (face,) = detect_in_crop(spots(side, [expected])[None], SpotDetector())
    np.testing.assert_allclose(face.points, np.tile(expected, (5, 1)), atol=0.15)
    np.testing.assert_allclose(face.landmarks[0], expected, atol=0.15)
    np.testing.assert_allclose((face.box[:2] + face.box[2:]) / 2, expected, atol=0.15)


def test_the_most_central_face_is_taken_and_none_is_none():
    side, off, central = 64, (14.0, 12.0), (33.0, 30.0)
    found = detect_in_crop(torch.stack([spots(side, [off, central]), spots(side, [])]), SpotDetector())
    np.testing.assert_allclose(found[0].points[0], central, atol=0.2)
    assert found[1] is None


def test_workers_change_nothing():
    rng = np.random.default_rng(0)
    faces = torch.stack([spots(32, [c] if i % 7 else []) for i, c in enumerate(rng.uniform(8, 24, (70, 2)))])
    alone, shared = detect_in_crop(faces, SpotDetector()), detect_in_crop(faces, SpotDetector(), workers=2)
    assert [f is None for f in alone] == [f is None for f in shared] == [i % 7 == 0 for i in range(70)]
    for a, b in zip(alone, shared, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a.points, b.points)


@pytest.mark.parametrize("name", ["dlib", "mtcnn", "auto"])
def test_a_picture_without_a_face_has_none(name):
    assert load_detector(name).detect(Image.new("RGB", (160, 120), (128, 128, 128))) == []


@pytest.fixture(scope="module")
def photos(real_data):
    """40 photos of CelebA-HQ's validation split, at 256 px."""
    data = load("celebamask_hq", "val")
    return [data.image(n).reduce(2) for n in data.names[:40]]


def test_dlib_finds_faces_in_photos_and_again_in_their_128_px_crops(photos):
    detector = load_detector("dlib")
    found = [(p, f[0]) for p in photos if (f := detector.detect(p))]
    assert len(found) >= 38
    matrices = [framing_matrix(f.points) for _, f in found]
    crops = np.stack([np.asarray(crop(p, m, 128)) for (p, _), m in zip(found, matrices, strict=True)])
    again = detect_in_crop(to_tensor(crops), detector)
    errors = [
        np.abs(g.points - crop_points(f.points, m, 128)).mean()
        for (_, f), m, g in zip(found, matrices, again, strict=True)
        if g is not None
    ]
    assert len(errors) >= 0.95 * len(found)
    assert np.mean(errors) < 1.0  # px of the 128 px crop


def test_mtcnn_and_dlib_agree_on_the_points(photos):
    errors = []
    for photo in photos[:10]:
        a, b = load_detector("dlib").detect(photo), load_detector("mtcnn").detect(photo)
        if a and b:
            assert a[0].points.shape == b[0].points.shape == (5, 2)
            assert a[0].landmarks.shape == (68, 2) and b[0].landmarks is None
            errors.append(np.abs(a[0].points - b[0].points).mean())
    assert len(errors) >= 8 and np.median(errors) < 4  # px of a face about 130 px wide
    assert {load_detector("auto").detect(p)[0].detector for p in photos[:3]} <= {"dlib", "mtcnn"}
