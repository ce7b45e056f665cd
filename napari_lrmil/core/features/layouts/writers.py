"""Writers of features in the layouts of TRIDENT, CLAM and STAMP, chunk by chunk, so that their programs read them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import BagError, ConfigError
from napari_lrmil.core.features.bag import Bag, BagOrigin, Features, coords_attributes
from napari_lrmil.core.features.layouts.clam import PATCHES
from napari_lrmil.core.features.layouts.foreign import readable
from napari_lrmil.core.geometry import Int64

FORMATS = ("trident", "clam", "stamp")
FILE_BYTES = 20_000  # of an HDF5 file without its arrays
STAMP_VERSION = "2.4.0"  # of the layout; older programs read no version

# Attributes of this program, which TRIDENT's own files of coordinates lack.
ADDED = (
    *("mpp0", "target_mpp", "patch_um", "patch_level0_xy", "origin_level0", "encoder", "encoder_sha256", "source"),
    *("slide_fingerprint", "pixels_decoded", "cpu_seconds", "missing_tissue_share"),
)
OURS = "napari_lrmil"  # attribute of files that this program wrote and may write again


@dataclass(frozen=True)
class FeatureRows:
    """Features of a slide that are written.

    Attributes
    ----------
    origin
        What they are of; patches are squares.
    coords
        (N, 2) level-0 corners.
    dim
        Dimensions.
    chunks
        Yields the first row and the (R, D) features of each chunk.
    overlap
        Overlap of neighbours, as a share of the side.
    """

    origin: BagOrigin
    coords: Int64
    dim: int
    chunks: Callable[[], Iterable[tuple[int, Features]]]
    overlap: float = 0.0

    @classmethod
    def of_bag(cls, bag: Bag) -> FeatureRows:
        """Return the features of a bag."""
        return cls(bag.origin, bag.coords, bag.features.shape[1], lambda: iter([(0, bag.features)]))

    @property
    def shape(self) -> tuple[int, int]:
        """Patches and dimensions."""
        return len(self.coords), self.dim

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return 4 * self.shape[0] * self.dim + 8 * self.coords.size

    @property
    def overlap_px(self) -> int:
        """Overlap in pixels of the patches as encoded."""
        return round(self.overlap * self.origin.patch_px)


def require_format(name: str) -> str:
    """Return the name of a format; raise `ConfigError` if it is unknown."""
    if name not in FORMATS:
        raise ConfigError(f"--format {name}: expected {', '.join(FORMATS)}")
    return name


def feature_file(folder: Path, layout: str, origin: BagOrigin, overlap: float = 0.0) -> Path:
    """Return the file of a slide's features in a layout, below the folder that the user names."""
    if layout == "clam":
        return folder / "h5_files" / f"{origin.slide}.h5"
    if layout == "stamp":
        return folder / origin.encoder / f"{origin.slide}.h5"
    grid = f"{10 / origin.target_mpp:.4g}x_{origin.patch_px}px_{round(overlap * origin.patch_px)}px_overlap"
    return folder / grid / f"features_{origin.encoder}" / f"{origin.slide}.h5"


def possible_files(folder: Path, slides: Collection[str]) -> list[Path]:
    """Return where in the present folders below `folder` features of these slides may be written, in any layout."""
    below = [path for path in folder.rglob("*") if path.is_dir()]
    names = [f"{slide}{end}" for slide in slides for end in (".h5", ".pt", "_patches.h5")]
    return [place / name for place in below for name in names]


def layout_bytes(layout: str, shape: tuple[int, int]) -> float:
    """Return the size of the files of (N, D) features in a layout, with those of coordinates."""
    numbers = {"trident": 4, "clam": 8, "stamp": 2}[layout]  # bytes: CLAM has HDF5 and tensor, STAMP float16
    coordinates = {"trident": 32, "clam": 16, "stamp": 8}[layout]
    return shape[0] * (shape[1] * numbers + coordinates) + FILE_BYTES


def write_in_layout(path: Path, layout: str, stored: FeatureRows) -> list[Path]:
    """Write features in a layout, with TRIDENT's or CLAM's file of coordinates, and return the files.

    Parameters
    ----------
    path
        What `feature_file` returns.
    layout
        One of `FORMATS`.
    stored
        The features.

    Raises
    ------
    BagError
        If another program wrote a file in the way.
    """
    if layout == "stamp":
        _write_stamp(path, stored)
        return [path]
    if layout == "trident":
        _write_trident(path, stored)
        return [path, write_patch_file(path, stored.origin, stored.coords, stored.overlap_px)]
    tensor = path.parent.parent / "pt_files" / f"{path.stem}.pt"
    patches = path.parent.parent / PATCHES / path.name
    for file in (path, patches, tensor):
        _refuse_others(file, path)
    with _created(path, stored.nbytes) as file:
        file["coords"] = stored.coords.astype(np.int32)
        _write_rows(file, "features", stored, np.float32)
    _write_coords(patches, stored.coords.astype(np.int32), _clam_attributes(stored.origin))
    _write_tensor(path, tensor)
    return [path, patches, tensor]


def _write_trident(path: Path, stored: FeatureRows) -> None:
    _refuse_others(path, path)
    with _created(path, stored.nbytes) as file:
        file["coords"] = stored.coords.astype(np.int64)
        attributes = coords_attributes(stored.origin) | {"overlap": stored.overlap_px}
        file["coords"].attrs.update(attributes)
        _write_rows(file, "features", stored, np.float32)
        names = {"name": stored.origin.slide, "savetodir": "None", "encoder": stored.origin.encoder}
        file["features"].attrs.update(names)
        file.attrs["complete"] = True


def _write_stamp(path: Path, stored: FeatureRows) -> None:
    _refuse_others(path, path)
    o = stored.origin
    side = {"tile_size_um": o.patch_level0[0] * o.mpp0, "tile_size_px": o.patch_px, "unit": "um"}
    with _created(path, stored.nbytes) as file:
        file["coords"] = (stored.coords * o.mpp0).astype(np.float32)
        _write_rows(file, "feats", stored, np.float16)
        file.attrs.update({"stamp_version": STAMP_VERSION, "extractor": o.encoder, **side})
        file.attrs["code_hash"] = o.encoder_sha256[:8] or "None"


def write_patch_file(path: Path, origin: BagOrigin, coords: Int64, overlap_px: int = 0) -> Path:
    """Write TRIDENT's file of coordinates, ``patches/<slide>_patches.h5``, for a file of features; return it.

    Programs that need neighbours, such as torchmil for adjacency, read the coordinates there. Features of several
    encoders share it.

    Raises
    ------
    BagError
        If another program wrote one with other coordinates.
    """
    import h5py

    target = path.parent.parent / PATCHES / f"{origin.slide}_patches.h5"
    if target.exists():
        with readable(target), h5py.File(target, "r") as file:
            if np.array_equal(file["coords"], coords):
                return target
    _refuse_others(target, path)
    added = (*ADDED, "overlap")
    attributes = {name: value for name, value in coords_attributes(origin).items() if name not in added}
    _write_coords(target, coords.astype(np.int64), attributes | {"overlap": overlap_px})
    return target


def _clam_attributes(origin: BagOrigin) -> dict[str, Any]:
    size = {"downsampled_level_dim": origin.level0_size, "level_dim": origin.level0_size}
    # At level 0, to which all coordinates refer.
    patch = {"patch_size": origin.patch_level0[0], "patch_level": 0, "downsample": (1.0, 1.0)}
    return {**patch, **size, "name": origin.slide, "save_path": "None"}


def _refuse_others(target: Path, features: Path) -> None:
    """Raise `BagError` if a file of another program would be overwritten: one without the mark of this program."""
    import h5py

    if not target.exists():
        return
    marked = features if target.suffix == ".pt" else target  # a tensor has no attributes
    try:
        with h5py.File(marked, "r") as file:
            is_ours = OURS in file.attrs or "complete" in file.attrs
    except OSError:
        is_ours = False
    if not is_ours:
        raise BagError(target, "another program wrote this file, and it would be overwritten; use another folder")


@contextmanager
def _created(path: Path, size: int) -> Iterator[Any]:
    """Yield a new HDF5 file with the mark of this program, which replaces `path` when it is complete."""
    import h5py

    with atomic_write(path, size) as partial, h5py.File(partial, "w") as file:
        file.attrs[OURS] = True
        yield file


def _write_rows(file: Any, name: str, stored: FeatureRows, kind: type[np.floating[Any]]) -> None:
    rows = file.create_dataset(name, stored.shape, kind)
    for start, values in stored.chunks():
        rows[start : start + len(values)] = values.astype(kind)
    if kind is np.float16 and not np.isfinite(np.asarray(rows)).all():
        raise BagError(stored.origin.slide, "a feature is too large for float16, in which STAMP stores them")


def _write_coords(target: Path, coords: Any, attributes: Mapping[str, Any]) -> None:
    with _created(target, coords.nbytes) as file:
        file["coords"] = coords
        file["coords"].attrs.update(attributes)


def _write_tensor(path: Path, target: Path) -> None:
    """Write CLAM's tensor, which its training reads, from the HDF5 file."""
    import h5py
    import torch

    with h5py.File(path, "r") as file:
        tensor = torch.from_numpy(np.asarray(file["features"]))
    with atomic_write(target, tensor.numel() * 4) as partial:
        torch.save(tensor, partial)
