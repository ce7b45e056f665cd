"""Search for text in a window that is cut off or replaced by an ellipsis."""

from __future__ import annotations

import re
from typing import Any

TOLERANCE_PX = 1  # style sheets round


def clipped_texts(root: Any) -> list[str]:
    """Return a line for each visible text below `root` that has less room than it needs.

    Examined are labels, buttons, check boxes, radio buttons, combo boxes, spin boxes, and the headers of tables.
    """
    from qtpy.QtWidgets import QAbstractButton, QAbstractSpinBox, QComboBox, QHeaderView, QLabel

    found: list[str] = []
    found += _beyond_edge(root)
    for kind, missing in (
        (QLabel, _label),
        (QAbstractButton, _button),
        (QComboBox, _combo_box),
        (QAbstractSpinBox, _spin_box),
        (QHeaderView, _header),
    ):
        for widget in root.findChildren(kind):
            if widget.isVisible() and widget.width() > 0:
                found += [f"{type(widget).__name__}: {text}" for text in missing(widget)]
    return found


def _beyond_edge(root: Any) -> list[str]:
    """Return the scroll areas whose content is wider than what they show."""
    from qtpy.QtWidgets import QAbstractItemView, QScrollArea

    scrolls = [s for s in root.findChildren(QScrollArea) if s.isVisible() and not isinstance(s, QAbstractItemView)]
    return [
        f"content of {s.widget().width()} pixels in a view of {s.viewport().width()}"
        for s in scrolls
        if s.widget() is not None and s.widget().width() > s.viewport().width() + TOLERANCE_PX
    ]


def _label(label: Any) -> list[str]:
    text = label.text()
    if not text:
        return []
    if not label.wordWrap():
        need = label.sizeHint()
        fits = need.width() <= label.width() + TOLERANCE_PX and need.height() <= label.height() + TOLERANCE_PX
        return [] if fits else [f"{text!r} needs {need.width()} x {need.height()}, has {_size(label)}"]
    room = label.contentsRect().width()
    too_high = label.heightForWidth(label.width()) > label.height() + TOLERANCE_PX
    words = re.sub(r"<[^>]*>", " ", text).split()
    too_wide = [w for w in words if label.fontMetrics().horizontalAdvance(w) > room + TOLERANCE_PX and "/" not in w]
    return [f"{text!r} wraps into {_size(label)} ({too_wide})"] if too_high or too_wide else []


def _button(button: Any) -> list[str]:
    text = button.text()
    need = button.sizeHint().width()
    if not text or need <= button.width() + TOLERANCE_PX:
        return []
    return [f"{text!r} needs {need}, has {_size(button)}"]


def _combo_box(box: Any) -> list[str]:
    from qtpy.QtWidgets import QStyle, QStyleOptionComboBox

    option = QStyleOptionComboBox()
    box.initStyleOption(option)
    field = box.style().subControlRect(
        QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, box
    )
    # A path of the user has no length limit; its combo box elides it and shows it as a tooltip.
    texts = [text for row in range(box.count()) if "/" not in (text := box.itemText(row))]
    wide = [text for text in texts if box.fontMetrics().horizontalAdvance(text) > field.width() + TOLERANCE_PX]
    return [f"{text!r} has {field.width()}" for text in wide]


def _spin_box(box: Any) -> list[str]:
    field = box.lineEdit()
    margins = field.textMargins()
    room = min(field.width(), box.width() - field.x()) - margins.left() - margins.right()
    need = box.fontMetrics().horizontalAdvance(box.text())
    return [] if need <= room + TOLERANCE_PX else [f"{box.text()!r} needs {need}, has {room}"]


def _header(header: Any) -> list[str]:
    from qtpy.QtCore import Qt

    if header.orientation() != Qt.Orientation.Horizontal:
        return []
    sections = [row for row in range(header.count()) if not header.isSectionHidden(row)]
    names = {row: str(header.model().headerData(row, Qt.Orientation.Horizontal) or "") for row in sections}
    cut = [
        f"column {names[row]!r} needs {header.sectionSizeHint(row)}, has {header.sectionSize(row)}"
        for row in sections
        if names[row].strip() and header.fontMetrics().horizontalAdvance(names[row]) > header.sectionSize(row)
    ]
    beyond = [
        f"column {names[row]!r} lies beyond the edge"
        for row in sections
        if header.sectionViewportPosition(row) + header.sectionSize(row) > header.viewport().width() + TOLERANCE_PX
    ]
    return cut + beyond


def _size(widget: Any) -> str:
    return f"{widget.width()} x {widget.height()}"
