"""Table R: the treatments do what they say, and the stage tells what comes back, from what, with intervals."""

import io

import numpy as np
import pytest
from PIL import Image
from test_facesets import Recogniser, run  # noqa: F401 (a fixture)
from test_pipeline import Reflection, build

import riddle
from riddle.demo import FRAMED_POINTS, STEP, KnownFaces
from riddle.evaluation import robustness, rows, stages, tables
from riddle.evaluation.robustness import FILE, MESSENGER, PIXELS, SIDECAR, TREATMENTS, UNTREATED
from riddle.faces import detection
from riddle.images import encode, open_picture
from riddle.metrics.identity import cosine

PEOPLE, SIDE = 2, 64


@pytest.fixture(autouse=True)
def quick(quick_keys, monkeypatch):
    monkeypatch.setattr("riddle.models.codes.FINE", 6)  # of the 8 slots of "smoke" two are fine


@pytest.fixture
def saved():
    """A file of 2000 x 1000 px with a packet; a white square of 40 px has its centre at (1219.5, 419.5)."""
    pixels = np.full((1000, 2000, 3), 100, np.uint8)
    pixels[400:440, 1200:1240] = 200
    return encode(Image.fromarray(pixels), "x.jpg", packet=b"<x:xmpmeta>kept</x:xmpmeta>")


@pytest.mark.parametrize("name", [n for n in TREATMENTS if n != UNTREATED])
def test_a_treatment_does_what_it_says_and_knows_where_things_are(saved, name):
    data, scale, offset = TREATMENTS[name].apply(saved)
    image = Image.open(io.BytesIO(data))
    picture = open_picture(data)
    x, y = scale * np.array([1219.5, 419.5]) + offset
    seen = np.asarray(picture.rgb.convert("L"), float)
    white = np.argwhere(seen > 1.5 * np.median(seen))
    assert np.abs(white.mean(0) - [y, x]).max() < 0.2
    assert (b"kept" in picture.xmp) == (name != MESSENGER)
    sizes = {"resized to 50 %": (1000, 500), "cropped by 5 %": (1900, 950), MESSENGER: (1600, 800)}
    assert picture.rgb.size == sizes.get(name, (2000, 1000))
    assert image.format == ("WEBP" if name.startswith("WebP") else "JPEG")
    assert np.median(seen) == pytest.approx(120 if name == "20 % brighter" else 100, abs=1)


def test_less_quality_is_a_smaller_file(saved):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "x.jpg")
    lengths = [len(TREATMENTS[f"JPEG {q}"].apply(data)[0]) for q in (95, 75, 50)]
    assert lengths[0] > lengths[1] > lengths[2]


class Alike(Recogniser):
    def similarity(self, a, b):
        return cosine(a, b)


@pytest.fixture
def table(run, monkeypatch):  # noqa: F811
    """Table R of one photo of two people, by an encryptor that is its own exact inverse."""
    monkeypatch.setattr(riddle, "load", riddle.pipeline.load)
    points = [FRAMED_POINTS * SIDE + [i * round(STEP * SIDE), 0] for i in range(PEOPLE)]
    model = build(Reflection(), KnownFaces(points))
    for name, value in {"PEOPLE": PEOPLE, "SIDE": SIDE, "PHOTOS": {"record": 1, "pixels": 1}}.items():
        monkeypatch.setattr(robustness, name, value)
    monkeypatch.setattr(riddle, "load", lambda *_, **__: model)
    for module in ("riddle.record", "riddle.faces.registration"):  # noise is less alike after resizing than faces are
        monkeypatch.setattr(f"{module}.SAME", 0.5)
    monkeypatch.setattr("riddle.faces.recognizers.load", lambda name, device: Alike())
    face = detection.Face(np.ones(4), 1.0, np.ones((5, 2)), None, "dlib")
    monkeypatch.setattr(detection, "detect_in_crop", lambda faces, detector, workers: [face] * len(faces))
    made = tables.read(stages.table(run, "robustness"))
    monkeypatch.setattr(riddle, "load", lambda *_, **__: pytest.fail("it is made again"))
    again = tables.read(stages.table(run, "robustness"))
    assert made.equals(again)
    return made


def test_the_stage_tells_what_each_way_restores(table):
    numbers = tables.numbers(table)
    assert numbers.low.notna().all() and (numbers.n == PEOPLE).all()
    said = {(line.method, line.place): line.metric for line in numbers[numbers.task == "outcome"].itertuples()}
    for name in set(TREATMENTS) - {MESSENGER, "cropped by 5 %"}:
        assert said[name, FILE] == said[name, SIDECAR] == "restored from the record"
    assert said[MESSENGER, SIDECAR] == "restored from the record"
    assert said[MESSENGER, FILE] == "restored from pixels"
    assert all(said[name, PIXELS] == "restored from pixels" for name in TREATMENTS)
    here = numbers[numbers.measured_by == "edgeface-xs"].set_index(["metric", "place", "method"])["mean"]
    errors = numbers[numbers.metric == "MSE"].set_index(["place", "method"])["mean"]
    assert set(here.loc[rows.ACCEPTED].index.get_level_values("place")) == {FILE, SIDECAR, PIXELS}
    assert errors[SIDECAR, "JPEG 95"] < errors[SIDECAR, "JPEG 50"] < errors[FILE, MESSENGER]
    assert f"{PIXELS}: **" in robustness.sentences(table) and robustness.sentences(table).count("\n") == len(TREATMENTS)
