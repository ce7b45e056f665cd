"""napari layers of a prediction: attention of student and teacher, their difference, evidence, picked patches.

A map has one pixel per patch. This module builds the data of layers; `layers` adds them to the viewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from napari_lrmil.plugin.viewer.layers import LayerData, LayerTag, RoleAndSide, Side, placement

if TYPE_CHECKING:
    from napari.utils import Colormap
    from numpy.typing import NDArray

    from napari_lrmil.core.features.bag import Features
    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.visualize.overlay import AttentionScale, Heatmap

DEFAULT_OPACITY = 0.5  # the tissue has to stay readable below the most attended patches too
DIFFERENCE_OPACITY = 0.85  # the colour map itself is transparent where the networks agree
EVIDENCE_OPACITY = 0.8  # likewise, where the evidence is zero
VIEW_TITLES: dict[Side, str] = {"student": "Student (LR)", "teacher": "Teacher (HR)"}
PICK_PX, PICK_EDGE_PX = 16, 2  # raster pixels along a picked patch and its outline, which is seen from afar
PICKED_RGBA = (0.0, 0.835, 0.94, 1.0)  # a cyan that no other colour map contains
CompareView = Literal["side", "wipe", "difference"]


@dataclass(frozen=True)
class AttentionStyle:
    """Display style of attention.

    Attributes
    ----------
    mode
        Raw values, percentiles, or powers of ten.
    smooth
        Whether colours are interpolated between patches. Off by default, because a patch is what the network saw.
    opacity
        0 to 1.
    """

    mode: AttentionScale = "raw"
    smooth: bool = False
    opacity: float = DEFAULT_OPACITY


@dataclass(frozen=True)
class CompareMode:
    """Arrangement of the maps of student and teacher.

    Attributes
    ----------
    view
        Side by side; one over the slide with a wipe between them; or their difference.
    wipe
        Columns of LR patches left of the wipe, which show the student; None puts it in the middle.
    pooled
        Whether the teacher's attention is summed over the children of each LR patch, or shown on its own HR grid.
    """

    view: CompareView = "side"
    wipe: int | None = None
    pooled: bool = False


@dataclass(frozen=True)
class _PatchMap:
    """Map on its grid: (n, 2) level-0 corners, patch size in level-0 pixels, and (n,) attention that sums to 1."""

    coords: Int64
    patch_level0: tuple[int, int]
    attention: Features


def count_columns(prediction: Prediction) -> int:
    """Return the number of columns of LR patches between the leftmost and the rightmost one."""
    x = prediction.student.coords[:, 0]
    return int((x.max() - x.min()) // prediction.student.patch_level0[0]) + 1


def count_columns_left(prediction: Prediction, compare: CompareMode) -> int:
    """Return the number of columns of LR patches left of the wipe."""
    return count_columns(prediction) // 2 if compare.wipe is None else compare.wipe


# ---------------------------------------------------------------- attention and difference


def build_map_layers(
    prediction: Prediction,
    mpp: float,
    given_mpp: float | None,
    style: AttentionStyle | None = None,
    compare: CompareMode | None = None,
) -> dict[RoleAndSide, LayerData]:
    """Return the maps of a prediction by role and side; without a teacher, only the student's.

    Parameters
    ----------
    prediction
        The prediction.
    mpp, given_mpp
        Mean µm per level-0 pixel of the slide, and the value that the user gave, if any.
    style
        Display style; by default raw values.
    compare
        Arrangement of the two maps; by default side by side.
    """
    compare = compare or CompareMode()
    if prediction.teacher is not None and compare.view == "difference":
        return {("difference", "student"): _build_difference_layer(prediction, mpp, given_mpp)}
    layers = build_attention_layers(prediction, mpp, given_mpp, style, pooled=compare.pooled)
    if prediction.teacher is None or compare.view == "side":
        return {("attention", side): layer for side, layer in layers.items()}
    student, teacher = layers["student"], layers["teacher"]
    teacher[1]["metadata"] = LayerTag("wipe", prediction.path, mpp, given_mpp).as_metadata()
    patch = prediction.student.patch_level0[0]
    left = count_columns_left(prediction, compare)
    edge = int(prediction.student.coords[:, 0].min()) + left * patch  # level-0 x
    _cut_at_wipe(student, prediction, edge, patch, is_left=True)
    _cut_at_wipe(teacher, prediction, edge, _teacher_map(prediction, compare.pooled).patch_level0[0], is_left=False)
    return {("attention", "student"): student, ("wipe", "student"): teacher}


def _cut_at_wipe(layer: LayerData, prediction: Prediction, edge: int, patch: int, *, is_left: bool) -> None:
    """Erase the part of a map on the other side of the wipe.

    Parameters
    ----------
    layer
        The map; changed in place.
    prediction
        Prediction of the map.
    edge
        x of the wipe in level-0 pixels.
    patch
        Width of a patch of this map in level-0 pixels.
    is_left
        Whether the map shows the part left of the wipe.
    """
    image, options, _ = layer
    first = options["translate"][1] / prediction.grid.lattice.mpp.x - patch / 2  # level-0 x of the raster's corner
    lies_left = first + (np.arange(image.shape[1]) + 0.5) * patch < edge
    image[:, ~lies_left if is_left else lies_left] = np.nan


def build_attention_layers(
    prediction: Prediction,
    mpp: float,
    given_mpp: float | None,
    style: AttentionStyle | None = None,
    *,
    pooled: bool = False,
) -> dict[Side, LayerData]:
    """Return the attention of the student, and of the teacher if it ran, with common colour limits.

    Parameters
    ----------
    prediction, mpp, given_mpp, style
        As for `build_map_layers`.
    pooled
        As in `CompareMode`.
    """
    from napari_lrmil.core.visualize.overlay import attention_limits, attention_values, rasterize_patches

    style = style or AttentionStyle()
    student = prediction.student
    maps: dict[Side, _PatchMap] = {"student": _PatchMap(student.coords, student.patch_level0, student.attention)}
    if prediction.teacher is not None:
        maps["teacher"] = _teacher_map(prediction, pooled)
    values = {side: attention_values(patch_map.attention, style.mode) for side, patch_map in maps.items()}
    limits = attention_limits(list(values.values()), style.mode)
    layers: dict[Side, LayerData] = {}
    for side, patch_map in maps.items():
        heat = rasterize_patches(patch_map, values[side])
        options = {
            "name": f"{VIEW_TITLES[side]} attention",
            "colormap": attention_colormap(),
            "contrast_limits": limits,
            "opacity": style.opacity,
            **_map_options(heat, prediction, LayerTag("attention", prediction.path, mpp, given_mpp, side)),
            "interpolation2d": "linear" if style.smooth else "nearest",
        }
        layers[side] = heat.image, options, "image"
    return layers


def _teacher_map(prediction: Prediction, pooled: bool) -> _PatchMap:
    """Return the teacher's attention on its own HR grid, or summed over the children of each LR patch."""
    student, teacher = prediction.student, prediction.teacher
    if teacher is None:
        raise ValueError("the prediction has no teacher")
    if not pooled:
        return _PatchMap(teacher.coords, teacher.patch_level0, teacher.attention)
    on_lr_grid = prediction.teacher_on_lr
    was_read = np.isfinite(on_lr_grid)  # NaN in LR patches that the teacher did not read
    return _PatchMap(student.coords[was_read], student.patch_level0, on_lr_grid[was_read].astype(np.float32))


def _build_difference_layer(prediction: Prediction, mpp: float, given_mpp: float | None) -> LayerData:
    """Return student minus teacher on the LR grid: above 0 where the student attends more."""
    from napari_lrmil.core.inference.teacher_comparison import shared_patches
    from napari_lrmil.core.visualize.comparison_figure import difference_limit
    from napari_lrmil.core.visualize.overlay import rasterize_patches

    shared = shared_patches(prediction)
    values = np.full(len(prediction.student.attention), np.nan, dtype=np.float32)
    values[shared.rows] = shared.difference
    limit, heat = round_up_limit(difference_limit(shared)), rasterize_patches(prediction.student, values)
    options = {
        "name": "Student minus teacher",
        "colormap": difference_colormap(),
        "contrast_limits": (-limit, limit),  # symmetric, so that zero has the transparent middle colour
        "opacity": DIFFERENCE_OPACITY,
        **_map_options(heat, prediction, LayerTag("difference", prediction.path, mpp, given_mpp)),
        "interpolation2d": "nearest",
    }
    return heat.image, options, "image"


def _map_options(heat: Heatmap, prediction: Prediction, tag: LayerTag) -> dict[str, Any]:
    return {
        "blending": "translucent",
        "metadata": tag.as_metadata(),
        **placement(heat.origin_level0, heat.pixel_level0, prediction.grid.lattice.mpp),
    }


# ---------------------------------------------------------------- picked patches and evidence


def build_picked_layer(
    prediction: Prediction, rows: Int64, mpp: float, given_mpp: float | None, side: Side = "student"
) -> LayerData:
    """Return the outlines of LR patches.

    Parameters
    ----------
    prediction, mpp, given_mpp
        As for `build_map_layers`.
    rows
        Rows of the patches in the prediction.
    side
        View of the layer.
    """
    from napari_lrmil.core.visualize.overlay import rasterize_patches

    marks = np.zeros(len(prediction.student.attention), np.float32)
    marks[rows] = 1
    heat = rasterize_patches(prediction.student, marks)
    tag = LayerTag("picked", prediction.path, mpp, given_mpp, side)
    width, height = (length / PICK_PX for length in heat.pixel_level0)
    options = {
        "name": "Picked patches" if side == "student" else "Picked patches (teacher's view)",
        "colormap": _picked_colormap(),
        "contrast_limits": (0, 1),
        "opacity": 1.0,
        "blending": "translucent",
        "metadata": tag.as_metadata(),
        **placement(heat.origin_level0, (width, height), prediction.grid.lattice.mpp),
        "interpolation2d": "nearest",
    }
    return _draw_outlines(heat.image), options, "image"


def _draw_outlines(marks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (rows * PICK_PX, columns * PICK_PX) with 1 along the inner edge of every marked pixel."""
    edge = np.ones((PICK_PX, PICK_PX), bool)
    edge[PICK_EDGE_PX:-PICK_EDGE_PX, PICK_EDGE_PX:-PICK_EDGE_PX] = False
    return np.kron(np.nan_to_num(marks) > 0, edge).astype(np.uint8)


def build_evidence_layer(prediction: Prediction, name: str, mpp: float, given_mpp: float | None) -> LayerData:
    """Return the contribution of each patch to the logit of a class: orange raises it, blue lowers it.

    Parameters
    ----------
    prediction, mpp, given_mpp
        As for `build_map_layers`.
    name
        Name of the class.
    """
    from napari_lrmil.core.visualize.overlay import evidence_limits, rasterize_patches

    values = prediction.student.evidence[:, prediction.classes.index(name)]
    limit = round_up_limit(evidence_limits(values)[1])
    heat = rasterize_patches(prediction.student, values)
    options = {
        "name": f"Evidence for {name}",
        "colormap": evidence_colormap(),
        "contrast_limits": (-limit, limit),
        "opacity": EVIDENCE_OPACITY,
        **_map_options(heat, prediction, LayerTag("evidence", prediction.path, mpp, given_mpp)),
        "interpolation2d": "nearest",
    }
    return heat.image, options, "image"


# ---------------------------------------------------------------- colour maps


def round_up_limit(limit: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten; napari's colour bar may show one number for other limits."""
    power = 10.0 ** math.floor(math.log10(limit))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= limit * (1 - 1e-9))


@cache
def attention_colormap() -> Colormap:
    """Return the colour map of attention: no attention is transparent, so that glass and tissue keep their colour."""
    from matplotlib import colormaps
    from napari.utils import Colormap

    from napari_lrmil.core.visualize.overlay import COLORMAP

    colours = colormaps[COLORMAP](np.linspace(0, 1, 64))
    colours[:, 3] = np.linspace(0, 1, 64)
    return Colormap(colours, name="attention")


@cache
def evidence_colormap() -> Colormap:
    """Return the colour map of evidence: blue below zero, orange above, zero transparent; readable without red."""
    from napari.utils import Colormap

    against, neutral, in_favour = (0.13, 0.40, 0.67), (0.97, 0.97, 0.97), (0.90, 0.38, 0.00)
    steps = np.linspace(-1, 1, 65)[:, None]
    ends = np.where(steps < 0, against, in_favour)
    # Exponent 0.7: colour rises faster than the value, which makes weak evidence visible.
    colours = np.concatenate([neutral + (ends - neutral) * np.abs(steps) ** 0.7, 0.1 + 0.9 * np.abs(steps)], axis=1)
    return Colormap(colours, name="evidence")


@cache
def difference_colormap() -> Colormap:
    """Return the colour map of differences: purple where the teacher attends more, orange where the student does."""
    from matplotlib import colormaps
    from napari.utils import Colormap

    from napari_lrmil.core.visualize.comparison_figure import DIFFERENCE_COLORMAP

    steps = np.linspace(-1, 1, 65)
    colours = colormaps[DIFFERENCE_COLORMAP]((steps + 1) / 2)
    colours[:, 3] = 0.05 + 0.95 * np.abs(steps) ** 0.7  # nearly transparent where the networks agree
    return Colormap(colours, name="difference")


@cache
def _picked_colormap() -> Colormap:
    from napari.utils import Colormap

    return Colormap([(*PICKED_RGBA[:3], 0.0), PICKED_RGBA], name="picked")
