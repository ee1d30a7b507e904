"""A critic of faces in their places: does a face look right there, and does the person suit the hair around it?"""

from __future__ import annotations

import torch
from torch import nn

from riddle.models.efficientnet import TAPS
from riddle.models.inversion import EMBEDDING, POOLED, LiteEncoder


class Critic(nn.Module):
    """Faces (N, 3, R, R) in [-1, 1] -> two logits (N, 2): how right a face looks, and how right its person.

    The first is a linear map of the mean and the spread of the maps of the encoder's body, the second one of what the
    encoder's recogniser says. Both were learned apart, because the second would explain away the first. encoder: the
    trained one, not a part of the state.
    """

    def __init__(self, encoder: LiteEncoder):
        super().__init__()
        self._encoder = [encoder]
        self.looks, self.person = nn.Linear(2 * sum(TAPS.values()), 1), nn.Linear(EMBEDDING + POOLED, 1)

    def features(self, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each logit is a linear map of: (N, 992) and (N, 640)."""
        encoder = self._encoder[0]
        mean = encoder.read(faces[:1], 0)[1].expand(len(faces), -1, -1, -1)
        maps = [x.flatten(1, 2).float() for x in encoder.body(torch.cat([faces, mean], 1).permute(0, 2, 3, 1))]
        looks = [part for x in maps for part in (x.mean(1), x.std(1))]
        return torch.cat(looks, 1), torch.cat(encoder.recognise(faces), 1)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        looks, person = self.features(faces)
        return torch.cat([self.looks(looks), self.person(person)], 1)
