"""Layout of STAMP: ``feats`` and ``coords`` in micrometres, with the tile's side in the attributes of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.errors import BagError
from napari_lrmil.core.features.layouts.foreign import (
    FeatureFolder,
    ForeignFeatures,
    attribute,
    coordinates,
    first_readable,
    folder_of,
    h5_array,
    h5_rows,
)
from napari_lrmil.core.features.layouts.steps import typical_step
from napari_lrmil.core.geometry import Float

STAMP = "STAMP"
FIRST_STEP, FIRST_UM, FIRST_PX = 224, 256.0, 224  # the oldest files count in 256 µm / 224 px


def find_stamp(folder: Path) -> FeatureFolder | None:
    """Return a folder in STAMP's layout: HDF5 files with ``feats``."""
    import h5py

    candidate = folder_of(folder, STAMP, ".h5", read_stamp)
    file = first_readable(candidate.files)
    if file is None:
        return None
    with h5py.File(file, "r") as h5:
        return candidate if "feats" in h5 and "coords" in h5 else None


def read_stamp(path: Path) -> ForeignFeatures:
    """Return the features of a file of STAMP, of this version or an older one."""
    import h5py

    with h5py.File(path, "r") as file:
        shape = h5_array(file, "feats", path)
        coords, a = coordinates(file["coords"], path), dict(file.attrs)
    coords, side, patch_px = _in_um(coords, a, path)
    return ForeignFeatures(
        path,
        STAMP,
        shape,
        coords,
        h5_rows(path, "feats"),
        unit="um",
        side=side,
        patch_px=patch_px,
        stated_mpp=side / patch_px if patch_px else None,
        encoder=str(attribute(a, "extractor") or ""),
        parts=(path,),
    )


def _in_um(coords: Float, a: Mapping[str, Any], path: Path) -> tuple[Float, float, int | None]:
    """Return coordinates and side in µm, and the side in pixels, by the version of the file."""
    px = attribute(a, "tile_size_px")
    patch_px = int(px) if px is not None else None
    tile, tile_um = attribute(a, "tile_size"), attribute(a, "tile_size_um")
    if tile is not None and attribute(a, "unit") == "um":
        return coords, float(tile), patch_px
    if tile_um is not None:
        return coords, float(tile_um), patch_px
    step = float(tile) if tile is not None else typical_step(coords)
    if step is not None and round(step) == FIRST_STEP:
        return np.asarray(coords * (FIRST_UM / FIRST_STEP)), FIRST_UM, FIRST_PX
    raise BagError(
        path,
        f"the file states no unit, and its tiles are {'?' if step is None else f'{step:g}'} apart, where the oldest "
        f"files of STAMP have {FIRST_STEP}; extract the features again with a newer STAMP",
    )
