"""Table R, robustness: who comes back from a protected photo that was treated as photos are on their way.

A photo shows `PEOPLE` faces side by side. `protect` makes a JPEG of it, a treatment changes that file, and `restore`
brings the people back by the right passphrase, from what each row names:

    record in the file   what the file carries; where the treatment drops metadata, its pixels and the public salt
    sidecar              the record that was kept beside the picture
    pixels alone         a file that was protected without a record: found again, inverted, decrypted

Each face is compared at its place: with the photo, and with what the untreated file restores. `outcome` is what the
program says. Where it refuses, the protected face stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

import riddle
from riddle.demo import group_photo
from riddle.evaluation import recognition, rows, table1
from riddle.evaluation.runs import NotMade, Run, key_of, need, part_hash, stage
from riddle.evaluation.tables import PICTURES, Measured, Part
from riddle.faces import alignment, detection
from riddle.faces.recognizers import Recognizer
from riddle.files import digest
from riddle.images import encode, open_picture, to_bytes, to_tensor
from riddle.metrics import restoration
from riddle.metrics.identity import accepted, bootstrap_interval, mean_of
from riddle.presets import get
from riddle.progress import track
from riddle.record import encoded, find_record
from riddle.seal import Sealed

PEOPLE, SIDE = 4, 512  # faces a photo, px of each
PHOTOS = {"record": 4, "pixels": 2}  # inverting a face again takes seconds
PASSPHRASE = "a passphrase for Table R"
FILE, SIDECAR, PIXELS = "record in the file", "sidecar", "pixels alone"
UNTREATED, MESSENGER = "as protect saved it", "messenger: 1,600 px, JPEG 70, no metadata"
PLAIN = "what the untreated file restores"
SAID = {"codes": "restored from the record", "inversion": "restored from pixels"}


@dataclass(frozen=True)
class Treatment:
    """What happens to a picture file, in this order."""

    cut: float = 0.0  # shares of width and height that are cropped off, left and at the top
    longest: float = np.inf  # px of the longer side; below 1 a share of it
    brightness: float = 1.0
    ending: str = ".jpg"
    quality: int = 95
    metadata: bool = True  # whether they stay

    def apply(self, data: bytes) -> tuple[bytes, float, np.ndarray]:
        """The treated file; scale and offset (2,): pixel p of the picture is at p * scale + offset now."""
        picture = open_picture(data)
        corner = np.round(self.cut * np.array(picture.rgb.size)).astype(int)
        image = picture.rgb.crop((*corner, *picture.rgb.size))
        scale = min(1.0, self.longest if self.longest < 1 else self.longest / max(image.size))
        if scale < 1:
            image = image.resize(tuple(round(scale * v) for v in image.size), Image.Resampling.LANCZOS)
        image = ImageEnhance.Brightness(image).enhance(self.brightness)
        packet = picture.xmp if self.metadata else b""
        treated = encode(image, f"x{self.ending}", quality=self.quality, packet=packet, profile=picture.profile)
        return treated, scale, -scale * corner + (scale - 1) / 2


TREATMENTS = {
    UNTREATED: None,
    **{f"JPEG {q}": Treatment(quality=q) for q in (95, 75, 50)},
    "WebP 80": Treatment(ending=".webp", quality=80),
    "resized to 50 %": Treatment(longest=0.5),
    "cropped by 5 %": Treatment(cut=0.05),
    "20 % brighter": Treatment(brightness=1.2),
    MESSENGER: Treatment(longest=1600, quality=70, metadata=False),
}  # fmt: skip


def photos(run: Run, kind: str) -> list[list[str]]:
    """The names of the people that each photo of a kind, "record" or "pixels", shows."""
    chosen = [run.pairs.names[i] for i in np.random.default_rng(run.seed).permutation(run.few)]
    return [chosen[i : i + PEOPLE] for i in range(0, len(chosen), PEOPLE)][: PHOTOS[kind]]


@lru_cache(maxsize=1)
def _protected(run: Run, kind: str, number: int) -> tuple[riddle.Riddle, np.ndarray, np.ndarray, bytes, Sealed | None]:
    """The model, the faces' places (k, 2, 3) and pictures (k, R, R, 3) in a photo, its protected file and record."""
    model = riddle.load(run.preset, device=run.device, detector=run.detector)
    people = [run.photos.image(name) for name in photos(run, kind)[number]]
    photo = group_photo([to_tensor(p.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for p in people], SIDE)
    try:
        faces = model.detect(photo)
    except detection.FaceNotFoundError as e:
        raise NotMade(f"no face was found in photo {number + 1}") from e
    salt = np.random.default_rng((run.seed, number)).bytes(16) if kind == "record" else None
    made = model.protect(photo, PASSPHRASE, faces=faces, salt=salt, record=kind == "record")
    places = detection.framed(faces)
    return model, places, to_bytes(model.crops(photo, places)), encoded(made.image, "x.jpg", made.sealed), made.sealed


def treated(run: Run, kind: str, number: int, name: str) -> Path:
    """One photo, protected, treated and restored in every way of its kind: `<way> faces` (k, R, R, 3) uint8 at the
    places of its k faces, `<way> said`, what the program says, and `original`, the photo's faces."""

    def make() -> dict[str, np.ndarray]:
        model, places, original, saved, sealed = _protected(run, kind, number)
        out, done, treatment = {"original": original}, {}, TREATMENTS[name]
        data, scale, offset = treatment.apply(saved) if treatment else (saved, 1.0, np.zeros(2))
        picture, places = open_picture(data, name), alignment.moved(places, scale, offset)
        for way, record in ({FILE: find_record(picture), SIDECAR: sealed} if sealed else {PIXELS: None}).items():
            if record is None and number >= PHOTOS["pixels"]:
                continue
            key = record and record.data  # the same record says the same
            if key not in done:
                try:
                    back = model.restore(picture, PASSPHRASE, record=record)
                    done[key] = to_bytes(model.crops(back.image, places)), np.array(SAID[back.source])
                except ValueError as e:
                    said = f"refused: {getattr(e, 'cause', e)}"
                    done[key] = to_bytes(model.crops(picture.rgb, places)), np.array(said)
            out[f"{way} faces"], out[f"{way} said"] = done[key]
        return out

    weights = [part_hash(run.preset, p) for p in ("generator", "encoder", get(run.preset).encryptor, "parser")]
    names = photos(run, kind)[number]
    about = repr(TREATMENTS[name]), PASSPHRASE, SIDE, number < PHOTOS["pixels"], run.detector, run.seed
    made_from = ("treated", kind, digest(*names), run.photos.only(names).fingerprint, digest(*weights), digest(*about))
    place = run.folder / "robustness" / f"{kind}{number} {name.split(':')[0].replace('%', 'percent')}.npz"
    return stage(run, place, made_from, make)


def embedded(run: Run, source: Path) -> Path:
    """Embeddings of the faces in a file of `treated`, `<set> <recogniser>` (k, E), NaN where no face is found."""
    here, _ = recognition.load_all(run.preset, run.device)

    def make() -> dict[str, np.ndarray]:
        need(source, "original")  # raises where there is none
        with np.load(source) as file:
            sets = {name: file[name] for name in file.files if name == "original" or name.endswith(" faces")}
        every, which = np.unique(np.concatenate([*sets.values()]), axis=0, return_inverse=True)
        found = detection.detect_in_crop(to_tensor(every), detection.load_detector(run.detector), run.workers)
        e, ends = recognition.embed(here, every, found), np.cumsum([len(s) for s in sets.values()])[:-1]
        parts = {name: np.split(e[name][which.ravel()], ends) for name in here}
        return {f"{s} {name}": part[i] for name, part in parts.items() for i, s in enumerate(sets)}

    made_from = ("treated embeddings", key_of(source), run.detector, *sorted(here))
    return stage(run, source.with_name(f"{source.stem} embeddings.npz"), made_from, make)


def robustness(run: Run) -> Iterator[Measured]:
    """Every row of Table R."""
    here, absent = recognition.load_all(run.preset, run.device)
    jobs = [(kind, i, name) for kind in PHOTOS for i in range(len(photos(run, kind))) for name in TREATMENTS]
    files = {job: (source := treated(run, *job), embedded(run, source)) for job in track(jobs, "treated photos")}
    for way, kind in {FILE: "record", SIDECAR: "record", PIXELS: "pixels"}.items():
        for name in TREATMENTS:
            number = Measured("restoration", name, rows.ACCEPTED, rows.SAME_PHOTO, place=way)
            yield from (replace(number, measured_by=by).absent(reason) for by, reason in absent.items())
            try:
                there = [j for j in jobs if j[::2] == (kind, name) and need(files[j][0], f"{way} said") is not None]
                untreated = [files[kind, i, UNTREATED] for _, i, _ in there]
                yield from _rates(number, [files[j] for j in there], untreated, here)
            except NotMade as why:
                yield number.absent(str(why))


def _rates(
    number: Measured, files: list[tuple[Path, Path]], untreated: list[tuple[Path, Path]], here: dict[str, Recognizer]
) -> Iterator[Measured]:
    """The numbers of one treatment and way, from the files of `treated` and `embedded` of each photo."""

    def of(name: str, which: int, files: list[tuple[Path, Path]] = files) -> np.ndarray:
        return np.concatenate([need(pair[which], name) for pair in files])

    item = f"{number.place} faces"
    for by, recogniser in here.items():
        alike = recogniser.similarity(of(f"original {by}", 1), of(f"{item} {by}", 1))
        made, lost = replace(number, measured_by=by, threshold=recogniser.threshold), int(np.isnan(alike).sum())
        yield made.of(bootstrap_interval(accepted(alike, recogniser.threshold)), lost)
        if by in rows.ANGULAR:
            yield replace(made, metric=rows.COSINE, threshold=np.nan).of(mean_of(alike), lost)
    said = np.concatenate([[need(a, f"{number.place} said")] * len(need(a, "original")) for a, _ in files])
    for what in np.unique(said):
        yield replace(number, task="outcome", metric=str(what), against="").of(bootstrap_interval(said == what))
    if number.method != UNTREATED:
        error = restoration.mse(to_tensor(of(item, 0)), to_tensor(of(item, 0, untreated)))
        yield replace(number, metric="MSE", against=PLAIN).of(mean_of(error), digits=4)


def sentences(table: pd.DataFrame) -> str:
    """What the numbers of Table R say, as a markdown list; rates are the lowest and highest of the recognisers."""
    made, lines = table[table["mean"].notna()], []
    for name in TREATMENTS:
        told = []
        for way in (FILE, SIDECAR, PIXELS):
            here = made[(made.method == name) & (made.place == way)]
            rates, said = here[here.metric == rows.ACCEPTED]["mean"], here[here.task == "outcome"]
            if len(said):
                span = f"{rates.min():.2f} to {rates.max():.2f}" if len(rates) else "n/a"
                told.append(f"{way}: **{span}** of {said.n.max()} ({'; '.join(said.metric)})")
        lines.append(f"- {name}: {', '.join(told)}.\n")
    return "".join(lines)


PARTS = (
    Part(
        PICTURES[:1], robustness, (),
        about={
            "threshold_rule": f"each recogniser's own: FAR {table1.FAR:g} among people of FFHQ; dlib's documentation",
            "undetected_rule": "a face that is not found counts as not accepted",
            "interval": "95 %, bootstrap over faces",
            "protocol": f"photos of {PEOPLE} people, {SIDE} px each, as JPEG 95; distances at the preset's size",
        },
    ),
)  # fmt: skip
