"""Train the latent encryptor of a preset; everything else is frozen (paper, section 3).

    python -m riddle.training.encryptor --recipe mobile     # or ffhq256, ffhq1024: the paper's scale, on one GPU
    ... --variant datafree --out results/runs/datafree    # section 3.3: codes drawn from the mapping network, no data
    ... --variant nodiv --out results/runs/nodiv          # Table 5; also mlp, and coupling, which is ours
    ... --weights recovery=3 latent=0.1 --lr 3e-4
    ... --linked 2 --apart 2                              # ours: one password keeps two people apart; more L_div
    ... --pixels 3                                        # ours: recovery from published pixels, too

Two forward passes of the encryptor make all codes of a step; the generator and the loss networks then see them in one
batch. The weights' running average is what is kept: encryptor.safetensors. Give all variants the same options:
Table 5 reads the options from the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.checkpoint import checkpoint

from riddle import losses
from riddle.files import sha256
from riddle.losses import LossWeights
from riddle.models.encryptor import build_encryptor
from riddle.models.inversion import Encoder, LiteEncoder
from riddle.networks import Synthesis
from riddle.presets import ALL_VARIANTS, CONTROLS, get
from riddle.published import fitting, load_codes
from riddle.training import recipe
from riddle.training.frozen import LossNetworks, draw_codes, draw_keys, frozen_encoder, frozen_networks
from riddle.training.helper import Coach, CodeRecogniser, code_loss, linked, load_code_recogniser, small
from riddle.training.loop import LoopConfig, Numbers, Task, finish, make_accelerator, run
from riddle.training.passes import encrypt_and_decrypt, evaluate, portions
from riddle.training.pixelpath import publish
from riddle.weights import BACKBONES, WeightsMissingError, bundled, load_tensors

COACHED = 4  # steps of the encryptor for one step of the recogniser of codes
FILES = ("codes", "val_codes", "code_judge", "generator", "parser", "encoder", "start")  # options that name a file
MAKE = "make it first by python -m riddle.training.prepare codes (docs/paper.md, docs/training.md)"
COMPARED = {"lpips": losses.lpips_loss, "parsing": losses.parsing_loss}  # on networks' outputs


@dataclass(frozen=True, kw_only=True)
class EncryptorConfig(LoopConfig):
    """Files, passwords, weights and rates; the paper's values beside each."""

    variant: str = "riddle"  # of riddle.presets.ALL_VARIANTS: riddle, datafree, mlp, nodiv, coupling, released
    codes: str = ""  # .npy (N, L, D) of inverted training faces, or invert_w_256.pt; only variant datafree needs none
    val_codes: str = ""  # .npy of held-out codes; without: the last of `codes`, which training then leaves out
    held_out: int = 48  # held-out codes to evaluate on: ten faces are drawn of each
    code_judge: str = ""  # safetensors of riddle.training.helper, for the loss in codes
    generator: str = ""  # safetensors; without: the bundled weights; so for the next two
    parser: str = ""  # safetensors
    encoder: str = ""  # safetensors, for the curvature and for `pixels`
    start: str = ""  # encryptor.safetensors to go on from; with variant released also the authors' iteration_90000.pt
    steps: int = 40_000  # the paper: 200,000
    batch: int = 2  # originals per step; the paper: 8
    m: int = 2  # encryption passwords per original; the paper: 2
    n: int = 2  # wrong passwords per encrypted code; the paper: 2
    weights: dict[str, float] = field(default_factory=dict)  # of equations 5 and 10, where not the paper's
    helper: float = 0.0  # weight of `code_loss` beside the losses on faces; the paper: none
    helper_codes: int = 16  # codes that it sees per step
    helper_only: float = 0.0  # share of the training, at its start, with no other loss; only `Coach` draws faces then
    blend: float = 0.0  # share of the originals that lie between two training faces
    shrink: float = 0.0  # share of the originals that are shortened in z, by a factor drawn from 0.5 to 1
    linked: float = 0.0  # weight of `linked` over faces of originals that share passwords; the paper: none
    apart: float = 0.0  # weight of L_div over the encrypted faces alone, beside that over all; the paper: none
    pixels: float = 0.0  # weight of L_rec over faces restored from published pixels (`publish`); the paper: none
    lpips: str = "squeeze"  # network of eq. 7: squeeze, alex or vgg; the authors': vgg
    checkpoint: bool = False  # in the backward pass compute activations again, a face of each original at a time
    damping: float = 0.003  # curvature above which the gradient in z is held down (`Curvature`); 0: not at all
    lr: float = 5e-4  # Adam, warm-up then cosine to zero, in both parts alike; the paper's is not given
    warmup: float = 0.02  # share of a part
    clip: float = 2.0  # largest norm of the gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ALL_VARIANTS or self.variant in CONTROLS:
            known = ", ".join(name for name in ALL_VARIANTS if name not in CONTROLS)
            raise ValueError(f"unknown variant {self.variant!r}; choose one of {known}")
        for name in ("helper_only", "blend", "shrink"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} is a share, from 0 to 1")
        if self.held_out < 1:
            raise ValueError(f"--held-out {self.held_out}: give 1 or more")
        if self.lpips not in BACKBONES:
            raise ValueError(f"unknown network --lpips {self.lpips!r}; choose one of {', '.join(BACKBONES)}")
        LossWeights().updated(self.weights)

    @property
    def loss_weights(self) -> LossWeights:
        """Those of equations 5 and 10, without L_div where the variant says so."""
        weights = LossWeights().updated(self.weights)
        return weights if ALL_VARIANTS[self.variant].diversity else replace(weights, diversity=0.0)


class EncryptorTask(Task):
    """The encryptor; the frozen generator and loss networks."""

    def __init__(
        self, config: EncryptorConfig, accelerator: Accelerator, generator: Synthesis, frozen: LossNetworks,
        held_out: torch.Tensor, recogniser: CodeRecogniser | None = None, encoder: Encoder | LiteEncoder | None = None,
        inverted: torch.Tensor | None = None,
    ):  # fmt: skip
        """held_out: codes (N, L, D) for `evaluate`, none of them trained on; recogniser: of codes, for the helper;
        encoder: for `damping`, which needs its curvature, and `pixels`; inverted: codes (M, L, D) of training faces,
        for `blend` and the helper. Raises ValueError where `linked` cannot halve what a process sees at once."""
        device, parts = accelerator.device, accelerator.num_processes * config.accumulate
        if config.linked and config.batch // parts % 2:
            raise ValueError(
                f"--linked compares two halves of what a process sees at once of a batch, here {config.batch // parts};"
                f" give a --batch that is a multiple of {2 * parts}"
            )
        self.generator, self.frozen = generator.eval().requires_grad_(False), frozen
        self.weights, self.inverted = config.loss_weights, inverted
        self.curvature = getattr(encoder, "curvature", None) if config.damping else None
        self.read = partial(encoder, steps=0) if isinstance(encoder, LiteEncoder) else encoder  # steps stop gradients
        encryptor = build_encryptor(config.preset, ALL_VARIANTS[config.variant].arch, generator.codes).to(device)
        optimiser = torch.optim.Adam(encryptor.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=True)
        super().__init__(config, accelerator, "encryptor", encryptor, optimiser, shared=[generator.codes])
        self.coach = None if recogniser is None else Coach(recogniser.to(device), self.show)
        if self.coach:  # "judge" is its name in checkpoints
            self.networks["judge"], self.optimisers["judge"] = self.coach.recogniser, self.coach.optimiser
        self.made: torch.Tensor | None = None  # codes of this step, for the coach
        self.centre = torch.zeros(2, 2, generator.n_latent, generator.style_dim, device=device)
        self.held_out = held_out.to(device)
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
            torch.manual_seed(1)
            self.held_out_keys = draw_keys(generator, len(held_out), 3, 1)

    def alone(self, progress: float) -> bool:
        """True while the helper's loss is the only one."""
        return progress < self.config.helper_only

    def part(self, progress: float) -> float:
        """Progress within the helper's part of the training, or within the rest; each has its own warm-up."""
        share = self.config.helper_only
        return progress / share if self.alone(progress) else (progress - share) / (1 - share)

    def loss(self, batch: dict[str, torch.Tensor], progress: float) -> tuple[torch.Tensor, Numbers]:
        c, alone = self.config, self.alone(progress)
        loss, terms, self.made = torch.zeros((), device=self.accelerator.device), {}, None
        if not alone:
            w = self.blended(batch["w"].float()) if "w" in batch else draw_codes(self.generator, len(batch["row"]))
            sharing = 2 if c.linked else 1  # originals per password
            keys = draw_keys(self.generator, len(w) // sharing, c.m, c.n).repeat(sharing, 1, 1, 1, 1)
            loss, terms = self.losses(w, keys)
        if alone or c.helper:
            helper, more, made = self.helper(alone)
            loss, terms = loss + (1.0 if alone else c.helper) * helper, terms | more
            self.made = made if alone else None
        return loss, terms

    def losses(self, w: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Eq. 10 for originals w (B, L, D) under keys (B, m, n + 1, L, D), and every term unweighted."""
        weights, m = self.weights, keys.shape[1]
        codes = torch.cat(encrypt_and_decrypt(self.network, w, keys), 1)
        if self.curvature is not None:
            space = self.generator.codes
            z = self.curvature.equalise(space.to_gaussian(codes.flatten(0, 1)), self.config.damping)
            codes = space.to_w(z).unflatten(0, codes.shape[:2])
        networks = {"lpips": self.frozen.perceive, "parsing": self.frozen.parse}
        networks = {k: network for k, network in networks.items() if network is not None and getattr(weights, k)}
        with self.accelerator.autocast(), torch.no_grad():  # one face of nine: cheaper than features of all codes
            original = self.generator(w)
            wanted = self.frozen.embed(original)
            references = {name: (network, network(original)) for name, network in networks.items()}
        parts = codes.split(1 if self.config.checkpoint else codes.shape[1], 1)
        faces, embedded, compared = zip(*(self.lean(self.view, p, original, references) for p in parts), strict=True)
        embedded = torch.cat(embedded, 1)
        changed = torch.cat([embedded[:, :m], embedded[:, 2 * m :]], 1)
        identity, terms = losses.identity_loss(wanted.float(), changed, embedded[:, m : 2 * m], weights)
        terms["latent"], zero = losses.latent_loss(w, codes), torch.zeros((), device=w.device)
        terms |= {k: sum(part.get(k, zero) for part in compared) for k in ("pixel", *COMPARED)}
        total = losses.total_loss(identity, *(terms[k] for k in ("pixel", "lpips", "parsing", "latent")), weights)
        if self.config.linked:
            terms["linked"] = linked(changed)
            total = total + self.config.linked * terms["linked"]
        if self.config.apart and weights.diversity:
            terms["apart"] = losses.diversity_loss(embedded[:, :m])
            total = total + self.config.apart * terms["apart"]
        if self.config.pixels:
            shown = publish(faces[0][:, 0], original)
            terms["recovery_pixels"] = self.lean(self.recovery_from, shown, keys[:, 0, 0], wanted.float())
            total = total + self.config.pixels * terms["recovery_pixels"]
        return total, terms

    def lean(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """What the function gives; with `checkpoint` the backward pass computes its activations again."""
        return checkpoint(function, *inputs, use_reentrant=False) if self.config.checkpoint else function(*inputs)

    def view(
        self, codes: torch.Tensor, original: torch.Tensor, references: dict[str, tuple[Callable, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Faces (B, K, 3, R, R) of codes (B, K, L, D), F_e's embeddings (B, K, E), and equations 6 to 8 by name.

        original: (B, 3, R, R); references: {name of a term: its network, and what this gives of the originals}.
        """
        with self.accelerator.autocast():
            faces = self.generator(codes.flatten(0, 1))
            embedded = self.frozen.embed(faces).float().unflatten(0, codes.shape[:2])
            terms = {name: COMPARED[name](known, network(faces)) for name, (network, known) in references.items()}
        faces = faces.unflatten(0, codes.shape[:2])
        return faces, embedded, terms | {"pixel": losses.pixel_loss(original.float(), faces.float())}

    def recovery_from(self, pictures: torch.Tensor, keys: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """L_rec of faces restored from pictures (B, 3, R, R) by keys (B, L, D); wanted: (B, E), the originals'."""
        with self.accelerator.autocast():
            read = self.read(pictures).float()
        back = self.network(read, keys)
        with self.accelerator.autocast():
            embedded = self.frozen.embed(self.generator(back)).float()
        return losses.recovery_loss(wanted, embedded[:, None])

    def helper(self, alone: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """`code_loss` on random codes under random passwords, each for two originals.

        alone: with the recogniser of codes, if there is one; otherwise without, and half of the codes are inverted
        faces'. Returns the loss, its terms, and the codes made (B, m (n + 2), L, D).
        """
        c, codes = self.config, self.generator.codes
        z = codes.to_gaussian(draw_codes(self.generator, c.helper_codes))
        if self.inverted is not None and not alone:
            z[1::2] = codes.to_gaussian(self.blended(self.training_codes(len(z) // 2)))
        keys = torch.randn(len(z) // 2, c.m, c.n + 1, z.shape[2], device=z.device).repeat(2, 1, 1, 1)
        recogniser = self.coach.recogniser if self.coach and alone else None
        diverse = bool(self.weights.diversity)
        with self.accelerator.autocast():
            return code_loss(self.network.change, z, keys, codes.importance, recogniser, diverse, self.centre)

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> Numbers:
        """One step; at every fourth one the recogniser of codes learns from what the encryptor made."""
        coached = self.coach is not None and self.counters["step"] % COACHED == 0
        numbers = super().step(batch, progress)
        if coached and self.made is not None:
            numbers["guess"] = self.coach.step(self.made.flatten(0, 1))
        return numbers

    def training_codes(self, count: int) -> torch.Tensor:
        """So many codes (count, L, D) of training faces, drawn anew."""
        return self.inverted[torch.randint(len(self.inverted), (count,))].to(self.accelerator.device).float()

    def blended(self, w: torch.Tensor) -> torch.Tensor:
        """Codes (N, L, D) of training faces, moved along arcs of z (`blend`) or shortened (`shrink`)."""
        c, space = self.config, self.generator.codes
        if not (c.blend or c.shrink):
            return w
        blend, part, shrink, factor = torch.rand(4, len(w), 1, 1, device=w.device)
        angle = torch.where(blend < c.blend, part * torch.pi / 2, 0)
        length = torch.where(shrink < c.shrink, 0.5 + factor / 2, 1)
        z, other = space.to_gaussian(w), space.to_gaussian(self.training_codes(len(w)))
        return space.to_w(length * (angle.cos() * z + angle.sin() * other))

    @torch.no_grad()
    def show(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """F_e's embeddings (N, E) of the faces of z (N, L, D), and the faces, `small`."""
        with self.accelerator.autocast():
            faces = self.generator(self.generator.codes.to_w(z))
            return self.frozen.embed(faces).float(), small(faces)

    def validate(self) -> dict[str, float]:
        """`evaluate` for the average on the held-out codes under fixed keys, by the network trained against."""
        codes, keys, embed = self.held_out, self.held_out_keys, self.frozen.embed
        with self.accelerator.autocast():
            return evaluate(self.average, self.generator, codes, embed, keys, self.frozen.threshold)

    @torch.no_grad()
    def samples(self) -> torch.Tensor:
        """Rows: originals, two encryptions, the first one decrypted, and decrypted by a wrong password."""
        w, keys = self.held_out[:8], self.held_out_keys[:8]
        encrypted, recovered, wrong = encrypt_and_decrypt(self.average, w, keys)
        rows = [w, encrypted[:, 0], encrypted[:, 1], recovered[:, 0], wrong[:, 0]]
        with self.accelerator.autocast():
            return torch.cat([self.generator(part) for part in portions(torch.cat(rows), self.generator.resolution)])


def record_of(config: EncryptorConfig) -> dict:
    """The origin of a variant: the options that all share, and hashes of the files read. Raises FileNotFoundError."""
    variant, files = ALL_VARIANTS[config.variant], {}
    for name in FILES:
        path = getattr(config, name)
        if path and not Path(path).is_file():
            remedy = MAKE if "codes" in name else "give the file's path"
            raise FileNotFoundError(f"--{name.replace('_', '-')}: {path} does not exist; {remedy}")
        if name in ("generator", "parser", "encoder"):
            with suppress(WeightsMissingError):
                path = path or bundled(config.preset, name)
        files[name] = sha256(path)[:12] if path else None
    left_out = ("out", "variant", "weights", "log_every", "save_every", "accumulate", "checkpoint", *FILES)
    shared = {k: str(v) if v == float("inf") else v for k, v in asdict(config).items() if k not in left_out}
    changed = {k: getattr(variant, k) for k in ("label", "datafree", "arch", "diversity")}
    return {"variant": config.variant, **changed, "shared": shared, "files": files}


def main(argv: list[str] | None = None) -> dict:
    """Train as the command line says; returns the last logged numbers and the final evaluation."""
    config = recipe.parse(EncryptorConfig, "encryptor", __doc__, argv)
    record, datafree = record_of(config), ALL_VARIANTS[config.variant].datafree
    if not (config.codes or datafree):
        raise SystemExit("--codes is needed, unless --variant datafree draws them; riddle.training.prepare makes it")
    accelerator, preset = make_accelerator(config), get(config.preset)
    torch.manual_seed(config.seed)
    generator, frozen = frozen_networks(preset, config.generator, accelerator.device, config.parser, config.lpips)
    count = config.held_out
    codes = load_codes(config.codes, preset) if config.codes else draw_codes(generator, count, seed=1)
    held_out = (load_codes(config.val_codes, preset)[:count] if config.val_codes else codes[-count:]).float()
    learned = None if datafree else codes if config.val_codes else codes[:-count]
    recogniser, encoder = load_code_recogniser(config.code_judge) if config.code_judge else None, None
    if config.pixels or (config.damping and preset.encoder == "lite"):
        encoder = frozen_encoder(preset, config.encoder, generator)
    task = EncryptorTask(config, accelerator, generator, frozen, held_out, recogniser, encoder, learned)
    for network in (task.network, task.average):
        if start := config.start:
            released = start.endswith(".pt")
            state = fitting(start, "encryptor", preset)["encryptor_released"] if released else load_tensors(start)
            network.load_state_dict(state)
        elif record["arch"] == "coupling" and learned is not None:
            network.measure(generator.codes.to_gaussian(learned.to(accelerator.device).float()))
    last = run(task, {"row": torch.arange(1 << 16)} if learned is None else {"w": learned})
    about = {k: getattr(config, k) for k in ("preset", "batch", "m", "n", "seed")}
    about |= {"kind": record["arch"], "datafree": datafree, "steps": last["step"]}
    about |= {"weights": json.dumps(config.loss_weights.as_dict()), "ablation": json.dumps(record)}
    return finish(task, "encryptor", last, about, evaluate=task.validate)


if __name__ == "__main__":
    recipe.command(main)
