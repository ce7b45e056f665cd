"""Encoders: networks that turn patches into embeddings, from whatever source."""

from napari_lrmil.core.encoders.aligned import AlignedEncoder
from napari_lrmil.core.encoders.families import MobileNetV2Encoder, build_encoder
from napari_lrmil.core.encoders.files import LoadedEncoder, load_encoder, save_encoder
from napari_lrmil.core.encoders.find import KINDS, encoder_at, notice
from napari_lrmil.core.encoders.foundation import EncoderCard, foundation_card, foundation_cards
from napari_lrmil.core.encoders.network import NetworkEncoder
from napari_lrmil.core.encoders.spec import (
    CONVOLUTIONAL,
    FROZEN,
    TRAINABLE,
    Encoded,
    Encoder,
    EncoderSpec,
    require_layers,
)
from napari_lrmil.core.encoders.weights import file_sha256, half_tensors, load_weights, module_sha256, round_to_half

__all__ = [
    "CONVOLUTIONAL",
    "FROZEN",
    "KINDS",
    "TRAINABLE",
    "AlignedEncoder",
    "Encoded",
    "Encoder",
    "EncoderCard",
    "EncoderSpec",
    "LoadedEncoder",
    "MobileNetV2Encoder",
    "NetworkEncoder",
    "build_encoder",
    "encoder_at",
    "file_sha256",
    "foundation_card",
    "foundation_cards",
    "half_tensors",
    "load_encoder",
    "load_weights",
    "module_sha256",
    "notice",
    "require_layers",
    "round_to_half",
    "save_encoder",
]
