"""Resolution of encoder names: a file, a folder, a hub id, a foundation model, or an untrained architecture."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.architectures import build_encoder
from napari_lrmil.core.encoders.base import NetworkEncoder
from napari_lrmil.core.encoders.foundation import FOUNDATION_PREFIX, foundation_card, load_foundation
from napari_lrmil.core.encoders.hub_name import HUB_PREFIX
from napari_lrmil.core.encoders.huggingface import (
    CONFIG,
    build_untrained,
    hub_notice,
    load_from_hub,
    load_published,
)
from napari_lrmil.core.encoders.spec import IMAGENET, EncoderSpec
from napari_lrmil.core.encoders.weights import METADATA_KEY, LoadedEncoder, load_encoder, module_sha256, read_tensors
from napari_lrmil.core.errors import EncoderError

ATTO = {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}
OURS = "BSD-3-Clause"  # licence of random weights, which this program generates
UNTRAINED_ENCODERS = {
    spec.name: spec
    for spec in (
        EncoderSpec("mobilenet_v2", licence=OURS, name="mobilenet_v2"),
        EncoderSpec("mobilenet_v3_large", licence=OURS, name="mobilenet_v3_large"),
        EncoderSpec("convnext", ATTO, OURS, "convnext_atto", *IMAGENET),
    )
}


def random_encoder(name: str) -> LoadedEncoder:
    """Return one of `UNTRAINED_ENCODERS` with random weights, seeded by its name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        encoder = build_encoder(UNTRAINED_ENCODERS[name])
        if UNTRAINED_ENCODERS[name].family != "convnext":
            calibrate_batch_norm(encoder)
    return LoadedEncoder(encoder, module_sha256(encoder))


def calibrate_batch_norm(encoder: NetworkEncoder) -> None:
    """Initialise weights and batch norm statistics so that signals neither vanish nor explode.

    Distillation keeps the batch norm statistics of the network. A new network has mean 0 and variance 1, which fits no
    layer. One pass over smooth coloured noise replaces them with measured statistics.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # cumulative mean instead of an exponential one
    encoder.train()
    with torch.no_grad():
        encoder(_noise())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    encoder.eval()


def _noise() -> Tensor:
    """Return (32, 3, 64, 64) uint8 images."""
    soft = nn.functional.interpolate(torch.rand(32, 3, 8, 8), size=64, mode="bilinear", align_corners=False)
    return (255 * (0.7 * soft + 0.3 * torch.rand(32, 3, 64, 64))).to(torch.uint8)


ACCEPTED_ENCODERS = (
    "a .safetensors file, the folder of a model with config.json, a configuration (.json, .yaml) for random weights, "
    f"{', '.join(UNTRAINED_ENCODERS)} with fresh weights, "
    f"{HUB_PREFIX}owner/name, lazyslide:NAME (`napari-lrmil encoders` lists them), or a shipped bundle's name"
)


def resolve_encoder(name: str) -> LoadedEncoder | None:
    """Return the frozen encoder of a name, or None if the name matches none of `ACCEPTED_ENCODERS`.

    Raises
    ------
    EncoderError
        If the name matches, but the encoder cannot be used.
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
        return _load_file(path)
    if path.suffix in (".json", ".yaml", ".yml"):
        return build_untrained(path)
    return None


def _load_file(path: Path) -> LoadedEncoder:
    """Return the encoder of a safetensors file; without our description the config.json next to it is used."""
    is_described = path.is_file() and METADATA_KEY in read_tensors(path)[1]
    if not is_described and (path.parent / CONFIG).exists():
        return load_published(path.parent, path)
    return load_encoder(path)


def encoder_notice(name: str) -> str | None:
    """Return licence and terms of a third-party encoder, or a note that weights are random; None if not needed."""
    if name in UNTRAINED_ENCODERS:
        return (
            f"{name} starts with random weights and learns from the teacher only; for trained weights "
            f"give a .safetensors file, a folder with config.json, or {HUB_PREFIX}owner/name of a model of the family "
            f"{UNTRAINED_ENCODERS[name].family}"
        )
    if name.startswith(FOUNDATION_PREFIX):
        return foundation_card(name.removeprefix(FOUNDATION_PREFIX).partition("@")[0]).notice
    return hub_notice(name) if name.startswith(HUB_PREFIX) else None
