"""The linear base of the small generators, and what trains around it."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA

from riddle.models.eigenfaces import (
    LUMA,
    Eigenfaces,
    from_offsets,
    match_mapping,
    mirror_inside,
    to_offsets,
)
from riddle.models.inversion import Encoder
from riddle.models.stylegan2 import DETAIL, Generator
from riddle.presets import get
from riddle.training.components import mirror_codes
from riddle.training.muon import Muon, orthogonalise, split

SLOTS, DIM = 2, 8


@pytest.fixture(scope="module")
def faces():
    """uint8 (64, 64, 64, 3) of few degrees of freedom, smooth in space."""
    draw = torch.Generator().manual_seed(0)
    patterns = torch.nn.functional.interpolate(torch.randn(6, 3, 4, 4, generator=draw), size=64, mode="bicubic")
    x = torch.einsum("nk,kchw->nchw", torch.randn(64, 6, generator=draw), patterns) * 20 + 128
    return x.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def base(faces):
    net = Eigenfaces(SLOTS, DIM, {4: 4, 8: 4, 16: 4, 32: 4})
    net.fit(faces)
    return net


def floats(faces):
    return faces.permute(0, 3, 1, 2).float() / 127.5 - 1


def codes_of(components):
    """W+ codes (N, SLOTS + 1, DIM) whose first slots weigh the components (N, SLOTS, DIM)."""
    first = components[:, :1]
    return torch.cat([first, first + components[:, 1:], first], 1)


def test_components_are_those_of_an_independent_pca(base, faces):
    x = Eigenfaces._vector(floats(torch.cat([faces, faces.flip(2)]))).numpy()
    pca = PCA(4).fit(x)
    ours = base.deviation[:4].numpy() ** 2 * len(x) / (len(x) - 1)
    assert pca.explained_variance_ == pytest.approx(ours, rel=1e-3)
    overlap = abs(pca.components_ @ base.basis[:, :4].numpy())
    assert overlap.diagonal() == pytest.approx([1, 1, 1, 1], abs=1e-3)


def test_components_are_whitened_and_come_back(base, faces):
    components = base.read(floats(faces))
    assert components.shape == (64, SLOTS, DIM)
    both = torch.cat([components, base.read(floats(faces.flip(2)))])
    assert torch.allclose(both[:, 0].std(0, unbiased=False), torch.ones(DIM), atol=0.02)
    again = base.read(base(codes_of(components)))
    # colours are enlarged smoothly, so small components that live in them change a little
    assert torch.cosine_similarity(again[:, 0], components[:, 0], dim=1).min() > 0.95


def test_faces_of_few_components_are_drawn_exactly(base, faces):
    small = torch.nn.functional.avg_pool2d(floats(faces), 2)
    drawn = base(codes_of(base.read(floats(faces))))
    luma = torch.einsum("c,nchw->nhw", LUMA, drawn), torch.einsum("c,nchw->nhw", LUMA, small)
    assert (luma[0] - luma[1]).abs().mean() < 0.02
    assert (drawn - small).abs().mean() < 0.04


def test_one_code_in_every_slot_weighs_the_first_components_alone(base):
    w = torch.randn(3, 1, DIM).expand(-1, SLOTS + 1, -1)
    weights = torch.cat([w[:, 0], torch.zeros(3, DIM)], 1) * base.deviation
    assert torch.allclose(base(w), Eigenfaces._picture(base.mean + weights @ base.basis.T), atol=1e-5)


def test_too_few_faces_are_refused(faces):
    with pytest.raises(ValueError, match="do not span"):
        Eigenfaces(4, 256).fit(faces)


def test_generator_and_encoder_of_mini_start_from_the_components():
    preset = get("mini")
    torch.manual_seed(0)
    g, e = Generator.of(preset).eval(), Encoder(preset).eval()
    x = (torch.rand(1100, 64, 64, 3) * 255).byte()
    for net in (g.base, e.base):
        net.fit(x)
    with torch.no_grad():
        for layer in (g.to_rgb1, *g.to_rgbs):
            layer.conv.weight.zero_()
        codes = e(floats(x[:4]))
        assert torch.cosine_similarity(codes[:, 0], e.base.read(floats(x[:4]))[:, 0], dim=1).min() > 0.95
        face = torch.nn.functional.avg_pool2d(g(codes), 2)
        assert torch.cosine_similarity(face.flatten(1), g.base(codes).flatten(1), dim=1).min() > 0.9
    assert Generator.of(get("ffhq256")).base is None  # the published network is as it is


def test_the_mapping_learns_the_distribution_of_codes():
    preset = get("smoke")
    torch.manual_seed(0)
    g = Generator(32, preset.channels, DIM, 2)
    g.base = Eigenfaces(SLOTS, DIM)  # all components alike
    codes = torch.randn(4000, DIM) * torch.linspace(0.5, 1.5, DIM)
    with torch.no_grad():
        before = (g.map(torch.randn(4000, DIM)).T.cov() - codes.T.cov()).norm()
    match_mapping(g, codes)
    with torch.no_grad():
        made = g.map(torch.randn(4000, DIM))
    assert (made.T.cov() - codes.T.cov()).norm() < 0.6 * before
    assert made.mean(0).norm() < 0.5


def test_offsets_come_back():
    w = torch.randn(3, 5, 8)
    assert torch.allclose(from_offsets(to_offsets(w)), w, atol=1e-6)
    assert torch.equal(to_offsets(w)[:, 2], w[:, 2] - w[:, 0])


def test_inner_directions_are_orthonormal_and_change_the_middle(base):
    assert torch.allclose(base.inner.T @ base.inner, torch.eye(12), atol=1e-5)

    def rim(directions):  # share of the energy of their pictures in the outer eighth of the rows and columns
        pictures = Eigenfaces._picture((base.basis * base.deviation @ directions).T).square().mean((0, 1))
        return 1 - pictures[4:-4, 4:-4].sum() / pictures.sum()

    others = torch.linalg.svd(base.inner, full_matrices=True)[0][:, base.inner.shape[1] :]
    assert rim(base.inner) < 0.9 * rim(others)


def test_mirroring_inside_undoes_itself_and_leaves_the_rest(base):
    x, angle = torch.randn(6, SLOTS + 1, DIM), torch.rand(6, base.inner.shape[1] // 2) * 6
    mirrored = mirror_inside(x, base.inner, angle)
    assert torch.allclose(mirror_inside(mirrored, base.inner, angle), x, atol=1e-5)
    assert torch.equal(mirrored[:, SLOTS:], x[:, SLOTS:])
    change = (mirrored - x)[:, :SLOTS].flatten(1)
    assert torch.allclose(change @ base.inner @ base.inner.T, change, atol=1e-5) and change.norm() > 1


def test_mirrored_codes_keep_centre_and_spread(base):
    torch.manual_seed(0)
    centre = torch.randn(SLOTS, DIM)
    codes = from_offsets(centre + torch.randn(4000, SLOTS, DIM) * 0.7)
    mixed = to_offsets(mirror_codes(codes, centre, base.inner))
    assert torch.allclose(mixed.mean(0), centre, atol=0.05)
    assert mixed.std(0).mean() == pytest.approx(0.7, abs=0.02)
    inside = [(x - centre).flatten(1) @ base.inner for x in (mixed, to_offsets(codes))]
    assert torch.cosine_similarity(*inside).mean().abs() < 0.05


def test_muon_makes_matrices_orthogonal_and_learns():
    torch.manual_seed(0)
    x = orthogonalise(torch.randn(24, 40))
    assert torch.linalg.svdvals(x).min() > 0.6 and torch.linalg.svdvals(x).max() < 1.3
    assert orthogonalise(torch.randn(40, 24)).shape == (40, 24)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(32, 4))
    matrices, vectors = split(net)
    assert [p.ndim for p in matrices] == [4, 2] and [p.ndim for p in vectors] == [1, 1]
    opt, data = Muon(matrices, lr=0.02), torch.randn(64, 3, 4, 4)
    wanted = data.flatten(1)[:, :4]
    losses = []
    for _ in range(60):
        loss = (net(data) - wanted).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(ValueError, match="closure"):
        opt.step(lambda: 0.0)


def test_samples_draw_what_w_lacks():
    torch.manual_seed(0)
    g = Generator(32, {4: 4, 8: 4, 16: 4, 32: 4}, style_dim=DIM, n_mlp=1, noise=False, base=SLOTS)
    g.offsets.normal_()
    g.offsets[0] = 0
    g.deviations.uniform_(1, 2)
    g.deviations[0] = 0
    w = torch.randn(1, DIM).expand(4000, -1)
    left = g.detailed(w, torch.Generator().manual_seed(1)) - g.spread(w)
    assert not left[:, 0].any() and left.mean(0).abs().max() < 0.15
    share = left.std(0)[1:] / g.deviations[1:]
    assert torch.allclose(share[: SLOTS - 1], torch.tensor(DETAIL), atol=0.03)
    assert torch.allclose(share[SLOTS - 1 :], torch.tensor(1.0), atol=0.06)
    assert torch.equal(g.sample(3, seed=2), g.sample(3, seed=2)) and not torch.equal(g.sample(3), g.sample(3, seed=2))
    assert torch.allclose(g.sample(3, psi=0.0), g.spread(g.mean_latent()[None]).expand(3, -1, -1))
