"""Layout of LazySlide (wsidata): a zarr store for each slide, features in ``tables``, tiles in ``shapes``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.errors import BagError
from napari_lrmil.core.extras import require_extra
from napari_lrmil.core.features.layouts.foreign import FeatureFolder, ForeignFeatures, folder_of
from napari_lrmil.core.geometry import Float

LAZYSLIDE = "LazySlide"
SPEC = "tile_spec"


def find_lazyslide(folder: Path, table: str | None = None) -> FeatureFolder | None:
    """Return a folder of zarr stores, or the folder of a single one.

    Parameters
    ----------
    folder
        The folder.
    table
        Name of the table of features, for stores with several.
    """
    if folder.suffix == ".zarr":
        return FeatureFolder(folder.parent, LAZYSLIDE, {folder.stem: folder}, partial(read_lazyslide, table=table))
    candidate = folder_of(folder, LAZYSLIDE, ".zarr", partial(read_lazyslide, table=table))
    return candidate if candidate.files else None


def read_lazyslide(path: Path, table: str | None = None) -> ForeignFeatures:
    """Return the features of a store of LazySlide.

    Raises
    ------
    ConfigError
        If zarr or pyarrow is not installed.
    BagError
        If the store has no features, or several tables and none is named.
    """
    require_extra("lazyslide", "reading stores of LazySlide")
    import zarr

    store = zarr.open_group(path, mode="r")
    key = _table_name(store, table, path)
    group = store[f"tables/{key}"]
    tiles = _region(group, path)
    array = group["X"]
    if not hasattr(array, "shape") or len(array.shape) != 2:
        raise BagError(path, f"table {key} is not a dense array of patches x dimensions; save the store again")
    boxes = _tile_boxes(path, tiles, np.asarray(group["obs/tile_id"]))
    sides = boxes[:, 2:] - boxes[:, :2]
    if np.ptp(sides) > 1e-3:
        raise BagError(path, f"the tiles of {tiles} have several sizes; expected squares of one size")
    spec = _tile_spec(store, tiles)
    side, width = float(sides[0, 0]), spec.get("width")
    stride = spec.get("stride_width")
    return ForeignFeatures(
        path,
        LAZYSLIDE,
        (int(array.shape[0]), int(array.shape[1])),
        np.asarray(boxes[:, :2]),
        lambda rows: np.asarray(array[rows]),
        side=side,
        patch_px=int(width) if width else None,
        stated_mpp=float(spec["mpp"]) if spec.get("mpp") else None,
        overlap=1 - float(stride) / float(width) if stride and width else None,
        encoder=key.removesuffix(f"_{tiles}"),
        level0_size=_slide_size(store),
        parts=tuple(sorted(file for file in (path / "tables" / key).rglob("*") if file.is_file())),
    )


def _table_name(store: Any, table: str | None, path: Path) -> str:
    """Return the table of features: the named one, or the only one."""
    tables = sorted(store["tables"].group_keys()) if "tables" in store else []
    if table is not None and table in tables:
        return table
    if table is None and len(tables) == 1:
        return str(tables[0])
    wanted = f"no table {table}" if table else "several tables of features" if tables else "no features"
    remedy = "name it by --hr-mapping table=NAME" if tables else "run LazySlide's feature_extraction and save the store"
    raise BagError(path, f"{wanted}{', only' if table else ':' if tables else ''} {', '.join(tables)}; {remedy}")


def _region(group: Any, path: Path) -> str:
    """Return the name of the tiles that a table describes."""
    region = group.attrs.get("region")
    region = region[0] if isinstance(region, list) and len(region) == 1 else region
    if not isinstance(region, str):
        raise BagError(path, f"a table of features that names no tiles (region: {region}); save the store again")
    return region


def _tile_boxes(path: Path, tiles: str, tile_ids: Any) -> Float:
    """Return (N, 4) left, top, right and bottom of the tiles with these numbers, in level-0 pixels."""
    import shapely
    from pyarrow import parquet

    columns = parquet.read_table(path / "shapes" / tiles / "shapes.parquet", columns=["tile_id", "geometry"])
    ids = np.asarray(columns["tile_id"].to_numpy())
    boxes = shapely.bounds(shapely.from_wkb(columns["geometry"].to_numpy()))
    rows = {int(number): row for row, number in enumerate(ids)}
    missing = [int(number) for number in tile_ids if int(number) not in rows]
    if missing:
        raise BagError(path, f"{len(missing)} features of tiles that {tiles} does not have; save the store again")
    return np.asarray(boxes[[rows[int(number)] for number in tile_ids]])


def _slide_size(store: Any) -> tuple[int, int] | None:
    """Return width and height of the slide; None if the store does not state them."""
    shape = dict(store.attrs.get("slide_properties") or {}).get("shape")
    return (int(shape[1]), int(shape[0])) if isinstance(shape, list) and len(shape) == 2 else None


def _tile_spec(store: Any, tiles: str) -> Mapping[str, Any]:
    """Return the specification of the tiles; empty if the store has none."""
    attributes = dict(store.attrs)
    specs = attributes.get(SPEC) or dict(attributes.get("attrs") or {}).get(SPEC) or {}
    return dict(specs.get(tiles) or {})
