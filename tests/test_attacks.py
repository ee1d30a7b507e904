"""The attacks of Table S: each finds what is there to be found, and nothing where there is nothing."""

import re
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from riddle import attacks
from riddle.evaluation import rows, security
from riddle.evaluation.tables import Measured
from riddle.models.codes import GaussianCodes
from riddle.models.encryptor import CodeModel, KeyedReflection
from riddle.seal import seal

SLOTS, DIM, PEOPLE = 4, 64, 60


class Hidden(CodeModel):
    """An encryptor by which nothing of the code is left."""

    def change(self, z, password):
        return password + 0 * z


@pytest.fixture
def reflection():
    torch.manual_seed(0)
    model = KeyedReflection(SLOTS, GaussianCodes(DIM))
    model.weight.mul_(0.3)  # so flat that a descent finds its way
    return model


def codes(n, seed=0):
    """Codes of n faces, far from the mean, as a prior knows them."""
    return 1 + 0.5 * torch.randn(n, SLOTS, DIM, generator=torch.Generator().manual_seed(seed))


def keys(n, seed=5):
    z = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return z[:, None].expand(-1, SLOTS, -1)


@pytest.mark.parametrize("learner", attacks.LEARNERS)
@pytest.mark.parametrize("leaks", [True, False])
def test_a_learner_reads_other_people_only_where_their_faces_leak(learner, leaks):
    draw = np.random.default_rng(0)
    persons = np.repeat(np.arange(250), 2)  # two photos each
    known = draw.normal(size=(250, 8))[persons].astype(np.float32)
    seen = known @ draw.normal(size=(8, 20)) if leaks else draw.normal(size=(500, 20))
    read = attacks.read_people(seen[:, None].astype(np.float32), known, persons, learner)
    found = attacks.found_among(attacks.scores(read, known), persons, 99, seed=0)
    assert found.mean() > 0.9 if leaks else found.mean() < 0.05


def test_a_persons_own_second_photo_is_no_rival():
    persons, scored = np.array([0, 0, 1]), np.array([[1.0, 2.0, 0.5], [0, 1, 2], [3, 3, np.nan]])
    assert attacks.found_among(scored, persons, 99, seed=0).tolist() == [True, False, False]


def test_one_known_pair_gives_the_reflections_key_away(reflection):
    z, other, password = codes(6), codes(6, seed=1), keys(6)
    found = attacks.known_pair(reflection, z, reflection.change(z, password))
    back = reflection.change(reflection.change(other, password), found)
    untold = reflection.change(reflection.change(other, password), keys(6, seed=9))
    assert (back - other).square().mean() < 0.2 * (untold - other).square().mean()


def test_many_files_give_it_away_where_codes_are_improbable_under_others(reflection):
    z, password = codes(4 * 16).view(4, 16, SLOTS, DIM), keys(4)
    hidden = reflection.change(z.flatten(0, 1), password.repeat_interleave(16, 0)).view_as(z)
    prior = attacks.Prior.of(codes(200, seed=2))
    found = attacks.many_files(reflection, hidden, prior)
    reached, untold = (prior.surprise(reflection.change(hidden[:, 0], k)).mean() for k in (found, keys(4, seed=9)))
    assert reached < untold


def test_a_linear_map_learns_the_pair_that_it_is_fitted_to():
    z, encrypted = codes(3), codes(3, seed=1)
    assert torch.allclose(attacks.linear_map(z, encrypted, encrypted, alpha=1e-4), z, atol=1e-2)


def test_the_right_password_is_first_where_wrong_ones_show_it_and_anywhere_where_not(reflection):
    z, password, prior = codes(20), keys(20), attacks.Prior.of(codes(200, seed=2))
    ranks = attacks.guess(reflection, reflection.change(z, password), password, prior, guesses=100)
    assert np.median(ranks) == 1
    blind = attacks.guess(Hidden(SLOTS, GaussianCodes(DIM)), z, password, prior, guesses=100)
    assert 25 < blind.mean() < 75


def test_a_seal_tells_the_right_secret_from_the_others():
    secret = bytes(range(32))
    sealed = seal(b"content", secret, "photo", "mobile", "0" * 64, (9, 9), bytes(16))
    assert attacks.guess_sealed(sealed, secret, guesses=50) == 1
    assert attacks.guess_sealed(sealed, bytes(32), guesses=50) == 50


@pytest.mark.parametrize("cosine", [1.0, 0.9, 0.0])
def test_near_keys_have_the_cosine_that_is_asked_for(cosine):
    password = keys(5)
    made = attacks.near(password, cosine)
    assert made.shape == password.shape
    assert torch.allclose(torch.cosine_similarity(made[:, 0], password[:, 0]), torch.full((5,), cosine), atol=1e-5)
    assert torch.allclose(made[:, 0].norm(dim=1), password[:, 0].norm(dim=1), rtol=1e-4)


def test_files_of_any_length_become_rows():
    assert attacks.bytes_of(iter([b"\1\2\3", b"\4"])).tolist() == [[1, 2, 3], [4, 0, 0]]


def test_a_table_holds_rates_and_the_mean_score_and_readers_see_intervals_and_chance():
    persons = np.arange(40).repeat(2)
    scored = np.where(persons[:, None] == persons, 0.5, np.random.default_rng(0).uniform(-0.2, 0.2, (80, 80)))
    scored[0, 0] = np.nan  # a face that is not found
    made = [*security._rates(Measured("", "ours", "", rows.OTHER_PHOTO), scored, persons, seed=0)]
    found = {(m.task, m.metric): (m.mean, m.undetected) for m in made}
    assert found["reversal", rows.ACCEPTED] == found["linkage", security.LINKED] == (79 / 80, 1)
    assert found["reversal", rows.COSINE] == (0.5, 1)
    line, *_ = security.told(pd.DataFrame(map(asdict, made))).to_dict("records")
    assert re.fullmatch(r"0\.988 \(0\.\d+ to 1\)", line["value"]) and line["chance"] == security.FAR
    missing = Measured("key", "ours", rows.ACCEPTED, "").absent("no recogniser")
    missing = security.told(pd.DataFrame([asdict(missing)]))
    assert missing.value.item() == "n/a: no recogniser"
