"""Attention of every method on every slide, as files ``attention/<method>/<slide>.h5`` that a report draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrmil_training.evaluation.evaluate import Results
from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.geometry import Int64

ATTENTION_FOLDER = "attention"


@dataclass(frozen=True)
class AttentionMap:
    """Where one network looked on one slide.

    Attributes
    ----------
    coords
        (N, 2) level-0 corner of each patch, x then y.
    patch_level0
        Width and height of a patch in level-0 pixels.
    attention
        (N,) sums to 1.
    """

    coords: Int64
    patch_level0: tuple[int, int]
    attention: NDArray[np.float32]


def write_attention_maps(folder: Path, results: Results) -> None:
    """Write the attention of all methods, each on its own grid, in the layout of a prediction's ``attention.h5``."""
    for method, its in results.items():
        for r in its:
            lattice = r.grid.lattice
            corners, size = (r.grid.hr_corners, lattice.cell) if r.high else (r.grid.lr_corners, lattice.lr_cell)
            write_attention_map(
                folder / ATTENTION_FOLDER / method / f"{r.row.name}.h5", AttentionMap(corners, size, r.attention)
            )


def write_attention_map(path: Path, found: AttentionMap) -> None:
    """Write one map, whole or not at all."""
    import h5py

    with atomic_write(path, found.coords.nbytes + found.attention.nbytes) as partial, h5py.File(partial, "w") as file:
        coords = file.create_dataset("coords", data=found.coords)
        coords.attrs["patch_level0_xy"] = found.patch_level0
        coords.attrs["patch_size_level0"] = found.patch_level0[0]
        file.create_dataset("attention", data=found.attention)


def read_attention_map(path: Path) -> AttentionMap | None:
    """Return a map; None where there is none."""
    import h5py

    if not path.exists():
        return None
    with h5py.File(path) as file:
        coords = file["coords"]
        width, height = coords.attrs["patch_level0_xy"]
        return AttentionMap(coords[:], (int(width), int(height)), file["attention"][:])
