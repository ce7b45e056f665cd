"""Titles, colour bar and caption of maps: what their colours mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from inspect import unwrap
from textwrap import fill
from typing import TYPE_CHECKING
from weakref import ref

from napari_lrmil.plugin.viewer.layers import MAP_ROLES, get_tag, lrmil_layers, map_layers, slide_affine, slide_path
from napari_lrmil.plugin.viewer.maps.attention_layers import AttentionStyle, difference_colormap, evidence_colormap

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image
    from napari.utils.events import Event

# Sides of the wipe on the screen, clockwise from the right by an eighth of a turn each.
WIPE_SIDES: tuple[str, ...] = ("right of", "to the lower right of", "below", "to the lower left of", "left of")
WIPE_SIDES += ("to the upper left of", "above", "to the upper right of")
CAPTION_PREFIX, CAPTION_WIDTH = "Colour: ", 44  # letters per line
LETTER_PX = 8  # of the caption, a little more than the mean of 7.4 under 96 dpi
SCALE_BAR_PX = 190  # napari's scale bar, 150 at most, with the padding of bar and caption


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
    visible = [layer for layer in map_layers(viewer) if layer.visible]
    is_split = bool(viewer.canvas.grid.enabled)
    for layer in visible:
        if layer.name_overlay.visible != is_split:
            show_title(layer, is_split)
            yield
    for layer in visible:
        if layer.colorbar.visible != (layer is visible[-1]):
            show_colorbar(layer, layer is visible[-1])  # one is enough: all maps share their limits
            yield
    if visible:
        caption_maps(viewer, style)


def show_title(layer: Image, visible: bool) -> None:
    """Show or hide the name of a map in its view."""
    layer.name_overlay.font_size, layer.name_overlay.visible = 10, visible


def show_colorbar(layer: Image, visible: bool = True) -> None:
    """Show or hide the colour bar of a map, in the size and at the place of all maps."""
    colorbar = layer.colorbar
    colorbar.position, colorbar.size, colorbar.font_size, colorbar.visible = "top_right", (18, 150), 9, visible


def caption_maps(viewer: ViewerModel, style: AttentionStyle | None) -> None:
    """Show the meaning of the colours of the present maps; the style is that of attention."""
    from napari_lrmil.core.visualize.comparison_figure import DIFFERENCE_LEGEND
    from napari_lrmil.core.visualize.overlay import SCALE_LEGENDS

    meaning = SCALE_LEGENDS[style.mode if style else "raw"]
    differences = lrmil_layers(viewer, role="difference")
    if differences:
        more = "orange" if _has_own_colours(differences[0]) else "above 0"
        meaning = f"{DIFFERENCE_LEGEND}; {more}: the student looks more"
    elif lrmil_layers(viewer, role="wipe"):
        meaning += f"; {_describe_wipe(viewer)}"
    _set_caption(viewer, meaning)


def caption_evidence(viewer: ViewerModel, layer: Image) -> None:
    """Show the meaning of the colours of a map of evidence."""
    more, less = ("orange", "blue") if _has_own_colours(layer) else ("above 0", "below 0")
    meaning = f"{layer.name[:1].lower()}{layer.name[1:]} (logit): {more} raises it, {less} lowers it"
    has_teacher_view = bool(lrmil_layers(viewer, slide_path(layer), role="attention", side="teacher"))
    _set_caption(viewer, f"{meaning}; right: the teacher's attention" if has_teacher_view else meaning)


def _has_own_colours(layer: Image) -> bool:
    """Return whether a signed map has its own colours, and not others that somebody chose in napari."""
    return layer.colormap.name in (difference_colormap().name, evidence_colormap().name)


def follow_colours(viewer: ViewerModel, layer: Image) -> None:
    """Adapt the caption whenever somebody chooses other colours for a signed map: the caption names its colours."""
    tag = get_tag(layer)
    if tag is None or tag.role not in ("difference", "evidence"):
        return
    role, weak_viewer, weak_layer = tag.role, ref(unwrap(viewer)), ref(layer)  # a layer must not hold the viewer

    def on_colours_changed(_: Event) -> None:
        present, shown = weak_viewer(), weak_layer()
        if present is None or shown is None or not shown.visible:
            return
        if role == "evidence":
            caption_evidence(present, shown)
        else:
            caption_maps(present, None)

    layer.events.colormap.connect(on_colours_changed)


def _describe_wipe(viewer: ViewerModel) -> str:
    """Return on which side of the wipe each map is on the screen; the slide may be rotated."""
    path = slide_path(lrmil_layers(viewer, role="wipe")[0])
    slides = lrmil_layers(viewer, path, role="slide", side="student")  # none if it was removed by hand
    down, right = -slide_affine(slides[0] if slides else None)[:2, 1]  # towards the slide's left edge
    eighth = round(math.atan2(down, right) / (math.pi / 4))
    student, teacher = WIPE_SIDES[eighth % 8], WIPE_SIDES[(eighth + 4) % 8]
    return f"student {student} the wipe, teacher {teacher} it"


def update_caption(viewer: ViewerModel, style: AttentionStyle | None) -> None:
    """Adapt the caption of the maps to the rotation of the slide; nothing happens if another caption is shown."""
    caption = viewer.canvas.overlays.text
    is_shown = caption.visible and caption.opacity > 0 and caption.text.startswith(CAPTION_PREFIX)
    if is_shown and not lrmil_layers(viewer, role="evidence") and lrmil_layers(viewer, role="wipe"):
        caption_maps(viewer, style)


def prepare_caption(viewer: ViewerModel) -> None:
    """Render the letters of the caption invisibly, so that the first analysis does not wait for them.

    From here on the caption fits the canvas at every size.
    """
    viewer.canvas.events.size.connect(_fit_caption)  # once, however often it is called
    if not viewer.canvas.overlays.text.visible:
        caption_maps(viewer, None)
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
