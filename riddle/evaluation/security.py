"""Table S, the security of protected files: the attacks of riddle.attacks, by somebody without the passphrase.

Reading the person out (linkage and reversal), from what each row names:

    pixels            the embeddings of the encrypted face by every recogniser that is here
    sealed file       these and the bytes of the sealed record
    the record open   the encrypted codes themselves, which the seal hides, under `TRIES` passwords to learn from

Everybody's encryption has its own password. The learners know LFW's other people: five parts, no person in two. A rate
of acceptance has the threshold at which `FAR` of all pairs of different people pass, of the same attack; so chance is
`FAR`, and 1 / `OTHERS` + 1 of being found among `OTHERS` other people.

Searching the key: faces are opened by the key that an attack finds, drawn, and compared with the photo at the
thresholds of Table 1. "one key" means that the attacked file has the key of the known ones, as pictures without a
record have under one passphrase; files with a record never do.
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
from riddle.evaluation import facesets, protocol, recognition, rows
from riddle.evaluation.facesets import Embedded
from riddle.evaluation.measures import mean_of
from riddle.evaluation.runs import NotMade, Run, key_of, need, part_hash, read, stage
from riddle.evaluation.tables import Measured
from riddle.faces import detection
from riddle.images import to_bytes, to_tensor
from riddle.metrics.identity import accepted, bootstrap_interval, cosine
from riddle.passwords import KEY_BYTES, SALT_BYTES, derive_key
from riddle.presets import VARIANTS
from riddle.progress import track
from riddle.record import Record, look_of
from riddle.seal import Sealed

ATTACKED = ("riddle", "coupling", "reflection")
LIT = "coupling-lit"
SETS = ("photo", "inverted", *ATTACKED, LIT)
FAR, OTHERS = protocol.FAR, 999
TRIES = 4  # passwords of each of the other people's codes to learn from
PEOPLE = 100  # whose key is searched: people with two photos, where there are such
GROUPS, FILES = 20, (1, 4, 16, 64)  # passphrases, and faces under each
GUESSES, GUESSED = 1000, 100  # passphrases tried, and faces
NEAR = (0.99, 0.9, 0.7, 0.5)  # cosines of a key with the right one
PASSPHRASES = ("correct horse battery staple", "correct horse battery stapler")

PIXELS, FILE, OPEN = "pixels", "sealed file", "the record open"
READ, LINKED = "share accepted", f"found among {OTHERS + 1:,}"
UNTRAINED = "recogniser as it is"
ONE_KEY, OTHER_KEY = "one key", "another key"
TWINS = "two protected photos"

# ---- reading the person out of what is published


def readings(run: Run, item: str, what: str, learner: str) -> Path:
    """What a learner reads of each face of a set: an array (T, E) for each recogniser, by its name."""
    of, parts = facesets.parse(item), [p for name in (item, "photo") for p in facesets.embeddings(run, name)]
    source, codes = facesets.faces(run, item), facesets.codes(run)

    def make() -> dict[str, np.ndarray]:
        targets = read(codes, "targets")
        photos = _known(run, "photo", targets)
        known = {name: e for name, e in photos.items() if name in rows.ANGULAR}
        seen, learned = _seen(run, item, what, targets), np.concatenate([*known.values()], 1)
        there = np.isfinite(seen[:, 0]).all(1) & np.isfinite(learned).all(1)
        everyone = np.full(learned.shape, np.nan, np.float32)
        if there.sum() < attacks.FOLDS:
            raise NotMade("too few faces to learn from")
        everyone[there] = attacks.read_people(seen[there], learned[there], run.pairs.persons[targets][there], learner)
        ends = np.cumsum([e.shape[1] for e in known.values()])[:-1]
        return dict(zip(known, np.split(everyone, ends, 1), strict=True))

    weights = part_hash(run.preset, of.encryptor)
    made_from = ("reading", what, learner, run.seed, TRIES, key_of(source), weights, [key_of(p) for p in parts])
    return stage(run, run.folder / "attacks" / f"{item} {what} {learner}.npz", made_from, make)


def _known(run: Run, item: str, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Unit embeddings (T, E) of the targets in a set by each recogniser that is here, NaN where no face is found."""
    out = {}
    for name, path in zip(rows.RECOGNISERS, facesets.embeddings(run, item)[1:], strict=True):
        if not read(path, "reason"):
            e = np.full((len(run.pairs.names), read(path, "embeddings").shape[1]), np.nan, np.float32)
            e[read(path, "targets")] = read(path, "embeddings")
            out[name] = e[targets] / np.linalg.norm(e[targets], axis=1, keepdims=True)
    if not out:
        raise NotMade("no recogniser is on this machine")
    return out


def _seen(run: Run, item: str, what: str, targets: np.ndarray) -> np.ndarray:
    """What the attacker sees of each target, (T, K, F)."""
    pixels = np.concatenate([*_known(run, item, targets).values()], 1)[:, None]
    if what == PIXELS:
        return pixels
    of = facesets.parse(item)
    model = of.model(run)
    w, _ = facesets.codes_of(run, of, model)
    if what == FILE:
        sealed = attacks.bytes_of(s.data for s, _ in _sealed(run, model, w, targets))
        return np.concatenate([pixels, sealed[:, None].astype(np.float32) / 255], 2)
    original = torch.from_numpy(need(facesets.codes(run), "codes"))
    many = model.random_password(TRIES * len(w), seed=3 * run.seed + 2).split(len(w))
    tried = [w, *(torch.cat([*map(model.encrypt, original.split(256), key.split(256))]).cpu() for key in many)]
    return torch.stack([model.generator.codes.to_gaussian(x).flatten(1) for x in tried], 1).numpy()


def _sealed(run: Run, model: riddle.Riddle, w: torch.Tensor, targets: np.ndarray) -> Iterator[tuple[Sealed, bytes]]:
    """The sealed record of each encrypted code (T, L, D), in a photo of its own, and the secret that opens it.

    The secrets are random, as those of unknown passphrases are.
    """
    draw, size = np.random.default_rng(run.seed), (250, 250)  # LFW's
    matrices, faces = (read(facesets.aligned(run), k)[targets] for k in ("matrices", "faces"))
    for matrix, z, face in zip(matrices, model.generator.codes.to_record(w), faces, strict=True):
        salt, secret, look = draw.bytes(SALT_BYTES), draw.bytes(KEY_BYTES), look_of(Image.fromarray(face))
        record = Record(run.preset, model.weights_hash, size, salt, matrix[None], z[None], look)
        yield record.seal(secret), secret


def read_out(run: Run) -> Iterator[Measured]:
    """Linkage and reversal: every encryptor, what is seen, learner, recogniser and reference."""
    targets = need(facesets.codes(run), "targets")
    persons = run.pairs.persons[targets]
    for item in (*ATTACKED, LIT):
        of = facesets.parse(item)
        label = VARIANTS[of.variant].label + (", in the photo's light" if of.action else "")
        ways = [(PIXELS, UNTRAINED), *((PIXELS, learner) for learner in attacks.LEARNERS)]
        ways += [(what, learner) for what in (FILE, OPEN) for learner in attacks.LEARNERS] * (not of.action)
        for what, learner in ways:
            number = Measured("", f"{label}: {learner}", "", "", place=what)
            try:
                path = None if learner == UNTRAINED else readings(run, item, what, learner)
                seen = _known(run, item, targets) if path is None else {n: need(path, n) for n in rows.ANGULAR}
                photos = {True: _known(run, "photo", targets), False: _known(run, "photo", _others(run, targets))}
            except NotMade as reason:
                yield replace(number, task="reversal", metric=READ, against=rows.SAME_PHOTO).absent(str(reason))
                continue
            for name in photos[True]:
                if name in rows.ANGULAR:
                    for same, known in photos.items():
                        against = rows.SAME_PHOTO if same else rows.OTHER_PHOTO
                        by = replace(number, judge=name, against=against)
                        yield from _rates(by, attacks.scores(seen[name], known[name]), persons, run.seed)


def _others(run: Run, targets: np.ndarray) -> np.ndarray:
    """For each target the photo that its same-person pair shows first: (T,) indices."""
    p = run.pairs
    first = dict(zip(p.b[p.same][::-1], p.a[p.same][::-1], strict=True))
    return np.array([first[t] for t in targets])


def _rates(number: Measured, scored: np.ndarray, persons: np.ndarray, seed: int) -> Iterator[Measured]:
    """Both rates of a matrix of scores (T, T)."""
    own, lost = np.diag(scored), int(np.isnan(np.diag(scored)).sum())
    strangers = scored[persons[:, None] != persons]
    strangers = strangers[np.isfinite(strangers)]
    if len(strangers):
        yes = accepted(own, np.quantile(strangers, 1 - FAR))
        yield replace(number, task="reversal", metric=READ).of(bootstrap_interval(yes, persons), lost)
        found = attacks.found_among(scored, persons, OTHERS, seed)
        yield replace(number, task="linkage", metric=LINKED).of(bootstrap_interval(found, persons), lost)


# ---- searching the key


def opened(run: Run, variant: str) -> Path:
    """Faces as each attack on the key opens them, `<attack> faces` and `<attack> targets`; `ranks <source>`."""
    codes, weights = facesets.codes(run), part_hash(run.preset, VARIANTS[variant].file)
    setup = (run.seed, PEOPLE, GROUPS, FILES, GUESSES, GUESSED, NEAR, PASSPHRASES, attacks.STEPS, attacks.STARTS)

    def make() -> dict[str, np.ndarray]:
        model, out = facesets.parse(variant).model(run), {}
        for name, (w, targets) in _attempts(run, model).items():
            if name.startswith("rank"):
                out[name] = w
                continue
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

    some = slice(0, GUESSED)
    out[f"rank by {PIXELS}"] = attacks.guess(encryptor, hidden[some], right[some], prior, GUESSES, run.seed), None
    records = _sealed(run, model, space.to_w(hidden[some]), targets[first[some]])
    out[f"rank by {FILE}"] = np.array([attacks.guess_sealed(*pair, GUESSES, run.seed) for pair in records]), None
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
    photos = {name: facesets.embedded(run, name, ["photo"]) for name in rows.ANGULAR}
    for variant in ATTACKED:
        label, source = VARIANTS[variant].label, opened(run, variant)
        if reason := read(source, "reason"):
            yield Measured("key", label, READ, rows.SAME_PHOTO).absent(reason)
            continue
        for by in photos.values():
            yield from _by(run, by, label, source, embedded(run, variant))
        for what in (PIXELS, FILE):
            ranks, number = read(source, f"rank by {what}"), Measured("guessing", label, "", "", place=what)
            rank = f"rank of the right passphrase among {GUESSES:,}"
            yield replace(number, metric=rank).of(mean_of(ranks.astype(float)), digits=1)
            yield replace(number, metric="share of first ranks").of(mean_of(ranks == 1))


def _by(run: Run, by: Embedded, label: str, source: Path, seen: Path) -> Iterator[Measured]:
    """The rates of one recogniser."""
    number = Measured("key", "", READ, rows.SAME_PHOTO, by.name)
    if by.reasons:
        yield replace(number, method=label).absent(by.reasons["photo"])
        return
    limit = float(np.mean([*protocol.thresholds(run.pairs, by).values()]))
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


def rates(run: Run) -> Iterator[Measured]:
    """Every row of Table S."""
    yield from read_out(run)
    yield from keys(run)
