"""Artefacts in the window: told, outlined on the slide, left out, and part of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.phantom import NORMAL, PhantomSlide, write_slide
from napari_lrmil.core.phantom.artefact_paint import paint_pen
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from support.fake_slides import write_tiff
from support.window import WAIT_MS, MakeDock, require_screen, timers_rest

require_screen()
SIZE = (2048, 1536)


@pytest.fixture(scope="module")
def inked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a slide with green ink on its tissue."""
    folder = tmp_path_factory.mktemp("inked")
    with Slide(write_slide(folder, PhantomSlide("plain", NORMAL, 300, SIZE))) as slide:
        pixels, _ = paint_pen(slide.read_level(0, 0, 0, *SIZE), 0.5, (0.25, 0.66, 0.40))
    return write_tiff(folder / "inked.tif", pixels, (1.0, 4.0), mpp=(0.5, 0.5))


def wait(dock: Any, qtbot: Any) -> None:
    qtbot.waitUntil(lambda: dock.session.tissue_grid is not None and not dock.session.is_busy, timeout=WAIT_MS)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)


def test_artefacts_are_told_outlined_and_left_out(make_dock: MakeDock, inked: Path, viewer: Any, qtbot: Any) -> None:
    dock = make_dock(inked)
    wait(dock, qtbot)
    section, whole = dock.artefacts, dock.session.tissue_grid
    assert section.status.text().startswith("Of the tissue: pen on ") and "count as tissue" in section.status.text()

    section.outlines.click()
    [layer] = lrmil_layers(viewer, inked, role="artefacts")
    assert layer.visible and layer.contour and section.outlines.isChecked()
    assert set(np.unique(layer.data)) == {0, 1}
    row, column = np.argwhere(layer.data == 1).mean(axis=0)
    corner = np.asarray(layer.data_to_world((row, column)))
    assert (corner > 0).all() and (corner < np.array(SIZE[::-1]) * 0.5).all()
    section.outlines.click()
    assert not lrmil_layers(viewer, inked, role="artefacts")

    section.exclude.click()
    wait(dock, qtbot)
    rest = dock.session.tissue_grid
    assert len(rest.grid.lr_index) <= len(whole.grid.lr_index) and rest.tissue.mask.sum() < whole.tissue.mask.sum()
    assert "all but folds are left out" in section.status.text() and section.exclude.isChecked()
    dock.run_button.native.click()
    wait(dock, qtbot)
    prediction = dock.session.prediction
    assert prediction.artefacts.excluded and "pen" in prediction.artefacts.shares
    assert "--exclude-artefacts" in dock.viewer_actions.equivalent_command()

    section.exclude.click()
    wait(dock, qtbot)
    assert dock.session.tissue_grid is whole and not section.exclude.isChecked()


def test_a_clean_slide_says_so(make_dock: MakeDock, slide_path: Path, qtbot: Any) -> None:
    dock = make_dock(slide_path)
    wait(dock, qtbot)
    assert dock.artefacts.status.text() == "No artefact was found." and not dock.artefacts.outlines.isEnabled()
    assert dock.artefacts.exclude.isEnabled()
