"""Clips: every frame, its time, its sound; every face in it, by one stranger; nothing half written.

The networks are untrained and the detector looks for green markers: what is tested holds whatever the weights are.
"""

import base64
import json
import os
import shutil
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from riddle import passwords
from riddle.app import bulk, clip, cliprecord, photos, tracking, video
from riddle.app.cliprecord import ClipRecord
from riddle.app.tracking import Find, Tracker
from riddle.demo import FRAMED_POINTS, write_clip
from riddle.faces import alignment, outcomes
from riddle.faces.detection import Face
from riddle.images import PhotoError
from riddle.models import codes as spaces
from riddle.models.encryptor import build_encryptor
from riddle.pipeline import Riddle
from riddle.seal import RecordError

SIZE, SIDE, RATE = (160, 120), 48, 10
MARK = SIDE // 6


class Markers:
    """Finds a face at each green square, which is the top left sixth of the face's own square."""

    name = "markers"

    def __init__(self):
        self.blind = lambda image: False

    def detect(self, image):
        pixels = np.asarray(image.convert("RGB")).astype(int)
        green = (pixels[..., 1] - pixels[..., [0, 2]].max(-1) > 60) & (not self.blind(image))
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


def scene(places, grey=120, size=SIZE):
    """A frame with faces of coarse colours and a marker at places, the last in front: {seed: (x, y)}."""
    pixels = np.full((size[1], size[0], 3), grey, np.uint8)
    for seed, (x, y) in places.items():
        low = np.random.default_rng(seed).integers(30, 190, (4, 4, 3), dtype=np.uint8)
        low[..., 1] = low[..., [0, 2]].mean(-1)  # nothing greenish but the marker
        face = np.array(Image.fromarray(low).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        face[:MARK, :MARK] = (0, 230, 0)
        pixels[y : y + SIDE, x : x + SIDE] = face
    return pixels


def pan(n=20):
    return [scene({1: (30 + 2 * i, 40)}) for i in range(n)]


def tone(seconds):
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(44_100 * seconds)) / 44_100)


@pytest.fixture
def model(smoke, quick_keys, monkeypatch):
    monkeypatch.setattr(tracking.recognizers, "available", lambda names: {tracking.RECOGNISER: "is not here"})
    return with_encryptor(smoke, smoke.encryptor)


def with_encryptor(model, encryptor):
    return Riddle("smoke", model.generator, model.encoder, encryptor, detector=Markers())


@pytest.fixture
def film(tmp_path):
    """A function that writes frames as a clip."""
    return lambda pictures, name="a.mp4", sound=None: write_clip(tmp_path / name, pictures, RATE, sound)


def read(path):
    """Upright frames (N, H, W, 3) as integers, and their times."""
    found = list(clip.frames(clip.probe(path)))
    return np.stack([f.rgb() for f in found]).astype(int), [float(f.pts * f.clip.time_base) for f in found]


def sound(path):
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.dts is not None]


def opened(model, path, passphrase="pw"):
    """A clip's record, None for another passphrase; its salt; what gives the keys of n faces."""
    sealed = cliprecord.read(path)[0]
    secret = model.secret(passphrase, sealed.salt)
    return ClipRecord.open(sealed, secret, path), sealed.salt, partial(model.keys, passphrase, secret, sealed.salt)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def changed(before, after, i, corner):
    """Mean change of the middle of a face in frame i."""
    x, y = corner
    return np.abs(after[i] - before[i])[y + 14 : y + SIDE - 14, x + 14 : x + SIDE - 14].mean()


# Frames, times, sound


def irregular(path, matrix=None, size=SIZE, sound_first=False, late=0.05, tags=None):
    """A clip of uneven frames that begins `late` seconds after its sound; tags: its metadata."""
    base, upright = Fraction(1, 90_000), size if matrix is None else size[::-1]
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"} if path.suffix == ".mp4" else {}) as out:
        out.metadata.update(tags or {})
        heard = out.add_stream("aac", rate=44_100) if sound_first else None
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        if matrix is not None:
            stream.set_display_matrix(matrix)
        heard = heard or out.add_stream("aac", rate=44_100)
        for i in range(14):
            pixels = clip.stored(scene({1: (30 + i, 40)}, size=upright), matrix)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(late / base) + 9000 * i + (i % 3) * 1700, base
            out.mux(stream.encode(frame))
        samples = av.AudioFrame.from_ndarray(tone(1.5).astype(np.float32)[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 44_100, 0
        out.mux(heard.encode(samples))
        for each in (stream, heard):
            out.mux(each.encode(None))
    return path


@pytest.mark.parametrize("sound_first", [False, True])
def test_times_sound_and_size_stay_and_only_the_face_changes(model, tmp_path, monkeypatch, sound_first):
    monkeypatch.setattr(video, "SEGMENT", 0.6)  # several segments
    source, target = irregular(tmp_path / "a.mp4", sound_first=sound_first), tmp_path / "b.mp4"
    report = video.protect_video(model, source, target, "pw")
    (before, times), (after, kept) = read(source), read(target)
    assert kept == times and len(set(np.diff(times).round(4))) > 1, "uneven times must stay as they are"
    assert before.shape == after.shape == (14, SIZE[1], SIZE[0], 3)
    assert sound(target) == sound(source) and len(sound(source)) > 20
    assert names(tmp_path) == ["a.mp4", "b.mp4"], "nothing else is left"
    for i in range(14):
        assert changed(before, after, i, (30 + i, 40)) > 5
        away = np.ones(before.shape[1:3], bool)
        away[32:96, 22 + i : 38 + i + SIDE] = False
        assert np.abs(after[i] - before[i])[away].mean() < 2, "only the encoder's rounding"
    (face,) = report.faces
    assert (face.status, face.frames, face.seen, face.reason) == ("protected", 14, 14, "")
    assert np.abs(np.array(face.box) - (30, 40, 30 + SIDE, 40 + SIDE)).max() <= 3
    assert report.how == "protected" and "pictures encoded by libx264" in report.notes
    assert json.loads(json.dumps(asdict(report), default=str))["faces"][0]["status"] == "protected"


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_a_clip_that_starts_late_is_whole_and_in_step_with_its_sound(tmp_path, ending):
    """Matroska tells when the pictures end, MP4 how long they last."""
    source, target, piece = (tmp_path / f"{name}.{ending}" for name in ("late", "made", "piece"))
    known = clip.probe(irregular(source, late=0.9))
    assert known.estimate == pytest.approx(14, abs=1) and known.notes == ()
    clip.write_segment(piece, known, "libx264", clip.frames(known))
    clip.join(target, known, [piece])
    times = np.array([read(path)[1] for path in (source, target)])
    begins = np.array([float(sound(path)[0][0]) for path in (source, target)])
    assert times.shape == (2, 14) and begins[0] < 0.1 and times[0, 0] == pytest.approx(0.9, abs=0.03)
    assert times[1] - begins[1] == pytest.approx(times[0] - begins[0], abs=0.0015)
    data = source.read_bytes()
    source.write_bytes(data[: int(0.7 * len(data))])
    with pytest.raises(PhotoError, match="late.*(cut off|damaged)"):
        list(clip.frames(clip.probe(source)))


def test_metadata_that_are_dropped_are_told(model, tmp_path):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    irregular(source, tags={"title": "Birthday", "location": "+48.1374+011.5755/", "artist": "Ann of the Hill"})
    report = video.protect_video(model, source, target, "pw")
    assert "its metadata left out: artist, location, title" in report.notes
    assert not any(word in target.read_bytes() for word in (b"Birthday", b"+48.1374", b"Ann of the Hill"))
    restored = video.restore_video(model, target, tmp_path / "c.mp4", "pw")
    assert not any("metadata" in note for note in restored.notes)


def test_what_was_not_painted_is_the_same_to_the_bit(film):
    frame = next(clip.frames(clip.probe(film(pan(2)))))
    pixels = frame.rgb()
    after = pixels.copy()
    after[41:61, 31:50] = 250
    before = frame.image.to_ndarray().copy()
    frame.replace(pixels, after)
    luma, chroma = frame.planes[: SIZE[1]], frame.planes[SIZE[1] :].reshape(2, SIZE[1] // 2, SIZE[0] // 2)
    assert (luma[40:62, 30:50] > 200).sum() >= 20 * 19
    luma[40:62, 30:50] = before[: SIZE[1]][40:62, 30:50]
    chroma[:, 20:31, 15:25] = before[SIZE[1] :].reshape(chroma.shape)[:, 20:31, 15:25]
    assert np.array_equal(frame.planes, before)


def turn(a, b, c, d):
    """The display matrix of a turn or a mirror."""
    return (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


QUARTER = turn(0, 1, -1, 0)


@pytest.mark.parametrize("turned", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_orientation_and_back(turned):
    pixels, matrix = np.arange(6 * 4 * 3).reshape(6, 4, 3), turn(*turned)
    shown = clip.upright(pixels, matrix)
    assert np.array_equal(clip.stored(shown, matrix), pixels) and not np.array_equal(shown, pixels)
    known = clip.Clip(None, (4, 6), Fraction(1), Fraction(1), 0, matrix, None, {})
    assert shown.shape[1::-1] == known.upright_size


def test_a_turned_clip_stays_turned_and_its_face_is_found_upright(model, tmp_path):
    source, target = irregular(tmp_path / "a.mp4", QUARTER, (120, 160)), tmp_path / "b.mov"
    known = clip.probe(source)
    assert known.matrix == QUARTER and known.size == (120, 160) and known.upright_size == (160, 120)
    with av.open(str(source)) as container:  # PyAV's own reading of the same matrix
        turn = next(container.decode(video=0)).rotation
    corner = np.zeros((160, 120, 3))
    corner[0, 0] = 1
    assert np.array_equal(clip.upright(corner, known.matrix), np.rot90(corner, turn // 90))
    report = video.protect_video(model, source, target, "pw")
    assert clip.probe(target).matrix == known.matrix and clip.probe(target).size == known.size
    before, after = read(source)[0], read(target)[0]
    assert len(report.faces) == 1 and all(changed(before, after, i, (30 + i, 40)) > 5 for i in range(14))


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_other_containers(model, tmp_path, film, monkeypatch, ending):
    monkeypatch.setattr(video, "SEGMENT", 0.4)
    source, target = film(pan(8), sound=tone(0.8)), tmp_path / f"b.{ending}"
    report = video.protect_video(model, source, target, "pw")
    (before, times), (after, kept) = read(source), read(target)
    assert np.allclose(np.diff(kept), np.diff(times), atol=0.002)
    assert clip.probe(target).rate == pytest.approx(RATE, rel=0.05)
    assert changed(before, after, 4, (38, 40)) > 5
    if ending == "mkv":
        assert [data for _, data in sound(target)] == [data for _, data in sound(source)]
    else:
        assert "pictures encoded by libvpx-vp9" in report.notes and len(sound(target)) > 10
        assert any("takes no aac" in note for note in report.notes)
    assert video.restore_video(model, target, tmp_path / f"c.{ending}", "pw").how == "codes"


def test_odd_sizes_stay_and_a_missing_encoder_is_told(model, tmp_path, film, monkeypatch):
    source = film([np.pad(p, ((0, 1), (0, 1), (0, 0)), mode="edge") for p in pan(4)])
    video.protect_video(model, source, tmp_path / "b.mp4", "pw")
    assert read(tmp_path / "b.mp4")[0].shape == (4, SIZE[1] + 1, SIZE[0] + 1, 3)
    monkeypatch.setattr(clip.av, "codecs_available", {"mpeg4"})
    with pytest.raises(PhotoError, match="c.mp4: .* no encoder libx264; .*pip install av"):
        video.protect_video(model, source, tmp_path / "c.mp4", "pw")


@pytest.mark.parametrize("kind, tags", [("yuvj420p", {}), ("yuv420p", {"colorspace": 1}), ("yuv420p10le", {})])
def test_colours_are_read_as_they_were_meant(model, tmp_path, kind, tags):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
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
        for one, other in zip(a.decode(video=0), b.decode(video=0), strict=True):
            assert (one.colorspace, one.color_range) == (other.colorspace, other.color_range)
            before, after = (f.to_ndarray(format="rgb24").astype(int) for f in (one, other))
            assert np.abs(after - before)[:28].mean() < 2.5, "the colours away from the face moved"
            assert np.abs((after - before)[54:74, 44:64].mean((0, 1))).max() < 40
    assert any("reduced to 8" in note for note in report.notes) == kind.endswith("10le")


# Tracks


def test_two_people_who_cross_are_two_tracks_and_always_covered(model, tmp_path, film):
    way = [{2: (28 + 3 * i, 26), 1: (85 - 3 * i, 44)} for i in range(20)]
    source = film([scene(places) for places in way])
    report = video.protect_video(model, source, tmp_path / "b.mp4", "pw")
    before, after = read(source)[0], read(tmp_path / "b.mp4")[0]
    assert [f.frames for f in report.faces] == [20, 20], report.faces
    for i, places in enumerate(way):
        assert all(changed(before, after, i, corner) > 4 for corner in places.values())
    begin = [f.box[0] for f in sorted(report.faces, key=lambda f: f.box[1])]
    assert np.abs(np.array(begin) - (28, 85)).max() <= 3


def find(x):
    return Find(np.array([x, 50.0, 40.0, 0.0]), "")


def test_embeddings_decide_who_is_who():
    tracker, ann, bob = Tracker(10, 0.4, 0.1), np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for n in range(21):  # their paths cross
        at = {0: 20.0 + 10 * n, 1: 220.0 - 10 * n}
        finds = [find(at[0]), find(at[1])] if abs(n - 10) > 1 else [find(at[0])]  # bob is behind ann for a while
        order = [1, 0] if n % 2 and len(finds) == 2 else list(range(len(finds)))
        tracks = tracker.take(n, [finds[k] for k in order], np.stack([ann, bob])[order])
        assert [t.id for t in tracks] == order
    for n, x, who in ((21, 228, bob), (22, 120, ann)):  # a stranger in ann's place; ann too far from where she was
        assert tracker.take(n, [find(x)], who[None])[0].frames == [n]
    tracker.forget(31)
    assert [t.id for t in tracker.live] == [2, 3]


def test_a_cut_begins_another_track(model, tmp_path, film):
    pictures = [scene({1: (40, 40)}, 70)] * 7 + [scene({2: (44, 36)}, 200)] * 7
    report = video.protect_video(model, film(pictures), tmp_path / "b.mp4", "pw")
    assert [(f.begins, f.ends, f.frames) for f in report.faces] == [(0.0, 0.6, 7), (0.7, 1.3, 7)]


def test_frames_in_which_the_detector_is_blind_are_bridged_and_held(model, tmp_path, film):
    pictures = pan(24)
    for i in (8, 9, 10, 11, 21, 22, 23):  # another grey, by which the detector knows when to be blind
        pictures[i] = scene({1: (30 + 2 * i, 40)}, 130)
    source = film(pictures)
    model.detector.blind = lambda image: np.asarray(image)[-3:, -3:].mean() > 125
    (face,) = video.protect_video(model, source, tmp_path / "b.mp4", "pw").faces
    before, after = read(source)[0], read(tmp_path / "b.mp4")[0]
    assert face.frames == 24 and face.seen < 20, face
    assert all(changed(before, after, i, (30 + 2 * i, 40)) > 5 for i in range(24))


def test_a_face_that_is_lost_within_a_scene_is_told(model, tmp_path, film):
    source = film([scene({1: (50, 40)})] * 8 + [scene({})] * 12)
    report = video.protect_video(model, source, tmp_path / "b.mp4", "pw")
    assert (report.faces[0].seen, report.faces[0].frames) == (8, 11)
    assert any("was lost at 0.7 s" in note and "until 1.0 s" in note for note in report.notes)


def test_a_face_that_cannot_be_replaced_is_listed(model, tmp_path, film, monkeypatch):
    why = "too small: 3 px, and 20 are needed"
    monkeypatch.setattr(tracking.outcomes, "why_not", lambda face, size: why if face.box[0] > 80 else "")
    source, target = film([scene({1: (10, 40), 2: (100, 40)})] * 4), tmp_path / "b.mp4"
    with pytest.raises(PhotoError, match="a.mp4: strict.*too small"):
        video.protect_video(model, source, target, "pw", strict=True)
    assert names(tmp_path) == ["a.mp4"]
    report = video.protect_video(model, source, target, "pw")
    assert {(f.status, f.reason, f.frames) for f in report.faces} == {
        ("protected", "", 4), ("skipped", why, 0)
    }  # fmt: skip
    before, after = read(source)[0], read(target)[0]
    assert changed(before, after, 2, (10, 40)) > 5 > 2 > changed(before, after, 2, (100, 40))
    alone = film([scene({2: (100, 40)})] * 4, "c.mp4")
    with pytest.raises(PhotoError, match="c.mp4: no face of it can be replaced.*too small"):
        video.protect_video(model, alone, tmp_path / "d.mp4", "pw")


def test_a_parabola_is_kept_and_noise_is_not():
    t = np.arange(30) / 10
    exact = np.stack([3 + 2 * t - t**2, t, 0 * t + 40, t**2], 1)
    assert np.allclose(tracking.smoothed(t, exact, 0.3), exact, atol=1e-6)
    noise = np.random.default_rng(0).normal(0, 1, (30, 4))
    assert tracking.smoothed(t, noise, 0.3)[5:-5].std() < 0.6 * noise.std()


def test_faces_are_told_apart_by_a_recogniser_where_there_is_one(model, tmp_path, film, monkeypatch):
    def brightness(faces):  # a degree a grey level
        grey = torch.deg2rad((faces.mean((1, 2, 3)) + 1) * 127.5)
        return torch.stack([torch.cos(grey), torch.sin(grey)], 1)

    monkeypatch.setattr(tracking.recognizers, "available", lambda names: {tracking.RECOGNISER: ""})
    recogniser = SimpleNamespace(threshold=0.9, from_crop=brightness)
    monkeypatch.setattr(tracking.recognizers, "load", lambda name: recogniser)
    assert tracking.Embedder().same == 0.9
    assert len(video.protect_video(model, film(pan(10)), tmp_path / "b.mp4", "pw").faces) == 1


# Interruption


@pytest.fixture
def painted(monkeypatch):
    """Frames that were painted, of segments of six; `painted.until` is the frame at which a program is killed."""

    class Painted(list):
        until = None

    seen, paint = Painted(), video.paint

    def noted(model, frame, faces):
        if frame.n == seen.until:
            raise KeyboardInterrupt
        seen.append(frame.n)
        paint(model, frame, faces)

    monkeypatch.setattr(video, "SEGMENT", 0.6)
    monkeypatch.setattr(video, "paint", noted)
    return seen


def interrupted(painted, at, model, source, target):
    """Begins to protect a clip and is killed at a frame; the folder of what was done."""
    painted.until = at
    with pytest.raises(KeyboardInterrupt):
        video.protect_video(model, source, target, "pw")
    painted.until = None
    painted.clear()
    return target.with_name(f".{target.name}.riddle-work")


def test_resumed_is_the_same_as_uninterrupted(model, tmp_path, film, painted, monkeypatch):
    salts = iter([b"a" * 16, b"a" * 16, b"b" * 16])  # of the whole clip, of the interrupted one, of no other
    monkeypatch.setattr(passwords, "random_salt", lambda: next(salts))
    source, whole, pieces = film(pan(20), sound=tone(2)), tmp_path / "whole.mp4", tmp_path / "pieces.mp4"
    report = video.protect_video(model, source, whole, "pw")
    work = interrupted(painted, 15, model, source, pieces)
    assert names(work) == ["00000.mp4", "00001.mp4", "faces.json", "mark", "record", "salt"]
    assert not pieces.exists() and work.stat().st_mode & 0o077 == 0, "it is nobody else's to read"
    assert len(read(work / "00001.mp4")[0]) == 6, "a segment is an ordinary clip"
    mark, secrets = (work / "mark").read_text(), [model.secret("pw", salt).hex() for salt in (None, b"a" * 16)]
    assert len(mark) == 64 and mark not in secrets, "it is not the key"
    again = video.protect_video(model, source, pieces, "pw", resume=True)
    assert painted == list(range(12, 20)), "two segments of six frames were there"
    assert again.faces == report.faces and again.notes == report.notes
    assert np.array_equal(read(whole)[0], read(pieces)[0]) and read(whole)[1] == read(pieces)[1]
    (one, salt, _), (other, same, _) = opened(model, whole), opened(model, pieces)
    assert salt == same == b"a" * 16 and next(salts) == b"b" * 16 and one.to_bytes() == other.to_bytes()
    assert sound(whole) == sound(pieces)
    assert names(tmp_path) == ["a.mp4", "pieces.mp4", "whole.mp4"]


def test_a_failure_at_the_end_leaves_nothing(model, tmp_path, film, monkeypatch):
    def fail(*_):
        raise PhotoError("a.mp4", "its sound cannot be read", "convert it")

    monkeypatch.setattr(cliprecord, "MAX_INSIDE", 1000)  # so there would be a sidecar
    monkeypatch.setattr(video, "join", fail)
    with pytest.raises(PhotoError, match="its sound"):
        video.protect_video(model, film(pan(4)), tmp_path / "b.mp4", "pw")
    assert names(tmp_path) == ["a.mp4"]


def watched(monkeypatch, at=0):
    """Note what changes the disk; end this process at the `at`-th change, as kill -9 does: nothing is cleaned up."""
    seen = []

    def noted(name, change):
        def call(*arguments, **options):
            seen.append(name)
            if len(seen) == at:
                os._exit(9)
            return change(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "rename"), (Path, "write_bytes"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    return seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("result", ["b.png", "b.mp4"])
def test_a_kill_at_any_time_leaves_no_half_written_file(model, tmp_path, film, monkeypatch, result):
    monkeypatch.setattr(outcomes.recognizers, "at_hand", lambda *_: None)
    source, target, is_clip = tmp_path / "a.png", tmp_path / result, result == "b.mp4"
    if is_clip:
        source = film(pan(3))
    else:
        Image.fromarray(pan(1)[0]).save(source)
    act = partial(video.protect_video, resume=True) if is_clip else partial(photos.protect_file, sidecar=True)

    def run():
        (outcome,) = bulk.run([bulk.Pair(source, target)], lambda pair: act(model, *pair, "pw"), "protect")
        return outcome["status"]

    with monkeypatch.context() as patched:
        changes = watched(patched)
        assert run() == "done"
    complete, many = names(tmp_path), len(changes)
    assert many >= 5 and all(name[0] != "." for name in complete)
    for at in (1, many // 2, *range(many - 3, many + 1)):
        for name in complete[1:]:
            (tmp_path / name).unlink(missing_ok=True)
        if not (child := os.fork()):
            try:
                watched(monkeypatch, at)
                run()
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert not target.exists() or names(tmp_path) == complete
        assert all(name in complete or name[0] == "." for name in names(tmp_path))
        for left in tmp_path.glob(".riddle-*"):
            os.utime(left, (0, 0))
        assert run() in ("done", "there") and names(tmp_path) == complete, changes[at - 1]
        assert len(read(target)[0]) == 3 if is_clip else Image.open(target).load()


@pytest.mark.parametrize("resume, passphrase", [(False, "pw"), (True, "another")])
def test_what_was_begun_otherwise_is_not_gone_on_with(model, tmp_path, film, painted, resume, passphrase):
    source, target = film(pan(14)), tmp_path / "b.mp4"
    salt = (interrupted(painted, 8, model, source, target) / "salt").read_bytes()
    video.protect_video(model, source, target, passphrase, resume=resume)
    assert painted == list(range(14)) and opened(model, target)[1] != salt


# Restoring


def test_the_right_passphrase_brings_the_faces_back_and_a_wrong_one_others(model, tmp_path, film):
    exact = build_encryptor("smoke", "reflection", model.generator.codes)  # untrained, and yet its own inverse
    model, plain = (with_encryptor(model, exact) for _ in range(2))
    plain.encrypt = lambda w, key: w  # what the networks can show of the faces at all
    source = film(pan(10))
    paths = {name: tmp_path / f"{name}.mp4" for name in ("inverted", "protected", "restored", "wrong")}
    video.protect_video(plain, source, paths["inverted"], "pw")
    video.protect_video(model, source, paths["protected"], "pw")
    report = video.restore_video(model, paths["protected"], paths["restored"], "pw")
    wrong = video.restore_video(model, paths["protected"], paths["wrong"], "pW")
    shown = {name: read(path)[0] for name, path in paths.items()}

    def apart(a, b):
        return np.mean([changed(shown[a], shown[b], i, (30 + 2 * i, 40)) for i in range(10)])

    # The light of a restored face is matched to the protected picture, hence not 0.
    assert apart("restored", "inverted") < 0.8 * apart("protected", "inverted")
    assert apart("restored", "inverted") < 0.8 * apart("wrong", "inverted")
    assert apart("wrong", "restored") > 5 and apart("wrong", "protected") > 1
    assert report.how == "codes" and report.faces[0].status == "restored" and report.faces[0].frames == 10
    assert wrong.how == "inversion" and video.NOT_OPENED in wrong.notes and wrong.faces[0].status == "restored"
    assert not cliprecord.read_tag(paths["restored"]), "a restored clip carries no record"


def test_each_face_has_its_own_key_and_is_shown_in_its_own_light(model, tmp_path, film, monkeypatch):
    shown, paint, space, safe = {}, video.paint, model.generator.codes, tmp_path / "b.mp4"

    def noted(model, frame, faces):
        shown.update({(number, frame.n): code for number, _, code in faces})
        paint(model, frame, faces)

    monkeypatch.setattr(spaces, "FINE", 4)  # the smallest generator has coarse slots only
    monkeypatch.setattr(video, "paint", noted)
    video.protect_video(model, film([scene({2: (28, 26), 1: (85, 44)})] * 4), safe, "pw")
    record, _, keys = opened(model, safe)
    assert (keys([0, 0])[0] - keys([0, 0])[1]).abs().mean() > 0.1, "a key of its own"
    own = space.to_record(model.decrypt(space.to_w(record.codes), keys(record.turns).repeat_interleave(3, 0)))
    assert record.every == 2 and len(own) == 6 and len(shown) == 8 and (own - record.codes).abs().mean() > 0.1
    for number, n in [(0, 0), (0, 2), (1, 0), (1, 2)]:
        code, k = shown[number, n], 3 * number + n // 2
        assert torch.equal(code[:4], record.codes[k, :4]) and torch.allclose(code[4:], own[k, 4:], atol=1e-2)


def test_codes_of_several_frames_are_averaged_in_z(model, film, monkeypatch):
    """An average in w lies outside of what the encryptor knows: its faces fall apart."""
    space, frame = model.generator.codes, iter(range(8))
    z = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model, "invert", lambda faces, refine: space.to_w(z[next(frame) % 2])[None])
    source = clip.probe(film(pan(8)))
    got = tracking.record_of(*tracking.survey(model, source), source, model).codes
    share = ((got - z[0]) * (z[1] - z[0])).sum((1, 2)) / (z[1] - z[0]).square().sum()
    assert ((share > 0.2) & (share < 0.8)).all()
    assert torch.allclose(got, z[0] + share[:, None, None] * (z[1] - z[0]), atol=1e-2)


def test_codes_are_changed_face_by_face_whatever_their_number(model):
    count, space, keys = np.array([99, 28]), model.generator.codes, model.random_password(2)
    tracks, codes = np.stack([[0, 4], [0, 0], count], 1), torch.zeros(129, 8, 64)  # one more than are changed at once
    record = ClipRecord(SIZE, 1, np.arange(99) / 10, tracks, np.ones((127, 4)), codes)
    got = video.changed(model, record, lambda turns: keys[: len(turns)]).codes
    each = space.to_record(model.encrypt(space.to_w(codes[:2]), keys))
    assert (each[0] - each[1]).abs().mean() > 0.1
    assert torch.allclose(got[:100], each[0], atol=1e-2) and torch.allclose(got[100:], each[1], atol=1e-2)


def test_only_the_passphrase_opens_the_tag_and_a_damaged_one_is_told(model, tmp_path, film):
    source, safe, broken = film(pan(4)), tmp_path / "b.mp4", tmp_path / "broken.mp4"
    video.protect_video(model, source, safe, "pw")
    record, salt, _ = opened(model, safe)
    assert len(record.times) == 4 and record.tracks.tolist() == [[0, 0, 4]]
    assert opened(model, safe, "pW")[0] is None and cliprecord.read(safe)[0].open(model.secret("pw")) is None
    video.protect_video(model, source, tmp_path / "again.mp4", "pw")
    assert opened(model, tmp_path / "again.mp4")[1] != salt, "every clip has its own salt"
    tag = cliprecord.read_tag(safe).encode()
    for byte in (b"A" if tag[99:100] != b"A" else b"B", b"-", b"\xff"):  # another letter, none of base64's, no text
        broken.write_bytes(safe.read_bytes().replace(tag, tag[:99] + byte + tag[100:]))
        with pytest.raises(RecordError, match="broken.mp4: its record is damaged"):
            video.restore_video(model, broken, tmp_path / "c.mp4", "pw")
    assert names(tmp_path) == ["a.mp4", "again.mp4", "b.mp4", "broken.mp4"]


def test_a_record_that_is_too_large_lies_beside_and_without_it_pixels_are_inverted(model, tmp_path, film, monkeypatch):
    monkeypatch.setattr(cliprecord, "MAX_INSIDE", 1000)
    source, safe, sidecar = film(pan(8)), tmp_path / "b.mp4", tmp_path / "b.mp4.riddle"
    report = video.protect_video(model, source, safe, "pw")
    assert any("b.mp4.riddle" in n for n in report.notes)
    assert not cliprecord.read_tag(safe) and bulk.inspect(safe)["where"] == "sidecar"
    told = bulk.inspect(sidecar)
    assert told["record_bytes"] == sidecar.stat().st_size and not {"frames", "faces"} & set(told), "it is sealed"
    assert video.restore_video(model, safe, tmp_path / "c.mp4", "pw").how == "codes"
    sidecar.write_bytes(sidecar.read_bytes()[:-1])
    with pytest.raises(RecordError, match="b.mp4.riddle: its record is damaged"):
        video.restore_video(model, safe, tmp_path / "c.mp4", "pw")
    sidecar.unlink()
    assert bulk.inspect(safe) == {"file": str(safe), "protected": False}
    bare = video.restore_video(model, source, tmp_path / "d.mp4", "pw")  # its markers are whole
    assert bare.how == "inversion" and video.NO_RECORD in bare.notes and bare.faces[0].status == "restored"


def test_a_cut_clip_is_restored_by_time_and_another_one_is_refused(model, tmp_path, film):
    safe, later, small = tmp_path / "b.mkv", tmp_path / "later.mp4", film([p[:80] for p in pan(4)], "small.mp4")
    video.protect_video(model, film(pan(10)), safe, "pw")
    known, text = clip.probe(safe), cliprecord.read_tag(safe)
    unit = round(1 / RATE / known.time_base)

    def shifted():  # the last two frames come three frames later
        for frame in clip.frames(known):
            frame.pts += 3 * unit * (frame.n >= 8)
            yield frame

    clip.write_segment(tmp_path / "piece.mp4", known, "libx264", shifted())
    clip.join(later, known, [tmp_path / "piece.mp4"], text)
    report = video.restore_video(model, later, tmp_path / "c.mp4", "pw")
    assert report.how == "codes" and any("2 of 10 frames are not in its record" in n for n in report.notes)
    (tmp_path / "small.mp4.riddle").write_bytes(base64.b64decode(text))
    with pytest.raises(RecordError, match="160 x 80 px, but its record is of 160 x 120"):
        video.restore_video(model, small, tmp_path / "d.mp4", "pw")
    other = with_encryptor(model, model.encryptor)
    other.__dict__["weights_hash"] = "f" * 64
    with pytest.raises(RecordError, match="b.mkv: it was protected with other weights"):
        video.restore_video(other, safe, tmp_path / "d.mp4", "pw")
    assert not (tmp_path / "d.mp4").exists()


# The record


def two_faces():
    """The record of two faces in eight frames; a code every two frames."""
    rng = np.random.default_rng(0)
    places = np.tile(np.array([20, 20, 16, 1], np.float32), (9, 1)) - np.arange(9, dtype=np.float32)[:, None] / 10
    codes = torch.from_numpy(rng.normal(size=(8, 2, 3)).astype(np.float16)).float()
    tracks = np.array([[0, 0, 5], [4, 3, 4]])
    return ClipRecord((60, 50), 2, np.arange(8) / 10, tracks, places, codes, [0, 3])


record = pytest.fixture(two_faces)

SECRET = bytes(32)


def sealed(record):
    return record.seal(SECRET, bytes(16), "smoke", "a" * 64)


def reopened(record):
    return ClipRecord.open(sealed(record), SECRET, "x.mp4")


def test_a_record_comes_back_as_it_was_written(record):
    again = reopened(record)
    assert (again.size, again.every) == ((60, 50), 2)
    kept = ("times", "tracks", "places", "codes", "turns")
    assert all(np.array_equal(getattr(again, k), getattr(record, k)) for k in kept) and again.turns == (0, 3)
    assert [record.frame(t) for t in (0, 0.3, 0.301, 0.35, 2)] == [0, 3, 3, None, None]
    here = [[track for track, *_ in again.faces(n)] for n in range(8)]
    assert here == [[0], [0], [0], [0, 4], [0, 4], [4], [4], []]
    assert torch.allclose(again.faces(5)[0][2], (record.codes[5] + record.codes[6]) / 2)
    assert torch.equal(again.faces(4)[0][2], record.codes[2]) and torch.equal(again.faces(6)[0][2], record.codes[6])
    assert np.array_equal(again.faces(6)[0][1], record.places[8])


def test_a_shift_is_added_to_every_code_of_its_face(record):
    shift = torch.stack([torch.zeros_like(record.codes[0]), torch.full_like(record.codes[0], 0.5)])
    again = reopened(replace(record, shift=shift))
    assert torch.equal(again.shift, shift) and again.faces(3)[0][0] != again.faces(3)[1][0]
    for n in (3, 4):
        for (number, _, code), (_, _, plain) in zip(again.faces(n), record.faces(n), strict=True):
            assert torch.allclose(code, plain + (0.5 if number == 4 else 0))
    with pytest.raises(RecordError, match="damaged"):
        reopened(replace(record, shift=shift[:1]))


def test_a_damaged_older_or_newer_record_is_refused(record, tmp_path):
    data, beside = sealed(record).data, tmp_path / "x.mp4.riddle"
    refused = {
        b"RIDCLP\x02\0" + bytes(99): r"an older riddle \(record version 2, preset unknown\); only that one restores it",
        record.to_bytes(): r"an older riddle \(record version 3, preset unknown\); only that one restores it",
        data[:6] + b"\3" + data[7:]: r"an older riddle \(record version 3, preset smoke\); only that one restores it",
        data[:6] + b"\5" + data[7:]: "of version 5, this program reads version 4; update riddle",
        data[:5]: "is damaged", data[:-1]: "is damaged", data[:99] + b"#" + data[100:]: "is damaged",
    }  # fmt: skip
    for stored, cause in refused.items():
        beside.write_bytes(stored)
        with pytest.raises(RecordError, match=f"x.mp4.riddle: .*{cause}"):
            cliprecord.read(beside)


def test_a_record_of_too_much_is_refused(record, monkeypatch):
    monkeypatch.setattr(cliprecord, "MAX_RECORD", 1 << 20)
    with pytest.raises(RecordError, match="larger than 1 MB"):
        reopened(replace(record, codes=torch.zeros(8, 64, 4096)))


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"places": np.tile(np.float32([20, 20, 1e9, 0]), (9, 1))}, "no square"),
        ({"places": np.tile(np.float32([np.nan, 20, 16, 0]), (9, 1))}, "no square"),
        ({"codes": torch.full((8, 2, 3), np.inf)}, "not finite"),
        ({"codes": torch.zeros(7, 2, 3)}, "codes of shape"),
        ({"times": np.array([0, 0.1, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7])}, "increase"),
        ({"tracks": np.array([[0, 0, 5], [4, 5, 4]])}, "outside the clip"),
        ({"tracks": np.array([[0, 0, 5], [4, 3, 2**62]])}, "outside the clip"),
        ({"size": (60, 10**9)}, "no numbers of a clip"),
        ({"every": 0}, "no numbers of a clip"),
    ],
)
def test_a_record_that_is_whole_and_hostile_is_refused(record, change, cause):
    with pytest.raises(RecordError, match=cause):
        reopened(replace(record, **change))


def test_places_are_bounded_and_their_matrices_are_squares():
    places = np.array([[5, 6, 16, 3], [900, 5, 10, 0], [5, 5, 0, 0], [5, 5, 4000, 0]], np.float32)
    kept = alignment.bounded(places, 60, 50)
    assert np.array_equal(kept[0], places[0]) and kept[1, 0] <= 70
    assert np.array_equal(alignment.bounded(kept, 60, 50), kept)
    matrix = alignment.matrix(places[0])
    assert np.allclose(matrix @ [0.5, 0.5, 1], places[0, :2]) and np.allclose(alignment.place(matrix), places[0])
    assert np.allclose(matrix[:, 0] @ matrix[:, 1], 0) and np.allclose(np.linalg.det(matrix[:, :2]), 16**2 + 3**2)


# What cannot be done


def test_files_that_are_no_clip(model, tmp_path, film):
    data = film(pan(20), "good.mp4", tone(2)).read_bytes()
    mkv = film(pan(20), "good.mkv").read_bytes()
    (tmp_path / "text.mp4").write_text("no clip at all\n" * 100)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "cut.mkv").write_bytes(mkv[: int(len(mkv) * 0.6)])
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as out, av.open(str(tmp_path / "good.mp4")) as good:
        heard = out.add_stream_from_template(good.streams.audio[0])
        for packet in good.demux(audio=0):
            if packet.dts is not None:
                packet.stream = heard
                out.mux(packet)
    causes = {
        "missing.mp4": "there is no such file", "folder.mp4": "it is no regular file", "empty.mp4": "it is empty",
        "text.mp4": "no clip", "list.mp4": "no clip", "cut.mp4": "cut off", "cut.mkv": "cut off|damaged",
        "sound.mp4": "sound only",
    }  # fmt: skip
    before = names(tmp_path)
    for name, cause in causes.items():
        for work in (video.protect_video, video.restore_video):
            with pytest.raises(PhotoError, match=rf"{name}: .*({cause}).*; \w+"):
                work(model, tmp_path / name, tmp_path / "out.mp4", "pw")
    assert names(tmp_path) == before, "nothing half written"


def test_targets_that_cannot_be(model, tmp_path, film):
    source, nobody = film(pan(3)), film([scene({})] * 3, "nobody.mp4")
    for target, cause in (("b.avi", "written as .avi"), ("none/b.mp4", "no work folder")):
        with pytest.raises(PhotoError, match=cause):
            video.protect_video(model, source, tmp_path / target, "pw")
    with pytest.raises(ValueError, match="empty"):
        video.protect_video(model, source, tmp_path / "b.mp4", " ")
    with pytest.raises(PhotoError, match="nobody.mp4: no face was found"):
        video.protect_video(model, nobody, tmp_path / "b.mp4", "pw")
    assert names(tmp_path) == ["a.mp4", "nobody.mp4"]
