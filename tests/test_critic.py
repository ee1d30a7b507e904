"""The discriminator that looks through a pretrained network."""

from __future__ import annotations

import pytest
import torch

from riddle import zoo
from riddle.training.critic import ProjectedCritic, hinge_discriminator, hinge_generator


@pytest.fixture(scope="module")
def lpips():
    try:
        return zoo.load_lpips("squeeze")
    except zoo.WeightsMissingError as e:
        pytest.skip(str(e))


def test_hinge_losses_against_closed_forms():
    real, fake = [torch.tensor([[2.0, 0.5]]), torch.tensor([[0.0]])], [torch.tensor([[-2.0]]), torch.tensor([[1.0]])]
    # layers: (0 + 0.5) / 2 + 0 and 1 + 2; their mean
    assert hinge_discriminator(real, fake).item() == pytest.approx((0.25 + 3.0) / 2)
    assert hinge_generator(fake).item() == pytest.approx((2.0 - 1.0) / 2)


def test_it_learns_to_tell_and_teaches_a_picture(lpips):
    torch.manual_seed(0)
    critic = ProjectedCritic(lpips, zoom=1.0)
    draw = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.randn(8, 3, 8, 8, generator=draw), size=64, mode="bicubic")
    noisy = smooth + 0.5 * torch.randn(8, 3, 64, 64, generator=draw)
    trained = list(critic.heads.parameters())
    assert all(not p.requires_grad for p in critic.trunk.parameters())
    opt = torch.optim.Adam(trained, 2e-3, betas=(0.0, 0.99))
    losses = []
    for _ in range(12):
        loss = hinge_discriminator(critic(smooth), critic(noisy))
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    x = noisy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(hinge_generator(critic(x)), x)
    step = noisy - 20 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None] / 10
    assert hinge_generator(critic(step)) < hinge_generator(critic(noisy))


def test_logits_are_one_map_a_layer(lpips):
    critic = ProjectedCritic(lpips)
    logits = critic(torch.zeros(2, 3, 64, 64))
    assert len(logits) == 4 and all(x.shape[0] == 2 for x in logits)
    assert logits[0].shape[1] > logits[-1].shape[1]
