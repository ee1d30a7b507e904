"""Put trained networks into data/zoo/<preset> and draw data/samples from them.

    python -m riddle.training.publish --preset mini --inversion results/runs/inversion --parser results/runs/parsing \
        --encryptor results/runs/encryptor --encryptor encryptor_datafree=results/runs/datafree
    python -m riddle.training.publish --preset mini --samples

Weights are stored in float16; each file's metadata say what made it; the logs go beside them, thinned.
The samples follow a fixed rule: face k of 48 is drawn from z = standard normal of seed k, psi = 0.7.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from riddle import config, zoo
from riddle.models.stylegan2 import Generator
from riddle.presets import Preset, get

SAMPLES, PSI = 48, 0.7


def sample_codes(generator: Generator, n: int = SAMPLES, psi: float = PSI) -> torch.Tensor:
    """The codes (n, L, D) of the bundled samples."""
    z = torch.stack([torch.randn(generator.style_dim, generator=torch.Generator().manual_seed(k)) for k in range(n)])
    with torch.no_grad():
        mean = generator.mean_latent()
        return generator.spread(mean + psi * (generator.map(z) - mean))


def draw_samples(preset: Preset, folder: Path) -> None:
    """Draw the 48 faces as 000.png to 047.png, with codes.safetensors."""
    generator = Generator.of(preset)
    generator.load_state_dict(zoo.load_tensors(zoo.bundled(preset.name, "generator")))
    codes = sample_codes(generator)
    with torch.no_grad():
        faces = generator(codes)
    pixels = faces.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    for k, face in enumerate(pixels):
        Image.fromarray(face).save(folder / f"{k:03d}.png", optimize=True)
    zoo.save_tensors(folder / "codes.safetensors", {"codes": codes}, {"preset": preset.name, "psi": str(PSI)})


def thin(log: Path, target: Path, lines: int = 200) -> None:
    """Copy a JSONL log, keeping about `lines` of its lines, spread evenly, and the last."""
    rows = [line for line in log.read_text().splitlines() if line.strip()]
    steps = [json.loads(row)["step"] for row in rows]
    last = {step: row for step, row in zip(steps, rows, strict=True)}  # a resumed run may write a step twice
    rows = [last[s] for s in sorted(last)]
    keep = sorted({round(i) for i in np.linspace(0, len(rows) - 1, min(lines, len(rows)))})
    target.parent.mkdir(parents=True, exist_ok=True)
    zoo.write_text(target, "\n".join(rows[i] for i in keep) + "\n")


def shared(tensors: dict[str, torch.Tensor], path: Path, least: int = 1000) -> list[str]:
    """Names of tensors of `least` numbers or more that the file at `path` holds as well: the eigenfaces."""
    other = zoo.load_tensors(path) if path.is_file() else {}
    large = (k for k, v in tensors.items() if v.numel() >= least and k in other and v.shape == other[k].shape)
    return [k for k in large if torch.equal(tensors[k].half(), other[k].half())]


def publish(preset: Preset, runs: dict[str, Path]) -> None:
    """runs: {part: folder of its run}. "inversion" gives the encoder, and the generator where that was tuned with it;
    "gan" the generator alone."""
    folder = config.bundled_folder("zoo") / preset.name
    for part, run in runs.items():
        files = {"inversion": ("generator", "encoder"), "gan": ("generator",), "parser": ("parser",)}.get(part)
        for name in files or ("encryptor",):
            source = run / f"{name}.safetensors"
            if part == "inversion" and name == "generator" and not source.is_file():
                continue
            target = folder / f"{name if files else part}.safetensors"
            tensors, about = zoo.load_tensors(source), zoo.load_metadata(source)
            if name == "encoder" and (common := shared(tensors, folder / "generator.safetensors")):
                tensors = {k: v for k, v in tensors.items() if k not in common}
                about[zoo.SHARED] = json.dumps({"generator.safetensors": common})
            zoo.save_tensors(target, tensors, about)
            print(f"{target.name}: {target.stat().st_size / 2**20:.1f} MiB")
        if (run / "log.jsonl").is_file():
            thin(run / "log.jsonl", folder / "runs" / f"{'parsing' if part == 'parser' else part}.jsonl")


def main(argv: list[str] | None = None) -> None:
    """Command line of this module."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="mini")
    p.add_argument("--gan")
    p.add_argument("--inversion")
    p.add_argument("--parser")
    p.add_argument("--encryptor", action="append", default=[], metavar="[NAME=]FOLDER")
    p.add_argument("--samples", action="store_true", help="draw data/samples from the published generator")
    a = p.parse_args(argv)
    runs = {k: Path(v) for k, v in (("gan", a.gan), ("inversion", a.inversion), ("parser", a.parser)) if v}
    for entry in a.encryptor:
        name, _, folder = entry.rpartition("=")
        runs[name or "encryptor"] = Path(folder)
    publish(get(a.preset), runs)
    if a.samples:
        draw_samples(get(a.preset), config.bundled_folder("samples"))


if __name__ == "__main__":
    main()
