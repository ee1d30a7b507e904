"""FIT, the face identity transformer (Gu, Luo, Ryoo, Lee, ECCV 2020): a password goes into an image-to-image network.

    python -m riddle.baselines.fit --recipe mobile

One network T reads a face and a password of 16 bits, spread over the picture as 16 planes of -1 and 1. T(face, p) is a
protected face; T of it with the inverse password (each bit turned) is the face again; with any other password it is
somebody else, and so is the face protected by another password. The key gives the bits. All is in the pixels: nothing
is kept beside the picture.

As there: 16 bits, the inverse password, and the losses. Identity by a frozen recogniser (F_e): protected and wrongly
restored faces are not the original's person, nor each other's; the restored face is. L1 between the restored face and
the original, and a weaker one between the protected face and the original. Adversarial, by patches, for protected and
wrongly restored faces. An auxiliary network reads the password from a pair of faces, so that the network heeds it.
Smaller than there: a residual U-Net of 2 million parameters from random weights, 128 px, one critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle.images import to_tensor
from riddle.presets import get
from riddle.training import recipe
from riddle.training.frozen import Features, frozen_networks
from riddle.training.inversion import varied
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, means, run, spread
from riddle.weights import bundled, load_tensors

BITS = 16  # of a password; as in the paper
WIDTHS = (32, 64, 96, 128)  # channels at R/2, R/4, R/8 and R/16
BATCH = 32  # faces at a time


class Residual(nn.Module):
    """Two 3 x 3 convolutions, group norm and ReLU beside a shortcut."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1), nn.GroupNorm(8, c_out),
        )  # fmt: skip
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.shortcut(x) + self.convs(x))


class Transformer(nn.Module):
    """Faces (N, 3, R, R) and bits (N, 16) of -1 and 1 -> faces (N, 3, R, R); any R that 16 divides.

    No layer runs at full resolution: 2 x 2 pixels are folded into channels. The network gives the change of the face.
    """

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([Residual(12 + BITS, WIDTHS[0])])
        self.down.extend(Residual(a, b) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))
        self.told = nn.Linear(BITS, WIDTHS[-1])
        self.middle = nn.Sequential(*(Residual(WIDTHS[-1], WIDTHS[-1]) for _ in range(2)))
        self.up = nn.ModuleList(Residual(b + a, a) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))
        self.last = nn.Conv2d(WIDTHS[0], 12, 3, padding=1)
        nn.init.normal_(self.last.weight, std=0.01)

    def forward(self, faces: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        folded = F.pixel_unshuffle(faces, 2)
        planes = bits[:, :, None, None].expand(-1, -1, *folded.shape[2:])
        x, kept = torch.cat([folded, planes], 1), []
        for i, stage in enumerate(self.down):
            x = stage(F.avg_pool2d(x, 2) if i else x)
            kept.append(x)
        x = self.middle(x + self.told(bits)[:, :, None, None])
        for stage, skip in zip(reversed(self.up), reversed(kept[:-1]), strict=True):
            x = stage(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], 1))
        return torch.tanh(torch.atanh(0.97 * faces) + F.pixel_shuffle(self.last(x), 2))


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


@cache
def load() -> Transformer:
    """The bundled network. Raises WeightsMissingError."""
    network = Transformer()
    network.load_state_dict(load_tensors(bundled("mobile", "fit")))
    return network.eval().requires_grad_(False)


def _change(faces: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    if faces.shape[1] != 3 or faces.shape[-1] % 16 or faces.shape[-2] % 16:
        raise ValueError(f"fit takes faces (N, 3, R, R) of a side that 16 divides, got {tuple(faces.shape)}")
    network = load()
    with torch.no_grad():
        return torch.cat([network(*part) for part in zip(faces.split(BATCH), bits.split(BATCH), strict=True)])


def protect(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R) in [-1, 1] and keys (N,) -> protected faces. Raises WeightsMissingError, ValueError."""
    return _change(faces, bits_of(keys))


def restore(faces: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Protected faces (N, 3, R, R) and their keys (N,) -> the faces again; another key gives somebody else."""
    return _change(faces, -bits_of(keys))


# ---- training


@dataclass(frozen=True, kw_only=True)
class FitConfig(LoopConfig):
    """Faces, rates and loss weights."""

    data: str  # uint8 .npy (N, R, R, 3) of riddle.training.prepare faces
    val: str  # the same of held-out faces
    steps: int = 1_000_000
    minutes: float = 120.0
    batch: int = 8
    lr: float = 5e-4  # Adam, of the network and the reader of passwords
    critic_lr: float = 2e-4
    apart: float = 2.0  # cosine above zero: protected, wrongly restored, and the original
    together: float = 2.0  # 1 - cosine of the restored face
    restored: float = 10.0  # L1 of the restored face
    near: float = 1.0  # L1 of the protected face, which keeps pose and surroundings
    adversarial: float = 0.2
    password: float = 1.0  # cross entropy of the reader


class Pair(nn.Module):
    """The network and the reader of passwords, which train together."""

    def __init__(self):
        super().__init__()
        self.transformer, self.reader = Transformer(), Patches(6, BITS)

    def read(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Two faces (N, 3, R, R) -> logits of the bits that led from the first to the second, (N, 16)."""
        return self.reader(torch.cat([before, after], 1)).mean((2, 3))


class FitTask(Task):
    """The network against a critic of patches."""

    def __init__(self, config: FitConfig, accelerator: Accelerator, embed: Features, held_out: torch.Tensor):
        """embed: F_e; held_out: uint8 (N, R, R, 3), faces that training never sees."""
        self.embed, self.held_out, self.seen = embed, held_out, None
        network = Pair().to(accelerator.device)
        optimiser = torch.optim.Adam(network.parameters(), lr=config.lr, betas=(0.5, 0.99), fused=True)
        super().__init__(config, accelerator, "fit", network, optimiser)
        self.critic = Patches(3, 1).to(accelerator.device)
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), lr=config.critic_lr, betas=(0.0, 0.99), fused=True
        )
        self.networks["critic"], self.optimisers["critic"] = self.critic, self.critic_optimiser

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, real, device = self.config, varied(to_tensor(batch["faces"])), self.accelerator.device
        bits, other, wrong = (bits_of(torch.randint(2**BITS, (len(real),))).to(device) for _ in range(3))
        wrong = torch.where((wrong == bits).all(1, keepdim=True), -wrong, wrong)
        change = self.network.transformer
        self.critic.requires_grad_(False)
        with self.accelerator.autocast():
            locked = change(torch.cat([real, real]), torch.cat([bits, other]))
            first, second = locked.chunk(2)
            opened, lost = change(torch.cat([first, first]), torch.cat([-bits, -wrong])).chunk(2)
            made = torch.cat([first, second, lost])
            e = F.normalize(self.embed(torch.cat([real, opened, made])).float(), dim=1).unflatten(0, (5, -1))
            own, back, *others = e
            pairs = [(own, x) for x in others] + [(others[0], others[1]), (others[0], others[2])]
            read = torch.cat([self.network.read(real, first), self.network.read(first, lost)]).float()
            terms = {
                "apart": sum((a * b).sum(1).relu().mean() for a, b in pairs) / len(pairs),
                "together": (1 - (own * back).sum(1)).mean(),
                "restored": (opened - real).abs().mean(),
                "near": (locked - torch.cat([real, real])).abs().mean(),
                "adversarial": F.softplus(-self.critic(made).float()).mean(),
                "password": F.binary_cross_entropy_with_logits(read, (torch.cat([bits, -wrong]) > 0).float()),
            }
        self.seen = real, made.detach().float()
        return sum(getattr(c, name) * value for name, value in terms.items()), terms

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> Numbers:
        """One step of the network, then one of the critic."""
        numbers = super().step(batch, progress)
        self.critic.requires_grad_(True)
        real, made = self.seen
        with self.accelerator.autocast():
            on_real, on_made = self.critic(real).float(), self.critic(made).float()
        loss = F.softplus(-on_real).mean() + F.softplus(on_made).mean() + 0.001 * on_real.square().mean()
        self.accelerator.backward(loss)
        self.critic_optimiser.step()
        self.critic_optimiser.zero_grad(set_to_none=True)
        return numbers | {"critic": loss.detach()}

    @torch.no_grad()
    def pictures(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """uint8 (N, R, R, 3) -> originals, protected by two passwords, restored, restored by a wrong one."""
        real = to_tensor(faces.to(self.accelerator.device))
        draw = torch.Generator().manual_seed(0)
        bits, other, wrong = (bits_of(torch.randint(2**BITS, (len(real),), generator=draw)) for _ in range(3))
        bits, other, wrong = (x.to(real.device) for x in (bits, other, wrong))
        change = self.average.transformer
        locked = change(real, bits)
        return [real, locked, change(real, other), change(locked, -bits), change(locked, wrong)]

    def validate(self) -> dict[str, float]:
        """Held-out faces: F_e's cosine of each picture with the original, and the restored one's L1."""

        def numbers(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            shown = self.pictures(faces)
            e = [F.normalize(self.embed(x).float(), dim=1) for x in shown]
            alike = dict(
                zip(("protected", "other", "restored", "wrong"), ((e[0] * x).sum(1) for x in e[1:]), strict=True)
            )
            return alike | {"keys": (e[1] * e[2]).sum(1), "l1": (shown[3] - shown[0]).abs().mean((1, 2, 3))}

        return {k: round(v, 4) for k, v in means(numbers, self.held_out[:48]).items()}

    def samples(self) -> torch.Tensor:
        """Rows of eight held-out faces, as `pictures` has them."""
        return torch.cat(self.pictures(spread(self.held_out, 8)))


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and those of held-out faces."""
    config = recipe.parse(FitConfig, "fit", __doc__, argv)
    accelerator = make_accelerator(config)
    _, frozen = frozen_networks(get(config.preset), "", accelerator.device)
    faces, held_out = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in (config.data, config.val))
    torch.manual_seed(config.seed)
    task = FitTask(config, accelerator, frozen.embed, held_out)
    last = run(task, {"faces": faces})
    last |= {f"val_{k}": v for k, v in task.validate().items()}
    about = {"preset": config.preset, "steps": last["step"], "batch": config.batch, "faces": len(faces)}
    return finish(task, "fit", last, about, task.average.transformer)


if __name__ == "__main__":
    main()
