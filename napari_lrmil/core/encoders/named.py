"""Small students that are known by a short name. Nobody trained them: they start fresh and learn from the teacher."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.families import build_encoder
from napari_lrmil.core.encoders.files import LoadedEncoder
from napari_lrmil.core.encoders.network import NetworkEncoder
from napari_lrmil.core.encoders.spec import IMAGENET, EncoderSpec
from napari_lrmil.core.encoders.weights import module_sha256

ATTO = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}
OURS = "BSD-3-Clause"  # random numbers of this program
NAMED = {
    spec.name: spec
    for spec in (
        EncoderSpec("mobilenet_v2", licence=OURS, name="mobilenet_v2"),
        EncoderSpec("mobilenet_v3_large", licence=OURS, name="mobilenet_v3_large"),
        EncoderSpec("convnext", ATTO, OURS, "convnext_atto", *IMAGENET),
    )
}


def fresh(name: str) -> LoadedEncoder:
    """Return one of `NAMED` with random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        encoder = build_encoder(NAMED[name])
        if NAMED[name].family != "convnext":
            settle(encoder)
    return LoadedEncoder(encoder, module_sha256(encoder))


def settle(encoder: NetworkEncoder) -> None:
    """Give a convolutional network weights and batch norm statistics with which signals neither vanish nor explode.

    Distillation keeps the statistics that a network comes with. Those of a network that saw nothing say mean 0 and
    variance 1, which no layer has, so it is shown pictures once: soft coloured noise.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean of what is shown
    encoder.train()
    with torch.no_grad():
        encoder(_noise())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    encoder.eval()


def _noise() -> Tensor:
    """Return (32, 3, 64, 64) uint8 pictures."""
    soft = nn.functional.interpolate(torch.rand(32, 3, 8, 8), size=64, mode="bilinear", align_corners=False)
    return (255 * (0.7 * soft + 0.3 * torch.rand(32, 3, 64, 64))).to(torch.uint8)
