"""No text of a dock is cut off or elided, in three widths, two font sizes and both themes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.clipped_text import clipped_texts
from support.window import WAIT_MS, MakeDock, require_screen, timers_rest

require_screen()

WIDTHS_PX, FONT_SIZES, THEMES = (340, 420, 560), (9, 12), ("dark", "light")
CELLS = "slide,label,patient,split,mpp\na.svs,normal,P1,train,0.25\nb.svs,tumour,P2,val,0.5\n"


@pytest.fixture
def appearance(viewer: Any) -> Iterator[Any]:
    """Return napari's settings of fonts, and restore fonts and theme after the test."""
    from napari.settings import get_settings

    settings = get_settings().appearance
    before = settings.font_size, viewer.theme
    yield settings
    settings.font_size, viewer.theme = before


@pytest.fixture
def docks(viewer: Any, make_dock: MakeDock, slide_path: Path, tmp_path: Path, qtbot: Any) -> list[Any]:
    """Return the docks with a result, a comparison, a cohort and a list of slides, all sections unfolded."""
    from napari_lrmil.core.inference.teacher_patches import TeacherPatches
    from napari_lrmil.plugin.compare.widget import CompareWidget
    from napari_lrmil.plugin.qt.docks import open_dock
    from napari_lrmil.plugin.train.widget import TrainWidget
    from napari_lrmil.plugin.worklist.widget import open_worklist

    analyse = make_dock(slide_path)
    qtbot.waitUntil(lambda: analyse.session.tissue_grid is not None, timeout=WAIT_MS)
    analyse.run(TeacherPatches(2))
    qtbot.waitUntil(lambda: not analyse.session.is_busy, timeout=WAIT_MS)
    compare = open_dock(viewer, CompareWidget, "Compare (LRMIL)")
    train = open_dock(viewer, TrainWidget, "Train (LRMIL)")
    (tmp_path / "slides").mkdir()
    shutil.copy(slide_path, tmp_path / "slides")
    (tmp_path / "cohort.csv").write_text(CELLS)
    train.table.open(tmp_path / "cohort.csv")
    worklist = open_worklist(viewer, [tmp_path / "slides"])
    qtbot.waitUntil(lambda: worklist.current is not None, timeout=WAIT_MS)
    for dock in (analyse, compare, train):
        for section in (*dock.sections, *(train.form.groups if dock is train else ())):
            if not section.isExpanded():
                section.toggleButton().click()
    return [analyse, compare, train, worklist]


def test_no_text_is_cut_off(viewer: Any, docks: list[Any], appearance: Any, qtbot: Any) -> None:
    from qtpy.QtCore import Qt

    window = viewer.window._qt_window
    faults: list[str] = []
    for size in FONT_SIZES:
        appearance.font_size = size
        for theme in THEMES:
            viewer.theme = theme
            for dock in docks:
                dock.parentWidget().raise_()
                qtbot.waitUntil(dock.isVisible, timeout=WAIT_MS)
                for width in WIDTHS_PX:
                    window.resizeDocks([dock.parentWidget()], [width], Qt.Orientation.Horizontal)
                    qtbot.waitUntil(lambda dock=dock: timers_rest(dock), timeout=WAIT_MS)
                    faults += settled_faults(dock, qtbot, f"{type(dock).__name__}, {size} pt, {theme}, {width}")
    assert not faults, "\n".join(faults)


def test_what_the_shipped_models_are_for_fits_if_analyse_is_the_only_dock(
    viewer: Any, make_dock: MakeDock, slide_path: Path, qtbot: Any
) -> None:
    from qtpy.QtCore import Qt

    dock = make_dock(slide_path)
    viewer.window._qt_window.resizeDocks([dock.parentWidget()], [min(WIDTHS_PX)], Qt.Orientation.Horizontal)
    qtbot.waitUntil(lambda: timers_rest(dock), timeout=WAIT_MS)
    assert "breast H&E: invasive carcinoma" in [dock.model.native.itemText(i) for i in range(dock.model.native.count())]
    assert not settled_faults(dock, qtbot, "Analyse")


def settled_faults(dock: Any, qtbot: Any, state: str) -> list[str]:
    """Return the faults of a dock that remain once Qt has laid it out."""
    from qtpy.QtWidgets import QApplication

    for _ in range(5):  # a new width changes heights, which changes the scroll bar, which changes the width
        QApplication.sendPostedEvents()
        QApplication.processEvents()
    return [f"{state}: {fault}" for fault in clipped_texts(dock)]


def test_a_label_button_field_and_column_without_room_are_reported(qtbot: Any) -> None:
    from qtpy.QtWidgets import QComboBox, QLabel, QPushButton, QSpinBox, QTableWidget, QVBoxLayout, QWidget

    root = QWidget()
    column = QVBoxLayout(root)
    label, button, box, table = QLabel("a long label"), QPushButton("a long button"), QComboBox(), QTableWidget(1, 1)
    box.addItems(["a", "a long choice in the list"])
    number = QSpinBox()
    number.setRange(0, 123456789)
    number.setValue(123456789)
    table.setHorizontalHeaderLabels(["a long column"])
    table.setColumnWidth(0, 30)
    for widget in (label, button, box, number):
        widget.setFixedWidth(40)
    for widget in (label, button, box, number, table):
        column.addWidget(widget)
    qtbot.addWidget(root)
    root.show()
    qtbot.waitUntil(root.isVisible)
    reported = "\n".join(clipped_texts(root))
    assert all(text in reported for text in ("a long label", "a long button", "a long choice", "a long column"))
    assert "'123456789' needs" in reported
    for widget in (label, button, box, number):
        widget.setFixedWidth(300)
    table.setColumnWidth(0, 200)
    qtbot.waitUntil(lambda: not clipped_texts(root))
