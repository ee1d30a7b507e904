"""The whole method behind one object: photo -> faces -> codes -> encrypted codes -> faces -> photo, and back.

    model = riddle.load("mini")
    out = model.protect("party.jpg", "correct horse")      # every face; out.image, out.save("party.png")
    back = model.restore("party.png", "correct horse")     # back.image; back.source tells from what

Every part can be called alone: align, invert, password, encrypt, decrypt, synthesize.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from riddle import passwords
from riddle.faces import alignment, blending
from riddle.faces.detection import Face, FaceNotFoundError, load_detector
from riddle.models.bisenet import BiSeNet
from riddle.models.encryptor import build_encryptor
from riddle.models.inversion import Encoder
from riddle.models.parsing import ParsingNet
from riddle.models.stylegan2 import Generator
from riddle.presets import Preset, get
from riddle.records import Record, RecordError, read_record, save_picture

Photo = str | Path | Image.Image
PICKS = ("all", "largest", "center")
DTYPES = {None: None, "float32": None, "bfloat16": torch.bfloat16, torch.float32: None, torch.bfloat16: torch.bfloat16}


@dataclass(frozen=True)
class Protected:
    """A photo whose faces are encrypted."""

    image: Image.Image
    faces: torch.Tensor  # (k, 3, R, R) in [-1, 1], the encrypted faces
    record: Record  # what `restore` needs besides the password

    def save(self, path: str | Path, codes: bool = True) -> Path:
        """Write the photo; a PNG carries the encrypted codes, so that `restore` returns the very same code.

        codes=False leaves them out. Raises ValueError for another format with codes=True.
        """
        return save_picture(self.image, path, self.record if codes else None)


@dataclass(frozen=True)
class Restored:
    """A photo whose faces are decrypted; with a wrong password they are other people's."""

    image: Image.Image
    faces: torch.Tensor  # (k, 3, R, R) in [-1, 1], the decrypted faces
    source: str  # "codes": from the file's record; "inversion": detected and inverted again, so less exact

    def save(self, path: str | Path) -> Path:
        """Write the photo in the format of the path's ending."""
        return save_picture(self.image, path)


def open_photo(photo: Photo) -> tuple[Image.Image, str]:
    """An upright RGB picture and its name for messages."""
    if isinstance(photo, Image.Image):
        image, name = photo, getattr(photo, "filename", "") or "the picture"
    else:
        image, name = Image.open(photo), str(photo)
    return ImageOps.exif_transpose(image).convert("RGB"), name


class Riddle:
    """RiDDLE from its networks.

    preset: a name or `Preset`; generator, encoder, encryptor: see riddle.models; parser: faces -> logits, gives
    `mask="parser"`; device: "cpu", "cuda", ...; dtype: "bfloat16" runs the image networks in autocast (fast on
    hardware that has it), codes and passwords stay float32; detector: "auto", "dlib", "mtcnn", or an object with
    detect(image) -> list[Face]; mask: "ellipse", or "parser" for the face's own outline.
    """

    def __init__(
        self,
        preset: str | Preset,
        generator: nn.Module,
        encoder: nn.Module,
        encryptor: nn.Module,
        parser: nn.Module | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        detector: Any = "auto",
        mask: str = "ellipse",
    ):
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose float32 or bfloat16")
        if mask not in ("ellipse", "parser"):
            raise ValueError(f"unknown mask {mask!r}; choose ellipse or parser")
        if mask == "parser" and parser is None:
            raise ValueError("mask='parser' needs a parser; this model has none, use mask='ellipse'")
        self.preset, self.device, self.dtype = get(preset), torch.device(device), DTYPES[dtype]
        self.mask, self._detector = mask, detector

        def ready(network: nn.Module) -> nn.Module:
            return network.to(self.device).eval().requires_grad_(False)

        self.generator, self.encryptor = ready(generator), ready(encryptor)
        self.encoder = ready(encoder).to(memory_format=torch.channels_last)
        self.parser = ready(parser).to(memory_format=torch.channels_last) if parser is not None else None

    @cached_property
    def detector(self) -> Any:
        """The face detector, loaded at its first use."""
        return load_detector(self._detector) if isinstance(self._detector, str) else self._detector

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of all that a code's meaning depends on: generator and encryptor. 64 hex digits."""
        digest = hashlib.sha256()
        for network in (self.generator, self.encryptor):
            for name, value in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.dtype is not None else nullcontext()

    @torch.no_grad()
    def _batched(self, network: Callable, x: torch.Tensor, batch: int) -> torch.Tensor:
        with self._autocast():
            parts = [network(part.to(self.device, torch.float32)).float() for part in x.split(batch)]
        return torch.cat(parts)

    # Faces

    def detect(self, photo: Photo, pick: str = "all") -> list[Face]:
        """Faces of a photo, largest first; pick: "all", "largest", or "center", the one nearest to the middle.

        Raises FaceNotFoundError, with the file's name, when there is none; ValueError for another pick.
        """
        if pick not in PICKS:
            raise ValueError(f"unknown pick {pick!r}; choose one of {', '.join(PICKS)}")
        image, name = open_photo(photo)
        found = self.detector.detect(image)
        if not found:
            remedy = "try detector='mtcnn', or crop the photo closer to the face"
            raise FaceNotFoundError(f"no face found in {name}; {remedy}")
        if pick == "largest":
            return found[:1]
        if pick == "center":
            middle = np.array(image.size) / 2
            return [min(found, key=lambda f: np.hypot(*((np.asarray(f.box)[:2] + np.asarray(f.box)[2:]) / 2 - middle)))]
        return list(found)

    def _crop(self, image: Image.Image, found: Sequence[Face]) -> tuple[torch.Tensor, np.ndarray]:
        """Faces (k, 3, R, R) and their framing matrices (k, 2, 3)."""
        matrices = np.stack([alignment.framing_matrix(f.points, self.preset.framing) for f in found])
        crops = [blending.to_tensor(alignment.crop(image, m, self.preset.resolution)) for m in matrices]
        return torch.stack(crops).to(self.device), matrices

    def align(self, photo: Photo, pick: str = "all") -> torch.Tensor:
        """The faces of a photo in the preset's framing, (k, 3, R, R) in [-1, 1]. Raises as `detect` does."""
        return self._crop(open_photo(photo)[0], self.detect(photo, pick))[0]

    # Codes

    def invert(self, faces: torch.Tensor, batch: int = 32) -> torch.Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> codes (N, L, D). Raises ValueError for another shape."""
        side = self.preset.resolution
        if faces.ndim != 4 or faces.shape[1:] != (3, side, side):
            raise ValueError(f"faces must be (N, 3, {side}, {side}) in [-1, 1], got {tuple(faces.shape)}; use align()")
        return self._batched(self.encoder, faces, batch)

    def password(self, passphrase: str) -> torch.Tensor:
        """The key of a passphrase, (1, L, D). See riddle.passwords."""
        return passwords.password(passphrase, self.generator, self.preset.name)

    def random_password(self, n: int = 1, seed: int = 0) -> torch.Tensor:
        """n random keys, (n, L, D), by seed."""
        return passwords.random_keys(n, seed, self.generator)

    def _key(self, key: str | torch.Tensor) -> torch.Tensor:
        return self.password(key) if isinstance(key, str) else key.to(self.device)

    @torch.no_grad()
    def encrypt(self, w: torch.Tensor, key: str | torch.Tensor) -> torch.Tensor:
        """Codes (N, L, D) and a key, (1, L, D) for all or (N, L, D), or a passphrase -> codes (N, L, D)."""
        return self.encryptor(w.to(self.device, torch.float32), self._key(key))

    def decrypt(self, w: torch.Tensor, key: str | torch.Tensor) -> torch.Tensor:
        """The inverse of `encrypt` with the same key; another face's code with any other.

        The same network does both (paper, section 3.1).
        """
        return self.encrypt(w, key)

    def synthesize(self, w: torch.Tensor, batch: int = 32) -> torch.Tensor:
        """Codes (N, L, D) -> faces (N, 3, R, R), clipped to [-1, 1]."""
        return self._batched(self.generator, w, batch).clamp_(-1, 1)

    # Photos

    def _outlines(self, under: torch.Tensor, faces: torch.Tensor) -> list[np.ndarray | None]:
        """A mask for each face that covers it before and after; None: the ellipse alone."""
        if self.mask == "ellipse" or self.parser is None:
            return [None] * len(faces)
        logits = self._batched(self.parser, torch.stack([under, faces], 1).flatten(0, 1), 32)
        return [blending.parsed(pair) for pair in logits.split(2)]

    def _paste(self, image: Image.Image, under: torch.Tensor, faces: torch.Tensor, matrices: np.ndarray) -> Image.Image:
        photo = np.array(image)
        places = list(zip(faces, matrices, self._outlines(under, faces), strict=True))
        for face, matrix, outline in reversed(places):  # the largest, in front, last
            blending.paste(photo, blending.to_image(face), matrix, outline)
        return Image.fromarray(photo)

    def protect(self, photo: Photo, passphrase: str | torch.Tensor, pick: str = "all") -> Protected:
        """Replace the faces of a photo by encrypted ones; outside the faces the photo stays as it is.

        photo: path or picture; passphrase: text, or a key (1, L, D) or (k, L, D). Raises FaceNotFoundError.
        """
        image, _ = open_photo(photo)
        under, matrices = self._crop(image, self.detect(photo, pick))
        # The record keeps half precision: rounding first makes picture and record one and the same code.
        codes = self.encrypt(self.invert(under), passphrase).half().float()
        faces = self.synthesize(codes)
        record = Record(self.preset.name, self.weights_hash, image.size, matrices, codes.cpu())
        return Protected(self._paste(image, under, faces, matrices), faces, record)

    def restore(self, photo: Photo | Protected, passphrase: str | torch.Tensor) -> Restored:
        """Decrypt the faces of a protected photo.

        With a record (a PNG that `protect` wrote, or its result) the stored codes are decrypted; without one the
        faces are detected and inverted again, which is less exact: `source` says which. A wrong password gives
        other faces, not an error. Raises RecordError for a record of another preset, other weights or another
        picture; FaceNotFoundError without record and face.
        """
        if isinstance(photo, Protected):
            image, name, record = photo.image, "the protected photo", photo.record
        else:
            opened = photo if isinstance(photo, Image.Image) else Image.open(photo)
            record = read_record(opened)
            image, name = open_photo(photo)
        if record is None:
            under, matrices = self._crop(image, self.detect(photo))
            codes, source = self.invert(under), "inversion"
        else:
            self._check(record, image, name)
            side = self.preset.resolution
            crops = [blending.to_tensor(alignment.crop(image, m, side)) for m in record.matrices]
            under, matrices, codes, source = torch.stack(crops).to(self.device), record.matrices, record.codes, "codes"
        faces = self.synthesize(self.decrypt(codes, passphrase))
        return Restored(self._paste(image, under, faces, matrices), faces, source)

    def _check(self, record: Record, image: Image.Image, name: str) -> None:
        if record.preset != self.preset.name:
            raise RecordError(
                f"{name} was protected by preset {record.preset!r}, this model is {self.preset.name!r};"
                f" load that one: riddle.load({record.preset!r})"
            )
        if record.weights != self.weights_hash:
            raise RecordError(
                f"{name} was protected with other weights ({record.weights[:12]}, not {self.weights_hash[:12]});"
                " load the release or the folder of weights that protected it"
            )
        if record.size != image.size:
            raise RecordError(
                "{} is {} x {} px, but its record is of {} x {};".format(name, *image.size, *record.size)
                + " restore the file as it was saved"
            )


def _smoke(preset: Preset) -> dict[str, nn.Module]:
    """Seeded, untrained networks of a preset."""
    torch.manual_seed(0)
    generator = Generator(preset.resolution, preset.channels, preset.style_dim, preset.n_mlp)
    w = generator.map(torch.randn(1024, preset.style_dim)).detach()
    encryptor = build_encryptor(preset, w_mean=w.mean(0), w_std=w.std(0))
    return {"generator": generator, "encoder": Encoder(preset), "encryptor": encryptor}


def _trained(preset: Preset, folder: str | Path | None, part: str) -> dict[str, nn.Module | None]:
    """The networks of a preset with their weights, bundled or from a folder."""
    from riddle import zoo

    def tensors(name: str) -> dict[str, torch.Tensor]:
        if folder is None:
            return zoo.load_tensors(zoo.bundled(preset.name, name))
        path = Path(folder) / f"{name}.safetensors"
        if not path.is_file():
            remedy = f"put that file of preset {preset.name} there, or leave `weights` out"
            raise zoo.WeightsMissingError(name, f"{path} does not exist", remedy)
        return zoo.load_tensors(path)

    def fill(network: nn.Module, name: str, state: dict[str, torch.Tensor] | None = None) -> nn.Module:
        try:
            network.load_state_dict(tensors(name) if state is None else state)
        except RuntimeError as e:
            raise ValueError(f"the weights {name!r} do not fit preset {preset.name!r}: {e}") from e
        return network

    state = tensors(part)
    arch = "mlp" if any(k.startswith("layers.") for k in state) else "transformer"
    try:
        parser = fill(ParsingNet() if preset.framing == "tight" else BiSeNet(), "parser")
    except zoo.WeightsMissingError:
        parser = None  # only mask="parser" needs it, and says so
    generator = Generator(preset.resolution, preset.channels, preset.style_dim, preset.n_mlp)
    return {
        "generator": fill(generator, "generator"),
        "encoder": fill(Encoder(preset), "encoder"),
        "encryptor": fill(build_encryptor(preset, arch), part, state),
        "parser": parser,
    }


def load(
    preset: str | Preset = "mini",
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    weights: str | Path | None = None,
    *,
    encryptor: str = "encryptor",
    detector: Any = "auto",
    mask: str = "ellipse",
) -> Riddle:
    """A ready model.

    preset: see riddle.presets; weights: a folder with generator.safetensors, encoder.safetensors and so on,
    default: the bundled ones; encryptor: which one, "encryptor" (the paper's), "encryptor_datafree",
    "encryptor_mlp"; the rest as for `Riddle`. "smoke" without weights: untrained networks from a fixed seed, for
    tests. Raises ValueError for an unknown preset, WeightsMissingError for weights that are not there.
    """
    p = get(preset)
    untrained = p.name == "smoke" and weights is None
    if untrained:
        warnings.warn("preset 'smoke' is untrained: random networks, pictures of noise; use 'mini'", stacklevel=2)
    with torch.random.fork_rng(devices=[]):  # building a network draws numbers; the caller's stream stays as it was
        networks = _smoke(p) if untrained else _trained(p, weights, encryptor)
    return Riddle(p, **networks, device=device, dtype=dtype, detector=detector, mask=mask)
