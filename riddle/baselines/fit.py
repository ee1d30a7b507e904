"""FIT, the face identity transformer (Gu, Luo, Ryoo, Lee, ECCV 2020): a password goes into an image-to-image network.

    python -m riddle.baselines.fit --recipe mobile

One network T reads a face and a password of 16 bits, as -1 and 1. T(face, p) is a protected face; T of it with the
inverse password (each bit turned) is the face again; with any other password it is somebody else, and so is the face
protected by another password. The key gives the bits. All is in the pixels: nothing is kept beside the picture.

As there: 16 bits, the inverse password, and the losses. Identity by a frozen recogniser (F_e): protected and wrongly
restored faces are not the original's person, nor each other's; the restored face is. L1 between the restored face and
the original. Adversarial, by patches, for protected and wrongly restored faces. An auxiliary network reads the password
from a pair of faces, so that the network heeds it. Smaller or other than there: a frozen generator draws, and a code is
searched in place of a picture (riddle.baselines.redraw). Each bit moves the code along a learned direction, which the
inverse password moves back; there, planes of bits lie beside the picture. LPIPS stands beside L1, and keeps pose and
surroundings of the protected face; one critic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from riddle.baselines.redraw import System
from riddle.baselines.reversible import ReversibleConfig, ReversibleTask, beyond, changed, train
from riddle.images import to_tensor
from riddle.training import recipe
from riddle.training.inversion import varied
from riddle.training.loop import Numbers

BITS = 16  # of a password; as in the paper
SYSTEM = System("fit", 0, gates=(0.2, 0.2, 0.3, 1, 1, 1, 1, 1, 0.3, 0.3), vector=BITS, identity="seen")


class Patches(nn.Module):
    """Pictures (N, C, R, R) -> numbers (N, `out`) for each of R/16 x R/16 patches: critic, or reader of passwords."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        layers: list[nn.Module] = []
        for width in (32, 64, 96, 128):
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = width
        self.convs = nn.Sequential(*layers, nn.Conv2d(channels, out, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x)


def bits_of(keys: torch.Tensor) -> torch.Tensor:
    """Keys (N,) -> the password of each, its lowest 16 bits, as -1 and 1 (N, 16)."""
    return ((keys[:, None] >> torch.arange(BITS)) & 1).float() * 2 - 1


def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, 128, 128) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    return changed(SYSTEM, faces, keys, lambda _net, _face, key: bits_of(key))


def restore(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Protected faces (N, 3, 128, 128) and their keys (N,) -> the faces again; another key gives somebody else."""
    return changed(SYSTEM, faces, keys, lambda _net, _face, key: -bits_of(key))


# ---- training


@dataclass(frozen=True, kw_only=True)
class FitConfig(ReversibleConfig):
    """Rate of the critic, and loss weights."""

    critic_lr: float = 2e-4  # and of the reader of passwords
    apart: float = 2.0  # cosine above zero: protected, wrongly restored, and the original
    together: float = 4.0  # 1 - cosine of the restored face
    restored: float = 2.0  # L1 of the restored face
    looks: float = 0.8  # LPIPS of the restored face
    near: float = 0.3  # LPIPS of the protected face, which keeps pose and surroundings
    adversarial: float = 0.1
    password: float = 0.5  # cross entropy of the reader
    length: float = 0.02  # how far z goes beyond what a normal distribution gives


class FitTask(ReversibleTask):
    """The network, the reader of passwords, which trains with it, and a critic of patches."""

    system = SYSTEM

    def __init__(self, *parts):
        """parts: as for `ReversibleTask`."""
        super().__init__(*parts)
        self.reader = Patches(6, BITS).to(self.accelerator.device)
        self.critic = Patches(3, 1).to(self.accelerator.device)
        for name, network in {"reader": self.reader, "critic": self.critic}.items():
            self.networks[name] = network
            self.optimisers[name] = torch.optim.Adam(
                network.parameters(), lr=self.config.critic_lr, betas=(0.5, 0.99), fused=True
            )
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None  # real and made faces of this step, for the critic

    def tell(self, faces: torch.Tensor, keys: torch.Tensor, back: bool) -> torch.Tensor:
        return (-bits_of(keys) if back else bits_of(keys)).to(faces.device)

    def read(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Two faces (N, 3, R, R) -> logits of the bits that led from the first to the second, (N, 16)."""
        return self.reader(torch.cat([before, after], 1)).mean((2, 3))

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, real = self.config, varied(to_tensor(batch["faces"]))
        bits, other, wrong = (bits_of(torch.randint(2**BITS, (len(real),))).to(real.device) for _ in range(3))
        wrong = torch.where((wrong == bits).all(1, keepdim=True), -wrong, wrong)
        self.critic.requires_grad_(False)
        with self.accelerator.autocast():
            z, locked = self.network.again(torch.cat([real, real]), torch.cat([bits, other]))
            first, second = locked.chunk(2)
            z_back, drawn = self.network.again(torch.cat([first, first]), torch.cat([-bits, -wrong]))
            opened, lost = drawn.chunk(2)
            made = torch.cat([first, second, lost])
            own, back, *others = self.identity(torch.cat([real, opened, made])).unflatten(0, (5, -1))
            pairs = [(own, x) for x in others] + [(others[0], others[1]), (others[0], others[2])]
            read = torch.cat([self.read(real, first), self.read(first, lost)]).float()
            terms = {
                "apart": sum((a * b).sum(1).relu().mean() for a, b in pairs) / len(pairs),
                "together": (1 - (own * back).sum(1)).mean(),
                "restored": (opened - real).abs().mean(),
                "looks": self.apart(opened, real),
                "near": self.apart(first, real),
                "adversarial": F.softplus(-self.critic(made).float()).mean(),
                "password": F.binary_cross_entropy_with_logits(read, (torch.cat([bits, -wrong]) > 0).float()),
            }
        terms["length"] = beyond(torch.cat([z, z_back]))
        self.seen = real, made.detach().float()
        return sum(getattr(c, name) * value for name, value in terms.items()), terms

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> Numbers:
        """One step of the network and the reader, then one of the critic."""
        numbers = super().step(batch, progress)
        self.critic.requires_grad_(True)
        real, made = self.seen
        with self.accelerator.autocast():
            on_real, on_made = self.critic(real).float(), self.critic(made).float()
        loss = F.softplus(-on_real).mean() + F.softplus(on_made).mean() + 0.001 * on_real.square().mean()
        self.accelerator.backward(loss)
        for name in ("reader", "critic"):
            self.optimisers[name].step()
            self.optimisers[name].zero_grad(set_to_none=True)
        return numbers | {"critic": loss.detach()}


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and those of held-out faces."""
    return train(FitTask, recipe.parse(FitConfig, "fit", __doc__, argv))


if __name__ == "__main__":
    recipe.command(main)
