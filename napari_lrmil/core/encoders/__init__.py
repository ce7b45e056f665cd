"""Encoders: networks that turn patches into embeddings, loaded from files, hubs or registries, or built untrained."""

from napari_lrmil.core.encoders.architectures import MobileNetV2Encoder, build_encoder
from napari_lrmil.core.encoders.base import (
    CONVOLUTIONAL,
    FROZEN,
    TRAINABLE,
    AlignedEncoder,
    Encoder,
    EncoderOutput,
    EncoderSpec,
    NetworkEncoder,
    require_layers,
)
from napari_lrmil.core.encoders.foundation import EncoderCard, foundation_card, foundation_cards
from napari_lrmil.core.encoders.registry import ACCEPTED_ENCODERS, encoder_notice, resolve_encoder
from napari_lrmil.core.encoders.weights import (
    LoadedEncoder,
    file_sha256,
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
    "file_sha256",
    "foundation_card",
    "foundation_cards",
    "half_tensors",
    "load_encoder",
    "load_weights",
    "module_sha256",
    "require_layers",
    "resolve_encoder",
    "round_to_half",
    "save_encoder",
]
