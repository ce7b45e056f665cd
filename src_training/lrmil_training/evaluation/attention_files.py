"""Files ``attention/<method>/<slide>.h5`` with the attention of each method on each slide, for the report."""

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
    """Attention of one method on one slide.

    Attributes
    ----------
    coords
        (N, 2) level-0 corner of each patch, x then y.
    patch_level0
        Width and height of a patch, in level-0 pixels.
    attention
        (N,) attention, sums to 1.
    """

    coords: Int64
    patch_level0: tuple[int, int]
    attention: NDArray[np.float32]


def write_attention_maps(folder: Path, results: Results) -> None:
    """Write the attention of all methods, each on its own grid, in the format of a prediction's ``attention.h5``."""
    for method, slide_results in results.items():
        for result in slide_results:
            grid, lattice = result.grid, result.grid.lattice
            corners, size = (grid.hr_corners, grid.hr_size) if result.high else (grid.lr_corners, lattice.lr_cell)
            path = folder / ATTENTION_FOLDER / method / f"{result.row.name}.h5"
            write_attention_map(path, AttentionMap(corners, size, result.attention))


def write_attention_map(path: Path, attention_map: AttentionMap) -> None:
    """Write one file atomically."""
    import h5py

    with (
        atomic_write(path, attention_map.coords.nbytes + attention_map.attention.nbytes) as partial,
        h5py.File(partial, "w") as file,
    ):
        coords = file.create_dataset("coords", data=attention_map.coords)
        coords.attrs["patch_level0_xy"] = attention_map.patch_level0
        coords.attrs["patch_size_level0"] = attention_map.patch_level0[0]
        file.create_dataset("attention", data=attention_map.attention)


def read_attention_map(path: Path) -> AttentionMap | None:
    """Return the content of a file; None if it does not exist."""
    import h5py

    if not path.exists():
        return None
    with h5py.File(path) as file:
        coords = file["coords"]
        width, height = coords.attrs["patch_level0_xy"]
        return AttentionMap(coords[:], (int(width), int(height)), file["attention"][:])
