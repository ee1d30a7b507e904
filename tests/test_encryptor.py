"""The encryptors: shapes, statistics, what depends on what, and a short training that works."""

import pytest
import torch
from torch import nn

from riddle.models.encryptor import (
    Attention,
    DecoderBlock,
    LatentEncryptor,
    MLPEncryptor,
    build_encryptor,
    code_statistics,
)
from riddle.presets import PRESETS, get


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_codes(preset, n=4):
    return torch.randn(n, preset.n_latent, preset.style_dim)


@pytest.mark.parametrize("name", ["smoke", "mini", "face128"])
@pytest.mark.parametrize("arch", ["transformer", "mlp"])
def test_codes_keep_their_shape_at_each_scale(name, arch):
    preset = get(name)
    net = build_encryptor(name, arch)
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
    moved = (net(w, other) - net(w, key)).abs().amax((0, 2))
    coarse = preset.levels[0]
    assert (moved[:coarse] > 1e-6).all() and moved[coarse:].max() == 0


def test_statistics_standardise_and_destandardise():
    w = 5 + 3 * torch.randn(4096, 64)
    mean, std = code_statistics(w)
    net = LatentEncryptor(64, (3, 3, 2), w_mean=mean, w_std=std)
    plain = LatentEncryptor(64, (3, 3, 2))
    weights = {k: v for k, v in net.state_dict().items() if k not in ("w_mean", "w_std")}
    plain.load_state_dict(weights, strict=False)
    x, key = random_codes(get("smoke")), random_codes(get("smoke"))
    assert torch.allclose(net(x * std + mean, key * std + mean), plain(x, key) * std + mean, atol=1e-4)


def test_training_starts_near_the_identity_and_so_does_recovery():
    preset = get("mini")
    w, key = random_codes(preset), random_codes(preset)
    for net in (build_encryptor(preset), build_encryptor(preset, "mlp")):
        assert 0 < (net(w, key) - w).square().mean().sqrt() < 0.2
        assert (net(net(w, key), key) - w).square().mean().sqrt() < 0.3
    assert (build_encryptor(preset, residual=False)(w, key) - w).square().mean().sqrt() > 0.5


def test_a_state_dict_alone_rebuilds_the_function():
    preset = get("smoke")
    net = build_encryptor(preset, w_mean=torch.randn(64), w_std=torch.rand(64) + 1, residual=False)
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


@pytest.mark.parametrize(("arch", "residual"), [("transformer", True), ("mlp", False)])
def test_it_can_learn_to_move_codes_and_move_them_back(arch, residual):
    """A code-space stand-in for eq. 3 and 4: far after encryption, back with the key, far with another."""
    preset = get("smoke")
    net = build_encryptor(preset, arch, residual=residual)
    opt = torch.optim.Adam(net.parameters(), 2e-3)

    def distances(n):
        w, key, wrong = (random_codes(preset, n) for _ in range(3))
        locked = net(w, key)
        return [(v - w).square().mean() for v in (locked, net(locked, key), net(locked, wrong))]

    for _ in range(450):
        locked, back, wrong = distances(32)
        loss = 4 * (1 - locked).clamp_min(0) + 4 * (1 - wrong).clamp_min(0) + back
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        locked, back, wrong = (d.item() for d in distances(256))
    assert locked > 0.9 and wrong > 0.9 and back < 0.7 * wrong
