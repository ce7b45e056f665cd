"""The list of models: what each is for, none chosen for tissue, and the choice of the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.plugin.analyse.choices_form import leave_out_middle
from support.jpeg_slides import write_jpeg_slide
from support.tile_slides import rectangle
from support.window import WAIT_MS

pytestmark = pytest.mark.slow


def _open(viewer: Any, dock: Any, path: Path, qtbot: Any) -> None:
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers

    add_layers(viewer, read_slide_layers(path))
    qtbot.waitUntil(lambda: path in {slide.path for slide in dock.session.slides}, timeout=WAIT_MS)
    dock.slide.value = next(slide for slide in dock.session.slides if slide.path == path)


def test_tissue_gets_no_model_and_a_phantom_the_one_of_phantoms(
    viewer: Any, bundle: Bundle, qtbot: Any, tmp_path: Path
) -> None:
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget

    dock = AnalyseWidget(viewer)
    viewer.window.add_dock_widget(dock, name="napari-lrmil", area="right")
    texts = [dock.model.native.itemText(row) for row in range(dock.model.native.count())]
    assert "phantoms only" in texts and dock.model.value is None
    (tmp_path / "tissue").mkdir()
    tissue = write_jpeg_slide(tmp_path / "tissue" / "a.tif", rectangle())
    _open(viewer, dock, tissue, qtbot)
    assert dock.model.value is None and not dock.run_button.enabled
    assert "No model is chosen" in dock.note.text()
    dock.open_model(bundle.path)
    assert dock.model.value == str(bundle.path)
    phantom = write_slide(tmp_path / "phantom", PhantomSlide("p", LESION, 5, (1024, 1024), 0.5))
    _open(viewer, dock, phantom, qtbot)
    assert dock.model.value == "demo" and dock.session.bundle is not None
    dock.slide.value = next(slide for slide in dock.session.slides if slide.path == tissue)
    assert dock.model.value == str(bundle.path)


def test_the_first_line_leaves_out_the_middle_of_a_name_that_would_widen_the_dock() -> None:
    uid = "1.2.826.0.1.3680043.8.498.46702941076792458794464453066648511350"
    assert leave_out_middle(uid) == f"{uid[:18]}…{uid[-18:]}" and leave_out_middle("tissue") == "tissue"
