"""Top of the Analyse dock: the answer with its probabilities and cautions, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QProgressBar, QVBoxLayout, QWidget

from napari_lrmil.core.formatting import ABOUT_MODEL, format_probability
from napari_lrmil.core.text_escapes import escape_qt
from napari_lrmil.plugin.analyse.result_text import ResultText, knows_tissue, tissue_caution
from napari_lrmil.plugin.qt.section import make_divider, make_label

if TYPE_CHECKING:
    from pathlib import Path

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.card import Card
    from napari_lrmil.plugin.session.analyse_state import AnalyseState

BAR_STEPS = 1000  # a progress bar counts in whole numbers; 1000 shows 0.1 %
BAR_STYLE = """
QProgressBar {{ border: none; border-radius: 3px; min-height: 12px; max-height: 12px;
    background: rgba(128, 128, 128, 70); }}
QProgressBar::chunk {{ border-radius: 3px; background: {colour}; }}
"""
TOP_COLOUR, OTHER_COLOUR = "#e8892c", "#8a8f98"  # readable on dark and on light, and without colour vision
NO_ANSWER_YET = "No answer yet."
HIDDEN = "Hidden until your verdict (blind). Run shows the answer: your verdict then counts as not blind."


class ProbabilityBars(QWidget):  # type: ignore[misc]  # qtpy has no types
    """One row per class: name, bar and probability. The most probable class has a colour of its own."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setColumnStretch(1, 1)
        self._values: dict[str, float] = {}

    def value(self) -> dict[str, float]:
        """Return the shown probabilities, by class."""
        return dict(self._values)

    def set_value(self, values: Mapping[str, float], *, highlight: bool = True) -> None:
        """Show probabilities (0 to 1, by class), highest first; an empty mapping clears the rows.

        Parameters
        ----------
        values
            The probabilities.
        highlight
            Whether the most probable class has a colour of its own.
        """
        self._values = dict(values)
        while (item := self._grid.takeAt(0)) is not None:
            item.widget().hide()  # deleteLater alone leaves the old row on the screen until the event loop runs
            item.widget().deleteLater()
        ranked = sorted(values.items(), key=lambda pair: -pair[1])
        for rank, (name, value) in enumerate(ranked):
            self._add_row(rank, name, value, TOP_COLOUR if rank == 0 and highlight else OTHER_COLOUR)

    def _add_row(self, row: int, name: str, value: float, colour: str) -> None:
        bar = QProgressBar()
        bar.setRange(0, BAR_STEPS)
        bar.setValue(round(value * BAR_STEPS))
        bar.setTextVisible(False)
        bar.setStyleSheet(BAR_STYLE.format(colour=colour))
        label, number = QLabel(name), QLabel(format_probability(value))
        label.setTextFormat(Qt.TextFormat.PlainText)
        number.setToolTip(escape_qt(f"{name}: {value:.6f}"))
        number.setAlignment(Qt.AlignmentFlag.AlignRight)
        for column, widget in enumerate((label, bar, number)):
            widget.setAccessibleName(f"{name} {format_probability(value)}")
            self._grid.addWidget(widget, row, column)


class ResultsBox(QWidget):  # type: ignore[misc]  # qtpy has no types
    """The answer: class, probabilities, cautions, limits and basis; without one, why there is none.

    Attributes
    ----------
    note
        Failure, reason that blocks a run, and cautions.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.headline, self.note = make_label("answer", bold=True), make_label("note")
        self.model_caution = make_label("model caution")
        self.student, self.teacher = ProbabilityBars(), ProbabilityBars()
        self.student_title, self.teacher_title = make_label("student", small=True), make_label("teacher", small=True)
        self.calibration, self.basis = make_label("calibration", small=True), make_label("basis", small=True)
        self.agreement, self.about = make_label("agreement"), make_label("about the model", small=True)
        self._shown: tuple[Prediction | None, Card | None] | None = None
        self._slide: Path | None = None
        self._hidden_slide: Path | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        top = (self.headline, self.student_title, self.student, self.model_caution, self.note)
        teacher = (self.teacher_title, self.teacher, self.agreement)
        for part in (*top, self.calibration, self.basis, *teacher, self.about):
            column.addWidget(part)
        column.addWidget(make_divider())

    def show_state(self, state: AnalyseState) -> None:
        """Show the answer of a state, or why there is none."""
        card = state.bundle.card if state.bundle is not None else None
        about = [text for text in state.warnings if text.startswith(ABOUT_MODEL)]
        is_about_tissue = card is None or knows_tissue(card)  # else the caution says it, and the tooltip the rest
        _set_text(self.about, "\n".join(text[0].upper() + text[1:] for text in about if is_about_tissue))
        self.model_caution.setToolTip(escape_qt(card.about if card is not None else ""))
        self._show_note(state)
        shown = state.prediction, card
        if self._shown is None or any(new is not old for new, old in zip(shown, self._shown, strict=True)):
            self._shown = shown  # else every step of a run would build the bars of the earlier answer anew
            self._show_prediction(*shown)
        self._slide = state.slide.path if state.slide is not None else None
        if state.prediction is None:
            self.headline.setText(self._missing_text if not state.message else "No answer.")

    @property
    def _missing_text(self) -> str:
        is_hidden = self._slide is not None and self._slide == self._hidden_slide
        return HIDDEN if is_hidden else NO_ANSWER_YET

    def set_hidden_slide(self, path: Path | None) -> None:
        """Set of which slide a list hides the stored answer until the verdict of the reviewer; None for no slide."""
        before, self._hidden_slide = self._missing_text, path
        if self.headline.text() == before:
            self.headline.setText(self._missing_text)

    def _show_note(self, state: AnalyseState) -> None:
        """Show the last error, the reason that blocks a run, and the cautions about the answer."""
        blocked = "" if state.is_busy else state.run_blocked
        lines = list(dict.fromkeys(filter(None, (state.message, blocked))))  # both may be the same sentence
        lines += [f"⚠ {text}" for text in state.warnings if not text.startswith(ABOUT_MODEL)]
        _set_text(self.note, "\n".join([*lines, *state.canvas_notes]))

    def _show_prediction(self, prediction: Prediction | None, card: Card | None) -> None:
        is_about_tissue = card is None or knows_tissue(card)
        caution = f"⚠ {tissue_caution(card)}" if prediction is not None and card is not None else ""
        _set_text(self.model_caution, "" if is_about_tissue else caution)
        for title, bars, name, network in (
            (self.student_title, self.student, "Student (LR)", prediction.student if prediction else None),
            (self.teacher_title, self.teacher, "Teacher (HR)", prediction.teacher if prediction else None),
        ):
            _set_text(title, f"{name}, {network.target_mpp:g} µm per pixel" if network else "")
            bars.setVisible(network is not None)
            bars.set_value(network.probabilities if network else {}, highlight=is_about_tissue)
        text = ResultText(prediction) if prediction is not None else None
        self.headline.setText(text.headline if text else "")
        font = self.headline.font()
        font.setBold(is_about_tissue)  # no emphasis on what a model says of what it does not know
        self.headline.setFont(font)
        _set_text(self.calibration, " ".join(filter(None, (text.limits, text.trust, text.distance))) if text else "")
        _set_text(self.basis, text.basis if text else "")
        _set_text(self.agreement, text.agreement if text else "")


def _set_text(label: QLabel, text: str) -> None:
    """Set the text of a label, and hide it without text."""
    label.setText(text)
    label.setVisible(bool(text))
