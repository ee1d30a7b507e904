"""The encoder that goes with the bundled generator: what it reads, its passes, and how it learns."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from riddle.losses import PerceptualFeatures, random_lpips
from riddle.models.curvature import Curvature, descend
from riddle.models.inversion import build_encoder
from riddle.models.mobilefacenet import MobileFaceNet
from riddle.presets import get
from riddle.training import perception
from riddle.training.frozen import LossNetworks
from riddle.training.inversion import InversionConfig, InversionTask
from riddle.training.loop import make_accelerator

pytestmark = pytest.mark.usefixtures("own_precision")


def faces(n=2):
    return torch.rand(n, 3, 128, 128, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_passes_go_on_from_what_is_drawn(encoder, narrow):
    """Two passes by hand: each adds to z what is missing from the picture of the one before."""
    x, z = faces(), torch.zeros(2, 10, 32)
    for count in (1, 2):
        z = z + encoder.missing(x, narrow(encoder.to_w(z)).clamp(-1, 1))
        read, shown = encoder.read(x, count)
        assert torch.allclose(read, z, atol=1e-4) and torch.allclose(shown, encoder.draw(z), atol=2e-3)
        encoder.passes.fill_(count)
        w = encoder(x)
        assert w.shape == (2, 10, 32) and torch.allclose(w, encoder.to_w(z), atol=1e-4)
    with pytest.raises(ValueError, match="faces must be"):
        encoder(x[:, :1])


def nearness(encoder, x, w):
    """The encoder's own distance between faces and what codes draw, (N,)."""
    return (encoder.compared(x) - encoder.compared(encoder._generator[0](w))).square().sum(1)


def test_steps_of_refinement_come_nearer(encoder, narrow):
    """Face by face, by the encoder's own distance; and forward takes as many as the buffer says."""
    x = narrow(narrow.sample(3, seed=5)).clamp(-1, 1)
    with torch.no_grad():
        z = encoder.read(x, 1)[0]
    encoder.curvature.measure(lambda z: encoder.compared(narrow(encoder.to_w(z))), z, probes=2)
    w = [encoder(x, steps) for steps in (0, 3, 6)]
    near = torch.stack([nearness(encoder, x, code) for code in w])
    assert torch.allclose(w[0], encoder.to_w(z), atol=1e-4)
    assert (near[1] < near[0]).all() and (near[2] < 0.9 * near[0]).all()
    encoder.steps.fill_(3)
    assert torch.equal(encoder(x), w[1])
    alone = encoder(x[1:2])
    assert (alone - w[1][1:2]).norm() < 0.1 * (w[0] - w[1])[1].norm()  # a face's code does not depend on its batch


def test_curvature_is_that_of_a_squared_distance():
    """Of |A z|^2 it is A^T A: its largest eigenvectors, and gradients divided by it go straight to the goal."""
    torch.manual_seed(0)
    a = torch.diag(torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1, 0.03])) @ torch.linalg.qr(torch.randn(6, 6))[0]
    c = Curvature(2, 3).measure(lambda z: z.flatten(1) @ a.T, torch.randn(500, 2, 3), probes=20, batch=100)
    wanted = torch.linalg.eigvalsh(a.T @ a).flip(0)
    assert torch.allclose(c.size, wanted, rtol=0.1)
    assert (c.directions[0] @ torch.linalg.eigh(a.T @ a)[1][:, -1]).abs() > 0.99
    g = torch.randn(4, 2, 3)
    exact = (g.flatten(1) @ torch.linalg.inv(a.T @ a + 0.5 * torch.eye(6))).view_as(g) * 0.5
    assert torch.allclose(c.solve(g, 0.5), exact, atol=0.03)
    z = torch.randn(4, 2, 3, requires_grad=True)
    c.equalise(z, 0.5).backward(g)
    assert torch.allclose(z.grad, c.solve(g, 0.5))


def test_a_step_that_leads_away_is_taken_back():
    """A distance with a cliff: whatever the steps do, no face ends further away than it began."""
    cliff = lambda z: 50 * z.square().sum((1, 2)) + 1e4 * (z < -0.5).sum((1, 2))  # noqa: E731
    z = torch.full((3, 2, 3), 1.0) * torch.tensor([1.0, 0.1, 0.0])[:, None, None]
    for steps in (1, 2, 5, 20):
        found = descend(cliff, z, Curvature(2, 3), steps)
        assert (cliff(found) <= cliff(z)).all()
    assert (cliff(found)[:2] < cliff(z)[:2]).all()


def test_each_part_of_a_perception_learns_from_its_teacher_s_features(narrow, monkeypatch):
    """Alone, a part reads what the teacher's parts before it give; a step brings the student nearer."""
    torch.manual_seed(5)
    teacher = PerceptualFeatures.of(random_lpips())
    monkeypatch.setattr(perception, "load_lpips", lambda net: None)
    monkeypatch.setattr(PerceptualFeatures, "of", lambda net: copy.deepcopy(teacher))
    config = perception.PerceptionConfig(out="unused", faces="", val="", bfloat16=False)
    held_out = torch.randint(0, 256, (4, 128, 128, 3), dtype=torch.uint8)
    task = perception.PerceptionTask(config, make_accelerator(config), narrow, held_out)
    task.network.trunk.load_state_dict(teacher.trunk.state_dict())
    raw = teacher.raw(faces())
    for made, wanted in zip(task.parts_alone(faces(), raw), raw, strict=True):
        assert torch.allclose(made, wanted, atol=1e-5)
    assert task.step({"faces": held_out}, 0.01)["loss"] < 1e-5  # the same network: nothing to learn
    task.network.trunk.load_state_dict(random_lpips().net.state_dict())
    losses = [task.step({"faces": held_out}, share)["apart"].item() for share in [0.2] * 8 + [0.8] * 4]
    assert losses[7] < 0.8 * losses[0] and all(math.isfinite(x) for x in losses)
    assert set(task.evaluate()) == {"error", "correlation", "distance", "lpips"}


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


def test_a_trained_recogniser_is_the_frozen_one_with_gradients_of_its_weights():
    """Those of the picture are the same: the trained one's are PyTorch's own."""
    torch.manual_seed(2)
    frozen, x = MobileFaceNet(), torch.rand(2, 3, 112, 112) * 2 - 1
    trained, through = copy.deepcopy(frozen).requires_grad_(True), []
    assert torch.allclose(frozen(x), trained(x), atol=1e-5)
    for net in (frozen, trained):
        picture = x.clone().requires_grad_()
        net(picture)[:, 0].sum().backward()
        through.append(picture.grad)
    assert torch.allclose(*through, atol=1e-5 * through[1].abs().max())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())


@pytest.mark.parametrize("identity_lr", [0.0, 1e-4])
def test_a_step_trains_the_encoder_and_its_recogniser_where_asked(narrow, identity_lr):
    frozen = LossNetworks(embed=lambda x: F.normalize(F.adaptive_avg_pool2d(x, 4).flatten(1), dim=1))
    lpips = lambda a, b: (a - b).square().mean((1, 2, 3))  # noqa: E731
    held_out = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    config = InversionConfig(out="unused", data="", passes=2, identity_lr=identity_lr, bfloat16=False)
    encoder = build_encoder(replace(get("mobile"), style_dim=32, encoder_fpn=16, encoder_head=8), narrow)
    task = InversionTask(config, make_accelerator(config), encoder, narrow, frozen, lpips, held_out)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    numbers = task.step({"faces": held_out}, 0.5)
    moved = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("identity.") for k in moved) == bool(identity_lr)
    assert any(k.startswith("body.") for k in moved) and any(k.startswith("mix.") for k in moved)
    for name in ("l2", "lpips", "identity", "length", "delta", "known"):
        assert torch.isfinite(numbers[name])
    assert set(task.evaluate()) == {
        "lpips", "mse", "cosine", "spread", "z_std", "lpips_refined", "cosine_refined",
    }  # fmt: skip
    assert task.average._generator[0] is narrow and task.average.steps == config.refine
    task.measure_curvature(held_out)
    assert task.average.curvature.size[0] > 0
    assert task.samples().shape == (4, 3, 128, 128)
