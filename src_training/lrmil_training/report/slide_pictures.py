"""The slides of a report: a thumbnail of each, and over it where the methods looked."""

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
THUMBNAIL_PX = 360  # px of a thumbnail: legible on paper at three to a row, and a few kB each
OVERLAY_OPACITY = 0.6

Rgb = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # x, y, width and height in level-0 pixels


@dataclass(frozen=True)
class SlidePicture:
    """A picture as a data address, and what it shows."""

    address: str
    title: str


def write_thumbnails(folder: Path, cohort_csv: Path | None, names: Sequence[str]) -> None:
    """Write ``thumbnails/<slide>.jpg`` for slides that lack one and can be read; the others go without a picture.

    ``thumbnails/boxes.json`` holds the level-0 rectangle that each shows.
    """
    rows = _read_cohort_slides(cohort_csv)
    boxes = _read_boxes(folder)
    for name in names:
        if name in rows and not (name in boxes and _thumbnail_path(folder, name).exists()):
            try:
                boxes[name] = _write_thumbnail(_thumbnail_path(folder, name), rows[name])
            except (LrmilError, OSError):  # evaluation has listed it in failures.csv, with its reason
                continue
    if boxes:
        write_json(folder / THUMBNAIL_FOLDER / BOXES_FILE, boxes)


def _read_cohort_slides(cohort_csv: Path | None) -> dict[str, CohortSlide]:
    if cohort_csv is None or not cohort_csv.exists():
        return {}
    try:
        return {s.name: s for s in read_cohort(cohort_csv).slides}
    except LrmilError:  # the table was moved or its slides were: a report is made without them
        return {}


def _thumbnail_path(folder: Path, name: str) -> Path:
    return folder / THUMBNAIL_FOLDER / f"{name}.jpg"


def _read_boxes(folder: Path) -> dict[str, Box]:
    path = folder / THUMBNAIL_FOLDER / BOXES_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write_thumbnail(path: Path, row: CohortSlide) -> Box:
    with row.open() as slide:
        b = slide.bounds
        scale = max(1.0, max(b.width, b.height) / THUMBNAIL_PX)
        box = BoxLevel0(float(b.x), float(b.y), float(b.width), float(b.height))
        size = (max(1, round(b.width / scale)), max(1, round(b.height / scale)))
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        for rows, columns, block in slide.read_blocks(box, size):
            pixels[rows, columns] = block
    with atomic_write(path) as partial:
        Image.fromarray(pixels).save(partial, format="JPEG", quality=85)
    return box.x, box.y, box.width, box.height


def draw_slide_pictures(folder: Path, slide: Mapping[str, Any], methods: Sequence[str]) -> list[SlidePicture]:
    """Return a slide's thumbnail, and where there are maps the attention of `methods` over it on one colour scale."""
    name = slide["slide"]
    path = _thumbnail_path(folder, name)
    if not path.exists():
        return []
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    found = [SlidePicture(_jpeg_data_uri(pixels), "slide")]
    box = _read_boxes(folder).get(name)
    maps = {m: read_attention_map(folder / ATTENTION_FOLDER / m / f"{name}.h5") for m in methods}
    there = {m: one for m, one in maps.items() if one is not None}
    if box is not None and there:
        top = attention_limit(list(there.values()))
        found += [
            SlidePicture(_jpeg_data_uri(overlay_attention(pixels, box, one, top)), method_label(m))
            for m, one in there.items()
        ]
    return found


def attention_limit(maps: Sequence[AttentionMap]) -> float:
    """Return the attention (times the slide's average) at the top of the colour scale; see `overlay.color_limits`."""
    tops = [float(np.percentile(one.attention * len(one.attention), 99)) for one in maps]
    return max(2.0, min(tops))


def overlay_attention(pixels: Rgb, box: Box, found: AttentionMap, top: float) -> Rgb:
    """Return a thumbnail with a map over it; pixels outside all patches stay as they are.

    Parameters
    ----------
    pixels
        (height, width, 3) of the rectangle `box`.
    box
        In level-0 pixels.
    found
        The map.
    top
        Attention, times the average, that is brightest.
    """
    from matplotlib import colormaps

    height, width = pixels.shape[:2]
    share = np.clip(found.attention * len(found.attention) / top, 0, 1)
    colours = colormaps[COLORMAP](share)[:, :3] * 255
    mixed = pixels.astype(np.float64)
    starts = (found.coords - np.array(box[:2])) / np.array(box[2:]) * np.array([width, height])
    ends = starts + np.array(found.patch_level0) / np.array(box[2:]) * np.array([width, height])
    for (x0, y0), (x1, y1), ink in zip(np.rint(starts).astype(int), np.rint(ends).astype(int), colours, strict=True):
        cell = np.s_[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        mixed[cell] = (1 - OVERLAY_OPACITY) * mixed[cell] + OVERLAY_OPACITY * ink
    return np.rint(mixed).astype(np.uint8)


def _jpeg_data_uri(pixels: Rgb) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
