"""Metrics of restored faces against scikit-image, and of utility against known geometry."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from riddle.metrics import restoration, utility


@pytest.fixture(scope="module")
def pair():
    draw = torch.Generator().manual_seed(0)
    a = torch.nn.functional.interpolate(torch.rand(4, 3, 12, 12, generator=draw), size=48, mode="bicubic").clamp(0, 1)
    b = (a + 0.05 * torch.randn(a.shape, generator=draw)).clamp(0, 1)
    return a * 2 - 1, b * 2 - 1


def unit(x):
    return x.double().add(1).div(2).permute(0, 2, 3, 1).numpy()


def test_mse_and_psnr_against_scikit_image_and_of_the_same_face(pair):
    """The same face has the PSNR of 8-bit rounding."""
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(*map(unit, pair), strict=True)]
    assert restoration.psnr(*pair) == pytest.approx(expected, abs=1e-4)
    assert -10 * np.log10(restoration.mse(*pair)) == pytest.approx(expected, abs=1e-4)
    same = pair[0]
    assert (restoration.mse(same, same) == 0).all() and restoration.psnr(same, same) == pytest.approx(58.92, abs=0.01)
    with pytest.raises(ValueError, match="one shape"):
        restoration.mse(same, pair[1][:2])


def test_ssim_against_scikit_image(pair):
    """scikit-image leaves out a rim of 5 px; mirrored pixels around the picture bring it back."""
    padded = [[np.pad(x, ((5, 5), (5, 5), (0, 0)), mode="reflect") for x in unit(faces)] for faces in pair]
    expected = [
        structural_similarity(a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for a, b in zip(*padded, strict=True)
    ]  # fmt: skip
    assert restoration.ssim(*pair) == pytest.approx(expected, abs=1e-4)
    assert restoration.ssim(pair[0][:1], pair[0][:1]) == pytest.approx([1])


def test_lpips_is_what_the_network_says_of_each_pair(pair, monkeypatch):
    monkeypatch.setattr(restoration, "BATCH", 3)
    a, b = pair
    network = lambda x, y: (x - y).abs().mean((1, 2, 3), keepdim=True)  # noqa: E731
    expected = (a - b).abs().mean((1, 2, 3)).numpy()
    assert restoration.lpips(a, b, network) == pytest.approx(expected)


# Utility


def project(rotation, scale=1.7, shift=(30, 40)):
    """68 landmarks of the model head under a rotation; those that the model lacks are NaN-free and arbitrary."""
    points = np.zeros((68, 2))
    for index, place in utility.HEAD.items():
        points[index] = scale * (rotation @ np.array(place, float))[:2] + shift
    return points


def turn(axis, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    r = np.eye(3)
    r[i, i], r[i, j], r[j, i], r[j, j] = c, -s, s, c
    return r


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [0, 5, 30])
def test_pose_difference_is_the_angle_of_the_turn(axis, degrees):
    start = turn(1, 10) @ turn(0, -5)
    a, b = project(start)[None], project(turn(axis, degrees) @ start, scale=0.6, shift=(1, 2))[None]
    assert utility.head_rotation(a)[0] == pytest.approx(start, abs=1e-9)
    assert utility.pose_difference(a, b) == pytest.approx([degrees], abs=1e-5)


def test_distances_of_boxes_and_points_are_means_over_coordinates():
    boxes = np.array([[0, 0, 10, 10.0]]), np.array([[3, 4, 10, 22.0]])
    assert utility.box_distance(*boxes) == pytest.approx([(3 + 4 + 0 + 12) / 4])
    points = np.zeros((1, 5, 2)), np.tile([3.0, 4.0], (1, 5, 1))
    assert utility.landmark_distance(*points) == pytest.approx([3.5])


def test_openness_of_a_drawn_eye_and_mouth():
    p = np.zeros((1, 68, 2))
    for first in (36, 42):  # an eye 4 wide and 2 high
        p[0, first : first + 6] = [(0, 0), (1, -1), (3, -1), (4, 0), (3, 1), (1, 1)]
    p[0, 60:68] = [(0, 0), (1, -1), (2, -2), (3, -1), (4, 0), (3, 1), (2, 2), (1, 1)]  # gaps of 2, 4, 2
    assert utility.eye_openness(p) == pytest.approx([0.5])
    assert utility.mouth_openness(p) == pytest.approx([(2 + 4 + 2) / 3 / 4])
    assert utility.eye_openness(p * 3 + 7) == pytest.approx([0.5])


def test_faces_that_were_not_found_stay_unknown():
    p = np.stack([project(np.eye(3)), np.full((68, 2), np.nan)])
    for value in (utility.pose_difference(p, p), utility.eye_openness(p), utility.landmark_distance(p, p)):
        assert np.isnan(value[1])
    assert utility.pose_difference(p, p)[0] == pytest.approx(0, abs=1e-5)
