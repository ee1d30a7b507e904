"""Growing networks to twice their resolution, training on, and the state in parts."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from riddle.demo import RandomFeatures
from riddle.models.inversion import Encoder
from riddle.models.stylegan2 import Discriminator, Generator
from riddle.presets import get
from riddle.training import grow as growing
from riddle.training import growth, loan, loop, parts
from riddle.training.grow import GrowConfig, build, grow, load_faces, load_small, train
from riddle.training.inversion import InversionConfig
from riddle.training.loop import LoopConfig, make_accelerator
from riddle.training.parts import PartsError, join_state, slim, split_state
from riddle.training.throughput import Meter
from riddle.zoo import load_tensors, save_tensors

SMOKE = get("smoke")
LARGE = replace(  # the 32 px layers widen, a block is added
    SMOKE, name="large", resolution=64, channels={4: 32, 8: 32, 16: 32, 32: 24, 64: 16}, levels=(3, 3, 4)
)
BASE, LARGE_BASE = (replace(p, base=2, noise=False) for p in (SMOKE, LARGE))


@pytest.fixture(autouse=True)
def own_precision():
    """accelerate fixes the precision once a process; each test here, and each after, chooses anew."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def faces():
    """uint8 (48, 64, 64, 3), smooth."""
    coarse = torch.rand(48, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=64, mode="bicubic", align_corners=False)
    return smooth.clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).contiguous()


def stirred(network, seed=0):
    """A network none of whose weights and statistics stands at its initial zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point() and "kernel" not in name and "running_var" not in name:
                value.add_(0.2 * torch.randn(value.shape, generator=draw))
    return network.eval()


def upsampled(x):
    """The 4-tap binomial filter on x with zeros between its samples, written out: (N, C, H, W) -> twice the size."""
    taps = np.array([1, 3, 3, 1]) / 4

    def along(a):  # the last axis: out[2i] = (3 x[i] + x[i-1]) / 4, out[2i+1] = (3 x[i] + x[i+1]) / 4
        padded = np.pad(a, [(0, 0)] * (a.ndim - 1) + [(1, 1)])
        out = np.zeros((*a.shape[:-1], 2 * a.shape[-1]))
        out[..., 0::2] = taps[1] * a + taps[0] * padded[..., :-2]
        out[..., 1::2] = taps[2] * a + taps[3] * padded[..., 2:]
        return out

    return along(along(x.numpy().astype(float)).swapaxes(2, 3)).swapaxes(2, 3)


@pytest.mark.parametrize("small, large", [(SMOKE, LARGE), (BASE, LARGE_BASE)], ids=["plain", "eigenfaces"])
def test_a_grown_generator_draws_the_small_picture_upsampled(small, large):
    torch.manual_seed(0)
    g = stirred(Generator.of(small))
    big = growth.grow_generator(g.state_dict(), small, large).eval()
    w = torch.randn(4, small.n_latent, small.style_dim)
    codes = growth.grow_codes(w, large.n_latent)
    with torch.no_grad():
        wanted = upsampled(g(w))
        made = big(codes)
        assert made.shape == (4, 3, 64, 64) and np.abs(wanted).max() > 0.1
        assert np.abs(made.numpy() - wanted).max() < 1e-4
        assert np.abs(growth.upsample(g(w)).numpy() - wanted).max() < 1e-5
        assert torch.equal(big.map(w[:, 0]), g.map(w[:, 0]))
    if small.base:
        assert torch.equal(big.offsets[:8], g.offsets) and torch.equal(big.offsets[8:], g.offsets[[7, 7]])
    big(codes).square().mean().backward()
    assert big.to_rgbs[-1].conv.weight.grad.abs().max() > 0  # the new block can start to learn
    assert big.convs[-3].conv.weight.grad[:, :16, 16:].abs().max() > 0  # so can what the new channels say


def test_bundled_presets_grow_slot_by_slot():
    mini, face = get("mini"), get("face128")
    assert growth.doublings(mini, face) == 1 and growth.doublings(face, face) == 0
    assert growth.slot_sources(mini.n_latent, face.n_latent) == [*range(10), 9, 9]
    w = torch.arange(2 * 10 * 1.0).reshape(2, 10, 1)
    assert growth.grow_codes(w, 12)[0, :, 0].tolist() == [*range(10), 9, 9]
    assert torch.equal(growth.grow_codes(w, 10), w)


def test_a_grown_discriminator_judges_as_the_small_one(faces):
    torch.manual_seed(0)
    d = stirred(Discriminator(32, SMOKE.channels))
    big = growth.grow_discriminator(d.state_dict(), SMOKE, LARGE).eval()
    real = faces.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        wanted, made = d(F.avg_pool2d(real, 2)), big(real)
    assert np.corrcoef(wanted, made)[0, 1] > 0.99
    assert (made - wanted).abs().mean() < 0.15 * wanted.std()
    big(real).sum().backward()
    assert big.convs[1].conv2.weight.grad[:16].abs().max() > 0


def test_what_cannot_grow_is_refused(tmp_path):
    for other in (replace(LARGE, framing="ffhq"), replace(LARGE, style_dim=32), replace(LARGE, base=2)):
        with pytest.raises(ValueError, match="does not grow into large"):
            growth.doublings(SMOKE, other)
    with pytest.raises(ValueError, match="must not shrink"):
        growth.doublings(LARGE, SMOKE)
    state = Generator.of(SMOKE).state_dict()
    with pytest.raises(ValueError, match=r"convs\.\d.*does not grow into"):
        growth.grow_generator(state, SMOKE, replace(LARGE, channels={**LARGE.channels, 32: 8}))
    with pytest.raises(ValueError, match="extra has no place"):
        growth.grow_generator({**state, "extra": torch.zeros(1)}, SMOKE, LARGE)
    save_tensors(tmp_path / "generator.safetensors", state)
    with pytest.raises(FileNotFoundError, match="encoder.safetensors"):
        load_small(tmp_path)
    save_tensors(tmp_path / "encoder.safetensors", Encoder(SMOKE).state_dict())
    with pytest.raises(ValueError, match="pass --from-preset"):
        load_small(tmp_path)
    assert load_small(tmp_path, "smoke")[0] is SMOKE


def test_the_encoder_learns_the_small_ones_codes(faces, tmp_path):
    accelerator = make_accelerator(LoopConfig(out="", bfloat16=False))
    torch.manual_seed(0)
    small = Encoder(SMOKE)
    with torch.no_grad():
        for _ in range(20):  # statistics of its batch norms
            small(F.avg_pool2d(faces.permute(0, 3, 1, 2).float() / 127.5 - 1, 2))
    grown = growth.grow_encoder(small.state_dict(), LARGE)
    assert torch.equal(grown.body[0].res_layer[1].weight, small.body[0].res_layer[1].weight)
    numbers = growth.teach(grown, small, faces, 30, 8, accelerator)
    assert numbers["steps"] == 30
    assert numbers["after"] < 0.6 * numbers["before"]
    assert growth.teach(grown, small, faces, 40, 8, accelerator, seconds=0.0)["steps"] == 0


def test_averaging_heads_see_the_small_map():
    torch.manual_seed(0)
    preset, large = replace(SMOKE, encoder_flat=2), replace(LARGE, encoder_flat=2)
    small = stirred(Encoder(preset))
    grown = growth.grow_encoder(small.state_dict(), large)
    x = torch.randn(2, SMOKE.encoder_head, 8, 8)
    gained = len(small.styles[3].convs)
    assert torch.allclose(grown.styles[3].convs[gained](x), F.avg_pool2d(x, 2), atol=1e-6)
    x = torch.randn(2, SMOKE.encoder_fpn, 4, 4)  # the first slots' heads had a 1 x 1 convolution alone
    wanted = small.styles[0].convs[1](F.avg_pool2d(x, 2)) - small.styles[0].convs[1].bias[:, None, None]
    assert torch.allclose(grown.styles[0].convs[1](x), wanted, atol=1e-5)
    assert torch.equal(grown.styles[9].linear.weight, small.styles[7].linear.weight)


# ---- training on


def published(folder, preset=SMOKE):
    torch.manual_seed(3)
    about = {"preset": preset.name}
    save_tensors(folder / "generator.safetensors", stirred(Generator.of(preset)).state_dict(), about)
    save_tensors(folder / "encoder.safetensors", Encoder(preset).state_dict(), about)
    save_tensors(folder / "discriminator.safetensors", Discriminator(32, preset.channels).state_dict(), about)
    return folder


def start(tmp_path, faces, accelerator):
    """Networks of LARGE grown from SMOKE's, in tmp_path/start."""
    small, old = load_small(published(tmp_path / "small"))
    return grow(old, small, LARGE, faces, tmp_path / "start", accelerator, steps=2, batch=4)


def trainer(tmp_path, faces, accelerator):
    torch.manual_seed(0)
    features = RandomFeatures()
    config = InversionConfig(tune_generator=True, projected=0.0, progressive=0.0, adversarial_batch=4)
    return build(LARGE, tmp_path / "start", config, accelerator, features, features.embed, faces)


def test_growing_writes_what_inversion_training_starts_from(tmp_path, faces):
    accelerator = make_accelerator(LoopConfig(out="", bfloat16=False))
    numbers = start(tmp_path, faces, accelerator)
    assert numbers["difference"] < 1e-4
    told = json.loads((tmp_path / "start" / "grown.json").read_text())
    assert told["grown_from"] == "smoke" and told["codes_steps"] == 2
    task = trainer(tmp_path, faces, accelerator)
    stored = load_tensors(tmp_path / "start" / "generator.safetensors")
    assert torch.equal(task.gan.g_ema.convs[7].conv.weight, stored["convs.7.conv.weight"])
    assert torch.equal(task.gan.g.to_rgbs[3].conv.weight, torch.zeros_like(stored["to_rgbs.3.conv.weight"]))


def test_a_run_resumed_from_parts_equals_an_uninterrupted_one(tmp_path, faces, capsys, monkeypatch):
    accelerator = make_accelerator(LoopConfig(out="", bfloat16=False))
    start(tmp_path, faces, accelerator)
    clock = SimpleNamespace(now=0.0, perf_counter=time.perf_counter)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(growing, "time", clock)
    monkeypatch.setattr(loop, "time", clock)

    def go(out, minutes, save_minutes):
        task = trainer(tmp_path, faces, accelerator)
        task.meter, step = Meter(accelerator, seconds=0.01), task.step

        def a_minute(batch, progress):
            clock.now += 60
            return step(batch, progress)

        task.step = a_minute
        config = GrowConfig(tmp_path / out, minutes, steps=4, batch=4, log_every=1, save_minutes=save_minutes)
        return task, train(task, faces, config, accelerator, clock.now)

    whole, last = go("whole", 100, 100)
    assert last["step"] == 4 and last["images_per_s"] == whole.meter.speed(4).images_per_s > 0
    assert go("cut", 2.5, 2)[1]["step"] == 3  # two saves: after two minutes, and at the end
    (tmp_path / "cut" / "state.pt").unlink()
    torch.manual_seed(99)
    cut, last = go("cut", 2.5, 2)
    assert last["step"] == 4 and np.isfinite(last["loss"])
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, cut.networks[name].state_dict()[key]), f"{name}.{key}"
    assert cut.gan.g.to_rgbs[-1].conv.weight.abs().max() > 0  # the new block has begun to draw
    made = {p: load_tensors(tmp_path / "cut" / f"{p}.safetensors") for p in growing.PARTS}
    Generator.of(LARGE).load_state_dict(made["generator"])
    Encoder(LARGE).load_state_dict(made["encoder"])
    Discriminator(64, LARGE.channels).load_state_dict(made["discriminator"])
    speed = whole.meter.speed(4)
    assert speed.gflops > 0 and 0 < speed.share and "of the matrix-product rate" in capsys.readouterr().out


def test_no_minutes_change_nothing(tmp_path, faces):
    accelerator = make_accelerator(LoopConfig(out="", bfloat16=False))
    start(tmp_path, faces, accelerator)
    task = trainer(tmp_path, faces, accelerator)
    config = GrowConfig(tmp_path / "run", minutes=0.0, batch=4)
    assert train(task, faces, config, accelerator, 0.0)["step"] == 0
    assert not (tmp_path / "run" / "generator.safetensors").exists()


def test_the_counted_step_agrees_with_a_count_by_hand():
    accelerator = make_accelerator(LoopConfig(out="", bfloat16=False))
    meter = Meter(accelerator, seconds=0.01)
    with meter.count() as counter:
        F.conv2d(torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3), padding=1)
    meter.counted(counter)
    assert meter.step_gflop == pytest.approx(2 * 2 * 5 * 64 * 3 * 9 / 1e9)
    assert meter.speed(2) is None
    meter.add(meter.start() - 0.5)
    speed = meter.speed(2)
    assert speed.images_per_s == pytest.approx(4, rel=0.1) and meter.peak > 0.1
    assert speed.share == pytest.approx(meter.step_gflop * 2 / meter.peak, rel=0.1)


def test_faces_come_from_arrays_of_the_right_size_only(tmp_path, faces):
    np.save(tmp_path / "f.npy", faces.numpy())
    assert torch.equal(load_faces(tmp_path / "f.npy", LARGE), faces)
    with pytest.raises(ValueError, match=r"f\.npy holds uint8 \(48, 64, 64, 3\), not .*128, 128"):
        load_faces(tmp_path / "f.npy", get("face128"))


# ---- parts


@pytest.fixture
def state_file(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"x": torch.arange(50_000.0), "step": 7}, path)
    return path


def test_a_state_comes_back_from_its_parts(tmp_path, state_file):
    made = split_state(state_file, tmp_path / "parts", limit=60_000)
    assert len(made) == 4 and all(p.stat().st_size <= 60_000 for p in made)
    join_state(tmp_path / "parts", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == state_file.read_bytes()
    torch.save({"x": torch.zeros(30_000)}, state_file)  # a later, smaller state takes the place of the first
    later = split_state(state_file, tmp_path / "parts", limit=60_000)
    assert sorted((tmp_path / "parts").glob("*.part")) == sorted(later)
    join_state(tmp_path / "parts", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == state_file.read_bytes()


@pytest.mark.parametrize("harm", ["cut", "altered", "missing", "manifest"])
def test_damaged_parts_are_refused_and_the_state_kept(tmp_path, state_file, harm):
    made = split_state(state_file, tmp_path / "parts", limit=60_000)
    data = bytearray(made[1].read_bytes())
    data[100] ^= 1
    if harm == "cut":
        made[1].write_bytes(made[1].read_bytes()[:-1])
    elif harm == "altered":
        made[1].write_bytes(data)
    elif harm == "missing":
        made[1].unlink()
    else:
        (tmp_path / "parts" / parts.MANIFEST).write_text("{}")
    kept = tmp_path / "kept.pt"
    kept.write_bytes(b"kept")
    with pytest.raises(PartsError, match="no manifest" if harm == "manifest" else made[1].name):
        join_state(tmp_path / "parts", kept)
    assert kept.read_bytes() == b"kept"


def test_a_half_written_set_leaves_the_one_before(tmp_path, state_file, monkeypatch):
    split_state(state_file, tmp_path / "parts", limit=60_000)
    before, write, count = state_file.read_bytes(), parts._write, []

    def stops(path, data):
        count.append(path)
        if len(count) == 3:
            raise OSError("no space left")
        write(path, data)

    torch.save({"x": torch.ones(50_000), "step": 8}, state_file)
    monkeypatch.setattr(parts, "_write", stops)
    with pytest.raises(OSError, match="no space"):
        split_state(state_file, tmp_path / "parts", limit=60_000)
    monkeypatch.undo()
    join_state(tmp_path / "parts", tmp_path / "back.pt")
    assert (tmp_path / "back.pt").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="no complete set"):
        join_state(tmp_path / "elsewhere", tmp_path / "back.pt")


def test_a_slim_state_keeps_what_learns(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
    average = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
    average[1].load_state_dict(net[1].state_dict())
    opt = torch.optim.Adam(net.parameters())
    net(torch.randn(8, 64)).square().sum().backward()
    opt.step()
    state = {
        "networks": {"g": net.state_dict(), "g_ema": average.state_dict()},
        "optimisers": {"g": opt.state_dict()}, "counters": {"step": 3, "seconds": 1.5}, "step": 3,
    }  # fmt: skip
    torch.save(state, tmp_path / "whole.pt")
    torch.save(slim(state), tmp_path / "slim.pt")
    assert (tmp_path / "slim.pt").stat().st_size < 0.7 * (tmp_path / "whole.pt").stat().st_size
    back = torch.load(tmp_path / "slim.pt", weights_only=True)
    assert back["counters"] == state["counters"] and back["step"] == 3
    assert all(torch.equal(v, back["networks"]["g"][k]) for k, v in net.state_dict().items())
    average.load_state_dict(back["networks"]["g_ema"])
    assert torch.allclose(average[0].weight, state["networks"]["g_ema"]["0.weight"], rtol=0.01)
    again = torch.optim.Adam(net.parameters())
    again.load_state_dict(back["optimisers"]["g"])
    moments, wanted = again.state[net[0].weight], opt.state[net[0].weight]
    assert moments["exp_avg"].dtype == torch.float32 and moments["step"] == 1
    assert torch.allclose(moments["exp_avg_sq"], wanted["exp_avg_sq"], rtol=0.01)


# ---- the plan


def test_the_plan_fits_the_loan_and_its_commands_exist(capsys):
    calls = loan.plan()
    lent = [c for c in calls if c.minutes]
    assert len(lent) <= loan.CALLS == 4 and all(c.minutes <= loan.CALL == 10 for c in lent)
    assert sum(c.minutes for c in lent) <= loan.LOAN == 30
    order = [step.what for c in calls for step in c.steps]
    expected = ["unpack", "grow, then train on", "joint tuning", "codes", "encryptor", "data-free", "publish"]
    assert [w for w in order if w in expected] == expected
    for step in (s for c in calls for s in c.steps):
        module = importlib.import_module(step.command[0])
        verb = ["unpack"] if step.command[1] == "unpack" else []
        with pytest.raises(SystemExit) as stop:
            module.main([*verb, "--help"])
        told = capsys.readouterr().out
        assert stop.value.code == 0
        for flag in (word for word in step.command if word.startswith("--")):
            assert flag in told, f"{step.command[0]} knows no {flag}"
        for flag, value in zip(step.command, step.command[1:], strict=False):
            if flag == "--minutes" and step.minutes:
                assert float(value) <= step.minutes
    growing.main(["plan", "--out", "x/y"])
    text = capsys.readouterr().out
    assert "python -m riddle.training.grow --preset face128" in text and "--out x/y" in text
