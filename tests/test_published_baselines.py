"""The published networks of CIAGAN, FIT and DeepPrivacy: files in the layouts of their authors' code, built here from
random numbers, against the published formulas; what stands around the networks; a file of another network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_published import PUBLISHED as PUBLISHED_LAYOUTS

from riddle.baselines import BASELINES, PUBLISHED, random_keys, regions
from riddle.baselines import published as authors
from riddle.baselines.published import ciagan, deepprivacy
from riddle.models.anonymisers import DeepPrivacyGenerator, spots
from riddle.models.parsing import CLASSES
from riddle.published import load
from riddle.weights import WeightsMissingError

pytestmark = pytest.mark.usefixtures("own_precision")
FILES = {"ciagan": "modelG.pth", "fit": "checkpoint.pth.tar", "deepprivacy": "deep_privacy_V1.ckpt"}


@pytest.fixture
def folder(home, monkeypatch):
    """A folder of weights on an empty machine, on which DeepPrivacy's network is narrow."""
    monkeypatch.setenv("RIDDLE_WEIGHTS", str(home / "weights"))
    monkeypatch.setattr(DeepPrivacyGenerator, "WIDTHS", (16, 16, 12, 12, 8, 8))
    monkeypatch.setattr(DeepPrivacyGenerator, "LAST", 4)
    (home / "weights").mkdir()
    authors.load.cache_clear()
    yield home / "weights"
    authors.load.cache_clear()


@pytest.fixture
def points(monkeypatch):
    """The 68 points of every face: a face of 60 px with its outline, brows, nose, eyes and mouth."""
    around = np.linspace(np.pi, 0, 17)
    at = np.full((68, 2), 64.0)
    at[:17] = np.stack([64 + 30 * np.cos(around), 64 + 42 * np.sin(around)], 1)
    at[17:27] = np.stack([np.linspace(40, 88, 10), np.full(10, 52.0)], 1)
    at[27:31] = [(64, y) for y in (60, 66, 72, 78)]
    at[36:42], at[42:48], at[39], at[42] = (48, 60), (80, 60), (56, 60), (72, 60)
    around = np.linspace(-np.pi, np.pi, 9)[:8]
    at[60:68] = np.stack([64 + 10 * np.cos(around), 92 + 3 * np.sin(around)], 1)
    for module in (ciagan, deepprivacy):
        monkeypatch.setattr(module, "landmarks", lambda faces: np.stack([at] * len(faces)))
    return at


# ---- the layouts, as the authors' code writes them


def drawn(name):
    """A random state dict with the names and shapes of the authors' file; what it holds is about as large as theirs."""
    state = {}
    for key, shape in PUBLISHED_LAYOUTS[name].items():
        state[key] = torch.randn(shape)
        if key.endswith(("_u", "_v")):
            state[key] /= state[key].norm()
        elif len(shape) == 1:
            state[key] = 0.3 * state[key] + key.endswith("weight")
        elif name != "deepprivacy" and shape[1] != 1200:  # DeepPrivacy's network scales them; 1200: one of them is 1
            state[key] *= ((len(shape) == 2) + 1) ** 0.5 / state[key][0].numel() ** 0.5
    for key in [k.removesuffix("_orig") for k in state if k.endswith("_orig")]:
        u, v, weight = (state[f"{key}_{part}"] for part in ("u", "v", "orig"))
        state[f"{key}_orig"] = 0.1 * weight + torch.outer(u, v).view(weight.shape)
    return state


def ciagan_file():
    state = drawn("ciagan")
    return state, state


def fit_file():
    trained = {"state": {0: {"step": 5, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    rest = {"epoch": 29, "iter": 0, "state_dict_D": {"a": torch.zeros(1)}, "optimizer_G": trained}
    return (state := drawn("fit")), {"state_dict_G": state} | rest


def deepprivacy_file():
    state = drawn("deepprivacy")
    return state, {"running_average_generator": state, "G": {"x": torch.zeros(1)}, "D": {}, "global_step": 3}


LAYOUTS = {"ciagan": ciagan_file, "fit": fit_file, "deepprivacy": deepprivacy_file}


# ---- the published formulas


def naive_ciagan(s, x, identity):
    def reflected(name, x):
        w, u, v = (s[f"{name}.conv2d.weight_{part}"] for part in ("orig", "u", "v"))
        w = w / (u * (w.flatten(1) * v).sum(1)).sum()
        pad = w.shape[-1] // 2
        return F.conv2d(F.pad(x, (pad,) * 4, mode="reflect"), w, s[f"{name}.conv2d.bias"])

    def instance(name, x):
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        return x * s[f"{name}.weight"][:, None, None] + s[f"{name}.bias"][:, None, None]

    def twice(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    for i in range(5):
        right = reflected(f"conv{i}.conv_r2", F.relu(reflected(f"conv{i}.conv_r1", F.relu(x))))
        x = instance(f"in{i}_e", F.avg_pool2d(reflected(f"conv{i}.conv_l", x), 2) + F.avg_pool2d(right, 2))
    told = identity
    for i in range(0, 14, 2):
        told = F.leaky_relu(told @ s[f"encode_one_hot.{i}.weight"].T + s[f"encode_one_hot.{i}.bias"], 0.2)
    told = told.view(-1, 32, 4, 4)
    for i in range(0, 9, 3):
        told = instance(f"encode_noise.{i + 2}", F.leaky_relu(reflected(f"encode_noise.{i}", told), 0.2))
    x = instance("embed.1", reflected("embed.0", torch.cat([x, told], 1)))
    for i in range(1, 5):
        y = F.relu(instance(f"res{i}.in1", reflected(f"res{i}.conv1", x)))
        x = x + instance(f"res{i}.in2", reflected(f"res{i}.conv2", y))
    for i in (4, 3, 2, 1, 0):
        name = f"deconv{i}"
        y = reflected(f"{name}.conv_r1", twice(F.relu(instance(f"{name}.norm_r1", x))))
        y = reflected(f"{name}.conv_r2", F.relu(instance(f"{name}.norm_r2", y)))
        x = instance(f"in{i}_d", reflected(f"{name}.conv_l", twice(x)) + y)
    return F.conv2d(x, s["conv_end.0.weight"], s["conv_end.0.bias"], padding=1)


def naive_fit(s, x, bits):
    def layer(at, x, stride=1):
        w = s[f"model.{at}.weight"]
        return F.conv2d(F.pad(x, (w.shape[-1] // 2,) * 4, mode="reflect"), w, s.get(f"model.{at}.bias"), stride)

    def batch(at, x):
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        return x * s[f"model.{at}.weight"][:, None, None] + s[f"model.{at}.bias"][:, None, None]

    x = torch.cat([x, (bits / 2)[:, :, None, None].repeat(1, 1, *x.shape[2:])], 1)
    for at in (1, 5, 9):
        x = F.relu(batch(at + 1, layer(at, x, 1 if at == 1 else 2)))
    for i in range(12, 21):
        y = F.relu(batch(f"{i}.conv_block.2", layer(f"{i}.conv_block.1", x)))
        x = x + batch(f"{i}.conv_block.6", layer(f"{i}.conv_block.5", y))
    for at in (23, 28):
        x = F.relu(batch(at + 1, layer(at, x.repeat_interleave(2, 2).repeat_interleave(2, 3))))
    return torch.tanh(layer(32, x))


def naive_deepprivacy(s, x, points, noise):
    def scaled(name, x):
        w = s[f"{name}.weight"]
        w = w * 2**0.5 / w[0].numel() ** 0.5
        return F.conv2d(x, w, s[f"{name}.bias"], padding=w.shape[-1] // 2)

    def act(name, x):
        x = F.leaky_relu(scaled(name, x), 0.2)
        return x / ((x**2).mean(1, keepdim=True) + 1e-7).sqrt()

    def block(name, x):
        return act(f"{name}.layers.3", act(f"{name}.layers.0", x))

    def told(side):
        maps = torch.zeros(len(points), 7, side, side)
        for n, of_face in enumerate(points.tolist()):
            for k, (px, py) in enumerate(of_face):
                if 0 <= px < 1 and 0 <= py < 1:
                    maps[n, k, int(py * side), int(px * side)] = 1
        return maps

    x, kept = act("encoder.from_rgb.conv.0", x), {}
    for i in (5, 4, 3, 2, 1, 0):
        kept[i] = block(f"encoder.basic_block{i}", x)
        x = F.avg_pool2d(kept[i], 2)
    x = act("decoder.conv1x1.conv.0", torch.cat([kept[0], told(4), noise], 1))
    for i in range(6):
        if i:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = act(f"decoder.skip_connection{i}.conv.layers.0", torch.cat([x, kept[i], told(4 << i)], 1))
        x = block(f"decoder.basic_block{i}", x)
    return scaled("to_rgb", x)


NAIVE = {"ciagan": naive_ciagan, "fit": naive_fit, "deepprivacy": naive_deepprivacy}


def inputs(name):
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    if name == "ciagan":
        return torch.rand(2, 6, 128, 128), F.one_hot(torch.tensor([3, 700]), 1200).float()
    if name == "fit":
        return x, torch.where(torch.rand(2, 16) > 0.5, 1.0, -1.0)
    return x, torch.rand(2, 7, 2) * 1.4 - 0.2, torch.randn(2, 32, 4, 4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_file_gives_the_network_of_the_published_formula(folder, name):
    torch.manual_seed(0)
    state, content = LAYOUTS[name]()
    torch.save(content, folder / FILES[name])
    assert load(folder / FILES[name])[0] == name
    network, given = authors.load(name), inputs(name)
    expected = NAIVE[name](state, *given)
    ours = (given[0], given[1] / 2) if name == "fit" else given
    torch.testing.assert_close(network(*ours), expected, atol=1e-3, rtol=1e-3)
    assert expected.std() > 0.1 and (expected[0] - expected[1]).abs().max() > 0.1
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def test_weights_that_spectral_norm_already_divided_are_taken_and_lost_vectors_told(folder):
    """As PyTorch before 1.1 leaves a file."""
    state, content = ciagan_file()
    for name in [k.removesuffix("_v") for k in state if k.endswith("_v")]:
        del state[f"{name}_v"]
    torch.save(content, folder / FILES["ciagan"])
    with pytest.raises(
        ValueError, match=r"modelG.pth: it lacks \S+weight_u or \S+weight_v.*remove it, and get it from"
    ):
        authors.load("ciagan")
    old = {k.replace("_orig", ""): torch.full_like(v, 0.5) for k, v in state.items() if k.endswith("_orig")}
    torch.save(content | old, folder / FILES["ciagan"])
    assert (authors.load("ciagan").embed[0].conv2d.weight == 0.5).all()


def test_without_the_file_the_remedy_is_its_address_and_another_network_is_refused(folder, monkeypatch):
    monkeypatch.setenv("RIDDLE_OFFLINE", "1")
    faces, keys = torch.zeros(1, 3, 128, 128), random_keys(1, 0)
    for name, source in (("ciagan", "1j5iT-"), ("fit", "1b8vSWgWYJPUmcrMr2ROLhQVRD0RMcftx"), ("deepprivacy", "loke")):
        with pytest.raises(WeightsMissingError, match=f"not on this machine, and .*; get it from .*{source}"):
            PUBLISHED[name].protect(faces, keys)
    torch.save(fit_file()[1], folder / FILES["ciagan"])
    with pytest.raises(ValueError, match="it holds FIT's generator, wanted CIAGAN's generator"):
        PUBLISHED["ciagan"].protect(faces, keys)


def test_the_tables_keep_the_bundled_networks():
    assert PUBLISHED.keys() <= BASELINES.keys() and not {p.label for p in PUBLISHED.values()} & {
        s.label for s in BASELINES.values()
    }
    assert [s.file for s in BASELINES.values() if s.file] == ["ciagan", "fit", "personal", "deepprivacy"]


# ---- around the networks


def test_ciagans_frame_and_drawings_are_those_of_its_program(points):
    place = ciagan.frame(points)
    assert place.tolist() == [64, 60, 80 * 178 / 218, 80]  # five times the 16 px between the inner corners
    lines, mask = ciagan.drawings(points, place)
    assert lines.shape == (3, 128, 128) and mask.shape == (1, 128, 128)

    def seen(x, y):  # a point of the face in the 128 px that the network sees of the squeezed frame
        at = ((np.array([x, y]) - place[:2]) / place[2:] + 1) / 2 * 144 - 8
        return int(at[1]), int(at[0])

    chin, inside, above = seen(64, 106), seen(64, 80), seen(64, 46)
    assert mask[0][seen(64, 55)] == 1 == mask[0][inside] and mask[0][above] == 0 and mask[0][seen(28, 80)] == 0
    assert 0.1 < mask.mean() < 0.4 and (lines[:, 2, 2] == 1).all()
    rows = lines[0, chin[0] - 2 : chin[0] + 3, chin[1]]
    assert rows.min() < 0.5 and (lines[2] > lines[0] - 0.05).all()  # blue lines on white
    assert lines[0, :, inside[1]].lt(0.6).sum() >= 15  # the bridge of the nose and the lips


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_face_is_replaced_in_its_place_by_the_keys_choice(folder, points, monkeypatch, name):
    torch.manual_seed(0)
    torch.save(LAYOUTS[name]()[1], folder / FILES[name])
    seen = torch.full((2, 128, 128), CLASSES.index("hair"), dtype=torch.uint8)
    seen[:, 40:100, 38:90] = CLASSES.index("skin")
    monkeypatch.setattr(deepprivacy, "frozen_parsing_net", lambda *a: lambda faces: seen[: len(faces)])
    monkeypatch.setattr(deepprivacy, "labels", lambda x: x)
    faces, system = torch.rand(1, 3, 128, 128).repeat(2, 1, 1, 1) * 2 - 1, PUBLISHED[name]
    out = system.protect(faces, torch.tensor([5, 6]))
    assert out.shape == faces.shape and out.abs().max() <= 1 and (out[0] - out[1]).abs().max() > 1e-3
    assert torch.equal(system.protect(faces, torch.tensor([5, 6])), out)
    if name == "fit":
        expected = authors.load(name)(out, -0.5 * ((torch.tensor([5, 6])[:, None] >> torch.arange(16)) % 2 * 2 - 1))
        torch.testing.assert_close(system.restore(out, torch.tensor([5, 6])), expected, atol=1e-4, rtol=0)
        return
    changed = (out != faces).any(1)
    assert changed[:, 60:90, 50:78].all() and not changed[:, :, :20].any() and not changed[:, 115:].any()
    hidden = faces.clone()
    where = (regions.box(seen) if name == "deepprivacy" else changed[:1, None].expand(2, -1, -1, -1).float()) == 1
    hidden[where.expand(-1, 3, -1, -1)] = 0.3
    again = system.protect(hidden, torch.tensor([5, 6]))
    if name == "deepprivacy":  # nothing of what the box hides was seen
        assert torch.equal(again, out)
    with pytest.raises(ValueError, match=rf"{name} takes faces \(N, 3, 128, 128\)"):
        system.protect(faces[..., :64], torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="published weights keeps nothing to restore from"):
        system.restore(out, torch.tensor([5, 6]))


def test_a_drawn_face_lands_where_its_mask_was(folder, points, monkeypatch):
    """A network that returns what CIAGAN's is shown: the face outside the mask is where it was."""
    monkeypatch.setattr(ciagan, "load", lambda name: lambda seen, identity: seen[:, 3:] + (seen[:, 3:] == 0) * 0.5)
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    faces = torch.stack([x, y, x + y]).div(300)[None] + 0.1
    out = ciagan.protect(faces, random_keys(1, 0))
    inner = out[0, :, 75:85, 60:68]
    torch.testing.assert_close(inner, torch.zeros_like(inner), atol=1e-3, rtol=0)  # grey inside
    assert torch.equal(out[..., :30, :], faces[..., :30, :]) and torch.equal(out[..., 118:, :], faces[..., 118:, :])


def test_keypoints_are_told_in_the_published_order(points):
    told = deepprivacy.keypoints(points)
    expected = torch.tensor([(64, 78), (49.33, 60), (78.67, 60), (34, 64), (94, 64)]) + 0.5
    torch.testing.assert_close(told[:5] * 128, expected, atol=0.01, rtol=0)
    maps = spots(told[None], 128)[0]
    assert maps[0, 78, 64] == 1 and maps.sum((1, 2)).tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_a_face_that_dlib_does_not_find_has_its_points_at_the_usual_place():
    points = authors.landmarks(torch.zeros(1, 3, 128, 128))[0]
    assert points.shape == (68, 2) and np.abs(points[36:48].mean(0) - [64, 61]).max() < 2
    assert 20 < points[:17, 0].min() < 48 and 80 < points[:17, 0].max() < 108 and 90 < points[8, 1] < 125
