"""Tables for readers: tidy CSV with provenance, the paper's values beside ours, markdown, small executed notebooks.

The copy of an executed notebook that the repository keeps:

    python -m riddle.reporting slim results/runs/mobile/notebooks/05_table1.ipynb \
        results/mobile/notebooks/05_table1.ipynb
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from riddle import config, paper
from riddle.protocols import OURS, Record

UNDETECTED_RULE = "a pair without a detected face counts as not accepted (diversity: as not distinct)"
REAL_FACES = "real-faces"  # tag of notebook cells whose pictures must not be published


@dataclass(frozen=True)
class Provenance:
    """What every number of a table needs beside it."""

    dataset: str
    version: str
    split_hash: str
    seed: int
    preset: str
    weights: str  # hash of the preset's weights files
    detector: str
    threshold_rule: str
    undetected_rule: str = UNDETECTED_RULE
    interval: str = "95 %, over folds; over people where there is one fold, and for diversity"


def tidy(records: Iterable[Record], provenance: Provenance, seen: Iterable[str] = ()) -> pd.DataFrame:
    """One line a row and judge, the paper's columns and the provenance beside it.

    seen: judges that took part in training; `judge_seen` marks them.
    """
    seen, lines = set(seen), []
    for record in records:
        line = asdict(record)
        system = line.pop("system")
        line["judge_seen"] = line["judge"] in seen
        published = paper.TABLE1.get((record.task, system), {})
        line |= {f"paper {judge}": published.get(judge) for judge in paper.TABLE1_JUDGES}
        lines.append(line | asdict(provenance))
    return pd.DataFrame(lines)


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table, four decimals, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    table.to_csv(temporary, index=False, float_format="%.4f")
    os.replace(temporary, path)
    return path


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `write_csv` wrote; 'n/a: ...' stays text, an empty text stays empty."""
    texts = ("task", "method", "against", "judge", "value", "version", "split_hash", "weights")
    return pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values={
        c: [""] for c in ("rate", "std", "low", "high", "rate_found", "accuracy", "threshold",
                          *(f"paper {j}" for j in paper.TABLE1_JUDGES))
    })  # fmt: skip


def judges(table: pd.DataFrame, unseen: bool = False) -> list[str]:
    """Judges with a number, those unseen in training first; unseen=True leaves the others out."""
    rows = table[(table.judge != "") & table.rate.notna()]
    order = dict.fromkeys(rows[~rows.judge_seen].judge)
    return list(order) if unseen else list(order | dict.fromkeys(rows[rows.judge_seen].judge))


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 as the paper lays it out: a line a method, a column a judge, the paper's columns beside it.

    Cells are mean ± standard deviation over folds; `undetected` is the largest count among the judges, of n pairs.
    """
    shown = judges(table)
    titles = {j: j + (" (seen in training)" if table[table.judge == j].judge_seen.any() else "") for j in shown}
    lines = []
    for (task, method, against), rows in table.groupby(["task", "method", "against"], sort=False):
        by_judge = rows.set_index("judge")
        line = {"task": task, "method": method, "against": against}
        reason = next(iter(rows[~rows.value.str.startswith("n/a: weights missing") & rows.rate.isna()].value), None)
        for j in shown:
            line[titles[j]] = by_judge.value[j] if j in by_judge.index else (reason or "n/a")
        line["n"], line["undetected"] = int(rows.n.max()), int(rows.undetected.max())
        for j in paper.TABLE1_JUDGES:
            value = rows[f"paper {j}"].iloc[0]
            line[f"paper: {j}"] = f"{value:.3f}" if pd.notna(value) else ""
        lines.append(line)
    return pd.DataFrame(lines)


def notes(table: pd.DataFrame) -> str:
    """What a reader needs beside the numbers, as a markdown list: data, rules, judges that are not available."""
    first, shown = table.iloc[0], judges(table)
    absent = {
        j: rows.value.iloc[0] for j, rows in table[table.judge != ""].groupby("judge", sort=False) if j not in shown
    }
    lines = [
        f"Data: {first.dataset} ({first.version}), pairs {first.split_hash}; preset {first.preset}, weights "
        f"{first.weights}, seed {first.seed}; faces detected by {first.detector}.",
        f"Threshold: {first.threshold_rule}. Undetected: {first.undetected_rule}. Interval: {first.interval}.",
        "The paper's columns have the paper's judges, networks and resolution.",
        *(f"{j}: {reason}." for j, reason in absent.items()),
    ]
    return "".join(f"- {line}\n" for line in lines)


def markdown(table: pd.DataFrame) -> str:
    """`wide` and `notes` in markdown."""
    return grid(wide(table)) + "\n" + notes(table)


def grid(frame: pd.DataFrame) -> str:
    """A data frame as a markdown table."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |\n" for row in rows)


# What Table 1 is to reach on LFW with `mobile`, by every judge unseen in training: (task, method) -> limit. Recovery is
# meant against the inverted face.
GOALS = {
    ("unprotected", "photo (aligned crop)"): (">=", 0.90),
    ("unprotected", "inverted"): (">=", 0.80),
} | {
    (task, name + state): goal
    for name in ("RiDDLE", OURS)
    for task, state, goal in (
        ("de-identification", "", ("<=", 0.032)),  # the paper's, by its worst judge
        ("de-identification", ", wrongly decrypted", ("<=", 0.032)),
        ("recovery", "", (">=", 0.996)),  # the paper's
        ("diversity", "", (">=", 0.90)),
    )
}


def goals(table: pd.DataFrame) -> pd.DataFrame:
    """Each goal with the worst unseen judge's rate, and whether it is met."""
    rows = table[~table.judge_seen & table.rate.notna()]
    rows = rows[(rows.task != "recovery") | (rows.against == "its inverted face")]
    lines = []
    for (task, method), (sign, limit) in GOALS.items():
        line = {"task": task, "method": method, "goal": f"{sign} {limit:g}", "worst": None, "judge": "", "met": False}
        here = rows[(rows.task == task) & (rows.method == method)]
        if len(here):
            least = sign == ">="
            worst = here.loc[here.rate.idxmin() if least else here.rate.idxmax()]
            met = bool(worst.rate >= limit if least else worst.rate <= limit)
            line |= {"worst": float(worst.rate), "judge": worst.judge, "met": met}
        lines.append(line)
    return pd.DataFrame(lines)


# Executed notebooks


def slim(notebook: dict, limit: int = 250_000, root: Path | None = None) -> dict:
    """A copy of an executed notebook (its JSON) that is small and fit to publish.

    Pictures become JPEG, smaller until the whole is under `limit` bytes; those of cells tagged 'real-faces' are
    left out; so are progress bars, widgets and the local path of the checkout. Raises ValueError when text alone
    is over the limit.
    """
    for width in (900, 700, 500, 350, 250):
        copy = json.loads(json.dumps(notebook))
        for cell in copy["cells"]:
            _slim_cell(cell, width)
        copy["metadata"] = {k: v for k, v in copy["metadata"].items() if k in ("kernelspec", "language_info")}
        text = json.dumps(copy, indent=1)
        for local in (str(root or config.home()), str(Path.home())):
            text = text.replace(json.dumps(local)[1:-1], ".")
        if len(text) < limit:
            return json.loads(text)
    raise ValueError(f"the notebook holds over {limit} bytes of text; let it print less")


def _slim_cell(cell: dict, width: int) -> None:
    tags = cell.get("metadata", {}).get("tags", [])
    cell["metadata"] = {"tags": tags} if tags else {}
    outputs = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if output.get("name") == "stderr" or any("widget-view" in kind for kind in data):
            continue
        for kind in [k for k in data if k.startswith("image/")]:
            picture = data.pop(kind)
            if REAL_FACES in tags:
                data["text/plain"] = ["(a picture of real people, left out; run the notebook to see it)"]
            elif kind == "image/svg+xml":
                data[kind] = picture
            else:
                data["image/jpeg"] = _smaller(picture, width)
        outputs.append(output)
    if "outputs" in cell:
        cell["outputs"] = outputs


def _smaller(picture: str | list[str], width: int) -> str:
    return jpeg(Image.open(io.BytesIO(base64.b64decode("".join(picture)))), width)


def jpeg(image: Image.Image, width: int, quality: int = 75) -> str:
    """A picture as base64 of a JPEG at most `width` px wide, on white where it is transparent."""
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("slim", help="small copy of an executed notebook")
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command.add_argument("--kilobytes", type=int, default=250)
    options = parser.parse_args(argv)
    copy = slim(json.loads(options.source.read_text(encoding="utf-8")), options.kilobytes * 1000)
    options.target.parent.mkdir(parents=True, exist_ok=True)
    options.target.write_text(json.dumps(copy, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
