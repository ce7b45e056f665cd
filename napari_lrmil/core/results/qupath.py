"""GeoJSON tiles for QuPath: each LR patch with a name, an attention band, the overlay's colour and its measurements."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid5

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.geometry import Bounds, Int64
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.teacher_comparison import shared_patches
from napari_lrmil.core.patching.regions import NAMESPACE, write_features
from napari_lrmil.core.visualize.colormaps import viridis_colors
from napari_lrmil.core.visualize.overlay import color_limits

GEOJSON = "attention.geojson"
HEATMAP_SCRIPT = "show_attention.groovy"
# Of attention relative to the average. QuPath keeps a class's colour by its name, so these are the same for all slides.
BAND_EDGES = (1.0, 2.0, 4.0)
BANDS = (
    "Attention below average",
    "Attention 1 to 2 times average",
    "Attention 2 to 4 times average",
    "Attention above 4 times average",
)
TEACHER_ATTENTION, TEACHER_RELATIVE = "teacher attention", "teacher attention relative"
DIFFERENCE = "attention difference"


def write_attention_geojson(path: Path, prediction: Prediction, bounds: Bounds) -> None:
    """Write ``attention.geojson``: one QuPath tile with measurements per LR patch; equal results give equal bytes.

    Parameters
    ----------
    path
        The file.
    prediction
        Result of a slide. The teacher's attention is written for the patches that it read.
    bounds
        Scanned part of the slide. Its corner is QuPath's origin.
    """
    write_features(path, _tiles(prediction, bounds))


def copy_attention_geojson(result: Path, out: Path) -> Path:
    """Copy the tiles of one slide's results to ``out/<slide>.geojson``, and return that path.

    Raises
    ------
    StoredError
        If the results have no tiles.
    """
    source = result / GEOJSON
    if not source.is_file():
        raise StoredError(result, f"{GEOJSON} is missing; run predict or compare again, with --no-resume")
    path = out / f"{result.resolve().name}.geojson"
    with atomic_write(path, source.stat().st_size) as partial:
        shutil.copyfile(source, partial)
    return path


def write_heatmap_script(folder: Path) -> Path:
    """Copy the script that shows the tiles as a heat map in QuPath into a folder, and return its path."""
    path = folder / HEATMAP_SCRIPT
    with atomic_write(path) as partial:
        shutil.copyfile(Path(__file__).with_name(HEATMAP_SCRIPT), partial)
    return path


def _tiles(prediction: Prediction, bounds: Bounds) -> Iterator[dict[str, Any]]:
    """Yield the Feature of each LR patch in the order of the grid."""
    student = prediction.student
    ranks = _ranks(student)
    relative = student.attention * len(student.attention)
    bands = np.digitize(relative, BAND_EDGES).tolist()
    band_colors, colors = _band_colors(), _overlay_colors(prediction).tolist()
    corners = (student.coords - np.array([bounds.x, bounds.y])).tolist()
    measurements = _measurements(prediction, ranks)
    for row, (index, corner, values) in enumerate(
        zip(prediction.grid.lr_index.tolist(), corners, measurements, strict=True)
    ):
        yield {
            "type": "Feature",
            "id": str(uuid5(NAMESPACE, f"{prediction.slide_fingerprint} {index[0]} {index[1]}")),
            "geometry": {"type": "Polygon", "coordinates": [_ring(corner, student.patch_level0)]},
            "properties": {
                "objectType": "tile",
                "name": f"patch {ranks[row]} of {len(ranks)} by attention",
                "color": colors[row],
                "classification": {"name": BANDS[bands[row]], "color": band_colors[bands[row]]},
                "measurements": values,
            },
        }


def _ring(corner: list[int], size: tuple[int, int]) -> list[list[int]]:
    """Return the outline of a patch; GeoJSON polygons repeat their first corner at the end."""
    (x, y), (width, height) = corner, size
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]


def _ranks(network: NetworkPrediction) -> Int64:
    """Return (N,) ranks by attention from 1, the highest; ties in grid order."""
    ranks = np.empty(len(network.attention), dtype=np.int64)
    ranks[np.argsort(-network.attention, kind="stable")] = np.arange(1, len(ranks) + 1)
    return ranks


def _overlay_colors(prediction: Prediction) -> NDArray[np.uint8]:
    """Return the (N, 3) colours of the student's patches in ``overlay.png``."""
    student, teacher = prediction.student, prediction.teacher
    low, high = color_limits([student] if teacher is None else [student, teacher])
    return viridis_colors((student.attention * len(student.attention) - low) / (high - low))


def _band_colors() -> list[list[int]]:
    """Return red, green and blue of each band, evenly spaced on the overlay's colour map."""
    colors: list[list[int]] = viridis_colors(np.linspace(0, 1, len(BANDS))).tolist()
    return colors


def _measurements(prediction: Prediction, ranks: Int64) -> Iterator[dict[str, float]]:
    """Yield name -> value for each patch, as QuPath lists them."""
    student, teacher = prediction.student, _teacher_measurements(prediction)
    n = len(ranks)
    rows = zip(student.attention, ranks.tolist(), student.evidence, strict=True)
    for row, (attention, rank, evidence) in enumerate(rows):
        values = {"attention": _shorten(attention), "attention relative": _shorten(attention * n), "rank": rank}
        values |= {f"evidence {name}": _shorten(v) for name, v in zip(prediction.classes, evidence, strict=True)}
        yield values | teacher.get(row, {})


def _teacher_measurements(prediction: Prediction) -> dict[int, dict[str, float]]:
    """Return row -> name -> value of the LR patches that the teacher read; QuPath has no value for the others."""
    if prediction.teacher is None:
        return {}
    shared = shared_patches(prediction)
    columns = (prediction.teacher_on_lr[shared.rows], shared.teacher, shared.difference)
    names = (TEACHER_ATTENTION, TEACHER_RELATIVE, DIFFERENCE)
    table = np.stack(columns, axis=1).astype(np.float32)
    return {
        row: dict(zip(names, map(_shorten, values), strict=True))
        for row, values in zip(shared.rows.tolist(), table, strict=True)
    }


def _shorten(value: np.float32) -> float:
    """Return the shortest decimal that rounds to this float32; 17 digits of a double would double the file's size."""
    return float(str(value))
