# Every table and notebook of a preset, stage by stage: snakemake --cores 2 --config preset=mobile
#
# A stage is a file and a command of riddle.stages, in a process and on a thread of its own, so stages run side by
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
from riddle import figures, plan, stages, table2, table3, table4, tables
from riddle.methods import dataset_here
from riddle.runs import VARIANTS, Run, summary

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


# {table: the runs behind it}, {folder of a run's stages: the run}, {folder: its jobs}
BEHIND = {"table1": [RUN]} | {f"table{n}": tables.runs_of(RUN, t.DATASETS) for n, t in ((2, table2), (3, table3), (4, table4))}
USEFUL = ["photo", *table3.METHODS.values()]  # sets of faces of Table 3
PEOPLE = replace(RUN, dataset=dataset_here(OPTIONS["dataset"]))  # of figures 7 and 8
RUNS = {r.folder.name: r for runs in [*BEHIND.values(), [PEOPLE]] for r in runs}


def folders(table):
    """The folders of the runs behind a table."""
    return [run.folder.name for run in BEHIND[table]]


JOBS = {folder: plan.jobs(run, [t for t in BEHIND if folder in folders(t)]) for folder, run in RUNS.items()}
TABLES = {"table1": place(RUN.table)} | {t: place(tables.places(RUN, t, BEHIND[t])[0]) for t in list(BEHIND)[1:]}

ROOT = place(RUN.folder.parent)
COMPLETE = RUN.limit is None
NOTEBOOKS = f"{ROOT}/notebooks" if COMPLETE else f"{ROOT}/notebooks-limit{RUN.limit}"
KEPT = place(places.home() / "results" / RUN.preset / "notebooks")
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
STAGE = f"{PYTHON} -m riddle.stages {{params.stage}}" + "".join(
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


def judged(table):
    """Every embedding that the jobs behind a table leave."""
    return [p for folder in folders(table) for job in JOBS[folder] if job.judges for p in npz(folder, job.results)]


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
                stage="judged" if job.judges else "faces",
                dataset=run.data,
                sets=" ".join(job.items),
                judges=f"--judges {' '.join(job.judges)}" if job.judges else "",
            priority: 7 if folder == RUN.folder.name else 5  # the longest first
            shell:
                OF_DATA + " --workers 1 --item {params.sets} {params.judges}"

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


rule restoration:
    input:
        lambda w: npz(w.data, [f"faces/{item}" for item in (*table2.REFERENCES, *table2.ITEMS.values())]),
    output:
        [f"{ROOT}/{{data}}/restoration/{item}.npz" for item in table2.ITEMS.values()],
    wildcard_constraints:
        data="|".join(map(re.escape, RUNS)),
    params:
        stage="restoration",
        dataset=lambda w: RUNS[w.data].data,
        sets=" ".join(table2.ITEMS.values()),
    priority: 4
    shell:
        OF_DATA + " --item {params.sets}"


rule figure7:
    input:
        npz(PEOPLE.folder.name, ["aligned"]),
        WEIGHTS,
    output:
        f"{ROOT}/{PEOPLE.folder.name}/figure7/{{item}}.npz",
    wildcard_constraints:
        item="|".join(figures.OURS),
    params:
        stage="figure7",
        dataset=PEOPLE.data,
    priority: 4
    shell:
        OF_DATA + " --item {wildcards.item}"


rule table1:
    input:
        judged("table1"),
    output:
        TABLES["table1"],
    params:
        stage="table1",
    shell:
        OF_TABLE


rule table2:
    input:
        files("table2", "restoration", table2.ITEMS.values()),
    output:
        TABLES["table2"],
    params:
        stage="table2",
    shell:
        OF_TABLE


rule table3:
    input:
        files("table3", "detected", USEFUL),
        judged("table3"),
    output:
        TABLES["table3"],
    params:
        stage="table3",
    shell:
        OF_TABLE


rule table4:
    input:
        judged("table4"),
    output:
        TABLES["table4"],
    params:
        stage="table4",
    shell:
        OF_TABLE


def before_notebook(wildcards):
    """What a notebook shows: tables, embeddings of Figure 7 and Table 5; the report comes after all others."""
    name = wildcards.name
    shown = [path for table, path in TABLES.items() if name.endswith(table)]
    if name.endswith("table2"):
        shown += [TABLES["table1"]]  # recovery rates from pixels
    if name.endswith("table5"):  # its rates are Table 1's, its distances Table 3's
        shown += [*judged("table1"), *judged("table3"), TABLES["table3"]]
    if name.endswith("figure7"):
        shown += npz(PEOPLE.folder.name, [f"figure7/{item}" for item in figures.OURS])
    others = [n for n in NAMES if n != name] if name.endswith("report") else []
    return shown + [f"{NOTEBOOKS}/{n}.ipynb" for n in others]


def given(wildcards):
    """The workflow's options that a notebook has as parameters."""
    chosen = [k for k in parameters(wildcards.name) if k in OPTIONS and OPTIONS[k] not in ("auto", None)]
    return " ".join(f"-p {k} {shlex.quote(str(OPTIONS[k]))}" for k in chosen)


# The copy that the repository keeps is made in the same job: small, and without pictures of real people.
SLIM = f" && {PYTHON} -m riddle.reporting slim {{output}} {KEPT}/{{wildcards.name}}.ipynb" if COMPLETE else ""


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
        f"SECONDS=0; {PYTHON} -m papermill {{input[0]}} {{output}} {{params.given}} --no-progress-bar"
        f" --cwd {shlex.quote(str(HERE))}{SLIM}"
        f" && mkdir -p {place(RUN.folder)} && echo '{{{{\"stage\": \"notebooks/{{wildcards.name}}\", \"seconds\": '$SECONDS'}}}}'"
        f" >> {place(RUN.folder)}/times.jsonl"


onsuccess:
    print("\nTime per stage, of one core; stages ran side by side. Files made in an earlier run keep their time.")
    lines = [line for line in summary(RUNS.values()) if line[0] >= 0.1]
    for seconds, label, kind, count in lines:
        print(f"{seconds:8.1f} s  {label:24} {kind}" + (f" ({count} files)" if count > 1 else ""))
    print(f"{sum(seconds for seconds, *_ in lines):8.1f} s  in all stages")
    print(f"{time.monotonic() - BEGAN:8.1f} s  this run, on {workflow.cores} cores")
