"""The page of all tables: verdicts that follow from the numbers, missing tables named, markdown and HTML alike."""

import base64
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from riddle import claims, report
from riddle.claims import FAILS, HOLDS, UNDECIDED, AtLeast, AtMost, Below, Near, NotAbove, Rows, Share

MADE = {"dataset": "LFW", "split_hash": "abc123", "seed": "0", "weights": "fedcba"}


def line(judge, value, low=None, high=None, seen=False, **where):
    low, high = (value if v is None else v for v in (low, high))
    numbers = {"value": f"{value:.3f} ± 0.010", "rate": f"{value}", "low": f"{low}", "high": f"{high}"}
    return {"task": "de-identification", "method": "RiDDLE", "against": "other photo", "judge": judge, **numbers,
            "n": "3000", "undetected": "1", "judge_seen": str(seen), **where, **MADE}  # fmt: skip


def absent(judge, value, **where):
    numbers = {"value": value, "rate": "", "low": "", "high": ""}
    return {**line(judge, 0, **where), **numbers, "n": "0", "undetected": "0"}


RIDDLE = Rows("t", {"method": "RiDDLE"})
OTHER = Rows("t", {"method": "other"})


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
    ],
)
def test_limits_are_judged_by_whole_intervals_of_every_judge(bounds, at_most, at_least):
    lines = [line(f"j{i}", (lo + hi) / 2, lo, hi) for i, (lo, hi) in enumerate(bounds)]
    assert verdict(AtMost("c", "4", "", rows=RIDDLE, limit=0.05), *lines) == at_most
    assert verdict(AtLeast("c", "4", "", rows=RIDDLE, limit=0.05), *lines) == at_least


def test_order_needs_disjoint_intervals_under_every_judge():
    claim = Below("c", "4", "", rows=RIDDLE, than=OTHER)
    a = [line("x", 0.1, 0.05, 0.15), line("y", 0.5, 0.45, 0.55)]
    above = [line("x", 0.2, 0.16, 0.24, method="other"), line("y", 0.7, 0.6, 0.8, method="other")]
    assert verdict(claim, *a, *above) == HOLDS  # x of one is compared with x of the other, never with y
    near = [line("x", 0.2, 0.14, 0.24, method="other"), above[1]]
    assert verdict(claim, *a, *near) == UNDECIDED
    below = [line("x", 0.1, method="other"), line("y", 0.4, method="other")]
    assert verdict(claim, *a, *below) == FAILS
    assert verdict(claim, *a, above[0], below[1]) == UNDECIDED  # the judges disagree


def test_nearness_is_within_the_margin_of_every_judge():
    claim = Near("c", "4", "", rows=RIDDLE, than=OTHER, margin=0.02)
    a = [line("x", 0.50), line("y", 0.60)]
    for second, expected in ((0.62, HOLDS), (0.63, UNDECIDED)):
        b = [line("x", 0.49, method="other"), line("y", second, method="other")]
        assert verdict(claim, *a, *b) == expected
    assert verdict(claim, *a, line("x", 0.9, method="other"), line("y", 0.9, method="other")) == FAILS


def test_no_higher_is_within_the_other_interval_or_below():
    claim = NotAbove("c", "4", "", rows=RIDDLE, than=OTHER)
    other = [line("x", 0.10, 0.08, 0.12, method="other"), line("y", 0.10, 0.08, 0.12, method="other")]
    for first, expected in (((0.01, 0, 0.02), HOLDS), ((0.12, 0.1, 0.14), HOLDS), ((0.13, 0.11, 0.15), UNDECIDED),
                            ((0.15, 0.13, 0.17), FAILS)):  # fmt: skip
        assert verdict(claim, line("x", *first), line("y", 0.05), *other) == expected


def test_a_share_is_asked_of_every_judge():
    claim = Share("c", "4", "", rows=RIDDLE, of=OTHER, share=0.9)
    whole = [line("x", 0.8, method="other"), line("y", 0.6, method="other")]
    for first, second, expected in ((0.72, 0.55, HOLDS), (0.73, 0.5, UNDECIDED), (0.5, 0.5, FAILS)):
        assert verdict(claim, line("x", first), line("y", second), *whole) == expected
    nothing = [line("x", 0.0, method="other")]
    assert verdict(claim, line("x", 0.1), *nothing) == "n/a: there is nothing to have a share of"


def test_a_judge_seen_in_training_does_not_count():
    claim = AtMost("c", "4", "", rows=RIDDLE, limit=0.05)
    assert verdict(claim, line("x", 0.9, seen=True), line("y", 0.01)) == HOLDS
    assert verdict(claim, line("x", 0.01, seen=True)) == "n/a: no number by a judge unseen in training"


def test_a_claim_may_name_its_column():
    claim = AtMost("c", "4", "", rows=Rows("t", {"method": "RiDDLE"}, "accepted"), limit=0.0)
    assert verdict(claim, line("x", 0.9, accepted="0"), line("y", 0.9, accepted="0")) == HOLDS
    assert verdict(claim, line("x", 0.9, accepted="0"), line("y", 0.9, accepted="0.01")) == FAILS
    assert verdict(claim, line("x", 0.9)) == "n/a: t.csv has no column accepted"


def test_faces_that_were_not_found_prove_no_protection():
    lost = line("x", 0.0) | {"undetected": "1501"}
    assert verdict(AtMost("c", "4", "", rows=RIDDLE, limit=0.05), lost) == "n/a: most faces were not found"
    assert verdict(AtMost("c", "4", "", rows=RIDDLE, limit=0.05), lost | {"undetected": "1500"}) == HOLDS
    assert verdict(AtLeast("c", "4", "", rows=RIDDLE, limit=0.95), lost) == FAILS


def test_what_is_missing_is_named():
    claim = AtMost("c", "4", "", rows=Rows("t", {"method": "RiDDLE", "metric": "FID"}), limit=0.05)
    assert claim.judge({}).verdict == "n/a: there is no t.csv"
    assert verdict(claim, line("x", 0.1)) == "n/a: t.csv has no column metric"
    assert verdict(claim, line("x", 0.1, metric="KID")) == "n/a: t.csv has no row RiDDLE, FID"
    gone = [absent("x", "n/a: weights missing (no file)", metric="FID")]
    gone.append(absent("y", "n/a: weights missing (encryptor_mlp)", metric="FID"))
    assert verdict(claim, *gone) == "n/a: weights missing (encryptor_mlp)"
    one = Below("c", "4", "", rows=RIDDLE, than=OTHER)
    assert verdict(one, line("x", 0.1), line("y", 0.2, method="other")).startswith("n/a: no judge")


def test_figures_stand_beside_the_verdict():
    claim = AtMost("c", "4.2", "0.016", rows=RIDDLE, limit=0.05)
    answer = claim.judge({"t": pd.DataFrame([line("x", 0.01), line("y", 0.03)])})
    assert (answer.ours, answer.paper, answer.section) == ("0.010 to 0.030 (asked: at most 0.05)", "0.016", "4.2")


def test_every_claim_reads_a_table_of_the_report():
    names = {s.name for s in report.SOURCES}
    for claim in claims.CLAIMS:
        assert {r.table for r in (getattr(claim, k, None) for k in ("rows", "than", "of")) if r} <= names
    assert len({c.text for c in claims.CLAIMS}) == len(claims.CLAIMS)


# ---- layout


def table1():
    lines = []
    for judge, seen in (("arc", True), ("dlib", False)):
        lines.append(line(judge, 0.02, 0.01, 0.03, seen) | {"paper SphereFace": "0.025", "paper X": ""})
        lines.append(absent(judge, "n/a: weights missing (encryptor_mlp)", method="MLP") | {"paper SphereFace": ""})
    lines.append(absent("facenet", "n/a: no file") | {"paper SphereFace": "0.025"})
    lines.append(absent("", "n/a: not trained", method="CIAGAN") | {"paper SphereFace": "0.010"})
    return pd.DataFrame(lines).fillna("")


def test_layout_has_a_column_a_judge_unseen_first():
    frame, notes = report.layout(table1())
    assert list(frame) == [
        "task", "method", "against", "dlib", "arc (seen in training)", "n", "undetected", "paper SphereFace",
    ]  # fmt: skip
    rows = frame.set_index("method")
    assert rows.loc["RiDDLE", "dlib"] == "0.020 ± 0.010" and rows.loc["RiDDLE", "n"] == "3000"
    assert list(rows.loc["MLP"][["dlib", "arc (seen in training)"]]) == ["n/a: weights missing (encryptor_mlp)", "n/a"]
    assert rows.loc["CIAGAN", "dlib"] == "n/a: not trained" and rows.loc["CIAGAN", "paper SphereFace"] == "0.010"
    assert "split hash: abc123" in notes and "facenet: n/a: no file" in notes


def test_layout_keeps_columns_it_does_not_know():
    frame, notes = report.layout(pd.DataFrame({"system": ["a", "b"], "angle": ["74.1", "60"], "dataset": "LFW"}))
    assert list(frame) == ["system", "angle"] and notes == ("dataset: LFW",)
    one_judge = pd.DataFrame([line("x", 0.1, metric="MSE", extra="new"), line("x", 0.2, metric="SSIM", extra="")])
    frame, _ = report.layout(one_judge)
    assert list(frame.extra) == ["new", ""] and list(frame["95 %"]) == ["0.1 to 0.1", "0.2 to 0.2"]
    assert "rate" not in frame and list(frame.judge) == ["x", "x"]
    two = pd.DataFrame([line("x", 0.1), line("y", 0.2)]).assign(dataset=["A", "B"], split_hash=["abc", "def"])
    frame, notes = report.layout(two)
    assert "split hash: abc; def" in notes and "split_hash" not in frame
    assert list(frame.dataset) == ["A", "B"] and list(frame.x) == ["0.100 ± 0.010", ""]  # data sets stay apart


def test_layout_tells_places_from_measurements():
    """A number that is the same for every judge names the row; one that differs was measured."""
    lines = [line(j, v, t=t, step=f"{v}") for j, shift in (("x", 0.0), ("y", 0.1))
             for t, v in (("0.0", 0.1 + shift), ("0.5", 0.3 + shift))]  # fmt: skip
    frame, _ = report.layout(pd.DataFrame(lines))
    assert list(frame.t) == ["0.0", "0.5"] and "step" not in frame
    assert list(frame.y) == ["0.200 ± 0.010", "0.400 ± 0.010"]


# ---- the page


class Reader(HTMLParser):
    """Text, tags and attributes of a page; fails on an end that closes nothing."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes, self.rows = [], [], [], 0

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *a) for a in attributes]
        self.rows += tag == "tr"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


@pytest.fixture
def folder(home):
    folder = home / "home" / "results" / "mobile"
    (folder / "tables").mkdir(parents=True)
    (folder / "figures").mkdir()
    table1().to_csv(folder / "tables" / "table1.csv", index=False)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "figures" / "figure9.png")
    Image.fromarray(noise).save(folder / "figures" / "quickstart.png")
    return folder


def test_a_missing_table_names_its_notebook(folder):
    report.write("mobile")
    for text in ((folder / "report.md").read_text(), "\n".join(parse((folder / "report.html").read_text()).text)):
        for number in ("06", "07", "08", "09", "10", "11"):
            assert f"n/a: run notebook {number}" in text
        assert "run notebook 05" not in text and "weights missing (encryptor_mlp)" in text
    assert {p.name for p in folder.iterdir()} == {"figures", "report.html", "report.md", "tables", "verdicts.csv"}


def test_the_page_is_the_same_each_time(folder):
    report.write("mobile")
    first = [(folder / f"report.{kind}").read_bytes() for kind in ("md", "html")]
    report.write("mobile")
    assert first == [(folder / f"report.{kind}").read_bytes() for kind in ("md", "html")]


def test_html_needs_nothing_else(folder):
    report.write("mobile", folder / "elsewhere")
    page = parse((folder / "elsewhere" / "report.html").read_text())
    sources = [v for tag, k, v in page.attributes if k in ("src", "href")]
    (picture,) = sources  # figure9; the quickstart's picture is none of the paper's
    kind, _, data = picture.partition(",")
    assert kind == "data:image/jpeg;base64" and base64.b64decode(data)[:2] == b"\xff\xd8"
    classes = {v for tag, k, v in page.attributes if tag == "td" and k == "class"}
    assert {"holds", "absent"} <= classes
    assert not re.search(r"https?://|<script|@import|url\(", (folder / "elsewhere" / "report.html").read_text())


def test_cells_are_escaped(folder):
    bad = table1().assign(method="<script>alert('x')</script> | & \"y\"")
    bad.to_csv(folder / "tables" / "table1.csv", index=False)
    report.write("mobile")
    html, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<script" not in html and "<script>alert('x')</script> | & \"y\"" in parse(html).text
    rows = [r for r in markdown.splitlines() if r.startswith("|") and "alert" in r]
    assert rows and {r.count("|") for r in rows} == {9}  # no cell breaks its row


def test_both_say_the_same(folder):
    answers = report.write("mobile")
    kept = pd.read_csv(folder / "verdicts.csv", keep_default_na=False)
    assert list(zip(kept.claim, kept.verdict, strict=True)) == [(a.claim, a.verdict) for a in answers]
    page = parse((folder / "report.html").read_text())
    markdown = (folder / "report.md").read_text()
    grids = [r for r in markdown.splitlines() if r.startswith("|") and not r.startswith("| ---")]
    assert page.rows == len(grids)
    for claim in claims.CLAIMS:
        assert claim.text in markdown and claim.text in page.text
    answers = report.verdicts(report.read_tables(folder / "tables"))
    holding = sum(a.verdict == HOLDS for a in answers)
    assert holding >= 1 and f"{holding} holds" in markdown


def test_tables_of_different_weights_are_pointed_out(folder):
    table1().assign(weights="other").to_csv(folder / "tables" / "table5.csv", index=False)
    report.write("mobile")
    assert "different weights (table1: fedcba, table5: other)" in (folder / "report.md").read_text()


def test_a_damaged_table_is_named(folder):
    (folder / "tables" / "table2.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"table2.csv is no table .* run notebook 06 again"):
        report.write("mobile")
    (folder / "tables" / "table2.csv").write_text("task,method\n")  # a head alone
    report.write("mobile")
    assert "n/a: the table is empty; run notebook 06" in (folder / "report.md").read_text()


def test_command_line(folder, capsys):
    report.main(["--preset", "mobile", "--out", str(folder / "there")])
    assert (folder / "there" / "report.html").is_file()
    assert len(capsys.readouterr().out.splitlines()) == len(claims.CLAIMS)


@pytest.mark.timeout(240)
def test_the_notebook(root, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "RIDDLE_DATA"}
    environment |= {"RIDDLE_OFFLINE": "1", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    words = [str(root / "notebooks" / "13_report.ipynb"), str(tmp_path / "13.ipynb"), "--no-progress-bar"]
    command = [sys.executable, "-m", "papermill", *words, "-p", "out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    parse((tmp_path / "out" / "report.html").read_text())
