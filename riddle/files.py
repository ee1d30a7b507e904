"""Files written whole or not at all, and hashes of files and of settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LEFT = re.compile(r"\.riddle-(\d+)-[0-9a-z_]{8}(\..*)?")  # names of the temporary files and folders
QUIET = 60  # s for which a temporary file must not have changed before it is taken for one that was left


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    A reader sees the old file or the new one, never a part of one, even after a power cut. The temporary path has the
    suffix of `path`, because some writers choose the format by it. Missing folders are made. An error inside the block
    leaves the old file and no temporary one.

        with replace_file("table.csv") as temporary:
            table.to_csv(temporary)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".riddle-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_left_over(folder: str | Path) -> None:
    """Remove the temporary files and folders in a folder that processes left when they were killed."""
    for path in Path(folder).glob(".riddle-*"):
        name = LEFT.fullmatch(path.name)
        with suppress(OSError):  # it was renamed meanwhile, or is somebody else's
            if name and time.time() - path.stat().st_mtime > QUIET and not _runs(int(name[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(process: int) -> bool:
    """Whether a process runs on this machine; elsewhere than on POSIX False: there, open files cannot be removed."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 by `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*things: Any) -> str:
    """Twelve hex digits of a hash of anything that JSON can write; other objects count by their `str`."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]
