"""A face drawn anew from what may be known of it, by the project's frozen generator; shared by several baselines.

The originals are image-to-image networks of tens of millions of parameters, trained for days. Here the generator draws,
and only its code has to be found: the body and the heads of the bundled encoder read the pictures, a small network adds
what a vector says (noise, a label, an identity). The heads and the body's last two stages stay as the encoder has them,
so that a system's own weights take 2 MB. A frozen generator cannot continue a photo exactly, so that a seam remains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

from riddle.baselines.regions import hidden, pasted
from riddle.files import sha256
from riddle.models.efficientnet import Conv
from riddle.models.inversion import EMBEDDING, POOLED, LiteEncoder
from riddle.models.parsing import ParsingNet, labels
from riddle.networks import Synthesis
from riddle.passwords import normal_from_key
from riddle.presets import get
from riddle.training.frozen import frozen_encoder, frozen_generator, frozen_parsing_net
from riddle.training.loop import LoopConfig
from riddle.weights import WeightsMissingError, bundled, load_metadata, load_tensors

PRESET = "mobile"  # the one scale of these systems
KEPT = 5  # first stages of the body that a system trains; the others stay the encoder's
BATCH = 16  # faces at a time


@dataclass(frozen=True)
class System:
    """What a system sees of a face, and what its key tells it."""

    name: str  # of its weights
    maps: int  # C, maps beside the picture and the mask
    look: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None  # labels -> mask (N, 1, R, R), maps
    tell: Callable[[Synthesis, torch.Tensor], torch.Tensor] | None = None  # generator, keys (N,) -> vectors (N, D)
    gates: tuple[float, ...] = ()  # per slot: how much of the vector is added to z, at first; (): it is not
    vector: int = 0  # V, numbers of the vector, which a random projection (V, D) makes as long as z; 0: it has D
    identity: str = (
        ""  # whose the encoder's own head adds to z: "seen", that of the picture; "told", the vector; "": no
    )


class Redraw(nn.Module):
    """What is known of faces, and a vector -> z (N, L, D), before the bound.

    encoder: trained; it is no part of the state.
    """

    def __init__(self, generator: Synthesis, encoder: LiteEncoder, system: System):
        super().__init__()
        self._frozen, self.n_latent, d = [generator, encoder], generator.n_latent, generator.style_dim
        stem = encoder.body.stem
        self.body = copy.deepcopy(encoder.body).requires_grad_(True)
        self.body.stem = Conv(stem.weight.shape[1] + 1 + system.maps, len(stem.weight), 3, 2)
        with torch.no_grad():
            self.body.stem.weight.zero_()[:, : stem.weight.shape[1]] = stem.weight
            self.body.stem.gain.copy_(stem.gain), self.body.stem.shift.copy_(stem.shift)
            self.register_buffer("mean_face", encoder.draw(torch.zeros(1, self.n_latent, d)), persistent=False)
        self.body.stages[KEPT:].requires_grad_(False)
        self.mix = nn.Sequential(
            nn.Linear((system.vector or d) + encoder.smooth[0].out_channels, 192), nn.LeakyReLU(0.2),
            nn.Linear(192, 192), nn.LeakyReLU(0.2), nn.Linear(192, self.n_latent * d),
        )  # fmt: skip
        nn.init.normal_(self.mix[-1].weight, std=0.01)
        nn.init.zeros_(self.mix[-1].bias)
        self.identity = system.identity
        gate = torch.tensor(system.gates)[:, None].expand(-1, d)
        if system.vector:
            gate = gate * torch.randn(system.vector, 1, d) / system.vector**0.5
        self.gate = nn.Parameter(gate.clone()) if system.gates else None
        if self.identity == "told":  # mean of people's embeddings, and a matrix that gives them variance 1 each way
            people = torch.cat([torch.zeros(1, EMBEDDING), torch.eye(EMBEDDING)])
            self.people = nn.Parameter(people, requires_grad=False)

    def forward(
        self, known: torch.Tensor, mask: torch.Tensor, maps: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        """known: faces (N, 3, R, R), hidden by the mask (N, 1, R, R); maps: (N, C, R, R); vectors: (N, D)."""
        pictures = torch.cat([known, self.mean_face.expand(len(known), -1, -1, -1), mask, maps], 1)
        z, read = self._frozen[1].slots(self.body(pictures.permute(0, 2, 3, 1)))
        told = self.mix(torch.cat([vectors, read.float()], 1)).float().view(len(z), self.n_latent, -1)
        if self.identity:
            who = None if self.identity == "seen" else (vectors, vectors.new_zeros(len(vectors), POOLED))
            told = told + self._frozen[1].told(known, self.mean_face, read, who)
        if self.gate is None:
            return z + told
        added = self.gate * vectors[:, None] if self.gate.ndim == 2 else torch.einsum("nv,vld->nld", vectors, self.gate)
        return z + told + added

    def again(self, faces: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Faces (N, 3, R, R), all seen, and vectors (N, D) -> z (N, L, D), and faces (N, 3, R, R) drawn from it."""
        nothing = faces.new_zeros(len(faces), 1, *faces.shape[2:])
        z = self(faces, nothing, nothing[:, :0], vectors)
        return z, self.draw(z)

    def recognise(self, faces: torch.Tensor) -> torch.Tensor:
        """Faces (N, 3, R, R) -> embeddings (N, 128) of variance 1, by the encoder's recogniser."""
        return self._frozen[1].recognise(faces)[0]

    def draw(self, z: torch.Tensor) -> torch.Tensor:
        """z (N, L, D), before the bound -> faces (N, 3, R, R)."""
        return self._frozen[1].draw(z)

    def replaced(
        self, faces: torch.Tensor, mask: torch.Tensor, maps: torch.Tensor, vectors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Faces (N, 3, R, R) with drawn ones in the masks' places, and the drawn ones; the rest as for `forward`."""
        drawn = self.draw(self(hidden(faces, mask), mask, maps, vectors))
        return pasted(faces, drawn, mask), drawn

    def groups(self, body_lr: float, lr: float) -> list[dict]:
        """Parameter groups of an optimiser: of the encoder's body, and of what starts at random, with their rates."""
        body = [p for p in self.body.parameters() if p.requires_grad]
        fresh = [*self.mix.parameters(), *([] if self.gate is None else [self.gate])]
        return [{"params": body, "lr": body_lr}, {"params": fresh, "lr": lr}]

    def own_state(self) -> dict[str, torch.Tensor]:
        """The trained part of the state; the rest is the encoder's."""
        return {k: v.detach() for k, v in self.named_parameters() if not k.startswith(_ENCODERS)}

    def load_own(self, state: dict[str, torch.Tensor]) -> Redraw:
        """Take `own_state`; returns itself. Raises RuntimeError for another network's."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [k for k in missing if not k.startswith(_ENCODERS)]
        if missing or unexpected:
            raise RuntimeError(f"missing {missing[:3]}, unexpected {unexpected[:3]}")
        return self


_ENCODERS = tuple(f"body.stages.{i}." for i in range(KEPT, 7))


def record_of(config: LoopConfig, steps: int, faces: int) -> dict[str, object]:
    """What the metadata of a system's weights say; `load` compares the encoder."""
    encoder = sha256(bundled(config.preset, "encoder"))[:12]
    return {"preset": config.preset, "steps": steps, "batch": config.batch, "faces": faces, "encoder": encoder}


# ---- use


@cache
def load(system: System) -> tuple[Redraw, ParsingNet, Synthesis]:
    """A system's trained network, the parser and the generator. Raises WeightsMissingError."""
    path, preset = bundled(PRESET, system.name), get(PRESET)
    if load_metadata(path).get("encoder") != sha256(bundled(PRESET, "encoder"))[:12]:
        remedy = f"train it anew (python -m riddle.baselines.{system.name} --recipe {PRESET})"
        raise WeightsMissingError(system.name, f"{path} belongs to another encoder", remedy)
    generator = frozen_generator(preset, "", "cpu")
    network = Redraw(generator, frozen_encoder(preset, "", generator), system).load_own(load_tensors(path))
    return network.eval().requires_grad_(False), frozen_parsing_net(preset, "", "cpu"), generator


def normal(label: str, keys: torch.Tensor, size: int) -> torch.Tensor:
    """Standard normal numbers of keys (N,), float32 (N, size); others for each label."""
    return torch.from_numpy(np.stack([normal_from_key(f"{label} {key}".encode(), size) for key in keys.tolist()]))


def checked(name: str, faces: torch.Tensor) -> torch.Tensor:
    """Faces as a system's networks take them, on the CPU. Raises ValueError for another size than (N, 3, 128, 128)."""
    side = get(PRESET).resolution
    if faces.shape[1:] != (3, side, side):
        raise ValueError(f"{name} takes faces (N, 3, {side}, {side}), got {tuple(faces.shape)}")
    return faces.float().cpu()


@torch.no_grad()
def protect(system: System, faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] -> the same with another face in each, by keys (N,).

    Raises WeightsMissingError, and ValueError for faces of another size.
    """
    faces = checked(system.name, faces)
    network, parser, generator = load(system)
    done = []
    for part, key in zip(faces.split(BATCH), keys.split(BATCH), strict=True):
        mask, maps = system.look(labels(parser(part)))
        done.append(network.replaced(part, mask, maps, system.tell(generator, key))[0])
    return torch.cat(done)
