"""Paste back: a rendered face returns to its place in the photo under a feathered mask, and is taken out again.

Outside the mask the photo stays bit for bit what it was. A protected photo shows P = (1 - a) O + a S: the original O
under the stranger S, by the mask a. The opened record gives S, and so a; along the mask's soft rim, where a < 1,
O is (P - a S) / (1 - a). Pasting the restored face over P itself would leave a share a (1 - a) of the stranger
there, a ghost of up to a quarter around the face.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import label

from riddle.models.parsing import labels

# CelebAMask-HQ's classes inside a face: skin, nose, glasses, eyes, brows, mouth, lips (neither ears nor hair).
FACE_CLASSES = (1, 2, 3, 4, 5, 6, 7, 10, 11, 12)
SKIN_CLASSES = (1, 2)  # skin, nose
FEATURE_CLASSES = (4, 5, 6, 7, 10, 11, 12)  # eyes, brows, mouth, lips
GLASSES, GLASSES_RIM = 3, 0.015  # their class; how far around them a mask goes, of the side
HAIR_CLASSES, NECK_CLASSES = (13, 14), (16, 17)  # hair, hat; necklace, neck
BESIDE_CLASSES, SURE = (0, 18), 0.9  # background, cloth; the parser's probability from which they are
# Half axes of `core` and its centre's distance below the crop's, of the side.
CORE_WIDTH, CORE_HEIGHT, CORE_BELOW = 0.25, 0.265, 0.11
EYES = 0.8  # the part of `core`, by its axes, that is replaced whatever the parser says
SPREAD, FLOOR = 0.22, 0.1  # a pixel's surroundings: their width, of the side; the weight of the average in them
FEATHER, POWER = 0.15, 3.0  # of `ellipse`: its soft rim, share of the half side; 2 is an ellipse, more is squarer
# Widths of the detail whose contrast is matched, of the side; bounds of the factors.
DETAIL, PORES, GRAIN = 0.03, 0.003, (0.6, 1.4)
EDGE, REACH, FADE = 0.02, 0.06, 0.04  # of `_to_rim`: widths of the rim and of its reach, of the side; more fades sooner
BRIGHT = 0.75  # brightness at which `shoulder` begins
FRINGE = 0.2  # share of hair around a pixel from which it belongs to a fringe
THROAT, LEAST = 0.03, 0.06  # how far below the jaw an outline reaches: blurred by the first, of the side, to the second
RIM, FINE_RIM = (0.045, 0.5), (0.03, 0.75)  # an outline's soft rim: its blur, of the side, and the level it begins at
STRIP = 256  # rows blended at once
MOST = 0.95  # largest mask value: beyond it, `unblend` would enlarge rounding and compression over twentyfold
INNER = 0.4  # mask value at which `paste_inside` begins; farther out the surroundings stay as they are


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, 3 x^2 - 2 x^3 between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Feathered superellipse inscribed in the unit square, 1 inside, 0 on its rim and outside, whose corners alone hair
    and shoulders reach; u, v: crop coordinates in [0, 1]."""
    r = (np.abs(2 * u - 1) ** POWER + np.abs(2 * v - 1) ** POWER) ** (1 / POWER)
    return smoothstep((1 - r) / FEATHER)


@lru_cache(16)
def gaussian(side: int, sigma: float) -> torch.Tensor:
    """Blurring along one axis as a matrix (side, side), rows of sum 1."""
    x = torch.arange(side, dtype=torch.float32)
    blur = torch.exp(-0.5 * ((x[:, None] - x[None]) / sigma) ** 2)
    return blur / blur.sum(1, keepdim=True)


def core(side: int, scale: float = 1.0) -> torch.Tensor:
    """A feathered ellipse over brows, eyes, nose and mouth, (side, side) in [0, 1]; scale: of its axes."""
    x = (torch.arange(side) + 0.5) / side - 0.5
    r = torch.hypot(x[None] / (scale * CORE_WIDTH), (x[:, None] - CORE_BELOW) / (scale * CORE_HEIGHT))
    return torch.from_numpy(smoothstep((1.15 - r.numpy()) / 0.3))


def outline(old: torch.Tensor, new: torch.Tensor, fine: bool = False) -> np.ndarray:
    """The mask (R, R) in [0, 1] by which a new face replaces an old one, from a parser's logits (19, R, R) of both.

    It holds the old face's pixels where the new one shows face or neck. What is no face in the photo stays in front:
    hair, hat, ears, the wall beside a turned head. New hair over a face is left out: hair that starts at a rim looks
    cut. The soft rim lies inside; the old face's glasses are replaced whole. Where the old one shows face or nearly
    so, `core` is in the mask, except old skin under new hair: the parser may take an eye for hair, and the eye must not
    stay in the photo. What is surely background stays. fine: as `protect` pastes. The rim is narrower and lies farther
    inside, on skin, where the photo's strands of hair end. The old brows, eyes and mouth are replaced whole,
    but for a brow in a fringe that both have. The new face's background beside a narrower cheek is left out. The throat
    next to the jaw is replaced, too, so that the rim lies there: an old beard does not line a new chin.
    """
    before, after, (soften, rim) = labels(old), labels(new), FINE_RIM if fine else RIM

    def of(classes: tuple[int, ...], shown: torch.Tensor) -> torch.Tensor:
        return torch.isin(shown, torch.tensor(classes, device=shown.device))

    def blurred(pixels: torch.Tensor, width: float) -> torch.Tensor:
        rows = gaussian(len(pixels), max(width * len(pixels), 0.5))
        return rows @ pixels.float().cpu() @ rows.T

    face, hair, side = of(FACE_CLASSES, before), of(HAIR_CLASSES, after), len(before)
    throat = of(NECK_CLASSES if fine else (), before) & (blurred(face, THROAT) > LEAST).to(face.device)
    fringe = hair & (blurred(of(HAIR_CLASSES, before), soften) > FRINGE).to(face.device)
    gone = of((GLASSES,), before) & ~hair | of(FEATURE_CLASSES if fine else (), before) & ~fringe
    one = _middle(face | throat | gone) if fine else face | throat | gone
    within = one & (face | throat) & of(FACE_CLASSES + NECK_CLASSES, after)
    within = smoothstep((blurred(within, soften).numpy() - rim) / (1 - rim))
    without = smoothstep(blurred(one & gone, GLASSES_RIM).numpy() / 0.2)
    over_skin = blurred(hair & (before == SKIN_CLASSES[0]), soften)
    near = torch.from_numpy(smoothstep(2 * blurred(face, soften).numpy()))
    beside = blurred(old.softmax(0)[list(BESIDE_CLASSES)].sum(0) > SURE, GLASSES_RIM)
    if (near * core(side)).sum() < 0.5 * core(side).sum():  # then the parser is wrong
        near, beside = torch.ones(()), torch.zeros(())
    bare = blurred(new.softmax(0)[list(BESIDE_CLASSES)].sum(0) > SURE, soften) if fine else torch.zeros(())
    inner = torch.maximum(core(side) * near * (1 - bare), core(side, EYES)) * (1 - beside) * (1 - over_skin)
    return np.maximum(np.maximum(within, without), inner.numpy())


def _middle(pixels: torch.Tensor) -> torch.Tensor:
    """Of pixels (R, R), true or false, the connected parts that reach into `core`: a parser sees skin in hats, too."""
    parts, _ = label(pixels.cpu().numpy())
    inner = np.unique(parts[core(len(parts)).numpy() > 0.5])
    return torch.from_numpy(np.isin(parts, inner[inner > 0])).to(pixels.device)


def outlines(logits: Sequence[torch.Tensor], under: torch.Tensor, fine: bool = False) -> np.ndarray:
    """The masks (k, R, R) by which faces replace those in crops (k, 3, R, R); logits: k of (2, 19, R, R), the old and
    the new face's, or (), without a parser: then all of the crop is replaced; fine: as for `outline`."""
    return np.stack([outline(*pair, fine) for pair in logits] or [np.ones(under.shape[2:], np.float32)] * len(under))


def halved(masks: np.ndarray) -> np.ndarray:
    """Masks (k, R, R) in [0, 1] as a record keeps them, (k, R / 2, R / 2), rounded to 1/255."""
    small = F.avg_pool2d(torch.from_numpy(masks), 2)
    return np.rint(255 * small.numpy()).astype(np.float32) / np.float32(255)


def skin(logits: torch.Tensor) -> torch.Tensor:
    """Pixels (R, R), 0 or 1, where all N faces of a parser's logits (N, 19, R, R) show skin; `core` if they are few."""
    both = torch.isin(labels(logits), torch.tensor(SKIN_CLASSES, device=logits.device)).all(0).float().cpu()
    inner = core(both.shape[-1])
    return both if both.sum() > 0.3 * inner.sum() else inner


def shoulder(x: torch.Tensor) -> torch.Tensor:
    """Brightness with highlights that fade into white at 1: the identity up to BRIGHT, below 1 beyond."""
    return torch.where(x > BRIGHT, BRIGHT + (1 - BRIGHT) * torch.tanh((x - BRIGHT) / (1 - BRIGHT)), x)


def match_colours(
    face: torch.Tensor, under: torch.Tensor, where: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:  # fmt: skip
    """A rendered face in the photo's light: its skin has the photo's colours, so that no seam shows where they meet.

    face: (3, S, S) in [-1, 1], the rendering; under: the photo's crop, (3, R, R) or larger, S a multiple of R; where:
    (R, R) weights of the pixels that show skin in both. Returns (3, S, S). Brightness moves by the factor that moves
    its average around a pixel (over a quarter of the side) to the photo's: black eyes stay black. Colour, what is left
    without brightness, takes the photo's average and at most its spread (Reinhard et al., 2001): else white highlights
    on rosy skin turn blue when it becomes pale. mask: (M, M) in [0, 1], by which the face will be pasted: then the fine
    detail's contrast is matched, too, and the colours along the mask's rim.
    """
    where, side = where.float().cpu(), len(where)
    wide = gaussian(side, SPREAD * side)

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (x * where).sum((1, 2), keepdim=True) / where.sum().clamp_min(1e-6)

    def around(x: torch.Tensor) -> torch.Tensor:
        near = (wide @ (x * where) @ wide.T + FLOOR * mean(x)) / (wide @ where @ wide.T + FLOOR)
        return near.clamp(0.02, 0.98)

    face, sharp = ((x.detach().float().cpu() + 1) / 2 for x in (face, under))
    small, under = (F.adaptive_avg_pool2d(x, side) for x in (face, sharp))
    grey, grey_small, grey_under = (x.mean(0, keepdim=True) for x in (face, small, under))
    now, goal = (_as_large(around(x), face) for x in (grey_small, grey_under))
    brightness = grey * goal / now
    brightness = shoulder(brightness if mask is None else brightness + _grain(brightness, sharp.mean(0, True), where))
    colour, colour_under = small - grey_small, under - grey_under
    centre, goal = mean(colour), mean(colour_under)
    spread, spread_under = ((mean((c - m).square()).sum()) ** 0.5 for c, m in ((colour, centre), (colour_under, goal)))
    colour = goal + (face - grey - centre) * (spread_under / spread.clamp_min(1e-6)).clamp(max=1)
    matched = brightness + colour if mask is None else _to_rim(brightness + colour, under, where, mask)
    return matched.clamp(0, 1) * 2 - 1


def _as_large(x: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """A map (C, R, R) enlarged to the size of a face (3, S, S)."""
    return F.interpolate(x[None], face.shape[1:], mode="bilinear", align_corners=False)[0]


def _to_rim(face: torch.Tensor, under: torch.Tensor, where: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A face (3, S, S) whose skin meets the photo's under it, (3, R, R), along the rim of a mask (M, M).

    The difference of both, without fine detail, is added where the rim lies on skin, `where` (R, R), and fades within
    the face: a forehead below a fringe and a bare one meet without an edge.
    """
    side = len(where)
    fine, reach = gaussian(side, EDGE * side), gaussian(side, REACH * side)

    def blurred(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return by @ x @ by.T

    half = blurred(F.interpolate(mask.float()[None, None], (side, side), mode="bilinear", align_corners=False)[0], fine)
    rim = where * 4 * half * (1 - half)
    difference = blurred((under - F.adaptive_avg_pool2d(face, side)) * where, fine) / (blurred(where, fine) + 1e-3)
    return face + _as_large(blurred(difference * rim, reach) / (blurred(rim, reach) + FADE), face)


def _grain(grey: torch.Tensor, under: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """What brightness (1, S, S) lacks, or has too much, of the fine detail of the photo under it, (1, T, T).

    Skin, `where` (R, R), gets the contrast of the photo's skin, within GRAIN, of pores and of what is wider, each by
    its own factor; eyes, brows and mouth theirs, but no less.
    """
    rest, more = core(len(where)) * (1 - where), torch.zeros(())
    size = min(grey.shape[-1], under.shape[-1])
    now, goal = (F.adaptive_avg_pool2d(x, size) for x in (grey, under))
    skin, features = (F.interpolate(x[None, None], size=(size, size), mode="bilinear")[0] for x in (where, rest))

    def blurred(x: torch.Tensor, width: float) -> torch.Tensor:
        blur = gaussian(x.shape[-1], width * x.shape[-1])
        return blur @ x @ blur.T

    def factor(bands: list[torch.Tensor], weights: torch.Tensor, least: float) -> torch.Tensor:
        now, goal = ((x.square() * weights).sum() for x in bands)
        return (goal / now.clamp_min(1e-6)).sqrt().clamp(least, GRAIN[1]) - 1

    for narrow, wide in ((0.0, PORES), (PORES, DETAIL)):
        *bands, own = ((blurred(x, narrow) if narrow else x) - blurred(x, wide) for x in (now, goal, grey))
        much = skin * factor(bands, skin, GRAIN[0]) + (1 - skin) * factor(bands, features, 1.0)
        more = more + own * _as_large(much, own)
    return more


def box(matrix: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels of a photo of `size` (width, height) that a crop's square covers: x1, y1, x2, y2, ends excluded."""
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) @ matrix[:, :2].T + matrix[:, 2]
    x1, y1 = np.clip(np.floor(corners.min(0)).astype(int), 0, size)
    x2, y2 = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, size)
    return int(x1), int(y1), int(x2), int(y2)


def paste(photo: np.ndarray, face: Image.Image, matrix: np.ndarray, outline: np.ndarray | None = None) -> None:
    """Blend a rendered face into `photo` in place.

    photo: uint8 (H, W, 3); face: square RGB crop; matrix: (2, 3), its framing matrix, crop's unit square -> photo
    pixels; outline: (S, S) in [0, 1], a further mask in crop coordinates. Raises ValueError for a degenerate matrix.
    """
    for part, mask, shown in _layers(photo, face, matrix, outline):
        _set(part, mask > 0, part + mask * (shown - part))


def unblend(photo: np.ndarray, shown: Image.Image, matrix: np.ndarray, outline: np.ndarray | None = None) -> None:
    """Take a face out of `photo` in place, as far as something of the original is left under it.

    shown: the face as it was pasted, its colours matched; the rest as for `paste`. Pixels inside, where nothing is left
    of the original, have no meaning.
    """
    for part, mask, face in _layers(photo, shown, matrix, outline):
        a = np.minimum(mask, MOST)
        _set(part, mask > 0, (part - a * face) / (1 - a))


def paste_inside(photo: np.ndarray, face: Image.Image, matrix: np.ndarray, outline: np.ndarray | None = None) -> None:
    """`paste` with a narrower rim, which leaves more of the surroundings: the mask from INNER on."""
    for part, mask, shown in _layers(photo, face, matrix, outline):
        inner = np.clip((mask - INNER) / (1 - INNER), 0, 1)
        _set(part, inner > 0, part + inner * (shown - part))


def _set(part: np.ndarray, where: np.ndarray, values: np.ndarray) -> None:
    part[:] = np.where(where, np.rint(np.clip(values, 0, 255)), part).astype(np.uint8)


def _layers(
    photo: np.ndarray, face: Image.Image, matrix: np.ndarray, outline: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Parts of `photo` that cover the face's square, views of (h, w, 3), each with the mask (h, w, 1) in [0, 1] and the
    face there (h, w, 3), 0 to 255. They are strips: a face of 20 megapixels would take gigabytes at once."""
    linear, offset = matrix[:, :2], matrix[:, 2]
    if abs(np.linalg.det(linear)) < 1e-9:
        raise ValueError("the framing matrix is degenerate: the face has no area in the photo")
    inverse = np.linalg.inv(linear)
    # A face smaller in the photo than its rendering is shrunk first: sampling alone would alias.
    size = min(face.width, max(1, round(float(np.hypot(*linear[:, 0])))))
    if size < face.width:
        face = face.resize((size, size), Image.Resampling.LANCZOS)
    channels = np.moveaxis(np.asarray(face, dtype=np.float32), 2, 0)
    x0, y0, x1, y1 = box(matrix, (photo.shape[1], photo.shape[0]))
    for top in range(y0, y1, STRIP) if x0 < x1 else ():
        strip = (x0, top, x1, min(top + STRIP, y1))
        ys, xs = np.mgrid[strip[1] : strip[3], x0:x1]
        uv = np.stack([xs, ys], -1) @ inverse.T - inverse @ offset
        mask = ellipse(uv[..., 0], uv[..., 1])
        if outline is not None:
            mask = mask * np.clip(_resample(outline, inverse, offset, strip), 0, 1)
        shown = np.stack([_resample(channel, inverse, offset, strip) for channel in channels], -1)
        yield photo[strip[1] : strip[3], x0:x1], mask[..., None], shown


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
