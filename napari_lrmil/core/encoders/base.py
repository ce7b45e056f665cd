"""What an encoder is: pixels in, a pooled embedding and spatial maps at named layers out, normalisation inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from napari_lrmil.core.errors import EncoderError

Rgb = tuple[float, float, float]
HALF: Rgb = (0.5, 0.5, 0.5)
IMAGENET: tuple[Rgb, Rgb] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TRAINABLE = ("mobilenet_v2", "mobilenet_v3_large", "convnext", "vit", "dinov2", "dinov2_with_registers")
CONVOLUTIONAL = ("mobilenet_v2", "mobilenet_v3_large", "convnext")
FROZEN = "lazyslide"  # foundation encoders, which others load: teachers only


@dataclass(frozen=True)
class Encoded:
    """What an encoder says of a batch.

    Attributes
    ----------
    embedding
        (B, D) pooled embedding.
    maps
        Layer name -> (B, C, h, w) spatial map, for the layers that were asked for.
    """

    embedding: Tensor
    maps: Mapping[str, Tensor]


@dataclass(frozen=True)
class EncoderSpec:
    """How to build an encoder without its weights.

    Attributes
    ----------
    family
        Architecture: ``mobilenet_v2``, ``mobilenet_v3_large``, ``convnext``, ``vit``, ``dinov2`` or
        ``dinov2_with_registers``; for a frozen foundation encoder ``lazyslide``.
    settings
        Entries of the family's ``transformers`` configuration that differ from its defaults; of MobileNetV3 ``width``,
        which multiplies its channels.
    licence
        Licence of the weights, shown in the bundle's card.
    name
        What people call these weights.
    mean, deviation
        Of each channel, in 0 .. 1: what the weights were trained with is ``(x / 255 - mean) / deviation``.

    Raises
    ------
    EncoderError
        Where the family is unknown.
    """

    family: str = "mobilenet_v2"
    settings: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    name: str = "mobilenet_v2"
    mean: Rgb = HALF
    deviation: Rgb = HALF

    def __post_init__(self) -> None:
        if self.family not in (*TRAINABLE, FROZEN):
            raise EncoderError(f"unknown encoder family '{self.family}'; known: {', '.join(TRAINABLE)}")


class Encoder(Protocol):
    """Anything with a pooled embedding and spatial maps can be teacher; a student's weights must be ours to train."""

    spec: EncoderSpec
    dim: int

    @property
    def layers(self) -> Mapping[str, int]:
        """Names of the layers that have a map, with their widths."""
        ...

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> Encoded:
        """Encode (B, 3, h, w) uint8 RGB."""
        ...


def require_layers(encoder: Encoder, layers: Sequence[str]) -> None:
    """Raise `EncoderError` naming the layers that exist, where one of `layers` does not."""
    unknown = [name for name in layers if name not in encoder.layers]
    if unknown:
        there = ", ".join(encoder.layers) or "none, so set stage1.lambda_layer=0"
        raise EncoderError(f"no layer {', '.join(unknown)} in {encoder.spec.name}; there are: {there}")
