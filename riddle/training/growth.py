"""Networks of one preset from those of a smaller one: the growing itself, for `riddle.training.grow`.

A generator starts as the small one: its picture is the small picture, upsampled by the generator's own filter. Weights
of the lower resolutions are copied; where a layer is wider now, its new channels go nowhere yet; the new block's
colours start at zero. A discriminator starts by halving its input and asking the small one. An encoder cannot be copied
so (a convolution sees half of the face that it saw before): what fits is copied, and `teach` does the rest.
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from riddle.models.inversion import Encoder, FlatHead
from riddle.models.layers import SQRT2, blur_kernel, depthwise
from riddle.models.stylegan2 import Discriminator, Generator
from riddle.presets import Preset
from riddle.training.loop import batches, faces_to_float
from riddle.training.muon import Muon, split

State = dict[str, torch.Tensor]


def doublings(old: Preset, new: Preset) -> int:
    """How often the side doubles from `old` to `new`. Raises ValueError where one does not grow into the other."""
    n = int(math.log2(new.resolution)) - int(math.log2(old.resolution))
    same = all(getattr(old, f) == getattr(new, f) for f in ("framing", "style_dim", "n_mlp", "base", "noise"))
    if n < 0 or not same:
        raise ValueError(
            f"{old.name} ({old.resolution} px, {old.framing}, codes of {old.style_dim}) does not grow into {new.name} "
            f"({new.resolution} px, {new.framing}, codes of {new.style_dim}): framing, code width, mapping, eigenfaces "
            "and noise must be the same, and the side must not shrink"
        )
    return n


def slot_sources(old: int, new: int) -> list[int]:
    """Which slot of a code of `old` slots each of `new` slots starts from: its own; the new ones from the last.

    StyleGAN2's slots count layers from 4 px up, so the old ones keep their layers; the old last slot, of the last
    ToRGB, is also the first of the new block.
    """
    return [min(slot, old - 1) for slot in range(new)]


def grow_codes(codes: torch.Tensor, slots: int) -> torch.Tensor:
    """Codes (N, L, D) -> (N, slots, D), the same face at the larger size."""
    return codes[:, slot_sources(codes.shape[1], slots)]


def upsample(faces: torch.Tensor, times: int = 1) -> torch.Tensor:
    """Faces (N, 3, R, R) -> (N, 3, 2^times R, 2^times R) by the filter of the generator's skip connection."""
    for _ in range(times):
        faces = depthwise(faces, blur_kernel(4.0).to(faces.device), (2, 1), up=2)
    return faces


def widened(name: str, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """A weight of a wider layer that does what the old one did with the old channels.

    Channels lead in biases and modulations. In a convolution the old outputs ignore new inputs, and weights grow as
    equalised learning rate's scale 1 / sqrt(inputs) shrinks; new outputs keep their random weights. Raises ValueError
    for a layer that is narrower, or differs otherwise.
    """
    if new.shape == old.shape:
        return old.clone()
    if new.ndim != old.ndim or any(n < o for n, o in zip(new.shape, old.shape, strict=True)):
        raise ValueError(f"{name}: {tuple(old.shape)} does not grow into {tuple(new.shape)}")
    out = new.clone()
    convolution = new.ndim >= 4 and name != "input.input" and new.shape[-1] == old.shape[-1]
    if convolution:
        rows, inputs = new.ndim - 4, new.ndim - 3
        o, i = old.shape[rows], old.shape[inputs]
        kept = out.narrow(rows, 0, o)
        kept.zero_()
        kept.narrow(inputs, 0, i).copy_(old * math.sqrt(new.shape[inputs] / i))
    elif sum(n != o for n, o in zip(new.shape, old.shape, strict=True)) == 1:
        axis = next(k for k, (n, o) in enumerate(zip(new.shape, old.shape, strict=True)) if n != o)
        out.narrow(axis, 0, old.shape[axis]).copy_(old)
    else:
        raise ValueError(f"{name}: {tuple(old.shape)} does not grow into {tuple(new.shape)}")
    return out


def _copied(network: nn.Module, old: State, rename: dict[str, str] | None = None) -> set[str]:
    """Fill a network from an old state, widened; returns the names it left alone. Raises ValueError for a rest."""
    state, used = network.state_dict(), set()
    for name, value in old.items():
        target = (rename or {}).get(name, name)
        if target not in state:
            raise ValueError(f"{name} has no place in the grown {type(network).__name__}: weights of another kind")
        state[target] = widened(name, state[target], value)
        used.add(target)
    network.load_state_dict(state)
    return set(state) - used


@torch.no_grad()
def grow_generator(old: State, small: Preset, preset: Preset) -> Generator:
    """The generator of `preset` that draws what the small one draws, upsampled. Raises ValueError."""
    times, g = doublings(small, preset), Generator.of(preset)
    per_slot = ("offsets", "deviations")
    _copied(g, {k: v for k, v in old.items() if k not in per_slot})
    for name in per_slot:
        if name in old:
            getattr(g, name).copy_(old[name][slot_sources(small.n_latent, preset.n_latent)])
    for to_rgb in g.to_rgbs[len(g.to_rgbs) - times :]:
        to_rgb.conv.weight.zero_()
        to_rgb.bias.zero_()
    if not preset.noise:
        for layer in g.convs:
            layer.noise.weight.zero_()
    return g


@torch.no_grad()
def grow_discriminator(old: State, small: Preset, preset: Preset) -> Discriminator:
    """The discriminator of `preset` that, at first, halves its faces and judges them as the small one does."""
    times, d = doublings(small, preset), Discriminator(preset.resolution, preset.critic or preset.channels)
    blocks = {f"convs.{k}.": f"convs.{k + times}." for k in range(1, len(d.convs) - times)}
    rename = {k: blocks[p] + k.removeprefix(p) for k in old for p in blocks if k.startswith(p)}
    _copied(d, old, rename)
    kept = old["convs.0.weight"].shape[0]  # channels that the small one made of colours
    for block in d.convs[1 : 1 + times]:
        skip, conv = block.skip.weight, block.conv2
        if skip.shape[0] < kept:
            raise ValueError(f"{skip.shape[0]} channels below {preset.resolution} px cannot hand on {kept}")
        skip[:kept] = 0
        for c in range(kept):
            skip[c, c] = SQRT2 / block.skip.scale
        conv.weight[:kept] = 0
        conv.bias[:kept] = 0
    return d


@torch.no_grad()
def grow_encoder(old: State, preset: Preset) -> Encoder:
    """The encoder of `preset` with what fits of the small one: body, pyramid, heads. It wants `teach` then."""
    e = Encoder(preset)
    state = e.state_dict()
    state.update({k: v.clone() for k, v in old.items() if k in state and v.shape == state[k].shape})
    last = max(int(k.split(".")[1]) for k in old if k.startswith("styles."))
    for slot in range(last + 1, preset.n_latent):  # new slots read what the last one reads
        for k, v in old.items():
            if k.startswith(f"styles.{last}."):
                name = k.replace(f"styles.{last}.", f"styles.{slot}.", 1)
                if name in state and state[name].shape == v.shape:
                    state[name] = v.clone()
    e.load_state_dict(state)
    for slot, head in enumerate(e.styles):
        if isinstance(head, FlatHead):
            _average_down(head, old, min(slot, last))
    return e


def _average_down(head: FlatHead, old: State, slot: int) -> None:
    """Let the stride-2 convolutions that a head has gained average 2 x 2 places, after the 1 x 1 map they replace."""
    for index, layer in enumerate(head.convs):
        before = old.get(f"styles.{slot}.convs.{index}.weight")
        if not isinstance(layer, nn.Conv2d) or layer.stride != (2, 2) or (before is not None and before.ndim != 4):
            continue
        if before is not None and before.shape == layer.weight.shape:
            continue
        mixed = torch.eye(layer.out_channels, layer.in_channels) if before is None else before[:, :, 0, 0]
        layer.weight.zero_()
        layer.weight[:, :, 1:, 1:] = mixed[:, :, None, None] / 4
        head.convs[index + 2].weight.fill_(1)  # PReLU as the identity: there was none here


def teach(
    encoder: Encoder,
    small: Encoder,
    faces: torch.Tensor,
    steps: int,
    batch: int,
    accelerator: Accelerator,
    seed: int = 0,
    seconds: float = math.inf,
) -> dict[str, float]:
    """Train an encoder to give, of a face, the small encoder's codes of the face averaged down.

    faces: uint8 (N, R, R, 3). Stops after `steps` or `seconds`. Returns the mean squared error of codes before and
    after, and the steps taken.
    """
    device, began, last = accelerator.device, time.monotonic(), 0
    encoder.to(device, memory_format=torch.channels_last).train()
    small = small.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    matrices, vectors = split(encoder)
    optimisers = [Muon(matrices, lr=5e-3), torch.optim.Adam(vectors, lr=1e-3, betas=(0.9, 0.99))]
    rates = [group["lr"] for o in optimisers for group in o.param_groups]
    stream, errors = batches({"faces": faces}, batch, seed, 0), []
    for step in range(steps):
        spent = time.monotonic() - began
        if spent >= seconds:
            break
        share = 0.05 + 0.475 * (1 + math.cos(math.pi * max(step / steps, spent / seconds)))
        for rate, group in zip(rates, [g for o in optimisers for g in o.param_groups], strict=True):
            group["lr"] = rate * share
        real = faces_to_float(next(stream)["faces"].to(device))
        with accelerator.autocast():
            with torch.no_grad():
                wanted = grow_codes(small(F.adaptive_avg_pool2d(real, small.side)), encoder.n_latent)
            loss = F.mse_loss(encoder(real), wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        errors.append(loss.detach())
        last = step + 1
    curve = torch.stack(errors).float().cpu() if errors else torch.full((1,), math.nan)
    few = max(1, len(curve) // 20)
    return {"before": curve[:few].mean().item(), "after": curve[-few:].mean().item(), "steps": last}
