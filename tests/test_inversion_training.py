"""Training of the inversion over eigenfaces: what is tuned, what stays, and what each mode compares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from riddle.models.eigenfaces import to_offsets
from riddle.presets import get
from riddle.training.components import start_from_eigenfaces
from riddle.training.drawn import alike
from riddle.training.gan import GANConfig, GANTask
from riddle.training.inversion import InversionConfig, InversionTask
from riddle.training.loop import LoopConfig, make_accelerator

PRESET = replace(get("smoke"), name="based", base=1, noise=False)


@pytest.fixture(scope="module")
def faces():
    """uint8 (96, 32, 32, 3), smooth in space."""
    draw = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.randn(96, 3, 6, 6, generator=draw), size=32, mode="bicubic") * 40 + 128
    return x.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


class Distance(nn.Module):
    """Stands for LPIPS."""

    def forward(self, a, b):
        return (a - b).abs().mean((1, 2, 3))


def small(x):
    return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(x.float(), 4).flatten(1), dim=1)


def make(faces, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    accelerator = make_accelerator(LoopConfig(out="", bfloat16=False))
    gan = GANTask(PRESET, GANConfig(), accelerator)
    config = InversionConfig(projected=0.0, adversarial_batch=8, mapping_steps=5, **changes)
    task = InversionTask(
        PRESET, config, accelerator, gan, Distance(), small, parse=lambda x: nn.functional.avg_pool2d(x, 4)
    )
    start_from_eigenfaces(gan, task.e, faces, config.mapping_steps)
    return task


def moved(network, before):
    return {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}


def copied(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def test_tuned_together_the_mapping_and_the_components_stay(faces):
    task = make(faces, tune_generator=True)
    before = copied(task.gan.g)
    numbers = task.step({"faces": faces[:8]}, 0.5)
    assert {"structure", "parsing", "cycle", "adv_sample", "adv_recon"} <= numbers.keys()
    changed = moved(task.gan.g, before)
    assert "base.pyramid.shown.0.weight" in changed and "convs.0.conv.weight" in changed
    assert not [k for k in changed if k.startswith("style.")]  # matched to the faces, then frozen
    assert not changed & {"base.basis", "base.mean", "base.deviation", "base.inner"}


def test_with_the_generator_frozen_the_encoder_learns_to_read_published_pictures(faces):
    task = make(faces, tune_generator=False)
    before, encoder = copied(task.gan.g_ema), copied(task.e)
    numbers = task.step({"faces": faces[:8]}, 0.5)
    assert numbers["cycle"] > 0 and not {"adv_sample", "structure"} & numbers.keys()
    assert not moved(task.gan.g_ema, before) and moved(task.e, encoder)
    silent = make(faces, tune_generator=False, cycle=0.0).step({"faces": faces[:8]}, 0.5)
    assert "cycle" not in silent


def test_what_is_misread_is_the_components_alone(faces):
    task = make(faces)
    task.e.eval()
    x = faces[:4].permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        codes = task.e(x)
        assert task.misread(x, codes) == pytest.approx(0, abs=1e-8)
        codes[:, 1:] += 3.0  # slots beyond the base
        assert task.misread(x, codes) == pytest.approx(0, abs=1e-8)
        codes[:, 0] += 0.5
        assert task.misread(x, codes).item() == pytest.approx(0.25, rel=1e-3)
    assert to_offsets(codes).shape == codes.shape


def test_the_critics_may_learn_first(faces):
    task = make(faces, tune_generator=True, critics_first=1)
    g, e, d = copied(task.gan.g), copied(task.e), copied(task.gan.d)
    numbers = task.step({"faces": faces[:8]}, 0.0)
    assert "d_loss" in numbers and "lpips" not in numbers
    assert not moved(task.gan.g, g) and not moved(task.e, e) and moved(task.gan.d, d)
    assert "lpips" in task.step({"faces": faces[:8]}, 0.1) and moved(task.gan.g, g)


def test_with_the_encoder_kept_the_generator_learns_alone_and_draws_what_it_reads(faces):
    task = make(faces, tune_generator=True, tune_encoder=False, alike=1.0)
    before, encoder, average = copied(task.gan.g), copied(task.e), copied(task.e_ema)
    numbers = task.step({"faces": faces[:8]}, 0.5)
    assert {"alike", "cycle", "structure"} <= numbers.keys()
    assert moved(task.gan.g, before) and not moved(task.e, encoder) and not moved(task.e_ema, average)
    shown = torch.rand(2, 3, 32, 32, requires_grad=True)
    task.misread(shown, torch.zeros(2, PRESET.n_latent, PRESET.style_dim)).backward()
    assert shown.grad.abs().max() > 0


def test_mirrored_faces_are_compared_with_their_photo_and_with_each_other():
    def embed(x):  # a face's identity: its first three numbers
        return x.flatten(1)[:, :3]

    def face(*numbers):
        return torch.tensor([*numbers, 0.0]).reshape(1, 1, 2, 2)

    x, y, z = (face(*row) for row in torch.eye(3).tolist())
    photos = torch.cat([x, y])
    assert alike(embed, torch.cat([y, z, z, x]), photos, 6) == 0
    assert alike(embed, torch.cat([x, z, z, x]), photos, 6).item() == pytest.approx(0.25)  # one of four is its photo
    assert alike(embed, torch.cat([y, z, y, x]), photos, 6).item() == pytest.approx(0.5)  # one pair of two
    assert alike(embed, torch.cat([y, z, y, x]), photos, 1).item() == pytest.approx(1.0)
    assert alike(embed, torch.cat([-x, z, z, x]), photos, 6) == 0  # opposite is as good as unrelated
    assert alike(embed, torch.cat([x, y]), photos, 6) == 0  # nothing is drawn twice
