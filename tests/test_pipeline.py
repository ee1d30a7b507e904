"""The pipeline on small untrained networks: what must hold whatever the weights are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import riddle
from riddle import passwords
from riddle.demo import FRAMED_POINTS, KnownFaces
from riddle.faces import alignment, blending, fitting, outcomes, recognizers
from riddle.faces.detection import AutoDetector, FaceNotFoundError
from riddle.faces.outcomes import ANOTHER, RECOGNISED, FaceReport, box_of
from riddle.images import PhotoError, encode, open_picture, to_image
from riddle.models.codes import lit
from riddle.models.encryptor import MLPEncryptor, build_encryptor
from riddle.pipeline import Riddle
from riddle.presets import get
from riddle.record import Record, find_record
from riddle.seal import RecordError, Sealed
from riddle.weights import WeightsMissingError, save_tensors

SMOKE, SALT = get("smoke"), bytes(range(16))
# Five points of an upright face of about 40 px between the eyes, and of a smaller, tilted one.
LARGE = np.array([[70.0, 80], [110, 80], [90, 100], [74, 124], [106, 124]])
SMALL = np.array([[201.0, 60], [219, 66], [208, 72], [199, 80], [213, 85]])


class Reflection(nn.Module):
    """An encryptor that is its own exact inverse: it reflects the code at the password."""

    def forward(self, w, key):
        return 2 * key - w


def build(encryptor=None, detector=None, **options):
    with pytest.warns(UserWarning, match="random"):
        base = riddle.load("smoke")
    encryptor = encryptor or base.encryptor
    detector = detector or KnownFaces([LARGE, SMALL])
    return Riddle("smoke", base.generator, base.encoder, encryptor, detector=detector, **options)


@pytest.fixture(autouse=True)
def quick_keys_and_fine_slots(monkeypatch):
    monkeypatch.setattr(passwords, "MEMORY_KIB", 64)  # as strong a derivation as tests need
    monkeypatch.setattr("riddle.models.codes.FINE", 6)  # of the 8 of "smoke" two are fine, as of the 10 of "mobile"


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def mirror():
    return build(Reflection())


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    return small.resize((260, 190), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def inverted(mirror, photo):
    """What an exact restoration shows: the inverted faces."""
    return mirror.synthesize(mirror.invert(mirror.align(photo)))


def untouched(photo, points=(LARGE, SMALL)):
    """True where a pixel lies outside the framed squares of all faces."""
    ys, xs = np.mgrid[: photo.height, : photo.width]
    outside = np.ones(xs.shape, bool)
    for p in points:
        uv = alignment.crop_points(np.stack([xs, ys], -1).reshape(-1, 2), alignment.framing_matrix(p), 1) + 0.5
        outside &= ((uv < 0) | (uv > 1)).any(1).reshape(xs.shape)
    return outside


# Faces and codes


def test_shapes_along_the_way(model, photo):
    faces = model.align(photo)
    assert faces.shape == (2, 3, 32, 32) and -1 <= faces.min() and faces.max() <= 1
    expected = alignment.crop(photo, alignment.framing_matrix(LARGE), 32)
    assert np.array_equal(np.asarray(to_image(faces[0])), np.asarray(expected))
    w, key = model.invert(faces), model.password("correct horse")
    assert w.shape == (2, 8, 64) and key.shape == (1, 8, 64)
    out = model.synthesize(model.encrypt(w, key))
    assert out.shape == faces.shape and out.abs().max() <= 1
    with pytest.raises(ValueError, match="align"):
        model.invert(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="codes must be"):
        model.synthesize(torch.zeros(1, 4, 64))
    with pytest.raises(ValueError, match="cannot refine"):
        model.invert(faces, refine=3)


def test_pick(model, photo):
    faces = model.align(photo)
    assert torch.equal(model.align(photo, pick="largest"), faces[:1])
    wide = Image.new("RGB", (420, 140))
    wide.paste(photo, (0, 0))
    centred = model.align(wide, pick="center")
    assert len(centred) == 1 and torch.equal(centred[0], model.align(wide)[1])
    with pytest.raises(ValueError, match="leftmost"):
        model.align(wide, pick="leftmost")


class Beyond(KnownFaces):
    """Finds them in its photo, mirrored beyond the border as a search shows it."""

    def detect(self, image):
        rim = (image.width - 260) // 2
        return [face.mapped(1.0, (rim, rim)) for face in self.found]


def test_the_automatic_detector_asks_both_and_leaves_doubtful_faces_out_with_a_warning(photo):
    automatic = AutoDetector()
    automatic.first, automatic.second = Beyond([LARGE]), Beyond([LARGE + 2, SMALL])
    model = build(detector=automatic)
    assert [f.points[0].tolist() for f in model.detect(photo)] == [LARGE[0].tolist(), SMALL[0].tolist()]
    automatic.second.found[1] = replace(automatic.second.found[1], detector="mtcnn", score=0.6)
    with pytest.warns(UserWarning, match="doubtful whether a face is at 199,60,219,85; left as it is"):
        (face,) = model.detect(photo)
    assert np.array_equal(face.points, LARGE)
    automatic.first.found = []
    automatic.second.found = automatic.second.found[1:]
    assert np.array_equal(model.detect(photo)[0].points, SMALL)  # better than none
    automatic.second.found = []
    with pytest.raises(FaceNotFoundError):
        model.detect(photo)


def test_keys_as_text_single_or_per_face(model):
    w, key = model.random_password(3, seed=2), model.password("a")
    assert torch.equal(model.encrypt(w, "a"), model.encrypt(w, key))
    assert torch.allclose(model.encrypt(w, key.expand(3, -1, -1)), model.encrypt(w, key), atol=1e-6)
    assert torch.equal(model.encrypt(w, key), model.decrypt(w, key))  # one network does both
    assert not torch.allclose(model.encrypt(w, key), model.encrypt(w, "b"), atol=1e-4)


def test_bfloat16_stays_near_and_leaves_passwords_alone(model):
    fast = build(dtype="bfloat16")
    assert torch.equal(fast.password("a"), model.password("a"))
    w = model.random_password(2, seed=3)
    assert torch.equal(fast.encrypt(w, "a"), model.encrypt(w, "a"))
    got, expected = fast.synthesize(w), model.synthesize(w)
    assert got.dtype == torch.float32
    assert (got - expected).square().mean().sqrt() < 0.02 * expected.square().mean().sqrt()
    with pytest.raises(ValueError, match="int8"):
        build(dtype="int8")


# Photos


def test_protect_puts_the_encrypted_faces_into_the_photo_and_changes_nothing_else(model, photo):
    out = model.protect(photo, "correct horse", salt=SALT)
    before, after = np.asarray(photo), np.asarray(out.image)
    outside, original = untouched(photo), model.align(photo)
    assert outside.mean() > 0.3 and np.array_equal(before[outside], after[outside])
    codes = model.encrypt(model.invert(original), model.keys("correct horse", out.secret, SALT, [0, 0]))
    light = model.decrypt(codes, model.keys("correct horse", out.secret, SALT, [0, 0]))
    assert torch.allclose(out.drawn, model.synthesize(lit(codes, light)), atol=0.02)
    x, y = np.rint(LARGE[2]).astype(int)
    u, v = np.rint(alignment.crop_points(LARGE[2:3], alignment.framing_matrix(LARGE), 32)[0]).astype(int)
    drawn = blending.match_colours(out.drawn[0], original[0], blending.core(32))
    nearby = np.asarray(to_image(drawn))[v - 2 : v + 3, u - 2 : u + 3].astype(float)
    assert (nearby.min((0, 1)) - 12 <= after[y, x]).all() and (after[y, x] <= nearby.max((0, 1)) + 12).all()
    x, y = SMALL[2].astype(int)
    assert not np.array_equal(before[y - 2 : y + 3, x - 2 : x + 3], after[y - 2 : y + 3, x - 2 : x + 3])


def test_restore_returns_the_inverted_faces_with_the_right_password_only(mirror, photo, inverted, tmp_path):
    path = mirror.protect(photo, "correct horse", salt=SALT).save(tmp_path / "out.png")
    back, wrong = mirror.restore(path, "correct horse"), mirror.restore(path, "wrong horse")
    assert (back.source, wrong.source) == ("codes", "inversion")
    assert (back.faces - inverted).abs().max() < 0.05  # half precision of the stored codes
    assert (wrong.faces - inverted).abs().mean() > 10 * (back.faces - inverted).abs().mean()
    outside = untouched(photo)
    assert np.array_equal(np.asarray(back.image)[outside], np.asarray(photo)[outside])


def test_the_record_keeps_the_masks_by_which_faces_are_taken_out_again(mirror, photo, tmp_path):
    out = mirror.protect(photo, "correct horse", salt=SALT)
    path = out.save(tmp_path / "out.png")
    record = Record.open(find_record(open_picture(path)), out.secret, path)
    assert record.masks.shape == (2, 16, 16) and np.array_equal(record.masks, out.record.masks)
    none = replace(out, record=replace(record, masks=np.zeros_like(record.masks)))
    assert np.array_equal(mirror.restore(none, "correct horse").image, out.image)
    older = replace(out, record=replace(record, masks=None))  # then the masks are found anew
    assert mirror.restore(older, "correct horse").source == "codes"
    back = np.asarray(mirror.restore(path, "correct horse").image)
    assert np.array_equal(back, np.asarray(mirror.restore(out, "correct horse").image))
    assert not np.array_equal(back, np.asarray(out.image))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_every_format_carries_the_sealed_record_of_encrypted_codes(mirror, photo, tmp_path, ending):
    out = mirror.protect(photo, "pw", salt=SALT)
    path = out.save(tmp_path / f"out.{ending}")
    sealed, own = find_record(open_picture(path)), mirror.invert(mirror.align(photo))
    assert (sealed.preset, sealed.weights, sealed.size) == ("smoke", mirror.weights_hash, photo.size)
    assert sealed.salt == SALT and Record.open(sealed, mirror.secret("wrong", SALT), path) is None
    record, keys = Record.open(sealed, out.secret, path), mirror.keys("pw", out.secret, SALT, [0, 0])
    z = mirror.generator.codes.to_gaussian(mirror.encrypt(own, keys))  # the fine slots too
    assert torch.allclose(record.codes, z, atol=5e-3, rtol=2e-3)
    assert torch.allclose(mirror.decrypt(mirror.generator.codes.to_w(record.codes), keys), own, atol=5e-3, rtol=2e-3)
    assert np.allclose(record.matrices[1], alignment.framing_matrix(SMALL)) and record.originals == ()
    restored = mirror.restore(out, "pw")
    assert ending != "png" or np.array_equal(np.asarray(Image.open(path)), np.asarray(out.image))
    for source in (path, str(path), Image.open(path)):
        back = mirror.restore(source, "pw")
        assert back.source == "codes" and torch.equal(back.faces, restored.faces)
        if ending == "png":
            assert np.array_equal(np.asarray(back.image), np.asarray(restored.image))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_without_a_record_the_faces_are_inverted_again_in_the_light_of_the_picture(mirror, photo, tmp_path, ending):
    out = mirror.protect(photo, "pw", record=False)
    path = out.save(tmp_path / f"bare.{ending}")
    assert out.record is out.sealed is find_record(open_picture(path)) is None
    own, seen = mirror.invert(mirror.align(photo)), mirror.invert(mirror.align(path))
    assert torch.allclose(out.drawn, mirror.synthesize(lit(mirror.encrypt(own, "pw"), own)), atol=0.02)
    back, expected = mirror.restore(path, "pw"), mirror.synthesize(lit(mirror.decrypt(seen, "pw"), seen))
    assert back.source == "inversion" and torch.allclose(back.faces, expected, atol=1e-4)
    with pytest.raises(ValueError, match="a salt needs the record"):
        mirror.protect(photo, "pw", record=False, salt=bytes(16))


def test_the_result_accounts_for_every_face(photo, monkeypatch):
    said, seen = {80: ANOTHER, 60: RECOGNISED}, []
    monkeypatch.setattr(outcomes, "check", lambda _, after, face, *__: seen.append(after) or said[face.points[0, 1]])
    small, beside = (LARGE - LARGE[2]) * 0.1 + [30.0, 20], (LARGE - LARGE[2]) * [0.2, 1] + [200.0, 130]
    model = build(detector=KnownFaces([LARGE, SMALL, small, beside]))
    with pytest.warns(UserWarning, match="the picture: left as they are: .*: too small: 16 px.*: in profile"):
        out = model.protect(photo, "pw")
    boxes = [box_of(alignment.framing_matrix(p), photo.size) for p in (LARGE, SMALL, small, beside)]
    assert [face.box for face in out.faces] == boxes and out.faces is out.faces
    assert out.faces[0] == FaceReport(boxes[0], "protected", "", checked=ANOTHER)
    assert out.faces[1] == FaceReport(boxes[1], "recognised", outcomes.REASONS[RECOGNISED], checked=RECOGNISED)
    assert [(f.status, f.reason[:9], f.checked) for f in out.faces[2:]] == [
        ("skipped", "too small", ""), ("skipped", "in profil", "")
    ]  # fmt: skip
    assert len(seen) == 2 and np.array_equal(seen[0], out.image)
    assert out.look(photo) == out.faces and seen[-1] is photo  # of the pixels of any file
    with pytest.warns(UserWarning, match="too small"):
        one = model.protect(photo, "pw", pick="largest")
    assert [f.status for f in one.faces] == ["protected", "skipped", "skipped", "skipped"] and len(one.drawn) == 1
    assert (one.faces[3].box, one.faces[3].reason) == (boxes[1], "not picked: pick='largest'")
    with pytest.raises(FaceNotFoundError, match="the picture: no face of it can be replaced: .*too small"):
        build(detector=KnownFaces([small])).protect(photo, "pw")


def test_a_key_for_each_face(mirror, photo, inverted):
    keys = mirror.random_password(2, seed=9)
    out = mirror.protect(photo, keys)
    right, swapped = ((mirror.restore(out, k).faces - inverted).abs() for k in (keys, keys.flip(0)))
    assert right.max() < 0.05 and swapped.mean() > 5 * right.mean()


def test_every_file_and_every_face_has_a_key_of_its_own_unless_the_salt_is_given(mirror, photo, inverted):
    one, two, given, again = (mirror.protect(photo, "pw", salt=salt) for salt in (None, None, SALT, SALT))
    assert np.array_equal(np.asarray(given.image), np.asarray(again.image))
    assert torch.equal(given.record.codes, again.record.codes)
    for a, b in ((one, two), (one, given)):
        assert a.record.salt != b.record.salt and (a.drawn - b.drawn).abs().mean() > 0.1
        assert not torch.allclose(a.record.codes, b.record.codes, atol=0.05)
        assert not np.array_equal(np.asarray(a.image), np.asarray(b.image))
    for out in (one, two, given):
        assert (mirror.restore(out, "pw").faces - inverted).abs().max() < 0.05
    keys, w = mirror.keys("pw", given.secret, SALT, [0, 0]), mirror.generator.codes.to_w(given.record.codes)
    assert not torch.allclose(keys[0], keys[1], atol=0.05)
    right, swapped = ((mirror.synthesize(mirror.decrypt(w, k)) - inverted).abs() for k in (keys, keys.flip(0)))
    assert right.max() < 0.05 and swapped.mean() > 5 * right.mean()
    public = mirror.restore(given, mirror.password("pw"))
    assert public.source == "inversion" and (public.faces - inverted).abs().mean() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "mobile"}, "preset 'mobile'"),
        ({"weights": "f" * 64}, "other weights"),
        ({"look": np.eye(8, dtype=np.uint8) * 255}, "another photo"),
    ],
)
def test_records_that_do_not_fit_say_why(model, photo, tmp_path, change, message):
    out = model.protect(photo, "pw")
    path = replace(out, record=replace(out.record, **change)).save(tmp_path / "changed.png")
    with pytest.raises(RecordError, match=message) as error:
        model.restore(path, "pw")
    assert "changed.png" in str(error.value)


def edited(image, cut=(0, 0), scale=1.0):
    """A picture cropped at the left and at the top, then resized."""
    part = image.crop((*cut, *image.size))
    return part.resize([round(scale * v) for v in part.size], Image.Resampling.LANCZOS) if scale != 1 else part


@pytest.mark.parametrize("originals", [False, True])
@pytest.mark.parametrize(
    ("cut", "scale", "exact"),
    [((0, 0), 2.0, True), ((0, 0), 0.5, True), ((13, 5), 1.0, True), ((26, 19), 1.0, True), ((26, 19), 1.5, False)],
    ids=["enlarged", "halved", "cropped", "cropped alike on both sides", "cropped and enlarged"],
)
def test_the_record_follows_a_picture_that_was_resized_or_cropped(
    photo, inverted, cut, scale, exact, originals, monkeypatch
):
    monkeypatch.setattr(blending, "GRAIN", (1.0, 1.0))  # noise is all grain
    moved = [scale * (points - cut) + (scale - 1) / 2 for points in (LARGE, SMALL)]
    then, now = build(Reflection()), build(Reflection(), detector=KnownFaces(moved))
    out = then.protect(photo, "pw", salt=SALT)
    if originals:
        crops = [encode(photo.crop(corners), "x.png") for corners in out.record.boxes()]
        out = replace(out, record=replace(out.record, originals=tuple(crops)))
    back = now.restore(edited(out.image, cut, scale), "pw", record=out.sealed)
    places = alignment.moved(out.record.matrices, scale, -scale * np.array(cut) + (scale - 1) / 2)
    sides = np.hypot(*places[:, :, 0].T)[:, None, None]
    assert (np.abs(back.matrices - places) / sides).max() < (1e-8 if exact else 1 / 32)  # a pixel of the face
    assert back.source == ("original" if originals else "codes")
    if not originals:
        assert (back.faces - inverted).abs().max() < 0.05
    if originals:
        wanted = np.asarray(edited(photo, cut, scale)).astype(int)
        two_pixels_off = np.abs(wanted[:, 2:] - wanted[:, :-2]).mean()
        difference = np.abs(np.asarray(back.image) - wanted)
        assert difference.max() == 0 if scale == 1 else difference.mean() < two_pixels_off


def test_a_picture_of_another_size_without_the_records_faces_is_refused(mirror):
    noise = np.random.default_rng(2).integers(0, 255, (38, 52, 3), dtype=np.uint8)  # too fine to be fitted by chance
    photo = Image.fromarray(noise).resize((260, 190), Image.Resampling.BICUBIC)
    out = mirror.protect(photo, "pw", salt=SALT)
    for other in (edited(photo, (13, 5)), edited(photo, (0, 0), 0.5), edited(photo, (26, 19))):
        for detector in (KnownFaces([LARGE, SMALL]), KnownFaces([])):
            with pytest.raises(RecordError, match="its record is of 260 x 190 and none of its faces is found"):
                build(Reflection(), detector=detector).restore(other, "pw", record=out.sealed)


@pytest.mark.parametrize(("name", "remedy"), [("out.gif", "use .png"), ("absent/out.png", "create it")])
def test_saving_says_what_it_cannot_do(model, photo, tmp_path, name, remedy):
    with pytest.raises(PhotoError, match=remedy):
        model.protect(photo, "pw").save(tmp_path / name)


def test_no_face_is_an_error_with_the_files_name_and_no_passphrase_one_too(model, photo, tmp_path):
    empty, path = build(detector=KnownFaces([])), tmp_path / "landscape.png"
    photo.save(path)
    for act in (lambda: empty.align(path), lambda: empty.protect(path, "pw"), lambda: empty.restore(path, "pw")):
        with pytest.raises(FaceNotFoundError, match="landscape.png"):
            act()
    with pytest.raises(ValueError, match="empty"):
        model.protect(photo, "")


class LeftHalfSkin(nn.Module):
    """A parser that finds skin in the left half of any face."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, faces):
        n, _, h, w = faces.shape
        self.seen.add((h, w))
        logits = torch.zeros(n, 19, h, w)
        logits[:, 0] = 1
        logits[:, 1, :, : w // 2] = 2
        return logits


def test_parser_mask_follows_the_outline(photo):
    out = build(parser=LeftHalfSkin(), mask="parser", detector=KnownFaces([LARGE])).protect(photo, "pw")
    changed = (np.asarray(out.image) != np.asarray(photo)).any(-1)
    matrix = alignment.framing_matrix(LARGE)

    def at(u, v):
        x, y = np.rint(matrix @ [u, v, 1]).astype(int)
        return changed[y - 1 : y + 2, x - 1 : x + 2]

    assert at(0.1, 0.5).all() and not at(0.93, 0.5).any()
    assert at(0.624, 0.474).all()  # whatever the parser says, an eye is replaced
    with pytest.raises(ValueError, match="needs a parser"):
        build(mask="parser")


def test_each_face_becomes_the_stranger_that_fits_best(monkeypatch, photo):
    model = build(Reflection(), parser=LeftHalfSkin(), mask="parser", detector=KnownFaces([LARGE, SMALL]))
    tried: list[torch.Tensor] = []

    def misfit(new, old, parser, recogniser, critic):
        """For the larger face the 12th is best, for the smaller one the first; settled, the first of each."""
        tried.append(new)
        return (torch.arange(len(new)) - (11 if len(tried) == 1 else 0)).abs().float(), new

    monkeypatch.setattr(fitting, "misfit", misfit)
    monkeypatch.setattr(recognizers, "at_hand", lambda *_: "a recogniser")
    out = model.protect(photo, "pw", salt=SALT)
    assert out.record.turns == (11, 0)
    assert [len(new) for new in tried] == [fitting.CANDIDATES, fitting.FINALISTS] * 2
    keys = model.keys("pw", out.secret, SALT, [11, 0])
    w = model.invert(model.crops(photo, out.record.matrices))
    assert torch.allclose(out.record.codes, model.generator.codes.to_record(model.encrypt(w, keys)).cpu())
    opened = Record.open(Sealed.from_text(out.sealed.text.encode(), "x", "photo"), out.secret, "x")
    assert torch.equal(model.synthesize(model.generator.codes.to_w(opened.shown)), out.drawn)
    assert opened.turns == (11, 0) and model.restore(out, "pw").source == "codes"
    assert (model.restore(out, "pw").faces - model.synthesize(w)).abs().mean() < 0.01
    monkeypatch.setattr(recognizers, "at_hand", lambda *_: None)  # a face that fits may be the person's: the first
    assert model.protect(photo, "pw", salt=SALT).record.turns == (0, 0)


# The size of what is pasted


class Stripes(nn.Module):
    """A generator of stripes one pixel wide at every side it is asked for; codes move their contrast."""

    def __init__(self, codes):
        super().__init__()
        self.codes, self.asked = codes, []

    def forward(self, w, side=None):
        side = side or 32
        self.asked.append(side)
        stripes = (torch.arange(side) % 2 * 1.6 - 0.8).expand(len(w), 3, side, side)
        return stripes * w[:, 0, 0].tanh().abs().clamp_min(0.5)[:, None, None, None]


@pytest.fixture
def sided(model, monkeypatch):
    """A function that makes a model that draws 32, 64, 128 and 256 px, as "mobile" draws 128 to 1024."""
    monkeypatch.setattr("riddle.pipeline.SIDES", (32, 64, 128, 256))

    def make(**options):
        preset, generator = replace(SMOKE, generator="mobilestylegan"), Stripes(model.generator.codes)
        return Riddle(preset, generator, model.encoder, Reflection(), **options)

    return make


@pytest.mark.parametrize(("side", "drawn"), [(20, 32), (32, 32), (33, 64), (128, 128), (200, 256), (900, 256)])
def test_a_face_is_drawn_at_the_smallest_side_that_its_place_needs(sided, side, drawn):
    model, turned = sided(), np.array([[0.8, -0.6, 3], [0.6, 0.8, 5]]) * [side, side, 1]
    faces, large = model.draw(model.random_password(2, seed=0), np.stack([turned, turned]))
    assert faces.shape == (2, 3, 32, 32) and [f.shape for f in large] == [(3, drawn, drawn)] * 2
    assert model.generator.asked == ([32] if drawn == 32 else [32, drawn, drawn])


def test_a_large_face_in_the_photo_keeps_the_detail_of_its_side(sided, tmp_path):
    """Stripes of one pixel at 256 px, which an enlarged face of 32 px could not show, stand in the photo."""
    model = sided(detector=KnownFaces([FRAMED_POINTS * 256 + 71.5]))
    photo = Image.new("RGB", (400, 400), (120, 120, 120))
    out = model.protect(photo, "pw")
    back = model.restore(out.save(tmp_path / "out.png"), "pw")
    assert back.source == "codes" and out.drawn.shape == back.faces.shape == (1, 3, 32, 32)
    for result in (out, back):
        middle = np.asarray(result.image).astype(int)[150:250, 150:250].mean(2)
        assert np.abs(np.diff(middle, axis=1)).mean() > 10 > np.abs(np.diff(middle, axis=0)).mean()
    assert np.array_equal(np.asarray(back.image)[:60], np.asarray(photo)[:60])


# Loading


def test_load_smoke_is_seeded_and_leaves_the_random_state_alone():
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    with pytest.warns(UserWarning, match="random"):
        a, again = riddle.load("smoke"), torch.rand(1)
    with pytest.warns(UserWarning):
        b = riddle.load("smoke")
    assert torch.equal(again, expected) and a.weights_hash == b.weights_hash
    w = a.random_password(1, 0)
    assert torch.equal(a.synthesize(a.encrypt(w, "x")), b.synthesize(b.encrypt(w, "x")))
    with pytest.raises(ValueError, match="face129"):
        riddle.load("face129")


def test_load_from_a_folder(model, tmp_path):
    for name in ("generator", "encoder", "encryptor"):
        save_tensors(tmp_path / f"{name}.safetensors", getattr(model, name).state_dict())
    mlp = build_encryptor(SMOKE, "mlp", model.generator.codes)
    save_tensors(tmp_path / "encryptor_mlp.safetensors", mlp.state_dict(), {"kind": "mlp"})
    loaded = riddle.load("smoke", weights=tmp_path)
    w = model.random_password(2, 0)
    assert torch.allclose(loaded.synthesize(w), model.synthesize(w), atol=0.03)
    assert torch.allclose(loaded.encrypt(w, "pw"), model.encrypt(w, "pw"), atol=0.03)
    assert loaded.weights_hash != model.weights_hash  # half precision is other weights
    assert type(riddle.load("smoke", weights=tmp_path, encryptor="encryptor_mlp").encryptor) is MLPEncryptor
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(WeightsMissingError, match="encoder"):
        riddle.load("smoke", weights=tmp_path)
    save_tensors(tmp_path / "encoder.safetensors", mlp.state_dict())
    with pytest.raises(ValueError, match="do not fit"):
        riddle.load("smoke", weights=tmp_path)


def test_bundled_networks_hide_restore_and_deceive():
    """On the generator's own faces: the right password is far nearer in picture than a wrong one."""
    mobile = riddle.load("mobile")
    w = mobile.random_password(8, seed=123)
    key, wrong = mobile.random_password(2, seed=7).split(1)
    encrypted, face = mobile.encrypt(w, key), mobile.synthesize(w)

    def away(codes):
        return (mobile.synthesize(codes) - face).abs().mean().item()

    right = away(mobile.decrypt(encrypted, key))
    assert right < 0.5 * away(encrypted)
    assert right < 0.5 * away(mobile.decrypt(encrypted, wrong))
