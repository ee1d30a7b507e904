"""Embeddings by several judges at once: the same as each judge's own, with crops shared where they are alike."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from riddle import judging
from riddle.faces import detection, recognizers


class Mean(torch.nn.Module):
    """A network that a test can run: the crop's averages on a 4 x 4 grid."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def judge(name):
    spec = recognizers.SPECS[name]
    made = recognizers.Recognizer(name, spec, Mean())
    made.dim = 48
    return made


@pytest.fixture
def faces():
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)


def found_in(faces):
    """Points a little apart in each face; no face in the third; landmarks in one, which only dlib's chip follows."""
    draw = np.random.default_rng(1)
    upright = np.array([(20, 20), (44, 20), (32, 34), (23, 46), (41, 46)], float)
    listed = []
    for i in range(len(faces)):
        landmarks = draw.uniform(10, 54, (68, 2)) if i == 1 else None
        listed.append(
            detection.Face(np.array([5.0, 5, 60, 60]), 1.0, upright + draw.normal(0, 1, (5, 2)), landmarks, "x")
        )
    listed[2] = None
    return listed


@pytest.mark.parametrize("names", [("edgeface-xs", "arcface-mobilefacenet", "dlib", "facenet-casia"), ("dlib",)])
def test_it_is_what_each_judge_gives_alone(faces, names):
    judges, found = {name: judge(name) for name in names}, found_in(faces)
    made = judging.embed(judges, faces, found)
    x = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1
    for name in names:
        expected = judges[name].embed_faces(x, found).numpy()
        assert made[name].shape == (5, 48) and np.isnan(made[name][2]).all()
        np.testing.assert_allclose(made[name], expected, atol=1e-6, equal_nan=True)


def test_judges_of_one_alignment_share_their_crops(faces, monkeypatch):
    judges = {name: judge(name) for name in ("edgeface-xs", "mobileface-v2", "mobilefacenet-casia", "dlib")}
    cropped = []
    align = recognizers.Recognizer.align
    monkeypatch.setattr(recognizers.Recognizer, "align", lambda self, *a: cropped.append(self.name) or align(self, *a))
    spent = {}
    judging.embed(judges, faces, found_in(faces), spent)
    assert cropped == ["edgeface-xs"] * 4 + ["dlib"] * 4
    assert set(spent) == {"crops", *judges} and min(spent.values()) >= 0


def test_no_face_found_is_no_embedding(faces):
    made = judging.embed({"dlib": judge("dlib")}, faces, [None] * 5)
    assert made["dlib"].shape == (5, 48) and np.isnan(made["dlib"]).all()


def test_a_detection_for_each_picture(faces):
    with pytest.raises(ValueError, match="5 pictures but 4 detections"):
        judging.embed({"dlib": SimpleNamespace(dim=2)}, faces, [None] * 4)


def test_a_threshold_is_what_so_many_pairs_of_strangers_exceed():
    """Random directions in many dimensions: cosines are normal, of deviation 1 / sqrt(E)."""
    judge_ = judge("edgeface-xs")
    e = np.random.default_rng(0).normal(size=(3000, 400))
    e[5] = np.nan  # a face that was not found
    e[6] = e[7]  # one pair among 4.5 million decides nothing
    measured = judging.stranger_threshold(judge_, e)
    assert measured == pytest.approx(3.09 / 20, rel=0.05)  # 0.1 % of a normal lie above 3.09 deviations
    assert judging.stranger_threshold(judge_, e, share=0.5) == pytest.approx(0, abs=0.002)
    a, b = e[:2]
    lone = judging.stranger_threshold(judge_, np.stack([a, b]), pairs=50)  # a face is never paired with itself
    assert lone == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
