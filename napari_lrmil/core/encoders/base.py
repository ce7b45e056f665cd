"""Interface of encoders: uint8 pixels in, a pooled embedding and spatial maps of named layers out.

Normalisation is part of the encoder, so callers pass pixels as they read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.errors import EncoderError

CLASS_TOKEN = ".cls"  # ending of a pooled name: the class token of a block, in place of the mean of its patch tokens


@dataclass(frozen=True)
class EncoderOutput:
    """Output of an encoder for a batch of patches.

    Attributes
    ----------
    embedding
        (B, D) pooled embedding.
    maps
        Layer name -> (B, C, h, w) spatial map, for the requested layers.
    """

    embedding: Tensor
    maps: Mapping[str, Tensor]


class Encoder(Protocol):
    """Network with a pooled embedding and spatial maps.

    Every encoder can be a teacher. A student must be a `NetworkEncoder` of a family in `TRAINABLE`.
    """

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
    """Raise `EncoderError`, with the names of the existing layers, if one of `layers` does not exist."""
    unknown = [name for name in layers if name not in encoder.layers]
    if unknown:
        available = ", ".join(encoder.layers) or "none, so set stage1.lambda_layer=0"
        pooled = encoder.spec.pooled
        cut = f", which ends with the last pooled layer of {' and '.join(pooled)}" if pooled else ""
        raise EncoderError(f"no layer {', '.join(unknown)} in {encoder.spec.name}{cut}; available: {available}")


class NetworkEncoder(nn.Module):
    """Base class of all families: holds the specification and normalises pixels.

    Parameters
    ----------
    spec
        Architecture of the network.

    Raises
    ------
    EncoderError
        If the family does not accept the settings.
    """

    mean: Tensor
    deviation: Tensor
    net: Any  # one of our networks, or a transformers model, which has no usable types
    dim: int

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.reduction: Reduction | None = None
        for name, values in (("mean", spec.mean), ("deviation", spec.deviation)):
            # Not persistent: the specification already stores these values.
            self.register_buffer(name, 255 * torch.tensor(values, device="cpu").reshape(3, 1, 1), persistent=False)

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths, in the order in which they run."""
        raise NotImplementedError

    @property
    def poolable(self) -> dict[str, int]:
        """Names that `EncoderSpec.pooled` accepts, with their widths."""
        return self.layers

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB pixels.

        Raises
        ------
        EncoderError
            If a layer does not exist.
        """
        require_layers(self, layers)
        pooled = self.spec.pooled
        encoded = self._encode(pixels, tuple(dict.fromkeys((*layers, *pooled))))
        maps, embedding = encoded.maps, encoded.embedding
        if pooled:  # each map is averaged over its own grid, so layers of different grids can be joined
            embedding = torch.cat([maps[name].mean(dim=(2, 3)) for name in pooled], dim=1)
        if self.reduction is not None:
            embedding = self.reduction(embedding)
        return EncoderOutput(embedding, {name: maps[name] for name in layers})

    def _encode(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        """Return the network's own embedding and the maps of `layers`, which exist."""
        raise NotImplementedError

    def _set_embedding(self) -> None:
        """Make the embedding that the specification asks for; families call it at the end of their construction.

        Raises
        ------
        EncoderError
            If a layer does not exist; it lists those that do. If the embedding has fewer dimensions than `pca`.
        """
        if self.spec.pooled:
            self._use_pooled_layers(self.spec.pooled)
        if self.spec.pca is not None:
            if not 1 <= self.spec.pca <= self.dim:
                raise EncoderError(
                    f"encoder.pca={self.spec.pca}: the embedding of {self.spec.name} has {self.dim} dimensions, and a "
                    f"reduction has 1 to {self.dim}"
                )
            self.reduction = Reduction(self.dim, self.spec.pca)
            self.dim = self.spec.pca

    def _use_pooled_layers(self, pooled: tuple[str, ...]) -> None:
        require_poolable(self, pooled)
        self.dim = sum(self.poolable[name] for name in pooled)
        names = list(self.layers)
        self._end_with(max(map(map_layer, pooled), key=names.index))

    def _end_with(self, layer: str) -> None:
        """Remove what runs after `layer`, which no output needs; a frozen network of a registry is left whole."""

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) float pixels, normalised as the weights expect them, in channels-last memory format.

        Pixels are read in this format and convolutions run faster on it, so no step has to reorder memory.
        """
        width = pixels.shape[-1]
        # Whole rows fill the registers of a CPU, three channels do not: four times as fast in OpenVINO.
        mean, deviation = (values.flatten().repeat(width) for values in (self.mean, self.deviation))  # (w * 3,)
        rows = pixels.permute(0, 2, 3, 1).flatten(2).to(self.mean.dtype)  # (B, h, w * 3)
        normalised = (rows - mean) / deviation
        return normalised.reshape(*normalised.shape[:2], width, -1).permute(0, 3, 1, 2)


class Reduction(nn.Module):
    """Linear reduction of embeddings to fewer dimensions. It is fitted once and does not learn with the network.

    Parameters
    ----------
    width, dim
        Dimensions before and after.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(dim, width))

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the (B, dim) projections of (B, width) embeddings."""
        return (embedding - self.mean) @ self.components.T


def map_layer(name: str) -> str:
    """Return the layer of a pooled name: ``block_3`` of its class token, ``block_3.cls``."""
    return name.removesuffix(CLASS_TOKEN)


def require_poolable(encoder: NetworkEncoder, layers: Sequence[str]) -> None:
    """Raise `EncoderError`, with the names that exist, if one of `layers` cannot be pooled."""
    unknown = [name for name in layers if name not in encoder.poolable]
    if unknown:
        available = ", ".join(encoder.poolable) or "none, because its architecture keeps no maps"
        raise EncoderError(
            f"no layer {', '.join(unknown)} to pool in {encoder.spec.name} (encoder.teacher_layers, selection.layers); "
            f"available: {available}"
        )


@contextmanager
def capture_activations(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of modules while the network runs; yields a mapping of name -> tensor."""
    outputs: dict[str, Tensor] = {}
    caller = get_ident()

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            if get_ident() != caller:  # another thread runs the same network on other patches
                return
            # Blocks of transformers return a tuple with the hidden states first.
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return record

    hooks = [module.register_forward_hook(make_hook(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class AlignedEncoder(nn.Module):
    """Student encoder whose embeddings are in the teacher's standardised space (``P(z_r)``, Method 2.3).

    If the widths are equal, `P` is the identity, and the embedding is standardised with the teacher's training
    statistics. If they differ, `P` is a learned linear map.

    Parameters
    ----------
    encoder
        Network of the student.
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
        """Set the (D,) training statistics of the teacher; no effect if a linear map learns the scale."""
        if isinstance(self.projection, nn.Identity):
            self.mean.copy_(mean)
            self.deviation.copy_(deviation)

    @property
    def spec(self) -> EncoderSpec:
        """Architecture of the student's network."""
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
