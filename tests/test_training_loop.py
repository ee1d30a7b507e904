"""The training loop: a stopped and resumed run gives the numbers of one that never stopped."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn

from riddle.training.loop import (
    LoopConfig,
    average_gradients,
    batches,
    faces_to_float,
    hash_seed,
    make_accelerator,
    run,
    save_grid,
    step_optimiser,
    update_average,
    write_atomically,
)


@pytest.fixture(autouse=True)
def own_precision():
    """accelerate fixes the precision once a process; each test here, and each after, chooses anew."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (24, 4, 4, 3), dtype=np.uint8)
    return {"faces": torch.from_numpy(coarse.repeat(8, 1).repeat(8, 2))}


class Noisy:
    """A small task whose steps draw random numbers, keep a counter and an average: all that a resumed run must find."""

    def __init__(self, accelerator):
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.accelerator, self.optimiser = accelerator, torch.optim.Adam(self.network.parameters(), 1e-2)
        self.networks = {"network": self.network, "average": self.average}
        self.optimisers, self.counters = {"network": self.optimiser}, {"seen": 0.0}

    def step(self, batch, progress):
        x = faces_to_float(batch["faces"])
        with self.accelerator.autocast():
            y = self.network(x + 0.1 * torch.randn_like(x))
        loss = (y.float() - nn.functional.avg_pool2d(x, 2)).square().mean() * (1 + progress)
        self.accelerator.backward(loss)
        step_optimiser(self.accelerator, self.optimiser)
        update_average(self.average, self.network, 0.8)
        self.counters["seen"] += len(x)
        return {"loss": loss, "progress": progress}

    def samples(self):
        return torch.zeros(32, 3, 32, 32)


def train(out, faces, steps, bfloat16=False):
    config = LoopConfig(out=str(out), steps=6, batch=8, seed=5, log_every=2, save_every=2, bfloat16=bfloat16)
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    task = Noisy(accelerator)
    if steps < config.steps:
        whole = task.step

        def stopped(batch, progress):
            if progress * config.steps >= steps:
                raise KeyboardInterrupt
            return whole(batch, progress)

        task.step = stopped
        with pytest.raises(KeyboardInterrupt):
            run(task, faces, config, accelerator)
        return task, {}
    return task, run(task, faces, config, accelerator)


def lines(out):
    kept = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in kept]


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("stop", [4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, faces, bfloat16, stop):
    """Stopped where a checkpoint lies, or a step behind it, which is then done again."""
    whole, _ = train(tmp_path / "whole", faces, 6, bfloat16)
    train(tmp_path / "cut", faces, stop, bfloat16)
    # Whatever the interruption leaves behind must not matter: neither random state nor other weights.
    torch.manual_seed(999)
    cut, last = train(tmp_path / "cut", faces, 6, bfloat16)
    assert last["step"] == 6
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, cut.networks[name].state_dict()[key]), f"{name}.{key}"
    assert whole.counters == cut.counters == {"seen": 48.0}
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


def test_training_moves_the_networks_and_writes_its_files(tmp_path, faces):
    task, last = train(tmp_path, faces, 6)
    torch.manual_seed(5)
    fresh = Noisy(task.accelerator)
    for name in ("network", "average"):
        pairs = zip(task.networks[name].parameters(), fresh.networks[name].parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs), name
    assert np.isfinite(last["loss"]) and last["progress"] == pytest.approx((4 + 5) / 2 / 6)
    assert Image.open(tmp_path / "samples" / "0000006.png").size == (8 * 32, 4 * 32)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5
    assert not list(tmp_path.glob("*.tmp"))


def test_a_time_limit_ends_cleanly(tmp_path, faces):
    config = LoopConfig(out=str(tmp_path), steps=1000, batch=8, minutes=0.0, bfloat16=False)
    accelerator = make_accelerator(config)
    assert run(Noisy(accelerator), faces, config, accelerator)["step"] == 0
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 0


def test_batches_cover_every_item_each_epoch_and_start_anywhere():
    tensors = {"x": torch.arange(10), "y": torch.arange(10) * 2}
    stream = batches(tensors, 3, seed=1, start=0)
    drawn = [next(stream) for _ in range(6)]
    assert all(torch.equal(b["y"], 2 * b["x"]) for b in drawn)
    for epoch in (drawn[:3], drawn[3:]):
        assert len(torch.cat([b["x"] for b in epoch]).unique()) == 9
    assert not torch.equal(drawn[0]["x"], drawn[3]["x"])
    late = batches(tensors, 3, seed=1, start=4)
    assert torch.equal(next(late)["x"], drawn[4]["x"])
    with pytest.raises(ValueError, match="fewer than one batch"):
        next(batches(tensors, 11, 0, 0))


def test_faces_to_float_has_the_right_range():
    x = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 1, 1, 3)
    assert faces_to_float(x).flatten().tolist() == pytest.approx([-1, 1, -0.6])


def test_seeds_differ_by_step_rank_and_seed():
    seeds = {hash_seed(a, b, c) for a in range(3) for b in range(20) for c in range(3)}
    assert len(seeds) == 180
    assert hash_seed(1, 2, 3) == hash_seed(1, 2, 3)


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "state.pt"
    write_atomically(path, {"a": 1})
    with pytest.raises(Exception, match="pickle"):
        write_atomically(path, {"a": lambda: 0})
    assert torch.load(path, weights_only=True) == {"a": 1}


def test_grid_places_faces_row_by_row(tmp_path):
    faces = torch.stack([torch.full((3, 4, 4), v) for v in (-1.0, 0.0, 1.0, -1.0)])
    save_grid(faces, tmp_path / "g.png", columns=2)
    pixels = np.asarray(Image.open(tmp_path / "g.png"))
    assert pixels.shape == (8, 8, 3)
    assert [pixels[1, 1, 0], pixels[1, 6, 0], pixels[6, 1, 0], pixels[6, 6, 0]] == [0, 128, 255, 0]


def test_average_is_exponential():
    a, b = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(a.weight, 1.0), torch.nn.init.constant_(b.weight, 3.0)
    update_average(a, b, 0.75)
    assert a.weight.item() == pytest.approx(1.5)


def test_one_process_needs_no_reduction(tmp_path):
    accelerator = make_accelerator(LoopConfig(out=str(tmp_path), bfloat16=False))
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    average_gradients(accelerator, [p])
    assert p.grad.tolist() == [1, 1]
