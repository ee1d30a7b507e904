"""What FIT and Personal share: a network draws a face anew with a vector of the key, and once more to undo it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from riddle.baselines.redraw import Redraw, System, checked, load, record_of
from riddle.images import to_tensor
from riddle.losses import lpips_loss
from riddle.models.inversion import LiteEncoder
from riddle.networks import Synthesis
from riddle.presets import get
from riddle.training.frozen import LossNetworks, frozen_encoder, frozen_networks
from riddle.training.loop import LoopConfig, Task, finish, make_accelerator, means, run, spread

BATCH = 16  # faces at a time


@torch.no_grad()
def changed(
    system: System, faces: torch.Tensor, keys: torch.Tensor,
    tell: Callable[[Redraw, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Faces (N, 3, 128, 128) in [-1, 1] drawn anew; tell: the network, some faces, their keys (N,) -> vectors (N, V).

    Raises WeightsMissingError, and ValueError for faces of another size.
    """
    faces = checked(system.name, faces)
    network = load(system)[0]
    parts = zip(faces.split(BATCH), keys.split(BATCH), strict=True)
    return torch.cat([network.again(part, tell(network, part, key))[1] for part, key in parts])


@dataclass(frozen=True, kw_only=True)
class ReversibleConfig(LoopConfig):
    """Faces and rates."""

    data: str  # uint8 .npy (N, R, R, 3) of riddle.training.prepare faces
    val: str  # the same of held-out faces
    steps: int = 1_000_000
    minutes: float = 60.0
    batch: int = 4  # each face is drawn three or four times
    lr: float = 5e-4  # Adam, of what starts at random
    body_lr: float = 5e-5  # of the encoder's body
    ema: float = 0.995  # decay per step of the weights' average


class ReversibleTask(Task):
    """The network that draws a face with a vector; a subclass adds the vector and the loss."""

    system: System

    def __init__(
        self, config: ReversibleConfig, accelerator: Accelerator, generator: Synthesis, encoder: LiteEncoder,
        frozen: LossNetworks, held_out: torch.Tensor,
    ):  # fmt: skip
        """held_out: uint8 (N, R, R, 3), faces that training never sees."""
        self.frozen, self.held_out = frozen, held_out
        network = Redraw(generator, encoder, self.system).to(accelerator.device)
        optimiser = torch.optim.Adam(network.groups(config.body_lr, config.lr), betas=(0.9, 0.99), fused=True)
        super().__init__(config, accelerator, "redraw", network, optimiser, shared=[generator, encoder])

    def tell(self, faces: torch.Tensor, keys: torch.Tensor, back: bool) -> torch.Tensor:
        """Faces (N, 3, R, R), keys (N,) -> vectors (N, V), with which they are protected, or restored (`back`)."""
        raise NotImplementedError

    def identity(self, faces: torch.Tensor) -> torch.Tensor:
        """F_e's unit vectors (N, E) of faces (N, 3, R, R)."""
        return F.normalize(self.frozen.embed(faces).float(), dim=1)

    def apart(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """LPIPS between faces, both (N, 3, R, R)."""
        return lpips_loss(self.frozen.perceive(a), self.frozen.perceive(b))

    @torch.no_grad()
    def pictures(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """uint8 (N, R, R, 3) -> originals, protected by two keys, restored, restored by a wrong one."""
        real, draw = to_tensor(faces.to(self.accelerator.device)), torch.Generator().manual_seed(0)
        keys, other, wrong = (torch.randint(2**62, (len(real),), generator=draw) for _ in range(3))

        def change(faces: torch.Tensor, keys: torch.Tensor, back: bool) -> torch.Tensor:
            return self.average.again(faces, self.tell(faces, keys, back))[1]

        with self.accelerator.autocast():
            locked = change(real, keys, False)
            rest = (change(real, other, False), change(locked, keys, True), change(locked, wrong, True))
        return [x.float() for x in (real, locked, *rest)]

    def validate(self) -> dict[str, float]:
        """Held-out faces: F_e's cosine of each picture with the original, and between two keys."""

        def numbers(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            own, *e = map(self.identity, self.pictures(faces))
            names = ("protected", "other", "restored", "wrong")
            alike = {name: (own * x).sum(1) for name, x in zip(names, e, strict=True)}
            return alike | {"keys": (e[0] * e[1]).sum(1)}

        return {k: round(v, 4) for k, v in means(numbers, self.held_out[:48]).items()}

    def samples(self) -> torch.Tensor:
        """Rows of eight held-out faces, as `pictures` has them."""
        return torch.cat(self.pictures(spread(self.held_out, 8)))


def beyond(z: torch.Tensor) -> torch.Tensor:
    """How far z (N, L, D) goes beyond what a normal distribution gives, a scalar."""
    return F.relu(z.square().mean(-1) - 1).square().mean()


def train(task: type[ReversibleTask], config: ReversibleConfig) -> dict:
    """Train a system; returns the last logged numbers and those of held-out faces."""
    accelerator, preset = make_accelerator(config), get(config.preset)
    generator, frozen = frozen_networks(preset, "", accelerator.device)
    faces, held_out = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in (config.data, config.val))
    torch.manual_seed(config.seed)
    made = task(config, accelerator, generator, frozen_encoder(preset, "", generator), frozen, held_out)
    last = run(made, {"faces": faces})
    about = record_of(config, last["step"], len(faces))
    return finish(made, task.system.name, last, about, made.average.own_state(), made.validate)
