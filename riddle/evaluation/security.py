"""Table S, the security of protected files: the attacks of riddle.attacks, by somebody without the passphrase.

Reading the person out (linkage and reversal), from what each row names:

    pixels            the embeddings of the encrypted face by every recogniser that is here
    pixels, inverted  these and the code that the encoder reads of the encrypted face, without gradient steps; of the
                      encryptor that `protect` takes
    sealed file       these and the bytes of the sealed record
    the record open   the encrypted codes themselves, which the seal hides, under `TRIES` passwords to learn from

Everybody's encryption has its own password. The learners know LFW's other people: five parts, no person in two. A rate
of acceptance has the threshold at which `FAR` of all pairs of different people pass, of the same attack; so chance is
`FAR`, and 1 / (`OTHERS` + 1) of being found among `OTHERS` other people. riddle.evaluation.keysearch attacks the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from riddle import attacks
from riddle.evaluation import facesets, keysearch, rows, table1
from riddle.evaluation.runs import NotMade, Run, key_of, need, part_hash, read, stage
from riddle.evaluation.tables import PAIRED, Measured, Part
from riddle.images import to_tensor
from riddle.metrics.identity import accepted, bootstrap_interval
from riddle.progress import track

LIT = "coupling-lit"
SETS = ("photo", "inverted", *keysearch.ATTACKED, LIT)
FAR, OTHERS = table1.FAR, 999
TRIES = 2  # passwords of each of the other people's codes to learn from

INVERTED = f"{keysearch.PIXELS}, inverted"
LINKED = f"found among {OTHERS + 1:,}"
UNTRAINED = "recogniser as it is"
CHANCE = {  # metric -> what somebody reaches who knows nothing
    keysearch.READ: FAR, rows.COSINE: 0.0, LINKED: 1 / (OTHERS + 1), keysearch.FIRST: 1 / keysearch.GUESSES,
    keysearch.RANK: (keysearch.GUESSES + 1) / 2, keysearch.RANK_AROUND: (keysearch.TRIED + 1) / 2,
}  # fmt: skip

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


def read_back(run: Run, item: str) -> Path:
    """Codes (T, L, D) in z that the encoder alone reads of a set's faces, float16."""
    source = facesets.faces(run, item)

    def make() -> dict[str, np.ndarray]:
        model = facesets.parse("inverted").model(run)
        parts = track(to_tensor(need(source, "faces")).split(facesets.BATCH), f"{item} read back")
        codes = (model.generator.codes.to_gaussian(model.invert(part, refine=0)) for part in parts)
        return {"codes": torch.cat([z.half().cpu() for z in codes]).numpy()}

    weights = (part_hash(run.preset, part) for part in ("generator", "encoder"))
    return stage(run, run.folder / "attacks" / f"{item} read back.npz", ("read back", key_of(source), *weights), make)


def _known(run: Run, item: str, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Unit embeddings (T, E) of the targets in a set by each recogniser that is here, NaN where no face is found."""
    out = {}
    for name in rows.RECOGNISERS:
        by = facesets.embedded(run, name, [item])
        if not by.reasons:
            e = by.embeddings[item][targets]
            out[name] = e / np.linalg.norm(e, axis=1, keepdims=True)
    if not out:
        raise NotMade("no recogniser is on this machine")
    return out


def _seen(run: Run, item: str, what: str, targets: np.ndarray) -> np.ndarray:
    """What the attacker sees of each target, (T, K, F)."""
    pixels = np.concatenate([*_known(run, item, targets).values()], 1)[:, None]
    if what == keysearch.PIXELS:
        return pixels
    if what == INVERTED:
        codes = need(read_back(run, item), "codes").astype(np.float32)
        return np.concatenate([pixels, codes.reshape(len(targets), 1, -1)], 2)
    of = facesets.parse(item)
    model = of.model(run)
    w, _ = facesets.codes_of(run, of, model)
    if what == keysearch.FILE:
        data = attacks.bytes_of(s.data for s, _ in keysearch.sealed(run, model, w, targets))
        return np.concatenate([pixels, data[:, None].astype(np.float32) / 255], 2)
    original = torch.from_numpy(need(facesets.codes(run), "codes"))
    many = model.random_password(TRIES * len(w), seed=3 * run.seed + 2).split(len(w))
    tried = [w, *(torch.cat([*map(model.encrypt, original.split(256), key.split(256))]).cpu() for key in many)]
    return torch.stack([model.generator.codes.to_gaussian(x).flatten(1) for x in tried], 1).numpy()


def read_out(run: Run) -> Iterator[Measured]:
    """Linkage and reversal: every encryptor, what is seen, learner, recogniser and reference."""
    targets = need(facesets.codes(run), "targets")
    persons = run.pairs.persons[targets]
    shown = {rows.SAME_PHOTO: targets, rows.OTHER_PHOTO: _others(run, targets)}
    try:
        photos = {against: _known(run, "photo", of) for against, of in shown.items()}
    except NotMade:
        photos = {}  # then nothing can be read either, and each row says why
    for item in (*keysearch.ATTACKED, LIT):
        of = facesets.parse(item)
        label = keysearch.ATTACKED[of.variant] + (", in the photo's light" if of.action else "")
        read_from = [keysearch.PIXELS]
        if of.variant == "coupling":
            read_from.append(INVERTED)
        if not of.action:
            read_from += [keysearch.FILE, keysearch.OPEN]
        for what, learner in [(keysearch.PIXELS, UNTRAINED), *product(read_from, attacks.LEARNERS)]:
            number = Measured("", f"{label}: {learner}", "", "", place=what)
            try:
                if learner == UNTRAINED:
                    seen = _known(run, item, targets)
                else:
                    path = readings(run, item, what, learner)
                    seen = {name: need(path, name) for name in rows.ANGULAR}
            except NotMade as why:
                number.task, number.metric, number.against = "reversal", keysearch.READ, rows.SAME_PHOTO
                yield number.absent(str(why))
                continue
            for against, known in photos.items():
                for name in (n for n in known if n in rows.ANGULAR):
                    by = replace(number, measured_by=name, against=against)
                    yield from _rates(by, attacks.scores(seen[name], known[name]), persons, run.seed)


def _others(run: Run, targets: np.ndarray) -> np.ndarray:
    """For each target the photo that its same-person pair shows first: (T,) indices."""
    p = run.pairs
    first = dict(zip(p.b[p.same][::-1], p.a[p.same][::-1], strict=True))
    return np.array([first[t] for t in targets])


def _rates(number: Measured, scored: np.ndarray, persons: np.ndarray, seed: int) -> Iterator[Measured]:
    """The rates of a matrix of scores (T, T), and the mean score with the right photo."""
    own, lost = np.diag(scored), int(np.isnan(np.diag(scored)).sum())
    strangers = scored[persons[:, None] != persons]
    strangers = strangers[np.isfinite(strangers)]
    if len(strangers):
        yes = accepted(own, np.quantile(strangers, 1 - FAR))
        yield replace(number, task="reversal", metric=keysearch.READ).of(bootstrap_interval(yes, persons), lost)
        yield replace(number, task="reversal", metric=rows.COSINE).of(bootstrap_interval(own, persons), lost)
        found = attacks.found_among(scored, persons, OTHERS, seed)
        yield replace(number, task="linkage", metric=LINKED).of(bootstrap_interval(found, persons), lost)


# ---- the table


def rates(run: Run) -> Iterator[Measured]:
    """Every row of Table S."""
    yield from read_out(run)
    yield from keysearch.keys(run)


def told(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: each number with its interval, and what chance gives in a column of its own."""
    spans = [f"{m:.3g} ({low:.3g} to {high:.3g})" for m, low, high in table[["mean", "low", "high"]].to_numpy()]
    return table.assign(value=table.value.where(table["mean"].isna(), spans), chance=table.metric.map(CHANCE))


def sentences(table: pd.DataFrame) -> str:
    """What the numbers of Table S say, as a markdown list; rates are those of the recogniser with the highest."""
    made, lines = table[table["mean"].notna()], []

    def highest(task: str, methods: Iterable[str], metric: str = keysearch.READ, **where: str) -> str:
        found = made[(made.task == task) & made.method.isin(list(methods)) & (made.metric == metric)]
        for column, value in where.items():
            found = found[found[column] == value]
        return f"{found['mean'].max():.3f}" if len(found) else "n/a"

    for label in keysearch.ATTACKED.values():
        same = {"against": rows.SAME_PHOTO}
        learned = [f"{label}: {learner}" for learner in attacks.LEARNERS]
        pixels, back, sealed, opened = (
            highest("reversal", learned, **same, place=p)
            for p in (keysearch.PIXELS, INVERTED, keysearch.FILE, keysearch.OPEN)
        )
        untrained = highest("reversal", [f"{label}: {UNTRAINED}"], **same)
        lines.append(
            f"{label}: of the people, a learner reads **{pixels}** from the pixels"
            + (f", **{back}** where it inverts them" if back != "n/a" else "")
            + f", **{sealed}** from the sealed file and {opened} from a record without its seal; a recogniser alone "
            f"knows {untrained}"
        )
        found = highest("linkage", learned, LINKED, **same, place=keysearch.FILE)
        lines.append(f"{label}: of the sealed files, {found} are linked with the right one of 1,000 people")

        def key(name: str, label: str = label) -> str:
            return highest("key", [f"{label}: {name}"])

        search = "exact original, gradient search, "
        lines.append(
            f"{label}: the right key opens {key('the right key')} of the faces, a wrong one {key('a wrong key')}; one "
            f"known original opens **{key(search + keysearch.ONE_KEY)}** of the other faces under the same key and "
            f"**{key(search + keysearch.OTHER_KEY)}** of those under another"
        )
        many = [f"{n}: {key(f'{n} files without originals, {keysearch.ONE_KEY}')}" for n in keysearch.FILES]
        lines.append(f"{label}: files without originals open, by their number, {', '.join(many)}")
        rank = made[(made.metric == keysearch.RANK) & (made.place == keysearch.PIXELS) & (made.method == label)]["mean"]
        lines.append(f"{label}: from pixels the right passphrase has the mean rank {rank.mean():.0f} of 1,000")
        one, two = (
            highest("linking", [f"{label}: {keysearch.TWINS}, {k}"]) for k in (keysearch.ONE_KEY, keysearch.OTHER_KEY)
        )
        lines.append(f"{label}: two protected photos of one person are linked at {one} under one key, {two} under two")
    of_file, of_pixels = (made[made.place == p] for p in (keysearch.FILE, keysearch.PIXELS))
    names = ["task", "method", "metric", "against", "measured_by"]
    pairs = of_file.merge(of_pixels, on=names, suffixes=("", " of pixels"))
    pairs = pairs[(pairs.task != "guessing") & (pairs.metric != rows.COSINE)]
    more = int((pairs.low > pairs["high of pixels"]).sum())
    lines.append(
        f"of {len(pairs)} rates, {more} are higher from the sealed file than from the pixels, by the intervals"
    )
    return "".join(f"- {line}.\n" for line in lines)


PARTS = (
    Part(
        PAIRED, rates, SETS, rows.RECOGNISERS,
        {
            "threshold_rule": f"reading: FAR {FAR:g} among all pairs of different people, by the same attack; key: as "
                              "in Table 1",
            "undetected_rule": "a face that is not found counts as not accepted",
            "interval": "95 %, bootstrap over people",
            "protocol": f"{attacks.FOLDS} parts of the people; key: at most {keysearch.PEOPLE} people, "
                        f"{keysearch.GROUPS} groups of files, {attacks.STARTS} starts of {attacks.STEPS} steps",
        },
    ),
)  # fmt: skip
