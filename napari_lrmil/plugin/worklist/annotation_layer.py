"""Layer of a reviewer's annotations of the slide that is shown, stored as they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QObject

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.worklist.annotation_file import (
    ANNOTATION_CLASSES,
    AnnotationFile,
    annotation_path,
    class_colour,
    with_class,
)
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.viewer.layers import (
    LayerTag,
    add_layers,
    build_region_layer,
    get_tag,
    lrmil_layers,
    remove_layers,
)
from napari_lrmil.plugin.viewer.navigation.camera import um_per_unit
from napari_lrmil.plugin.viewer.region_shapes import regions_from_shapes, shapes_from_regions

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Shapes

    from napari_lrmil.core.patching.regions import Region
    from napari_lrmil.core.slides.slide import Slide

CLASS = "class"  # column of the layer's features
FACE_OPACITY = 0.12  # the tissue inside a region has to stay readable
TEXT_OPTIONS = {"string": f"{{{CLASS}}}", "size": 10, "color": "black", "anchor": "upper_left"}
SELECTING = ("select", "direct")  # modes of the layer in which a user selects shapes by hand
EDGE_PX = 2  # of outlines on the screen, at any zoom
EDGE_DELAY_MS, EDGE_TOLERANCE = 100, 0.1  # a zoom has many steps; a width within the tolerance (relative) stays
SAVE_DELAY_MS = 50  # napari emits several events while one shape is drawn


class AnnotationLayer:
    """Annotations of one reviewer on one slide at a time.

    Parameters
    ----------
    viewer
        The viewer.
    show_error
        Receives sentences on what could not be stored.
    show_count
        Receives the number of annotations.
    show_drawing
        Receives whether a drawing tool of the layer is on.
    parent
        Parent of the timer.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        show_error: Callable[[str], None],
        show_count: Callable[[int], None],
        show_drawing: Callable[[bool], None],
        parent: QObject,
    ) -> None:
        self._viewer, self._show_error, self._show_count = viewer, show_error, show_count
        self._show_drawing = show_drawing
        self._file: AnnotationFile | None = None
        self._slide: Slide | None = None
        self._layer: Shapes | None = None
        self._class = next(iter(ANNOTATION_CLASSES))  # of the next region
        self._was_drawing = False
        self._timer = single_shot(parent, SAVE_DELAY_MS, self.save)
        self._edge_timer = single_shot(parent, EDGE_DELAY_MS, self._fit_edges)

    def open(self, results: Path, name: str, slide: Slide, reviewer: str) -> None:
        """Show the stored annotations of a slide; the layer is added when there is one, or when drawing starts.

        Parameters
        ----------
        results
            Folder of all results.
        name
            Name of the slide's results.
        slide
            The slide, open.
        reviewer
            Name of the reviewer; without one nothing is read.
        """
        self.close()
        self._slide = slide
        self._file = AnnotationFile(annotation_path(results, name, reviewer)) if reviewer else None
        regions: tuple[Region, ...] = ()
        if self._file is not None:
            try:
                regions = self._file.read(slide.bounds)
            except LrmilError as error:  # stored by another program: it is neither shown nor replaced
                self._file = None
                self._show_error(str(error))
        before = lrmil_layers(self._viewer, slide.path, role="annotation")
        if before:  # of another reviewer, or what was on the canvas before the user opened another slide
            remove_layers(self._viewer, before)
        if regions:
            self._add_layer(regions)
        self._show_count(len(regions))

    def close(self) -> None:
        """Store what is not stored yet, and forget the slide. Its layers are removed by whoever closes the slide.

        A region that is being drawn is finished: what the user drew on the layer from now on would not be stored.
        """
        self.stop_drawing()
        if self._timer.isActive():
            self._timer.stop()
            self.save()
        self._edge_timer.stop()
        self._viewer.scene.camera.events.zoom.disconnect(self._on_zoom)
        self._viewer.layers.selection.events.active.disconnect(self._show_tool)
        self._file, self._slide, self._layer = None, None, None
        self._show_tool()

    @property
    def is_open(self) -> bool:
        """Whether annotations of a slide can be shown and drawn."""
        return self._slide is not None

    def start_drawing(self, name: str) -> None:
        """Select the layer and its polygon tool, for a region of an annotation class."""
        if self._slide is None or self._file is None:
            self._show_tool()
            return
        if self._layer is None or self._layer not in self._viewer.layers:
            self._add_layer(())
        if self._layer is not None:
            self._viewer.layers.selection.active = self._layer
            self._layer.mode = "add_polygon"  # deselects
        self.set_next_class(name)
        self._show_tool()

    def stop_drawing(self) -> None:
        """Let the mouse move the slide again."""
        if self._layer is not None and self._layer in self._viewer.layers:
            self._layer.mode = "pan_zoom"
        self._show_tool()

    def _show_tool(self, _: Any = None) -> None:
        layer = self._layer
        is_active = layer is not None and self._viewer.layers.selection.active is layer
        self._show_drawing(is_active and layer is not None and layer.mode.startswith("add_"))

    def set_next_class(self, name: str) -> None:
        """Set the class of the regions that are drawn from now on; an empty name keeps the class before."""
        self._class = name.strip() or self._class
        layer = self._layer
        if layer is None:
            return
        layer.feature_defaults = {CLASS: self._class}
        with layer.block_update_properties():  # else napari recolours the selected regions
            layer.current_edge_color, layer.current_face_color = _edge_colour(self._class), _face_colour(self._class)

    def choose_class(self, name: str) -> int:
        """Set the class of the next region, and of finished ones only if the user has selected them by hand.

        napari selects a region while it is drawn; that one keeps its class.

        Parameters
        ----------
        name
            The class.

        Returns
        -------
        int
            Number of finished regions that have another class now.
        """
        layer, name = self._layer, name.strip()
        is_selecting = layer is not None and layer in self._viewer.layers and layer.mode in SELECTING
        changed = self._reclass(layer, name) if layer is not None and is_selecting and name else 0
        self.set_next_class(name)
        return changed

    def _reclass(self, layer: Shapes, name: str) -> int:
        rows = [row for row in sorted(layer.selected_data) if layer.features[CLASS].iloc[row] != name]
        if rows:
            features = layer.features.copy()
            features.loc[rows, CLASS] = name
            layer.features = features  # napari sets the default of the column too
            layer.current_edge_color, layer.current_face_color = _edge_colour(name), _face_colour(name)
            self._timer.start()
        return len(rows)

    def _on_mode(self, layer: Shapes, _: Any = None) -> None:
        if self._layer is None or layer is not self._layer:
            return
        if self._was_drawing:  # the last region is still selected, but not by hand
            layer.selected_data.clear()
        self._was_drawing = layer.mode.startswith("add_")
        if self._was_drawing:
            self.set_next_class(self._class)  # a selection has set the colour of the selected region
        self._show_tool()

    def save(self) -> None:
        """Store the annotations."""
        layer, slide, file = self._layer, self._slide, self._file
        if layer is None or slide is None or file is None:
            return
        regions, shown = [], next(iter(lrmil_layers(self._viewer, slide.path, role="slide")), None)
        for row in range(layer.nshapes):
            name = str(layer.features[CLASS].iloc[row])
            regions += [with_class(region, name) for region in regions_from_shapes(layer, slide.mpp, [row], shown)]
        try:
            file.write(regions, slide.bounds)
        except LrmilError as error:
            self._show_error(str(error))
        self._show_count(len(regions))

    def _add_layer(self, regions: tuple[Region, ...]) -> None:
        slide = self._slide
        if slide is None:
            return
        tags = [get_tag(layer) for layer in lrmil_layers(self._viewer, slide.path, role="slide")]
        tag = next((tag for tag in tags if tag is not None), LayerTag("slide", slide.path, slide.mpp.mean))
        data, options, kind = build_region_layer(tag, max(slide.width * slide.mpp.x, slide.height * slide.mpp.y))
        own = LayerTag("annotation", tag.path, tag.mpp, tag.given_mpp)
        features = {CLASS: np.empty(0, dtype=object)}  # napari takes no default of a column that it does not have
        options |= {"name": "Annotations", "metadata": own.as_metadata(), "features": features, "text": TEXT_OPTIONS}
        options["edge_width"] = self._edge_width_um()
        [layer] = add_layers(self._viewer, [(data, options, kind)])
        self._layer, self._was_drawing = layer, False
        for region in regions:
            self._add_region(layer, region, slide)
        self.set_next_class(self._class)
        self._viewer.layers.selection.events.active.connect(self._show_tool)
        self._viewer.scene.camera.events.zoom.connect(self._on_zoom)
        layer.events.mode.connect(partial(self._on_mode, layer))
        layer.events.data.connect(partial(self._on_edited, layer))

    def _add_region(self, layer: Shapes, region: Region, slide: Slide) -> None:
        layer.feature_defaults = {CLASS: region.name}
        corners, shape_types = zip(*shapes_from_regions([region], slide.mpp), strict=True)
        colours = {"edge_color": _edge_colour(region.name), "face_color": _face_colour(region.name)}
        layer.add(list(corners), shape_type=list(shape_types), **colours)

    def _edge_width_um(self) -> float:
        return EDGE_PX * um_per_unit(self._viewer) / float(self._viewer.scene.camera.zoom)

    def _on_zoom(self, _: Any = None) -> None:
        self._edge_timer.start()

    def _fit_edges(self) -> None:
        """Draw the outlines as wide on the screen as before a zoom."""
        layer, width = self._layer, self._edge_width_um()
        if layer is None or layer not in self._viewer.layers:
            return
        if abs(width / layer.current_edge_width - 1) > EDGE_TOLERANCE:
            layer.edge_width = width
            with layer.block_update_properties():
                layer.current_edge_width = width

    def _on_edited(self, layer: Shapes, _: Any = None) -> None:
        if layer is self._layer:
            self._timer.start()


def _edge_colour(name: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_colour(name))


def _face_colour(name: str) -> list[float]:
    return [*(part / 255 for part in class_colour(name)), FACE_OPACITY]
