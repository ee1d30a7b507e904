"""Pictures for people: the style of all figures, grids of faces, photos side by side, curves."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from riddle import config
from riddle.files import replace_file
from riddle.images import to_image

plt.rcParams.update(
    {"figure.dpi": 110, "savefig.bbox": "tight", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)
# A table in a notebook is shown whole.
pd.set_option("display.max_colwidth", None, "display.max_rows", None, "display.max_columns", None)
# Okabe and Ito's colours, told apart with any colour vision; black and yellow are left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
PIXELS = 180  # per inch of pictures


def save_fig(name: str, preset: str, real_faces: bool = False, trial: bool = False) -> Path:
    """Write the current figure to results/<preset>/figures/<name>.webp, without loss if it shows no pictures.

    Figures that show real faces, those of a trial at smaller scale, and those of the untrained smoke preset go to
    results/runs/, which git ignores.
    """
    figure, kept = plt.gcf(), not real_faces and not trial
    folder = config.results(preset) if kept else config.home() / "results" / "runs" / preset
    shows = any(axis.images for axis in figure.axes)
    path = folder / "figures" / f"{name}.webp"
    with replace_file(path) as temporary:
        options = {"quality": 60, "method": 6, "lossless": not shows}
        figure.savefig(temporary, dpi=PIXELS if shows else "figure", pil_kwargs=options)
    return path


def panels(n: int, columns: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure of n axes, at most `columns` per row; width and height: inches of each."""
    columns = max(1, min(columns, n))
    rows = max(1, -(-n // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for axis in axes.flat[n:]:
        axis.axis("off")
    return figure, axes.flat[:n]


def legend(figure: Figure) -> None:
    """One legend for all axes of a figure, below it."""
    labelled = (axis.get_legend_handles_labels() for axis in figure.axes)
    handles = {label: handle for pair in labelled for handle, label in zip(*pair, strict=True)}
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 5}
    figure.legend(handles.values(), handles, frameon=False, fontsize=8, **place)


# ---- faces and photos


@dataclass(frozen=True)
class Block:
    """Columns of faces under one heading, one row per person."""

    title: str  # over the columns, with a line below it; "" for none
    columns: tuple[str, ...]  # titles of the C columns, () for none
    faces: torch.Tensor  # (N, C, 3, H, W) in [-1, 1]


def faces_grid(
    rows: Mapping[str, torch.Tensor | Sequence[Block]], columns: Sequence[str] = (), size: float = 0.9
) -> Figure:
    """Faces in rows and columns: {label: faces (C, 3, H, W) in [-1, 1] of one row, or blocks side by side}.

    columns: titles where the rows are no blocks; size: inches of a face's height. The headings are those of the first
    label's blocks.
    """
    sections = {k: [Block("", tuple(columns), r[None])] if torch.is_tensor(r) else r for k, r in rows.items()}
    first = next(iter(sections.values()))
    tall = round(PIXELS * size)  # px of the canvas
    wide, gap, between = round(tall * first[0].faces.shape[4] / first[0].faces.shape[3]), tall // 27, tall // 7

    def tiled(block: Block) -> torch.Tensor:
        """(3, N (tall + gap), C (wide + gap))"""
        n, c = block.faces.shape[:2]
        faces = F.interpolate(block.faces.flatten(0, 1).float().cpu(), (tall, wide), mode="bicubic", antialias=True)
        faces = F.pad(faces.clamp(-1, 1), (0, gap, 0, gap), value=1).unflatten(0, (n, c))
        return faces.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)

    strips = [torch.cat([F.pad(tiled(b), (0, between), value=1) for b in blocks], 2) for blocks in sections.values()]
    apart = between if max(len(blocks[0].faces) for blocks in sections.values()) > 1 else 0
    widest = max(strip.shape[2] for strip in strips)
    canvas = torch.cat([F.pad(s, (0, widest - s.shape[2], 0, apart), value=1) for s in strips], 1)
    figure = plt.figure(figsize=(widest / tall * size, canvas.shape[1] / tall * size))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(np.asarray(to_image(canvas)), interpolation="lanczos")
    axis.axis("off"), axis.autoscale(False)
    point = tall / size / 72  # px of the canvas
    top = 0
    for label, strip in zip(sections, strips, strict=True):
        turned = {"rotation": 90} if strip.shape[1] > tall + gap else {}
        axis.text(-6 * point, top + (strip.shape[1] - gap) / 2, label, ha="right", va="center", fontsize=9, **turned)
        top += strip.shape[1] + apart
    _headings(axis, first, wide + gap, between, point)
    return figure


def _headings(axis: Axes, blocks: Sequence[Block], step: int, between: int, point: float) -> None:
    """Column titles, and one line and title over neighbouring blocks of the same title; step: px between columns."""
    letters = max(8, round(step / point / 4.5))  # as many as stand over a column
    columns = [
        [textwrap.fill(c, letters, break_long_words=False, break_on_hyphens=False) for c in block.columns]
        for block in blocks
    ]
    above = 18 + 10 * max((c.count("\n") for titles in columns for c in titles), default=0)  # points
    start = 0
    for title, group in itertools.groupby(zip(blocks, columns, strict=True), key=lambda pair: pair[0].title):
        end = start
        for block, titles in group:
            for k, column in enumerate(titles):
                axis.text(end + (k + 0.48) * step, -4 * point, column, ha="center", va="bottom", fontsize=8.5)
            end += block.faces.shape[1] * step + between
        if title:
            axis.plot([start, end - between], [-above * point] * 2, color="0.45", lw=0.8, clip_on=False)
            axis.text((start + end - between) / 2, -(above + 3) * point, title, ha="center", va="bottom", fontsize=10)
        start = end


def pictures(labelled: Mapping[str, Image.Image], columns: int | None = None, width: float = 4.2) -> Figure:
    """Photos under their labels; columns: number per row, default all; width: inches of each."""
    tallest = max(image.height / image.width for image in labelled.values())
    figure, axes = panels(len(labelled), columns or len(labelled), width, width * tallest + 0.3)
    for axis, (label, image) in zip(axes, labelled.items(), strict=True):
        axis.imshow(np.asarray(image))
        axis.axis("off"), axis.set_title(label)
    figure.tight_layout()
    return figure


def label_maps(maps: torch.Tensor) -> torch.Tensor:
    """Class maps (N, R, R) of a parser -> pictures (N, 3, R, R) in [-1, 1], one colour per class."""
    colours = torch.from_numpy(plt.get_cmap("tab20")(np.arange(20))[:, :3].astype(np.float32))
    colours[0] = 0.1  # background
    return (colours[maps.long()] * 2 - 1).permute(0, 3, 1, 2)


# ---- numbers


def read_log(path: str | Path) -> pd.DataFrame:
    """A run's log.jsonl: one line per logged step. Raises FileNotFoundError."""
    return pd.read_json(path, lines=True)


def bundled_log(preset: str, run: str) -> pd.DataFrame | None:
    """The log of the run that made a bundled network ("cut128", "encoder", "encryptor_mlp", ...), None without one."""
    path = config.bundled_folder("zoo") / preset / "runs" / f"{run}.jsonl"
    return read_log(path) if path.is_file() else None


def curves(
    logs: Mapping[str, pd.DataFrame | None], keys: Sequence[str] | Mapping[str, str], smooth: float = 0.02,
    columns: int = 5,
) -> Figure:  # fmt: skip
    """A panel for each key, a line for each log.

    keys: of the logs, or {key: title}; those that no log has are left out; smooth: share of the log that a running
    mean covers; columns: panels per row.
    """
    titles = dict(keys) if isinstance(keys, Mapping) else {k: k for k in keys}
    logs = {label: log for label, log in logs.items() if log is not None}
    titles = {k: v for k, v in titles.items() if any(k in log for log in logs.values())}
    figure, axes = panels(len(titles), columns, 2.6, 2.1)
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for (label, log), colour in zip(logs.items(), itertools.cycle(COLOURS)):
            if key in log:
                known = log[["step", key]].dropna()
                mean = known[key].rolling(max(1, int(smooth * len(known))), min_periods=1).mean()
                axis.plot(known["step"], mean, label=label, color=colour, lw=1.2)
        axis.set_title(title), axis.set_xlabel("step")
    figure.tight_layout()
    if titles and len(logs) > 1:
        legend(figure)
    return figure


def marks(parts: Mapping[str, pd.DataFrame]) -> Figure:
    """Parts of a table, {title: lines with a number}: one panel per part, one row per method, one dot per recogniser,
    detector or network of features.

    Bars: the 95 % intervals; strokes: the paper's numbers.
    """
    every = pd.concat(parts.values())
    methods, known = list(every.method.unique()), every.measured_by.unique()
    figure, axes = panels(len(parts), 4, 11 / max(len(parts), 2), 0.6 + 0.25 * len(methods))
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        for (k, name), colour in zip(enumerate(known), itertools.cycle(COLOURS)):
            lines = part[part.measured_by == name]
            at = [methods.index(m) + 0.6 * ((k + 0.5) / len(known) - 0.5) for m in lines.method]
            spread = np.nan_to_num([lines["mean"] - lines.low, lines.high - lines["mean"]])
            axis.errorbar(lines["mean"], at, xerr=spread, fmt="o", ms=3.5, color=colour, label=name or "ours")
            for _, published in lines.filter(like="paper").items():
                axis.plot(published, at, "|", color="0.3", ms=9, label="the paper")
        axis.set(title=title, ylim=(len(methods) - 0.5, -0.5), yticks=range(len(methods)), yticklabels=[])
    axes[0].set_yticklabels(methods)
    figure.tight_layout()
    legend(figure)
    return figure


def paths(table: pd.DataFrame) -> Figure:
    """Figure 8's numbers, from `figures.figure8`: identity distances along each path, one panel per recogniser.

    Grey: below the recogniser's threshold, so the same person.
    """
    figure, axes = panels(table.measured_by.nunique(), 5, 2.3, 2.4)
    for axis, (name, rows) in zip(axes, table.groupby("measured_by", sort=False), strict=True):
        ways = rows[rows.path != "inverted"].groupby("path", sort=False)
        for (path, r), style, colour in zip(ways, ("-", "--"), COLOURS, strict=False):
            axis.plot(r.t, r["mean"], style, color=colour, label=f"{path} path", lw=1.6)
            axis.fill_between(r.t, r.low, r.high, color=colour, alpha=0.15, lw=0)
        inverted = rows[rows.path == "inverted"]["mean"].iloc[0]
        axis.axhline(inverted, color="0.3", lw=1.1, ls=":", label="inverted, not encrypted")
        axis.axhspan(0, rows.threshold.iloc[0], color="0.9", lw=0, zorder=0, label="the same person")
        axis.set(ylim=(0, None), xlim=(0, 1), xlabel="from password 1 to 2")
        axis.set_title(name + ("\n(seen in training)" if rows.seen_in_training.any() else ""), fontsize=9)
    axes[0].set_ylabel("identity distance to photo")
    figure.tight_layout()
    legend(figure)
    return figure
