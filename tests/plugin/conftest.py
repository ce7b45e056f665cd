"""Bundles, slides and a real napari window for the plugin's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.models.bundle import Bundle
from support.fake_slides import lively_bundle, speckled, write_tiff
from support.window import MakeDock, open_window, require_screen


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle with student and teacher."""
    bundle = lively_bundle(tmp_path_factory.mktemp("bundle"))
    bundle.student  # noqa: B018 # loads transformers
    _spare_the_collector()
    return bundle


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pyramid that OpenSlide opens: 0.64 x 0.5 mm of tissue at 0.5 µm, 5 x 4 LR patches."""
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "tissue.tif", speckled(1280, 1000), (1.0, 4.0), mpp=(0.5, 0.5))


@pytest.fixture(scope="session")
def qapp_cls() -> Any:
    """Return what pytest-qt starts as the application, where there is a screen for one."""
    require_screen()
    from qtpy.QtWidgets import QApplication

    return QApplication


@pytest.fixture(scope="session")
def _window(qapp: Any) -> Iterator[Any]:
    """Keep one window for all tests, for each takes seconds."""
    opened = open_window()
    _spare_the_collector()
    yield opened
    opened.close()


def _spare_the_collector() -> None:
    """Take what is loaded from the garbage collector: napari calls it whenever layers go, which takes 0.3 s else."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def viewer(_window: Any, qtbot: Any) -> Iterator[Any]:
    """Lend the window, and leave it without layers and docks."""
    yield _window
    _window.layers.clear()
    _window.canvas.grid.enabled = False
    for dock in list(_window.window.dock_widgets.values()):
        _window.window.remove_dock_widget(dock)  # napari leaves the widget itself to its owner
        dock.deleteLater()
    qtbot.wait(20)


@pytest.fixture
def make_dock(viewer: Any, bundle: Bundle, qtbot: Any) -> MakeDock:
    """Return what docks a widget into the window, with the model chosen and a slide opened."""
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.reader import read_slides

    def make(slide: Path | None, session: Any = None) -> Any:
        dock = AnalyseWidget(viewer, session)
        viewer.window.add_dock_widget(dock, name="napari-lrmil", area="right")
        dock.open_model(bundle.path)
        if slide is not None:
            add_layers(viewer, read_slides(slide))
            qtbot.waitUntil(lambda: dock.session.slide is not None, timeout=5000)
        return dock

    return make
