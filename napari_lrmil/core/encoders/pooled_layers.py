"""Embeddings from chosen layers: a frozen encoder whose embedding is the pooled maps of some of its layers, joined.

The last layer of a network that was trained on other images can have lost what separates classes across patients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from napari_lrmil.core.encoders.architectures import build_encoder
from napari_lrmil.core.encoders.base import NetworkEncoder
from napari_lrmil.core.encoders.foundation import FoundationEncoder
from napari_lrmil.core.encoders.weights import LoadedEncoder


def pool_layers(loaded: LoadedEncoder, layers: Sequence[str]) -> LoadedEncoder:
    """Return an encoder whose embedding is the spatial means of `layers`, joined in this order.

    What the network runs after the last of them is left out. The hash is of the weights and of the layers, so that
    nothing that was computed with other layers is taken for it.

    Parameters
    ----------
    loaded
        The encoder with its own embedding.
    layers
        Names that its `poolable` has. Empty: the encoder is returned as it is.

    Raises
    ------
    EncoderError
        If a layer does not exist, with the names of those that do, or is named twice.
    """
    if not layers:
        return loaded
    pooled = tuple(layers)
    digest = hashlib.sha256(f"{loaded.sha256} {'+'.join(pooled)}".encode()).hexdigest()
    return LoadedEncoder(_pooled(loaded.encoder, pooled), digest)


def _pooled(encoder: NetworkEncoder, pooled: tuple[str, ...]) -> NetworkEncoder:
    if isinstance(encoder, FoundationEncoder):
        return encoder.with_pooled(pooled)
    copy = build_encoder(replace(encoder.spec, pooled=pooled))
    weights = encoder.state_dict()
    copy.load_state_dict({name: weights[name] for name in copy.state_dict()})
    return copy
