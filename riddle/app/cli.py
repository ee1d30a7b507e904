"""The command line: parses, calls, prints. What is done is done elsewhere in riddle.app.

    python -m riddle protect party.jpg -o party.png      # asks for a passphrase
    python -m riddle restore party.png -o restored.png
    python -m riddle --help

Exit codes are those of `Exit`; with --json standard output holds one JSON document and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from riddle.app.arguments import Exit, parser

LISTED = 10  # files named in one message


class Trouble(Exception):
    """What ends a command before its work: the exit code and the message."""

    def __init__(self, code: Exit, message: str):
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. Raises SystemExit for --help and wrong arguments, as argparse does."""
    args = parser().parse_args(argv)
    commands = {"protect": _photos, "restore": _photos, "video": _video, "info": _info, "weights": _weights}
    try:
        return int((commands | {"doctor": _doctor})[args.command](args))
    except Trouble as e:
        _warn(str(e))
        if args.json:
            _print_json({"error": str(e), "exit": int(e.code)})
        return int(e.code)
    except KeyboardInterrupt:
        _warn("interrupted")
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing is left to print to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Exit.FAILED)


def _warn(message: str) -> None:
    print(f"riddle: {message}", file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


# Photos and clips


def _photos(args: argparse.Namespace) -> Exit:
    from riddle.app import bulk

    ending = f".{args.format}" if args.format else None
    jobs = _plan(args, bulk.PHOTOS, ending)
    if args.verb == "restore" and args.sidecar is not None and len(jobs) > 1:
        raise Trouble(Exit.USAGE, "--sidecar names the record of one photo; restore the others without it")

    def ready() -> Callable:
        from riddle.app import photos

        passphrase, model = _opened(args)
        if args.verb == "restore":
            return lambda job: photos.restore_file(
                model, job.source, job.target, passphrase, sidecar=args.sidecar, quality=args.quality
            )
        return lambda job: photos.protect_file(
            model, job.source, job.target, passphrase, salt=args.salt, keep_original=args.keep_original,
            strict=args.strict, sidecar=args.sidecar, quality=args.quality,
        )  # fmt: skip

    return _run(args, jobs, ready, bulk.must_be_protected if args.verb == "protect" else None)


def _video(args: argparse.Namespace) -> Exit:
    from riddle.app import bulk

    jobs = _plan(args, bulk.CLIPS, None)

    def ready() -> Callable:
        from tqdm import tqdm

        try:
            from riddle.app import video
        except ImportError as e:
            raise Trouble(Exit.MISSING, f"clips need the package {e.name}: pip install {e.name}") from e
        passphrase, model = _opened(args)
        work = video.protect_video if args.verb == "protect" else video.restore_video

        def one(job: bulk.Job) -> Any:
            with tqdm(desc=job.source.name, unit="frame", disable=None, leave=False) as bar:

                def show(done: int, total: int | None = None) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                return work(model, job.source, job.target, passphrase, resume=not args.force, on_progress=show)

        return one

    return _run(args, jobs, ready, None)


def _plan(args: argparse.Namespace, kind: Any, ending: str | None) -> list:
    from riddle.app import bulk

    mark, undo = (".protected", "") if args.verb == "protect" else (".restored", ".protected")
    try:
        return bulk.plan(args.sources, args.out, kind, mark, ending, undo)
    except (ValueError, OSError) as e:
        raise Trouble(Exit.USAGE, str(e)) from e


def _opened(args: argparse.Namespace) -> tuple[str, Any]:
    """The passphrase and the model."""
    from riddle.app import passphrase

    try:
        text = passphrase.read(args.passphrase_file, args.verb == "protect", _warn)
    except passphrase.PassphraseError as e:
        raise Trouble(Exit.USAGE, str(e)) from e
    import riddle
    from riddle import passwords

    try:
        passwords.derive_key(text, args.preset)
    except ValueError as e:
        raise Trouble(Exit.USAGE, str(e)) from e
    try:
        return text, riddle.load(args.preset, args.device, weights=args.weights, detector=args.detector)
    except (ImportError, OSError, ValueError, RuntimeError) as e:
        raise Trouble(Exit.MISSING, f"{e}; python -m riddle doctor says what is here") from e


def _passed_over(args: argparse.Namespace) -> list[Path]:
    """Files of the folders that are not looked at, told on standard error."""
    from riddle.app import bulk

    kind = bulk.CLIPS if args.command == "video" else bulk.PHOTOS
    paths = bulk.left_out(args.sources, args.out, kind)
    if paths:
        more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
        _warn(f"left out, no {kind.name} by its ending: {', '.join(map(str, paths[:LISTED]))}{more}")
    return paths


def _run(args: argparse.Namespace, jobs: list, ready: Callable[[], Callable], check: Callable | None) -> Exit:
    """Do the jobs and tell each outcome; no passphrase is asked for, and no model loaded, where nothing is due."""
    from tqdm import tqdm

    from riddle.app import bulk

    passed_over = [str(path) for path in _passed_over(args)]
    due = args.force or not all(job.target.exists() for job in jobs)
    work = ready() if due else None
    outcomes: list[bulk.Outcome] = []
    code = Exit.DONE
    bar = tqdm(total=len(jobs), desc=args.verb, unit="file", disable=True if len(jobs) < 2 else None)
    try:
        with bar:
            for outcome in bulk.run(jobs, work, check, args.force):
                outcomes.append(outcome)
                bar.update()
                if not args.json:
                    tqdm.write("\n".join(_told(outcome)), file=sys.stdout)
    except KeyboardInterrupt:
        _warn("interrupted; the same command again goes on from here")
        code = Exit.INTERRUPTED
    counts = bulk.summary(outcomes)
    if code == Exit.DONE:
        code = Exit.FAILED if counts["failed"] else Exit.UNPROTECTED if counts["faces_skipped"] else Exit.DONE
    if args.json:
        files = [o.as_dict() for o in outcomes]
        told = {"command": args.verb, "files": files, "left_out": passed_over, "summary": counts}
        _print_json(told | {"exit": int(code)})
    elif len(jobs) > 1:
        print(
            "{files} files: {done} done, {there} there already, {failed} failed;".format(**counts),
            f"{counts['faces']} faces {args.verb.removesuffix('e')}ed, {counts['faces_skipped']} left as they were",
        )
    return code


def _told(outcome: Any) -> list[str]:
    """Lines about one file."""
    if outcome.status == "failed":
        return [f"FAILED  {outcome.reason}"]
    where = f"{outcome.job.source} -> {outcome.job.target}"
    if outcome.status == "there":
        return [f"{where}: {outcome.reason}"]
    done = outcome.faces("protected") or outcome.faces("restored")
    counted = f"{len(done)} face{'s' if len(done) != 1 else ''}"
    how = {"codes": "by its record", "inversion": "from its pixels", "original": "the original pixels"}
    lines = [f"{where}: {counted} {done[0]['status'] if done else ''}"]
    lines[0] += f", {how[outcome.report['how']]}" if outcome.report.get("how") in how else ""
    for face in outcome.faces("skipped"):
        lines.append(f"    LEFT AS IT WAS: the face at {','.join(map(str, face['box']))}: {face['reason']}")
    return lines + [f"    note: {note}" for note in outcome.report.get("notes", [])]


# What is here


def _inspect(path: Path) -> dict[str, Any]:
    """What a photo, a clip or a sidecar of either carries."""
    from riddle.app import bulk, container

    named = Path(path.stem) if path.suffix == ".riddle" else path
    if named.suffix.lower() not in bulk.CLIPS.read:
        return container.inspect(path)
    from riddle.app import video

    return video.inspect(path)


def _info(args: argparse.Namespace) -> Exit:
    found, failed = [], False
    for path in args.sources:
        try:
            found.append(_inspect(path))
        except ValueError as e:
            failed = True
            found.append({"file": str(path), "error": str(e)})
    code = Exit.FAILED if failed else Exit.DONE
    if args.json:
        _print_json({"command": "info", "files": found, "exit": int(code)})
        return code
    for carried in found:
        print("\n".join(_carries(carried)))
    return code


def _carries(found: dict[str, Any]) -> list[str]:
    """Lines about what one file carries."""
    if "error" in found:
        return [f"FAILED  {found['error']}"]
    if not found["protected"]:
        return [f"{found['file']}: carries no record; never protected, or its metadata were stripped on the way"]
    public = "public: the passphrase alone opens it, even without this record"
    random = "random, kept here: without this record it cannot be opened"
    sealed = "sealed inside: with the passphrase the exact pixels come back"
    boxes = "; ".join(",".join(map(str, box)) for box in found["faces"])
    now = found.get("picture_size") or found["size"]
    changed = "" if now == found["size"] else f"; the file has {now[0]} x {now[1]} now, so it cannot be restored"
    return [
        f"{found['file']}: protected",
        f"    record     version {found['version']}, {found['record_bytes']:,} bytes, in its {found['where']}",
        f"    model      preset {found['preset']}, generator and encryptor {found['weights'][:12]}",
        f"    picture    {found['size'][0]} x {found['size'][1]} px{changed}",
        f"    faces      {len(found['faces'])}, at {boxes}",
        f"    salt       {public if found['salt'] == 'public' else random}",
        f"    originals  {sealed if found['originals'] else 'not inside: what comes back is the inverted face'}",
    ]


def _weights(args: argparse.Namespace) -> Exit:
    from riddle import zoo
    from riddle.app import doctor
    from riddle.assets import ASSETS

    unknown = [name for name in args.names if name not in ASSETS]
    if unknown:
        raise Trouble(Exit.USAGE, f"no network is named {', '.join(unknown)}; known: {', '.join(sorted(ASSETS))}")
    if args.download and not args.names:
        raise Trouble(Exit.USAGE, "name the networks to download, so that none is fetched whose terms you do not want")
    failures = []
    for name in args.names if args.download else ():
        asset = ASSETS[name]
        _warn(f"{name}: terms: {asset.licence}; {doctor.comes_from(asset)}")
        try:
            zoo.find(name)
        except (OSError, ValueError) as e:
            failures.append(str(e))
            _warn(str(e))
    items = [item for item in doctor.networks() if not args.names or item.name in args.names]
    code = Exit.MISSING if failures else Exit.DONE
    if args.json:
        listed = [{"name": i.name, "here": i.here, "detail": i.detail, "licence": i.use} for i in items]
        _print_json({"command": "weights", "networks": listed, "errors": failures, "exit": int(code)})
        return code
    for item in items:
        print(f"{item.name:27} {item.detail}\n{'':27} terms: {item.use}")
    return code


def _doctor(args: argparse.Namespace) -> Exit:
    from riddle.app import doctor

    report = doctor.examine(args.preset)
    code = Exit.DONE if report.ready else Exit.MISSING
    if args.json:
        _print_json(report.as_dict() | {"command": "doctor", "exit": int(code)})
        return code
    parts = {"system": report.system, "packages": report.packages, "weights": report.weights}
    parts |= {"networks of others": report.networks, "data sets": report.data}
    for title, items in parts.items():
        print(f"\n{title}")
        for item in items:
            mark = "ok" if item.here else "MISSING" if item.needed else "-"
            print(f"  {mark:8} {item.name:27} {item.detail}")
    print("\nnotebooks")
    for notebook in report.notebooks:
        print(f"  {'ok' if notebook.runs else 'MISSING':8} {notebook.name:27} {'; '.join(notebook.lacks)}")
    print("\nready: photos can be protected and restored" if report.ready else "\nnot ready: see what is MISSING")
    return code
