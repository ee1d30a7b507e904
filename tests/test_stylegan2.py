"""The generator against the published formulation: modulated weights and grouped convolutions."""

import math

import pytest
import torch
import torch.nn.functional as F

from riddle.models.stylegan2 import Generator
from riddle.presets import get

# The oracle: StyleGAN2, section 2.2, read literally. One weight per image, grouped convolution, filter by upfirdn.


def upfirdn(x, kernel, up, pad):
    """Insert zeros, pad, convolve with the flipped kernel, on each channel."""
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, h, up, w, up)
    y[:, :, :, 0, :, 0] = x
    y = F.pad(y.reshape(n, c, h * up, w * up), (pad[0], pad[1], pad[0], pad[1]))
    k = kernel.flip(0, 1).to(x.dtype)[None, None]
    return F.conv2d(y.reshape(n * c, 1, *y.shape[2:]), k).reshape(n, c, y.shape[2] - 3, y.shape[3] - 3)


def dense(layer, x):
    y = x @ (layer.weight * layer.scale).T + layer.bias * layer.lr_mul
    return F.leaky_relu(y, 0.2) * math.sqrt(2) if layer.activate else y


def modulated(conv, x, style):
    n, c_in, h, w = x.shape
    weight = conv.scale * conv.weight * dense(conv.modulation, style).view(n, 1, c_in, 1, 1)
    if conv.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    c_out, k = weight.shape[1], weight.shape[-1]
    x = x.reshape(1, n * c_in, h, w)
    if conv.blur is not None:
        weight = weight.transpose(1, 2).reshape(n * c_in, c_out, k, k)
        y = F.conv_transpose2d(x, weight, stride=2, groups=n)
        return upfirdn(y.view(n, c_out, *y.shape[2:]), conv.blur.kernel, 1, (1, 1))
    y = F.conv2d(x, weight.reshape(n * c_out, c_in, k, k), padding=k // 2, groups=n)
    return y.view(n, c_out, h, w)


def naive_synthesize(g, w):
    def styled(layer, x, style, noise):
        y = modulated(layer.conv, x, style) + layer.noise.weight * noise
        return F.leaky_relu(y + layer.activate.bias[None, :, None, None], 0.2) * math.sqrt(2)

    def rgb(layer, x, style, skip):
        y = modulated(layer.conv, x, style) + layer.bias
        return y if skip is None else y + upfirdn(skip, layer.upsample.kernel, 2, (2, 1))

    noises = [getattr(g.noises, f"noise_{i}") for i in range(2 * g.log_size - 3)]
    x = styled(g.conv1, g.input.input.repeat(len(w), 1, 1, 1), w[:, 0], noises[0])
    skip, i = rgb(g.to_rgb1, x, w[:, 1], None), 1
    for first, second, to_rgb in zip(g.convs[::2], g.convs[1::2], g.to_rgbs, strict=True):
        x = styled(first, x, w[:, i], noises[i])
        x = styled(second, x, w[:, i + 1], noises[i + 1])
        skip, i = rgb(to_rgb, x, w[:, i + 2], skip), i + 2
    return skip


def make():
    torch.manual_seed(1)
    g = Generator.of(get("smoke"))
    for name, parameter in g.named_parameters():  # zeros would hide noise and biases
        if "modulation" not in name and name.endswith(("noise.weight", "bias")):
            torch.nn.init.normal_(parameter, std=0.3)
    return g


def test_values_and_gradients_equal_the_grouped_formulation():
    """The demodulation is float32 in the network whatever the input, hence not 1e-12 in float64."""
    g = make().double()
    w = torch.randn(3, g.n_latent, g.style_dim, dtype=torch.double, requires_grad=True)
    probe = torch.randn(3, 3, 32, 32, dtype=torch.double)
    results = []
    for synthesize in (g, lambda w: naive_synthesize(g, w)):
        out = synthesize(w)
        parameters = [p for n, p in g.named_parameters() if not n.startswith("style.")]
        results.append((out, *torch.autograd.grad((out * probe).sum(), [w, *parameters])))
    for ours, oracle in zip(*results, strict=True):
        assert (ours - oracle).abs().max() <= 1e-5 * oracle.abs().max().clamp_min(1)


def test_smaller_faces_are_means_over_pixels():
    g = make().eval()
    w = torch.randn(2, g.n_latent, g.style_dim)
    with torch.no_grad():
        assert torch.equal(g(w, 32), g(w)) and torch.allclose(g(w)[1:], g(w[1:]), atol=1e-5)  # whatever its batch
        assert torch.allclose(g(w, 8), g(w).unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean((3, 5)), atol=1e-6)
    for side in (64, 12):
        with pytest.raises(ValueError, match=f"no face of {side} px"):
            g(w, side)
    with pytest.raises(ValueError, match=r"\(N, 8, 64\)"):
        g(torch.randn(2, 7, 64))
