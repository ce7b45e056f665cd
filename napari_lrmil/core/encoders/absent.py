"""Stand-in for an encoder that is not at hand: its embeddings are given, and nothing can be encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor, nn

from napari_lrmil.core.encoders.base import EncoderOutput, NetworkEncoder
from napari_lrmil.core.encoders.spec import ABSENT, FROZEN, EncoderSpec
from napari_lrmil.core.encoders.weights import LoadedEncoder
from napari_lrmil.core.errors import EncoderError


class AbsentEncoder(NetworkEncoder):
    """Encoder of which only the width is known.

    Parameters
    ----------
    spec
        Specification with the name `ABSENT`; it may reduce the embedding.
    width
        Dimensions of the given embeddings.
    stated
        Name of the encoder in the files of its embeddings, or empty.
    """

    def __init__(self, spec: EncoderSpec, width: int, stated: str = "") -> None:
        super().__init__(spec)
        self.net = nn.Identity()
        self.dim, self._width, self.stated = width, width, stated
        self._set_embedding()

    @property
    def layers(self) -> dict[str, int]:
        """No layer."""
        return {}

    def with_spec(self, spec: EncoderSpec) -> AbsentEncoder:
        """Return the stand-in with the embedding of another specification: a reduction."""
        return AbsentEncoder(spec, self._width, self.stated)

    def _encode(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        raise EncoderError("the encoder is not at hand (encoder.teacher=none), so no patch can be encoded; name it")


def absent_encoder(width: int, stated: str = "") -> LoadedEncoder:
    """Return the stand-in for the encoder of embeddings of `width` dimensions, which the files call `stated`."""
    digest = hashlib.sha256(f"{ABSENT} {width}".encode()).hexdigest()
    return LoadedEncoder(AbsentEncoder(EncoderSpec(FROZEN, name=ABSENT), width, stated), digest)
