"""The encryptors: shapes, statistics, what depends on what, and a short training that works."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from riddle.allocator import keep_memory
from riddle.losses import PAPER_WEIGHTS, LossWeights
from riddle.models.encryptor import (
    Attention,
    DecoderBlock,
    LatentEncryptor,
    MLPEncryptor,
    build_encryptor,
    code_statistics,
)
from riddle.models.stylegan2 import Generator
from riddle.presets import PRESETS, get
from riddle.training.encryptor import (
    EncryptorConfig,
    EncryptorTask,
    draw_keys,
    encrypt_and_decrypt,
    evaluate,
    parse_arguments,
    read_weights,
)
from riddle.training.judges import Judges, load_network
from riddle.training.loop import LoopConfig, make_accelerator, run


@pytest.fixture(autouse=True)
def _fresh():
    """A known seed, and no accelerator left by another test: its precision could not be changed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)


def built(preset, *args, **kwargs):
    """An encryptor, over eigenfaces with orthonormal directions drawn for it."""
    net = build_encryptor(preset, *args, **kwargs)
    if net.n_inner:
        net.inner = torch.linalg.qr(torch.randn(get(preset).base * net.style_dim, net.n_inner))[0]
    return net


def random_codes(preset, n=4):
    return torch.randn(n, preset.n_latent, preset.style_dim)


@pytest.mark.parametrize("name", ["smoke", "mini", "face128"])
@pytest.mark.parametrize("arch", ["transformer", "mlp"])
def test_codes_keep_their_shape_at_each_scale(name, arch):
    preset = get(name)
    net = built(name, arch)
    w, key = random_codes(preset), random_codes(preset)
    assert net(w, key).shape == w.shape
    assert torch.allclose(net(w, key[:1]), net(w, key[:1].expand_as(key)), atol=1e-6)


def test_attention_equals_the_written_out_sum():
    net = Attention(8, 2)
    q, m = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    query, (key, value) = net.query(q)[0], net.key_value(m)[0].chunk(2, -1)
    rows = []
    for s in range(3):
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            score = torch.stack([query[s, part] @ key[t, part] / 2.0 for t in range(5)]).softmax(0)  # sqrt 4
            heads.append(sum(score[t] * value[t, part] for t in range(5)))
        rows.append(net.output(torch.cat(heads)))
    assert torch.allclose(net(q, m)[0], torch.stack(rows), atol=1e-5)


def test_decoder_block_equals_torchs_own_with_the_same_weights():
    ours = DecoderBlock(16, 4)
    ref = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=False)
    for mine, theirs in ((ours.self_attention, ref.self_attn), (ours.cross_attention, ref.multihead_attn)):
        theirs.in_proj_weight.data = torch.cat([mine.query.weight, mine.key_value.weight]).data.clone()
        theirs.in_proj_bias.data = torch.cat([mine.query.bias, mine.key_value.bias]).data.clone()
        theirs.out_proj.load_state_dict(mine.output.state_dict())
    ref.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    ref.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    code, password = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    assert torch.allclose(ours(code, password), ref(code, password), atol=1e-5)


def test_a_password_slot_acts_on_its_own_level_only():
    preset = get("mini")
    net = build_encryptor(preset)
    w, key = random_codes(preset, 1), random_codes(preset, 1)
    other = key.clone()
    other[:, 0] += 1.0  # a coarse slot
    moved = (net.change(w, other) - net.change(w, key)).abs().amax((0, 2))
    coarse = preset.levels[0]
    assert (moved[:coarse] > 1e-6).all() and moved[coarse:].max() == 0


def test_statistics_standardise_and_destandardise():
    w = 5 + 3 * torch.randn(4096, 64)
    mean, std = code_statistics(w)
    net = LatentEncryptor(64, (3, 3, 2), w_mean=mean, w_std=std)
    plain = LatentEncryptor(64, (3, 3, 2))
    statistics = ("w_mean", "w_std", "key_mean", "key_std")
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k not in statistics}, strict=False)
    x, key = random_codes(get("smoke")), random_codes(get("smoke"))
    wanted = plain(x, key) * std + mean
    assert torch.allclose(net(x * std + mean, key * std + mean), wanted, atol=1e-4)
    net.standardise_keys(mean - 3, 2 * std)  # passwords may be distributed otherwise than codes
    assert torch.allclose(net(x * std + mean, key * 2 * std + mean - 3), wanted, atol=1e-4)


def cosine_of_turned(net, a, b):
    """Mean cosine of the numbers that the reflection is to change, without sign."""
    a, b = net.coordinates(a), net.coordinates(b)
    if net.n_inner:
        a, b = (x[:, : len(net.inner) // net.style_dim].flatten(1) @ net.inner for x in (a, b))
    return torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean().abs()


@pytest.mark.parametrize("name", ["smoke", "mini"])
def test_training_starts_near_a_reflection_which_undoes_itself(name):
    preset = get(name)
    w, key, wrong = random_codes(preset, 32), random_codes(preset, 32), random_codes(preset, 32)
    key, wrong = (k[:, :1].expand_as(k) for k in (key, wrong))  # passwords are the same in every slot

    for arch in ("transformer", "mlp"):
        net = built(preset, arch)
        assert torch.allclose(net.reflect(net.reflect(w, key), key), w, atol=1e-4)
        assert torch.allclose(net.reflect(w, key).flatten(1).norm(dim=1), w.flatten(1).norm(dim=1), rtol=1e-4)
        cosine = partial(cosine_of_turned, net)
        assert cosine(net(w, key), w) < 0.1 and cosine(net(w, key), net(w, wrong)) < 0.1
        assert cosine(net(net(w, key), wrong), w) < 0.1
        assert (net(net(w, key), key) - w).square().mean().sqrt() < 0.4
    bare = build_encryptor(preset, residual=0.0)
    if not bare.n_inner:
        assert torch.allclose(bare(w, key), bare.change(w, key))


def test_over_eigenfaces_what_lies_outside_the_directions_is_not_turned():
    net = built("mini")
    w, key = random_codes(get("mini"), 4), random_codes(get("mini"), 4)
    moved = net.reflect(w, key) - w
    assert moved[:, 4:].abs().max() == 0
    assert torch.allclose(moved[:, :4].flatten(1) @ net.inner @ net.inner.T, moved[:, :4].flatten(1), atol=1e-4)
    with pytest.raises(RuntimeError, match="use_directions"):
        build_encryptor("mini")(w, key)


def test_directions_rounded_to_float16_are_orthonormal_again():
    net, generator = build_encryptor("mini"), nn.Module()
    generator.base = nn.Module()
    generator.base.inner = torch.linalg.qr(torch.randn(1024, net.n_inner))[0].half().float()
    net.use_directions(generator)
    assert (net.inner.T @ net.inner - torch.eye(net.n_inner)).abs().max() < 2e-6


def test_a_state_dict_alone_rebuilds_the_function():
    preset = get("smoke")
    net = build_encryptor(preset, w_mean=torch.randn(64), w_std=torch.rand(64) + 1, residual=0.0)
    again = build_encryptor(preset)
    again.load_state_dict(net.state_dict())
    w, key = random_codes(preset), random_codes(preset)
    assert torch.equal(net(w, key), again(w, key))


def test_wrong_shapes_and_names_say_what_is_wanted():
    net = build_encryptor("smoke")
    with pytest.raises(ValueError, match=r"\(N, 8, 64\)"):
        net(torch.zeros(2, 10, 64), torch.zeros(2, 10, 64))
    with pytest.raises(ValueError, match="unknown architecture"):
        build_encryptor("smoke", "cnn")
    with pytest.raises(ValueError, match="heads"):
        LatentEncryptor(10, (1, 1, 1), heads=4)


def test_the_lightweight_encryptor_is_light():
    sizes = {n: sum(p.numel() for p in build_encryptor(n).parameters()) for n in PRESETS}
    assert sizes["mini"] < 2.7e6 and sizes["ffhq1024"] < 11e6
    assert isinstance(build_encryptor("mini", "mlp"), MLPEncryptor)


@pytest.mark.parametrize(("arch", "residual"), [("transformer", 1.0), ("mlp", 0.0)])
def test_it_can_learn_to_move_codes_and_move_them_back(arch, residual):
    """A code-space stand-in for eq. 3 and 4: far after encryption, back with the key, far with another."""
    preset = get("smoke")
    net = build_encryptor(preset, arch, residual=residual)
    opt = torch.optim.Adam(net.parameters(), 2e-3)

    def distances(n):
        w, key, wrong = (random_codes(preset, n) for _ in range(3))
        locked = net(w, key)
        return [(v - w).square().mean() for v in (locked, net(locked, key), net(locked, wrong))]

    for _ in range(150 if residual else 450):  # a reflection already undoes itself
        locked, back, wrong = distances(32)
        loss = 4 * (1 - locked).clamp_min(0) + 4 * (1 - wrong).clamp_min(0) + back
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        locked, back, wrong = (d.item() for d in distances(256))
    assert locked > 0.9 and wrong > 0.9 and back < 0.7 * wrong


# ---- training


@pytest.fixture(scope="module")
def frozen():
    """A random smoke generator and judges that read the picture directly: enough to train against in seconds."""
    torch.manual_seed(0)
    preset = get("smoke")
    g = Generator.of(preset).eval().requires_grad_(False)
    project = torch.randn(3 * 16, 32) / 7

    def embed(faces):
        small = nn.functional.adaptive_avg_pool2d(faces.float(), 4).flatten(1)
        small = small - small.mean(1, keepdim=True)
        return nn.functional.normalize(small @ project, dim=1)

    return g, Judges(embed=embed, parse=lambda faces: faces[:, :2].float())


def make_task(tmp_path, frozen, steps, held_out=None, **changes):
    config = LoopConfig(out=str(tmp_path), steps=steps, batch=4, save_every=10, log_every=10, bfloat16=False)
    accelerator = make_accelerator(config)
    torch.manual_seed(0)
    return EncryptorTask(get("smoke"), EncryptorConfig(**changes), accelerator, *frozen, held_out), config, accelerator


def test_both_passes_use_the_right_keys(frozen):
    """With code + key to encrypt and code - key to decrypt, only the right password brings the code back."""

    class Adder(nn.Module):
        calls = 0

        def forward(self, w, key):
            self.calls += 1
            return w + key if self.calls == 1 else w - key

    g, _ = frozen
    w, keys = random_codes(get("smoke"), 3), draw_keys(g, 3, m=2, n=3)
    assert keys.shape == (3, 2, 4, 8, 64)
    assert len({round(v, 5) for v in keys[..., 0, 0].flatten().tolist()}) == 24  # all m (n + 1) distinct
    made = encrypt_and_decrypt(Adder(), w, keys)
    assert torch.allclose(made.recovered, w[:, None].expand_as(made.recovered), atol=1e-5)
    assert torch.allclose(made.encrypted[2, 1], w[2] + keys[2, 1, 0])
    wrong = made.wrong.unflatten(1, (2, 3))
    assert torch.allclose(wrong[1, 0, 2], w[1] + keys[1, 0, 0] - keys[1, 0, 3], atol=1e-5)
    assert made.joined().shape == (3, 2 * 5, 8, 64)


def test_the_loss_is_eq_10_over_all_images_and_reaches_only_the_encryptor(frozen, tmp_path):
    task, _, _ = make_task(tmp_path, frozen, 1)
    g, judges = frozen
    w, keys = task.draw_codes(2), draw_keys(g, 2, 2, 2)
    total, terms = task.losses(w, keys)
    codes = encrypt_and_decrypt(task.encryptor, w, keys).joined()
    expected = 0.0
    for b in range(2):
        x, e0 = g(w[b : b + 1])[0], judges.embed(g(w[b : b + 1]))[0]
        y = g(codes[b])
        e = judges.embed(y)
        changed = torch.cat([e[:2], e[4:]])
        cos = (changed @ changed.T).clamp_min(0)
        expected += (cos.sum() - cos.diagonal().sum()) / 36
        expected += (changed @ e0).clamp_min(0).sum() + (1 - e[2:4] @ e0).sum()
        for k in range(8):
            expected += 0.05 * (y[k] - x).abs().mean() + 0.1 * (y[k, :2] - x[:2]).square().mean()
            expected += 0.01 * (codes[b, k] - w[b]).square().mean()
    assert total.item() == pytest.approx(expected.item() / 2, rel=1e-4)
    total.backward()
    assert all(p.grad is not None for p in task.encryptor.parameters())
    assert all(p.grad is None for p in g.parameters())
    assert set(terms) == {"diversity", "deidentification", "recovery", "pixel", "lpips", "parsing", "latent"}


def test_recovery_from_pixels_is_one_more_term_that_reaches_the_encryptor(frozen, tmp_path):
    class Path:  # stands for rendering, storing and inverting again: codes that lie near the encrypted ones
        def __call__(self, faces, under):
            assert faces.shape == under.shape == (2, 3, 32, 32)
            return task.kept + faces.mean((1, 2, 3))[:, None, None]

    task, _, _ = make_task(tmp_path, frozen, 1, pixels=3.0)
    w, keys = task.draw_codes(2), draw_keys(frozen[0], 2, 2, 2)
    without, _ = task.losses(w, keys)
    task.kept = encrypt_and_decrypt(task.encryptor, w, keys).encrypted[:, 0].detach()
    task.path = Path()
    total, terms = task.losses(w, keys)
    assert 0 < terms["recovery_pixels"].item() < 2
    assert total.item() == pytest.approx(without.item() + 3 * terms["recovery_pixels"].item(), rel=1e-4)
    terms["recovery_pixels"].backward()
    assert task.encryptor.output.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in frozen[0].parameters())


def test_evaluation_of_the_identity_map_says_that_nothing_is_protected(frozen):
    class Same(nn.Module):
        def forward(self, w, key):
            return w

    g, judges = frozen
    numbers = evaluate(Same(), g, random_codes(get("smoke"), 5), judges.embed, draw_keys(g, 5, 3, 1), batch=2)
    for name in ("encrypted", "recovered", "wrong", "pairs"):
        assert numbers[f"cos_{name}"] == pytest.approx(1.0, abs=1e-4)
    assert numbers["accepted_encrypted"] == numbers["accepted_recovered"] == 1.0
    assert numbers["pairs_apart"] == 0.0


def train(frozen, folder, data, held_out, stop=None, steps=20, **changes):
    """A short run, perhaps stopped at step `stop`; the task and its evaluation before the first step."""
    torch.set_num_threads(1)
    task, config, accelerator = make_task(
        folder, frozen, steps, held_out, lr=3e-3, warmup=0.1, n=1, eval_every=10, ema=0.8,
        weights=LossWeights(pixel=0.0, parsing=0.0), **changes,
    )  # fmt: skip
    before = task.evaluate()
    config = replace(config, batch=2)
    if stop:
        config, whole = replace(config, steps=stop), task.step
        task.step = lambda batch, progress: whole(batch, progress * stop / steps)
    run(task, data, config, accelerator)
    return task, before


def test_training_pushes_identities_away_and_resumes_to_the_same_weights(frozen, tmp_path):
    codes = frozen[0].broadcast(frozen[0].map(torch.randn(12, 64))).clone()
    data, held_out = {"w": codes[:8]}, codes[8:]
    whole, before = train(frozen, tmp_path / "a", data, held_out)
    after = whole.evaluate()
    apart, apart_before = ((e["cos_encrypted"] + e["cos_wrong"]) / 2 for e in (after, before))
    assert apart < apart_before - 0.005  # the reflection already tells most faces apart
    log = (tmp_path / "a" / "log.jsonl").read_text()
    assert '"val_accepted_encrypted"' in log and '"recovery"' in log
    assert whole.samples().shape == (20, 3, 32, 32)
    train(frozen, tmp_path / "b", data, held_out, stop=10)
    resumed, _ = train(frozen, tmp_path / "b", data, held_out)
    for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_data_free_training_needs_rows_only(frozen, tmp_path):
    task, _ = train(frozen, tmp_path, {"row": torch.arange(64)}, random_codes(get("smoke")), steps=2, mixing=0.5)
    assert task.counters["step"] == 2
    codes = task.draw_codes(200)
    cut = (codes[:, 0] != codes[:, -1]).any(1).float().mean().item()
    assert 0.35 < cut < 0.65  # half of them are made of two codes


def test_networks_load_from_runs_and_from_safetensors(tmp_path):
    from riddle.zoo import save_tensors

    net, again = build_encryptor("smoke"), build_encryptor("smoke")
    torch.save({"networks": {"average": net.state_dict()}}, tmp_path / "state.pt")
    load_network(again, tmp_path / "state.pt", "average")
    assert torch.equal(again.output.weight, net.output.weight)
    with pytest.raises(KeyError, match="average"):
        load_network(again, tmp_path / "state.pt", "g_ema")
    save_tensors(tmp_path / "e.safetensors", net.state_dict())
    load_network(again, tmp_path / "e.safetensors", "average")
    assert torch.allclose(again.output.weight, net.output.weight, atol=1e-4)


def test_the_command_line_keeps_the_papers_weights_and_takes_changes(tmp_path):
    assert read_weights(None, [], False) == PAPER_WEIGHTS
    (tmp_path / "w.json").write_text('{"recovery": 2, "latent": 0.1}')
    got = read_weights(tmp_path / "w.json", ["recovery=3"], True)
    assert (got.recovery, got.latent, got.diversity, got.lpips) == (3.0, 0.1, 0.0, 1.0)
    with pytest.raises(ValueError, match="NAME=VALUE"):
        read_weights(None, ["recovery"], False)
    with pytest.raises(SystemExit):
        parse_arguments(["--out", "x"])  # neither codes nor --datafree


def test_memory_is_kept_where_glibc_allows_it():
    import platform

    assert keep_memory() == (platform.libc_ver()[0] == "glibc")
