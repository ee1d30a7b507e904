"""The benchmark: what stands beside ours computes the same, and every row says what it measures."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

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
    other = bench.both(small)["nchw"]
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


def test_arithmetic_is_counted_as_two_operations_for_each_product():
    a, b = torch.ones(4, 8), torch.ones(8, 2)
    assert bench.operations(lambda: a @ b) == 2 * 4 * 8 * 2
    assert bench.matmul_rate("float32", 0.0, torch.device("cpu"), side=64) > 0


def test_openvino_stands_beside_where_it_is_installed(monkeypatch, small):
    called = []
    monkeypatch.setattr(bench, "openvino_drawing", lambda w, precision: lambda: called.append((w.shape, precision)))
    forward, backward = bench.generator_rows(small, 1024, 1, 0.0, ["float32"])
    assert forward["openvino"] > 0 and set(called) == {((1, 16), "float32")}
    assert "openvino" not in backward and 0 < forward["share"]


def test_the_result_holds_every_row_and_says_what_was_measured(tmp_path, capsys, command_line):
    result = command_line(bench.main, "--preset", "smoke", "--batch", 2, "--seconds", 0.01, "--out", tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    rows = {row["name"]: row for row in result["rows"]}
    assert set(result["machine"]) == {"device", "threads", "torch"}
    assert all(r["ours"] > 0 and "nchw" not in r for r in rows.values())  # smoke's StyleGAN2 has one form
    assert {"protect, faces of 32 px", "generator at 32 px, forward, float32"} <= set(rows)
    printed = capsys.readouterr().out
    assert "encryptor training: n/a" in printed and all(name in printed for name in rows)


def test_the_chart_shows_what_was_measured_in_several_forms(tmp_path, monkeypatch):
    rows = [{"name": "two forms", "ours": 3.0, "nchw": 2.0}, {"name": "one form", "ours": 5.0}]
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure) or Path(file).touch())
    bench.chart(pd.DataFrame(rows), tmp_path / "bench.png")
    (axis,) = drawn[0].axes
    assert [bar.get_width() for bar in axis.patches] == [1.5, 1.0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["two forms"]
    assert (tmp_path / "bench.png").exists()
