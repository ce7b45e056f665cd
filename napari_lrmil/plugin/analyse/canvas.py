"""Canvas of the Analyse dock: shows the layers that the dock's state names, and follows what the user does by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.session.analyse_state import AnalyseState, LayerFact
from napari_lrmil.plugin.viewer.drawing_memory import DrawingMemory
from napari_lrmil.plugin.viewer.layers import get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.maps.captions import hide_caption_without_map
from napari_lrmil.plugin.viewer.maps.split_view import arrange_views, find_split_view
from napari_lrmil.plugin.viewer.navigation.camera import fit_slide
from napari_lrmil.plugin.viewer.navigation.places import PlaceMemory

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_lrmil.plugin.session.session import Session

SHOWN_BY_HAND = "This slide is shown because a layer of it was made visible."


class Canvas(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Applies an `AnalyseState` to the layers of this plugin. The widget itself is never shown.

    Layers of other slides than the shown one are hidden, and stay hidden. If the user makes one visible by hand, its
    slide is chosen. A layer of the shown slide that the user hides by hand stays hidden. Layers of other plugins are
    left alone. Each slide has a place of its own (position, zoom and rotation), to which the view returns. So do the
    drawn regions and the measured line of a slide that was closed, once it is open again.

    Parameters
    ----------
    viewer
        The viewer with the layers.
    session
        The session whose state is applied; another slide is chosen in it.
    parent
        The dock.
    """

    def __init__(self, viewer: ViewerModel, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self.setVisible(False)
        self._viewer, self._session = viewer, session
        self._applied: WeakKeyDictionary[Layer, bool | None] = WeakKeyDictionary()
        self._shown_path: Path | None = None
        self._places, self._drawings = PlaceMemory(viewer), DrawingMemory(viewer)
        self._has_split_grid = False  # whether napari's grid is on for student and teacher, and not by the user
        self._is_applying = False
        self._shown_by_hand: Path | None = None
        # With a delay of 0, several layers that are made visible at once count as one action.
        self._hand_timer = single_shot(self, 0, self._follow_hand)
        connect_until_destroyed(self, [(viewer.canvas.grid.events.enabled, self._on_grid_changed)])
        connect_until_destroyed(self, [(viewer.layers.events.removing, self._on_removing)])

    # ------------------------------------------------------------ facts

    def layer_facts(self) -> tuple[LayerFact, ...]:
        """Return the facts about the layers of this plugin, the lowest first."""
        return tuple(self._fact(layer) for layer in lrmil_layers(self._viewer))

    def _fact(self, layer: Layer) -> LayerFact:
        tag = get_tag(layer)
        if tag is None:
            raise ValueError(f"the layer {layer.name} is not of this plugin")
        was_hidden_by_hand = self._applied.get(layer) is True and not layer.visible
        return LayerFact(tag.role, tag.path, tag.side, was_hidden_by_hand)

    @property
    def is_grid_on(self) -> bool:
        """Whether the user switched napari's grid on, to see slides side by side."""
        if not self._viewer.canvas.grid.enabled or self._has_split_grid:
            return False
        slide = self._session.slide
        return slide is None or find_split_view(self._viewer, slide.path) is None

    # ------------------------------------------------------------ application

    def apply(self, state: AnalyseState) -> None:
        """Show and hide layers; move camera and selection if another slide is shown.

        Parameters
        ----------
        state
            State that was resolved with the present `layer_facts`.
        """
        path = state.slide.path if state.slide is not None else None
        has_changed = path != self._shown_path
        if has_changed:
            self._store_place()
        self._is_applying = True
        try:
            for layer, is_shown in zip(lrmil_layers(self._viewer), state.layers_shown, strict=True):
                self._watch(layer)
                self._show(layer, is_shown)
            self._arrange(state, path)
            hide_caption_without_map(self._viewer)
            self._select(path)
            if has_changed:
                self._enter(path)
        finally:
            self._is_applying = False

    def _show(self, layer: Layer, is_shown: bool | None) -> None:
        is_new_wish = layer not in self._applied or self._applied[layer] is not is_shown
        self._applied[layer] = is_shown
        if is_shown is not None and layer.visible != is_shown and (is_new_wish or not is_shown):
            layer.visible = is_shown

    def _arrange(self, state: AnalyseState, path: Path | None) -> None:
        grid = self._viewer.canvas.grid
        if state.is_split != self._has_split_grid or (state.is_split and path != self._shown_path):
            self._has_split_grid = state.is_split
            if state.is_split:
                arrange_views(self._viewer, path)
            elif grid.enabled:
                grid.enabled = False

    def _store_place(self) -> None:
        if self._shown_path is not None:
            self._places.leave(self._shown_path)

    def _on_removing(self, event: Any) -> None:
        """Keep what is drawn, and the place of the shown slide before its layer is removed: it knows the rotation."""
        layer = self._viewer.layers[event.index]
        self._drawings.keep(layer)
        tag = get_tag(layer)
        if tag is not None and tag.role == "slide" and tag.path == self._shown_path:
            self._store_place()

    def restore_drawings(self, before: set[Path]) -> bool:
        """Add what was drawn on slides that are open again, and return whether there was any.

        Parameters
        ----------
        before
            Slides that were open before.
        """
        return self._drawings.settle(before)

    def _select(self, path: Path | None) -> None:
        """Select a layer of the shown slide if one of another slide is active, or none: minimap and keys follow it."""
        selection = self._viewer.layers.selection
        tag = get_tag(selection.active) if selection.active is not None else None
        own = lrmil_layers(self._viewer, path) if path is not None else []
        if own and (tag.path != path if tag is not None else not selection):
            selection.active = next((layer for layer in reversed(own) if layer.visible), own[-1])

    def _enter(self, path: Path | None) -> None:
        """Move the camera to a slide: to where the user left it, or to all of it."""
        is_first, self._shown_path = self._shown_path is None, path
        if path is None:
            return
        is_new = not self._places.return_to(path)
        if is_new and (not is_first or len(self._session.slides) > 1):  # napari itself fits the first layer
            fit_slide(self._viewer, path)

    # ------------------------------------------------------------ what the user does by hand

    def _watch(self, layer: Layer) -> None:
        if layer not in self._applied:
            connect_until_destroyed(self, [(layer.events.visible, self._on_visible)])

    def _on_visible(self, event: Any) -> None:
        layer, slide = event.source, self._session.slide
        tag = get_tag(layer)
        if self._is_applying or tag is None:
            return
        if layer.visible and slide is not None and tag.path != slide.path and self._applied.get(layer) is False:
            self._shown_by_hand = tag.path
        self._hand_timer.start()

    def _on_grid_changed(self, _: Any = None) -> None:
        if not self._is_applying:
            self._hand_timer.start()

    def _follow_hand(self) -> None:
        """Choose the slide that the user made visible, or resolve the state anew."""
        path, self._shown_by_hand = self._shown_by_hand, None
        slides = [slide for slide in self._session.slides if slide.path == path]
        if slides and not self.is_grid_on:
            self._session.choose_slide(slides[0], SHOWN_BY_HAND)
        else:
            self._session.changed.emit()
