"""What a step of the encryptor's training takes, measured with one original on the CPU.

    python -m riddle.training.cost --recipe ffhq256
    python -m riddle.training.cost --recipe ffhq1024 --no-checkpoint    # needs 42 GiB of RAM

The networks have random weights, so no file is read. `weights` are the bytes of all networks, and of the encryptor's
running average, gradient and two moments of Adam. `original` is the peak of a forward and a backward pass beside them,
in float32, as torch's allocator counts it. Seconds are the processor's, summed over its cores.

    memory = weights + P x original,    P = batch / (processes x accumulate)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from riddle.faces.recognizers import SPECS, Recognizer
from riddle.losses import PerceptualFeatures, random_lpips
from riddle.models.bisenet import BiSeNet
from riddle.models.mobilefacenet import MobileFaceNet
from riddle.models.parsing import ParsingNet, parts
from riddle.networks import build_generator
from riddle.presets import get
from riddle.published import blank
from riddle.training import recipe
from riddle.training.encryptor import EncryptorConfig, EncryptorTask
from riddle.training.frozen import LossNetworks, draw_codes


def peak(work: Callable[[], object]) -> tuple[int, float]:
    """The most bytes that a function holds at a time beside those it finds, and its seconds."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        began = time.process_time()
        work()
        seconds = time.process_time() - began
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))), seconds


def random_task(config: EncryptorConfig) -> tuple[EncryptorTask, int]:
    """A training of networks with random weights, and the bytes of `weights`."""
    preset = get(config.preset)
    generator = build_generator(preset)
    generator.codes.measure(generator.map)
    f_e = MobileFaceNet() if preset.identity == "arcface-mobilefacenet" else blank(preset.identity)
    f_s = BiSeNet() if preset.name.startswith("ffhq") else ParsingNet()
    f_p = PerceptualFeatures.of(random_lpips(config.lpips))
    for network in (f_e, f_p, f_s):
        network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    embed = Recognizer(preset.identity, SPECS[preset.identity], f_e).from_crop
    frozen = LossNetworks(embed, f_p, lambda faces: parts(f_s(faces)))
    task = EncryptorTask(config, Accelerator(cpu=True), generator, frozen, draw_codes(generator, 1))
    networks = (generator, f_e, f_p, f_s, *5 * (task.network,))
    return task, sum(x.nbytes for network in networks for x in (*network.parameters(), *network.buffers()))


def main(argv: list[str] | None = None) -> tuple[int, int, float]:
    """Command line of this module; returns the bytes of the weights and of an original, and its seconds."""
    config = recipe.parse(EncryptorConfig, "encryptor", __doc__, argv)
    torch.manual_seed(config.seed)
    alone = {"batch": 1, "accumulate": 1, "linked": 0.0, "blend": 0.0, "shrink": 0.0, "pixels": 0.0}
    task, weights = random_task(replace(config, **alone))
    original, seconds = peak(lambda: task.gradients({"w": task.held_out}, 0.5))
    print(f"{config.preset}, {config.m * (config.n + 2)} faces, {config.lpips}, checkpoint {config.checkpoint}")
    print(f"weights {weights / 2**30:.2f} GiB, original {original / 2**30:.2f} GiB, {seconds:.1f} s of a core")
    print(f"a step of {config.batch}: {config.batch * seconds:.0f} s of a core; originals at once: memory in GiB")
    print(*(f"{p}: {(weights + p * original) / 2**30:.1f}" for p in (1, 2, 4, 8)), sep="   ")
    return weights, original, seconds


if __name__ == "__main__":
    recipe.command(main)
