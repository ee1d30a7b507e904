"""Many photos in folders and object stores: what a worker does holds without Ray; Ray's part, where it is installed."""

import hashlib
import json
import os
import signal

import fsspec
import numpy as np
import pytest
from test_app_photos import Markers, photo, with_detector

from riddle.app import bulk, cli, photos, scale
from riddle.app.cli import Exit
from riddle.app.forecast import forecast, hours, quarters, resampled
from riddle.app.passphrase import PassphraseError
from riddle.app.stores import Protector, plan, proof
from riddle.faces import outcomes, recognizers
from riddle.record import read_picture

TEXT, SALT = "correct horse", bytes(16)
STORES = {"folder": "{}/{}", "store": "memory:/{}/{}"}  # of a test's folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The machine's temporary folder, with what a killed worker left there."""
    folder = tmp_path / "temporary"
    (left := folder / ".riddle-99999999-a_folder").mkdir(parents=True)
    (left / "a.png").write_bytes(b"a result")
    os.utime(left, (0, 0))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def smoke_model(smoke, quick_keys, monkeypatch):
    monkeypatch.setenv("RIDDLE_PASSPHRASE", TEXT)
    monkeypatch.setattr("riddle.load", lambda *_, **__: with_detector(smoke, Markers()))


@pytest.fixture(params=STORES)
def places(request, tmp_path):
    """The addresses of three photos, one of which is damaged, and of their results."""
    source, out = (STORES[request.param].format(tmp_path, name) for name in ("in", "out"))
    fs, root = fsspec.core.url_to_fs(source)
    fs.makedirs(f"{root}/sub")
    for name in ("a.png", "sub/b.jpg"):
        with fs.open(f"{root}/{name}", "wb") as file:
            photo(seed=len(name)).save(file, "PNG" if name.endswith("png") else "JPEG")
    for name, content in (("c.jpg", b"no photo"), (".hidden.jpg", b""), ("notes.txt", b"hello")):
        fs.pipe_file(f"{root}/{name}", content)
    return source, out


def worker(places, **options):
    return Protector(places, "smoke", None, "cpu", None, (SALT, proof(TEXT, "smoke", SALT)), **options)


def test_a_worker_protects_what_is_not_there_and_says_what_fails(places, smoke_model, tmp_path, temporary, monkeypatch):
    rows, left_out = plan(*places)
    (fs, root), (to, safe) = map(fsspec.core.url_to_fs, places)
    assert [row["source"] for row in rows] == [f"{root}/{name}" for name in ("a.png", "c.jpg", "sub/b.jpg")]
    assert [row["target"] for row in rows] == [f"{safe}/{name}" for name in ("a.png", "c.jpg", "sub/b.jpg")]
    assert left_out == [f"{root}/notes.txt"] and not any(row["there"] for row in rows)

    protect, held = photos.protect_file, []

    def watched(*args, **options):
        held.extend(path for path in temporary.rglob("*") if path.is_file())
        return protect(*args, **options)

    monkeypatch.setattr(photos, "protect_file", watched)
    assert [*temporary.iterdir()]
    work = worker(places)
    outcomes = [work(row) for row in rows]
    assert not held and not [*temporary.iterdir()], "an original lies, or anything stays, in the temporary folder"
    assert [outcome["status"] for outcome in outcomes] == ["done", "failed", "done"]
    assert outcomes[1]["reason"].startswith(f"{root}/c.jpg: it is no picture that can be read")
    assert all(o["seconds"] > 0 and o["cpu"] > 0 and o["start"] > 0 for o in outcomes)
    assert TEXT not in json.dumps(outcomes)
    assert sorted(to.find(safe)) == [f"{safe}/a.png", f"{safe}/sub/b.jpg"]
    made = {path: to.cat_file(path) for path in to.find(safe)}
    (tmp_path / "made.png").write_bytes(made[f"{safe}/a.png"])
    picture, record, _ = read_picture(tmp_path / "made.png")
    back = work.model.restore(picture, TEXT, record=record)
    assert back.source == "codes" and len(back.faces) == 1

    # again: what is whole stays; an unprotected file in the place of a result is no result
    to.pipe_file(f"{safe}/sub/b.jpg", fs.cat_file(f"{root}/sub/b.jpg"))
    rows, _ = plan(*places)
    assert [row["there"] for row in rows] == [True, False, True]
    again = [worker(places, due=False)(row) for row in rows]
    assert [outcome["status"] for outcome in again] == ["there", "failed", "failed"]
    assert again[2]["reason"].startswith(f"{safe}/sub/b.jpg is there and carries no record")
    assert to.cat_file(f"{safe}/a.png") == made[f"{safe}/a.png"]
    assert worker(places, force=True)(rows[2])["status"] == "done"


def test_a_folder_is_planned_as_the_command_protect_does(tmp_path):
    for name in ("a.tif", "a.tif.png", "b.HEIC", "c.jpeg", "x/a.webp", "x/.no.jpg", "readme"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        photo().save(tmp_path / "in" / name, "PNG")
    (tmp_path / "in" / "readme").write_text("no photo")
    pairs, left_out = bulk.plan([tmp_path / "in"], tmp_path / "in" / "safe", bulk.PHOTOS, "protect")
    rows, more = plan(str(tmp_path / "in"), str(tmp_path / "in" / "safe"))
    assert [(row["source"], row["target"]) for row in rows] == [(str(a), str(b)) for a, b in pairs]
    assert more == [str(path) for path in left_out]


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("in", "in", "would overwrite a source"),
        ("empty", "out", "holds no photo"),
        ("no", "out", "no folder"),
    ],
)
def test_addresses_that_cannot_be_right(source, out, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").mkdir()
    photo().save(tmp_path / "in" / "a.png")
    with pytest.raises(ValueError, match=message):
        plan(str(tmp_path / source), str(tmp_path / out))


def test_a_worker_with_another_passphrase_or_none_does_not_begin(tmp_path, smoke_model, monkeypatch):
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "another horse")
    with pytest.raises(PassphraseError, match="another passphrase"):
        worker(("in", "out"))
    monkeypatch.delenv("RIDDLE_PASSPHRASE")
    with pytest.raises(PassphraseError, match="no passphrase; set RIDDLE_PASSPHRASE"):
        worker(("in", "out"))


def test_a_worker_loads_its_networks_when_it_starts_and_only_if_a_photo_is_due(places, smoke_model, monkeypatch):
    asked = []
    monkeypatch.setattr(recognizers, "at_hand", lambda *name: asked.append(name))
    work = worker(places)
    assert len(work.model.detector.seen) > 2  # the photo in all views, and the face's place again
    assert asked and "weights_hash" in vars(work.model)
    to, safe = fsspec.core.url_to_fs(places[1])
    assert not to.exists(safe)  # what was drawn is not written
    asked.clear()
    monkeypatch.setattr("riddle.load", lambda *_, **__: pytest.fail("a network is loaded"))
    worker(places, due=False)
    assert not asked


def test_the_report_lists_what_needs_a_look_and_goes_on(tmp_path):
    def outcome(source, status, face="protected", reason=""):
        reason = reason or ("cut by the border" if face == "skipped" else "")
        faces = [{"status": "protected", "reason": ""}, {"status": face, "reason": reason}] if status == "done" else []
        return {"source": source, "target": "", "status": status, "reason": "why", "faces": faces}

    def listed():
        return [json.loads(line)["source"] for line in (tmp_path / "failures.jsonl").read_text().splitlines()]

    first = [outcome("a", "done"), outcome("b", "failed"), outcome("c", "done", "skipped"), outcome("d", "failed")]
    first.append(outcome("x", "done", reason=outcomes.REASONS[outcomes.GONE]))
    first.append(outcome("y", "done", "recognised", outcomes.REASONS[outcomes.RECOGNISED]))
    counts, kept = scale.recorded(first, tmp_path)
    assert counts["files"] == 6 and counts["failed"] == 2
    assert counts["faces_skipped"] == counts["faces_recognised"] == 1
    assert listed() == ["b", "c", "d", "x", "y"] == [row["source"] for row in kept]
    with open(tmp_path / "photos.jsonl", "a") as file:
        file.write('{"source": "e", "sta')  # killed here
    scale.recorded(
        [outcome("a", "there"), outcome("b", "done"), outcome("c", "there"), outcome("d", "failed")], tmp_path
    )
    assert listed() == ["c", "d", "x", "y"]
    lines = [json.loads(line) for line in (tmp_path / "photos.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == ["a", "b", "c", "d", "x", "y", "b", "d"]


def test_the_forecast_hands_blocks_to_free_workers():
    second, start = np.array([2.0]), np.array([30.0])
    assert hours(second, start, 1000, 4, block=10) == pytest.approx((30 + 25 * 20) / 3600)
    assert hours(second, start, 1005, 4, block=10) == pytest.approx((30 + 25 * 20 + 10) / 3600)  # the rest: five photos
    assert hours(second, start, 3, 100, block=16) == pytest.approx((30 + 6) / 3600)  # one block, one worker

    measured = np.array([1.0, 2.0, 3.0, 30.0])
    took = hours(measured, np.array([10.0, 50.0]), 100_000, 50)
    least = 100_000 * measured.mean() / 50 / 3600
    assert least < took < 1.02 * least + (50 + 16 * 30) / 3600
    # a worker that is lost every hour redoes on average half a block of 36 s (rate * block^2 / 2) and starts again
    lossy = hours(second, start, 180_000, 10, lost=1, block=18)
    assert lossy == pytest.approx(10 * (1 + 18 / 3600 + 30 / 3600), rel=0.004)
    # a cost that grows shows in the quarters
    assert quarters(np.full(300, 2.0)) == [2.0] * 4
    assert quarters(np.arange(8.0)) == [0.5, 2.5, 4.5, 6.5]
    assert quarters(np.array([3.0, 1.0])) == [3.0, 1.0]


def test_the_forecast_from_few_photos_is_as_uncertain_as_their_mean():
    start = np.array([0.0])
    few, many = (np.tile([1.0, 3.0], n) for n in (3, 3000))
    drawn = resampled(few, start, 100_000, 10, draws=200)
    means = np.random.default_rng(1).choice(few, (200, len(few))).mean(1)
    assert drawn.mean() == pytest.approx(2 * 100_000 / 10 / 3600, rel=0.05)
    assert drawn.std() / drawn.mean() == pytest.approx(means.std() / means.mean(), rel=0.2)
    assert np.ptp(resampled(many, start, 100_000, 10)) < 0.1 * np.ptp(drawn)


def test_the_forecast_prints_hours_and_what_was_measured(tmp_path, capsys):
    known = {"start": 20.0, "start_cpu": 10.0, "worker": "a:1", "status": "done", "cpu": 1.0}
    lines = [known | {"seconds": seconds} for seconds in (1.0, 3.0, 2.0, 2.0)] + [{"status": "failed"}]
    (tmp_path / "photos.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    forecast(tmp_path / "photos.jsonl", 3600, 2)
    said = capsys.readouterr().out
    assert "measured: 4 photos, 0.0% failed, 2.00 s each" in said and "in order: 1.00, 3.00, 2.00, 2.00 s" in said
    assert "1 workers, which began within 20.0 s" in said and "of these, 1.0 h are work on photos" in said


class Deadly:
    """Stands in for `Protector`: some rows kill it."""

    def __init__(self, poison):
        self.poison = poison

    def __call__(self, row):
        if row["source"] in self.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return row | {"status": "done", "reason": "", "faces": [], "worker": os.getpid()}


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'riddle-faces[scale]'")
    pytest.importorskip("ray.data")
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    yield ray
    ray.shutdown()


def test_a_photo_that_kills_its_worker_takes_no_other_along(ray):
    rows = [{"source": str(i), "target": "", "there": False} for i in range(40)]
    outcomes = {o["source"]: o for o in scale.on_ray(rows, 2, Deadly, {"poison": ["7"]})}
    assert {s for s, o in outcomes.items() if o["status"] == "failed"} == {"7"} and len(outcomes) == 40
    assert scale.LOST in outcomes["7"]["reason"]


def test_two_workers_on_a_folder_and_again(ray, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RIDDLE_PASSPHRASE", TEXT)
    (tmp_path / "in").mkdir()
    from riddle.data import load

    for name in load("samples").names[:3]:
        load("samples").image(name).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.jpg").write_text("no photo")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--preset", "smoke", "--report", str(tmp_path / "report")]
    assert cli.main(words, scale.app) == Exit.FAILED
    assert len(list((tmp_path / "out").iterdir())) == 3
    rows = [json.loads(line) for line in (tmp_path / "report" / "failures.jsonl").read_text().splitlines()]
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert failed["source"].endswith("broken.jpg") and "no picture" in failed["reason"]
    printed = capsys.readouterr()
    assert f"{len(rows)} photos listed" in printed.out and "this passphrase is weak" in printed.err
    assert all(any(face["reason"] for face in row["faces"]) for row in rows if row is not failed)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "out").iterdir()}
    assert cli.main(words, scale.app) == Exit.FAILED
    assert "3 there" in capsys.readouterr().out
    assert before == {path: hashlib.sha256(path.read_bytes()).digest() for path in (tmp_path / "out").iterdir()}
    assert all(TEXT not in path.read_text() for path in (tmp_path / "report").iterdir())
