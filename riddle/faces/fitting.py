"""How well a stranger fits into a photo, and how little it resembles the person whose place it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from riddle.faces import blending
from riddle.faces.recognizers import Recognizer

EXPOSED, FEW = 4.0, 0.01  # weight of `exposed` glasses; share of the crop below which they are hardly glasses
SHADE = 0.03  # of the side; finer detail than this is no shade


def misfit(
    faces: torch.Tensor, under: torch.Tensor, logits: Sequence[torch.Tensor], recogniser: Recognizer
) -> float:  # fmt: skip
    """How much new faces stand out in the places of old ones, or resemble them: the mean of k faces, 0 is good.

    faces, under: (k, 3, R, R) in [-1, 1], the new and the old ones; logits: k of (2, 19, R, R), the parser's of an old
    face and the new one. A sum of four terms. The first is the mean probability over `blending.core` that the parser
    gives a pixel two different classes: a head turned another way, glasses on one of the two. The second is the
    difference of brightness, of its logarithm without fine detail, over the skin of both: a hard shadow. The third is
    the recogniser's similarity. Without it, faces that fit are more often recognised. The fourth is `exposed`.
    """
    total, shown = 0.0, []
    for face, photo, pair in zip(faces, under, logits, strict=True):
        same, core = pair.float().softmax(1).prod(0).sum(0).cpu(), blending.core(pair.shape[-1])
        where = blending.skin(pair)
        matched, photo = blending.match_colours(face, photo, where), photo.float().cpu()
        light = (_shade(matched, where) - _shade(photo, where)).square()
        light = ((light * where).sum() / where.sum().clamp_min(1)) ** 0.5
        total += float(1 - (same * core).sum() / core.sum() + light) + EXPOSED * exposed(*pair)
        shown.append(photo + torch.from_numpy(blending.outline(*pair)).float() * (matched - photo))
    old, new = (recogniser.from_crop(x.to(recogniser.device)) for x in (under.float(), torch.stack(shown)))
    return (total + float(recogniser.similarity(old, new).sum())) / len(shown)


def exposed(old: torch.Tensor, new: torch.Tensor) -> float:
    """The share of the old face's glasses that stick out: the new face shows neither skin nor glasses there.

    From a parser's logits (19, R, R) of both. A bare temple beside a stranger without glasses looks cut off.
    """
    glasses, shown = old.argmax(0) == blending.GLASSES, new.argmax(0)
    covered = torch.isin(shown, torch.tensor(blending.FACE_CLASSES, device=shown.device))
    return float((glasses & ~covered).sum() / glasses.sum().clamp_min(FEW * glasses.numel()))


def _shade(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The logarithm of the brightness of a picture (3, R, R) in [-1, 1] around each pixel, of the pixels `where`."""
    blur = blending.gaussian(len(where), SHADE * len(where))
    grey = ((x + 1) / 2).mean(0).clamp_min(0.02).log()
    return (blur @ (grey * where) @ blur.T) / (blur @ where @ blur.T + 1e-3)
