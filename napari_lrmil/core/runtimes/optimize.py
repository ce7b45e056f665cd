"""The same network with less to compute: batch norm folded into convolutions, weights rounded to bfloat16 with care.

`torch.fx` could fold the norms, but cannot trace the student encoders MobileNetV2, MobileNetV3 and ConvNeXt. The
rounding is like AdaRound (Nagel et al. 2020, arXiv 2004.10568), which `nncf` and OpenVINO do not offer for bfloat16.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders import NetworkEncoder

INPUT_CORRELATION = {
    True: 0.9,
    False: 0.1,
}  # correlation of what a filter's taps see: neighbouring pixels; different channels
ACTIVATION_BOUND = 1e9  # no activation is as large
MAX_FLIPS_PER_FILTER = (
    12  # weights of a filter that may leave the nearest number: the first few bring nearly everything
)
MAX_BIAS_ERROR = 2e-3  # of a channel's spread: errors of biases that are as large as those of everything else


class ConvBatchNorm2d(nn.Conv2d):
    """A convolution with the batch norm after it.

    Attributes
    ----------
    spread
        Of the channels it puts out: the norm's weights.
    apart
        Whether the bias is added after the convolution is done. OpenVINO rounds a convolution's bias to bfloat16, and
        what is added later not; the bound, which nothing reaches, keeps it from joining them.
    """

    spread: Tensor
    apart = False

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        c: Any = convolution  # its types say int or pair, where it holds pairs
        shape = c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.dilation, c.groups
        super().__init__(*shape, bias=True, padding_mode=c.padding_mode)
        fused: Any = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
        self.weight = nn.Parameter(fused.weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(fused.bias, requires_grad=False)
        self.register_buffer("spread", norm.weight.detach().abs().clamp(min=1e-6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what convolution and norm put out."""
        if not self.apart or self.bias is None:
            return super().forward(x)
        found: Tensor = self._conv_forward(x, self.weight, None).clamp(-ACTIVATION_BOUND, ACTIVATION_BOUND)
        return found + self.bias.reshape(-1, 1, 1)


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """Return a copy, in evaluation mode, whose batch norms are part of the convolutions before them.

    Numbers stay but for rounding. A convolution and a norm belong together where they follow each other in a module;
    whoever uses the copy compares it with the original.
    """
    made = copy.deepcopy(encoder).eval().requires_grad_(False)
    for module in list(made.modules()):
        children = list(module.named_children())
        for (name, first), (after, second) in pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d) and second.affine:
                setattr(module, name, ConvBatchNorm2d(first, second))
                setattr(module, after, nn.Identity())
    return made


def round_weights_to_bfloat16(encoder: nn.Module, *, biases: bool = False) -> nn.Module:
    """Return a copy that loses least when it is computed in bfloat16; in float32 it gives nearly the same numbers.

    Whoever computes in bfloat16 rounds pixels and weights to eight bits. Whole numbers to 256 have no more, so pixels
    stay whole, and what normalises them goes into the first convolution. Weights rounded to the nearest number make
    errors that add up where neighbouring pixels are alike, which is everywhere: here they are rounded up or down so
    that they cancel (`nearly`).
    """
    made = copy.deepcopy(encoder)
    for module in made.modules():
        if isinstance(module, NetworkEncoder):
            _take_whole_pixels(module)
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            spatial = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
            _set_weight(
                module,
                error_compensated_rounding(module.weight.flatten(1), INPUT_CORRELATION[spatial]).reshape(
                    module.weight.shape
                ),
            )
        if biases and isinstance(module, ConvBatchNorm2d) and module.bias is not None:
            lost = (module.bias.to(torch.bfloat16).float() - module.bias) / module.spread
            module.apart = bool(lost.square().mean().sqrt() > MAX_BIAS_ERROR)
    return made


def _take_whole_pixels(encoder: NetworkEncoder) -> None:
    """Let the first convolution normalise: ``w * (x - m) / d + b`` is ``w / (d k) * k (x - c) + w (c - m) / d + b``.

    ``k (x - c)`` is whole. Where `c` is not the mean, what the convolution adds around a patch is off by less than half
    a grey level.
    """
    first = next((m for m in encoder.net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != len(encoder.mean):
        return
    middle = 255 / 2
    halves = torch.allclose(encoder.mean, torch.tensor(middle))
    centre, times = (torch.full_like(encoder.mean, middle), 2.0) if halves else (encoder.mean.round(), 1.0)
    scaled = first.weight / encoder.deviation  # (C, 3, h, w)
    moved = (scaled * (centre - encoder.mean)).sum(dim=(1, 2, 3))
    first.bias = nn.Parameter(moved if first.bias is None else first.bias + moved, requires_grad=False)
    _set_weight(first, scaled / times)
    encoder.mean.copy_(centre)
    encoder.deviation.fill_(1 / times)


def _set_weight(module: nn.Conv2d | nn.Linear, weight: Tensor) -> None:
    """Set weights in the order in which the old ones lie in memory."""
    with torch.no_grad():
        module.weight.copy_(weight)


def error_compensated_rounding(weights: Tensor, alike: float) -> Tensor:
    """Return (C, K) weights that bfloat16 holds exactly, each the next above or below, chosen for each of C filters.

    With errors ``e`` the output of a filter is off by ``sum(e * x)``. Of inputs of equal variance and correlation
    `alike` its expected square is ``(1 - alike) * sum(e**2) + alike * sum(e)**2``, which is made small: from the
    nearest numbers on, the one change that helps most is made, until none helps or `MAX_FLIPS_PER_FILTER` were made.

    Parameters
    ----------
    weights
        (C, K) float32.
    alike
        From 0, which takes the nearest numbers, to 1.
    """
    near = weights.to(torch.bfloat16)
    error = near.float() - weights
    beyond = torch.where(error > 0, -torch.inf, torch.inf).to(torch.bfloat16)
    other = torch.nextafter(near, beyond).float() - weights  # of the neighbour on the far side of the weight
    now, turned = error.clone(), torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(min(MAX_FLIPS_PER_FILTER, weights.shape[1])):
        changed = torch.where(turned, error, other)
        total = now.sum(dim=1, keepdim=True)
        gain = (1 - alike) * (changed**2 - now**2) + alike * ((total + changed - now) ** 2 - total**2)
        best = gain.min(dim=1)
        rows = torch.nonzero(best.values < 0).flatten()
        if len(rows) == 0:
            break
        taps = best.indices[rows]
        now[rows, taps] = changed[rows, taps]
        turned[rows, taps] = ~turned[rows, taps]
    return torch.where(now == error, near.float(), (weights + other).to(torch.bfloat16).float())
