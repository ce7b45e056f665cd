"""Tabs of the docks: short names that are not cut if all docks are open in a small window."""

from __future__ import annotations

from typing import Any

from support.window import WAIT_MS, MakeDock


def test_names_of_all_docks_fit_into_their_tabs(viewer: Any, make_dock: MakeDock, qtbot: Any) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QTabBar

    from napari_lrmil.plugin.compare.widget import CompareWidget
    from napari_lrmil.plugin.qt.docks import open_dock
    from napari_lrmil.plugin.train.widget import TrainWidget
    from napari_lrmil.plugin.worklist.widget import WorklistWidget

    window = viewer.window._qt_window
    docks = [make_dock(None)]
    for kind, name in ((CompareWidget, "Compare"), (TrainWidget, "Train"), (WorklistWidget, "Worklist")):
        docks.append(open_dock(viewer, kind, f"{name} (LRMIL) (napari-lrmil)"))  # as napari's menu names it
    window.resizeDocks([docks[-1].parentWidget()], [docks[-1].minimumWidth()], Qt.Orientation.Horizontal)

    def tab_bar() -> Any:
        options = Qt.FindChildOption.FindDirectChildrenOnly
        return next((bar for bar in window.findChildren(QTabBar, options=options) if bar.count() == len(docks)), None)

    qtbot.waitUntil(lambda: tab_bar() is not None, timeout=WAIT_MS)
    bar = tab_bar()
    tabs = {bar.tabText(index): bar.tabRect(index).width() for index in range(bar.count())}
    assert set(tabs) == {"Analyse", "Compare", "Train", "Worklist"}
    cut = [text for text, width in tabs.items() if bar.fontMetrics().horizontalAdvance(text) > width]
    assert not cut and sum(tabs.values()) <= bar.width(), f"cut: {cut}; {tabs} in {bar.width()} px"
