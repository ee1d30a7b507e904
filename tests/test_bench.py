"""The benchmark: the published formulation computes the same, and every figure stands beside it."""

import json
from dataclasses import replace

import pytest
import torch

from riddle import bench
from riddle.models.stylegan2 import Generator
from riddle.presets import get


@pytest.mark.parametrize("slots", [0, 4])
def test_the_published_formulation_computes_the_same(slots):
    """With eigenfaces under it too, without noise as with it; and ours stays as it was."""
    torch.manual_seed(1)
    g = Generator.of(replace(get("smoke"), base=slots, noise=not slots)).eval()
    for name, tensor in g.state_dict().items():  # zeros would hide biases, noise and components
        if tensor.is_floating_point() and not tensor.any():
            torch.nn.init.normal_(tensor, std=0.3)
            assert tensor.any(), name
    w = torch.randn(2, g.n_latent, g.style_dim)
    with torch.no_grad():
        ours = g(w)
        assert torch.allclose(bench.naive_like(g)(w), ours, atol=1e-3)
        assert torch.equal(g(w), ours) and not any(isinstance(m, bench.NaiveToRGB) for m in g.modules())


def test_every_figure_stands_beside_the_published_formulation(tmp_path, capsys):
    result = bench.main(["--preset", "smoke", "--batch", "2", "--seconds", "0.01", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert (tmp_path / "figures" / "bench.png").stat().st_size > 1000
    rows = {row["name"]: row for row in result["rows"]}
    forward = rows["generator, forward, float32"]
    assert {r["unit"] for r in rows.values()} == {"images/s", "steps/s", "faces/s"}
    assert all(r["ours"] > 0 and r["naive"] > 0 for name, r in rows.items() if "detection" not in name)
    peak = result["matmul_gflops"]["float32"]
    assert forward["gflops"] > 0 and forward["share"] == pytest.approx(forward["gflops"] / peak, rel=0.01, abs=1e-3)
    assert "of the matrix-product rate" in capsys.readouterr().out
