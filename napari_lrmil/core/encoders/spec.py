"""Description of an encoder's architecture. It imports no torch, so that a model's card is read without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from napari_lrmil.core.errors import EncoderError

Rgb = tuple[float, float, float]
HALF: Rgb = (0.5, 0.5, 0.5)
IMAGENET: tuple[Rgb, Rgb] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TRAINABLE = ("mobilenet_v2", "mobilenet_v3_large", "convnext", "vit", "dinov2", "dinov2_with_registers")
CONVOLUTIONAL = ("mobilenet_v2", "mobilenet_v3_large", "convnext")
ABSENT = "none"  # teacher's encoder in configurations that is not at hand, see `absent`
FROZEN = "lazyslide"  # foundation encoders, loaded by lazyslide-models; they can only be teachers


@dataclass(frozen=True)
class EncoderSpec:
    """Architecture of an encoder, without its weights.

    Attributes
    ----------
    family
        Architecture: ``mobilenet_v2``, ``mobilenet_v3_large``, ``convnext``, ``vit``, ``dinov2`` or
        ``dinov2_with_registers``; for a frozen foundation encoder ``lazyslide``.
    settings
        Entries of the family's ``transformers`` configuration that differ from its defaults. MobileNetV3 has one
        entry, ``width``, which multiplies the number of channels.
    licence
        Licence of the weights, shown in the bundle's card.
    name
        Name of the weights, for messages and reports.
    mean, deviation
        Normalisation of each channel, in 0 .. 1: the weights were trained with ``(x / 255 - mean) / deviation``.
    pooled
        Layers whose spatial means, joined in this order, are the embedding. Empty: the network's own embedding.
    pca
        Dimensions to which a principal component analysis reduces the embedding; None: not reduced.

    Raises
    ------
    EncoderError
        If the family is unknown, or a layer is pooled twice.
    """

    family: str = "mobilenet_v2"
    settings: Mapping[str, Any] = field(default_factory=dict)
    licence: str = "unknown"
    name: str = "mobilenet_v2"
    mean: Rgb = HALF
    deviation: Rgb = HALF
    pooled: tuple[str, ...] = ()
    pca: int | None = None

    def __post_init__(self) -> None:
        if self.family not in (*TRAINABLE, FROZEN):
            raise EncoderError(f"unknown encoder family '{self.family}'; expected one of {', '.join(TRAINABLE)}")
        doubled = next((name for name in self.pooled if self.pooled.count(name) > 1), None)
        if doubled:
            raise EncoderError(f"layer {doubled} is joined with itself; name every layer of the embedding once")

    @property
    def full_name(self) -> str:
        """Name of the weights, pooled layers and dimensions: embeddings of other layers are other features."""
        parts = ["+".join(self.pooled), "" if self.pca is None else f"pca{self.pca}"]
        return "-".join([self.name, *filter(None, parts)])

    def stored_values(self) -> dict[str, Any]:
        """Return the fields as a file stores them: of the network's own embedding those of the first version alone."""
        return without_defaults(asdict(self))


def without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a specification without later ones that have their default, which older programs refuse."""
    return {name: value for name, value in values.items() if name not in ("pooled", "pca") or value}
