"""Plain HDF5 or safetensors files, whose arrays the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.errors import BagError, ConfigError
from napari_lrmil.core.features.layouts.foreign import (
    FeatureFolder,
    ForeignFeatures,
    coordinates,
    folder_of,
    h5_array,
    h5_rows,
)

PLAIN = "plain files"
UNITS, ORDERS, ANCHORS = ("px", "um"), ("xy", "yx"), ("corner", "center")
TEXTS, NUMBERS = ("features", "coords", "unit", "order", "anchor", "table", "patches"), ("patch", "patch_px", "mpp")
EXPECTED = (
    "features=NAME, coords=NAME, patch=SIDE (in the unit of coordinates), patch_px=PIXELS, mpp=µm, unit=px|um, "
    "order=xy|yx, anchor=corner|center; table=NAME for LazySlide, patches=FOLDER for CLAM"
)


@dataclass(frozen=True)
class PlainMapping:
    """What the user says of files of features.

    Attributes
    ----------
    features, coords
        Names of the arrays.
    unit, order, anchor
        Unit of coordinates, their order, and the point of the patch that they name.
    patch
        Side of a patch in that unit; None: the step of the coordinates.
    patch_px, mpp
        Side in pixels of the patches that were encoded, and their µm per pixel.
    table
        Table of a store of LazySlide.
    patches
        Folder of CLAM's files with patch sizes.
    """

    features: str = ""
    coords: str = "coords"
    unit: str = "px"
    order: str = "xy"
    anchor: str = "corner"
    patch: float | None = None
    patch_px: int | None = None
    mpp: float | None = None
    table: str | None = None
    patches: Path | None = None


def parse_mapping(settings: Sequence[str]) -> PlainMapping:
    """Return the mapping of texts such as ``features=feats``.

    Raises
    ------
    ConfigError
        If a key is unknown or a value is impossible.
    """
    values: dict[str, str] = {}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        key = "patch" if key == "patch_level0" else key
        if not (equals and value and key in (*TEXTS, *NUMBERS)):
            raise ConfigError(f"mapping '{setting}': expected {EXPECTED}")
        values[key] = value
    for key, allowed in (("unit", UNITS), ("order", ORDERS), ("anchor", ANCHORS)):
        if values.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"mapping '{key}={values[key]}': expected {' or '.join(allowed)}")
    texts = {key: value for key, value in values.items() if key in TEXTS and key != "patches"}
    return PlainMapping(
        **texts,
        patch=_number(values, "patch"),
        mpp=_number(values, "mpp"),
        patch_px=round(_number(values, "patch_px") or 0) or None,
        patches=Path(values["patches"]) if "patches" in values else None,
    )


def _number(values: Mapping[str, str], key: str) -> float | None:
    if key not in values:
        return None
    try:
        number = float(values[key])
    except ValueError:
        number = 0.0
    if not (np.isfinite(number) and number > 0):
        raise ConfigError(f"mapping '{key}={values[key]}': expected a number above 0")
    return number


def find_plain(folder: Path, mapping: PlainMapping) -> FeatureFolder | None:
    """Return a folder of HDF5 or safetensors files with arrays of the names of the mapping."""
    for ending, read in ((".h5", read_plain_h5), (".hdf5", read_plain_h5), (".safetensors", read_plain_safetensors)):
        candidate = folder_of(folder, PLAIN, ending, partial(read, mapping=mapping))
        if candidate.files:
            return candidate
    return None


def read_plain_h5(path: Path, mapping: PlainMapping) -> ForeignFeatures:
    """Return the features of an HDF5 file by the names of the mapping."""
    import h5py

    with h5py.File(path, "r") as file:
        shape = h5_array(file, mapping.features, path)
        h5_array(file, mapping.coords, path)
        coords = coordinates(file[mapping.coords], path)
    foreign = ForeignFeatures(path, PLAIN, shape, coords, h5_rows(path, mapping.features), parts=(path,))
    return with_mapping(foreign, mapping)


def read_plain_safetensors(path: Path, mapping: PlainMapping) -> ForeignFeatures:
    """Return the features of a safetensors file by the names of the mapping."""
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, "np")
        names = list(file.keys())
        absent = [name for name in (mapping.features, mapping.coords) if name not in names]
        if absent:
            raise BagError(path, f"the file has no '{absent[0]}', only {', '.join(names) or 'nothing'}")
        array = file.get_slice(mapping.features)
        coords = coordinates(file.get_tensor(mapping.coords), path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    shape = tuple(int(length) for length in array.get_shape())
    if len(shape) != 2:
        raise BagError(path, f"'{mapping.features}' has the shape {shape}, expected patches x dimensions")
    foreign = ForeignFeatures(path, PLAIN, (shape[0], shape[1]), coords, lambda rows: array[rows], parts=(path,))
    return with_mapping(foreign, mapping)


def with_mapping(foreign: ForeignFeatures, mapping: PlainMapping) -> ForeignFeatures:
    """Return features with unit, order and size as the mapping says; what it leaves out stays."""
    is_plain = foreign.layout == PLAIN
    coords = foreign.coords[:, ::-1] if mapping.order == "yx" else foreign.coords
    mpp = mapping.mpp if mapping.mpp is not None else foreign.stated_mpp
    return replace(
        foreign,
        coords=np.ascontiguousarray(coords),
        unit=mapping.unit if is_plain else foreign.unit,
        anchor=mapping.anchor if is_plain else foreign.anchor,
        side=mapping.patch if mapping.patch is not None else foreign.side,
        patch_px=mapping.patch_px if mapping.patch_px is not None else foreign.patch_px,
        stated_mpp=mpp,
        is_nominal=foreign.is_nominal and mapping.mpp is None,
    )
