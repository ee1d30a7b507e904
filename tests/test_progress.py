"""Progress: a bar on a terminal, whole lines in a log."""

import io
from contextlib import redirect_stderr
from threading import Event

from riddle import progress


class Stream(io.StringIO):
    def __init__(self, terminal=False):
        super().__init__()
        self.terminal, self.flushed = terminal, Event()

    def flush(self):
        self.flushed.set()

    def isatty(self):
        return self.terminal


def test_a_log_has_whole_lines_and_is_not_flooded(monkeypatch):
    monkeypatch.setattr(progress, "IN_LOG", 0.0)
    with redirect_stderr(Stream()) as stream:
        assert list(progress.track([3, 1, 2], "invert", unit="face")) == [3, 1, 2]
    text = stream.getvalue()
    assert "\r" not in text and "\x1b" not in text and text.endswith("\n")
    lines = text.splitlines()
    assert all(line.startswith("invert: ") and line == line.strip() for line in lines)
    assert lines[-1].startswith("invert: 100%") and "3/3" in lines[-1]
    monkeypatch.undo()
    with redirect_stderr(Stream()) as stream:
        assert sum(progress.track(iter(range(1000)), "align", total=1000)) == 499500
    assert len(stream.getvalue().splitlines()) == 2  # the first and the last


def test_a_terminal_has_one_line_that_moves():
    with redirect_stderr(Stream(terminal=True)) as stream:
        list(progress.track([1, 2], "invert"))
    assert stream.getvalue().startswith("\rinvert: ") and stream.getvalue().count("\n") == 1


def test_a_terminal_is_told_what_takes_long_and_a_log_is_not(monkeypatch):
    monkeypatch.setattr(progress, "SLOW", 0.0)
    with redirect_stderr(Stream(terminal=True)) as stream, progress.waiting("loading"):
        assert stream.flushed.wait(60)
    assert stream.getvalue() == "loading\n"
    monkeypatch.setattr(progress, "SLOW", 60.0)
    for terminal in (True, False):
        with redirect_stderr(Stream(terminal)) as stream, progress.waiting("loading"):
            pass
        assert stream.getvalue() == ""
