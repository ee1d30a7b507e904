"""The contents of the interactive page: faces to choose from, the faces of the slider, a wall of strangers.

    controller = Controller(riddle.load("mobile"))
    controller.open("party.jpg")                     # or controller.samples()
    view = controller.view("correct horse", "battery staple", "letmein", position=0.3)
    view.picture()                                   # JPEG: original, encrypted, restored, wrong passphrase
    view.distances                                   # of each from the original, for a face recogniser

A face's code and embedding and a passphrase's key are computed once. While the slider moves, each position costs a
pass of the encryptor and one face of R px (`moving`); where it rests, three of SIDE px and three embeddings (`view`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from riddle import data, passwords
from riddle.faces import alignment, recognizers
from riddle.faces.detection import FaceNotFoundError, framed
from riddle.images import open_picture, to_image, to_tensor
from riddle.pipeline import Riddle

PANELS = ("Original", "Encrypted", "Restored", "Wrong passphrase")
SAMPLES = 8  # bundled faces to choose from
COLUMNS = 4  # of a picture of faces; the wall of strangers has as many rows
LONGEST = 2048  # px a side; a larger photo is reduced before faces are searched
SIDE, GAP = 256, 8  # px of a face, and between two
LARGE = 1024  # px of a large view
FRAME, BLUE = 4, (36, 104, 200)  # px and colour of a marked face's frame


@dataclass(frozen=True)
class View:
    """Faces to show, and how far they are from the original."""

    faces: torch.Tensor  # (N, 3, S, S) in [-1, 1]
    distances: tuple[float, ...]  # by identity, of all faces but the original
    same: tuple[bool, ...] = ()  # of a wall's faces, whether the recogniser takes each for the original's

    def picture(self, side: int = SIDE) -> bytes:
        """The faces in rows, each of `side` px, as JPEG; those that are the same person in a frame."""
        return contact_sheet(self.faces, side, COLUMNS, GAP, self.same)


def contact_sheet(faces: torch.Tensor, side: int, columns: int = 1, gap: int = 0, marked: Sequence[bool] = ()) -> bytes:
    """Faces (N, 3, R, R) in [-1, 1], each resized to `side` px, in rows of `columns`, `gap` px apart, as JPEG; marked:
    whether each gets a frame."""
    large = F.interpolate(faces.float().cpu(), (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    inner = (..., slice(FRAME, -FRAME), slice(FRAME, -FRAME))
    for i in (i for i, mark in enumerate(marked) if mark):
        face = large[i].clone()
        large[i] = torch.tensor(BLUE)[:, None, None] / 127.5 - 1
        large[i][inner] = face[inner]
    columns, out = min(columns, len(large)), io.BytesIO()
    tiles = F.pad(large, (0, gap, 0, gap, 0, 0, 0, -len(large) % columns), value=1.0).unflatten(0, (-1, columns))
    sheet = tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (3, rows * (side + gap), columns * (side + gap))
    sheet = sheet[:, : sheet.shape[1] - gap, : sheet.shape[2] - gap]
    to_image(sheet).save(out, "JPEG", quality=92, subsampling=0)
    return out.getvalue()


class Controller:
    """Faces, keys and distances behind the page.

    model: see riddle.pipeline; recogniser: whose distance is shown, see riddle.faces.recognizers; dlib's comes with the
    installation and took no part in training. It sees every face through one fixed map, without detection, so
    the slider stays fast. Below `threshold` it takes two faces for one person. Raises KeyError for an unknown
    recogniser, WeightsMissingError for one without weights.
    """

    def __init__(self, model: Riddle, recogniser: str = "dlib"):
        self.model, self.recogniser = model, recognizers.load(recogniser, model.device)
        # Cosine recognisers compare by similarity; their distance is 1 minus it.
        self._zero = 0.0 if self.recogniser.distance == "euclidean" else 1.0
        self.threshold = self._zero - self.recogniser.threshold
        self._key, self.side = lru_cache(maxsize=64)(model.password), model.side_for(SIDE)
        # k faces at R and at `side` px; codes by number, since inverting takes a second a face; face i at any side
        self._chosen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._inverted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._large: Callable[[int, int], torch.Tensor] | None = None

    # Faces to choose from

    def open(self, photo: str | Path | bytes | Image.Image, name: str = "") -> int:
        """Take the faces of a photo, largest first; returns how many. If it fails, there are none to choose from.

        photo: a path, a file's bytes or a picture, reduced to LONGEST px; name: for messages. Raises PhotoError for
        what is no picture, FaceNotFoundError when no face is found in it.
        """
        self._chosen = None
        picture = open_picture(photo, name)
        reduced = picture.rgb.copy()
        reduced.thumbnail((LONGEST, LONGEST))
        try:
            matrices = framed(self.model.detect(reduced))
        except FaceNotFoundError:
            remedy = "choose a photo with a larger face that looks at the camera"
            raise FaceNotFoundError(f"no face found in {picture.name}; {remedy}") from None
        crops = self.model.crops(reduced, matrices)

        def large(i: int, side: int) -> torch.Tensor:
            return to_tensor(alignment.crop(reduced, matrices[i], side))

        return self._take(crops, torch.stack([large(i, self.side) for i in range(len(matrices))]), large)

    def samples(self, n: int = SAMPLES) -> int:
        """Take the first n bundled synthetic faces; returns how many. Raises FileNotFoundError when there are none."""
        faces, shown = (data.sample_faces(n, side) for side in (self.model.preset.resolution, self.side))
        return self._take(faces, shown, lambda i, side: data.sample_faces(i + 1, side)[i])

    def _take(self, faces: torch.Tensor, shown: torch.Tensor, large: Callable[[int, int], torch.Tensor]) -> int:
        self._chosen, self._inverted, self._large = (faces, shown), {}, large
        return len(faces)

    def _number(self, face: int) -> int:
        """A face's number; the first's where there are fewer. Raises ValueError when there is none."""
        if self._chosen is None:
            raise ValueError("there is no face yet; choose a photo or one of the bundled faces")
        return face if 0 <= face < len(self._chosen[0]) else 0

    def _face(self, number: int) -> tuple[torch.Tensor, ...]:
        """Picture (1, 3, S, S), code (1, L, D) and embedding (1, E) of a face."""
        i = self._number(number)
        face, shown = (part[i : i + 1] for part in self._chosen)
        if i not in self._inverted:
            self._inverted[i] = self.model.invert(face), self._embed(shown)
        return shown, *self._inverted[i]

    def thumbnails(self) -> list[bytes]:
        """The faces to choose from, each a JPEG of 128 px."""
        return [contact_sheet(face, 128) for face in self._chosen[1].split(1)] if self._chosen else []

    # What is shown

    @torch.no_grad()
    def _embed(self, faces: torch.Tensor) -> torch.Tensor:
        return self.recogniser.from_crop(faces.to(self.model.device))

    def _distances(self, faces: torch.Tensor, original: torch.Tensor) -> tuple[float, ...]:
        similarity = self.recogniser.similarity(original.expand(len(faces), -1), self._embed(faces))
        return tuple((self._zero - similarity).tolist())

    def _between(self, first: str, second: str, position: float) -> torch.Tensor:
        if not 0 <= position <= 1:
            raise ValueError(f"a position is between 0 and 1, got {position}")
        return passwords.interpolate(self._key(first), self._key(second), position)

    @torch.no_grad()
    def _codes(self, code: torch.Tensor, first: str, second: str, guess: str, position: float) -> torch.Tensor:
        """The codes (3, L, D) of the faces that are drawn: locked, opened, opened by a guess."""
        key = self._between(first, second, position)
        locked = self.model.encrypt(code, key)
        opened = self.model.decrypt(locked.expand(2, -1, -1), torch.cat([key, self._key(guess)]))
        return torch.cat([locked, opened])

    def view(self, first: str, second: str, guess: str, position: float = 0.0, face: int = 0) -> View:
        """The faces of PANELS: one locked by a key between two passphrases, opened by that key, and by a guess.

        position: 0 is the first passphrase, 1 the second; face: which of those to choose from, the first where there
        are fewer. Raises ValueError for a passphrase without text, a position outside 0 to 1, or without a face.
        """
        original, code, embedding = self._face(face)
        drawn = self.model.synthesize(self._codes(code, first, second, guess, position), self.side)
        return View(torch.cat([original.to(drawn.device), drawn]), self._distances(drawn, embedding))

    def moving(self, first: str, second: str, position: float, face: int = 0) -> torch.Tensor:
        """The encrypted face of `view` alone, drawn at R px, (1, 3, R, R): many times faster. Raises as `view` does."""
        locked = self.model.encrypt(self._face(face)[1], self._between(first, second, position))
        return self.model.synthesize(locked)

    def preview(self, first: str, second: str, guess: str, position: float = 0.0, face: int = 0) -> torch.Tensor:
        """The faces of PANELS (4, 3, R, R) before the rest is known: of the encoder's code without refinement, a tenth
        of the work of a first `view`. Raises as `view` does."""
        i = self._number(face)
        original = self._chosen[0][i : i + 1]
        codes = self._codes(self.model.invert(original, refine=0), first, second, guess, position)
        drawn = self.model.synthesize(codes)
        return torch.cat([original.to(drawn.device), drawn])

    def large(self, panel: int, first: str, second: str, guess: str, position: float = 0.0, face: int = 0) -> bytes:
        """One of PANELS as large as the generator draws it, up to LARGE px, as JPEG; otherwise as `view`."""
        side, code = self.model.side_for(LARGE), self._face(face)[1]
        if panel == 0:
            return contact_sheet(self._large(self._number(face), side)[None], side)
        codes = self._codes(code, first, second, guess, position)[panel - 1 : panel]
        return contact_sheet(self.model.synthesize(codes, side), side)

    def wall(self, face: int = 0, seed: int = 0) -> View:
        """A face under 16 random keys at R px, the same for the same seed. Raises ValueError without a face."""
        _, code, embedding = self._face(face)
        keys = self.model.random_password(COLUMNS**2, seed)
        drawn = self.model.synthesize(self.model.encrypt(code.expand(len(keys), -1, -1), keys))
        distances = self._distances(drawn, embedding)
        return View(drawn, distances, tuple(distance < self.threshold for distance in distances))
