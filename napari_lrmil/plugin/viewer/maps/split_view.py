"""Arrangement of layers: one view of a slide, or student and teacher side by side with linked cameras.

napari's grid fills its cells with runs of `stride` layers from the bottom of the list, left to right. One camera
moves all cells. The student's layers therefore come first, the teacher's second, and both sides have equally many.

Own code on top of that grid: napari's plugins for slides have no split view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from napari_lrmil.plugin.viewer.layers import (
    MAP_ROLES,
    LayerData,
    RoleAndSide,
    add_layers,
    copy_for_teacher_view,
    follow_rotation,
    get_tag,
    lrmil_layers,
    map_layers,
    remove_layers,
    slide_path,
    update_layer,
)
from napari_lrmil.plugin.viewer.maps.attention_layers import (
    AttentionStyle,
    CompareMode,
    build_evidence_layer,
    build_map_layers,
    build_picked_layer,
)
from napari_lrmil.plugin.viewer.maps.captions import (
    caption_evidence,
    caption_maps,
    follow_colours,
    hide_caption_without_map,
    show_colorbar,
    show_title,
)
from napari_lrmil.plugin.viewer.navigation.camera import fit_slide

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.viewer.layers import Side

COVERING_ROLES = (*MAP_ROLES, "evidence")
DRAWING_ROLES = ("artefacts", "annotation", "drawn", "distance")
VIEW_ROLES = ("underlay", "slide", "attention", "picked")  # bottom first
COLOUR_ATTRIBUTES = ("colormap", "contrast_limits", "gamma", "interpolation2d")  # each map can be faded by itself
SPACING_PX = 6
MODES_WITHOUT_TOOL = ("pan_zoom", "transform")


# ---------------------------------------------------------------- views


@dataclass(frozen=True)
class SplitView:
    """Layers of the two views, bottom first, with the same roles on both sides."""

    student: tuple[Image, ...]
    teacher: tuple[Image, ...]

    @property
    def layers(self) -> tuple[Image, ...]:
        """Layers of both views in the order that the grid needs."""
        return self.student + self.teacher


def find_split_view(viewer: ViewerModel, shown: Path | None = None) -> SplitView | None:
    """Return the two views of a slide that has attention of student and teacher; None if there is none.

    Parameters
    ----------
    viewer
        The viewer.
    shown
        File of the slide; None takes any.
    """
    for attention in lrmil_layers(viewer, shown, role="attention", side="teacher"):
        path = slide_path(attention)
        pairs = {
            role: (_find_layer(viewer, path, role, "student"), _find_layer(viewer, path, role, "teacher"))
            for role in VIEW_ROLES
        }
        complete = {role: (s, t) for role, (s, t) in pairs.items() if s is not None and t is not None}
        evidence = _find_layer(viewer, path, "evidence", "student")
        if evidence is not None and "attention" in complete:
            complete["attention"] = evidence, complete["attention"][1]  # it takes the place of the student's attention
        if "slide" in complete and "attention" in complete:
            return SplitView(tuple(s for s, _ in complete.values()), tuple(t for _, t in complete.values()))
    return None


def _find_layer(viewer: ViewerModel, path: Path | None, role: str, side: str) -> Image | None:
    return next(iter(lrmil_layers(viewer, path, role=role, side=side)), None)


def arrange_views(viewer: ViewerModel, shown: Path | None = None) -> None:
    """Adapt the order of layers and the grid to the present layers; call it whenever layers were added or removed.

    Parameters
    ----------
    viewer
        The viewer.
    shown
        File of the slide that is shown; None takes any that has two views.
    """
    _link_underlays(viewer)
    hide_caption_without_map(viewer)
    views = find_split_view(viewer, shown)
    if views is None:
        _leave_grid(viewer)
        return
    _move_to_bottom(viewer, views.layers)
    for layer in lrmil_layers(viewer):  # layers of other plugins are the user's own matter
        if layer not in views.layers:
            layer.visible = False  # a visible one would open a third view
    if viewer.canvas.grid.stride != len(views.student):
        viewer.canvas.grid.stride = len(views.student)
    viewer.canvas.grid.shape = (1, -1)
    viewer.canvas.grid.spacing = SPACING_PX
    viewer.canvas.grid.enabled = True


def _link_underlays(viewer: ViewerModel) -> None:
    """Link visibility and opacity of each slide to those of the underlay below it."""
    from napari.experimental import link_layers

    for underlay in lrmil_layers(viewer, role="underlay"):
        tag = get_tag(underlay)
        slide = _find_layer(viewer, tag.path, "slide", tag.side) if tag else None
        if slide is not None:
            link_layers([underlay, slide], ("visible", "opacity"))


def _leave_grid(viewer: ViewerModel) -> None:
    """Remove the layers that only the teacher's view needed; a grid that the user switched on stays."""
    split = {slide_path(layer) for layer in lrmil_layers(viewer, role="attention", side="teacher")}
    roles = ("underlay", "slide", "picked")
    of_teacher = [layer for role in roles for layer in lrmil_layers(viewer, role=role, side="teacher")]
    orphans = [layer for layer in of_teacher if slide_path(layer) not in split]
    if orphans:
        remove_layers(viewer, orphans)
        viewer.canvas.grid.enabled = False


def _move_to_bottom(viewer: ViewerModel, ordered: tuple[Image, ...]) -> None:
    """Move the layers to the bottom of the list, in this order; nothing happens if they are there already."""
    # One by one: napari's `move_multiple` loses count if the layer at index 0 is not the first of many.
    for position, layer in enumerate(ordered):
        index = viewer.layers.index(layer)
        if index != position:
            viewer.layers.move(index, position)


# ---------------------------------------------------------------- attention


def refresh_attention(
    viewer: ViewerModel,
    prediction: Prediction,
    slide: SlideChoice,
    style: AttentionStyle | None = None,
    compare: CompareMode | None = None,
) -> None:
    """Show the attention of a prediction over its slide; the camera does not move.

    Layers of the last prediction are reused if they have the same roles, also those of a slide that is not open any
    more. A new layer takes the window 0.1 s, and would lose the changes that the user made to the old one.

    Parameters
    ----------
    viewer
        The viewer.
    prediction, slide
        The prediction, and its slide.
    style, compare
        Display style, and arrangement of student and teacher.
    """
    new = build_map_layers(prediction, slide.mpp, slide.given_mpp, style, compare)
    own = _by_role(map_layers(viewer, slide.path))
    present = own or _by_role(_maps_without_slide(viewer))
    is_split = any(side == "teacher" for _, side in new)  # it also needs copies of its slide's layers
    if set(present) != set(new) or (is_split and not own):
        _replace_maps(viewer, slide, new)
        return
    for role_and_side, layer in present.items():
        update_layer(layer, new[role_and_side])
        follow_rotation(viewer, layer)  # the slide may have been rotated since the layer showed another one
    if not own:
        _select_map(viewer, next(iter(present.values())), viewer.layers.selection.active)


def _by_role(maps: list[Image]) -> dict[RoleAndSide, Image]:
    tags = [(get_tag(layer), layer) for layer in maps]
    return {(tag.role, tag.side): layer for tag, layer in tags if tag is not None}


def _maps_without_slide(viewer: ViewerModel) -> list[Image]:
    """Return the maps of slides that are not open any more."""
    open_paths = {slide_path(layer) for layer in lrmil_layers(viewer, role="slide")}
    return [layer for layer in map_layers(viewer) if slide_path(layer) not in open_paths]


def _replace_maps(viewer: ViewerModel, slide: SlideChoice, maps: Mapping[RoleAndSide, LayerData]) -> None:
    """Replace the maps of a slide; `add_legends` adds titles and legend afterwards."""
    had_maps = bool(map_layers(viewer, slide.path))
    was_split, camera = bool(viewer.canvas.grid.enabled), viewer.scene.camera
    centre, zoom, active = camera.center, camera.zoom, viewer.layers.selection.active
    remove_attention(viewer, slide.path)
    layers = add_layers(viewer, [layer for (_, side), layer in maps.items() if side == "student"])
    if ("attention", "teacher") in maps:
        below = [_find_layer(viewer, slide.path, role, "student") for role in VIEW_ROLES[:2]]
        copies: list[LayerData] = [copy_for_teacher_view(layer) for layer in below if layer is not None]
        add_layers(viewer, [*copies, maps["attention", "teacher"]])
    for layer in map_layers(viewer, slide.path):
        _hide_missing_values(layer)
        follow_colours(viewer, layer)
    _link_maps(viewer, slide.path)
    _raise_drawings(viewer, slide.path)
    arrange_views(viewer, slide.path)
    _select_map(viewer, layers[0], active)
    is_split = bool(viewer.canvas.grid.enabled)
    if is_split != was_split and had_maps:  # the same part of the slide, in views of half or twice the width
        camera.center, camera.zoom = centre, zoom * (0.5 if is_split else 2.0)
    elif is_split != was_split:
        fit_slide(viewer, slide.path)
    if was_split and not is_split:
        for layer in lrmil_layers(viewer, slide.path, role="drawn"):
            layer.visible = True  # `arrange_views` has hidden it, because a split view has no cell for it


def _raise_drawings(viewer: ViewerModel, path: Path) -> None:
    """Move what is drawn on a slide above its maps, which have been added after it."""
    maps = [viewer.layers.index(layer) for role in COVERING_ROLES for layer in lrmil_layers(viewer, path, role=role)]
    top = max(maps, default=-1)
    drawings = {id(layer) for role in DRAWING_ROLES for layer in lrmil_layers(viewer, path, role=role)}
    for layer in [layer for layer in viewer.layers if id(layer) in drawings]:
        if viewer.layers.index(layer) < top:
            viewer.layers.move(viewer.layers.index(layer), top + 1)


def _hide_missing_values(layer: Image) -> None:
    """Let napari's status bar show no value beyond the patches of a map, and beyond the wipe: it would show nan."""
    weak = ref(layer)  # the layer would keep itself alive

    def get_value(*position: Any, **options: Any) -> Any:
        present = weak()
        value = type(present).get_value(present, *position, **options) if present is not None else None
        return value if value is not None and np.isfinite(value) else None

    layer.get_value = get_value


def _link_maps(viewer: ViewerModel, path: Path) -> None:
    """Link the colours of both maps: keys and controls of napari change one layer, but both have one colour scale."""
    from napari.experimental import link_layers

    maps = map_layers(viewer, path)
    if len(maps) > 1:
        link_layers(maps, COLOUR_ATTRIBUTES)


def _select_map(viewer: ViewerModel, layer: Layer, active: Layer | None) -> None:
    """Select a map, unless the user draws on the layer that was active before: the tool would be lost."""
    is_drawing = active is not None and active in viewer.layers and active.mode not in MODES_WITHOUT_TOOL
    viewer.layers.selection.active = active if is_drawing else layer


def remove_attention(viewer: ViewerModel, path: Path) -> None:
    """Remove maps, evidence and picked patches of a slide."""
    roles = (*COVERING_ROLES, "picked")
    remove_layers(viewer, [layer for role in roles for layer in lrmil_layers(viewer, path, role=role)])
    arrange_views(viewer, path)


def show_picked_patches(viewer: ViewerModel, prediction: Prediction, slide: SlideChoice, rows: Int64 | None) -> None:
    """Outline LR patches in all views of their slide.

    Parameters
    ----------
    viewer, prediction, slide
        As for `refresh_attention`.
    rows
        Rows of the patches in the prediction; None or an empty array removes the outlines.
    """
    is_split = find_split_view(viewer, slide.path) is not None
    sides: tuple[Side, ...] = ("student", "teacher") if is_split else ("student",)
    if rows is None or len(rows) == 0:
        remove_layers(viewer, lrmil_layers(viewer, slide.path, role="picked"))
        return
    for side in sides:
        new = build_picked_layer(prediction, rows, slide.mpp, slide.given_mpp, side)
        present = _find_layer(viewer, slide.path, "picked", side)
        if present is None:
            add_layers(viewer, [new])
        else:
            update_layer(present, new)
    arrange_views(viewer, slide.path)


def show_evidence(
    viewer: ViewerModel,
    prediction: Prediction,
    slide: SlideChoice,
    name: str | None,
    style: AttentionStyle | None = None,
) -> None:
    """Show the evidence for a class instead of the student's attention.

    Parameters
    ----------
    viewer, prediction, slide
        As for `refresh_attention`.
    name
        Name of the class; None shows the attention again.
    style
        Style of the attention, for its caption.
    """
    present = _find_layer(viewer, slide.path, "evidence", "student")
    for layer in map_layers(viewer, slide.path):
        if layer not in lrmil_layers(viewer, side="teacher"):
            layer.visible = name is None
    if name is None:
        remove_layers(viewer, [present] if present is not None else [])
        arrange_views(viewer, slide.path)
        caption_maps(viewer, style)
        return
    new = build_evidence_layer(prediction, name, slide.mpp, slide.given_mpp)
    if present is None:
        [present] = add_layers(viewer, [new])
        _hide_missing_values(present)
        follow_colours(viewer, present)
        _raise_drawings(viewer, slide.path)
        show_colorbar(present)
        arrange_views(viewer, slide.path)
        show_title(present, bool(viewer.canvas.grid.enabled))
    else:
        update_layer(present, new)
    present.name = new[1]["name"]
    caption_evidence(viewer, present)
