"""Many files, one after another: which result belongs to which source, what is there already, what went wrong.

    jobs = plan([Path("holiday")], Path("safe"), PHOTOS, ".protected")
    for outcome in run(jobs, lambda job: protect_file(model, job.source, job.target, "correct horse")):
        print(outcome.job.target, outcome.status, outcome.reason)

A stopped run is resumed by running it again: nothing that is there is made anew or overwritten unless asked to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riddle.pictures import ENDINGS, READ_ONLY


@dataclass(frozen=True)
class Kind:
    """A kind of file: what is looked for in a folder, and what is written."""

    name: str
    read: frozenset[str]
    write: frozenset[str]
    otherwise: str  # ending of the result of a source whose own is not written


PHOTOS = Kind("photo", READ_ONLY | set(ENDINGS), frozenset(ENDINGS), ".png")
CLIPS = Kind(
    "clip",
    frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}),
    frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"}),
    ".mp4",
)


@dataclass(frozen=True)
class Job:
    """One source and its result."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    status: str  # "done", "there" (it was there already) or "failed"
    reason: str = ""  # of "there" and "failed"
    report: dict[str, Any] = field(default_factory=dict)  # of "done": FileReport.as_dict() or VideoReport's

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        paths = {"source": str(self.job.source), "target": str(self.job.target)}
        return self.report | paths | {"status": self.status, "reason": self.reason}

    def faces(self, status: str) -> list[dict[str, Any]]:
        """The faces of the report with a status: "protected", "restored" or "skipped"."""
        return [f for f in self.report.get("faces", []) if f["status"] == status]


def plan(
    sources: Iterable[Path], out: Path | None, kind: Kind, mark: str, ending: str | None = None, undo: str = ""
) -> list[Job]:
    """The jobs of a command, folders searched throughout (hidden files and what lies under `out` left out).

    out: the result of a single file; or a folder, in which results keep names and subfolders; None: beside each file,
    its name without `undo` and with `mark`. ending: of the results, default: each source's own where it is written.
    Raises ValueError for an empty folder, a folder without `out`, and results that would overwrite a source or
    each other.
    """
    sources = list(sources)
    single = len(sources) == 1 and not sources[0].is_dir()
    if out is not None and single and out.suffix and not out.is_dir():
        jobs = [Job(sources[0], out)]
    else:
        jobs = [job for source in sources for job in _jobs(source, out, kind, mark, ending, undo)]
    return _apart(jobs)


def _jobs(source: Path, out: Path | None, kind: Kind, mark: str, ending: str | None, undo: str) -> Iterator[Job]:
    def named(path: Path) -> Path:
        return path.with_suffix(ending or (path.suffix if path.suffix.lower() in kind.write else kind.otherwise))

    if not source.is_dir():
        if out is None:
            beside = named(source)
            yield Job(source, beside.with_name(beside.stem.removesuffix(undo) + mark + beside.suffix))
        else:
            yield Job(source, out / named(source).name)
        return
    if out is None:
        raise ValueError(f"{source} is a folder; name a folder for the results: -o FOLDER")
    inside = [p for p in _files(source, out) if p.suffix.lower() in kind.read]
    if not inside:
        raise ValueError(f"{source} holds no {kind.name} ({', '.join(sorted(kind.read))})")
    for path in inside:
        yield Job(path, out / named(path.relative_to(source)))


def _files(folder: Path, out: Path) -> list[Path]:
    """The files of a folder, hidden ones and what lies under `out` left out."""
    inside = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    inside = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if folder.resolve() == out.resolve():
        return inside
    return [p for p in inside if not p.resolve().is_relative_to(out.resolve())]


def left_out(sources: Iterable[Path], out: Path | None, kind: Kind) -> list[Path]:
    """Files in the folders among `sources` that `plan` passes over for their ending, sidecars aside: one of them may
    be a photo that nobody protected."""
    folders = [source for source in sources if out is not None and source.is_dir()]
    files = dict.fromkeys(p for folder in folders for p in _files(folder, out))
    return [p for p in files if p.suffix.lower() not in kind.read | {".riddle"}]


def _apart(jobs: list[Job]) -> list[Job]:
    """The jobs, each once. Raises ValueError where a result would overwrite a source or another result."""
    jobs = list(dict.fromkeys(jobs))
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise ValueError(f"{job.target} would overwrite a source; choose another place: -o")
        if target in taken:
            raise ValueError(f"{taken[target]} and {job.source} would both become {job.target}; do them separately")
        taken[target] = job.source
    return jobs


def run(
    jobs: Iterable[Job],
    work: Callable[[Job], Any],
    check: Callable[[Path], None] | None = None,
    force: bool = False,
) -> Iterator[Outcome]:
    """Do jobs one after another; one that fails does not stop the rest.

    work: does a job, gives a report with as_dict(); check: raises for a target that is there and is no result of this
    command; force: do those again that are there.
    """
    for job in jobs:
        try:
            if job.target.exists() and not force:
                if check is not None:
                    check(job.target)
                yield Outcome(job, "there", _there(job))
                continue
            job.target.parent.mkdir(parents=True, exist_ok=True)
            report = work(job).as_dict()
        except Exception as e:  # whatever it is, the next file may do better
            expected = isinstance(e, ValueError | OSError)
            yield Outcome(job, "failed", str(e) if expected else f"{job.source}: {type(e).__name__}: {e}")
        else:
            yield Outcome(job, "done", report=report)


def must_be_protected(target: Path) -> None:
    """A check for `run`. Raises ValueError for a file that carries no record: it may be somebody's photo."""
    from riddle.app import container

    try:
        protected = container.inspect(target)["protected"]
    except ValueError:
        protected = False
    if not protected:
        raise ValueError(f"{target} is there and is no protected photo; name another result, or --force overwrites it")


def _there(job: Job) -> str:
    older = job.source.exists() and job.target.stat().st_mtime < job.source.stat().st_mtime
    return f"there already{', older than its source' if older else ''}; --force makes it anew"


def summary(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many files were done, were there, failed; how many faces were protected or restored, and skipped."""
    outcomes = list(outcomes)
    files = Counter(o.status for o in outcomes)
    faces = Counter(f["status"] for o in outcomes for f in o.report.get("faces", []))
    return {
        "files": len(outcomes),
        "done": files["done"],
        "there": files["there"],
        "failed": files["failed"],
        "faces": faces["protected"] + faces["restored"],
        "faces_skipped": faces["skipped"],
    }
