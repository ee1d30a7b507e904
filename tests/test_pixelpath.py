"""Published pixels in training: what storing and pasting do to a face, and what gradients see of it."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from riddle.faces.blending import core, ellipse, match_colours
from riddle.training import pixelpath
from riddle.training.pixelpath import cropped_again, publish, stored


@pytest.fixture
def faces():
    """Smooth faces (6, 3, 32, 32) in [-1, 1], like and unlike each other."""
    small = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(small, size=32, mode="bicubic").clamp(-1, 1)


def test_pictures_are_what_pillow_stores_and_gradients_pass_unchanged(faces):
    pixels = ((faces + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 80})):
        x = faces.clone().requires_grad_()
        y = stored(x, *options.values())
        for picture, ours in zip(pixels, y, strict=True):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, kind, **options)
            wanted = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 127.5 - 1
            assert torch.allclose(ours, wanted, atol=1e-5), kind
        (y * faces).sum().backward()
        assert torch.equal(x.grad, faces)


@pytest.fixture
def steady(monkeypatch):
    """A detector that finds a pasted face exactly where it is."""
    for name in ("SHIFT", "SCALE", "TURN"):
        monkeypatch.setattr(pixelpath, name, 0.0)


def test_a_pasted_face_stands_in_the_middle_in_the_photos_colours(faces, steady):
    under, shown = faces.flip(0), faces.clone().requires_grad_()
    pasted = cropped_again(shown, under)
    at = (np.arange(32) + 0.5) / 32
    mask = torch.from_numpy(ellipse(at[None], at[:, None]))
    matched = torch.stack([match_colours(f, u, core(32)) for f, u in zip(faces, under, strict=True)])
    assert torch.allclose(pasted[..., mask == 1], matched[..., mask == 1], atol=1e-4)
    assert torch.allclose(pasted[..., mask == 0], under[..., mask == 0], atol=1e-4)
    pasted.sum().backward()
    assert torch.allclose(shown.grad, mask.float().expand_as(shown), atol=1e-4)  # matching lets gradients through


def test_it_is_cropped_a_little_beside_its_place(faces, steady, monkeypatch):
    under = faces.flip(0)
    pasted = cropped_again(faces, under)
    assert torch.equal(pasted, cropped_again(faces, under))
    for name in ("SHIFT", "SCALE", "TURN"):
        with monkeypatch.context() as patch:
            patch.setattr(pixelpath, name, 0.02)
            torch.manual_seed(0)
            assert 0.0005 < (cropped_again(faces, under) - pasted).abs().mean() < 0.15, name


def test_each_part_goes_its_own_way_in_order(faces):
    under = faces.flip(0)
    torch.manual_seed(0)
    shown = publish(faces, under)
    assert torch.equal(shown[:1], stored(faces[:1]))
    lost = (shown - stored(faces))[1:3].abs().mean((1, 2, 3))
    assert (lost > 1e-3).all() and (lost < 0.1).all()
    corner = (shown - under)[3:, :, :2, :2]
    assert corner.abs().mean() < 0.15  # the photo's corner, moved a little, not the face's
    assert publish(faces[:1], under[:1]).shape == (1, 3, 32, 32)
