"""Find drawn faces again in a picture that was resized or cropped since they were pasted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from riddle.faces import alignment
from riddle.faces.blending import core
from riddle.faces.detection import Face, framed

SIDE, FINE = 48, 128  # px to which faces are reduced for comparing; where single pixels of the picture count
FIRST, LARGEST = 2, 4  # pairs of faces to start from; faces that are compared in the end
SAME = 0.8  # likeness from which a face is the one that was drawn; of bundled faces 0.93, unprotected 0.69
WHOLE = 0.02  # a scale so near to 1 is 1 where the picture was only cropped


def likeness(
    image: Image.Image, matrices: np.ndarray, drawn: torch.Tensor, masks: np.ndarray | None = None, side: int = SIDE
) -> float:  # fmt: skip
    """The mean correlation in [-1, 1] of places in an RGB picture, framed by matrices (k, 2, 3), with drawn faces
    (k, 3, R, R): of grey inside the face, which is less where colours were matched; -1 where all lie outside. masks:
    those by which the faces were pasted, (k, M, M): hair in front does not count."""
    values, inner = [], np.tile(core(side).numpy().ravel(), (len(drawn), 1))
    if masks is not None:
        inner = inner * F.adaptive_avg_pool2d(torch.from_numpy(masks)[:, None], side).flatten(1).numpy()
    small = F.adaptive_avg_pool2d(drawn.float().cpu().mean(1, keepdim=True), side).flatten(1).numpy()
    for matrix, face, mask in zip(matrices, small, inner, strict=True):
        if ((matrix @ [0.5, 0.5, 1.0] < 0) | (matrix @ [0.5, 0.5, 1.0] >= image.size)).any():
            continue
        seen = np.asarray(alignment.crop(image, matrix, side).convert("L"), np.float64).ravel()
        a, b = (x - np.average(x, weights=mask) for x in (seen, face))
        values.append((mask * a * b).sum() / np.sqrt((mask * a * a).sum() * (mask * b * b).sum() + 1e-9))
    return float(np.mean(values)) if values else -1.0


def register(
    image: Image.Image, size: tuple[int, int], matrices: np.ndarray, drawn: torch.Tensor, found: Sequence[Face],
    masks: np.ndarray | None = None,
) -> np.ndarray | None:  # fmt: skip
    """The places (k, 2, 3) of drawn faces (k, 3, R, R) in an RGB picture that was cropped, or cropped and resized.

    size: width and height of the picture before, in which matrices (k, 2, 3) were the places; found: the faces that a
    detector finds in it now; masks: as for `likeness`. None where no found face is like a drawn one.
    """
    from scipy.optimize import OptimizeResult, minimize  # here: only a cropped picture needs it, and it loads slowly

    before, after = alignment.place(matrices), alignment.place(framed(found))
    sides, now = np.hypot(*before[:, 2:].T), np.hypot(*after[:, 2:].T)
    starts = []
    for i, j in np.ndindex(len(before), len(after)):
        scale = now[j] / sides[i]
        start = np.array([np.log(scale), *(after[j, :2] - scale * before[i, :2])])
        at = alignment.moved(matrices[i : i + 1], scale, start[1:])
        starts.append((likeness(image, at, drawn[i : i + 1]), start))
    large = np.argsort(-sides)[:LARGEST]
    shown = drawn[large], None if masks is None else masks[large]

    def unlike(v: np.ndarray, side: int = SIDE) -> float:
        return -likeness(image, alignment.moved(matrices[large], np.exp(v[0]), v[1:]), *shown, side)

    def nearby(start: np.ndarray, size: float, side: int) -> OptimizeResult:
        """The best place near a start, within about a share `size` of the faces' sides."""
        step = size * sides.max() * np.exp(start[0])
        # The scale turns about the found faces, not about the picture's corner: the two would not be independent.
        simplex = start + np.array([[0, 0, 0], [size, 0, 0], [0, step, 0], [0, 0, step]])
        simplex[1, 1:] -= size * np.exp(start[0]) * before[large, :2].mean(0)
        return minimize(unlike, start, (side,), "Nelder-Mead", options={"initial_simplex": simplex, "maxfev": 100})

    tried = [nearby(start, 0.04, SIDE) for _, start in sorted(starts, key=lambda pair: -pair[0])[:FIRST]]
    if not tried:
        return None
    best = nearby(min(tried, key=lambda got: got.fun).x, 0.01, FINE)
    scale, offset = np.exp(best.x[0]), best.x[1:]
    if abs(scale - 1) < WHOLE and (np.array(image.size) <= size).all():
        centre = before[large, :2].mean(0)
        whole = np.rint((scale - 1) * centre + offset)
        if unlike(np.array([0.0, *whole]), FINE) < best.fun + 0.01:
            near = [whole + step for step in np.array([*np.ndindex(3, 3)]) - 1]
            fine = [likeness(image, alignment.moved(matrices[large], 1.0, v), *shown, FINE) for v in near]
            scale, offset = 1.0, near[int(np.argmax(fine))]
    return alignment.moved(matrices, scale, offset) if -best.fun >= SAME else None
