"""What the networks say: probabilities, what kind of figures they are, on how much they rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_lrmil.plugin.answer import Answer
from napari_lrmil.plugin.bars import ProbabilityBars
from napari_lrmil.plugin.sections.parts import label, rule

if TYPE_CHECKING:
    from napari_lrmil.core.prediction import Prediction


class ResultsBox(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Shows a prediction; hidden where there is none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.student, self.teacher = ProbabilityBars(), ProbabilityBars()
        self.student_title, self.teacher_title = label("student", bold=True), label("teacher", bold=True)
        self.calibration, self.basis = label("calibration", small=True), label("basis", small=True)
        self.agreement = label("agreement")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        parts = (rule(), self.student_title, self.student, self.teacher_title, self.teacher)
        for part in (*parts, self.calibration, self.basis, self.agreement):
            column.addWidget(part)
        self.setVisible(False)

    def show_prediction(self, prediction: Prediction | None) -> None:
        """Show what was found out, or nothing."""
        self.setVisible(prediction is not None)
        if prediction is None:
            return
        answer, teacher = Answer(prediction), prediction.teacher
        self.student_title.setText(f"Student (LR), {prediction.student.target_mpp:g} µm per pixel")
        self.student.set_value(prediction.student.probabilities)
        self.teacher_title.setText(f"Teacher (HR), {teacher.target_mpp:g} µm per pixel" if teacher else "")
        self.teacher.set_value(teacher.probabilities if teacher else {})
        for widget in (self.teacher_title, self.teacher, self.agreement):
            widget.setVisible(teacher is not None)
        self.calibration.setText(answer.trust)
        self.basis.setText(answer.basis)
        self.agreement.setText(answer.agreement)
