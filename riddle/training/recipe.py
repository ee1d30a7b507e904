"""Options of a training: the fields of its configuration, set by a recipe and by the command line.

    python -m riddle.training.encryptor --recipe mobile

A recipe is a TOML file with a table for each training, so that one word stands for many options; [encryptor.coupling]
has what is different for `--variant coupling`. The comment behind a configuration's field is the help of its option.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from riddle.presets import ALL_VARIANTS

FOLDER = Path(__file__).parent / "recipes"
Config = TypeVar("Config")


def command(main: Callable[[], Any]) -> None:
    """Call a training's `main`. A missing or unfit file or value ends the program with the message, not a traceback."""
    try:
        main()
    except (OSError, ValueError) as e:
        raise SystemExit(f"{Path(sys.argv[0]).stem}: error: {e}") from e


def parse(config: type[Config], section: str, about: str, argv: Sequence[str] | None = None) -> Config:
    """A configuration by its defaults, the tables of `--recipe` and the command line; the last one counts.

    The tables are [section] and then [section.<variant>], where there is one for the variant asked for. Ends the
    program, with the file and the cause, where the recipe is not there or a value does not fit.
    """
    p = _parser(config, section, about)
    given = sys.argv[1:] if argv is None else list(argv)
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--recipe")
    early.add_argument("--variant")
    chosen = early.parse_known_args(given)[0]
    place, words = "", []
    if recipe := chosen.recipe:
        path = Path(recipe) if recipe.endswith(".toml") else FOLDER / f"{recipe}.toml"
        place = f" or in [{section}] of {path}"
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))[section]
        except FileNotFoundError:
            known = ", ".join(sorted(f.stem for f in FOLDER.glob("*.toml")))
            p.error(f"--recipe: {path} does not exist; give a TOML file, or one of {known}")
        except tomllib.TOMLDecodeError as e:
            p.error(f"--recipe: {path} is no valid TOML ({e}); correct it")
        except KeyError:
            p.error(f"--recipe: {path} has no table [{section}]; add it")
        variants = {name: table.pop(name, {}) for name in ALL_VARIANTS}
        words = _words(table) + _words(variants.get(chosen.variant or table.get("variant"), {}))
    taken, unknown = p.parse_known_args([*words, *given])
    if unknown:
        p.error(f"unknown: {' '.join(unknown)}, on the command line{place}; --help lists the options")
    try:
        values = {k: dict(v) if isinstance(v, list) else v for k, v in vars(taken).items() if k != "recipe"}
        return config(**values)
    except ValueError as e:
        p.error(str(e))


def _parser(config: type, section: str, about: str) -> argparse.ArgumentParser:
    """An option for each field."""
    command = re.search(r"python -m [\w.]+", about)
    p = argparse.ArgumentParser(
        command[0] if command else section, description=about, argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--recipe", help=f"a TOML file, or a name in {FOLDER.name}/, whose [{section}] has further options")
    source = "\n".join(inspect.getsource(part) for part in reversed(config.__mro__) if is_dataclass(part))
    comments, kinds = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.M)), get_type_hints(config)
    for field in fields(config):
        needed = field.default is MISSING and field.default_factory is MISSING
        text = comments.get(field.name, "").replace("%", "%%")
        text += "" if field.default in ("", None, MISSING) else f" [{field.default}]"
        p.add_argument(f"--{field.name.replace('_', '-')}", required=needed, help=text, **_reading(kinds[field.name]))
    return p


def _reading(kind: Any) -> dict[str, Any]:
    """Arguments by which argparse reads a field of this type: text, a number, a switch, or NAME=NUMBER pairs."""
    if bool in (kind, *get_args(kind)):
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is dict:
        return {"type": _pair, "action": "extend", "nargs": "+", "metavar": "NAME=NUMBER"}
    return {"type": kind}


def _pair(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"NAME=NUMBER is wanted, got {text!r}") from None


def _words(table: dict[str, Any]) -> list[str]:
    """A table of a recipe as words of a command line."""
    words: list[str] = []
    for name, value in table.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            pairs = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else [str(value)]
            words += [f"--{name}", *pairs]
    return words
