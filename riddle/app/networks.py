"""The networks of others, as the commands `weights` and `doctor` list and import them.

`riddle.weights` is imported where it is used, because it needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from riddle.assets import ASSETS

Item = dict[str, Any]  # name; here; detail: its version or place, else why it is not here; needed; use or terms


def item(
    name: str, find: Callable[..., Any], *arguments: Any, needed: bool = False, use: str = "", absent: str = ""
) -> Item:
    """An item from the result of `find`, or from its error message, which says what to do; absent: what follows."""
    try:
        detail, here = str(find(*arguments)), True
    except Exception as e:  # a broken installation fails in its own ways
        detail, here = str(e).removeprefix(f"{name}: ") or type(e).__name__, False
        detail = f"{absent}: {detail}" if absent else detail
    return {"name": name, "here": here, "detail": detail, "needed": needed, "use": use}


def networks() -> list[Item]:
    """The networks of others, by name; `use` is their terms."""
    return [item(name, place, name, use=ASSETS[name].licence) for name in sorted(ASSETS)]


def place(name: str) -> Any:
    """The place of a network of others. If it is not here, raises LookupError that says how to get it."""
    from riddle import weights

    asset = ASSETS[name]
    if path := weights.locate(name):
        return f"{path} (imported with --trust: not the published file)" if weights.is_trusted(name) else path
    if asset.urls or asset.made_from:
        raise LookupError(f"absent: download, from {asset.source}: python -m riddle weights {name} --download")
    raise LookupError(f"absent: by hand, from {asset.source}: {asset.note or 'see its page'}")


def listed(names: Sequence[str]) -> tuple[list[Item], list[str]]:
    """These networks of others as `weights` lists them: items, sizes in bytes; lines."""
    found, lines = [], []
    for name in sorted(set(names)):
        asset, state = ASSETS[name], item(name, place, name)
        known = {key: getattr(asset, key) for key in ("address", "files", "size", "sha256", "licence")}
        found.append({key: state[key] for key in ("name", "here", "detail")} | known)
        size = f"{asset.size / 1e6:,.1f} MB" if asset.size else "size not known"
        said = (f"from {asset.address}", f"as {' or '.join(asset.files)}, {size}, sha256 {asset.sha256 or 'not known'}",
                f"terms: {asset.licence}")  # fmt: skip
        lines += [f"{name:27} {state['detail']}", *(f"{'':27} {line}" for line in said)]
    return found, lines


def imported(folders: Sequence[str], trust: bool = False) -> tuple[list[Item], list[str], int]:
    """What `weights import` did: items, lines, and 1 where a file was refused, else 0; trust: see `import_folder`.
    Raises ValueError without one folder of published files."""
    from riddle.weights import import_folder

    if len(folders) != 1:
        raise ValueError("give one folder: python -m riddle weights import FOLDER")
    found = [{"name": name, "file": str(path), "error": e} for path, name, e in import_folder(Path(folders[0]), trust)]
    lines = [f"{each['name']:27} {each['error'] or 'checked: ' + each['file']}" for each in found]
    return found, lines, int(any(each["error"] for each in found))
