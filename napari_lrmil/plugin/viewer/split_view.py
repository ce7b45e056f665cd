"""Which layers lie in which view: one view of a slide, or student and teacher side by side with linked cameras.

napari's grid fills its cells with runs of `stride` layers from the bottom of the list, left to right, and one camera
drives all of them. So the student's layers come first, the teacher's second, and both are equally many.

Own code on top of that grid: napari's plugins for slides have no split view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

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
    get_tag,
    lrmil_layers,
    remove_layers,
    update_layer,
)

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Layer

    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.viewer.layers import Side

VIEW_ROLES = ("underlay", "slide", "attention", "picked")  # bottom first
SPACING_PX = 6
CAPTION_PREFIX, CAPTION_WIDTH = "Colour: ", 44  # in a line: beside the scale bar there is no room for more


@dataclass(frozen=True)
class SplitView:
    """The layers of the two views, bottom first, role by role the same."""

    student: tuple[Image, ...]
    teacher: tuple[Image, ...]

    @property
    def layers(self) -> tuple[Image, ...]:
        """All of them in the order in which the grid wants them."""
        return self.student + self.teacher


def find_split_view(viewer: ViewerModel) -> SplitView | None:
    """Return the two views where a slide has a student's and a teacher's attention, else None."""
    for attention in lrmil_layers(viewer, role="attention", side="teacher"):
        path = _path(attention)
        pairs = [(_first(viewer, path, role, "student"), _first(viewer, path, role, "teacher")) for role in VIEW_ROLES]
        whole = [(s, t) for s, t in pairs if s is not None and t is not None]
        if pairs[1] in whole and pairs[2] in whole:
            return SplitView(tuple(s for s, _ in whole), tuple(t for _, t in whole))
    return None


def _path(layer: Layer) -> Path | None:
    tag = get_tag(layer)
    return tag.path if tag else None


def _maps(viewer: ViewerModel, path: Path | None = None) -> list[Image]:
    """Return the maps that there are, in the order in which they are drawn."""
    found = [layer for role in MAP_ROLES for layer in lrmil_layers(viewer, path, role=role)]
    return [layer for layer in viewer.layers if layer in found]


def _first(viewer: ViewerModel, path: Path | None, role: str, side: str) -> Image | None:
    return next(iter(lrmil_layers(viewer, path, role=role, side=side)), None)


def arrange_views(viewer: ViewerModel) -> None:
    """Bring order and grid in line with the layers there are; call it whenever layers came or went."""
    _tie_underlays(viewer)
    caption = viewer.canvas.overlays.text
    if caption.text.startswith(CAPTION_PREFIX) and not _maps(viewer):
        _hush(viewer)
    views = find_split_view(viewer)
    if views is None:
        _leave_grid(viewer)
        return
    _order(viewer, views.layers)
    for layer in lrmil_layers(viewer):
        if layer not in views.layers:
            layer.visible = False  # a visible one would open a third view
    if viewer.canvas.grid.stride != len(views.student):
        viewer.canvas.grid.stride = len(views.student)
    viewer.canvas.grid.shape = (1, -1)
    viewer.canvas.grid.spacing = SPACING_PX
    viewer.canvas.grid.enabled = True


def _tie_underlays(viewer: ViewerModel) -> None:
    """Let a slide and the coarse layer beneath it show and hide together."""
    from napari.experimental import link_layers

    for underlay in lrmil_layers(viewer, role="underlay"):
        tag = get_tag(underlay)
        slide = _first(viewer, tag.path, "slide", tag.side) if tag else None
        if slide is not None:
            link_layers([underlay, slide], ("visible", "opacity"))


def _leave_grid(viewer: ViewerModel) -> None:
    """Take what only the teacher's view needed away; a grid that is not ours stays as it is."""
    lonely = [
        layer for role in ("underlay", "slide", "picked") for layer in lrmil_layers(viewer, role=role, side="teacher")
    ]
    if lonely:
        remove_layers(viewer, lonely)
        viewer.canvas.grid.enabled = False


def _order(viewer: ViewerModel, wanted: tuple[Image, ...]) -> None:
    now = [layer for layer in viewer.layers if layer in wanted]
    if list(viewer.layers[: len(wanted)]) != list(wanted) or now != list(wanted):
        rest = [layer for layer in viewer.layers if layer not in wanted]
        viewer.layers.move_multiple([viewer.layers.index(layer) for layer in (*wanted, *rest)], 0)


def show_attention(
    viewer: ViewerModel,
    prediction: Prediction,
    slide: SlideChoice,
    look: AttentionStyle | None = None,
    pairing: CompareMode | None = None,
) -> None:
    """Lay the attention over its slide, and the teacher's to it where it ran; layers of the last run are kept.

    A layer made anew costs the window a tenth of a second, and would lose what the user did to the old one.
    """
    for layer in lrmil_layers(viewer):
        layer.visible = _path(layer) == slide.path  # slides share their corner, so another one would lie over this one
    refresh_attention(viewer, prediction, slide, look, pairing)


def _lay(viewer: ViewerModel, slide: SlideChoice, made: Mapping[RoleAndSide, LayerData]) -> None:
    """Add the maps of a prediction in place of those there were; `dress` gives them names and legend."""
    there = bool(_maps(viewer, slide.path))
    was_beside, camera = bool(viewer.canvas.grid.enabled), viewer.scene.camera
    centre, zoom = camera.center, camera.zoom
    remove_attention(viewer, slide.path)
    layers = add_layers(viewer, [layer for place, layer in made.items() if place[1] == "student"])
    if ("attention", "teacher") in made:
        found = [_first(viewer, slide.path, role, "student") for role in VIEW_ROLES[:2]]
        copies: list[LayerData] = [copy_for_teacher_view(layer) for layer in found if layer is not None]
        add_layers(viewer, [*copies, made["attention", "teacher"]])
    arrange_views(viewer)
    viewer.layers.selection.active = layers[0]
    beside = bool(viewer.canvas.grid.enabled)
    if beside != was_beside and there:  # the place stays, in a view half or twice as wide
        camera.center, camera.zoom = centre, zoom * (0.5 if beside else 2.0)
    elif beside != was_beside:
        viewer.reset_view()
    if was_beside and not beside:
        for layer in lrmil_layers(viewer, slide.path, role="drawn"):
            layer.visible = True  # two views have no place for it


def remove_attention(viewer: ViewerModel, path: Path) -> None:
    """Take the results of an earlier run away."""
    old = [layer for role in (*MAP_ROLES, "evidence", "picked") for layer in lrmil_layers(viewer, path, role=role)]
    remove_layers(viewer, old)
    arrange_views(viewer)


def refresh_attention(
    viewer: ViewerModel,
    prediction: Prediction,
    slide: SlideChoice,
    look: AttentionStyle | None = None,
    pairing: CompareMode | None = None,
) -> None:
    """Show a prediction in the layers of the last one where there are any: nothing flickers, the camera stays."""
    tags = {layer: get_tag(layer) for layer in _maps(viewer, slide.path)}
    there = {(tag.role, tag.side): layer for layer, tag in tags.items() if tag is not None}
    made = build_map_layers(prediction, slide.mpp, slide.given_mpp, look, pairing)
    if set(there) != set(made):
        _lay(viewer, slide, made)
        return
    for place, layer in there.items():
        update_layer(layer, made[place])


def show_picked_patches(viewer: ViewerModel, prediction: Prediction, slide: SlideChoice, rows: Int64 | None) -> None:
    """Outline LR patches, given as rows of a prediction, in all views of its slide; None or no row outlines nothing."""
    sides: tuple[Side, ...] = ("student", "teacher") if find_split_view(viewer) is not None else ("student",)
    if rows is None or len(rows) == 0:
        remove_layers(viewer, lrmil_layers(viewer, slide.path, role="picked"))
        return
    for side in sides:
        made = build_picked_layer(prediction, rows, slide.mpp, slide.given_mpp, side)
        there = _first(viewer, slide.path, "picked", side)
        if there is None:
            add_layers(viewer, [made])
        else:
            update_layer(there, made)
    arrange_views(viewer)


def show_evidence(
    viewer: ViewerModel,
    prediction: Prediction,
    slide: SlideChoice,
    name: str | None,
    look: AttentionStyle | None = None,
) -> None:
    """Show the evidence for a class in place of the student's attention; None shows the attention again."""
    there = _first(viewer, slide.path, "evidence", "student")
    for layer in _maps(viewer, slide.path):
        if layer not in lrmil_layers(viewer, side="teacher"):
            layer.visible = name is None
    if name is None:
        remove_layers(viewer, [there] if there is not None else [])
        _caption(viewer, look)
        return
    made = build_evidence_layer(prediction, name, slide.mpp, slide.given_mpp)
    if there is None:
        [there] = add_layers(viewer, [made])
        _bar(there)
    else:
        update_layer(there, made)
    there.name = made[1]["name"]
    _say(viewer, f"evidence for {name} (logit), blue against, orange for")


def add_legends(viewer: ViewerModel, look: AttentionStyle | None = None) -> Iterator[None]:
    """Name the views where there are two, and give the last one the legend that holds for all, a step at a time.

    Each step takes the window a few hundredths of a second where letters are drawn for the first time.
    """
    shown = [layer for layer in _maps(viewer) if layer.visible]
    beside = bool(viewer.canvas.grid.enabled)
    for layer in shown:
        if layer.name_overlay.visible != beside:
            layer.name_overlay.font_size, layer.name_overlay.visible = 10, beside
            yield
    for layer in shown:
        if layer.colorbar.visible != (layer is shown[-1]):
            _bar(layer, layer is shown[-1])
            yield
    if shown:
        _caption(viewer, look)


def _bar(layer: Image, visible: bool = True) -> None:
    bar = layer.colorbar
    bar.position, bar.size, bar.font_size, bar.visible = "top_right", (18, 150), 9, visible


def _caption(viewer: ViewerModel, look: AttentionStyle | None) -> None:
    """Say what the colours mean, by the maps that there are."""
    from napari_lrmil.core.visualize.comparison_figure import DIFFERENCE_LEGEND
    from napari_lrmil.core.visualize.overlay import SCALE_LEGENDS

    meaning = SCALE_LEGENDS[look.mode if look else "raw"]
    if lrmil_layers(viewer, role="difference"):
        meaning = f"{DIFFERENCE_LEGEND}; orange: the student looks more"
    elif lrmil_layers(viewer, role="wipe"):
        meaning += "; student left of the wipe, teacher right of it"
    _say(viewer, meaning)


def prepare_caption(viewer: ViewerModel) -> None:
    """Have the letters of the caption drawn where nobody sees them, so that a first analysis need not wait for them."""
    caption = viewer.canvas.overlays.text
    if not caption.visible:
        _caption(viewer, None)
        _hush(viewer)


def _hush(viewer: ViewerModel) -> None:
    """Let nobody see the caption, its box neither; its letters stay drawn."""
    caption = viewer.canvas.overlays.text
    caption.opacity, caption.box = 0.0, False


def _say(viewer: ViewerModel, meaning: str) -> None:
    caption, text = viewer.canvas.overlays.text, fill(CAPTION_PREFIX + meaning, CAPTION_WIDTH)
    if (caption.text, caption.visible, caption.opacity) == (text, True, 1.0):
        return
    caption.text, caption.opacity, caption.box = text, 1.0, True
    caption.position, caption.font_size, caption.visible = "bottom_left", 8, True
