"""Layout of TRIDENT, and of our own files: ``features_<encoder>/<slide>.h5`` with attributes of ``coords``."""

from __future__ import annotations

from pathlib import Path

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

TRIDENT = "TRIDENT"


def find_trident(folder: Path) -> FeatureFolder | None:
    """Return a folder in TRIDENT's layout; None if its files have no patch size in level-0 pixels."""
    import h5py

    candidate = folder_of(folder, TRIDENT, ".h5", read_trident)
    file = first_readable(candidate.files)
    if file is None:
        return None
    with h5py.File(file, "r") as h5:
        is_trident = "features" in h5 and "coords" in h5 and "patch_size_level0" in h5["coords"].attrs
    return candidate if is_trident else None


def read_trident(path: Path) -> ForeignFeatures:
    """Return the features of a file of TRIDENT.

    TRIDENT states magnifications and no µm; files of this program add those, and the slide's fingerprint.
    """
    import h5py

    with h5py.File(path, "r") as file:
        shape = h5_array(file, "features", path)
        coords = coordinates(file["coords"], path)
        a, of_features = dict(file["coords"].attrs), dict(file["features"].attrs)
        is_complete = bool(file.attrs.get("complete", True))
    if not is_complete:
        raise ValueError("the file was never completed")
    patch_px = int(a["patch_size"])
    mpp, magnification = attribute(a, "target_mpp"), attribute(a, "target_magnification")
    nominal = 10 / float(magnification) if magnification else None
    width, height = attribute(a, "level0_width"), attribute(a, "level0_height")
    return ForeignFeatures(
        path,
        TRIDENT,
        shape,
        coords,
        h5_rows(path, "features"),
        side=float(a["patch_size_level0"]),
        patch_px=patch_px,
        stated_mpp=float(mpp) if mpp is not None else nominal,
        is_nominal=mpp is None,
        overlap=float(attribute(a, "overlap") or 0) / patch_px,
        encoder=str(attribute(of_features, "encoder") or ""),
        level0_size=(int(width), int(height)) if width is not None and height is not None else None,
        fingerprint=attribute(a, "slide_fingerprint"),
        parts=(path,),
    )
