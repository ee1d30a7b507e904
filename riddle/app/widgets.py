"""The interactive page as a Jupyter widget: its values; page/page.js shows them, riddle.app.controller computes them.

page = Page(Controller(riddle.load("mobile")))
page                                             # in a notebook, or `voila notebooks/15_widgets.ipynb`
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import anywidget
from traitlets import Bytes, Dict, Float, Int, List, Unicode

from riddle.app.controller import PANELS, SIDE, Controller, contact_sheet

PAGE = Path(__file__).parent / "page"
WALL_SIDE = 128  # px of a face in the wall of strangers
CAPTIONS = ("in the photo", "what everybody sees", "opened with the same passphrase", "opened with a guess")

FOLLOWING = {"share": None, "same": False, "said": "", "verdict": ""}  # a bar whose distance follows


def bar(distance: float, threshold: float) -> dict[str, Any]:
    """A face's bar: its length, 0 to 1, with the threshold in the middle; whether it is the same person; two texts."""
    same, share = distance < threshold, min(max(distance / (2 * threshold), 0.0), 1.0)
    verdict = "the same person" if same else "somebody else"
    return {"share": share, "same": same, "said": f"{distance:.2f}", "verdict": verdict}


class Page(anywidget.AnyWidget):
    """The whole page. A dragged slider queues no work: Jupyter sends one message of a widget at a time, and then
    only the newest values. While it moves, only the encrypted face follows; the rest does where it stops."""

    _esm = PAGE / "page.js"
    _css = PAGE / "page.css"
    # What the visitor chooses
    first = Unicode("correct horse").tag(sync=True)  # passphrases
    second = Unicode("battery staple").tag(sync=True)
    guess = Unicode("letmein").tag(sync=True)
    position = Float(0.0).tag(sync=True)  # where the slider rests: 0 is the first passphrase, 1 the second
    moving = Float(0.0).tag(sync=True)  # where it is while the visitor drags it
    chosen = Int(0).tag(sync=True)  # which of `choices`
    # What the visitor sees; all pictures are JPEG
    choices = List(Bytes()).tag(sync=True)  # faces to choose from
    panels = List([[*pair] for pair in zip(PANELS, CAPTIONS, strict=True)]).tag(sync=True)  # titles and captions
    faces = List(Bytes()).tag(sync=True)  # of the panels
    bars = List(Dict()).tag(sync=True)  # of the panels
    wall = Bytes().tag(sync=True)
    pace, count, recogniser, message = (Unicode().tag(sync=True) for _ in range(4))

    def __init__(self, controller: Controller):
        self.controller, self.seed = controller, 0
        super().__init__(recogniser=f"judged by {controller.recogniser.name}, a face recogniser")
        self.on_msg(self._asked)
        self.observe(lambda _: self._show(self._view), ["first", "second", "guess", "position"])
        self.observe(lambda _: self._show(self._move), "moving")
        self.observe(lambda _: self._show(self._preview, self._view, self._wall), "chosen")
        self._take(controller.samples)

    def _asked(self, _: Page, content: dict[str, Any], buffers: list[Any]) -> None:
        """A message of the visitor: a photo, or the wish for other strangers, the bundled faces, or a large view; or of
        the script, which asks for the rest when the faces to choose from are there: so the preview comes first."""
        if "rest" in content:
            return None if self.wall else self._show(self._view, self._wall)
        if "others" in content:
            self.seed += 1
            return self._show(self._wall)
        if "large" in content:
            return self._show(lambda: self._large(int(content["large"])))
        # Before the search, which may fail: no older face stands beside a message about a photo.
        self.choices, self.faces, self.bars, self.wall, self.count, self.pace = [], [], [], b"", "", ""
        if "bundled" in content:
            return self._take(self.controller.samples)
        self.message = "Looking for faces …"
        self._take(lambda: self.controller.open(bytes(buffers[0]), str(content.get("name", ""))))

    def _take(self, find: Callable[[], int]) -> None:
        """Offer the faces that `find` finds, and show the first."""
        self._show(find, self._offer)

    def _offer(self) -> None:
        self.choices, self.message = self.controller.thumbnails(), "Drawing …"
        if self.chosen:
            self.chosen = 0  # its observer shows the face
        else:
            self._show(self._preview)

    def _show(self, *steps: Callable[[], None]) -> None:
        """Do steps; the page shows an error as its message."""
        try:
            for step in steps:
                step()
        except Exception as e:  # after any error, the visitor may try another photo or passphrase
            self.message = str(e)

    def _large(self, panel: int) -> None:
        """Send a panel's face as large as it can be drawn; as a message, since no notebook needs to keep it."""
        words = self.first, self.second, self.guess
        jpeg = self.controller.large(panel, *words, self.position, self.chosen)
        self.send({"large": panel}, buffers=[jpeg])

    def _preview(self) -> None:
        words = self.first, self.second, self.guess
        faces = self.controller.preview(*words, self.position, self.chosen)
        with self.hold_sync():
            self.faces, self.bars = [contact_sheet(face, SIDE) for face in faces.split(1)], []
            self.message = "Drawing them finer …"

    def _move(self) -> None:
        if len(self.bars) < len(PANELS):  # the first view is still to come
            return
        if self.moving == self.position:  # dragged back, so that the script tells no new position
            return self._view()
        began = perf_counter()
        face = self.controller.moving(self.first, self.second, self.moving, self.chosen)
        with self.hold_sync():
            self.faces = [self.faces[0], contact_sheet(face, SIDE), *self.faces[2:]]
            self.bars = [self.bars[0], FOLLOWING, *[FOLLOWING | {"old": True}] * (len(PANELS) - 2)]
            self.pace = f"{self.moving:.0%} of the way · {perf_counter() - began:.2g} s"

    def _view(self) -> None:
        began = perf_counter()
        view = self.controller.view(self.first, self.second, self.guess, self.position, self.chosen)
        took, threshold = perf_counter() - began, self.controller.threshold
        note = f"Distance from the original; the mark is the threshold, {threshold:.2g}"
        with self.hold_sync():
            self.faces = [contact_sheet(face, SIDE) for face in view.faces.split(1)]
            bars = [bar(distance, threshold) for distance in view.distances]
            self.bars = [FOLLOWING | {"said": note}, *bars]
            self.pace = f"{self.position:.0%} of the way · {took:.2g} s"
            self.message = ""

    def _wall(self) -> None:
        wall = self.controller.wall(self.chosen, self.seed)
        self.wall = wall.picture(WALL_SIDE)
        same, count = sum(wall.same), len(wall.same)
        framed = f" It takes the framed {'one' if same == 1 else same} for the same person." if same else ""
        self.count = f"{count - same} of {count} are somebody else to the recogniser.{framed}"
