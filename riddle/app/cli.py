"""The command line: it parses, calls and prints; the work is done elsewhere in riddle.app.

    python -m riddle protect party.jpg -o party.png      # asks for a passphrase
    python -m riddle restore party.png -o restored.png
    python -m riddle --help

With --json standard output holds one JSON document and nothing else. An error is one line "riddle: ..." on standard
error. Modules that need torch or Pillow are imported inside the functions that use them: --help must not load them.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from riddle.app import passphrase

LISTED = 10  # files named in one message


class Exit(IntEnum):
    """\b
    exit codes:
      0    everything was done, or was there already
      1    a file could not be done (the others were)
      2    wrong arguments, or no usable passphrase
      3    weights or a package are missing: python -m riddle doctor
      4    everything was done, but a face was found that could not be protected or restored, or is still
           recognised; it is listed; with --strict also where a folder holds other files
      130  interrupted; the same command again goes on where it stopped
    """  # the end of every command's help

    DONE = 0
    FAILED = 1
    USAGE = 2
    MISSING = 3
    UNPROTECTED = 4
    INTERRUPTED = 130


class NotReadyError(Exception):
    """Something that the work needs is not on this machine."""


CODES = inspect.cleandoc(Exit.__doc__)
PASSPHRASE = """The passphrase is never an argument. It is read from --passphrase-file, else from the environment
variable RIDDLE_PASSPHRASE, else asked for.\n\n"""
PLAIN = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}
app = typer.Typer(name="python -m riddle", **PLAIN)
clips_app = typer.Typer(**PLAIN, help="Protect or restore clips.")
app.add_typer(clips_app, name="video")


def main(argv: Sequence[str] | None = None, commands: typer.Typer = app) -> int:
    """Run a command; returns its exit code. Only this function turns errors into a code and a line."""
    words, message = sys.argv[1:] if argv is None else [*argv], ""
    try:
        code = int(commands(words, prog_name=commands.info.name, standalone_mode=False) or Exit.DONE)
    except typer.TyperException as e:
        code, message = e.exit_code, e.format_message()
    except (ValueError, OSError) as e:  # errors before the work; the work reports its own, file by file
        code, message = Exit.USAGE, str(e)
    except NotReadyError as e:
        code, message = Exit.MISSING, f"{e}; python -m riddle doctor says what is here"
    except ImportError as e:
        code, message = Exit.MISSING, f"a package is missing or broken ({e}); python -m riddle doctor says which"
    if message:
        _warn(message)
        _tell(code, {"error": message}, (), "--json" in words)
    if code == Exit.INTERRUPTED:
        _warn("interrupted; the same command again goes on from here")
    return code


def _warn(message: str) -> None:
    print(f"riddle: {message}", file=sys.stderr)


def _tell(code: Exit, document: dict[str, Any], lines: Iterable[str], as_json: bool) -> Exit:
    """Print a command's result for scripts or for people; returns the code."""
    for text in [json.dumps(document | {"exit": int(code)}, indent=1)] if as_json else lines:
        print(text)
    return code


@app.callback(epilog=CODES)
def _top() -> None:
    """Replace the faces in photos and clips by people who do not exist; a passphrase brings them back.

    \b
    first steps:
      python -m riddle doctor                                  is everything here?
      python -m riddle protect party.jpg                       -> party.protected.jpg
      python -m riddle restore party.protected.jpg             -> party.restored.jpg
      python -m riddle COMMAND --help                          all options, with examples
    """


# Options that commands share

Place = Path | None
PresetName = Annotated[Literal["ffhq1024", "ffhq256", "mobile", "smoke"], Option(help="which networks")]
Strict = Annotated[
    bool, Option("--strict", help="refuse a file with a face that stays unprotected; leave no file of a folder out")
]
AsJson = Annotated[bool, Option("--json", help="print one JSON document for scripts, and nothing else")]


@dataclass(frozen=True, kw_only=True)
class Files:
    """The options of every command that writes files."""

    sources: Annotated[list[Path], Argument(metavar="FILE", help="files, or folders of them")]
    out: Annotated[Place, Option("--out", "-o", metavar="PATH", help="file or folder; default: beside it")] = None
    force: Annotated[bool, Option("--force", help="do again, and overwrite, what is there already")] = False
    passphrase_file: Annotated[Place, Option(metavar="FILE", help="file of the passphrase and nothing else")] = None
    as_json: AsJson = False
    preset: PresetName = "mobile"
    weights: Annotated[Place, Option(metavar="FOLDER", help="networks of your own, of that preset")] = None
    device: Annotated[str, Option(metavar="NAME", help="cpu, cuda, cuda:1, mps")] = "cpu"
    detector: Annotated[Literal["auto", "dlib", "mtcnn"], Option(help="what looks for faces")] = "auto"


@dataclass(frozen=True, kw_only=True)
class Photos(Files):
    """The options of the commands that write photos."""

    ending: Annotated[Literal["png", "jpg", "webp"] | None, Option("--format", help="default: as the photo")] = None
    quality: Annotated[int, Option(min=1, max=100, metavar="1-100", help="of JPEG and WebP")] = 95


def takes(shared: type) -> Callable[[Callable], Callable]:
    """Give a command the options of a dataclass; its first parameter gets them as one object."""

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def call(**options: Any) -> Any:
            return command(shared(**{f.name: options.pop(f.name) for f in fields(shared)}), **options)

        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        both = [*inspect.signature(shared, eval_str=True).parameters.values(), *own]
        call.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in both])
        call.__annotations__ = {p.name: p.annotation for p in both}
        return call

    return decorate


# Photos and clips

KEEP = "seal the faces' own pixels inside: the right passphrase brings them back exactly"
BARE = "leave pixels only: they rarely bring people back; public salt, one key for all faces under a passphrase"


@app.command(epilog=PASSPHRASE + CODES)
@takes(Photos)
def protect(
    files: Photos,
    strict: Strict = False,
    keep_original: Annotated[bool, Option("--keep-original", help=KEEP)] = False,
    sidecar: Annotated[bool, Option("--sidecar", help="write what restoring needs to RESULT.riddle")] = False,
    no_record: Annotated[bool, Option("--no-record", help=BARE)] = False,
) -> Exit:
    """Replace every face in photos.

    \b
    examples:
      python -m riddle protect party.jpg -o party.png
      python -m riddle protect holiday/ -o safe/ --strict      a folder; photos with a doubtful face are refused
      python -m riddle protect *.jpg -o safe/ --format png --json > report.json
      python -m riddle protect id.png --keep-original          the exact pixels come back with the passphrase
    """
    from riddle.app import bulk, photos

    if no_record and (keep_original or sidecar):
        raise ValueError("--keep-original and --sidecar need the record; leave out --no-record")
    options = {"keep_original": keep_original, "strict": strict, "sidecar": sidecar, "record": not no_record}
    return _run("protect", files, bulk.PHOTOS, partial(photos.protect_file, quality=files.quality, **options), strict)


@app.command(epilog=PASSPHRASE + CODES)
@takes(Photos)
def restore(
    files: Photos,
    sidecar: Annotated[Place, Option(metavar="FILE", help="record of one photo; default: the one beside it")] = None,
) -> Exit:
    """Bring the faces of protected photos back. A wrong passphrase gives strangers, not an error.

    \b
    examples:
      python -m riddle restore party.png -o back.png
      python -m riddle restore safe/ -o back/ --passphrase-file ~/.riddle-passphrase
    """
    from riddle.app import bulk, photos

    if sidecar is not None and (len(files.sources) > 1 or files.sources[0].is_dir()):
        raise ValueError("--sidecar names the record of one photo; restore the others without it")
    work = partial(photos.restore_file, sidecar=sidecar, quality=files.quality)
    return _run("restore", files, bulk.PHOTOS, work)


@clips_app.command("protect", epilog=PASSPHRASE + CODES)
@takes(Files)
def protect_clips(files: Files, strict: Strict = False) -> Exit:
    """Replace every face in clips: python -m riddle video protect clip.mp4 -o safe.mp4"""
    from riddle.app import bulk, video

    work = partial(video.protect_video, resume=not files.force, strict=strict)
    return _run("protect", files, bulk.CLIPS, work, strict)


@clips_app.command("restore", epilog=PASSPHRASE + CODES)
@takes(Files)
def restore_clips(files: Files) -> Exit:
    """Bring the faces of protected clips back: python -m riddle video restore safe.mp4 -o back.mp4"""
    from riddle.app import bulk, video

    return _run("restore", files, bulk.CLIPS, partial(video.restore_video, resume=not files.force))


def _run(verb: str, files: Files, kind: Any, work: Callable, strict: bool = False) -> Exit:
    """Process all files and print each outcome. If none is there and due, ask for no passphrase and load no model.

    strict: a file of a folder that is left out counts against success.
    """
    from riddle.app import bulk
    from riddle.progress import track

    pairs, left_out = bulk.plan(files.sources, files.out, kind, verb, getattr(files, "ending", None))
    left_out = [str(path) for path in left_out]
    if left_out:
        more = f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
        _warn(f"left out, no {kind.name}: {', '.join(left_out[:LISTED])}{more}")
    due = any(pair.source.exists() and (files.force or not pair.target.exists()) for pair in pairs)
    text, model = _opened(verb, files) if due else ("", None)
    done, code = [], Exit.DONE
    outcomes = bulk.run(pairs, lambda pair: work(model, *pair, text), verb, files.force)
    hidden = len(pairs) < 2 or not sys.stderr.isatty()
    try:
        for outcome in (bar := track(outcomes, verb, len(pairs), "file", disable=hidden)):
            done.append(outcome)
            if not files.as_json:
                bar.write("\n".join(bulk.told(outcome)), file=sys.stdout)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    counts = bulk.summary(done)
    unprotected = counts["faces_skipped"] + counts["faces_recognised"]
    if code == Exit.DONE and (counts["failed"] or unprotected or (strict and left_out)):
        code = Exit.FAILED if counts["failed"] else Exit.UNPROTECTED
    total = "{files} files: {done} done, {there} there already, {failed} failed; {faces} faces {verb}ed, "
    total += "{faces_skipped} left as they were"
    if counts["faces_recognised"]:
        total += ", {faces_recognised} still recognised"
    total = total.format(**counts, verb=verb.removesuffix("e"))
    document = {"command": verb, "files": done, "left_out": left_out, "summary": counts}
    return _tell(code, document, [total] if len(pairs) > 1 else [], files.as_json)


def _opened(verb: str, files: Files) -> tuple[str, Any]:
    """The passphrase and the model."""
    import riddle
    from riddle import passwords, progress

    text = passphrase.read(files.passphrase_file, verb == "protect", _warn)
    passwords.derive_key(text, files.preset)  # an unusable passphrase fails here, before the slow loading
    if verb == "protect" and (warning := passphrase.weakness(text)):
        _warn(warning)
    try:
        with progress.waiting("riddle: the networks are loading, which may take half a minute ..."):
            return text, riddle.load(files.preset, files.device, weights=files.weights, detector=files.detector)
    except (ImportError, OSError, ValueError, RuntimeError) as e:
        raise NotReadyError(e) from e


# What is here


@app.command(epilog=CODES)
def info(
    sources: Annotated[list[Path], Argument(metavar="FILE", help="photos, clips, or .riddle files")],
    as_json: AsJson = False,
) -> Exit:
    """Say what protected files carry; needs no passphrase."""
    from riddle.app import bulk

    found, code = [], Exit.DONE
    for path in sources:
        try:
            found.append(bulk.inspect(path))
        except ValueError as e:
            found, code = [*found, {"file": str(path), "error": str(e)}], Exit.FAILED
    return _tell(code, {"command": "info", "files": found}, chain(*map(bulk.carries, found)), as_json)


@app.command(epilog=CODES)
def weights(
    names: Annotated[list[str] | None, Argument(metavar="NAME", help="networks; default: all")] = None,
    download: Annotated[bool, Option("--download", help="fetch those named that are not here")] = False,
    trust: Annotated[bool, Option("--trust", help="import: files like the published ones, such as your own")] = False,
    as_json: AsJson = False,
) -> Exit:
    """List the networks of others: where each is, its address, size, sha256 where known, and terms.

    \b
    examples:
      python -m riddle weights irse50 inception --download     fetch these
      python -m riddle weights import ~/Downloads              check and keep the published files in a folder
    """
    from riddle.app.networks import imported, listed
    from riddle.weights import ASSETS, fetch

    if names and names[0] == "import":
        found, lines, code = imported(names[1:], trust)
        return _tell(Exit(code), {"command": "weights import", "files": found}, lines, as_json)
    if unknown := sorted({*(names or ())} - {*ASSETS}):
        raise ValueError(f"no network is named {', '.join(unknown)}; known: {', '.join(sorted(ASSETS))}")
    if download and not names:
        raise ValueError("name the networks to download: not everybody wants the terms of all of them")
    errors = fetch(names, _warn) if download else []
    found, lines = listed(names or sorted(ASSETS))
    code = Exit.MISSING if errors else Exit.DONE
    return _tell(code, {"command": "weights", "networks": found, "errors": errors}, lines, as_json)


@app.command(epilog=CODES)
def doctor(preset: PresetName = "mobile", as_json: AsJson = False) -> Exit:
    """Say what is installed, and which weights and data were found."""
    from riddle.app.doctor import examine

    found = examine(preset)
    ready = all(item["here"] for items in found.values() for item in items if item["needed"])
    code = Exit.DONE if ready else Exit.MISSING
    lines, wide = [], max(len(item["name"]) for items in found.values() for item in items)
    for title, items in found.items():
        lines.append(f"\n{title}")
        marks = ["ok" if item["here"] else "MISSING" if item["needed"] else "-" for item in items]
        lines += [f"  {m:8} {item['name']:{wide}} {item['detail']}" for m, item in zip(marks, items, strict=True)]
    last = "ready: photos can be protected and restored" if ready else "not ready: see what is MISSING"
    return _tell(code, {"command": "doctor", "preset": preset, **found, "ready": ready}, [*lines, "", last], as_json)
