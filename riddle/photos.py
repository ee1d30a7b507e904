"""A data set's photos: where they lie, their names, their splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from . import config
from .archives import decode, open_files


class DatasetMissingError(FileNotFoundError):
    """A data set that is not on this machine: where to get it and where to put it."""


@dataclass(frozen=True)
class _Place:
    names: tuple[str, ...]  # files or folders looked for under each folder of RIDDLE_DATA
    source: str


PLACES = {
    "lfw": _Place(
        ("lfw.tar", "lfw", "lfw_home", "lfw_deepfunneled"),
        "the deep-funneled images and pairs.txt from vis-www.cs.umass.edu/lfw (or LFWPairs(download=True), funneled)",
    ),
    "celebamask_hq": _Place(
        ("celebamask_hq_1k.tar", "celebamask_hq.tar", "celebamask_hq", "CelebAMask-HQ"),
        "CelebAMask-HQ.zip from github.com/switchablenorms/CelebAMask-HQ",
    ),
    "celeba_hq": _Place(
        ("celeba_hq.tar", "celeba_hq", "CelebA-HQ-img", "CelebAMask-HQ", "celebamask_hq_1k.tar"),
        "CelebAMask-HQ.zip from github.com/switchablenorms/CelebAMask-HQ (its CelebA-HQ-img)",
    ),
    "ffhq": _Place(
        ("ffhq.tar", "ffhq", "images1024x1024", "thumbnails128x128", "ffhq_128.tar"),
        "images1024x1024 or thumbnails128x128 from github.com/NVlabs/ffhq-dataset",
    ),
    "omi": _Place(("omi_256.tar", "omi"), "the stimuli from github.com/jcpeterson/omi"),
}


def locate(key: str, root: Path | str | None = None) -> Path:
    """The folder or tar file of a data set. Raises DatasetMissingError."""
    place = PLACES[key]
    if root is None and (configured := config.named_path("datasets", key)) is not None:
        root = configured
    if root is not None:
        if not Path(root).expanduser().exists():
            raise DatasetMissingError(f"{key}: {root} does not exist; get {place.source} and give its folder or tar")
        return Path(root).expanduser()
    for folder in config.data_folders():
        for name in place.names:
            if (folder / name).exists():
                return folder / name
    looked = ", ".join(str(f) for f in config.data_folders())
    raise DatasetMissingError(
        f"{key}: none of {', '.join(place.names)} in {looked}; get {place.source}, "
        f"put it there as {place.names[0]} or {place.names[1]}/, or set RIDDLE_DATA to the folder that holds it"
    )


class Images:
    """Named images. Subclasses say which members belong to which split."""

    name = "images"
    framed = False  # whether each picture is one face in FFHQ's framing already: no detector crops it

    def __init__(self, root: Path, split: str = "all"):
        self.root, self.split = root, split
        self.files = open_files(root)
        self._members: dict[str, str] = {}
        self.names: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def image(self, name: str) -> Image.Image:
        """One photo, RGB. Raises KeyError for an unknown name, ValueError for a damaged file."""
        member = self._members[name]
        try:
            return decode(self.files.read(member))
        except OSError as e:
            raise ValueError(f"{member} of {self.root} is no readable image ({e}); fetch it again or remove it") from e

    @property
    def split_hash(self) -> str:
        """Twelve hex digits that name exactly these images: a hash of the sorted names."""
        return hashlib.sha256("\n".join(sorted(self.names)).encode()).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """Like `split_hash`, over names and file sizes in order: the key of everything cached from them."""
        listing = "\n".join(f"{n} {self.files.sizes[self._members[n]]}" for n in self.names)
        return hashlib.sha256(listing.encode()).hexdigest()[:16]

    def _select(self, members: Iterable[str], key: str) -> None:
        """Keep the members of this split, by file name."""
        self._members = {PurePosixPath(m).name: m for m in members}
        if not self._members:
            raise DatasetMissingError(f"{self.root} holds no images; get {PLACES[key].source}")
        self.names = split_names(sorted(self._members), self.root, self.split)


def split_names(names: list[str], root: Path, split: str) -> list[str]:
    """The names of a split: by splits.json beside the data (or in it), else by a hash of each name (90:5:5).

    The hash cannot know which photos show one person; splits.json keeps a person within one split.
    """
    if split == "all":
        return names
    if split not in ("train", "val", "test"):
        raise ValueError(f"unknown split {split!r}; choose train, val, test or all")
    if (listed := listed_split(root, split)) is not None:
        here = set(names)
        return [n for n in sorted(listed) if n in here]
    digit = {n: hashlib.sha256(n.encode()).digest()[0] for n in names}
    low, high = {"train": (26, 256), "val": (13, 26), "test": (0, 13)}[split]
    return [n for n in names if low <= digit[n] < high]


def listed_split(root: Path, split: str) -> list[str] | None:
    """The names that a splits.json in `root` or beside it gives to a split; None where none names this set."""
    for listing in (root / "splits.json", root.parent / "splits.json"):
        if listing.is_file():
            content = json.loads(listing.read_text())
            stem = next((k for k in (root.stem, root.name) if k in content), None)
            if stem is not None:
                return content[stem][split]
    return None
