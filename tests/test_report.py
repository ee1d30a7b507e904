"""Claims and the report: verdicts that follow from whole intervals, missing tables named, notebooks fit to publish."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import nbformat.v4
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from riddle.evaluation import claims, report, rows, tables
from riddle.evaluation.claims import FAILS, HOLDS, UNDECIDED, Claim, Selection

MADE = {"dataset": "LFW", "split_hash": "abc123", "seed": 0, "weights": "fedcba"}


def line(by, mean, low=None, high=None, seen=False, **where):
    low, high = (mean if v is None else v for v in (low, high))
    shared = {"task": "de-identification", "method": "RiDDLE", "metric": "share accepted", "against": "other photo"}
    numbers = {"value": f"{mean:.3f} ± 0.010", "mean": mean, "low": low, "high": high, "n": 3000, "undetected": 1}
    return shared | {"measured_by": by, "seen_in_training": seen} | numbers | where | MADE


def absent(by, value, **where):
    gone = {"value": value, "mean": np.nan, "low": np.nan, "high": np.nan, "n": 0, "undetected": 0}
    return line(by, 0, **where) | gone


RIDDLE, OTHER = (Selection("t", {"method": (name,)}) for name in ("RiDDLE", "other"))


def asserted(relation, limit=np.nan, than=None, rows=RIDDLE):
    return Claim("c", "4.2", "0.016", rows, relation, limit, than)


def verdict(claim, *lines):
    return claim.verdict({"t": pd.DataFrame(list(lines))})[0]


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
def test_limits_are_asked_of_whole_intervals_by_every_recogniser(bounds, at_most, at_least):
    lines = [line(f"j{i}", 0.01, lo, hi) for i, (lo, hi) in enumerate(bounds)]
    assert verdict(asserted("at most", 0.05), *lines) == at_most
    assert verdict(asserted("at least", 0.05), *lines) == at_least


# Relation, limit, our intervals by recognisers x and y, and by the same those of the other row.
COMPARED = [
    ("below", np.nan, [(0.05, 0.15), (0.45, 0.55)], [(0.16, 0.24), (0.6, 0.8)], HOLDS),  # x with x, never with y
    ("below", np.nan, [(0.05, 0.15), (0.45, 0.55)], [(0.14, 0.24), (0.6, 0.8)], UNDECIDED),
    ("below", np.nan, [(0.05, 0.15), (0.45, 0.55)], [(0.01, 0.01), (0.4, 0.4)], FAILS),
    ("below", np.nan, [(0.05, 0.15), (0.45, 0.55)], [(0.16, 0.24), (0.4, 0.4)], UNDECIDED),  # they disagree
    ("near", 0.02, [(0.5, 0.5)], [(0.49, 0.51)], HOLDS),
    ("near", 0.02, [(0.5, 0.5)], [(0.49, 0.53)], UNDECIDED),
    ("near", 0.02, [(0.5, 0.5)], [(0.53, 0.55)], FAILS),
    ("not above by", 0.05, [(0, 0.02), (0.05, 0.05)], [(0.08, 0.12)] * 2, HOLDS),
    ("not above by", 0.05, [(0.1, 0.12), (0.05, 0.05)], [(0.08, 0.12)] * 2, HOLDS),
    ("not above by", 0.05, [(0.1, 0.14), (0.05, 0.05)], [(0.08, 0.12)] * 2, UNDECIDED),
    ("not above by", 0.05, [(0.18, 0.2), (0.05, 0.05)], [(0.08, 0.12)] * 2, FAILS),
    ("a share of", 0.9, [(0.73, 0.73), (0.55, 0.55)], [(0.8, 0.8), (0.6, 0.6)], HOLDS),
    ("a share of", 0.9, [(0.73, 0.73), (0.5, 0.5)], [(0.8, 0.8), (0.6, 0.6)], UNDECIDED),
    ("a share of", 0.9, [(0.5, 0.5), (0.5, 0.5)], [(0.8, 0.8), (0.6, 0.6)], FAILS),
    ("a share of", 0.9, [(0.1, 0.1)], [(0.0, 0.0)], "n/a: there is nothing to have a share of"),
]


@pytest.mark.parametrize(("relation", "limit", "ours", "other", "expected"), COMPARED)
def test_rows_are_compared_by_whole_intervals_under_every_recogniser(relation, limit, ours, other, expected):
    lines = [line(by, sum(ends) / 2, *ends) for by, ends in zip("xy", ours, strict=False)]
    lines += [line(by, sum(ends) / 2, *ends, method="other") for by, ends in zip("xy", other, strict=False)]
    assert verdict(asserted(relation, limit, OTHER), *lines) == expected


@pytest.mark.parametrize(("relation", "limit"), [("below", np.nan), ("near", 0.1), ("not above by", 0.05),
                                                 ("a share of", 0.9)])  # fmt: skip
@pytest.mark.parametrize(("first", "second"), [(0.1, 0.9), (0.9, 0.1), (0.5, 0.5)])
def test_a_number_without_an_interval_decides_nothing(relation, limit, first, second):
    """Whatever the points say: 0.141 against 0.142 is no proof of anything."""
    lines = line("x", first, np.nan, np.nan), line("x", second, np.nan, np.nan, method="other")
    assert verdict(asserted(relation, limit, OTHER), *lines) == UNDECIDED


def test_a_recogniser_seen_in_training_does_not_count():
    claim = asserted("at most", 0.05)
    assert verdict(claim, line("x", 0.9, seen=True), line("y", 0.01)) == HOLDS
    assert verdict(claim, line("x", 0.01, seen=True)) == "n/a: no number by a recogniser unseen in training"


def test_a_claim_may_name_its_column_and_its_interval():
    claim = asserted("at most", 0.0, rows=Selection("t", {"method": ("RiDDLE",)}, "accepted"))
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
    claim = asserted("at most", 0.05, rows=Selection("t", {"method": ("RiDDLE",), "kind": ("FID",)}))
    assert claim.verdict({})[0] == "n/a: there is no t.csv"
    assert verdict(claim, line("x", 0.1)) == "n/a: t.csv has no column kind"
    assert verdict(claim, line("x", 0.1, kind="KID")) == "n/a: t.csv has no row RiDDLE, FID"
    gone = [absent("x", "n/a: weights missing (no file)", kind="FID")]
    gone.append(absent("y", "n/a: weights missing (encryptor_mlp)", kind="FID"))
    assert verdict(claim, *gone) == "n/a: weights missing (encryptor_mlp)"
    one = asserted("below", than=OTHER)
    assert verdict(one, line("x", 0.1), line("y", 0.2, method="other")).startswith("n/a: no recogniser")


def test_figures_stand_beside_the_verdict(monkeypatch):
    claim = asserted("at most", 0.05)
    monkeypatch.setattr(claims, "CLAIMS", [claim])
    answers = claims.verdicts({"t": pd.DataFrame([line("x", 0.01), line("y", 0.03)])})
    ours = "0.010 to 0.030 (asked: at most 0.05)"
    assert answers.to_dict("records") == [
        {"claim": "c", "section": "4.2", "paper": "0.016", "ours": ours, "verdict": HOLDS}]  # fmt: skip
    assert claims.sentences(answers) == f"- c: **holds** ({ours}; paper: 0.016)\n"


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


def parsed(html):
    """The body of a page as a tree, which a tag without its end would not be; its text."""
    body = ElementTree.fromstring(html[html.index("<body>") : html.index("</html>")])
    return body, " ".join(body.itertext())


def table1():
    lines = []
    for by, seen in (("arc", True), ("dlib", False)):
        lines.append(line(by, 0.02, 0.01, 0.03, seen) | {"paper SphereFace": 0.025})
        lines.append(absent(by, "n/a: weights missing (encryptor_mlp)", seen=seen, method="MLP"))
    lines.append(absent("", "n/a: not trained", method="CIAGAN") | {"paper SphereFace": 0.010})
    return pd.DataFrame(lines)


@pytest.fixture
def folder(home):
    folder = home / "home" / "results" / "mobile"
    (folder / "figures").mkdir(parents=True)
    tables.write(table1(), folder / "tables" / "table1.csv")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("figure8.webp", "figure9.webp", "quickstart.webp"):
        Image.fromarray(noise).save(folder / "figures" / name)
    return folder


def test_a_missing_table_names_its_notebook_and_a_second_page_is_the_same(folder):
    report.write("mobile")
    first = [(folder / f"report.{kind}").read_bytes() for kind in ("md", "html")]
    for text in ((folder / "report.md").read_text(), parsed((folder / "report.html").read_text())[1]):
        for number in ("06", "07", "08", "09", "10", "11"):
            assert f"n/a: run notebook {number}" in text
        assert "run notebook 05" not in text and "weights missing (encryptor_mlp)" in text
    assert {p.name for p in folder.iterdir()} == {"figures", "report.html", "report.md", "tables", "verdicts.csv"}
    report.write("mobile")
    assert first == [(folder / f"report.{kind}").read_bytes() for kind in ("md", "html")]


def test_html_needs_nothing_else(folder, capsys, command_line):
    command_line(report.main, "--preset", "mobile", "--out", folder / "elsewhere")
    assert len(capsys.readouterr().out.splitlines()) == len(claims.CLAIMS)
    html = (folder / "elsewhere" / "report.html").read_text()
    page, _ = parsed(html)
    figures = [picture.get("src").partition(",") for picture in page.iter("img")]
    assert len(figures) == 2  # figures 8 and 9; the quickstart's is none of the paper's
    for kind, _, data in figures:
        assert kind == "data:image/jpeg;base64" and base64.b64decode(data)[:2] == b"\xff\xd8"
    assert page.findall(".//td[@class='holds']")
    assert not re.search(r"https?://|<script|@import|url\(", html)


def test_cells_are_escaped(folder):
    bad = table1().assign(method="<script>alert('x')</script> | & \"y\"")
    tables.write(bad, folder / "tables" / "table1.csv")
    report.write("mobile")
    html, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<script" not in html and "<script>alert('x')</script> / &" in parsed(html)[1]
    rows = [r for r in markdown.splitlines() if r.startswith("|") and "alert" in r]
    assert rows and len({r.count("|") for r in rows}) == 1  # no cell breaks its row


def test_both_files_and_the_verdicts_say_the_same(folder):
    answers = report.write("mobile")
    kept = pd.read_csv(folder / "verdicts.csv", keep_default_na=False)
    assert kept.claim.tolist() == answers.claim.tolist() and kept.verdict.tolist() == answers.verdict.tolist()
    (page, text), markdown = parsed((folder / "report.html").read_text()), (folder / "report.md").read_text()
    grids = [r for r in markdown.splitlines() if r.startswith("|") and not r.startswith("| ---")]
    assert len([*page.iter("tr")]) == len(grids)
    for claim in claims.CLAIMS:
        assert claim.text in markdown and claim.text in text
    holding = (answers.verdict == HOLDS).sum()
    assert holding >= 1 and f"{holding} holds" in markdown


def test_tables_of_different_weights_are_pointed_out(folder):
    tables.write(table1().assign(weights="other"), folder / "tables" / "table5.csv")
    (folder / "tables" / "table2.csv").write_text("task,method\n")  # a head alone
    report.write("mobile")
    text = (folder / "report.md").read_text()
    assert "different weights (table1: fedcba, table5: other)" in text
    assert "n/a: the table is empty; run notebook 06" in text


# ---- executed notebooks


def notebook(*outputs, tags=()):
    cell = nbformat.v4.new_code_cell("x", outputs=[*outputs], metadata={"tags": [*tags], "papermill": {"duration": 1}})
    kernel = {"name": "python3", "display_name": "Python 3"}
    metadata = {"papermill": {"input_path": "/somewhere"}, "kernelspec": kernel}
    return nbformat.v4.new_notebook(cells=[cell], metadata=metadata)


def shown(side):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "PNG")
    data = {"image/png": base64.b64encode(out.getvalue()).decode(), "text/plain": "<Figure>"}
    return nbformat.v4.new_output("display_data", data)


def stream(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_slim_notebook_is_small_and_still_shows_its_picture(tmp_path, command_line):
    source = tmp_path / "out.ipynb"
    nbformat.write(notebook(shown(1200)), source)
    command_line(report.main, "--slim", source, tmp_path / "kept")
    target = tmp_path / "kept" / "out.ipynb"
    assert target.stat().st_size < 250_000 < source.stat().st_size
    data = json.loads(target.read_text())["cells"][0]["outputs"][0]["data"]
    image = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert image.width >= 250 and "image/png" not in data


def test_slim_notebook_leaves_out_real_faces_progress_and_local_paths(home):
    path = f"wrote {home}/home/table.csv"
    outputs = [shown(50), stream("stderr", "100%|####|"), stream("stdout", path)]
    kept = report.slim(notebook(*outputs, tags=["real-faces"]))
    assert "image/" not in kept and "left out" in kept and "wrote ./table.csv" in kept
    assert "####" not in kept and "papermill" not in kept and str(home) not in kept


def test_slim_notebook_refuses_pages_of_text():
    with pytest.raises(ValueError, match="print less"):
        report.slim(notebook(stream("stdout", "x" * 500_000)))
