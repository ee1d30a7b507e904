"""One file from one address, whatever the network does: resumed, bounded, never of two mixed sources.

What was fetched lies in a part file whose name holds a hash of the address, so that no other address goes on with it.
The caller checks the bytes and gives the file its name (`riddle.zoo.download`).
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

ATTEMPTS = 3  # in a row that bring less than a chunk, before an address is given up
PAUSE = 1.0  # s before the second attempt, then doubled
PATIENCE = 60.0  # s, the longest that a server's Retry-After is waited for
TIMEOUT = 30.0  # s without a byte
MOST = 8 << 30  # bytes of a file whose size is not known beforehand
BUSY = (408, 429, 500, 502, 503, 504)  # answers after which asking again helps
CHUNK = 1 << 20  # bytes


class WrongFileError(ValueError):
    """What an address gave is not the file: its part is of no use."""


def part_path(target: Path, url: str) -> Path:
    """Where a download from `url` lies until it is whole and checked."""
    return target.with_name(f"{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")


def fetch(url: str, part: Path, name: str, size: int | None = None) -> None:
    """Append what is missing of `part`; name: for the progress bar; size: bytes of the file, where they are known.

    Goes on where a dropped connection stopped, and waits as long as a busy server asks, PATIENCE at most. Raises
    WrongFileError for what cannot be the file, OSError or http.client.HTTPException when nothing more comes; the part
    stays then.
    """
    download, tries = _Download(url, part, name, size), 0
    most = download.have
    while True:
        before, pause = download.have, None
        try:
            return download.go_on()
        except urllib.error.HTTPError as e:
            if e.code == 416 and before:
                if _total(e.headers) == before and size is None:
                    return None  # the part is the whole file: the connection was lost behind its last byte
                part.unlink()  # it is no beginning of this file
            elif e.code in BUSY:
                pause = _asked_for(e)
            else:
                raise
            trouble: Exception = e
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as e:
            trouble = e
        tries = 1 if download.have >= most + CHUNK else tries + 1  # a beginning brought again is no progress
        most = max(most, download.have)
        if tries >= ATTEMPTS:
            raise trouble
        time.sleep(PAUSE * 2 ** (tries - 1) if pause is None else pause)


def _asked_for(answer: urllib.error.HTTPError) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None without one. Raises ConnectionError for more
    than PATIENCE."""
    text = (answer.headers.get("Retry-After") or "").strip()
    try:
        seconds = float(text) if text.isdigit() else _until(text)
    except (TypeError, ValueError):
        return None
    if seconds > PATIENCE:
        raise ConnectionError(f"HTTP {answer.code}: the server asks to come back in {seconds:.0f} s")
    return max(seconds, 0.0)


def _until(date: str) -> float:
    when = email.utils.parsedate_to_datetime(date)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()


def _total(headers: Any) -> int | None:
    """The file's whole length in a Content-Range header: `bytes 5-9/10` or `bytes */10`."""
    match = re.fullmatch(r"bytes (?:\*|\d+-\d+)/(\d+)", (headers.get("Content-Range") or "").strip())
    return int(match[1]) if match else None


class _Download:
    """The state of one `fetch`."""

    def __init__(self, url: str, part: Path, name: str, size: int | None):
        self.url, self.part, self.name, self.size = url, part, name, size
        self.tag: str | None = None  # ETag: a file that changed meanwhile is sent whole instead of continued

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def go_on(self) -> None:
        """One request. Returns when the file is complete."""
        if self.size is not None and self.have > self.size:
            self.part.unlink()
        have = self.have
        if self.size is not None and have == self.size:
            return
        request = urllib.request.Request(self.url, headers={"User-Agent": "riddle"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            if self.tag:
                request.add_header("If-Range", self.tag)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            start, total = self._offer(reply, have)
            tag = reply.headers.get("ETag") or ""
            self.tag = tag if tag.startswith('"') else None  # a weak one (W/) is not of these very bytes
            self._copy(reply, start, total)
        if total is not None and self.have < total:
            raise ConnectionError(f"connection lost after {self.have} of {total} bytes")

    def _offer(self, reply: Any, have: int) -> tuple[int, int | None]:
        """Where an answer's bytes begin and how long the whole file is, None if it does not say."""
        if reply.headers.get_content_type() == "text/html":
            raise WrongFileError("the address answered with a web page, not with the file")
        length = reply.headers.get("Content-Length") or ""
        total, start = int(length) if length.isdigit() else None, 0
        if reply.status == 206:
            total, start = _total(reply.headers), have
            if not (reply.headers.get("Content-Range") or "").startswith(f"bytes {have}-") or not have:
                self.part.unlink(missing_ok=True)
                raise ConnectionError("the server answered with another part of the file than was asked for")
        if total is not None and self.size is not None and total != self.size:
            raise WrongFileError(f"the file there has {total} bytes, not {self.size}")
        return start, total if total is not None else self.size

    def _copy(self, reply: Any, start: int, total: int | None) -> None:
        most = MOST if total is None else min(total, MOST)
        if total is not None and total > MOST:
            raise WrongFileError(f"the file there has {total} bytes, more than {MOST}")
        with (
            open(self.part, "ab" if start else "wb") as f,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=self.name, leave=False) as bar,
        ):
            while block := reply.read(CHUNK):
                start += len(block)
                if start > most:
                    raise WrongFileError(f"more than {most} bytes came")
                f.write(block)
                bar.update(len(block))


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Let one process at a time do `what`; path: a file for the lock, which stays.

    The operating system holds the lock, so that of a process which died is free at once. On a file system without
    locks nothing is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        told = False
        while not _taken(file):
            if not told:
                print(f"riddle: another process is at {what}; waiting for it", file=sys.stderr)
                told = True
            time.sleep(0.1)
        yield  # closing the file frees it


def _taken(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks there
        return True
    return True
