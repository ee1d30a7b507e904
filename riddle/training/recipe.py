"""Recipes: TOML files with the options that train a preset's networks, so that one word on the command line does.

python -m riddle.training.encryptor --recipe mobile
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"


def parse(p: argparse.ArgumentParser, section: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line, after those of the [section] of its `--recipe`: the last one given counts.

    Ends the program, with the file and the cause, where the recipe is not there or holds what the parser does not take.
    """
    p.add_argument("--recipe", help=f"a TOML file, or a name in {FOLDER.name}/: its [{section}] has further options")
    only = argparse.ArgumentParser(add_help=False)
    only.add_argument("--recipe")
    given = sys.argv[1:] if argv is None else list(argv)
    recipe = only.parse_known_args(given)[0].recipe
    if not recipe:
        return p.parse_args(given)
    path = Path(recipe) if recipe.endswith(".toml") else FOLDER / f"{recipe}.toml"
    try:
        words = _words(tomllib.loads(path.read_text(encoding="utf-8"))[section])
    except FileNotFoundError:
        known = ", ".join(sorted(f.stem for f in FOLDER.glob("*.toml")))
        p.error(f"--recipe: {path} does not exist; give a TOML file, or one of {known}")
    except tomllib.TOMLDecodeError as e:
        p.error(f"--recipe: {path} is no valid TOML ({e}); correct it")
    except KeyError:
        p.error(f"--recipe: {path} has no table [{section}]; add it")
    taken, unknown = p.parse_known_args([*words, *given])
    if unknown:
        p.error(f"unknown: {' '.join(unknown)}, on the command line or in [{section}] of {path}; --help lists options")
    return taken


def _words(table: dict) -> list[str]:
    """{name: value} as a command line says it; a list is an option given several times, true one without a value."""
    words: list[str] = []
    for name, value in table.items():
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{name}"] if each is True else [f"--{name}", str(each)]
    return words
