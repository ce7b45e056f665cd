"""Attention over slides: heatmaps with one pixel per patch, colour scales, thumbnails. It loads no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.geometry import BoxLevel0, Int64
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.slides.slide import Pixels, Slide
from napari_lrmil.core.visualize.colormaps import viridis_colors

COLORMAP = "viridis"  # perceptually uniform and readable without colour vision
ATTENTION_LEGEND = "attention, times average (values above are clipped)"
OPACITY = 0.6  # the tissue stays visible below
THUMBNAIL_PX = 1200  # longer side of the slide in exported pictures
RESEARCH_USE = "Research use only. Not a diagnosis."


@dataclass(frozen=True)
class Heatmap:
    """Raster with one pixel per patch; NaN outside patches.

    Attributes
    ----------
    image
        (rows, columns) float32. Attention is relative to the slide's average: uniform attention is 1 for every patch.
        Grids with different patch sizes share this scale.
    origin_level0
        Level-0 corner of the raster, x then y.
    pixel_level0
        Width and height of one raster pixel in level-0 pixels.
    """

    image: NDArray[np.float32]
    origin_level0: tuple[int, int]
    pixel_level0: tuple[int, int]


def make_heatmap(network: NetworkPrediction) -> Heatmap:
    """Return the attention of a network, relative to the average, as a raster."""
    return rasterize_patches(network, network.attention * len(network.attention))


class PatchesOnGrid(Protocol):
    """Patches on a grid, such as a `NetworkPrediction`: (N, 2) level-0 corners, x then y, and the size of a patch."""

    @property
    def coords(self) -> Int64: ...  # noqa: D102
    @property
    def patch_level0(self) -> tuple[int, int]: ...  # noqa: D102


def rasterize_patches(patches: PatchesOnGrid, values: Features) -> Heatmap:
    """Return (N,) values of patches as a raster over their bounding box."""
    first = patches.coords.min(axis=0)
    columns, rows = ((patches.coords - first) // np.array(patches.patch_level0)).T
    image = np.full((rows.max() + 1, columns.max() + 1), np.nan, dtype=np.float32)
    image[rows, columns] = values
    return Heatmap(image, (int(first[0]), int(first[1])), patches.patch_level0)


def color_limits(networks: Sequence[NetworkPrediction]) -> tuple[float, float]:
    """Return the colour limits of maps shown side by side: 0, and the lowest of their 99th percentiles.

    With a higher limit, the peaks of a fine grid would leave a coarse grid dark. Higher values get the colour of the
    limit. The limit is at least twice the average, because otherwise noise would fill the scale.
    """
    peaks = [float(np.percentile(network.attention * len(network.attention), 99)) for network in networks]
    return 0.0, max(2.0, min(peaks))


def blend_heatmap(thumbnail: Pixels, box: BoxLevel0, heat: Heatmap, colour_limits: tuple[float, float]) -> Pixels:
    """Return a thumbnail of `box` with the attention over it. Pixels outside patches are unchanged.

    Parameters
    ----------
    thumbnail
        (height, width, 3) uint8 pixels of `box`.
    box
        Part of the slide that the thumbnail shows, level 0.
    heat
        Attention to draw.
    colour_limits
        Values at the two ends of the colour map.
    """
    height, width = thumbnail.shape[:2]
    rows = _raster_index(box.y, box.height, height, heat.origin_level0[1], heat.pixel_level0[1])
    columns = _raster_index(box.x, box.width, width, heat.origin_level0[0], heat.pixel_level0[0])
    top, bottom = np.searchsorted(rows, (0, heat.image.shape[0])).tolist()
    left, right = np.searchsorted(columns, (0, heat.image.shape[1])).tolist()
    low, high = colour_limits
    colours = viridis_colors(np.nan_to_num((heat.image - low) / (high - low)))
    opacity = np.where(np.isfinite(heat.image), np.uint8(round(255 * OPACITY)), np.uint8(0))
    # Cells are enlarged row by row: indexing both axes at once takes several times as long.
    covering, mask = (
        Image.fromarray(np.ascontiguousarray(cells[:, columns[left:right]][rows[top:bottom]]))
        for cells in (colours, opacity)
    )
    picture = Image.fromarray(thumbnail)
    picture.paste(covering, (left, top), mask)
    return np.array(picture)


def _raster_index(start: float, length: float, pixels: int, origin: int, step: int) -> Int64:
    """Return (pixels,) raster row or column of each pixel's centre; out of range outside the raster."""
    centres = start + (np.arange(pixels) + 0.5) * length / pixels
    return np.floor((centres - origin) / step).astype(np.int64)


def calibration_text(prediction: Prediction) -> str:
    """Return a text on calibration. The temperature was fitted on whole slides and holds for them only (Method 3)."""
    if not prediction.scope.is_whole_slide:
        return "Region score, uncalibrated"
    return "Probabilities calibrated on validation slides" if prediction.calibrated else "Probabilities not calibrated"


def slide_thumbnail(slide: Slide, longest_px: int = THUMBNAIL_PX) -> tuple[Pixels, BoxLevel0]:
    """Return the scanned part of a slide, at most `longest_px` long, and its level-0 box."""
    b = slide.bounds
    scale = max(1.0, max(b.width, b.height) / longest_px)
    box = BoxLevel0(float(b.x), float(b.y), float(b.width), float(b.height))
    size = (max(1, round(b.width / scale)), max(1, round(b.height / scale)))
    thumbnail = np.empty((size[1], size[0], 3), np.uint8)
    # In blocks: a level of a slide without pyramid may not fit into memory.
    for rows, columns, pixels in slide.read_blocks(box, size):
        thumbnail[rows, columns] = pixels
    return thumbnail, box


def round_scale_bar(um: float) -> float:
    """Return the largest length of 1, 2 or 5 times a power of ten that is at most `um`."""
    power = 10.0 ** np.floor(np.log10(um))
    return float(max(m * power for m in (1, 2, 5) if m * power <= um))


def format_length(um: float) -> str:
    """Return a length in µm or mm, as text."""
    return f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm"


AttentionScale = Literal["raw", "percentile", "log"]
ATTENTION_SCALES: dict[AttentionScale, str] = {
    "raw": "linear",
    "percentile": "rank",
    "log": "logarithmic",
}
SCALE_LEGENDS: dict[AttentionScale, str] = {
    "raw": ATTENTION_LEGEND,
    "percentile": "attention, rank among the slide's patches in percent",
    "log": "attention, times average (logarithm: 1 is ten times)",
}
MIN_RELATIVE_ATTENTION = 1e-3  # times the average; lower values get the lowest colour of the logarithmic scale


def attention_values(attention: Features, mode: AttentionScale) -> Features:
    """Return (N,) values to show for (N,) attention that sums to 1.

    Parameters
    ----------
    attention
        (N,) attention.
    mode
        ``raw``: multiple of the average. ``percentile``: share of patches with less attention, 0 to 100, ties at their
        mean. ``log``: decimal logarithm of the multiple.
    """
    relative = attention * len(attention)
    if mode == "raw":
        return np.asarray(relative, dtype=np.float32)
    if mode == "log":
        return np.asarray(np.log10(np.maximum(relative, MIN_RELATIVE_ATTENTION)), dtype=np.float32)
    # Imported on use: scipy.stats takes half a second.
    from scipy.stats import rankdata

    return np.asarray(100 * (rankdata(attention) - 0.5) / len(attention), dtype=np.float32)


def attention_limits(shown: Sequence[Features], mode: AttentionScale) -> tuple[float, float]:
    """Return the common colour limits of maps shown side by side; for ``raw`` see `color_limits`."""
    if mode == "percentile":
        return 0.0, 100.0
    if mode == "log":  # the range covers both maps, and at least a factor of two, so that noise does not fill it
        low, high = (f([float(np.percentile(v, q)) for v in shown]) for f, q in ((min, 1), (max, 99)))
        return float(low), float(max(high, low + 0.3))
    return 0.0, max(2.0, min(float(np.percentile(values, 99)) for values in shown))


def evidence_limits(evidence: Features) -> tuple[float, float]:
    """Return symmetric colour limits that include all but the most extreme 1 % of (N,) evidence."""
    limit = float(np.percentile(np.abs(evidence), 99)) or 1e-6  # two equal limits would divide by zero
    return -limit, limit
