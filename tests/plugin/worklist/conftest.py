"""Folder of slides and Worklist dock for tests in a real window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.plugin.worklist.jobs import ReadListJob, RunAllJob, slides_without_answer
from support.fake_slides import speckled, write_tiff
from support.window import WAIT_MS, MakeDock
from support.worklist import NAMES, MakeWorklist, settled


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """Return a folder with three slides and a broken one, and the results that `predict` left of all but `c`."""
    folder = tmp_path_factory.mktemp("worklist") / "slides"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        write_tiff(folder / f"{name}.tif", speckled(1280, 1000, seed), (1.0, 4.0), mpp=(0.5, 0.5))
    (folder / "d broken.tif").write_bytes((folder / "a.tif").read_bytes()[:5000])
    *_, last = ReadListJob((folder,)).events()
    read = last.result  # type: ignore[union-attr]  # the last event carries it
    slides = slides_without_answer(read.entries, bundle)[:2]
    list(RunAllJob(slides, read.results, bundle, str(bundle.path), "cpu").events())
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder that a test may change; slides are linked."""
    copy = tmp_path / "slides"
    shutil.copytree(stored, copy, copy_function=shutil.copy)
    return copy


@pytest.fixture
def make_worklist(make_dock: MakeDock, viewer: Any, qtbot: Any) -> Iterator[MakeWorklist]:
    """Return what opens the Worklist dock with a list, and waits until its first slide is on the canvas."""
    from napari_lrmil.plugin.qt.docks import open_dock
    from napari_lrmil.plugin.worklist.widget import TITLE, WorklistWidget

    docks = []

    def make(*paths: Path, reviewer: str = "Anna") -> Any:
        make_dock(None)
        dock = open_dock(viewer, WorklistWidget, TITLE)
        docks.append(dock)
        dock.review.reviewer.setText(reviewer)
        dock.review.reviewer.editingFinished.emit()
        if paths:
            dock.open_paths(list(paths))
            qtbot.waitUntil(lambda: dock.current is not None and settled(dock), timeout=WAIT_MS)
        return dock

    yield make
    for dock in docks:
        dock.pager.stop()
        qtbot.waitUntil(lambda dock=dock: not dock.pager.is_busy and not dock.filling.is_running, timeout=WAIT_MS)
        for widget in (dock, dock.analyse):
            if widget.parent() is None:  # the test has closed it
                widget.deleteLater()
