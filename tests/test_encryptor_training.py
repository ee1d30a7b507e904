"""Training the encryptor: the loss of equations 1 to 10, its helper, its variants, and a short training that works."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from riddle.losses import PAPER_WEIGHTS, PerceptualFeatures, random_lpips
from riddle.models import curvature
from riddle.models.encryptor import POSE, SOFTENED, build_encryptor
from riddle.models.inversion import build_encoder
from riddle.models.stylegan2 import Generator
from riddle.presets import ALL_VARIANTS, VARIANTS, get
from riddle.training import cost, encryptor, passes
from riddle.training import frozen as inputs
from riddle.training.encryptor import EncryptorConfig, EncryptorTask, encrypt_and_decrypt, evaluate
from riddle.training.frozen import LossNetworks, draw_codes, draw_keys
from riddle.training.helper import CodeRecogniser
from riddle.training.loop import make_accelerator, run
from riddle.weights import load_metadata, load_tensors, save_tensors

TRAINED = [name for name, variant in ALL_VARIANTS.items() if variant.trained]


pytestmark = pytest.mark.usefixtures("own_precision")


@pytest.fixture(scope="module")
def frozen():
    """A random smoke generator and loss networks that read the picture directly: enough to train against in seconds."""
    torch.manual_seed(0)
    g = Generator.of(get("smoke")).eval().requires_grad_(False)
    g.codes.measure(g.map, n=2000)
    project = torch.randn(3 * 16, 32) / 7

    def embed(faces):
        small = nn.functional.adaptive_avg_pool2d(faces.float(), 4).flatten(1)
        small = small - small.mean(1, keepdim=True)
        return nn.functional.normalize(small @ project, dim=1)

    return g, LossNetworks(embed=embed, parse=lambda faces: faces[:, :2].float())


def random_codes(n=4):
    return torch.randn(n, 8, 64)


def make_task(out, frozen, held_out=None, **changes):
    settings = {"steps": 1, "batch": 4, "save_every": 10, "log_every": 10, "bfloat16": False}
    parts = {k: changes.pop(k) for k in ("encoder", "inverted") if k in changes}
    config = EncryptorConfig(out=str(out), preset="smoke", **(settings | changes))
    accelerator = make_accelerator(config)
    torch.manual_seed(0)
    return EncryptorTask(config, accelerator, *frozen, random_codes() if held_out is None else held_out, **parts)


def test_both_passes_use_the_right_keys(frozen):
    """With code + key to encrypt and code - key to decrypt, only the right password brings the code back."""

    class Adder(nn.Module):
        calls = 0

        def forward(self, w, key):
            self.calls += 1
            return w + key if self.calls == 1 else w - key

    w, keys = random_codes(3), draw_keys(frozen[0], 3, m=2, n=3)
    assert keys.shape == (3, 2, 4, 8, 64)
    assert len({round(v, 5) for v in keys[..., 0, 0].flatten().tolist()}) == 24  # all m (n + 1) distinct
    encrypted, recovered, wrong = encrypt_and_decrypt(Adder(), w, keys)
    assert recovered.shape == (3, 2, 8, 64) and torch.allclose(recovered, w[:, None].expand_as(recovered), atol=1e-5)
    assert torch.allclose(encrypted[2, 1], w[2] + keys[2, 1, 0])
    assert torch.allclose(wrong.unflatten(1, (2, 3))[1, 0, 2], w[1] + keys[1, 0, 0] - keys[1, 0, 3], atol=1e-5)


def test_the_loss_is_eq_10_over_all_images_and_reaches_only_the_encryptor(frozen, tmp_path):
    task, (g, networks) = make_task(tmp_path, frozen), frozen
    w, keys = draw_codes(g, 2), draw_keys(g, 2, 2, 2)
    total, terms = task.losses(w, keys)
    codes = torch.cat(encrypt_and_decrypt(task.network, w, keys), 1)
    expected, people, among = 0.0, [], 0.0
    for b in range(2):
        x, e0 = g(w[b : b + 1])[0], networks.embed(g(w[b : b + 1]))[0]
        y = g(codes[b])
        e = networks.embed(y)
        changed = torch.cat([e[:2], e[4:]])
        people.append(changed)
        among += (changed[0] @ changed[1]).clamp_min(0) / 2 / 2  # eq. 2 of two faces, mean of two originals
        cos = (changed @ changed.T).clamp_min(0)
        expected += (cos.sum() - cos.diagonal().sum()) / 36
        expected += (changed @ e0).clamp_min(0).sum() + (1 - e[2:4] @ e0).sum()
        for k in range(8):
            expected += 0.05 * (y[k] - x).abs().mean() + 0.1 * (y[k, :2] - x[:2]).square().mean()
            expected += 0.01 * (codes[b, k] - w[b]).square().mean()
    assert total.item() == pytest.approx(expected.item() / 2, rel=1e-4)
    total.backward()
    assert all(p.grad is not None for p in task.network.parameters())
    assert all(p.grad is None for p in g.parameters())
    assert set(terms) == {"diversity", "deidentification", "recovery", "pixel", "lpips", "parsing", "latent"}
    alike = (people[0] * people[1]).sum(1).clamp_min(0).mean()  # two people under one password
    with_linked, _ = make_task(tmp_path, frozen, linked=3.0).losses(w, keys)
    assert with_linked.item() == pytest.approx(total.item() + 3 * alike.item(), rel=1e-3)
    with_apart, _ = make_task(tmp_path, frozen, apart=4.0).losses(w, keys)
    assert with_apart.item() == pytest.approx(total.item() + 4 * among.item(), rel=1e-3)


def test_originals_that_are_compared_share_their_passwords(frozen, tmp_path, monkeypatch):
    """i and i + B / 2; only so many passwords are drawn. Every process needs whole pairs of its own."""
    task, drawn = make_task(tmp_path, frozen, linked=1.0), []
    monkeypatch.setattr(encryptor, "draw_keys", lambda *a: drawn.append(draw_keys(*a)) or drawn[-1])
    monkeypatch.setattr(task, "losses", lambda w, keys: drawn.append(keys) or (w.sum(), {}))
    task.loss({"w": random_codes(4)}, 0.5)
    assert len(drawn[0]) == 2 and torch.equal(drawn[1], torch.cat([drawn[0], drawn[0]]))
    for processes, parts, batch, wanted in ((1, 1, 3, 2), (2, 1, 6, 4), (1, 2, 6, 4)):
        accelerator = SimpleNamespace(num_processes=processes, device=torch.device("cpu"))
        config = EncryptorConfig(out="", preset="smoke", linked=1.0, batch=batch, accumulate=parts)
        with pytest.raises(ValueError, match=f"of a batch, here 3; give a --batch that is a multiple of {wanted}"):
            EncryptorTask(config, accelerator, *frozen, random_codes())


def test_recovery_from_published_pixels_is_by_the_right_password_and_teaches_both_passes(frozen, tmp_path, monkeypatch):
    """An encoder that reads the very code of what is shown: then it is eq. 4 of the face that this code opens to."""
    (g, networks), seen = frozen, []

    class Reader(nn.Module):
        def forward(self, faces):
            assert faces is seen[-1][0]
            return self.code.detach() + (faces.mean() - faces.mean().detach())

    reader = Reader()
    task = make_task(tmp_path, frozen, pixels=3.0, weights=dict.fromkeys(PAPER_WEIGHTS.as_dict(), 0.0), encoder=reader)
    w, keys = draw_codes(g, 2), draw_keys(g, 2, 2, 2)
    encrypted = encrypt_and_decrypt(task.network, w, keys)[0][:, 0]
    reader.code = encrypted
    monkeypatch.setattr(encryptor, "publish", lambda faces, under: seen.append((faces, under)) or faces)
    total, terms = task.losses(w, keys)
    assert torch.allclose(seen[0][0], g(encrypted), atol=1e-4) and torch.allclose(seen[0][1], g(w), atol=1e-4)
    opened = networks.embed(g(task.network(encrypted, keys[:, 0, 0])))
    expected = (1 - (opened * networks.embed(g(w))).sum(1)).mean()
    assert terms["recovery_pixels"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert total.item() == pytest.approx(3 * expected.item(), rel=1e-3)
    through = torch.autograd.grad(total, seen[0][0])[0]
    assert through.abs().amax((1, 2, 3)).gt(0).all()  # the picture's gradient reaches the first pass
    assert "recovery_pixels" not in make_task(tmp_path, frozen).losses(w, keys)[1]


def test_curvature_changes_the_gradient_and_no_loss(frozen, tmp_path, monkeypatch):
    """Directions that bend much get a smaller gradient; the loss is the same."""
    task = make_task(tmp_path, frozen)
    w, keys = draw_codes(frozen[0], 2), draw_keys(frozen[0], 2, 2, 2)
    gradients, totals = [], []
    for bends in (False, True):
        if bends:
            monkeypatch.setattr(curvature, "RANK", 512)
            task.curvature = curvature.Curvature(8, 64)
            task.curvature.size.fill_(1e6)
        total, _ = task.losses(w, keys)
        gradients.append(torch.autograd.grad(total, task.network.output.weight)[0].norm().item())
        totals.append(total.item())
    assert totals[1] == pytest.approx(totals[0], rel=1e-3) and gradients[1] < 1e-3 * gradients[0]


def test_evaluation_of_the_identity_map_says_that_nothing_is_protected(frozen):
    g, networks = frozen
    numbers = evaluate(lambda w, key: w, g, random_codes(5), networks.embed, draw_keys(g, 5, 3, 1))
    for name in ("encrypted", "recovered", "wrong", "pairs"):
        assert numbers[f"cos_{name}"] == pytest.approx(1.0, abs=1e-4)
    assert numbers["accepted_encrypted"] == numbers["accepted_recovered"] == 1.0 and numbers["pairs_apart"] == 0.0


def test_no_more_faces_are_drawn_at_a_time_than_have_so_many_pixels(frozen, tmp_path, monkeypatch):
    """Whatever m, n and the resolution are; the numbers and the samples stay the same."""
    task, drawn = make_task(tmp_path, frozen), []
    whole, samples = task.validate(), task.samples()
    monkeypatch.setattr(passes, "PIXELS", 3 * 32**2)
    hook = frozen[0].register_forward_hook(lambda *a: drawn.append(len(a[2])))
    assert task.validate() == pytest.approx(whole, abs=1e-5)
    assert torch.allclose(task.samples(), samples, atol=1e-4)
    hook.remove()
    assert max(drawn) == 3 and sum(drawn) == 4 * (1 + 3 + 3 + 3) + 4 * 5
    assert [len(part) for part in passes.portions(torch.zeros(5, 1, 1), 1024)] == [1] * 5


def test_parts_and_recomputed_activations_change_the_memory_alone(frozen, tmp_path, monkeypatch):
    """Under the same passwords: the gradient to rounding. Recomputing holds one face's activations of eight."""
    g, networks = frozen
    networks = replace(networks, perceive=PerceptualFeatures.of(random_lpips()).eval().requires_grad_(False))
    reader = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(1), nn.Linear(192, 512), nn.Unflatten(1, (8, 64)))
    w, keys, found = draw_codes(g, 4), draw_keys(g, 4, 2, 2), []
    monkeypatch.setattr(encryptor, "publish", lambda faces, under: faces)  # it draws, and a share of the rows each way
    for options in ({}, {"accumulate": 2}, {"checkpoint": True}):
        task = make_task(tmp_path, (g, networks), encoder=reader, apart=1.0, pixels=1.0, **options)
        rest, numbers = iter(keys), {}
        with monkeypatch.context() as patch:
            patch.setattr(
                encryptor, "draw_keys", lambda g, b, *_, rest=rest: torch.stack([next(rest) for _ in range(b)])
            )
            held, _ = cost.peak(lambda task=task, numbers=numbers: numbers.update(task.gradients({"w": w}, 0.5)))
        found.append((torch.cat([p.grad.flatten() for p in task.network.parameters()]), numbers, held))
    (gradient, numbers, held), *others = found
    assert min(numbers[k] for k in ("lpips", "parsing", "pixel", "recovery_pixels", "apart")) > 0
    for other, same, _ in others:
        assert (gradient - other).norm() < 1e-3 * gradient.norm()
        assert {k: v.item() for k, v in same.items()} == pytest.approx(
            {k: v.item() for k, v in numbers.items()}, rel=1e-4
        )
    assert others[0][2] < 0.6 * held and others[1][2] < 0.4 * held


def test_the_memory_of_a_step_grows_with_the_originals_at_once():
    def released():
        torch.ones(1 << 20)
        torch.ones(1 << 20)

    assert cost.peak(released)[0] == 4 << 20
    assert cost.peak(lambda: (torch.ones(1 << 20), torch.ones(1 << 19)))[0] == 6 << 20
    config = EncryptorConfig(out="", preset="smoke", bfloat16=False, m=1, n=1)
    task, weights = cost.random_task(config)
    one, four = (cost.peak(lambda b=b: task.gradients({"w": task.held_out.repeat(b, 1, 1)}, 0.5))[0] for b in (1, 4))
    assert weights > 5 * sum(4 * p.numel() for p in task.network.parameters()) and 3 < four / one < 4.1


def test_training_pushes_identities_away(frozen, tmp_path):
    torch.set_num_threads(1)
    codes = frozen[0].broadcast(frozen[0].map(torch.randn(12, 64))).clone()
    options = {"steps": 20, "batch": 2, "lr": 3e-3, "warmup": 0.1, "n": 1, "ema": 0.8}
    task = make_task(tmp_path, frozen, codes[8:], **options, weights={"pixel": 0.0, "parsing": 0.0})
    before = task.validate()
    run(task, {"w": codes[:8]})
    apart, apart_before = ((e["cos_encrypted"] + e["cos_wrong"]) / 2 for e in (task.validate(), before))
    assert apart < apart_before - 0.005
    log = (tmp_path / "log.jsonl").read_text()
    assert '"val_accepted_encrypted"' in log and '"recovery"' in log
    assert task.samples().shape == (20, 3, 32, 32)


def test_codes_of_nobody_are_of_three_kinds(frozen):
    g = frozen[0]
    made = draw_codes(g, 300, seed=2)
    assert torch.equal(made, draw_codes(g, 300, seed=2)) and made.shape == (300, 8, 64)
    assert (made[::3] == made[::3, :1]).all()  # one code in every slot
    assert {len(code.unique(dim=0)) for code in made[1::3]} == {2}  # two of them
    z = g.codes.to_gaussian(made[2::3])
    assert 0.2 < (z - z.mean(1, keepdim=True)).std() < 0.5 and z.std() == pytest.approx(1, abs=0.15)


def test_a_helper_in_code_space_comes_first_alone_and_then_stands_beside(frozen, tmp_path):
    task = make_task(tmp_path, frozen, helper=0.3, helper_only=0.4, lr=0.0)
    batch = {"w": draw_codes(frozen[0], 2)}
    assert [task.part(x) for x in (0.0, 0.2, 0.4, 0.7, 1.0)] == pytest.approx([0, 0.5, 0, 0.5, 1])  # two warm-ups
    for progress, alone in ((0.0, True), (0.39, True), (0.4, False), (1.0, False)):
        task.centre.zero_()
        torch.manual_seed(3)
        numbers = task.step(batch, progress)
        assert "code_apart" in numbers and ("recovery" in numbers) == (not alone)
        task.centre.zero_()
        torch.manual_seed(3)
        expected = 0.0 if alone else task.losses(batch["w"], draw_keys(frozen[0], 2, 2, 2))[0]
        expected = expected + (1.0 if alone else 0.3) * task.helper(alone)[0]
        assert numbers["loss"].item() == pytest.approx(expected.item(), rel=1e-3) and numbers["gradient"] > 0


def test_the_helper_sees_inverted_faces_beside_the_losses_alone(frozen, tmp_path, monkeypatch):
    task = make_task(tmp_path, frozen, helper=0.3)
    task.inverted = draw_codes(frozen[0], 1, seed=9)
    known, seen = frozen[0].codes.to_gaussian(task.inverted), []
    change = task.network.change
    monkeypatch.setattr(task.network, "change", lambda z, key: (seen.append(z), change(z, key))[1])
    for alone, share in ((True, 0.0), (False, 0.5)):
        seen.clear()
        task.helper(alone)
        inverted = (seen[0] - known).abs().amax((1, 2)).lt(1e-4)
        assert inverted.float().mean() == share
        assert torch.equal(*inverted.chunk(2))  # two originals that share passwords are of one kind


def test_a_share_of_the_originals_lies_between_two_training_faces_or_is_shortened(frozen, tmp_path):
    """Along the arc between their codes, so that a code keeps its length; or by 0.5 to 1, in the same direction."""
    task, space = make_task(tmp_path, frozen, blend=0.5), frozen[0].codes
    ends = F.normalize(torch.randn(2, 8, 64), dim=-1) * 8
    ends[1] -= ends[0] * (ends[0] * ends[1]).sum(-1, keepdim=True) / 64  # at a right angle to the first
    ends[1] = F.normalize(ends[1], dim=-1) * 8
    task.inverted, w = space.to_w(ends[1:]), space.to_w(ends[:1]).expand(200, -1, -1)
    z = space.to_gaussian(task.blended(w))
    along, across = (z * ends[0]).sum(-1) / 64, (z * ends[1]).sum(-1) / 64
    assert torch.allclose(along**2 + across**2, torch.ones(200, 8), atol=1e-3)
    assert 0.35 < (across[:, 0].abs() < 1e-3).float().mean() < 0.65 and across.max() > 0.9
    task = make_task(tmp_path, frozen, shrink=0.5)
    task.inverted = space.to_w(ends[:1])
    factors = space.to_gaussian(task.blended(w)) / ends[0]
    factor = factors.median(2).values.mean(1)
    assert ((factors - factor[:, None, None]) * ends[0]).abs().max() < 2e-2  # one factor for the whole code
    assert 0.35 < (factor > 0.999).float().mean() < 0.65 and 0.5 <= factor.min() < 0.6
    assert make_task(tmp_path, frozen).blended(w) is w


def test_variants_differ_in_one_thing_and_weights_are_the_papers(tmp_path):
    full = VARIANTS["riddle"]
    for name in TRAINED:
        changed = {k for k in ("arch", "datafree", "diversity") if getattr(ALL_VARIANTS[name], k) != getattr(full, k)}
        assert len(changed) == (name != "riddle"), name
        weights = EncryptorConfig(out="", variant=name, weights={"recovery": 3}).loss_weights.as_dict()
        expected = PAPER_WEIGHTS.as_dict() | {"recovery": 3.0} | ({"diversity": 0.0} if name == "nodiv" else {})
        assert weights == expected
    for wrong, said in (
        ({"variant": "untrained"}, "unknown variant"),
        ({"helper_only": 1.2}, "--helper-only is a share"), ({"weights": {"speed": 1}}, "unknown loss weight speed"),
        ({"held_out": 0}, "--held-out 0: give 1 or more"),
        ({"lpips": "resnet"}, "unknown network --lpips 'resnet'; choose one of squeeze, alex, vgg"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            EncryptorConfig(out="", **wrong)


@pytest.fixture
def command(frozen, monkeypatch, tmp_path):
    """A function that trains a smoke variant for a step by the command line; its folder."""
    monkeypatch.setattr(encryptor, "frozen_networks", lambda *a: train.asked.append(a) or frozen)
    codes = tmp_path / "codes.npy"
    np.save(codes, frozen[0].broadcast(frozen[0].map(torch.randn(64, 64))).numpy())

    def train(variant, *more):
        words = ["--preset", "smoke", "--variant", variant, "--out", str(tmp_path / variant), "--steps", "1"]
        words += [] if variant == "datafree" else ["--codes", str(codes)]
        assert encryptor.main([*words, "--no-bfloat16", *more])["step"] == 1
        return tmp_path / variant

    train.asked = []  # what is asked of `frozen_networks`
    return train


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_leaves_its_configuration_with_the_weights(command, frozen, name):
    """What Table 5 compares: the options that all variants share, hashes of files, no path of this machine."""
    out, variant = command(name, "--weights", "recovery=3"), ALL_VARIANTS[name]
    file = out / "encryptor.safetensors"
    about, record = load_metadata(file), json.loads(load_metadata(file)["ablation"])
    assert (about["kind"], about["datafree"], about["steps"]) == (variant.arch, str(variant.datafree), "1")
    assert (record["variant"], record["label"], record["diversity"]) == (name, variant.label, variant.diversity)
    assert (record["shared"]["batch"], record["shared"]["minutes"]) == (2, "inf")
    assert variant.datafree or len(record["files"]["codes"]) == 12
    assert str(out) not in about["ablation"] and str(out.parent) not in about["ablation"]
    weights = json.loads(about["weights"])
    assert (weights["diversity"], weights["recovery"]) == (float(variant.diversity), 3.0)
    build_encryptor("smoke", variant.arch, frozen[0].codes).load_state_dict(load_tensors(file))


def test_the_network_of_lpips_is_chosen_and_recorded(command, frozen, monkeypatch):
    out = command("nodiv", "--lpips", "vgg", "--accumulate", "2", "--checkpoint")
    shared = json.loads(load_metadata(out / "encryptor.safetensors")["ablation"])["shared"]
    assert shared["lpips"] == "vgg" and not {"accumulate", "checkpoint"} & shared.keys()  # these change no result
    monkeypatch.setattr(inputs, "load_lpips", random_lpips)
    monkeypatch.setattr(inputs, "frozen_generator", lambda *a: frozen[0])
    monkeypatch.setattr(inputs.recognizers, "load", lambda *a, **k: SimpleNamespace(from_crop=None, threshold=0.3))
    perceive = inputs.frozen_networks(get("smoke"), "", "cpu", None, command.asked[-1][-1])[1].perceive
    assert [x.shape[1] for x in perceive.raw(torch.zeros(1, 3, 32, 32))] == [64, 128, 256, 512, 512]


def test_the_authors_checkpoint_goes_on_from_their_own_files(command, frozen, tmp_path):
    theirs = build_encryptor("smoke", "released", frozen[0].codes).state_dict()
    torch.save({"mapper_state_dict": theirs, "opts": {}, "global_step": 90_000}, tmp_path / "iteration_90000.pt")
    torch.save(torch.from_numpy(np.load(tmp_path / "codes.npy")), tmp_path / "invert_w_256.pt")
    given = ("--start", str(tmp_path / "iteration_90000.pt"), "--codes", str(tmp_path / "invert_w_256.pt"))
    out = load_tensors(command("released", *given, "--ema", "0") / "encryptor.safetensors")
    moved = {k: (out[k] - v.half().float()).abs().max().item() for k, v in theirs.items()}
    assert max(moved.values()) < 0.01 and max(moved.values()) > 0  # one step from there


def test_the_coupling_measures_the_training_codes_once_and_not_when_it_goes_on(command, frozen, tmp_path):
    out, codes = command("coupling"), torch.from_numpy(np.load(tmp_path / "codes.npy"))
    z = frozen[0].codes.to_gaussian(codes[:-48])[..., POSE:]
    file = out / "encryptor.safetensors"
    size = load_tensors(file)["size"]
    assert torch.allclose(size, z.square().mean((0, 1)).sqrt() ** SOFTENED, rtol=2e-3) and (size - 1).abs().max() > 0.05
    held = tmp_path / "codes.npy"  # all of them are training's now: S would be another
    out = command("coupling", "--start", str(file), "--val-codes", str(held), "--out", str(tmp_path / "on"))
    assert torch.equal(load_tensors(tmp_path / "on" / "encryptor.safetensors")["size"], size)


def test_the_encoder_reads_published_pixels_by_its_weights(command, frozen, tmp_path):
    file = tmp_path / "encoder.safetensors"
    save_tensors(file, build_encoder(get("smoke"), frozen[0]).state_dict(), {})
    out = command("riddle", "--pixels", "2", "--encoder", str(file), "--log-every", "1")
    assert json.loads((out / "log.jsonl").read_text())["recovery_pixels"] > 0
    record = json.loads(load_metadata(out / "encryptor.safetensors")["ablation"])
    assert record["shared"]["pixels"] == 2 and len(record["files"]["encoder"]) == 12


def test_the_recogniser_of_codes_learns_beside_the_encryptor_and_is_kept(command, tmp_path):
    file = tmp_path / "code_judge.safetensors"
    save_tensors(file, CodeRecogniser(8, 64, 32, 16).state_dict(), {})
    out = command("riddle", "--code-judge", str(file), "--helper-only", "1", "--log-every", "1")
    numbers = json.loads((out / "log.jsonl").read_text())
    assert -1 <= numbers["guess"] <= 1 and numbers["guessed_apart"] > 0 and "recovery" not in numbers
    kept = torch.load(out / "state.pt", weights_only=True)["networks"]["judge"]
    assert not torch.equal(kept["second.weight"], load_tensors(file)["second.weight"])


def test_files_that_are_not_there_are_named(command):
    with pytest.raises(FileNotFoundError, match="--val-codes: nowhere.npy"):
        command("nodiv", "--val-codes", "nowhere.npy")
    with pytest.raises(SystemExit, match="--codes is needed"):
        encryptor.main(["--preset", "smoke", "--out", "x"])
