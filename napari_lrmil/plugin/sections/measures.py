"""How far student and teacher agree, what each says and costs, and who finds the lesions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_lrmil.plugin.sections.parts import Section, label

if TYPE_CHECKING:
    from napari_lrmil.plugin.comparing import Comparison, Figure, Lesions

SIDES, HEADS = ("left", "right", "right"), ("", "Student", "Teacher")
NOTHING = "The teacher did not look at this slide yet."
MEANING = (
    "ρ: rank correlation of the patches, 1 the same order · top-10 % overlap: of the tenth of patches with most "
    "attention, 1 the same · JS: Jensen-Shannon divergence, 0 the same, 1 nothing in common"
)


class MeasuresSection(Section):
    """Shows figures in a table."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__("measures", "How far they agree (figures)", parent)
        self.agreement, self.lesions = label("agreement", NOTHING, bold=True), label("lesions", small=True)
        self.agreement.setToolTip(MEANING)
        self.table = label("figures")
        self.table.setTextFormat(Qt.TextFormat.RichText)
        self.table.setWordWrap(False)
        self._shown: tuple[Figure, ...] = ()
        self.add(self.agreement)
        self.add(self.table)
        self.add(self.lesions)

    def value(self) -> dict[str, tuple[str, str]]:
        """Return the table as it is shown: name -> student, teacher."""
        return {figure.name: (figure.student, figure.teacher) for figure in self._shown}

    def show_comparison(self, comparison: Comparison | None, lesions: Lesions | None) -> None:
        """Show what there is."""
        self.agreement.setText(comparison.agreement if comparison else NOTHING)
        lines = (*comparison.figures, *(lesions.lines if lesions else ())) if comparison else ()
        self._shown = lines
        self.table.setText(_as_html(lines))
        self.table.setVisible(bool(lines))
        self.lesions.setText(lesions.text if comparison and lesions else "")
        self.lesions.setVisible(bool(comparison and lesions))
        self.fit()


def _as_html(lines: Sequence[Figure]) -> str:
    """Return the lines as a table, numbers to the right."""
    heads = "".join(f"<th align='{side}'>{text}</th>" for side, text in zip(SIDES, HEADS, strict=True))
    rows = [heads]
    for line in lines:
        cells = zip(SIDES, map(escape, (line.name, line.student, line.teacher)), strict=True)
        rows.append("".join(f"<td align='{side}'>{text}</td>" for side, text in cells))
    return "<table width='100%' cellpadding='1'>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
