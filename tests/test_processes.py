"""A command that is killed takes its workers along, whatever they do at that moment, and leaves whole files."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_app_photos import Markers, photo, with_detector

from riddle.app import bulk, cli
from riddle.app.passphrase import VARIABLE
from riddle.faces import recognizers

PROC = Path("/proc")
MARK = "RIDDLE_TEST_FAMILY"  # an environment variable, which all descendants of a process inherit

pytestmark = pytest.mark.skipif(not (PROC / "self" / "environ").is_file(), reason="reads Linux's /proc")


def family(mark: str) -> dict[int, str]:
    """{process: its command line} of the living processes that carry a mark."""
    found = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            if f"{MARK}={mark}\0".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def until(happens, seconds: float) -> bool:
    """Whether something happens before the time is over."""
    end = time.monotonic() + seconds
    while not (happened := happens()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(happened)


@pytest.fixture
def mark(tmp_path):
    """The mark of a test's processes; what is left of them in the end is killed."""
    yield tmp_path.name
    for pid in family(tmp_path.name):
        os.kill(pid, signal.SIGKILL)


def workers(mark: str) -> list[int]:
    return [pid for pid, command in family(mark).items() if "spawn_main" in command]


def detecting(mark: str) -> list[int]:
    """The workers that have loaded dlib."""
    found = []
    for pid in workers(mark):
        with suppress(OSError):  # ended meanwhile
            found += [pid] * ("dlib" in (PROC / str(pid) / "maps").read_text())
    return found


@pytest.fixture
def photos(home):
    """A data set of 300 photos in which a detector searches for long and finds nothing."""
    folder = home / "sets" / "celebamask_hq" / "images"
    folder.mkdir(parents=True)
    first = folder / "000.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(first)
    for i in range(1, 300):
        os.link(first, folder / f"{i:03d}.jpg")
    return home / "sets"


@pytest.mark.parametrize(("how", "when"), [(signal.SIGTERM, detecting), (signal.SIGKILL, workers)])
def test_no_worker_outlives_a_command_that_is_killed(photos, tmp_path, mark, how, when):
    words = ["riddle.training.prepare", "faces", "--preset", "smoke", "--out", str(tmp_path / "faces.npy")]
    environment = os.environ | {MARK: mark, "RIDDLE_DATA": str(photos)}
    with open(tmp_path / "log", "w") as log:
        command = subprocess.Popen([sys.executable, "-m", *words], env=environment, stdout=log, stderr=log)
    assert until(lambda: len(when(mark)) == 2, 400), (tmp_path / "log").read_text()
    command.send_signal(how)
    command.wait(30)
    assert until(lambda: not family(mark), 120), family(mark)  # a worker that still imports reads its orders first


POOL = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import sleep
from riddle.processes import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context("spawn"), end_with_parent) as pool:
        print(*pool.map(abs, range(4)), flush=True)
        sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_of_a_pool_waits_for_work_that_never_comes(tmp_path, mark, how):
    script = tmp_path / "stage.py"
    script.write_text(POOL)
    command = subprocess.Popen([sys.executable, str(script)], env=os.environ | {MARK: mark}, stdout=subprocess.PIPE)
    with command.stdout as printed:
        assert printed.readline() == b"0 1 2 3\n" and workers(mark)
    command.send_signal(how)
    command.wait(30)
    assert until(lambda: not family(mark), 30), family(mark)


PHRASE = "quilt lamp seven order moon"


def test_no_list_of_processes_shows_the_passphrase_while_photos_are_protected(root, home, mark):
    source, out = home / "in", home / "out"
    shutil.copytree(root / "data" / "samples", source, ignore=lambda _, names: [n for n in names if n > "003.jpg"])
    words = ["protect", str(source), "-o", str(out), "--preset", "smoke", "--detector", "dlib"]
    environment, shown = os.environ | {MARK: mark, VARIABLE: PHRASE}, set()
    command = subprocess.Popen([sys.executable, "-m", "riddle", *words], env=environment)
    assert until(lambda: shown.update(family(mark).values()) or [*out.glob("[0-9]*")], 120)
    command.kill()
    assert command.wait(30) == -signal.SIGKILL
    assert any("protect" in line for line in shown)
    assert not any(word in line for line in shown for word in PHRASE.split())


def test_a_command_killed_at_any_moment_leaves_whole_photos_and_the_next_one_nothing_else(
    smoke, quick_keys, home, monkeypatch
):
    source, out, draw = home / "in", home / "out", np.random.default_rng(0)
    source.mkdir()
    for i in range(3):
        photo(seed=i).save(source / f"{i}.png")
    monkeypatch.setenv(VARIABLE, PHRASE)
    monkeypatch.setattr("riddle.load", lambda *_, **__: with_detector(smoke, Markers()))
    monkeypatch.setattr(recognizers, "at_hand", lambda *_: None)  # noise has no person in it
    words = ["protect", str(source), "-o", str(out), "--preset", "smoke", "--force"]

    def protect(seconds: float = np.inf, writing: bool = False) -> int:
        """Its exit code; it is killed after so many seconds, or while it writes."""
        child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(cli.main(words)))
        child.start()
        end = time.monotonic() + seconds
        while child.is_alive() and time.monotonic() < end:
            if writing and [*out.glob(f".riddle-{child.pid}-*")]:
                break
        child.kill()
        child.join()
        for left in out.glob(".*"):
            os.utime(left, (0, 0))  # a minute later
        assert all(bulk.inspect(path)["protected"] for path in out.glob("[0-9]*"))
        return child.exitcode

    began = time.monotonic()
    assert protect() == cli.Exit.DONE
    took = time.monotonic() - began
    assert -signal.SIGKILL in [protect(took * part) for part in draw.random(4)]
    assert -signal.SIGKILL in [protect(writing=True) for _ in range(3)]
    assert protect() == cli.Exit.DONE
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in source.iterdir())


@pytest.fixture
def reproduce(root, tmp_path):
    """The command `make reproduce` with a stand-in for Snakemake, and the stand-in's file."""
    stand_in, installed = tmp_path / "bin" / "snakemake", tmp_path / "installed"
    stand_in.parent.mkdir()
    stand_in.touch(mode=0o755)
    installed.touch()
    return ["make", "-C", str(root), "reproduce", f"VENV={tmp_path}", f"STAMP={installed}"], stand_in


@pytest.mark.parametrize(("whom", "how"), [("make", "TERM"), ("make", "KILL"), ("snakemake", "KILL")])
def test_make_reproduce_ends_whole_and_at_once(reproduce, mark, whom, how):
    """The stand-in runs a stage in the background and, as Snakemake does, waits for it when it is asked to end."""
    words, stand_in = reproduce
    stand_in.write_text("#!/bin/bash\ntrap : TERM\nsleep 600 &\nwait; wait\n")
    make = subprocess.Popen(words, env=os.environ | {MARK: mark}, start_new_session=True)
    found: list[int] = []

    def at_work() -> bool:
        """Whether one look at the processes, which may miss one that changes, shows the stand-in and its stage."""
        now = family(mark)
        found[:] = [pid for pid, command in now.items() if command.startswith(f"/bin/bash {stand_in}")]
        return bool(found) and any(command.startswith("sleep 600") for command in now.values())

    assert until(at_work, 30), family(mark)
    snakemake = min(found)
    os.kill(make.pid if whom == "make" else snakemake, getattr(signal, f"SIG{how}"))
    assert make.wait(30) != 0
    assert until(lambda: not family(mark), 30), family(mark)


@pytest.mark.parametrize("code", [0, 3])
def test_make_reproduce_tells_how_the_workflow_ended(reproduce, code):
    words, stand_in = reproduce
    stand_in.write_text(f"#!/bin/bash\nexit {code}\n")
    assert (subprocess.run(words, capture_output=True, timeout=60).returncode == 0) == (code == 0)
