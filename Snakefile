# Every table and notebook of a preset, stage by stage: snakemake --cores 2 --config preset=mini
#
# A stage is a file and a command of riddle.stages, in a process and on a thread of its own, so stages run side by
# side, a stopped run goes on where it stopped, and Snakemake's executors take it to a cluster:
#   snakemake --executor slurm --jobs 20 --config preset=ffhq256 device=cuda
# Options of --config: preset, dataset (auto, lfw, samples), seed, limit (pairs of each kind a fold, to try it out),
# detector, device.

import shlex
import sys
from pathlib import Path

from riddle import config as places
from riddle import protocols
from riddle.runs import Run

OPTIONS = {"preset": "mini", "dataset": "auto", "seed": 0, "limit": None, "detector": "auto", "device": "cpu"}
OPTIONS |= {k: v for k, v in config.items() if k in OPTIONS}
if unknown := set(config) - set(OPTIONS):
    raise ValueError(f"unknown --config {', '.join(sorted(unknown))}; choose from {', '.join(OPTIONS)}")

RUN = Run(**OPTIONS)
HERE = Path(workflow.basedir)


def place(path):
    """A path as a target is typed: relative to the working directory where it lies within."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


FOLDER, TABLE = place(RUN.folder), place(RUN.table)
NOTEBOOKS = place(RUN.folder.parent / "notebooks")
KEPT = place(places.home() / "results" / RUN.preset / "notebooks")
WEIGHTS = sorted(map(place, (places.bundled_folder("zoo") / RUN.preset).glob("*.safetensors")))
NAMES = sorted(p.stem for p in (HERE / "notebooks").glob("[0-9]*.ipynb"))
SETS = [*protocols.FACE_SETS, *protocols.DIVERSITY_SETS]

PYTHON = f"OMP_NUM_THREADS={{threads}} {shlex.quote(sys.executable)}"
STAGE = f"{PYTHON} -m riddle.stages {{rule}}" + "".join(
    f" --{k} {shlex.quote(str(v))}" for k, v in (OPTIONS | {"dataset": RUN.data}).items() if v is not None
)


rule all:
    input:
        TABLE,
        expand(f"{NOTEBOOKS}/{{name}}.kept", name=NAMES) if RUN.limit is None else [],


rule tables:
    input:
        TABLE,


rule aligned:
    output:
        f"{FOLDER}/aligned.npz",
    threads: workflow.cores
    shell:
        STAGE + " --workers {threads}"


rule codes:
    input:
        f"{FOLDER}/aligned.npz",
        WEIGHTS,
    output:
        f"{FOLDER}/codes.npz",
    threads: workflow.cores
    shell:
        STAGE


rule faces:
    input:
        f"{FOLDER}/aligned.npz",
        lambda w: [] if w.item in ("photo", "blur", "mosaic") else f"{FOLDER}/codes.npz",
    output:
        f"{FOLDER}/faces/{{item}}.npz",
    shell:
        STAGE + " --item {wildcards.item}"


rule found:
    input:
        f"{FOLDER}/faces/{{item}}.npz",
    output:
        f"{FOLDER}/found/{{item}}.npz",
    shell:
        STAGE + " --item {wildcards.item} --workers 1"


rule embeddings:
    input:
        expand(f"{FOLDER}/found/{{set}}.npz", set=SETS),
    output:
        f"{FOLDER}/embeddings/{{item}}.npz",
    shell:
        STAGE + " --item {wildcards.item}"


rule table1:
    input:
        expand(f"{FOLDER}/embeddings/{{judge}}.npz", judge=protocols.JUDGES),
    output:
        TABLE,
    shell:
        STAGE


# Each notebook in a process of its own. Targets lie in results/runs/, which a fresh checkout lacks, so it makes
# them all; what the repository keeps (a small copy of each notebook without real faces, the tables) is written beside.
rule notebook:
    input:
        place(HERE / "notebooks" / "{name}.ipynb"),
        WEIGHTS,
        lambda w: TABLE if w.name == "05_table1" else [],
    output:
        f"{NOTEBOOKS}/{{name}}.ipynb",
    params:
        of_tables=lambda w: f"-p dataset {RUN.data} -p seed {RUN.seed}" if w.name == "05_table1" else "",
    threads: workflow.cores
    shell:
        PYTHON + f" -m papermill {{input[0]}} {{output}} -p preset {RUN.preset} {{params.of_tables}}"
        f" --cwd {shlex.quote(str(HERE))}"


rule kept:
    input:
        f"{NOTEBOOKS}/{{name}}.ipynb",
    output:
        touch(f"{NOTEBOOKS}/{{name}}.kept"),
    shell:
        PYTHON + " -m riddle.reporting slim {input} " + f"{KEPT}/{{wildcards.name}}.ipynb"


onsuccess:
    shell(STAGE.replace("{rule}", "times").replace("{threads}", "1"))
