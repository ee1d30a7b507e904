"""The Gaussian space of codes: there and back, what it makes of the mapping's codes, and its bounds."""

import math

import numpy as np
import pytest
import torch

from riddle.models.codes import BOUND, FINE, FLOOR, GaussianCodes, lit, soft_bound

FRESH = 4096


@pytest.fixture(scope="module")
def fresh(generator):
    """w of faces that the statistics have not seen, (4096, 512)."""
    with torch.no_grad():
        return generator.map(torch.randn(FRESH, 512, generator=torch.Generator().manual_seed(99)))


def test_there_and_back(generator, fresh):
    codes = generator.codes
    z = codes.to_gaussian(fresh)
    assert (codes.to_w(z) - fresh).abs().max() < 1e-4
    other = torch.randn(5, 10, 512, generator=torch.Generator().manual_seed(1))  # any leading shape
    back = codes.to_gaussian(codes.to_w(other))
    assert back.shape == other.shape and (back - other).abs().max() < 1e-2  # small deviations cost digits
    assert (back - other)[..., :100].abs().max() < 1e-3


def test_a_face_in_the_light_of_another_keeps_its_coarse_slots():
    face, other = torch.randn(2, 3, 10, 16, generator=torch.Generator().manual_seed(0))
    mixed = lit(face, other)
    assert torch.equal(mixed[:, :FINE], face[:, :FINE]) and torch.equal(mixed[:, FINE:], other[:, FINE:])


def test_fresh_codes_are_white(generator, fresh):
    z = generator.codes.to_gaussian(fresh)
    assert z.mean(0).abs().max() < 5 / math.sqrt(FRESH)
    whitened = generator.codes.std > FLOOR
    assert (z.std(0)[whitened] - 1).abs().max() < 0.12 and (z.std(0) < 1.12).all()
    shared = torch.corrcoef(z[:, whitened].T) - torch.eye(int(whitened.sum()))
    assert shared.abs().max() < 7 / math.sqrt(FRESH)
    assert generator.codes.std.diff().max() <= 0  # the largest first


def test_the_definition_written_out(generator, fresh):
    """p = w, negatives times five; z = V^T (p - mean) / std."""
    codes = generator.codes
    w = fresh[:3].double().numpy()
    p = np.where(w < 0, 5 * w, w)
    z = (p - codes.mean.double().numpy()) @ codes.basis.double().numpy() / codes.std.double().numpy()
    np.testing.assert_allclose(codes.to_gaussian(fresh[:3]).numpy(), z, atol=2e-3)
    assert torch.allclose(codes.basis.T @ codes.basis, torch.eye(512), atol=1e-4)


def test_what_hardly_varies_is_floored():
    """A direction without variance would turn rounding into codes."""
    direction = torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(2)), dim=0)

    def mapping(z):
        p = z - z @ direction[:, None] * direction
        return torch.where(p < 0, p / 5, p) + 0 * z

    codes = GaussianCodes(8).measure(mapping, n=2000)
    assert codes.std.min().item() == pytest.approx(FLOOR) and (codes.std[:7] > 0.9).all()
    z = codes.to_gaussian(mapping(torch.randn(100, 8)))
    assert z.isfinite().all() and z[:, 7].abs().max() < 1e-3


def test_the_soft_bound_is_the_identity_near_zero_and_a_bound_far_away():
    z = torch.tensor([-1e6, -10.0, -0.1, 0.0, 0.1, 1.0, 10.0, 1e6], requires_grad=True)
    bounded = soft_bound(z)
    assert bounded.abs().max() <= BOUND and (bounded.diff() >= 0).all()
    assert torch.allclose(bounded[2:5], z[2:5], atol=1e-4) and bounded[5].item() == pytest.approx(0.973, abs=1e-3)
    assert torch.equal(-soft_bound(-z), bounded)
    bounded.sum().backward()
    assert z.grad[3].item() == 1 and 0 < z.grad[6] < 0.05  # still a way back from far away
