"""Faces in the places of others: how they settle there, and the critic that tells who belongs."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import riddle
from riddle.faces import fitting
from riddle.models.codes import lit
from riddle.models.critic import Critic
from riddle.training import critic as training
from riddle.training import publish
from riddle.weights import load_metadata


@pytest.fixture(scope="module")
def model():
    return riddle.load("mobile")


@pytest.fixture(scope="module")
def faces(model):
    return drawn(model, 4)


def drawn(model, count):
    """The first bundled samples, as the cut draws them: nobody has trained on them."""
    codes = riddle.weights.load_tensors(riddle.config.bundled_folder("samples") / "codes.safetensors")["codes"]
    return model.synthesize(codes[:count])


def test_a_layer_is_the_logistic_regression_of_standardised_features():
    draw = np.random.default_rng(0)
    features = draw.normal(3, [0.1, 1, 10], (4, 50, 3)).astype(np.float32)
    features[0, :, 1] += 2  # the first are their own faces
    layer = torch.nn.Linear(3, 1)
    training.fit(features, layer, 1.0)
    x, own = features.reshape(-1, 3), np.arange(200) < 50
    x = (x - x.mean(0)) / x.std(0)
    expected = LogisticRegression(C=1.0, class_weight="balanced").fit(x, own).decision_function(x)
    assert np.allclose(layer(torch.from_numpy(features)).detach().ravel(), expected, atol=1e-3)
    shares = [(features[0, :, 1] > stranger[:, 1]).mean() for stranger in features[1:]]
    assert abs(training.ordered(features, layer) - np.mean(shares)) < 0.1 and np.mean(shares) > 0.8


@torch.no_grad()
def test_each_face_comes_first_and_its_surroundings_stay(model, faces):
    there = training.pasted(model, faces, 2, seed=0)
    assert there.shape == (3, *faces.shape)
    own, *strangers = (there - faces).abs().mean(2)
    assert (there[..., :8, :8] == faces[..., :8, :8]).all()  # a corner is no face
    assert all((own < other)[:, 56:96, 40:88].float().mean() > 0.7 for other in strangers)


@torch.no_grad()
def test_a_settled_stranger_meets_its_surroundings_and_stays_a_stranger(model, faces):
    w = model.invert(faces, refine=0)
    plain = lit(model.encrypt(w, model.random_password(4, seed=2)), w)

    def seams(codes):
        """The mean difference along the rim, between what is pasted and what lies there."""
        shown = model.synthesize(codes)
        places = [fitting.in_place(*place) for place in zip(shown, faces, model._parsed(faces, shown), strict=True)]
        rims = [place.mask * (1 - place.mask) for place in places]
        return [
            float(((place.matched - face).abs().mean(0) * rim).sum() / rim.sum())
            for place, face, rim in zip(places, faces, rims, strict=True)
        ]

    settled = model.settled(plain, faces)
    assert settled.shape == plain.shape and np.mean(seams(settled)) < 0.8 * np.mean(seams(plain))
    own, stranger, now = (model.encoder.recognise(x)[0] for x in (faces, *map(model.synthesize, (plain, settled))))
    assert (F.cosine_similarity(now, stranger) > F.cosine_similarity(now, own)).all()


@torch.no_grad()
def test_the_bundled_critic_prefers_people_to_strangers_in_their_place(model):
    """Less surely than in photos: where the surroundings are drawn, too, a stranger's looks are nearly as right."""
    there = training.pasted(model, drawn(model, 12), 3, seed=1)
    logits = model.critic(there.flatten(0, 1)).unflatten(0, there.shape[:2])
    assert logits.shape == (4, 12, 2)
    looks, person = (logits[:1] > logits[1:]).float().mean((0, 1))
    assert looks > 0.5 and person > 0.7
    one_by_one = torch.cat([model.critic(face[None]) for face in there[0, :4]])
    assert torch.allclose(one_by_one, logits[0, :4], atol=1e-3)


def test_a_training_writes_what_is_published(model, tmp_path, monkeypatch, faces, command_line):
    for split in ("train", "val"):
        np.save(tmp_path / f"{split}.npy", riddle.images.to_bytes(faces))
    out = tmp_path / "run"
    words = ("--data", tmp_path / "train.npy", "--val", tmp_path / "val.npy", "--count", 3, "--val-count", 2)
    about = training.main([str(x) for x in (*words, "--strangers", 1, "--out", out)])
    assert (about["faces"], about["strangers"]) == (3, 1) and {about["val_looks"], about["val_person"]} <= {0, 0.5, 1}
    monkeypatch.setattr(riddle.config, "bundled_folder", lambda name: tmp_path / name)
    publish.main(["--critic", str(out)])
    file = tmp_path / "zoo" / "mobile" / "critic.safetensors"
    assert json.loads(load_metadata(file)["faces"]) == 3
    trained = Critic(model.encoder)
    trained.load_state_dict(riddle.weights.load_tensors(file))
    assert torch.isfinite(trained(faces)).all()
