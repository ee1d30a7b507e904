"""The systems that the paper compares with: what each sees, what its key does, what it learns from."""

import pytest
import torch
import torch.nn.functional as F

from riddle.baselines import (
    BASELINES,
    ciagan,
    deepprivacy,
    falco,
    fit,
    inpainting,
    personal,
    random_keys,
    redraw,
    regions,
    reversible,
)
from riddle.evaluation.rows import paper
from riddle.images import to_bytes
from riddle.models.parsing import CLASSES
from riddle.training.frozen import LossNetworks
from riddle.training.loop import make_accelerator
from riddle.weights import WeightsMissingError, save_tensors

pytestmark = pytest.mark.usefixtures("own_precision")
INPAINTING = {"deepprivacy": deepprivacy, "ciagan": ciagan}


def a_face(n=2, side=128):
    """Labels (n, side, side): a round face with eyes, ears, nose and mouth, in hair."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    seen = torch.full((side, side), CLASSES.index("hair"))
    seen[(x - 64) ** 2 + (y - 70) ** 2 < 30**2] = CLASSES.index("skin")
    places = {"l_eye": (52, 62), "r_eye": (76, 62), "nose": (64, 72), "mouth": (64, 86), "l_ear": (30, 70)}
    for name, (left, top) in places.items():
        seen[top - 3 : top + 4, left - 3 : left + 4] = CLASSES.index(name)
    return seen[None].repeat(n, 1, 1).to(torch.uint8)


def parser_of(seen):
    """A parser that sees the same in every picture, whatever its pixels."""
    logits = 20 * F.one_hot(seen.long(), len(CLASSES)).movedim(3, 1).float()
    return lambda faces: logits[: len(faces)] + 0 * faces.mean()


@pytest.fixture
def networks(narrow, encoder, monkeypatch):
    """Small untrained networks in the place of the bundled ones: {name: its Redraw}."""
    made = {name: redraw.Redraw(narrow, encoder, module.SYSTEM).eval() for name, module in INPAINTING.items()}
    monkeypatch.setattr(redraw, "load", lambda system: (made[system.name], parser_of(a_face(4)), narrow))
    return made


# ---- one interface


def test_every_system_of_the_paper_is_there_under_the_papers_name():
    wanted = {"CIAGAN", "FIT", "Personal", "DeepPrivacy"}
    assert {s.label for s in BASELINES.values() if s.keyed} == wanted <= set(paper().method)
    assert {s.label for s in BASELINES.values() if s.reversible} == {"FIT", "Personal"}
    assert BASELINES["blur"].label == "face blurring (sigma 1/16 of the crop)"  # part of the names of cached results
    assert BASELINES["mosaic"].label == "mosaicing (8 x 8 blocks)"


def test_what_a_system_cannot_do_has_an_error():
    faces = torch.zeros(2, 3, 128, 128)
    with pytest.raises(ValueError, match="CIAGAN keeps nothing to restore from"):
        BASELINES["ciagan"].restore(faces, random_keys(2, 0))
    for keys in (None, random_keys(3, 0)):
        with pytest.raises(ValueError, match="DeepPrivacy needs one key for each of 2 faces"):
            BASELINES["deepprivacy"].protect(faces, keys)
    with pytest.raises(ValueError, match=r"ciagan takes faces \(N, 3, 128, 128\)"):
        BASELINES["ciagan"].protect(faces[..., :64], random_keys(2, 0))


# ---- what may be known of a face


def test_the_box_holds_the_face_and_no_more():
    mask = regions.box(a_face())[0, 0]
    rows, columns = mask.sum(1).nonzero().flatten(), mask.sum(0).nonzero().flatten()
    edges = [rows.min(), rows.max(), columns.min(), columns.max()]
    assert mask.sum() == len(rows) * len(columns)
    assert all(abs(int(a) - b) <= 4 for a, b in zip(edges, (41, 99, 35, 93), strict=True))
    assert (mask * regions.of(a_face(), regions.INSIDE)[0, 0]).sum() > 0.995 * regions.of(a_face(), regions.INSIDE)[
        0
    ].sum()


@pytest.mark.parametrize("look", [regions.box, regions.region])
def test_where_no_face_is_found_the_middle_is_hidden(look):
    mask = look(torch.zeros(1, 128, 128, dtype=torch.uint8))[0, 0]
    assert mask[70, 64] == 1 and mask[2, 2] == 0 and 0.3 < mask.mean() < 0.5


def test_the_region_closes_the_face_and_the_outline_runs_around_it():
    seen = a_face(1)
    seen[0, 60:62, 60:62] = CLASSES.index("hair")  # a speck
    mask = regions.region(seen)
    assert (mask >= regions.of(seen, regions.INSIDE)).all() and mask[0, 0, 61, 61] == 1
    outline, mouth, bridge = regions.landmarks(seen)[0]
    assert outline[70, 64] == 0 and outline[70].sum() == 4  # two pixels on each side
    assert mouth[86, 64] == 0 and mouth[83, 64] == 1 and bridge[72, 64] == 1 and bridge[60].sum() == 0


def test_keypoints_are_spots_at_the_parts_that_are_there():
    maps = regions.points(a_face())
    assert maps.shape == (2, 5, 128, 128)
    places = {name: divmod(int(maps[0, i].argmax()), 128) for i, name in enumerate(regions.POINTS)}
    assert places["l_eye"] == (62, 52) and places["nose"] == (72, 64) and places["l_ear"] == (70, 30)
    assert maps[:, 4].sum() == 0 and maps[0, 0].max() == 1  # no right ear


def test_a_drawn_face_fills_the_mask_and_fades_out_around_it():
    mask = regions.box(a_face(1))
    out = regions.pasted(torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128), mask)
    assert (out[:, :1][mask == 1] == 1).all() and (out[:, :1][regions.grown(mask, 4) == 0] == 0).all()
    row = out[0, 0, 70, 64:]
    assert (row.diff() <= 0).all() and ((row > 0) & (row < 1)).sum() >= 3


def test_landmark_losses_are_least_where_the_parser_sees_what_was_asked():
    seen, moved = a_face(), a_face().roll(6, 2)
    right, wrong = parser_of(seen)(torch.zeros(2, 3, 1, 1)), parser_of(moved)(torch.zeros(2, 3, 1, 1))
    maps = regions.points(seen)
    assert regions.points_loss(right, maps) < 0.1 * regions.points_loss(wrong, maps)
    assert regions.shape_loss(right, seen) < 0.01 < regions.shape_loss(wrong, seen)
    assert regions.points_loss(right, 0 * maps) == 0


# ---- inpainting


@pytest.mark.parametrize("name", INPAINTING)
def test_what_lies_inside_the_mask_is_never_seen(networks, name):
    faces, keys = torch.rand(2, 3, 128, 128) * 2 - 1, random_keys(2, 0)
    mask, _ = INPAINTING[name].SYSTEM.look(a_face())
    first = BASELINES[name].protect(faces, keys)
    other = torch.where(mask == 1, torch.rand(2, 3, 128, 128) * 2 - 1, faces)
    assert torch.equal(BASELINES[name].protect(other, keys), first)
    beyond = regions.grown(mask, 4) == 0
    assert torch.equal(first[:, :1][beyond], faces[:, :1][beyond])
    around = torch.where(mask == 1, faces, -faces)
    assert not torch.equal(BASELINES[name].protect(around, keys)[:, :1][mask == 1], first[:, :1][mask == 1])


@pytest.mark.parametrize("name", INPAINTING)
def test_the_key_chooses_the_face_and_nothing_else_does(networks, name):
    faces = torch.rand(1, 3, 128, 128).repeat(3, 1, 1, 1) * 2 - 1
    out = BASELINES[name].protect(faces, torch.tensor([7, 8, 7]))
    torch.testing.assert_close(out[0], out[2])
    assert (out[0] - out[1]).abs().max() > 1e-3
    torch.testing.assert_close(BASELINES[name].protect(faces[:1], torch.tensor([8]))[0], out[1], atol=1e-3, rtol=0)


def test_ciagan_has_as_many_people_as_its_paper(narrow):
    keys = torch.tensor([3, 3 + ciagan.IDENTITIES, 4])
    z = ciagan.person(narrow, keys)
    assert ciagan.IDENTITIES == 1200 and torch.equal(z[0], z[1]) and not torch.equal(z[0], z[2])


def test_the_trained_part_of_a_network_is_all_that_its_file_needs(networks, narrow, encoder):
    network, system = networks["ciagan"], ciagan.SYSTEM
    with torch.no_grad():
        for p in network.own_state().values():
            p.add_(0.01)
    again = redraw.Redraw(narrow, encoder, system).load_own(network.own_state()).eval()
    given = [torch.rand(1, c, 128, 128) for c in (3, 1, 3)] + [torch.randn(1, 32)]
    torch.testing.assert_close(again(*given), network(*given))
    assert not any(k.startswith(("body.stages.5", "body.stages.6")) for k in network.own_state())
    with pytest.raises(RuntimeError, match="missing"):
        again.load_own({})


def test_weights_of_another_encoder_are_refused(tmp_path, monkeypatch):
    for part in ("ciagan", "encoder"):
        save_tensors(tmp_path / f"{part}.safetensors", {"x": torch.zeros(1)}, {"encoder": "0123"})
    monkeypatch.setattr(redraw, "bundled", lambda preset, part: tmp_path / f"{part}.safetensors")
    redraw.load.cache_clear()
    with pytest.raises(WeightsMissingError, match="belongs to another encoder; train it anew"):
        redraw.load(ciagan.SYSTEM)


TASKS = {"deepprivacy": deepprivacy.DeepPrivacyTask, "ciagan": ciagan.CiaganTask}


@pytest.mark.parametrize("name", INPAINTING)
def test_a_step_trains_the_network_and_its_critic(tmp_path, narrow, encoder, monkeypatch, name):
    monkeypatch.setattr(ciagan, "IDENTITIES", 8)
    monkeypatch.setattr(inpainting, "R1_EVERY", 2)
    frozen = LossNetworks(lambda f: f.mean((2, 3)) + 0.1, lambda f: [F.avg_pool2d(f, 8)])
    faces = torch.from_numpy(to_bytes(torch.rand(4, 3, 128, 128) * 2 - 1))
    config = inpainting.RedrawConfig(
        out=str(tmp_path), data="", val="", bfloat16=False, batch=2, warmup=0.0, identity=0.1, synthetic=1.0
    )
    accelerator, parser = make_accelerator(config), parser_of(a_face(16))
    task = TASKS[name](config, accelerator, INPAINTING[name].SYSTEM, narrow, encoder, frozen, parser, faces)
    before = {k: [p.clone() for p in n.parameters()] for k, n in task.networks.items()}
    for _ in range(2):
        numbers = task.step({"faces": faces[:2]}, 0.0)
    assert {"context", "adversarial", "known", "landmarks", "critic"} <= numbers.keys()
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in numbers.values())
    for key in ("redraw", "critic"):
        moved = [not torch.equal(a, b) for a, b in zip(before[key], task.networks[key].parameters(), strict=True)]
        trained = [p.requires_grad for p in task.networks[key].parameters()]
        assert moved == trained if key == "redraw" else all(moved), key
    assert task.samples().shape == (5 * 4, 3, 128, 128)
    assert set(task.validate()) == {"cosine", "keys", "people"}
    assert BASELINES[name].file == task.system.name


# ---- a code, optimised


def test_falco_moves_the_middle_slots_of_a_drawn_neighbour_away_from_the_person(narrow, encoder, home, monkeypatch):
    project = torch.randn(16, 48)
    embed = lambda f: F.adaptive_avg_pool2d(f, 4).flatten(1) @ project.T  # noqa: E731
    monkeypatch.setattr(falco, "load", lambda: (narrow, encoder, embed))
    monkeypatch.setattr(falco, "DRAWN", 6)
    monkeypatch.setattr(falco, "ATTRIBUTES", 1.0)  # features of random weights outweigh the identity otherwise
    falco.nobody.cache_clear()
    drawn, looks = falco.nobody()
    assert drawn.shape == (6, 10, 32) and torch.equal(drawn[:, 0], drawn[:, 9])
    falco.nobody.cache_clear()
    with monkeypatch.context() as later:
        later.setattr(falco, "attributes", lambda *_: pytest.fail("they are kept in the cache"))
        assert all(map(torch.equal, falco.nobody(), (drawn, looks)))
    faces, rest = torch.rand(2, 3, 128, 128) * 2 - 1, [0, 1, 2, 8, 9]
    with torch.no_grad():
        own = encoder.read(faces, int(encoder.passes))[0]
    made = {}
    for steps in (0, 6):
        monkeypatch.setattr(falco, "STEPS", steps)
        made[steps] = falco.optimised(faces)
        torch.testing.assert_close(made[steps][:, rest], own[:, rest])
    for face, z in zip(faces, made[0], strict=True):
        apart = [(falco.attributes(encoder, face[None])[0] - look).abs().sum() for look in looks]
        torch.testing.assert_close(z[3:8], drawn[int(torch.stack(apart).argmin()), 3:8])
    shown = {n: embed(narrow(encoder.to_w(z))) for n, z in made.items()}  # as it is optimised: not clipped
    alike = {n: F.cosine_similarity(e, embed(faces)).abs() for n, e in shown.items()}
    assert (alike[6] < alike[0]).all()
    out = BASELINES["falco"].protect(faces)
    torch.testing.assert_close(out, encoder.draw(made[6]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="FALCO keeps nothing to restore from"):
        BASELINES["falco"].restore(out, random_keys(2, 0))
    with pytest.raises(
        WeightsMissingError, match=r"those of mobile, for faces \(N, 3, 128, 128\), not \(2, 3, 64, 64\)"
    ):
        falco.protect(faces[..., :64, :64])
    falco.nobody.cache_clear()


# ---- reversible systems


def test_fits_password_is_the_keys_lowest_bits():
    bits = fit.bits_of(torch.tensor([0b101, 0b101 + 2**16]))
    assert bits.shape == (2, 16) and torch.equal(bits[0], bits[1])
    assert (bits[0] == 1).nonzero().flatten().tolist() == [0, 2] and (bits[0].abs() == 1).all()


@pytest.fixture
def reversible_networks(narrow, encoder, monkeypatch):
    """Small untrained networks in the place of the reversible systems' own: {name: its Redraw}."""
    made = {m.SYSTEM.name: redraw.Redraw(narrow, encoder, m.SYSTEM).eval() for m in (fit, personal)}
    for network in made.values():
        torch.nn.init.normal_(network.mix[-1].weight, std=0.1)
    monkeypatch.setattr(reversible, "load", lambda system: (made[system.name], None, narrow))
    return made


def test_fit_restores_with_the_inverse_password(reversible_networks):
    faces, keys = torch.rand(3, 3, 128, 128) * 2 - 1, torch.tensor([7, 8, 7])
    locked = BASELINES["fit"].protect(faces, keys)
    assert locked.shape == faces.shape and locked.abs().max() <= 1
    opened = BASELINES["fit"].restore(locked, keys)
    with torch.no_grad():
        expected = reversible_networks["fit"].again(locked, -fit.bits_of(keys))[1]
    torch.testing.assert_close(opened, expected, atol=1e-3, rtol=0)
    assert (opened[1] - BASELINES["fit"].restore(locked, keys + 1)[1]).abs().max() > 1e-3
    one = faces[:1].repeat(2, 1, 1, 1)
    a, b = BASELINES["fit"].protect(one, torch.tensor([1, 2]))
    assert (a - b).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"fit takes faces \(N, 3, 128, 128\)"):
        BASELINES["fit"].protect(faces[..., :20], keys)


def test_an_identity_is_turned_by_the_angle_and_back_by_its_own_key_alone():
    draw = torch.Generator().manual_seed(0)
    e = F.normalize(torch.randn(4, 128, generator=draw), dim=1)
    turned = personal.turn(e, torch.tensor([1, 2, 1, 3]), 1.2)
    torch.testing.assert_close((e * turned).sum(1), torch.full((4,), 1.2).cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(personal.turn(turned, torch.tensor([1, 2, 1, 3]), -1.2), e, atol=1e-5, rtol=0)
    wrong = personal.turn(turned, torch.tensor([4, 5, 6, 7]), -1.2)
    assert (F.cosine_similarity(wrong, e) < 0.7).all()
    first, second = personal.turn(e[:1].repeat(2, 1), torch.tensor([1, 2]))
    assert F.cosine_similarity(first, second, dim=0) < 0.5


def test_personal_turns_what_the_recogniser_sees(reversible_networks):
    network, faces, keys = reversible_networks["personal"], torch.rand(3, 3, 128, 128) * 2 - 1, torch.tensor([7, 8, 7])
    for action, angle in (("protect", personal.ANGLE), ("restore", -personal.ANGLE)):
        out = getattr(BASELINES["personal"], action)(faces, keys)
        with torch.no_grad():
            told = personal.vectors(network.recognise(faces), network.people, keys, angle)
            expected = network.again(faces, told)[1]
        torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)
    assert not torch.equal(BASELINES["personal"].restore(faces, torch.tensor([9, 8, 7]))[0], out[0])


def test_whitened_embeddings_stand_at_a_right_angle_after_the_turn(reversible_networks, narrow):
    people = personal.measured(reversible_networks["personal"], narrow, n=200)
    embedded, keys = people[0] + torch.randn(5, 128) @ people[1:].T, torch.arange(5)
    white = personal.whitened(embedded, people)
    torch.testing.assert_close(white @ people[1:].T + people[0], embedded, atol=1e-3, rtol=0)
    turned = personal.vectors(embedded, people, keys, personal.ANGLE)
    assert F.cosine_similarity(personal.whitened(turned, people), white).abs().max() < 1e-3
    torch.testing.assert_close(personal.vectors(turned, people, keys, -personal.ANGLE), embedded, atol=1e-3, rtol=0)


@pytest.mark.parametrize("module", [fit, personal], ids=["fit", "personal"])
def test_a_step_trains_a_reversible_system(tmp_path, narrow, encoder, module):
    faces = torch.from_numpy(to_bytes(torch.rand(2, 3, 128, 128) * 2 - 1))
    options = {"out": str(tmp_path), "data": "", "val": "", "bfloat16": False, "batch": 1, "warmup": 0.0}
    frozen = LossNetworks(lambda f: F.adaptive_avg_pool2d(f, 8).flatten(1)[:, :128], lambda f: [F.avg_pool2d(f, 8)])
    name = module.SYSTEM.name.capitalize()
    config = getattr(module, f"{name}Config")(**options)
    task = getattr(module, f"{name}Task")(config, make_accelerator(config), narrow, encoder, frozen, faces)
    before = {name: p.clone() for name, p in task.network.named_parameters() if p.requires_grad}
    numbers = task.step({"faces": faces[:1]}, 0.0)
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in numbers.values())
    after = dict(task.network.named_parameters())
    assert [name for name, p in before.items() if torch.equal(p, after[name])] == []
    assert task.samples().shape == (5 * 2, 3, 128, 128)
    assert {"protected", "restored", "wrong", "keys"} <= task.validate().keys()
