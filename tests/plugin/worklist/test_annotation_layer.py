"""Classes of annotations that are drawn with napari's polygon tool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers.shapes._shapes_mouse_bindings import add_path_polygon, finish_drawing_shape, polygon_creating

from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.worklist.annotation_file import class_colour
from napari_lrmil.plugin.worklist.annotation_layer import AnnotationLayer
from support.fake_slides import speckled, write_tiff
from support.window import WAIT_MS


@pytest.fixture
def annotations(tmp_path: Path, qtbot: Any) -> Iterator[AnnotationLayer]:
    """Return the annotations of a slide, stored as `annotations_Anna.geojson` in `tmp_path/results/s`."""
    from qtpy.QtWidgets import QWidget

    parent = QWidget()
    qtbot.addWidget(parent)
    layer = AnnotationLayer(ViewerModel(), pytest.fail, lambda _: None, lambda _: None, parent)
    write_tiff(tmp_path / "s.tif", speckled(640, 640, 0), (1.0,), mpp=(0.5, 0.5))
    with Slide(tmp_path / "s.tif") as slide:
        layer.open(tmp_path / "results", "s", slide, "Anna")
        yield layer
        layer.close()


def draw_triangle(layer: Any, left: float) -> None:
    """Draw a region as a user does: clicks on its corners, and a double click."""
    for corner in ((50.0, left), (50.0, left + 40), (90.0, left + 40), (60.0, left)):
        event = SimpleNamespace(position=layer.data_to_world(corner), pos=np.array(corner), type="mouse_press")
        polygon_creating(layer, event)
        add_path_polygon(layer, event)
    finish_drawing_shape(layer, event)


def stored_classes(folder: Path) -> list[str]:
    document = json.loads((folder / "results" / "s" / "annotations_Anna.geojson").read_text())
    return [feature["properties"]["classification"]["name"] for feature in document["features"]]


def test_a_class_chosen_for_the_next_region_leaves_the_finished_ones(
    annotations: AnnotationLayer, tmp_path: Path
) -> None:
    names = ["Tumor", "Necrosis", "Stroma"]
    for number, name in enumerate(names):
        annotations.choose_class(name)  # as the list does
        annotations.start_drawing(name)
        layer = annotations._layer
        assert layer is not None
        draw_triangle(layer, 10.0 + 60 * number)
    annotations.choose_class("Fold")
    draw_triangle(layer, 200.0)
    layer.mode = "select"
    annotations.choose_class("Other")
    annotations.save()
    assert list(layer.features["class"]) == stored_classes(tmp_path) == [*names, "Fold"]
    assert list(layer.text.values) == [*names, "Fold"], "the class stands at its region"
    colours = [class_colour(name) for name in (*names, "Fold")]
    for shown in (layer.edge_color, layer.face_color):
        assert np.round(255 * shown[:, :3]).astype(int).tolist() == [list(colour) for colour in colours]
    assert (layer.face_color[:, 3] < 0.2).all(), "the tissue below stays readable"


def test_a_region_that_was_selected_by_hand_gets_the_class(annotations: AnnotationLayer, tmp_path: Path) -> None:
    for number in range(2):
        annotations.start_drawing("Tumor")
        layer = annotations._layer
        assert layer is not None
        draw_triangle(layer, 10.0 + 60 * number)
    layer.mode = "select"
    layer.selected_data = {0}
    assert annotations.choose_class("Necrosis") == 1
    annotations.start_drawing("Stroma")
    draw_triangle(layer, 150.0)
    annotations.save()
    assert stored_classes(tmp_path) == ["Necrosis", "Tumor", "Stroma"]
    assert list(layer.text.values) == ["Necrosis", "Tumor", "Stroma"]


def test_a_region_that_is_being_drawn_when_the_slide_is_left_is_stored_and_the_tool_put_away(
    annotations: AnnotationLayer, tmp_path: Path
) -> None:
    annotations.start_drawing("Tumor")
    layer = annotations._layer
    assert layer is not None
    for corner in ((50.0, 10.0), (50.0, 50.0), (90.0, 50.0), (95.0, 30.0)):
        event = SimpleNamespace(position=layer.data_to_world(corner), pos=np.array(corner), type="mouse_press")
        polygon_creating(layer, event)
        add_path_polygon(layer, event)
    annotations.close()
    assert layer.mode == "pan_zoom" and stored_classes(tmp_path) == ["Tumor"]


def test_outlines_are_as_wide_on_the_screen_at_any_zoom_also_while_a_region_is_drawn(
    annotations: AnnotationLayer, tmp_path: Path, qtbot: Any
) -> None:
    annotations.start_drawing("Tumor")
    layer = annotations._layer
    assert layer is not None
    draw_triangle(layer, 10.0)
    corners = ((50.0, 110.0), (50.0, 150.0), (90.0, 150.0), (95.0, 130.0))
    for corner in corners:
        event = SimpleNamespace(position=layer.data_to_world(corner), pos=np.array(corner), type="mouse_press")
        polygon_creating(layer, event)
        add_path_polygon(layer, event)
        if corner == corners[1]:
            annotations._viewer.scene.camera.zoom = 8.0
            qtbot.waitUntil(lambda: layer.current_edge_width == pytest.approx(0.25), timeout=WAIT_MS)
    finish_drawing_shape(layer, event)
    assert layer.edge_width == pytest.approx([0.25, 0.25])
    annotations.save()
    assert stored_classes(tmp_path) == ["Tumor", "Tumor"]
    assert {tuple(corner) for corner in layer.data[1]} >= set(corners[:3])
