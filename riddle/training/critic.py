"""Train the critic, which helps to choose the stranger who takes a face's place.

    python -m riddle.training.critic --recipe mobile

Each face is pasted into its own picture: as the generator shows it, which fits, and as strangers, who may not. The
bundled encoder, encryptor, parser and generator make them. Two logistic regressions learn to tell both kinds apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import riddle
from riddle.faces import fitting
from riddle.images import to_tensor
from riddle.models.codes import lit
from riddle.models.critic import Critic
from riddle.models.inversion import LiteEncoder
from riddle.progress import track
from riddle.training import recipe
from riddle.weights import save_tensors

BATCH = 8  # faces pasted at once


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Faces and the regressions."""

    data: str  # uint8 .npy of `prepare faces`
    val: str  # the same, of the validation split
    out: str  # folder of the run
    preset: str = "mobile"  # of riddle.presets
    count: int = 1000  # faces of `data`, drawn by seed
    val_count: int = 100  # faces of `val`
    strangers: int = 3  # that take the place of each face
    strength: float = 1e-3  # scikit-learn's C: smaller is a stronger penalty of large weights
    seed: int = 0


@torch.no_grad()
def pasted(model: riddle.Riddle, faces: torch.Tensor, strangers: int, seed: int) -> torch.Tensor:
    """Faces (N, 3, R, R), each with a face in its place: (1 + strangers, N, 3, R, R), its own first."""
    w = model.invert(faces, refine=0)
    many, under = w.repeat(strangers, 1, 1), faces.repeat(1 + strangers, 1, 1, 1)
    keys = model.random_password(len(many), seed)
    new = model.synthesize(torch.cat([w, lit(model.encrypt(many, keys), many)]))
    return fitting.pasted(new, under, model._parsed(under, new)).unflatten(0, (1 + strangers, len(faces)))


def _drawn(path: str, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of `count` faces of a file, in a random order."""
    faces = np.load(path, mmap_mode="r")
    chosen = np.random.default_rng(seed).permutation(len(faces))[:count]
    for first in track(range(0, len(chosen), BATCH), Path(path).stem):
        yield to_tensor(faces[np.sort(chosen[first : first + BATCH])])


@torch.no_grad()
def examples(
    model: riddle.Riddle, critic: Critic, path: str, count: int, strangers: int, seed: int
) -> list[np.ndarray]:
    """The critic's features of pasted faces, (1 + strangers, N, F) for each logit."""
    parts = []
    for n, faces in enumerate(_drawn(path, count, seed)):
        there = pasted(model, faces, strangers, seed + n)
        features = critic.features(there.flatten(0, 1))
        parts.append([x.unflatten(0, there.shape[:2]).numpy() for x in features])
    return [np.concatenate(part, 1) for part in zip(*parts, strict=True)]


def fit(features: np.ndarray, layer: nn.Linear, strength: float) -> None:
    """Set a layer so that it tells the first of the features (1 + strangers, N, F) from the others."""
    own = np.zeros(features.shape[:2], int)
    own[0] = 1
    learner = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, class_weight="balanced"))
    learner.fit(features.reshape(-1, features.shape[-1]), own.ravel())
    scaler, regression = (step for _, step in learner.steps)
    weight = regression.coef_[0] / scaler.scale_
    layer.weight.data = torch.from_numpy(weight[None]).float()
    layer.bias.data = torch.from_numpy(regression.intercept_ - weight @ scaler.mean_).float()


def ordered(features: np.ndarray, layer: nn.Linear) -> float:
    """Of pairs of a person and a stranger in one place, the share in which the person gets the higher logit."""
    with torch.no_grad():
        own, *others = layer(torch.from_numpy(features))[..., 0]
    return (own > torch.stack(others)).float().mean().item()


def main(argv: list[str] | None = None) -> dict:
    """Command line of this module; returns what is measured on the validation faces."""
    config = recipe.parse(CriticConfig, "critic", __doc__, argv)
    model = riddle.load(config.preset)
    if not isinstance(model.encoder, LiteEncoder):
        raise ValueError(f"--preset {config.preset}: a critic needs the encoder of 'mobile'; choose that preset")
    critic = Critic(model.encoder)
    learned = examples(model, critic, config.data, config.count, config.strangers, config.seed)
    held_out = examples(model, critic, config.val, config.val_count, config.strangers, config.seed + config.count)
    about = {"preset": config.preset, "faces": learned[0].shape[1], "strangers": config.strangers}
    for name, layer, seen, unseen in zip(("looks", "person"), critic.children(), learned, held_out, strict=True):
        fit(seen, layer, config.strength)
        about |= {f"val_{name}": round(ordered(unseen, layer), 3)}
    save_tensors(Path(config.out) / "critic.safetensors", critic.state_dict(), about)
    print(json.dumps(about))
    return about


if __name__ == "__main__":
    recipe.command(main)
