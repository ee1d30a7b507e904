"""Paste back: a rendered face returns to its place in the photo under a feathered mask.

Outside the mask the photo stays bit for bit what it was.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

# CelebAMask-HQ's classes inside a face: skin, nose, glasses, eyes, brows, mouth, lips (neither ears nor hair).
FACE_CLASSES = (1, 2, 3, 4, 5, 6, 7, 10, 11, 12)


def to_image(face: torch.Tensor) -> Image.Image:
    """One face (3, R, R) in [-1, 1] -> RGB picture."""
    x = face.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    return Image.fromarray(x.permute(1, 2, 0).numpy())


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture -> (3, R, R) in [-1, 1]."""
    x = torch.from_numpy(np.array(image.convert("RGB")))
    return x.permute(2, 0, 1).float().div_(127.5).sub_(1)


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, 3 x^2 - 2 x^3 between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def ellipse(u: np.ndarray, v: np.ndarray, feather: float = 0.15, power: float = 3.0) -> np.ndarray:
    """Feathered superellipse inscribed in the unit square, 1 inside, 0 on its rim and outside.

    u, v: crop coordinates in [0, 1]; feather: width of the soft rim, share of the half side; power: 2 is an
    ellipse, more is squarer. At 3 the jaw of a tight crop lies inside.
    """
    r = (np.abs(2 * u - 1) ** power + np.abs(2 * v - 1) ** power) ** (1 / power)
    return smoothstep((1 - r) / feather)


def parsed(logits: torch.Tensor, soften: float = 0.02) -> np.ndarray:
    """The face's own outline from a parser's logits (N, 19, R, R): the union over N, blurred, (R, R) in [0, 1]."""
    inside = torch.isin(logits.argmax(1), torch.tensor(FACE_CLASSES, device=logits.device)).any(0)
    side = inside.shape[-1]
    sigma = max(soften * side, 0.5)
    x = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    blur = torch.exp(-0.5 * ((x[:, None] - x[None]) / sigma) ** 2)
    blur = blur / blur.sum(1, keepdim=True)
    grown = torch.nn.functional.max_pool2d(inside[None].float().cpu(), 3, 1, 1)[0]  # the rim covers the outline
    return (blur @ grown @ blur.T).clamp(0, 1).numpy()


def paste(photo: np.ndarray, face: Image.Image, matrix: np.ndarray, outline: np.ndarray | None = None) -> None:
    """Blend a rendered face into `photo` in place.

    photo: uint8 (H, W, 3); face: square RGB crop; matrix: (2, 3), its framing matrix, crop's unit square -> photo
    pixels; outline: (S, S) in [0, 1], a further mask in crop coordinates. Raises ValueError for a degenerate matrix.
    """
    h, w = photo.shape[:2]
    linear, offset = matrix[:, :2], matrix[:, 2]
    if abs(np.linalg.det(linear)) < 1e-9:
        raise ValueError("the framing matrix is degenerate: the face has no area in the photo")
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) @ linear.T + offset
    x0, y0 = np.clip(np.floor(corners.min(0)).astype(int), 0, [w, h])
    x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, [w, h])
    if x0 >= x1 or y0 >= y1:
        return
    inverse = np.linalg.inv(linear)
    ys, xs = np.mgrid[y0:y1, x0:x1]
    uv = np.stack([xs, ys], -1) @ inverse.T - inverse @ offset
    u, v = uv[..., 0], uv[..., 1]
    mask = ellipse(u, v)

    # A face smaller in the photo than its rendering is shrunk first: sampling alone would alias.
    side = float(np.hypot(*linear[:, 0]))
    size = min(face.width, max(1, round(side)))
    if size < face.width:
        face = face.resize((size, size), Image.Resampling.LANCZOS)
    box = (x0, y0, x1, y1)
    layers = np.moveaxis(np.asarray(face, dtype=np.float32), 2, 0)
    patch = np.stack([_resample(layer, inverse, offset, box) for layer in layers], -1)
    if outline is not None:
        mask = mask * np.clip(_resample(outline, inverse, offset, box), 0, 1)
    under = photo[y0:y1, x0:x1]
    blended = np.rint(under + mask[..., None] * (patch - under))
    photo[y0:y1, x0:x1] = np.where(mask[..., None] > 0, np.clip(blended, 0, 255), under).astype(np.uint8)


def _resample(layer: np.ndarray, inverse: np.ndarray, offset: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """One channel (S, S) of a crop at the photo's pixels in `box`. In float: PIL truncates bytes, half a level dark."""
    rim = 4  # px of continued border, so that interpolation at the crop's edge does not see black
    source = Image.fromarray(np.pad(layer.astype(np.float32), rim, mode="edge"))
    x0, y0, x1, y1 = box
    a = inverse * layer.shape[0]
    # PIL maps pixel centres: output (x + 0.5) to source (s + 0.5); pixel x of the box is photo pixel x0 + x.
    b = a @ (np.array([x0, y0]) - 0.5 - offset) + rim
    data = (a[0, 0], a[0, 1], b[0], a[1, 0], a[1, 1], b[1])
    return np.asarray(source.transform((x1 - x0, y1 - y0), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC))
