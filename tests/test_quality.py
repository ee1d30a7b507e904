"""The generator's quality against real faces, on features whose answer is known."""

import numpy as np
import pytest
import torch

from riddle import quality
from riddle.metrics.fidelity import frechet_distance, precision_recall

SIDE = 8


def faces(n, level, seed):
    """Flat faces of random colours around a level, with a fine pattern."""
    draw = np.random.default_rng(seed)
    colours = np.clip(draw.normal(level, 25, (n, 1, 1, 3)), 0, 255)
    pattern = draw.integers(-20, 20, (n, SIDE, SIDE, 3))
    return np.clip(colours + pattern, 0, 255).astype(np.uint8)


def colour(x):
    return x.mean((2, 3)).double().numpy()


def detail(x):
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1).double().numpy()


@pytest.fixture(scope="module")
def table():
    real = faces(200, 128, 0)
    return quality.measure(real, faces(150, 150, 1), {"colour": colour, "detail": detail}, seed=3), real


def line(frame, faces, against):
    (found,) = frame[(frame.faces == faces) & (frame.against == against)].to_dict("records")
    return found


def test_numbers_are_those_of_the_metrics(table):
    frame, real = table
    order = np.random.default_rng(3).permutation(200)
    a, made = (colour(quality.to_tensor(x)) for x in (real, faces(150, 150, 1)))
    row = line(frame, "generated, psi = 1", "all real faces")
    assert (row["n"], row["n real"]) == (150, 200)
    assert (row["precision"], row["recall"]) == precision_recall(a, made, 3)
    assert row["Frechet distance (colour)"] == pytest.approx(frechet_distance(a, made))
    halves = line(frame, "real, the other half", "half of the real faces")
    assert halves["Frechet distance (colour)"] == pytest.approx(frechet_distance(a[order[:100]], a[order[100:]]))
    assert line(frame, "generated, psi = 1", "half of the real faces")["n"] == halves["n"] == 100


def test_real_faces_are_nearest_and_blur_shows_where_detail_counts(table):
    frame, _ = table
    half = "half of the real faces"
    labels = ("real, the other half", "real, blurred to half the side", "generated, psi = 1")
    real, blurred, made = (line(frame, label, half) for label in labels)
    assert real["Frechet distance (colour)"] < made["Frechet distance (colour)"]
    assert real["Frechet distance (detail)"] < blurred["Frechet distance (detail)"]
    assert real["precision"] > made["precision"]


def test_blur_keeps_what_half_the_side_can_show():
    smooth = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    assert (quality.blurred(smooth) - smooth).abs().max() < 0.1
    checks = torch.tensor([[1.0, -1], [-1, 1]]).repeat(8, 8).expand(1, 3, 16, 16)
    assert quality.blurred(checks).abs().max() < 1e-6


def test_a_file_of_other_faces_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 16, 16, 3), np.uint8))
    assert quality.load_faces(tmp_path / "a.npy", 16).shape == (3, 16, 16, 3)
    with pytest.raises(ValueError, match="prepare it for this preset"):
        quality.load_faces(tmp_path / "a.npy", 32)
    (tmp_path / "b.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="is no array file"):
        quality.load_faces(tmp_path / "b.npy", 16)
