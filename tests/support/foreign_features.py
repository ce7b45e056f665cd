"""Features of a slide, written in the layouts of other programs as their documentation describes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from napari_lrmil.core.features.bag import Bag, BagOrigin
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.slides.slide import Slide

Writer = Callable[[Path, Bag], Path]


def bag_origin(slide: Slide, grid: NestedGrid) -> BagOrigin:
    """Return the origin of features of the HR patches of a grid, 0.5 µm per pixel."""
    cell = grid.lattice.cell
    size = (slide.width, slide.height)
    origin = grid.lattice.origin
    return BagOrigin(slide.name, slide.fingerprint, 0.5, 0.5, cell[0], cell, origin, size, "resnet", "0" * 64)


def write_trident(folder: Path, bag: Bag) -> Path:
    """Write a file of TRIDENT, without mpp and without anything of ours; return the folder of the job."""
    o = bag.origin
    job = folder / "20x_64px_0px_overlap"
    target = job / "features_resnet" / f"{o.slide}.h5"
    target.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(target, "w") as file:
        file.create_dataset("features", data=bag.features, chunks=(1, bag.features.shape[1]))
        file["features"].attrs.update({"name": o.slide, "savetodir": "None", "encoder": "resnet"})
        file["coords"] = bag.coords
        file["coords"].attrs.update(
            {
                "patch_size": o.patch_px,
                "patch_size_level0": o.patch_level0[0],
                "level0_magnification": 20,
                "target_magnification": 20,
                "overlap": 0,
                "level0_width": o.level0_size[0],
                "level0_height": o.level0_size[1],
                "name": o.slide,
                "savetodir": str(job),
            }
        )
    return job


def write_clam(folder: Path, bag: Bag) -> Path:
    """Write ``h5_files`` without attributes, and ``patches`` with them; return the folder of both."""
    for name in ("h5_files", "patches"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "h5_files" / f"{bag.origin.slide}.h5", "w") as file:
        file["features"], file["coords"] = bag.features, bag.coords.astype(np.int32)
    write_patches(folder, bag)
    return folder


def write_patches(folder: Path, bag: Bag) -> None:
    """Write CLAM's file of patch sizes."""
    with h5py.File(folder / "patches" / f"{bag.origin.slide}.h5", "w") as file:
        file["coords"] = bag.coords.astype(np.int32)
        side = bag.origin.patch_level0[0]
        file["coords"].attrs.update({"patch_size": side, "patch_level": 0, "downsample": (1.0, 1.0)})


def write_clam_tensor(folder: Path, bag: Bag) -> Path:
    """Write ``pt_files``, with the coordinates in ``patches``; return the folder of both."""
    for name in ("pt_files", "patches"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(bag.features), folder / "pt_files" / f"{bag.origin.slide}.pt")
    write_patches(folder, bag)
    return folder


def write_stamp(folder: Path, bag: Bag, *, version: int = 3) -> Path:
    """Write a file of STAMP: of now (3), with ``tile_size`` in µm (2), or in 224 px of 256 µm (1)."""
    folder.mkdir(parents=True, exist_ok=True)
    o = bag.origin
    um, side = bag.coords * o.mpp0, o.patch_level0[0] * o.mpp0
    with h5py.File(folder / f"{o.slide}.h5", "w") as file:
        file["feats"] = bag.features
        file["coords"] = (um if version > 1 else um * 224 / 256).astype(np.float32)
        if version == 3:
            stated = {"tile_size_um": side, "tile_size_px": o.patch_px, "unit": "um"}
            file.attrs.update({"stamp_version": "2.4.0", "extractor": "resnet", "code_hash": "0", **stated})
        elif version == 2:
            file.attrs.update({"extractor": "resnet", "unit": "um", "tile_size": side})
    return folder


def write_slideflow(folder: Path, bag: Bag) -> Path:
    """Write a bag of Slideflow, whose index has the tiles' centres, and the configuration of all."""
    folder.mkdir(parents=True, exist_ok=True)
    o = bag.origin
    torch.save(torch.from_numpy(bag.features), folder / f"{o.slide}.pt")
    centres = (bag.coords + np.asarray(o.patch_level0) / 2).astype(np.int64)
    np.savez(folder / f"{o.slide}.index.npz", centres)
    tile = {"tile_px": o.patch_px, "tile_um": o.patch_level0[0] * o.mpp0}
    text = json.dumps({"num_features": bag.features.shape[1], "extractor": {"class": "resnet"}, **tile})
    (folder / "bags_config.json").write_text(text)
    return folder


def write_lazyslide(folder: Path, bag: Bag) -> Path:
    """Write a store as wsidata does: tiles as polygons in parquet, features as a table of anndata in zarr."""
    import shapely

    pyarrow = pytest.importorskip("pyarrow", reason="the extra `lazyslide` is not installed")
    zarr = pytest.importorskip("zarr", reason="the extra `lazyslide` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")

    o = bag.origin
    store = folder / f"{o.slide}.zarr"
    group = zarr.open_group(store, mode="w")
    spec = {"width": o.patch_px, "height": o.patch_px, "stride_width": o.patch_px, "stride_height": o.patch_px}
    group.attrs["tile_spec"] = {"tiles": {**spec, "mpp": o.target_mpp, "base_downsample": 1.0}}
    group.attrs["slide_properties"] = {"shape": [o.level0_size[1], o.level0_size[0]], "mpp": o.mpp0}
    table = group.create_group("tables/resnet_tiles")
    table.attrs.update({"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"})
    table.create_array("X", data=bag.features)
    table.create_group("obs").create_array("tile_id", data=np.arange(len(bag)))
    order = np.arange(len(bag))[::-1]  # rows of tiles are found by their number
    ends = bag.coords + np.asarray(o.patch_level0)
    boxes = shapely.to_wkb(shapely.box(*bag.coords.T, *ends.T))
    shapes = pyarrow.table({"tile_id": order, "geometry": [boxes[i] for i in order]})
    (store / "shapes" / "tiles").mkdir(parents=True)
    parquet.write_table(shapes, store / "shapes" / "tiles" / "shapes.parquet")
    return folder


def write_plain_h5(folder: Path, bag: Bag) -> Path:
    """Write arrays of any name, y before x; the mapping is `PLAIN_H5`."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{bag.origin.slide}.h5", "w") as file:
        file["emb"], file["yx"] = bag.features, bag.coords[:, ::-1]
    return folder


def write_plain_safetensors(folder: Path, bag: Bag) -> Path:
    """Write tensors; the mapping is `PLAIN_SAFETENSORS`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"emb": bag.features, "corners": bag.coords}
    save_file(tensors, folder / f"{bag.origin.slide}.safetensors")
    return folder


PLAIN_H5 = ("features=emb", "coords=yx", "order=yx", "patch=64", "patch_px=64", "mpp=0.5")
PLAIN_SAFETENSORS = ("features=emb", "coords=corners", "patch=64")
LAYOUTS: dict[str, tuple[Writer, tuple[str, ...]]] = {
    "trident": (write_trident, ()),
    "clam": (write_clam, ()),
    "clam-pt": (write_clam_tensor, ()),
    "stamp": (write_stamp, ()),
    "slideflow": (write_slideflow, ()),
    "lazyslide": (write_lazyslide, ()),
    "plain-h5": (write_plain_h5, PLAIN_H5),
    "plain-safetensors": (write_plain_safetensors, PLAIN_SAFETENSORS),
}
