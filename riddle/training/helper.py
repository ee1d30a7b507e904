"""A helper for the encryptor's first steps: losses computed on codes, so that a step draws no face.

    python -m riddle.training.helper --recipe mobile

trains `CodeRecogniser`, which guesses from a face's code its embedding by F_e and a picture of 16 px. `code_loss` uses
it in the place of generator and loss networks: a step then costs a third and sees 16 originals. The paper's losses
follow, on faces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle import losses
from riddle.machine import fast_autocast
from riddle.models.encryptor import KEPT, build_encryptor
from riddle.networks import Synthesis
from riddle.presets import get
from riddle.progress import track
from riddle.training import recipe
from riddle.training.frozen import SPREAD, Features, draw_codes, draw_keys, frozen_networks
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, run
from riddle.weights import load_tensors

SMALL = 16  # px of the guessed picture
BANDS = (KEPT, 40, 160)  # first components of the bands of z whose lengths count: what shows, and what hardly does
EXAMPLE = ("z", "embedding", "picture")  # what is learned from a face
FRESH, LATEST = 8, 16_384  # faces that a coach draws a step, and that it keeps
MEMORY = 50  # steps over which running means are taken
WIDTH, DROPOUT, DECAY = 768, 0.2, 0.1


class CodeRecogniser(nn.Module):
    """z (N, L, D) -> guesses of F_e's embedding of the face that it draws, (N, E) of unit length, and of the face,
    (N, 3, 16, 16)."""

    def __init__(self, n_latent: int, dim: int, embedding: int = 128, width: int = WIDTH):
        super().__init__()
        self.register_buffer("scale", torch.ones(dim))
        self.first, self.second = nn.Linear(n_latent * dim, width), nn.Linear(width, width)
        self.identity, self.picture = nn.Linear(2 * width, embedding), nn.Linear(2 * width, 3 * SMALL**2)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.first((z * self.scale).flatten(1))
        y = F.gelu(self.second(F.dropout(F.gelu(x), DROPOUT, self.training)))
        x = torch.cat([x, y], 1)
        return F.normalize(self.identity(x).float(), dim=1), self.picture(x).float().unflatten(1, (3, SMALL, SMALL))


def small(faces: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, R, R) averaged down to (N, 3, 16, 16)."""
    return F.adaptive_avg_pool2d(faces.float().clamp(-1, 1), SMALL)


def guess_loss(recogniser: CodeRecogniser, z: torch.Tensor, wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 - cosine, and squared error, a scalar: what is guessed of z (N, L, D) against `wanted`, F_e's embeddings (N, E)
    and pictures (N, 3, 16, 16)."""
    with fast_autocast(z.device):
        embedded, pictures = recogniser(z)
    return (1 - F.cosine_similarity(embedded, wanted[0])).mean() + F.mse_loss(pictures, wanted[1])


def load_code_recogniser(path: str | Path) -> CodeRecogniser:
    """The frozen network of a file that this module wrote. Raises FileNotFoundError."""
    state = load_tensors(path)
    dim, width = len(state["scale"]), len(state["first.bias"])
    recogniser = CodeRecogniser(state["first.weight"].shape[1] // dim, dim, len(state["identity.bias"]), width)
    recogniser.load_state_dict(state)
    return recogniser.eval().requires_grad_(False)


def linked(made: torch.Tensor) -> torch.Tensor:
    """Mean clamped cosine of made[i] and made[i + B / 2], for vectors (B, ..., E): 0 for unlike people."""
    first, second = made.chunk(2)
    return F.cosine_similarity(first, second, dim=-1).clamp_min(0).mean()


def code_loss(
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], z: torch.Tensor, keys: torch.Tensor,
    scale: torch.Tensor, recogniser: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None, diverse: bool,
    centre: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:  # fmt: skip
    """The loss, its terms by name, and the codes made (B, m (n + 2), L, D): recovered ones, then the others.

    change: z, password -> z; z: (B, L, D); keys: (B, m, n + 1, D), passwords in z, the first of the n + 1 encrypts;
    scale: (D,), `GaussianCodes.importance`; recogniser: a `CodeRecogniser`, or None; diverse: False for "w/o identity
    diversity loss"; centre: (2, 2, L, D), running means which the call moves on, or None: of encrypted and of wrongly
    decrypted z, made of the originals with even and with odd numbers, which may be of two kinds.
    Decrypted z is as it was. Encrypted and wrongly decrypted z turn away from the original's and, where diverse, from
    each other, have a normal length (by `BANDS`) and mean, differ between slots no more than the original or `SPREAD`,
    and keep the leading components (pose, light, hair). Originals i and i + B / 2, which may share passwords, do not
    become one person. Equations 1 to 4, each term as a mean, and eq. 6 on small pictures are computed on the
    recogniser's guesses.
    """
    b, m, n = len(z), keys.shape[1], keys.shape[2] - 1
    keys = keys[..., None, :].expand(-1, -1, -1, z.shape[1], -1)
    encrypted = change(z.repeat_interleave(m, 0), keys[:, :, 0].flatten(0, 1))
    opened = change(
        torch.cat([encrypted, encrypted.repeat_interleave(n, 0)]),
        torch.cat([keys[:, :, 0].flatten(0, 1), keys[:, :, 1:].flatten(0, 2)]),
    )
    back, wrong = opened[: b * m], opened[b * m :]
    changed = torch.cat([encrypted.unflatten(0, (b, m)), wrong.unflatten(0, (b, m * n))], 1)
    others = 1 - torch.eye(changed.shape[1], device=z.device)
    share = others.numel() / others.sum()  # eq. 2 counts the diagonal

    def apart(original: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Clamped cosines of made (B, K, E) with the original (B, E) and, where diverse, with each other."""
        alike = losses.deidentification_loss(original, made) / made.shape[1]
        return alike + share * losses.diversity_loss(made) if diverse else alike

    terms = {"code_recovery": ((back - z.repeat_interleave(m, 0)).square() * scale).mean()}
    terms["code_apart"] = apart(z[..., KEPT:].flatten(0, 1), changed[..., KEPT:].transpose(1, 2).flatten(0, 1))
    bands = changed.square().tensor_split([k for k in BANDS if k < z.shape[2]], -1)[1:]
    terms["code_length"] = torch.stack([(band.mean(-1) - 1).square().mean() for band in bands]).mean()
    terms["code_kept"] = (changed - z[:, None])[..., :KEPT].square().mean()
    spread, spread_made = ((x.var(-2, correction=0) * scale).mean(-1) for x in (z, changed))
    terms["code_spread"] = F.relu(spread_made - spread.clamp_max(SPREAD**2 * scale.mean())[:, None]).mean()
    total = terms["code_recovery"] + 0.5 * terms["code_apart"] + 0.6 * terms["code_length"] + 0.6 * terms["code_kept"]
    total = total + terms["code_spread"]
    if centre is not None:
        parts = [x.unflatten(0, (b, -1)) for x in (encrypted, wrong)]
        means = torch.stack([torch.stack([x[i::2].mean((0, 1)) for i in (0, 1)]) for x in parts]).float()
        centre.lerp_(means.detach(), 1 / MEMORY)
        terms["code_centre"] = (centre * (2 * means - centre) * scale).mean()  # the gradient of the squared mean
        total = total + terms["code_centre"]
    terms["code_linked"] = linked((changed * scale.sqrt())[..., KEPT:])
    total = total + 0.5 * terms["code_linked"]
    made = torch.cat([back.unflatten(0, (b, m)), changed], 1)
    if recogniser is not None:
        (wanted, picture), (guessed, pictures) = recogniser(z), recogniser(made.flatten(0, 1))
        guessed, pictures = (x.unflatten(0, made.shape[:2]) for x in (guessed, pictures))
        terms["guessed_apart"] = apart(wanted, guessed[:, m:])
        terms["guessed_recovery"] = losses.recovery_loss(wanted, guessed[:, :m]) / m
        terms["guessed_pixel"] = losses.pixel_loss(picture, pictures) / made.shape[1]
        terms["guessed_linked"] = linked(guessed[:, m:])
        total = total + terms["guessed_apart"] + terms["guessed_recovery"] + terms["guessed_pixel"]
        total = total + 0.5 * terms["guessed_linked"]
    return total, terms, made.detach()


class Coach:
    """Retrains the recogniser of codes on the encryptor's own, because it is wrong on them otherwise. At each step it
    learns from the faces of some of these codes and from earlier ones. A checkpoint holds the recogniser, not the
    earlier faces.
    """

    def __init__(self, recogniser: CodeRecogniser, show: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]):
        """show: z (N, L, D) -> F_e's embeddings of the faces (N, E), and the faces, `small`."""
        self.recogniser, self.show = recogniser, show
        self.optimiser = torch.optim.AdamW(recogniser.parameters(), lr=3e-4, weight_decay=DECAY)
        self.examples: list[tuple[torch.Tensor, ...]] = []  # z, embedding, picture of one face each

    def step(self, made: torch.Tensor) -> torch.Tensor:
        """One step from codes (N, L, D) that an encryptor made; returns the mean cosine on faces new to it, ()."""
        z = made[torch.randperm(len(made), device=made.device)[:FRESH]]
        wanted = self.show(z)
        with torch.no_grad():
            cosine = F.cosine_similarity(self.recogniser(z)[0], wanted[0]).mean()
        self.examples = [*self.examples, *zip(z, *wanted, strict=True)][-LATEST:]
        rows = torch.randint(len(self.examples), (128 - len(z),)).tolist()
        old = zip(*(self.examples[i] for i in rows), strict=True)
        z, *wanted = (torch.cat([new, torch.stack(part)]) for new, part in zip((z, *wanted), old, strict=True))
        self.recogniser.train().requires_grad_(True)
        self.optimiser.zero_grad(set_to_none=True)
        guess_loss(self.recogniser, z, wanted).backward()
        self.optimiser.step()
        self.recogniser.eval().requires_grad_(False)  # the encryptor's loss goes through it, not to it
        return cosine


@dataclass(frozen=True, kw_only=True)
class HelperConfig(LoopConfig):
    """Faces and rates."""

    generator: str = ""  # safetensors; without: the bundled weights
    count: int = 60_000  # faces to draw
    steps: int = 3000
    batch: int = 256
    lr: float = 1e-3  # AdamW
    warmup: float = 0.05  # share of the training


class RecogniserTask(Task):
    """A recogniser of codes that learns from faces of nobody."""

    def __init__(
        self, config: HelperConfig, accelerator: Accelerator, scale: torch.Tensor, held_out: Sequence[torch.Tensor]
    ):
        """scale: (D,), of the components of z; held_out: examples as `draw_examples` gives them, not learned from."""
        self.held_out = [part.float().to(accelerator.device) for part in held_out]
        z, embedded, _ = self.held_out
        recogniser = CodeRecogniser(z.shape[1], z.shape[2], embedded.shape[1]).to(accelerator.device)
        recogniser.scale.copy_(scale)
        optimiser = torch.optim.AdamW(recogniser.parameters(), lr=config.lr, weight_decay=DECAY)
        # The name stays in files and options: "code_judge" is what checkpoints and recipes have.
        super().__init__(config, accelerator, "code_judge", recogniser, optimiser)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        z, *wanted = (batch[name].float() for name in EXAMPLE)
        return guess_loss(self.network, z, wanted), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean cosine of guessed embeddings with F_e's, on held-out faces."""
        z, wanted, _ = self.held_out
        return {"cosine": round(F.cosine_similarity(self.average(z)[0], wanted).mean().item(), 4)}


@torch.no_grad()
def draw_examples(preset: str, generator: Synthesis, embed: Features, count: int) -> list[torch.Tensor]:
    """Codes z (count, L, D), F_e's embeddings of their faces (count, E), and the faces, `small`; all in float16.

    Half are drawn, half are what the untrained keyed reflection makes of drawn ones.
    """
    turn, made = build_encryptor(preset, "reflection", generator.codes), []
    for i in track(range(0, count, 32), "faces"):
        w = draw_codes(generator, 32)
        if i % 64:
            w = turn(w, draw_keys(generator, 32, 1, 1)[:, 0, 0])
        with fast_autocast(w.device):
            faces = generator(w)
            made.append((generator.codes.to_gaussian(w).half(), embed(faces).half(), small(faces).half()))
    return [torch.cat(part)[:count] for part in zip(*made, strict=True)]


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns the last logged numbers and the cosine on held-out examples."""
    config = recipe.parse(HelperConfig, "helper", __doc__, argv)
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    generator, frozen = frozen_networks(get(config.preset), config.generator, accelerator.device)
    examples, held = draw_examples(config.preset, generator, frozen.embed, config.count), max(1, config.count // 20)
    scale = generator.codes.importance.clamp_max(6)
    task = RecogniserTask(config, accelerator, scale, [part[:held] for part in examples])
    last = run(task, {name: part[held:] for name, part in zip(EXAMPLE, examples, strict=True)}) | task.validate()
    about = {"preset": config.preset, "faces": config.count, "steps": last["step"], "cosine": last["cosine"]}
    return finish(task, "code_judge", last, about)


if __name__ == "__main__":
    recipe.command(main)
