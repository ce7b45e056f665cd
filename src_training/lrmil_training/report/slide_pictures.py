"""Pictures of slides for the report: thumbnails, and the attention of each method on them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrmil_training.data.cohort import CohortSlide, read_cohort
from lrmil_training.evaluation.attention_files import ATTENTION_FOLDER, AttentionMap, read_attention_map
from lrmil_training.report.run_record import method_label
from napari_lrmil.core.atomic_files import atomic_write, write_json
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.visualize.overlay import COLORMAP

THUMBNAIL_FOLDER, BOXES_FILE = "thumbnails", "boxes.json"
THUMBNAIL_PX = 360  # longer side: legible in print with three in a row, and only a few kB each
OVERLAY_OPACITY = 0.6

Rgb = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x, y, width and height in level-0 pixels


@dataclass(frozen=True)
class SlidePicture:
    """Picture as a data URI, with a caption."""

    uri: str
    title: str


def write_thumbnails(folder: Path, cohort_csv: Path | None, names: Sequence[str]) -> None:
    """Write ``thumbnails/<slide>.jpg`` for slides that have none yet; slides that cannot be read are skipped.

    ``thumbnails/boxes.json`` holds the level-0 rectangle of each thumbnail.

    Parameters
    ----------
    folder
        The run folder.
    cohort_csv
        Cohort table with the paths of the slides; no thumbnail is written without it.
    names
        Slides that need a thumbnail.
    """
    if not names:
        return
    rows = _read_cohort_slides(cohort_csv)
    boxes = _read_boxes(folder)
    for name in names:
        if name in rows and not (name in boxes and _thumbnail_path(folder, name).exists()):
            try:
                boxes[name] = _write_thumbnail(_thumbnail_path(folder, name), rows[name])
            except (LrmilError, OSError):  # the evaluation has listed the slide in failures.csv with the reason
                continue
    if boxes:
        write_json(folder / THUMBNAIL_FOLDER / BOXES_FILE, boxes)


def _read_cohort_slides(cohort_csv: Path | None) -> dict[str, CohortSlide]:
    if cohort_csv is None or not cohort_csv.exists():
        return {}
    try:
        return {s.name: s for s in read_cohort(cohort_csv, unlabelled=("any",)).slides}
    except LrmilError:  # the table or its slides were moved; the report is still useful without pictures
        return {}


def _thumbnail_path(folder: Path, name: str) -> Path:
    return folder / THUMBNAIL_FOLDER / f"{name}.jpg"


def _read_boxes(folder: Path) -> dict[str, Box]:
    path = folder / THUMBNAIL_FOLDER / BOXES_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write_thumbnail(path: Path, row: CohortSlide) -> Box:
    with row.open() as slide:
        bounds = slide.bounds
        scale = max(1.0, max(bounds.width, bounds.height) / THUMBNAIL_PX)
        box = BoxLevel0(float(bounds.x), float(bounds.y), float(bounds.width), float(bounds.height))
        size = (max(1, round(bounds.width / scale)), max(1, round(bounds.height / scale)))
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        for rows, columns, block in slide.read_blocks(box, size):
            pixels[rows, columns] = block
    with atomic_write(path) as partial:
        Image.fromarray(pixels).save(partial, format="JPEG", quality=85)
    return box.x, box.y, box.width, box.height


def draw_slide_pictures(folder: Path, slide: Mapping[str, Any], methods: Sequence[str]) -> list[SlidePicture]:
    """Return a slide's thumbnail and the stored attention of `methods` on it, all on one colour scale.

    Parameters
    ----------
    folder
        The run folder.
    slide
        A row of ``slides.json``.
    methods
        Methods in the order of their pictures; those without a stored map are left out.

    Returns
    -------
    list
        Empty if the slide has no thumbnail.
    """
    name = slide["slide"]
    path = _thumbnail_path(folder, name)
    if not path.exists():
        return []
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    result = [SlidePicture(_jpeg_data_uri(pixels), "slide")]
    box = _read_boxes(folder).get(name)
    stored = {m: read_attention_map(folder / ATTENTION_FOLDER / m / f"{name}.h5") for m in methods}
    maps = {m: attention_map for m, attention_map in stored.items() if attention_map is not None}
    if box is not None and maps:
        limit = attention_limit(list(maps.values()))
        for method, attention_map in maps.items():
            heatmap = overlay_attention(pixels, box, attention_map, limit)
            result.append(SlidePicture(_jpeg_data_uri(heatmap), method_label(method)))
    return result


def attention_limit(maps: Sequence[AttentionMap]) -> float:
    """Return the upper end of a common colour scale, in multiples of the average attention; see `color_limits`."""
    percentiles = [float(np.percentile(m.attention * len(m.attention), 99)) for m in maps]
    return max(2.0, min(percentiles))


def overlay_attention(pixels: Rgb, box: Box, attention_map: AttentionMap, limit: float) -> Rgb:
    """Return a thumbnail with a heatmap on it; pixels outside all patches do not change.

    Parameters
    ----------
    pixels
        (height, width, 3) thumbnail of the rectangle `box`.
    box
        Level-0 pixels.
    attention_map
        Attention of one method on the slide.
    limit
        Upper end of the colour scale, in multiples of the average attention.
    """
    from matplotlib import colormaps

    height, width = pixels.shape[:2]
    share = np.clip(attention_map.attention * len(attention_map.attention) / limit, 0, 1)
    colours = colormaps[COLORMAP](share)[:, :3] * 255
    mixed = pixels.astype(np.float64)
    starts = (attention_map.coords - np.array(box[:2])) / np.array(box[2:]) * np.array([width, height])
    ends = starts + np.array(attention_map.patch_level0) / np.array(box[2:]) * np.array([width, height])
    corners = np.rint(starts).astype(int), np.rint(ends).astype(int)
    for (x0, y0), (x1, y1), patch_colour in zip(*corners, colours, strict=True):
        cell = np.s_[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        mixed[cell] = (1 - OVERLAY_OPACITY) * mixed[cell] + OVERLAY_OPACITY * patch_colour
    return np.rint(mixed).astype(np.uint8)


def _jpeg_data_uri(pixels: Rgb) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
