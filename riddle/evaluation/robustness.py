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
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

import riddle
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


def photos(run: Run, kind: str) -> list[np.ndarray]:
    """The pictures (k,) of people that each photo of a kind, "record" or "pixels", shows."""
    chosen = np.random.default_rng(run.seed).permutation(run.few)
    return [chosen[i : i + PEOPLE] for i in range(0, len(chosen), PEOPLE)][: PHOTOS[kind]]


def treated(run: Run, kind: str, number: int) -> Path:
    """One photo, protected, treated and restored in every way: `<treatment> <way> faces` (k, R, R, 3) uint8 at the
    places of the k faces, and `said`, what the program says; `original`, the photo's."""
    names = [run.pairs.names[i] for i in photos(run, kind)[number]]
    salt = np.random.default_rng((run.seed, number)).bytes(16) if kind == "record" else None

    def make() -> dict[str, np.ndarray]:
        from riddle.demo import group_photo  # here, because it loads the trainings

        model = riddle.load(run.preset, device=run.device, detector=run.detector)
        pictures = [run.photos.image(name).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for name in names]
        photo = group_photo([*map(to_tensor, pictures)], SIDE)
        try:
            faces = model.detect(photo)
        except detection.FaceNotFoundError as e:
            raise NotMade(f"no face was found in photo {number + 1}") from e
        places, out = detection.framed(faces), {}
        protected = model.protect(photo, PASSPHRASE, faces=faces, salt=salt, record=kind == "record")
        saved = encoded(protected.image, "x.jpg", protected.sealed)
        out["original"] = to_bytes(model.crops(photo, places))
        for name, treatment in track(TREATMENTS.items(), f"photo {number + 1}, {kind}"):
            data, scale, offset = treatment.apply(saved) if treatment else (saved, 1.0, np.zeros(2))
            picture, done = open_picture(data, name), {}
            ways = {FILE: find_record(picture), SIDECAR: protected.sealed} if salt else {PIXELS: None}
            for way, sealed in ways.items():
                if sealed is None and number >= PHOTOS["pixels"]:
                    continue
                key = sealed and sealed.data  # the same record says the same
                if key not in done:
                    try:
                        back = model.restore(picture, PASSPHRASE, record=sealed)
                        done[key] = back.image, SAID[back.source]
                    except ValueError as e:
                        done[key] = picture.rgb, f"refused: {getattr(e, 'cause', e)}"
                image, said = done[key]
                out[f"{name} {way} faces"] = to_bytes(model.crops(image, alignment.moved(places, scale, offset)))
                out[f"{name} {way} said"] = np.array(said)
        return out

    weights = [part_hash(run.preset, p) for p in ("generator", "encoder", get(run.preset).encryptor, "parser")]
    about = [*map(repr, TREATMENTS.items()), PASSPHRASE, SIDE, number < PHOTOS["pixels"], run.detector, run.seed]
    made_from = ("treated", kind, digest(*names), run.photos.only(names).fingerprint, digest(*weights), digest(*about))
    return stage(run, run.folder / "robustness" / f"{kind}{number}.npz", made_from, make)


def embedded(run: Run, source: Path) -> Path:
    """Embeddings of the faces that `treated` leaves, `<set> <recogniser>` (k, E), NaN where no face is found."""
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
    for way, kind in {FILE: "record", SIDECAR: "record", PIXELS: "pixels"}.items():
        sources = [treated(run, kind, i) for i in range(len(photos(run, kind)))]
        files = [(source, embedded(run, source)) for source in sources]
        for name in TREATMENTS:
            number = Measured("restoration", name, rows.ACCEPTED, rows.SAME_PHOTO, place=way)
            yield from (replace(number, measured_by=by).absent(reason) for by, reason in absent.items())
            try:
                done = [pair for pair in files if need(pair[0], f"{name} {way} said") is not None]
                yield from _rates(number, done, f"{name} {way}", here)
            except NotMade as why:
                yield number.absent(str(why))


def _rates(
    number: Measured, files: list[tuple[Path, Path]], item: str, recognisers: dict[str, Recognizer]
) -> Iterator[Measured]:
    """The numbers of one treatment and way, from the files of `treated` and of `embedded` of each photo."""

    def all_of(name: str, which: int) -> np.ndarray:
        return np.concatenate([need(pair[which], name) for pair in files])

    for by, recogniser in recognisers.items():
        alike = recogniser.similarity(all_of(f"original {by}", 1), all_of(f"{item} faces {by}", 1))
        made, lost = replace(number, measured_by=by, threshold=recogniser.threshold), int(np.isnan(alike).sum())
        yield made.of(bootstrap_interval(accepted(alike, recogniser.threshold)), lost)
        if by in rows.ANGULAR:
            yield replace(made, metric=rows.COSINE, threshold=np.nan).of(mean_of(alike), lost)
    faces, untreated = (to_tensor(all_of(f"{name} faces", 0)) for name in (item, f"{UNTREATED} {number.place}"))
    said = np.concatenate([[need(a, f"{item} said")] * len(need(a, "original")) for a, _ in files])
    for what in np.unique(said):
        yield replace(number, task="outcome", metric=str(what), against="").of(bootstrap_interval(said == what))
    if number.method != UNTREATED:
        yield replace(number, metric="MSE", against=PLAIN).of(mean_of(restoration.mse(faces, untreated)), digits=4)


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
