"""Publishing trained networks and gathering training data."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from riddle import config, weights
from riddle.data import DatasetMissingError
from riddle.images import to_bytes
from riddle.models.inversion import Encoder
from riddle.models.mobilestylegan import MobileStyleGAN
from riddle.models.stylegan2 import Generator
from riddle.networks import fill_generator
from riddle.presets import get
from riddle.training import prepare, publish, recipe

SMOKE = get("smoke")


@pytest.fixture
def zoo_folder(tmp_path, monkeypatch):
    """An empty place for bundled files."""
    monkeypatch.setattr(config, "bundled_folder", lambda kind: tmp_path / "data" / kind)
    return tmp_path / "data" / "zoo" / "smoke"


def smoke_generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return Generator.of(SMOKE)


def test_publish_copies_networks_with_their_metadata_and_thinned_logs(tmp_path, zoo_folder):
    run = tmp_path / "run"
    state = Encoder(SMOKE).state_dict()
    weights.save_tensors(run / "encoder.safetensors", state, {"steps": 7})
    weights.save_tensors(run / "encryptor.safetensors", {"x": torch.ones(2)}, {"kind": "mlp"})
    rows = [{"step": s, "loss": 1 / s} for s in [*range(1, 301), *range(250, 401)]]  # stopped at 300, resumed at 250
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    publish.publish(SMOKE, {"encoder": run, "mlp": run})
    stored = weights.load_tensors(zoo_folder / "encoder.safetensors")
    assert weights.load_metadata(zoo_folder / "encoder.safetensors") == {"steps": "7"}
    assert weights.load_metadata(zoo_folder / "encryptor_mlp.safetensors") == {"kind": "mlp"}
    assert stored.keys() == state.keys()
    assert torch.allclose(stored["toplayer.weight"], state["toplayer.weight"], atol=2e-3)
    steps = [json.loads(line)["step"] for line in (zoo_folder / "runs" / "encoder.jsonl").read_text().splitlines()]
    assert len(steps) == 100 and steps == sorted(set(steps)) and (steps[0], steps[-1]) == (1, 400)


def test_a_network_of_another_preset_is_refused_before_anything_is_written(tmp_path, zoo_folder, monkeypatch):
    for name, about in {"mine": {}, "other": {"preset": "mobile"}}.items():
        weights.save_tensors(tmp_path / name / "encryptor.safetensors", {"x": torch.ones(2)}, about)
    networks = [f"--encryptor={part}={tmp_path / name}" for part, name in (("mlp", "mine"), ("riddle", "other"))]
    monkeypatch.setattr("sys.argv", ["publish.py", "--preset", "smoke", *networks])
    with pytest.raises(SystemExit, match="publish: error: .*other.*trained for preset mobile, not for smoke; give"):
        recipe.command(publish.main)
    assert not zoo_folder.exists()


def test_codes_without_faces_say_how_to_make_them(tmp_path, capsys):
    with pytest.raises(SystemExit):
        prepare.main(["codes", "--faces", str(tmp_path / "faces.npy"), "--out", str(tmp_path / "codes.npy")])
    assert "faces.npy does not exist; make it first: prepare faces --preset mobile" in capsys.readouterr().err


def test_a_published_cut_and_the_statistics_of_codes_make_the_generator(tmp_path, zoo_folder, monkeypatch):
    """What the wheel lacks, and no more; the statistics in full precision, for they decide what a password means."""
    channels = {4: 32, 8: 32, 16: 16, 32: 16, 64: 8, 128: 8, 256: 8, 512: 4}

    def small(preset=None):
        torch.manual_seed(0)
        return MobileStyleGAN(cuts=(128,), channels=channels, dim=16)

    monkeypatch.setattr(publish, "build_generator", small)
    trained = small()
    for parameter in trained.cuts["128"].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights.save_tensors(tmp_path / "cut" / "cut.safetensors", trained.cuts["128"].state_dict(), {"steps": 9})
    publish.publish_cuts(replace(SMOKE, name="mobile"), {"128": tmp_path / "cut"})
    file = zoo_folder.parent / "mobile" / "generator.safetensors"
    assert weights.load_metadata(file)["steps_128"] == "9"
    filled = fill_generator(small(), weights.load_tensors(file))
    measured = small().codes.measure(small().map)
    assert all(torch.equal(v, filled.codes.state_dict()[k]) for k, v in measured.state_dict().items())
    assert not set(weights.load_tensors(file)) & {k for k, _ in small().named_parameters() if not k.startswith("cuts.")}
    for k, v in trained.cuts["128"].state_dict().items():
        assert torch.allclose(filled.cuts["128"].state_dict()[k], v, atol=1e-3), k


def test_samples_follow_the_fixed_rule(tmp_path, zoo_folder):
    generator = smoke_generator()
    weights.save_tensors(zoo_folder / "generator.safetensors", generator.state_dict(), dtype=torch.float32)
    publish.draw_samples(SMOKE, tmp_path / "samples")
    files = sorted(p.name for p in (tmp_path / "samples").glob("*.jpg"))
    assert files == [f"{k:03d}.jpg" for k in range(48)]
    z = torch.randn(SMOKE.style_dim, generator=torch.Generator().manual_seed(5))
    mean = generator.mean_latent()
    w = mean + 0.7 * (generator.map(z[None])[0] - mean)
    with torch.no_grad():
        face = generator(w.expand(1, SMOKE.n_latent, -1))[0]
    stored = Image.fromarray(to_bytes(face[None])[0])
    stored.save(tmp_path / "drawn.jpg", quality=95, subsampling=0)
    drawn = [np.array(Image.open(p), np.int16) for p in (tmp_path / "drawn.jpg", tmp_path / "samples" / "005.jpg")]
    assert np.abs(drawn[0] - drawn[1]).max() <= 2
    codes = weights.load_tensors(tmp_path / "samples" / "codes.safetensors")["codes"]
    assert torch.allclose(codes[5, 0], w, atol=2e-3)


def test_codes_of_faces_of_their_mirror_images_and_of_drawn_faces(tmp_path, zoo_folder):
    generator, encoder = smoke_generator(), Encoder(SMOKE).eval()
    weights.save_tensors(zoo_folder / "generator.safetensors", generator.state_dict(), dtype=torch.float32)
    weights.save_tensors(tmp_path / "encoder.safetensors", encoder.state_dict(), dtype=torch.float32)
    drawn = prepare.drawn_faces("smoke", 7)
    assert drawn.shape == (7, 32, 32, 3) and drawn.dtype == np.uint8
    assert np.abs(drawn[-1].astype(int) - to_bytes(generator(generator.sample(2, 0.7, seed=13)))[-1]).max() <= 1
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "faces.npy", x)
    files = ["--faces", str(tmp_path / "faces.npy"), "--encoder", str(tmp_path / "encoder.safetensors")]
    prepare.main(["codes", "--preset", "smoke", *files, "--drawn", "7", "--out", str(tmp_path / "codes.npy")])
    made = torch.from_numpy(np.load(tmp_path / "codes.npy")).float()
    pictures = np.concatenate([x, x[:, :, ::-1], drawn])
    with torch.no_grad():
        wanted = encoder(torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2) / 127.5 - 1)
    assert made.shape == (3 + 3 + 7, SMOKE.n_latent, SMOKE.style_dim) and torch.allclose(made, wanted, atol=5e-3)


def test_faces_larger_than_the_memory_are_written_one_by_one_from_a_zip(home, monkeypatch):
    """300 faces of 14 MB are written within 3 MB, and read a part at a time."""
    monkeypatch.setenv("RIDDLE_DATA", str(home))
    rng, seen = np.random.default_rng(0), {}
    with zipfile.ZipFile(home / "images1024x1024.zip", "w") as archive:
        for i in range(300):
            seen[i] = np.full((128, 128, 3), rng.integers(0, 256, 3), np.uint8)
            picture = io.BytesIO()
            Image.fromarray(seen[i]).save(picture, "png")
            archive.writestr(f"images1024x1024/{i // 100:02d}000/{i:05d}.png", picture.getvalue())
    out = home / "faces.npy"
    prepare.faces("smoke", "train", home / "first.npy")  # imports
    tracemalloc.start()
    counts = prepare.faces("mobile", "train", out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    made = np.load(out, mmap_mode="r")
    assert counts == {"ffhq": 300} and made.shape == (300, 128, 128, 3) and made.dtype == np.uint8
    assert peak < 3e6 < made.nbytes
    assert all(np.array_equal(made[i], seen[i]) for i in seen)


def test_faces_of_the_sets_are_joined_and_counted(home, picture, monkeypatch, capsys):
    monkeypatch.setenv("RIDDLE_DATA", str(home / "sets"))
    with pytest.raises(DatasetMissingError, match="(?s)ffhq.*celebamask_hq"):
        prepare.faces("smoke", "val", home / "faces.npy")
    for i in range(3):
        picture(home / "sets" / "ffhq" / f"{i:05d}.png", seed=i, size=(32, 32))
    listing = {"ffhq": {"train": ["00002.png"], "val": ["00000.png", "00001.png"], "test": []}}
    (home / "sets" / "splits.json").write_text(json.dumps(listing))
    words = ["faces", "--preset", "smoke", "--split", "val", "--out", str(home / "runs" / "faces_val.npy")]
    prepare.main([*words, "--limit", "1"])
    assert len(np.load(home / "runs" / "faces_val.npy")) == 1
    prepare.main(words)
    made = np.load(home / "runs" / "faces_val.npy")
    first = np.asarray(Image.open(home / "sets" / "ffhq" / "00000.png"))
    assert made.shape == (2, 32, 32, 3) and np.array_equal(made[0], first)
    assert json.loads((home / "runs" / "faces_val_sets.json").read_text()) == {"ffhq": 2}
    assert "celebamask_hq (val): left out" in capsys.readouterr().out
