"""From published pixels back to a code: what rounding, compression and pasting do, and what gradients see of it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from riddle.faces.blending import ellipse
from riddle.training import pixelpath
from riddle.training.pixelpath import PixelPath, cropped_again, publish, rounded


@pytest.fixture
def faces():
    """Smooth faces (6, 3, 32, 32) in [-1, 1], like and unlike each other."""
    draw = torch.Generator().manual_seed(0)
    small = torch.randn(6, 3, 4, 4, generator=draw)
    return torch.nn.functional.interpolate(small, size=32, mode="bicubic").clamp(-1, 1)


def test_rounding_gives_the_nearest_of_256_levels_and_passes_gradients(faces):
    x = faces.clone().requires_grad_()
    y = rounded(x)
    levels = (y.detach() + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3) and (y - x).abs().max() <= 0.5 / 127.5 + 1e-6
    (y * faces).sum().backward()
    assert torch.equal(x.grad, faces)


def test_jpeg_is_what_pillow_makes_of_it(faces, monkeypatch):
    monkeypatch.setattr(pixelpath, "QUALITIES", (80, 80))
    stored = rounded(faces, pixelpath.QUALITIES)
    pixels = ((faces + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for picture, ours in zip(pixels, stored, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=80)
        wanted = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 127.5 - 1
        assert torch.allclose(ours, wanted, atol=1e-5)


def test_a_pasted_face_stands_in_the_middle_and_the_photo_around_it(faces):
    under = faces.flip(0)
    pasted = cropped_again(faces, under, jitter=0.0)
    at = (np.arange(32) + 0.5) / 32
    mask = torch.from_numpy(ellipse(at[None], at[:, None]))
    assert torch.allclose(pasted[..., mask == 1], faces[..., mask == 1], atol=1e-4)
    assert torch.allclose(pasted[..., mask == 0], under[..., mask == 0], atol=1e-4)
    torch.manual_seed(0)
    moved = cropped_again(faces, under, jitter=0.02)
    assert 0.001 < (moved - pasted).abs().mean() < 0.15


def test_each_third_goes_its_own_way_in_order(faces, monkeypatch):
    path, under = PixelPath(torch.nn.Flatten()), faces.flip(0)
    torch.manual_seed(0)
    shown = publish(faces, under)
    assert torch.equal(shown[:2], rounded(faces[:2]))
    assert not torch.allclose(shown[2:4], rounded(faces[2:4]), atol=1e-3)
    corner = shown[4:, :, :2, :2] - rounded(under)[4:, :, :2, :2]
    assert corner.abs().mean() < 0.15  # the photo's corner, moved a little, not the face's
    assert path(faces, under).shape == (6, 3 * 32 * 32)
