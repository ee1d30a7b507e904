"""Process many files in turn: pair each source with its result, skip what is done, report what fails.

    pairs, left_out = plan([Path("holiday")], Path("safe"), PHOTOS, "protect")
    for outcome in run(pairs, lambda pair: protect_file(model, *pair, "correct horse"), "protect"):
        print(outcome["target"], outcome["status"], outcome["reason"])

A stopped run is resumed by running it again: it makes no result again and overwrites nothing unless asked to. It
removes the temporary files that a killed run left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from PIL import Image

from riddle.files import remove_left_over
from riddle.images import ENDINGS, FORMATS, WRITTEN, kind_of
from riddle.record import SIDECAR, read_picture, read_sidecar
from riddle.seal import VERSION


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    known: frozenset[str]  # endings of the files that are taken from a folder
    ending: Callable[..., str]  # file -> ending of its result; "" for a file of another kind


def _photo(path: PurePath, opened: Callable[[PurePath], Any] = lambda path: path) -> str:
    """Its own ending if we write that format; else one for its content, which may be a photo under any ending.

    opened: gives what `kind_of` reads of a file that lies in an object store.
    """
    own = path.suffix.lower()
    if own in ENDINGS:
        return path.suffix
    kind = kind_of(opened(path))
    return WRITTEN.get(kind, ".png") if kind or own in PHOTOS.known else ""


def _clip(path: Path) -> str:
    own = path.suffix.lower()
    if own == ".avi":
        return ".mp4"
    return path.suffix if own in CLIPS.known else ""


PHOTOS = Kind("photo", frozenset(k for k, kind in Image.registered_extensions().items() if kind in FORMATS), _photo)
CLIPS = Kind("clip", frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}), _clip)


class Pair(NamedTuple):
    """A source and the place of its result."""

    source: Path
    target: Path


def plan(
    sources: Iterable[Path], out: Path | None, kind: Kind, verb: str, ending: str | None = None
) -> tuple[list[Pair], list[Path]]:
    """The pairs of a command, and the files of its folders that are left out because they are of another kind. Folders
    are searched with their subfolders, without hidden files and without `out`.

    out: the result of a single file; or a folder, in which results keep names and subfolders; None: beside each file,
    party.protected.jpg or party.restored.jpg by the verb, "protect" or "restore". ending: of the results, default: each
    source's own where it is written. Where two results would have one name, the later one is named by its source's
    whole name: scan.tif -> scan.tif.png. Raises ValueError for an empty folder, a folder without `out`, and a result
    that would overwrite its source.
    """
    sources = list(sources)
    named = out is not None and out.suffix and len(sources) == 1 and not sources[0].is_dir() and not out.is_dir()
    pairs, left_out = [], []
    for source in sources:
        folder = source.parent
        if source.is_dir():
            if out is None:
                raise ValueError(f"{source} is a folder; name a folder for the results: -o FOLDER")
            folder = source
            endings = {path: kind.ending(path) for path in _files(source, out)}
            found = {path: own for path, own in endings.items() if own}
            left_out += [path for path, own in endings.items() if not own and path.suffix.lower() != SIDECAR]
            if not found:
                raise ValueError(f"{source} holds no {kind.name} ({', '.join(sorted(kind.known))})")
        else:
            found = {source: kind.ending(source) or (".png" if kind is PHOTOS else source.suffix)}
        for path, own in found.items():
            target = path.with_suffix(f".{ending}" if ending else own)
            if named:
                target = out
            elif out is not None:
                target = out / target.relative_to(folder)
            elif verb == "protect":
                target = target.with_stem(f"{target.stem}.protected")
            else:
                target = target.with_stem(f"{target.stem.removesuffix('.protected')}.restored")
            pairs.append(Pair(path, target))
    return apart(pairs), list(dict.fromkeys(left_out))


def _files(folder: Path, out: Path) -> list[Path]:
    """The files of a folder, hidden ones and what lies under `out` left out."""
    inside = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    inside = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    same = folder.resolve() == out.resolve()
    return [p for p in inside if same or not p.resolve().is_relative_to(out.resolve())]


def apart(pairs: list[Pair]) -> list[Pair]:
    """Drop repeated pairs and give each a result of its own. Raises ValueError for a result that would overwrite its
    source; `run` reports one that would overwrite another's source."""
    taken, apart = set(), []
    for source, target in dict.fromkeys(pairs):
        if target.resolve() == source.resolve():
            raise ValueError(f"{target} would overwrite a source; choose another place: -o")
        name, more = source.name, 1
        while target.resolve() in taken:
            target, name, more = target.with_name(name + target.suffix), f"{source.name}.{more + 1}", more + 1
        taken.add(target.resolve())
        apart.append(Pair(source, target))
    return apart


def run(pairs: Iterable[Pair], work: Callable[[Pair], Any], verb: str, force: bool = False) -> Iterator[dict[str, Any]]:
    """Make one result after another; one that fails does not stop the rest.

    work: makes the result of a pair and returns a report, a dataclass; force: make those anew that exist. Yields for
    each pair the report's values with source, target, status ("done", "there" already, "failed") and reason (of "there"
    and "failed"), all plain values for JSON. If `verb` is "protect", an existing target without a record is a failure:
    it may be somebody's own photo. With `force`, this also holds for a target that is a source.
    """
    pairs = list(pairs)
    for folder in {pair.target.parent for pair in pairs}:
        remove_left_over(folder)
    sources = {pair.source.resolve() for pair in pairs}
    for pair in pairs:
        yield attempt(pair, work, verb, force, sources)


def attempt(
    pair: Pair, work: Callable[[Pair], Any], verb: str, force: bool = False, sources: Collection[Path] = ()
) -> dict[str, Any]:
    """Make one result, as `run` does, and give its outcome, also where it fails; sources: resolved, of all pairs."""
    (source, target), report, reason = pair, {}, ""
    try:
        if force and target.resolve() in sources:
            raise ValueError(f"{target} is a source, and --force would overwrite it; choose another place: -o")
        if target.exists() and not force:
            if verb == "protect" and not _is_protected(target):
                remedy = "name another result, or --force overwrites it"
                raise ValueError(f"{target} is there and carries no record of a protected file; {remedy}")
            older = source.exists() and target.stat().st_mtime < source.stat().st_mtime
            status = "there"
            reason = f"there already{', older than its source' if older else ''}; --force makes it anew"
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            status, report = "done", asdict(work(pair))
    except Exception as e:  # after any error, go on with the next file
        expected = isinstance(e, ValueError | OSError)
        status, reason = "failed", str(e) if expected else f"{source}: {type(e).__name__}: {e}"
    return report | {"source": str(source), "target": str(target), "status": status, "reason": reason}


def summary(outcomes: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Counts of files done, already there and failed, and of faces protected or restored, skipped, and replaced but
    still recognised."""
    outcomes = list(outcomes)
    files = Counter(outcome["status"] for outcome in outcomes)
    faces = Counter(face["status"] for outcome in outcomes for face in outcome.get("faces", []))
    counts = {status: files[status] for status in ("done", "there", "failed")}
    counts["faces"] = faces["protected"] + faces["restored"]
    counts |= {f"faces_{status}": faces[status] for status in ("skipped", "recognised")}
    return {"files": len(outcomes)} | counts


def inspect(path: str | Path) -> dict[str, Any]:
    """Read the public part of a protected photo or clip, or of its sidecar.

    Keys: file, protected; where it is: where ("metadata" or "sidecar"), version, preset, weights, size, record_bytes;
    of a photo picture_size, [width, height] of the picture itself, null for a sidecar: other than size where it was
    scaled or cropped since. Raises PhotoError for what is neither or is damaged, RecordError for a damaged record.
    """
    path = Path(path)
    sidecar, own = path.suffix == SIDECAR, {}
    if Path(path.stem if sidecar else path).suffix.lower() in CLIPS.known:
        from riddle.app import cliprecord  # only clips need PyAV

        record, where = cliprecord.read(path)
    elif sidecar:
        record, where, own = read_sidecar(path), "sidecar", {"picture_size": None}
    else:
        picture, record, where = read_picture(path)
        own = {"picture_size": list(picture.rgb.size)}
    if record is None:
        return {"file": str(path), "protected": False}
    return {
        "file": str(path), "protected": True, "where": where, "version": VERSION, "preset": record.preset,
        "weights": record.weights, "size": list(record.size), "record_bytes": len(record.data), **own,
    }  # fmt: skip


def _is_protected(path: Path) -> bool:
    try:
        return inspect(path)["protected"]
    except ValueError:
        return False


# For people

MARKS = {"skipped": "LEFT AS IT WAS", "recognised": "STILL RECOGNISED", "protected": "NOT FOUND AGAIN"}


def told(outcome: dict[str, Any]) -> list[str]:
    """Describe an outcome of `run` in lines of text."""
    if outcome["status"] == "failed":
        return [f"FAILED  {outcome['reason']}"]
    where = f"{outcome['source']} -> {outcome['target']}"
    if outcome["status"] == "there":
        return [f"{where}: {outcome['reason']}"]
    count, how = summary([outcome])["faces"], outcome["how"]
    means = {
        "protected": "protected", "codes": "restored, by its record", "original": "restored, the original pixels",
        "inversion": "decrypted from its pixels: no record opened",
    }  # fmt: skip
    lines = [f"{where}: {count} face{'s' if count != 1 else ''} {means[how]}"]
    for face in (face for face in outcome["faces"] if face["reason"]):
        box = ",".join(map(str, face["box"]))
        lines.append(f"    {MARKS[face['status']]}: the face at {box}: {face['reason']}")
    return lines + [f"    note: {note}" for note in outcome["notes"]]


def carries(found: dict[str, Any]) -> list[str]:
    """Describe the findings of `inspect`, or its error, in lines of text."""
    if "error" in found:
        return [f"FAILED  {found['error']}"]
    if not found["protected"]:
        return [f"{found['file']}: carries no record: never protected, or without one, or it was stripped on the way"]
    now = found.get("picture_size") or found["size"]
    changed = "" if now == found["size"] else f"; the file was resized or cropped since, to {now[0]} x {now[1]}"
    return [
        f"{found['file']}: protected",
        f"    record     version {found['version']}, {found['record_bytes']:,} bytes, in its {found['where']}",
        f"    model      preset {found['preset']}, generator and encryptor {found['weights'][:12]}",
        f"    picture    {found['size'][0]} x {found['size'][1]} px{changed}",
        "    faces      sealed: how many, where and whose they are, only the passphrase says",
    ]
