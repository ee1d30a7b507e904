"""The encryptors: shapes, statistics, and what depends on what."""

import pytest
import torch
from torch import nn

from riddle.models.encryptor import (
    ARCHITECTURES,
    KEPT,
    POSE,
    SOFTENED,
    DecoderBlock,
    FirstSlots,
    LatentEncryptor,
    build_encryptor,
)
from riddle.presets import get

SMOKE = get("smoke")


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)


def random_z(n=4, slots=8, dim=64):
    return torch.randn(n, slots, dim)


def random_keys(n=4):
    """z of passwords: the same in every slot."""
    return torch.randn(n, 1, 64).expand(-1, 8, -1)


def test_decoder_block_equals_torchs_own_with_the_same_weights():
    ours = DecoderBlock(16)
    ref = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=False)
    for mine, theirs in ((ours.self_attention, ref.self_attn), (ours.cross_attention, ref.multihead_attn)):
        theirs.in_proj_weight.data = torch.cat([mine.query.weight, mine.key_value.weight]).data.clone()
        theirs.in_proj_bias.data = torch.cat([mine.query.bias, mine.key_value.bias]).data.clone()
        theirs.out_proj.load_state_dict(mine.output.state_dict())
    ref.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    ref.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    code, password = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    assert torch.allclose(ours(code, password), ref(code, password), atol=1e-5)


def test_a_slot_acts_on_its_own_level_only(codes):
    """Levels are independent; within one, every slot of code and password counts."""
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


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradients_reach_every_parameter_the_code_and_the_password(codes, arch):
    net = build_encryptor(SMOKE, arch, codes)
    w, key = (codes.to_w(random_z()).requires_grad_() for _ in range(2))
    target = torch.randn_like(w)
    (net(w, key) - target).square().mean().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent and w.grad.abs().amax((0, 2)).gt(0).all() and key.grad.abs().amax((0, 2)).gt(0).all()


@pytest.mark.parametrize(("arch", "kept"), [("coupling", POSE), ("reflection", KEPT)])
def test_exact_encryptors_undo_themselves_and_keep_the_distribution(codes, arch, kept):
    """The right password brings the code back, whatever was learned; every other one gives a code as probable. The
    first components stay.

    Learned angles may turn wildly with the code: these are tried in double precision.
    """
    net = build_encryptor(SMOKE, arch, codes).double()
    for parameter in net.parameters():  # training may leave anything
        torch.nn.init.normal_(parameter, std=0.3)
    z, key, wrong = (x.double() for x in (random_z(64), random_keys(64), random_keys(64)))
    with torch.no_grad():
        locked = net.change(z, key)
        assert torch.allclose(net.change(locked, key), z, atol=1e-9)
        moved = (locked - z).abs().amax((0, 1))
        assert moved[:kept].max() < 1e-5 and (moved[kept:] > 1e-3).float().mean() > 0.9
        for changed in (locked, net.change(locked, wrong)):
            assert torch.allclose(changed.norm(dim=2), z.norm(dim=2), rtol=1e-4)
            assert torch.cosine_similarity(changed.flatten(1), z.flatten(1)).abs().mean() < 0.5
        assert not torch.allclose(locked, net.change(z, wrong), atol=0.1)
        net, z, key = build_encryptor(SMOKE, arch, codes), z.float(), key.float()  # in single precision as they start
        w, password = codes.to_w(z), codes.to_w(key)
        assert (net.change(net.change(z, key), key) - z).abs().max() < 1e-4
        assert (net(net(w, password), password) - w).abs().max() < 1e-4


def test_the_coupling_turns_codes_in_units_of_their_size_in_inverted_faces(codes):
    """S is a power of the rms of each component that it turns; S^-1 z keeps its length, and the code comes back."""
    net, size = build_encryptor(SMOKE, "coupling", codes), torch.linspace(2, 0.2, 64)
    seen = size * random_z(500)
    assert net.measure(seen) is net
    assert torch.allclose(net.size, seen[..., POSE:].square().mean((0, 1)).sqrt() ** SOFTENED, rtol=1e-5)
    assert torch.allclose(net.size, size[POSE:] ** SOFTENED, rtol=0.1)  # 4,000 numbers each
    z, key, wrong = size * random_z(64), random_keys(64), random_keys(64)
    with torch.no_grad():
        locked = net.change(z, key)
        assert (net.change(locked, key) - z).abs().max() < 1e-4
        for changed in (locked, net.change(locked, wrong)):
            own, others = ((x[..., POSE:] / net.size).norm(dim=2) for x in (z, changed))
            assert torch.allclose(own, others, rtol=1e-4)
    again = build_encryptor(SMOKE, "coupling", codes)
    again.load_state_dict(net.state_dict())  # S goes with the weights
    assert torch.equal(again.change(z, key), net.change(z, key))


def test_the_coupling_is_not_linear_and_the_reflection_is(codes):
    """A known original gives away the key of a linear map."""
    a, b, key = random_z(), random_z(), random_keys()
    gap = {}
    for arch in ("coupling", "reflection"):
        net = build_encryptor(SMOKE, arch, codes)
        with torch.no_grad():
            gap[arch] = (net.change(a + b, key) - net.change(a, key) - net.change(b, key)).abs().mean().item()
    assert gap["reflection"] < 1e-4 and gap["coupling"] > 0.1


def test_an_encryptor_of_fewer_slots_leaves_the_others_as_they_are(codes):
    inner = build_encryptor(SMOKE, "coupling", codes)
    net = FirstSlots(inner, 11, codes)
    w, key = (codes.to_w(torch.randn(3, 11, 64)) for _ in range(2))
    with torch.no_grad():
        locked = net(w, key)
        torch.testing.assert_close(locked[:, :8], inner(w[:, :8], key[:, :8]), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(locked[:, 8:], w[:, 8:], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(net(locked, key), w, atol=1e-4, rtol=1e-3)


def test_wrong_shapes_and_names_say_what_is_wanted(codes):
    net = build_encryptor("smoke", "transformer", codes)
    with pytest.raises(ValueError, match=r"\(N, 8, 64\)"):
        net(torch.zeros(2, 10, 64), torch.zeros(2, 10, 64))
    with pytest.raises(ValueError, match="unknown architecture"):
        build_encryptor("smoke", "cnn", codes)
    with pytest.raises(ValueError, match="heads"):
        LatentEncryptor((1, 1, 1), 10, codes)
