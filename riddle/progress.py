"""Show progress: on a terminal a bar that moves, in a log a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any, TextIO

from tqdm import tqdm

ON_TERMINAL, IN_LOG = 1.0, 30.0  # s between two updates
SLOW = 2.0  # s after which `waiting` speaks


class _Lines:
    """A stream on which each of tqdm's updates is a line of its own, without carriage returns."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def track(items: Iterable[Any] | None, label: str, total: int | None = None, unit: str = "it", **options: Any) -> tqdm:
    """Yield the items and show the progress on stderr; total: their number, where `items` has no length.

    Without items: a bar to be moved by `update`. options: further ones of tqdm's.
    """
    terminal = sys.stderr.isatty()
    seconds = ON_TERMINAL if terminal else IN_LOG
    shown = {"file": sys.stderr if terminal else _Lines(sys.stderr), "mininterval": seconds, "maxinterval": seconds}
    return tqdm(items, label, total, unit=unit, **shown, **options)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say on stderr what a block does that takes more than SLOW seconds, on a terminal only."""
    timer = Timer(SLOW, print, [text], {"file": sys.stderr, "flush": True})
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
