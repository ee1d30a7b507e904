"""Recognisers: each network against an independent reference, alignment, the fixed map of the losses, the rules."""

from dataclasses import replace
from functools import cache

import facenet_pytorch
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from riddle.assets import ASSETS
from riddle.data import load as load_photos
from riddle.evaluation.recognition import embed
from riddle.faces import recognizers
from riddle.faces.alignment import crop, crop_points, framing_matrix, similarity
from riddle.faces.detection import Face, dlib_models, load_detector
from riddle.images import to_tensor
from riddle.models.fixed_map import ARCFACE_POINTS, FRAMED_POINTS, fixed_map
from riddle.models.mobilefacenet import ConvBlock, FrozenPReLU, merged
from riddle.models.onnx_network import OnnxNetwork
from riddle.models.sphereface import SphereFace20
from riddle.weights import WeightsMissingError, find

MEASURES = ("dlib", "arcface-mobilefacenet", "edgeface-xs", "mobilefacenet-casia", "mobileface-v2")


@cache
def need(name):
    """The recogniser, loaded once; skips where its weights are absent."""
    if (reason := recognizers.available([name])[name]) is not None:
        pytest.skip(f"{name}: {reason}; set RIDDLE_WEIGHTS")
    return recognizers.load(name)


def noise(n, size, seed=0):
    """Pictures (n, size, size, 3) uint8: smooth, so that embeddings differ."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (n, 3, 9, 9)))
    smooth = F.interpolate(coarse, size, mode="bicubic").clamp(0, 255).round()
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


# Networks


def test_dlib_port_gives_dlibs_own_numbers():
    import dlib

    recogniser = need("dlib")
    reference = dlib.face_recognition_model_v1(str(dlib_models() / "dlib_face_recognition_resnet_model_v1.dat"))
    chips = noise(3, 150)
    got = recogniser.embed(to_tensor(chips))
    np.testing.assert_allclose(got.numpy(), [reference.compute_face_descriptor(c) for c in chips], atol=1e-5)
    assert got.norm(dim=1).sub(1).abs().min() > 1e-3  # raw, not unit length


def test_dlib_chip_has_dlibs_geometry():
    """A spot in the photo appears where dlib.get_face_chip has it, to a fifth of a pixel."""
    import dlib

    def centroid(chip):
        weight = np.clip(np.asarray(chip, float)[:, :, 0] - 30, 0, None)
        v, u = np.mgrid[0:150, 0:150]
        return np.array([(weight * u).sum(), (weight * v).sum()]) / weight.sum()

    recogniser, rng = need("dlib"), np.random.default_rng(0)
    y, x = np.mgrid[0:512, 0:512]
    for degrees in (0, 25, -70, 180):
        a, scale = np.deg2rad(degrees), rng.uniform(0.9, 1.7)
        turn = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        landmarks = rng.uniform(0, 511, (68, 2)).round()  # jaw, brows and lower lip must not count
        landmarks[recognizers.CHIP_INDICES] = (recognizers.CHIP_POINTS - 75) @ turn.T + 256
        landmarks = (landmarks + rng.normal(0, 3, landmarks.shape)).round()
        parts = [dlib.point(int(u), int(v)) for u, v in landmarks]
        shape = dlib.full_object_detection(dlib.rectangle(0, 0, 511, 511), parts)
        for _ in range(4):
            px, py = 256 + rng.uniform(-50, 50, 2) * scale
            spot = 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (4 * scale) ** 2))
            photo = np.repeat(spot.round().astype(np.uint8)[:, :, None], 3, axis=2)
            ours = recogniser.align(Image.fromarray(photo), landmarks[:5], landmarks)
            theirs = dlib.get_face_chip(photo, shape, 150, 0.25)
            assert np.abs(centroid(ours) - centroid(theirs)).max() < 0.2


def test_mobilefacenet_equals_the_onnx_file():
    recogniser, onnx = need("arcface-mobilefacenet"), find("arcface-mobilefacenet").with_suffix(".onnx")
    if not onnx.is_file():
        pytest.skip("no .onnx file of it beside the weights")
    faces = to_tensor(noise(4, 112))
    with torch.no_grad():
        ours = recogniser.embed(faces)
        np.testing.assert_allclose(ours, OnnxNetwork(onnx)(faces), atol=1e-5)
    assert (ours @ ours.T - torch.eye(4)).abs().max() > 0.05  # the four pictures do not coincide


def test_a_block_of_mobilefacenet_equals_convolution_norm_and_prelu():
    torch.manual_seed(0)
    numbers = [torch.rand(6) + 0.5 for _ in range(4)]
    state = dict(zip(("running_mean", "running_var", "weight", "bias"), numbers, strict=True))
    state = {f"dw.bn.{k}": v for k, v in state.items()} | {"dw.prelu.weight": torch.linspace(-0.3, 1.2, 6)}
    state["dw.conv.weight"] = torch.randn(6, 1, 3, 3)
    block, x = ConvBlock(6, 6, 3, 2, 1, groups=6).requires_grad_(False), torch.randn(2, 6, 8, 8)
    block.load_state_dict({k.removeprefix("dw."): v for k, v in merged(state).items()})
    y = F.batch_norm(F.conv2d(x, state["dw.conv.weight"], None, 2, 1, groups=6), *numbers, eps=0)
    torch.testing.assert_close(block(x), F.prelu(y, state["dw.prelu.weight"]), atol=1e-5, rtol=1e-5)


def test_gradient_of_the_frozen_prelu():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=torch.double, requires_grad=True)
    slope = torch.tensor([0.2, -0.1, 1.3, 0.0], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda t: FrozenPReLU.apply(t, slope), x)


def test_sphereface_equals_its_layers_written_out():
    torch.manual_seed(0)
    net = SphereFace20().eval()
    p = dict(net.named_parameters())
    x = torch.rand(1, 3, 112, 112) * 2 - 1

    def layer(name, t, stride=1):
        y = F.conv2d(t, p[f"conv{name}.weight"], p[f"conv{name}.bias"], stride, 1)
        return torch.where(y > 0, y, y * p[f"relu{name}.weight"].view(-1, 1, 1))

    y = (x[:, [2, 1, 0], :, 8:104] * 127.5 + 127.5 - 127.5) / 128
    for stage, pairs in enumerate((["23"], ["23", "45"], ["23", "45", "67", "89"], ["23"]), 1):
        y = layer(f"{stage}_1", y, 2)
        for a, b in pairs:
            y = y + layer(f"{stage}_{b}", layer(f"{stage}_{a}", y))
    assert y.shape == (1, 512, 7, 6)
    e = y.flatten(1) @ p["fc5.weight"].T + p["fc5.bias"]
    torch.testing.assert_close(net(x), e / e.norm(), atol=1e-5, rtol=1e-4)


def test_published_weights_load_and_wrong_ones_are_named(home, monkeypatch):
    """Those of SphereFace and FaceNet, which has its own scaling of pixels."""
    monkeypatch.setenv("RIDDLE_WEIGHTS", str(home))
    (home / "recognizers").mkdir()
    torch.manual_seed(0)
    sphere, facenet, pixels = SphereFace20().eval(), facenet_pytorch.InceptionResnetV1().eval(), noise(2, 160)
    scaled = facenet_pytorch.fixed_image_standardization(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    for name, net, more, file, x, expected in (
        ("sphereface20", sphere, "fc6.weight", "sphere20a_20171020.pth", to_tensor(noise(2, 112)), None),
        ("facenet-vggface2", facenet, "logits.weight", "20180402-114759-vggface2.pt", to_tensor(pixels), scaled),
    ):
        monkeypatch.setitem(ASSETS, name, replace(ASSETS[name], size=None, sha256=None))
        state = {f"module.{k}": v for k, v in net.state_dict().items()} | {f"module.{more}": torch.zeros(512, 3)}
        torch.save(state, home / "recognizers" / file)
        with torch.no_grad():
            expected = net(x if expected is None else expected)
            torch.testing.assert_close(recognizers.load(name).embed(x), expected, atol=1e-5, rtol=1e-3)
            missing = list(state)[1].removeprefix("module.")
            del state[f"module.{missing}"]
        torch.save(state, home / "recognizers" / file)
        with pytest.raises(ValueError, match=rf"{file}: it holds .* of another size or make: missing {missing}"):
            recognizers.load(name)


# Alignment


@pytest.mark.parametrize("name", ["dlib", "facenet-casia", "irse50"])
@pytest.mark.parametrize("side", [128, 256])
def test_fixed_map_lands_an_average_face_on_the_targets(name, side):
    spec = recognizers.SPECS[name]
    rows, columns = fixed_map(side, tuple(map(tuple, spec.targets.tolist())), spec.size, spec.stretch)
    y, x = np.mgrid[0:side, 0:side]
    expected = [spec.targets[0], spec.targets[1], spec.targets[3:].mean(0)]
    for (u, v), target in zip(FRAMED_POINTS * side - 0.5, expected, strict=True):
        spot = torch.from_numpy(np.exp(-((x - u) ** 2 + (y - v) ** 2) / 50 * (256 / side) ** 2)).float()
        out = (rows @ spot @ columns.T).double().numpy()
        ty, tx = np.mgrid[0 : spec.size, 0 : spec.size]
        found = np.array([(out * tx).sum(), (out * ty).sum()]) / out.sum()
        assert np.abs(found - target).max() < 0.02 * spec.size  # the targets are no exact similarity of the average
    torch.testing.assert_close(rows.sum(1), torch.ones(spec.size))  # a flat picture stays flat


def test_gradients_reach_the_face_and_onnx_says_that_it_has_none():
    identity = need("arcface-mobilefacenet")
    x = to_tensor(noise(2, 64)).requires_grad_(True)
    target = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    (identity.from_crop(x) * target).sum().backward()
    step = 2e-2 * x.grad / x.grad.norm()
    with torch.no_grad():
        ahead, behind = (identity.from_crop(x + s * step) * target for s in (1, -1))
    assert ((ahead - behind).sum() / 2).item() == pytest.approx((x.grad * step).sum().item(), rel=0.1)
    with pytest.raises(TypeError, match="no gradients"):
        need("edgeface-xs").from_crop(x)


def test_a_face_is_aligned_by_its_own_points():
    photo, points = Image.fromarray(noise(1, 80)[0]), ARCFACE_POINTS * 0.7 + 3
    m = similarity(ARCFACE_POINTS, points)  # the crop's pixels -> the picture's
    matrix = np.c_[m[:, :2] * 112, m[:, :2] @ [-0.5, -0.5] + m[:, 2]]
    assert need("edgeface-xs").align(photo, points) == crop(photo, matrix, 112)


# Rules and errors


def test_similarities_are_cosine_and_minus_distance_for_arrays_and_tensors():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 8)), rng.normal(size=(4, 8))
    a[3] = np.nan
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    distances = [-np.linalg.norm(x - y) for x, y in zip(a, b, strict=True)]
    for make in (np.asarray, torch.from_numpy):
        np.testing.assert_allclose(recognizers.similarity_of("irse50")(make(a), make(b)), cosines)
        np.testing.assert_allclose(recognizers.similarity_of("dlib")(make(a), make(b)), distances)
    assert recognizers.SPECS["dlib"].threshold == -0.6


def test_absent_weights_are_a_reason_and_an_error(home, monkeypatch):
    monkeypatch.setenv("RIDDLE_OFFLINE", "1")
    reasons = recognizers.available()
    assert set(reasons) == set(recognizers.NAMES)
    assert reasons["dlib"] is None  # its weights come with an installed package
    assert all(reasons[n] for n in ("edgeface-xs", "irse50", "curricularface-ir101", "facenet-casia"))
    with pytest.raises(WeightsMissingError, match="irse50"):
        recognizers.load("irse50")
    with pytest.raises(KeyError, match="unknown recogniser 'vgg'"):
        recognizers.load("vgg")
    with pytest.raises(ValueError, match="dlib takes"):
        recognizers.load("dlib").embed(torch.zeros(1, 3, 112, 112))


# Real faces


@pytest.fixture(scope="module")
def portraits(real_data):
    """(photo, face) of 24 people of CelebA-HQ's validation split: photos with room around the face."""
    data, detector = load_photos("celebamask_hq", "val"), load_detector("dlib")
    photos = [data.image(n).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS) for n in data.names[:24]]
    return [(p, f[0]) for p in photos if (f := detector.detect(p))]


@pytest.mark.parametrize("name", MEASURES)
def test_a_128_px_crop_keeps_the_identity(portraits, name):
    """Photo and its framed crop are the same person, by own points and by the fixed map; others are not."""
    recogniser = need(name)
    aligned = [np.asarray(recogniser.align(p, f.points, f.landmarks)) for p, f in portraits]
    photo = recogniser.embed(to_tensor(np.stack(aligned)))
    matrices = [framing_matrix(f.points) for _, f in portraits]
    pixels = np.stack([np.asarray(crop(p, m, 128)) for (p, _), m in zip(portraits, matrices, strict=True)])
    own = [
        Face(f.box, 1.0, crop_points(f.points, m, 128), crop_points(f.landmarks, m, 128), "dlib")
        for (_, f), m in zip(portraits, matrices, strict=True)
    ]
    measured = recogniser.similarity(photo, torch.from_numpy(embed({name: recogniser}, pixels, own)[name]))
    fixed = recogniser.similarity(photo, recogniser.from_crop(to_tensor(pixels)))
    first, second = np.triu_indices(len(photo), 1)
    strangers = recogniser.similarity(photo[first], photo[second])
    assert (measured > recogniser.threshold).float().mean() > 0.95
    assert (fixed > recogniser.threshold).float().mean() > 0.9
    assert (strangers > recogniser.threshold).float().mean() < (0.1 if name == "dlib" else 0.02)
    if recogniser.distance == "cosine":
        assert measured.mean() > 0.82 and fixed.mean() > 0.8
        assert torch.isclose(photo.norm(dim=1), torch.ones(len(photo)), atol=1e-5).all()
