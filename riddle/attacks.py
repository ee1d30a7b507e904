"""What somebody without the passphrase can try (Table S). The attacker has this program, its weights, other people's
photos, and as many protected files as they like.

Codes and passwords here are in the Gaussian space z (riddle.models.codes), where the encryptors work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from riddle.models.encryptor import CodeModel
from riddle.seal import Sealed

FOLDS = 5  # of the people: an attack learns from four parts and reads the fifth
STEPS, STARTS, RATE = 200, 2, 0.05  # of a search for a key: Adam's steps, random starts, learning rate
FACES = 8  # of those under one password, for a step of the search
BATCH = 256  # codes at a time

# ---- reading the person out of what is published

LEARNERS: dict[str, Callable[[int], object]] = {  # inputs -> an estimator of scikit-learn
    "ridge regression": lambda inputs: Ridge(alpha=inputs),
    "small MLP": lambda inputs: MLPRegressor(
        hidden_layer_sizes=(512,), early_stopping=True, max_iter=20, random_state=0
    ),
}


def read_people(seen: np.ndarray, known: np.ndarray, persons: np.ndarray, learner: str) -> np.ndarray:
    """What a learner reads of each face, by what it learned from other people's: (N, E).

    seen: (N, K, F) what the attacker sees of N protected faces, the first of K as published, the others under other
    passwords, to learn from; known: (N, E) embeddings of the photos behind; persons: (N,) who is on each.
    """
    read = np.zeros(known.shape, np.float32)
    folds = GroupKFold(min(FOLDS, len(np.unique(persons))))
    for learn, test in folds.split(seen, groups=persons):
        made = make_pipeline(StandardScaler(), LEARNERS[learner](seen.shape[2]))
        made.fit(seen[learn].reshape(-1, seen.shape[2]), known[learn].repeat(seen.shape[1], 0))
        read[test] = made.predict(seen[test, 0])
    return read


def scores(read: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Cosines of each reading with each photo's embedding, both (N, E), from their means: (N, N)."""
    a, b = (x - np.nanmean(x, 0) for x in (read, known))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def found_among(scored: np.ndarray, persons: np.ndarray, others: int, seed: int) -> np.ndarray:
    """Whether each face's own photo scores highest among those of `others` other people: (N,) bool, NaN scores never.

    scored: (N, N) scores of protected faces (rows) with photos (columns); persons: (N,) who is on each. Fewer others
    where there are fewer.
    """
    draw, (people, first) = np.random.default_rng(seed), np.unique(persons, return_index=True)
    out = np.zeros(len(scored), bool)
    for i, row in enumerate(scored):
        rivals = draw.permutation(first[people != persons[i]])[:others]
        out[i] = bool((row[i] > np.nan_to_num(row[rivals], nan=-np.inf)).all())
    return out


# ---- searching the key


@dataclass(frozen=True)
class Prior:
    """How probable a code is: independent normals, measured on other people's inverted faces."""

    mean: torch.Tensor  # (L, D)
    std: torch.Tensor  # (L, D)

    @classmethod
    def of(cls, z: torch.Tensor) -> Prior:
        """That of codes z (N, L, D)."""
        return cls(z.mean(0), z.std(0).clamp_min(1e-2))

    def surprise(self, z: torch.Tensor) -> torch.Tensor:
        """Mean squared distance from the mean in stds, (...,) of codes (..., L, D): less is more probable."""
        return ((z - self.mean) / self.std).square().mean((-2, -1))


def known_pair(encryptor: CodeModel, z: torch.Tensor, encrypted: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The passwords that best explain one original and its encrypted code each, by gradient descent: (N, L, D).

    z, encrypted: (N, L, D).
    """

    def error(password: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (encryptor.change(z, password) - encrypted).square().mean((1, 2))

    return _search(error, len(z), 1, encryptor, seed)


def many_files(encryptor: CodeModel, encrypted: torch.Tensor, prior: Prior, seed: int = 0) -> torch.Tensor:
    """The passwords under which the decrypted codes are most probable, by stochastic gradient descent: (N, L, D).

    encrypted: (N, M, L, D) codes of M faces under each of N passwords.
    """

    def surprise(password: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
        part = encrypted[:, faces]
        back = encryptor.change(part.flatten(0, 1), password.repeat_interleave(len(faces), 0))
        return prior.surprise(back).view(part.shape[:2]).mean(1)

    return _search(surprise, *encrypted.shape[:2], encryptor, seed)


def _search(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], n: int, faces: int, encryptor: CodeModel, seed: int
) -> torch.Tensor:
    """Of `STARTS` descents, the n passwords (n, L, D) with the least loss each; loss: passwords, faces -> (n,).

    A step takes at most `FACES` of the faces by random.
    """
    draw, best, least = torch.Generator().manual_seed(seed), torch.zeros(n, encryptor.style_dim), torch.inf
    for _ in range(STARTS):
        key = torch.randn(best.shape, generator=draw).requires_grad_()
        optimizer = torch.optim.Adam([key], lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            part = torch.randperm(faces, generator=draw)[:FACES]
            loss(_slots(key, encryptor), part).sum().backward(inputs=[key])
            optimizer.step()
        with torch.no_grad():
            reached = loss(_slots(key, encryptor), torch.arange(faces))
            best = torch.where((reached < least)[:, None], key, best)
            least = reached.clamp_max(least)
    return _slots(best, encryptor)


def _slots(key: torch.Tensor, encryptor: CodeModel) -> torch.Tensor:
    return key[:, None].expand(-1, encryptor.n_latent, -1)


def linear_map(z: torch.Tensor, encrypted: torch.Tensor, others: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """What a linear map, fitted to the slots of one pair each, makes of other faces under the same password.

    z, encrypted, others: (N, L, D); alpha: the ridge's weight. Returns (N, L, D).
    """
    gram = encrypted @ encrypted.mT + alpha * torch.eye(z.shape[1])
    return others @ encrypted.mT @ torch.linalg.solve(gram, z)


# ---- guessing it


@torch.no_grad()
def guess(
    encryptor: CodeModel, encrypted: torch.Tensor, password: torch.Tensor, prior: Prior, guesses: int, seed: int = 0
) -> np.ndarray:
    """Rank (N,) of the right password, 1 is the first, among `guesses` by how probable the decrypted codes are.

    encrypted, password: (N, L, D). Chance is (guesses + 1) / 2.
    """
    draw = torch.Generator().manual_seed(seed)
    wrong = _slots(torch.randn(guesses - 1, encryptor.style_dim, generator=draw), encryptor)
    ranks = []
    for code, right in zip(encrypted, password, strict=True):
        keys = torch.cat([right[None], wrong]).split(BATCH)
        tried = torch.cat([prior.surprise(encryptor.change(code.expand_as(part), part)) for part in keys])
        ranks.append(1 + int((tried[1:] < tried[0]).sum()))
    return np.array(ranks)


def guess_sealed(sealed: Sealed, secret: bytes, guesses: int, seed: int = 0) -> int:
    """Rank of the right secret, 1 is the first, among `guesses` when those that open the seal come first."""
    draw = np.random.default_rng([seed, 1])  # no stream that made the secret
    if sealed.open(secret) is None:
        return guesses
    return 1 + sum(sealed.open(draw.bytes(len(secret))) is not None for _ in range(guesses - 1))


def near(password: torch.Tensor, cosine: float, seed: int = 0) -> torch.Tensor:
    """Random passwords of this cosine with the given ones (N, L, D), of about their length: (N, L, D)."""
    key = password[:, 0]
    noise = torch.randn(key.shape, generator=torch.Generator().manual_seed(seed))
    noise -= (noise * key).sum(1, keepdim=True) / key.square().sum(1, keepdim=True) * key
    noise *= key.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return (cosine * key + (1 - cosine**2) ** 0.5 * noise)[:, None].expand_as(password)


def bytes_of(files: Iterator[bytes]) -> np.ndarray:
    """Files as numbers for a learner, (N, F) uint8, filled with zeros to the length of the longest."""
    rows = [np.frombuffer(data, np.uint8) for data in files]
    out = np.zeros((len(rows), max(map(len, rows))), np.uint8)
    for row, data in zip(out, rows, strict=True):
        row[: len(data)] = data
    return out
