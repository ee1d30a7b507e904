"""The interactive page without a browser: what its controller draws and measures, and that its widgets follow."""

import io
import re
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from riddle import demo, passwords, presets
from riddle.app import controller as module
from riddle.app.controller import GAP, SIDE, Controller, contact_sheet
from riddle.app.widgets import WALL_SIDE, Page, bar
from riddle.faces.detection import FaceNotFoundError

WORDS = ("correct horse", "battery staple", "letmein")


@pytest.fixture
def model(smoke, quick_keys):
    return smoke


@pytest.fixture
def controller(model):
    c = Controller(model)
    c.samples(3)
    return c


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


# What is drawn


def test_a_view_is_the_pipeline_step_by_step(model, controller):
    view = controller.view(*WORDS, position=0.25, face=1)
    a, b, guess = (model.password(p) for p in WORDS)
    key, w = 0.75 * a + 0.25 * b, model.invert(view.faces[:1])
    locked = model.encrypt(w, key)
    expected = [model.synthesize(c)[0] for c in (locked, model.decrypt(locked, key), model.decrypt(locked, guess))]
    for drawn, wanted in zip(view.faces[1:], expected, strict=True):
        torch.testing.assert_close(drawn, wanted, atol=2e-4, rtol=0)
    assert contact_sheet(view.faces[:1], 128) == controller.thumbnails()[1]


def test_distances_are_those_of_dlibs_network_or_one_minus_a_cosine(model, controller, monkeypatch):
    view = controller.view(*WORDS, position=0.5)
    e = controller.recogniser.from_crop(view.faces).detach().double()
    assert view.distances == pytest.approx((e[1:] - e[0]).norm(dim=1).tolist(), abs=1e-4)
    assert controller.threshold == 0.6  # dlib's documentation
    recogniser = SimpleNamespace(name="stub", distance="cosine", threshold=0.3, similarity=torch.cosine_similarity)
    recogniser.from_crop = lambda faces: faces.flatten(1)
    monkeypatch.setattr(module.recognizers, "load", lambda name, device: recogniser)
    c = Controller(model, "stub")
    c.samples(1)
    view = c.view(*WORDS)
    a, b = view.faces[0].flatten().double(), view.faces[1].flatten().double()
    assert view.distances[0] == pytest.approx(float(1 - (a @ b) / a.norm() / b.norm()), abs=1e-4)
    assert c.threshold == pytest.approx(0.7)


def test_the_threshold_is_the_middle_of_a_bar():
    for distance, share, same in ((0, 0, True), (0.3, 0.25, True), (0.6, 0.5, False), (1.2, 1, False), (9, 1, False)):
        shown = bar(distance, 0.6)
        assert shown["share"] == pytest.approx(share) and shown["same"] == same


def test_faces_are_shown_in_rows(controller):
    faces = torch.stack([torch.full((3, 8, 8), v) for v in (-1.0, 0.0, 1.0)])
    sheet = pixels(contact_sheet(faces, 16, 2, 4))
    assert sheet.shape == (36, 36, 3)
    assert sheet[:16, :16].max() < 8 and np.abs(sheet[2:14, 22:34] - 127.5).max() < 6 and sheet[20:].min() > 245
    framed = pixels(contact_sheet(torch.zeros(2, 3, 8, 8), 16, 2, 4, (False, True)))
    assert np.abs(framed[1, 22:34] - module.BLUE).max() < 12 and np.abs(framed[4:12, 24:32] - 127.5).max() < 12
    assert np.abs(framed[:, :16] - 127.5).max() < 6
    view = controller.view(*WORDS)
    row = pixels(view.picture())
    assert row.shape == (SIDE, 4 * SIDE + 3 * GAP, 3)
    for i, face in enumerate(view.faces):
        left = i * (SIDE + GAP)
        wanted = (face.mean((1, 2)) + 1).numpy() * 127.5
        assert np.abs(row[:, left : left + SIDE].mean((0, 1)) - wanted).max() < 4


def test_the_wall(model, controller):
    wall, again, other = controller.wall(0, seed=4), controller.wall(0, seed=4), controller.wall(0, seed=5)
    assert wall.faces.shape == (16, 3, 32, 32) and torch.equal(wall.faces, again.faces)
    assert not torch.allclose(wall.faces, other.faces, atol=1e-2)
    w = model.invert(controller.view(*WORDS).faces[:1])
    third = model.synthesize(model.encrypt(w, model.random_password(16, seed=4)[2:3]))
    torch.testing.assert_close(wall.faces[2:3], third, atol=2e-4, rtol=0)
    assert len(wall.distances) == 16 and wall.same == tuple(d < controller.threshold for d in wall.distances)
    assert pixels(wall.picture(100)).shape == (4 * 100 + 3 * GAP, 4 * 100 + 3 * GAP, 3)


# What is kept


def test_dragging_inverts_nothing_and_derives_no_key_again(model, monkeypatch):
    key, invert = Mock(wraps=passwords.derive_key), Mock(wraps=model.invert)
    monkeypatch.setattr(passwords, "derive_key", key)
    monkeypatch.setattr(model, "invert", invert)
    c = Controller(model)
    c.samples(2)
    for i in range(5):
        c.view(*WORDS, position=i / 4)
    assert (key.call_count, invert.call_count) == (3, 1)
    c.view(*WORDS, face=1)
    c.wall(1)
    assert (key.call_count, invert.call_count) == (3, 2), "another face is inverted when it is chosen"


def test_a_photo_that_fails_leaves_no_older_faces(controller):
    with pytest.raises(FaceNotFoundError, match="no face found in wall.png; choose a photo"):
        controller.open(png(Image.new("RGB", (120, 90), "gray")), "wall.png")
    assert controller.thumbnails() == []
    with pytest.raises(ValueError, match="no face yet; choose a photo"):
        controller.view(*WORDS)


def test_bad_requests(model, controller):
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        controller.view(*WORDS, position=1.5)
    with pytest.raises(ValueError, match="no face yet"):
        Controller(model).view(*WORDS)
    with pytest.raises(KeyError, match="unknown recogniser"):
        Controller(model, "nobody")


# The widget


@pytest.fixture
def page(model):
    page = Page(Controller(model))
    page._handle_custom_msg({"rest": True}, [])  # the script asks for it once the faces to choose from are there
    return page


def shown(view):
    return [contact_sheet(face, SIDE) for face in view.faces.split(1)]


def test_a_preview_comes_first(model, monkeypatch):
    invert = Mock(wraps=model.invert)
    monkeypatch.setattr(model, "invert", invert)
    page = Page(Controller(model))
    assert [call.kwargs for call in invert.call_args_list] == [{"refine": 0}]
    assert page.faces == [contact_sheet(face, SIDE) for face in page.controller.preview(*WORDS).split(1)]
    assert (page.wall, page.bars, page.count, page.message) == (b"", [], "", "Drawing them finer …")
    page._handle_custom_msg({"rest": True}, [])
    wall = page.wall
    assert len(page.bars) == 4 and page.message == ""
    page._handle_custom_msg({"others": True}, [])
    other = page.wall
    page._handle_custom_msg({"rest": True}, [])  # of a second view of the page
    assert len({b"", wall, other}) == 3 and page.wall == other
    assert page._esm.count("model.send({rest: true})") == 1


def test_a_face_of_the_wall_that_is_the_same_person_is_framed_and_told(page, monkeypatch):
    said = {d: f"{16 - d} of 16 are somebody else" for d in (0, 1, 16)}
    for same, end in ((0, "."), (1, ". It takes the framed one for"), (16, ". It takes the framed 16 for")):
        far = (0.2,) * same + (0.9,) * (16 - same)
        monkeypatch.setattr(page.controller, "_distances", lambda *_, far=far: far)
        page._handle_custom_msg({"others": True}, [])
        assert page.count.startswith(f"{said[same]} to the recogniser{end}")
        corners = pixels(page.wall)[1 :: WALL_SIDE + GAP, 1 :: WALL_SIDE + GAP].reshape(16, 3)
        assert [np.abs(corner - module.BLUE).max() < 30 for corner in corners] == [True] * same + [False] * (16 - same)


def test_the_page_comes_up_drawn(page):
    assert len(page.choices) == module.SAMPLES and page.message == ""
    assert page.recogniser == "judged by dlib, a face recogniser"
    assert page.faces == shown(page.controller.view(*WORDS)) and page.wall == page.controller.wall().picture(WALL_SIDE)
    note, *bars = page.bars
    assert note["share"] is None and note["said"].endswith("the threshold, 0.6") and len(bars) == 3
    assert [bar["said"] for bar in bars] == [f"{d:.2f}" for d in page.controller.view(*WORDS).distances]
    far = sum(d >= 0.6 for d in page.controller.wall().distances)
    assert "0% of the way" in page.pace and page.count.startswith(f"{far} of 16 are somebody else")
    assert "function render" in page._esm and ".riddle" in page._css  # they are packed with the program


def test_what_the_script_follows_are_values_of_the_page(page):
    names = re.findall(r'\b(?:follow|text|model\.get)\("(\w+)"', page._esm)
    names += re.findall(r'\bset\("(\w+)"', page._esm)
    names += re.findall(r'"(\w+)"', re.search(r"for \(const name of \[(.*?)\]", page._esm)[1])
    assert (
        {"first", "position", "moving"} <= {*names} and len(names) > 12 and all(page.has_trait(name) for name in names)
    )


def test_the_slider_moves_the_faces(page):
    before, wall = page.faces, page.wall
    page.position = 0.6
    assert page.faces == shown(page.controller.view(*WORDS, 0.6)) != before and page.wall == wall
    assert "60% of the way" in page.pace


def test_only_the_encrypted_face_follows_while_the_slider_moves(page, monkeypatch):
    before, drawn = page.faces, Mock(wraps=page.controller.model.synthesize)
    monkeypatch.setattr(page.controller.model, "synthesize", drawn)
    page.moving = 0.3
    face = page.controller.moving(*WORDS[:2], 0.3)
    torch.testing.assert_close(face, page.controller.view(*WORDS, 0.3).faces[1:2], atol=1e-3, rtol=0)
    assert page.faces == [before[0], contact_sheet(face, SIDE), *before[2:]] and "30% of the way" in page.pace
    assert len(drawn.call_args_list[0].args[0]) == 1 and [b.get("old", False) for b in page.bars] == [0, 0, 1, 1]
    assert {b["said"] for b in page.bars[1:]} == {""}
    page.moving = 0.0  # back where it rests
    assert page.faces == before and not any(b.get("old") for b in page.bars)
    page.moving = page.position = 0.6
    assert page.faces == shown(page.controller.view(*WORDS, 0.6)) and all(b["said"] for b in page.bars)


def test_a_slider_that_moves_before_the_first_view_draws_nothing(model):
    page = Page(Controller(model))
    preview = page.faces
    page.moving = 0.4
    assert page.faces == preview and page.bars == []


def test_another_face_and_other_strangers(page):
    before = page.wall
    page.chosen = 3
    assert page.faces == shown(page.controller.view(*WORDS, 0.0, 3)) and page.wall != before
    faces, before = page.faces, page.wall
    page._handle_custom_msg({"others": True}, [])
    assert page.wall == page.controller.wall(3, 1).picture(WALL_SIDE) != before and page.faces == faces


def test_an_empty_passphrase_is_said_and_the_faces_stay(page):
    before = page.faces
    page.first = " "
    assert "the passphrase is empty" in page.message and page.faces == before
    page.first = "another"
    assert page.message == "" and page.faces != before


def test_a_dropped_photo(page, monkeypatch):
    photo, detector = demo.photo(page.controller.model)
    monkeypatch.setattr(page.controller.model, "detector", detector, raising=False)
    page.chosen = 5
    page._handle_custom_msg({"name": "party.png"}, [memoryview(png(photo))])
    assert len(page.choices) == 3 and page.chosen == 0 and page.message == ""
    assert page.faces == shown(page.controller.view(*WORDS))
    assert png(photo) not in page.get_state().values()  # no notebook keeps the photo


def test_no_older_face_stands_beside_the_message_about_a_rejected_file(page):
    page._handle_custom_msg({"name": "notes.txt"}, [memoryview(b"no picture")])
    assert page.message.startswith("notes.txt: ") and (page.wall, page.count, page.pace) == (b"", "", "")
    assert page.choices == page.faces == page.bars == []
    for change in (lambda: setattr(page, "position", 0.5), lambda: page._handle_custom_msg({"others": True}, [])):
        change()
        assert "no face yet" in page.message and page.faces == [] and page.wall == b""
    page._handle_custom_msg({"bundled": True}, [])
    page._handle_custom_msg({"rest": True}, [])
    assert len(page.choices) == module.SAMPLES and len(page.faces) == 4 and page.message == "" and page.wall


def test_a_large_view_is_drawn_on_request_and_kept_nowhere(page, monkeypatch):
    sent = []
    monkeypatch.setattr(page, "send", lambda content, buffers: sent.append((content, *buffers)))
    page.chosen, page.position = 2, 0.4
    for panel in range(4):
        page._handle_custom_msg({"large": panel}, [])
    view, side = page.controller.view(*WORDS, 0.4, 2), page.controller.model.side_for(module.LARGE)
    assert sent == [({"large": i}, contact_sheet(view.faces[i : i + 1], side)) for i in range(4)]
    assert not {jpeg for _, jpeg in sent} & {v for v in page.get_state().values() if isinstance(v, bytes)}


def test_mobile_draws_256_px_for_the_page_and_1024_for_a_large_view(model, monkeypatch):
    assert (module.SIDE, module.LARGE) == (256, 1024) and model.side_for(module.SIDE) == 32  # smoke's only one
    monkeypatch.setattr(model, "preset", presets.get("mobile"))
    assert [model.side_for(wanted) for wanted in (1, 128, module.SIDE, 257, module.LARGE, 4000)] == [
        128, 128, 256, 512, 1024, 1024
    ]  # fmt: skip
