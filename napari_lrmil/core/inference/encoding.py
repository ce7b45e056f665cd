"""Encoding of the patches of one network, with a cache of embeddings of earlier calls."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.events import Event
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.features.embedding_cache import CacheKey, EmbeddingCache
from napari_lrmil.core.features.extraction import Embeddings, extract_features
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.inference.network_input import NetworkInput
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.stain import StainTransform
from napari_lrmil.core.runtimes.select import Runtime
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Compute:
    """Device, cache and runtime of the encoders."""

    device: str | torch.device
    cache: EmbeddingCache | None
    runtime: str


def encode_patches(
    slide: Slide, bundle: Bundle, grid: NestedGrid, read: NetworkInput, compute: Compute, runtime: Runtime
) -> Generator[Event, None, Embeddings]:
    """Return the embeddings of all patches; only those that the cache lacks are encoded, from the middle outwards.

    Parameters
    ----------
    slide, bundle, grid
        Slide, model, and the grid of all patches.
    read
        Patches and network.
    compute
        Device and cache.
    runtime
        The runtime that was chosen for this network.
    """
    patches = read.patches
    encode = partial(extract_features, device=compute.device, stage=read.stage, batch=default_batch_size(patches.side))
    if compute.cache is None:
        return (yield from encode(slide, patches, runtime.embedder))
    tag = runtime.choice.cache_tag
    key = cache_key(slide, bundle, grid, read.network, tag, stain=patches.stain)
    cached = compute.cache.get(key, read.index)
    # The viewer shows patches as they arrive, and people look at the middle of the view first.
    missing = center_first_order(patches.corners, np.flatnonzero(~cached.rows))
    if len(missing) == 0:
        return Embeddings(cached.features, encoded=0)
    missing_patches = replace(patches, corners=patches.corners[missing])
    keep = partial(_store_batch, compute.cache, key, read.index[missing])
    encoded = yield from encode(slide, missing_patches, runtime.embedder, keep=keep)
    features = np.empty((len(read.index), encoded.features.shape[1]), np.float32)
    features[missing] = encoded.features
    if cached.rows.any():
        features[cached.rows] = cached.features
    return replace(encoded, features=features)


def _store_batch(cache: EmbeddingCache, key: CacheKey, index: Int64, rows: slice, features: Features) -> None:
    """Cache each batch at once, so that a cancelled run leaves its finished patches to the next one."""
    cache.put(key, index[rows], features)


def cache_key(
    slide: Slide,
    bundle: Bundle,
    grid: NestedGrid,
    network: str,
    precision: str = "float32",
    *,
    stain: StainTransform | None = None,
) -> CacheKey:
    """Return the cache key of a slide's embeddings by one network of a bundle.

    Parameters
    ----------
    slide, bundle
        Slide and model.
    grid
        Grid of the patches; only its lattice is part of the key.
    network
        ``student`` or ``teacher``.
    precision
        Runtimes with different last digits have different values here, see `RuntimeChoice.cache_tag`.
    stain
        Colour transform of the patches. Its statistics follow the tissue, which can be edited between calls.
    """
    card, lattice = bundle.card, grid.lattice
    is_student = network == "student"
    return CacheKey(
        slide_fingerprint=slide.fingerprint,
        origin_level0=lattice.origin,
        cell_level0=lattice.lr_cell if is_student else lattice.cell,
        target_mpp=card.lr_mpp if is_student else card.hr_mpp,
        patch_px=card.lr_patch_px if is_student else card.hr_patch_px,
        input_px=card.student_input_px if is_student else None,
        network=f"{bundle.sha256} {network}{f' {stain.fingerprint}' if stain is not None else ''}",
        precision=precision,
    )


def center_first_order(corners: Int64, rows: Int64) -> Int64:
    """Return `rows` of (N, 2) `corners`, ordered by distance from the centre of all corners."""
    if len(rows) == 0:
        return rows
    # Of all corners, not of `rows`: cached patches do not move the centre.
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    distance = ((corners[rows] - middle) ** 2).sum(axis=1)
    return rows[np.argsort(distance, kind="stable")]
