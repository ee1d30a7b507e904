"""SECURITY.md says what the tables say: each number in it that a table has is looked up there, and written anew."""

import re

import pandas as pd
import pytest

from riddle.evaluation import keysearch, rows, security, tables

PAPER, OURS, CONTROL = (keysearch.ATTACKED[v] for v in ("riddle", "coupling", "reflection"))
LIT = f"{OURS}, in the photo's light"
READ, LINKED = ("reversal", rows.ACCEPTED), ("linkage", security.LINKED)
SAME, OTHER = rows.SAME_PHOTO, rows.OTHER_PHOTO
PIXELS, FILE, OPEN, INVERTED = keysearch.PIXELS, keysearch.FILE, keysearch.OPEN, security.INVERTED


@pytest.fixture(scope="module")
def folder(root):
    return root / "results" / "mobile" / "tables"


@pytest.fixture(scope="module")
def measured(folder):
    table = tables.read(folder / "security.csv")
    table = table[table["mean"].notna()]
    return table.assign(label=table.method.str.split(": ").str[0], how=table.method.str.split(": ").str[1].fillna(""))


@pytest.fixture(scope="module")
def said(root):
    return " ".join((root / "SECURITY.md").read_text().split())


def where(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table), wanted
    return table


def read(table, label, place, rate, against, how=None):
    """The rows of an attack that reads people out, by those who learn, or by `how`."""
    found = where(table, label=label, place=place, task=rate[0], metric=rate[1], against=against)
    return found[found.how == how] if how else found[found.how != security.UNTRAINED]


def percent(values, least=True):
    low, high = (f"{100 * v:.0f}" for v in (values.min(), values.max()))
    return f"{low} to {high} %" if least and low != high else f"{high} %"


def test_the_table_of_rates(root, measured):
    """Each cell is the highest of all learners, recognisers and, of pixels, the recogniser as it is."""
    wanted = [(OURS, PIXELS), (OURS, INVERTED), (LIT, PIXELS), (LIT, INVERTED), (OURS, FILE), (OURS, OPEN)]
    wanted += [(PAPER, place) for place in (PIXELS, FILE, OPEN)]
    lines = re.findall(r"^  \| (?!highest|---)(.*) \|$", (root / "SECURITY.md").read_text(), re.M)
    assert len(lines) == len(wanted)
    for line, (label, place) in zip(lines, wanted, strict=True):
        found = where(measured, label=label, place=place)
        rates = [where(found, task=t, metric=m, against=a) for a in (SAME, OTHER) for t, m in (READ, LINKED)]
        highest = [rate.value[rate["mean"].idxmax()].split()[0] for rate in rates]  # rounded once
        assert line.split(" | ")[1:] == highest, (label, place)


def test_what_guesses_and_outlines_tell(measured, said):
    def of(metric, label, place):
        (row,) = where(measured, task="guessing", metric=metric, label=label, place=place).itertuples()
        return row

    ours, paper, control = (of(keysearch.RANK, label, PIXELS) for label in (OURS, PAPER, CONTROL))
    chance = security.CHANCE[keysearch.RANK]
    assert (
        f"mean rank {ours.mean:.0f} by RotationCoupling ({ours.n} faces; interval {ours.low:.0f} to {ours.high:.0f}; "
        f"chance: {chance}) and {paper.mean:.0f} by the transformer ({paper.low:.0f} to {paper.high:.0f})"
    ) in said
    assert f"shows a sign of it: rank {control.mean:.0f} ({control.low:.0f} to {control.high:.0f})" in said
    assert control.high < chance
    assert all(of(keysearch.RANK, label, FILE).mean == 1 for label in keysearch.ATTACKED.values())
    ours, paper = (of(keysearch.RANK_AROUND, label, keysearch.AROUND) for label in (OURS, PAPER))
    assert (
        f"mean rank {ours.mean:.1f} by RotationCoupling ({ours.n} faces; interval {ours.low:.1f} to {ours.high:.1f}; "
        f"chance: {security.CHANCE[keysearch.RANK_AROUND]}), and {paper.mean:.1f} by the transformer "
        f"({paper.low:.1f} to {paper.high:.1f})"
    ) in said
    ours, paper = (of(keysearch.MOVED, label, keysearch.AROUND) for label in (OURS, PAPER))
    assert f"{100 * ours.mean:.1f} % are replaced under one of the two only ({ours.n} photos" in said
    assert (
        f"interval {100 * ours.low:.1f} to {100 * ours.high:.1f} %; by the transformer {100 * paper.mean:.1f} %" in said
    )


def test_attacks_on_the_key(measured, said):
    def opened(label, *names, task="key"):
        found = where(measured, task=task, metric=keysearch.READ, label=label)
        return found[found.how.isin(names)]

    def share(*of, **task):
        return percent(opened(*of, **task)["mean"])

    exact, photo = (f"{o} original, gradient search, {keysearch.ONE_KEY}" for o in ("exact", "another photo as"))
    groups = [f"{n} files without originals, {keysearch.ONE_KEY}" for n in keysearch.FILES]
    ours = max(opened(OURS, exact, photo)["mean"])
    assert f"it opens {share(PAPER, exact)} of the other faces under the same key" in said
    assert f"person is enough ({share(PAPER, photo)})" in said
    assert (
        f"opens at most {100 * ours:.0f} % of RotationCoupling's, and {share(CONTROL, exact)} of the control's" in said
    )
    assert f"opens {share(OURS, groups[0])} of 20 single faces" in said
    assert f"at most {percent(opened(OURS, *groups[1:])['mean'], False)} where 4 to 64 faces share a key" in said
    one, more = (percent(opened(OURS, *part).high, False) for part in (groups[:1], groups[1:]))
    assert f"the intervals reach {one} and {more}" in said
    assert f"the transformer's it opens {share(PAPER, *groups)}, and all of the reflection's" in said
    assert (opened(CONTROL, *groups)["mean"] == 1).all()
    ours, papers = (share(label, "a key of cosine 0.9") for label in (OURS, PAPER))
    assert f"opens {ours} of RotationCoupling's faces and {papers} of the transformer's" in said
    searched = [f"{o} original, gradient search, {keysearch.OTHER_KEY}" for o in ("exact", "another photo as")]
    other = max(opened(label, *searched)["mean"].max() for label in (PAPER, OURS))
    wrong = [share(label, "a wrong key") for label in (PAPER, OURS)]
    assert (
        f"at most {100 * other:.0f} % of other faces, where a wrong key opens {wrong[0]} of the transformer's" in said
    )
    assert f"and {wrong[1]} of RotationCoupling's" in said
    one, two = (f"{keysearch.TWINS}, {key}" for key in (keysearch.ONE_KEY, keysearch.OTHER_KEY))
    linked = {(label, key): share(label, key, task="linking") for label in (OURS, PAPER) for key in (one, two)}
    assert f"linked in {linked[OURS, one]} of the cases by RotationCoupling, in {linked[PAPER, one]} by" in said
    assert f"Under two keys it is {linked[OURS, two]}, and {linked[PAPER, two]}" in said


def test_what_the_right_key_brings_back_from_pixels(folder, said):
    first, treated = (tables.read(folder / f"{name}.csv") for name in ("table1", "robustness"))
    bare = where(first, method=f"{PAPER}, from PNG pixels", task="recovery", against=SAME, metric=rows.ACCEPTED)
    alone = where(treated, place="pixels alone", metric=rows.ACCEPTED)
    assert f"{percent(bare['mean'])} of {bare.n.max()} faces by the transformer" in said
    assert f"{percent(alone['mean'])} of {alone.n.max()} faces by RotationCoupling" in said
    assert f"whose intervals reach {percent(alone.high, False)}" in said


def test_what_is_not_reached(folder, measured, said):
    """Every miss of a target is one of those that the page names."""
    first = tables.read(folder / "table1.csv").query("task == 'de-identification'")
    known = first.rename(columns={"method": "label", "mean": "rate"})[["label", "measured_by", "rate"]]
    learned = pd.concat(read(measured, label, place, READ, against) for label, place in (
        (PAPER, PIXELS), (OURS, PIXELS), (OURS, INVERTED), (LIT, PIXELS), (LIT, INVERTED)
    ) for against in (SAME, OTHER))  # fmt: skip
    pairs = learned.merge(known, on=["label", "measured_by"])
    missed = pairs[pairs["mean"] > pairs.rate + 0.01].sort_values("mean", ascending=False)
    papers, ours = missed[missed.label == PAPER], missed[missed.label != PAPER]
    worst = [papers[papers.against == against]["mean"].max() for against in (SAME, OTHER)]
    assert f"give {worst[0]:.3f} for the same photo and {worst[1]:.3f} for another, where Table 1 has" in said
    assert (papers.rate.round(3) == 0).all() and set(ours.label) == {LIT} and set(ours.place) == {INVERTED}
    a, b = zip(ours["mean"], ours.rate, strict=True)
    assert f"{a[0]:.4f} for the same photo where Table 1 has {a[1]:.4f}" in said and set(ours.against) == {SAME}
    assert f"and {b[0]:.4f} by a recogniser for which it has {b[1]:.4f}" in said

    def found(label, place, how=None):
        return read(measured, label, place, LINKED, OTHER, how)["mean"].max()

    limit, plain = 3 * security.CHANCE[security.LINKED], security.UNTRAINED
    assert f"three times chance, {limit:.3f}" in said
    assert f"The transformer's pixels give {found(PAPER, PIXELS):.4f}" in said
    reached = max(found(OURS, PIXELS), found(OURS, PIXELS, plain))
    assert (
        reached <= limit and f"RotationCoupling's give {reached:.4f}, but inverted {found(OURS, INVERTED):.4f}" in said
    )
    assert f"as it is reaches {found(LIT, PIXELS, plain):.4f}, a learner {found(LIT, PIXELS):.4f}, and one" in said
    worst = max(found(CONTROL, PIXELS), found(CONTROL, PIXELS, plain))
    assert f"that inverts {found(LIT, INVERTED):.4f}. The reflection gives {worst:.4f}" in said

    keys = ["task", "method", "metric", "against", "measured_by"]
    both = [
        measured[(measured.place == place) & measured.task.isin(["reversal", "linkage"])] for place in (FILE, PIXELS)
    ]
    both = both[0].merge(both[1], on=keys, suffixes=("", "_pixels"))
    both = both[both.metric != rows.COSINE]
    assert not (both.low > both.high_pixels).any()
    assert f"of {len(both)} rates none is higher by its interval. But {(both.high < both.low_pixels).sum()} are" in said
