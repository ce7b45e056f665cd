"""Exports of a prediction for other programs: OME-TIFF, and GeoJSON tiles with measurements for QuPath."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid5

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.patching.regions import NAMESPACE, write_features
from napari_lrmil.core.visualize.overlay import Heatmap, make_heatmap

OME_DESCRIPTION = (
    "attention: relative to the slide's average, 1 is average; evidence: contribution of a patch to the centred logit "
    "of the class; NaN outside patches. Positions count from the corner of level 0."
)


def write_attention_ome(path: Path, prediction: Prediction) -> None:
    """Write ``attention.ome.tif``: float32, one pixel per LR patch, attention and each class's evidence as channels.

    The physical pixel size is the size of a patch on the slide. The position of each plane is the raster's corner, in
    µm from the level-0 corner. A program that reads both aligns the raster with the slide.
    """
    # Imported on use: only this export needs it.
    import tifffile

    heat = make_heatmap(prediction.student)
    raster = np.concatenate([heat.image[None], _rasterize_evidence(prediction.student, heat)])  # (1 + C, rows, columns)
    with atomic_write(path, raster.nbytes) as partial, tifffile.TiffWriter(partial, ome=True) as writer:
        writer.write(raster, photometric="minisblack", metadata=_ome_metadata(prediction, heat))


def _rasterize_evidence(network: NetworkPrediction, heat: Heatmap) -> NDArray[np.float32]:
    """Return (C, rows, columns) evidence on the heatmap's raster, NaN outside patches."""
    columns, rows = ((network.coords - np.array(heat.origin_level0)) // np.array(heat.pixel_level0)).T
    evidence = np.full((network.evidence.shape[1], *heat.image.shape), np.nan, dtype=np.float32)
    evidence[:, rows, columns] = network.evidence.T
    return evidence


def _ome_metadata(prediction: Prediction, heat: Heatmap) -> dict[str, Any]:
    """Return the OME-XML values. The UUID is derived from slide and model, so equal results give equal bytes."""
    mpp, planes = prediction.grid.lattice.mpp, 1 + len(prediction.classes)
    (x, y), (width, height) = heat.origin_level0, heat.pixel_level0
    return {
        "axes": "CYX",
        "UUID": str(uuid5(NAMESPACE, f"{prediction.slide_fingerprint} {prediction.bundle_sha256}")),
        "Name": prediction.slide,
        "Description": OME_DESCRIPTION,
        "Channel": {"Name": ["attention", *(f"evidence {name}" for name in prediction.classes)]},
        "PhysicalSizeX": width * mpp.x,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": height * mpp.y,
        "PhysicalSizeYUnit": "µm",
        "Plane": {
            "PositionX": [x * mpp.x] * planes,
            "PositionXUnit": ["µm"] * planes,
            "PositionY": [y * mpp.y] * planes,
            "PositionYUnit": ["µm"] * planes,
        },
    }


def write_attention_geojson(path: Path, prediction: Prediction, bounds: Bounds) -> None:
    """Write ``attention.geojson``: one QuPath tile with measurements per LR patch; equal results give equal bytes.

    Parameters
    ----------
    path
        The file.
    prediction
        Result of a slide; the student's part is written.
    bounds
        Scanned part of the slide. Its corner is QuPath's origin.
    """
    write_features(path, _tiles(prediction, bounds))


def _tiles(prediction: Prediction, bounds: Bounds) -> Iterator[dict[str, Any]]:
    student = prediction.student
    measurements = _measurements(student, prediction.classes)
    (width, height), corners = student.patch_level0, student.coords - np.array([bounds.x, bounds.y])
    for index, (x, y), values in zip(prediction.grid.lr_index.tolist(), corners.tolist(), measurements, strict=True):
        # GeoJSON polygons repeat their first corner at the end.
        ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        yield {
            "type": "Feature",
            "id": str(uuid5(NAMESPACE, f"{prediction.slide_fingerprint} {index[0]} {index[1]}")),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "tile", "measurements": values},
        }


def _measurements(network: NetworkPrediction, classes: tuple[str, ...]) -> Iterator[dict[str, float]]:
    """Yield name -> value for each patch, as QuPath lists them."""
    n = len(network.attention)
    ranks = np.empty(n, dtype=np.int64)
    ranks[np.argsort(-network.attention, kind="stable")] = np.arange(1, n + 1)  # ties in grid order
    for attention, rank, evidence in zip(network.attention, ranks.tolist(), network.evidence, strict=True):
        values = {"attention": _shorten(attention), "attention relative": _shorten(attention * n), "rank": rank}
        yield values | {f"evidence {name}": _shorten(value) for name, value in zip(classes, evidence, strict=True)}


def _shorten(value: np.float32) -> float:
    """Return the shortest decimal that rounds to this float32; 17 digits of a double would double the file's size."""
    return float(str(value))
