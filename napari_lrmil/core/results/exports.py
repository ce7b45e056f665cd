"""A prediction for other programs: the attention as an OME-TIFF, and as tiles with measurements for QuPath."""

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
    "attention: relative to the slide's average, 1 is average; evidence: what a patch adds to the centred logit of the "
    "class; NaN where there is no patch. Positions count from the corner of level 0."
)


def write_attention_ome(path: Path, prediction: Prediction) -> None:
    """Write ``attention.ome.tif``: float32, one pixel per LR patch, attention and each class's evidence as channels.

    A pixel is as large as a patch on this slide, and each plane's position is the raster's corner, in µm from the
    slide's level-0 corner: a program that honours both shows it in its place.
    """
    import tifffile

    heat = make_heatmap(prediction.student)
    raster = np.concatenate([heat.image[None], _evidence(prediction.student, heat)])  # (1 + C, rows, columns)
    with atomic_write(path, raster.nbytes) as partial, tifffile.TiffWriter(partial, ome=True) as writer:
        writer.write(raster, photometric="minisblack", metadata=_ome(prediction, heat))


def _evidence(reading: NetworkPrediction, heat: Heatmap) -> NDArray[np.float32]:
    """Return (C, rows, columns) evidence on the heatmap's raster, NaN where no patch is."""
    columns, rows = ((reading.coords - np.array(heat.origin_level0)) // np.array(heat.pixel_level0)).T
    evidence = np.full((reading.evidence.shape[1], *heat.image.shape), np.nan, dtype=np.float32)
    evidence[:, rows, columns] = reading.evidence.T
    return evidence


def _ome(prediction: Prediction, heat: Heatmap) -> dict[str, Any]:
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
    """Write ``attention.geojson``: a QuPath tile with measurements for each LR patch; the same bytes every time.

    Parameters
    ----------
    path
        The file.
    prediction
        What was found; the student's reading is written.
    bounds
        The slide's scanned part, whose corner is QuPath's origin.
    """
    write_features(path, _tiles(prediction, bounds))


def _tiles(prediction: Prediction, bounds: Bounds) -> Iterator[dict[str, Any]]:
    reading = prediction.student
    measurements = _measurements(reading, prediction.classes)
    (width, height), at = reading.patch_level0, reading.coords - np.array([bounds.x, bounds.y])
    for index, (x, y), values in zip(prediction.grid.lr_index.tolist(), at.tolist(), measurements, strict=True):
        ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        yield {
            "type": "Feature",
            "id": str(uuid5(NAMESPACE, f"{prediction.slide_fingerprint} {index[0]} {index[1]}")),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "tile", "measurements": values},
        }


def _measurements(reading: NetworkPrediction, classes: tuple[str, ...]) -> Iterator[dict[str, float]]:
    n = len(reading.attention)
    ranks = np.empty(n, dtype=np.int64)
    ranks[np.argsort(-reading.attention, kind="stable")] = np.arange(1, n + 1)  # ties in reading order
    for attention, rank, evidence in zip(reading.attention, ranks.tolist(), reading.evidence, strict=True):
        shares = {"attention": _short(attention), "attention relative": _short(attention * n), "rank": rank}
        yield shares | {f"evidence {name}": _short(value) for name, value in zip(classes, evidence, strict=True)}


def _short(value: np.float32) -> float:
    """Return the shortest decimal that is this float32; all seventeen digits of a double would double the file."""
    return float(str(value))
