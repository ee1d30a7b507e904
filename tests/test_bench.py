"""The benchmark: what stands beside ours computes the same, and every figure names its rivals."""

import json

import pytest
import torch

from riddle import bench
from riddle.models.mobilestylegan import MobileStyleGAN


@pytest.fixture(scope="module")
def small():
    """A MobileStyleGAN with few channels, in which every bias and noise map tells."""
    torch.manual_seed(1)
    channels = {4: 32, 8: 32, 16: 16, 32: 16, 64: 8, 128: 8, 256: 8, 512: 4}
    g = MobileStyleGAN(channels=channels, dim=16).eval().requires_grad_(False)
    for tensor in g.state_dict().values():
        if not tensor.any():
            torch.nn.init.normal_(tensor, std=0.3)
    return g


@pytest.mark.parametrize("side", [128, 256, 1024])
def test_the_other_form_draws_the_same_picture(small, side):
    other = bench.NCHW.like(small)
    w = torch.randn(2, 10 if side == 128 else 18, 16)
    ours = small(w, side)
    assert (other(w, side) - ours).abs().max() < 1e-4 * ours.abs().max()
    assert type(small) is MobileStyleGAN and torch.equal(small(w, side), ours)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, too = small(w, side), other(w, side)
    assert rounded.dtype == too.dtype == torch.float32
    assert (rounded - too).square().mean().sqrt() < 0.05 * ours.std()


def test_its_gradients_are_the_same_too(small):
    gradients = []
    for g in bench.both(small).values():
        w = torch.randn(1, 10, 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
        g(w).square().mean().backward()
        gradients.append(w.grad)
    ours, other = gradients
    assert torch.allclose(ours, other, atol=1e-4 * ours.abs().max().item())


def test_rivals_are_called_in_turn_and_the_first_call_does_not_count():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    rates = bench.rates(works, 0.0, torch.device("cpu"))
    assert calls == ["a", "b"] * 4 and set(rates) == {"a", "b"} and min(rates.values()) > 0


def test_a_row_of_the_generator_counts_its_arithmetic(small):
    peaks = {"bfloat16": 10.0, "float32": 20.0}
    rows = bench.generator_rows(small, 128, 2, 0.0, peaks)
    assert [r.name.split(", ", 1)[1] for r in rows] == [
        "forward, bfloat16", "forward, float32", "forward and backward, bfloat16", "forward and backward, float32",
    ]  # fmt: skip
    w = small.sample(1)
    one = bench.gflop(lambda: small(w))
    for r, peak in zip(rows, [10, 20, 10, 20], strict=True):
        assert r.unit == "faces/s" and r.nchw > 0 and r.openvino is None and r.share == r.gflops / peak
        if "backward" not in r.name:
            assert r.gflops / r.ours == pytest.approx(one, rel=0.02)
        else:
            assert r.gflops / r.ours > 1.5 * one


def test_openvino_is_asked_only_where_it_is_installed(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(bench.importlib, "import_module", missing)
    assert bench.openvino_drawing(torch.zeros(1, 512), False) is None


def test_openvino_draws_the_same_picture():
    pytest.importorskip("openvino")
    from riddle.networks import published_generator

    g = published_generator()
    w = g.map(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)))
    drawn = torch.from_numpy(bench.openvino_drawing(w, False)()[0])
    assert (drawn - g(g.broadcast(w), 1024)).abs().max() < 1e-3


def test_the_result_holds_every_row_and_says_what_was_measured(tmp_path, capsys):
    result = bench.main(["--preset", "smoke", "--batch", "2", "--seconds", "0.01", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert (tmp_path / "figures" / "bench.png").stat().st_size > 1000
    rows = {row["name"]: row for row in result["rows"]}
    assert {"device", "threads", "torch"} <= set(result["machine"])
    assert all(r["ours"] > 0 and r["nchw"] is None for r in rows.values())
    assert {"protect, faces of 32 px", "generator at 32 px, forward, float32"} <= set(rows)
    forward = rows["generator at 32 px, forward, float32"]
    peak = result["matmul_gflops"]["float32"]
    assert forward["share"] == pytest.approx(forward["gflops"] / peak, rel=0.01, abs=1e-3)
    printed = capsys.readouterr().out
    assert "of the matrix-product rate" in printed and "encryptor training: n/a" in printed
