"""One record, one layout: what a number says, what a table keeps, what a reader sees."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from riddle.evaluation import tables
from riddle.evaluation.tables import Measured
from riddle.metrics.identity import Estimate


def number(judge, mean, low=None, high=None, method="RiDDLE", metric="rate", **more):
    low, high = (mean - 0.02 if low is None else low), (mean + 0.02 if high is None else high)
    more = {"task": "t", "against": "a"} | more
    return Measured(method=method, metric=metric, measured_by=judge, **more).of(Estimate(mean, 0.01, low, high, 300), 2)


@pytest.fixture
def table(run):
    records = [
        number("seen", 0.02), number("dlib", 0.03), number("edgeface-xs", 0.01),
        number("dlib", 0.5, method="other"), number("seen", 0.6, method="other"),
        Measured("t", "other", "rate", "a", "edgeface-xs").absent("no weights"),
        Measured("t", "CIAGAN", "rate", "a").absent("not trained"),
        Measured("t", "RiDDLE", "rate", "a", "facenet").absent("no file"),
    ]  # fmt: skip
    lines = pd.DataFrame(tables.tidy(records, run, interval="over folds"))
    return lines.assign(
        seen_in_training=lines.measured_by == "seen", paper=np.where(lines.method == "RiDDLE", 0.016, np.nan)
    )


@pytest.fixture
def run():
    about = {"data": "lfw", "label": "LFW", "version": "funneled", "split_hash": "123456789012", "weights_hash": "1e5"}
    return SimpleNamespace(preset="mobile", seed=7, detector="auto", **about)


def test_a_number_says_itself_or_why_it_is_missing():
    row = Measured("t", "m", "k", "a")
    assert row.of(Estimate(0.25, 0.5, 0.1, 0.4, 7), 2).value == "0.250 ± 0.500"
    assert row.of(Estimate(3, np.nan, np.nan, np.nan, 5)).value == "3.000"
    assert row.of(Estimate(1234.5, 12, 0, 1, 5)).value == "1234 ± 12"  # of thousands no decimals are read
    assert row.absent("n/a: gone").value == row.absent("gone").value == "n/a: gone" and np.isnan(row.mean)


def test_every_line_carries_its_provenance(table):
    first = table.iloc[0]
    assert (first.dataset, first.version, first.split_hash, first.seed, first.preset, first.weights) == (
        "LFW", "funneled", "123456789012", 7, "mobile", "1e5")  # fmt: skip
    assert (first.interval, first.n, first.undetected) == ("over folds", 300, 2)


def test_numbers_lie_in_their_intervals_and_absence_has_a_reason(table):
    assert tables.numbers(table).value.tolist() == [v for v in table.value if not v.startswith("n/a: ")]
    tables.numbers(table.assign(low=np.nan, high=np.nan))  # an interval is not always known
    for broken in (table.assign(low=table["mean"] + 0.01), table.assign(value=table.value.str.replace("n/a: ", ""))):
        with pytest.raises(ValueError, match="without a reason"):
            tables.numbers(broken)


def test_csv_round_trip(table, tmp_path):
    path = tables.write(table, tmp_path / "deep" / "table1.csv")
    back = tables.read(path)
    assert [p.name for p in path.parent.iterdir()] == ["table1.csv"] and list(back) == list(table)
    assert back.split_hash[0] == "123456789012" and back.weights[0] == "1e5"  # texts, not numbers
    assert back.seen_in_training.tolist() == table.seen_in_training.tolist() and np.isnan(back.accuracy).all()
    assert back["mean"].tolist() == pytest.approx(table["mean"].tolist(), nan_ok=True)
    assert tables.wide(back).equals(tables.wide(table))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"1'])
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "table2.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"table2.csv is no table .*make it again"):
        tables.read(tmp_path / "table2.csv")


def test_wide_has_a_column_a_judge_unseen_first_and_the_papers_last(table):
    wide = tables.wide(table)
    assert list(wide) == ["method", "dlib", "edgeface-xs", "seen (seen in training)", "n", "undetected", "paper"]
    by = wide.set_index("method")
    assert by.loc["RiDDLE", "dlib"] == "0.030 ± 0.010" and by.loc["RiDDLE", "paper"] == 0.016
    assert list(by.loc["CIAGAN"])[:3] == ["n/a: not trained", "n/a", "n/a"]  # a reason is said once
    assert by.loc["other", "edgeface-xs"] == "n/a: no weights" and by.loc["RiDDLE", "undetected"] == 2


def test_wide_has_a_column_a_metric_where_a_line_holds_several(run):
    values = {("m1", "MSE"): 0.1, ("m1", "PSNR"): 21.0, ("m2", "MSE"): 0.2, ("m2", "PSNR"): 22.0}
    records = [number("", value, metric=metric, method=method) for (method, metric), value in values.items()]
    records.append(number("alexnet", 0.3, metric="LPIPS alexnet", method="m1"))
    table = pd.DataFrame(tables.tidy(records, run))
    assert list(tables.wide(table, ("method",))) == ["method", "MSE", "PSNR", "LPIPS alexnet", "n", "undetected"]
    beside = tables.wide(table)
    assert list(beside) == ["method", "metric", "value", "alexnet", "n", "undetected"]
    assert beside.set_index(["method", "metric"]).loc[("m1", "MSE")].tolist()[:2] == ["0.100 ± 0.010", ""]


def test_wide_keeps_columns_that_name_a_row_and_data_sets_apart(table):
    two = pd.concat([table.assign(t=0.0), table.assign(t=0.5), table.assign(t=np.nan, dataset="FFHQ")])
    wide = tables.wide(two)
    assert list(wide)[:3] == ["method", "dataset", "t"] or {"method", "dataset", "t"} <= set(wide)
    assert len(wide) == 3 * 3  # NaN names a row too
    plain = pd.DataFrame({"system": ["a", "b"], "angle": [74.1, 60], "dataset": "LFW"})
    assert list(tables.wide(plain)) == ["system", "angle"]


def test_notes_name_what_is_absent_and_what_made_the_rest(table):
    text = tables.notes(table)
    for line in ("- facenet: n/a: no file\n", "- split hash: 123456789012\n", "- dataset: LFW\n"):
        assert line in text
    assert "edgeface-xs:" not in text  # it has a number


def test_a_grid_is_whole_and_no_cell_breaks_it():
    frame = pd.DataFrame({"a": ["<script>alert('x')</script> | & y", "line\nend"] * 50, "b": [0.123456, np.nan] * 50})
    lines = tables.grid(frame).splitlines()
    assert len(lines) == 102 and {line.count("|") for line in lines} == {3}
    assert "<script" not in tables.grid(frame) and lines[2].endswith("| 0.1235 |") and lines[3].endswith("|  |")


def test_methods_are_told_apart_by_their_intervals(run):
    records = [
        number("x", 0.1, 0.05, 0.15), number("x", 0.3, 0.2, 0.4, method="other"),
        number("y", 0.3, 0.25, 0.35), number("y", 0.3, 0.2, 0.4, method="other"),
        number("z", 0.5), number("z", 0.1, method="other"), number("u", 0.2),
        number("w", 0.1, np.nan, np.nan), number("w", 0.9, method="other"),
    ]  # fmt: skip
    table = pd.DataFrame(tables.tidy(records, run))
    pairs = tables.apart(table, "RiDDLE", "other").set_index("measured_by")
    assert pairs.verdict.to_dict() == {"x": "lower", "y": "not told apart", "z": "higher", "w": "not told apart"}
    pairs = pairs.reset_index()
    assert tables.sentences(pairs, {"lower": "better"}) == (
        "- rate, a: RiDDLE 0.1 to 0.5, other 0.1 to 0.9: **not told apart by the intervals** in 2 of 4; "
        "**better** in 1 of 4; **higher** in 1 of 4\n"
    )
    text = tables.sentences(pairs[pairs.measured_by != "z"].assign(metric=["m", "n", "n"]))
    assert text == (
        "- m, a: RiDDLE 0.1, other 0.3: **lower** in 1 of 1\n\nComparisons in which nothing is told apart: 1.\n"
    )
    seen = table.assign(seen_in_training=table.measured_by == "x")
    assert "x" not in set(tables.apart(seen, "RiDDLE", "other").measured_by)
    strangers = table.assign(against=np.where(table.method == "other", "a stranger", "a"))
    # Compared with different things, and so beside each other.
    assert len(tables.apart(strangers, "RiDDLE", "other")) == 4


def test_a_system_far_from_its_number_in_the_paper_is_told(run):
    """Those that lie within twice and half of it, or that the paper lacks, are not."""
    about = {"task": "de-identification", "metric": "share accepted"}
    records = [number(j, v, method="DeepPrivacy", **about) for j, v in (("dlib", 0.02), ("edgeface-xs", 0.059))]
    records += [number(j, v, method="CIAGAN", **about) for j, v in (("dlib", 0.2), ("edgeface-xs", 0.069))]
    records += [number("dlib", 0.05, method="FIT", **about), number("dlib", 0.9, method="FALCO", **about)]
    records += [Measured(**about, method="Personal", against="a", measured_by="dlib").absent("not trained")]
    table = pd.DataFrame(tables.tidy(records, run, "table1"))
    assert table["paper SphereFace"].notna().any()
    methods = ["DeepPrivacy", "CIAGAN", "FIT", "FALCO", "Personal"]
    assert tables.far_from_paper(table, methods) == (
        "- de-identification, share accepted: DeepPrivacy 0.02 to 0.059, in the paper 0.12 to 0.266: **under half** "
        "the paper's\n- de-identification, share accepted: CIAGAN 0.069 to 0.2, in the paper 0.01 to 0.034: **over "
        "twice** the paper's\n"
    )
    assert tables.far_from_paper(table.assign(seen_in_training=True), methods) == ""
    assert tables.far_from_paper(table, []) == tables.far_from_paper(pd.DataFrame({"method": ["x"]}), methods) == ""
