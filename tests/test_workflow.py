"""The workflow behind the tables: every set is made once, before it is needed."""

import os
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest

from riddle.evaluation import rows, stages, table5
from riddle.evaluation.facesets import parse

TABLES = tuple(stages.TABLES)


def parts(*names):
    return [part for name in names for part in stages.TABLES[name]]


@pytest.mark.parametrize("names", [TABLES, ("table1", "table4"), ("table2", "table3", "table4"), ("table5",), ()])
def test_every_file_is_made_once_and_from_what_is_there(names):
    made = {"aligned", "codes"}
    for job in stages.jobs(parts(*names)):
        assert set(job.sources) <= made, f"{job.name} comes before what it needs"
        assert not made & set(job.results), f"{job.name} makes a file again"
        made |= set(job.results)
    for part in parts(*names):
        assert {f"faces/{item}" for item in part.sets} <= made
        assert {f"embeddings/{r}/{item}" for r in part.recognisers for item in part.sets} <= made


def test_a_set_that_no_recogniser_must_see_is_not_shown_to_one():
    jobs = stages.jobs(parts("table2", "table3"))
    seen = {item: job.recognisers for job in jobs for item in job.items}
    assert seen["riddle-restored"] == () and seen["riddle"] == ("dlib",)


def test_table5_names_the_released_encryptor_where_it_was_published():
    (label,) = {row.method for row in rows.TABLE5_RELEASED}
    for preset, there in (("ffhq256", True), ("mobile", False)):
        behind = stages.parts_of(stages.Run(preset=preset), "table5")
        assert ("released-passwords" in {item for part in behind for item in part.sets}) == there
        assert stages.parts_of(stages.Run(preset=preset), "table1") == stages.TABLES["table1"]
    lines = table5.with_training(pd.DataFrame({"method": [label, "full"]}), "ffhq256")
    assert list(lines.variant) == ["released", "riddle"]


def test_jobs_have_names_of_their_own_and_one_variant_each():
    jobs = stages.jobs(parts(*TABLES))
    assert len({job.name for job in jobs}) == len(jobs) < 20
    assert all(len({parse(item).variant for item in job.items}) == 1 for job in jobs)
    assert set(rows.sets_of(rows.TABLE5)) <= {item for job in jobs for item in job.items}


@pytest.mark.parametrize("extra", [[], ["limit=3"]])
def test_the_workflow_has_every_table_and_what_each_notebook_shows(root, tmp_path, extra):
    """A dry run on the bundled faces: no rule lacks a source, no file has two makers. Paths need quotes."""
    home = tmp_path / "a b'c \"ü"
    (home / "data").mkdir(parents=True)
    for kind in ("zoo", "samples"):
        (home / "data" / kind).symlink_to(root / "data" / kind)
    environment = {k: v for k, v in os.environ.items() if k != "RIDDLE_DATA"}
    environment |= {"RIDDLE_OFFLINE": "1", "RIDDLE_HOME": str(home)}
    options = ["-n", "-p", "--forceall", "--cores", "2", "-s", str(root / "Snakefile"), "--directory", str(tmp_path)]
    command = [sys.executable, "-m", "snakemake", *options, "--config", "preset=mobile", "dataset=samples", *extra]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-2000:]
    for table in TABLES:
        assert f"rule {table}:" in printed
    shell = [shlex.split(line) for line in re.findall(r"Shell command: (.*papermill.*)", printed)]
    assert all(any(f"{home.name}/results/" in word and word.endswith(".ipynb") for word in line) for line in shell)
    assert shell
    names = sorted(p.stem for p in (root / "notebooks").glob("[0-9]*.ipynb"))
    made = {name for name in names if f"{name}.ipynb\n" in printed}
    assert made == set(names) if not extra else {"05_table1", "11_table5"} <= made < set(names)
