"""The command line: help, exit codes, JSON, many files and resume, where the passphrase comes from, what is here."""

import getpass
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import riddle
import riddle.app
from riddle import passwords
from riddle.app import bulk, cli, doctor, passphrase, photos
from riddle.app.cli import Exit
from riddle.app.photos import FaceReport, FileReport, PhotoError
from riddle.assets import ASSETS, Asset
from riddle.demo import KnownFaces
from riddle.faces import recognizers
from riddle.presets import PRESETS
from riddle.record import read_picture, save_picture
from riddle.seal import VERSION
from riddle.weights import WeightsMissingError

POINTS = np.array([[70.0, 80], [110, 80], [90, 100], [74, 124], [106, 124]])  # an upright face of 40 px eye to eye


def stub(calls, verb, done, how):
    """Copies the file instead of protecting it, and notes (verb, source's name, passphrase, options).

    A source named "bad" or "bug" fails, one named "stop" is interrupted, "crowd" has a face that cannot be protected,
    "twin" one that is still recognised.
    """

    def act(model, source, target, text, **options):
        calls.append((verb, source.name, text, options))
        if "bad" in source.name:
            raise PhotoError(source, "it is damaged", "fetch it again")
        if "bug" in source.name:
            raise RuntimeError("out of memory")
        if "stop" in source.name:
            raise KeyboardInterrupt
        target.write_bytes(source.read_bytes())
        faces = [FaceReport((1, 2, 30, 40), done)]
        if "crowd" in source.name:
            faces.append(FaceReport((5, 6, 7, 8), "skipped", "too small"))
        if "twin" in source.name:
            faces.append(FaceReport((5, 6, 7, 8), "recognised", "a twin", checked="still recognised"))
        return FileReport(source, target, faces, how)

    return act


@pytest.fixture
def stubs(monkeypatch):
    """No photo or clip is read, no model loaded; returns the calls, of `riddle.load` too."""
    calls = []
    monkeypatch.setattr(photos, "protect_file", stub(calls, "protect", "protected", "protected"))
    monkeypatch.setattr(photos, "restore_file", stub(calls, "restore", "restored", "codes"))
    clips = types.ModuleType("riddle.app.video")
    clips.protect_video = stub(calls, "protect clip", "protected", "protected")
    clips.restore_video = stub(calls, "restore clip", "restored", "codes")
    monkeypatch.setitem(sys.modules, "riddle.app.video", clips)
    monkeypatch.setattr(riddle.app, "video", clips, raising=False)
    monkeypatch.setattr(riddle, "load", lambda *a, **k: calls.append(("load", a, k)) or "the model", raising=False)
    monkeypatch.setattr(passwords, "derive_key", lambda *a: b"")
    monkeypatch.setattr(bulk, "inspect", lambda path: {"protected": True})
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "copper lantern orbits nine meadows")
    return calls


@pytest.fixture
def folder(tmp_path):
    """in/a.jpg, in/sub/b.png, in/c.tif, and what is no photo: hidden files, such as a killed run leaves, and a text."""
    for name in ("a.jpg", "sub/b.png", "c.tif", ".hidden/d.png", ".riddle-12-ab.png", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo")
    return tmp_path / "in"


def run(*words):
    return cli.main([str(w) for w in words])


def told(capsys):
    """What was printed as JSON since the last call."""
    return json.loads(capsys.readouterr().out)


def files_under(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


# Help and arguments


def commands(command=None, words=()):
    """Every command with its words."""
    command = command or typer.main.get_command(cli.app)
    yield words, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*words, name))


def test_every_option_of_every_command_is_explained():
    seen = dict(commands())
    names = ("protect", "restore", "video protect", "video restore", "info", "weights", "doctor")
    verbs = {tuple(name.split()) for name in names}
    assert set(seen) == verbs | {(), ("video",)}
    for words, command in seen.items():
        assert command.help and all(p.help for p in command.params), words
        assert words not in verbs or all(f"\n  {int(code):<4} " in command.epilog for code in Exit), words
        for preset in (p for p in command.params if p.name == "preset"):
            assert all(name in preset.display_type(None) for name in PRESETS) and preset.default == "mobile"


def test_the_commands_of_the_readme_are_those_that_there_are(root):
    blocks = re.findall(r"^```sh\n(.*?)^```", (root / "README.md").read_text(), re.M | re.S)
    words = [line.split("#")[0].split()[3:] for line in "".join(blocks).splitlines() if "python -m riddle " in line]
    seen = dict(commands())
    for line in words:
        name = max((n for n in seen if tuple(line[: len(n)]) == n), key=len)
        assert name and not hasattr(seen[name], "commands"), line
        assert {word for word in line if word.startswith("-")} <= {o for p in seen[name].params for o in p.opts}, line
    assert {n for n in seen if not hasattr(seen[n], "commands")} == {
        max((n for n in seen if tuple(line[: len(n)]) == n), key=len) for line in words
    }
    modules = re.findall(r"python -m (riddle\.[\w.]+)", (root / "README.md").read_text())
    assert modules and all(importlib.util.find_spec(module) for module in modules)
    goals = set(re.findall(r"(?:^|`)make (\w+)", (root / "README.md").read_text(), re.M))
    assert goals <= set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.M)) and len(goals) > 2


@pytest.mark.parametrize("page", ["docs/paper.md", "docs/scale.md"])
def test_the_commands_of_a_guide_parse(root, page, capsys):
    blocks = re.findall(r"^```sh\n(.*?)^```", (root / page).read_text(), re.M | re.S)
    lines = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    seen, makefile = dict(commands()), (root / "Makefile").read_text()
    options = re.search(r"^OPTIONS = \{(.*)\}$", (root / "Snakefile").read_text(), re.M)[1]
    assert len(lines) > 3
    for line in lines:
        match line:
            case ["python", "-m", "riddle", *words]:
                name = max((n for n in seen if tuple(words[: len(n)]) == n), key=len)
                given = seen[name].make_context(" ".join(name), words[len(name) :]).params
                assert set(given.get("names") or ()) <= {*ASSETS, "import", *words[-1:]}, line
            case ["python", "-m", module, *words]:
                main = importlib.import_module(module)
                if any(word.startswith("-") for word in words):
                    with pytest.raises(SystemExit):
                        cli.main(["--help"], main.app) if hasattr(main, "app") else main.main(["--help"])
                        raise SystemExit
                    shown = capsys.readouterr().out
                    assert all(f"{word} " in shown for word in words if word.startswith("-")), line
            case ["python", script, *_]:
                assert (root / script).is_file(), line
            case ["make", goal, *variables]:
                assert re.search(f"^{goal}:", makefile, re.M), line
                assert all(re.search(rf"^{variable.split('=')[0]} \?=", makefile, re.M) for variable in variables), line
            case ["snakemake", *words]:
                given = [word.split("=")[0] for word in words if "=" in word]
                assert all(f'"{name}":' in options for name in given), line
            case _:
                assert line[0] in ("source", "export", "unset", "cp", "rm", "pip", "ray"), line


def test_no_option_takes_a_passphrase(capsys):
    options = {o for _, command in commands() for p in command.params for o in p.opts if o.startswith("-")}
    assert {o for o in options if "pass" in o or "key" in o} == {"--passphrase-file"}
    assert run("protect", "a.jpg", "--passphrase", "secret") == Exit.USAGE  # it is no abbreviation of --passphrase-file
    assert capsys.readouterr().err.startswith("riddle: No such option: --passphrase")


def test_help_loads_nothing_heavy():
    script = (
        "import sys\nfrom riddle.app import cli\n"
        "for words in '--help', 'protect --help', 'video restore --help':\n"
        "    assert cli.main(words.split()) == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'dlib', 'av', 'IPython', 'tqdm', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone = subprocess.run([sys.executable, "-m", "riddle"], capture_output=True)
    assert alone.returncode == Exit.USAGE and alone.stderr == b"riddle: Missing command.\n"


@pytest.mark.parametrize(
    "words",
    ["protect", "protect a.jpg --quality 0", "protect a.jpg --format gif", "protect a.jpg --no-record --keep-original",
     "protect a.jpg --no-record --sidecar", "video", "jump", "info a --force"],
)  # fmt: skip
def test_wrong_arguments_are_one_line_and_their_exit_code(words, capsys):
    assert run(*words.split()) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("riddle: ") and err.count("\n") == 1


# Which result belongs to which source


def targets(sources, out, kind=bulk.PHOTOS, verb="protect", ending=None):
    pairs, _ = bulk.plan(map(Path, sources), out and Path(out), kind, verb, ending)
    return [str(pair.target) for pair in pairs]


def test_a_single_file_goes_beside_itself_or_where_it_is_told():
    assert targets(["x/party.JPG"], None) == ["x/party.protected.JPG"]
    assert targets(["x/party.JPG"], "y/out.png") == ["y/out.png"]
    assert targets(["x/party.JPG"], "y/out") == ["y/out/party.JPG"]
    assert targets(["x/party.JPG"], None, ending="webp") == ["x/party.protected.webp"]
    assert targets(["a.protected.jpg"], None, verb="restore") == ["a.restored.jpg"]
    assert targets(["scan.tif"], None) == ["scan.protected.png"]
    assert targets(["a.avi"], None, bulk.CLIPS) == ["a.protected.mp4"]


def test_plans_that_would_lose_something_are_usage_errors(stubs, folder, tmp_path, capsys):
    (folder / "c.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for source, out, message in (
        (folder, None, "-o FOLDER"),
        (folder / "a.jpg", folder / "sub" / ".." / "a.jpg", "overwrite a source"),
        (folder, folder, "overwrite a source"),
        (tmp_path / "empty", tmp_path / "out", "holds no photo"),
    ):
        with pytest.raises(ValueError, match=message):
            targets([source], out)
    assert len(targets([folder / "a.jpg", folder / "a.jpg"], tmp_path / "out")) == 1
    assert run("protect", folder, "--json") == Exit.USAGE
    out = told(capsys)
    assert out["exit"] == 2 and "-o FOLDER" in out["error"] and stubs == []
    assert run("restore", folder, "-o", folder / "out", "--sidecar", "x.riddle") == Exit.USAGE and stubs == []


# Doing, resuming, telling


def test_options_reach_the_work(stubs, tmp_path):
    (tmp_path / "a.png").write_bytes(b"photo")
    weights = ("--preset", "ffhq256", "--weights", tmp_path, "--device", "cuda", "--detector", "mtcnn")
    options = ("--keep-original", "--strict", "--sidecar", "--quality", "80")
    assert run("protect", tmp_path / "a.png", "--format", "jpg", *weights, *options) == Exit.DONE
    load, call = stubs
    assert load == ("load", ("ffhq256", "cuda"), {"weights": tmp_path, "detector": "mtcnn"})
    wanted = {"keep_original": True, "strict": True, "sidecar": True, "record": True, "quality": 80}
    assert (
        call == ("protect", "a.png", "copper lantern orbits nine meadows", wanted)
        and (tmp_path / "a.protected.jpg").exists()
    )
    assert run("restore", tmp_path / "a.protected.jpg", "--sidecar", tmp_path / "x.riddle") == Exit.DONE
    wanted = {"sidecar": tmp_path / "x.riddle", "quality": 95}
    assert stubs[-1] == ("restore", "a.protected.jpg", "copper lantern orbits nine meadows", wanted)
    assert (tmp_path / "a.restored.jpg").exists()
    assert run("protect", tmp_path / "a.png", "--no-record") == Exit.DONE
    wanted = {"keep_original": False, "strict": False, "sidecar": False, "record": False, "quality": 95}
    assert stubs[-1] == ("protect", "a.png", "copper lantern orbits nine meadows", wanted)


def test_a_folder_is_done_and_one_bad_file_does_not_stop_it(stubs, folder, tmp_path, capsys):
    for name in ("bad.png", "bug.png"):
        (folder / name).write_bytes(b"photo")
    for name in ("list.csv", "sub/clip.mp4", "a.jpg.riddle"):
        (folder / name).write_bytes(b"perhaps a photo")
    assert run("protect", folder, "-o", tmp_path / "out") == Exit.FAILED
    assert files_under(tmp_path / "out") == ["a.jpg", "c.png", "sub/b.png"]
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    passed_over = [f"{folder}/{name}" for name in ("list.csv", "notes.txt", "sub/clip.mp4")]
    assert printed.err == f"riddle: left out, no photo: {', '.join(passed_over)}\n"
    assert f"{folder}/a.jpg -> {tmp_path}/out/a.jpg: 1 face protected" in lines
    assert f"FAILED  {folder}/bad.png: it is damaged; fetch it again" in lines
    assert f"FAILED  {folder}/bug.png: RuntimeError: out of memory" in lines
    assert lines[-1] == "5 files: 3 done, 0 there already, 2 failed; 3 faces protected, 0 left as they were"
    assert run("restore", folder / "a.jpg", "-o", tmp_path / "back") == Exit.DONE
    assert f"{folder}/a.jpg -> {tmp_path}/back/a.jpg: 1 face restored, by its record\n" in capsys.readouterr().out
    assert run("restore", folder, "-o", tmp_path / "back", "--json") == Exit.FAILED
    assert told(capsys)["left_out"] == passed_over
    for name in ("bad.png", "bug.png"):
        (folder / name).unlink()
    assert run("protect", folder, "-o", tmp_path / "out") == Exit.DONE
    assert run("protect", folder, "-o", tmp_path / "out", "--strict") == Exit.UNPROTECTED


def test_a_second_run_does_what_is_left_and_asks_for_nothing_when_nothing_is(stubs, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("protect", folder / "a.jpg", "-o", out) == Exit.DONE
    stubs.clear()
    assert run("protect", folder, "-o", out) == Exit.DONE
    assert [c[1] for c in stubs if c[0] == "protect"] == ["c.tif", "b.png"]
    assert "there already" in capsys.readouterr().out
    stubs.clear()
    assert run("protect", folder, "-o", out, "--json") == Exit.DONE
    assert stubs == []  # neither passphrase nor model
    none = dict.fromkeys(("done", "failed", "faces", "faces_skipped", "faces_recognised"), 0)
    assert told(capsys)["summary"] == {"files": 3, "there": 3, **none}
    os.utime(folder / "a.jpg", (4e9, 4e9))
    run("protect", folder / "a.jpg", "-o", out)
    assert "older than its source" in capsys.readouterr().out
    (out / "a.jpg").write_bytes(b"old")
    assert run("protect", folder / "a.jpg", "-o", out, "--force") == Exit.DONE
    assert (out / "a.jpg").read_bytes() == b"photo"


def test_an_interrupted_run_reports_what_it_did_and_goes_on_from_there(stubs, folder, tmp_path, capsys):
    (folder / "b_stop.jpg").write_bytes(b"photo")
    assert run("protect", folder, "-o", tmp_path / "out", "--json") == Exit.INTERRUPTED
    out = capsys.readouterr()
    report = json.loads(out.out)
    assert report["exit"] == 130 and [f["status"] for f in report["files"]] == ["done"] and "goes on" in out.err
    (folder / "b_stop.jpg").unlink()
    assert run("protect", folder, "-o", tmp_path / "out", "--json") == Exit.DONE
    assert [f["status"] for f in told(capsys)["files"]] == ["there", "done", "done"]


@pytest.mark.parametrize("answer", [{"protected": False}, PhotoError("mine.png", "it is no picture", "")], ids=str)
def test_what_is_there_and_is_no_protected_photo_is_never_overwritten(
    stubs, folder, tmp_path, monkeypatch, capsys, answer
):
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"holiday")

    def inspect(path):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(bulk, "inspect", inspect)
    assert run("protect", folder / "a.jpg", "-o", mine) == Exit.FAILED
    assert "carries no record of a protected file" in capsys.readouterr().out and mine.read_bytes() == b"holiday"
    assert run("restore", folder / "a.jpg", "-o", mine) == Exit.DONE and mine.read_bytes() == b"holiday"


def test_a_face_left_as_it_was_has_its_own_exit_code_and_line(stubs, tmp_path, capsys):
    crowd = tmp_path / "crowd.jpg"
    crowd.write_bytes(b"photo")
    assert run("protect", crowd) == Exit.UNPROTECTED
    assert "    LEFT AS IT WAS: the face at 5,6,7,8: too small" in capsys.readouterr().out.splitlines()
    assert run("protect", crowd, "--force", "--json") == Exit.UNPROTECTED
    report = told(capsys)
    assert report["exit"] == 4 and report["summary"]["faces_skipped"] == 1
    skipped = {"box": [5, 6, 7, 8], "status": "skipped", "reason": "too small", "checked": ""}
    assert report["files"][0]["faces"][1] == skipped
    twin = crowd.rename(tmp_path / "twin.jpg")
    assert run("protect", twin) == Exit.UNPROTECTED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 1 face protected") and lines[1] == "    STILL RECOGNISED: the face at 5,6,7,8: a twin"
    assert run("protect", twin, "--force", "--json") == Exit.UNPROTECTED
    assert told(capsys)["summary"]["faces_recognised"] == 1


def test_clips_are_done_resumed_and_done_again_by_force(stubs, tmp_path, capsys):
    (tmp_path / "clip.mov").write_bytes(b"clip")
    assert run("video", "protect", tmp_path / "clip.mov", "--strict") == Exit.DONE
    verb, name, text, options = stubs[-1]
    assert (verb, name, text) == ("protect clip", "clip.mov", "copper lantern orbits nine meadows")
    assert options["resume"] and options["strict"] and (tmp_path / "clip.protected.mov").read_bytes() == b"clip"
    assert run("video", "protect", tmp_path / "clip.mov") == Exit.DONE and len(stubs) == 2
    assert "there already" in capsys.readouterr().out
    assert run("video", "protect", tmp_path / "clip.mov", "--force") == Exit.DONE and not stubs[-1][3]["resume"]
    capsys.readouterr()
    assert run("video", "restore", tmp_path / "clip.protected.mov", "--json") == Exit.DONE
    report = told(capsys)
    assert report["command"] == "restore" and report["files"][0]["target"].endswith("clip.restored.mov")


def test_missing_weights_have_their_own_exit_code(stubs, folder, monkeypatch, capsys):
    def load(*_, **__):
        raise WeightsMissingError("ffhq256/generator", "it does not exist", "train it")

    monkeypatch.setattr(riddle, "load", load, raising=False)
    assert run("protect", folder / "a.jpg", "--json") == Exit.MISSING
    printed = capsys.readouterr()
    assert json.loads(printed.out)["exit"] == 3 and "train it; python -m riddle doctor" in printed.err


# The passphrase


def test_the_passphrase_file_comes_before_the_environment_and_that_before_the_question(tmp_path, monkeypatch):
    monkeypatch.delenv("RIDDLE_PASSPHRASE", raising=False)
    answers = iter(["asked", "asked", "secret", "sekret", "once"])
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(answers))
    assert passphrase.read(None, True, print) == "asked"  # protecting asks twice, restoring once
    with pytest.raises(passphrase.PassphraseError, match="differ"):
        passphrase.read(None, True, print)
    assert passphrase.read(None, False, print) == "once"
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "of the environment")
    assert passphrase.read(None, True, print) == "of the environment"
    contents = (b"  of the file \n", "  of the file "), (b"\xef\xbb\xbfof Windows\r\n", "of Windows")
    file, warned = tmp_path / "pass", []
    for content, text in (*contents, ("Grüße".encode(), "Grüße")):
        file.write_bytes(content)
        file.chmod(0o600)
        assert passphrase.read(file, True, warned.append) == text and warned == []


def test_no_passphrase_is_read_from_a_pipe_and_a_broken_one_is_refused_before_the_model_loads(
    stubs, folder, monkeypatch, capsys
):
    def getpass_without_terminal(prompt):
        warnings.warn("Can not control echo on the terminal.", getpass.GetPassWarning, stacklevel=2)
        raise AssertionError("read from a pipe")

    monkeypatch.setattr(getpass, "getpass", getpass_without_terminal)
    monkeypatch.delenv("RIDDLE_PASSPHRASE")
    assert run("protect", folder / "a.jpg") == Exit.USAGE
    assert "RIDDLE_PASSPHRASE" in capsys.readouterr().err and stubs == []
    monkeypatch.undo()
    monkeypatch.setattr(riddle, "load", lambda *a, **k: pytest.fail("loaded"), raising=False)
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "x\udcff")
    assert run("protect", folder / "a.jpg") == Exit.USAGE
    assert "surrogate" in capsys.readouterr().err


def test_no_message_shows_the_passphrase(stubs, folder, tmp_path, monkeypatch, capsys, caplog):
    """Nor does a list of processes: it is no argument."""
    file = tmp_path / "pass"
    for text in ("a weak one", "quilt lamp seven order moon", "quilt \udcff moon"):
        for name in ("bad.png", "bug.png", "crowd.png"):
            (folder / name).write_bytes(b"photo")
        monkeypatch.setenv("RIDDLE_PASSPHRASE", text)
        run("protect", folder, "-o", tmp_path / "out", "--force")
        run("restore", folder, "-o", tmp_path / "out", "--json", "--force")
        file.write_text(f"{text}\ntwice\n", errors="replace")
        run("protect", folder, "-o", tmp_path / "out", "--passphrase-file", file)
    printed = capsys.readouterr()
    shown = printed.out + printed.err + caplog.text
    assert "FAILED" in shown and "several lines" in shown
    assert not any(word in shown for word in ("a weak one", "quilt", "moon"))


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602])
def test_a_passphrase_file_that_others_can_read_is_warned_about(tmp_path, mode):
    file, warned = tmp_path / "pass", []
    file.write_text("secret")
    file.chmod(mode)
    assert passphrase.read(file, False, warned.append) == "secret"
    assert len(warned) == 1 and f"chmod 600 {file}" in warned[0] and "secret" not in warned[0]


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "empty"), (b" \n", "empty"), (b"two\nlines\n", "several"), (b"\xff\xfe", "UTF-8"), (b"x" * 70_000, "KB")],
)
def test_an_unusable_passphrase_file_is_an_error(tmp_path, content, cause):
    (tmp_path / "pass").write_bytes(content)
    with pytest.raises(passphrase.PassphraseError, match=cause):
        passphrase.read(tmp_path / "pass", False, lambda _: None)
    with pytest.raises(passphrase.PassphraseError, match="cannot be read"):
        passphrase.read(tmp_path / "absent", False, lambda _: None)


# The real thing, untrained


def test_a_file_that_is_not_there_or_no_photo_is_named(tmp_path, monkeypatch, capsys):
    """The first without loading a model, the second without a word about the result's ending."""
    monkeypatch.setattr(riddle, "load", lambda *a, **k: pytest.fail("it loads"), raising=False)
    assert run("protect", tmp_path / "absent.jpg") == cli.Exit.FAILED
    assert "absent.jpg: there is no such file" in capsys.readouterr().out
    (tmp_path / "notes.md").write_text("# Notes")
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "quilt lamp seven order moon")
    monkeypatch.setattr(riddle, "load", lambda *a, **k: None, raising=False)
    assert run("protect", tmp_path / "notes.md") == cli.Exit.FAILED
    shown = capsys.readouterr().out
    assert "notes.md: " in shown and "written as" not in shown


def test_protect_info_restore_on_real_files(tmp_path, monkeypatch, capsys):
    with pytest.warns(UserWarning, match="untrained"):
        smoke = riddle.load("smoke", detector=KnownFaces([POINTS]))
    monkeypatch.setattr(riddle, "load", lambda *a, **k: smoke, raising=False)
    monkeypatch.setattr(recognizers, "at_hand", lambda *_: None)  # noise has no person in it
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "copper lantern orbits nine meadows")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8)
    source, safe = tmp_path / "photo.png", tmp_path / "safe.png"
    Image.fromarray(pixels).save(source)
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff no picture")
    words = ("--preset", "smoke")

    assert run("protect", source, "-o", safe, "--keep-original", *words) == Exit.DONE
    assert not np.array_equal(np.asarray(Image.open(safe)), pixels)
    assert run("protect", source, "-o", safe, *words) == Exit.DONE  # recognised as done
    assert run("protect", tmp_path / "damaged.jpg", *words) == Exit.FAILED
    assert files_under(tmp_path) == ["damaged.jpg", "photo.png", "safe.png"]
    capsys.readouterr()

    assert run("info", safe, source, "--json") == Exit.DONE
    carried, bare = told(capsys)["files"]
    size, length = [180, 200], len(read_picture(safe)[1].data)
    assert bare == {"file": str(source), "protected": False} and carried == {
        "file": str(safe), "protected": True, "where": "metadata", "version": VERSION, "preset": "smoke",
        "weights": smoke.weights_hash, "size": size, "record_bytes": length, "picture_size": size,
    }  # fmt: skip
    scaled, cut = tmp_path / "scaled.png", tmp_path / "cut.png"
    save_picture(Image.open(safe).resize((90, 100)), scaled, read_picture(safe)[1])
    cut.write_bytes(safe.read_bytes()[:-5000])
    assert run("info", safe, source, scaled, cut, tmp_path / "absent.jpg") == Exit.FAILED
    text = capsys.readouterr().out
    for said in ("preset smoke", "carries no record", "cut.png: it is damaged", "faces      sealed"):
        assert said in text
    assert (
        "180 x 200 px; the file was resized or cropped since, to 90 x 100" in text
        and f"FAILED  {tmp_path}/absent.jpg" in text
    )

    assert run("restore", safe, "-o", tmp_path / "back.png", *words, "--json") == Exit.DONE
    assert told(capsys)["files"][0]["how"] == "original"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), pixels)
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "wrong horse")
    assert run("restore", safe, "-o", tmp_path / "guess.png", *words, "--json") == Exit.DONE  # strangers, no error
    (guess,) = told(capsys)["files"]
    assert guess["how"] == "inversion" and guess["notes"] == [photos.NOT_OPENED]
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "guess.png")), pixels)

    bare = tmp_path / "bare.png"
    assert run("protect", source, "-o", bare, "--no-record", *words, "--json") == Exit.DONE
    (made,) = told(capsys)["files"]
    assert made["how"] == "protected" and made["notes"][-1] == photos.BARE and not bulk.inspect(bare)["protected"]
    assert run("restore", bare, "-o", tmp_path / "other.png", *words, "--json") == Exit.DONE
    assert told(capsys)["files"][0]["how"] == "inversion"
    assert not any(b"battery" in path.read_bytes() for path in tmp_path.iterdir()), "the passphrase is in no file"


# What is here


@pytest.fixture
def machine(home, monkeypatch):
    """An empty machine with one network of two."""
    near = Asset("near", "nets/near.bin", licence="MIT", source="example.org/near")
    gone = Asset("gone", "nets/gone.bin", licence="research only", source="example.org/gone", note="unpack it")
    for module in ("riddle.app.networks", "riddle.weights"):
        monkeypatch.setattr(f"{module}.ASSETS", {a.name: a for a in (near, gone)})
    place = home / "cache" / "weights" / near.path
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    return home


def test_weights_says_where_each_network_is_and_its_terms(machine, capsys):
    assert run("weights") == Exit.DONE
    text = capsys.readouterr().out
    assert "cache/weights/nets/near.bin" in text and "terms: research only" in text
    assert "as near.bin, size not known" in text
    assert run("weights", "gone", "--json") == Exit.DONE
    (gone,) = told(capsys)["networks"]
    assert gone["licence"] == "research only" and not gone["here"]
    assert gone["detail"] == "absent: by hand, from example.org/gone: unpack it"


def test_weights_fetches_those_named_and_tells_their_terms_first(machine, monkeypatch, capsys):
    assert run("weights", "--download") == Exit.USAGE  # never all at once
    assert run("weights", "unheard-of") == Exit.USAGE and "known: gone, near" in capsys.readouterr().err
    assert run("weights", "near", "gone", "--download", "--json") == Exit.MISSING
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [n["here"] for n in report["networks"]] == [False, True] and "unpack it" in report["errors"][0]
    assert "gone: terms: research only; from example.org/gone" in printed.err
    fetched = []
    monkeypatch.setattr("riddle.weights.find", fetched.append)
    assert run("weights", "near", "--download") == Exit.DONE and fetched == ["near"]


def test_the_doctor_on_an_empty_machine_lists_what_is_missing(machine, root, capsys):
    assert run("doctor", "--json") == Exit.MISSING
    report = told(capsys)
    assert not report["ready"] and report["exit"] == 3
    items = {i["name"]: i for part in ("system", "packages", "weights", "networks", "data") for i in report[part]}
    assert items["python"]["here"] and items["torch"]["here"] and not items["lfw"]["here"]
    assert not items["photos"]["here"] and items["photos"]["detail"].startswith("mobile/")
    second = items["recogniser of protect"]
    assert not second["here"] and second["detail"].startswith("protect cannot check whom its new faces show: ")
    assert items["near"]["detail"].endswith("cache/weights/nets/near.bin")
    assert items["gone"]["detail"].startswith("absent: by hand, from example.org/gone") and not items["gone"]["here"]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert len(report["packages"]) == len(project["dependencies"])


def test_the_doctor_lists_the_published_files_of_a_preset(home, capsys):
    assert run("doctor", "--preset", "ffhq256", "--json") == Exit.MISSING
    items = {i["name"]: i for i in told(capsys)["weights"]}
    wanted = {"riddle-generator256", "riddle-e4e256", "riddle-encryptor256", "bisenet"}
    assert wanted <= items.keys() and "e4e-ffhq1024" not in items
    assert "stylegan2-ffhq-256.pt" in items["riddle-generator256"]["detail"]


def test_the_doctor_works_without_torch():
    script = "import sys\nsys.modules['torch'] = None\nfrom riddle.app import cli\nsys.exit(cli.main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == Exit.MISSING and done.stderr == ""
    assert re.search(r"MISSING +photos +.*torch", done.stdout) and re.search(r"ok +tqdm", done.stdout)


def test_the_doctor_tells_a_broken_package(home, monkeypatch, capsys):
    def broken(preset):
        raise OSError("libX11.so.6: cannot open shared object file")

    monkeypatch.setattr(doctor, "_tried", broken)
    assert run("doctor", "--preset", "smoke") == Exit.MISSING
    text = capsys.readouterr().out
    assert re.search(r"MISSING  photos +libX11", text)
    assert all(Path(path).is_file() for path in re.findall(r"ok +(?:smoke/\w+|random-face) +(\S+)", text))
    assert "SynthesisNetwork.xml" in text or "random-face is not installed" in text
    assert text.endswith("not ready: see what is MISSING\n")


@pytest.mark.parametrize(("text", "told"), [
    ("pw", "less than two hours"), ("correct horse", "about 4 hours"), ("Tr0ub4dor&3", r"about \d+ days"),
])  # fmt: skip
def test_a_weak_passphrase_is_told_how_soon_it_is_guessed_and_a_strong_or_very_long_one_nothing(text, told):
    cost = r"\(a guess costs 0.1 seconds of a core, and a record tells which one is right\)"
    assert re.search(rf"weak: 1,000 processor cores guess it in {told} {cost}; take five", passphrase.weakness(text))
    assert passphrase.weakness("quilt lamp seven order moon") == passphrase.weakness("lamp Oder 7 quilt! " * 20) == ""
    assert all("stands in a manual" in passphrase.weakness(f"{text}\n") for text in passphrase.PUBLISHED)
