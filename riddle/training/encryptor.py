"""Train the latent encryptor of a preset; everything else is frozen (paper, section 3).

    python -m riddle.training.encryptor --preset mobile --codes codes.npy --out results/runs/encryptor --steps 40000
    ... --datafree            # section 3.3: codes drawn from the mapping network, no data
    ... --arch mlp            # Table 5, w/o transformer
    ... --arch coupling       # ours: its own inverse by construction
    ... --no-div              # Table 5, w/o identity diversity loss
    ... --weight recovery=3 --weight latent=0.1 --lr 3e-4
    ... --linked 2            # ours: two people under one password stay two people
    ... --apart 2             # ours: L_div once more, over the encrypted faces alone
    ... --pixels 3            # ours: recovery from published pixels too

Two forward passes of the encryptor make all codes of a step; the generator and the loss networks then see them in
one batch. The weights' running average is what is kept: encryptor.safetensors.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from riddle import losses
from riddle.losses import LossWeights
from riddle.models.curvature import Curvature
from riddle.models.encryptor import ARCHITECTURES, build_encryptor
from riddle.models.inversion import LiteEncoder, build_encoder
from riddle.networks import Synthesis
from riddle.presets import Preset, get
from riddle.training import recipe
from riddle.training.codes import draw_codes, draw_keys, encrypt_and_decrypt, evaluate
from riddle.training.helper import Coach, CodeJudge, code_loss, importance, linked, load_code_judge, small
from riddle.training.judges import Judges, frozen_networks
from riddle.training.loop import LoopConfig, average_gradients, make_accelerator, run, update_average
from riddle.training.pixelpath import PixelPath
from riddle.training.schedule import minutes_left, progress_of, rate_share

COACHED = 4  # steps of the encryptor for one of its helper's judge


@dataclass(frozen=True)
class EncryptorConfig:
    """Passwords, weights and rates; the paper's values beside each."""

    m: int = 2  # encryption passwords an original; the paper: 2
    n: int = 2  # wrong passwords an encrypted code; the paper: 2
    weights: LossWeights = field(default_factory=LossWeights)  # the paper's
    datafree: bool = False  # draw the codes instead of reading them (section 3.3)
    arch: str = "transformer"
    helper: float = 0.0  # weight of `code_loss` beside the losses on faces; the paper: none
    helper_codes: int = 16  # codes a step that it sees
    blend: float = 0.0  # share of the originals that lie between two training faces
    helper_only: float = 0.0  # share of the training, at its start, with no other loss; only `Coach` draws faces then
    damping: float = 0.003  # curvature above which the gradient in z is held down (`Curvature`); 0: not at all
    linked: float = 0.0  # weight of `linked` over faces of originals that share passwords; the paper: none
    apart: float = 0.0  # weight of L_div over the encrypted faces alone, beside that over all; the paper: none
    pixels: float = 0.0  # weight of L_rec over faces restored from published pixels; the paper: none
    lr: float = 5e-4  # Adam, warm-up then cosine to zero, in both parts alike; the paper's is not given
    warmup: float = 0.02  # share of a part
    clip: float = 2.0  # largest norm of the gradient
    ema: float = 0.999  # decay a step of the weights' average
    eval_every: int = 500  # steps
    threshold: float = 0.3  # cosine above which two faces count as one person in `evaluate`
    minutes: float = float("inf")  # of the whole run: the cosine ends then, or at the last step if that is sooner


class EncryptorTask:
    """The encryptor and its average; the frozen generator and judges."""

    def __init__(
        self,
        preset: Preset,
        config: EncryptorConfig,
        accelerator: Accelerator,
        generator: Synthesis,
        judges: Judges,
        held_out: torch.Tensor,
        path: PixelPath | None = None,
        code_judge: CodeJudge | None = None,
        curvature: Curvature | None = None,
        inverted: torch.Tensor | None = None,
    ):
        """held_out: codes (N, L, D) for `evaluate`, none of them trained on; path: the way through published pixels,
        where its weight is not 0; code_judge: for the helper; curvature: of the distance between faces; inverted:
        codes (M, L, D) of training faces, for the helper beside the losses on faces."""
        self.preset, self.config, self.accelerator = preset, config, accelerator
        self.generator, self.judges, device = generator.eval().requires_grad_(False), judges, accelerator.device
        self.encryptor = build_encryptor(preset, config.arch, generator.codes).to(device)
        self.average = copy.deepcopy(self.encryptor).eval().requires_grad_(False)
        self.average._codes = self.encryptor._codes
        self.optimiser = torch.optim.Adam(self.encryptor.parameters(), lr=config.lr, betas=(0.9, 0.99), fused=True)
        self.networks = {"encryptor": self.encryptor, "average": self.average}
        self.optimisers = {"encryptor": self.optimiser}
        self.coach = None if code_judge is None else Coach(code_judge.to(device), self.see)
        if self.coach:
            self.networks["judge"], self.optimisers["judge"] = self.coach.judge, self.coach.optimiser
        self.curvature = curvature
        self.inverted = inverted
        self.centre = torch.zeros(2, 2, generator.n_latent, generator.style_dim, device=device)
        self.path, self.counters = path, {"step": 0, "seconds": 0.0}
        self.held_out = held_out.to(device)
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
            torch.manual_seed(1)
            self.held_out_keys = draw_keys(generator, len(held_out), 3, 1)

    def helper(self, judged: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """`code_loss` on codes under drawn passwords, each for two originals. judged: on drawn codes, by the judge of
        codes where there is one; otherwise without it, and half of the codes are inverted faces'."""
        c, codes = self.config, self.generator.codes
        z = codes.to_gaussian(draw_codes(self.generator, c.helper_codes))
        if self.inverted is not None and not judged:
            z[1::2] = codes.to_gaussian(self.blended(self.training_codes(len(z) // 2)))
        keys = torch.randn(len(z) // 2, c.m, c.n + 1, z.shape[2], device=z.device).repeat(2, 1, 1, 1)
        judge, diverse = self.coach.judge if self.coach and judged else None, bool(c.weights.diversity)
        with self.accelerator.autocast():
            return code_loss(self.encryptor.change, z, keys, importance(codes), judge, diverse, self.centre)

    def training_codes(self, count: int) -> torch.Tensor:
        """So many codes (count, L, D) of training faces, drawn anew."""
        return self.inverted[torch.randint(len(self.inverted), (count,))].to(self.accelerator.device).float()

    def blended(self, w: torch.Tensor) -> torch.Tensor:
        """Codes (N, L, D) of training faces, a share of them (`blend`) moved along an arc of z towards another's."""
        if not self.config.blend:
            return w
        space, (blend, part) = self.generator.codes, torch.rand(2, len(w), 1, 1, device=w.device)
        angle = torch.where(blend < self.config.blend, part * torch.pi / 2, 0)
        z, other = space.to_gaussian(w), space.to_gaussian(self.training_codes(len(w)))
        return space.to_w(angle.cos() * z + angle.sin() * other)

    @torch.no_grad()
    def see(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """F_e's embeddings (N, E) of the faces of z (N, L, D), and the faces, `small`."""
        with self.accelerator.autocast():
            faces = self.generator(self.generator.codes.to_w(z))
            return self.judges.embed(faces).float(), small(faces)

    def losses(self, w: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Eq. 10 for originals w (B, L, D) under keys (B, m, n + 1, L, D), and every term unweighted."""
        weights, judges, m = self.config.weights, self.judges, keys.shape[1]
        codes = encrypt_and_decrypt(self.encryptor, w, keys).joined()
        if self.curvature is not None:
            space, damping = self.generator.codes, self.config.damping
            z = self.curvature.equalise(space.to_gaussian(codes.flatten(0, 1)), damping)
            codes = space.to_w(z).unflatten(0, codes.shape[:2])
        with self.accelerator.autocast():
            with torch.no_grad():  # one face of nine, without gradients: cheaper than keeping features of all codes
                original = self.generator(w)
                wanted = judges.embed(original)
            faces = self.generator(codes.flatten(0, 1))
            embedded = judges.embed(faces).float().unflatten(0, codes.shape[:2])
        changed = torch.cat([embedded[:, :m], embedded[:, 2 * m :]], 1)
        identity, terms = losses.identity_loss(wanted.float(), changed, embedded[:, m : 2 * m], weights)
        terms["pixel"] = losses.pixel_loss(original.float(), faces.float().unflatten(0, codes.shape[:2]))
        terms["latent"] = losses.latent_loss(w, codes)
        zero = torch.zeros((), device=w.device)
        for name, network, compare in (
            ("lpips", judges.perceive, losses.lpips_loss),
            ("parsing", judges.parse, losses.parsing_loss),
        ):
            if network is None or not getattr(weights, name):
                terms[name] = zero
                continue
            with self.accelerator.autocast():
                with torch.no_grad():
                    reference = network(original)
                features = network(faces)
            terms[name] = compare(reference, features)
        total = losses.total_loss(identity, *(terms[k] for k in ("pixel", "lpips", "parsing", "latent")), weights)
        faces = faces.unflatten(0, codes.shape[:2])
        if self.config.linked:
            terms["linked"] = linked(changed)
            total = total + self.config.linked * terms["linked"]
        if self.config.apart and weights.diversity:
            terms["apart"] = losses.diversity_loss(embedded[:, :m])
            total = total + self.config.apart * terms["apart"]
        if self.path is not None:
            terms["recovery_pixels"] = self.recovery_from_pixels(faces[:, 0], original, keys[:, 0, 0], wanted)
            total = total + self.config.pixels * terms["recovery_pixels"]
        return total, terms

    def recovery_from_pixels(
        self, shown: torch.Tensor, original: torch.Tensor, keys: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """L_rec of faces restored from the pictures of encrypted ones, shown (B, 3, R, R), by their keys (B, L, D).

        original: (B, 3, R, R), what the encrypted faces are pasted into; wanted: (B, E), its embeddings.
        """
        with self.accelerator.autocast():
            read = self.path(shown, original)
            back = self.generator(self.encryptor(read, keys))
            embedded = self.judges.embed(back).float()
        return losses.recovery_loss(wanted.float(), embedded[:, None])

    def step(self, batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor | float]:
        began, c = time.monotonic(), self.config
        progress = progress_of(self.accelerator, progress, self.counters["seconds"], c.minutes)
        alone = progress < c.helper_only or c.helper_only == 1
        part = progress / c.helper_only if alone else (progress - c.helper_only) / (1 - c.helper_only)
        for group in self.optimiser.param_groups:
            group["lr"] = c.lr * rate_share(part, c.warmup)
        loss, terms = torch.zeros((), device=self.accelerator.device), {}
        if not alone:
            w = self.blended(batch["w"].float()) if "w" in batch else draw_codes(self.generator, len(batch["row"]))
            keys = draw_keys(self.generator, len(w), c.m, c.n)
            if c.linked:
                keys = keys[: len(w) // 2].repeat(2, 1, 1, 1, 1)
            loss, terms = self.losses(w, keys)
        if alone or c.helper:
            helper, more, made = self.helper(judged=alone)
            terms |= more
            loss = loss + (1.0 if alone else c.helper) * helper
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, self.encryptor.parameters())
        if alone and self.coach and self.counters["step"] % COACHED == 0:
            terms["guess"] = self.coach.step(made.flatten(0, 1))
        norm = torch.nn.utils.clip_grad_norm_(self.encryptor.parameters(), c.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.counters["step"] += 1
        update_average(self.average, self.encryptor, min(c.ema, 1 - 1 / (1 + self.counters["step"] / 10)))
        numbers = {"loss": loss, **terms, "gradient": norm}
        if self.counters["step"] % c.eval_every == 0:
            numbers |= {f"val_{k}": v for k, v in self.evaluate().items()}
        self.counters["seconds"] += time.monotonic() - began
        return numbers

    def evaluate(self) -> dict[str, float]:
        """`evaluate` for the average on the held-out codes under fixed keys, by the network trained against."""
        codes, keys, embed = self.held_out, self.held_out_keys, self.judges.embed
        with self.accelerator.autocast():
            return evaluate(self.average, self.generator, codes, embed, keys, self.config.threshold)

    @torch.no_grad()
    def samples(self) -> torch.Tensor:
        """Rows: originals, two encryptions, the first one decrypted, and decrypted by a wrong password."""
        w, keys = self.held_out[:8], self.held_out_keys[:8]
        made = encrypt_and_decrypt(self.average, w, keys)
        rows = [w, made.encrypted[:, 0], made.encrypted[:, 1], made.recovered[:, 0], made.wrong[:, 0]]
        with self.accelerator.autocast():
            return self.generator(torch.cat(rows))


def read_weights(path: str | None, changes: list[str], no_div: bool) -> LossWeights:
    """The paper's weights, changed by a JSON file, then by NAME=VALUE pairs. Raises ValueError."""
    table = json.loads(Path(path).read_text()) if path else {}
    for change in changes:
        name, _, value = change.partition("=")
        if not value:
            raise ValueError(f"--weight takes NAME=VALUE, got {change!r}")
        table[name] = float(value)
    return LossWeights().updated({**table, **({"diversity": 0.0} if no_div else {})})


def command_line() -> argparse.ArgumentParser:
    """The options of this module."""
    c = EncryptorConfig()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--codes", help=".npy (N, L, D) of inverted training faces; not needed with --datafree")
    p.add_argument("--val-codes", help=".npy of held-out codes; default: 48 that training then leaves out")
    p.add_argument("--out", required=True)
    p.add_argument("--generator", help="safetensors; default: the preset's bundled weights")
    p.add_argument("--parser", help="safetensors; default: the preset's bundled weights")
    p.add_argument("--start", help="encryptor.safetensors to go on from")
    p.add_argument("--steps", type=int, default=40_000)
    p.add_argument("--minutes", type=float, default=float("inf"))
    p.add_argument("--batch", type=int, default=2, help="originals a step; the paper: 8")
    p.add_argument("--m", type=int, default=c.m)
    p.add_argument("--n", type=int, default=c.n)
    p.add_argument("--lr", type=float, default=c.lr)
    p.add_argument("--damping", type=float, default=c.damping, help="curvature above which gradients are held down")
    p.add_argument("--datafree", action="store_true")
    p.add_argument("--arch", choices=ARCHITECTURES, default=c.arch)
    p.add_argument("--no-div", action="store_true")
    p.add_argument("--helper", type=float, default=c.helper, help="weight of the loss in codes beside that on faces")
    p.add_argument("--helper-only", type=float, default=c.helper_only, help="share of the steps with no other loss")
    p.add_argument("--helper-codes", type=int, default=c.helper_codes, help="codes a step that it sees")
    p.add_argument("--blend", type=float, default=c.blend, help="share of originals between two training faces")
    p.add_argument("--code-judge", help="safetensors of riddle.training.helper, for the loss in codes")
    p.add_argument("--linked", type=float, default=c.linked, help="weight of two people under one password being alike")
    p.add_argument("--apart", type=float, default=c.apart, help="weight of L_div over the encrypted faces alone")
    p.add_argument("--pixels", type=float, default=c.pixels, help="weight of recovery from published pixels")
    p.add_argument("--encoder", help="safetensors, for curvature and --pixels; default: the bundled one")
    p.add_argument("--weights-json", help='file of loss weights, e.g. {"recovery": 3}')
    p.add_argument("--weight", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--threshold", type=float, help="cosine; default: the recogniser's own")
    p.add_argument("--eval-every", type=int, default=c.eval_every)
    p.add_argument("--seed", type=int, default=0)
    return p


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options that a command line gives; ends the program where they do not fit together."""
    p = command_line()
    a = recipe.parse(p, "encryptor", argv)
    if not a.datafree and not a.codes:
        p.error("--codes is needed, unless --datafree draws them")
    if a.linked and a.batch % 2:
        p.error("--linked compares two halves of a batch; give an even --batch")
    for name in ("helper_only", "blend"):
        if not 0 <= getattr(a, name) <= 1:
            p.error(f"--{name.replace('_', '-')} is a share, from 0 to 1")
    return a


def main(argv: list[str] | None = None) -> dict:
    """Train as the command line says; returns the last logged numbers and the final evaluation."""
    from riddle.allocator import keep_memory
    from riddle.zoo import bundled, load_tensors, save_tensors

    a = parse_arguments(argv)
    keep_memory()
    preset = get(a.preset)
    left = minutes_left(a.out, a.minutes)
    loop = LoopConfig(a.out, a.steps, a.batch, a.seed, save_every=a.eval_every, minutes=left)
    accelerator = make_accelerator(loop)
    torch.manual_seed(a.seed)
    generator, judges, threshold = frozen_networks(preset, a.generator, accelerator.device, a.parser)
    config = EncryptorConfig(
        m=a.m, n=a.n, weights=read_weights(a.weights_json, a.weight, a.no_div), datafree=a.datafree, arch=a.arch,
        helper=a.helper, helper_codes=a.helper_codes, helper_only=a.helper_only, blend=a.blend, linked=a.linked,
        apart=a.apart, pixels=a.pixels, lr=a.lr, damping=a.damping, eval_every=a.eval_every,
        minutes=a.minutes, threshold=threshold if a.threshold is None else a.threshold,
    )  # fmt: skip
    codes = torch.from_numpy(np.load(a.codes)) if a.codes else draw_codes(generator, 48, seed=1)
    held_out = torch.from_numpy(np.load(a.val_codes)).float()[:48] if a.val_codes else codes[-48:].float()
    path = curvature = None
    if a.pixels or (config.damping and preset.encoder == "lite"):
        state = load_tensors(a.encoder or bundled(preset.name, "encoder"))
    if config.damping and preset.encoder == "lite":
        curvature = Curvature(preset.n_latent, preset.style_dim).to(accelerator.device)
        curvature.load_state_dict({k.removeprefix("curvature."): v for k, v in state.items() if "curvature." in k})
    if a.pixels:
        encoder = build_encoder(preset, generator)
        encoder.load_state_dict(state)
        if isinstance(encoder, LiteEncoder):
            encoder.steps.zero_()  # gradients cannot pass them
        path = PixelPath(encoder.to(accelerator.device))
    judge = load_code_judge(a.code_judge) if a.code_judge else None
    learned = None if a.datafree or not a.codes else codes if a.val_codes else codes[:-48]
    task = EncryptorTask(preset, config, accelerator, generator, judges, held_out, path, judge, curvature, learned)
    if a.start:
        for network in (task.encryptor, task.average):
            network.load_state_dict(load_tensors(a.start))
    elif config.arch == "coupling" and learned is not None:
        for network in (task.encryptor, task.average):
            network.measure(generator.codes.to_gaussian(learned.to(accelerator.device).float()))
    tensors = {"row": torch.arange(1 << 16)} if learned is None else {"w": learned}
    last = run(task, tensors, loop, accelerator)
    if accelerator.is_main_process:
        last |= {f"val_{k}": round(v, 4) for k, v in task.evaluate().items()}
        about = {
            "preset": preset.name, "kind": config.arch, "datafree": config.datafree, "steps": last["step"],
            "batch": a.batch, "weights": json.dumps(config.weights.as_dict()), "m": config.m, "n": config.n,
            "seed": a.seed,
        }  # fmt: skip
        save_tensors(Path(a.out) / "encryptor.safetensors", task.average.state_dict(), about)
        print(json.dumps(last))
    return last


if __name__ == "__main__":
    main()
