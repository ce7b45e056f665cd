"""Get the teacher's attention: of which part of the slide, into how many patches it looks, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QButtonGroup, QProgressBar, QRadioButton, QSpinBox, QVBoxLayout, QWidget

from napari_lrmil.plugin.comparing import HOWS, How, TeacherWish, why_no_teacher
from napari_lrmil.plugin.sections.parts import bar, button, label, row
from napari_lrmil.plugin.sections.scope import DRAW, KINDS

if TYPE_CHECKING:
    from napari_lrmil.plugin.session import Session

GET = "Get teacher's attention"
LOAD = "Read what `compare` or `predict --teacher` stored about this slide"
WORDS: dict[How, str] = {"all": "Everywhere", "top": "The student's top patches", "time": "As much as fits in"}
WHERE = "Where the teacher looks: at all patches, or at those to which the student gave most attention"
BUSY = "Wait for what is under way, or cancel it."


class GetForm(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Edits a `TeacherWish`, tells the cost of each, and has one button that gets it."""

    kind_chosen = Signal(str)
    changed = Signal()
    drawing_wanted = Signal()
    get_wanted = Signal()
    cancel_wanted = Signal()
    load_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scopes, self._hows = QButtonGroup(self), QButtonGroup(self)
        self.kinds = {kind: QRadioButton(word) for kind, word in KINDS}
        for kind, radio in self.kinds.items():
            self._scopes.addButton(radio)
            radio.clicked.connect(lambda _=False, kind=kind: self.kind_chosen.emit(kind))
        self.hows = {how: QRadioButton(WORDS[how]) for how in HOWS}
        self.costs = {how: label(f"cost of {how}", small=True) for how in HOWS}
        self.top, self.seconds = _spin(1, 100_000, 20, ""), _spin(1, 86_400, 30, " s")
        for radio in self.hows.values():
            self._hows.addButton(radio)
            radio.clicked.connect(lambda *_: self.changed.emit())
        self.hows["top"].setChecked(True)
        self.top.valueChanged.connect(lambda _: self._spun("top"))
        self.seconds.valueChanged.connect(lambda _: self._spun("time"))
        self.get, self.load = button(GET, ""), button("Load stored…", LOAD)
        self.get.setMinimumHeight(30)
        self.draw = button("Draw", DRAW)
        self.draw.clicked.connect(self.drawing_wanted)
        self.get.clicked.connect(self._pressed)
        self.load.clicked.connect(self.load_wanted)
        self.progress, self.note = QProgressBar(), label("note")
        self._busy = False
        self._lay_out()

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(3)
        column.addWidget(row(*self.kinds.values(), self.draw))
        spins: dict[How, QSpinBox] = {"top": self.top, "time": self.seconds}
        for how, radio in self.hows.items():
            column.addWidget(row(radio, spins[how]) if how in spins else radio)
            column.addWidget(self.costs[how])
            self.costs[how].setContentsMargins(22, 0, 0, 2)
        for part in (row(self.get, self.load), self.progress, self.note):
            column.addWidget(part)

    def value(self) -> TeacherWish:
        """Return what is wished for."""
        how = next(how for how, radio in self.hows.items() if radio.isChecked())
        return TeacherWish(how, self.top.value(), self.seconds.value())

    def _spun(self, how: How) -> None:
        self.hows[how].setChecked(True)
        self.changed.emit()

    def _pressed(self) -> None:
        (self.cancel_wanted if self._busy else self.get_wanted).emit()

    def show_session(self, session: Session, loading: str, cancelling: bool) -> None:
        """Show what can be had at which cost, and how far it is; `loading` says what of the stored is being read."""
        self._busy = session.busy or bool(loading)
        self.kinds[session.kind].setChecked(True)
        for kind, word in KINDS:
            tip = f"The teacher looks into the {'drawn regions' if kind == 'region' else word.lower()}"
            bar(self.kinds[kind], BUSY if self._busy else "", tip)
        if not self._busy:
            asked, wish = session.asked, self.value()
            for how, told in self.costs.items():
                told.setText(TeacherWish(how, wish.top, wish.seconds).text(asked))
        barred = "" if self._busy else why_no_teacher(session, self.value())
        for widget in (*self.hows.values(), self.top, self.seconds):
            bar(widget, BUSY if self._busy else session.teacher_blocked_by, WHERE)
        bar(self.load, BUSY if self._busy else _no_slide(session), LOAD)
        bar(self.draw, BUSY if self._busy else _no_slide(session), DRAW)
        self.get.setText(("Cancelling…" if cancelling else "Cancel") if self._busy else GET)
        bar(
            self.get,
            barred or ("The step under way ends first." if cancelling else ""),
            "Student and teacher, compared",
        )
        self._show_progress(session, loading)
        self.note.setText(barred)
        self.note.setVisible(bool(barred))

    def _show_progress(self, session: Session, loading: str) -> None:
        pace = session.pace
        self.progress.setVisible(self._busy)
        self.progress.setRange(0, 0 if loading else 100)
        self.progress.setValue(round(100 * pace.share) if pace else 0)
        self.progress.setFormat(loading or (pace.text if pace else "starting"))


def _no_slide(session: Session) -> str:
    if session.slide is None or session.bundle is None:
        return "Choose a slide and a model in the Analyse dock first."
    return ""


def _spin(low: int, high: int, value: int, unit: str) -> QSpinBox:
    made = QSpinBox()
    made.setRange(low, high)
    made.setValue(value)
    made.setSuffix(unit)
    made.setAccessibleName("How many seconds" if unit else "How many patches")
    made.setFixedWidth(72)
    return made
