"""The encryptors: shapes, statistics, what depends on what, and a short training that works."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import nn

from riddle.allocator import keep_memory
from riddle.losses import PAPER_WEIGHTS, LossWeights
from riddle.models.codes import BOUND, GaussianCodes
from riddle.models.curvature import Curvature
from riddle.models.encryptor import (
    ARCHITECTURES,
    KEPT,
    POSE,
    Attention,
    DecoderBlock,
    LatentEncryptor,
    build_encryptor,
    rotate_pairs,
)
from riddle.models.stylegan2 import Generator
from riddle.presets import PRESETS, get
from riddle.training.codes import draw_codes, draw_keys, encrypt_and_decrypt, evaluate
from riddle.training.encryptor import EncryptorConfig, EncryptorTask, parse_arguments, read_weights
from riddle.training.judges import Judges, load_network
from riddle.training.loop import LoopConfig, make_accelerator, run

SMOKE = get("smoke")


@pytest.fixture(autouse=True)
def _fresh():
    """A known seed, and no accelerator left by another test: its precision could not be changed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def codes():
    """The Gaussian space of a random smoke generator."""
    torch.manual_seed(1)
    g = Generator.of(SMOKE)
    return g.codes.measure(g.map, n=2000)


def random_z(n=4, slots=8, dim=64):
    return torch.randn(n, slots, dim)


def random_keys(n=4):
    """z of passwords: the same in every slot."""
    return torch.randn(n, 1, 64).expand(-1, 8, -1)


def of_width(dim):
    space = GaussianCodes(dim)
    space.mean.normal_(), space.std.uniform_(0.5, 2)
    return space


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_codes_keep_their_shape_at_each_scale(name, arch):
    preset = get(name)
    net = build_encryptor(name, arch, of_width(preset.style_dim))
    w, key = (torch.randn(4, preset.n_latent, preset.style_dim) for _ in range(2))
    with torch.no_grad():
        assert net(w, key).shape == w.shape
        assert torch.allclose(net(w, key[:1]), net(w, key[:1].expand_as(key)), atol=1e-4)


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


def test_a_password_slot_acts_on_its_own_level_only(codes):
    net = build_encryptor(SMOKE, "transformer", codes)
    z, key = random_z(1), random_z(1)
    other = key.clone()
    other[:, 0] += 1.0  # a coarse slot
    moved = (net.change(z, other) - net.change(z, key)).abs().amax((0, 2))
    coarse = SMOKE.levels[0]
    assert (moved[:coarse] > 1e-6).all() and moved[coarse:].max() == 0


def test_a_code_slot_acts_on_its_own_level_only(codes):
    """Levels are independent; within one, every slot of code and password tells."""
    net = build_encryptor(SMOKE, "transformer", codes)
    levels = torch.arange(3).repeat_interleave(torch.tensor(SMOKE.levels))
    z, key = random_z(1), random_z(1)
    with torch.no_grad():
        before = net.change(z, key)
        for slot in range(8):
            for moved in ("code", "password"):
                other = (z if moved == "code" else key).clone()
                other[:, slot] += 1.0
                after = net.change(other, key) if moved == "code" else net.change(z, other)
                told = (after - before).abs().amax((0, 2)) > 1e-6
                assert torch.equal(told, levels == levels[slot]), (slot, moved)


def test_the_mlp_changes_slot_by_slot(codes):
    net = build_encryptor(SMOKE, "mlp", codes)
    z, key = random_z(), random_z()
    alone = torch.cat([net.change(z[:, i : i + 1], key[:, i : i + 1]) for i in range(8)], 1)
    assert torch.allclose(net.change(z, key), alone, atol=1e-5)


@pytest.mark.parametrize("arch", ["coupling", "reflection"])
def test_slots_that_are_equal_stay_equal(codes, arch):
    """A face of one code is encrypted to a face of one code: slots turn alike."""
    net = build_encryptor(SMOKE, arch, codes)
    z = random_z(slots=1).expand(-1, 8, -1)
    changed = net.change(z, random_keys())
    assert (changed - changed[:, :1]).abs().max() < 1e-5 and (changed - z).abs().max() > 1


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_reach_every_parameter_the_code_and_the_password(codes, arch):
    net = build_encryptor(SMOKE, arch, codes)
    w, key = (codes.to_w(random_z()).requires_grad_() for _ in range(2))
    target = torch.randn_like(w)
    (net(w, key) - target).square().mean().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent and w.grad.abs().amax((0, 2)).gt(0).all() and key.grad.abs().amax((0, 2)).gt(0).all()


def test_the_inverse_is_exact_to_single_precision(codes):
    """At weights as they are before training, and for codes as long as the data's."""
    for arch in ("coupling", "reflection"):
        net = build_encryptor(SMOKE, arch, codes)
        z, key = random_z(64), random_keys(64)
        with torch.no_grad():
            assert (net.change(net.change(z, key), key) - z).abs().max() < 1e-4
            w, key = codes.to_w(z), codes.to_w(key[:1])
            assert (net(net(w, key), key) - w).abs().max() < 1e-4


def test_encryptors_work_between_gaussian_codes(codes):
    """From w to z, the change, and back to w; the same for every architecture."""
    z, key = 0.5 * random_z(), random_keys()
    for arch in ARCHITECTURES:
        net = build_encryptor(SMOKE, arch, codes)
        assert torch.allclose(net(codes.to_w(z), codes.to_w(key)), codes.to_w(net.change(z, key)), atol=1e-3), arch


@pytest.mark.parametrize("arch", ["transformer", "mlp"])
def test_what_a_network_makes_stays_within_the_bound(codes, arch):
    net = build_encryptor(SMOKE, arch, codes)
    out = net.change(100 * random_z(), 100 * random_z())
    assert out.abs().max() <= BOUND


@pytest.mark.parametrize("arch", ["coupling", "reflection"])
def test_exact_encryptors_undo_themselves_and_keep_the_distribution(codes, arch):
    """The right password brings the code back, whatever was learned; every other one gives a code as probable.

    In double precision: the angles may turn wildly with the code.
    """
    net = build_encryptor(SMOKE, arch, codes).double()
    for parameter in net.parameters():  # training may leave anything
        torch.nn.init.normal_(parameter, std=0.3)
    z, key, wrong = (x.double() for x in (random_z(64), random_keys(64), random_keys(64)))
    with torch.no_grad():
        locked = net.change(z, key)
        assert torch.allclose(net.change(locked, key), z, atol=1e-9)
        for changed in (locked, net.change(locked, wrong)):
            assert torch.allclose(changed.norm(dim=2), z.norm(dim=2), rtol=1e-4)
            assert torch.cosine_similarity(changed.flatten(1), z.flatten(1)).abs().mean() < 0.5
        assert not torch.allclose(locked, net.change(z, wrong), atol=0.1)


@pytest.mark.parametrize("arch", ["coupling", "reflection"])
def test_kept_components_stay(codes, arch):
    """Whatever was learned."""
    net = build_encryptor(SMOKE, arch, codes)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z, key = random_z(), random_keys()
    moved, kept = (net.change(z, key) - z).abs().amax((0, 1)), POSE if arch == "coupling" else KEPT
    assert moved[:kept].max() < 1e-5 and (moved[kept:] > 1e-3).float().mean() > 0.9


def test_the_coupling_turns_short_codes_as_it_turns_long_ones(codes):
    """Inverted faces have shorter codes than drawn ones; their strangers are as diverse."""
    net = build_encryptor(SMOKE, "coupling", codes)
    z, key = torch.cat([torch.zeros(4, 8, POSE), random_z()[..., POSE:]], -1), random_keys()
    assert torch.allclose(net.change(0.5 * z, key), 0.5 * net.change(z, key), atol=1e-3)


def test_the_coupling_is_not_linear_and_the_reflection_is(codes):
    """A known original gives away the key of a linear map."""
    a, b, key = random_z(), random_z(), random_keys()
    gap = {}
    for arch in ("coupling", "reflection"):
        net = build_encryptor(SMOKE, arch, codes)
        with torch.no_grad():
            gap[arch] = (net.change(a + b, key) - net.change(a, key) - net.change(b, key)).abs().mean().item()
    assert gap["reflection"] < 1e-4 and gap["coupling"] > 0.1


def test_a_rotation_of_pairs_is_a_product_with_a_complex_number():
    x, angle = torch.randn(3, 10, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    expected = torch.view_as_complex(x.view(3, 5, 2)) * torch.exp(1j * angle)
    assert torch.allclose(rotate_pairs(x, angle), torch.view_as_real(expected).flatten(1))


def test_the_couplings_basis_is_a_rotation(codes):
    net, one = build_encryptor(SMOKE, "coupling", codes), torch.eye(64 - POSE)
    assert torch.allclose(net.basis(), one, atol=1e-6)
    torch.nn.init.normal_(net.skew, std=0.5)
    q = net.basis()
    assert torch.allclose(q @ q.T, one, atol=1e-4) and torch.linalg.det(q).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_state_dict_alone_rebuilds_the_function(codes, arch):
    """With the generator's codes, which are not part of it."""
    net, again = (build_encryptor(SMOKE, arch, codes) for _ in range(2))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert not any(k.startswith(("codes", "_codes")) for k in net.state_dict())
    again.load_state_dict(net.state_dict())
    w, key = codes.to_w(random_z()), codes.to_w(random_keys())
    with torch.no_grad():
        assert torch.equal(net(w, key), again(w, key))


def test_wrong_shapes_and_names_say_what_is_wanted(codes):
    net = build_encryptor("smoke", "transformer", codes)
    with pytest.raises(ValueError, match=r"\(N, 8, 64\)"):
        net(torch.zeros(2, 10, 64), torch.zeros(2, 10, 64))
    with pytest.raises(ValueError, match="unknown architecture"):
        build_encryptor("smoke", "cnn", codes)
    with pytest.raises(ValueError, match="heads"):
        LatentEncryptor((1, 1, 1), 10, codes, heads=4)


def test_the_encryptor_is_light():
    sizes = {
        (n, a): sum(p.numel() for p in build_encryptor(n, a, of_width(get(n).style_dim)).parameters())
        for n in ("mobile", "ffhq1024") for a in ("transformer", "mlp", "coupling")
    }  # fmt: skip
    assert sizes["ffhq1024", "transformer"] < 11e6
    assert all(size < 4.5e6 for (name, _), size in sizes.items() if name == "mobile")


@pytest.mark.parametrize("arch", ["transformer", "mlp"])
def test_it_can_learn_to_move_codes_and_move_them_back(codes, arch):
    """A code-space stand-in for eq. 3 and 4: far after encryption, back with the key, far with another."""
    net = build_encryptor(SMOKE, arch, codes)
    opt = torch.optim.Adam(net.parameters(), 2e-3)

    def distances(n):
        z, key, wrong = random_z(n, slots=1).expand(-1, 8, -1), random_keys(n), random_keys(n)
        locked = net.change(z, key)
        return [(v - z).square().mean() for v in (locked, net.change(locked, key), net.change(locked, wrong))]

    for _ in range(300):
        locked, back, wrong = distances(32)
        loss = 4 * (1 - locked).clamp_min(0) + 4 * (1 - wrong).clamp_min(0) + back
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        locked, back, wrong = (d.item() for d in distances(256))
    assert locked > 0.9 and wrong > 0.9 and back < 0.8 * wrong


# ---- training


@pytest.fixture(scope="module")
def frozen():
    """A random smoke generator and judges that read the picture directly: enough to train against in seconds."""
    torch.manual_seed(0)
    g = Generator.of(SMOKE).eval().requires_grad_(False)
    g.codes.measure(g.map, n=2000)
    project = torch.randn(3 * 16, 32) / 7

    def embed(faces):
        small = nn.functional.adaptive_avg_pool2d(faces.float(), 4).flatten(1)
        small = small - small.mean(1, keepdim=True)
        return nn.functional.normalize(small @ project, dim=1)

    return g, Judges(embed=embed, parse=lambda faces: faces[:, :2].float())


def random_codes(n=4):
    return torch.randn(n, 8, 64)


def make_task(tmp_path, frozen, steps, held_out=None, **changes):
    config = LoopConfig(out=str(tmp_path), steps=steps, batch=4, save_every=10, log_every=10, bfloat16=False)
    accelerator = make_accelerator(config)
    torch.manual_seed(0)
    held_out = random_codes() if held_out is None else held_out
    return EncryptorTask(SMOKE, EncryptorConfig(**changes), accelerator, *frozen, held_out), config, accelerator


def test_two_terms_beside_the_paper_s_losses(frozen, tmp_path):
    """`linked`: likeness of two originals under one password; `apart`: L_div over encrypted faces. Both are added."""
    generator, judges = frozen
    task, _, _ = make_task(tmp_path, frozen, 1, linked=2.0, apart=3.0)
    plain, _, _ = make_task(tmp_path, frozen, 1)
    w, keys = draw_codes(generator, 2), draw_keys(generator, 1, 2, 2).repeat(2, 1, 1, 1, 1)
    with torch.no_grad():
        (total, terms), (before, _) = task.losses(w, keys), plain.losses(w, keys)
        made = encrypt_and_decrypt(task.encryptor, w, keys)
        faces = [generator(torch.cat([a, b])) for a, b in zip(made.encrypted, made.wrong, strict=True)]
        one, other = (F.normalize(judges.embed(f), dim=1) for f in faces)
    alike = (one * other).sum(1).clamp_min(0).mean().item()
    among = sum(max(0.0, (e[0] @ e[1]).item()) * 2 / 4 for e in (one, other)) / 2
    assert terms["linked"].item() == pytest.approx(alike, abs=1e-4)
    assert terms["apart"].item() == pytest.approx(among, abs=1e-4)
    assert total.item() == pytest.approx(before.item() + 2 * alike + 3 * among, abs=1e-3)


@pytest.mark.parametrize("linked", [0.0, 1.0])
def test_linked_originals_share_their_passwords(frozen, tmp_path, monkeypatch, linked):
    task, _, _ = make_task(tmp_path, frozen, 1, linked=linked)
    seen = []
    losses_of = task.losses
    monkeypatch.setattr(task, "losses", lambda w, keys: seen.append(keys) or losses_of(w, keys))
    task.step({"row": torch.arange(4)}, 0.0)
    assert torch.equal(seen[0][:2], seen[0][2:]) == bool(linked)


def test_linked_needs_an_even_batch(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--datafree", "--out", "x", "--linked", "1", "--batch", "3"])
    assert "even --batch" in capsys.readouterr().err


def test_curvature_changes_the_gradient_and_no_loss(frozen, tmp_path):
    """Directions that bend much get a smaller gradient; the loss is the same. Without curvature nothing changes."""
    task, _, _ = make_task(tmp_path, frozen, 1)
    w, keys = draw_codes(frozen[0], 2), draw_keys(frozen[0], 2, 2, 2)
    norms, totals = [], []
    for size in (None, 0.0, 1e6):
        task.curvature = None if size is None else Curvature(8, 64, rank=512)
        if size is not None:
            task.curvature.size.fill_(size)
        total, _ = task.losses(w, keys)
        gradients = torch.autograd.grad(total, list(task.encryptor.parameters()), allow_unused=True)
        norms.append(sum(g.square().sum() for g in gradients if g is not None).sqrt().item())
        totals.append(total.item())
    assert totals[1] == pytest.approx(totals[0], rel=1e-3) and totals[2] == pytest.approx(totals[0], rel=1e-3)
    assert norms[1] == pytest.approx(norms[0], rel=1e-2) and norms[2] < 1e-3 * norms[0]


def test_both_passes_use_the_right_keys(frozen):
    """With code + key to encrypt and code - key to decrypt, only the right password brings the code back."""

    class Adder(nn.Module):
        calls = 0

        def forward(self, w, key):
            self.calls += 1
            return w + key if self.calls == 1 else w - key

    g, _ = frozen
    w, keys = random_codes(3), draw_keys(g, 3, m=2, n=3)
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
    w, keys = draw_codes(frozen[0], 2), draw_keys(g, 2, 2, 2)
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
    w, keys = draw_codes(frozen[0], 2), draw_keys(frozen[0], 2, 2, 2)
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
    numbers = evaluate(Same(), g, random_codes(5), judges.embed, draw_keys(g, 5, 3, 1), batch=2)
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
    assert apart < apart_before - 0.005
    log = (tmp_path / "a" / "log.jsonl").read_text()
    assert '"val_accepted_encrypted"' in log and '"recovery"' in log
    assert whole.samples().shape == (20, 3, 32, 32)
    train(frozen, tmp_path / "b", data, held_out, stop=10)
    resumed, _ = train(frozen, tmp_path / "b", data, held_out)
    for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_data_free_training_needs_rows_only(frozen, tmp_path):
    task, _ = train(frozen, tmp_path, {"row": torch.arange(64)}, random_codes(), steps=2)
    assert task.counters["step"] == 2


def test_codes_of_nobody_are_of_three_kinds(frozen):
    g = frozen[0]
    made = draw_codes(g, 300, seed=2)
    assert torch.equal(made, draw_codes(g, 300, seed=2)) and made.shape == (300, 8, 64)
    assert (made[::3] == made[::3, :1]).all()  # one code in every slot
    slots = [len(code.unique(dim=0)) for code in made[1::3]]
    assert set(slots) == {2}  # two of them
    z = g.codes.to_gaussian(made[2::3])
    differences = (z - z.mean(1, keepdim=True)).std()
    assert 0.2 < differences < 0.5 and z.std() == pytest.approx(1, abs=0.15)


def test_a_helper_in_code_space_comes_first_alone_and_then_stands_beside(frozen, tmp_path):
    task, _, _ = make_task(tmp_path, frozen, 1, helper=0.3, helper_only=0.4, lr=0.0)
    batch = {"w": draw_codes(frozen[0], 2)}
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
    task, _, _ = make_task(tmp_path, frozen, 1, helper=0.3)
    task.inverted = draw_codes(frozen[0], 1, seed=9)
    known, seen = frozen[0].codes.to_gaussian(task.inverted), []
    change = task.encryptor.change
    monkeypatch.setattr(task.encryptor, "change", lambda z, key: (seen.append(z), change(z, key))[1])
    for judged, share in ((True, 0.0), (False, 0.5)):
        seen.clear()
        task.helper(judged)
        inverted = (seen[0] - known).abs().amax((1, 2)).lt(1e-4)
        assert inverted.float().mean() == share
        first, second = inverted.chunk(2)  # two originals that share passwords are of one kind
        assert torch.equal(first, second)


def test_a_share_of_the_originals_lies_between_two_training_faces(frozen, tmp_path):
    """Along the arc between their codes, so that a code keeps its length."""
    task, _, _ = make_task(tmp_path, frozen, 1, blend=0.5)
    space = frozen[0].codes
    ends = F.normalize(torch.randn(2, 8, 64), dim=-1) * 8
    ends[1] -= ends[0] * (ends[0] * ends[1]).sum(-1, keepdim=True) / 64  # at a right angle to the first
    ends[1] = F.normalize(ends[1], dim=-1) * 8
    task.inverted, w = space.to_w(ends[1:]), space.to_w(ends[:1]).expand(200, -1, -1)
    z = space.to_gaussian(task.blended(w))
    along, across = (z * ends[0]).sum(-1) / 64, (z * ends[1]).sum(-1) / 64
    assert torch.allclose(along**2 + across**2, torch.ones(200, 8), atol=1e-3)
    assert 0.35 < (across[:, 0].abs() < 1e-3).float().mean() < 0.65 and across.max() > 0.9
    still, _, _ = make_task(tmp_path / "still", frozen, 1)
    assert still.blended(w) is w


def test_both_parts_of_a_training_have_a_warm_up_and_end_at_no_rate(frozen, tmp_path):
    task, _, _ = make_task(tmp_path, frozen, 1, helper=0.3, helper_only=0.4, lr=1e-3, warmup=0.1)
    rates = {}
    for progress in (0.001, 0.04, 0.3999, 0.401, 0.46, 1.0):
        task.step({"w": draw_codes(frozen[0], 2)}, progress)
        rates[progress] = task.optimiser.param_groups[0]["lr"]
    assert max(rates, key=rates.get) in (0.04, 0.46) and rates[0.04] == pytest.approx(1e-3, rel=0.01)
    assert all(rates[x] < 1e-4 for x in (0.001, 0.3999, 0.401, 1.0)) and rates[0.46] == pytest.approx(1e-3, rel=0.01)


def test_networks_load_from_runs_and_from_safetensors(codes, tmp_path):
    from riddle.zoo import save_tensors

    net, again = (build_encryptor("smoke", "transformer", codes) for _ in range(2))
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
