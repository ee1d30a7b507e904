"""What a cluster would take for many photos, by simulation from the times that `riddle.app.scale` measured.

    python -m riddle.app.forecast report/photos.jsonl --photos 1000000 --workers 100 --lost 0.01

Blocks of photos go to whichever worker is free, as Ray Data deals them. A photo's seconds are drawn from all that were
measured, so slow and failed photos come as often as they did; a worker's start from those measured.
"""

from __future__ import annotations

import heapq
import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from typer import Option

from riddle.app import cli
from riddle.app.scale import BLOCK

DRAWS = 20  # simulations

app = typer.Typer(name="python -m riddle.app.forecast", **cli.PLAIN)


def hours(
    seconds: np.ndarray,
    starts: np.ndarray,
    photos: int,
    workers: int,
    lost: float = 0.0,
    block: int = BLOCK,
    seed: int = 0,
) -> float:
    """Hours from the start to the last photo.

    seconds: measured, of photos; starts: measured, of workers; lost: how often an hour a worker is lost, which starts
    anew and does its block again.
    """
    rng = np.random.default_rng(seed)
    full, rest = divmod(photos, block)
    work = np.append(rng.choice(seconds, (full, block)).sum(1), rng.choice(seconds, rest).sum())
    free = list(rng.choice(starts, workers))
    heapq.heapify(free)
    for each in work[: full + bool(rest)]:
        begins = heapq.heappop(free)
        while (dies := rng.exponential(3600 / lost) if lost else np.inf) < each:
            begins += dies + rng.choice(starts)
        heapq.heappush(free, begins + each)
    return max(free) / 3600


def line(seconds: np.ndarray) -> tuple[float, float]:
    """Seconds a photo by the straight line through the sums after 1, 2, ... photos, and its R^2: 1 for equal costs."""
    count, sums = np.arange(1, len(seconds) + 1), np.cumsum(seconds)
    return float(np.polyfit(count, sums, 1)[0]), float(np.corrcoef(count, sums)[0, 1] ** 2)


@app.command()
def forecast(
    report: Annotated[Path, typer.Argument(help="photos.jsonl of riddle.app.scale")],
    photos: Annotated[int, Option(min=1)] = 1_000_000,
    workers: Annotated[int, Option(min=1)] = 100,
    lost: Annotated[float, Option(min=0, help="workers lost per hour of one")] = 0.0,
    cpu: Annotated[bool, Option("--cpu", help="seconds of a core, where others used the machine meanwhile")] = False,
) -> None:
    """Print hours."""
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "start" in line]
    seconds = np.array([line["cpu" if cpu else "seconds"] for line in lines])
    starts = np.array(list({line["worker"]: line["start_cpu" if cpu else "start"] for line in lines}.values()))
    drawn = [hours(seconds, starts, photos, workers, lost, seed=seed) for seed in range(DRAWS)]
    failed, each = np.mean([line["status"] == "failed" for line in lines]), seconds.mean()
    print(f"measured: {len(lines)} photos, {failed:.1%} failed, {each:.2f} s each, at most {seconds.max():.2f} s")
    slope, r2 = line(seconds)
    halves = [half.mean() for half in np.array_split(seconds, 2)]
    print(f"{slope:.2f} s a photo by a straight line, R2 {r2:.4f}; halves: {halves[0]:.2f} and {halves[1]:.2f} s")
    print(f"{len(starts)} workers, which began within {starts.mean():.1f} s")
    print(f"{photos:,} photos on {workers} workers: {np.mean(drawn):.1f} h ({min(drawn):.1f} to {max(drawn):.1f} h)")
    print(f"of these, {photos * each / workers / 3600:.1f} h are work on photos")


if __name__ == "__main__":
    sys.exit(cli.main(commands=app))
