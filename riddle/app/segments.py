"""The work folder of a clip: what is known of its frames and faces, and the parts that are done, on disk.

It lies beside the target as `.NAME.riddle-work`, for its owner only, and goes when the target is there. While it is
there it holds codes and looks of the faces as they were: delete it to give a clip up. One SQLite file, written part by
part in transactions, so that after an interruption at any moment what is in it is whole.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from riddle.app.tracking import Track
from riddle.pictures import PhotoError

TABLES = """
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE frames (n INTEGER PRIMARY KEY, pts INTEGER, duration INTEGER, scene INTEGER);
CREATE TABLE tracks (id INTEGER PRIMARY KEY, first INTEGER, last INTEGER, begin INTEGER, end INTEGER, scene INTEGER,
    seen INTEGER, doubted INTEGER, reason TEXT, box TEXT);
CREATE TABLE finds (n INTEGER, track INTEGER, place BLOB, points BLOB, PRIMARY KEY (track, n)) WITHOUT ROWID;
CREATE INDEX by_frame ON finds (n);
CREATE INDEX by_scene ON frames (scene);
CREATE TABLE codes (track INTEGER, k INTEGER, weight REAL, code BLOB, PRIMARY KEY (track, k)) WITHOUT ROWID;
CREATE TABLE looks (track INTEGER, n INTEGER, before BLOB, after BLOB, points BLOB, side REAL, PRIMARY KEY (track, n))
    WITHOUT ROWID;
CREATE TABLE packets (n INTEGER PRIMARY KEY, key INTEGER, data BLOB);
CREATE TABLE parts (number INTEGER PRIMARY KEY, block BLOB);
"""


def blob(values: np.ndarray | None, kind: str = "<f4") -> bytes | None:
    """Numbers as bytes."""
    return None if values is None else np.ascontiguousarray(values, dtype=kind).tobytes()


class Work:
    """The work folder of a target.

    key: names everything that the result depends on; with another key, or without `resume`, what is there is thrown
    away. As a context manager it keeps the folder when it is left by an interruption, and removes it when the work is
    done or cannot be done.
    """

    def __init__(self, target: Path, key: str, resume: bool = False):
        """Raises PhotoError when the folder cannot be made."""
        self.target, self.folder = target, target.with_name(f".{target.name}.riddle-work")
        try:
            if self.folder.exists() and not (resume and self._fits(key)):
                shutil.rmtree(self.folder)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.db = self._open()
        except (OSError, sqlite3.Error) as e:
            raise PhotoError(target, f"no work folder can be made beside it ({e})", "name another place") from e
        if not self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'notes'").fetchone():
            with self.db:
                self.db.executescript(TABLES)
                self.note("key", key)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.folder / "work.sqlite", isolation_level="DEFERRED")
        db.execute("PRAGMA cache_size = -8192")  # KB, whatever the length of the clip
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    def _fits(self, key: str) -> bool:
        db = None
        try:
            db = self._open()
            return db.execute("SELECT value FROM notes WHERE name = 'key'").fetchone() == (key,)
        except sqlite3.Error:
            return False
        finally:
            if db is not None:
                db.close()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        self.db.close()
        if kind is None or issubclass(kind, ValueError):  # done, or refused for what the clip is
            shutil.rmtree(self.folder, ignore_errors=True)

    def note(self, name: str, value: str) -> None:
        """Keep a text."""
        self.db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def noted(self, name: str) -> str | None:
        """A text that was kept."""
        found = self.db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return found and found[0]

    def path(self, name: str) -> Path:
        """A file of its own in the folder."""
        return self.folder / name

    def publish(self, name: str, target: Path) -> None:
        """Move a finished file of the folder to its place, in one step."""
        path = self.path(name)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(path, 0o666 & ~umask)
        os.replace(path, target)

    # What the search found

    def restart_search(self) -> None:
        """Forget a search that was not finished."""
        with self.db:
            for table in ("frames", "tracks", "finds", "codes"):
                self.db.execute(f"DELETE FROM {table}")

    def add_frame(self, n: int, pts: int, duration: int, scene: int) -> None:
        """A frame; scene: number of the first frame of its scene."""
        self.db.execute("INSERT INTO frames VALUES (?, ?, ?, ?)", (n, pts, duration, scene))

    def add_find(self, n: int, track: int, place: np.ndarray, points: np.ndarray) -> None:
        """A face that was found in a frame."""
        self.db.execute("INSERT INTO finds VALUES (?, ?, ?, ?)", (n, track, blob(place, "<f8"), blob(points)))

    def add_code(self, track: int, k: int, weight: float, total: np.ndarray) -> None:
        """The weighted sum of a track's codes around frame k * every."""
        self.db.execute("INSERT INTO codes VALUES (?, ?, ?, ?)", (track, k, weight, blob(total / weight)))

    def add_track(self, track: Track, scene: int) -> None:
        """A track that ended; where it is covered is filled in by `cover`."""
        box = ",".join(map(str, track.box))
        self.db.execute(
            "INSERT INTO tracks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (track.id, track.first, track.last, track.first, track.last, scene, track.seen,
             track.seen - track.good, track.reason, box),
        )  # fmt: skip

    def cover(self, track: int, begin: int, end: int) -> None:
        """The first and last frame in which a track is replaced."""
        self.db.execute("UPDATE tracks SET begin = ?, end = ? WHERE id = ?", (begin, end, track))

    def tracks(self) -> Iterator[dict[str, Any]]:
        """The tracks, in the order they began."""
        names = ("id", "first", "last", "begin", "end", "scene", "seen", "doubted", "reason", "box")
        for row in self.db.execute("SELECT * FROM tracks ORDER BY id").fetchall():
            values = dict(zip(names, row, strict=True))
            yield values | {"box": tuple(map(int, values["box"].split(",")))}

    def covering(self, first: int, last: int) -> list[tuple[int, int, int]]:
        """Tracks that are replaced somewhere in the frames first to last: (id, begin, end)."""
        asked = "SELECT id, begin, end FROM tracks WHERE reason = '' AND begin <= ? AND end >= ? ORDER BY id"
        return self.db.execute(asked, (last, first)).fetchall()

    def places(self, track: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames (N,) and places (N, 4) of a track in the frames first to last, and its nearest finds outside."""
        low = self.db.execute("SELECT MAX(n) FROM finds WHERE track = ? AND n <= ?", (track, first)).fetchone()[0]
        high = self.db.execute("SELECT MIN(n) FROM finds WHERE track = ? AND n >= ?", (track, last)).fetchone()[0]
        asked = "SELECT n, place FROM finds WHERE track = ? AND n BETWEEN ? AND ? ORDER BY n"
        bounds = first if low is None else low, last if high is None else high
        rows = self.db.execute(asked, (track, *bounds)).fetchall()
        return np.array([n for n, _ in rows]), np.stack([np.frombuffer(p, "<f8") for _, p in rows])

    def others(self, n: int, track: int) -> list[np.ndarray]:
        """Places of other tracks that are replaced and were found in frame n."""
        asked = (
            "SELECT place FROM finds JOIN tracks ON track = id WHERE finds.n = ? AND track <> ? AND reason = ''"
        )  # fmt: skip
        return [np.frombuffer(p, "<f8") for (p,) in self.db.execute(asked, (n, track))]

    def points(self, track: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames and five points of a track's finds."""
        for n, data in self.db.execute("SELECT n, points FROM finds WHERE track = ? ORDER BY n", (track,)):
            yield n, np.frombuffer(data, "<f4").reshape(-1, 2)

    def codes(self, track: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers k (N,) and codes (N, ...) of a track from low to high, and the nearest outside."""
        below = self.db.execute("SELECT MAX(k) FROM codes WHERE track = ? AND k <= ?", (track, low)).fetchone()[0]
        above = self.db.execute("SELECT MIN(k) FROM codes WHERE track = ? AND k >= ?", (track, high)).fetchone()[0]
        asked = "SELECT k, code FROM codes WHERE track = ? AND k BETWEEN ? AND ? ORDER BY k"
        bounds = low if below is None else below, high if above is None else above
        rows = self.db.execute(asked, (track, *bounds)).fetchall()
        return np.array([k for k, _ in rows]), np.stack([np.frombuffer(c, "<f4") for _, c in rows])

    def mean_code(self, track: int) -> np.ndarray:
        """The weighted mean of all codes of a track."""
        total, weights = 0.0, 0.0
        for weight, code in self.db.execute("SELECT weight, code FROM codes WHERE track = ?", (track,)):
            total, weights = total + weight * np.frombuffer(code, "<f4").astype(np.float64), weights + weight
        return total / weights

    def times(self, first: int, last: int) -> np.ndarray:
        """pts of the frames first to last."""
        asked = "SELECT pts FROM frames WHERE n BETWEEN ? AND ? ORDER BY n"
        return np.array([pts for (pts,) in self.db.execute(asked, (first, last))], np.int64)

    def scene_end(self, scene: int) -> int:
        """The last frame of a scene, which is named by its first."""
        return self.db.execute("SELECT MAX(n) FROM frames WHERE scene = ?", (scene,)).fetchone()[0]

    # What is done

    def frame_count(self) -> int:
        """How many frames the search has seen."""
        return self.db.execute("SELECT COUNT(*) FROM frames").fetchone()[0]

    def done(self) -> int:
        """How many frames are encoded; they are the first ones."""
        return self.db.execute("SELECT COUNT(*) FROM packets").fetchone()[0]

    def add_part(
        self, number: int, first: int, stamps: list[tuple[int, int]], packets: list[tuple[bool, bytes]],
        block: bytes, looks: Iterable[tuple],
    ) -> None:  # fmt: skip
        """Keep a finished part, all of it or nothing; stamps: pts and duration of its frames."""
        with self.db:
            rows = [(first + i, int(key), data) for i, (key, data) in enumerate(packets)]
            self.db.executemany("INSERT INTO packets VALUES (?, ?, ?)", rows)
            frames = [(first + i, pts, duration, 0) for i, (pts, duration) in enumerate(stamps)]
            self.db.executemany("INSERT OR IGNORE INTO frames VALUES (?, ?, ?, ?)", frames)
            self.db.executemany("INSERT INTO looks VALUES (?, ?, ?, ?, ?, ?)", looks)
            self.db.execute("INSERT INTO parts VALUES (?, ?)", (number, block))

    def packets(self) -> Iterator[tuple[int, int, bool, bytes]]:
        """All packets: pts, duration, whether it is a key frame, bytes."""
        asked = "SELECT pts, duration, key, data FROM packets JOIN frames USING (n) ORDER BY n"
        for pts, duration, key, data in self.db.execute(asked):
            yield pts, duration, bool(key), data

    def blocks(self) -> Iterator[bytes]:
        """The record's blocks."""
        for (data,) in self.db.execute("SELECT block FROM parts ORDER BY number"):
            yield data

    def looked(self, track: int) -> Iterator[tuple[int, Any, Any, Any, float]]:
        """Frame, look before and after, points after, side, of a track's frames."""
        asked = "SELECT n, before, after, points, side FROM looks WHERE track = ? ORDER BY n"
        for n, before, after, points, side in self.db.execute(asked, (track,)):
            read = [None if b is None else np.frombuffer(b, "<f4") for b in (before, after, points)]
            yield n, read[0], read[1], None if read[2] is None else read[2].reshape(-1, 2), side
