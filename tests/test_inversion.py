"""The encoder that goes with the bundled generator: what it reads, its passes, and how it learns."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from riddle.models.inversion import LiteEncoder, build_encoder
from riddle.models.mobilefacenet import MobileFaceNet
from riddle.models.mobilestylegan import CHANNELS, MobileStyleGAN
from riddle.presets import get
from riddle.training.inversion import InversionConfig, InversionTask, changed, varied
from riddle.training.judges import Judges
from riddle.training.loop import LoopConfig, make_accelerator

SMALL = replace(get("mobile"), style_dim=32, encoder_fpn=16, encoder_head=8)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    g = MobileStyleGAN(channels={side: 8 for side in CHANNELS}, dim=32).eval().requires_grad_(False)
    g.codes.measure(g.map, n=500)
    return g


@pytest.fixture
def encoder(generator):
    torch.manual_seed(1)
    return build_encoder(SMALL, generator).eval().requires_grad_(False)


def faces(n=2):
    return torch.rand(n, 3, 128, 128, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_a_face_becomes_a_code_for_each_slot(encoder):
    assert isinstance(encoder, LiteEncoder)
    w = encoder(faces())
    assert w.shape == (2, 10, 32) and torch.isfinite(w).all()
    with pytest.raises(ValueError, match="faces must be"):
        encoder(faces()[:, :1])


def test_passes_go_on_from_what_is_drawn(encoder, generator):
    """Two passes by hand: each adds to z what is missing from the picture of the one before."""
    x, z = faces(), torch.zeros(2, 10, 32)
    for count in (1, 2):
        z = z + encoder.missing(x, generator(encoder.to_w(z)).clamp(-1, 1))
        read, shown = encoder.read(x, count)
        assert torch.allclose(read, z, atol=1e-4) and torch.allclose(shown, encoder.draw(z), atol=1e-4)
        encoder.passes.fill_(count)
        assert torch.allclose(encoder(x), encoder.to_w(z), atol=1e-4)


def test_the_recogniser_s_body_reaches_every_slot(encoder):
    """Who the face is goes to all slots, and so does how far the face drawn so far is from it."""
    x, shown = faces(), faces().flip(0)
    before = encoder.missing(x, shown)
    other = encoder.recognise
    for index in (0, 1):  # the face, then what is drawn
        calls = []

        def turned(y, index=index, calls=calls):
            calls.append(y)
            embedded, pooled = other(y)
            return (-embedded if len(calls) - 1 == index else embedded), pooled

        encoder.recognise = turned
        assert ((encoder.missing(x, shown) - before).abs().amax((0, 2)) > 0).all()
    del encoder.recognise


def test_an_embedding_has_unit_variance_and_sees_the_face_alone(encoder):
    embedded, pooled = encoder.recognise(faces())
    assert embedded.shape == (2, 128) and pooled.shape == (2, 512)
    assert torch.allclose(embedded.square().mean(1), torch.ones(2), atol=1e-4)
    x = faces()
    x[..., :3, :] = 1  # the top rim lies outside ArcFace's crop
    assert torch.allclose(encoder.recognise(x)[0], embedded, atol=1e-4)


def test_a_trained_recogniser_is_the_frozen_one_with_gradients():
    torch.manual_seed(2)
    net = MobileFaceNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_var.uniform_(0.5, 2), module.running_mean.normal_(std=0.1)
    frozen, x = net.folded(), torch.rand(2, 3, 112, 112) * 2 - 1
    trained = net.folded().requires_grad_(True)
    assert torch.allclose(frozen(x), trained(x), atol=1e-5)
    F.normalize(trained.describe(x)[0], dim=1)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())


@pytest.mark.parametrize("identity_lr", [0.0, 1e-4])
def test_a_step_trains_the_encoder_and_its_recogniser_where_asked(generator, identity_lr):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    accelerator = make_accelerator(LoopConfig("unused", 1, 2, bfloat16=False))
    judges = Judges(embed=lambda x: F.normalize(F.adaptive_avg_pool2d(x, 4).flatten(1), dim=1))
    lpips = lambda a, b: (a - b).square().mean((1, 2, 3))  # noqa: E731
    held_out = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    config = InversionConfig(passes=2, identity_lr=identity_lr)
    task = InversionTask(SMALL, config, accelerator, generator, judges, lpips, held_out)
    before = {k: v.clone() for k, v in task.encoder.state_dict().items()}
    numbers = task.step({"faces": held_out}, 0.5)
    moved = {k for k, v in task.encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("identity.") for k in moved) == bool(identity_lr)
    assert any(k.startswith("body.") for k in moved) and any(k.startswith("mix.") for k in moved)
    for name in ("l2", "lpips", "identity", "length", "delta", "known"):
        assert torch.isfinite(numbers[name])
    assert set(task.evaluate()) == {"lpips", "mse", "cosine", "spread", "z_std"}
    assert task.samples().shape == (4, 3, 128, 128)


def test_varied_faces_stay_near():
    x = F.interpolate(torch.rand(8, 3, 8, 8) - 0.5, 128, mode="bilinear")
    y = varied(x)
    assert y.shape == x.shape and y.abs().max() <= 1 and 0.01 < (y - x).abs().mean() < 0.2


def test_settings_are_read_by_name_and_kind():
    config = changed(InversionConfig(), ["passes=3", "identity_lr=3e-5"])
    assert config.passes == 3 and config.identity_lr == 3e-5
    with pytest.raises(ValueError, match="no such field"):
        changed(InversionConfig(), ["speed=1"])
