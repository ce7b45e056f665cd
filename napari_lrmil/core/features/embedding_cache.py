"""Embeddings that were made before: a patch seen twice is encoded once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.geometry import Int64

CACHE_BYTES = 512 << 20  # 100,000 patches of 1280 dimensions

Place = tuple[int, int]  # column and row of a cell
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class CacheKey:
    """Everything besides its place on the grid that an embedding depends on.

    Attributes
    ----------
    slide_fingerprint
        Tells the slide's content from others.
    origin_level0, cell_level0
        The grid in level-0 pixels, x then y: a resolution given by the user moves it.
    target_mpp, patch_px, input_px
        Resolution (µm per pixel) and side of the patches as read, and as fed to the encoder.
    network
        Hash of the model, and which of its encoders.
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
    """What the cache has of some patches.

    Attributes
    ----------
    rows
        (N,) whether a patch is there.
    features
        (rows.sum(), D) embeddings of those.
    """

    rows: NDArray[np.bool_]
    features: Features


class EmbeddingCache:
    """The most recently used embeddings, at most `max_bytes` of them together. Safe from several threads."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._vectors: OrderedDict[tuple[CacheKey, Place], Vector] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def has(self, key: CacheKey, index: Int64) -> NDArray[np.bool_]:
        """Return (N,) which of the (N, 2) cells are there, without touching them."""
        with self._lock:
            return np.array([(key, place) in self._vectors for place in _places(index)], dtype=bool)

    def get(self, key: CacheKey, index: Int64) -> CachedFeatures:
        """Return what there is of (N, 2) cells, column then row, and mark it as just used."""
        with self._lock:
            vectors = [self._vectors.get((key, place)) for place in _places(index)]
            for place, vector in zip(_places(index), vectors, strict=True):
                if vector is not None:
                    self._vectors.move_to_end((key, place))
        there = [vector for vector in vectors if vector is not None]
        rows = np.array([vector is not None for vector in vectors], dtype=bool)
        return CachedFeatures(rows, np.stack(there) if there else np.zeros((0, 0), np.float32))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._vectors.clear()
            self.bytes = 0

    def put(self, key: CacheKey, index: Int64, features: Features) -> None:
        """Keep (N, D) embeddings of (N, 2) cells and drop the ones that were not used for longest."""
        with self._lock:
            for place, vector in zip(_places(index), features, strict=True):
                old = self._vectors.pop((key, place), None)
                kept = vector.copy()  # a view would keep the whole batch alive
                self.bytes += kept.nbytes - (old.nbytes if old is not None else 0)
                self._vectors[key, place] = kept
            while self.bytes > self.max_bytes:
                _, dropped = self._vectors.popitem(last=False)
                self.bytes -= dropped.nbytes


def _places(index: Int64) -> list[Any]:
    return list(map(tuple, index.tolist()))
