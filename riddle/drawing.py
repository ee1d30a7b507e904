"""Pictures for people: tables of faces, photos side by side, curves of a training log, clouds of embeddings."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from riddle import config, weights
from riddle.faces import blending
from riddle.images import to_image, to_tensor

plt.rcParams.update(
    {"figure.dpi": 110, "savefig.bbox": "tight", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)
# Okabe and Ito's colours, told apart with any colour vision; black and yellow are left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STEP = 7 / 8  # of a face's side, from one person of `group_photo` to the next


def save_fig(
    name: str,
    preset: str,
    figure: Figure | None = None,
    real_faces: bool = False,
    trial: bool = False,
    exact: bool = False,
) -> Path:
    """Write the current (or given) figure to results/<preset>/figures/<name>.png.

    Figures that show real faces, those of a trial at smaller scale, and those of the untrained smoke preset go to
    results/runs/, which git ignores. exact: keep every colour; others are stored in 256, see `shrink`.
    """
    kept = not real_faces and not trial and preset != "smoke"
    folder = config.home() / "results" / ("" if kept else "runs") / preset / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    (figure or plt.gcf()).savefig(path)
    if kept and not exact:
        shrink(path)
    return path


def shrink(path: Path) -> None:
    """Store a picture in 256 colours, chosen for it, where that is smaller: a repository keeps each version."""
    with Image.open(path) as picture:
        full = picture.convert("RGB")
        colours = full.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
        small = full.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG)  # only a given palette is dithered
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    if len(buffer.getvalue()) < path.stat().st_size:
        partial = path.with_suffix(".part")
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)


def faces_grid(rows: Mapping[str, torch.Tensor], columns: Sequence[str] = (), size: float = 0.9) -> Figure:
    """One labelled row of faces each; rows: {label: (N, 3, R, R) in [-1, 1]}; size: inches a face."""
    width = max(len(faces) for faces in rows.values())
    figure, axes = plt.subplots(len(rows), width, figsize=(size * width + 1.2, size * len(rows) + 0.3), squeeze=False)
    for line, (label, faces) in zip(axes, rows.items(), strict=True):
        for i, axis in enumerate(line):
            axis.set_xticks([]), axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if i < len(faces):
                axis.imshow(np.asarray(to_image(faces[i])))
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], columns, strict=False):
        axis.set_title(title, fontsize=9)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    return figure


@dataclass(frozen=True)
class Block:
    """Columns of faces under one heading, a row a person."""

    title: str  # over the columns, with a line below it; "" for none
    columns: tuple[str, ...]  # C titles
    faces: torch.Tensor  # (N, C, 3, R, R) in [-1, 1]


def _upright(face: torch.Tensor, side: int) -> np.ndarray:
    return np.asarray(to_image(face).resize((side, side), Image.Resampling.LANCZOS))


def face_table(sections: Mapping[str, Sequence[Block]], inches: float = 0.85, axis: Axes | None = None) -> Figure:
    """Faces in rows and columns: {label of the section's rows: blocks side by side, alike in each section}.

    inches: of a face; axis: where to draw, default: a figure of its own.
    """
    side, gap, between = 160, 6, 22  # px of a face, between faces, between blocks and between sections
    first = next(iter(sections.values()))
    left = np.cumsum([0, *(len(b.columns) * (side + gap) - gap + between for b in first)])
    tall = [len(blocks[0].faces) * (side + gap) - gap for blocks in sections.values()]
    top = np.cumsum([0, *(t + between for t in tall)])
    canvas = np.full((top[-1] - between, left[-1] - between, 3), 255, np.uint8)
    for y, blocks in zip(top, sections.values(), strict=False):
        for x, block in zip(left, blocks, strict=False):
            for i, row in enumerate(block.faces):
                for k, face in enumerate(row):
                    corner = y + i * (side + gap), x + k * (side + gap)
                    canvas[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = _upright(face, side)
    if axis is None:
        size = np.array(canvas.shape[1::-1]) / side * inches
        axis = plt.figure(figsize=size).add_axes((0, 0, 1, 1))
    axis.imshow(canvas, interpolation="lanczos")
    axis.axis("off"), axis.autoscale(False)
    _headings(axis, first, left, side, gap)
    for y, t, label in zip(top, tall, sections, strict=False):
        axis.text(-14, y + t / 2, label, rotation=90, ha="right", va="center", fontsize=10)
    return axis.figure


def _headings(axis: Axes, blocks: Sequence[Block], left: np.ndarray, side: int, gap: int) -> None:
    """Column titles, and one line and title over neighbouring blocks of the same title."""
    spans: list[list] = []
    for x, block in zip(left, blocks, strict=False):
        for k, title in enumerate(block.columns):
            axis.text(x + k * (side + gap) + side / 2, -8, title, ha="center", va="bottom", fontsize=8.5)
        end = x + len(block.columns) * (side + gap) - gap
        if spans and spans[-1][0] == block.title:
            spans[-1][2] = end
        else:
            spans.append([block.title, x, end])
    for title, start, end in spans:
        if title:
            axis.plot([start, end], [-46, -46], color="0.45", lw=0.8, clip_on=False)
            axis.text((start + end) / 2, -54, title, ha="center", va="bottom", fontsize=10)


def clouds(panels: Mapping[str, tuple[np.ndarray, np.ndarray, str]], names: Sequence[str] = ()) -> Figure:
    """Points coloured by person: {title: (points (M, 2), person (M,), a line below the title)}; names: of people."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.3 * len(panels), 3.7), squeeze=False)
    for axis, (title, (points, person, note)) in zip(axes[0], panels.items(), strict=True):
        for i in np.unique(person):
            x, y = points[person == i].T
            label = names[i] if i < len(names) else f"person {i + 1}"
            axis.scatter(x, y, s=9, lw=0, alpha=0.75, color=COLOURS[i % len(COLOURS)], label=label)
        axis.set(xticks=[], yticks=[], box_aspect=1)
        axis.spines[:].set(visible=True, color="0.8")
        axis.set_title(f"{title}\n", fontsize=11)
        axis.text(0.5, 1.02, note, transform=axis.transAxes, ha="center", va="bottom", fontsize=8.5, color="0.3")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=min(5, len(labels)), frameon=False, markerscale=2.2,
        handletextpad=0.1, columnspacing=1.0, fontsize=8.5,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def paths(strips: Mapping[str, Sequence[Block]], table: pd.DataFrame, judges: Sequence[str]) -> Figure:
    """Figure 8: strips of faces above, below a panel a judge with the identity distance along each path.

    strips: as for `face_table`; table: as `figures.figure8` makes it; judges: those to show.
    """
    columns = sum(len(b.columns) for b in next(iter(strips.values())))
    tall = 0.85 * (1.15 * len(strips) + 0.6)  # inches
    figure = plt.figure(figsize=(max(0.85 * columns + 0.8, 2.3 * len(judges)), tall + 2.9))
    above, below = figure.add_gridspec(2, 1, height_ratios=(tall, 2.2), hspace=0.36)
    face_table(strips, axis=figure.add_subplot(above))
    panels = below.subgridspec(1, len(judges), wspace=0.3).subplots(squeeze=False)[0]
    for axis, judge in zip(panels, judges, strict=True):
        _distances(axis, table[table.judge == judge])
        axis.set_title(
            judge + ("\n(seen in training)" if table[table.judge == judge].judge_seen.any() else ""), fontsize=9
        )
    panels[0].set_ylabel("identity distance to photo")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="upper center", bbox_to_anchor=(0.5, 0.05), ncols=4, frameon=False, fontsize=8.5)
    return figure


def _distances(axis: Axes, rows: pd.DataFrame) -> None:
    """One judge's lines: each path, its interval, the inverted face, and where the judge sees the same person."""
    ways = rows[rows.path != "inverted"].groupby("path", sort=False)
    for (path, r), style, colour in zip(ways, ("-", "--"), COLOURS, strict=False):
        axis.plot(r.t, r["mean"], style, color=colour, label=f"{path} path", lw=1.6)
        axis.fill_between(r.t, r.low, r.high, color=colour, alpha=0.15, lw=0)
    inverted = rows[rows.path == "inverted"]["mean"].iloc[0]
    axis.axhline(inverted, color="0.3", lw=1.1, ls=":", label="inverted, not encrypted")
    axis.axhspan(0, rows.threshold.iloc[0], color="0.9", lw=0, zorder=0, label="below the threshold: the same person")
    axis.set(ylim=(0, None), xlim=(0, 1), xticks=(0, 1), xticklabels=("password 1", "password 2"))
    for label, side in zip(axis.get_xticklabels(), ("left", "right"), strict=True):
        label.set(ha=side, fontsize=8)


def pictures(labelled: Mapping[str, Image.Image], columns: int | None = None, width: float = 4.2) -> Figure:
    """Photos under their labels; columns: how many a row, default all; width: inches of each."""
    columns = columns or len(labelled)
    rows = -(-len(labelled) // columns)
    tallest = max(image.height / image.width for image in labelled.values())
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, (width * tallest + 0.3) * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (label, image) in zip(axes.flat, labelled.items(), strict=False):
        axis.imshow(np.asarray(image))
        axis.set_title(label)
    figure.tight_layout()
    return figure


def label_maps(maps: torch.Tensor) -> torch.Tensor:
    """Class maps (N, R, R) of a parser -> pictures (N, 3, R, R) in [-1, 1], one colour a class."""
    colours = torch.from_numpy(plt.get_cmap("tab20")(np.arange(20))[:, :3].astype(np.float32))
    colours[0] = 0.1  # background
    return (colours[maps.long()] * 2 - 1).permute(0, 3, 1, 2)


def read_log(path: str | Path) -> pd.DataFrame:
    """A run's log.jsonl: one line a logged step. Raises FileNotFoundError."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    return pd.DataFrame(lines)


def bundled_log(preset: str, run: str) -> pd.DataFrame | None:
    """The log of the run that made a bundled network: "cut128", "encoder", "parser", "encryptor", "encryptor_mlp", ...

    None where the preset brings none.
    """
    path = config.bundled_folder("zoo") / preset / "runs" / f"{run}.jsonl"
    return read_log(path) if path.is_file() else None


def curves(
    logs: Mapping[str, pd.DataFrame | None], keys: Sequence[str] | Mapping[str, str], smooth: float = 0.02,
    columns: int = 5,
) -> Figure:  # fmt: skip
    """A panel for each key, a line for each log.

    keys: of the logs, or {key: title}; those that no log has are left out; smooth: share of the log that a running
    mean covers; columns: panels a row.
    """
    titles = dict(keys) if isinstance(keys, Mapping) else {k: k for k in keys}
    logs = {label: log for label, log in logs.items() if log is not None}
    titles = {k: v for k, v in titles.items() if any(k in log for log in logs.values())}
    columns = min(columns, max(1, len(titles)))
    rows = max(1, -(-len(titles) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.1 * rows), squeeze=False)
    for axis in axes.flat[len(titles) :]:
        axis.axis("off")
    for axis, (key, title) in zip(axes.flat, titles.items(), strict=False):
        for (label, log), colour in zip(logs.items(), itertools.cycle(COLOURS)):
            if key in log:
                known = log[["step", key]].dropna()
                window = max(1, int(smooth * len(known)))
                line = known[key].rolling(window, min_periods=1).mean()
                axis.plot(known["step"], line, label=label, color=colour, lw=1.2)
        axis.set_title(title), axis.set_xlabel("step")
    if titles and len(logs) > 1:
        legends = (axis.get_legend_handles_labels() for axis in axes.flat)
        handles = {name: handle for legend in legends for handle, name in zip(*legend, strict=True)}
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": len(handles), "frameon": False}
        figure.legend(handles.values(), handles, **place)
    figure.tight_layout()
    return figure


def normal_histograms(panels: Mapping[str, np.ndarray]) -> Figure:
    """Histograms of numbers, (N,) a panel, under the normal curve of their mean and deviation, with their kurtosis."""
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 2.3), squeeze=False)
    for axis, (title, x) in zip(axes[0], panels.items(), strict=True):
        mean, std = x.mean(), x.std()
        at = mean + std * np.linspace(-4.5, 4.5, 200)
        axis.hist(x, 80, range=(at[0], at[-1]), density=True, color=COLOURS[5], label="codes")
        normal = np.exp(-(((at - mean) / std) ** 2) / 2) / (std * (2 * np.pi) ** 0.5)
        axis.plot(at, normal, color=COLOURS[1], label="normal")
        axis.set_title(f"{title}: kurtosis {(((x - mean) / std) ** 4).mean():.2f}"), axis.set_yticks([])
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    return figure


def sample_codes() -> torch.Tensor:
    """The codes (48, L, D) of the bundled synthetic faces, in the order of `sample_faces`.

    Raises FileNotFoundError when data/samples is empty.
    """
    return weights.load_tensors(config.bundled_folder("samples") / "codes.safetensors")["codes"]


def sample_faces(n: int, preset_resolution: int) -> torch.Tensor:
    """The first n bundled synthetic faces, (n, 3, R, R) in [-1, 1].

    Raises FileNotFoundError when data/samples is empty.
    """
    side = (preset_resolution, preset_resolution)
    opened = [Image.open(f).convert("RGB").resize(side, Image.Resampling.LANCZOS) for f in config.sample_files()[:n]]
    return torch.stack([to_tensor(image.convert("RGB")) for image in opened])


def group_photo(faces: Sequence[torch.Tensor], side: int = 256) -> Image.Image:
    """A made-up photo of N synthetic people, for trying the program without showing anybody.

    faces: N framed ones, (3, R, R) in [-1, 1]; side: px of each. They stand beside each other, `STEP` sides apart, and
    where two portraits overlap one fades into the other.
    """
    n, step = len(faces), round(STEP * side)
    rise = blending.smoothstep((np.arange(side) + 0.5) / max(1, side - step))
    photo = np.zeros((side, (n - 1) * step + side, 3))
    for i, face in enumerate(faces):
        share = (rise if i else 1.0) * (rise[::-1] if i < n - 1 else np.ones(side))
        photo[:, i * step : i * step + side] += share[:, None] * _upright(face, side)
    return Image.fromarray(np.rint(photo).astype(np.uint8))
