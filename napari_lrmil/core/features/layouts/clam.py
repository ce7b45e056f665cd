"""Layout of CLAM: ``h5_files/<id>.h5`` or ``pt_files/<id>.pt``, and ``patches/<id>.h5`` with the size of patches.

The files of features have no attributes. Without ``patches`` the side is the step of the coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
    stored_tensor,
)

CLAM = "CLAM"
H5_FILES, PT_FILES, PATCHES = "h5_files", "pt_files", "patches"


def find_clam(folder: Path, patches: Path | None = None) -> FeatureFolder | None:
    """Return a folder in CLAM's layout: the folder with ``h5_files`` or ``pt_files``, or one of these.

    Parameters
    ----------
    folder
        The folder.
    patches
        Folder of the files with patch sizes, if it lies elsewhere.
    """
    for place in (folder, folder / H5_FILES, folder / PT_FILES):
        candidate = folder_of(place, CLAM, ".h5", partial(read_clam, patches=patches))
        file = first_readable(candidate.files)
        if file is not None and _has_features(file):
            return candidate
        tensors = folder_of(place, CLAM, ".pt", partial(read_clam_tensor, patches=patches))
        if tensors.files and (place.name == PT_FILES or any(_places(place, patches))):
            return tensors
    return None


def _has_features(file: Path) -> bool:
    import h5py

    with h5py.File(file, "r") as h5:
        return "features" in h5 and "coords" in h5


def _places(folder: Path, patches: Path | None) -> list[Path]:
    """Return the existing folders that may hold files with coordinates and patch sizes."""
    roots = (folder, folder.parent, folder.parent.parent)
    candidates = [patches, *(root / name for name in (PATCHES, H5_FILES) for root in roots)]
    return [place for place in candidates if place is not None and place.is_dir()]


def read_clam(path: Path, patches: Path | None = None) -> ForeignFeatures:
    """Return the features of a file of ``h5_files``."""
    import h5py

    with h5py.File(path, "r") as file:
        shape, coords = h5_array(file, "features", path), coordinates(file["coords"], path)
    plain = ForeignFeatures(path, CLAM, shape, coords, h5_rows(path, "features"), parts=(path,))
    return _with_patch_size(plain, _find_patch_file(path, patches))


def read_clam_tensor(path: Path, patches: Path | None = None) -> ForeignFeatures:
    """Return the features of a file of ``pt_files``; the coordinates are in the HDF5 file of the slide.

    Raises
    ------
    BagError
        If there is no such file, or the tensor is no table of numbers.
    """
    import h5py

    files = [place / f"{path.stem}.h5" for place in _places(path.parent, patches)]
    of_coords = next((file for file in files if file.is_file()), None)
    if of_coords is None:
        raise BagError(path, f"no {path.stem}.h5 with coordinates in {H5_FILES} or {PATCHES} beside this folder")
    array = stored_tensor(path)
    with h5py.File(of_coords, "r") as file:
        coords = coordinates(file["coords"], of_coords)
    shape = (int(array.shape[0]), int(array.shape[1]))
    plain = ForeignFeatures(path, CLAM, shape, coords, array.__getitem__, parts=(path, of_coords))
    return _with_patch_size(plain, _find_patch_file(path, patches))


def _find_patch_file(path: Path, patches: Path | None) -> Path | None:
    """Return the slide's file in ``patches``; None if there is none."""
    places = [place for place in _places(path.parent, patches) if place.name == PATCHES or place == patches]
    return next((file for place in places if (file := place / f"{path.stem}.h5").is_file()), None)


def _with_patch_size(foreign: ForeignFeatures, patch_file: Path | None) -> ForeignFeatures:
    """Return features with the size that the slide's file in ``patches`` states.

    Raises
    ------
    BagError
        If that file is of other patches.
    """
    import h5py

    if patch_file is None:
        return foreign
    with h5py.File(patch_file, "r") as file:
        coords, a = coordinates(file["coords"], patch_file), dict(file["coords"].attrs)
    # Features may be stored in another order than the patches, so sets are compared.
    if {*map(tuple, coords.tolist())} != {*map(tuple, foreign.coords.tolist())}:
        raise BagError(
            foreign.path, f"its {len(foreign.coords)} coordinates are not those of {patch_file} ({len(coords)})"
        )
    side = _level0_side(a)
    # The size of level 0: that of the patches' level by its downsample.
    return replace(foreign, side=side, patch_px=_patch_px(a), parts=tuple({*foreign.parts, patch_file}))


def _level0_side(a: Mapping[str, Any]) -> float | None:
    patch, downsample = attribute(a, "patch_size"), attribute(a, "downsample")
    if patch is None:
        return None
    factor = float(np.ravel(downsample)[0]) if downsample is not None else 1.0
    custom = attribute(a, "custom_downsample")
    return float(patch) * factor * (float(custom) if custom is not None else 1.0)


def _patch_px(a: Mapping[str, Any]) -> int | None:
    patch = attribute(a, "patch_size")
    return None if patch is None else int(patch)
