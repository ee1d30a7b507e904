"""Data sets: LFW pairs, FFHQ, CelebAMask-HQ, CelebA-HQ, One Million Impressions, any folder of images.

Each is found by argument, by [datasets] of the configuration file, or in the folders of RIDDLE_DATA; as a folder
or as an uncompressed tar. data/README.md says where they come from and on which terms.

    python -m riddle.datasets              # what is here
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from . import config
from .aligned import AlignedSet, aligned
from .archives import decode, images_of
from .photos import PLACES, DatasetMissingError, Images, listed_split, locate

__all__ = [
    "CLASSES", "DATASETS", "FFHQ", "AlignedSet", "CelebAHQ", "CelebAMaskHQ", "DatasetMissingError", "Folder", "Images",
    "LFWPairs", "Omi", "Pair", "Samples", "aligned", "load", "locate", "parse_pairs",
]  # fmt: skip

# CelebAMask-HQ's classes; the index is the id in a mask. l_ and r_ are the person's own left and right.
CLASSES = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip",
    "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip


class CelebAMaskHQ(Images):
    """CelebA-HQ photos with 19-class masks; as published or as images/ and masks/. Lee et al., 2020."""

    name = "CelebAMask-HQ"

    def __init__(self, split: str = "train", root: Path | str | None = None):
        super().__init__(locate("celebamask_hq", root), split)
        photos = [m for m in images_of(self.files) if PurePosixPath(m).parent.name in ("images", "CelebA-HQ-img")]
        self._select(photos, "celebamask_hq")

    def mask(self, name: str) -> np.ndarray:
        """(H, W) uint8, an index into `CLASSES`. Raises KeyError for an unknown name."""
        member = PurePosixPath(self._members[name])
        base, stem = member.parent.parent, member.stem
        if member.parent.name == "images":
            return _sides(np.array(decode(self.files.read(str(base / "masks" / f"{stem}.png")), mode=None)))
        parts = base / "CelebAMask-HQ-mask-anno" / str(int(stem) // 2000)
        mask = np.zeros((512, 512), np.uint8)
        for index, part in enumerate(CLASSES):  # in the order of the ids: later parts lie on earlier ones
            file = str(parts / f"{int(stem):05d}_{part}.png")
            if file in self.files.sizes:
                mask[np.asarray(decode(self.files.read(file), "L")) > 127] = index
        return _sides(mask)


def _sides(mask: np.ndarray) -> np.ndarray:
    """Swap left and right parts where a photo was mirrored but its labels were not, as some copies of the set hold:
    a person's left lies right in the picture."""
    for left, right in ((4, 5), (6, 7), (8, 9)):  # eyes, else brows, else ears tell
        columns = [np.flatnonzero((mask == i).any(0)) for i in (left, right)]
        if len(columns[0]) and len(columns[1]):
            if columns[0].mean() > columns[1].mean():
                return mask
            swap = np.arange(256, dtype=np.uint8)
            swap[[4, 5, 6, 7, 8, 9]] = [5, 4, 7, 6, 9, 8]
            return swap[mask]
    return mask


class CelebAHQ(Images):
    """CelebA-HQ photos without masks. Karras et al., 2018."""

    name = "CelebA-HQ"

    def __init__(self, split: str = "test", root: Path | str | None = None):
        super().__init__(locate("celeba_hq", root), split)
        self._select((m for m in images_of(self.files) if "mask" not in PurePosixPath(m).parent.name), "celeba_hq")


class FFHQ(Images):
    """FFHQ at any size, in its own alignment. Karras et al., 2019.

    Splits are those of a splits.json beside it; without one val and test are its last 10,000, halved. Raises
    DatasetMissingError.
    """

    name = "FFHQ"
    framed = True

    def __init__(self, split: str = "train", root: Path | str | None = None):
        super().__init__(locate("ffhq", root), split)
        self._select(images_of(self.files), "ffhq")
        if split != "all" and listed_split(self.root, split) is None:
            low, high = {"train": (0, 60_000), "val": (60_000, 65_000), "test": (65_000, 70_000)}[split]
            self.names = [n for n in sorted(self._members) if low <= int(PurePosixPath(n).stem) < high]


class Omi(Images):
    """One Million Impressions: StyleGAN2 faces of no real person. Peterson et al., 2022."""

    name = "OMI"
    framed = True

    def __init__(self, split: str = "all", root: Path | str | None = None):
        super().__init__(locate("omi", root), split)
        self._select(images_of(self.files), "omi")


class Folder(Images):
    """Any folder or tar of images; the name of an image is its path within."""

    def __init__(self, path: Path | str, name: str | None = None):
        if not Path(path).exists():
            raise DatasetMissingError(f"{path} does not exist; give a folder or a tar file of images")
        super().__init__(Path(path))
        self.name = name or Path(path).stem
        self._members = {m: m for m in images_of(self.files)}
        self.names = list(self._members)
        if not self.names:
            raise DatasetMissingError(f"{path} holds no image; give a folder or a tar file of images")


class Samples(Folder):
    """The bundled synthetic faces, data/samples."""

    def __init__(self):
        super().__init__(config.bundled_folder("samples"), "bundled synthetic faces")


@dataclass(frozen=True)
class Pair:
    """One line of pairs.txt."""

    fold: int  # 0 to 9
    a: str
    b: str
    same: bool


class LFWPairs(Images):
    """LFW's view 2: ten folds of 300 same and 300 different pairs; for evaluation only. Huang et al., 2007.

    root: a folder or tar with pairs.txt and one folder a person, or scikit-learn's lfw_home, which is also looked
    for. `version` is deep-funneled, funneled or original. download=True lets scikit-learn fetch the funneled one.
    Raises DatasetMissingError.
    """

    name = "LFW"

    def __init__(self, root: Path | str | None = None, download: bool = False):
        super().__init__(_locate_lfw(root, download))
        pairs = next((m for m in self.files.sizes if PurePosixPath(m).name == "pairs.txt"), None)
        if pairs is None:
            raise DatasetMissingError(f"{self.root} holds no pairs.txt; get it from vis-www.cs.umass.edu/lfw")
        self.pairs = parse_pairs(self.files.read(pairs).decode())
        versions: dict[str, list[str]] = {}
        for member in images_of(self.files):
            versions.setdefault(_lfw_version(f"{self.root.name}/{member}"), []).append(member)
        self.version = next((v for v in ("deep-funneled", "funneled", "original") if v in versions), "absent")
        stems = {PurePosixPath(m).stem: m for m in versions.get(self.version, [])}
        self.names = sorted({n for p in self.pairs for n in (p.a, p.b)})
        absent = [n for n in self.names if n not in stems]
        if absent:
            raise DatasetMissingError(
                f"{self.root} lacks {len(absent)} of {len(self.names)} photos of pairs.txt, such as {absent[0]}; "
                f"get {PLACES['lfw'].source}"
            )
        self._members = {n: stems[n] for n in self.names}


def _lfw_version(path: str) -> str:
    text = path.lower().replace("-", "").replace("_", "")
    return "deep-funneled" if "deepfunneled" in text else "funneled" if "funneled" in text else "original"


def _locate_lfw(root: Path | str | None, download: bool) -> Path:
    try:
        return locate("lfw", root)
    except DatasetMissingError:
        cache = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser() / "lfw_home"
        if root is None and download:
            from sklearn.datasets import fetch_lfw_people

            # Fetches and unpacks everything but loads one person only; the photos are then read as they are:
            # colour, full size, no slice.
            fetch_lfw_people(min_faces_per_person=500, resize=0.1)
        if root is None and (cache / "pairs.txt").is_file():
            return cache
        raise


def parse_pairs(text: str) -> list[Pair]:
    """pairs.txt -> pairs: a first line 'folds, n', then per fold n same and n different pairs. Raises ValueError."""
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    folds, n = (int(x) for x in lines[0])
    if len(lines) != 1 + 2 * n * folds:
        raise ValueError(f"pairs.txt has {len(lines) - 1} pairs, its first line says {2 * n * folds}; fetch it again")
    pairs = []
    for i, fields in enumerate(lines[1:]):
        if len(fields) == 3:
            person, a, b = fields
            other = person
        else:
            person, a, other, b = fields
        if (len(fields) == 3) != (i % (2 * n) < n):
            raise ValueError(f"pairs.txt, line {i + 2}: unexpected number of fields; fetch it again")
        pairs.append(Pair(i // (2 * n), f"{person}_{int(a):04d}", f"{other}_{int(b):04d}", len(fields) == 3))
    return pairs


DATASETS = {
    "lfw": LFWPairs, "ffhq": FFHQ, "celebamask_hq": CelebAMaskHQ, "celeba_hq": CelebAHQ, "omi": Omi, "samples": Samples,
}  # fmt: skip


def load(name: str, split: str | None = None) -> Images:
    """A data set by its short name (a key of `DATASETS`) or by the path of a folder. Raises DatasetMissingError."""
    if name not in DATASETS:
        return Folder(name)
    return DATASETS[name](split) if split and name not in ("lfw", "samples") else DATASETS[name]()


if __name__ == "__main__":
    for key in DATASETS:
        try:
            found = load(key)
            print(f"{key:14} {len(found):6} images, split {found.split}, hash {found.split_hash}: {found.root}")
        except DatasetMissingError as e:
            print(f"{key:14} absent: {e}")
