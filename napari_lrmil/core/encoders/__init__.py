"""Encoders: networks that turn patches into embeddings, loaded from files, hubs or registries, or built untrained.

Names are loaded on first use, because most of them load torch, which takes longer than a prediction without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_lrmil.core.encoders.architectures import build_encoder
    from napari_lrmil.core.encoders.base import AlignedEncoder, Encoder, EncoderOutput, NetworkEncoder, require_layers
    from napari_lrmil.core.encoders.foundation import EncoderCard, foundation_card, foundation_cards
    from napari_lrmil.core.encoders.mobilenet_v2 import MobileNetV2Encoder
    from napari_lrmil.core.encoders.pooled_layers import pool_layers, reduce_embedding
    from napari_lrmil.core.encoders.registry import ACCEPTED_ENCODERS, encoder_notice, resolve_encoder
    from napari_lrmil.core.encoders.spec import CONVOLUTIONAL, FROZEN, TRAINABLE, EncoderSpec
    from napari_lrmil.core.encoders.weights import (
        LoadedEncoder,
        half_tensors,
        load_encoder,
        load_weights,
        module_sha256,
        round_to_half,
        save_encoder,
    )

__all__ = [
    "ACCEPTED_ENCODERS",
    "CONVOLUTIONAL",
    "FROZEN",
    "TRAINABLE",
    "AlignedEncoder",
    "Encoder",
    "EncoderCard",
    "EncoderOutput",
    "EncoderSpec",
    "LoadedEncoder",
    "MobileNetV2Encoder",
    "NetworkEncoder",
    "build_encoder",
    "encoder_notice",
    "foundation_card",
    "foundation_cards",
    "half_tensors",
    "load_encoder",
    "load_weights",
    "module_sha256",
    "pool_layers",
    "reduce_embedding",
    "require_layers",
    "resolve_encoder",
    "round_to_half",
    "save_encoder",
]

_MODULES = (
    "spec",
    "base",
    "mobilenet_v2",
    "architectures",
    "weights",
    "registry",
    "foundation",
    "pooled_layers",
)  # only the first imports no torch


def __getattr__(name: str) -> Any:
    """Load a name on first use (PEP 562)."""
    if name in __all__:
        for module in _MODULES:
            if name in vars(loaded := import_module(f"{__name__}.{module}")):
                return getattr(loaded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
