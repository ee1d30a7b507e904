"""Tables carry their provenance and the paper's values; published notebooks are small and show no real face."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from riddle import paper, protocols, reporting
from riddle.protocols import Record

HERE = reporting.Provenance("LFW", "deep-funneled", "abc123", 7, "mobile", "fedcba", "auto", "nine folds")


def record(task, method, against, judge, rate, system="", undetected=0):
    return Record(task, method, against, judge, f"{rate:.3f} ± 0.010", rate, 0.01, rate - 0.02, rate + 0.02, 3000,
                  undetected, rate, np.nan, 0.3, system)  # fmt: skip


@pytest.fixture
def table():
    records = []
    for judge, shift in (("seen-net", 0.0), ("edgeface-xs", 0.01), ("dlib", 0.02)):
        records += [
            record("unprotected", "photo (aligned crop)", "other photo", judge, 0.97 - shift),
            record(
                "de-identification", "RiDDLE", "other photo", judge, 0.01 + shift, "riddle", undetected=int(100 * shift)
            ),
            record("recovery", "RiDDLE", "its inverted face", judge, 0.96 - shift, "riddle"),
            record("recovery", protocols.OURS, "its inverted face", judge, 1.0),
        ]
    records += protocols.without_judge("facenet-casia", "weights missing (no file)") + protocols.without_system()
    return reporting.tidy(records, HERE, seen=("seen-net",))


def line(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    (found,) = frame.to_dict("records")
    return found


def test_every_line_carries_provenance_and_the_papers_value(table):
    row = line(table, task="de-identification", method="RiDDLE", judge="dlib")
    assert (row["paper FaceNet CASIA"], row["paper FaceNet VGGFace2"], row["paper SphereFace"]) == (0.016, 0.032, 0.025)
    assert (row["dataset"], row["version"], row["split_hash"], row["seed"], row["preset"], row["weights"]) == (
        "LFW", "deep-funneled", "abc123", 7, "mobile", "fedcba")  # fmt: skip
    assert "not accepted" in row["undetected_rule"] and row["n"] == 3000 and row["undetected"] == 2
    assert line(table, task="recovery", method="FIT")["paper SphereFace"] == 1.0
    assert line(table, task="de-identification", method="DeepPrivacy")["value"].startswith("n/a: ")
    assert table[table.judge == "seen-net"].judge_seen.all() and not table[table.judge == "dlib"].judge_seen.any()


def test_csv_round_trip(table, tmp_path):
    path = reporting.write_csv(table, tmp_path / "deep" / "table1.csv")
    back = reporting.read_csv(path)
    assert [p.name for p in path.parent.iterdir()] == ["table1.csv"]
    assert list(back.columns) == list(table.columns)
    pd.testing.assert_frame_equal(back.astype(object), table.astype(object).where(table.notna(), np.nan), atol=1e-4)
    assert reporting.wide(back).equals(reporting.wide(table))


def test_wide_table_puts_unseen_judges_first_and_marks_the_seen_one(table):
    wide = reporting.wide(table)
    columns = list(wide.columns)
    assert columns[3:6] == ["edgeface-xs", "dlib", "seen-net (seen in training)"]
    row = line(wide, task="de-identification", method="RiDDLE", against="other photo")
    assert row["dlib"] == "0.030 ± 0.010" and row["undetected"] == 2 and row["paper: SphereFace"] == "0.025"
    assert line(wide, method="CIAGAN")["dlib"].startswith("n/a: ")


def test_markdown_names_what_is_absent(table):
    text = reporting.markdown(table)
    assert "facenet-casia: n/a: weights missing (no file)." in text
    assert "deep-funneled" in text and "abc123" in text and "weights fedcba" in text
    rows = [r for r in text.splitlines() if r.startswith("|")]
    assert len({r.count("|") for r in rows}) == 1


def test_goals_take_the_worst_unseen_judge(table):
    goals = reporting.goals(table)
    deid = line(goals, task="de-identification", method="RiDDLE")
    assert (deid["worst"], deid["judge"], deid["met"]) == (pytest.approx(0.03), "dlib", True)
    recovery = line(goals, task="recovery", method="RiDDLE")
    assert (recovery["worst"], recovery["met"]) == (pytest.approx(0.94), False)
    assert not line(goals, task="diversity", method="RiDDLE")["met"]
    assert line(goals, task="recovery", method=protocols.OURS)["met"]
    assert not line(goals, task="de-identification", method=protocols.OURS)["met"]  # nobody measured it


def test_the_papers_tables_are_whole():
    assert len(paper.TABLE1) == 10 and all(len(v) == 3 for v in paper.TABLE1.values())
    assert paper.TABLE1["recovery", "riddle"]["SphereFace"] == 1.0
    assert paper.TABLE3["FID", ""]["deepprivacy"] == 23.713
    assert paper.TABLE4["wrongly decrypted", "LFW"] == (0.028, 73.47)
    assert paper.TABLE5["without transformer"]["recovery"] == 0.985
    assert paper.TABLE2["riddle"]["PSNR"] == 26.499


# Notebooks


def picture(side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def notebook(outputs, tags=()):
    cell = {"cell_type": "code", "execution_count": 1, "id": "a", "source": "x", "outputs": outputs,
            "metadata": {"tags": list(tags), "papermill": {"duration": 1}}}  # fmt: skip
    return {"cells": [cell], "metadata": {"papermill": {"input_path": "/somewhere"}, "kernelspec": {"name": "python3"}},
            "nbformat": 4, "nbformat_minor": 5}  # fmt: skip


def shown(side):
    return {
        "output_type": "display_data",
        "data": {"image/png": picture(side), "text/plain": "<Figure>"},
        "metadata": {},
    }


def test_slim_notebook_is_small_and_still_shows_its_picture(tmp_path):
    source, target = tmp_path / "in.ipynb", tmp_path / "kept" / "out.ipynb"
    source.write_text(json.dumps(notebook([shown(1200)])))
    reporting.main(["slim", str(source), str(target)])
    assert target.stat().st_size < 250_000 < source.stat().st_size
    data = json.loads(target.read_text())["cells"][0]["outputs"][0]["data"]
    image = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert image.width >= 250 and "image/png" not in data


def test_slim_notebook_leaves_out_real_faces_progress_and_local_paths(tmp_path):
    outputs = [
        shown(50),
        {"output_type": "stream", "name": "stderr", "text": "100%|####|"},
        {"output_type": "stream", "name": "stdout", "text": f"wrote {tmp_path}/table.csv"},
    ]
    kept = json.dumps(reporting.slim(notebook(outputs, [reporting.REAL_FACES]), root=tmp_path))
    assert "image/" not in kept and "left out" in kept
    assert "####" not in kept and "papermill" not in kept and str(tmp_path) not in kept and "wrote ./table.csv" in kept


def test_slim_notebook_refuses_pages_of_text():
    with pytest.raises(ValueError, match="print less"):
        reporting.slim(notebook([{"output_type": "stream", "name": "stdout", "text": "x" * 500_000}]))
