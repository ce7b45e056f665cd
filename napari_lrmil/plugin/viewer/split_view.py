"""Arrangement of layers: one view of a slide, or student and teacher side by side with linked cameras.

napari's grid fills its cells with runs of `stride` layers from the bottom of the list, left to right. One camera
moves all cells. The student's layers therefore come first, the teacher's second, and both sides have equally many.

Own code on top of that grid: napari's plugins for slides have no split view.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from napari_lrmil.plugin.viewer.attention_layers import (
    AttentionStyle,
    CompareMode,
    build_evidence_layer,
    build_map_layers,
    build_picked_layer,
)
from napari_lrmil.plugin.viewer.layers import (
    MAP_ROLES,
    LayerData,
    RoleAndSide,
    add_layers,
    copy_for_teacher_view,
    follow_rotation,
    get_tag,
    lrmil_layers,
    remove_layers,
    slide_affine,
    update_layer,
)
from napari_lrmil.plugin.viewer.navigation import fit_slide

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer
    from napari.utils.events import Event

    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.viewer.layers import Side

VIEW_ROLES = ("underlay", "slide", "attention", "picked")  # bottom first
COLOUR_ATTRIBUTES = ("colormap", "contrast_limits", "gamma", "interpolation2d")  # each map can be faded by itself
SPACING_PX = 6
MODES_WITHOUT_TOOL = ("pan_zoom", "transform")
# Sides of the wipe on the screen, clockwise from the right by an eighth of a turn each.
WIPE_SIDES: tuple[str, ...] = ("right of", "to the lower right of", "below", "to the lower left of", "left of")
WIPE_SIDES += ("to the upper left of", "above", "to the upper right of")
CAPTION_PREFIX, CAPTION_WIDTH = "Colour: ", 44  # letters per line
LETTER_PX = 8  # of the caption, a little more than the mean of 7.4 under 96 dpi
SCALE_BAR_PX = 190  # napari's scale bar, 150 at most, with the padding of bar and caption


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
        path = _slide_path(attention)
        pairs = {
            role: (_find_layer(viewer, path, role, "student"), _find_layer(viewer, path, role, "teacher"))
            for role in VIEW_ROLES
        }
        complete = {role: (s, t) for role, (s, t) in pairs.items() if s is not None and t is not None}
        if "slide" in complete and "attention" in complete:
            return SplitView(tuple(s for s, _ in complete.values()), tuple(t for _, t in complete.values()))
    return None


def _slide_path(layer: Layer) -> Path | None:
    tag = get_tag(layer)
    return tag.path if tag else None


def _map_layers(viewer: ViewerModel, path: Path | None = None) -> list[Image]:
    """Return the maps of one slide or of all, in the order in which they are drawn."""
    maps = [layer for role in MAP_ROLES for layer in lrmil_layers(viewer, path, role=role)]
    return [layer for layer in viewer.layers if layer in maps]


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
    split = {_slide_path(layer) for layer in lrmil_layers(viewer, role="attention", side="teacher")}
    roles = ("underlay", "slide", "picked")
    of_teacher = [layer for role in roles for layer in lrmil_layers(viewer, role=role, side="teacher")]
    orphans = [layer for layer in of_teacher if _slide_path(layer) not in split]
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
    own = _by_role(_map_layers(viewer, slide.path))
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
    open_paths = {_slide_path(layer) for layer in lrmil_layers(viewer, role="slide")}
    return [layer for layer in _map_layers(viewer) if _slide_path(layer) not in open_paths]


def _replace_maps(viewer: ViewerModel, slide: SlideChoice, maps: Mapping[RoleAndSide, LayerData]) -> None:
    """Replace the maps of a slide; `add_legends` adds titles and legend afterwards."""
    had_maps = bool(_map_layers(viewer, slide.path))
    was_split, camera = bool(viewer.canvas.grid.enabled), viewer.scene.camera
    centre, zoom, active = camera.center, camera.zoom, viewer.layers.selection.active
    remove_attention(viewer, slide.path)
    layers = add_layers(viewer, [layer for (_, side), layer in maps.items() if side == "student"])
    if ("attention", "teacher") in maps:
        below = [_find_layer(viewer, slide.path, role, "student") for role in VIEW_ROLES[:2]]
        copies: list[LayerData] = [copy_for_teacher_view(layer) for layer in below if layer is not None]
        add_layers(viewer, [*copies, maps["attention", "teacher"]])
    for layer in _map_layers(viewer, slide.path):
        _hide_missing_values(layer)
    _link_maps(viewer, slide.path)
    _raise_lines(viewer, slide.path)
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


def _raise_lines(viewer: ViewerModel, path: Path) -> None:
    """Move a measured line of a slide above the maps, which have been added after it."""
    for layer in lrmil_layers(viewer, path, role="distance"):
        viewer.layers.move(viewer.layers.index(layer), len(viewer.layers))


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

    maps = _map_layers(viewer, path)
    if len(maps) > 1:
        link_layers(maps, COLOUR_ATTRIBUTES)


def _select_map(viewer: ViewerModel, layer: Layer, active: Layer | None) -> None:
    """Select a map, unless the user draws on the layer that was active before: the tool would be lost."""
    is_drawing = active is not None and active in viewer.layers and active.mode not in MODES_WITHOUT_TOOL
    viewer.layers.selection.active = active if is_drawing else layer


def remove_attention(viewer: ViewerModel, path: Path) -> None:
    """Remove maps, evidence and picked patches of a slide."""
    roles = (*MAP_ROLES, "evidence", "picked")
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
    for layer in _map_layers(viewer, slide.path):
        if layer not in lrmil_layers(viewer, side="teacher"):
            layer.visible = name is None
    if name is None:
        remove_layers(viewer, [present] if present is not None else [])
        _show_map_caption(viewer, style)
        return
    new = build_evidence_layer(prediction, name, slide.mpp, slide.given_mpp)
    if present is None:
        [present] = add_layers(viewer, [new])
        _hide_missing_values(present)
        _raise_lines(viewer, slide.path)
        _show_colorbar(present)
    else:
        update_layer(present, new)
    present.name = new[1]["name"]
    _set_caption(viewer, f"evidence for {name} (logit): orange raises it, blue lowers it")


# ---------------------------------------------------------------- titles, colour bar, caption


def add_legends(viewer: ViewerModel, style: AttentionStyle | None = None) -> Iterator[None]:
    """Add titles to a split view, and the colour bar that holds for all views to the last one, step by step.

    The caller takes one step per turn of the event loop. A step takes the window a few hundredths of a second,
    because letters are rendered for the first time.

    Parameters
    ----------
    viewer
        The viewer.
    style
        Style of the attention, for its caption.
    """
    visible = [layer for layer in _map_layers(viewer) if layer.visible]
    is_split = bool(viewer.canvas.grid.enabled)
    for layer in visible:
        if layer.name_overlay.visible != is_split:
            layer.name_overlay.font_size, layer.name_overlay.visible = 10, is_split
            yield
    for layer in visible:
        if layer.colorbar.visible != (layer is visible[-1]):
            _show_colorbar(layer, layer is visible[-1])  # one is enough: all maps share their limits
            yield
    if visible:
        _show_map_caption(viewer, style)


def _show_colorbar(layer: Image, visible: bool = True) -> None:
    colorbar = layer.colorbar
    colorbar.position, colorbar.size, colorbar.font_size, colorbar.visible = "top_right", (18, 150), 9, visible


def _show_map_caption(viewer: ViewerModel, style: AttentionStyle | None) -> None:
    """Show the meaning of the colours of the present maps."""
    from napari_lrmil.core.visualize.comparison_figure import DIFFERENCE_LEGEND
    from napari_lrmil.core.visualize.overlay import SCALE_LEGENDS

    meaning = SCALE_LEGENDS[style.mode if style else "raw"]
    if lrmil_layers(viewer, role="difference"):
        meaning = f"{DIFFERENCE_LEGEND}; orange: the student looks more"
    elif lrmil_layers(viewer, role="wipe"):
        meaning += f"; {_describe_wipe(viewer)}"
    _set_caption(viewer, meaning)


def _describe_wipe(viewer: ViewerModel) -> str:
    """Return on which side of the wipe each map is on the screen; the slide may be rotated."""
    path = _slide_path(lrmil_layers(viewer, role="wipe")[0])
    down, right = -slide_affine(_find_layer(viewer, path, "slide", "student"))[:2, 1]  # towards the slide's left edge
    eighth = round(math.atan2(down, right) / (math.pi / 4))
    student, teacher = WIPE_SIDES[eighth % 8], WIPE_SIDES[(eighth + 4) % 8]
    return f"student {student} the wipe, teacher {teacher} it"


def update_caption(viewer: ViewerModel, style: AttentionStyle | None) -> None:
    """Adapt the caption of the maps to the rotation of the slide; nothing happens if another caption is shown."""
    caption = viewer.canvas.overlays.text
    is_shown = caption.visible and caption.opacity > 0 and caption.text.startswith(CAPTION_PREFIX)
    if is_shown and not lrmil_layers(viewer, role="evidence") and lrmil_layers(viewer, role="wipe"):
        _show_map_caption(viewer, style)


def prepare_caption(viewer: ViewerModel) -> None:
    """Render the letters of the caption invisibly, so that the first analysis does not wait for them.

    From here on the caption fits the canvas at every size.
    """
    viewer.canvas.events.size.connect(_fit_caption)  # once, however often it is called
    if not viewer.canvas.overlays.text.visible:
        _show_map_caption(viewer, None)
        _hide_caption(viewer)


def hide_caption_without_map(viewer: ViewerModel) -> None:
    """Hide the caption of a map if no map is visible."""
    roles = (*MAP_ROLES, "evidence")
    maps = [layer for role in roles for layer in lrmil_layers(viewer, role=role) if layer.visible]
    if not maps and viewer.canvas.overlays.text.text.startswith(CAPTION_PREFIX):
        _hide_caption(viewer)


def _hide_caption(viewer: ViewerModel) -> None:
    """Make the caption and its box transparent instead of invisible: its letters stay rendered."""
    caption = viewer.canvas.overlays.text
    caption.opacity, caption.box = 0.0, False


def _set_caption(viewer: ViewerModel, meaning: str) -> None:
    caption, (text, position) = (
        viewer.canvas.overlays.text,
        place_caption(CAPTION_PREFIX + meaning, viewer.canvas.size[1]),
    )
    if (caption.text, caption.position, caption.visible, caption.opacity) == (text, position, True, 1.0):
        return
    caption.text, caption.opacity, caption.box = text, 1.0, True
    caption.position, caption.font_size, caption.visible = position, 8, True


def place_caption(text: str, width_px: float) -> tuple[str, str]:
    """Return a caption in lines, and its position, at which it does not reach the scale bar at the bottom right.

    Where there is no room beside the bar, the caption has the bar's position: napari stacks what is at one position.

    Parameters
    ----------
    text
        The caption; its lines are broken anew.
    width_px
        Width of the canvas in logical pixels.
    """
    letters = max(1, min(CAPTION_WIDTH, int(width_px / LETTER_PX) - 3))  # with padding
    lines = fill(" ".join(text.split()), letters)
    longest = max(map(len, lines.splitlines()))
    has_room = longest * LETTER_PX + SCALE_BAR_PX <= width_px
    return lines, "bottom_left" if has_room else "bottom_right"


def _fit_caption(event: Event) -> None:
    """Fit the caption to the new size of the canvas that sends the event."""
    caption = event.source.overlays.text
    if caption.text.startswith(CAPTION_PREFIX):
        caption.text, caption.position = place_caption(caption.text, event.source.size[1])
