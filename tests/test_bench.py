"""The benchmark: the published formulation computes the same, and every figure stands beside it."""

import json

import pytest
import torch

from riddle import bench
from riddle.models.mobilestylegan import MobileStyleGAN
from riddle.models.stylegan2 import Generator
from riddle.presets import get


def small():
    channels = {4: 32, 8: 32, 16: 16, 32: 16, 64: 8, 128: 8, 256: 8, 512: 4}
    return MobileStyleGAN(cuts=(128,), channels=channels, dim=16)


@pytest.mark.parametrize("make", [lambda: Generator.of(get("smoke")), small], ids=["stylegan2", "mobilestylegan"])
def test_the_published_formulation_computes_the_same(make):
    """Of every layer; and ours stays as it was."""
    torch.manual_seed(1)
    g = make().eval()
    for name, tensor in g.state_dict().items():  # zeros would hide biases and noise
        if tensor.is_floating_point() and not tensor.any():
            torch.nn.init.normal_(tensor, std=0.3)
            assert tensor.any(), name
    w = torch.randn(2, g.n_latent, g.style_dim)
    for side in (16, 32) if isinstance(g, Generator) else (128, 1024):
        with torch.no_grad():
            ours = g(w, side)
            assert torch.allclose(bench.naive_like(g)(w, side), ours, atol=1e-3 * ours.abs().max().item())
            assert torch.equal(g(w, side), ours)
    assert not {type(m) for m in g.modules()} & set(bench.NAIVE.values())


def test_every_figure_stands_beside_the_published_formulation(tmp_path, capsys):
    result = bench.main(["--preset", "smoke", "--batch", "2", "--seconds", "0.01", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert (tmp_path / "figures" / "bench.png").stat().st_size > 1000
    rows = {row["name"]: row for row in result["rows"]}
    forward = rows["generator at 32 px, forward, float32"]
    assert {r["unit"] for r in rows.values()} == {"images/s", "faces/s"}
    assert all(r["ours"] > 0 and r["naive"] > 0 for name, r in rows.items() if "detection" not in name)
    peak = result["matmul_gflops"]["float32"]
    assert forward["gflops"] > 0 and forward["share"] == pytest.approx(forward["gflops"] / peak, rel=0.01, abs=1e-3)
    assert "of the matrix-product rate" in capsys.readouterr().out
