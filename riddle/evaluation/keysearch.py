"""Table S, attacks on the key: faces are opened by the key that an attack finds, drawn, and compared with the photo.

The searches have the exact encrypted codes, which tell more than a picture does: a picture has to be inverted first.
The thresholds are those of Table 1. "one key" means that the attacked file has the key of the known ones, as pictures
without a record have under one passphrase; files with a record never do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import riddle
from riddle import attacks
from riddle.evaluation import facesets, recognition, rows, table1
from riddle.evaluation.facesets import Embedded
from riddle.evaluation.runs import Run, key_of, need, part_hash, read, stage
from riddle.evaluation.tables import Measured
from riddle.faces import alignment, blending, detection
from riddle.images import to_bytes, to_tensor
from riddle.metrics.identity import accepted, bootstrap_interval, cosine, mean_of
from riddle.models.codes import lit
from riddle.passwords import KEY_BYTES, SALT_BYTES, derive_key
from riddle.presets import VARIANTS
from riddle.progress import track
from riddle.record import Record, look_of
from riddle.seal import Sealed

ATTACKED = {v: rows.ENCRYPTORS.get(v, VARIANTS[v].label) for v in ("riddle", "coupling", "reflection")}
PEOPLE = 100  # whose key is searched: people with two photos, where there are such
GROUPS, FILES = 20, (1, 4, 16, 64)  # passphrases, and faces under each
GUESSES, GUESSED = 1000, 100  # passphrases tried, and faces
NEAR = (0.99, 0.9, 0.7, 0.5)  # cosines of a key with the right one
AWAY = 1.5  # size of the oval whose outside counts as surroundings, of that over brows, eyes, nose and mouth
PASSPHRASES = ("correct horse battery staple", "correct horse battery stapler")

SURROUNDED, TRIED = 10, 100  # faces pasted in their photos, and passphrases tried on the surroundings
OUTLINED = 10  # keys under which the place of each of these faces is compared

PIXELS, FILE, OPEN = "pixels", "sealed file", "the record open"
AROUND = "pixels and surroundings"
READ, FIRST = rows.ACCEPTED, "share of first ranks"
RANK = f"rank of the right passphrase among {GUESSES:,}"
RANK_AROUND = f"rank of the right passphrase among {TRIED}"
MOVED = "share of the replaced pixels that depends on the key"
ONE_KEY, OTHER_KEY = "one key", "another key"
TWINS = "two protected photos"


def sealed(run: Run, model: riddle.Riddle, w: torch.Tensor, targets: np.ndarray) -> Iterator[tuple[Sealed, bytes]]:
    """The sealed record of each encrypted code (T, L, D), in a photo of its own, and the secret that opens it.

    The secrets are random, as those of unknown passphrases are.
    """
    draw, size = np.random.default_rng(run.seed), (250, 250)  # LFW's
    matrices, faces = (read(facesets.aligned(run), k)[targets] for k in ("matrices", "faces"))
    for matrix, z, face in zip(matrices, model.generator.codes.to_record(w), faces, strict=True):
        salt, secret, look = draw.bytes(SALT_BYTES), draw.bytes(KEY_BYTES), look_of(Image.fromarray(face))
        record = Record(run.preset, model.weights_hash, size, salt, matrix[None], z[None], look)
        yield record.seal(secret), secret


def opened(run: Run, variant: str) -> Path:
    """Faces as each attack on the key opens them, `<attack> faces` and `<attack> targets`."""
    codes, weights = facesets.codes(run), part_hash(run.preset, VARIANTS[variant].file)
    setup = (run.seed, PEOPLE, GROUPS, FILES, NEAR, PASSPHRASES, attacks.STEPS, attacks.STARTS)

    def make() -> dict[str, np.ndarray]:
        model, out = facesets.parse(variant).model(run), {}
        for name, (w, targets) in _attempts(run, model).items():
            out[f"{name} faces"] = np.concatenate([to_bytes(model.synthesize(p)) for p in w.split(facesets.BATCH)])
            out[f"{name} targets"] = targets
        return out

    made_from = ("opened", variant, key_of(codes), weights, setup)
    return stage(run, run.folder / "attacks" / f"{variant} keys.npz", made_from, make)


def _attempts(run: Run, model: riddle.Riddle) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """{attack: codes (M, L, D) of the faces that it opens, the pictures that they should show}."""
    source, encryptor, space = facesets.codes(run), model.encryptor, model.generator.codes
    targets = need(source, "targets")
    z = space.to_gaussian(torch.from_numpy(read(source, "codes")))
    first, second = _twins(run.pairs.persons[targets], run.seed)
    n, change, twins = len(first), torch.no_grad()(encryptor.change), bool((first != second).any())
    theirs = np.roll(np.arange(n), 1)  # whose key each victim has
    right, wrong = (space.to_gaussian(model.random_password(n, seed=run.seed + i)) for i in (11, 12))
    hidden, out = change(z[first], right), {}

    def keep(name: str, back: torch.Tensor, whose: np.ndarray = first) -> None:
        out[name] = space.to_w(back), targets[whose]

    keep("the right key", change(hidden, right))
    keep("a wrong key", change(hidden, wrong))
    for c in NEAR:
        keep(f"a key of cosine {c:g}", change(hidden, attacks.near(right, c, run.seed)))
    one, other = (space.to_gaussian(model.from_key(derive_key(p, run.preset))).expand_as(hidden) for p in PASSPHRASES)
    keep("a passphrase with one character more", change(change(z[first], one), other))

    shared = change(z[first], right[theirs])  # each victim under the key of the one before
    originals = {"exact original": z[first]} | ({"another photo as original": z[second]} if twins else {})
    for name, original in originals.items():
        key = attacks.known_pair(encryptor, original, hidden, run.seed)
        keep(f"{name}, gradient search, {ONE_KEY}", change(shared, key[theirs]))
        keep(f"{name}, gradient search, {OTHER_KEY}", change(change(z[first], wrong), key[theirs]))
        mapped = attacks.linear_map(original[theirs], hidden[theirs], shared)
        keep(f"{name}, linear map, {ONE_KEY}", mapped)

    # The faces of the files below are in it, too, a few among thousands.
    prior = attacks.Prior.of(z[np.setdiff1d(np.arange(len(z)), first)] if len(z) > n else z)
    draw = np.random.default_rng(run.seed)
    for files in FILES:
        if files > len(z):
            break
        chosen = np.stack([draw.permutation(len(z))[:files] for _ in range(GROUPS)])
        keys = space.to_gaussian(model.random_password(GROUPS, seed=run.seed + 13))
        under = change(z[chosen.ravel()], keys.repeat_interleave(files, 0)).unflatten(0, chosen.shape)
        key = attacks.many_files(encryptor, under, prior, run.seed)
        keep(f"{files} files without originals, {ONE_KEY}", change(under[:, 0], key), chosen[:, 0])

    if twins:  # two protected photos of one person
        for name, key in ((ONE_KEY, right), (OTHER_KEY, wrong)):
            out[f"{TWINS}, {name}"] = space.to_w(change(z[second], key)), targets[first]
        out[TWINS] = space.to_w(hidden), targets[first]
    return out


def _twins(persons: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two faces each of at most `PEOPLE` people, (n,) and (n,); one face twice where nobody has two."""
    draw, pairs = np.random.default_rng(seed), []
    for person in np.unique(persons):
        pairs.append(draw.permutation(np.flatnonzero(persons == person))[:2])
    twins = [p for p in pairs if len(p) == 2] or [p.repeat(2) for p in pairs]
    chosen = np.array(twins)[draw.permutation(len(twins))[:PEOPLE]]
    return chosen[:, 0], chosen[:, 1]


def ranks(run: Run, variant: str) -> Path:
    """Rank of the right key of each of `GUESSED` faces, (n,), by what the guesses are tested on."""
    codes, weights = facesets.codes(run), [part_hash(run.preset, p) for p in ("encoder", VARIANTS[variant].file)]

    def make() -> dict[str, np.ndarray]:
        model, targets = facesets.parse(variant).model(run), need(codes, "targets")
        space, w = model.generator.codes, torch.from_numpy(read(codes, "codes"))
        chosen = np.random.default_rng(run.seed).permutation(len(w))[:GUESSED]
        key = model.random_password(len(chosen), seed=run.seed + 14)
        hidden = model.encrypt(w[chosen], key).cpu()
        seen = model.invert(model.synthesize(hidden), refine=0).cpu()
        others = np.setdiff1d(np.arange(len(w)), chosen) if len(w) > len(chosen) else chosen
        prior = attacks.Prior.of(space.to_gaussian(w[others]))

        def by(code: torch.Tensor) -> np.ndarray:
            given = map(space.to_gaussian, (code, key))
            return attacks.guess(model.encryptor, *given, prior, GUESSES, run.seed)

        records = sealed(run, model, hidden, targets[chosen])
        return {
            PIXELS: by(seen),
            OPEN: by(hidden),
            FILE: np.array([attacks.guess_sealed(*pair, GUESSES, run.seed) for pair in records]),
        }

    made_from = ("ranks", variant, key_of(codes), weights, run.seed, GUESSES, GUESSED)
    return stage(run, run.folder / "attacks" / f"{variant} ranks.npz", made_from, make)


def surroundings(run: Run, variant: str) -> Path:
    """Rank of the right key of each of `SURROUNDED` faces, (n,), by how well what it restores fits the photo around.

    The pasted face is inverted and decrypted by each key; hair, ears and background of the drawn face are compared with
    the photo's, by squared error outside the face.
    """
    source = facesets.faces(run, variant)

    def make() -> dict[str, np.ndarray]:
        model, targets = facesets.parse(variant).model(run), need(source, "targets")
        chosen = np.sort(np.random.default_rng(run.seed).permutation(targets)[:SURROUNDED])
        pictures, targets = facesets.of_people(source, chosen)
        side, right = model.preset.resolution, facesets.own_password(run, model)[targets]
        wrong, outside = model.random_password(TRIED - 1, seed=run.seed + 15), 1 - blending.core(side, AWAY)
        ranked = []
        for (photo, matrix), key in zip(facesets.pasted(run, variant, pictures, targets), right, strict=True):
            crop = to_tensor(np.asarray(alignment.crop(photo, matrix, side))[None])
            keys = torch.cat([key[None], wrong])
            back = model.synthesize(model.decrypt(model.invert(crop).expand(len(keys), -1, -1), keys)).cpu()
            error = ((back - crop).square().mean(1) * outside).sum((1, 2))
            ranked.append(1 + int((error[1:] < error[0]).sum()))
        return {"ranks": np.array(ranked)}

    weights = [part_hash(run.preset, p) for p in ("encoder", "parser", VARIANTS[variant].file)]
    made_from = ("surroundings", variant, key_of(source), weights, run.seed, SURROUNDED, TRIED, AWAY)
    return stage(run, run.folder / "attacks" / f"{variant} surroundings.npz", made_from, make)


def rims(run: Run, variant: str) -> Path:
    """How far the outline of each of `SURROUNDED` pasted faces depends on the key, (n,), as `moved` has it."""
    source = facesets.codes(run)

    def make() -> dict[str, np.ndarray]:
        model, targets = facesets.parse(variant).model(run), need(source, "targets")
        chosen = np.sort(np.random.default_rng(run.seed).permutation(len(targets))[:SURROUNDED])
        faces = to_tensor(read(facesets.aligned(run), "faces")[targets[chosen]])
        return {"moved": moved(model, faces, torch.from_numpy(read(source, "codes")[chosen]), run.seed + 16)}

    weights = [part_hash(run.preset, p) for p in ("parser", VARIANTS[variant].file)]
    made_from = ("rims", variant, key_of(source), weights, run.seed, SURROUNDED, OUTLINED)
    return stage(run, run.folder / "attacks" / f"{variant} rims.npz", made_from, make)


def moved(model: riddle.Riddle, faces: torch.Tensor, w: torch.Tensor, seed: int) -> np.ndarray:
    """Of the pixels that pasting by the wider rim replaces under one key or another, the share under one only: (n,).

    faces: (n, 3, R, R) in [-1, 1]; w: their codes (n, L, D). The first of `OUTLINED` keys is compared with the others.
    """
    shares = []
    for face, code in zip(faces, w.to(model.device), strict=True):
        under, many = face[None].expand(OUTLINED, -1, -1, -1), code.expand(OUTLINED, -1, -1)
        new = model.synthesize(lit(model.encrypt(many, model.random_password(OUTLINED, seed)), many))
        masks = blending.halved(blending.outlines(model._parsed(under, new), under)) > 0
        one, other = masks[:1], masks[1:]
        shares.append(((one ^ other).sum((1, 2)) / (one | other).sum((1, 2))).mean())
    return np.array(shares)


def embedded(run: Run, variant: str) -> Path:
    """Embeddings of the faces that `opened` leaves, `<attack> <recogniser>` (M, E), NaN where no face is found."""
    source = opened(run, variant)
    here, _ = recognition.load_all(run.preset, run.device)
    here = {name: recogniser for name, recogniser in here.items() if name in rows.ANGULAR}

    def make() -> dict[str, np.ndarray]:
        need(source, "the right key faces")
        detector, out = detection.load_detector(run.detector), {}
        for name in track(_names(source), f"{variant} keys"):
            pictures = read(source, f"{name} faces")
            found = detection.detect_in_crop(to_tensor(pictures), detector, run.workers)
            out |= {f"{name} {k}": e for k, e in recognition.embed(here, pictures, found).items()}
        return out

    made_from = ("opened embeddings", key_of(source), run.detector, *sorted(here))
    return stage(run, run.folder / "attacks" / f"{variant} embeddings.npz", made_from, make)


def _names(source: Path) -> list[str]:
    """The attacks in a file of `opened`."""
    with np.load(source) as file:
        return [name.removesuffix(" faces") for name in file.files if name.endswith(" faces")]


def keys(run: Run) -> Iterator[Measured]:
    """The key known in part, searched, guessed; and two protected photos of one person, linked."""
    photos = [facesets.embedded(run, name, ["photo"]) for name in rows.ANGULAR]
    for variant, label in ATTACKED.items():
        source = opened(run, variant)
        if reason := read(source, "reason"):
            yield Measured("key", label, READ, rows.SAME_PHOTO).absent(reason)
            continue
        seen, ranked = embedded(run, variant), ranks(run, variant)
        for by in photos:
            yield from _by(run, by, label, source, seen)
        for what in (PIXELS, OPEN, FILE):
            rank, number = read(ranked, what), Measured("guessing", label, "", "", place=what)
            yield replace(number, metric=RANK).of(mean_of(rank.astype(float)), digits=1)
            yield replace(number, metric=FIRST).of(mean_of(rank == 1))
        around = surroundings(run, variant)
        number = Measured("guessing", label, RANK_AROUND, "", place=AROUND)
        if reason := read(around, "reason"):
            yield number.absent(reason)
        else:
            yield number.of(mean_of(read(around, "ranks").astype(float)), digits=1)
        yield replace(number, metric=MOVED).of(mean_of(need(rims(run, variant), "moved")))


def _by(run: Run, by: Embedded, label: str, source: Path, seen: Path) -> Iterator[Measured]:
    """The rates of one recogniser."""
    number = Measured("key", "", READ, rows.SAME_PHOTO, by.name)
    if by.reasons:
        yield replace(number, method=label).absent(by.reasons["photo"])
        return
    limit = float(np.mean([*table1.thresholds(run.pairs, by).values()]))
    for name in _names(source):
        e, targets = read(seen, f"{name} {by.name}"), read(source, f"{name} targets")
        if name == TWINS:
            continue
        twins = name.startswith(TWINS)
        task, against = ("linking", "the person's other protected photo") if twins else ("key", rows.SAME_PHOTO)
        other = read(seen, f"{TWINS} {by.name}") if twins else by.embeddings["photo"][targets]
        alike = cosine(other, e)
        made = replace(number, task=task, method=f"{label}: {name}", against=against)
        lost = int(np.isnan(alike).sum())
        yield replace(made.of(bootstrap_interval(accepted(alike, limit)), lost), threshold=limit)
        yield replace(made, metric=rows.COSINE).of(mean_of(alike), lost)
