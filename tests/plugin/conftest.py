"""Bundle, slide and real napari window for the plugin's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.user_settings import FOLDER_VARIABLE
from support.fake_slides import lively_bundle, speckled, write_tiff
from support.window import WAIT_MS, MakeDock, open_window, require_screen


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle with student and teacher."""
    bundle = lively_bundle(tmp_path_factory.mktemp("bundle"))
    bundle.student  # noqa: B018  # loads torch, so that the collector can skip it
    _freeze_loaded_objects()
    return bundle


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each test settings of its own: a dock opens with the attention scale that the last dock has stored."""
    monkeypatch.setenv("NAPARI_LRMIL_CONFIG", str(tmp_path_factory.mktemp("settings")))


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pyramid that OpenSlide opens: 0.64 x 0.5 mm of tissue at 0.5 µm, 5 x 4 LR patches."""
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "tissue.tif", speckled(1280, 1000), (1.0, 4.0), mpp=(0.5, 0.5))


@pytest.fixture(scope="session")
def qapp_cls() -> Any:
    """Return the application class that pytest-qt starts; skip without a screen."""
    require_screen()
    from qtpy.QtWidgets import QApplication

    return QApplication


@pytest.fixture(scope="session")
def _window(qapp: Any) -> Iterator[Any]:
    """Return one window for all tests, because each takes seconds to open."""
    window = open_window()
    _freeze_loaded_objects()
    yield window
    window.close()


def _freeze_loaded_objects() -> None:
    """Exclude all present objects from garbage collection, which napari runs at each removal of layers: 0.3 s less."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def viewer(
    _window: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Return the shared window with the settings of a new user, and remove layers and docks after the test."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path_factory.mktemp("settings")))
    _window.cursor.position = (0.0, 0.0)  # pointing where the last test pointed would emit no event
    yield _window
    _window.layers.clear()
    _window.canvas.grid.enabled = False
    docks, destroyed = list(_window.window.dock_widgets.values()), []
    for dock in docks:
        dock.destroyed.connect(lambda *_: destroyed.append(1))
        _window.window.remove_dock_widget(dock)  # napari does not delete the widget
        dock.deleteLater()
    qtbot.waitUntil(lambda: len(destroyed) == len(docks), timeout=WAIT_MS)


@pytest.fixture
def make_dock(viewer: Any, bundle: Bundle, qtbot: Any) -> MakeDock:
    """Return a function that adds an Analyse dock to the window, with a model and optionally a slide."""
    from napari_lrmil.plugin.analyse.widget import AnalyseWidget
    from napari_lrmil.plugin.viewer.layers import add_layers
    from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers

    def make(slide: Path | None, session: Any = None) -> Any:
        dock = AnalyseWidget(viewer, session)
        viewer.window.add_dock_widget(dock, name="napari-lrmil", area="right")
        dock.open_model(bundle.path)
        if slide is not None:
            add_layers(viewer, read_slide_layers(slide))
            qtbot.waitUntil(lambda: dock.session.slide is not None, timeout=WAIT_MS)
        return dock

    return make
