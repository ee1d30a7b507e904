"""Publishing trained networks and gathering training data."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from riddle import config, zoo
from riddle.models.inversion import Encoder
from riddle.models.stylegan2 import Generator
from riddle.presets import get
from riddle.training import blend, prepare, publish, settings, start

SMOKE = get("smoke")


@pytest.fixture
def zoo_folder(tmp_path, monkeypatch):
    """An empty place for bundled files."""
    monkeypatch.setattr(config, "bundled_folder", lambda kind: tmp_path / "data" / kind)
    return tmp_path / "data" / "zoo" / "smoke"


def smoke_generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return Generator.of(SMOKE)


def test_a_blend_lies_between_two_trainings_and_says_which(tmp_path):
    for name, value, steps in (("a", 1.0, 3), ("b", 2.0, 5)):
        tensors = {"weight": torch.full((2, 3), value), "seen": torch.tensor(steps)}
        zoo.save_tensors(tmp_path / name / "encoder.safetensors", tensors, {"steps": steps})
    folders = [str(tmp_path / name) for name in "ab"]
    blend.main(["encoder", "--between", *folders, "--share", "0.25", "--out", str(tmp_path / "out")])
    made = tmp_path / "out" / "encoder.safetensors"
    loaded, about = zoo.load_tensors(made), zoo.load_metadata(made)
    assert torch.equal(loaded["weight"], torch.full((2, 3), 1.25)) and int(loaded["seen"]) == 5
    hashes = [zoo.sha256(tmp_path / name / "encoder.safetensors")[:12] for name in "ab"]
    assert about["steps"] == "5" and json.loads(about["blend"]) == {"share": 0.25, "between": hashes}


def test_no_blend_of_what_does_not_fit():
    one = {"weight": torch.zeros(2)}
    with pytest.raises(ValueError, match="0..1"):
        blend.blend(one, one, 1.5)
    for other in ({"weight": torch.zeros(3)}, {"bias": torch.zeros(2)}):
        with pytest.raises(ValueError, match="two trainings of one network"):
            blend.blend(one, other, 0.5)


def test_publish_copies_networks_with_their_metadata_and_thinned_logs(tmp_path, zoo_folder):
    run = tmp_path / "run"
    run.mkdir()
    state = smoke_generator().state_dict()
    zoo.save_tensors(run / "generator.safetensors", state, {"steps": 7})
    zoo.save_tensors(run / "encoder.safetensors", Encoder(SMOKE).state_dict())
    rows = [{"step": s, "loss": 1 / s} for s in [*range(1, 301), *range(250, 401)]]  # stopped at 300, resumed at 250
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    publish.publish(SMOKE, {"inversion": run})
    stored = zoo.load_tensors(zoo_folder / "generator.safetensors")
    assert zoo.load_metadata(zoo_folder / "generator.safetensors") == {"steps": "7"}
    assert stored.keys() == state.keys()
    assert torch.allclose(stored["conv1.conv.weight"], state["conv1.conv.weight"], atol=2e-3)
    steps = [json.loads(line)["step"] for line in (zoo_folder / "runs" / "inversion.jsonl").read_text().splitlines()]
    assert len(steps) == 200 and steps == sorted(set(steps)) and (steps[0], steps[-1]) == (1, 400)


def test_encoder_and_generator_share_the_eigenfaces(tmp_path, zoo_folder):
    """One file holds them; the other names it, loads them from there, and says so when it is gone."""
    preset = replace(SMOKE, name="based", base=1)
    run, folder = tmp_path / "run", zoo_folder.parent / "based"
    generator, encoder = Generator.of(preset), Encoder(preset)
    for net in (generator, encoder):
        net.base.mean.copy_(torch.linspace(-1, 1, net.base.SIZE))
    for name, net in (("generator", generator), ("encoder", encoder)):
        zoo.save_tensors(run / f"{name}.safetensors", net.state_dict())
    publish.publish(preset, {"inversion": run})
    with safe_open(folder / "encoder.safetensors", framework="pt") as f:
        assert "base.mean" not in f.keys() and "base.basis" not in f.keys()  # noqa: SIM118
    stored = zoo.load_tensors(folder / "encoder.safetensors")
    assert stored.keys() == encoder.state_dict().keys()
    assert torch.allclose(stored["base.mean"], encoder.base.mean, atol=1e-3)
    (folder / "generator.safetensors").unlink()
    with pytest.raises(zoo.WeightsMissingError, match="put generator.safetensors beside it"):
        zoo.load_tensors(folder / "encoder.safetensors")


def test_samples_follow_the_fixed_rule(tmp_path, zoo_folder):
    generator = smoke_generator()
    zoo.save_tensors(zoo_folder / "generator.safetensors", generator.state_dict(), dtype=torch.float32)
    publish.draw_samples(SMOKE, tmp_path / "samples")
    files = sorted(p.name for p in (tmp_path / "samples").glob("*.png"))
    assert files == [f"{k:03d}.png" for k in range(48)]
    z = torch.randn(SMOKE.style_dim, generator=torch.Generator().manual_seed(5))
    mean = generator.mean_latent()
    w = mean + 0.7 * (generator.map(z[None])[0] - mean)
    with torch.no_grad():
        face = generator(w.expand(1, SMOKE.n_latent, -1))[0]
    drawn = torch.from_numpy(np.array(Image.open(tmp_path / "samples" / "005.png"))).permute(2, 0, 1) / 127.5 - 1
    assert (drawn - face.clamp(-1, 1)).abs().max() < 0.02
    codes = zoo.load_tensors(tmp_path / "samples" / "codes.safetensors")["codes"]
    assert torch.allclose(codes[5, 0], w, atol=2e-3)


def test_codes_of_a_face_and_of_its_mirror_image(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(SMOKE).eval()
    zoo.save_tensors(tmp_path / "encoder.safetensors", encoder.state_dict(), dtype=torch.float32)
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    codes = torch.from_numpy(prepare.codes("smoke", x, str(tmp_path / "encoder.safetensors"))).float()
    with torch.no_grad():
        wanted = encoder(torch.from_numpy(x[:, :, ::-1].copy()).permute(0, 3, 1, 2) / 127.5 - 1)
    assert codes.shape == (6, SMOKE.n_latent, SMOKE.style_dim)
    assert torch.allclose(codes[3:], wanted, atol=5e-3)


def test_inversion_training_goes_on_from_published_weights(tmp_path):
    assert settings.changed(settings.InversionConfig(), ["lr=1e-4", "adversarial_every=3"]).adversarial_every == 3
    with pytest.raises(ValueError, match="identiy"):
        settings.changed(settings.InversionConfig(), ["identiy=1"])
    with pytest.raises(FileNotFoundError, match=r"generator\.safetensors"):
        start.load_published(tmp_path)
    zoo.save_tensors(tmp_path / "generator.safetensors", smoke_generator().state_dict())
    zoo.save_tensors(tmp_path / "encoder.safetensors", Encoder(SMOKE).state_dict())
    published = start.load_published(tmp_path)
    assert set(published) == {"generator", "encoder"}
    Encoder(SMOKE).load_state_dict(published["encoder"])
