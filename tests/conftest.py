"""Fixtures that several test files share."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image


def pytest_configure(config):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test` runs two workers


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "test_it_runs" not in item.name)  # the notebooks take longest, so they come first


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A machine with nothing on it: no data, weights or cache of the user."""
    for variable in ("RIDDLE_DATA", "RIDDLE_WEIGHTS", "RIDDLE_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RIDDLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RIDDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "sklearn"))
    return tmp_path


@pytest.fixture
def own_precision():
    """accelerate fixes the precision once a process: the test, and each after it, chooses anew. And a known seed."""
    import torch  # both here, because most tests do without
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def smoke():
    """The model of preset "smoke": untrained networks, the same every time."""
    import riddle  # it loads torch, and only after the setting above

    with warnings.catch_warnings(action="ignore"):  # it says that it is untrained
        return riddle.load("smoke")


@pytest.fixture(scope="session")
def codes():
    """The Gaussian space of a random smoke generator."""
    import torch

    from riddle.models.stylegan2 import Generator
    from riddle.presets import get

    torch.manual_seed(1)
    g = Generator.of(get("smoke"))
    return g.codes.measure(g.map, n=2000)


@pytest.fixture(scope="session")
def generator():
    """The bundled generator from its published files, its space measured."""
    from riddle.networks import published_generator

    g = published_generator()
    g.codes.measure(g.map)
    return g


@pytest.fixture(scope="session")
def narrow():
    """The bundled generator's architecture with few channels and random weights."""
    import torch

    from riddle.models.mobilestylegan import CHANNELS, MobileStyleGAN

    torch.manual_seed(0)
    g = MobileStyleGAN(channels={side: 8 for side in CHANNELS}, dim=32).eval().requires_grad_(False)
    g.codes.measure(g.map, n=500)
    g.cuts["128"].picture.weight *= 0.5 / g(g.sample(16)).std(0).mean()  # codes show
    return g


@pytest.fixture
def encoder(narrow):
    """An untrained encoder for it."""
    import torch

    from riddle.models.inversion import build_encoder
    from riddle.presets import get

    torch.manual_seed(1)
    preset = replace(get("mobile"), style_dim=32, encoder_fpn=16, encoder_head=8)
    return build_encoder(preset, narrow).eval().requires_grad_(False)


@pytest.fixture
def quick_keys(monkeypatch):
    """As strong a derivation of keys as tests need."""
    monkeypatch.setattr("riddle.passwords.MEMORY_KIB", 64)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; skips where there is none."""
    named = os.environ.get("RIDDLE_DATA")
    if not named:
        pytest.skip("needs real photographs: set RIDDLE_DATA")
    return Path(named)


@pytest.fixture
def picture():
    """A function that writes a small image of known pixels and returns them: (path, seed, size) -> (h, w, 3)."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> np.ndarray:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return write


@pytest.fixture
def command_line():
    """A function that calls a module's main as its command line does: (main, *words) -> what it returns."""

    def call(main, *words):
        app = typer.Typer()
        app.command()(main)
        return app([*map(str, words)], standalone_mode=False)

    return call
