"""Features that another program wrote: what the file says of them, and their rows in chunks. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import BagError, ConfigError
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.geometry import Float

CHUNK_ROWS = 4096  # 16 MB of 1024 dimensions


@dataclass(frozen=True)
class ForeignFeatures:
    """Features of one slide in a file of another program, as that file states them. Nothing is proven yet.

    Attributes
    ----------
    path
        The file of the features.
    layout
        Name of the layout, such as ``TRIDENT``.
    shape
        Patches and dimensions.
    coords
        (N, 2) x and y of each patch, in `unit`.
    unit
        ``px`` of level 0, or ``um``.
    anchor
        ``corner`` (top left) or ``center`` of the patch.
    side
        Side of a patch in `unit`; None if the file does not state it.
    side_um
        Side of a patch in µm, of files that state it so and coordinates in pixels.
    patch_px
        Side in pixels as the encoder's program read it; None if the file does not state it.
    stated_mpp
        µm per pixel of those patches, as the file says; None if it does not.
    is_nominal
        Whether `stated_mpp` comes from an objective magnification, which is a round number.
    overlap
        Stated overlap of neighbours, as a share of the side; None if the file does not state it.
    encoder
        Name of the encoder in the file, or empty.
    level0_size
        Width and height of the slide, as the file says.
    fingerprint
        Fingerprint of the slide, which this program's files have.
    parts
        All files that were read; their sizes and times tell whether the features are still the same.
    rows
        Returns some rows, (R, D).
    """

    path: Path
    layout: str
    shape: tuple[int, int]
    coords: Float
    rows: Callable[[slice], NDArray[Any]]
    unit: str = "px"
    anchor: str = "corner"
    side: float | None = None
    side_um: float | None = None
    patch_px: int | None = None
    stated_mpp: float | None = None
    is_nominal: bool = False
    overlap: float | None = None
    encoder: str = ""
    level0_size: tuple[int, int] | None = None
    fingerprint: str | None = None
    parts: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.shape[0] != len(self.coords):
            raise BagError(
                self.path,
                f"{self.shape[0]} rows of features, but {len(self.coords)} coordinates; the file was cut short, or "
                "features and coordinates are of two runs: write it again",
            )
        if self.shape[0] == 0:
            raise BagError(self.path, "the file has no patches; the program that wrote it found no tissue")
        if not np.isfinite(self.coords).all():
            raise BagError(self.path, "a coordinate is no finite number; write the file again")

    def chunks(self) -> Iterator[tuple[int, Features]]:
        """Yield the first row and the (R, D) float32 features of each chunk.

        Raises
        ------
        BagError
            If a row cannot be read, or holds a NaN or an infinity.
        """
        for start in range(0, self.shape[0], CHUNK_ROWS):
            with readable(self.path):
                values = np.asarray(self.rows(slice(start, min(start + CHUNK_ROWS, self.shape[0]))), dtype=np.float32)
            faulty = ~np.isfinite(values).all(axis=1)
            if faulty.any():
                row = start + int(np.argmax(faulty))
                raise BagError(
                    self.path,
                    f"row {row} of the features holds a NaN or an infinity; encode the slide again, or leave it out",
                )
            yield start, values


@dataclass(frozen=True)
class FeatureFolder:
    """Folder with the features of slides in one layout.

    Attributes
    ----------
    path
        The folder with the files.
    layout
        Name of the layout, for messages.
    files
        Name of a slide -> its file.
    read
        Opens a file.
    """

    path: Path
    layout: str
    files: Mapping[str, Path]
    read: Callable[[Path], ForeignFeatures]

    def open(self, slide: str) -> ForeignFeatures:
        """Return the features of a slide.

        Raises
        ------
        BagError
            If the slide has no file here, or it cannot be used.
        """
        if slide not in self.files:
            raise BagError(
                self.path, f"no features of slide {slide} in this folder of {self.layout}; add them, or leave it out"
            )
        with readable(self.files[slide]):
            return self.read(self.files[slide])


def folder_of(path: Path, layout: str, ending: str, read: Callable[[Path], ForeignFeatures]) -> FeatureFolder:
    """Return a folder whose files are named as their slides, with an ending such as ``.h5``."""
    files = {file.name.removesuffix(ending): file for file in sorted(path.glob(f"*{ending}"))}
    return FeatureFolder(path, layout, files, read)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of a file that is cut short, or of another kind, into a sentence."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, IndexError, EOFError, RuntimeError) as error:
        raise BagError(
            path, f"not a readable feature file ({error}); it may be half-written: make it again, or leave it out"
        ) from error


def h5_array(file: Any, name: str, path: Path) -> tuple[int, int]:
    """Return the shape of a two-dimensional array of an open HDF5 file; an empty one may have one axis."""
    if name not in file:
        raise BagError(path, f"the file has no '{name}', only {', '.join(file) or 'nothing'}; write it again")
    shape = tuple(int(length) for length in file[name].shape)
    if shape == (0,):
        return 0, 0
    if len(shape) != 2:
        raise BagError(path, f"'{name}' has the shape {shape}, expected patches x dimensions")
    return shape[0], shape[1]


def h5_rows(path: Path, name: str) -> Callable[[slice], NDArray[Any]]:
    """Return a function that reads rows of an array of an HDF5 file, which is open only meanwhile."""

    def rows(part: slice) -> NDArray[Any]:
        import h5py

        with h5py.File(path, "r") as file:
            return np.asarray(file[name][part])

    return rows


def coordinates(values: Any, path: Path) -> Float:
    """Return (N, 2) coordinates as float64; of none a file may have an array of one axis."""
    array = np.asarray(values)
    if array.size == 0:
        return np.empty((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise BagError(path, f"coordinates have the shape {array.shape}, expected patches x 2")
    return array.astype(np.float64)


def attribute(attributes: Mapping[str, Any], name: str) -> Any:
    """Return an attribute; None if it is missing or ``'None'``, as other programs write it."""
    value = attributes.get(name)
    value = value.decode() if isinstance(value, bytes) else value
    return None if value is None or (isinstance(value, str) and value in ("None", "")) else value


def load_pickled(path: Path) -> Any:
    """Return the content of a ``.pt`` file. Only tensors and plain values are accepted.

    Raises
    ------
    BagError
        If the file holds code or other objects, which are not run, or is no file of torch.
    """
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write, which are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BagError(
            path,
            "the file holds more than tensors, such as code, which is not run; save the tensor alone "
            "(torch.save(features, file))",
        ) from error


def stored_tensor(path: Path) -> NDArray[Any]:
    """Return the (N, D) tensor of a ``.pt`` file; raises as `load_pickled`."""
    import torch

    value = load_pickled(path)
    if not isinstance(value, torch.Tensor):
        raise BagError(path, f"expected a tensor, patches x dimensions, got {type(value).__name__}")
    tensor = value.detach()
    if tensor.ndim != 2:
        raise BagError(path, f"the tensor has the shape {tuple(tensor.shape)}, expected patches x dimensions")
    # numpy has no bfloat16
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def first_readable(files: Mapping[str, Path]) -> Path | None:
    """Return the first HDF5 file that can be opened; a half-written one does not hide the layout."""
    import h5py

    for file in files.values():
        try:
            with h5py.File(file, "r"):
                return file
        except OSError:
            continue
    return None


def unknown_layout(folder: Path, reason: str) -> ConfigError:
    """Return the error of a folder of features that cannot be read."""
    return ConfigError(
        f"{folder}: {reason}; expected features of TRIDENT, CLAM, STAMP, Slideflow or LazySlide, or name the arrays of "
        "plain .h5 or .safetensors files, such as --hr-mapping features=feats --hr-mapping coords=xy "
        "--hr-mapping patch_level0=512"
    )
