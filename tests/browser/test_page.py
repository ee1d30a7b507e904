"""The page of notebook 15 under voila, in a real browser: laid out, alive under the mouse, and fed with a photo.

Needs voila, playwright and a Chromium of the system; `make test-browser` installs and runs it. Screenshots are kept
in results/runs/browser/.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from riddle import config, data, demo

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 240  # seconds for a page to come up on a busy machine
STEPS, PAUSE = 60, 0.03  # of a drag

pytestmark = pytest.mark.timeout(900)


def chromium() -> str:
    """The browser's path; skips where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed; run make test-browser")
    return path


@pytest.fixture(scope="module")
def address(root, tmp_path_factory):
    """Where voila serves the notebook."""
    pytest.importorskip("voila", reason="voila is not installed; run make test-browser")
    pytest.importorskip("playwright", reason="playwright is not installed; run make test-browser")
    chromium()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = tmp_path_factory.mktemp("voila") / "log.txt"
    environment = os.environ | {"RIDDLE_OFFLINE": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "voila", "notebooks/15_widgets.ipynb", "--no-browser", f"--port={port}"]
    with open(log, "w") as output:
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def page(address):
    """The page, drawn; its errors in `page.errors`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        page.errors = []
        page.on("pageerror", lambda e: page.errors.append(str(e)))
        page.goto(address, timeout=1000 * PATIENCE)
        page.wait_for_function("[...document.querySelectorAll('.riddle .widget-image')].length == 2")
        page.wait_for_function("document.querySelectorAll('.riddle-gallery img').length == 8")
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        yield page
        browser.close()


def screenshot(page, name: str) -> Path:
    folder = config.home() / "results" / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


def box(page, selector: str, i: int = 0) -> dict[str, float]:
    return page.locator(selector).nth(i).bounding_box()


def distance(page, panel: str) -> float:
    return float(page.locator(f"[data-panel='{panel}']").inner_text().split()[0])


def write(page, label: str, text: str) -> None:
    field = page.locator(f".riddle .word:has-text('{label}') input")
    field.fill(text)
    field.press("Enter")


def picture(page) -> str:
    return page.locator(".riddle .faces img").get_attribute("src")


def drag(page, start: float, end: float) -> None:
    track = box(page, ".riddle .noUi-base")
    x, y = (lambda t: track["x"] + t * track["width"]), track["y"] + track["height"] / 2
    page.mouse.move(x(start), y)
    page.mouse.down()
    for i in range(1, STEPS + 1):
        page.mouse.move(x(start + (end - start) * i / STEPS), y)
        time.sleep(PAUSE)
    page.mouse.up()


def test_it_is_laid_out(page):
    screenshot(page, "page")
    faces = page.locator(".riddle .faces img")
    shown = faces.bounding_box()
    assert shown["width"] >= 600  # four faces of 140 px or more
    assert faces.evaluate("i => Math.abs(i.clientWidth / i.clientHeight - i.naturalWidth / i.naturalHeight)") < 0.05
    share = 208 / 816  # a face and the gap beside it
    for i, panel in enumerate(("Original", "Encrypted", "Restored", "Wrong password")):
        assert page.locator(".riddle .faces .row b").nth(i).inner_text() == panel
        caption = box(page, ".riddle .faces > :first-child .row > div", i)
        assert abs(caption["x"] - (shown["x"] + i * share * shown["width"])) < 2, f"{panel} is not above its face"
        if i:
            bar = box(page, ".riddle .bar .track", i - 1)
            assert abs(bar["x"] - caption["x"]) < 2 and abs(bar["width"] - 192 / 816 * shown["width"]) < 3
    assert abs(box(page, ".riddle .side img")["width"] - box(page, ".riddle .side img")["height"]) < 2
    assert page.errors == []


def test_nothing_is_cut_off(page):
    cut = page.evaluate(
        """[...document.querySelectorAll('.riddle *')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth
           && !['INPUT', 'I', 'U'].includes(e.tagName) && !e.closest('.widget-slider')
           && getComputedStyle(e).display != 'inline').map(e => e.tagName + '.' + e.className)"""
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_dragging_moves_the_faces(page, capsys):
    before = picture(page)
    page.evaluate(
        """window.updates = 0; new MutationObserver(c => updates += c.length).observe(
           document.querySelector('.riddle .faces img'), {attributes: true, attributeFilter: ['src']})"""
    )
    began = time.monotonic()
    drag(page, 0.0, 0.7)
    seconds = time.monotonic() - began
    page.wait_for_function("/7\\d%|70%|69%/.test(document.querySelector('.riddle .way').innerText)")
    updates = page.evaluate("updates")
    cost = page.locator(".riddle .way").inner_text()
    with capsys.disabled():
        print(
            f"\n  in the browser: {updates / seconds:.1f} pictures/s while dragging for {seconds:.1f} s; {cost!r} ",
            end="",
        )
    assert updates >= 2 and picture(page) != before
    screenshot(page, "dragged")


def test_the_right_guess_brings_the_face_back(page):
    drag(page, 0.7, 0.0)
    page.wait_for_function("document.querySelector('.riddle .way').innerText.startsWith('0%')")
    wrong, shown = distance(page, "Wrong password"), picture(page)
    write(page, "guess", "correct horse")
    page.wait_for_function("before => document.querySelector('.riddle .faces img').src != before", arg=shown)
    page.wait_for_function(
        """() => { const [r, g] = ['Restored', 'Wrong password'].map(p => parseFloat(
           document.querySelector(`[data-panel='${p}']`).innerText)); return Math.abs(r - g) < 0.015 }"""
    )
    assert distance(page, "Wrong password") < wrong
    write(page, "guess", "letmein")
    page.wait_for_function(
        "d => Math.abs(parseFloat(document.querySelector(`[data-panel='Wrong password']`).innerText) - d) < 0.015",
        arg=wrong,
    )


def test_an_empty_passphrase_is_explained(page):
    write(page, "First", "")
    page.wait_for_selector(".riddle .error")
    assert "the passphrase is empty" in page.locator(".riddle .error").inner_text()
    write(page, "First", "correct horse")
    page.wait_for_selector(".riddle .error", state="detached")


def test_a_dropped_photo_of_three(page):
    out = io.BytesIO()
    demo.group_photo(data.sample_faces(3, 180), 180).save(out, "PNG")
    before = picture(page)
    transfer = page.evaluate_handle(
        """data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), t = new DataTransfer();
           t.items.add(new File([bytes], 'party.png', {type: 'image/png'})); return t }""",
        base64.b64encode(out.getvalue()).decode(),
    )
    page.dispatch_event(".riddle-drop", "drop", {"dataTransfer": transfer})
    page.wait_for_function("document.querySelectorAll('.riddle-gallery img').length == 3")
    page.wait_for_function("before => document.querySelector('.riddle .faces img').src != before", arg=before)
    assert "party.png" in page.locator(".riddle-drop").inner_text()
    before = picture(page)
    page.locator(".riddle-gallery button").nth(1).click()
    page.wait_for_function("before => document.querySelector('.riddle .faces img').src != before", arg=before)
    assert page.locator(".riddle-gallery button").nth(1).get_attribute("aria-pressed") == "true"
    screenshot(page, "photo")
    assert page.errors == []


def test_it_fits_a_narrow_window(page):
    page.set_viewport_size({"width": 720, "height": 1000})
    try:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert box(page, ".riddle .faces img")["width"] > 500
        screenshot(page, "narrow")
    finally:
        page.set_viewport_size({"width": 1280, "height": 1000})
