# Every table and notebook of a preset, stage by stage: snakemake --cores 2 --config preset=mobile
#
# A stage is a file and a command of riddle.evaluation.stages, in a process and on a thread of its own, so stages run side by
# side, a stopped run goes on where it stopped, and Snakemake's executors take it to a cluster:
#   snakemake --executor slurm --jobs 20 --config preset=ffhq256 device=cuda
# Options of --config: preset, dataset (auto: each table on its own, those that are found; or one for all: lfw,
# celebamask_hq, ffhq, samples), seed, limit (pairs of each kind a fold, or pictures, to try it out), detector, device.

import json
import os
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from riddle import config as places
from riddle.evaluation import rows, stages, tables
from riddle.evaluation.runs import Run, seconds

# Freed tensors stay on the heap: giving them back and faulting their pages in again costs a network a fifth of its time.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "4294967296")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "17179869184")
BEGAN = time.monotonic()

OPTIONS = {"preset": "mobile", "dataset": "auto", "seed": 0, "limit": None, "detector": "auto", "device": "cpu"}
OPTIONS |= {k: v for k, v in config.items() if k in OPTIONS}
if unknown := set(config) - set(OPTIONS):
    raise ValueError(f"unknown --config {', '.join(sorted(unknown))}; choose from {', '.join(OPTIONS)}")

RUN = Run(**OPTIONS)
HERE = Path(workflow.basedir)


def place(path):
    """A path as a target is typed: relative to the working directory where it lies within."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# {table: {run behind it: its parts of the table}}, {folder of a run's stages: the run}, {folder: its jobs}
BEHIND = {table: stages.runs_behind(RUN, table) for table in stages.TABLES}
PEOPLE = replace(RUN, dataset="celebamask_hq" if RUN.dataset == "auto" else RUN.dataset)  # of figures 7 and 8
PEOPLE = replace(PEOPLE, dataset=PEOPLE.data)  # the bundled faces, where that set is not found
RUNS = {r.folder.name: r for runs in [*BEHIND.values(), [PEOPLE]] for r in runs}
USEFUL = ["photo", *rows.TABLE3.values()]  # sets of faces of Table 3


def folders(table):
    """The folders of the runs behind a table."""
    return [run.folder.name for run in BEHIND[table]]


PARTS = {f: [p for runs in BEHIND.values() for r in runs if r.folder.name == f for p in runs[r]] for f in RUNS}
JOBS = {folder: stages.jobs(parts) for folder, parts in PARTS.items()}
TABLES = {table: place(stages.places(RUN, table)[0]) for table in stages.TABLES}

ROOT = place(RUN.folder.parent)
COMPLETE = RUN.limit is None
NOTEBOOKS = f"{ROOT}/notebooks" if COMPLETE else f"{ROOT}/notebooks-limit{RUN.limit}"
KEPT = place(places.results(RUN.preset) / "notebooks")
WEIGHTS = sorted(map(place, (places.bundled_folder("zoo") / RUN.preset).glob("*.safetensors")))


def parameters(notebook):
    """The names of a notebook's parameters."""
    cells = json.loads((HERE / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    return re.findall(r"^(\w+) *=", "".join(cell["source"]), re.M)


# A limited run leaves alone what the repository keeps, so it leaves out the notebooks that know no limit.
NAMES = sorted(p.stem for p in (HERE / "notebooks").glob("[0-9]*.ipynb"))
NAMES = [name for name in NAMES if COMPLETE or "limit" in parameters(name)]

PYTHON = f"OMP_NUM_THREADS={{threads}} {shlex.quote(sys.executable)}"
STAGE = f"{PYTHON} -m riddle.evaluation.stages {{params.stage}}" + "".join(
    f" --{k} {shlex.quote(str(v))}" for k, v in OPTIONS.items() if v is not None and k != "dataset"
)
OF_DATA = STAGE + " --dataset {params.dataset}"  # stages of one data set
OF_TABLE = STAGE + f" --dataset {OPTIONS['dataset']}"


def npz(folder, names):
    """Files of a run's folder."""
    return [f"{ROOT}/{folder}/{name}.npz" for name in names]


def files(table, kind, items):
    """A stage's files for each item, on every data set of a table."""
    return [path for folder in folders(table) for path in npz(folder, [f"{kind}/{item}" for item in items])]


def seen(table):
    """Every embedding that the jobs behind a table leave."""
    return [p for folder in folders(table) for job in JOBS[folder] if job.recognisers for p in npz(folder, job.results)]


rule all:
    input:
        TABLES.values(),
        expand(f"{NOTEBOOKS}/{{name}}.ipynb", name=NAMES),


rule tables:
    input:
        TABLES.values(),


rule aligned:
    output:
        f"{ROOT}/{{data}}/aligned.npz",
    wildcard_constraints:
        data="|".join(map(re.escape, RUNS)),
    params:
        stage="aligned",
        dataset=lambda w: RUNS[w.data].data,
    priority: 9
    threads: workflow.cores
    shell:
        OF_DATA + " --workers {threads}"


rule codes:
    input:
        f"{ROOT}/{{data}}/aligned.npz",
        WEIGHTS,
    output:
        f"{ROOT}/{{data}}/codes.npz",
    wildcard_constraints:
        data="|".join(map(re.escape, RUNS)),
    params:
        stage="codes",
        dataset=lambda w: RUNS[w.data].data,
    priority: 8
    threads: workflow.cores
    shell:
        OF_DATA


for folder, run in RUNS.items():
    for job in JOBS[folder]:

        rule:
            name:
                f"{folder}_{job.name}".replace("-", "_")
            input:
                npz(folder, job.sources),
            output:
                npz(folder, job.results),
            params:
                stage="embeddings" if job.recognisers else "faces",
                dataset=run.data,
                sets=" ".join(job.items),
                recognisers=f"--recognisers {' '.join(job.recognisers)}" if job.recognisers else "",
            priority: 7 if folder == RUN.folder.name else 5  # the longest first
            shell:
                OF_DATA + " --workers 1 --item {params.sets} {params.recognisers}"

    # Two processes a data set: the detectors of Table 3 need long to load.
    for number, items in enumerate((USEFUL[::2], USEFUL[1::2]) if folder in folders("table3") else ()):

        rule:
            name:
                f"{folder}_detected{number}".replace("-", "_")
            input:
                npz(folder, ["aligned", *(f"faces/{item}" for item in items)]),
            output:
                npz(folder, [f"detected/{item}" for item in items]),
            params:
                stage="detected",
                dataset=run.data,
                sets=" ".join(items),
            priority: 4
            shell:
                OF_DATA + " --workers 1 --item {params.sets}"


rule restored:
    input:
        lambda w: npz(w.data, [f"faces/{item}" for item in (*rows.REFERENCES, *rows.TABLE2.values())]),
    output:
        [f"{ROOT}/{{data}}/restoration/{item}.npz" for item in rows.TABLE2.values()],
    wildcard_constraints:
        data="|".join(map(re.escape, RUNS)),
    params:
        stage="restored",
        dataset=lambda w: RUNS[w.data].data,
        sets=" ".join(rows.TABLE2.values()),
    priority: 4
    shell:
        OF_DATA + " --item {params.sets}"


rule figure7:
    input:
        npz(PEOPLE.folder.name, ["codes"]),
        WEIGHTS,
    output:
        f"{ROOT}/{PEOPLE.folder.name}/figure7/{{item}}.npz",
    wildcard_constraints:
        item="|".join([*rows.ENCRYPTORS, *rows.KEYED]),
    params:
        stage="figure7",
        dataset=PEOPLE.data,
    priority: 4
    shell:
        OF_DATA + " --item {wildcards.item}"


BEFORE = {
    "table1": seen("table1"),
    "table2": files("table2", "restoration", rows.TABLE2.values()),
    "table3": [*files("table3", "detected", USEFUL), *seen("table3")],
    "table4": seen("table4"),
    "security": seen("security"),
    "robustness": WEIGHTS,
    "table5": [*seen("table5"), TABLES["table3"]],  # it left the features of the photos and of three methods
}

for table, sources in BEFORE.items():

    rule:
        name:
            table
        input:
            sources,
        output:
            TABLES[table],
        params:
            stage=table,
        shell:
            OF_TABLE


def before_notebook(wildcards):
    """What a notebook shows: tables, embeddings of Figure 7; the report comes after all others."""
    name = wildcards.name
    shown = [path for table, path in TABLES.items() if name.endswith(table)]
    if name.endswith("table2"):
        shown += [TABLES["table1"]]  # recovery rates from pixels
    if name.endswith("security"):
        shown += [TABLES["robustness"]]
    if name.endswith("figure7"):
        shown += npz(PEOPLE.folder.name, [f"figure7/{item}" for item in (*rows.ENCRYPTORS, *rows.KEYED)])
    others = [n for n in NAMES if n != name] if name.endswith("report") else []
    return shown + [f"{NOTEBOOKS}/{n}.ipynb" for n in others]


def given(wildcards):
    """The workflow's options that a notebook has as parameters."""
    chosen = [k for k in parameters(wildcards.name) if k in OPTIONS and OPTIONS[k] not in ("auto", None)]
    return " ".join(f"-p {k} {shlex.quote(str(OPTIONS[k]))}" for k in chosen)


# The copy that the repository keeps is made in the same job: small, and without pictures of real people.
SLIM = f" && {PYTHON} -m riddle.evaluation.report --slim {{output:q}} {shlex.quote(KEPT)}" if COMPLETE and KEPT != NOTEBOOKS else ""


rule notebook:
    input:
        place(HERE / "notebooks" / "{name}.ipynb"),
        WEIGHTS,
        before_notebook,
    output:
        f"{NOTEBOOKS}/{{name}}.ipynb",
    params:
        given=given,
    threads: lambda w: workflow.cores if w.name.endswith("widgets") else 1  # one of them measures its speed
    shell:
        f"SECONDS=0; {PYTHON} -m papermill {{input[0]:q}} {{output:q}} {{params.given}} --no-progress-bar"
        f" --cwd {shlex.quote(str(HERE))}{SLIM}"
        f" && mkdir -p {shlex.quote(place(RUN.folder))} && echo '{{{{\"stage\": \"notebooks/{{wildcards.name}}\", \"seconds\": '$SECONDS'}}}}'"
        f" >> {shlex.quote(place(RUN.folder))}/times.jsonl"


onsuccess:
    print("\nSeconds of each stage, of one core; stages ran side by side. Files made in an earlier run keep their time.")
    spent = seconds(RUNS.values())
    print(tables.grid(spent[spent.seconds >= 0.1]))
    print(f"{spent.seconds.sum():8.1f} s  in all stages")
    print(f"{time.monotonic() - BEGAN:8.1f} s  this run, on {workflow.cores} cores")
