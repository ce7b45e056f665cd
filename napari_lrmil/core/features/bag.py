"""Bag: features (embeddings) of one slide's patches with coordinates and origin. The HDF5 layout is TRIDENT's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import BagError
from napari_lrmil.core.geometry import Int64, Lattice, Mpp, footprint_um, nominal_magnification

Features = NDArray[np.float32]


@dataclass(frozen=True)
class BagOrigin:
    """How the features of a bag were computed. It must agree for bags that are used together.

    Attributes
    ----------
    slide
        Name of the slide.
    slide_fingerprint
        Identifies the slide by its content.
    mpp0
        µm per level-0 pixel.
    target_mpp, patch_px
        Resolution (µm per pixel) and side of the encoded patches.
    patch_level0
        Width and height of a patch in level-0 pixels.
    origin_level0
        Level-0 pixel of the grid's corner.
    level0_size
        Width and height of the slide.
    encoder, encoder_sha256
        Name and hash of the encoder's weights.
    pixels_decoded, cpu_seconds
        Cost from opening the slide to the last embedding, over all threads; None if it was not measured.
    missing_tissue_share
        Share of the tissue that missing tiles hide, 0 to 1.
    source
        JSON on the file of another program that the features were taken from; empty if this program computed them.
    """

    slide: str
    slide_fingerprint: str
    mpp0: float
    target_mpp: float
    patch_px: int
    patch_level0: tuple[int, int]
    origin_level0: tuple[int, int]
    level0_size: tuple[int, int]
    encoder: str
    encoder_sha256: str
    pixels_decoded: int | None = None
    cpu_seconds: float | None = None
    missing_tissue_share: float = 0.0
    source: str = ""

    def lattice(self, n: int) -> Lattice:
        """Return the lattice of these patches, with `n` x `n` of them per parent."""
        (x, y), (width, height) = self.origin_level0, self.patch_level0
        columns = -(-(self.level0_size[0] - x) // (width * n)) * n
        rows = -(-(self.level0_size[1] - y) // (height * n)) * n
        return Lattice(self.origin_level0, self.patch_level0, columns, rows, n, Mpp(self.mpp0, self.mpp0, "features"))

    @property
    def patch_um(self) -> float:
        """Side of a patch in µm on this slide, after rounding to level-0 pixels."""
        return footprint_um(self.patch_level0, self.mpp0)


@dataclass(frozen=True)
class Bag:
    """The instances of one slide.

    Attributes
    ----------
    features
        (N, D) float32.
    coords
        (N, 2) int64 level-0 corner of each patch, x then y.
    origin
        How the features were computed.
    layers
        Layer name -> (N, D_l) float32 pooled embedding of that layer; empty by default.
    """

    features: Features
    coords: Int64
    origin: BagOrigin
    layers: Mapping[str, Features] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {"features": self.features, **self.layers}
        for name, array in arrays.items():
            if len(array) != len(self.coords):
                raise BagError(self.origin.slide, f"{len(array)} rows of {name}, but {len(self.coords)} coordinates")
            if not np.isfinite(array).all():
                raise BagError(
                    self.origin.slide, f"{name} hold a NaN or an infinity; the encoder or its input is broken"
                )

    def __len__(self) -> int:
        return len(self.coords)


def write_bag(path: Path, bag: Bag) -> None:
    """Write a bag atomically as HDF5 in TRIDENT's layout, with additional attributes."""
    import h5py

    needed = sum(array.size * 4 for array in (bag.features, *bag.layers.values())) + bag.coords.size * 8
    with atomic_write(path, needed) as partial, h5py.File(partial, "w") as file:
        coords = file.create_dataset("coords", data=bag.coords.astype(np.int64))
        coords.attrs.update(coords_attributes(bag.origin))
        features = file.create_dataset("features", data=bag.features.astype(np.float32))
        features.attrs.update({"name": bag.origin.slide, "savetodir": "None", "encoder": bag.origin.encoder})
        for name, array in bag.layers.items():
            file.create_dataset(f"layers/{name}", data=array.astype(np.float32))
        file.attrs["complete"] = True


def coords_attributes(origin: BagOrigin) -> dict[str, Any]:
    """Return the attributes of ``coords``: TRIDENT's, and those of this project (mpp, µm, hashes)."""
    width, height = origin.level0_size
    trident = {
        "patch_size": origin.patch_px,
        "patch_size_level0": origin.patch_level0[0],
        "level0_magnification": nominal_magnification(origin.mpp0),
        "target_magnification": 10 / origin.target_mpp,
        "overlap": 0,
        "level0_width": width,
        "level0_height": height,
        "name": origin.slide,
        "savetodir": "None",
    }
    additional = {
        "mpp0": origin.mpp0,
        "target_mpp": origin.target_mpp,
        "patch_um": origin.patch_um,
        "patch_level0_xy": origin.patch_level0,
        "origin_level0": origin.origin_level0,
        "encoder": origin.encoder,
        "encoder_sha256": origin.encoder_sha256,
        "slide_fingerprint": origin.slide_fingerprint,
    }
    optional: dict[str, Any] = {"pixels_decoded": origin.pixels_decoded, "cpu_seconds": origin.cpu_seconds}
    optional |= {"missing_tissue_share": origin.missing_tissue_share or None, "source": origin.source or None}
    return trident | additional | {name: value for name, value in optional.items() if value is not None}


def read_bag(path: Path) -> Bag:
    """Read a bag that `write_bag` wrote.

    Raises
    ------
    BagError
        If the file is missing, broken, incomplete, or written by another program.
    """
    import h5py

    origin, coords = read_origin(path)
    try:
        with h5py.File(path, "r") as file:
            layers = {name: np.asarray(file["layers"][name]) for name in file.get("layers", ())}
            return Bag(np.asarray(file["features"]), coords, origin, layers)
    except (OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_origin(path: Path) -> tuple[BagOrigin, Int64]:
    """Return origin and (N, 2) coordinates of a bag without reading its features. Raises as `read_bag` does."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if not file.attrs.get("complete", False):
                raise BagError(path, "the file is incomplete, or another program wrote it; extract the features again")
            return _origin(dict(file["coords"].attrs)), np.asarray(file["coords"])
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise _unreadable(path, error) from error


def is_readable_bag(path: Path) -> bool:
    """Return whether a file is HDF5 with features, of this or another program."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "features" in file and bool(file.attrs.get("complete", True))
    except OSError:
        return False


def array_location(path: Path, name: str) -> tuple[int, tuple[int, int]]:
    """Return byte offset and shape of an array in a bag's file, for reading some of its rows.

    Raises
    ------
    BagError
        If the file has no such array, or stores it in chunks as other programs do.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            array = file[name]
            offset, shape = array.id.get_offset(), (int(array.shape[0]), int(array.shape[1]))
            if offset is None or array.dtype != np.float32:
                raise BagError(
                    path, f"{name} is not one block of float32; extract the features again with this program"
                )
            return int(offset), shape
    except (OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> BagError:
    return BagError(path, f"not a readable feature file ({error}); delete it and extract the features again")


def _origin(a: Mapping[str, Any]) -> BagOrigin:
    return BagOrigin(
        slide=str(a["name"]),
        slide_fingerprint=str(a["slide_fingerprint"]),
        mpp0=float(a["mpp0"]),
        target_mpp=float(a["target_mpp"]),
        patch_px=int(a["patch_size"]),
        patch_level0=_ints(a["patch_level0_xy"]),
        origin_level0=_ints(a["origin_level0"]),
        level0_size=(int(a["level0_width"]), int(a["level0_height"])),
        encoder=str(a["encoder"]),
        encoder_sha256=str(a["encoder_sha256"]),
        pixels_decoded=int(a["pixels_decoded"]) if "pixels_decoded" in a else None,
        cpu_seconds=float(a["cpu_seconds"]) if "cpu_seconds" in a else None,
        missing_tissue_share=float(a.get("missing_tissue_share", 0.0)),
        source=str(a.get("source", "")),
    )


def _ints(pair: Any) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])
