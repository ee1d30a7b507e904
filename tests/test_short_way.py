"""RiDDLE at 1024 px without training: the public generator and e4e, and the encryptor bundled with "mobile".

Stand-ins for the two public files: few channels and random weights, but the mapping network, and so W, is the real one.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_published import e4e, g_ema

import riddle
from riddle.assets import ASSETS
from riddle.data import sample_codes
from riddle.faces.detection import Face
from riddle.models.encryptor import FirstSlots, RotationCoupling
from riddle.models.inversion import Encoder
from riddle.models.stylegan2 import Generator
from riddle.presets import PRESETS, get

FEW = {4: 16, 8: 16, 16: 16, 32: 16, 64: 16, 128: 8, 256: 8, 512: 4, 1024: 4}
SMALL = replace(
    get("ffhq1024"), channels=FEW, encoder_width=4, encoder_blocks=(1, 1, 1, 1), encoder_fpn=32, encoder_head=8
)


@pytest.fixture(scope="module")
def mobile():
    return riddle.load("mobile")


@pytest.fixture
def model(tmp_path, monkeypatch, mobile):
    """The model of "ffhq1024" from a folder of stand-ins."""
    torch.manual_seed(0)
    generator, encoder = Generator.of(SMALL), Encoder(SMALL)
    for ours, theirs in zip(generator.style[1:], mobile.generator.mapping, strict=True):
        ours.weight.data = theirs.weight / ours.scale
        ours.bias.data = theirs.bias / ours.lr_mul
    encoder.latent_avg.copy_(mobile.generator.mean_latent().expand(18, -1))
    torch.save(
        {"g_ema": g_ema(generator), "latent_avg": encoder.latent_avg[0]}, tmp_path / "stylegan2-ffhq-config-f.pt"
    )
    torch.save(e4e(encoder, generator), tmp_path / "e4e_ffhq_encode.pt")
    monkeypatch.setitem(PRESETS, "ffhq1024", SMALL)
    monkeypatch.setitem(ASSETS, "e4e-ffhq1024", replace(ASSETS["e4e-ffhq1024"], size=None, sha256=None))
    monkeypatch.setenv("RIDDLE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("RIDDLE_CACHE", str(tmp_path / "cache"))
    return riddle.load("ffhq1024")


def test_two_public_files_and_the_bundled_encryptor_protect_and_restore_a_photo(model, mobile, quick_keys):
    assert type(model.encryptor) is FirstSlots and type(model.encryptor.inner) is RotationCoupling
    z = torch.randn(50, 512, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.generator.map(z), mobile.generator.map(z), atol=1e-4, rtol=1e-4)  # the same W

    w = torch.cat([sample_codes()[:4], model.generator.broadcast(mobile.generator.map(z[:4]))[:, 10:]], 1)
    key, wrong = model.random_password(2, seed=3).split(1)
    encrypted = model.encrypt(w, key)
    torch.testing.assert_close(encrypted[:, :10], mobile.encrypt(w[:, :10], key[:, :10]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encrypted[:, 10:], w[:, 10:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decrypt(encrypted, key), w, atol=1e-3, rtol=1e-3)
    assert (model.decrypt(encrypted, wrong)[:, :10] - w[:, :10]).abs().mean() > 0.1

    pixels = np.random.default_rng(0).integers(0, 256, (300, 240, 3), dtype=np.uint8)
    points = np.array([(95.0, 130.0), (145.0, 130.0), (120.0, 160.0), (100.0, 185.0), (140.0, 185.0)])
    face = Face(np.array([70.0, 80.0, 170.0, 220.0]), 1.0, points, None, "by hand")
    out = model.protect(Image.fromarray(pixels), "correct horse", faces=[face], salt=bytes(16))
    assert out.drawn.shape == (1, 3, 1024, 1024)
    back = model.restore(out, "correct horse")
    assert back.source == "codes"
    inverted = model.synthesize(model.invert(model.crops(Image.fromarray(pixels), out.record.matrices)))
    assert (back.faces - inverted).abs().mean() < 0.05 * (out.drawn - inverted).abs().mean()
    assert model.restore(out, "wrong horse", faces=[face]).source == "inversion"


def test_a_preset_s_own_encryptor_comes_before_a_borrowed_one(model, tmp_path):
    with pytest.raises(riddle.weights.WeightsMissingError, match="ffhq1024/encryptor_unheard_of"):
        riddle.load("ffhq1024", encryptor="encryptor_unheard_of")
    with pytest.raises(riddle.weights.WeightsMissingError, match="encryptor_coupling"):
        riddle.load("ffhq1024", weights=tmp_path)  # a folder of one's own borrows nothing
