"""The contents of Tables 1 to 5 as data: sets of faces, recognisers, rows; and the numbers that the paper prints.

The paper's numbers (Li et al., CVPR 2023) lie in paper.csv beside this module, each with the row and the column in
which our tables show it; an empty cell there means "any".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from riddle.baselines import BASELINES
from riddle.presets import CONTROLS, RELEASED, VARIANTS

# Data sets as the tables name them.
LABELS = {
    "lfw": "LFW", "celebamask_hq": "CelebA-HQ test", "ffhq": "FFHQ test", "samples": "bundled synthetic faces",
}  # fmt: skip

# The last five are the paper's: three of Table 1, that of Table 4, and F_e, which it trains against.
RECOGNISERS = (
    "edgeface-xs", "mobilefacenet-casia", "mobileface-v2", "dlib", "arcface-mobilefacenet",
    "facenet-casia", "facenet-vggface2", "sphereface20", "curricularface-ir101", "irse50",
)  # fmt: skip
# dlib's embeddings of two strangers have a cosine of 0.83: it compares by distance, and has no place among angles.
ANGULAR = tuple(name for name in RECOGNISERS if name != "dlib")

PASSWORDS = 10  # per face, for diversity
PEOPLE = 150  # of diversity, Table 4 and Table 3's utility: as many as CelebA-HQ's test split has
FEW = 50  # of them, for faces restored from pixels: inverting each again takes seconds

# Encryptors with rows of their own in Tables 1 to 4. Our own encryptor has a name of its own.
OURS = VARIANTS["coupling"].label
ENCRYPTORS = {"riddle": "RiDDLE", "datafree": "RiDDLE data-free", "coupling": OURS}
# Sources to restore from without the stored code: action of riddle.evaluation.facesets -> label.
PIXELS = {"png": "from PNG pixels", "jpeg75": "from JPEG 75", "pasted": "from the pasted photo"}
KEYED = {name: system.label for name, system in BASELINES.items() if system.keyed}
REVERSIBLE = {name: label for name, label in KEYED.items() if BASELINES[name].reversible}
# Many passwords of one photo: face set -> method.
MANY = {
    "riddle-passwords": "RiDDLE", "riddle-wrong-passwords": "RiDDLE, wrongly decrypted",
    "datafree-passwords": "RiDDLE data-free",
    "coupling-passwords": OURS, "coupling-wrong-passwords": f"{OURS}, wrongly decrypted",
    **{f"{name}-passwords": label for name, label in KEYED.items()},
}  # fmt: skip

PHOTO = "photo (aligned crop)"
CEILING = "inverted (the ceiling)"
INVERTED = "inverted, no encryption"
SAME_PHOTO, SAME_INVERTED, OTHER_PHOTO = "the same photo", "its inverted face", "other photo"
STRANGER, AMONG = "a stranger's photo", f"{PASSWORDS} passwords of one photo"
ACCEPTED, APART, COSINE, KFFA = "share accepted", "share of pairs apart", "identity cosine", "KFFA (degrees)"

# ---- Tables 1 and 5: rates


@dataclass(frozen=True)
class Row:
    """A rate: the share of `faces` that a recogniser takes for `reference`; diversity: of pairs taken for two people.

    `faces` are made of the second picture of a pair; `reference` is of the first, or of the same one (`itself`).
    """

    task: str
    method: str
    faces: str  # set of faces, by its name in riddle.evaluation.facesets
    reference: str = "photo"
    itself: bool = False
    few: bool = False  # True: of `FEW` people only, whose pictures are inverted again

    @property
    def metric(self) -> str:
        """The metric's name: the share that the rate states."""
        return APART if self.task == "diversity" else ACCEPTED

    @property
    def against(self) -> str:
        """The reference of the faces, in words."""
        if self.task == "diversity":
            return AMONG
        return OTHER_PHOTO if not self.itself else SAME_PHOTO if self.reference == "photo" else SAME_INVERTED


def _table1() -> Iterator[Row]:
    yield Row("unprotected", PHOTO, "photo")
    yield Row("unprotected", "inverted", "inverted")
    yield from (Row("de-identification", label, variant) for variant, label in ENCRYPTORS.items())
    yield Row("de-identification", f"{OURS}, in the photo's light", "coupling-lit")
    for variant, label in ENCRYPTORS.items():
        yield Row("de-identification", f"{label}, wrongly decrypted", f"{variant}-wrong")
    yield from (Row("de-identification", b.label, name) for name, b in BASELINES.items())
    for name, label in REVERSIBLE.items():
        yield Row("de-identification", f"{label}, wrongly decrypted", f"{name}-wrong")
    for reference in ("inverted", "photo"):
        if reference == "photo":
            yield Row("recovery", CEILING, "inverted", itself=True)
        for variant, label in ENCRYPTORS.items():
            yield Row("recovery", label, f"{variant}-restored", reference, itself=True)
        for name, label in REVERSIBLE.items() if reference == "photo" else ():
            yield Row("recovery", label, f"{name}-restored", reference, itself=True)
        for action, source in PIXELS.items():
            yield Row("recovery", f"RiDDLE, {source}", f"riddle-{action}", reference, itself=True, few=True)
    yield from (Row("diversity", label, name) for name, label in MANY.items())


# Table 5 in the paper's order, then ours, then the controls: variant -> label.
ABLATIONS = {name: VARIANTS[name].label for name in ("datafree", "mlp", "nodiv", "riddle", "coupling", *CONTROLS)}


def _ablations(labels: Mapping[str, str]) -> Iterator[Row]:
    for variant, label in labels.items():
        yield Row("de-identification", label, variant)
        yield Row("recovery", label, f"{variant}-restored", "inverted", itself=True)
        yield Row("recovery", label, f"{variant}-restored", "photo", itself=True)
        yield Row("diversity", label, f"{variant}-passwords")


TABLE1 = tuple(_table1())
TABLE5 = (Row("de-identification", INVERTED, "inverted"), *_ablations(ABLATIONS))
TABLE5_RELEASED = tuple(_ablations({"released": RELEASED.label}))  # where the preset has the authors' own network


def sets_of(rows: tuple[Row, ...]) -> tuple[str, ...]:
    """The face sets behind rows, each once."""
    return tuple(dict.fromkeys(name for row in rows for name in (row.reference, row.faces)))


# ---- Table 2: restored pictures, method -> face set


def _table2() -> Iterator[tuple[str, str]]:
    yield CEILING, "inverted"
    for variant, method in ENCRYPTORS.items():
        yield method, f"{variant}-restored"
        yield from ((f"{method}, {source}", f"{variant}-{action}") for action, source in PIXELS.items())
    yield from ((f"{method}, wrong password", f"{variant}-wrong") for variant, method in ENCRYPTORS.items())
    yield from ((label, f"{name}-restored") for name, label in REVERSIBLE.items())


TABLE2 = dict(_table2())
REFERENCES = {"inverted": SAME_INVERTED, "photo": SAME_PHOTO}

# ---- Table 3: protected pictures, method -> face set

_BASELINES = {baseline.label: name for name, baseline in BASELINES.items()}
TABLE3 = {"inverted": "inverted", **{label: variant for variant, label in ENCRYPTORS.items()}, **_BASELINES}
SAME_PHOTOS, OTHER_PHOTOS = "the same photos", "photos of others"
ANOTHER = "another person's photo"
ALIGNED, PASTED = "aligned face", "photo, face pasted back"
NETWORKS = {"squeezenet": "SqueezeNet pool", "dlib": "dlib", "inception": "Inception"}  # of features
DETECTORS = ("mtcnn", "dlib")
SIDE = 256  # px of the crop whose pixels are the unit of length: the scale of the paper's own pictures
FID_FACES = 5000  # with fewer, the paper's FID is not comparable
# Measures of later papers that no network here can compute.
NO_NETWORK = ("gaze", "expression agreement", "age agreement", "gender agreement")

# ---- Table 4: method -> face set of one picture per person

SINGLE = {"inverted": "inverted"} | {label: name for label, name in _BASELINES.items() if name not in KEYED}
SIMILARITY_SETS = ("photo", *SINGLE.values(), *MANY)

# ---- The paper's numbers


@cache
def paper() -> pd.DataFrame:
    """Every number that the paper prints: table, task, method, metric, against, measured_by, place, column, value."""
    return pd.read_csv(Path(__file__).with_name("paper.csv"), keep_default_na=False)


def published(table: str, line: Mapping[str, Any]) -> dict[str, float | None]:
    """The paper's numbers beside a line of one of our tables: {column: number}, None where the paper has none.

    Table 3 shows no FID beside one of fewer than `FID_FACES` faces. Table 5 shows the paper's FID beside every Frechet
    distance, in a column of its own: on other features the two are not comparable.
    """
    known = paper()[paper().table == table]
    out: dict[str, float | None] = dict.fromkeys(known.column)
    line = dict(line)
    if table == "table3" and line["metric"] == "FID" and 0 < line["n"] < FID_FACES:
        return out
    if table == "table5" and line["metric"].startswith("Frechet"):
        line["metric"] = "FID"
    for key in ("task", "method", "metric", "against", "measured_by", "place"):
        known = known[known[key].isin(["", line.get(key, "")])]
    return out | dict(zip(known.column, known.value, strict=True))


def without_restoration(table: str) -> Iterator[dict[str, str]]:
    """The columns that name a row, of the systems in the rows of the paper's table that ask what they restore."""
    known = paper()[(paper().table == table) & (paper().task == "recovery")]
    if not known.method.isin([system.label for system in BASELINES.values()]).any():
        return
    for row in known[["task", "metric", "against", "measured_by", "place"]].drop_duplicates().to_dict("records"):
        yield from (row | {"method": system.label} for system in BASELINES.values() if not system.reversible)
