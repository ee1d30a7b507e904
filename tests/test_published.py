"""Published files of weights, from small random networks in their layouts: what they give against the published
formulas, written out here; whole sizes on the meta device; and what is wrong with a bad file."""

import copy
import json
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_stylegan2 import naive_synthesize

import riddle
from riddle import published, weights
from riddle.app import cli
from riddle.app.cli import Exit
from riddle.assets import ASSETS
from riddle.models.bisenet import PUBLISHED_CLASSES, BiSeNet
from riddle.models.encryptor import build_encryptor
from riddle.models.inversion import Encoder
from riddle.models.irse import ArcFaceIR
from riddle.models.parsing import CLASSES
from riddle.models.stylegan2 import Generator
from riddle.presets import PRESETS, get
from riddle.published import blank, fitting, load, misfit
from riddle.weights import WeightsMissingError, bundled, find, load_tensors, locate

DIM, LEVELS = 64, (3, 3, 2)
SMALL = replace(
    get("ffhq256"), resolution=32, style_dim=DIM, levels=LEVELS, n_mlp=2, channels={4: 32, 8: 32, 16: 32, 32: 16},
    encoder_width=16, encoder_blocks=(1, 2, 1, 1), encoder_fpn=128, encoder_head=DIM,
)  # fmt: skip
GENERATOR, E4E, ENCRYPTOR = "stylegan2-ffhq-256.pt", "e4e_ffhq_encode_256.pt", "iteration_90000.pt"


def randomised(network, seed):
    """The network with every parameter and statistic drawn anew: none is 0 or 1, so that each is seen to count."""
    torch.manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and not name.endswith("kernel"):
            value.normal_(std=0.3 if value.ndim < 2 else 1.0 if "modulation" in name else 0.15)
            if name.endswith("modulation.bias"):
                value.add_(1)
    return network.eval()


# The published files, as their projects write them


def g_ema(generator, noises=True):
    left_out = ("codes.",) if noises else ("codes.", "noises.")
    return {k: v for k, v in generator.state_dict().items() if not k.startswith(left_out)}


def e4e(encoder, generator, counters=True, **more):
    """counters: False leaves out those of batch norms, as files from before PyTorch 0.4.1 do."""
    own = {f"encoder.{k}": v for k, v in encoder.state_dict().items() if k != "latent_avg"}
    own = {k: v for k, v in own.items() if counters or not k.endswith("num_batches_tracked")}
    state = own | {f"decoder.{k}": v for k, v in g_ema(generator).items()}
    opts = {"start_from_latent_avg": True, "stylegan_size": 32, "device": "cuda:0", "progressive_steps": [0, 20]}
    return {"state_dict": state, "latent_avg": encoder.latent_avg, "opts": opts} | more


def mapper(levels=LEVELS, dim=DIM, linear=True, slots=True):
    """`TransformerMapperSplit` of the authors, named as DETR's decoder layers are."""
    state = {}
    for i in range(len(levels)):
        for part in ("self_attn", "multihead_attn"):
            state[f"layers.{i}.{part}.in_proj_weight"] = torch.randn(3 * dim, dim) / dim**0.5
            state[f"layers.{i}.{part}.in_proj_bias"] = torch.randn(3 * dim)
            state[f"layers.{i}.{part}.out_proj.weight"] = torch.randn(dim, dim) / dim**0.5
            state[f"layers.{i}.{part}.out_proj.bias"] = torch.randn(dim)
        state[f"layers.{i}.linear1.weight"] = torch.randn(2 * dim, dim) / dim**0.5
        state[f"layers.{i}.linear1.bias"] = torch.randn(2 * dim)
        state[f"layers.{i}.linear2.weight"] = torch.randn(dim, 2 * dim) / dim**0.5
        state[f"layers.{i}.linear2.bias"] = torch.randn(dim)
        for k in (1, 2, 3):
            state[f"layers.{i}.norm{k}.weight"], state[f"layers.{i}.norm{k}.bias"] = torch.randn(dim), torch.randn(dim)
    for name in ("linear_ori", "linear_pwd") if linear else ():
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(dim, dim) / dim**0.5, torch.randn(dim)
    return state | ({"pos_embedding": torch.randn(sum(levels), 1, dim)} if slots else {})


def checkpoint(state, **opts):
    opts = {"transformer_normalize_type": "layernorm", "transformer_split_list": list(LEVELS)} | opts
    return {"mapper_state_dict": state, "opts": opts, "global_step": 90_000, "optimizer": {"state": {}}}


# The published formulas


def norm(s, name, x):
    return F.batch_norm(x, *(s.get(f"{name}.{k}") for k in ("running_mean", "running_var", "weight", "bias")))


def naive_body(s, x, stages):
    """An IR or IR-SE body from its state dict: the features after each stage; its first unit halves the side."""
    x = F.prelu(norm(s, "input_layer.1", F.conv2d(x, s["input_layer.0.weight"], padding=1)), s["input_layer.2.weight"])
    strides, kept = [stride for n in stages for stride in (2, *[1] * (n - 1))], []
    for i, stride in enumerate(strides):
        unit = f"body.{i}."
        short = x[:, :, ::stride, ::stride]
        if f"{unit}shortcut_layer.0.weight" in s:
            short = F.conv2d(x, s[f"{unit}shortcut_layer.0.weight"], stride=stride)
            short = norm(s, f"{unit}shortcut_layer.1", short)
        y = F.conv2d(norm(s, f"{unit}res_layer.0", x), s[f"{unit}res_layer.1.weight"], padding=1)
        y = F.prelu(y, s[f"{unit}res_layer.2.weight"])
        y = norm(s, f"{unit}res_layer.4", F.conv2d(y, s[f"{unit}res_layer.3.weight"], padding=1, stride=stride))
        if f"{unit}res_layer.5.fc1.weight" in s:
            gate = F.relu(F.conv2d(y.mean((2, 3), keepdim=True), s[f"{unit}res_layer.5.fc1.weight"]))
            y = y * torch.sigmoid(F.conv2d(gate, s[f"{unit}res_layer.5.fc2.weight"]))
        x = short + y
        if i + 1 in (sum(stages[: k + 1]) for k in range(4)):
            kept.append(x)
    return kept


def naive_recogniser(s, x, stages):
    y = norm(s, "output_layer.0", naive_body(s, x, stages)[-1]).flatten(1)
    y = norm(s, "output_layer.4", y @ s["output_layer.3.weight"].T + s["output_layer.3.bias"])
    return y / y.norm(dim=1, keepdim=True)


def naive_e4e(s, x, stages, slots):
    """e4e's forward pass from its state dict."""
    _, c1, c2, c3 = naive_body(s, x, stages)

    def lateral(name, small, large):
        y = F.conv2d(large, s[f"{name}.weight"], s[f"{name}.bias"])
        return F.interpolate(small, size=y.shape[2:], mode="bilinear", align_corners=True) + y

    def style(i, y):
        k = 0
        while f"styles.{i}.convs.{k}.weight" in s:
            y = F.conv2d(y, s[f"styles.{i}.convs.{k}.weight"], s[f"styles.{i}.convs.{k}.bias"], stride=2, padding=1)
            y, k = F.leaky_relu(y, 0.01), k + 2
        weight = s[f"styles.{i}.linear.weight"]
        return F.linear(y.flatten(1), weight / weight.shape[1] ** 0.5, s[f"styles.{i}.linear.bias"])

    p2 = lateral("latlayer1", c3, c2)
    p1 = lateral("latlayer2", p2, c1)
    base = style(0, c3)
    return torch.stack([base, *(base + style(i, c3 if i < 3 else p2 if i < 7 else p1) for i in range(1, slots))], 1)


def naive_bisenet(s, x):
    """face-parsing.PyTorch's logits of a picture (N, 3, 512, 512) as ImageNet's networks take it."""

    def convolved(name, x, stride=1, after=F.relu):
        weight = s[f"{name}.weight"]
        return after(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2))

    def block(name, x):
        return F.relu(norm(s, f"{name}.bn", convolved(f"{name}.conv", x, after=lambda y: y)))

    def plain(name, x, stride=1):
        return convolved(name, x, stride, lambda y: y)

    x = F.relu(norm(s, "cp.resnet.bn1", plain("cp.resnet.conv1", x, 2)))
    x, kept = F.max_pool2d(x, 3, 2, 1), []
    for stage in range(1, 5):
        for i in range(2):
            at, stride = f"cp.resnet.layer{stage}.{i}", 2 if stage > 1 and not i else 1
            y = F.relu(norm(s, f"{at}.bn1", plain(f"{at}.conv1", x, stride)))
            y = norm(s, f"{at}.bn2", plain(f"{at}.conv2", y))
            if f"{at}.downsample.0.weight" in s:
                x = norm(s, f"{at}.downsample.1", plain(f"{at}.downsample.0", x, stride))
            x = F.relu(x + y)
        kept.append(x)

    def refined(name, x):
        y = block(f"{name}.conv", x)
        gate = norm(s, f"{name}.bn_atten", plain(f"{name}.conv_atten", y.mean((2, 3), keepdim=True)))
        return y * torch.sigmoid(gate)

    def twice(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    _, eighth, sixteenth, last = kept
    context = refined("cp.arm32", last) + block("cp.conv_avg", last.mean((2, 3), keepdim=True))
    context = refined("cp.arm16", sixteenth) + block("cp.conv_head32", twice(context))
    y = block("ffm.convblk", torch.cat([eighth, block("cp.conv_head16", twice(context))], 1))
    gate = torch.sigmoid(plain("ffm.conv2", convolved("ffm.conv1", y.mean((2, 3), keepdim=True))))
    return plain("conv_out.conv_out", block("conv_out.conv", y + y * gate))


def naive_mapper(s, w, password, levels=LEVELS):
    """The authors' forward pass in evaluation, from its state dict: post-norm decoder layers with ReLU, by level."""

    def attention(name, asks, answers, heads=4):
        weights, biases = s[f"{name}.in_proj_weight"].chunk(3), s[f"{name}.in_proj_bias"].chunk(3)
        q, k, v = (x @ a.T + b for x, a, b in zip((asks, answers, answers), weights, biases, strict=True))
        out = []
        for part in torch.arange(q.shape[2]).chunk(heads):
            scores = q[:, :, part] @ k[:, :, part].transpose(1, 2) / len(part) ** 0.5
            out.append(scores.softmax(2) @ v[:, :, part])
        return torch.cat(out, 2) @ s[f"{name}.out_proj.weight"].T + s[f"{name}.out_proj.bias"]

    def layer_norm(name, x):
        x = (x - x.mean(2, keepdim=True)) / (x.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * s[f"{name}.weight"] + s[f"{name}.bias"]

    if "linear_ori.weight" in s:
        w = w @ s["linear_ori.weight"].T + s["linear_ori.bias"]
        password = password @ s["linear_pwd.weight"].T + s["linear_pwd.bias"]
    if "pos_embedding" in s:
        w = w + s["pos_embedding"][:, 0]
    made = []
    for i, (code, key) in enumerate(zip(w.split(levels, 1), password.split(levels, 1), strict=True)):
        code = layer_norm(f"layers.{i}.norm1", code + attention(f"layers.{i}.self_attn", code, code))
        code = layer_norm(f"layers.{i}.norm2", code + attention(f"layers.{i}.multihead_attn", code, key))
        hidden = F.relu(code @ s[f"layers.{i}.linear1.weight"].T + s[f"layers.{i}.linear1.bias"])
        made.append(
            layer_norm(
                f"layers.{i}.norm3", code + hidden @ s[f"layers.{i}.linear2.weight"].T + s[f"layers.{i}.linear2.bias"]
            )
        )
    return torch.cat(made, 1)


@pytest.fixture
def folder(home, monkeypatch):
    """A folder of weights on an empty machine, on which paper scale is small."""
    monkeypatch.setitem(PRESETS, "ffhq256", SMALL)
    monkeypatch.setenv("RIDDLE_WEIGHTS", str(home / "weights"))
    (home / "weights").mkdir()
    return home / "weights"


@pytest.fixture(scope="module")
def networks():
    """(generator, encoder, the authors' mapper as a state dict), random."""
    generator, encoder = randomised(Generator.of(SMALL), 1), randomised(Encoder(SMALL), 2)
    encoder.latent_avg.copy_(torch.randn(DIM).expand(sum(LEVELS), DIM))
    torch.manual_seed(3)
    return generator, encoder, mapper()


def put(folder, networks):
    """The authors' three files, the generator without noise maps."""
    generator, encoder, mapped = networks
    torch.save({"g_ema": g_ema(generator, noises=False), "args": Namespace(size=32)}, folder / GENERATOR)
    torch.save(e4e(encoder, generator, counters=False), folder / E4E)
    torch.save(checkpoint(mapped), folder / ENCRYPTOR)


def test_the_authors_files_give_a_model_that_computes_what_theirs_does(folder, networks):
    generator, encoder, mapped = copy.deepcopy(networks)
    with pytest.raises(WeightsMissingError, match="get riddle-encryptor256 .*python -m riddle weights"):
        riddle.load("ffhq256")
    put(folder, networks)
    model = riddle.load("ffhq256")
    x, key = torch.rand(2, 3, 32, 32) * 2 - 1, model.random_password(2, seed=5)
    state = encoder.state_dict()
    w = model.invert(x)
    expected = naive_e4e(state, x, SMALL.encoder_blocks, sum(LEVELS)) + state["latent_avg"]
    torch.testing.assert_close(w, expected, atol=1e-4, rtol=1e-4)
    encrypted = model.encrypt(w, key)
    torch.testing.assert_close(encrypted, naive_mapper(mapped, w, key), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        generator.noises.load_state_dict(model.generator.noises.state_dict())  # those that the file lacks
        drawn = naive_synthesize(generator, encrypted)
    assert drawn.std() > 0.1
    torch.testing.assert_close(model.synthesize(encrypted), drawn.clamp(-1, 1), atol=1e-4, rtol=1e-3)
    assert not torch.equal(model.encrypt(w, key), model.encrypt(w, key.flip(0)))
    own = folder.parent / "own"
    for part in ("generator", "encoder"):
        weights.save_tensors(own / f"{part}.safetensors", getattr(model, part).state_dict())
    trained = build_encryptor("ffhq256", "transformer", model.generator.codes)
    weights.save_tensors(own / "encryptor.safetensors", trained.state_dict(), {"kind": "transformer"})
    assert type(riddle.load("ffhq256", weights=own).encryptor) is type(trained)  # one's own comes first


def test_a_generator_keeps_its_noise_maps_or_has_the_same_ones_each_time(folder, networks):
    generator, _, _ = networks
    whole, lone = g_ema(generator), {k: v for k, v in g_ema(generator, False).items() if "kernel" not in k}
    drawn = []
    for state in (whole, lone, {f"module.{k}": v for k, v in lone.items()}):
        for content in ({"g_ema": state, "latent_avg": torch.zeros(DIM), "args": Namespace(iter=1)}, state):
            torch.save(content, folder / "550000.pt")
            found = load_tensors(find("stylegan2-ffhq256"))
            assert misfit(generator, found) == ""
            assert all(torch.equal(found[k], v) for k, v in (whole if state is whole else lone).items())
            drawn += [found] * (state is not whole)
    assert all(torch.equal(x[k], whole[k]) for x in drawn for k in whole if k.endswith("kernel"))
    maps = [k for k in whole if k.startswith("noises.")]
    assert all(torch.equal(x[k], drawn[0][k]) for x in drawn for k in maps)
    assert all(0.5 < drawn[0][k].std() < 1.5 for k in maps) and len({drawn[0][k][0, 0, 0, 0].item() for k in maps}) == 7


def test_without_its_own_file_a_generator_is_the_one_inside_e4e_and_not_another_projects(folder, networks):
    generator, encoder, _ = networks
    torch.save(e4e(encoder, generator), folder / E4E)
    torch.save({"g_ema": g_ema(randomised(Generator.of(SMALL), 9))}, folder / "550000.pt")
    inside = load_tensors(bundled("ffhq256", "generator"))
    assert all(torch.equal(inside[k], v) for k, v in g_ema(generator).items())
    (folder / E4E).unlink()
    shutil.rmtree(folder.parent / "cache")
    other = load_tensors(bundled("ffhq256", "generator"))
    assert not torch.equal(other["input.input"], inside["input.input"])


@pytest.mark.parametrize("options", [dict, lambda **k: Namespace(**k)], ids=["dict", "Namespace"])
@pytest.mark.parametrize("legacy", [False, True])
def test_latent_avg_has_any_of_its_shapes(tmp_path, networks, options, legacy):
    generator, encoder, _ = networks
    slots, path, mean = sum(LEVELS), tmp_path / "e4e.pt", torch.randn(DIM)
    rows = torch.randn(slots, DIM)
    for stored, wanted in (
        (mean, mean.expand(slots, DIM)), (mean[None], mean.expand(slots, DIM)), (rows, rows), (rows[None], rows),
        (mean.repeat(slots, 1), mean.expand(slots, DIM)),
    ):  # fmt: skip
        content = e4e(encoder, generator, latent_avg=stored, opts=options(start_from_latent_avg=True))
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert torch.equal(fitting(path, "e4e", SMALL)["encoder"]["latent_avg"], wanted)
    torch.save(e4e(encoder, generator, latent_avg=None, opts=options(start_from_latent_avg=False)), path)
    assert not fitting(path, "e4e", SMALL)["encoder"]["latent_avg"].any()
    torch.save(e4e(encoder, generator, opts=options(encoder_type="GradualStyleEncoder")), path)
    with pytest.raises(ValueError, match="e4e.pt: it holds a GradualStyleEncoder, whose names are those of e4e"):
        load(path)
    for bad in (None, torch.zeros(3, DIM)):
        torch.save(e4e(encoder, generator, latent_avg=bad), path)
        with pytest.raises(
            ValueError, match=r"e4e.pt: it is an e4e file whose latent_avg is .*, not \(64,\) or \(8, 64\)"
        ):
            load(path)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("slots", [True, False])
def test_the_released_encryptor_computes_what_theirs_does_with_any_of_its_options(tmp_path, linear, slots):
    torch.manual_seed(linear + 2 * slots)
    theirs, path = mapper(linear=linear, slots=slots), tmp_path / ENCRYPTOR
    torch.save(checkpoint({f"module.{k}": v for k, v in theirs.items()}), path)  # as several GPUs leave it
    network = blank("encryptor", SMALL).eval()
    network.load_state_dict(fitting(path, "encryptor", SMALL)["encryptor_released"])
    w, key = torch.randn(3, sum(LEVELS), DIM), torch.randn(1, 1, DIM).expand(1, sum(LEVELS), DIM)
    with torch.no_grad():
        torch.testing.assert_close(network(w, key), naive_mapper(theirs, w, key.expand_as(w)), atol=1e-4, rtol=1e-4)
        assert torch.equal(network(w, key), network(w, key))  # no dropout in use
        network.train()
        assert not torch.equal(network(w, key), network(w, key))  # and some in training


@pytest.mark.parametrize(("squeeze", "affine"), [(True, True), (False, False)], ids=["IR-SE", "CurricularFace's IR"])
def test_a_recogniser_computes_the_published_formula(squeeze, affine):
    network = randomised(ArcFaceIR((1, 2, 1, 1), squeeze, affine), 0)
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        expected = naive_recogniser(network.state_dict(), x, (1, 2, 1, 1))
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-4)
    assert expected[0] @ expected[1] < 0.999


def test_the_parser_computes_the_published_formula_in_our_order_of_classes(tmp_path):
    """From a file as several GPUs leave it, with the heads that only training needs."""
    network, file = randomised(BiSeNet(), 0), tmp_path / "79999_iter.pth"
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save(state | {"module.conv_out16.conv_out.weight": torch.zeros(19, 64, 1, 1)}, file)
    network = BiSeNet().eval()
    network.load_state_dict(fitting(file, "bisenet")["parser"])
    assert sorted(PUBLISHED_CLASSES) == sorted(CLASSES)
    x = F.interpolate(torch.rand(1, 3, 16, 16) * 2 - 1, 512, mode="bilinear")
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        logits = naive_bisenet(network.state_dict(), ((x + 1) / 2 - mean) / std)
        expected = F.interpolate(logits, 512, mode="bilinear", align_corners=True)
        own = network(x)
    for i, name in enumerate(PUBLISHED_CLASSES):
        torch.testing.assert_close(own[:, CLASSES.index(name)], expected[:, i], atol=1e-3, rtol=1e-3)
    assert expected.std() > 1e-2


def test_codes_are_read_as_they_were_published(folder, tmp_path):
    codes = torch.randn(5, sum(LEVELS), DIM)
    torch.save(codes, folder / "invert_w_256.pt")
    assert find("riddle-codes256") == folder / "invert_w_256.pt"
    assert torch.equal(published.load_codes(str(folder / "invert_w_256.pt"), SMALL), codes)
    torch.save(codes[:, 1:], folder / "invert_w_256.pt")
    with pytest.raises(
        ValueError, match=r"invert_w_256.pt: it holds codes .* \(N, 7, 64\), wanted \(N, 8, 64\); remove"
    ):
        find("riddle-codes256")


# Whole sizes


# {network: {name: shape}} of the published files, as their projects' code has them
PUBLISHED = json.loads((Path(__file__).parent / "golden" / "published_layouts.json").read_text())


@pytest.mark.parametrize("network", [name for name in PUBLISHED if name not in ("ciagan", "fit", "deepprivacy")])
def test_our_modules_have_the_published_names_and_shapes(network):
    layout, _, preset = network.partition(" ")
    with torch.device("meta"):
        state = blank(layout, preset and get(preset)).state_dict()
    left_out = ("num_batches_tracked", "codes.mean", "codes.basis", "codes.std", "codes.importance")
    assert {k: list(v.shape) for k, v in state.items() if not k.endswith(left_out)} == PUBLISHED[network]


@pytest.mark.parametrize("layout", ["irse50", "ir101", "sphereface20", "facenet", "bisenet", "e4e", "encryptor"])
def test_a_file_is_recognised_by_what_it_holds(tmp_path, layout):
    """Of one number per entry: the layout is told, and then that it does not fit."""
    with torch.device("meta"):
        keys = list(blank(layout, get("ffhq256")).state_dict())
    state = {k: torch.zeros(1) for k in keys}
    if layout == "e4e":
        state = {f"encoder.{k}": v for k, v in state.items()}
    path = tmp_path / "x.pth"
    torch.save(state | {"fc6.weight": torch.zeros(1), "logits.bias": torch.zeros(1)}, path)
    if layout == "e4e":
        torch.save({"state_dict": state, "latent_avg": torch.zeros(1)}, path)
    assert load(path)[0] == layout
    with pytest.raises(ValueError, match=r"x.pth: it holds .* of another size or make: shapes: "):
        fitting(path, layout, get("ffhq256"))
    for other in ("stylegan2", "codes"):
        with pytest.raises(ValueError, match=f"it holds {published.TITLES[layout]}, wanted {published.TITLES[other]}"):
            fitting(path, other, get("ffhq256"))


# What can be wrong


class Stranger:
    """An object that no file of weights holds."""


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def spot(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda p, g: p.write_text("\n <!DOCTYPE html><title>Google Drive - Quota exceeded"), "it is a web page"),
        (lambda p, g: (torch.save({"g_ema": g}, p), cut(p)), "it is damaged, cut off"),
        (lambda p, g: (torch.save({"g_ema": g}, p, _use_new_zipfile_serialization=False), cut(p)), "damaged, cut"),
        (lambda p, g: (torch.save({"g_ema": g}, p), spot(p)), "damaged, .*the checksum of .* differs"),
        (lambda p, g: p.write_bytes(b""), "damaged, cut off"),
        (lambda p, g: p.write_bytes(b"weights, surely"), "or no file of weights;"),
        (lambda p, g: torch.save({"g_ema": g, "x": Stranger()}, p), "it holds a test_published.Stranger beside"),
        (lambda p, g: torch.save([1, 2], p), "it holds a list, no network"),
        (lambda p, g: torch.save(torch.zeros(3), p), r"one tensor of shape \(3,\)"),
        (lambda p, g: torch.save({"a": torch.zeros(3), "b": 2}, p), "no network that is known here; its entries: a, b"),
        (lambda p, g: torch.save(checkpoint(mapper()), p), "it holds a released RiDDLE encryptor, wanted a StyleGAN2"),
        (lambda p, g: torch.save({"g_ema": dict(list(g.items())[4:])}, p), "another size or make: missing style.1"),
        (lambda p, g: torch.save(g_ema(Generator(16, {4: 32, 8: 32, 16: 32}, DIM, 2)), p),
         r"another size or make: missing convs.4\S+, convs.4\S+ and \d+ more"),
    ],
    ids=["web page", "cut", "cut, old format", "wrong bytes", "empty", "text", "objects", "list", "tensor", "unknown",
         "other network", "incomplete", "other size"],
)  # fmt: skip
def test_a_bad_file_is_told_with_path_cause_and_remedy(folder, networks, spoil, cause):
    path = folder / "550000.pt"
    spoil(path, g_ema(networks[0]))
    with pytest.raises(ValueError, match=cause) as caught:
        find("stylegan2-ffhq256")
    said = str(caught.value)
    assert said.startswith(str(path)) and "remove it, and get it from https://drive" in said
    assert not list((folder.parent / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("state", "opts", "cause"),
    [
        (mapper(), {"transformer_normalize_type": "instancenorm"}, "the normalisation 'instancenorm'"),
        ({k: v for k, v in mapper().items() if ".norm" not in k}, {}, "only 'layernorm'"),
        ({"model.0.weight": torch.zeros(2, 2)}, {}, "no network that is known here"),
        (mapper((2, 2, 2)), {}, r"pos_embedding is \(6, 1, 64\), wanted \(8, 1, 64\)"),
        (mapper((3, 3)), {}, "missing layers.2"),
    ],
)
def test_an_encryptor_of_another_make_is_refused(tmp_path, state, opts, cause):
    torch.save(checkpoint(state, **opts), tmp_path / ENCRYPTOR)
    with pytest.raises(ValueError, match=cause):
        fitting(tmp_path / ENCRYPTOR, "encryptor", SMALL)


# Found, checked and converted once


def run(*words):
    return cli.main(["weights", *map(str, words)])


def test_a_folder_is_imported_once_and_serves_without_it(home, networks, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "ffhq256", SMALL)
    downloads = home / "downloads"
    (downloads / "RiDDLE-assets").mkdir(parents=True)
    put(downloads / "RiDDLE-assets", networks)
    (downloads / "79999_iter.pth").write_text("<html>")
    (downloads / "readme.txt").write_text("x")
    monkeypatch.setitem(ASSETS, "bisenet", replace(ASSETS["bisenet"], sha256=None))
    assert run("import", downloads, "--json") == Exit.FAILED
    files = {item["name"]: item["error"] for item in json.loads(capsys.readouterr().out)["files"]}
    assert "web page" in files.pop("bisenet")
    assert files == dict.fromkeys(("riddle-generator256", "riddle-e4e256", "riddle-encryptor256"), "")
    made = {p: p.stat().st_mtime_ns for p in (home / "cache").rglob("*.safetensors")}
    assert len(made) == 4  # e4e holds two networks
    (downloads / "79999_iter.pth").unlink()
    torch.save({"features.0.weight": torch.ones(3)}, downloads / "vgg16-397923af.pth")  # of another size and sum
    assert run("import", downloads) == Exit.FAILED and "not the published file: " in capsys.readouterr().out
    assert locate("vgg16") is None and run("import", downloads, "--trust") == Exit.DONE
    with pytest.warns(UserWarning, match="vgg16: its file was imported with --trust"):
        assert find("vgg16").is_file()
    whole = (downloads / "vgg16-397923af.pth").read_bytes()
    (downloads / "vgg16-397923af.pth").write_bytes(whole[:-40])
    capsys.readouterr()
    assert run("import", downloads, "--trust") == Exit.FAILED and "damaged, cut off" in capsys.readouterr().out
    assert run("vgg16") == Exit.DONE and "imported with --trust: not the published" in capsys.readouterr().out
    (downloads / "vgg16-397923af.pth").unlink()
    capsys.readouterr()
    assert run("import", downloads) == Exit.DONE and "checked: " in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (home / "cache").rglob("*.safetensors")} == made
    shutil.rmtree(downloads)
    assert locate("riddle-e4e256") is not None
    assert torch.isfinite(riddle.load("ffhq256").random_password(1, 0)).all()
    assert run("riddle-e4e256") == Exit.DONE
    assert all(words in capsys.readouterr().out for words in ("e4e256/encoder.safetensors",))
    assert run("import", home / "weights") == Exit.USAGE and run("import") == Exit.USAGE
    assert "is no folder" in capsys.readouterr().err


def test_an_archive_is_told_and_gives_way_to_what_was_unpacked_beside_it(folder):
    (folder / "sphere20a_20171020.7z").write_bytes(b"7z\xbc\xaf\x27\x1c packed")
    with pytest.raises(ValueError, match=r"sphere20a_20171020.7z: it is a packed archive; unpack it beside with 7z"):
        find("sphereface20")
    (folder / "sphere20a_20171020.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"sphere20a_20171020.pth: it is damaged"):
        find("sphereface20")


def test_a_file_that_changed_is_converted_again(folder, networks):
    for seed in (4, 5):
        other = randomised(Generator.of(SMALL), seed)
        torch.save({"g_ema": g_ema(other), "x": "y" * seed}, folder / "550000.pt")
        found = load_tensors(find("stylegan2-ffhq256"))
        assert torch.equal(found["input.input"], other.input.input)


def test_files_placed_by_hand_are_checked_like_downloads(folder, networks, monkeypatch):
    """With a layout and without, by size and sha256."""
    torch.save({"g_ema": g_ema(networks[0])}, folder / "550000.pt")
    (folder / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"x")
    good = weights.sha256(folder / "550000.pt")
    asset = ASSETS["stylegan2-ffhq256"]
    for known, cause in (({"size": 7}, r"bytes, the published one 7"), ({"sha256": "0" * 64}, f"sha256 is {good}")):
        monkeypatch.setitem(ASSETS, asset.name, replace(asset, **known))
        with pytest.raises(ValueError, match=rf"550000.pt: .*{cause}.*remove it, and get it from"):
            find(asset.name)
    for known in ({"sha256": good}, {"sha256": "0" * 64, "copies": (good,)}):
        monkeypatch.setitem(ASSETS, asset.name, replace(asset, size=(folder / "550000.pt").stat().st_size, **known))
        assert find(asset.name).is_file()
    with pytest.raises(ValueError, match=r"squeezenet1_1-b8a52dc0.pth: it is damaged, or not the published file: its"):
        find("squeezenet1_1")
    (folder / "edgeface_xs.onnx").write_text("<!doctype html>")
    with pytest.raises(ValueError, match=r"edgeface_xs.onnx: it is a web page .*; remove it, and get it from"):
        find("edgeface-xs")


def test_a_conversion_that_was_stopped_or_spoilt_is_done_again(folder, networks, monkeypatch):
    generator, encoder, _ = networks
    torch.save(e4e(encoder, generator), folder / E4E)
    save, written = weights.save_tensors, []

    def stop(path, *rest, **options):
        written.append(path.name)
        if path.name == "encoder.safetensors":
            raise KeyboardInterrupt
        save(path, *rest, **options)

    monkeypatch.setattr(weights, "save_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        bundled("ffhq256", "generator")
    assert written == ["generator.safetensors", "encoder.safetensors"]
    monkeypatch.setattr(weights, "save_tensors", save)
    made = bundled("ffhq256", "encoder")
    made.write_bytes(made.read_bytes()[:100])
    assert load_tensors(bundled("ffhq256", "encoder")).keys() == encoder.state_dict().keys()


def test_the_list_says_address_size_sha256_terms_and_place(home, capsys):
    assert run() == Exit.DONE
    text = capsys.readouterr().out
    for asset in ASSETS.values():
        assert asset.address in text and asset.licence in text and (asset.sha256 or "") in text
    assert "1,201.6 MB" in text and "drive.google.com/drive/folders/1lSudT5-eHi1W6ne2mCRLcE1QU539jsi5" in text
    assert run("e4e-ffhq1024", "--json") == Exit.DONE
    (item,) = json.loads(capsys.readouterr().out)["networks"]
    assert (item["size"], item["here"]) == (1201649680, False) and len(item["sha256"]) == 64
