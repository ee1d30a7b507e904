"""How to spend a short loan of a GPU on a preset: the commands in order, in calls of at most ten minutes.

    python -m riddle.training.grow plan --preset face128 --from data/zoo/mini --shards results/runs/shards128

What needs no GPU (shards, parser, publishing) stands before and after. Each call is one shell command, so that nothing
waits between its parts; a call that is cut off is simply given again, since everything resumes.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass

CALL, CALLS = 10.0, 4  # minutes of a call at most, and how many
LOAN = 30.0  # minutes of all calls


@dataclass(frozen=True)
class Step:
    """One command and the minutes it may take; 0: no minutes of the loan."""

    what: str
    minutes: float
    command: tuple[str, ...]  # arguments of python -m

    def __str__(self) -> str:
        return f"python -m {shlex.join(self.command)}"


@dataclass(frozen=True)
class Call:
    """What one call of the machine runs, or what is done before and after without it."""

    name: str
    steps: tuple[Step, ...]

    @property
    def minutes(self) -> float:
        return sum(step.minutes for step in self.steps)


def plan(
    preset: str = "face128",
    source: str = "data/zoo/mini",
    shards: str = "results/runs/shards128",
    out: str = "results/runs/face128",
    batch: int = 64,
) -> list[Call]:
    """The calls in order; the first and the last need no GPU.

    The growth takes most of it: a generator that has seen few images is what the pictures lack most; then the
    encryptor, whose reflection is right from the first step; data-free last, it may be left out.
    """
    data, codes = f"{out}/train.npy", f"{out}/codes.npy"
    weights, parser = f"{out}/generator.safetensors", f"{out}-parser"
    grown = ("--preset", preset, "--from", source, "--data", data, "--out", out, "--batch", f"{batch}", "--slim")
    encryptor = ("riddle.training.encryptor", "--preset", preset, "--generator", weights)
    encryptor += ("--parser", f"{parser}/parser.safetensors", "--batch", f"{batch}")
    total, grow, joint = ("--total-minutes", "14"), 7.5, 9.0  # less what loading, teaching and saving take

    def minutes(value: float) -> tuple[str, str]:
        return "--minutes", f"{value:g}"

    return [
        Call("before, without a GPU", (
            Step("pack the faces", 0, ("riddle.training.shards", "--preset", preset, "--out", shards)),
            Step("parser", 0, ("riddle.training.parsing", "--preset", preset, "--out", parser, *minutes(20))),
        )),
        Call("call 1", (
            Step("unpack", 0.5, ("riddle.training.shards", "unpack", shards, "--out", data, "--preset", preset)),
            Step("grow, then train on", grow, ("riddle.training.grow", *grown, *minutes(grow), *total)),
        )),
        Call("call 2", (
            Step("joint tuning", joint, ("riddle.training.grow", *grown, *minutes(joint), *total)),
        )),
        Call("call 3", (
            Step("codes", 1.5, (
                "riddle.training.prepare", "codes", "--preset", preset, "--faces", data,
                "--encoder", f"{out}/encoder.safetensors", "--out", codes,
            )),
            Step("encryptor", 5.5, (*encryptor, "--codes", codes, "--out", f"{out}-encryptor", *minutes(5))),
        )),
        Call("call 4", (
            Step("data-free", 3.5, (*encryptor, "--datafree", "--out", f"{out}-datafree", *minutes(3))),
        )),
        Call("after, without a GPU", (
            Step("publish", 0, (
                "riddle.training.publish", "--preset", preset, "--inversion", out, "--parser", parser,
                "--encryptor", f"{out}-encryptor", "--encryptor", f"encryptor_datafree={out}-datafree",
            )),
        )),
    ]  # fmt: skip


def show(calls: list[Call]) -> str:
    """The plan as text: comments, and lines for a shell."""
    lines = []
    for call in calls:
        lines.append(f"# {call.name}" + (f": {call.minutes:g} minutes" if call.minutes else ""))
        for number, step in enumerate(call.steps):
            cost = f", {step.minutes:g} minutes" if step.minutes else ""
            joined = " &&" if call.minutes and number + 1 < len(call.steps) else ""
            lines += [f"#   {step.what}{cost}", f"{step}{joined}"]
        lines.append("")
    lines.append(f"# {sum(call.minutes for call in calls):g} of {LOAN:g} minutes; the machine's start takes the rest.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Command line of `riddle.training.grow plan`."""
    p = argparse.ArgumentParser(
        prog="python -m riddle.training.grow plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--preset", default="face128")
    p.add_argument("--from", dest="source", default="data/zoo/mini")
    p.add_argument("--shards", default="results/runs/shards128")
    p.add_argument("--out", default="results/runs/face128")
    p.add_argument("--batch", type=int, default=64)
    a = p.parse_args(argv)
    print(show(plan(a.preset, a.source, a.shards, a.out, a.batch)))
