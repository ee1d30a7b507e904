"""Claims and the report: verdicts that follow from whole intervals, missing tables named, notebooks fit to publish."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from riddle.evaluation import claims, report, rows, tables
from riddle.evaluation.claims import FAILS, HOLDS, UNDECIDED, Claim, Rows

MADE = {"dataset": "LFW", "split_hash": "abc123", "seed": 0, "weights": "fedcba"}


def line(judge, mean, low=None, high=None, seen=False, **where):
    low, high = (mean if v is None else v for v in (low, high))
    shared = {"task": "de-identification", "method": "RiDDLE", "metric": "share accepted", "against": "other photo"}
    numbers = {"value": f"{mean:.3f} ± 0.010", "mean": mean, "low": low, "high": high, "n": 3000, "undetected": 1}
    return shared | {"judge": judge, "judge_seen": seen} | numbers | where | MADE


def absent(judge, value, **where):
    gone = {"value": value, "mean": np.nan, "low": np.nan, "high": np.nan, "n": 0, "undetected": 0}
    return line(judge, 0, **where) | gone


RIDDLE, OTHER = Rows("t", {"method": ("RiDDLE",)}), Rows("t", {"method": ("other",)})


def asserted(relation, limit=np.nan, than=None, rows=RIDDLE):
    return Claim("c", "4.2", "0.016", rows, relation, limit, than)


def verdict(claim, *lines):
    return claim.judge({"t": pd.DataFrame(list(lines))}).verdict


# ---- verdicts


@pytest.mark.parametrize(
    ("bounds", "at_most", "at_least"),
    [
        ([(0.01, 0.02), (0.02, 0.03)], HOLDS, FAILS),
        ([(0.01, 0.02), (0.04, 0.06)], UNDECIDED, FAILS),
        ([(0.01, 0.02), (0.06, 0.08)], FAILS, FAILS),
        ([(0.06, 0.08)], FAILS, HOLDS),
        ([(0.04, 0.06)], UNDECIDED, UNDECIDED),
        ([(np.nan, np.nan)], UNDECIDED, UNDECIDED),
    ],
)
def test_limits_are_judged_by_whole_intervals_of_every_judge(bounds, at_most, at_least):
    lines = [line(f"j{i}", 0.01, lo, hi) for i, (lo, hi) in enumerate(bounds)]
    assert verdict(asserted("at most", 0.05), *lines) == at_most
    assert verdict(asserted("at least", 0.05), *lines) == at_least


def test_order_needs_disjoint_intervals_under_every_judge():
    claim = asserted("below", than=OTHER)
    a = [line("x", 0.1, 0.05, 0.15), line("y", 0.5, 0.45, 0.55)]
    above = [line("x", 0.2, 0.16, 0.24, method="other"), line("y", 0.7, 0.6, 0.8, method="other")]
    assert verdict(claim, *a, *above) == HOLDS  # x of one is compared with x of the other, never with y
    near = [line("x", 0.2, 0.14, 0.24, method="other"), above[1]]
    assert verdict(claim, *a, *near) == UNDECIDED
    below = [line("x", 0.01, method="other"), line("y", 0.4, method="other")]
    assert verdict(claim, *a, *below) == FAILS
    assert verdict(claim, *a, above[0], below[1]) == UNDECIDED  # the judges disagree


@pytest.mark.parametrize("claim", [
    asserted("below", than=OTHER), asserted("near", 0.1, OTHER),
    asserted("not above by", 0.05, OTHER), asserted("a share of", 0.9, OTHER),
])  # fmt: skip
def test_a_number_without_an_interval_decides_nothing(claim):
    """Whatever the points say: 0.141 against 0.142 is no proof of anything."""
    for first, second in ((0.1, 0.9), (0.9, 0.1), (0.5, 0.5)):
        lines = line("x", first, np.nan, np.nan), line("x", second, np.nan, np.nan, method="other")
        assert verdict(claim, *lines) == UNDECIDED


def test_nearness_is_within_the_margin_wherever_in_the_intervals():
    claim = asserted("near", 0.02, OTHER)
    for low, high, expected in ((0.49, 0.51, HOLDS), (0.49, 0.53, UNDECIDED), (0.53, 0.55, FAILS)):
        assert verdict(claim, line("x", 0.5), line("x", 0.5, low, high, method="other")) == expected


def test_not_above_by_a_margin_asks_both_intervals():
    claim = asserted("not above by", 0.05, OTHER)
    other = [line("x", 0.10, 0.08, 0.12, method="other"), line("y", 0.10, 0.08, 0.12, method="other")]
    for first, expected in (((0.01, 0, 0.02), HOLDS), ((0.11, 0.1, 0.12), HOLDS), ((0.12, 0.1, 0.14), UNDECIDED),
                            ((0.19, 0.18, 0.20), FAILS)):  # fmt: skip
        assert verdict(claim, line("x", *first), line("y", 0.05), *other) == expected


def test_a_share_is_asked_of_every_judge():
    claim = asserted("a share of", 0.9, OTHER)
    whole = [line("x", 0.8, method="other"), line("y", 0.6, method="other")]
    for first, second, expected in ((0.73, 0.55, HOLDS), (0.73, 0.5, UNDECIDED), (0.5, 0.5, FAILS)):
        assert verdict(claim, line("x", first), line("y", second), *whole) == expected
    nothing = [line("x", 0.0, method="other")]
    assert verdict(claim, line("x", 0.1), *nothing) == "n/a: there is nothing to have a share of"


def test_a_judge_seen_in_training_does_not_count():
    claim = asserted("at most", 0.05)
    assert verdict(claim, line("x", 0.9, seen=True), line("y", 0.01)) == HOLDS
    assert verdict(claim, line("x", 0.01, seen=True)) == "n/a: no number by a judge unseen in training"


def test_a_claim_may_name_its_column_and_its_interval():
    claim = asserted("at most", 0.0, rows=Rows("t", {"method": ("RiDDLE",)}, "accepted"))
    interval = {"accepted": 0.0, "accepted_low": 0.0, "accepted_high": 0.0}
    assert verdict(claim, line("x", 0.9, **interval)) == HOLDS
    assert verdict(claim, line("x", 0.9, **interval | {"accepted_high": 0.1})) == UNDECIDED
    assert verdict(claim, line("x", 0.9, accepted=0.0)) == UNDECIDED
    assert verdict(claim, line("x", 0.9)) == "n/a: t.csv has no column accepted"


def test_faces_that_were_not_found_prove_no_protection():
    lost = line("x", 0.0) | {"undetected": 1501}
    assert verdict(asserted("at most", 0.05), lost) == "n/a: most faces were not found"
    assert verdict(asserted("at most", 0.05), lost | {"undetected": 1500}) == HOLDS
    assert verdict(asserted("at least", 0.95), lost) == FAILS


def test_what_is_missing_is_named():
    claim = asserted("at most", 0.05, rows=Rows("t", {"method": ("RiDDLE",), "kind": ("FID",)}))
    assert claim.judge({}).verdict == "n/a: there is no t.csv"
    assert verdict(claim, line("x", 0.1)) == "n/a: t.csv has no column kind"
    assert verdict(claim, line("x", 0.1, kind="KID")) == "n/a: t.csv has no row RiDDLE, FID"
    gone = [absent("x", "n/a: weights missing (no file)", kind="FID")]
    gone.append(absent("y", "n/a: weights missing (encryptor_mlp)", kind="FID"))
    assert verdict(claim, *gone) == "n/a: weights missing (encryptor_mlp)"
    one = asserted("below", than=OTHER)
    assert verdict(one, line("x", 0.1), line("y", 0.2, method="other")).startswith("n/a: no judge")


def test_figures_stand_beside_the_verdict():
    claim = asserted("at most", 0.05)
    answer = claim.judge({"t": pd.DataFrame([line("x", 0.01), line("y", 0.03)])})
    assert (answer.ours, answer.paper, answer.section) == ("0.010 to 0.030 (asked: at most 0.05)", "0.016", "4.2")
    assert claims.sentences([answer]) == "- c: **holds** (0.010 to 0.030 (asked: at most 0.05); paper: 0.016)\n"


def test_what_cannot_be_right_is_said_apart_from_what_fails():
    bad, worse = (pd.DataFrame([line("x", v)]) for v in (0.15, 0.3))
    assert claims.broken("table1", bad) == [] and claims.broken("table2", worse) == []
    (said,) = claims.broken("table1", worse)
    assert "no longer recognised: 0.300, and 0.2 is the limit" in said


def test_every_claim_reads_a_table_of_the_report():
    for claim in claims.CLAIMS:
        assert claim.rows.table in report.SOURCES and claim.relation in claims.RELATIONS
        assert (claim.than is None) == (claim.relation in ("at most", "at least")) and claim.rows.where
        assert np.isnan(claim.limit) == (claim.relation == "below"), claim.text
    assert len({c.text for c in claims.CLAIMS}) == len(claims.CLAIMS)


@pytest.mark.parametrize(("table", "wanted"), [("table1", rows.TABLE1), ("table5", rows.TABLE5)])
def test_every_claim_on_rates_names_rows_that_the_table_has(table, wanted):
    made = {(row.task, row.method, against) for row in wanted for against in (row.against, None)}
    asked = [r for c in claims.CLAIMS if c.rows.table == table for r in (c.rows, c.than) if r]
    asked = [r.where for r in asked if r.where["task"] != ("fidelity",)]
    assert asked and {(*r["task"], *r["method"], *r.get("against", [None])) for r in asked} <= made


# ---- the page


class Reader(HTMLParser):
    """Text, tags and attributes of a page; fails on an end that closes nothing."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.attributes, self.rows = [], [], [], 0
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *a) for a in attributes]
        self.rows += tag == "tr"
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def table1():
    lines = []
    for judge, seen in (("arc", True), ("dlib", False)):
        lines.append(line(judge, 0.02, 0.01, 0.03, seen) | {"paper SphereFace": 0.025})
        lines.append(absent(judge, "n/a: weights missing (encryptor_mlp)", seen=seen, method="MLP"))
    lines.append(absent("", "n/a: not trained", method="CIAGAN") | {"paper SphereFace": 0.010})
    return pd.DataFrame(lines)


@pytest.fixture
def folder(home):
    folder = home / "home" / "results" / "mobile"
    (folder / "figures").mkdir(parents=True)
    tables.write(table1(), folder / "tables" / "table1.csv")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("figure9.png", "quickstart.png"):
        Image.fromarray(noise).save(folder / "figures" / name)
    return folder


def test_a_missing_table_names_its_notebook_and_a_second_page_is_the_same(folder):
    report.write("mobile")
    first = [(folder / f"report.{kind}").read_bytes() for kind in ("md", "html")]
    for text in ((folder / "report.md").read_text(), " ".join(Reader((folder / "report.html").read_text()).text)):
        for number in ("06", "07", "08", "09", "10", "11"):
            assert f"n/a: run notebook {number}" in text
        assert "run notebook 05" not in text and "weights missing (encryptor_mlp)" in text
    assert {p.name for p in folder.iterdir()} == {"figures", "report.html", "report.md", "tables", "verdicts.csv"}
    report.write("mobile")
    assert first == [(folder / f"report.{kind}").read_bytes() for kind in ("md", "html")]


def test_html_needs_nothing_else(folder, capsys):
    report.main(["--preset", "mobile", "--out", str(folder / "elsewhere")])
    assert len(capsys.readouterr().out.splitlines()) == len(claims.CLAIMS)
    html = (folder / "elsewhere" / "report.html").read_text()
    page = Reader(html)
    (picture,) = [v for tag, k, v in page.attributes if k == "src"]  # figure9; the quickstart's is none of the paper's
    kind, _, data = picture.partition(",")
    assert kind == "data:image/jpeg;base64" and base64.b64decode(data)[:2] == b"\xff\xd8"
    assert ("td", "class", "holds") in page.attributes
    assert not re.search(r"https?://|<script|@import|url\(", html)


def test_cells_are_escaped(folder):
    bad = table1().assign(method="<script>alert('x')</script> | & \"y\"")
    tables.write(bad, folder / "tables" / "table1.csv")
    report.write("mobile")
    html, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<script" not in html and "<script>alert('x')</script> / &" in "".join(Reader(html).text)
    rows = [r for r in markdown.splitlines() if r.startswith("|") and "alert" in r]
    assert rows and len({r.count("|") for r in rows}) == 1  # no cell breaks its row


def test_both_files_and_the_verdicts_say_the_same(folder):
    answers = report.write("mobile")
    kept = pd.read_csv(folder / "verdicts.csv", keep_default_na=False)
    assert list(zip(kept.claim, kept.verdict, strict=True)) == [(a.claim, a.verdict) for a in answers]
    page, markdown = Reader((folder / "report.html").read_text()), (folder / "report.md").read_text()
    grids = [r for r in markdown.splitlines() if r.startswith("|") and not r.startswith("| ---")]
    assert page.rows == len(grids)
    for claim in claims.CLAIMS:
        assert claim.text in markdown and claim.text in page.text
    holding = sum(a.verdict == HOLDS for a in answers)
    assert holding >= 1 and f"{holding} holds" in markdown


def test_tables_of_different_weights_are_pointed_out(folder):
    tables.write(table1().assign(weights="other"), folder / "tables" / "table5.csv")
    (folder / "tables" / "table2.csv").write_text("task,method\n")  # a head alone
    report.write("mobile")
    text = (folder / "report.md").read_text()
    assert "different weights (table1: fedcba, table5: other)" in text
    assert "n/a: the table is empty; run notebook 06" in text


# ---- executed notebooks


def picture(side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def notebook(outputs, tags=()):
    metadata = {"tags": list(tags), "papermill": {"duration": 1}}
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "id": "a",
        "source": "x",
        "outputs": outputs,
        "metadata": metadata,
    }
    about = {"papermill": {"input_path": "/somewhere"}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return nbformat.from_dict({"cells": [cell], "metadata": about, "nbformat": 4, "nbformat_minor": 5})


def shown(side):
    data = {"image/png": picture(side), "text/plain": "<Figure>"}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def stream(name, text):
    return {"output_type": "stream", "name": name, "text": text}


def test_slim_notebook_is_small_and_still_shows_its_picture(tmp_path):
    source = tmp_path / "out.ipynb"
    nbformat.write(notebook([shown(1200)]), source)
    report.main(["--slim", str(source), str(tmp_path / "kept")])
    target = tmp_path / "kept" / "out.ipynb"
    assert target.stat().st_size < 250_000 < source.stat().st_size
    data = json.loads(target.read_text())["cells"][0]["outputs"][0]["data"]
    image = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert image.width >= 250 and "image/png" not in data


def test_slim_notebook_leaves_out_real_faces_progress_and_local_paths(home):
    path = f"wrote {home}/home/table.csv"
    outputs = [shown(50), stream("stderr", "100%|####|"), stream("stdout", path)]
    kept = report.slim(notebook(outputs, ["real-faces"]))
    assert "image/" not in kept and "left out" in kept and "wrote ./table.csv" in kept
    assert "####" not in kept and "papermill" not in kept and str(home) not in kept


def test_slim_notebook_refuses_pages_of_text():
    with pytest.raises(ValueError, match="print less"):
        report.slim(notebook([stream("stdout", "x" * 500_000)]))
