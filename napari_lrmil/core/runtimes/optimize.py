"""Inference-time optimisation of encoders: fold batch norm, round weights to bfloat16 with error compensation.

`torch.fx` can fold batch norm, but it cannot trace the student encoders MobileNetV2, MobileNetV3 and ConvNeXt. The
rounding resembles AdaRound (Nagel et al. 2020, arXiv 2004.10568), which `nncf` and OpenVINO do not offer for bfloat16.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders import NetworkEncoder

# Assumed correlation of the inputs of a filter. True: spatial filters, which see neighbouring and thus similar pixels.
# False: 1 x 1 convolutions and linear layers, which see different channels.
INPUT_CORRELATION = {True: 0.9, False: 0.1}
ACTIVATION_BOUND = 1e9  # no activation is as large, so clamping to it changes nothing
MAX_FLIPS_PER_FILTER = 12  # weights not rounded to the nearest value; the first few flips give nearly all of the gain
MAX_BIAS_ERROR = 2e-3  # share of a channel's spread; above it, bias rounding causes as much error as everything else


class ConvBatchNorm2d(nn.Conv2d):
    """Convolution with the batch norm that follows it folded in, for inference.

    Parameters
    ----------
    convolution
        Convolution whose weights are scaled.
    norm
        Batch norm in evaluation mode, with learned scale and shift.

    Attributes
    ----------
    spread
        (C,) absolute scales of the norm, a measure of the spread of each output channel.
    has_separate_bias
        Whether the bias is added after the convolution. OpenVINO rounds the bias of a convolution to bfloat16, but not
        a later addition. The clamp in between prevents OpenVINO from fusing the two.
    """

    spread: Tensor
    has_separate_bias = False

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        c: Any = convolution  # torch's types say int or pair, but a built convolution always holds pairs
        shape = c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.dilation, c.groups
        super().__init__(*shape, bias=True, padding_mode=c.padding_mode)
        fused: Any = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
        self.weight = nn.Parameter(fused.weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(fused.bias, requires_grad=False)
        self.register_buffer("spread", norm.weight.detach().abs().clamp(min=1e-6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, C, h, w) output of convolution and norm."""
        if not self.has_separate_bias or self.bias is None:
            return super().forward(x)
        filtered: Tensor = self._conv_forward(x, self.weight, None).clamp(-ACTIVATION_BOUND, ACTIVATION_BOUND)
        return filtered + self.bias.reshape(-1, 1, 1)


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """Return a copy, in evaluation mode, with each batch norm folded into the convolution that precedes it.

    The output is unchanged up to rounding if the network runs the two children in the order of their definition. The
    caller compares the copy with the original, because a module can use its children in any order.
    """
    network = copy.deepcopy(encoder).eval().requires_grad_(False)
    for module in list(network.modules()):
        children = list(module.named_children())
        for (name, first), (next_name, second) in pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d) and second.affine:
                setattr(module, name, ConvBatchNorm2d(first, second))
                setattr(module, next_name, nn.Identity())
    return network


def round_weights_to_bfloat16(encoder: nn.Module, *, biases: bool = False) -> nn.Module:
    """Return a copy whose weights bfloat16 holds exactly; in float32 it gives nearly the same output.

    A computation in bfloat16 rounds pixels and weights to eight significant bits. Integers up to 256 need no more.
    Pixels therefore stay integers, and the first convolution takes over their normalisation. Errors of weights that
    are rounded to the nearest value add up, because neighbouring pixels are similar. The weights of a filter are
    therefore rounded up or down so that their errors cancel, see `error_compensated_rounding`.

    Parameters
    ----------
    encoder
        Network, ideally with batch norm folded in.
    biases
        Whether to add a bias after its convolution if the rounding of the bias would cause a large error.
    """
    network = copy.deepcopy(encoder)
    for module in network.modules():
        if isinstance(module, NetworkEncoder):
            _keep_pixels_integer(module)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            is_spatial = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
            rounded = error_compensated_rounding(module.weight.flatten(1), INPUT_CORRELATION[is_spatial])
            _set_weight(module, rounded.reshape(module.weight.shape))
        if biases and isinstance(module, ConvBatchNorm2d) and module.bias is not None:
            error = (module.bias.to(torch.bfloat16).float() - module.bias) / module.spread
            module.has_separate_bias = bool(error.square().mean().sqrt() > MAX_BIAS_ERROR)
    return network


def _keep_pixels_integer(encoder: NetworkEncoder) -> None:
    """Move the normalisation of pixels into the first convolution.

    ``w * (x - m) / d + b`` becomes ``w / (d k) * k (x - c) + w (c - m) / d + b``, where ``k (x - c)`` is an integer.
    Zero padding around a patch stands for `c` instead of the mean `m`, an error of less than half a grey level.
    """
    first = next((m for m in encoder.net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != len(encoder.mean):
        return
    middle = 255 / 2
    # A mean of 127.5 is halfway between two integers: twice the difference is an integer.
    is_halfway = torch.allclose(encoder.mean, torch.full_like(encoder.mean, middle))
    centre, factor = (torch.full_like(encoder.mean, middle), 2.0) if is_halfway else (encoder.mean.round(), 1.0)
    scaled = first.weight / encoder.deviation  # (C, 3, h, w)
    shift = (scaled * (centre - encoder.mean)).sum(dim=(1, 2, 3))
    first.bias = nn.Parameter(shift if first.bias is None else first.bias + shift, requires_grad=False)
    _set_weight(first, scaled / factor)
    encoder.mean.copy_(centre)
    encoder.deviation.fill_(1 / factor)


def _set_weight(module: nn.Conv2d | nn.Linear, weight: Tensor) -> None:
    """Set the weights in place, which keeps their memory format (channels last)."""
    with torch.no_grad():
        module.weight.copy_(weight)


def error_compensated_rounding(weights: Tensor, correlation: float) -> Tensor:
    """Return weights that bfloat16 holds exactly, each one rounded up or down so that errors of a filter cancel.

    Rounding errors ``e`` change the output of a filter by ``sum(e * x)``. For inputs ``x`` of equal variance and equal
    correlation ``r``, the expected square of that is ``(1 - r) * sum(e**2) + r * sum(e)**2``. A greedy search lowers
    it: it starts from the nearest values and flips the weight that helps most, until no flip helps or
    `MAX_FLIPS_PER_FILTER` flips are made.

    Parameters
    ----------
    weights
        (C, K) float32 weights of C filters.
    correlation
        Correlation of the inputs, from 0 (gives the nearest values) to 1.

    Returns
    -------
    Tensor
        (C, K) float32.
    """
    nearest = weights.to(torch.bfloat16)
    nearest_error = nearest.float() - weights
    # The other candidate is the bfloat16 neighbour on the far side of the weight.
    direction = torch.where(nearest_error > 0, -torch.inf, torch.inf).to(torch.bfloat16)
    other_error = torch.nextafter(nearest, direction).float() - weights
    error, is_flipped = nearest_error.clone(), torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(min(MAX_FLIPS_PER_FILTER, weights.shape[1])):
        changed = torch.where(is_flipped, nearest_error, other_error)
        total = error.sum(dim=1, keepdim=True)
        # Change of the expected square error if this one weight is flipped, for every weight at once.
        gain = (1 - correlation) * (changed**2 - error**2) + correlation * ((total + changed - error) ** 2 - total**2)
        best = gain.min(dim=1)
        rows = torch.nonzero(best.values < 0).flatten()
        if len(rows) == 0:
            break
        taps = best.indices[rows]
        error[rows, taps] = changed[rows, taps]
        is_flipped[rows, taps] = ~is_flipped[rows, taps]
    other = (weights + other_error).to(torch.bfloat16).float()
    return torch.where(error == nearest_error, nearest.float(), other)
