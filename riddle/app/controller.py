"""What the interactive page shows, without the page: faces to choose from, what the slider draws, a wall of strangers.

    controller = Controller(riddle.load("mobile"))
    controller.open("party.jpg")                     # or controller.samples()
    view = controller.view("correct horse", "battery staple", "letmein", position=0.3)
    view.picture()                                   # JPEG: original, encrypted, restored, wrong password
    view.bars                                        # how far each is from the original, for a face recogniser

A face's code and identity and a passphrase's key are computed once; a position of the slider costs three passes of the
encryptor, three rendered faces and their embeddings. `LatestWins` keeps a dragged slider from queueing work.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from threading import Lock

import torch
from PIL import Image

from riddle import drawing, passwords
from riddle.faces import blending, recognizers
from riddle.faces.detection import FaceNotFoundError
from riddle.pictures import open_picture
from riddle.pipeline import Riddle

PANELS = ("Original", "Encrypted", "Restored", "Wrong password")
SAMPLES = 8  # bundled faces to choose from
WALL = 4  # faces a side of the wall of strangers
LONGEST = 2048  # px a side in which faces are looked for
SIDE, GAP = 192, 16  # px of a face in the row of panels, and between two
WALL_SIDE, WALL_GAP = 112, 8
BACKGROUND = "white"


@dataclass(frozen=True)
class Bar:
    """A face's identity distance from the original beside the recogniser's threshold."""

    label: str
    distance: float
    threshold: float

    @property
    def same(self) -> bool:
        """Whether the recogniser takes the two faces for one person."""
        return self.distance < self.threshold

    @property
    def share(self) -> float:
        """Length of the bar, 0 to 1; the threshold is in the middle."""
        return min(max(self.distance / (2 * self.threshold), 0.0), 1.0)


@dataclass(frozen=True)
class View:
    """What one position of the slider shows."""

    faces: torch.Tensor  # (4, 3, R, R) in [-1, 1], in the order of PANELS
    bars: tuple[Bar, ...]  # of all but the original
    seconds: float  # that it took

    def picture(self, side: int = SIDE, gap: int = GAP) -> bytes:
        """The four faces beside each other, as JPEG."""
        return jpeg(self.faces, len(PANELS), side, gap)


@dataclass(frozen=True)
class Wall:
    """One face under many passwords."""

    faces: torch.Tensor  # (16, 3, R, R) in [-1, 1]
    bars: tuple[Bar, ...]

    @property
    def strangers(self) -> int:
        """How many of them the recogniser takes for somebody else."""
        return sum(not bar.same for bar in self.bars)

    def picture(self, side: int = WALL_SIDE, gap: int = WALL_GAP) -> bytes:
        """The faces in a square, as JPEG."""
        return jpeg(self.faces, WALL, side, gap)


@dataclass(frozen=True)
class _Faces:
    """Faces to choose from, with all that does not depend on a password."""

    pictures: torch.Tensor  # (k, 3, R, R) in [-1, 1]
    codes: torch.Tensor  # (k, L, D)
    identities: torch.Tensor  # (k, E)


def jpeg(faces: torch.Tensor, columns: int, side: int, gap: int = 0) -> bytes:
    """Faces (N, 3, R, R) in [-1, 1], each enlarged to `side` px, in rows of `columns`, `gap` px apart."""
    rows = -(-len(faces) // columns)
    size = (columns * (side + gap) - gap, rows * (side + gap) - gap)
    sheet, out = Image.new("RGB", size, BACKGROUND), io.BytesIO()
    for i, face in enumerate(faces):
        row, column = divmod(i, columns)
        enlarged = blending.to_image(face).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (column * (side + gap), row * (side + gap)))
    sheet.save(out, "JPEG", quality=92, subsampling=0)
    return out.getvalue()


class Controller:
    """Faces, passwords and distances behind the page.

    model: see riddle.pipeline; judge: the recogniser whose distance is shown, see riddle.faces.recognizers; dlib's
    comes with the installation and took no part in training. Every face goes through the recogniser by one fixed
    map: no detection while the slider moves. Raises WeightsMissingError for a judge without
    weights. Methods may be called from any thread.
    """

    def __init__(self, model: Riddle, judge: str = "dlib"):
        self.model, self.judge = model, recognizers.load(judge, model.device)
        # Cosine recognisers compare by similarity; their distance is 1 less it.
        self._zero = 0.0 if self.judge.distance == "euclidean" else 1.0
        self.threshold = self._zero - self.judge.threshold
        self._key = lru_cache(maxsize=64)(model.password)
        self._faces: _Faces | None = None

    # Faces to choose from

    def open(self, photo: str | Path | bytes | Image.Image, name: str = "") -> int:
        """Take the faces of a photo, largest first; returns how many. The faces before are kept when it fails.

        photo: a path, a file's bytes or a picture, reduced to LONGEST px; name: for messages. Raises PhotoError for
        what is no picture, FaceNotFoundError when no face is found in it.
        """
        picture = open_picture(photo, name)
        reduced = picture.rgb.copy()
        reduced.thumbnail((LONGEST, LONGEST))
        try:
            return self._take(self.model.align(reduced))
        except FaceNotFoundError:
            remedy = "choose a photo with a larger face that looks at the camera"
            raise FaceNotFoundError(f"no face found in {picture.name}; {remedy}") from None

    def samples(self, n: int = SAMPLES) -> int:
        """Take the first n bundled synthetic faces; returns how many. Raises FileNotFoundError when there are none."""
        return self._take(drawing.sample_faces(n, self.model.preset.resolution))

    def _take(self, faces: torch.Tensor) -> int:
        self._faces = _Faces(faces, self.model.invert(faces), self._identities(faces))
        return len(faces)

    def _chosen(self, face: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Picture (1, 3, R, R), code (1, L, D) and identity (1, E) of a face."""
        if self._faces is None:
            raise ValueError("there is no face yet; call open(photo) or samples() first")
        f, i = self._faces, face if 0 <= face < len(self._faces.codes) else 0
        return f.pictures[i : i + 1], f.codes[i : i + 1], f.identities[i : i + 1]

    def thumbnails(self, side: int = 128) -> list[bytes]:
        """The faces to choose from, each a JPEG."""
        pictures = [] if self._faces is None else self._faces.pictures.split(1)
        return [jpeg(picture, 1, side) for picture in pictures]

    # What is shown

    @torch.no_grad()
    def _identities(self, faces: torch.Tensor) -> torch.Tensor:
        return self.judge.from_crop(faces.to(self.model.device))

    def _bars(self, labels: tuple[str, ...], faces: torch.Tensor, identity: torch.Tensor) -> tuple[Bar, ...]:
        similarity = self.judge.similarity(identity.expand(len(faces), -1), self._identities(faces))
        distances = (self._zero - similarity).tolist()
        return tuple(Bar(label, d, self.threshold) for label, d in zip(labels, distances, strict=True))

    def view(self, first: str, second: str, guess: str, position: float = 0.0, face: int = 0) -> View:
        """A face locked by a key between two passphrases, opened by that key, and by a guess.

        position: 0 is the first passphrase, 1 the second; face: which of those to choose from, the first where there
        are fewer. Raises ValueError for a passphrase without text, a position outside 0 to 1, or without a face.
        """
        began = time.perf_counter()
        if not 0 <= position <= 1:
            raise ValueError(f"a position is between 0 and 1, got {position}")
        original, code, identity = self._chosen(face)
        key = passwords.interpolate(self._key(first), self._key(second), position)
        locked = self.model.encrypt(code, key)
        opened = self.model.decrypt(locked.expand(2, -1, -1), torch.cat([key, self._key(guess)]))
        drawn = self.model.synthesize(torch.cat([locked, opened]))
        bars = self._bars(PANELS[1:], drawn, identity)
        return View(torch.cat([original.to(drawn.device), drawn]), bars, time.perf_counter() - began)

    def wall(self, face: int = 0, seed: int = 0) -> Wall:
        """A face under 16 random passwords, the same for the same seed. Raises ValueError without a face."""
        _, code, identity = self._chosen(face)
        keys = self.model.random_password(WALL**2, seed)
        drawn = self.model.synthesize(self.model.encrypt(code.expand(WALL**2, -1, -1), keys))
        return Wall(drawn, self._bars(("",) * WALL**2, drawn, identity))

    def updates_per_second(self, seconds: float = 2.0) -> float:
        """How many positions a second are drawn, picture included: the inverse of the median time of at least 9."""
        words = ("first", "second", "guess")
        self.view(*words).picture()
        times: list[float] = []
        while len(times) < 9 or sum(times) < seconds:
            began = time.perf_counter()
            self.view(*words, position=len(times) * 0.01 % 1).picture()
            times.append(time.perf_counter() - began)
        return 1 / median(times)


class LatestWins:
    """Work in one background thread; of the same kind, only the newest piece that waits is done.

    failed: called, in that thread, with what work raised.
    """

    def __init__(self, failed: Callable[[Exception], None]):
        self._failed, self._lock = failed, Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="riddle-page")
        self._waiting: dict[str, Callable[[], None]] = {}

    def submit(self, kind: str, work: Callable[[], None]) -> None:
        """Have work done; it takes the place of work of the same kind that has not begun. Returns at once."""
        with self._lock:
            queued = kind in self._waiting
            self._waiting[kind] = work
        if not queued:
            self._thread.submit(self._run, kind)

    def _run(self, kind: str) -> None:
        with self._lock:
            work = self._waiting.pop(kind)
        try:
            work()
        except Exception as e:  # shown on the page; the next piece of work may do better
            self._failed(e)

    def wait(self, timeout: float | None = None) -> None:
        """Return when everything submitted before is done. Raises TimeoutError after `timeout` seconds."""
        self._thread.submit(lambda: None).result(timeout)
