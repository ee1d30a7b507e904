"""The interactive page as Jupyter widgets: layout and connections; what it shows comes from riddle.app.controller.

page = Page(Controller(riddle.load("mobile")))
page                                             # in a notebook, or `voila notebooks/15_widgets.ipynb`
"""

from __future__ import annotations

from html import escape
from typing import Any

import anywidget
import ipywidgets as w
import traitlets

from riddle.app.controller import GAP, PANELS, SIDE, Bar, Controller, LatestWins

CAPTIONS = ("in the photo", "what everybody sees", "opened with the same password", "opened with a guess")
WIDTH = len(PANELS) * (SIDE + GAP) - GAP

CSS = """
.riddle { --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea; --same: #2468c8; --other: #d9761a; --page: #f3f5f8;
  background: var(--page); color: var(--ink); border-radius: 14px; padding: 16px; max-width: 1210px; margin: 0 auto;
  font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow: hidden; box-sizing: border-box; }
.riddle * { box-sizing: border-box; }
.riddle .widget-html, .riddle .widget-html-content { line-height: 1.35; height: auto; margin: 0; color: var(--ink);
  font-size: 13px; width: 100%; overflow: visible; }
.riddle .columns { display: flex; flex-flow: row wrap; gap: 16px; overflow: visible; }
.riddle .main { flex: 1 1 600px; gap: 16px; overflow: visible; min-width: 0; }
.riddle .side { flex: 1 1 300px; max-width: 600px; overflow: visible; }
.riddle .card { background: white; border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px 16px;
  gap: 10px; overflow: hidden; }
.riddle h3 { font-size: 15px; font-weight: 650; margin: 0; color: var(--ink); line-height: 1.3; }
.riddle h3 small { font-weight: 400; font-size: 13px; color: var(--soft); margin-left: 6px; }
.riddle .sources { display: flex; flex-flow: row wrap; align-items: center; gap: 16px; overflow: visible; }
.riddle .sources > :first-child { flex: 0 0 230px; } .riddle .sources > :last-child { flex: 1 1 300px; }
.riddle .words { display: flex; flex-flow: row wrap; align-items: flex-end; gap: 8px 18px; overflow: visible; }
.riddle .words .way { flex: 1 1 180px; overflow: visible; }
.riddle .word { flex: 1 1 170px; max-width: 260px; overflow: visible; }
.riddle .word .widget-html-content, .riddle .way .widget-html-content { color: var(--soft); font-size: 12px; }
.riddle .widget-text { width: 100%; margin: 2px 0 0; height: 34px; }
.riddle .widget-text input { height: 34px; font-size: 14px; border: 1px solid #b9c3ce; border-radius: 8px;
  padding: 0 10px; background: white; color: var(--ink); }
.riddle .widget-text input:focus { border-color: var(--same); outline: 2px solid #2468c833; }
.riddle .widget-slider { width: 100%; height: 34px; margin: 2px 0 0; }
.riddle .slider-container { margin: 0 10px; }
.riddle .noUi-target { background: linear-gradient(90deg, #9fc0ee, #efc79c); border: none; height: 8px;
  border-radius: 4px; }
.riddle .noUi-connects { background: transparent; } .riddle .noUi-connect { background: transparent; }
.riddle .noUi-horizontal .noUi-handle { width: 22px; height: 22px; top: -7px; right: -11px; border-radius: 50%;
  background: white !important; border: 3px solid var(--ink); cursor: grab; }
.riddle .faces { width: 100%; overflow: visible; margin: 0; gap: 8px; }
.riddle .widget-image { width: 100% !important; height: auto; max-width: 100%; margin: 0; display: block; }
.riddle .row { display: grid; grid-template-columns: repeat(4, 1fr); column-gap: GAP%; }
.riddle .row b { display: block; font-size: 14px; } .riddle .row span { color: var(--soft); font-size: 12px; }
.riddle .track { position: relative; height: 10px; border-radius: 5px; background: #e8ecf1; margin: 10px 0 6px; }
.riddle .track i { position: absolute; inset: 0 auto 0 0; border-radius: 5px; background: var(--other); }
.riddle .same .track i { background: var(--same); }
.riddle .track u { position: absolute; left: calc(50% - 1px); top: -5px; bottom: -5px; width: 2px;
  background: var(--ink); }
.riddle .bar { font-size: 12px; font-variant-numeric: tabular-nums; } .riddle .bar b { color: #a9570a; }
.riddle .bar.same b { color: var(--same); }
.riddle .widget-button { border-radius: 8px; height: 34px; width: 100%; margin: 0; background: #e9eef5;
  color: var(--ink); font-size: 14px; }
.riddle .message { min-height: 20px; } .riddle .message .error { color: #a3211b; }
""".replace("GAP%", f"{100 * GAP / WIDTH:.3f}%")


class DropZone(anywidget.AnyWidget):
    """Where a photo is dropped, or chosen from disk. It arrives as a message, so that no notebook stores it."""

    # A message of a Jupyter server is at most 10 MB: a larger photo is reduced before it is sent.
    _esm = """
    const MOST = 6e6, LONGEST = 2048;
    async function reduced(file) {
      const bitmap = await createImageBitmap(file, {imageOrientation: "from-image"});
      const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
      const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
      canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      return canvas.convertToBlob({type: "image/jpeg", quality: 0.95});
    }
    function render({model, el}) {
      const zone = document.createElement("label"), input = document.createElement("input");
      const title = document.createElement("b"), note = document.createElement("span");
      zone.className = "riddle-drop";
      input.type = "file"; input.accept = "image/*"; input.setAttribute("aria-label", "Choose a photo");
      title.textContent = "Drop a photo here"; note.textContent = "or click to choose one";
      zone.append(title, note, input); el.append(zone);
      async function send(file) {
        if (!file) return;
        try {
          const blob = file.size > MOST ? await reduced(file) : file;
          model.send({name: file.name}, undefined, [await blob.arrayBuffer()]);
          note.textContent = file.name;
        } catch (e) { note.textContent = file.name + " cannot be read"; }
      }
      input.addEventListener("change", () => { send(input.files[0]); input.value = ""; });
      for (const kind of ["dragenter", "dragover"])
        zone.addEventListener(kind, e => { e.preventDefault(); zone.classList.add("over"); });
      zone.addEventListener("dragleave", () => zone.classList.remove("over"));
      zone.addEventListener("drop", e => {
        e.preventDefault(); e.stopPropagation(); zone.classList.remove("over"); send(e.dataTransfer.files[0]);
      });
    }
    export default {render};
    """
    _css = """
    .riddle-drop { display: flex; flex-direction: column; align-items: center; justify-content: center; height: 76px;
      border: 2px dashed #a9b6c4; border-radius: 10px; background: #f8fafc; cursor: pointer; color: #1d2733;
      font-size: 14px; text-align: center; padding: 6px; overflow: hidden; }
    .riddle-drop span { font-size: 12px; color: #5d6b7a; max-width: 100%; overflow: hidden; text-overflow: ellipsis;
      white-space: nowrap; }
    .riddle-drop input { position: absolute; width: 1px; height: 1px; opacity: 0; }
    .riddle-drop:hover, .riddle-drop.over, .riddle-drop:focus-within { border-color: #2468c8; background: #edf3fc; }
    """


class Gallery(anywidget.AnyWidget):
    """Faces to choose from."""

    _esm = """
    function render({model, el}) {
      const row = document.createElement("div");
      row.className = "riddle-gallery"; row.setAttribute("role", "group"); el.append(row);
      function mark() {
        [...row.children].forEach((b, i) => b.setAttribute("aria-pressed", i === model.get("chosen")));
      }
      function fill() {
        for (const image of row.querySelectorAll("img")) URL.revokeObjectURL(image.src);
        row.replaceChildren(...model.get("pictures").map((bytes, i) => {
          const button = document.createElement("button"), image = document.createElement("img");
          image.src = URL.createObjectURL(new Blob([bytes], {type: "image/jpeg"}));
          image.alt = "Face " + (i + 1); button.title = image.alt; button.append(image);
          button.addEventListener("click", () => { model.set("chosen", i); model.save_changes(); });
          return button;
        }));
        mark();
      }
      model.on("change:pictures", fill); model.on("change:chosen", mark); fill();
    }
    export default {render};
    """
    _css = """
    .riddle-gallery { display: flex; flex-wrap: wrap; gap: 8px; max-height: 136px; overflow-y: auto; padding: 3px; }
    .riddle-gallery button { width: 56px; height: 56px; padding: 0; border: none; border-radius: 10px; overflow: hidden;
      cursor: pointer; background: none; }
    .riddle-gallery img { width: 100%; height: 100%; display: block; object-fit: cover; }
    .riddle-gallery button[aria-pressed=true] { outline: 3px solid #2468c8; }
    .riddle-gallery button:hover { filter: brightness(1.08); }
    """
    pictures = traitlets.List(traitlets.Bytes()).tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)


def _box(kind: type[w.Box], name: str, *children: w.Widget) -> w.Box:
    box = kind(children)
    for word in name.split():
        box.add_class(word)
    return box


def _titled(title: str, note: str = "") -> w.HTML:
    return w.HTML(f"<h3>{title}<small>{note}</small></h3>")


def _word(label: str, value: str) -> tuple[w.Text, w.Box]:
    field = w.Text(value=value, continuous_update=False)
    field.tooltip = label
    return field, _box(w.VBox, "word", w.HTML(label), field)


def _bar(bar: Bar) -> str:
    verdict = "the same person" if bar.same else "somebody else"
    return (
        f'<div class="bar{" same" if bar.same else ""}" data-panel="{bar.label}">'
        f'<div class="track"><i style="width:{100 * bar.share:.1f}%"></i><u></u></div>'
        f"{bar.distance:.2f} &nbsp;<b>{verdict}</b></div>"
    )


class Page(w.VBox):
    """The whole page. The photo and the slider's way through it are the controller's; see riddle.app.controller."""

    def __init__(self, controller: Controller, first: str = "correct horse", second: str = "battery staple"):
        self.controller, self.work, self.seed = controller, LatestWins(self._failed), 0
        self.photo, self.gallery, self.message = DropZone(), Gallery(), w.HTML()
        self.first, first_box = _word("First passphrase", first)
        self.second, second_box = _word("Second passphrase", second)
        self.guess, guess_box = _word("Somebody's guess", "letmein")
        self.slider = w.FloatSlider(value=0, min=0, max=1, step=0.01, readout=False)
        self.pace, self.bars, self.count = w.HTML(), w.HTML(), w.HTML()
        self.picture, self.wall = w.Image(format="jpeg"), w.Image(format="jpeg")
        self.others = w.Button(description="Sixteen other passwords")
        captions = "".join(f"<div><b>{p}</b><span>{c}</span></div>" for p, c in zip(PANELS, CAPTIONS, strict=True))
        way = _box(w.VBox, "way", self.pace, self.slider)
        main = _box(
            w.VBox, "main",
            _box(
                w.VBox, "card", _titled("1 &nbsp;Choose a face", "yours, or one of somebody who does not exist"),
                _box(w.Box, "sources", self.photo, self.gallery), self.message,
            ),
            _box(
                w.VBox, "card", _titled("2 &nbsp;Lock it", "drag from one passphrase to the other"),
                _box(w.Box, "words", first_box, way, second_box, guess_box),
            ),
            _box(
                w.VBox, "card", _titled("3 &nbsp;Who is it now?", f"to {escape(controller.judge.name)}, a recogniser"),
                _box(w.VBox, "faces", w.HTML(f'<div class="row">{captions}</div>'), self.picture, self.bars),
            ),
        )  # fmt: skip
        side = _box(
            w.VBox, "card side", _titled("A wall of strangers", "one face, sixteen passwords"),
            self.wall, self.count, self.others,
        )  # fmt: skip
        super().__init__([w.HTML(f"<style>{CSS}</style>"), _box(w.Box, "columns", main, side)])
        self.add_class("riddle")
        self.message.add_class("message")
        self._connect()
        self.work.submit("faces", lambda: self._faces(controller.samples))
        self.work.wait()

    def _connect(self) -> None:
        self.photo.on_msg(self._dropped)
        self.gallery.observe(lambda _: self._redraw(), "chosen")
        for field in (self.first, self.second, self.guess, self.slider):
            field.observe(lambda _: self.work.submit("view", self._view), "value")
        self.others.on_click(self._others)

    # Below: what the background thread does.

    def _faces(self, find: Any) -> None:
        find()
        self.gallery.chosen, self.gallery.pictures = 0, self.controller.thumbnails()
        self._view()
        self._wall()

    def _view(self) -> None:
        words = self.first.value, self.second.value, self.guess.value
        view = self.controller.view(*words, self.slider.value, self.gallery.chosen)
        self.picture.value = view.picture()
        note = f"Distance from the original; the mark is the threshold, {self.controller.threshold:.2g}"
        bars = "".join(map(_bar, view.bars))
        self.bars.value = f'<div class="row"><div><span>{note}</span></div>{bars}</div>'
        self.pace.value = f"{self.slider.value:.0%} of the way &middot; {1000 * view.seconds:.0f} ms"
        self.message.value = ""

    def _wall(self) -> None:
        wall = self.controller.wall(self.gallery.chosen, self.seed)
        self.wall.value = wall.picture()
        self.count.value = f"{wall.strangers} of {len(wall.bars)} are somebody else to the recogniser."

    def _failed(self, error: Exception) -> None:
        self.message.value = f'<div class="error" role="alert">{escape(str(error))}</div>'

    # Below: what the page asks for.

    def _dropped(self, _: DropZone, content: dict[str, Any], buffers: list[Any]) -> None:
        photo, name = bytes(buffers[0]), str(content.get("name", ""))
        self.message.value = "Looking for faces &hellip;"
        self.work.submit("faces", lambda: self._faces(lambda: self.controller.open(photo, name)))

    def _redraw(self) -> None:
        self.work.submit("view", self._view)
        self.work.submit("wall", self._wall)

    def _others(self, _: w.Button) -> None:
        self.seed += 1
        self.work.submit("wall", self._wall)
