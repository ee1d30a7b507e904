"""Read the command line's passphrase from a file, the environment or the terminal. It is never an argument: everybody
on the machine sees arguments, and they stay in the shell's history.
"""

from __future__ import annotations

import getpass
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

VARIABLE = "RIDDLE_PASSPHRASE"
MOST = 64 << 10  # bytes of a file; a larger one was named by mistake
GUESS, CORES, ENOUGH = 0.1, 1000, 365  # core seconds of one Argon2id; an attacker's cores; days that they should need
LONGEST = 72  # characters that zxcvbn looks at
PUBLISHED = ("correct horse battery staple", "violet gravel quiets seven anchors")  # the web's example, and ours


class PassphraseError(ValueError):
    """There is no passphrase, or no usable one."""


def read(file: Path | None, twice: bool, warn: Callable[[str], None]) -> str:
    """The passphrase from `file` if one is named, else from RIDDLE_PASSPHRASE, else from the terminal.

    twice: ask again and compare, since a slip while protecting locks the owner out; warn: called with a message if
    others can read the file. Raises PassphraseError.
    """
    if file is not None:
        text = _of_file(file, warn)
    else:
        text = os.environ[VARIABLE] if VARIABLE in os.environ else _asked(twice)
    if not text.strip():
        raise PassphraseError("the passphrase is empty")
    return text


def weakness(text: str) -> str:
    """A warning that says how soon a passphrase is guessed; "" for a strong one. The estimate is zxcvbn's (Wheeler,
    2016): the guesses of somebody who knows common words, names, dates and keyboard patterns."""
    if text.strip().lower() in PUBLISHED:
        return "this passphrase is weak: it stands in a manual that everybody can read; take five or more random words"
    from zxcvbn import zxcvbn  # its lists of words load with it, and only protecting asks

    days = float(zxcvbn(text[:LONGEST], PUBLISHED)["guesses"]) * GUESS / CORES / 86400
    if days >= ENOUGH:
        return ""
    soon = f"about {days:.0f} days" if days >= 2 else f"about {days * 24:.0f} hours"
    soon = soon if days * 24 >= 2 else "less than two hours"
    cost = f"a guess costs {GUESS:g} seconds of a core, and a record tells which one is right"
    weak = f"this passphrase is weak: {CORES:,} processor cores guess it in {soon} ({cost})"
    return f"{weak}; take five or more random words"


def _of_file(file: Path, warn: Callable[[str], None]) -> str:
    try:
        with open(file, "rb") as f:
            state, data = os.fstat(f.fileno()), f.read(MOST + 1)
    except OSError as e:
        raise PassphraseError(f"the passphrase file {file} cannot be read ({e.strerror}); check its name") from e
    if len(data) > MOST:
        raise PassphraseError(f"{file} is no passphrase file: it has over {MOST >> 10} KB")
    if os.name == "posix" and stat.S_ISREG(state.st_mode) and state.st_mode & 0o077:
        warn(f"other users can read or change the passphrase file {file}; chmod 600 {file}")
    try:
        text = data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise PassphraseError(f"the passphrase file {file} is no UTF-8 text; save it as UTF-8") from None
    if "\n" in text or "\r" in text:
        raise PassphraseError(f"the passphrase file {file} has several lines; keep the passphrase alone in it")
    return text


def _asked(twice: bool) -> str:
    try:
        with warnings.catch_warnings(action="error", category=getpass.GetPassWarning):  # else a pipe would be read
            text = getpass.getpass("Passphrase: ")
            if twice and getpass.getpass("The same again: ") != text:
                raise PassphraseError("the two passphrases differ; start again")
    except (getpass.GetPassWarning, EOFError):
        remedy = f"set {VARIABLE} or name a file: --passphrase-file FILE"
        raise PassphraseError(f"no terminal to ask for the passphrase; {remedy}") from None
    return text
