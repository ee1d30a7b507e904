"""The command line: help, exit codes, JSON, many files and resume, where the passphrase comes from, what is here."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import riddle
import riddle.app
from riddle import passwords, weights
from riddle.app import arguments, bulk, cli, container, doctor, passphrase, photos
from riddle.app.arguments import Exit
from riddle.app.photos import FaceReport, FileReport, PhotoError
from riddle.assets import ASSETS, Asset
from riddle.faces.detection import Face
from riddle.presets import PRESETS

POINTS = np.array([[70.0, 80], [110, 80], [90, 100], [74, 124], [106, 124]])  # an upright face of 40 px eye to eye


class OneFace:
    """Finds the same face in any picture."""

    name = "one"

    def detect(self, image):
        low, high = POINTS.min(0) - 15, POINTS.max(0) + 15
        return [Face(np.array([*low, *high]), 1.0, POINTS, None, self.name)]


@pytest.fixture(scope="module")
def smoke():
    """The untrained model, which sees one face in any picture."""
    with pytest.warns(UserWarning, match="untrained"):
        return riddle.load("smoke", detector=OneFace())


@pytest.fixture
def stubs(monkeypatch):
    """Photos are copied instead of protected; returns the calls (verb, source name, passphrase, options).

    A source named "bad" fails, one named "crowd" has a face that cannot be protected."""
    calls = []

    def stub(verb, done, how):
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
            return FileReport(source, target, faces, how)

        return act

    monkeypatch.setattr(photos, "protect_file", stub("protect", "protected", "protected"))
    monkeypatch.setattr(photos, "restore_file", stub("restore", "restored", "codes"))
    monkeypatch.setattr(riddle, "load", lambda *a, **k: calls.append(("load", a, k)) or "the model", raising=False)
    monkeypatch.setattr(passwords, "derive_key", lambda *a: b"")
    monkeypatch.setattr(container, "inspect", lambda path: {"protected": True})
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "correct horse")
    return calls


@pytest.fixture
def folder(tmp_path):
    """in/a.jpg, in/sub/b.png, in/c.tif, and what is no photo."""
    for name in ("a.jpg", "sub/b.png", "c.tif", ".hidden/d.png", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo")
    return tmp_path / "in"


def run(*words):
    return cli.main([str(w) for w in words])


def files_under(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


# Help and arguments


def parsers(parser, name=()):
    """Every parser, with its command's words."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from parsers(sub, (*name, word))


def test_every_option_of_every_command_is_explained():
    seen = dict(parsers(arguments.parser()))
    assert set(seen) == {
        (), ("protect",), ("restore",), ("video",), ("video", "protect"), ("video", "restore"), ("info",),
        ("weights",), ("doctor",),
    }  # fmt: skip
    for words, parser in seen.items():
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), (words, action.dest)
        if words and words != ("video",):
            assert all(f"\n  {int(code):<4} " in parser.epilog for code in Exit), words


def test_no_option_takes_a_passphrase(capsys):
    for _, parser in parsers(arguments.parser()):
        options = {o for action in parser._actions for o in action.option_strings}
        assert not {o for o in options if "pass" in o or "key" in o} - {"--passphrase-file"}
    with pytest.raises(SystemExit) as e:
        run("protect", "a.jpg", "--passphrase", "secret")  # and it is no abbreviation of --passphrase-file
    assert e.value.code == Exit.USAGE and "unrecognized arguments: --passphrase" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["protect", "--help"], ["video", "restore", "--help"]])
def test_help_loads_nothing_heavy(words):
    script = (
        "import sys\nfrom riddle.app import cli\n"
        f"try: cli.main({words!r})\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'dlib', 'av', 'IPython', 'tqdm'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_python_m_riddle_is_the_command_line():
    help_text = subprocess.run([sys.executable, "-m", "riddle", "--help"], capture_output=True, text=True, timeout=60)
    assert help_text.returncode == 0 and "protect" in help_text.stdout and "exit codes" in help_text.stdout
    assert subprocess.run([sys.executable, "-m", "riddle"], capture_output=True, timeout=60).returncode == Exit.USAGE


@pytest.mark.parametrize(
    "words",
    [["protect"], ["protect", "a.jpg", "--quality", "0"], ["protect", "a.jpg", "--salt", "none"], ["video"], ["jump"]],
)
def test_wrong_arguments_are_usage_errors(words):
    with pytest.raises(SystemExit) as e:
        run(*words)
    assert e.value.code == Exit.USAGE


# Which result belongs to which source


def targets(*args, **kwargs):
    return [(str(j.source), str(j.target)) for j in bulk.plan(*args, **kwargs)]


def test_a_single_file_goes_beside_itself_or_where_it_is_told():
    a = Path("x/party.JPG")
    assert targets([a], None, bulk.PHOTOS, ".protected") == [("x/party.JPG", "x/party.protected.JPG")]
    assert targets([a], Path("y/out.png"), bulk.PHOTOS, "") == [("x/party.JPG", "y/out.png")]
    assert targets([a], Path("y/out"), bulk.PHOTOS, "") == [("x/party.JPG", "y/out/party.JPG")]
    assert targets([a], None, bulk.PHOTOS, ".protected", ".webp") == [("x/party.JPG", "x/party.protected.webp")]
    back = targets([Path("party.protected.jpg")], None, bulk.PHOTOS, ".restored", undo=".protected")
    assert back == [("party.protected.jpg", "party.restored.jpg")]
    assert targets([Path("scan.tif")], None, bulk.PHOTOS, ".protected") == [("scan.tif", "scan.protected.png")]
    assert targets([Path("a.avi")], None, bulk.CLIPS, ".protected") == [("a.avi", "a.protected.mp4")]


def test_a_folder_keeps_its_names_and_subfolders(folder):
    out = folder / "safe"
    (out / "old").mkdir(parents=True)
    (out / "old" / "done.png").write_bytes(b"")  # results are no sources, even when they lie inside
    got = [
        (s.removeprefix(f"{folder}/"), t.removeprefix(f"{out}/")) for s, t in targets([folder], out, bulk.PHOTOS, "")
    ]
    assert got == [("a.jpg", "a.jpg"), ("c.tif", "c.png"), ("sub/b.png", "sub/b.png")]


def test_plans_that_would_lose_something_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="-o FOLDER"):
        bulk.plan([folder], None, bulk.PHOTOS, "")
    with pytest.raises(ValueError, match="overwrite a source"):
        bulk.plan([folder / "a.jpg"], folder / "sub" / ".." / "a.jpg", bulk.PHOTOS, "")
    with pytest.raises(ValueError, match="overwrite a source"):
        bulk.plan([folder], folder, bulk.PHOTOS, "")
    (folder / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match="would both become .*c.png"):
        bulk.plan([folder], tmp_path / "out", bulk.PHOTOS, "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no photo"):
        bulk.plan([tmp_path / "empty"], tmp_path / "out", bulk.PHOTOS, "")
    assert len(bulk.plan([folder / "a.jpg", folder / "a.jpg"], tmp_path / "out", bulk.PHOTOS, "")) == 1


def test_a_plan_that_is_refused_is_a_usage_error(stubs, folder, capsys):
    assert run("protect", folder, "--json") == Exit.USAGE
    out = json.loads(capsys.readouterr().out)
    assert out["exit"] == 2 and "-o FOLDER" in out["error"] and stubs == []


# Doing, resuming, telling


def test_options_reach_the_work(stubs, tmp_path):
    (tmp_path / "a.png").write_bytes(b"photo")
    weights = ("--preset", "ffhq256", "--weights", tmp_path, "--device", "cuda", "--detector", "mtcnn")
    options = ("--salt", "random", "--keep-original", "--strict", "--sidecar", "--quality", "80")
    assert run("protect", tmp_path / "a.png", "--format", "jpg", *weights, *options) == Exit.DONE
    load, call = stubs
    assert load == ("load", ("ffhq256", "cuda"), {"weights": tmp_path, "detector": "mtcnn"})
    wanted = {"salt": "random", "keep_original": True, "strict": True, "sidecar": True, "quality": 80}
    assert call == ("protect", "a.png", "correct horse", wanted)
    assert (tmp_path / "a.protected.jpg").exists()
    assert run("restore", tmp_path / "a.protected.jpg", "--sidecar", tmp_path / "x.riddle") == Exit.DONE
    assert stubs[-1] == (
        "restore",
        "a.protected.jpg",
        "correct horse",
        {"sidecar": tmp_path / "x.riddle", "quality": 95},
    )
    assert (tmp_path / "a.restored.jpg").exists()


def test_a_folder_is_done_and_one_bad_file_does_not_stop_it(stubs, folder, tmp_path, capsys):
    (folder / "bad.png").write_bytes(b"photo")
    (folder / "bug.png").write_bytes(b"photo")
    assert run("protect", folder, "-o", tmp_path / "out") == Exit.FAILED
    assert files_under(tmp_path / "out") == ["a.jpg", "c.png", "sub/b.png"]
    lines = capsys.readouterr().out.splitlines()
    assert f"{folder}/a.jpg -> {tmp_path}/out/a.jpg: 1 face protected" in lines
    assert f"FAILED  {folder}/bad.png: it is damaged; fetch it again" in lines
    assert f"FAILED  {folder}/bug.png: RuntimeError: out of memory" in lines
    assert lines[-1] == "5 files: 3 done, 0 there already, 2 failed; 3 faces protected, 0 left as they were"


def test_files_of_a_folder_that_are_no_photos_are_told(stubs, folder, tmp_path, capsys):
    for name in ("IMG_1.HEIC", "sub/clip.mp4", "a.jpg.riddle"):
        (folder / name).write_bytes(b"perhaps a photo")
    assert run("protect", folder, "-o", folder / "safe", "--json") == Exit.DONE
    printed = capsys.readouterr()
    passed_over = [str(folder / name) for name in ("IMG_1.HEIC", "notes.txt", "sub/clip.mp4")]
    assert json.loads(printed.out)["left_out"] == passed_over
    assert printed.err == f"riddle: left out, no photo by its ending: {', '.join(passed_over)}\n"
    assert run("protect", folder / "a.jpg", "-o", tmp_path / "out", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out)["left_out"] == []


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
    report = json.loads(capsys.readouterr().out)
    assert report["summary"] == {"files": 3, "done": 0, "there": 3, "failed": 0, "faces": 0, "faces_skipped": 0}
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
    assert [f["status"] for f in json.loads(capsys.readouterr().out)["files"]] == ["there", "done", "done"]


def test_what_is_there_and_is_no_protected_photo_is_never_overwritten(stubs, folder, tmp_path, monkeypatch, capsys):
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"holiday")
    for answer in ({"protected": False}, PhotoError(mine, "it is no picture", "")):

        def inspect(path, answer=answer):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(container, "inspect", inspect)
        assert run("protect", folder / "a.jpg", "-o", mine) == Exit.FAILED
        assert "no protected photo" in capsys.readouterr().out and mine.read_bytes() == b"holiday"
    assert run("restore", folder / "a.jpg", "-o", mine) == Exit.DONE and mine.read_bytes() == b"holiday"


def test_a_face_left_as_it_was_has_its_own_exit_code_and_line(stubs, tmp_path, capsys):
    crowd = tmp_path / "crowd.jpg"
    crowd.write_bytes(b"photo")
    assert run("protect", crowd) == Exit.UNPROTECTED
    assert "    LEFT AS IT WAS: the face at 5,6,7,8: too small" in capsys.readouterr().out.splitlines()
    assert run("protect", crowd, "--force", "--json") == Exit.UNPROTECTED
    report = json.loads(capsys.readouterr().out)
    assert report["exit"] == 4 and report["summary"]["faces_skipped"] == 1
    assert report["files"][0]["faces"][1] == {"box": [5, 6, 7, 8], "status": "skipped", "reason": "too small"}


def test_a_folder_is_restored(stubs, folder, tmp_path, capsys):
    assert run("restore", folder, "-o", tmp_path / "out") == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}/a.jpg -> {tmp_path}/out/a.jpg: 1 face restored, by its record"
    assert lines[-1] == "3 files: 3 done, 0 there already, 0 failed; 3 faces restored, 0 left as they were"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_file_name_that_is_no_text_is_reported_all_the_same(stubs, tmp_path, capsys):
    path = tmp_path / os.fsdecode(b"\xff\n.png")
    path.write_bytes(b"photo")
    assert run("protect", path, "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out)["files"][0]["source"] == str(path)


def test_a_reader_that_leaves_ends_the_command(tmp_path):
    """As `python -m riddle ... | head` does."""
    script = (
        "import sys\nfrom riddle.app import arguments, cli\n"
        "def shout(args):\n    while True: print('x' * 100_000)\n"
        "cli._doctor = shout\nsys.exit(cli.main(['doctor']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == Exit.FAILED


def test_one_sidecar_is_of_one_photo(stubs, folder, tmp_path):
    assert run("restore", folder, "-o", tmp_path / "out", "--sidecar", "x.riddle") == Exit.USAGE


def test_missing_weights_have_their_own_exit_code(stubs, folder, monkeypatch, capsys):
    def load(*args, **kwargs):
        raise weights.WeightsMissingError("ffhq256/generator", "it does not exist", "train it")

    monkeypatch.setattr(riddle, "load", load, raising=False)
    assert run("protect", folder / "a.jpg", "--json") == Exit.MISSING
    out = capsys.readouterr()
    assert json.loads(out.out)["exit"] == 3 and "python -m riddle doctor" in out.err


# Clips


@pytest.fixture
def clips(stubs, monkeypatch):
    """Clips are copied, with progress."""

    def stub(verb, done):
        def act(model, source, target, text, *, resume=True, on_progress=None):
            stubs.append((verb, source.name, text, resume))
            for frame in range(3):
                on_progress(frame + 1, 3)
            target.write_bytes(source.read_bytes())
            return FileReport(source, target, [FaceReport((1, 2, 30, 40), done)], done)

        return act

    module = types.ModuleType("riddle.app.video")
    module.protect_video, module.restore_video = stub("protect", "protected"), stub("restore", "restored")
    monkeypatch.setitem(sys.modules, "riddle.app.video", module)
    monkeypatch.setattr(riddle.app, "video", module, raising=False)
    return stubs


def test_clips_are_done_resumed_and_done_again_by_force(clips, tmp_path, capsys):
    (tmp_path / "clip.mov").write_bytes(b"clip")
    assert run("video", "protect", tmp_path / "clip.mov") == Exit.DONE
    assert clips[-1] == ("protect", "clip.mov", "correct horse", True)
    assert (tmp_path / "clip.protected.mov").read_bytes() == b"clip"
    assert run("video", "protect", tmp_path / "clip.mov") == Exit.DONE and len(clips) == 2
    assert "there already" in capsys.readouterr().out
    assert run("video", "protect", tmp_path / "clip.mov", "--force") == Exit.DONE
    assert clips[-1] == ("protect", "clip.mov", "correct horse", False)
    capsys.readouterr()
    assert run("video", "restore", tmp_path / "clip.protected.mov", "--json") == Exit.DONE
    report = json.loads(capsys.readouterr().out)
    assert report["command"] == "restore" and report["files"][0]["target"].endswith("clip.restored.mov")


def test_clips_without_their_package(stubs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "riddle.app.video", None)  # importing it fails as without PyAV
    monkeypatch.delattr(riddle.app, "video", raising=False)
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    assert run("video", "protect", tmp_path / "clip.mp4") == Exit.MISSING
    assert "clips need" in capsys.readouterr().err and stubs == []


# The passphrase


def test_the_passphrase_file_comes_before_the_environment_and_that_before_the_question(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "asked")
    assert passphrase.read(None, True, warned.append) == "asked"
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "of the environment")
    assert passphrase.read(None, True, warned.append) == "of the environment"
    file = tmp_path / "pass"
    for content, text in [
        (b"  of the file \n", "  of the file "), (b"\xef\xbb\xbfof Windows\r\n", "of Windows"),
        ("Grüße".encode(), "Grüße"),
    ]:  # fmt: skip
        file.write_bytes(content)
        file.chmod(0o600)
        assert passphrase.read(file, True, warned.append) == text
    assert warned == []


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602])
def test_a_passphrase_file_that_others_can_read_is_warned_about(tmp_path, mode):
    file, warned = tmp_path / "pass", []
    file.write_text("secret")
    file.chmod(mode)
    assert passphrase.read(file, False, warned.append) == "secret"
    assert len(warned) == 1 and f"chmod 600 {file}" in warned[0] and "secret" not in warned[0]


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"two\nlines\n", "several lines"),
        (b"\xff\xfe", "UTF-8"),
        (b"x" * 70_000, "KB"),
    ],
)
def test_an_unusable_passphrase_file_is_an_error(tmp_path, content, cause):
    (tmp_path / "pass").write_bytes(content)
    with pytest.raises(passphrase.PassphraseError, match=cause):
        passphrase.read(tmp_path / "pass", False, lambda _: None)
    with pytest.raises(passphrase.PassphraseError, match="cannot be read"):
        passphrase.read(tmp_path / "absent", False, lambda _: None)


def test_protecting_asks_twice_and_restoring_once(monkeypatch):
    monkeypatch.delenv("RIDDLE_PASSPHRASE", raising=False)
    answers = iter(["secret", "secret", "secret", "sekret", "secret"])
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(answers))
    assert passphrase.read(None, True, print) == "secret"
    with pytest.raises(passphrase.PassphraseError, match="differ"):
        passphrase.read(None, True, print)
    assert passphrase.read(None, False, print) == "secret" and next(answers, None) is None


def test_without_a_terminal_nothing_is_read_from_a_pipe(stubs, folder, monkeypatch, capsys):
    def getpass_without_terminal(prompt):
        warnings.warn("Can not control echo on the terminal.", getpass.GetPassWarning, stacklevel=2)
        raise AssertionError("read from a pipe")

    monkeypatch.setattr(getpass, "getpass", getpass_without_terminal)
    monkeypatch.delenv("RIDDLE_PASSPHRASE")
    assert run("protect", folder / "a.jpg") == Exit.USAGE
    assert "RIDDLE_PASSPHRASE" in capsys.readouterr().err and stubs == []


def test_a_broken_passphrase_is_refused_before_the_model_loads(folder, monkeypatch, capsys):
    monkeypatch.setattr(riddle, "load", lambda *a, **k: pytest.fail("loaded"), raising=False)
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "x\udcff")
    assert run("protect", folder / "a.jpg") == Exit.USAGE
    assert "surrogate" in capsys.readouterr().err


# The real thing, untrained


def test_protect_info_restore_on_real_files(smoke, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(riddle, "load", lambda *a, **k: smoke, raising=False)
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "correct horse")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8)
    source, safe = tmp_path / "photo.png", tmp_path / "safe.png"
    Image.fromarray(pixels).save(source)
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff no picture")
    smoke_words = ("--preset", "smoke")

    assert run("protect", source, "-o", safe, "--keep-original", *smoke_words) == Exit.DONE
    assert not np.array_equal(np.asarray(Image.open(safe)), pixels)
    assert run("protect", source, "-o", safe, *smoke_words) == Exit.DONE  # recognised as done
    assert run("protect", tmp_path / "damaged.jpg", *smoke_words) == Exit.FAILED
    assert files_under(tmp_path) == ["damaged.jpg", "photo.png", "safe.png"]
    capsys.readouterr()

    assert run("info", safe, source, "--json") == Exit.DONE
    carried, bare = json.loads(capsys.readouterr().out)["files"]
    assert carried["protected"] and not bare["protected"]
    assert (carried["preset"], carried["salt"], len(carried["faces"])) == ("smoke", "random", 1)
    assert carried["originals"] and carried["weights"] == smoke.weights_hash
    assert run("info", safe, source, tmp_path / "absent.jpg") == Exit.FAILED
    text = capsys.readouterr().out
    assert "preset smoke" in text and "carries no record" in text and "FAILED" in text
    scaled = tmp_path / "scaled.png"
    container.write(scaled, Image.open(safe).resize((90, 100)), container.read(safe)[1])
    (tmp_path / "cut.png").write_bytes(safe.read_bytes()[:-5000])
    assert run("info", scaled, tmp_path / "cut.png") == Exit.FAILED
    text = capsys.readouterr().out
    assert "180 x 200 px; the file has 90 x 100 now" in text and "cut.png: it is damaged" in text

    assert run("restore", safe, "-o", tmp_path / "back.png", *smoke_words, "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out)["files"][0]["how"] == "original"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), pixels)
    monkeypatch.setenv("RIDDLE_PASSPHRASE", "wrong horse")
    assert run("restore", safe, "-o", tmp_path / "guess.png", *smoke_words) == Exit.DONE
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "guess.png")), pixels)


# What is here


@pytest.fixture
def machine(home, monkeypatch):
    """A machine with one network in its cache and one that can be fetched from a file here."""
    content = home / "upstream.bin"
    content.write_bytes(b"weights")
    near = Asset("near", "nets/near.bin", licence="MIT", source="example.org/near")
    far = Asset("far", "nets/far.bin", (content.as_uri(),), size=7, licence="research only", source="example.org/far")
    gone = Asset("gone", "nets/gone.bin", licence="MIT", source="example.org/gone", note="unpack it")
    monkeypatch.setattr("riddle.assets.ASSETS", {a.name: a for a in (near, far, gone)})
    monkeypatch.setattr("riddle.weights.ASSETS", {a.name: a for a in (near, far, gone)})
    place = home / "cache" / "weights" / near.path
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    return home


def listed(capsys):
    return {n["name"]: n for n in json.loads(capsys.readouterr().out)["networks"]}


def test_weights_says_where_each_network_is_or_would_come_from(machine, capsys):
    assert run("weights", "--json") == Exit.DONE
    networks = listed(capsys)
    assert networks["near"]["here"] and networks["near"]["detail"].endswith("cache/weights/nets/near.bin")
    assert not networks["far"]["here"] and networks["far"]["detail"].startswith("absent: download from")
    assert networks["gone"]["detail"] == "absent: by hand, from example.org/gone: unpack it"
    assert networks["far"]["licence"] == "research only"
    assert run("weights", "gone") == Exit.DONE
    assert "near" not in capsys.readouterr().out


def test_weights_downloads_those_named_and_shows_their_terms_first(machine, capsys):
    assert run("weights", "--download") == Exit.USAGE  # never all at once
    assert run("weights", "unheard-of") == Exit.USAGE
    capsys.readouterr()
    assert run("weights", "far", "--download") == Exit.DONE
    out = capsys.readouterr()
    assert "terms: research only" in out.err and "nets/far.bin" in out.out
    assert (machine / "cache" / "weights" / "nets" / "far.bin").read_bytes() == b"weights"
    assert run("weights", "near", "gone", "--download", "--json") == Exit.MISSING
    out = json.loads(capsys.readouterr().out)
    assert (
        out["exit"] == 3 and "unpack it" in out["errors"][0] and [n["here"] for n in out["networks"]] == [False, True]
    )


def test_doctor_on_an_empty_machine_and_what_each_notebook_lacks(machine, monkeypatch, capsys):
    folder = machine / "home" / "notebooks"
    folder.mkdir(parents=True)
    for name in ("00_quickstart", "05_table1", "14_video"):
        (folder / f"{name}.ipynb").write_text("{}")
    monkeypatch.setitem(doctor.PACKAGES, "av", ("av", "clips"))
    version = doctor.importlib.metadata.version

    def without_av(name):
        if name == "av":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", without_av)
    assert run("doctor", "--json") == Exit.MISSING
    report = json.loads(capsys.readouterr().out)
    assert not report["ready"] and report["exit"] == 3
    here = {i["name"]: i["here"] for part in ("system", "packages", "weights", "data") for i in report[part]}
    assert here["python"] and here["torch"] and here["dlib-bin"] and not here["av"] and not here["lfw"]
    assert not here["mobile"] and not here["mobile/generator"]
    lacks = {n["name"]: (n["runs"], " | ".join(n["lacks"])) for n in report["notebooks"]}
    assert lacks["00_quickstart"][0] and "only with preset smoke" in lacks["00_quickstart"][1]
    assert lacks["05_table1"][0] and "lfw: absent, the bundled synthetic faces stand in" in lacks["05_table1"][1]
    assert "encryptor_datafree, encryptor_coupling: no weights" in lacks["05_table1"][1]
    assert not lacks["14_video"][0] and "av: not installed" in lacks["14_video"][1]


def test_doctor_tells_a_broken_package_and_a_broken_configuration(home, monkeypatch, capsys):
    (home / "config.toml").write_text("data = [")

    def broken(module):
        if module == "dlib":
            raise OSError("libX11.so.6: cannot open shared object file")
        return sys.modules.get(module)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "_loads", lambda preset: doctor.Item(preset, True, "", needed=True))
    assert run("doctor") == Exit.MISSING
    text = capsys.readouterr().out
    assert "does not load (OSError: libX11" in text and "is no valid TOML" in text and text.endswith("is MISSING\n")


def test_doctor_knows_every_dependency_and_every_notebook(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = {n.replace("_", "-") for n in doctor.PACKAGES}
    for line in project["dependencies"]:
        name = line.split(">")[0].split("<")[0].split("=")[0].strip().replace("_", "-")
        assert name in names, f"{name} is a dependency that doctor does not look for"
    for path in (root / "notebooks").glob("*.ipynb"):
        assert path.stem.split("_")[0] in doctor.NEEDS, path.name
    for number, needs in doctor.NEEDS.items():
        assert set(needs.networks) <= set(ASSETS), number
        assert set(needs.packages) <= set(doctor.PACKAGES), number
        assert set(needs.data) <= set(doctor.photos.PLACES), number
        assert set(needs.training) <= {*ASSETS, *doctor.photos.PLACES}, number


def test_the_presets_of_the_help_are_those_there_are():
    for words, parser in parsers(arguments.parser()):
        for action in parser._actions:
            if action.dest == "preset":
                assert set(action.choices) == set(PRESETS) and action.default == "mobile", words
