"""Files are written whole or not at all."""

import hashlib
import os
import signal
import subprocess
import sys

import pytest

from riddle.files import digest, remove_left_over, replace_file, sha256


def test_a_file_appears_under_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with replace_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".csv"
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "photo.png"
    path.write_bytes(b"precious")
    with pytest.raises(type(error)), replace_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_what_a_kill_leaves_is_hidden_and_removed_later(tmp_path):
    """Not what another process may still write, nor somebody's own files."""
    path, lines = tmp_path / "photo.png", [
        "import os, sys", "from riddle.files import replace_file", "with replace_file(sys.argv[1]) as temporary:",
        "    temporary.write_bytes(b'half')", "    os.kill(os.getpid(), 9)",
    ]  # fmt: skip
    path.write_bytes(b"precious")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), str(path)])
    (left,) = tmp_path.glob(".*")
    assert done.returncode == -signal.SIGKILL and path.read_bytes() == b"precious" and left.suffix == ".png"
    folder = left.with_name(f"{left.stem[:-8]}a_folder")
    folder.mkdir()
    own = [tmp_path / f".riddle-{os.getpid()}-01234567.png", tmp_path / ".riddle-notes"]
    for file in own:
        file.write_bytes(b"")
        os.utime(file, (0, 0))
    remove_left_over(tmp_path)
    assert left.exists(), "it may be on its way"
    for old in (left, folder):
        os.utime(old, (0, 0))
    remove_left_over(tmp_path)
    remove_left_over(tmp_path / "absent")
    assert not left.exists() and not folder.exists() and path.exists() and all(file.exists() for file in own)


def test_a_name_at_the_file_systems_limit_can_be_written(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    with replace_file(path) as temporary:
        temporary.write_bytes(b"1")
    assert path.read_bytes() == b"1"


def test_hashes_know_content_and_order(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"riddle" * 100_000)
    assert sha256(path) == hashlib.sha256(b"riddle" * 100_000).hexdigest()
    assert digest("a", 1) == digest("a", 1) != digest(1, "a")
    assert len(digest({"b": 1, "a": tmp_path})) == 12
