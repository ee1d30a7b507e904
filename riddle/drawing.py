"""Pictures for people: grids of faces with labels, photos side by side, curves of a training log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from riddle import config
from riddle.faces import blending

plt.rcParams.update(
    {"figure.dpi": 110, "savefig.bbox": "tight", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
)


def save_fig(name: str, preset: str, figure: Figure | None = None, real_faces: bool = False) -> Path:
    """Write the current (or given) figure to results/<preset>/figures/<name>.png.

    Figures that show real faces, and those of the untrained smoke preset, go to results/runs/, which git ignores.
    """
    kept = not real_faces and preset != "smoke"
    folder = config.home() / "results" / ("" if kept else "runs") / preset / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    (figure or plt.gcf()).savefig(path)
    return path


def faces_grid(rows: Mapping[str, torch.Tensor], columns: Sequence[str] = (), size: float = 0.9) -> Figure:
    """One labelled row of faces each; rows: {label: (N, 3, R, R) in [-1, 1]}; size: inches a face."""
    width = max(len(faces) for faces in rows.values())
    figure, axes = plt.subplots(len(rows), width, figsize=(size * width + 1.2, size * len(rows) + 0.3), squeeze=False)
    for line, (label, faces) in zip(axes, rows.items(), strict=True):
        for i, axis in enumerate(line):
            axis.set_xticks([]), axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if i < len(faces):
                axis.imshow(np.asarray(blending.to_image(faces[i])))
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], columns, strict=False):
        axis.set_title(title, fontsize=9)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    return figure


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
    """The log of the run that made the bundled weights: "gan", "inversion", "parsing" or "encryptor".

    None where the preset brings none.
    """
    path = config.bundled_folder("zoo") / preset / "runs" / f"{run}.jsonl"
    return read_log(path) if path.is_file() else None


def curves(logs: Mapping[str, pd.DataFrame | None], keys: Sequence[str], smooth: float = 0.02) -> Figure:
    """A panel for each key, a line for each log; smooth: share of the log that a running mean covers."""
    keys = [k for k in keys if any(log is not None and k in log for log in logs.values())]
    figure, axes = plt.subplots(1, max(1, len(keys)), figsize=(2.6 * max(1, len(keys)), 2.1), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=False):
        for label, log in logs.items():
            if log is not None and key in log:
                known = log[["step", key]].dropna()
                window = max(1, int(smooth * len(known)))
                axis.plot(known["step"], known[key].rolling(window, min_periods=1).mean(), label=label, lw=1.2)
        axis.set_title(key), axis.set_xlabel("step")
    if keys and len(logs) > 1:
        axes[0][0].legend(frameon=False)
    figure.tight_layout()
    return figure


def sample_faces(n: int, preset_resolution: int) -> torch.Tensor:
    """The first n bundled synthetic faces, (n, 3, R, R) in [-1, 1].

    Raises FileNotFoundError when data/samples is empty.
    """
    files = sorted(config.bundled_folder("samples").glob("*.png"))[:n]
    if not files:
        raise FileNotFoundError(
            f"no pictures in {config.bundled_folder('samples')}; restore data/samples from the repository"
        )
    side = (preset_resolution, preset_resolution)
    opened = [Image.open(f).convert("RGB").resize(side, Image.Resampling.LANCZOS) for f in files]
    return torch.stack([blending.to_tensor(image) for image in opened])


def group_photo(faces: torch.Tensor, side: int = 180) -> Image.Image:
    """A made-up photo of N synthetic people, for trying the program without showing anybody.

    faces: tight crops (N, 3, R, R) in [-1, 1]; side: px of each face. A soft wall, hair, shoulders.
    """
    n, margin = len(faces), side // 3
    width, height = n * side + (n + 1) * margin, side + 3 * margin
    ys, xs = np.mgrid[:height, :width]
    wall = np.stack([168 + 30 * xs / width, 176 - 12 * ys / height, 186 - 40 * xs / width], -1)
    for i, face in enumerate(faces):
        skin = (face[:, -face.shape[1] // 4 :].float().mean((1, 2)) + 1) * 127.5
        x = margin + i * (side + margin) + side / 2
        head = ((xs - x) / (0.54 * side)) ** 2 + ((ys - margin - 0.44 * side) / (0.66 * side)) ** 2 < 1
        neck = (np.abs(xs - x) < 0.24 * side) & (ys > margin + 0.5 * side)
        body = ((xs - x) / (0.68 * side)) ** 2 + ((ys - height - 0.1 * side) / (0.5 * side)) ** 2 < 1
        wall[neck] = skin.numpy() * 0.85
        wall[head] = skin.numpy() * 0.35
        wall[body] = np.array([[60, 70, 96], [96, 62, 62], [62, 88, 70]][i % 3])
    photo = np.rint(wall).astype(np.uint8)
    for i, face in enumerate(faces):
        corner = margin + i * (side + margin)
        blending.paste(photo, blending.to_image(face), np.array([[side, 0.0, corner], [0.0, side, margin]]))
    return Image.fromarray(photo)
