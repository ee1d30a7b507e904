"""`protect` for more photos than one machine can do: many workers by Ray Data, a folder or an object store.

    python -m riddle.app.scale photos/ safe/ --workers 2 --passphrase-file ~/.riddle-passphrase
    python -m riddle.app.scale s3://bucket/photos s3://bucket/safe --workers 100 --device cuda

It needs Ray: pip install 'riddle-faces[scale]'. On a cluster, RAY_ADDRESS names its head. A stopped run goes on when it
is started again. The passphrase is never sent over the network. Every worker reads it from the same file, or from
RIDDLE_PASSPHRASE where Ray was started. A worker that has another passphrase stops the run. docs/scale.md has measured
times.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from fsspec.core import url_to_fs
from typer import Argument, Option

from riddle import passwords
from riddle.app import bulk, cli, passphrase
from riddle.app.cli import LISTED, PLAIN, Exit, Place, PresetName, Strict
from riddle.app.stores import Line, Protector, is_local, plan, proof, read_passphrase
from riddle.files import remove_left_over, write_text
from riddle.progress import track

BLOCK = 16  # photos that a worker gets at a time
LOST = "its worker died over it each time, perhaps for want of memory; look at the photo, or reduce it"

app = typer.Typer(name="python -m riddle.app.scale", **PLAIN)


def on_ray(rows: list[Line], workers: int, worker: type, options: dict[str, Any], gpus: int = 0) -> Iterator[Line]:
    """The outcomes of `worker(**options)`, called with every row, in any order.

    A block of rows whose worker died is done again, each row alone, as long as that brings outcomes; what then is left
    has killed its worker each time, and failed. Raises ValueError where a worker cannot begin.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    class Worker(worker):
        def __call__(self, row: Line) -> dict[str, str]:
            return {"outcome": json.dumps(super().__call__(row))}

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    left = {row["source"]: row for row in rows}
    most, before = BLOCK, 0
    while left and len(left) != before:  # a death can take along what was on its way to that worker
        before = len(left) if most == 1 else 0
        size, most = max(1, min(most, len(left) // (4 * workers))), 1
        ray.init(log_to_driver=False)
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(left)), max_tasks_in_flight_per_actor=1)
        data = ray.data.from_items([*left.values()], override_num_blocks=-(-len(left) // size)).map(
            Worker, fn_constructor_kwargs=options, compute=pool, num_cpus=1, num_gpus=gpus,
            max_restarts=-1, max_task_retries=0,
        )  # fmt: skip
        try:
            for made in data.iter_rows():
                outcome = json.loads(made["outcome"])
                left.pop(outcome["source"], None)
                yield outcome
        except ray.exceptions.RayError as e:
            raise ValueError(f"no worker can begin: {e}; correct it, and start the run again") from e
        finally:
            ray.shutdown()  # a worker that was started again would keep its core from the next round's
    for row in left.values():
        yield {**row, "status": "failed", "reason": f"{row['source']}: {LOST}"}


def recorded(outcomes: Iterable[Line], folder: Path) -> tuple[Counter, list[Line]]:
    """Keep outcomes in photos.jsonl, one by one behind those of earlier runs.

    failures.jsonl lists the photos that failed, and those with a face to look at: it was skipped, it is still
    recognised, or the second look does not find it again. Returns the counts of `bulk.summary`, and what is listed.
    """
    counts, listed, log = Counter(), {}, folder / "photos.jsonl"

    def note(outcome: Line) -> Counter:
        found, source = Counter(bulk.summary([outcome])), outcome["source"]
        if found["failed"] or any(face["reason"] for face in outcome.get("faces", [])):
            listed[source] = outcome
        elif found["done"] or listed.get(source, {}).get("status") == "failed":
            listed.pop(source, None)
        return found

    before = log.read_text(encoding="utf-8") if log.is_file() else ""
    write_text(log, before := before[: before.rfind("\n") + 1])  # without the line in which a run was killed
    for line in before.splitlines():
        note(json.loads(line))
    with open(log, "a", encoding="utf-8") as file:
        for outcome in outcomes:
            counts.update(note(outcome))
            if outcome["status"] != "there":
                print(json.dumps(outcome), file=file, flush=True)
    write_text(folder / "failures.jsonl", "".join(f"{json.dumps(outcome)}\n" for outcome in listed.values()))
    return counts, [*listed.values()]


@app.command(epilog=cli.CODES)
def protect(
    source: Annotated[str, Argument(metavar="IN", help="folder of photos, or its address")],
    out: Annotated[str, Argument(metavar="OUT", help="folder of the results, or its address")],
    workers: Annotated[int, Option(min=1, help="processes of Ray, each with a core, or a GPU")] = 2,
    passphrase_file: Annotated[
        Place, Option(metavar="FILE", help="on every worker; default: RIDDLE_PASSPHRASE")
    ] = None,
    preset: PresetName = "mobile",
    weights: Annotated[Place, Option(metavar="FOLDER", help="networks of your own, on every worker")] = None,
    device: Annotated[str, Option(metavar="NAME", help="cpu, or cuda: a GPU for each worker")] = "cpu",
    strict: Strict = False,
    force: Annotated[bool, Option("--force", help="do again, and overwrite, what is there already")] = False,
    report: Annotated[Path, Option(metavar="FOLDER", help="of photos.jsonl and failures.jsonl")] = Path("report"),
) -> Exit:
    """Replace every face in the photos of a folder or an object store, on many workers.

    photos.jsonl gets a line for each photo that is done. In the end, failures.jsonl lists the photos that failed, and
    those with a face to look at: it stays unprotected, or is not found again.
    """
    text, salt = read_passphrase(passphrase_file, cli._warn), passwords.random_salt()
    if warning := passphrase.weakness(text):
        cli._warn(warning)
    rows, left_out = plan(source, out)
    if left_out:
        cli._warn(f"left out, no photo: {len(left_out)} files: {', '.join(left_out[:LISTED])}")
    if is_local(url_to_fs(out)[0]):
        for folder in {Path(row["target"]).parent for row in rows}:
            remove_left_over(folder)
    options = {
        "addresses": (source, out), "preset": preset, "weights": weights, "device": device, "strict": strict,
        "passphrase_file": passphrase_file, "known": (salt, proof(text, preset, salt)), "force": force,
        "due": force or not all(row["there"] for row in rows),
    }  # fmt: skip
    outcomes = on_ray(rows, workers, Protector, options, int(device.startswith("cuda")))
    counts, listed = recorded(track(outcomes, "protect", len(rows), "photo"), report)
    look, where = sum(row["status"] != "failed" for row in listed), report / "failures.jsonl"
    print(f"{', '.join(f'{n} {k}' for k, n in counts.items())}")
    print(f"{len(listed)} photos listed in {where}, {look} of them saved with a face to look at")
    if counts["failed"]:
        return Exit.FAILED
    left = counts["faces_skipped"] or counts["faces_recognised"] or (strict and left_out)
    return Exit.UNPROTECTED if left else Exit.DONE


if __name__ == "__main__":
    sys.exit(cli.main(commands=app))
