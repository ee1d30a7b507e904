"""Write all tables and figures of a preset on one page, as markdown and HTML; make notebooks fit to publish.

    python -m riddle.evaluation.report --preset mobile    # results/mobile/report.md, report.html and verdicts.csv
    python -m riddle.evaluation.report --slim results/runs/mobile/notebooks/05_table1.ipynb results/mobile/notebooks

The report reads the CSV files under results/<preset>/tables and recomputes nothing. A table that is not there becomes
'n/a: run notebook NN'. The HTML file holds its pictures and needs nothing else.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import nbformat
import pandas as pd
import typer
from nbconvert.filters import markdown2html
from PIL import Image
from typer import Option

from riddle import config
from riddle.baselines import BASELINES
from riddle.evaluation import tables
from riddle.evaluation.claims import FAILS, HOLDS, UNDECIDED, verdicts
from riddle.files import write_text

# Stem of a table's CSV -> (title, number of the notebook that makes it, section of the paper).
SOURCES = {
    "table1": ("Table 1: identification rates", "05", "4.2, 4.3"),
    "table2": ("Table 2: quality of restored faces", "06", "4.3"),
    "table3": ("Table 3: fidelity and utility", "07", "4.5"),
    "table4": ("Table 4: identity similarity and KFFA", "08", "4.4"),
    "figure7": ("Figure 7: diversity of identities", "09", "4.4"),
    "figure8": ("Figure 8: interpolation of passwords", "10", "4.5"),
    "table5": ("Table 5: ablations", "11", "4.6"),
    "security": ("Table S: what an attacker gets", "16", "3.2"),
    "robustness": ("Table R: what treated files still restore", "16", "4.3"),
}
LONGEST = 40  # rows of a table on the page; the CSV has them all
LIMIT = 160_000  # bytes of a published notebook
WIDTH = 640  # px of a figure inside the HTML file
STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """{stem: table} of the CSV files in `folder` that the report knows. Raises ValueError for one that is no table."""
    return {name: tables.read(folder / f"{name}.csv") for name in SOURCES if (folder / f"{name}.csv").is_file()}


def page(preset: str, made: dict[str, pd.DataFrame], figures: Sequence[Path] = ()) -> str:
    """The page as markdown: verdicts, then every table, then the figures, by their place beside it."""
    answers = verdicts(made)
    counts = {v: int((answers.verdict == v).sum()) for v in (HOLDS, FAILS, UNDECIDED)}
    counts["without an answer"] = int(answers.verdict.map(tables.is_reason).sum())
    weights = {name: table.weights.iloc[0] for name, table in made.items() if "weights" in table and len(table)}
    parts = [
        f"# RiDDLE, preset {preset}: the paper's results and ours",
        "## What holds and what does not",
        f"{len(answers)} claims: {', '.join(f'{n} {v}' for v, n in counts.items() if n)}. A claim holds by the "
        "worst of the recognisers that took no part in training; 'undecided' says that they disagree, or that an "
        "interval reaches the limit or is missing.",
    ]
    if len(set(weights.values())) > 1:
        listed = ", ".join(f"{name}: {value}" for name, value in weights.items())
        parts.append(f"The tables were made with different weights ({listed}): `make reproduce` makes them alike.")
    parts.append(tables.grid(answers))
    for name, (title, notebook, section) in SOURCES.items():
        parts += [f"## {title}", f"Section {section} of the paper; notebook {notebook}."]
        table = made.get(name, pd.DataFrame())
        if not len(table):
            parts.append(f"n/a: {'the table is empty; ' if name in made else ''}run notebook {notebook}")
            continue
        wide = tables.wide(table)
        cut = f"- the first {LONGEST} of {len(wide)} rows\n" if len(wide) > LONGEST else ""
        notes = f"- all numbers: tables/{name}.csv\n{cut}{tables.notes(table)}"
        parts += [tables.grid(wide.head(LONGEST)), notes]
        if far := tables.far_from_paper(table, [system.label for system in BASELINES.values()]):
            parts.append(f"Far from the paper, by systems that are small here (data/zoo/{preset}/card.md):\n\n{far}")
    for path in figures:
        title = path.stem.replace("_", " ").capitalize()
        parts.append(f"## {title}\n\n![{title}](figures/{path.name})")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def to_html(markdown: str, folder: Path) -> str:
    """The page as one HTML file, pictures inside; folder: where the pictures' places start."""

    def inside(match: re.Match) -> str:
        with Image.open(folder / match[2]) as image:
            return f"![{match[1]}](data:image/jpeg;base64,{jpeg(image, WIDTH)})"

    body = markdown2html(re.sub(r"!\[(.*?)\]\((.*?)\)", inside, markdown))
    for text, name in {HOLDS: "holds", FAILS: "fails", UNDECIDED: "undecided"}.items():
        body = body.replace(f"<td>{text}</td>", f'<td class="{name}">{text}</td>')
    title = markdown.splitlines()[0].removeprefix("# ")
    head = f'<meta charset="utf-8"><title>{title}</title><style>\n{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def write(preset: str, folder: Path | None = None) -> pd.DataFrame:
    """Write report.md, report.html and verdicts.csv into `folder` (default: results/<preset>), from results/<preset>.

    Returns the verdicts. Raises ValueError for a table that cannot be read.
    """
    source = config.results(preset)
    folder, made = folder or source, read_tables(source / "tables")
    markdown = page(preset, made, sorted((source / "figures").glob("figure*.*")))
    for name, text in {"report.md": markdown, "report.html": to_html(markdown, source)}.items():
        write_text(folder / name, text)
    answers = verdicts(made)
    tables.write(answers, folder / "verdicts.csv")
    return answers


# ---- executed notebooks


def slim(notebook: nbformat.NotebookNode) -> str:
    """An executed notebook that is small and fit to publish: pictures as JPEG, smaller until the whole is under LIMIT
    bytes, those of cells tagged 'real-faces' left out; no progress bars, widgets and paths of this machine.

    Raises ValueError when text alone is over the limit.
    """
    for width, quality in ((900, 75), (700, 75), (500, 75), (350, 75), (350, 50), (300, 40), (250, 40)):
        made = deepcopy(notebook)
        made.metadata = {k: v for k, v in made.metadata.items() if k in ("kernelspec", "language_info")}
        for cell in made.cells:
            cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
            if "outputs" in cell:
                cell.outputs = [_published(o, width, quality, cell.metadata) for o in cell.outputs if not _is_noise(o)]
        text = nbformat.writes(made)
        for local in (config.home(), Path.home()):
            text = text.replace(str(local), ".")
        if len(text) < LIMIT:
            return text + "\n"
    raise ValueError(f"the notebook holds over {LIMIT} bytes of text; let it print less")


def _is_noise(output: dict) -> bool:
    return output.get("name") == "stderr" or any("widget-view" in kind for kind in output.get("data", {}))


def _published(output: dict, width: int, quality: int, metadata: dict) -> dict:
    """An output of a notebook with its pictures as JPEG at most `width` px wide, or without them."""
    data = output.get("data", {})
    for kind in [k for k in data if k.startswith("image/") and k != "image/svg+xml"]:
        picture = data.pop(kind)
        if "real-faces" in metadata.get("tags", []):
            data["text/plain"] = "(a picture of real people, left out; run the notebook to see it)"
        else:
            data["image/jpeg"] = jpeg(Image.open(io.BytesIO(base64.b64decode(picture))), width, quality)
    return output


def jpeg(image: Image.Image, width: int, quality: int = 75) -> str:
    """A picture as base64 of a JPEG at most `width` px wide, on white where it is transparent."""
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main(
    preset: str = "mobile",
    out: Annotated[Path | None, Option(help="folder; default: results/<preset>")] = None,
    slim_copy: Annotated[
        tuple[Path, Path] | None, Option("--slim", metavar="NOTEBOOK FOLDER", help="only a copy fit to publish")
    ] = None,
) -> None:
    """Write the report of a preset, or a notebook's small copy."""
    if slim_copy:
        source, folder = slim_copy
        write_text(folder / source.name, slim(nbformat.read(source, as_version=4)))
        return
    for answer in write(preset, out).itertuples():
        print(f"{answer.verdict:14.60}  {answer.claim}  {answer.ours}")


if __name__ == "__main__":
    typer.run(main)
