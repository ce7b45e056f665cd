"""One name for every kind of encoder: a file, a folder, a hub id, a foundation model of the registry."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.architectures import build_encoder
from napari_lrmil.core.encoders.base import IMAGENET, EncoderSpec, NetworkEncoder
from napari_lrmil.core.encoders.foundation import FOUNDATION_PREFIX, foundation_card, load_foundation
from napari_lrmil.core.encoders.huggingface import (
    CONFIG,
    HUB_PREFIX,
    build_untrained,
    hub_notice,
    load_from_hub,
    load_published,
)
from napari_lrmil.core.encoders.weights import METADATA_KEY, LoadedEncoder, load_encoder, module_sha256, read_tensors
from napari_lrmil.core.errors import EncoderError

ATTO = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}
OURS = "BSD-3-Clause"  # random numbers of this program
UNTRAINED_ENCODERS = {
    spec.name: spec
    for spec in (
        EncoderSpec("mobilenet_v2", licence=OURS, name="mobilenet_v2"),
        EncoderSpec("mobilenet_v3_large", licence=OURS, name="mobilenet_v3_large"),
        EncoderSpec("convnext", ATTO, OURS, "convnext_atto", *IMAGENET),
    )
}


def random_encoder(name: str) -> LoadedEncoder:
    """Return one of `UNTRAINED_ENCODERS` with random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        encoder = build_encoder(UNTRAINED_ENCODERS[name])
        if UNTRAINED_ENCODERS[name].family != "convnext":
            calibrate_batch_norm(encoder)
    return LoadedEncoder(encoder, module_sha256(encoder))


def calibrate_batch_norm(encoder: NetworkEncoder) -> None:
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


ACCEPTED_ENCODERS = (
    "a .safetensors file, the folder of a model with config.json, a configuration (.json, .yaml) for random weights, "
    f"{', '.join(UNTRAINED_ENCODERS)} with fresh weights, "
    f"{HUB_PREFIX}owner/name, lazyslide:NAME (`napari-lrmil encoders` lists them), or a shipped bundle's name"
)


def resolve_encoder(name: str) -> LoadedEncoder | None:
    """Return the frozen encoder that a name means; None where it is no file, folder or hub id.

    Raises
    ------
    EncoderError
        Where it means one, which cannot be used.
    """
    if name.startswith(HUB_PREFIX):
        return load_from_hub(name)
    if name.startswith(FOUNDATION_PREFIX):
        return load_foundation(name)
    if name in UNTRAINED_ENCODERS:
        return random_encoder(name)
    path = Path(name)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise EncoderError(f"{path}: a pickle, which could run code when it is read; expected {ACCEPTED_ENCODERS}")
    if path.is_dir() and (path / CONFIG).exists():
        return load_published(path)
    if path.suffix == ".safetensors":
        return _file(path)
    if path.suffix in (".json", ".yaml", ".yml"):
        return build_untrained(path)
    return None


def _file(path: Path) -> LoadedEncoder:
    described = path.is_file() and METADATA_KEY in read_tensors(path)[1]
    if not described and (path.parent / CONFIG).exists():
        return load_published(path.parent, path)
    return load_encoder(path)


def encoder_notice(name: str) -> str | None:
    """Return licence and terms of an encoder that others made, and that weights are random; None: nothing to say."""
    if name in UNTRAINED_ENCODERS:
        return (
            f"{name} starts with random weights and learns from the teacher alone; for weights that someone trained "
            f"give a .safetensors file, a folder with config.json, or {HUB_PREFIX}owner/name of a model of the family "
            f"{UNTRAINED_ENCODERS[name].family}"
        )
    if name.startswith(FOUNDATION_PREFIX):
        return foundation_card(name.removeprefix(FOUNDATION_PREFIX).partition("@")[0]).notice
    return hub_notice(name) if name.startswith(HUB_PREFIX) else None
