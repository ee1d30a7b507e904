"""Photos in a folder or an object store: which there are, and a worker that protects them one by one.

An address is whatever fsspec reads: photos/, s3://bucket/photos, gs://bucket/photos. `riddle.app.scale` runs workers
on many machines. A result goes to its place whole: by renaming in a folder, by one upload in a store.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from riddle import passwords
from riddle.app import bulk, passphrase
from riddle.files import remove_left_over
from riddle.images import MAX_BYTES

Line = dict[str, Any]  # of a photo: source, target: paths in their stores; there: whether the target is


def plan(source: str, out: str) -> tuple[list[Line], list[str]]:
    """The photos under an address with the places of their results, named as `bulk.plan` names those of a folder; and
    the files that are left out because they are no photos. Hidden files, and those under `out`, do not count.

    Raises ValueError for what is no folder with photos, and for a result that would overwrite a source.
    """
    (store, root), (to, safe) = url_to_fs(source), url_to_fs(out)
    if not store.isdir(root):
        raise ValueError(f"{source} is no folder; name a folder, or the address of one")
    within = type(store) is type(to) and safe != root
    pairs, left_out, there = [], [], set(to.find(safe)) if to.isdir(safe) else set()
    for path in map(PurePosixPath, sorted(store.find(root))):
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts) or (within and path.is_relative_to(safe)):
            continue
        if ending := bulk.PHOTOS.ending(path, lambda path: store.open(str(path))):
            pairs.append(bulk.Pair(Path(path), Path(safe, name.with_suffix(ending))))
        elif name.suffix != bulk.SIDECAR:
            left_out.append(str(path))
    if not pairs:
        raise ValueError(f"{source} holds no photo; check its name")
    return [{"source": str(a), "target": str(b), "there": str(b) in there} for a, b in bulk.apart(pairs)], left_out


def is_local(store: AbstractFileSystem) -> bool:
    """Whether a store is this machine's file system."""
    return "file" in store.protocol


def read_passphrase(file: Path | None, warn: Callable[[str], None] = lambda _: None) -> str:
    """As `passphrase.read`, but it asks nobody: workers have no terminal."""
    if file is None and passphrase.VARIABLE not in os.environ:
        remedy = f"set {passphrase.VARIABLE} where the workers are started, or name a file that each of them has"
        raise passphrase.PassphraseError(f"no passphrase; {remedy}: --passphrase-file FILE")
    return passphrase.read(file, False, warn)


def proof(text: str, preset: str, salt: bytes) -> str:
    """What two machines compare to know that their passphrases are one; `salt` is of one run, and seals nothing."""
    return hashlib.sha256(passwords.derive_key(text, preset, salt)).hexdigest()


def warm_up(model: Any) -> None:
    """Let a `Riddle` load what its first photo would load: the detectors, the recogniser, the hash of the weights.

    It searches a drawn picture of 256 px for faces, protects a face at a given place, and looks at that place again.
    It writes nothing.
    """
    import numpy as np
    from PIL import Image

    from riddle.faces.detection import Face, find_all

    drawn = Image.linear_gradient("L").convert("RGB")
    points = np.array([(98.0, 122.0), (158.0, 122.0), (128.0, 150.0), (103.0, 185.0), (153.0, 185.0)])
    face = Face(np.array([68.0, 80.0, 188.0, 200.0]), 1.0, points, None, "drawn")
    find_all(drawn, model.detector)
    protected = model.protect(drawn, "a drawn picture", faces=[face], salt=bytes(passwords.SALT_BYTES))
    protected.look(protected.image)


class Protector:
    """A worker: one model, which protects photos one by one.

    addresses: of the photos and of the results; known: a salt and the `proof` of the run's passphrase; due: whether a
    photo needs the model. Then the worker loads all its networks when it starts. Raises PassphraseError for another
    passphrase, WeightsMissingError and ValueError as `riddle.load`.
    """

    def __init__(
        self, addresses: Sequence[str], preset: str, weights: Path | None, device: str, passphrase_file: Path | None,
        known: tuple[bytes, str], strict: bool = False, force: bool = False, due: bool = True,
    ):  # fmt: skip
        began = time.perf_counter()
        remove_left_over(tempfile.gettempdir())
        self.stores = [url_to_fs(address)[0] for address in addresses]
        import riddle  # here: its loading is part of the start

        self.text, self.strict, self.force = read_passphrase(passphrase_file), strict, force
        if proof(self.text, preset, known[0]) != known[1]:
            raise passphrase.PassphraseError("this worker has another passphrase than the one that started the run")
        if due:
            self.model = riddle.load(preset, device, weights=weights)
            warm_up(self.model)
        self.start = {"start": time.perf_counter() - began, "start_cpu": time.process_time()}  # with the imports

    def __call__(self, row: Line) -> dict[str, Any]:
        """The outcome of a row of `plan`: that of `bulk.run`, with seconds, cpu (seconds of a core), worker, and
        start and start_cpu, the seconds that this worker needed to begin."""
        began, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory(prefix=f".riddle-{os.getpid()}-") as folder:  # see `remove_left_over`
            outcome = self._outcome(row, Path(folder))
        spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        return outcome | spent | self.start | {"worker": f"{platform.node()}:{os.getpid()}"}

    def _outcome(self, row: Line, folder: Path) -> Line:
        from riddle.app import photos

        (store, to), (source, target) = self.stores, (row["source"], row["target"])
        made = Path(target) if is_local(to) else folder / PurePosixPath(target).name

        def work(pair: bulk.Pair) -> photos.FileReport:
            data = None
            if not is_local(store):  # the original goes to no file here
                with store.open(source) as file:
                    data = file.read(MAX_BYTES)
            report = photos.protect_file(self.model, pair.source, made, self.text, strict=self.strict, data=data)
            if not is_local(to):
                to.put_file(str(made), target)
            return report

        try:
            if row["there"] and not is_local(to) and not self.force:  # `attempt` looks whether it is protected
                to.get_file(target, str(made))
            outcome = bulk.attempt(bulk.Pair(Path(source), made), work, "protect", self.force)
        except Exception as e:  # stores have errors of their own
            outcome = {"status": "failed", "reason": f"{target}: {type(e).__name__}: {e}"}
        outcome["reason"] = outcome["reason"].replace(str(made), target)
        return outcome | {"source": source, "target": target}
