"""A discriminator that looks through a pretrained network (Sauer et al., Projected GANs, NeurIPS 2021).

A discriminator of its own learns what faces are from the few images that a CPU can draw; on the features of a network
trained on photographs, small heads learn it many times sooner. The features are LPIPS's SqueezeNet (ImageNet), which
the training needs anyway. As in the paper: several layers, each mixed by a fixed random projection, and heads that
judge places, not the whole picture. Ours: SqueezeNet, twice the resolution instead of 224 px, no mixing across scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from riddle.training.augment import augment
from riddle.training.gan import GANTask, nonsaturating_generator
from riddle.training.loop import average_gradients, faces_to_float
from riddle.training.settings import InversionConfig

TAPS = (1, 2, 4, 6)  # layers of LPIPS's SqueezeNet: 128, 256, 384 and 512 channels
WIDTH = 64  # of a head


class ProjectedCritic(nn.Module):
    """Faces (N, 3, R, R) in [-1, 1] -> logits of each layer, (N, P) over places.

    lpips: riddle.zoo.load_lpips("squeeze"); zoom: how much larger the network sees the faces.
    """

    def __init__(self, lpips: nn.Module, zoom: float = 2.0, seed: int = 0):
        super().__init__()
        self.trunk, self.scaling, self.zoom = lpips.net, lpips.scaling_layer, zoom
        with torch.no_grad():
            sizes = [x.shape[1] for x in self._taps(torch.zeros(1, 3, 64, 64))]
        draw = torch.Generator().manual_seed(seed)
        self.heads = nn.ModuleList()
        for i, size in enumerate(sizes):
            self.register_buffer(f"mix{i}", torch.randn(WIDTH, size, 1, 1, generator=draw) / size**0.5)
            self.register_buffer(f"scale{i}", torch.zeros(()))
            self.heads.append(
                nn.Sequential(
                    spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
                    nn.LeakyReLU(0.2),
                    spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2 if i < 2 else 1)),
                    nn.LeakyReLU(0.2),
                    spectral_norm(nn.Conv2d(WIDTH, 1, 3, padding=1)),
                )
            )

    def _taps(self, faces: torch.Tensor) -> list[torch.Tensor]:
        if self.zoom != 1:
            faces = F.interpolate(faces, scale_factor=self.zoom, mode="bilinear", align_corners=False)
        features = self.trunk(self.scaling(faces).contiguous(memory_format=torch.channels_last))
        return [features[i] for i in TAPS]

    def forward(self, faces: torch.Tensor) -> list[torch.Tensor]:
        logits = []
        for i, (x, head) in enumerate(zip(self._taps(faces), self.heads, strict=True)):
            x = F.conv2d(x, getattr(self, f"mix{i}").to(x.dtype))
            scale = getattr(self, f"scale{i}")
            if not scale:  # once, from the first batch: heads see numbers of unit size
                scale.copy_(x.detach().float().square().mean().rsqrt())
            logits.append(head(x * scale.to(x.dtype)).flatten(1).float())
        return logits


def hinge_discriminator(real: list[torch.Tensor], fake: list[torch.Tensor]) -> torch.Tensor:
    """Hinge loss of a discriminator (Lim and Ye, 2017), each layer weighing the same."""
    return sum(F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)) / len(real)


def hinge_generator(fake: list[torch.Tensor]) -> torch.Tensor:
    """What a generator makes of it."""
    return -sum(f.mean() for f in fake) / len(fake)


class Realism:
    """A projected critic in training: what it says of generated faces, and its own steps on real ones."""

    def __init__(
        self,
        lpips: nn.Module,
        faces: torch.Tensor,
        accelerator: Accelerator,
        lr: float = 1e-3,
        probability: float = 0.15,
    ):
        """faces: uint8 (M, R, R, 3), the real ones; probability: of each augmentation."""
        self.faces, self.accelerator, self.probability = faces, accelerator, probability
        self.critic = ProjectedCritic(lpips).to(accelerator.device)
        self.heads = self.critic.heads.requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.heads.parameters(), lr=lr, betas=(0.0, 0.99))

    def draw(self, count: int) -> torch.Tensor:
        """Real faces, half of them mirrored: (count, 3, R, R)."""
        rows = torch.randint(len(self.faces), (count,))
        real = faces_to_float(self.faces[rows].to(self.accelerator.device))
        return torch.where(torch.rand(count, 1, 1, 1, device=real.device) < 0.5, real.flip(3), real)

    def loss(self, fake: torch.Tensor) -> torch.Tensor:
        """How far faces (N, 3, R, R) are from what the critic takes for real; with gradients to them."""
        return hinge_generator(self.critic(augment(fake, self.probability)))

    def step(self, fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """One step of the critic on detached faces and as many real ones; returns its loss."""
        real, p = self.draw(len(fake)) if real is None else real, self.probability
        self.heads.requires_grad_(True)
        with self.accelerator.autocast():
            loss = hinge_discriminator(self.critic(augment(real, p)), self.critic(augment(fake.detach(), p)))
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, self.heads.parameters())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.heads.requires_grad_(False)
        return loss.detach()


class Critics:
    """Discriminator and, where `realism` is given, projected critic of a generator that is tuned with the inversion.

    Faces come as k reconstructions, then M drawn ones, the only ones that the projected critic sees: (k + M, 3, R, R).
    """

    def __init__(self, gan: GANTask, config: InversionConfig, realism: Realism | None = None):
        self.gan, self.config, self.realism = gan, config, realism

    def criticised(self, drawn: torch.Tensor) -> torch.Tensor:
        """The share of drawn faces (M, 3, R, R) that the projected critic sees, the costliest of the judges."""
        return drawn[torch.randperm(len(drawn))[: max(1, round(len(drawn) * self.config.criticised))]]

    def terms(self, fake: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
        """What they say of generated faces, weighted, with gradients to these."""
        c, logits = self.config, self.gan.d(augment(fake, self.gan.counters["ada_p"]))
        terms = {
            "adv_recon": c.adversarial_recon * nonsaturating_generator(logits[:k]),
            "adv_sample": c.adversarial_sample * nonsaturating_generator(logits[k:]),
        }
        if self.realism is not None:
            terms["projected"] = c.projected * self.realism.loss(self.criticised(fake[k:]))
        return terms

    def step(self, real: torch.Tensor, fake: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
        """One step of both on real faces (N, 3, R, R), with more drawn where there are, and detached generated ones."""
        self.gan.d.requires_grad_(True)
        more = 0 if self.realism is None else max(0, len(fake) - len(real))
        shown = torch.cat([real, self.realism.draw(more)]) if more else real[: len(fake)]
        numbers = self.gan.discriminator_step(shown, fake)
        if self.realism is not None:
            drawn = self.criticised(fake[k:])
            numbers["critic"] = self.realism.step(drawn, shown[: len(drawn)])
        return numbers
