"""The training that inpainting systems share: a network of redraw against a critic.

The critic is a small one with R1; a system adds the losses of its paper. Beside them stands a loss on the known part of
the picture, for the seam. Synthetic faces, whose codes are known, teach the part of the code that the picture tells;
the vector is then zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle.baselines.redraw import Redraw, System, record_of
from riddle.baselines.regions import hidden, pasted
from riddle.images import to_tensor
from riddle.losses import lpips_loss
from riddle.models.inversion import LiteEncoder
from riddle.models.parsing import ParsingNet, labels
from riddle.networks import Synthesis
from riddle.presets import get
from riddle.training import recipe
from riddle.training.frozen import LossNetworks, draw_codes, frozen_encoder, frozen_networks, frozen_parsing_net
from riddle.training.inversion import varied
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, means, run, spread

FAR = 2.0  # size of a number of z from which on it counts as too far
R1_EVERY = 8  # steps between two penalties on the critic's gradient (lazy regularisation, StyleGAN2)


@dataclass(frozen=True, kw_only=True)
class RedrawConfig(LoopConfig):
    """Faces, rates and loss weights."""

    data: str  # uint8 .npy (N, R, R, 3) of riddle.training.prepare faces
    val: str  # the same of held-out faces
    steps: int = 1_000_000
    minutes: float = 40.0
    batch: int = 8  # real faces per step
    synthetic: float = 0.25  # synthetic faces per real one
    lr: float = 1e-3  # Adam, of what starts at random
    body_lr: float = 3e-4  # of the encoder's body
    critic_lr: float = 2e-4  # of the discriminator
    ema: float = 0.995  # decay per step of the weights' average
    adversarial: float = 0.1  # non-saturating loss of the composite
    r1: float = 2.0  # of the discriminator's gradient at real faces
    context: float = 2.0  # squared error outside the mask
    lpips: float = 1.0  # of the picture with the mask in grey
    known: float = 0.3  # squared error of the z of synthetic faces, drawn with a vector of zeros
    length: float = 1.0  # how far z goes beyond what a normal distribution gives, in units that show
    landmarks: float = 0.1  # the parser's cross entropy of the drawn face for the given landmarks
    identity: float = 0.0  # of a system that has such a loss


class Critic(nn.Module):
    """Faces and what the generator saw, (N, C, R, R) -> one number for each, higher for real ones (N,)."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        widths, layers = (24, 48, 96, 128, 128), []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            channels = width
        self.convs = nn.Sequential(*layers)
        self.last = nn.Linear(channels * (side >> len(widths)) ** 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.convs(x).flatten(1))[:, 0]


class RedrawTask(Task):
    """The network of a system against a critic; a subclass adds the losses of its paper."""

    def __init__(
        self, config: RedrawConfig, accelerator: Accelerator, system: System, generator: Synthesis,
        encoder: LiteEncoder, frozen: LossNetworks, parser: ParsingNet, held_out: torch.Tensor,
    ):  # fmt: skip
        """held_out: uint8 (N, R, R, 3), faces that training never sees."""
        self.system, self.generator, self.frozen, self.parser = system, generator, frozen, parser
        self.held_out, self.seen = held_out, None
        network = Redraw(generator, encoder, system).to(accelerator.device)
        optimiser = torch.optim.Adam(network.groups(config.body_lr, config.lr), betas=(0.5, 0.99), fused=True)
        super().__init__(config, accelerator, "redraw", network, optimiser, shared=[generator, encoder])
        self.critic = Critic(4 + system.maps, get(config.preset).resolution).to(accelerator.device)
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), lr=config.critic_lr, betas=(0.0, 0.99), fused=True
        )
        self.networks["critic"], self.optimisers["critic"] = self.critic, self.critic_optimiser

    def look(self, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Faces (N, 3, R, R) -> their labels (N, R, R), and what the system sees: mask and maps."""
        with torch.no_grad(), self.accelerator.autocast():
            seen = labels(self.parser(faces))
        return seen, *self.system.look(seen)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, real = self.config, varied(to_tensor(batch["faces"]))
        n, made = len(real), draw_codes(self.generator, round(len(real) * c.synthetic))
        with torch.no_grad(), self.accelerator.autocast():
            both = torch.cat([real, self.generator(made).clamp(-1, 1).float()])
        seen, mask, maps = self.look(both)
        keys = torch.randint(2**62, (n,))
        vectors = self.system.tell(self.generator, keys)
        self.critic.requires_grad_(False)
        with self.accelerator.autocast():
            z = self.network(
                hidden(both, mask), mask, maps, torch.cat([vectors, vectors.new_zeros(len(made), vectors.shape[1])])
            )
            seen, mask, maps, told = seen[:n], mask[:n], maps[:n], z[n:]
            drawn = self.network.draw(z[:n])
            known = 1 - mask
            terms = {"context": ((drawn - real).square() * known).sum() / known.sum() / 3}
            terms["lpips"] = lpips_loss(self.frozen.perceive(real * known), self.frozen.perceive(drawn * known))
            shown = pasted(real, drawn, mask).float()
            terms["adversarial"] = F.softplus(-self.critic(torch.cat([shown, mask, maps], 1)).float()).mean()
            terms |= self.own_terms(drawn, shown, seen, maps, keys)
        codes, size = self.generator.codes, z[:n].abs()
        beyond = F.relu(size - FAR).square() * codes.importance
        length = (size.square() * codes.importance).mean(-1) - 1
        terms["length"] = F.relu(length).square().mean() + beyond.mean()
        terms["known"] = ((told - codes.to_gaussian(made)).square() * codes.importance).mean()
        self.seen = torch.cat([mask, maps], 1), real, shown.detach()
        return sum(getattr(c, name) * value for name, value in terms.items()), terms

    def own_terms(
        self, drawn: torch.Tensor, shown: torch.Tensor, seen: torch.Tensor, maps: torch.Tensor, keys: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """A system's own losses, by the names of their weights.

        drawn: (N, 3, R, R), before they are pasted; shown: pasted; seen: labels (N, R, R) of the originals.
        """
        raise NotImplementedError

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> Numbers:
        """One step of the network, then one of the critic."""
        numbers = super().step(batch, progress)
        self.critic.requires_grad_(True)
        given, real, shown = self.seen
        with self.accelerator.autocast():
            scores = self.critic(torch.cat([torch.cat([real, shown]), given.repeat(2, 1, 1, 1)], 1)).float()
        on_real, on_shown = scores.chunk(2)
        loss = F.softplus(-on_real).mean() + F.softplus(on_shown).mean()
        if self.config.r1 and self.counters["step"] % R1_EVERY == 0:
            at = real.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.critic(torch.cat([at, given], 1)).sum(), at, create_graph=True)
            loss = loss + self.config.r1 / 2 * R1_EVERY * slope.square().sum((1, 2, 3)).mean()
        self.accelerator.backward(loss)
        self.critic_optimiser.step()
        self.critic_optimiser.zero_grad(set_to_none=True)
        return numbers | {"critic": loss.detach(), "real": on_real.mean(), "shown": on_shown.mean()}

    @torch.no_grad()
    def protected(self, faces: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Faces (N, 3, R, R) as the average protects them by keys of a seed; what it sees; what it draws."""
        keys = torch.randint(2**62, (len(faces),), generator=torch.Generator().manual_seed(seed))
        _, mask, maps = self.look(faces)
        with self.accelerator.autocast():
            shown, drawn = self.average.replaced(faces, mask, maps, self.system.tell(self.generator, keys))
        return shown.float(), hidden(faces, mask), drawn.float()

    def validate(self) -> dict[str, float]:
        """On held-out faces: F_e's cosine with the original, and between two keys."""

        def numbers(faces: torch.Tensor) -> dict[str, torch.Tensor]:
            real = to_tensor(faces.to(self.accelerator.device))
            first, second, own = (
                self.frozen.embed(x).float() for x in (self.protected(real, 0)[0], self.protected(real, 1)[0], real)
            )
            both = {"cosine": F.cosine_similarity(first, own), "keys": F.cosine_similarity(first, second)}
            return both | {"people": F.cosine_similarity(first, first.roll(1, 0))}

        return {k: round(v, 4) for k, v in means(numbers, self.held_out[:48]).items()}

    def samples(self) -> torch.Tensor:
        """Rows of eight held-out faces: original, what is seen of it, protected by two keys, as drawn."""
        rows = []
        for part in spread(self.held_out, 16).split(8):
            real = to_tensor(part.to(self.accelerator.device))
            first, seen, drawn = self.protected(real, 0)
            rows += [real, seen, first, self.protected(real, 1)[0], drawn]
        return torch.cat(rows)


def train(task: type[RedrawTask], system: System, about: str, argv: list[str] | None = None) -> dict:
    """Command line of a system's module; returns the last logged numbers and those of held-out faces."""
    config = recipe.parse(RedrawConfig, system.name, about, argv)
    accelerator, preset = make_accelerator(config), get(config.preset)
    generator, frozen = frozen_networks(preset, "", accelerator.device)
    encoder = frozen_encoder(preset, "", generator)
    faces, held_out = (torch.from_numpy(np.load(path, mmap_mode="c")) for path in (config.data, config.val))
    torch.manual_seed(config.seed)
    parser = frozen_parsing_net(preset, "", accelerator.device)
    made = task(config, accelerator, system, generator, encoder, frozen, parser, held_out)
    last = run(made, {"faces": faces})
    about = record_of(config, last["step"], len(faces))
    return finish(made, system.name, last, about, made.average.own_state(), made.validate)
