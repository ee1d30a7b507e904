"""Clips: every frame, its time, its sound; every face in it, by one stranger; nothing half written.

The networks are untrained and the detector looks for green markers: what is tested holds whatever the weights are.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import riddle
from riddle import passwords
from riddle.app import arguments, cli, cliprecords, clips, encoding, survey, tracking, video
from riddle.app.cliprecords import Block, ClipRecord, Header, Run
from riddle.app.photos import PhotoError
from riddle.app.tracking import Find, Scenes, Steadiness, Tracker
from riddle.demo import FRAMED_POINTS
from riddle.faces.detection import Face
from riddle.models.encryptor import build_encryptor
from riddle.pipeline import Riddle
from riddle.records import RecordError

SIZE, SIDE, RATE = (160, 120), 48, 10
MARK = SIDE // 6


class Markers:
    """Finds a face at each green square, which is the top left sixth of the face's own square."""

    name = "markers"

    def __init__(self):
        self.blind = lambda image: False

    def detect(self, image):
        pixels = np.asarray(image.convert("RGB")).astype(int)
        if self.blind(image):
            return []
        green = pixels[..., 1] - pixels[..., [0, 2]].max(-1) > 60
        faces = []
        for rows, columns in ndimage.find_objects(ndimage.label(green)[0]):
            wide, tall = columns.stop - columns.start, rows.stop - rows.start
            if 0.7 < wide / tall < 1.4:
                side = 6 * (wide + tall) / 2
                corner = np.array([(columns.start + columns.stop - side / 6) / 2, (rows.start + rows.stop) / 2])
                corner[1] -= side / 12
                box = np.array([*corner, *(corner + side)])
                faces.append(Face(box, 1.0, FRAMED_POINTS * side + corner, None, "dlib"))
        return faces


def square(seed):
    """A face: coarse colours, with its marker."""
    low = np.random.default_rng(seed).integers(30, 190, (4, 4, 3), dtype=np.uint8)
    low[..., 1] = low[..., [0, 2]].mean(-1)  # nothing greenish but the marker
    pixels = np.array(Image.fromarray(low).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    pixels[:MARK, :MARK] = (0, 230, 0)
    return pixels


def scene(places, grey=120, size=SIZE):
    """A frame with faces at places, the last in front: {seed: (x, y)}."""
    pixels = np.full((size[1], size[0], 3), grey, np.uint8)
    for seed, (x, y) in places.items():
        pixels[y : y + SIDE, x : x + SIDE] = square(seed)
    return pixels


def pan(n=20, step=2):
    return [scene({1: (30 + step * i, 40)}) for i in range(n)]


def tone(seconds):
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(44_100 * seconds)) / 44_100)


@pytest.fixture(scope="module")
def base():
    with pytest.warns(UserWarning, match="random"):
        return riddle.load("smoke")


@pytest.fixture
def model(base, monkeypatch):
    monkeypatch.setattr(passwords, "MEMORY_KIB", 64)  # as strong a derivation as tests need
    monkeypatch.setattr(tracking.recognizers, "available", lambda names: {tracking.JUDGE: "is not here"})
    return Riddle("smoke", base.generator, base.encoder, base.encryptor, detector=Markers())


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def read(path):
    """Upright frames (N, H, W, 3) as integers, and their times."""
    found = list(clips.frames(clips.probe(path)))
    return np.stack([f.rgb() for f in found]).astype(int), [f.seconds for f in found]


def sound(path):
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.dts is not None]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def inner(places, at):
    """The middle of a face at `places[at]`, as slices."""
    x, y = places[at]
    return slice(y + 14, y + SIDE - 14), slice(x + 14, x + SIDE - 14)


def changed(before, after, i, corner):
    """Mean change of the middle of a face in frame i."""
    return np.abs(after[i] - before[i])[inner({0: corner}, 0)].mean()


# Frames, times, sound


def irregular(path, matrix=None, size=SIZE, base=Fraction(1, 90_000)):
    """A clip of uneven frames that does not begin at 0, with sound; returns the pts."""
    pts = [4500 + 9000 * i + (i % 3) * 1700 for i in range(14)]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        if matrix is not None:
            stream.set_display_matrix(matrix)
        heard = out.add_stream("aac", rate=44_100)
        for i, t in enumerate(pts):
            upright = scene({1: (30 + i, 40)}) if matrix is None else scene({1: (30 + i, 40)}, size=size[::-1])
            stored = np.ascontiguousarray(clips.stored(upright, matrix))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = t, base
            out.mux(stream.encode(frame))
        samples = av.AudioFrame.from_ndarray(tone(1.5).astype(np.float32)[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 44_100, 0
        out.mux(heard.encode(samples))
        for each in (stream, heard):
            out.mux(each.encode(None))
    return pts


def test_times_sound_and_size_stay_and_only_the_face_changes(model, folder):
    source, target = folder / "a.mp4", folder / "b.mp4"
    irregular(source)
    report = video.protect_video(model, source, target, "pw")
    (before, times), (after, kept) = read(source), read(target)
    assert kept == times and len(set(np.diff(times).round(4))) > 1, "uneven times must stay as they are"
    assert before.shape == after.shape == (14, SIZE[1], SIZE[0], 3)
    assert sound(target) == sound(source) and len(sound(source)) > 20
    assert names(folder) == ["a.mp4", "b.mp4"], "nothing else is left"
    for i in range(len(before)):
        corner = 30 + i, 40
        assert changed(before, after, i, corner) > 5
        away = np.ones(before.shape[1:3], bool)
        away[32:96, corner[0] - 8 : corner[0] + SIDE + 8] = False
        assert np.abs(after[i] - before[i])[away].mean() < 2, "only the encoder's rounding"
    (face,) = report.faces
    assert (face.status, face.frames, face.seen, face.reason) == ("protected", 14, 14, "")
    assert np.abs(np.array(face.box) - (30, 40, 30 + SIDE, 40 + SIDE)).max() <= 3
    assert report.frames == 14 and report.encoder == "libx264" and report.how == "protected"
    assert json.loads(json.dumps(report.as_dict()))["faces"][0]["status"] == "protected"
    assert any("is not here" in note for note in report.notes)


def test_outside_the_box_a_frame_is_the_same_to_the_bit(folder):
    path = encoding.write(folder / "a.mp4", pan(2), RATE)
    frame = next(clips.frames(clips.probe(path)))
    before = frame.image.to_ndarray().copy()
    frame.replace(np.full((SIZE[1], SIZE[0], 3), 250, np.uint8), (31, 41, 50, 61))
    luma, rest = frame.planes[: SIZE[1]], frame.planes[SIZE[1] :].reshape(2, SIZE[1] // 2, SIZE[0] // 2)
    assert (luma[40:62, 30:50] > 200).all()
    luma[40:62, 30:50] = before[: SIZE[1]][40:62, 30:50]
    rest[:, 20:31, 15:25] = before[SIZE[1] :].reshape(rest.shape)[:, 20:31, 15:25]
    assert np.array_equal(frame.planes, before)


MATRICES = {
    "quarter": (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30),
    "half": (-(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30),
    "three": (0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 0, 1 << 30),
    "mirrored": (-(1 << 16), 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30),
    "transposed": (0, 1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_orientation_and_back(matrix):
    pixels = np.arange(6 * 4 * 3).reshape(6, 4, 3)
    shown = clips.upright(pixels, matrix)
    assert np.array_equal(clips.stored(shown, matrix), pixels) and not np.array_equal(shown, pixels)
    clip = clips.Clip(None, (4, 6), Fraction(1), Fraction(1), 0, matrix, None, {})
    assert shown.shape[1::-1] == clip.upright_size
    x1, y1, x2, y2 = clips.stored_box((1, 0, 3, 2), clip)
    assert sorted(pixels[y1:y2, x1:x2].ravel()) == sorted(shown[0:2, 1:3].ravel())


def test_a_turned_clip_stays_turned_and_its_face_is_found_upright(model, folder):
    source, target = folder / "a.mp4", folder / "b.mov"
    irregular(source, MATRICES["quarter"], (120, 160))
    clip = clips.probe(source)
    assert clip.matrix == MATRICES["quarter"] and clip.size == (120, 160) and clip.upright_size == (160, 120)
    with av.open(str(source)) as container:  # PyAV's own reading of the same matrix
        turn = next(container.decode(video=0)).rotation
    stored = np.zeros((160, 120, 3))
    stored[0, 0] = 1
    assert np.array_equal(clips.upright(stored, clip.matrix), np.rot90(stored, turn // 90))
    report = video.protect_video(model, source, target, "pw")
    assert clips.probe(target).matrix == clip.matrix and clips.probe(target).size == clip.size
    before, after = read(source)[0], read(target)[0]
    assert len(report.faces) == 1 and all(changed(before, after, i, (30 + i, 40)) > 5 for i in range(14))


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_other_containers(model, folder, ending):
    source = encoding.write(folder / "a.mp4", pan(8), RATE, tone(0.8))
    target, back = folder / f"b.{ending}", folder / f"c.{ending}"
    report = video.protect_video(model, source, target, "pw")
    before, times = read(source)
    after, kept = read(target)
    assert np.allclose(np.diff(kept), np.diff(times), atol=0.002)
    assert changed(before, after, 4, (38, 40)) > 5
    if ending == "mkv":
        assert [data for _, data in sound(target)] == [data for _, data in sound(source)]
    else:
        assert report.encoder == "libvpx-vp9" and len(sound(target)) > 10
        assert any("takes no aac" in note for note in report.notes)
    assert video.restore_video(model, target, back, "pw").how == "codes"


def test_odd_sizes_and_the_encoder_that_stands_in(model, folder, monkeypatch):
    odd = [np.pad(p, ((0, 1), (0, 1), (0, 0)), mode="edge") for p in pan(4)]
    source = encoding.write(folder / "a.mp4", odd, RATE)
    video.protect_video(model, source, folder / "b.mp4", "pw")
    assert read(folder / "b.mp4")[0].shape == (4, SIZE[1] + 1, SIZE[0] + 1, 3)
    monkeypatch.setattr(encoding.av, "codecs_available", {"mpeg4"})
    with pytest.raises(PhotoError, match="no encoder"):
        video.protect_video(model, source, folder / "c.mp4", "pw")
    even = folder / "even.mp4"
    monkeypatch.undo()
    encoding.write(even, pan(4), RATE)
    monkeypatch.setattr(passwords, "MEMORY_KIB", 64)
    monkeypatch.setattr(encoding.av, "codecs_available", {"mpeg4"})
    report = video.protect_video(model, even, folder / "d.mp4", "pw")
    assert report.encoder == "mpeg4" and any("no libx264" in note for note in report.notes)
    assert len(read(folder / "d.mp4")[0]) == 4


@pytest.mark.parametrize("kind, tags", [("yuvj420p", {}), ("yuv420p", {"colorspace": 1}), ("yuv420p10le", {})])
def test_colours_are_read_as_they_were_meant(model, folder, kind, tags):
    source, target = folder / "a.mp4", folder / "b.mp4"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, kind
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for pixels in pan(3):
            pixels[:30] = (200, 60, 60)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            out.mux(stream.encode(frame.reformat(format=kind, dst_colorspace=tags.get("colorspace"))))
        out.mux(stream.encode(None))
    report = video.protect_video(model, source, target, "pw")
    with av.open(str(source)) as a, av.open(str(target)) as b:  # by PyAV alone
        pairs = zip(a.decode(video=0), b.decode(video=0), strict=True)
        for one, other in pairs:
            assert (one.colorspace, one.color_range) == (other.colorspace, other.color_range)
            before, after = (f.to_ndarray(format="rgb24").astype(int) for f in (one, other))
            assert np.abs(after - before)[:28].mean() < 2.5, "the colours away from the face moved"
            face = inner({0: (30, 40)}, 0)
            assert np.abs(after[face].mean((0, 1)) - before[face].mean((0, 1))).max() < 40
    assert any("reduced to 8" in note for note in report.notes) == kind.endswith("10le")


# Tracks


def test_two_people_who_cross_are_two_tracks_and_always_covered(model, folder):
    way = [{2: (28 + 3 * i, 26), 1: (85 - 3 * i, 44)} for i in range(20)]
    source = encoding.write(folder / "a.mp4", [scene(places) for places in way], RATE)
    report = video.protect_video(model, source, folder / "b.mp4", "pw")
    before, after = read(source)[0], read(folder / "b.mp4")[0]
    faces = [f for f in report.faces if f.frames == 20]
    assert len(faces) == len(report.faces) == 2, report.faces
    for i, places in enumerate(way):
        assert all(changed(before, after, i, corner) > 4 for corner in places.values())
    begin = [f.box[0] for f in sorted(faces, key=lambda f: f.box[1])]
    assert np.abs(np.array(begin) - (28, 85)).max() <= 3


def find(x, y=50.0, side=40.0):
    place = np.array([x, y, side, 0.0])
    return Find(Face(np.array([x, y, x, y]), 1.0, np.zeros((5, 2)), None, "x"), place, "")


def test_looks_decide_who_is_who_where_paths_cross():
    tracker, ann, bob = Tracker(10, 0.4, 0.1), np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for n in range(21):
        at = {0: 20.0 + 10 * n, 1: 220.0 - 10 * n}
        finds = [find(at[0]), find(at[1])] if abs(n - 10) > 1 else [find(at[0])]  # bob is behind ann for a while
        looks = np.stack([ann, bob][: len(finds)])
        order = [1, 0] if n % 2 and len(finds) == 2 else list(range(len(finds)))
        tracks = tracker.take(n, [finds[k] for k in order], looks[order], (300, 100))
        assert [t.id for t in tracks] == order
    assert tracker.count == 2


def test_a_stranger_in_the_same_place_is_another_track():
    tracker = Tracker(10, 0.4, 0.1)
    first = tracker.take(0, [find(50)], np.array([[1.0, 0.0]]), (300, 100))[0]
    second = tracker.take(1, [find(52)], np.array([[0.0, 1.0]]), (300, 100))[0]
    third = tracker.take(2, [find(120)], np.array([[1.0, 0.0]]), (300, 100))[0]  # too far to be the first
    assert [t.id for t in (first, second, third)] == [0, 1, 2]
    assert {t.id for t in tracker.end(11)} == {0} and {t.id for t in tracker.end()} == {1, 2}


def test_a_cut_begins_another_track(model, folder):
    places = {1: (40, 40)}
    pictures = [scene(places, 70)] * 7 + [scene({2: (44, 36)}, 200)] * 7
    source = encoding.write(folder / "a.mp4", pictures, RATE)
    report = video.protect_video(model, source, folder / "b.mp4", "pw")
    assert [(f.begins, f.ends, f.frames) for f in report.faces] == [(0.0, 0.6, 7), (0.7, 1.3, 7)]
    scenes = Scenes()
    assert [scenes.cut(Image.fromarray(p)) for p in pictures] == [i in (0, 7) for i in range(14)]


def test_frames_in_which_the_detector_is_blind_are_bridged_and_held(model, folder):
    pictures = pan(24)
    for i in (8, 9, 10, 11, 21, 22, 23):  # another grey, by which the detector knows when to be blind
        pictures[i] = scene({1: (30 + 2 * i, 40)}, 130)
    source = encoding.write(folder / "a.mp4", pictures, RATE)
    before = read(source)[0]
    model.detector.blind = lambda image: np.asarray(image)[-3:, -3:].mean() > 125
    report = video.protect_video(model, source, folder / "b.mp4", "pw")
    after = read(folder / "b.mp4")[0]
    (face,) = report.faces
    assert face.frames == 24 and face.seen < 20, face
    assert all(changed(before, after, i, (30 + 2 * i, 40)) > 5 for i in range(24))


def test_a_face_that_is_lost_within_a_scene_is_told(model, folder):
    pictures = [scene({1: (50, 40)})] * 8 + [scene({})] * 12
    source = encoding.write(folder / "a.mp4", pictures, RATE)
    report = video.protect_video(model, source, folder / "b.mp4", "pw")
    assert (report.faces[0].seen, report.faces[0].frames) == (8, 11)
    assert any("was lost at 0.7 s" in note and "until 1.0 s" in note for note in report.notes)


def test_a_face_that_cannot_be_replaced_is_listed(model, folder, monkeypatch):
    def doubtful(face, size):
        return "too small: 3 px, and 20 are needed" if face.box[0] > 80 else ""

    monkeypatch.setattr(tracking.photos, "why_not", doubtful)
    source = encoding.write(folder / "a.mp4", [scene({1: (10, 40), 2: (100, 40)})] * 4, RATE)
    report = video.protect_video(model, source, folder / "b.mp4", "pw")
    assert {(f.status, f.reason, f.frames) for f in report.faces} == {
        ("protected", "", 4), ("skipped", "too small; cover it, or cut it off", 0)
    }  # fmt: skip
    before, after = read(source)[0], read(folder / "b.mp4")[0]
    assert changed(before, after, 2, (10, 40)) > 5 > 2 > changed(before, after, 2, (100, 40))
    alone = encoding.write(folder / "c.mp4", [scene({2: (100, 40)})] * 4, RATE)
    with pytest.raises(PhotoError, match="c.mp4: no face of it can be replaced.*too small"):
        video.protect_video(model, alone, folder / "d.mp4", "pw")


# Smoothing and its measures


def test_a_parabola_is_kept_and_noise_is_not():
    t = np.arange(30) / 10
    exact = np.stack([3 + 2 * t - t**2, t, 0 * t + 40, t**2], 1)
    assert np.allclose(tracking.smoothed(t, exact, t, 0.3), exact, atol=1e-6)
    noise = np.random.default_rng(0).normal(0, 1, (30, 4))
    assert tracking.smoothed(t, noise, t, 0.3)[5:-5].std() < 0.6 * noise.std()


def test_places_between_before_and_after_the_finds():
    seen, places = np.array([4, 5, 9]), np.array([[10.0, 0, 20, 0], [12.0, 0, 20, 0], [20.0, 4, 24, 0]])
    out = tracking.filled(seen, places, np.array([3, 5, 7, 9]))
    assert np.allclose(out[1:], [[12, 0, 20, 0], [16, 2, 22, 0], [20, 4, 24, 0]])
    assert np.allclose(out[0], [8, 0, 20, 0])  # on the way it came, 2 px a frame
    far = tracking.filled(seen, places, np.array([-50]))[0]
    assert np.hypot(*(far[:2] - places[0, :2])) <= 10 + 1e-9, "at most half a side"


def test_overlap_of_squares():
    a = np.array([0.0, 0, 10, 0])
    assert tracking.overlap(a, a) == 1 and tracking.overlap(a, a + [20, 0, 0, 0]) == 0
    assert tracking.overlap(a, a + [5, 0, 0, 0]) == pytest.approx(50 / 150)
    assert tracking.overlap(a, np.array([0.0, 0, 5, 0])) == pytest.approx(25 / 100)


def test_steadiness_in_closed_form():
    steady, points = Steadiness(), np.zeros((5, 2))
    for n in range(6):
        angle = 0.1 * n
        steady.add(n, np.array([np.cos(angle), np.sin(angle)]), points + [3.0 * n, 0], 20)
    assert steady.identity == pytest.approx(np.cos(0.1)) and steady.jitter == pytest.approx(0, abs=1e-12)
    assert steady.person == pytest.approx(abs(np.exp(0.1j * np.arange(6)).mean()))
    shaky = Steadiness()
    for n in (0, 1, 2, 7, 8):  # a gap: no second difference over it
        shaky.add(n, None, points + [2.0 * (n % 2), 0], 20)
    assert shaky.jitter == pytest.approx(4 / 20) and shaky.identity is None


class Judge:
    """A recogniser that compares pictures."""

    threshold = 0.9

    def from_crop(self, faces):
        x = torch.nn.functional.adaptive_avg_pool2d(faces, 6).flatten(1)
        return torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)


def test_measures_of_a_face_stand_beside_the_originals(model, folder, monkeypatch):
    monkeypatch.setattr(tracking.recognizers, "available", lambda names: {tracking.JUDGE: None})
    monkeypatch.setattr(tracking.recognizers, "load", lambda name: Judge())
    source = encoding.write(folder / "a.mp4", pan(12), RATE)
    (face,) = video.protect_video(model, source, folder / "b.mp4", "pw").faces
    assert face.identity["source"] > 0.97 and face.identity["target"] > 0.97, "one person in every frame"
    assert face.person["target"] > 0.95
    assert 0 <= face.jitter["source"] < 0.2 and face.jitter["target"] is not None


# Interruption


@pytest.fixture
def short_parts(monkeypatch):
    monkeypatch.setattr(survey, "PART", 0.6)


def interrupt(model, source, target, at, verb="protect"):
    def stop(done, total):
        if done == at:
            raise KeyboardInterrupt

    work = video.protect_video if verb == "protect" else video.restore_video
    with pytest.raises(KeyboardInterrupt):
        work(model, source, target, "pw", on_progress=stop)


def painted(monkeypatch):
    """Frames that were painted."""
    seen, paint = [], video._Job._replace
    monkeypatch.setattr(video._Job, "_replace", lambda self, f, runs: seen.append(f.n) or paint(self, f, runs))
    return seen


def test_resumed_is_the_same_as_uninterrupted(model, folder, short_parts, monkeypatch):
    source = encoding.write(folder / "a.mp4", pan(20), RATE, tone(2))
    whole, pieces = folder / "whole.mp4", folder / "pieces.mp4"
    report = video.protect_video(model, source, whole, "pw")
    interrupt(model, source, pieces, 20 + 15)
    assert ".pieces.mp4.riddle-work" in names(folder) and not pieces.exists()
    assert (folder / ".pieces.mp4.riddle-work").stat().st_mode & 0o077 == 0, "it is nobody else's to read"
    seen, calls = painted(monkeypatch), []
    again = video.protect_video(
        model, source, pieces, "pw", resume=True, on_progress=lambda done, total: calls.append((done, total))
    )
    assert seen == list(range(12, 20)), "two parts of six frames were there"
    assert calls[0] == (21, 40) and calls[-1] == (40, 40)
    assert [f.box for f in again.faces] == [f.box for f in report.faces] and again.faces == report.faces
    assert np.array_equal(read(whole)[0], read(pieces)[0]) and read(whole)[1] == read(pieces)[1]
    assert clips.tag(whole) == clips.tag(pieces) and sound(whole) == sound(pieces)
    assert names(folder) == ["a.mp4", "pieces.mp4", "whole.mp4"]


def test_restoring_resumes_too(model, folder, short_parts, monkeypatch):
    source = encoding.write(folder / "a.mp4", pan(16), RATE)
    video.protect_video(model, source, folder / "b.mp4", "pw")
    video.restore_video(model, folder / "b.mp4", folder / "whole.mp4", "pw")
    interrupt(model, folder / "b.mp4", folder / "pieces.mp4", 9, "restore")
    seen = painted(monkeypatch)
    video.restore_video(model, folder / "b.mp4", folder / "pieces.mp4", "pw", resume=True)
    assert seen == list(range(6, 16))
    assert np.array_equal(read(folder / "whole.mp4")[0], read(folder / "pieces.mp4")[0])


def test_what_was_begun_otherwise_is_not_gone_on_with(model, folder, short_parts, monkeypatch):
    source = encoding.write(folder / "a.mp4", pan(14), RATE)
    seen = painted(monkeypatch)
    for resume, passphrase in ((False, "pw"), (True, "another")):
        interrupt(model, source, folder / "b.mp4", 14 + 8)
        seen.clear()
        video.protect_video(model, source, folder / "b.mp4", passphrase, resume=resume)
        assert seen == list(range(14))


def test_memory_does_not_grow_with_length(model, folder, short_parts, monkeypatch):
    alive, most, plain = weakref.WeakSet(), [], clips.frames

    def counted(clip):
        for frame in plain(clip):
            alive.add(frame)
            most.append(len(alive))
            yield frame

    def peak(n):
        source = encoding.write(folder / f"{n}.mp4", (scene({1: (30 + i % 8, 40)}) for i in range(n)), RATE)
        most.clear()
        tracemalloc.start()
        video.protect_video(model, source, folder / f"{n}.out.mp4", "pw")
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used, max(most)

    monkeypatch.setattr(clips, "frames", counted)
    peak(6)  # what loads once
    short, long = peak(12), peak(40)
    assert max(short[1], long[1]) <= 3, "frames held at once"
    frame = SIZE[0] * SIZE[1] * 3
    assert long[0] - short[0] < 6 * frame, (short, long)  # 28 frames more


# Restoring


def inverted(model):
    """A model that leaves codes as they are: its clip shows what networks can show of the faces at all."""
    same = Riddle("smoke", model.generator, model.encoder, model.encryptor, detector=model.detector)
    same.encrypt = lambda w, key: w
    return same


def test_the_right_passphrase_brings_the_faces_back_and_a_wrong_one_others(model, folder):
    exact = build_encryptor("smoke", "reflection", model.generator.codes)  # untrained, and yet its own inverse
    model = Riddle("smoke", model.generator, model.encoder, exact, detector=model.detector)
    source = encoding.write(folder / "a.mp4", pan(10), RATE)
    paths = {name: folder / f"{name}.mp4" for name in ("inverted", "protected", "restored", "wrong")}
    video.protect_video(inverted(model), source, paths["inverted"], "pw")
    video.protect_video(model, source, paths["protected"], "pw")
    report = video.restore_video(model, paths["protected"], paths["restored"], "pw")
    video.restore_video(model, paths["protected"], paths["wrong"], "pW")
    shown = {name: read(path)[0] for name, path in paths.items()}

    def apart(a, b):
        return np.mean([changed(shown[a], shown[b], i, (30 + 2 * i, 40)) for i in range(10)])

    # The light of a restored face is matched to the protected picture, hence not 0.
    assert apart("restored", "inverted") < 0.8 * apart("protected", "inverted")
    assert apart("restored", "inverted") < 0.8 * apart("wrong", "inverted")
    assert apart("wrong", "restored") > 5 and apart("wrong", "protected") > 1
    assert report.how == "codes" and report.faces[0].status == "restored" and report.faces[0].frames == 10
    assert json.loads(json.dumps(report.as_dict()))["how"] == "codes"
    assert clips.tag(paths["restored"]) is None


def test_a_record_that_is_too_large_lies_beside_and_without_it_pixels_are_inverted(model, folder, monkeypatch):
    monkeypatch.setattr(cliprecords, "MAX_INSIDE", 1000)
    source = encoding.write(folder / "a.mp4", pan(8), RATE)
    safe, back = folder / "b.mp4", folder / "c.mp4"
    report = video.protect_video(model, source, safe, "pw")
    assert report.sidecar == str(folder / "b.mp4.riddle") and any("b.mp4.riddle" in n for n in report.notes)
    assert clips.tag(safe) is None and video.inspect(safe)["where"] == "sidecar"
    assert video.inspect(folder / "b.mp4.riddle")["frames"] == 8
    assert video.restore_video(model, safe, back, "pw").how == "codes"
    (folder / "b.mp4.riddle").unlink()
    assert video.inspect(safe) == {"file": str(safe), "protected": False}
    bare = video.restore_video(model, source, folder / "d.mp4", "pw")  # its markers are whole
    assert bare.how == "inversion" and video.NO_RECORD in bare.notes and bare.faces[0].status == "restored"


def test_a_cut_clip_is_restored_by_time_and_another_one_is_refused(model, folder):
    source = encoding.write(folder / "a.mp4", pan(10), RATE)
    safe, other = folder / "b.mkv", folder / "other.mp4"
    video.protect_video(model, source, safe, "pw")
    text = clips.tag(safe)
    clip = clips.probe(source)

    def with_record(path, pts):
        part, stamps = encoding.Part(clip, "libx264"), []
        for frame, t in zip(clips.frames(clips.probe(safe)), pts, strict=False):
            part.add(frame.changed())
            stamps.append((t, 0))
        encoding.join(path, clip, "libx264", (s + p for s, p in zip(stamps, part.finish(), strict=True)), text)
        return path

    unit = round(1 / RATE / clip.time_base)
    longer = with_record(other, [unit * i if i < 8 else unit * (i + 3) for i in range(10)])
    report = video.restore_video(model, longer, folder / "c.mp4", "pw")
    assert report.how == "codes" and any("2 of 10 frames are not in its record" in n for n in report.notes)
    small = encoding.write(folder / "small.mp4", [p[:80] for p in pan(4)], RATE)
    with open(folder / "small.mp4.riddle", "wb") as file:
        file.write(video.cliprecords.base64.b64decode(text))
    with pytest.raises(RecordError, match="160 x 80 px, but its record is of 160 x 120"):
        video.restore_video(model, small, folder / "d.mp4", "pw")
    assert not (folder / "d.mp4").exists()


def test_a_record_of_other_weights_is_refused(model, folder):
    source = encoding.write(folder / "a.mp4", pan(4), RATE)
    video.protect_video(model, source, folder / "b.mp4", "pw")
    later = Riddle("smoke", model.generator, model.encoder, model.encryptor, detector=model.detector)
    later.__dict__["weights_hash"] = "f" * 64
    with pytest.raises(RecordError, match="b.mp4: it was protected with other weights"):
        video.restore_video(later, folder / "b.mp4", folder / "c.mp4", "pw")


# The record


def small_record(blocks=2, faces=1):
    """A record's bytes, and its blocks."""
    rng, made = np.random.default_rng(0), []
    for b in range(blocks):
        runs = []
        for t in range(faces):
            codes = torch.from_numpy(rng.normal(size=(4, 2, 3)).astype(np.float16)).float()
            places = np.tile(np.array([20, 20, 16, 1], np.float32), (4, 1))
            runs.append(Run(t, 4 * b, places, codes[: 3 + 3 // 2 - 1]))
        made.append(Block(4 * b, np.arange(4) * 100 + 400 * b, tuple(runs)))
    out = io.BytesIO()
    out.write(Header("smoke", "a" * 64, (60, 50), (2, 3), (1, 1000), 2, 4 * blocks, ((1, 2, 3, 4),)).to_bytes())
    for number, block in enumerate(made):
        cliprecords.write_block(out, number, block.to_bytes())
    cliprecords.write_end(out)
    return out.getvalue(), made


def parsed(data):
    with ClipRecord(io.BytesIO(data), "x.mp4", "metadata") as record:
        return record.header, list(record.blocks())


def test_a_record_comes_back_as_it_was_written():
    data, made = small_record()
    header, blocks = parsed(data)
    assert header.preset == "smoke" and header.boxes == ((1, 2, 3, 4),) and header.every == 2 and header.salt is None
    for block, other in zip(blocks, made, strict=True):
        assert block.first == other.first and np.array_equal(block.times, other.times)
        assert torch.equal(block.runs[0].codes, other.runs[0].codes)
        assert np.array_equal(block.runs[0].places, other.runs[0].places)
    run = blocks[1].runs[0]
    between = run.code(run.codes, 5, 2)
    assert torch.allclose(between, (run.codes[0] + run.codes[1]) / 2) and torch.equal(
        run.code(run.codes, 6, 2), run.codes[1]
    )


def test_a_damaged_record_is_refused_whatever_is_damaged():
    data, _ = small_record()
    rng = np.random.default_rng(1)
    for at in [*range(12), *rng.integers(12, len(data), 150).tolist()]:
        broken = bytearray(data)
        broken[at] ^= int(rng.integers(1, 256))
        with pytest.raises(RecordError, match="x.mp4"):
            parsed(bytes(broken))
    for length in [0, 5, 11, 60, *rng.integers(0, len(data), 40).tolist()]:
        with pytest.raises(RecordError, match="x.mp4: its record is damaged"):
            parsed(data[:length])
    for version, cause in (
        (3, "version 3.*update riddle"),
        (1, r"older model \(version 1, preset smoke\).*riddle 0\.1"),
    ):
        other = bytearray(data)
        other[6] = version
        with pytest.raises(RecordError, match=cause):
            parsed(bytes(other))
    with pytest.raises(RecordError, match="too early"):
        parsed(data[:-4])


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"places": [[20, 20, 1e9, 0]]}, "no square"),
        ({"places": [[np.nan, 20, 16, 0]]}, "not finite"),
        ({"codes": [[np.inf, 0, 0], [0, 0, 0]]}, "not finite"),
        ({"times": [0, 100, 100, 300]}, "increase"),
        ({"first": 1}, "begins with frame 1|outside its block"),
    ],
)
def test_a_record_that_is_whole_and_hostile_is_refused(change, cause):
    _, (block, *_) = small_record(1)
    run = block.runs[0]
    places = np.repeat(change["places"], 4, 0).astype(np.float32) if "places" in change else run.places
    codes = run.codes.clone()
    if "codes" in change:
        codes[0] = torch.tensor(change["codes"])
    bad = Block(change.get("first", 0), np.array(change.get("times", block.times)), (Run(0, 0, places, codes),))
    out = io.BytesIO()
    out.write(Header("smoke", "a" * 64, (60, 50), (2, 3), (1, 1000), 2, 4).to_bytes())
    cliprecords.write_block(out, 0, bad.to_bytes())
    cliprecords.write_end(out)
    with pytest.raises(RecordError, match=cause):
        parsed(out.getvalue())


def test_places_are_bounded_and_their_matrices_are_squares():
    places = np.array([[5, 6, 16, 3], [900, 5, 10, 0], [5, 5, 0, 0], [5, 5, 4000, 0]], np.float32)
    kept = cliprecords.bounded(places, 60, 50)
    assert np.array_equal(kept[0], places[0]) and kept[1, 0] <= 70
    assert np.array_equal(cliprecords.bounded(kept, 60, 50), kept)
    matrix = cliprecords.matrix(places[0])
    assert np.allclose(matrix @ [0.5, 0.5, 1], places[0, :2]) and np.allclose(cliprecords.place(matrix), places[0])
    assert np.allclose(matrix[:, 0] @ matrix[:, 1], 0) and np.allclose(np.linalg.det(matrix[:, :2]), 16**2 + 3**2)


# What cannot be done


def test_files_that_are_no_clip(model, folder):
    good = encoding.write(folder / "good.mp4", pan(20), RATE, tone(2))
    data = good.read_bytes()
    mkv = encoding.write(folder / "good.mkv", pan(20), RATE).read_bytes()
    (folder / "text.mp4").write_text("no clip at all\n" * 100)
    (folder / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "cut.mkv").write_bytes(mkv[: int(len(mkv) * 0.6)])
    (folder / "folder.mp4").mkdir()
    with av.open(str(folder / "sound.mp4"), "w") as out:
        heard = out.add_stream("aac", rate=44_100)
        part = av.AudioFrame.from_ndarray(tone(1).astype(np.float32)[None], format="fltp", layout="mono")
        part.sample_rate, part.pts = 44_100, 0
        out.mux(heard.encode(part))
        out.mux(heard.encode(None))
    encoding.join(folder / "none.mkv", clips.probe(good), "libx264", [])
    causes = {
        "missing.mp4": "there is no such file", "folder.mp4": "it is a folder", "empty.mp4": "it is empty",
        "text.mp4": "no clip", "list.mp4": "no clip", "cut.mp4": "cut off", "cut.mkv": "cut off|damaged",
        "sound.mp4": "sound only", "none.mkv": "no frame|no clip|decoded",
    }  # fmt: skip
    before = names(folder)
    for name, cause in causes.items():
        for work in (video.protect_video, video.restore_video):
            with pytest.raises(PhotoError, match=rf"{name}: .*({cause}).*; \w+") as e:
                work(model, folder / name, folder / "out.mp4", "pw")
            assert e.value.cause and e.value.remedy
    assert names(folder) == before, "nothing half written"


def test_targets_that_cannot_be(model, folder):
    source = encoding.write(folder / "a.mp4", pan(3), RATE)
    for target, cause in (("b.avi", "written as .avi"), ("none/b.mp4", "does not exist"), ("a.mp4", "the clip itself")):
        with pytest.raises(PhotoError, match=cause):
            video.protect_video(model, source, folder / target, "pw")
    with pytest.raises(ValueError, match="empty"):
        video.protect_video(model, source, folder / "b.mp4", " ")
    nobody = encoding.write(folder / "nobody.mp4", [scene({})] * 3, RATE)
    with pytest.raises(PhotoError, match="nobody.mp4: no face was found"):
        video.protect_video(model, nobody, folder / "b.mp4", "pw")
    assert names(folder) == ["a.mp4", "nobody.mp4"]


# The command line


def test_the_command_protects_reports_and_restores(model, folder, monkeypatch, capsys):
    monkeypatch.setattr(riddle, "load", lambda *a, **k: model, raising=False)
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "correct horse")
    source = encoding.write(folder / "a.mp4", pan(5), RATE)
    safe, words = folder / "safe.mp4", ("--preset", "smoke")

    def run(*arguments):
        return cli.main([*map(str, arguments)])

    assert run("video", "protect", source, "-o", safe, "--json", *words) == arguments.Exit.DONE
    document = json.loads(capsys.readouterr().out)
    (done,) = document["files"]
    assert document["summary"]["faces"] == 1 and done["frames"] == 5 and done["faces"][0]["status"] == "protected"
    assert run("video", "restore", safe, "-o", folder / "back.mp4", *words) == arguments.Exit.DONE
    text = capsys.readouterr().out
    assert "1 face restored, by its record" in text and "encoded by" in text
    (folder / "bad.mp4").write_text("no clip")
    assert run("video", "protect", folder / "bad.mp4", *words) == arguments.Exit.FAILED
    assert names(folder) == ["a.mp4", "back.mp4", "bad.mp4", "safe.mp4"]


def test_the_command_in_a_process_of_its_own(folder):
    (folder / "bad.mp4").write_text("no clip")
    command = [sys.executable, "-m", "riddle", "video", "protect", str(folder / "bad.mp4"), "--preset", "smoke"]
    environment = os.environ | {"RIDDLE_PASSPHRASE": "correct horse", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == arguments.Exit.FAILED, done.stderr[-2000:]
    assert "bad.mp4: it is no clip" in done.stdout
