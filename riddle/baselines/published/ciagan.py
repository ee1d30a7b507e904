"""CIAGAN with the published weights (github.com/dvl-tum/ciagan): one of 1,200 people of CelebA, whom the key chooses.

As in the published program: the 68 points of dlib; the frame, 218 x 178 around the inner corners of the eyes, made
square, of which the middle is seen; the landmark picture of outline, bridge of the nose and inner lips; the mask from
the brows to the chin. Other than there: no JPEG lies between the steps, and a face that dlib does not find is replaced
at the usual place, where the published program leaves the picture out.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from riddle.baselines.published import BATCH, SIDE, landmarks, load
from riddle.baselines.redraw import checked
from riddle.images import to_tensor
from riddle.models.anonymisers import CiaganGenerator

WIDE, HIGH = 178, 218  # px of the frame in which landmarks and mask are drawn
SEEN, RIM = 144, 8  # px to which it is squeezed, and those cut off each side
LINES = (range(17), range(27, 31), (*range(60, 68), 60))  # outline, bridge of the nose, inner lips


def frame(points: np.ndarray) -> np.ndarray:
    """Landmarks (68, 2) px -> the frame's centre and half sides in px: x, y, width, height."""
    reach = 5 * max(points[42, 0] - points[39, 0], 1.0)
    return np.array([*(points[39] + points[42]) / 2, reach * WIDE / HIGH, reach])


def drawings(points: np.ndarray, place: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Landmarks (68, 2) px and their frame -> the landmark picture (3, 128, 128) in [0, 1], the mask (1, 128, 128)."""
    at = np.trunc(((points - place[:2]) / place[2:] + 1) / 2 * [WIDE, HIGH])
    lines, face = (Image.new("RGB", (WIDE, HIGH), "white") for _ in range(2))
    for line in LINES:
        ImageDraw.Draw(lines).line([tuple(at[i]) for i in line], (0, 0, 255))
    rim = [(at[0, 0], at[19, 1]), *map(tuple, at[:17]), (at[16, 0], at[24, 1])]
    ImageDraw.Draw(face).polygon(rim, (0, 0, 0), (0, 0, 0))
    inner = (RIM, RIM, SEEN - RIM, SEEN - RIM)
    shown = [p.resize((SEEN, SEEN), Image.Resampling.LANCZOS).crop(inner) for p in (lines, face)]
    lines, face = ((to_tensor(np.asarray(p)[None])[0] + 1) / 2 for p in shown)
    return lines, (face[:1] < 0.8).float()


@torch.no_grad()
def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    faces, network = checked("ciagan", faces), load("ciagan")
    people, done = F.one_hot(keys.cpu() % CiaganGenerator.PEOPLE, CiaganGenerator.PEOPLE).float(), []
    for part, person in zip(faces.split(BATCH), people.split(BATCH), strict=True):
        points = landmarks(part)
        places = np.stack([frame(p) for p in points])
        lines, mask = map(torch.stack, zip(*map(drawings, points, places), strict=True))
        scale, centre = torch.from_numpy(places).float().view(-1, 2, 2).flip(1).unbind(1)
        scale, centre = 2 / SIDE * scale * (1 - 2 * RIM / SEEN), (2 * centre + 1) / SIDE - 1
        shown = (_sampled(part, scale, centre) + 1) / 2
        drawn = network(torch.cat([lines, shown * (1 - mask)], 1), person).clamp(0, 1)
        back = _sampled(2 * drawn - 1, 1 / scale, -centre / scale)
        done.append(part + _sampled(mask, 1 / scale, -centre / scale, "zeros") * (back - part))
    return torch.cat(done)


def _sampled(x: torch.Tensor, scale: torch.Tensor, centre: torch.Tensor, outside: str = "border") -> torch.Tensor:
    """Pictures (N, C, R, R) at place p * scale + centre, (N, 2) each; p from -1 to 1."""
    grid = F.affine_grid(torch.cat([torch.diag_embed(scale), centre[:, :, None]], 2), list(x.shape), False)
    return F.grid_sample(x, grid, padding_mode=outside, align_corners=False)
