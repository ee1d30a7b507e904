"""Equations 1 to 10 against naive sums over images, as the paper writes them."""

import pytest
import torch

from riddle import losses
from riddle.losses import PAPER_WEIGHTS, LossWeights
from riddle.models.squeezenet import CHANNELS, SqueezeNet

B, M, N, E = 3, 2, 2, 16
CHANGED, ALL = M * (N + 1), M * (N + 2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_eq1_similarity_matrix_is_the_clamped_cosine_of_every_pair():
    e = torch.randn(B, CHANGED, E)
    got = losses.identity_similarity_matrix(e, epsilon=0.05)
    for b in range(B):
        for i in range(CHANGED):
            for j in range(CHANGED):
                assert got[b, i, j] == pytest.approx(max(0.05, cosine(e[b, i], e[b, j])), abs=1e-5)


def test_eq2_diversity_averages_over_all_m_squared_n_plus_1_squared_entries():
    e = torch.randn(B, CHANGED, E)
    expected = 0.0
    for b in range(B):
        pairs = [(i, j) for i in range(CHANGED) for j in range(CHANGED) if i != j]
        expected += sum(max(0.0, cosine(e[b, i], e[b, j])) for i, j in pairs) / (M**2 * (N + 1) ** 2) / B
    assert losses.diversity_loss(e).item() == pytest.approx(expected, abs=1e-5)


def test_eq3_deidentification_sums_positive_cosines_with_the_original():
    x, e = torch.randn(B, E), torch.randn(B, CHANGED, E)
    expected = sum(max(0.0, cosine(x[b], e[b, i])) for b in range(B) for i in range(CHANGED)) / B
    assert losses.deidentification_loss(x, e).item() == pytest.approx(expected, abs=1e-5)
    assert losses.deidentification_loss(x, -x[:, None].repeat(1, CHANGED, 1)).item() == 0.0  # epsilon is 0
    assert losses.deidentification_loss(x, x[:, None].repeat(1, CHANGED, 1)).item() == pytest.approx(CHANGED, abs=1e-4)


def test_eq4_recovery_sums_one_minus_cosine():
    x, e = torch.randn(B, E), torch.randn(B, M, E)
    expected = sum(1 - cosine(x[b], e[b, i]) for b in range(B) for i in range(M)) / B
    assert losses.recovery_loss(x, e).item() == pytest.approx(expected, abs=1e-5)
    assert losses.recovery_loss(x, 3 * x[:, None].repeat(1, M, 1)).item() == pytest.approx(0.0, abs=1e-5)


def test_eq5_identity_is_the_sum_of_its_parts():
    x, changed, recovered = torch.randn(B, E), torch.randn(B, CHANGED, E), torch.randn(B, M, E)
    total, parts = losses.identity_loss(x, changed, recovered)
    assert total.item() == pytest.approx(
        losses.diversity_loss(changed).item()
        + losses.deidentification_loss(x, changed).item()
        + losses.recovery_loss(x, recovered).item(),
        abs=1e-5,
    )
    without, _ = losses.identity_loss(x, changed, recovered, LossWeights(diversity=0.0))
    assert (total - without).item() == pytest.approx(parts["diversity"].item(), abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "shape", "power"),
    [(losses.pixel_loss, (3, 8, 8), 1), (losses.parsing_loss, (8, 4, 4), 2), (losses.latent_loss, (8, 5), 2)],
    ids=["eq6 pixel", "eq8 parsing", "eq9 latent"],
)
def test_eq6_eq8_and_eq9_are_a_mean_per_image_summed_over_images(loss, shape, power):
    x, y = torch.randn(B, *shape), torch.randn(B, ALL, *shape)
    expected = sum((x[b] - y[b, i]).abs().pow(power).mean().item() for b in range(B) for i in range(ALL)) / B
    changed = y.flatten(0, 1) if loss is losses.parsing_loss else y
    assert loss(x, changed).item() == pytest.approx(expected, rel=1e-5)


def test_eq7_features_give_the_distance_of_the_lpips_package():
    lpips = pytest.importorskip("lpips")
    net = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()  # random trunk: no download needed
    features = losses.PerceptualFeatures.of(net)
    x, y = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 3, 64, 64) * 2 - 1
    got = losses.lpips_loss(features(x), features(y.flatten(0, 1)))
    with torch.no_grad():
        expected = sum(net(x[b : b + 1], y[b, i : i + 1]).item() for b in range(2) for i in range(3)) / 2
    assert got.item() == pytest.approx(expected, rel=1e-4)
    ours = losses.PerceptualFeatures(SqueezeNet(), CHANNELS)
    ours.load_state_dict(features.state_dict())  # the encoder's, which needs no torchvision
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours(x), features(x), strict=True))


def test_eq10_weighs_the_terms_as_the_paper_does():
    terms = [torch.tensor(v) for v in (1.0, 10.0, 100.0, 1000.0, 10000.0)]
    expected = 1 + 0.05 * 10 + 1 * 100 + 0.1 * 1000 + 0.01 * 10000
    assert losses.total_loss(*terms).item() == pytest.approx(expected)
    assert losses.total_loss(*terms, LossWeights(lpips=2.0)).item() == pytest.approx(expected + 100)


def test_weights_default_to_the_paper_and_refuse_unknown_names():
    assert PAPER_WEIGHTS.as_dict() == {
        "pixel": 0.05, "lpips": 1.0, "parsing": 0.1, "latent": 0.01,
        "diversity": 1.0, "deidentification": 1.0, "recovery": 1.0, "epsilon": 0.0,
    }  # fmt: skip
    assert PAPER_WEIGHTS.updated({"recovery": 3}).recovery == 3.0 and PAPER_WEIGHTS.recovery == 1.0
    with pytest.raises(ValueError, match="unknown loss weight recovry"):
        PAPER_WEIGHTS.updated({"recovry": 3})
