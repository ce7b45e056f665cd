"""Cache of patch embeddings, so that a patch is encoded once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.slides.byte_lru import ByteLru

CACHE_BYTES = 512 << 20  # 100,000 patches of 1280 dimensions

Place = tuple[int, int, int]  # number of the cache key, column and row of a cell
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class CacheKey:
    """Everything that an embedding depends on, except the patch's place on the grid.

    Attributes
    ----------
    slide_fingerprint
        Identifies the slide by its content.
    origin_level0, cell_level0
        The grid in level-0 pixels (x, y). It changes with a resolution that the user enters.
    target_mpp, patch_px, input_px
        Resolution (µm per pixel) and side of the patches as read, and as fed to the encoder.
    network
        Hash of the model, and the name of the encoder.
    precision
        Number format in which the encoder computed.
    """

    slide_fingerprint: str
    origin_level0: tuple[int, int]
    cell_level0: tuple[int, int]
    target_mpp: float
    patch_px: int
    input_px: int | None
    network: str
    precision: str = "float32"


@dataclass(frozen=True)
class CachedFeatures:
    """Embeddings from the cache for some patches.

    Attributes
    ----------
    rows
        (N,) whether a patch is cached.
    features
        (rows.sum(), D) embeddings of the cached patches.
    """

    rows: NDArray[np.bool_]
    features: Features


class EmbeddingCache:
    """Thread-safe cache of the most recently used embeddings, at most `max_bytes` in total."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._vectors: ByteLru[Place, Vector] = ByteLru(max_bytes)
        # A number hashes faster than a key of eight fields. Two threads can assign two numbers to one key, which costs
        # one more encoding, but never one number to two keys.
        self._numbers: defaultdict[CacheKey, int] = defaultdict(count().__next__)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def bytes(self) -> int:
        """Bytes of all cached embeddings."""
        return self._vectors.bytes

    def has(self, key: CacheKey, index: Int64) -> NDArray[np.bool_]:
        """Return (N,) whether each of (N, 2) cells is cached, without marking them as used."""
        return np.array(self._vectors.has(self._places(key, index)), dtype=bool)

    def get(self, key: CacheKey, index: Int64) -> CachedFeatures:
        """Return the cached embeddings of (N, 2) cells (column, row) and mark them as just used."""
        vectors = self._vectors.get_many(self._places(key, index))
        rows = np.array([vector is not None for vector in vectors], dtype=bool)
        features = [vector for vector in vectors if vector is not None]
        return CachedFeatures(rows, np.stack(features) if features else np.zeros((0, 0), np.float32))

    def clear(self) -> None:
        """Remove all embeddings."""
        self._vectors.clear()

    def put(self, key: CacheKey, index: Int64, features: Features) -> None:
        """Keep (N, D) embeddings of (N, 2) cells and drop the ones that were not used for longest."""
        copies = [vector.copy() for vector in features]  # a view would keep the whole batch alive
        self._vectors.put_many(list(zip(self._places(key, index), copies, strict=True)))

    def _places(self, key: CacheKey, index: Int64) -> list[Place]:
        number = self._numbers[key]
        return [(number, column, row) for column, row in index.tolist()]
