"""Tests of the mouse wheel over the fields of a dock."""

from __future__ import annotations

from typing import Any

import pytest

from support.window import require_screen

require_screen()


@pytest.fixture
def dock(qtbot: Any) -> Any:
    """Return a shown dock with a field of each kind, higher than its window."""
    from qtpy.QtWidgets import QComboBox, QLabel, QSlider, QSpinBox

    from napari_lrmil.plugin.qt.docks import DockWidget
    from napari_lrmil.plugin.qt.section import fill_dock

    dock = DockWidget()
    dock._on_removed = lambda: None
    dock.combo, dock.spin, dock.slider = QComboBox(), QSpinBox(), QSlider()
    dock.combo.addItems(["a", "b", "c"])
    dock.combo.setCurrentIndex(1)
    dock.spin.setValue(5)
    dock.slider.setValue(50)
    label = QLabel("tall")
    label.setMinimumHeight(2000)
    dock.scroll = fill_dock(dock, (dock.combo, dock.spin, dock.slider, label), ())
    qtbot.addWidget(dock)
    dock.resize(300, 300)
    dock.show()
    dock.activateWindow()
    qtbot.waitUntil(dock.isVisible)
    dock.scroll.setFocus()
    qtbot.waitUntil(dock.scroll.hasFocus)
    return dock


def turn_wheel(widget: Any) -> None:
    """Turn the wheel one notch towards the user.

    As Qt does with an event of the window system, the parent gets an event that the widget has not accepted.
    """
    from qtpy.QtWidgets import QApplication

    event = wheel_event(widget)
    QApplication.sendEvent(widget, event)
    if not event.isAccepted() and widget.parentWidget() is not None:
        turn_wheel(widget.parentWidget())


def wheel_event(widget: Any) -> Any:
    """Return the event of one notch in the middle of a widget."""
    from qtpy.QtCore import QPoint, QPointF, Qt
    from qtpy.QtGui import QWheelEvent

    middle, notch = QPointF(widget.rect().center()), QPoint(0, -120)
    button, key = Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier
    phase = Qt.ScrollPhase.NoScrollPhase
    return QWheelEvent(middle, widget.mapToGlobal(middle), QPoint(), notch, button, key, phase, False)


@pytest.mark.parametrize("name", ["combo", "spin", "slider"])
def test_wheel_over_a_field_without_focus_scrolls_the_dock(dock: Any, name: str) -> None:
    before = dock.combo.currentIndex(), dock.spin.value(), dock.slider.value()
    turn_wheel(getattr(dock, name))
    assert (dock.combo.currentIndex(), dock.spin.value(), dock.slider.value()) == before
    assert dock.scroll.verticalScrollBar().value() > 0


@pytest.mark.parametrize("name", ["spin", "slider"])
def test_wheel_changes_a_field_that_has_the_focus(dock: Any, name: str, qtbot: Any) -> None:
    field = getattr(dock, name)
    field.setFocus()
    qtbot.waitUntil(field.hasFocus)
    before = field.value()
    turn_wheel(field)
    assert field.value() != before
    assert dock.scroll.verticalScrollBar().value() == 0


def test_wheel_never_changes_a_combo_box(dock: Any, qtbot: Any) -> None:
    dock.combo.setFocus()
    qtbot.waitUntil(dock.combo.hasFocus)
    turn_wheel(dock.combo)
    assert dock.combo.currentText() == "b"


def test_wheel_gives_no_field_the_focus(dock: Any) -> None:
    from qtpy.QtCore import Qt

    for field in (dock.combo, dock.spin, dock.slider):
        assert field.focusPolicy() != Qt.FocusPolicy.WheelFocus


def test_every_field_of_the_docks_is_guarded(make_dock: Any, qtbot: Any) -> None:
    dock = make_dock(None)
    qtbot.waitUntil(dock.isVisible)
    opacity, mode = dock.result_view.attention.opacity, dock.result_view.attention.mode
    before = opacity.value(), mode.currentIndex(), dock.device.value
    for field in (opacity, mode, dock.device.native):
        turn_wheel(field)
    assert (opacity.value(), mode.currentIndex(), dock.device.value) == before
