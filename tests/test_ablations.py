"""The ablations: named configurations, what their training leaves, Table 5's rows, Figure 9's faces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import riddle
from riddle import ablations, paper, protocols, reporting, stages, table3, tables
from riddle.metrics.fidelity import frechet_distance
from riddle.networks import CONTROLS
from riddle.runs import Run
from riddle.weights import WeightsMissingError, save_tensors


def test_training_that_differs_is_named(home):
    folder = home / "home" / "data" / "zoo" / "mobile"

    def put(part, steps, minutes, **weights):
        about = {"steps": steps, "seed": 0, "weights": json.dumps({"recovery": 1.0, "diversity": 8.0} | weights)}
        about["ablation"] = json.dumps({"shared": {"minutes": minutes, "seed": 0}, "files": {"generator": "abc"}})
        save_tensors(folder / f"{part}.safetensors", {"x": torch.zeros(1)}, about)

    put("encryptor", 100, 20.0)
    put("encryptor_nodiv", 140, 20.0, diversity=0.0)
    put("encryptor_mlp", 300, 30.0, recovery=3.0)
    assert ablations.trained("mobile", "nodiv")["steps done"] == "140" and ablations.trained("mobile", "datafree") == {}
    differing = ablations.differences("mobile")
    assert differing == {"mlp": "minutes 30.0 (full: 20.0); weight recovery 3.0 (full: 1.0)", "nodiv": ""}
    assert ablations.trained("mobile", "reflection") == {"steps done": "0"}


# ---- Table 5


PEOPLE, PASSWORDS, DIM = 40, protocols.PASSWORDS, 128


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pairs():
    """Two folds; the first PEOPLE names are first photos, the next their second ones; strangers beside them."""
    names = tuple(f"p{i:02d}_{k}" for k in (1, 2) for i in range(PEOPLE))
    i = np.arange(PEOPLE)
    a, b = np.concatenate([i, i]), np.concatenate([i + PEOPLE, (i + 7) % PEOPLE + PEOPLE])
    same = np.arange(2 * PEOPLE) < PEOPLE
    return protocols.Pairs(names, a, b, same, np.concatenate([i, i]) % 2)


@pytest.fixture
def judge(pairs):
    """Full: strangers, diverse, restored. Without L_div: one stranger a person. MLP: a quarter of the faces stay."""
    draw = np.random.default_rng(0)
    person, half = unit(draw.normal(size=(PEOPLE, DIM))), np.arange(DIM) < DIM // 2
    photo = unit(np.concatenate([person, person + 0.05 * unit(draw.normal(size=(PEOPLE, DIM)))]) * half)
    stranger = unit(draw.normal(size=photo.shape) * ~half)  # at right angles to everybody
    kept = stranger.copy()
    kept[PEOPLE : PEOPLE + PEOPLE // 4] = photo[PEOPLE : PEOPLE + PEOPLE // 4]
    one = np.repeat(unit(draw.normal(size=(PEOPLE, 1, DIM))), PASSWORDS, 1)
    many = unit(draw.normal(size=(PEOPLE, PASSWORDS, DIM)))
    lost = stranger.copy()
    lost[PEOPLE + 1] = np.nan
    embeddings = {
        "photo": photo, "inverted": photo, "riddle": lost, "riddle-restored": photo, "riddle-passwords": many,
        "nodiv": stranger, "nodiv-restored": photo, "nodiv-passwords": one,
        "mlp": kept, "mlp-restored": stranger, "mlp-passwords": many,
    }  # fmt: skip
    others = ("datafree", "coupling", *CONTROLS)
    absent = [f"{v}{action}" for v in others for action in ("", "-restored", "-passwords")]
    reasons = dict.fromkeys(absent, "weights missing (none)")
    return protocols.Judge("edgeface-xs", embeddings, lambda a, b: (a * b).sum(-1), 0.5, reasons)


@pytest.fixture
def records(pairs, judge):
    people = dict.fromkeys(("riddle", "nodiv", "mlp"), np.arange(PEOPLE) + PEOPLE)
    return ablations.measure(pairs, people, judge)


def record(records, task, method, against=None):
    (found,) = [r for r in records if (r.task, r.method) == (task, method) and against in (None, r.against)]
    return found


def test_rates_of_known_embeddings(records):
    assert record(records, "de-identification", "full").rate == 0
    assert record(records, "de-identification", "full").undetected == 1
    assert record(records, "de-identification", "without transformer").rate == pytest.approx(0.25)
    assert record(records, "de-identification", ablations.INVERTED).rate == 1
    for against, method, rate in (("the same photo", "full", 1), ("its inverted face", "without transformer", 0)):
        assert record(records, "recovery", method, against).rate == rate
    assert record(records, "diversity", "without identity diversity loss").rate == 0
    assert record(records, "diversity", "full").rate > 0.9
    n = PEOPLE * PASSWORDS * (PASSWORDS - 1) // 2
    assert record(records, "diversity", "full").n == n


def test_distances_are_of_table_3s_sets_to_their_own_photos(home, monkeypatch, tmp_path):
    draw = np.random.default_rng(0)
    photos = draw.normal(size=(60, 4))
    made = {v: photos + shift for shift, v in enumerate(ablations.LABELS, 1)} | {"photo": photos, "inverted": photos}
    made["mlp"][7] = np.nan

    def features(run, network, item):
        path = tmp_path / f"{run.dataset}-{network}-{item}.npz"
        known = {"reason": np.array("no weights")} if network == "inception" or item == "nodiv" else {}
        np.savez(path, key=np.array("abc"), features=made[item], targets=np.arange(60), **known)
        return path

    class Part(Run):
        pairs, weights_hash = protocols.self_pairs([str(i) for i in range(60)]), "fedcba"

    monkeypatch.setattr(table3, "feature_set", features)
    monkeypatch.setattr(tables, "runs_of", lambda run, wanted: [Part(dataset=name) for name in wanted])
    monkeypatch.setattr(Part, "data", "samples", raising=False)
    monkeypatch.setattr(stages, "aligned", lambda run: features(run, "dlib", "photo"))
    monkeypatch.setattr(tables, "read", lambda path, name: "synthetic")
    lines = pd.DataFrame(ablations.distances(Run()))
    assert set(lines.against) == {table3.ORIGINALS} and (lines.reference_hash == "abc").all()
    here = lines[lines.judge == "dlib"].iloc[: len(lines[lines.judge == "dlib"]) // 2].set_index(["method", "metric"])
    full, mlp = here.loc["full", "Frechet distance (dlib)"], here.loc["without transformer", "Frechet distance (dlib)"]
    assert full["mean"] == pytest.approx(4 * 4**2) and full.n == 60  # shifted by 4 in each of 4 directions
    assert mlp["mean"] == pytest.approx(frechet_distance(photos, np.delete(made["mlp"], 7, 0)))
    assert (mlp.n, mlp.undetected) == (59, 1)
    assert here.loc[ablations.INVERTED, "Frechet distance (dlib)"]["mean"] == pytest.approx(0, abs=1e-9)
    assert here.loc["full", "KID (dlib)"]["mean"] > here.loc["without data", "KID (dlib)"]["mean"] > 0
    assert here.loc["without identity diversity loss", "KID (dlib)"].value == "n/a: no weights"
    assert (lines[lines.judge == "inception"].value == "n/a: no weights").all()


def test_absent_weights_and_judges_give_their_reason(records, pairs):
    rows = [r for r in records if r.method == "without data"]
    assert {r.task for r in rows} == {"de-identification", "recovery", "diversity"}
    assert all(r.value == "n/a: weights missing (none)" and np.isnan(r.rate) for r in rows)
    absent = ablations.measure(pairs, {}, ablations._absent("facenet-casia", "no file"))
    assert len(absent) == len(records) and all(r.value == "n/a: no file" for r in absent)


def test_the_papers_values_stand_beside(records, home):
    here = reporting.Provenance("LFW", "deep-funneled", "abc123", 7, "mobile", "fedcba", "auto", "nine folds")
    shared = {"task": "fidelity", "against": "the same photos", "judge": "dlib", "judge_seen": False}
    metrics = ("Frechet distance (dlib)", "KID (dlib)")
    sets = [shared | {"method": m, "metric": k, "mean": 0.1} for m in ablations.LABELS.values() for k in metrics]
    table = ablations.tidy(records, sets, here, "mobile", seen=("edgeface-xs",))
    rows = table.set_index(["task", "method", "against"]).sort_index()
    assert rows.loc[("de-identification", "without data", "other photo")].paper == 0.034
    assert (rows.loc["recovery", "full"].paper == 0.996).all()
    quality = table[table.metric == metrics[0]].set_index("method")
    published, ours = quality["paper FID"], [ablations.LABELS[v] for v in ("coupling", *CONTROLS)]
    assert published.drop(ours).to_dict() == {k: v["FID"] for k, v in paper.TABLE5.items()}
    assert published[ours].isna().all()
    assert (table[table.variant.isin(CONTROLS)].steps == "0").all() and set(CONTROLS) < set(table.variant)
    assert quality.paper.isna().all()  # it is no FID
    assert table[table.metric == metrics[1]]["paper FID"].isna().all()
    assert table[table.task == "recovery"]["paper FID"].isna().all()
    assert table.judge_seen.sum() == len(records) and (table[table.task != "fidelity"].split_hash == "abc123").all()


# ---- Figure 9


def test_the_same_faces_and_passwords_under_each_variant(monkeypatch):
    class Model:
        def __init__(self, scale):
            self.scale = scale

        invert = staticmethod(lambda faces: faces.mean((2, 3))[:, :, None, None])
        synthesize = staticmethod(lambda w: w.expand(-1, -1, 8, 8))

        def random_password(self, n, seed):
            return torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(seed))

        def encrypt(self, w, key):
            return w + self.scale * key

        def decrypt(self, w, key):
            return w - self.scale * key

    def load(preset, device, encryptor):
        if encryptor in (stages.VARIANTS["datafree"], stages.VARIANTS["coupling"]):
            raise WeightsMissingError(f"mobile/{encryptor}", "/somewhere/x does not exist", "train it")
        return Model(("encryptor", "encryptor_mlp", "encryptor_nodiv", *CONTROLS).index(encryptor) + 1)

    monkeypatch.setattr(riddle, "load", load, raising=False)
    faces = torch.rand(3, 3, 8, 8)
    rows, reasons = ablations.same_faces("mobile", faces, passwords=2, seed=5)
    assert reasons == {v: f"weights missing (encryptor_{v})" for v in ("datafree", "coupling")}
    key = Model(1).random_password(2, 5)
    middle = Model.invert(faces)
    shown = ("full", "without transformer", "without identity diversity loss", *(ablations.LABELS[c] for c in CONTROLS))
    for scale, label in enumerate(shown, 1):
        for k in (0, 1):
            assert torch.allclose(rows[f"{label}: password {k + 1}"], (middle + scale * key[k]).expand(-1, -1, 8, 8))
        assert torch.allclose(rows[f"{label}: restored"], rows["inverted"], atol=1e-6)


# ---- the notebook


@pytest.mark.timeout(240)
def test_the_notebook_at_smoke_scale(root, tmp_path):
    out = tmp_path / "11.ipynb"
    notebook = root / "notebooks" / "11_table5.ipynb"
    environment = {k: v for k, v in os.environ.items() if k != "RIDDLE_DATA"}
    environment |= {"RIDDLE_OFFLINE": "1", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    settings = {"preset": "smoke", "dataset": "samples", "limit": "6"}
    words = [w for k, v in settings.items() for w in ("-p", k, v)]
    command = [sys.executable, "-m", "papermill", str(notebook), str(out), "--no-progress-bar", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(out).stat().st_size > 1000
