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
    for package in ("voila", "playwright"):
        pytest.importorskip(package, reason=f"{package} is not installed; run make test-browser")
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
        page.wait_for_function("document.querySelectorAll('.riddle .gallery img').length == 8")
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        yield page
        browser.close()


def screenshot(page, name: str) -> None:
    folder = config.home() / "results" / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def box(page, selector: str, i: int = 0) -> dict[str, float]:
    return page.locator(selector).nth(i).bounding_box()


def encrypted(page) -> str:
    return page.locator("[data-panel=Encrypted] img").get_attribute("src")


def wait_for_another(page, before: str) -> None:
    another = "before => (now => now && now != before)(document.querySelector('[data-panel=Encrypted] img').src)"
    page.wait_for_function(another, arg=before)
    page.wait_for_function("document.querySelector('.riddle .message').innerText == ''")


def drag(page, start: float, end: float) -> None:
    """Move the slider's thumb, which is some 16 px wide, and wait until the page shows where it is."""
    track = box(page, ".riddle input[name=position]")
    x, y = (lambda t: track["x"] + 8 + t * (track["width"] - 16)), track["y"] + track["height"] / 2
    page.mouse.move(x(start), y)
    page.mouse.down()
    for i in range(1, STEPS + 1):
        page.mouse.move(x(start + (end - start) * i / STEPS), y)
        time.sleep(PAUSE)
    page.mouse.up()
    near = "end => Math.abs(parseInt(document.querySelector('.riddle .way').innerText) - end) <= 3"
    page.wait_for_function(near, arg=100 * end)
    page.wait_for_function("document.querySelectorAll('.riddle .old').length == 0")


def test_it_is_laid_out(page):
    screenshot(page, "page")
    for i, panel in enumerate(("Original", "Encrypted", "Restored", "Wrong passphrase")):
        face = box(page, ".riddle .faces img", i)
        assert face["width"] >= 140 and abs(face["width"] - face["height"]) < 2
        assert page.locator(".riddle .faces > div > b").nth(i).inner_text() == panel
        bar, first = box(page, ".riddle .faces .bar", i), box(page, ".riddle .faces img")
        assert abs(bar["x"] - face["x"]) < 2 and abs(face["y"] - first["y"]) < 2
    assert page.locator(".riddle .faces .bar").nth(3).inner_text().endswith("somebody else")
    assert page.locator("h2").count() == 0, "what the notebook measures is no part of the page"
    choices = [box(page, ".riddle .gallery button", i)["y"] for i in range(8)]
    assert max(choices) - min(choices) < 2
    wall = box(page, ".riddle .side img")
    assert abs(wall["width"] - wall["height"]) < 2 and page.errors == []


def test_nothing_is_cut_off(page):
    cut = page.evaluate(
        """[...document.querySelectorAll('.riddle *')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth
           && !['INPUT', 'I', 'U'].includes(e.tagName) && getComputedStyle(e).display != 'inline')
           .map(e => e.tagName + '.' + e.className)"""
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_dragging_moves_the_faces(page):
    before = encrypted(page)
    page.evaluate(
        """window.updates = 0; new MutationObserver(c => updates += c.length).observe(
           document.querySelector('[data-panel=Encrypted] img'), {attributes: true, attributeFilter: ['src']})"""
    )
    drag(page, 0.0, 0.7)
    assert page.evaluate("updates") >= 2 and encrypted(page) != before
    screenshot(page, "dragged")


def dropped(page, name: str, data: bytes) -> None:
    transfer = page.evaluate_handle(
        """([name, data]) => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), t = new DataTransfer();
           t.items.add(new File([bytes], name, {type: 'image/png'})); return t }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event(".riddle .drop", "drop", {"dataTransfer": transfer})


def test_a_dropped_photo_of_three(page):
    out, before = io.BytesIO(), encrypted(page)
    demo.group_photo(data.sample_faces(3, 180), 180).save(out, "PNG")
    dropped(page, "party.png", out.getvalue())
    page.wait_for_function("document.querySelectorAll('.riddle .gallery img').length == 3")
    wait_for_another(page, before)
    assert "party.png" in page.locator(".riddle .drop").inner_text()
    before = encrypted(page)
    page.locator(".riddle .gallery button").nth(1).click()
    wait_for_another(page, before)
    assert page.locator(".riddle .gallery button").nth(1).get_attribute("aria-pressed") == "true"
    page.wait_for_function("document.querySelector('.riddle .side img').naturalWidth > 0")
    screenshot(page, "photo")
    assert page.errors == []


def test_the_name_of_a_dropped_file_is_shown_as_text(page):
    dropped(page, "<img src=x onerror=alert(1)>.png", b"no picture")
    page.wait_for_function("document.querySelector('.riddle .message').innerText.includes('<img src=x')")
    assert page.locator(".riddle .message img, .riddle .drop img").count() == 0
    assert page.locator(".riddle .faces img:visible, .riddle .side img:visible").count() == 0, "no older face"
    screenshot(page, "rejected")
    page.locator(".riddle .bundled").click()
    page.wait_for_function("document.querySelectorAll('.riddle .gallery img').length == 8")


def test_a_face_is_shown_large_on_request(page):
    page.locator("[data-panel=Restored] .face").click()
    page.wait_for_function("document.querySelector('.riddle dialog[open] img')?.naturalWidth == 1024")
    screenshot(page, "large")
    page.locator(".riddle dialog button").click()
    assert page.locator(".riddle dialog[open]").count() == 0 and page.errors == []


def test_it_fits_a_narrow_window(page):
    page.set_viewport_size({"width": 720, "height": 1000})
    try:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert box(page, ".riddle .faces")["width"] > 500
        screenshot(page, "narrow")
    finally:
        page.set_viewport_size({"width": 1280, "height": 1000})
