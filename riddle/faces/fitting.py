"""Which stranger takes a face's place: how well each fits into the photo, and how little it resembles the person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from riddle.faces import blending, recognizers
from riddle.faces.recognizers import Recognizer
from riddle.models.codes import lit
from riddle.models.parsing import labels

BARE, CUT, LIGHT = 16.0, 4.0, 2.0  # weights of terms of `misfit`
EXPOSED, UNASKED = 4.0, 1.0  # costs of old glasses that stick out, and of new ones where there were none
FEW = 0.004  # share of the crop below which glasses are hardly any
LIKE, FAR = 4.0, 0.2  # weight of a recogniser's similarity; that of strangers in one surroundings, which costs nothing
TASTE = 0.2, 0.2  # weights of the critic's logits: the face, and the person
CANDIDATES, FINALISTS = 24, 8  # strangers of whom a face becomes the one that fits best; those compared twice for that
SHADE = 0.03  # of the side; finer detail than this is no shade


def strangers(
    model: Any, w: torch.Tensor, under: torch.Tensor, keys: Callable[[list[int]], torch.Tensor], many: bool
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Who takes the places of k faces: codes in z, as a record keeps them, those that are drawn, the keys' turns.

    model: a `Riddle`; w: (k, L, D); under: (k, 3, R, R); keys: k turns -> keys; many: choose by `best`, where parser
    and recogniser are.
    """
    k, space = len(w), model.generator.codes
    recogniser = recognizers.at_hand(model.preset.identity, model.device) if many and model.mask == "parser" else None
    tries = CANDIDATES if recogniser else 1
    own = torch.cat([keys([turn] * k).expand(k, -1, -1) for turn in range(tries)])
    z = space.to_record(model.encrypt(w.repeat(tries, 1, 1), own))  # rounded: as the picture shows it
    codes = space.to_w(z)
    z, seen = (x.unflatten(0, (tries, k)) for x in (z, lit(codes, model.decrypt(codes, own))))
    if recogniser is None:
        return z[0], seen[0], [0] * k
    turns, chosen = zip(*(best(model, seen[:, i], under[i], recogniser) for i in range(k)), strict=True)
    return z[turns, range(k)], torch.stack(chosen), list(turns)


def best(
    model: Any, codes: torch.Tensor, under: torch.Tensor, recogniser: Recognizer
) -> tuple[int, torch.Tensor]:  # fmt: skip
    """Which of n codes (n, L, D) draws the new face that fits best in the place of an old one, (3, R, R), by `misfit`,
    and the code (L, D) that shows it there, `settled`.

    All are compared as they are drawn, and the best FINALISTS again when they are settled.
    """
    by = under, partial(model._batched, model.parser, batch=32), recogniser, model.critic
    costs, pasted = misfit(model.synthesize(codes), *by)
    order = costs.argsort()[:FINALISTS]
    settled = model.invert(pasted[order], refine=0)
    first = int(misfit(model.synthesize(settled), *by)[0].argmin())
    return int(order[first]), settled[first]


class Place(NamedTuple):
    """A new face in an old one's place; all of R x R pixels."""

    where: torch.Tensor  # (R, R), skin in both
    mask: torch.Tensor  # (R, R) in [0, 1], by which the new face replaces the old one
    matched: torch.Tensor  # (3, R, R), the new face in the photo's light
    pasted: torch.Tensor  # (3, R, R), what the photo's crop shows then


def in_place(face: torch.Tensor, under: torch.Tensor, logits: torch.Tensor) -> Place:
    """A new face (3, R, R) as `protect` pastes it into the crop of an old one; logits (2, 19, R, R): a parser's, of the
    old and the new one."""
    under, where = under.float().cpu(), blending.skin(logits)
    mask = torch.from_numpy(blending.outline(*logits, fine=True)).float()
    matched = blending.match_colours(face, under, where, mask)
    return Place(where, mask, matched, under + mask * (matched - under))


def pasted(faces: torch.Tensor, under: torch.Tensor, logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the crops `under` (k, 3, R, R) show with new faces in their places, each `in_place`: (k, 3, R, R)."""
    return torch.stack([in_place(*place).pasted for place in zip(faces, under, logits, strict=True)])


def misfit(
    faces: torch.Tensor, under: torch.Tensor, parser: Callable[[torch.Tensor], torch.Tensor], recogniser: Recognizer,
    critic: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """How much each of n new faces would stand out in the place of an old one, or resemble it: (n,), small is good; and
    what the crop shows then, (n, 3, R, R).

    faces: (n, 3, R, R) in [-1, 1], the new ones; under: (3, R, R), the old one; parser: faces -> logits (n, 19, R, R);
    critic: as riddle.models.critic has it. A sum of eight terms, all of the face as it would be pasted:

        unsure   the entropy of the parser's classes over `blending.core`: half a brow, hair over an eye, a smear
        seam     the difference of both faces along the mask's soft rim: a jaw of another colour
        bare     the mask's share in which the new face shows hair or background: a narrower cheek, a lock
        cut      what of the new face lies on the photo's neck or background, as a share of the mask: a second chin
        light    the difference of brightness, of its logarithm without fine detail, over the skin: a hard shadow
        likeness the recogniser's similarity beyond that of strangers
        glasses  see `of_glasses`
        critic   its two logits, by TASTE: a twisted face, a beard below a woman's hair

    The weights of all but `bare`, `cut` and `critic` were chosen on 48 faces in the places of six people of CelebA-HQ's
    validation split, of which 20 passed for real by eye; those of these three by the looks of what is chosen, on 864
    faces in the places of 18 such people.
    """
    old, *new = parser(torch.cat([under[None].to(faces), faces]))
    under, places, sums = under.float().cpu(), [], []
    beside = old.softmax(0)[[*blending.BESIDE_CLASSES, *blending.NECK_CLASSES]].sum(0).cpu()
    for shown, logits in zip(faces, new, strict=True):
        pair = torch.stack([old, logits])
        place = in_place(shown, under, pair)
        rim = place.mask * (1 - place.mask)
        seam = ((place.matched - under).abs().mean(0) * rim).sum() / rim.sum().clamp_min(1e-6)
        light = (_shade(place.matched, place.where) - _shade(under, place.where)).square()
        light = ((light * place.where).sum() / place.where.sum().clamp_min(1)) ** 0.5
        shares = logits.softmax(0).cpu()
        face, neck = (shares[list(classes)].sum(0) for classes in (blending.FACE_CLASSES, blending.NECK_CLASSES))
        bare = (place.mask * (1 - face - neck)).sum() / place.mask.sum().clamp_min(1e-6)
        cut = (face * beside).sum() / place.mask.sum().clamp_min(1e-6)
        sums.append(float(seam + LIGHT * light + BARE * bare + CUT * cut) + of_glasses(*pair))
        places.append(place.pasted)
    both = torch.stack([under, *places]).to(recogniser.device)
    classes, core = parser(both[1:]).float().log_softmax(1).cpu(), blending.core(under.shape[-1])
    unsure = (-(classes.exp() * classes).sum(1) * core).sum((1, 2)) / core.sum()
    embeddings = recogniser.from_crop(both)
    alike = recogniser.similarity(embeddings[:1].expand(len(faces), -1), embeddings[1:]).cpu()
    liked = critic(both[1:]).cpu() @ torch.tensor(TASTE) if critic else 0
    return torch.tensor(sums) + unsure + LIKE * (alike - FAR).clamp_min(0) - liked, both[1:]


def of_glasses(old: torch.Tensor, new: torch.Tensor) -> float:
    """What the glasses of an old and a new face cost, from a parser's logits (19, R, R) of both.

    EXPOSED times the share of the old ones that sticks out, where the new face shows neither skin nor glasses: a bare
    temple looks cut off. UNASKED for new ones where there were none: they have no temples in the photo's hair.
    """
    before, shown = labels(old), labels(new)
    (worn, added), few = ((x == blending.GLASSES).sum() for x in (before, shown)), FEW * before.numel()
    if worn < few:
        return UNASKED * float(added >= few)
    covered = torch.isin(shown, torch.tensor(blending.FACE_CLASSES, device=shown.device))
    return EXPOSED * float(((before == blending.GLASSES) & ~covered).sum() / worn)


def _shade(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The logarithm of the brightness of a picture (3, R, R) in [-1, 1] around each pixel, of the pixels `where`."""
    blur = blending.gaussian(len(where), SHADE * len(where))
    grey = ((x + 1) / 2).mean(0).clamp_min(0.02).log()
    return (blur @ (grey * where) @ blur.T) / (blur @ where @ blur.T + 1e-3)
