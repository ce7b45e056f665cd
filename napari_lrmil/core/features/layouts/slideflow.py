"""Layout of Slideflow's bags: ``<slide>.pt``, ``<slide>.index.npz`` with the tiles' centres, ``bags_config.json``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.errors import BagError
from napari_lrmil.core.features.layouts.foreign import (
    FeatureFolder,
    ForeignFeatures,
    coordinates,
    folder_of,
    readable,
    stored_tensor,
)

SLIDEFLOW = "Slideflow"
BAGS_CONFIG, INDEX = "bags_config.json", ".index.npz"


def find_slideflow(folder: Path) -> FeatureFolder | None:
    """Return a folder of Slideflow's bags: tensors with an index beside each."""
    if not any(folder.glob(f"*{INDEX}")):
        return None
    config: dict[str, Any] = {}
    file = folder / BAGS_CONFIG
    if file.is_file():
        with readable(file):
            config = json.loads(file.read_text(encoding="utf-8"))
    return folder_of(folder, SLIDEFLOW, ".pt", partial(read_slideflow, config=config))


def read_slideflow(path: Path, config: dict[str, Any]) -> ForeignFeatures:
    """Return the features of a bag. Slideflow stores the centre of each tile, rounded down to a pixel.

    Raises
    ------
    BagError
        If the index is missing, or the bag is not what its configuration says.
    """
    index = path.with_name(path.stem + INDEX)
    if not index.is_file():
        raise BagError(path, f"no {index.name} with the places of its tiles beside it; generate the bags again")
    array = stored_tensor(path)
    with readable(index), np.load(index, allow_pickle=False) as arrays:
        coords = coordinates(arrays["arr_0"], index)
    stated = config.get("num_features")
    if stated is not None and int(stated) != array.shape[1]:
        raise BagError(path, f"{array.shape[1]} dimensions, but {BAGS_CONFIG} says {stated}")
    px, um = _tile(config)
    extractor = config.get("extractor")
    return ForeignFeatures(
        path,
        SLIDEFLOW,
        (int(array.shape[0]), int(array.shape[1])),
        coords,
        array.__getitem__,
        anchor="center",
        side_um=um,
        patch_px=px,
        stated_mpp=um / px if um and px else None,
        encoder=str(extractor.get("class", "") if isinstance(extractor, dict) else extractor or ""),
        parts=(path, index),
    )


def _tile(config: dict[str, Any]) -> tuple[int | None, float | None]:
    """Return the side of a tile in pixels and in µm. A magnification such as ``20x`` stands for µm in some files."""
    px, um = config.get("tile_px"), config.get("tile_um")
    if px is None or um is None:
        return (None if px is None else int(px)), None
    if isinstance(um, str) and um.lower().endswith("x"):
        return int(px), int(px) * 10 / float(um[:-1])
    return int(px), float(um)
