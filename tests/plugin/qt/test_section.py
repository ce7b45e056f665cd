"""Tests of the foldable sections of a dock."""

from __future__ import annotations

from typing import Any

import pytest

from support.window import WAIT_MS, require_screen

require_screen()


@pytest.fixture
def column(qtbot: Any) -> Any:
    """Return a shown dock of two sections that nobody has opened or folded yet."""
    from qtpy.QtWidgets import QWidget

    from napari_lrmil.plugin.qt.section import Section, fill_dock, make_button, make_label

    dock = QWidget()
    sections = [Section("first", "First"), Section("second", "Second")]
    for section in sections:
        section.add(make_button(f"{section.name} button", ""))
        section.add(make_label(f"{section.name} label", "a sentence that needs several lines in a narrow dock " * 4))
    dock.sections = sections
    fill_dock(dock, sections, ())
    qtbot.addWidget(dock)
    dock.resize(340, 600)
    dock.show()
    qtbot.waitUntil(dock.isVisible)
    return dock


def test_section_shows_only_its_title_when_the_window_starts(column: Any) -> None:
    for section in column.sections:
        assert not section.isExpanded()
        assert not section.content().isVisible()
        assert section.height() < 2 * section.toggleButton().height()


def test_click_on_the_title_shows_the_content_and_a_second_one_hides_it(column: Any, qtbot: Any) -> None:
    section, _ = column.sections
    folds: list[tuple[str, bool]] = []
    section.fold_changed.connect(lambda name, is_open: folds.append((name, is_open)))
    section.toggleButton().click()
    assert section.content().isVisible()
    section.toggleButton().click()
    assert not section.content().isVisible()
    assert folds == [("first", True), ("first", False)]


def test_open_section_is_as_high_as_text_that_grows_later(column: Any, qtbot: Any) -> None:
    from qtpy.QtWidgets import QLabel

    section, _ = column.sections
    section.toggleButton().click()
    [label] = section.findChildren(QLabel)
    label.setText("many more words than before " * 40)
    qtbot.waitUntil(lambda: label.height() >= label.heightForWidth(label.width()), timeout=WAIT_MS)
