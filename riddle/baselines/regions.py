"""Place and landmarks of a face, from a parser's classes: what inpainting systems may know of the face they replace."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from riddle.models.parsing import CLASSES

INSIDE = ("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")  # of a face
MOUTH = ("mouth", "u_lip", "l_lip")
POINTS = ("l_eye", "r_eye", "nose", "l_ear", "r_ear")  # DeepPrivacy's keypoints, but for the shoulders
GROUPS = (INSIDE, ("nose",), MOUTH)  # of `shape_loss`; a pixel is of the last group that has its class
TAIL = 0.005  # share of the face's pixels beyond each side of its box: the parser leaves specks
LEAST = 0.02  # share of the picture; a smaller face counts as not found, and the middle of the picture takes its place
USUAL = (0.22, 0.2, 0.78, 0.95)  # left, top, right, bottom of that place, as shares of the side
ENOUGH = 0.7  # cross entropy below which a landmark counts as met, so that eyes do not grow for the parser's sake
SPOT = 1 / 64  # std of a keypoint in its map, as a share of the side


def ids(names: tuple[str, ...]) -> torch.Tensor:
    """The numbers of these classes."""
    return torch.tensor([CLASSES.index(name) for name in names])


def of(labels: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    """Labels (N, R, R) -> the pixels of these classes, (N, 1, R, R), 0 or 1."""
    return torch.isin(labels.long(), ids(names).to(labels.device))[:, None].float()


def grown(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """A mask (N, C, R, R), `reach` pixels larger on each side."""
    return F.max_pool2d(mask, 2 * reach + 1, 1, reach)


def outline(mask: torch.Tensor) -> torch.Tensor:
    """The rim of a mask (N, C, R, R), two pixels wide."""
    return grown(mask, 1) - (1 - grown(1 - mask, 1))


def _usual(face: torch.Tensor) -> torch.Tensor:
    """The mask (1, 1, R, R) of `USUAL`."""
    at = (torch.arange(face.shape[-1], device=face.device) + 0.5) / face.shape[-1]
    left, top, right, bottom = USUAL
    return (((at > top) & (at < bottom))[:, None] & ((at > left) & (at < right))[None]).float()[None, None]


def box(labels: torch.Tensor) -> torch.Tensor:
    """Labels (N, R, R) -> the upright box around each face, (N, 1, R, R), 0 or 1."""
    face = of(labels, INSIDE)
    total, sides = face.sum((2, 3)), []
    for axis in (3, 2):
        profile = face.sum(axis)[:, 0] / total.clamp_min(1)
        share = profile.cumsum(1)
        sides.append(((share > TAIL) & (share - profile < 1 - TAIL)).float())
    mask = grown(sides[0][:, None, :, None] * sides[1][:, None, None, :], 1)
    return torch.where(face.mean((1, 2, 3), keepdim=True) < LEAST, _usual(face), mask)


def region(labels: torch.Tensor) -> torch.Tensor:
    """Labels (N, R, R) -> the face with its rim and without holes, (N, 1, R, R), 0 or 1."""
    face = of(labels, INSIDE)
    known = face * box(labels)  # without specks
    closed = 1 - grown(1 - grown(known, 6), 4)
    return torch.where(face.mean((1, 2, 3), keepdim=True) < LEAST, _usual(face), closed)


def points(labels: torch.Tensor) -> torch.Tensor:
    """Labels (N, R, R) -> one map for each of POINTS, (N, 5, R, R): a spot of height 1, zero where there is none."""
    parts = torch.cat([of(labels, (name,)) for name in POINTS], 1)
    count, side = parts.sum((2, 3)), labels.shape[-1]
    at = torch.arange(side, device=labels.device, dtype=torch.float32)
    y, x = ((parts.sum(axis) * at).sum(2) / count.clamp_min(1) for axis in (3, 2))
    spread = 2 * (SPOT * side) ** 2
    spots = [torch.exp(-((at - middle[..., None]) ** 2) / spread) for middle in (y, x)]
    return spots[0][..., :, None] * spots[1][..., None, :] * (count > 3)[..., None, None]


def landmarks(labels: torch.Tensor) -> torch.Tensor:
    """Labels (N, R, R) -> CIAGAN's landmark picture (N, 3, R, R), 0 or 1: outline of the face, mouth, bridge of the
    nose. Eyes and brows are left out, as there: they belong to the new identity."""
    mouth, nose = of(labels, MOUTH), of(labels, ("nose",))
    at = torch.arange(labels.shape[-1], device=labels.device, dtype=torch.float32)
    width = nose.sum(3, keepdim=True)
    middle = (nose * at).sum(3, keepdim=True) / width.clamp_min(1)
    bridge = ((at - middle).abs() < 1) & (width > 1)
    return torch.cat([outline(region(labels)), outline(mouth), bridge.float()], 1)


def hidden(faces: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R), grey where the mask (N, 1, R, R) is 1."""
    return faces * (1 - mask)


def pasted(faces: torch.Tensor, drawn: torch.Tensor, mask: torch.Tensor, rim: int = 2) -> torch.Tensor:
    """Drawn faces (N, 3, R, R) where the mask (N, 1, R, R) is 1, mixed into `faces` within 2 `rim` pixels around it."""
    soft = F.avg_pool2d(grown(mask, rim), 2 * rim + 1, 1, rim, count_include_pad=False)
    soft = torch.where(mask > 0, 1, soft)  # exactly: nothing of the original is left inside
    return faces * (1 - soft) + drawn * soft


def points_loss(logits: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Cross entropy beyond ENOUGH of the parser's logits (N, 19, R, R) of drawn faces for each keypoint's class at its
    spot in the maps (N, 5, R, R)."""
    seen = logits.float().log_softmax(1)[:, ids(POINTS).to(logits.device)]
    weights = maps.square()  # an eye is not much larger than its spot
    total, here = weights.sum((2, 3)).clamp_min(1e-6), (maps.amax((2, 3)) > 0).float()
    missed = (-(seen * weights).sum((2, 3)) / total - ENOUGH).relu()
    return (missed * here).sum() / here.sum().clamp_min(1)


def shape_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy beyond ENOUGH of the parser's logits (N, 19, R, R) of drawn faces for the groups of the labels
    (N, R, R): face, nose, mouth, and all else."""
    group = torch.zeros(len(CLASSES), dtype=torch.long, device=logits.device)
    for i, names in enumerate(GROUPS, 1):
        group[ids(names).to(logits.device)] = i
    joined = torch.stack([logits.float()[:, group == i].logsumexp(1) for i in range(len(GROUPS) + 1)], 1)
    return (F.cross_entropy(joined, group[labels.long()], reduction="none") - ENOUGH).relu().mean()
