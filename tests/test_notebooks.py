"""Every notebook is small, parameterised, stored without output, and at small scale records numbers within bounds."""

import ast
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import nbformat
import papermill
import pytest

from riddle import losses
from riddle.evaluation import claims
from riddle.evaluation.rows import ANGULAR
from riddle.faces import recognizers

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Trials write under results/runs only: with the untrained networks, or limited.
UNTRAINED = {"preset": "smoke"}
FEW = {"dataset": "samples", "limit": 2}
SMALLER = {
    "00_quickstart": {"side": 128},
    "01_generator": UNTRAINED,
    "02_inversion": UNTRAINED,
    "03_parsing": UNTRAINED,
    "04_encryptor": UNTRAINED,
    "05_table1": FEW,
    "06_table2": FEW,
    "07_table3": FEW,
    "08_table4": FEW,
    "09_figure7": FEW | {"limit": 3, "people": 3, "perplexity": 5},
    "10_figure8": FEW | {"steps": 5},
    "11_table5": FEW | {"faces": 2},
    "12_qualitative": FEW | {"people": 2, "passwords": 3},
    "13_report": {},
    "14_video": {"limit": 6, "people": 1, "side": 120},
    "15_widgets": {"updates": 3},
    "16_security": UNTRAINED | {"dataset": "samples", "limit": 2, "detector": "dlib"},
}
# The cell with which a trial begins: less of what takes seconds each. Gradient steps of an inversion, passwords of a
# face, strangers to choose from, FALCO's faces and steps; in 16 steps of a search for a key, px of Table R's faces.
FEWER = """
from riddle.baselines import falco
from riddle.evaluation import rows
from riddle.faces import fitting
from riddle.models.inversion import LiteEncoder
falco.DRAWN, falco.STEPS, rows.PASSWORDS, fitting.CANDIDATES, fitting.FINALISTS = 32, 2, 6, 4, 2
LiteEncoder.refine = lambda self, x, z, steps, refine=LiteEncoder.refine: refine(self, x, z, min(steps, 5))
del falco, rows, fitting, LiteEncoder"""
SEARCH = """
from riddle import attacks
from riddle.evaluation import robustness
attacks.STEPS, robustness.SIDE = 20, 256
del attacks, robustness"""
FIRST = dict.fromkeys(SMALLER, FEWER) | {"13_report": "", "16_security": SEARCH}
CHECKED = ("05_table1", "06_table2", "08_table4")  # what must hold of a complete run holds for so few faces, too
# A claim has an answer where the repository keeps the tables.
CLAIMS, KEPT = len(claims.CLAIMS), any((ROOT / "results" / "mobile" / "tables").glob("*.csv"))
ANSWERS = {"holds": (1, CLAIMS), "without an answer": (0, CLAIMS - 1)} if KEPT else {
    "holds": (0, 0), "without an answer": (CLAIMS, CLAIMS),
}  # fmt: skip
# What each records: {a name, or a pattern of names: (least, most)}. Two faces say little, so the bounds are wide; a
# network that does nothing, or forgets everything, lies outside.
BOUNDS = {
    "00_quickstart": {"faces": (3, 3), "restored": (0, 5), "protected": (15, 120), "wrong password": (15, 120)},
    "01_generator": {"steps": (30, 30), "PSNR after": (23, 60), "PSNR at 32 px, dB": (15, 60)},
    "02_inversion": {"steps": (20, 20), "mse, after": (0, 0.45), "inverted": (0, 105), "another face": (106, 255)},
    "03_parsing": {"steps": (60, 60), "accuracy, new faces": (0.5, 1)},
    "04_encryptor": {
        "cos_recovered, RotationCoupling (ours)": (0.99, 1.001), "cos_encrypted, RotationCoupling (ours)": (-1, 0.9),
        "cos_pairs, RotationCoupling (ours)": (-1, 0.9), "cos_wrong, RotationCoupling (ours)": (-1, 0.8),
        "cos_recovered, keyed reflection (control)": (0.99, 1.001), "cos_recovered, full": (-1, 0.6),
    },
    "05_table1": {
        "de-identification, RiDDLE": (0, 0.5), "de-identification, RotationCoupling (ours)": (0, 0.5),
        "recovery, RiDDLE": (0.5, 1), "recovery, RotationCoupling (ours)": (0.99, 1),
        "unprotected, inverted": (0.5, 1), "diversity, *": (0.2, 1),
    },
    "06_table2": {
        "MSE, its inverted face, RiDDLE": (0, 0.01), "MSE, its inverted face, RotationCoupling (ours)": (0, 0.001),
        "MSE, its inverted face, RiDDLE, wrong password": (0.01, 0.5),
        "SSIM, its inverted face, RotationCoupling (ours)": (0.99, 1), "SSIM, *": (0.1, 1), "PSNR, *": (8, 59),
    },
    "07_table3": {
        "face detection, photo (aligned crop), *": (0.8, 1), "face detection, RotationCoupling (ours), *": (0.5, 1),
        "landmark distance, inverted, mtcnn": (0, 15),
        "Frechet distance (SqueezeNet pool), *": (500, 100_000), "Frechet distance (dlib), *": (0.01, 2),
    },
    "08_table4": {},
    "09_figure7": {"faces": (9, 9), "silhouette, *": (-1, 0.7)},
    "10_figure8": {"people": (2, 2), "accepted": (0, 0.4), "largest jump": (0.2, 2)},
    "11_table5": {
        "de-identification, full": (0, 0.4), "recovery, full": (0.6, 1),
        "recovery, RotationCoupling (ours)": (0.99, 1), "recovery, untrained transformer (control)": (0, 0.5),
        "diversity, full": (0.4, 1), "diversity, untrained transformer (control)": (0, 0.3),
    },
    "12_qualitative": {
        "restored, pixels, RotationCoupling (ours)": (0, 1), "restored, pixels, RiDDLE": (0, 15),
        "protected, pixels, *": (20, 120), "protected, similarity, *": (-2, 0.5),
        "wrong password, pixels, *": (20, 120),
    },
    "13_report": ANSWERS,
    "14_video": {"frames": (6, 6), "faces": (1, 1)},
    "15_widgets": {"Restored": (0, 0.5), "Encrypted": (0.4, 2), "updates/s, moving": (0.1, 400),
                   "updates/s, at rest": (0.05, 200)},
    "16_security": {
        "guessing, share of first ranks, sealed file, keyed reflection (control)": (1, 1),
        "guessing, rank of the right passphrase among 1,000, pixels, keyed reflection (control)": (1, 1000),
        "outcome, restored from the record, sidecar, JPEG *": (1, 1),
    },
}  # fmt: skip
# Where a recogniser is at hand that compares by cosine: dlib's, which comes with the installation, does not.
COSINES = {
    "08_table4": {
        "identity cosine, inverted": (0.5, 1), "identity cosine, RiDDLE": (-0.3, 0.4),
        "identity cosine, RotationCoupling (ours)": (-0.3, 0.4), "KFFA (degrees), *": (45, 100),
    },
    "09_figure7": {"mean pairwise angle, *": (45, 100)},
    "14_video": {"* identity": (0.8, 1), "* person": (0.8, 1), "protected to original": (-0.3, 0.4)},
}  # fmt: skip


def code(notebook) -> list:
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_there_are_notebooks_numbered_from_00():
    assert [int(p.stem.split("_")[0]) for p in NOTEBOOKS] == list(range(17))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_short_stored_without_output_and_shows_the_bundled_networks(path):
    """Its parameters are literals, and no absolute path is stored; untrained networks are shown on demand only."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 25
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))
    nodes = [node for cell in code(notebook) for node in ast.walk(ast.parse(cell.source))]
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.end_lineno - node.lineno < 10, f"{node.name} is longer than ten lines: move it to riddle"
    assert any(isinstance(node, ast.Assert) for node in nodes)
    assert not re.search("/home/|/root/|/tmp/", path.read_text())
    assert defaults_of(path)["preset"] == "mobile"


def test_each_equation_stands_beside_the_call_that_computes_it():
    cells, shown = nbformat.read(ROOT / "notebooks" / "04_encryptor.ipynb", as_version=4).cells, []
    for text, after in zip(cells, cells[1:], strict=False):
        called = [getattr(losses, name).__doc__ for name in re.findall(r"losses\.(\w+)\(", after.source)]
        for number in re.findall(r"\\tag\{(\d+)\}", text.source):
            assert any(re.search(rf"eq\. {number}\b", doc) for doc in called), number
            shown.append(int(number))
    assert shown == list(range(1, 11))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A home that all notebooks of a worker share."""
    home = tmp_path_factory.mktemp("home")
    (home / "data").symlink_to(ROOT / "data")
    (home / "results" / "mobile").mkdir(parents=True)
    (home / "results" / "mobile" / "tables").symlink_to(ROOT / "results" / "mobile" / "tables")  # 13 reads them
    return home


def defaults_of(path: Path) -> dict:
    """The parameters of a notebook and what they are where nobody says otherwise: one cell, assignments of literals."""
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    statements = ast.parse(cell.source).body
    assert cell.cell_type == "code" and all(isinstance(s, ast.Assign) and len(s.targets) == 1 for s in statements)
    return {s.targets[0].id: ast.literal_eval(s.value) for s in statements}


# Those that take their faces from the same stages run in one worker, so that each stage is made once.
STAGED = [pytest.mark.xdist_group("stages")]
ALIKE = {p for p in NOTEBOOKS if "dataset" in defaults_of(p) and "preset" not in SMALLER[p.stem]}
EXECUTED = [pytest.param(p, id=p.stem, marks=STAGED if p in ALIKE else []) for p in NOTEBOOKS]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", EXECUTED)
def test_it_runs_and_its_numbers_lie_within_their_bounds(path, place):
    """On the bundled faces, which every machine has; a failed assertion of the notebook fails it."""
    notebook = execute(path, place)
    assert all(c.execution_count for c in code(notebook) if c.source.strip())
    numbers = recorded(notebook)
    assert all(v == v for v in numbers.values() if isinstance(v, float)), numbers
    cosines = any(state is None for state in recognizers.available(ANGULAR).values())
    for pattern, (least, most) in (BOUNDS[path.stem] | (COSINES.get(path.stem, {}) if cosines else {})).items():
        found = {k: v for k, v in numbers.items() if fnmatch(k, pattern)}
        assert found, f"nothing recorded is called {pattern}: {', '.join(numbers)}"
        assert all(least <= v <= most for v in found.values()), f"not within {least} and {most}: {found}"
    (last,) = notebook.cells[-1].outputs
    assert re.search(r"\d", last["data"]["text/markdown"]), "it does not read its result"


def execute(path: Path, home: Path):
    """The executed notebook, with those of its SMALLER parameters; its kernel is a process of its own."""
    chosen = SMALLER[path.stem] | ({"out": str(home / path.stem)} if "out" in defaults_of(path) else {})
    text, source, out = path.read_text(), home / f"source_{path.name}", home / path.name
    if path.stem in CHECKED:
        assert "not limit and preset" in text
        text = text.replace("not limit and preset", "preset")
    trial = nbformat.reads(text, as_version=4)
    trial.cells.insert(0, nbformat.v4.new_code_cell(FIRST[path.stem]))
    nbformat.write(trial, source)
    with pytest.MonkeyPatch.context() as kernel:
        kernel.chdir(ROOT)
        kernel.delenv("RIDDLE_DATA", raising=False)
        for name, value in {"RIDDLE_HOME": str(home), "RIDDLE_OFFLINE": "1", "MPLBACKEND": "agg"}.items():
            kernel.setenv(name, value)
        return papermill.execute_notebook(source, out, chosen, progress_bar=False, start_timeout=600)


def recorded(notebook) -> dict[str, float]:
    """What the notebook displays as application/json: its recorded numbers."""
    outputs = [o["data"] for c in code(notebook) for o in c.outputs if "application/json" in o.get("data", {})]
    found = [o["application/json"] for o in outputs]
    return {k: v for f in found for k, v in (json.loads(f) if isinstance(f, str) else f).items()}
