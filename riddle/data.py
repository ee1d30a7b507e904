"""Data sets: where their photos lie, their names, their splits.

    python -m riddle.data                       # what is on this machine

    ffhq = data.load("ffhq", "test")            # a key of SOURCES, or a folder, tar or zip of yours
    ffhq.names, ffhq.image(ffhq.names[0])

Each set is a folder, an uncompressed tar file or a zip in one of the folders of RIDDLE_DATA. data/README.md says where
they come from and on which terms.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from . import config
from .images import to_tensor
from .models.parsing import CLASSES
from .weights import load_tensors

SPLITS = ("train", "val", "test")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
MASKS = ("masks", "CelebAMask-HQ-mask-anno")  # folders of masks beside the photos: ours, and as published


class DatasetMissingError(FileNotFoundError):
    """A data set that is not on this machine: where to get it and where to put it."""


class FolderFiles:
    """The files under a folder; a member is its path relative to it, with slashes. Hidden ones are left out."""

    def __init__(self, root: Path):
        self.root = root
        found = (p for p in sorted(root.rglob("*")) if p.is_file())
        members = ((p.relative_to(root), p.stat().st_size) for p in found)
        self.sizes = {m.as_posix(): size for m, size in members if not any(part.startswith(".") for part in m.parts)}

    def read(self, member: str) -> bytes:
        """The bytes of one file. Raises FileNotFoundError for an unknown member."""
        return (self.root / member).read_bytes()


class TarFiles:
    """The files of an uncompressed tar, indexed once, read at random; safe in threads and processes.

    Raises ValueError for a file that is no tar, or a compressed one, which cannot be read at random.
    """

    def __init__(self, path: Path):
        self.root = path
        try:
            with tarfile.open(path, "r:") as archive:
                entries = [m for m in archive if m.isfile()]
        except tarfile.ReadError as e:
            raise ValueError(f"{path} is no uncompressed tar file ({e}); unpack it and give the folder") from e
        self.sizes = {m.name.removeprefix("./"): m.size for m in entries}
        self._offsets = {m.name.removeprefix("./"): m.offset_data for m in entries}
        self._file = open(path, "rb")  # noqa: SIM115 (kept open)

    def read(self, member: str) -> bytes:
        """The bytes of one file. Raises KeyError for an unknown member."""
        return os.pread(self._file.fileno(), self.sizes[member], self._offsets[member])  # no position to share

    def __reduce__(self):  # so that worker processes open their own
        return TarFiles, (self.root,)


class ZipFiles:
    """The files of a zip, read at random; safe in threads and processes. Raises ValueError for a file that is none."""

    def __init__(self, path: Path):
        self.root = path
        try:
            self._archive = zipfile.ZipFile(path)  # kept open
        except zipfile.BadZipFile as e:
            raise ValueError(f"{path} is no readable zip ({e}); fetch it again") from e
        entries = [e for e in self._archive.infolist() if not e.is_dir() and not e.filename.startswith("__MACOSX/")]
        self.sizes = {e.filename: e.file_size for e in entries}

    def read(self, member: str) -> bytes:
        """The bytes of one file. Raises KeyError for an unknown member, OSError for a damaged one."""
        try:
            return self._archive.read(member)
        except zipfile.BadZipFile as e:
            raise OSError(str(e)) from e

    def __reduce__(self):  # so that worker processes open their own
        return ZipFiles, (self.root,)


class ImageSet:
    """Named photos of a folder, a tar or a zip, each named by its path within.

    split: train, val, test or all. Raises DatasetMissingError where there is no image, ValueError for an unknown split.
    """

    title = ""  # its name in tables
    places: tuple[str, ...] = ()  # of a published set: file or folder names to search, in order
    origin = ""  # where to get it
    framed = False  # each picture is one face in FFHQ's framing: no detector crops it

    def __init__(self, root: Path, split: str = "all"):
        if split not in (*SPLITS, "all"):
            raise ValueError(f"unknown split {split!r}; choose {', '.join(SPLITS)} or all")
        if not root.exists():
            raise DatasetMissingError(f"{root} does not exist; give a folder, a tar or a zip of images")
        self.title, self.root, self.split = self.title or root.stem, root, split
        packed = ZipFiles if root.suffix.lower() == ".zip" else TarFiles
        self.files = FolderFiles(root) if root.is_dir() else packed(root)
        images = (m for m in sorted(self.files.sizes) if PurePosixPath(m).suffix.lower() in SUFFIXES)
        photos = [m for m in images if not set(MASKS) & set(PurePosixPath(m).parts)]
        # The files of a published set have names of their own, in whichever folders they lie.
        self.members = {PurePosixPath(m).name if self.places else m: m for m in photos}
        if not self.members:
            raise DatasetMissingError(f"{root} holds no image; give a folder, a tar or a zip of images")
        self.names = sorted(self.members) if split == "all" else self._names_of(split)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, name: str) -> Image.Image:
        """One photo, RGB. Raises KeyError for an unknown name, ValueError for a damaged file."""
        member = self.members[name]
        try:
            return _decoded(self.files.read(member)).convert("RGB")
        except OSError as e:
            raise ValueError(f"{member} of {self.root} is no readable image ({e}); fetch it again or remove it") from e

    def only(self, names: Iterable[str]) -> ImageSet:
        """The same set with these names, in this order."""
        chosen = copy.copy(self)
        chosen.names = list(names)
        return chosen

    @property
    def fingerprint(self) -> str:
        """Hash of the names and file sizes in their order: the key of everything cached from them."""
        listing = "\n".join(f"{n} {self.files.sizes[self.members[n]]}" for n in self.names)
        return hashlib.sha256(listing.encode()).hexdigest()[:16]

    def _names_of(self, split: str) -> list[str]:
        """The names of a split: by splits.json in the set or beside it, else by a hash of each name, 90:5:5.

        The hash cannot know which photos show one person; splits.json keeps a person within one split.
        """
        for listing in (self.root / "splits.json", self.root.parent / "splits.json"):
            content = json.loads(listing.read_text()) if listing.is_file() else {}
            for key in (self.root.stem, self.root.name):
                if key in content:
                    return [name for name in sorted(content[key][split]) if name in self.members]
        return [name for name in sorted(self.members) if self._assigned(name) == split]

    @staticmethod
    def _assigned(name: str) -> str:
        digit = hashlib.sha256(name.encode()).digest()[0]
        return "test" if digit < 13 else "val" if digit < 26 else "train"


class FFHQ(ImageSet):
    """FFHQ at any size, in its own framing; val and test are its last 10,000, halved. Karras et al., 2019."""

    title, framed = "FFHQ", True
    places = (
        "ffhq.tar", "ffhq", "images1024x1024", "thumbnails128x128", "ffhq_128.tar",
        "ffhq.zip", "images1024x1024.zip", "thumbnails128x128.zip",
    )  # fmt: skip
    origin = "images1024x1024 or thumbnails128x128 from github.com/NVlabs/ffhq-dataset"

    @staticmethod
    def _assigned(name: str) -> str:
        return SPLITS[sum(int(PurePosixPath(name).stem) >= first for first in (60_000, 65_000))]


class CelebAMaskHQ(ImageSet):
    """CelebA-HQ photos with 19-class masks, as published or as images/ and masks/. Lee et al., 2020."""

    title = "CelebAMask-HQ"
    places = (
        "celebamask_hq_1k.tar", "celebamask_hq.tar", "celebamask_hq", "CelebAMask-HQ", "celeba_hq.tar", "celeba_hq",
    )  # fmt: skip
    origin = "CelebAMask-HQ.zip from github.com/switchablenorms/CelebAMask-HQ"

    def mask(self, name: str) -> np.ndarray:
        """(H, W) uint8, an index into `riddle.models.parsing.CLASSES`. Raises KeyError for an unknown name,
        DatasetMissingError where the set holds no mask of it."""
        member = PurePosixPath(self.members[name])
        base, stem = member.parent.parent, member.stem
        whole = str(base / "masks" / f"{stem}.png")
        if whole in self.files.sizes:
            return _by_sides(np.array(_decoded(self.files.read(whole))))
        parts = base / "CelebAMask-HQ-mask-anno" / str(int(stem) // 2000)
        files = [str(parts / f"{int(stem):05d}_{part}.png") for part in CLASSES]
        if not any(file in self.files.sizes for file in files):
            raise DatasetMissingError(f"{self.root} holds no mask of {name}; get {self.origin}")
        mask = np.zeros((512, 512), np.uint8)
        for index, file in enumerate(files):  # in the order of the ids: later parts lie on earlier ones
            if file in self.files.sizes:
                mask[np.asarray(_decoded(self.files.read(file)).convert("L")) > 127] = index
        return _by_sides(mask)


def _by_sides(mask: np.ndarray) -> np.ndarray:
    """The mask, with left and right exchanged where its photo was mirrored and its labels were not, as some copies of
    the set have it: a person's left lies right in the picture."""
    for left, right in ((4, 5), (6, 7), (8, 9)):  # the eyes decide, else the brows, else the ears
        columns = [np.flatnonzero((mask == i).any(0)) for i in (left, right)]
        if len(columns[0]) and len(columns[1]):
            if columns[0].mean() > columns[1].mean():
                return mask
            exchanged = np.arange(256, dtype=np.uint8)
            exchanged[[4, 5, 6, 7, 8, 9]] = [5, 4, 7, 6, 9, 8]
            return exchanged[mask]
    return mask


@dataclass(frozen=True)
class Pair:
    """One line of LFW's pairs.txt."""

    fold: int  # 0 to 9
    a: str
    b: str
    same: bool


class LFW(ImageSet):
    """LFW's view 2: ten folds of 300 same and 300 different pairs; for evaluation only. Huang et al., 2007.

    A folder or tar with pairs.txt and one folder per person; its names are those of the pairs. `version` is
    deep-funneled, funneled or original. Raises DatasetMissingError.
    """

    title = "LFW"
    places = ("lfw.tar", "lfw", "lfw_home", "lfw_deepfunneled")
    origin = (
        "the deep-funneled images and pairs.txt from vis-www.cs.umass.edu/lfw, or the funneled ones by "
        "sklearn.datasets.fetch_lfw_people()"
    )

    def __init__(self, root: Path, split: str = "all"):
        super().__init__(root)
        listing = next((m for m in self.files.sizes if PurePosixPath(m).name == "pairs.txt"), None)
        if listing is None:
            raise DatasetMissingError(f"{root} holds no pairs.txt; get it from vis-www.cs.umass.edu/lfw")
        self.pairs = parse_pairs(self.files.read(listing).decode())
        plain = f"{root.name}/{min(self.members.values())}".lower().replace("-", "").replace("_", "")
        versions = {"deepfunneled": "deep-funneled", "funneled": "funneled", "": "original"}
        self.version = next(version for word, version in versions.items() if word in plain)
        self.members = {PurePosixPath(m).stem: m for m in self.members.values()}
        self.names = sorted({n for p in self.pairs for n in (p.a, p.b)})
        if absent := [n for n in self.names if n not in self.members]:
            raise DatasetMissingError(
                f"{root} lacks {len(absent)} of {len(self.names)} photos of pairs.txt, such as {absent[0]}; "
                f"get {self.origin}"
            )


def parse_pairs(text: str) -> list[Pair]:
    """pairs.txt -> pairs: a first line 'folds, n', then per fold n same and n different pairs. Raises ValueError."""
    lines = [line.split("\t") for line in text.splitlines() if line.strip()]
    folds, n = (int(x) for x in lines[0])
    if len(lines) != 1 + 2 * n * folds:
        raise ValueError(f"pairs.txt has {len(lines) - 1} pairs, its first line says {2 * n * folds}; fetch it again")
    pairs = []
    for i, fields in enumerate(lines[1:]):
        same = len(fields) == 3
        if same != (i % (2 * n) < n):
            raise ValueError(f"pairs.txt, line {i + 2}: unexpected number of fields; fetch it again")
        person, a, other, b = (*fields[:2], fields[0], fields[2]) if same else fields
        pairs.append(Pair(i // (2 * n), f"{person}_{int(a):04d}", f"{other}_{int(b):04d}", same))
    return pairs


class Samples(ImageSet):
    """The bundled synthetic faces."""

    title, framed = "bundled synthetic faces", True


SOURCES = {"lfw": LFW, "ffhq": FFHQ, "celebamask_hq": CelebAMaskHQ}  # the sets that are searched for


def locate(key: str) -> Path:
    """The folder or tar file of a data set. Raises DatasetMissingError."""
    source = SOURCES[key]
    folders = [*config.data_folders(), Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()]
    for path in (folder / name for folder in folders for name in source.places):
        if path.exists():
            return path
    tar, folder = (next(n for n in source.places if n.endswith(".tar") == packed) for packed in (True, False))
    raise DatasetMissingError(
        f"{key}: none of {', '.join(source.places)} in {', '.join(map(str, folders))}; get {source.origin}, "
        f"put it there as {tar} or {folder}/, or set RIDDLE_DATA to the folder that holds it"
    )


def load(name: str | Path, split: str = "all") -> ImageSet:
    """A data set: a key of `SOURCES`, "samples" (the bundled synthetic faces), or the path of a folder, tar or zip.

    Raises DatasetMissingError, ValueError.
    """
    if name == "samples":
        return Samples(config.bundled_folder("samples"))
    if name in SOURCES:
        return SOURCES[name](locate(name), split)
    return ImageSet(Path(name).expanduser(), split)


def _decoded(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def sample_faces(n: int, side: int) -> torch.Tensor:
    """The first n bundled synthetic faces, (n, 3, side, side) in [-1, 1]. Raises DatasetMissingError without them."""
    samples = load("samples")
    faces = [samples.image(name).resize((side, side), Image.Resampling.LANCZOS) for name in samples.names[:n]]
    return to_tensor(np.stack([np.asarray(face) for face in faces]))


def sample_codes() -> torch.Tensor:
    """The codes (48, L, D) of the bundled synthetic faces, in the order of `sample_faces`."""
    return load_tensors(config.bundled_folder("samples") / "codes.safetensors")["codes"]


if __name__ == "__main__":
    for key in (*SOURCES, "samples"):
        try:
            found = load(key)
            print(f"{key:14} {len(found):6} images: {found.root}")
        except DatasetMissingError as e:
            print(f"{key:14} absent: {e}")
