"""What maps over a slide look like: attention beside, or wiped over, that of the teacher; differences; evidence; picks.

A map is one pixel per patch. This file makes the data of layers; `layers` adds them.
"""

from __future__ import annotations

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

DEFAULT_OPACITY = 0.5  # the tissue has to stay readable where attention is low, which is dark
DIFFERENCE_OPACITY = 0.85  # its middle, where the networks agree, lets the tissue through by itself
VIEW_TITLES: dict[Side, str] = {"student": "Student (LR)", "teacher": "Teacher (HR)"}
PICK_PX = 12  # pixels along a picked patch: one of them makes the outline
PICKED_RGBA = (0.0, 0.835, 0.94, 1.0)  # in none of the other colour scales
CompareView = Literal["side", "wipe", "difference"]


@dataclass(frozen=True)
class AttentionStyle:
    """How attention is to look.

    Attributes
    ----------
    mode
        As it is, as a percentile, or in powers of ten.
    smooth
        Whether colours run into each other; never unless asked, for a patch is what the network saw.
    opacity
        0 to 1.
    """

    mode: AttentionScale = "raw"
    smooth: bool = False
    opacity: float = DEFAULT_OPACITY


@dataclass(frozen=True)
class CompareMode:
    """How the maps of student and teacher lie to each other.

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
    """A map on its grid: (n, 2) level-0 corners, their size, and (n,) attention that sums to 1."""

    coords: Int64
    patch_level0: tuple[int, int]
    attention: Features


def count_columns(prediction: Prediction) -> int:
    """Return how many columns of LR patches the map of a prediction has."""
    across = prediction.student.coords[:, 0]
    return int((across.max() - across.min()) // prediction.student.patch_level0[0]) + 1


def build_map_layers(
    prediction: Prediction,
    mpp: float,
    given_mpp: float | None,
    look: AttentionStyle | None = None,
    pairing: CompareMode | None = None,
) -> dict[RoleAndSide, LayerData]:
    """Return the maps of a prediction and where they lie; without a teacher, the student's alone."""
    pairing = pairing or CompareMode()
    if prediction.teacher is not None and pairing.view == "difference":
        return {("difference", "student"): _difference_layer(prediction, mpp, given_mpp)}
    made = build_attention_layers(prediction, mpp, given_mpp, look, pooled=pairing.pooled)
    if prediction.teacher is None or pairing.view == "side":
        return {("attention", side): layer for side, layer in made.items()}
    left = count_columns(prediction) // 2 if pairing.wipe is None else pairing.wipe
    edge = int(prediction.student.coords[:, 0].min()) + left * prediction.student.patch_level0[0]  # level-0 x
    teacher = made["teacher"]
    teacher[1]["metadata"] = LayerTag("wipe", prediction.path, mpp, given_mpp).as_metadata()
    for layer, width, is_left in (
        (made["student"], prediction.student.patch_level0[0], True),
        (teacher, _teacher_map(prediction, pairing.pooled).patch_level0[0], False),
    ):
        _wipe(layer, prediction, edge, width, is_left)
    return {("attention", "student"): made["student"], ("wipe", "student"): teacher}


def _wipe(layer: LayerData, prediction: Prediction, edge: int, width: int, is_left: bool) -> None:
    """Take away what lies on the other side of the wipe; `edge` and `width` of a patch are level-0 pixels."""
    image, options, _ = layer
    first = options["translate"][1] / prediction.grid.lattice.mpp.x - width / 2  # level-0 x of the raster's corner
    lies_left = first + (np.arange(image.shape[1]) + 0.5) * width < edge
    image[:, ~lies_left if is_left else lies_left] = np.nan


def build_attention_layers(
    prediction: Prediction,
    mpp: float,
    given_mpp: float | None,
    look: AttentionStyle | None = None,
    *,
    pooled: bool = False,
) -> dict[Side, LayerData]:
    """Return the attention of the student, and of the teacher where it ran, with the same colour limits."""
    from napari_lrmil.core.visualize.overlay import attention_limits, attention_values, rasterize_patches

    look = look or AttentionStyle()
    student = prediction.student
    readings: dict[Side, _PatchMap] = {"student": _PatchMap(student.coords, student.patch_level0, student.attention)}
    if prediction.teacher is not None:
        readings["teacher"] = _teacher_map(prediction, pooled)
    shown = {side: attention_values(reading.attention, look.mode) for side, reading in readings.items()}
    colours = attention_limits(list(shown.values()), look.mode)
    made: dict[Side, LayerData] = {}
    for side, reading in readings.items():
        heat = rasterize_patches(reading, shown[side])
        options = {
            "name": f"{VIEW_TITLES[side]} attention",
            "colormap": attention_colormap(),
            "contrast_limits": colours,
            "opacity": look.opacity,
            **_map_options(heat, prediction, LayerTag("attention", prediction.path, mpp, given_mpp, side)),
            "interpolation2d": "linear" if look.smooth else "nearest",
        }
        made[side] = heat.image, options, "image"
    return made


def _teacher_map(prediction: Prediction, pooled: bool) -> _PatchMap:
    """Return the teacher's attention on its own grid, or summed over the children of each LR patch."""
    teacher = prediction.teacher
    if teacher is None:
        raise ValueError("no map of a teacher that did not run")
    if not pooled:
        return _PatchMap(teacher.coords, teacher.patch_level0, teacher.attention)
    carried = prediction.teacher_on_lr
    there = np.isfinite(carried)
    return _PatchMap(
        prediction.student.coords[there], prediction.student.patch_level0, carried[there].astype(np.float32)
    )


def _difference_layer(prediction: Prediction, mpp: float, given_mpp: float | None) -> LayerData:
    """Return where student and teacher differ, on the LR grid: above 0 where the student looks more."""
    from napari_lrmil.core.inference.teacher_comparison import shared_patches
    from napari_lrmil.core.visualize.comparison_figure import difference_limit
    from napari_lrmil.core.visualize.overlay import rasterize_patches

    both = shared_patches(prediction)
    values = np.full(len(prediction.student.attention), np.nan, dtype=np.float32)
    values[both.rows] = both.difference
    limit, heat = difference_limit(both), rasterize_patches(prediction.student, values)
    options = {
        "name": "Student less teacher",
        "colormap": difference_colormap(),
        "contrast_limits": (-limit, limit),
        "opacity": DIFFERENCE_OPACITY,
        **_map_options(heat, prediction, LayerTag("difference", prediction.path, mpp, given_mpp)),
        "interpolation2d": "nearest",
    }
    return heat.image, options, "image"


def build_picked_layer(
    prediction: Prediction, rows: Int64, mpp: float, given_mpp: float | None, side: Side = "student"
) -> LayerData:
    """Return outlines round the LR patches in these rows of a prediction."""
    from napari_lrmil.core.visualize.overlay import rasterize_patches

    marks = np.zeros(len(prediction.student.attention), np.float32)
    marks[rows] = 1
    heat = rasterize_patches(prediction.student, marks)
    tag = LayerTag("picked", prediction.path, mpp, given_mpp, side)
    width, height = (length / PICK_PX for length in heat.pixel_level0)
    options = {
        "name": "Picked patches" if side == "student" else "Picked patches (teacher's view)",
        "colormap": _pick_colours(),
        "contrast_limits": (0, 1),
        "opacity": 1.0,
        "blending": "translucent",
        "metadata": tag.as_metadata(),
        **placement(heat.origin_level0, (width, height), prediction.grid.lattice.mpp),
        "interpolation2d": "nearest",
    }
    return _outlines(heat.image), options, "image"


def _outlines(marks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (rows * PICK_PX, columns * PICK_PX) with 1 along the inner edge of every marked pixel."""
    edge = np.zeros((PICK_PX, PICK_PX), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    return np.kron(np.nan_to_num(marks) > 0, edge).astype(np.uint8)


def build_evidence_layer(prediction: Prediction, name: str, mpp: float, given_mpp: float | None) -> LayerData:
    """Return what each patch adds to the logit of the class `name`, blue against it and orange for it."""
    from napari_lrmil.core.visualize.overlay import evidence_limits, rasterize_patches

    values = prediction.student.evidence[:, prediction.classes.index(name)]
    heat = rasterize_patches(prediction.student, values)
    options = {
        "name": f"Evidence for {name}",
        "colormap": evidence_colormap(),
        "contrast_limits": evidence_limits(values),
        "opacity": 0.8,
        **_map_options(heat, prediction, LayerTag("evidence", prediction.path, mpp, given_mpp)),
        "interpolation2d": "nearest",
    }
    return heat.image, options, "image"


def _map_options(heat: Heatmap, prediction: Prediction, tag: LayerTag) -> dict[str, Any]:
    return {
        "blending": "translucent",
        "metadata": tag.as_metadata(),
        **placement(heat.origin_level0, heat.pixel_level0, prediction.grid.lattice.mpp),
    }


@cache
def attention_colormap() -> Colormap:
    """Return the map for attention: its dark end lets the tissue through, for there is little to see there."""
    from matplotlib import colormaps
    from napari.utils import Colormap

    from napari_lrmil.core.visualize.overlay import COLORMAP

    colours = colormaps[COLORMAP](np.linspace(0, 1, 64))
    colours[:, 3] = np.linspace(0.35, 1.0, 64)
    return Colormap(colours, name="attention")


@cache
def evidence_colormap() -> Colormap:
    """Return the map for evidence: blue against, orange for, nothing where there is none; readable without red."""
    from napari.utils import Colormap

    against, none, for_it = (0.13, 0.40, 0.67), (0.97, 0.97, 0.97), (0.90, 0.38, 0.00)
    steps = np.linspace(-1, 1, 65)[:, None]
    ends = np.where(steps < 0, against, for_it)
    colours = np.concatenate([none + (ends - none) * np.abs(steps) ** 0.7, 0.1 + 0.9 * np.abs(steps)], axis=1)
    return Colormap(colours, name="evidence")


@cache
def difference_colormap() -> Colormap:
    """Return the map for differences: purple where the teacher looks more, orange where the student does."""
    from matplotlib import colormaps
    from napari.utils import Colormap

    from napari_lrmil.core.visualize.comparison_figure import DIFFERENCE_COLORMAP

    steps = np.linspace(-1, 1, 65)
    colours = colormaps[DIFFERENCE_COLORMAP]((steps + 1) / 2)
    colours[:, 3] = 0.05 + 0.95 * np.abs(steps) ** 0.7  # where they agree there is nothing to see
    return Colormap(colours, name="difference")


@cache
def _pick_colours() -> Colormap:
    from napari.utils import Colormap

    return Colormap([(*PICKED_RGBA[:3], 0.0), PICKED_RGBA], name="picked")
