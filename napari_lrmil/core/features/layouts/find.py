"""Recognition of the layout of a folder of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.features.layouts.clam import H5_FILES, PT_FILES, find_clam
from napari_lrmil.core.features.layouts.foreign import FeatureFolder, ForeignFeatures, unknown_layout
from napari_lrmil.core.features.layouts.lazyslide import find_lazyslide
from napari_lrmil.core.features.layouts.plain import PlainMapping, find_plain, with_mapping
from napari_lrmil.core.features.layouts.slideflow import find_slideflow
from napari_lrmil.core.features.layouts.stamp import find_stamp
from napari_lrmil.core.features.layouts.trident import find_trident

DEEPEST = 3  # job / magnification / features_encoder


def find_feature_folder(folder: Path, mapping: PlainMapping | None = None) -> FeatureFolder:
    """Return a folder of features with the reader of its layout.

    Parameters
    ----------
    folder
        The folder with the files, or one above it that holds a single such folder.
    mapping
        What the user says of the files. With ``features`` named they are plain files; otherwise it completes what the
        files of a layout leave open.

    Raises
    ------
    ConfigError
        If the folder does not exist, has no features of a known layout, or has those of several encoders.
    """
    mapping = mapping or PlainMapping()
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected the folder of the feature files")
    if mapping.features:
        plain = find_plain(folder, mapping)
        if plain is None:
            raise unknown_layout(folder, "no .h5, .hdf5 or .safetensors file in it")
        return plain
    candidates = _search(folder, mapping, DEEPEST)
    if len(candidates) > 1:
        names = ", ".join(str(candidate.path.relative_to(folder)) for candidate in candidates[:6])
        raise ConfigError(f"{folder}: features in several folders ({names}); name the one to use")
    if not candidates:
        raise unknown_layout(folder, "no features of a known layout")
    return _completed(candidates[0], mapping)


def _search(folder: Path, mapping: PlainMapping, depth: int) -> list[FeatureFolder]:
    """Return the folders of features at or below a folder, none below one that has features itself."""
    candidate = _recognise(folder, mapping)
    if candidate is not None:
        return [candidate]
    if depth == 0:
        return []
    places = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    return [candidate for place in places for candidate in _search(place, mapping, depth - 1)]


def _recognise(folder: Path, mapping: PlainMapping) -> FeatureFolder | None:
    """Return the folder in the first layout that fits it."""
    finders: Sequence[Callable[[Path], FeatureFolder | None]] = (
        lambda place: find_lazyslide(place, mapping.table),
        find_slideflow,
        find_trident,
        find_stamp,
        lambda place: find_clam(place, mapping.patches),
    )
    if (folder / H5_FILES).is_dir() or (folder / PT_FILES).is_dir():  # a folder of CLAM, with patches beside
        finders = finders[-1:]
    return next((candidate for find in finders if (candidate := find(folder)) is not None), None)


def _completed(folder: FeatureFolder, mapping: PlainMapping) -> FeatureFolder:
    def read(path: Path) -> ForeignFeatures:
        return with_mapping(folder.read(path), mapping)

    return folder if mapping == PlainMapping() else replace(folder, read=read)
