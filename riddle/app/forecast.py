"""What a cluster would take for many photos, by simulation from the times that `riddle.app.scale` measured.

    python -m riddle.app.forecast report/photos.jsonl --photos 1000000 --workers 100 --lost 0.01

The simulation hands blocks of photos to free workers, as Ray Data does. It draws a photo's seconds from all that were
measured, so slow and failed photos come as often as they did. It draws a worker's start from those measured. It leaves
out the store and Ray's own work.
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


def quarters(seconds: np.ndarray) -> list[float]:
    """Mean seconds of a photo in each of four equal parts, in order, (4,) or fewer: alike where the cost of a photo
    does not grow with their number. seconds: (n,), in the order of the photos."""
    return [float(part.mean()) for part in np.array_split(seconds, 4) if len(part)]


def resampled(
    seconds: np.ndarray, starts: np.ndarray, photos: int, workers: int, lost: float = 0.0, draws: int = DRAWS
) -> np.ndarray:
    """`hours`, (draws,), each time with other measured photos: as many as there are, drawn with repetition (bootstrap).

    Their spread thus shows how far few measured photos determine the mean."""
    rng = np.random.default_rng(0)
    samples = rng.choice(seconds, (draws, len(seconds)))
    return np.array([hours(sample, starts, photos, workers, lost, seed=i) for i, sample in enumerate(samples)])


@app.command()
def forecast(
    report: Annotated[Path, typer.Argument(help="photos.jsonl of riddle.app.scale")],
    photos: Annotated[int, Option(min=1)] = 1_000_000,
    workers: Annotated[int, Option(min=1)] = 100,
    lost: Annotated[float, Option(min=0, help="workers lost per hour of one")] = 0.0,
    cpu: Annotated[bool, Option("--cpu", help="seconds of a core, where others used the machine meanwhile")] = False,
) -> None:
    """Print hours, and the measured times that they come from."""
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "start" in line]
    seconds = np.array([line["cpu" if cpu else "seconds"] for line in lines])
    starts = np.array(list({line["worker"]: line["start_cpu" if cpu else "start"] for line in lines}.values()))
    drawn = resampled(seconds, starts, photos, workers, lost)
    failed, each = np.mean([line["status"] == "failed" for line in lines]), seconds.mean()
    print(f"measured: {len(lines)} photos, {failed:.1%} failed, {each:.2f} s each, at most {seconds.max():.2f} s")
    print(f"mean of each quarter, in order: {', '.join(f'{mean:.2f}' for mean in quarters(seconds))} s")
    print(f"{len(starts)} workers, which began within {starts.mean():.1f} s")
    print(f"{photos:,} photos on {workers} workers: {drawn.mean():.1f} h")
    print(f"{drawn.min():.1f} to {drawn.max():.1f} h in {DRAWS} draws, each with the measured photos resampled")
    print(f"of these, {photos * each / workers / 3600:.1f} h are work on photos")


if __name__ == "__main__":
    sys.exit(cli.main(commands=app))
