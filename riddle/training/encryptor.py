"""Train the latent encryptor of a preset; everything else is frozen (paper, section 3).

    python -m riddle.training.encryptor --preset mini --codes codes.npy --generator results/runs/gan/state.pt \
        --parser results/runs/parsing/parser.safetensors --out results/runs/encryptor --minutes 40
    ... --datafree            # section 3.3: codes drawn from the mapping network, no data
    ... --arch mlp            # Table 5, w/o transformer
    ... --no-div              # Table 5, w/o identity diversity loss
    ... --weight recovery=3 --weight latent=0.1 --lr 3e-4
    ... --realism 1 --faces faces.npy        # ours: a critic that has seen real faces judges the encrypted ones
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
from riddle.models.encryptor import ARCHITECTURES, REFLECTION, build_encryptor, code_statistics
from riddle.models.inversion import Encoder
from riddle.models.stylegan2 import Generator
from riddle.presets import Preset, get
from riddle.training.codes import draw_codes, draw_keys, drawn_faces, encrypt_and_decrypt, evaluate
from riddle.training.critic import Realism
from riddle.training.gan import update_average
from riddle.training.judges import Judges, frozen_networks, load_network
from riddle.training.loop import LoopConfig, average_gradients, make_accelerator, run
from riddle.training.pixelpath import PixelPath
from riddle.training.schedule import minutes_left, progress_of, rate_share


@dataclass(frozen=True)
class EncryptorConfig:
    """Passwords, weights and rates; the paper's values beside each."""

    m: int = 2  # encryption passwords an original; the paper: 2
    n: int = 2  # wrong passwords an encrypted code; the paper: 2
    weights: LossWeights = field(default_factory=LossWeights)  # the paper's
    datafree: bool = False  # draw the codes instead of reading them (section 3.3)
    mixing: float = 0.0  # data-free: share of codes made of two, cut between two slots
    arch: str = "transformer"
    residual: float = REFLECTION  # 0: the paper's network
    pixels: float = 0.0  # weight of L_rec over faces restored from published pixels; the paper: none
    realism: float = 0.0  # weight of a projected critic's opinion on changed faces; the paper: none
    judged: int = 16  # changed faces a step that it sees
    lr: float = 5e-4  # AdamW, warm-up then cosine to zero; the paper's is not given
    warmup: float = 0.02  # share of the training
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
        generator: Generator,
        judges: Judges,
        held_out: torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        realism: Realism | None = None,
        path: PixelPath | None = None,
    ):
        """held_out: codes (N, L, D) for `evaluate`, none of them trained on; codes: (N, L, D), those trained on,
        for their statistics (data-free: None, the mapping's); realism and path: the critic, and the way through
        published pixels, where their weights are not 0."""
        self.preset, self.config, self.accelerator = preset, config, accelerator
        self.generator, self.judges, device = generator.eval().requires_grad_(False), judges, accelerator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            z = torch.randn(20_000, preset.style_dim).to(device)
        with torch.no_grad():
            key_statistics = code_statistics(generator.map(z))
        codes = self.draw_codes(4096) if codes is None else codes.float()
        self.encryptor = build_encryptor(preset, config.arch, residual=config.residual).to(device)
        self.encryptor.use_directions(generator).standardise(codes.to(device))
        self.encryptor.standardise_keys(*key_statistics)
        self.average = copy.deepcopy(self.encryptor).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.encryptor.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
        self.networks = {"encryptor": self.encryptor, "average": self.average}
        self.optimisers = {"encryptor": self.optimiser}
        self.realism, self.path = realism, path
        if realism is not None:
            self.networks["critic"], self.optimisers["critic"] = realism.heads, realism.optimiser
        self.counters = {"step": 0, "seconds": 0.0}
        self.held_out = None if held_out is None else held_out.to(device)
        if held_out is not None:
            with torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
                torch.manual_seed(1)
                self.held_out_keys = draw_keys(generator, len(held_out), 3, 1)

    def draw_codes(self, count: int) -> torch.Tensor:
        """Codes for data-free training, (count, L, D)."""
        return draw_codes(self.generator, count, self.config.mixing)

    def losses(self, w: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Eq. 10 for originals w (B, L, D) under keys (B, m, n + 1, L, D), and every term unweighted."""
        weights, judges, m = self.config.weights, self.judges, keys.shape[1]
        codes = encrypt_and_decrypt(self.encryptor, w, keys).joined()
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
        if self.path is not None:
            terms["recovery_pixels"] = self.recovery_from_pixels(faces[:, 0], original, keys[:, 0, 0], wanted)
            total = total + self.config.pixels * terms["recovery_pixels"]
        if self.realism is not None:
            changed = torch.cat([faces[:, :m], faces[:, 2 * m :]], 1).flatten(0, 1)
            self.shown = changed[torch.randperm(len(changed))[: self.config.judged]]
            with self.accelerator.autocast():
                terms["realism"] = self.realism.loss(self.shown)
            total = total + self.config.realism * terms["realism"]
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
        for group in self.optimiser.param_groups:
            group["lr"] = c.lr * rate_share(progress, c.warmup)
        w = batch["w"].float() if "w" in batch else self.draw_codes(len(batch["row"]))
        loss, terms = self.losses(w, draw_keys(self.generator, len(w), c.m, c.n))
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, self.encryptor.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.encryptor.parameters(), c.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.counters["step"] += 1
        update_average(self.average, self.encryptor, min(c.ema, 1 - 1 / (1 + self.counters["step"] / 10)))
        numbers = {"loss": loss, **terms, "gradient": norm}
        if self.realism is not None:
            numbers["critic"] = self.realism.step(self.shown)
        if self.held_out is not None and self.counters["step"] % c.eval_every == 0:
            numbers |= {f"val_{k}": v for k, v in self.evaluate().items()}
        self.counters["seconds"] += time.monotonic() - began
        return numbers

    def evaluate(self) -> dict[str, float]:
        """`evaluate` for the average on the held-out codes under fixed keys, by the network trained against."""
        codes, keys, embed = self.held_out, self.held_out_keys, self.judges.embed
        with self.accelerator.autocast():
            return evaluate(self.average, self.generator, codes, embed, keys, self.config.threshold)

    @torch.no_grad()
    def samples(self) -> torch.Tensor | None:
        """Rows: originals, two encryptions, the first one decrypted, and decrypted by a wrong password."""
        if self.held_out is None:
            return None
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
    p.add_argument("--preset", default="mini")
    p.add_argument("--codes", help=".npy (N, L, D) of inverted training faces; not needed with --datafree")
    p.add_argument("--val-codes", help=".npy of held-out codes; default: 48 that training then leaves out")
    p.add_argument("--out", required=True)
    p.add_argument("--generator", help="state.pt or safetensors; default: the preset's bundled weights")
    p.add_argument("--parser", help="state.pt or safetensors; default: the preset's bundled weights")
    p.add_argument("--steps", type=int, default=20_000)
    p.add_argument("--minutes", type=float, default=float("inf"))
    p.add_argument("--batch", type=int, default=8, help="originals a step; the paper: 8")
    p.add_argument("--m", type=int, default=c.m)
    p.add_argument("--n", type=int, default=c.n)
    p.add_argument("--lr", type=float, default=c.lr)
    p.add_argument("--datafree", action="store_true")
    p.add_argument("--mixing", type=float, default=c.mixing)
    p.add_argument("--arch", choices=ARCHITECTURES, default=c.arch)
    p.add_argument("--no-div", action="store_true")
    p.add_argument("--residual", type=float, default=c.residual, help="factor of the reflected code; 0: the paper")
    p.add_argument("--pixels", type=float, default=c.pixels, help="weight of recovery from published pixels")
    p.add_argument("--encoder", help="safetensors, for --pixels; default: the preset's bundled weights")
    p.add_argument("--realism", type=float, default=c.realism, help="weight of the critic's opinion; needs --faces")
    p.add_argument(
        "--faces", help="uint8 .npy (N, R, R, 3) of aligned training faces, for the critic; data-free: drawn"
    )
    p.add_argument("--critic", help="state.pt of riddle.training.inversion, whose critic goes on")
    p.add_argument("--weights-json", help='file of loss weights, e.g. {"recovery": 3}')
    p.add_argument("--weight", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--threshold", type=float, help="cosine; default: the recogniser's own")
    p.add_argument("--eval-every", type=int, default=c.eval_every)
    p.add_argument("--seed", type=int, default=0)
    return p


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options that a command line gives; ends the program where they do not fit together."""
    p = command_line()
    a = p.parse_args(argv)
    if not a.datafree and not a.codes:
        p.error("--codes is needed, unless --datafree draws them")
    if a.realism and not a.faces and not a.datafree:
        p.error("--realism compares with real faces; give them by --faces")
    return a


def main(argv: list[str] | None = None) -> dict:
    """Train as the command line says; returns the last logged numbers and the final evaluation."""
    from riddle.allocator import keep_memory
    from riddle.zoo import bundled, load_lpips, save_tensors

    a = parse_arguments(argv)
    keep_memory()
    preset = get(a.preset)
    left = minutes_left(a.out, a.minutes)
    loop = LoopConfig(a.out, a.steps, a.batch, a.seed, save_every=a.eval_every, minutes=left)
    accelerator = make_accelerator(loop)
    torch.manual_seed(a.seed)
    generator, judges, threshold = frozen_networks(preset, a.generator, a.parser, accelerator.device)
    config = EncryptorConfig(
        m=a.m, n=a.n, weights=read_weights(a.weights_json, a.weight, a.no_div), datafree=a.datafree, mixing=a.mixing,
        arch=a.arch, residual=a.residual, pixels=a.pixels, realism=a.realism, lr=a.lr, eval_every=a.eval_every,
        minutes=a.minutes, threshold=threshold if a.threshold is None else a.threshold,
    )  # fmt: skip
    codes = torch.from_numpy(np.load(a.codes)) if a.codes else None
    held_out = torch.from_numpy(np.load(a.val_codes)).float()[:48] if a.val_codes else None
    if held_out is None and codes is not None:
        codes, held_out = codes[:-48], codes[-48:].float()
    realism = None
    if a.realism:
        real = drawn_faces(generator) if a.datafree else torch.from_numpy(np.load(a.faces))
        realism = Realism(load_lpips("squeeze"), real, accelerator)
        if a.critic and not a.datafree:
            trained = torch.load(a.critic, map_location=accelerator.device, weights_only=True)["networks"]["critic"]
            realism.heads.load_state_dict(trained)
    path = None
    if a.pixels:
        encoder = load_network(Encoder(preset), a.encoder or bundled(preset.name, "encoder"), "e_ema")
        path = PixelPath(encoder.to(accelerator.device, memory_format=torch.channels_last), preset.framing)
    parts = (preset, config, accelerator, generator, judges)
    trained_on = None if a.datafree else codes
    task = EncryptorTask(*parts, held_out, trained_on, realism, path)
    if held_out is None:
        task = EncryptorTask(*parts, task.draw_codes(48), None, realism, path)
    tensors = {"row": torch.arange(1 << 16)} if a.datafree else {"w": codes}
    last = run(task, tensors, loop, accelerator)
    if accelerator.is_main_process:
        last |= {f"val_{k}": round(v, 4) for k, v in task.evaluate().items()}
        about = {
            "preset": preset.name, "kind": config.arch, "datafree": config.datafree, "steps": last["step"],
            "weights": json.dumps(config.weights.as_dict()), "m": config.m, "n": config.n, "seed": a.seed,
        }  # fmt: skip
        save_tensors(Path(a.out) / "encryptor.safetensors", task.average.state_dict(), about)
        print(json.dumps(last))
    return last


if __name__ == "__main__":
    main()
