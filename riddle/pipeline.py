"""The whole method behind one object: photo -> faces -> codes -> encrypted codes -> faces -> photo, and back.

    model = riddle.load("mobile")
    out = model.protect("party.jpg", "correct horse")      # out.image, out.faces, out.save("party.png")
    back = model.restore("party.png", "correct horse")     # back.image; back.source tells from what

Every part can be called alone: align, invert, password, encrypt, decrypt, synthesize.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from riddle import networks, passwords
from riddle.faces import alignment, blending, fitting, outcomes
from riddle.faces.detection import AutoDetector, Face, FaceNotFoundError, find_all, framed, load_detector
from riddle.images import Picture, open_picture, to_image, to_tensor
from riddle.models.codes import lit
from riddle.models.inversion import LiteEncoder
from riddle.models.mobilestylegan import SIDES
from riddle.presets import Preset, get
from riddle.protected import Protected, Restored
from riddle.record import Record, find_record, look_of
from riddle.seal import Sealed

Photo = str | Path | Image.Image | Picture
DTYPES = {None: None, "float32": None, "bfloat16": torch.bfloat16, torch.float32: None, torch.bfloat16: torch.bfloat16}


class Riddle:
    """RiDDLE from its networks.

    preset: a name or `Preset`; generator, encoder, encryptor, critic: see riddle.models; parser: faces -> logits;
    device: "cpu", "cuda", ...; dtype: "bfloat16" runs the image networks in autocast (fast on hardware that has it),
    codes and passwords stay float32; detector: "auto", "dlib", "mtcnn", or an object with detect(image) -> list[Face];
    mask: "parser" for the face's own outline, "ellipse", or "auto", the parser where there is one.
    """

    def __init__(
        self, preset: str | Preset, generator: nn.Module, encoder: nn.Module, encryptor: nn.Module,
        parser: nn.Module | None = None, critic: nn.Module | None = None, device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None, detector: Any = "auto", mask: str = "auto",
    ):  # fmt: skip
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose float32 or bfloat16")
        if mask not in ("auto", "ellipse", "parser"):
            raise ValueError(f"unknown mask {mask!r}; choose auto, ellipse or parser")
        if mask == "parser" and parser is None:
            raise ValueError("mask='parser' needs a parser; this model has none, use mask='ellipse'")
        self.preset, self.device, self.dtype = get(preset), torch.device(device), DTYPES[dtype]
        self.mask = mask if mask != "auto" else "ellipse" if parser is None else "parser"
        self._detector = detector

        def ready(network: nn.Module) -> nn.Module:
            return network.to(self.device).eval().requires_grad_(False)

        self.generator, self.encryptor, self.critic = ready(generator), ready(encryptor), critic and ready(critic)
        self.encoder = ready(encoder).to(memory_format=torch.channels_last)
        self.parser = ready(parser).to(memory_format=torch.channels_last) if parser is not None else None

    @cached_property
    def detector(self) -> Any:
        """The face detector, loaded at its first use."""
        return load_detector(self._detector) if isinstance(self._detector, str) else self._detector

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of generator and encryptor, on which the meaning of a code depends: 64 hex digits."""
        return networks.sha256(self.generator, self.encryptor)

    @torch.no_grad()
    def _batched(self, network: Callable, x: Tensor, batch: int) -> Tensor:
        with torch.autocast(self.device.type, self.dtype) if self.dtype is not None else nullcontext():
            parts = [network(part.to(self.device, torch.float32)).float() for part in x.split(batch)]
        return torch.cat(parts)

    # Faces

    def detect(self, photo: Photo, pick: str = "all") -> list[Face]:
        """Faces of a photo, largest first; pick: "all", "largest", or "center", the one nearest to the middle.

        "auto" asks both detectors; where there are surer ones, a doubtful face is left out with a warning. Raises
        FaceNotFoundError, with the file's name, when there is none; ValueError for another pick.
        """
        picture = open_picture(photo)
        found = self._found(picture)
        sure = outcomes.sure(found, picture.name) if isinstance(self.detector, AutoDetector) else found
        return outcomes.picked(sure, pick, picture.rgb.size)

    def _found(self, picture: Picture) -> list[Face]:
        both = isinstance(self.detector, AutoDetector)
        if found := find_all(picture.rgb, self.detector) if both else self.detector.detect(picture.rgb):
            return found
        remedy = "try detector='mtcnn', or crop the photo closer to the face"
        raise FaceNotFoundError(f"no face found in {picture.name}; {remedy}")

    def crops(self, image: Image.Image, matrices: np.ndarray) -> Tensor:
        """The faces (k, 3, R, R) in [-1, 1] that framing matrices (k, 2, 3) frame in an RGB picture."""
        crops = [to_tensor(alignment.crop(image, m, self.preset.resolution)) for m in matrices]
        return torch.stack(crops).to(self.device)

    def align(self, photo: Photo, pick: str = "all") -> Tensor:
        """The faces of a photo in FFHQ's framing, (k, 3, R, R) in [-1, 1]. Raises as `detect` does."""
        return self.crops(open_picture(photo).rgb, framed(self.detect(photo, pick)))

    # Codes

    def invert(self, faces: Tensor, batch: int = 32, refine: int | None = None) -> Tensor:
        """Faces (N, 3, R, R) in [-1, 1] -> codes (N, L, D). Raises ValueError for another shape.

        refine: gradient steps that go on from the encoder's code and show the person better; each takes some 0.04 s a
        face on two cores. None: as many as the encoder's weights say; 0: the encoder alone. Only the encoder of
        "mobile" has them; ValueError for another preset.
        """
        side = self.preset.resolution
        if faces.ndim != 4 or faces.shape[1:] != (3, side, side):
            raise ValueError(f"faces must be (N, 3, {side}, {side}) in [-1, 1], got {tuple(faces.shape)}; use align()")
        if isinstance(self.encoder, LiteEncoder):
            return self._batched(lambda part: self.encoder(part, refine), faces, batch)
        if refine:
            raise ValueError(f"the encoder of preset {self.preset.name!r} cannot refine; leave `refine` out")
        return self._batched(self.encoder, faces, batch)

    def password(self, passphrase: str, salt: bytes | None = None) -> Tensor:
        """The key of a passphrase, (1, L, D); salt: 16 bytes, None: the preset's public one. See riddle.passwords."""
        return passwords.password(passphrase, self.generator.codes, self.preset.n_latent, self.preset.name, salt)

    def from_key(self, key: bytes) -> Tensor:
        """The password of a derived key (riddle.passwords.derive_key), (1, L, D)."""
        return passwords.from_key(key, self.generator.codes, self.preset.n_latent)

    def random_password(self, n: int = 1, seed: int = 0) -> Tensor:
        """n random keys, (n, L, D), by seed."""
        return passwords.random_keys(n, seed, self.generator.codes, self.preset.n_latent)

    def secret(self, passphrase: str | Tensor, salt: bytes | None = None) -> bytes:
        """What seals and opens records, 32 bytes: of a passphrase and its salt, or of a key (N, L, D)."""
        if isinstance(passphrase, Tensor):
            return hashlib.sha256(passphrase.detach().cpu().float().contiguous().numpy().tobytes()).digest()
        return passwords.derive_key(passphrase, self.preset.name, salt)

    def keys(self, passphrase: str | Tensor, secret: bytes, salt: bytes | None, turns: Sequence[int]) -> Tensor:
        """The keys of a file's n faces, (n, L, D) or (1, L, D): one each by a random salt, one for all by the public
        one, or the keys given; secret: of the same passphrase and salt; turns: as for `passwords.face_passwords`."""
        if salt is None or isinstance(passphrase, Tensor):
            return self.from_key(secret) if isinstance(passphrase, str) else passphrase.to(self.device)
        return passwords.face_passwords(secret, turns, self.generator.codes, self.preset.n_latent)

    @torch.no_grad()
    def encrypt(self, w: Tensor, key: str | Tensor) -> Tensor:
        """Codes (N, L, D) and a key, (1, L, D) for all or (N, L, D), or a passphrase -> codes (N, L, D)."""
        key = self.password(key) if isinstance(key, str) else key.to(self.device)
        return self.encryptor(w.to(self.device, torch.float32), key)

    def decrypt(self, w: Tensor, key: str | Tensor) -> Tensor:
        """The inverse of `encrypt` with the same key, another face's code with any other key. The same network does
        both (paper, section 3.1)."""
        return self.encrypt(w, key)

    def synthesize(self, w: Tensor, side: int | None = None, batch: int = 32) -> Tensor:
        """Codes (N, L, D) -> faces (N, 3, side, side), clipped to [-1, 1].

        side: px, default R; "mobile" draws 128, 256, 512 and 1024. Raises ValueError for another side.
        """
        batch = max(1, batch * self.preset.resolution**2 // (side or self.preset.resolution) ** 2)
        return self._batched(lambda codes: self.generator(codes, side), w, batch).clamp_(-1, 1)

    # Photos

    def side_for(self, wanted: float) -> int:
        """The smallest side of at least `wanted` px that the generator draws, else its largest."""
        sides = SIDES if self.preset.generator == "mobilestylegan" else (self.preset.resolution,)
        return next((side for side in sides if side >= wanted), sides[-1])

    def draw(self, w: Tensor, matrices: np.ndarray) -> tuple[Tensor, list[Tensor]]:
        """The faces of codes (k, L, D): (k, 3, R, R), and each as large as its place in a photo needs, (3, S, S).

        matrices: (k, 2, 3), as for `paste`; S: `side_for` its side in px. All in [-1, 1].
        """
        faces, sides = self.synthesize(w), [self.side_for(float(np.hypot(*m[:, 0]))) for m in matrices]
        own, each = self.preset.resolution, zip(faces, w, sides, strict=True)
        return faces, [face if side == own else self.synthesize(one[None], side)[0] for face, one, side in each]

    def _parsed(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> Sequence[Tensor]:
        """The parser's logits of faces and those that replace them, each (3, S, S): k of (2, 19, R, R); () without."""
        pairs = [x.float() for pair in zip(old, new, strict=True) for x in pair if self.mask == "parser"]
        small = [F.adaptive_avg_pool2d(x, self.preset.resolution) for x in pairs]
        return self._batched(self.parser, torch.stack(small), 32).split(2) if small else ()

    def paste(
        self, image: Image.Image, under: Tensor, faces: Sequence[Tensor], matrices: np.ndarray,
        shown: Sequence[Tensor] | None = None, masks: np.ndarray | None = None, fine: bool = False,
    ) -> Image.Image:  # fmt: skip
        """A photo with rendered faces in their places, colours matched and blended at the rim.

        image: RGB; under: the crops (k, 3, R, R) of those places, in [-1, 1]; faces: k of (3, S, S) in [-1, 1], S a
        multiple of R, the one in front first; matrices: (k, 2, 3), framing matrices, crop's unit square -> photo
        pixels; shown: k of (3, S, S), the faces pasted there before, which are first taken out of the rim (see
        riddle.faces.blending); masks: (k, M, M) in [0, 1], default: the parser's, which sees R px: hair stays in front;
        fine: the grain, and the colours along the rim, match, too.
        """
        before, count = faces if shown is None else shown, len(faces)  # what stood in front still does
        logits = self._parsed(under, before)
        skins = [blending.skin(pair) for pair in logits] or [blending.core(under.shape[-1])] * count
        masks = blending.outlines(logits, under) if masks is None else masks
        photo, places = np.array(image), zip(matrices, before, strict=True)
        old = [to_tensor(alignment.crop(image, m, face.shape[-1])) for m, face in places] if fine else under

        def matched(i: int, face: Tensor) -> Image.Image:
            rim = torch.from_numpy(masks[i]) if fine else None
            return to_image(blending.match_colours(face, old[i], skins[i], rim))

        for i in range(count) if shown is not None else ():
            blending.unblend(photo, matched(i, shown[i]), matrices[i], masks[i])
        put = blending.paste if shown is None else blending.paste_inside
        for i in reversed(range(count)):  # the largest, in front, last
            put(photo, matched(i, faces[i]), matrices[i], masks[i])
        return Image.fromarray(photo)

    def settled(self, w: Tensor, under: Tensor) -> Tensor:
        """Codes (k, L, D) of faces -> of what is seen once they are pasted into crops (k, 3, R, R); without a parser:
        as they are. The generator draws no seams: a face comes back with the outline, hair and light of its place."""
        faces = self.synthesize(w)
        logits = self._parsed(under, faces)
        return self.invert(fitting.pasted(faces, under, logits), refine=0) if logits else w

    def protect(
        self, photo: Photo, passphrase: str | Tensor, pick: str = "all", *, faces: Sequence[Face] | None = None,
        salt: bytes | None = None, refine: int | None = None, record: bool = True,
    ) -> Protected:  # fmt: skip
        """Replace the faces of a photo by encrypted ones; outside the faces the photo stays as it is.

        photo: path or picture; passphrase: text, which gives each face its own key, or a key (1, L, D) or (k, L, D);
        faces: those to replace, largest first, default: those found that can be; salt: 16 bytes, default: random, so
        that every file shows other strangers; refine: as for `invert`: then `restore` shows the people better; record:
        False leaves nothing but pixels, by one key for all faces and the preset's public salt. The result's `faces`
        account for every face, also for those left as they are, of which it warns. Raises FaceNotFoundError where no
        face can be replaced; ValueError for a salt and no record to keep it.

        With a passphrase, a record and the recogniser at hand, each face becomes the stranger who fits best. What is
        pasted has the fine slots of the face behind it, and so the photo's light, and with a record it is `settled`;
        the record's codes are encrypted in all slots.
        """
        if salt and not record:
            raise ValueError("a salt needs the record to keep it: leave out salt=, or record=False")
        picture = open_picture(photo)
        faces, left = outcomes.chosen(self._found(picture), picture, pick) if faces is None else (faces, [])
        matrices = framed(faces)
        under = self.crops(picture.rgb, matrices)
        w, salt = self.invert(under, refine=refine), salt or (passwords.random_salt() if record else None)
        secret = self.secret(passphrase, salt)
        keys, space = partial(self.keys, passphrase, secret, salt), self.generator.codes
        z, seen, turns = fitting.strangers(self, w, under, keys, record and isinstance(passphrase, str))
        shown = space.to_record(self.settled(seen, under) if record else seen)
        drawn, large = self.draw(space.to_w(shown), matrices)
        masks = blending.halved(blending.outlines(self._parsed(under, large), under, fine=True))
        image = picture.with_pixels(self.paste(picture.rgb, under, large, matrices, masks=masks, fine=True))
        own = self.preset.name, self.weights_hash, picture.rgb.size, salt
        kept = Record(*own, matrices, z, look_of(image), (), masks, turns, shown) if record else None
        look = partial(outcomes.looked_at, picture.rgb, faces, left, self.detector, self.preset.identity, self.device)
        return Protected(image, drawn, kept, secret, look, picture.profile)

    def restore(
        self, photo: Photo | Protected, passphrase: str | Tensor, *, record: Sealed | None = None,
        faces: Sequence[Face] | Callable[[], Sequence[Face]] | None = None,
    ) -> Restored:  # fmt: skip
        """Decrypt the faces of a protected photo.

        The right passphrase opens the record (the picture's own, or `record`, from a sidecar): the faces' original
        pixels, where it keeps them, or its codes, which are decrypted. A wrong one does not, and there may be no
        record: then the faces are detected (or `faces`, or what it gives when called), inverted again and decrypted.
        `source` says which. That shows strangers, `settled` where there is a record, or people less exactly. The
        picture may be resized or cropped. Raises RecordError for a record that is damaged, or of another preset, other
        weights or another picture; FaceNotFoundError where none is found.
        """
        known = isinstance(photo, Protected)
        picture = photo.picture if known else open_picture(photo)
        record = record or (photo.sealed if known else find_record(picture))
        salt = None if record is None else record.salt
        secret = self.secret(passphrase, salt)
        opened = record and Record.fitting(record, secret, picture, self.preset, self.weights_hash)
        keys, space, source = partial(self.keys, passphrase, secret, salt), self.generator.codes, "inversion"
        if opened is None:
            matrices = framed((faces() if callable(faces) else faces) or self.detect(picture))
            under = self.crops(picture.rgb, matrices)
            codes, pasted = self.invert(under), None
            decrypted = lit(self.decrypt(codes, keys([0] * len(codes))), codes)
            decrypted = decrypted if record is None else self.settled(decrypted, under)  # of a wrong passphrase
        else:
            codes, source = space.to_w(opened.codes.to(self.device)), "codes"
            decrypted = self.decrypt(codes, keys(opened.turns))
            pasted = lit(codes, decrypted) if opened.shown is None else space.to_w(opened.shown.to(self.device))
            large = partial(self.synthesize, pasted, self.side_for(256))
            matrices = opened.places_in(picture, large, lambda: self.detect(picture))
            if opened.originals:
                kept = opened.uncovered(picture, matrices)
                faces, image = self.crops(kept, matrices), picture.with_pixels(kept)
                return Restored(image, faces, "original", matrices, picture.profile)
            under = self.crops(picture.rgb, matrices)
        shown = None if pasted is None else self.draw(pasted, matrices)[1]
        drawn, large = self.draw(decrypted, matrices)
        image = self.paste(picture.rgb, under, large, matrices, shown, opened and opened.masks, fine=True)
        return Restored(picture.with_pixels(image), drawn, source, matrices, picture.profile)


def load(
    preset: str | Preset = "mobile", device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None,
    weights: str | Path | None = None, *, encryptor: str | None = None, detector: Any = "auto", mask: str = "auto",
) -> Riddle:  # fmt: skip
    """A ready model.

    preset: see riddle.presets; weights: a folder with generator.safetensors, encoder.safetensors and so on, default:
    the bundled ones; encryptor: a file of riddle.presets.ALL_VARIANTS, "encryptor" is the paper's transformer; default:
    the preset's choice, which is the coupling for "mobile", because it recovers exactly; until you train one, "ffhq256"
    takes the one that the authors released, and "ffhq1024" that of "mobile"; the rest as for `Riddle`. "smoke" without
    weights: untrained networks from a fixed seed, for tests. Raises ValueError for an unknown preset and for a damaged
    published file, WeightsMissingError for weights that are not there.
    """
    p = get(preset)
    untrained, name = p.name == "smoke" and weights is None, encryptor or networks.default_encryptor(p, weights)
    if untrained:
        warnings.warn("preset 'smoke' is untrained: random networks, pictures of noise; use 'mobile'", stacklevel=2)
    with torch.random.fork_rng(devices=[]):  # building a network draws numbers; the caller's stream stays as it was
        built = networks.untrained(p, name) if untrained else networks.trained(p, weights, name)
    return Riddle(p, **built, device=device, dtype=dtype, detector=detector, mask=mask)
