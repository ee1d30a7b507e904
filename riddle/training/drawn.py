"""What faces drawn from codes owe besides realism, while a generator over eigenfaces is tuned.

Samples of the mapping and mirrored codes (riddle.training.components) have no photo that they should look like. They
keep the components' face in the large, and the mirrored ones the photo's features in place; and mirrored faces of one
person must be other people, as eq. 1 to 3 ask of encrypted faces: the generator is free to draw them so, the encryptor
only to choose the code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from riddle.losses import deidentification_loss, diversity_loss
from riddle.models.eigenfaces import Eigenfaces, to_offsets
from riddle.training.judges import Features


def structure_error(base: Eigenfaces, drawn: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean squared distance at 16 px of faces (M, 3, R, R) to the eigenfaces of their codes (M, L, D)."""
    with torch.no_grad():
        wanted = F.avg_pool2d(base(codes), 2)
    return F.mse_loss(F.adaptive_avg_pool2d(drawn.float(), wanted.shape[2]), wanted)


def places_error(parse: Features, drawn: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """Eq. 8 as a mean square: the parser's logits on mirrored faces (N, 3, R, R) and on their photos, in order."""
    with torch.no_grad():
        places = parse(photos)
    return F.mse_loss(parse(drawn).float(), places.float())


def alike(embed: Features, drawn: torch.Tensor, photos: torch.Tensor, people: int) -> torch.Tensor:
    """How alike mirrored faces are to their photos and, two of one photo, to each other: the mean of the positive
    cosines of either kind (eq. 1 to 3), summed.

    photos: (K, 3, R, R); drawn: (N, 3, R, R), row i of photo i mod K; people: how many photos are compared, at most,
    of those that two rows show. 0 where there is none.
    """
    k = len(photos)
    pairs = min(people, len(drawn) - k, k)
    if pairs < 1:
        return drawn.new_zeros(())
    with torch.no_grad():
        wanted = embed(photos[:pairs]).float()
    two = embed(torch.cat([drawn[:pairs], drawn[k : k + pairs]])).float().unflatten(0, (2, pairs)).transpose(0, 1)
    return deidentification_loss(wanted, two) / 2 + 2 * diversity_loss(two)  # a sum over two, a mean over two by two


def misread(read: torch.Tensor, codes: torch.Tensor, slots: int) -> torch.Tensor:
    """Mean squared error of the components (the first slots) that an encoder read, both (N, L, D)."""
    return (to_offsets(read.float()) - to_offsets(codes.float()))[:, :slots].square().mean()
