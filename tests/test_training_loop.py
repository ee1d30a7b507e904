"""The training loop: a stopped and resumed run gives the numbers of one that never stopped."""

import json
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from riddle.images import to_tensor
from riddle.machine import keep_memory
from riddle.training.loop import LoopConfig, Task, batches, finish, make_accelerator, rate_share, run, update_average
from riddle.weights import load_tensors

pytestmark = pytest.mark.usefixtures("own_precision")


def faces_of():
    coarse = np.random.default_rng(0).integers(0, 255, (24, 4, 4, 3), dtype=np.uint8)
    return {"faces": torch.from_numpy(coarse.repeat(8, 1).repeat(8, 2))}


@pytest.fixture(scope="module")
def faces():
    return faces_of()


class Noisy(Task):
    """A small task whose steps draw random numbers and keep a counter: all that a resumed run must find."""

    def __init__(self, config):
        torch.manual_seed(config.seed)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        super().__init__(config, make_accelerator(config), "network", network, optimiser)
        self.counters["seen"] = 0.0

    def loss(self, batch, progress):
        x = to_tensor(batch["faces"])
        with self.accelerator.autocast():
            y = self.network(x + 0.1 * torch.randn_like(x))
        self.counters["seen"] += len(x)
        return (y.float() - nn.functional.avg_pool2d(x, 2)).square().mean(), {"progress": progress}

    def validate(self):
        return {"seen": self.counters["seen"]}

    def samples(self):
        return torch.zeros(32, 3, 32, 32)


class Still(Task):
    """A task that draws nothing and whose loss is a mean over rows: parts and processes do not change it."""

    def __init__(self, config):
        torch.manual_seed(config.seed)
        network = nn.Conv2d(3, 4, 3)
        super().__init__(config, make_accelerator(config), "network", network, torch.optim.Adam(network.parameters()))

    def loss(self, batch, progress):
        x = to_tensor(batch["faces"])
        return self.network(x).square().mean(), {"rows": float(len(x))}


def config_of(out, **changes):
    settings = {"steps": 6, "batch": 8, "seed": 5, "log_every": 2, "save_every": 2, "bfloat16": False, "ema": 0.8}
    return LoopConfig(out=str(out), preset="smoke", **(settings | changes))


def train(out, faces, stop=None, kind=Noisy, **changes):
    task = kind(config_of(out, **changes))
    if stop is not None:
        whole = task.step

        def stopped(batch, progress):
            if task.counters["step"] >= stop:
                raise KeyboardInterrupt
            return whole(batch, progress)

        task.step = stopped
    with suppress(KeyboardInterrupt):
        return task, run(task, faces)
    return task, {}


def lines(out):
    kept = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in kept]


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("stop", [4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, faces, bfloat16, stop):
    """Stopped where a checkpoint lies, or a step behind it, which is then done again."""
    whole, _ = train(tmp_path / "whole", faces, bfloat16=bfloat16)
    train(tmp_path / "cut", faces, stop, bfloat16=bfloat16)
    torch.manual_seed(999)  # whatever the interruption leaves behind must not matter
    cut, last = train(tmp_path / "cut", faces, bfloat16=bfloat16)
    assert last["step"] == 6
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, cut.networks[name].state_dict()[key]), f"{name}.{key}"
    assert whole.counters["seen"] == cut.counters["seen"] == 48.0
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_training_moves_the_networks_and_writes_its_files(tmp_path, faces):
    task, last = train(tmp_path, faces)
    fresh = Noisy(task.config)
    for name in ("network", "average"):
        pairs = zip(task.networks[name].parameters(), fresh.networks[name].parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs), name
    assert np.isfinite(last["loss"]) and last["progress"] == pytest.approx((4 + 5) / 2 / 6) and last["val_seen"] == 48
    assert Image.open(tmp_path / "samples" / "0000006.png").size == (8 * 32, 4 * 32)
    assert {p.name for p in tmp_path.iterdir()} == {"state.pt", "log.jsonl", "config.json", "samples"}


def test_a_folder_belongs_to_one_configuration(tmp_path, faces):
    train(tmp_path, faces, steps=2)
    with pytest.raises(ValueError, match=r"another run \(seed differ\).*another --out"):
        train(tmp_path, faces, seed=6)
    assert train(tmp_path, faces, steps=4)[1]["step"] == 4  # a run may be made longer


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path, faces):
    task = Noisy(config_of(tmp_path))
    before = [p.clone() for p in task.network.parameters()]
    loss = task.loss
    task.loss = lambda batch, progress: (loss(batch, progress)[0] * float("nan"), {})
    task.step({"faces": faces["faces"][:8]}, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, task.network.parameters(), strict=True))


def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole(tmp_path, faces):
    batch, gradients, losses = {"faces": faces["faces"][:8]}, [], []
    for parts in (1, 2, 4):
        task = Still(config_of(tmp_path, accumulate=parts))
        numbers = task.gradients(batch, 0.5)
        gradients.append(torch.cat([p.grad.flatten() for p in task.network.parameters()]))
        losses.append(numbers["loss"].item())
        assert numbers["rows"] == 8 / parts
    assert losses == pytest.approx([losses[0]] * 3) and gradients[0].abs().min() > 0
    assert all(torch.allclose(gradients[0], other, rtol=1e-4, atol=1e-7) for other in gradients[1:])
    for parts in (3, 0):
        with pytest.raises(ValueError, match=rf"--batch 8 does not divide into 1 \(processes\) x {parts} \(--acc"):
            Still(config_of(tmp_path, accumulate=parts))


def test_an_evaluation_that_ends_the_program_loses_no_step(tmp_path, faces, monkeypatch):
    def fail(task):
        raise MemoryError

    whole, _ = train(tmp_path / "whole", faces)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Noisy, "validate", fail)
        train(tmp_path / "cut", faces)
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["counters"]["step"] == 2
    cut, last = train(tmp_path / "cut", faces)
    assert last["val_seen"] == 48
    pairs = zip(whole.average.parameters(), cut.average.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(MemoryError):
        finish(cut, "kept", last, {}, evaluate=lambda: fail(cut))
    assert load_tensors(tmp_path / "cut" / "kept.safetensors").keys() == cut.average.state_dict().keys()


def test_two_processes_go_on_to_what_one_would_have_reached(tmp_path, faces):
    """By torchrun, each with its half of a batch in two parts; only the first writes."""
    whole, _ = train(tmp_path / "whole", faces, kind=Still)
    train(tmp_path / "cut", faces, stop=2, kind=Still)
    lines = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from test_training_loop import Still, config_of, faces_of, finish, run",
        f"task = Still(config_of({str(tmp_path / 'cut')!r}, accumulate=2))",
        "assert task.accelerator.num_processes == 2",
        "finish(task, 'kept', run(task, faces_of()), {})",
    )
    (tmp_path / "two.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(tmp_path / "two.py")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"rows": 2.0') == 1
    kept = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["networks"]["average"]
    written = load_tensors(tmp_path / "cut" / "kept.safetensors")  # in half precision
    for name, value in whole.average.state_dict().items():
        assert torch.allclose(kept[name], value, atol=1e-6) and torch.allclose(written[name], value, atol=1e-3), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_a_time_limit_ends_cleanly(tmp_path, faces):
    assert train(tmp_path, faces, steps=1000, minutes=0.0)[1]["step"] == 0
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["counters"]["step"] == 0
    torch.save(state | {"counters": state["counters"] | {"seconds": 90.0}}, tmp_path / "state.pt")
    assert train(tmp_path, faces, steps=1000, minutes=1.5)[1]["step"] == 0  # an earlier part counts


def test_the_rate_warms_up_and_ends_at_zero_and_the_average_is_exponential():
    assert rate_share(0.1, 0.1) == pytest.approx(1) and rate_share(0.05, 0.1) == pytest.approx(0.5)
    assert rate_share(1.0, 0.1) == pytest.approx(0) and rate_share(1.5, 0.1) == pytest.approx(0)
    a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(a.weight, 1.0), nn.init.constant_(b.weight, 3.0)
    update_average(a, b, 0.75)
    assert a.weight.item() == pytest.approx(1.5)


def test_batches_cover_every_item_each_epoch_and_start_anywhere():
    tensors = {"x": torch.arange(10), "y": torch.arange(10) * 2}
    stream = batches(tensors, 3, seed=1, start=0)
    drawn = [next(stream) for _ in range(6)]
    assert all(torch.equal(b["y"], 2 * b["x"]) for b in drawn)
    for epoch in (drawn[:3], drawn[3:]):
        assert len(torch.cat([b["x"] for b in epoch]).unique()) == 9
    assert not torch.equal(drawn[0]["x"], drawn[3]["x"])
    assert torch.equal(next(batches(tensors, 3, seed=1, start=4))["x"], drawn[4]["x"])
    with pytest.raises(ValueError, match="fewer than one batch"):
        next(batches(tensors, 11, 0, 0))


def test_memory_is_kept_where_glibc_allows_it():
    assert keep_memory() == (platform.libc_ver()[0] == "glibc")
