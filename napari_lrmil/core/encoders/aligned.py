"""A student's encoder, whose embeddings live where the teacher's do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.network import NetworkEncoder
from napari_lrmil.core.encoders.spec import Encoded, EncoderSpec


class AlignedEncoder(nn.Module):
    """A student encoder whose embeddings live in the teacher's standardised space (``P(z_r)``, docs/method.md 2.3).

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

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> Encoded:
        """Encode (B, 3, h, w) uint8 RGB; the embedding is (B, D) in the teacher's standardised units."""
        encoded = self.encoder(pixels, layers)
        standard = (encoded.embedding - self.mean) / self.deviation
        return Encoded(self.projection(standard), encoded.maps)
