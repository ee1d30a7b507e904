"""The interactive page as Jupyter widgets: layout and connections; what it shows comes from riddle.app.controller.

page = Page(Controller(riddle.load("mobile")))
page                                             # in a notebook, or `voila notebooks/15_widgets.ipynb`
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import traitlets

from riddle.app.controller import PANELS, Bar, Controller, LatestWins

PAGE = Path(__file__).parent / "page"
CAPTIONS = ("in the photo", "what everybody sees", "opened with the same password", "opened with a guess")


class DropZone(anywidget.AnyWidget):
    """Where a photo is dropped, or chosen from disk; it arrives as a message."""

    _esm = PAGE / "drop.js"


class Gallery(anywidget.AnyWidget):
    """Faces to choose from."""

    _esm = PAGE / "gallery.js"
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)  # JPEG
    chosen = traitlets.Int(0).tag(sync=True)


def _box(kind: type[w.Box], classes: str, *children: w.Widget) -> w.Box:
    box = kind(children)
    for name in classes.split():
        box.add_class(name)
    return box


def _card(title: str, note: str, *children: w.Widget, classes: str = "card") -> w.Box:
    return _box(w.VBox, classes, w.HTML(f"<h3>{title}<small>{note}</small></h3>"), *children)


def _labelled(label: str, field: w.Text) -> w.Box:
    field.tooltip = label
    return _box(w.VBox, "word", w.HTML(label), field)


def _bar(bar: Bar) -> str:
    verdict = "the same person" if bar.same else "somebody else"
    return (
        f'<div class="bar{" same" if bar.same else ""}" data-panel="{bar.label}">'
        f'<div class="track"><i style="width:{100 * bar.share:.1f}%"></i><u></u></div>'
        f"{bar.distance:.2f} &nbsp;<b>{verdict}</b></div>"
    )


class Page(w.VBox):
    """The whole page. A background thread draws it, the newest request first; see `LatestWins`."""

    def __init__(self, controller: Controller, first: str = "correct horse", second: str = "battery staple"):
        self.controller, self.work, self.seed = controller, LatestWins(self._failed), 0
        self.photo, self.gallery, self.message = DropZone(), Gallery(), w.HTML()
        self.first, self.second, self.guess = (
            w.Text(value=value, continuous_update=False) for value in (first, second, "letmein")
        )
        self.slider = w.FloatSlider(value=0, min=0, max=1, step=0.01, readout=False)
        self.pace, self.bars, self.count = w.HTML(), w.HTML(), w.HTML()
        self.picture, self.wall = w.Image(format="jpeg"), w.Image(format="jpeg")
        self.others = w.Button(description="Sixteen other passwords")
        style = w.HTML(f"<style>{(PAGE / 'page.css').read_text(encoding='utf-8')}</style>")
        strangers = (self.wall, self.count, self.others)
        side = _card("A wall of strangers", "one face, sixteen passwords", *strangers, classes="card side")
        super().__init__([style, _box(w.Box, "columns", self._main(), side)])
        self.add_class("riddle")
        self.message.add_class("message")
        self.photo.on_msg(self._dropped)
        self.gallery.observe(self._chosen, "chosen")
        for field in (self.first, self.second, self.guess, self.slider):
            field.observe(lambda _: self.work.submit("view", self._view), "value")
        self.others.on_click(self._others)
        self.work.submit("faces", lambda: self._faces(controller.samples))
        self.work.wait()

    def _main(self) -> w.Box:
        sources = _box(w.Box, "sources", self.photo, self.gallery)
        words = _box(
            w.Box, "words", _labelled("First passphrase", self.first), _box(w.VBox, "way", self.pace, self.slider),
            _labelled("Second passphrase", self.second), _labelled("Somebody's guess", self.guess),
        )  # fmt: skip
        captions = "".join(f"<div><b>{p}</b><span>{c}</span></div>" for p, c in zip(PANELS, CAPTIONS, strict=True))
        faces = _box(w.VBox, "faces", w.HTML(f'<div class="row">{captions}</div>'), self.picture, self.bars)
        recogniser = escape(self.controller.recogniser.name)
        return _box(
            w.VBox, "main",
            _card("1 &nbsp;Choose a face", "yours, or one of somebody who does not exist", sources, self.message),
            _card("2 &nbsp;Lock it", "drag from one passphrase to the other", words),
            _card("3 &nbsp;Who is it now?", f"to {recogniser}, a recogniser", faces),
        )  # fmt: skip

    # What the background thread does

    def _faces(self, find: Callable[[], int]) -> None:
        find()
        self.gallery.chosen, self.gallery.pictures = 0, self.controller.thumbnails()
        self._view()
        self._wall()

    def _view(self) -> None:
        words = self.first.value, self.second.value, self.guess.value
        view = self.controller.view(*words, self.slider.value, self.gallery.chosen)
        self.picture.value = view.picture()
        note = f"Distance from the original; the mark is the threshold, {self.controller.threshold:.2g}"
        self.bars.value = f'<div class="row"><div><span>{note}</span></div>{"".join(map(_bar, view.bars))}</div>'
        self.pace.value = f"{self.slider.value:.0%} of the way &middot; {1000 * view.seconds:.0f} ms"
        self.message.value = ""

    def _wall(self) -> None:
        wall = self.controller.wall(self.gallery.chosen, self.seed)
        self.wall.value = wall.picture()
        self.count.value = f"{wall.strangers} of {len(wall.bars)} are somebody else to the recogniser."

    def _failed(self, error: Exception) -> None:
        self.message.value = f'<div class="error" role="alert">{escape(str(error))}</div>'

    # What a visitor asks for

    def _dropped(self, _: DropZone, content: dict[str, Any], buffers: list[Any]) -> None:
        photo, name = bytes(buffers[0]), str(content.get("name", ""))
        self.message.value = "Looking for faces &hellip;"
        self.work.submit("faces", lambda: self._faces(lambda: self.controller.open(photo, name)))

    def _chosen(self, _: Any) -> None:
        self.work.submit("view", self._view)
        self.work.submit("wall", self._wall)

    def _others(self, _: w.Button) -> None:
        self.seed += 1
        self.work.submit("wall", self._wall)
