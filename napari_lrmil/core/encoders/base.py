"""What an encoder is: pixels in, a pooled embedding and spatial maps at named layers out, normalisation inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from napari_lrmil.core.errors import EncoderError

Rgb = tuple[float, float, float]
HALF: Rgb = (0.5, 0.5, 0.5)
IMAGENET: tuple[Rgb, Rgb] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TRAINABLE = ("mobilenet_v2", "mobilenet_v3_large", "convnext", "vit", "dinov2", "dinov2_with_registers")
CONVOLUTIONAL = ("mobilenet_v2", "mobilenet_v3_large", "convnext")
FROZEN = "lazyslide"  # foundation encoders, which others load: teachers only


@dataclass(frozen=True)
class EncoderOutput:
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

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB."""
        ...


def require_layers(encoder: Encoder, layers: Sequence[str]) -> None:
    """Raise `EncoderError` naming the layers that exist, where one of `layers` does not."""
    unknown = [name for name in layers if name not in encoder.layers]
    if unknown:
        there = ", ".join(encoder.layers) or "none, so set stage1.lambda_layer=0"
        raise EncoderError(f"no layer {', '.join(unknown)} in {encoder.spec.name}; there are: {there}")


class NetworkEncoder(nn.Module):
    """What all families share: normalisation, and maps taken where named modules put them out.

    Parameters
    ----------
    spec
        How the network is built.

    Raises
    ------
    EncoderError
        Where the settings are no configuration of the family.
    """

    mean: Tensor
    deviation: Tensor
    net: Any  # of transformers, which tells no types, but for our own
    dim: int

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        for name, values in (("mean", spec.mean), ("deviation", spec.deviation)):  # no weights: the spec holds them
            self.register_buffer(name, 255 * torch.tensor(values).reshape(3, 1, 1), persistent=False)

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB pixels.

        Raises
        ------
        EncoderError
            Where a layer does not exist.
        """
        raise NotImplementedError

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) float pixels as the weights expect them, in memory with channels last.

        Pixels are read with channels last, and are computed on in that order, so that nothing has to be moved.
        """
        last = pixels.permute(0, 2, 3, 1).to(self.mean.dtype)  # (B, h, w, 3)
        return ((last - self.mean.flatten()) / self.deviation.flatten()).permute(0, 3, 1, 2)


@contextmanager
def capture_activations(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules put out while the network runs: name -> tensor."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return keep

    hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class AlignedEncoder(nn.Module):
    """A student encoder whose embeddings live in the teacher's standardised space (``P(z_r)``, Method 2.3).

    Where the widths agree, `P` is the identity and the student's embedding is standardised with the teacher's training
    statistics; where they differ, a linear map carries it there.

    Parameters
    ----------
    encoder
        The student's own network.
    teacher_dim
        Width D of the teacher's embedding.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: NetworkEncoder, teacher_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dim = teacher_dim
        self.projection = nn.Identity() if encoder.dim == teacher_dim else nn.Linear(encoder.dim, teacher_dim)
        self.register_buffer("mean", torch.zeros(encoder.dim))
        self.register_buffer("deviation", torch.ones(encoder.dim))

    def set_standard(self, mean: Tensor, deviation: Tensor) -> None:
        """Standardise by the teacher's training statistics; nothing to do where a linear map learns the scale."""
        if isinstance(self.projection, nn.Identity):
            self.mean.copy_(mean)
            self.deviation.copy_(deviation)

    @property
    def spec(self) -> EncoderSpec:
        """How the student's own network is built."""
        return self.encoder.spec

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        return self.encoder.layers

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB; the embedding is (B, D) in the teacher's standardised units."""
        encoded = self.encoder(pixels, layers)
        standard = (encoded.embedding - self.mean) / self.deviation
        return EncoderOutput(self.projection(standard), encoded.maps)
