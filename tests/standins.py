"""Write stand-ins of the public weights: files of the published names, layouts and sizes, with random weights.

    python tests/standins.py ../standins                        # thirteen files, 3.7 GB, and 36 drawn faces as FFHQ
    python -m riddle weights import --trust ../standins
    export RIDDLE_DATA=../standins/sets

With them every command of docs/paper.md can be tried without the public weights. The faces mean nothing: only the
mapping network of the generators is a real one, that of `mobile`, so that passwords are spread as they should be.
"""

import sys
from pathlib import Path

import torch
import torchvision
from test_published import checkpoint, e4e, g_ema, mapper

import riddle
from riddle.images import to_image
from riddle.models.inversion import Encoder
from riddle.models.stylegan2 import Generator
from riddle.presets import get
from riddle.published import blank
from riddle.training.frozen import frozen_generator

FACES = 36  # with mirrored ones, 72 codes: 24 more than training holds out
NETWORKS = {
    "model_ir_se50.pth": "irse50", "79999_iter.pth": "bisenet", "sphere20a_20171020.pth": "sphereface20",
    "CurricularFace_Backbone.pth": "ir101", "20180402-114759-vggface2.pt": "facenet",
    "20180408-102900-casia-webface.pt": "facenet",
}  # fmt: skip


def generator_and_encoder(preset: str, names: tuple[str, str], folder: Path) -> torch.Tensor:
    """Write a generator and an e4e of a preset; returns the mean code (1, D)."""
    p, mapping = get(preset), frozen_generator(get("mobile"), "", "cpu").mapping
    generator = Generator.of(p)
    for ours, theirs in zip(generator.style[1:], mapping, strict=True):
        ours.weight.data, ours.bias.data = theirs.weight / ours.scale, theirs.bias / ours.lr_mul
    mean = generator.mean_latent()
    torch.save({"g_ema": g_ema(generator), "latent_avg": mean.flatten()}, folder / names[0])
    encoder = Encoder(p)
    encoder.latent_avg.copy_(mean.expand(p.n_latent, -1))
    torch.save(e4e(encoder, generator), folder / names[1])
    return mean


@torch.no_grad()
def main(folder: str) -> None:
    """Write all files into a folder."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator_and_encoder("ffhq1024", ("stylegan2-ffhq-config-f.pt", "e4e_ffhq_encode.pt"), out)
    mean = generator_and_encoder("ffhq256", ("stylegan2-ffhq-256.pt", "e4e_ffhq_encode_256.pt"), out)
    torch.save(mean + 0.3 * torch.randn(60, 14, 512), out / "invert_w_256.pt")
    torch.save(checkpoint(mapper((4, 4, 6), 512), transformer_split_list=[4, 4, 6]), out / "iteration_90000.pt")
    for name, layout in NETWORKS.items():
        torch.save(blank(layout).state_dict(), out / name)
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), out / "vgg16-397923af.pth")
    for path in sorted(out.glob("*.p*")):
        print(f"{path.stat().st_size / 1e6:8,.1f} MB  {path}")
    faces = out / "sets" / "ffhq" / "images1024x1024"
    faces.mkdir(parents=True, exist_ok=True)
    model = riddle.load("mobile")
    for i, w in enumerate(model.generator.sample(FACES, 0.7, seed=0).split(1)):
        to_image(model.synthesize(w, 1024)[0]).save(faces / f"{i:05d}.png")
    print(f"{FACES} faces in {faces}")


if __name__ == "__main__":
    main(*sys.argv[1:])
