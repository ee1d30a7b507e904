"""The options of the command line and their help; `riddle.app.cli` runs what they say."""

from __future__ import annotations

import argparse
from enum import IntEnum
from pathlib import Path
from typing import Any

from riddle import __version__
from riddle.presets import PRESETS


class Exit(IntEnum):
    """What a command's exit code says."""

    DONE = 0
    FAILED = 1  # a file could not be done; the others were
    USAGE = 2  # wrong arguments, no passphrase
    MISSING = 3  # weights or a package are not on this machine
    UNPROTECTED = 4  # all files were done, but a face in them was left as it was
    INTERRUPTED = 130


CODES = """exit codes:
  0    everything was done, or was there already
  1    a file could not be done (the others were)
  2    wrong arguments, or no usable passphrase
  3    weights or a package are missing: python -m riddle doctor
  4    everything was done, but a face was found that could not be protected or restored; it is listed
  130  interrupted; the same command again goes on where it stopped
"""
PASSPHRASE = """the passphrase is never an argument. It is read from --passphrase-file, else from the environment
variable RIDDLE_PASSPHRASE, else asked for.
"""
TOP = """first steps:
  python -m riddle doctor                                  is everything here?
  python -m riddle protect party.jpg                       -> party.protected.jpg
  python -m riddle restore party.protected.jpg             -> party.restored.jpg
  python -m riddle COMMAND --help                          all options, with examples
"""
PROTECT = """examples:
  python -m riddle protect party.jpg -o party.png
  python -m riddle protect holiday/ -o safe/ --strict      a folder; photos with a doubtful face are refused
  python -m riddle protect *.jpg -o safe/ --format png --json > report.json
  python -m riddle protect id.png --keep-original          the exact pixels come back with the passphrase
"""
RESTORE = """a wrong passphrase gives strangers, not an error.

examples:
  python -m riddle restore party.png -o back.png
  python -m riddle restore safe/ -o back/ --passphrase-file ~/.riddle-passphrase
"""
VIDEO = """examples:
  python -m riddle video protect clip.mp4 -o safe.mp4
  python -m riddle video restore safe.mp4 -o back.mp4
"""
WEIGHTS = """examples:
  python -m riddle weights                                 what there is, where it is, its terms
  python -m riddle weights irse50 inception --download     fetch these
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""

    def command(group: Any, name: str, does: str, more: str = "", kind: str = "") -> argparse.ArgumentParser:
        style = argparse.RawDescriptionHelpFormatter
        p = group.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.", epilog=more + "\n" + CODES,
                             formatter_class=style, allow_abbrev=False)  # fmt: skip
        p.set_defaults(command=kind or name, verb=name)
        p.add_argument("--json", action="store_true", help="print one JSON document for scripts, and nothing else")
        return p

    def model(p: argparse.ArgumentParser) -> None:
        group = p.add_argument_group("model")
        group.add_argument(
            "--preset", choices=sorted(PRESETS), default="mobile", help="which networks (default: mobile)"
        )
        group.add_argument("--weights", type=Path, metavar="FOLDER", help="networks of your own, of that preset")
        group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
        group.add_argument(
            "--detector", choices=("auto", "dlib", "mtcnn"), default="auto", help="what looks for faces (default: auto)"
        )

    def files(p: argparse.ArgumentParser, what: str, beside: str) -> None:
        p.add_argument("sources", nargs="+", type=Path, metavar="FILE", help=f"{what}, or folders of them")
        p.add_argument(
            "-o", "--out", type=Path, metavar="PATH", help=f"result: a file, or a folder; default: beside it, {beside}"
        )
        p.add_argument("--force", action="store_true", help="do again, and overwrite, what is there already")
        p.add_argument(
            "--passphrase-file", type=Path, metavar="FILE", help="text file that holds the passphrase and nothing else"
        )
        model(p)

    def picture(p: argparse.ArgumentParser) -> None:
        p.add_argument("--format", choices=("png", "jpg", "webp"), help="of the result (default: as the photo)")
        p.add_argument("--quality", type=_quality, default=95, metavar="1-100", help="of JPEG and WebP (default: 95)")

    top = argparse.ArgumentParser(
        prog="python -m riddle", epilog=TOP + "\n" + CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --passphrase would be taken for --passphrase-file
        description="Replace the faces in photos and clips by people who do not exist; a passphrase brings them back.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"riddle {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    p = command(commands, "protect", "replace every face in photos", PROTECT + "\n" + PASSPHRASE)
    files(p, "photos", "party.protected.jpg")
    picture(p)
    p.add_argument("--strict", action="store_true", help="refuse a photo with a face that cannot be protected")
    p.add_argument(
        "--salt", choices=("public", "random"), default="public",
        help="public (default): the passphrase alone opens even a bare picture; random: harder to guess, "
        "but a file that loses its metadata is lost",
    )  # fmt: skip
    p.add_argument(
        "--keep-original", action="store_true",
        help="seal the faces' own pixels inside (random salt): exact, but whoever has the file can test a guess",
    )  # fmt: skip
    p.add_argument(
        "--sidecar", action="store_true", help="write what restoring needs to RESULT.riddle, for ways that strip it"
    )

    p = command(commands, "restore", "bring the faces of protected photos back", RESTORE + "\n" + PASSPHRASE)
    files(p, "protected photos", "party.restored.jpg")
    picture(p)
    p.add_argument(
        "--sidecar", type=Path, metavar="FILE", help="the .riddle file of a single photo (default: the one beside it)"
    )

    video = commands.add_parser("video", help="protect or restore clips", description="Protect or restore clips.")
    clips = video.add_subparsers(title="commands", metavar="COMMAND", required=True)
    p = command(clips, "protect", "replace every face in clips", VIDEO + "\n" + PASSPHRASE, "video")
    files(p, "clips", "clip.protected.mp4")
    p = command(clips, "restore", "bring the faces of protected clips back", VIDEO + "\n" + PASSPHRASE, "video")
    files(p, "protected clips", "clip.restored.mp4")

    p = command(commands, "info", "say what protected files carry; needs no passphrase")
    p.add_argument("sources", nargs="+", type=Path, metavar="FILE", help="pictures, or .riddle files")

    p = command(commands, "weights", "list the networks, where they are, their terms", WEIGHTS)
    p.add_argument("names", nargs="*", metavar="NAME", help="networks (default: all)")
    p.add_argument("--download", action="store_true", help="fetch those named that are not here")

    p = command(commands, "doctor", "say what is installed and found, and what each notebook would lack")
    p.add_argument("--preset", choices=sorted(PRESETS), default="mobile", help="whose networks (default: mobile)")
    return top


def _quality(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 100")
    return int(text)
