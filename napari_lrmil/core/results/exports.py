"""Export of a prediction as OME-TIFF, for image viewers."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid5

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.patching.regions import NAMESPACE
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
