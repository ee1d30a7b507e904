"""The options that commands share, and how a command takes them as one object."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

Place = Path | None
PresetName = Annotated[Literal["ffhq1024", "ffhq256", "mobile", "smoke"], Option(help="which networks")]
Strict = Annotated[bool, Option("--strict", help="refuse a file with a face that cannot be protected")]
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
