"""The jobs behind the tables: every set that a table reads is made once, before it is needed."""

import os
import subprocess
import sys

import pytest

from riddle import ablations, plan, protocols, table2, table3, table4
from riddle.facesets import parse
from riddle.runs import Run

TABLES = ("table1", "table2", "table3", "table4")


@pytest.mark.parametrize("tables", [TABLES, ("table1", "table4"), ("table2", "table3", "table4"), ("table4",), ()])
def test_every_file_is_made_once_and_from_what_is_there(tables):
    made = {"aligned", "codes"}
    for job in plan.jobs(Run(dataset="samples"), tables):
        assert set(job.sources) <= made, f"{job.name} comes before what it needs"
        assert not made & set(job.results), f"{job.name} makes a file again"
        made |= set(job.results)
    if "table1" in tables:
        sets = {*protocols.FACE_SETS, *protocols.DIVERSITY_SETS, *ablations.SETS}
        assert {f"embeddings/{j}/{s}" for j in protocols.JUDGES for s in sets} <= made
    if "table2" in tables:
        assert {f"faces/{s}" for s in (*table2.ITEMS.values(), *table2.REFERENCES)} <= made
    if "table3" in tables:
        assert {
            f"{kind}/{s}"
            for kind in ("faces", "found", "embeddings/dlib")
            for s in ("photo", *table3.METHODS.values(), *ablations.LABELS)  # Table 5's distances are of these data
        } <= made
    if "table4" in tables:
        assert {f"embeddings/{j}/{s}" for j in table4.SIMILARITY_JUDGES for s in protocols.SIMILARITY_SETS} <= made


def test_a_set_that_no_judge_must_see_is_not_shown_to_one():
    jobs = plan.jobs(Run(dataset="samples"), ["table2", "table3"])
    judges = {item: job.judges for job in jobs for item in job.items}
    assert judges["riddle-restored"] == () and judges["riddle"] == ("dlib",)


def test_jobs_have_names_of_their_own_and_one_variant_each():
    jobs = plan.jobs(Run(dataset="samples"), TABLES)
    assert len({job.name for job in jobs}) == len(jobs) < 20
    for job in jobs:
        assert len({parse(item).variant for item in job.items}) == 1


@pytest.mark.parametrize("extra", [[], ["limit=3"]])
def test_the_workflow_has_every_table_and_what_each_notebook_shows(root, tmp_path, extra):
    """A dry run on the bundled faces: no rule lacks a source, no file has two makers."""
    environment = {k: v for k, v in os.environ.items() if k != "RIDDLE_DATA"} | {"RIDDLE_OFFLINE": "1"}
    options = ["-n", "--forceall", "--cores", "2", "-s", str(root / "Snakefile"), "--directory", str(tmp_path)]
    command = [sys.executable, "-m", "snakemake", *options, "--config", "preset=mobile", "dataset=samples", *extra]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for table in TABLES:
        assert f"rule {table}:" in done.stdout + done.stderr
    printed = done.stdout + done.stderr
    names = sorted(p.stem for p in (root / "notebooks").glob("[0-9]*.ipynb"))
    made = {name for name in names if f"/{name}.ipynb -p" in printed or f"{name}.ipynb\n" in printed}
    assert made == set(names) if not extra else {"05_table1", "11_table5"} <= made < set(names)
