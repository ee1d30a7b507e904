"""Every notebook is small, parameterised, stored without output, and runs at smoke scale with its assertions."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from riddle import losses

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Trials write under results/runs only: with the untrained networks, or limited.
UNTRAINED = {"preset": "smoke"}
FEW = {"dataset": "samples", "limit": "6"}
SMALLER = {
    "00_quickstart": UNTRAINED,
    "01_generator": UNTRAINED,
    "02_inversion": UNTRAINED,
    "03_parsing": UNTRAINED,
    "04_encryptor": UNTRAINED,
    "05_table1": FEW,
    "06_table2": FEW,
    "07_table3": FEW,
    "08_table4": FEW | {"limit": "3"},
    "09_figure7": FEW | {"people": "3", "perplexity": "5"},
    "10_figure8": FEW | {"limit": "2", "steps": "5"},
    "11_table5": FEW | {"faces": "2"},
    "12_qualitative": FEW | {"limit": "2", "passwords": "3"},
    "14_video": {"limit": "16", "people": "1"},
    "15_widgets": {"seconds": "0.5"},
}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code(notebook) -> list:
    return [c for c in notebook.cells if c.cell_type == "code"]


def parameters(notebook) -> list:
    return [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]


def without_magics(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


def test_there_are_notebooks_numbered_from_00():
    numbers = [int(p.stem.split("_")[0]) for p in NOTEBOOKS]
    assert numbers == list(range(16))


@each
def test_lint(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 25
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.source[:60]
        for node in ast.walk(ast.parse(without_magics(cell.source))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 10, f"{node.name} is longer than ten lines: move it to riddle"
    assert any(isinstance(n, ast.Assert) for c in code(notebook) for n in ast.walk(ast.parse(without_magics(c.source))))


@each
def test_exactly_one_cell_of_parameters_literals_only(path):
    tagged = parameters(nbformat.read(path, as_version=4))
    assert len(tagged) == 1 and tagged[0].cell_type == "code"
    names = []
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, ast.unparse(statement)
        ast.literal_eval(statement.value)  # raises for anything but a literal
        names.append(statement.targets[0].id)
    assert "preset" in names


@each
def test_it_shows_the_bundled_networks_as_it_stands(path):
    """Somebody who opens a notebook sees trained networks; smoke is asked for."""
    assert defaults_of(path)["preset"] == "mobile"


@each
def test_it_shows_no_machine(path):
    """No absolute path and no real face's file name is stored."""
    text = path.read_text()
    assert "/home/" not in text and "/root/" not in text and "/tmp/" not in text


def test_each_equation_stands_beside_the_function_that_computes_it():
    notebook = nbformat.read(FOLDER / "04_encryptor.ipynb", as_version=4)
    text = "\n".join(c.source for c in code(notebook))
    shown = re.findall(r"losses\.(\w+): r\".*\\tag\{(\d+)\}", text)
    assert sorted(int(number) for _, number in shown) == list(range(1, 11))
    for name, number in shown:  # its docstring names the equation too
        assert f"eq. {number}" in getattr(losses, name).__doc__, name


@pytest.mark.timeout(420)
@each
def test_it_runs_at_smoke_scale(path, tmp_path):
    """In a process of its own, on the bundled faces, which every machine has; a failed assertion fails it."""
    out = tmp_path / path.name
    execute(path, out, SMALLER.get(path.stem, {}) | {"out": str(tmp_path / "out")})
    notebook = nbformat.read(out, as_version=4)
    stored = [c for c in code(notebook) if c.execution_count]
    assert len(stored) == len([c for c in code(notebook) if c.source.strip()])
    for numbers in results_of(notebook):
        assert numbers and all(v == v for v in numbers.values() if isinstance(v, float)), numbers


@pytest.mark.timeout(420)
@pytest.mark.parametrize("name", ["06_table2", "07_table3", "08_table4"])
def test_what_must_hold_can_be_asked_where_dlib_alone_judges(name, tmp_path):
    """No data, no weights but the bundled: few faces, and yet the checks of a complete run."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    checks = [c for c in code(notebook) if "not limit and preset" in c.source]
    assert len(checks) == 1
    checks[0].source = checks[0].source.replace("not limit and preset", "preset")
    path = tmp_path / f"{name}.ipynb"
    nbformat.write(notebook, path)
    bare = {k: str(tmp_path / "nothing") for k in ("RIDDLE_WEIGHTS", "RIDDLE_CACHE", "TORCH_HOME")}
    execute(path, tmp_path / "out.ipynb", SMALLER[name] | {"limit": "5"}, bare)


def execute(path, out, chosen: dict[str, str], variables: dict[str, str] | None = None) -> None:
    """Run a notebook on the bundled faces, with those of the chosen parameters that it has."""
    environment = {k: v for k, v in os.environ.items() if k != "RIDDLE_DATA"} | (variables or {})
    environment |= {"OMP_NUM_THREADS": "2", "RIDDLE_OFFLINE": "1", "MPLBACKEND": "agg"}
    extra = [word for k, v in chosen.items() if k in names_of(path) for word in ("-p", k, v)]
    command = [sys.executable, "-m", "papermill", str(path), str(out), "--no-progress-bar", *extra]
    done = subprocess.run(command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


def defaults_of(path) -> dict:
    """The parameters of a notebook and what they are where nobody says otherwise."""
    (cell,) = parameters(nbformat.read(path, as_version=4))
    return {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}


def names_of(path) -> set[str]:
    """The parameters of a notebook."""
    return set(defaults_of(path))


def results_of(notebook) -> list[dict]:
    """What the notebook displays as application/json: its recorded numbers."""
    outputs = [o for c in code(notebook) for o in c.outputs]
    found = [o["data"]["application/json"] for o in outputs if "application/json" in o.get("data", {})]
    return [json.loads(f) if isinstance(f, str) else f for f in found]
