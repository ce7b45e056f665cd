"""Embeddings from chosen layers: a frozen encoder whose embedding is the pooled maps of some of its layers, joined.

The last layer of a network that was trained on other images can have lost what separates classes across patients.
A wide joined embedding can be reduced by a principal component analysis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from napari_lrmil.core.encoders.absent import AbsentEncoder
from napari_lrmil.core.encoders.architectures import build_encoder
from napari_lrmil.core.encoders.base import NetworkEncoder, require_poolable
from napari_lrmil.core.encoders.foundation import FoundationEncoder
from napari_lrmil.core.encoders.spec import EncoderSpec
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
    require_poolable(loaded.encoder, pooled)  # it may be shortened itself, and has no weights of later layers
    spec = replace(loaded.spec, pooled=pooled, pca=None)
    return LoadedEncoder(_rebuilt(loaded.encoder, spec), _hash(loaded, "+".join(pooled)))


def reduce_embedding(loaded: LoadedEncoder, reduction: Mapping[str, Tensor]) -> LoadedEncoder:
    """Return an encoder whose embedding is reduced.

    Parameters
    ----------
    loaded
        The encoder, whose embedding is not reduced yet.
    reduction
        State of a `Reduction`: ``mean`` (D,) and ``components`` (k, D).

    Raises
    ------
    EncoderError
        If there are more components than dimensions.
    """
    dim = len(reduction["components"])
    loaded.encoder.cpu()  # as the copy that is built; it may have extracted features on a GPU
    reduced = _rebuilt(loaded.encoder, replace(loaded.spec, pca=dim))
    assert reduced.reduction is not None  # the specification has one
    reduced.reduction.load_state_dict(reduction)
    return LoadedEncoder(reduced, _hash(loaded, f"pca {dim}"))


def _hash(loaded: LoadedEncoder, what: str) -> str:
    return hashlib.sha256(f"{loaded.sha256} {what}".encode()).hexdigest()


def _rebuilt(encoder: NetworkEncoder, spec: EncoderSpec) -> NetworkEncoder:
    """Return a network of `spec` with the weights of `encoder`; a new reduction is left at zero."""
    if isinstance(encoder, FoundationEncoder | AbsentEncoder):
        return encoder.with_spec(spec)
    copy = build_encoder(spec)
    weights = encoder.state_dict()
    is_new = ("reduction.mean", "reduction.components")
    copy.load_state_dict({k: v if k in is_new else weights[k] for k, v in copy.state_dict().items()})
    return copy
