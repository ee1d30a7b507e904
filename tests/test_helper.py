"""The helper of the encryptor's first steps: a loss in codes, and the network that guesses who a code shows."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from riddle.models import encryptor
from riddle.models.encryptor import KEPT
from riddle.presets import get
from riddle.training import helper
from riddle.training.frozen import SPREAD
from riddle.training.helper import CodeRecogniser, code_loss, linked, load_code_recogniser
from riddle.training.loop import finish, run

SMOKE = get("smoke")
EVEN = torch.ones(64)


@pytest.fixture
def drawn():
    """Codes z (64, 8, 64), and two passwords with two wrong ones for each."""
    torch.manual_seed(2)
    return torch.randn(64, 8, 64), torch.randn(64, 2, 3, 64)


def recogniser(z):
    """Who a code shows, said exactly: the mean of what is not kept; and a picture of what is."""
    return F.normalize(z[..., KEPT:].mean(1), dim=1), z[:, :1, :3, None].expand(-1, 3, -1, 3)


def copy(z, key):
    return z


def forget(z, key):
    return torch.cat([z[..., :KEPT], torch.randn_like(z[..., KEPT:])], -1)


def test_the_loss_is_small_for_what_the_losses_ask_for(codes, drawn, monkeypatch):
    """Nothing is wrong with a code that is turned away, comes back, and is opened to another: a coupling's."""
    assert codes.importance.mean() == pytest.approx(1, abs=1e-5) and codes.importance[0] > codes.importance[-1]
    monkeypatch.setattr(encryptor, "POSE", KEPT)
    coupling = encryptor.RotationCoupling(SMOKE.n_latent, SMOKE.hidden, codes)
    good, same, lost = (code_loss(f, *drawn, EVEN, recogniser, True)[0].item() for f in (coupling.change, copy, forget))
    assert good < 0.5 * min(same, lost)
    with torch.no_grad():
        _, terms, made = code_loss(coupling.change, *drawn, EVEN, recogniser, True)
    recovered, wanted = made[:, :2], drawn[0][:, None].expand(-1, 2, -1, -1)
    assert made.shape == (64, 8, 8, 64) and torch.allclose(recovered, wanted, atol=1e-3)
    assert terms["code_recovery"] < 1e-5 and terms["guessed_recovery"] < 1e-5 and terms["code_kept"] < 0.05


def test_each_term_of_a_copy_is_known(drawn):
    total, terms, _ = code_loss(copy, *drawn, EVEN, recogniser, True)
    for name in ("code_apart", "guessed_apart"):
        assert terms[name].item() == pytest.approx(2, abs=1e-4)  # as the original, and as each other
    for name in ("code_recovery", "code_kept", "guessed_pixel"):
        assert terms[name] == 0
    spread = drawn[0].var(1, correction=0).mean()  # as much as between strangers: no photo has so much
    assert terms["code_spread"].item() == pytest.approx(spread.item() - SPREAD**2, abs=1e-4)
    expected = 0.5 * terms["code_apart"] + 0.6 * terms["code_length"] + terms["guessed_apart"]
    expected = expected + terms["code_spread"] + 0.5 * (terms["code_linked"] + terms["guessed_linked"])
    assert total.item() == pytest.approx(expected.item(), abs=1e-4)
    _, alone, _ = code_loss(copy, *drawn, EVEN, recogniser, False)
    assert alone["code_apart"].item() == alone["guessed_apart"].item() == pytest.approx(1, abs=1e-4)
    assert not {k for k in code_loss(copy, *drawn, EVEN, None, True)[1] if k.startswith("guessed")}


def test_a_code_judge_learns_and_comes_back_from_its_file(tmp_path, monkeypatch):
    torch.manual_seed(3)
    monkeypatch.setattr(helper, "WIDTH", 64)
    z, mix = torch.randn(2000, 8, 64), torch.randn(64, 128)
    examples = z.half(), z.mean(1) @ mix, z[:, :3, :1, None].expand(-1, -1, 16, 16)
    config = helper.HelperConfig(out=str(tmp_path), steps=150, batch=64, ema=0.9, bfloat16=False)
    task = helper.RecogniserTask(config, Accelerator(), 2 * EVEN, [part[:100] for part in examples])
    numbers = run(task, {name: part[100:] for name, part in zip(helper.EXAMPLE, examples, strict=True)})
    finish(task, "code_judge", numbers, {})
    made, again = task.average, load_code_recogniser(tmp_path / "code_judge.safetensors")
    assert task.validate()["cosine"] > 0.5 and torch.equal(made.scale, 2 * EVEN)
    (guessed, picture), wanted = again(z[:8]), made(z[:8])[1]
    assert torch.allclose(picture, wanted, atol=0.05) and picture.shape == (8, 3, 16, 16)
    assert guessed.shape == (8, 128) and torch.allclose(guessed.norm(dim=1), torch.ones(8), atol=1e-5)
    assert not any(p.requires_grad for p in again.parameters())


def test_a_coach_teaches_the_judge_what_an_encryptor_makes(monkeypatch):
    """Codes of another kind than the recogniser saw: it learns them from the faces that it is shown."""
    torch.manual_seed(4)
    net, mix = CodeRecogniser(8, 64, 16, 64).eval(), torch.randn(64, 16)
    seen = []

    def see(z):
        seen.append(len(z))
        return F.normalize(z.mean(1) @ mix, dim=1), z[:, :3, :1, None].expand(-1, -1, 16, 16)

    monkeypatch.setattr(helper, "FRESH", 32), monkeypatch.setattr(helper, "LATEST", 1000)
    coach = helper.Coach(net, see)
    cosines = [coach.step(3 + torch.randn(64, 8, 64)).item() for _ in range(150)]
    assert set(seen) == {32} and len(coach.examples) == 1000 and not net.training
    assert sum(cosines[-10:]) / 10 > 0.8 > 0.3 > cosines[0]


def test_two_originals_that_become_one_person_cost(drawn):
    assert linked(torch.cat([drawn[0], drawn[0]])).item() == pytest.approx(1, abs=1e-5)
    assert linked(torch.cat([drawn[0], -drawn[0]])) == 0

    def one(z, key):  # a password makes one person, whoever it meets
        return torch.cat([z[..., :KEPT], key[..., KEPT:]], -1)

    z, keys = drawn[0], drawn[1][:32].repeat(2, 1, 1, 1)
    terms = [code_loss(f, z, keys, EVEN, recogniser, True)[1] for f in (one, forget)]
    for name in ("code_linked", "guessed_linked"):
        assert terms[0][name].item() == pytest.approx(1, abs=1e-4) and terms[1][name] < 0.3


def test_running_means_of_codes_draw_them_to_the_middle(drawn):
    """The gradient is that of the squared mean, each component by its importance, for each kind of code apart."""
    shift = torch.zeros(2, 64, requires_grad=True)
    calls = []

    def moved(z, key):  # encrypted codes lie off by shift[0], opened ones by shift[1]
        calls.append(len(z))
        return torch.randn_like(z) + shift[len(calls) - 1]

    centre = torch.zeros(2, 2, 8, 64)
    centre[0], centre[1] = 0.5, -0.25
    _, terms, _ = code_loss(moved, *drawn, 2 * EVEN, None, True, centre)
    terms["code_centre"].backward()
    assert torch.allclose(centre.mean((1, 2, 3)), torch.tensor([0.49, -0.245]), atol=2e-3)  # moved on by a 50th
    assert torch.allclose(shift.grad, 2 * 2 * centre.mean((1, 2)) / (2 * 64), atol=1e-6)
    assert terms["code_centre"].item() == pytest.approx(2 * (2 * 0 - 0.49**2 - 0.245**2) / 2, abs=0.02)


def test_codes_that_no_face_has_cost(drawn):
    """Each slot its own; as long as any, but with leading components that are too long."""
    z, keys = drawn
    together = z[:, :1].expand(-1, 8, -1)
    _, terms, _ = code_loss(lambda z, key: z + torch.randn_like(z), together, keys, EVEN, None, True)
    assert terms["code_spread"].item() > 0.5

    def uneven(z, key):
        return torch.cat([z[..., :KEPT], 2**0.5 * torch.randn_like(z[..., KEPT:40]), 0 * z[..., 40:]], -1)

    even, odd = (code_loss(f, z, keys, EVEN, None, True)[1]["code_length"] for f in (forget, uneven))
    assert odd > 0.9 > 0.2 > even
