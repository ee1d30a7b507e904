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
