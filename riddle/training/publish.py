"""Put trained networks into data/zoo/<preset> and draw data/samples from them.

    python -m riddle.training.publish --cut 128=results/runs/cut128 --encoder results/runs/inversion \
        --parser results/runs/parsing --encryptor riddle=results/runs/encryptor
    python -m riddle.training.publish --baseline ciagan=results/runs/ciagan
    python -m riddle.training.publish --samples

Weights are stored in float16, the statistics of codes in float32; each file's metadata say what made it; the logs go
beside them, thinned. The samples follow a fixed rule: face k of 48 is drawn from z = standard normal of seed k, psi =
0.7, at 256 px.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from riddle import config
from riddle.baselines import BASELINES
from riddle.files import write_text
from riddle.images import to_bytes
from riddle.networks import Synthesis, build_generator
from riddle.presets import ALL_VARIANTS, Preset, get
from riddle.training import recipe
from riddle.training.frozen import frozen_generator
from riddle.weights import load_metadata, load_tensors, save_tensors

SAMPLES, PSI, SIDE = 48, 0.7, 256
EXACT = ("curvature.size", "looks.", "person.")  # stored with 32 bits per number
# Stored with 8 bits per number: the encoder's heads, the transformer's matrices, all of a baseline's.
COARSE = {"encoder": ("styles.", "mix."), "encryptor": ("blocks.", "code_in.", "password_in.", "output.")}
NETWORKS = {name for name, system in BASELINES.items() if system.file}
COARSE |= {name: ("",) for name in NETWORKS}


@torch.no_grad()
def sample_codes(generator: Synthesis) -> torch.Tensor:
    """The codes (48, L, D) of the bundled samples."""
    seeds = (torch.Generator().manual_seed(k) for k in range(SAMPLES))
    z = torch.stack([torch.randn(generator.style_dim, generator=seed) for seed in seeds])
    mean = generator.mean_latent()
    return generator.broadcast(mean + PSI * (generator.map(z) - mean))


@torch.no_grad()
def draw_samples(preset: Preset, folder: Path) -> None:
    """Draw the 48 faces as 000.jpg to 047.jpg, with codes.safetensors."""
    generator = frozen_generator(preset, "", "cpu")
    codes = sample_codes(generator)
    side = SIDE if preset.generator == "mobilestylegan" else min(SIDE, preset.resolution)
    folder.mkdir(parents=True, exist_ok=True)
    for k, w in enumerate(codes.split(1)):
        face = to_bytes(generator(w, side))[0]
        Image.fromarray(face).save(folder / f"{k:03d}.jpg", quality=95, subsampling=0, optimize=True)
    save_tensors(folder / "codes.safetensors", {"codes": codes}, {"preset": preset.name, "psi": str(PSI)})


def thin(log: Path, target: Path) -> None:
    """Copy a JSONL log, keeping about 100 of its lines, spread evenly, and the last."""
    if not log.is_file():
        return
    rows = [line for line in log.read_text().splitlines() if line.strip()]
    last = {json.loads(row)["step"]: row for row in rows}  # a resumed run may write a step twice
    rows = [last[s] for s in sorted(last)]
    keep = sorted({round(i) for i in np.linspace(0, len(rows) - 1, min(100, len(rows)))})
    write_text(target, "\n".join(rows[i] for i in keep) + "\n")


def publish_cuts(preset: Preset, runs: dict[str, Path]) -> None:
    """Write generator.safetensors: the cuts of `runs` ({side: folder}) and the statistics of the mapping's codes."""
    generator, about = build_generator(preset), {"preset": preset.name}
    folder = config.bundled_folder("zoo") / preset.name
    generator.codes.measure(generator.map)
    for side, run in runs.items():
        generator.cuts[side].load_state_dict(load_tensors(run / "cut.safetensors"))
        about |= {f"{k}_{side}": v for k, v in load_metadata(run / "cut.safetensors").items()}
        thin(run / "log.jsonl", folder / "runs" / f"cut{side}.jsonl")
    save_tensors(folder / "generator.safetensors", generator.own_state(), about, exact=("codes.",))


def publish(preset: Preset, runs: dict[str, Path]) -> None:
    """Write <part>.safetensors for each {part: folder of its run}, and its log; an encryptor goes by its variant.

    Raises ValueError where a network was trained for another preset; then nothing is written.
    """
    folder, kinds = config.bundled_folder("zoo") / preset.name, {p: "encryptor" for p in runs if p in ALL_VARIANTS}
    files = {part: run / f"{kinds.get(part, part)}.safetensors" for part, run in runs.items()}
    for source in files.values():  # before anything is written
        if (owner := load_metadata(source).get("preset", preset.name)) != preset.name:
            raise ValueError(f"{source}: trained for preset {owner}, not for {preset.name}; give --preset {owner}")
    for part, run in runs.items():
        kind, name = kinds.get(part, part), ALL_VARIANTS[part].file if part in ALL_VARIANTS else part
        source, target = files[part], folder / f"{name}.safetensors"
        about, coarse = load_metadata(source), COARSE.get(kind, ())
        save_tensors(target, load_tensors(source), about, exact=EXACT, coarse=coarse)
        print(f"{target.name}: {target.stat().st_size / 2**20:.1f} MiB")
        thin(run / "log.jsonl", folder / "runs" / f"{name}.jsonl")


def _folders(entries: list[str]) -> dict[str, Path]:
    """NAME=FOLDER each."""
    return {name: Path(folder) for name, _, folder in (entry.partition("=") for entry in entries)}


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mobile")
    p.add_argument("--cut", action="append", default=[], metavar="SIDE=FOLDER")
    p.add_argument("--encoder", metavar="FOLDER")
    p.add_argument("--parser", metavar="FOLDER")
    p.add_argument("--critic", metavar="FOLDER")
    p.add_argument("--encryptor", action="append", default=[], metavar="VARIANT=FOLDER")
    p.add_argument("--baseline", action="append", default=[], metavar="NAME=FOLDER")
    p.add_argument("--samples", action="store_true", help="draw data/samples from the published generator")
    a = p.parse_args(argv)
    preset, encryptors, baselines = get(a.preset), _folders(a.encryptor), _folders(a.baseline)
    if unknown := sorted(set(encryptors) - set(ALL_VARIANTS)):
        p.error(f"--encryptor: no variant {', '.join(unknown)}; choose from {', '.join(ALL_VARIANTS)}")
    if unknown := sorted(set(baselines) - NETWORKS):
        p.error(f"--baseline: no system {', '.join(unknown)}; choose from {', '.join(sorted(NETWORKS))}")
    runs = (
        {k: Path(v) for k, v in (("encoder", a.encoder), ("parser", a.parser), ("critic", a.critic)) if v}
        | encryptors
        | baselines
    )
    if absent := [str(run) for run in runs.values() if not any(run.glob("*.safetensors"))]:
        p.error(f"no trained network lies in {', '.join(absent)}; train it first, or leave it out")
    if a.cut:
        publish_cuts(preset, _folders(a.cut))
    publish(preset, runs)
    if a.samples:
        draw_samples(preset, config.bundled_folder("samples"))


if __name__ == "__main__":
    recipe.command(main)
