"""Verdict on the slide that is shown: buttons with keys, comment, reviewer, blind reading, and annotation classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QComboBox,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QShortcut,
    QVBoxLayout,
    QWidget,
)

from napari_lrmil.core.formatting import ABOUT_MODEL
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.worklist.annotation_file import ANNOTATION_CLASSES
from napari_lrmil.core.worklist.entry import WorklistEntry
from napari_lrmil.core.worklist.review import Verdict
from napari_lrmil.plugin.qt.section import HeightForWidthColumn, enable_unless, make_button, make_label, make_row
from napari_lrmil.plugin.worklist.edit_field import EditField, takes_text

KEYS = {Verdict.AGREE: "Y", Verdict.DISAGREE: "N", Verdict.UNSURE: "U"}
DETAIL_LINES = 4  # that are visible without scrolling
UNDO_KEY = "Ctrl+Backspace"
MAX_KEYED_CLASSES = 9  # Alt+1 to Alt+9
NO_SLIDE, NO_NAME = "Show a slide of the list first.", "Enter your name first: verdicts are stored under it."
NO_ANSWER = "There is no answer yet. Wait for it, or press Run all."
OPENING = "The slide is being opened."
ANSWER_HIDDEN = "The answer is hidden. Give the class yourself, with its button."
ANSWER_SHOWN = "The answer is shown. Agree or disagree with it."
NOTHING_TO_UNDO = "No verdict has been given since the list was opened."
DRAW_TIP = (
    "Draw regions of this class, each stored as it is drawn: click corners, double-click to close. "
    "Press Draw again to end."
)
CLASS_TIP = (
    "Class of the next region that you draw, as QuPath names it; or type another one. "
    "To change a finished region, select it first with the select tool of its layer."
)
ANY_CLASS = "Another class"


class ReviewPanel(QWidget):  # type: ignore[misc]  # qtpy has no types
    """Controls for the verdict of one reviewer on one slide.

    Attributes
    ----------
    verdict_given
        Emitted with the `Verdict`, and the class if it was chosen.
    class_given
        Emitted with the class of a blind verdict; empty for unsure.
    comment_edited
        Emitted when the user has finished editing the comment.
    undo_requested
        Emitted to take the last verdict back.
    reviewer_changed
        Emitted with a new name.
    blind_toggled
        Emitted when blind reading is switched on or off.
    draw_requested
        Emitted with the annotation class to draw.
    draw_ended
        Emitted to put the drawing tool away.
    class_typed
        Emitted with the text of the annotation class whenever it changes.
    class_chosen
        Emitted with the annotation class that was chosen in the list, or typed and confirmed.
    edit_ended
        Emitted when a text is confirmed or given up by a key, to give the focus back to the canvas.
    """

    verdict_given = Signal(object, str)
    class_given = Signal(str)
    comment_edited = Signal()
    undo_requested = Signal()
    reviewer_changed = Signal(str)
    blind_toggled = Signal(bool)
    draw_requested = Signal(str)
    draw_ended = Signal()
    class_typed = Signal(str)
    class_chosen = Signal(str)
    edit_ended = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.answer, self.details = make_label("worklist-answer", bold=True), make_label("worklist-details", small=True)
        self.hint = make_label("worklist-hint")
        self.reviewer, self.comment = EditField("Your name"), EditField("Comment")
        self.blind = QCheckBox("Blind")
        self.buttons = {verdict: QPushButton() for verdict in Verdict}
        self.class_buttons: dict[str, QPushButton] = {}
        self.other_class, self.undo = QComboBox(), make_button("Undo", f"Take the last verdict back ({UNDO_KEY})")
        self.annotation_class = QComboBox()
        self.draw = make_button("Draw", DRAW_TIP)
        self.draw.setCheckable(True)
        self.annotations = make_label("worklist-annotations", small=True)
        self._classes: tuple[str, ...] = ()
        self._is_blind = False
        self._comment: tuple[Path, str | None] | None = None  # slide and stored comment in the field
        self._shortcuts: list[QShortcut] = []
        self._reasons: dict[QPushButton, str] = {}  # why a button is disabled
        self._build()
        self._connect()
        self.show_entry(None, is_hidden=False)

    def _build(self) -> None:
        self.blind.setToolTip("Hide the model's answer until you have given the class yourself")
        self.other_class.setToolTip("Class that you give the slide if you disagree")
        self.annotation_class.setEditable(True)
        self.annotation_class.addItems(list(ANNOTATION_CLASSES))
        self.annotation_class.setToolTip(CLASS_TIP)
        for verdict, button in self.buttons.items():
            button.setText(f"{verdict.value.capitalize()} ({KEYS[verdict]})")
        self.details_box = _short_box(self.details)
        self._class_row = make_row()
        self._verdict_row = make_row(*self.buttons.values())
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        for part in (
            self.answer,
            self.details_box,
            self.hint,
            self._class_row,
            self._verdict_row,
            self.other_class,
            _field_row(self.comment, self.undo),
            _field_row(self.reviewer, self.blind),
            make_row(self.annotation_class, self.draw),
            self.annotations,
        ):
            column.addWidget(part)

    def _connect(self) -> None:
        for verdict, button in self.buttons.items():
            button.clicked.connect(partial(self._give, verdict))
            self._add_key(KEYS[verdict], button)
        self._add_key(UNDO_KEY, self.undo)
        self.undo.clicked.connect(lambda _: self.undo_requested.emit())
        self.comment.editingFinished.connect(self.comment_edited.emit)
        self.reviewer.editingFinished.connect(lambda: self.reviewer_changed.emit(self.reviewer.text()))
        self.blind.toggled.connect(self.blind_toggled.emit)
        self.draw.clicked.connect(self._on_draw)
        self.annotation_class.currentTextChanged.connect(self.class_typed.emit)
        self.annotation_class.textActivated.connect(self.class_chosen.emit)
        for ended in (self.reviewer.ended, self.comment.ended, self.annotation_class.lineEdit().returnPressed):
            ended.connect(self.edit_ended.emit)

    def _add_key(self, key: str, button: QPushButton) -> QShortcut:
        """Let a key click a button from anywhere in the window, except from a text field."""
        shortcut = QShortcut(QKeySequence(key), self, activated=partial(self._press, button))
        shortcut.setContext(Qt.ShortcutContext.WindowShortcut)
        shortcut.setEnabled(not takes_text(QApplication.focusWidget()))
        return shortcut

    def _press(self, button: QPushButton) -> None:
        """Click a button by its key; if it is disabled, say why."""
        reason = self._reasons.get(button, "")
        self._show_hint(reason)
        if reason == NO_NAME:
            self.reviewer.setFocus()
        elif not reason:
            button.click()

    def _show_hint(self, text: str) -> None:
        self.hint.setText(text)
        self.hint.setVisible(bool(text))

    def _enable(self, button: QPushButton, reason: str, tip: str) -> None:
        self._reasons[button] = reason
        enable_unless(button, reason, tip)

    def enable_undo(self, *, is_possible: bool) -> None:
        """Enable *Undo* if there is a verdict to take back."""
        self._enable(self.undo, "" if is_possible else NOTHING_TO_UNDO, f"Take the last verdict back ({UNDO_KEY})")

    def _on_draw(self, is_on: bool) -> None:
        if is_on:
            self.draw_requested.emit(self.annotation_class.currentText())
        else:
            self.draw_ended.emit()

    def _give(self, verdict: Verdict, *_: Any) -> None:
        if self._is_blind and verdict is Verdict.UNSURE:
            self.class_given.emit("")
            return
        label = self.other_class.currentData() if verdict is Verdict.DISAGREE else ""
        self.verdict_given.emit(verdict, label or "")

    # ------------------------------------------------------------ state

    def show_entry(
        self,
        entry: WorklistEntry | None,
        *,
        is_hidden: bool,
        draft: str = "",
        caution: str = "",
        absence: str = "",
    ) -> None:
        """Show the answer of a slide and the controls that apply to it.

        Parameters
        ----------
        entry
            The slide that is shown; None for none.
        is_hidden
            Whether its answer is hidden until the verdict.
        draft
            Comment that waits for a verdict on this slide.
        caution
            Why the verdict would not count as blind; empty if it would.
        absence
            Why the canvas does not show the slide; empty if it does. Without the slide there is no verdict on it.
        """
        self._is_blind = is_hidden
        answer = entry.answer if entry is not None else None
        self._set_classes(answer.classes if answer is not None else ())
        self.answer.setText(absence or _answer_line(entry, is_hidden=is_hidden))
        lines = (entry.problem if entry is not None else "",) if absence else (caution, _detail_lines(entry, is_hidden))
        details = "\n".join(filter(None, lines))
        self.details.setText(details)
        self.details_box.setVisible(bool(details))
        # Here and not once: napari sets the font after the dock is built.
        self.details_box.setFixedHeight(DETAIL_LINES * self.details.fontMetrics().lineSpacing() + 4)
        self._show_verdict(entry, draft, is_given=not absence)
        self._show_buttons(entry, absence, is_hidden=is_hidden)
        if self.hint.text() not in self._reasons.values():
            self._show_hint("")

    def _show_verdict(self, entry: WorklistEntry | None, draft: str, *, is_given: bool) -> None:
        review = entry.review if entry is not None else None
        comment = (entry.path, review.comment if review is not None else None) if entry is not None else None
        if comment != self._comment:  # else the user may be typing another one
            self._comment = comment
            self.comment.show_text(review.comment if review is not None else draft)
        for verdict, button in self.buttons.items():
            button.setCheckable(True)
            button.setChecked(is_given and review is not None and review.verdict is verdict)
        chosen = review.label if review is not None and review.verdict is Verdict.DISAGREE else ""
        self.other_class.setCurrentIndex(max(0, self.other_class.findData(chosen)))

    def _show_buttons(self, entry: WorklistEntry | None, absence: str, *, is_hidden: bool) -> None:
        no_name = "" if self.reviewer.text().strip() else NO_NAME
        missing = NO_SLIDE if entry is None else absence or no_name
        no_answer = missing or ("" if entry is not None and entry.answer is not None else NO_ANSWER)
        hidden, shown = (ANSWER_HIDDEN, "") if is_hidden else ("", ANSWER_SHOWN)
        self._enable(self.buttons[Verdict.AGREE], no_answer or hidden, "The model's class is right")
        self._enable(self.buttons[Verdict.DISAGREE], no_answer or hidden, "The model's class is wrong")
        self._enable(self.buttons[Verdict.UNSURE], missing, "The slide allows no decision")
        for name, button in self.class_buttons.items():
            self._enable(button, no_answer or shown, f"The slide is {name}")
        self._class_row.setVisible(is_hidden)
        for verdict in (Verdict.AGREE, Verdict.DISAGREE):
            self.buttons[verdict].setVisible(not is_hidden)
        self.other_class.setVisible(not is_hidden and len(self._classes) > 2)
        waits = absence == OPENING  # then Draw begins as soon as the slide is there
        enable_unless(self.draw, no_name if waits else missing, DRAW_TIP)
        self.comment.setEnabled(waits or not absence)

    def _set_classes(self, classes: Sequence[str]) -> None:
        """Make a button for each class of the model, and list the classes for a disagreement."""
        if tuple(classes) == self._classes:
            return
        self._classes = tuple(classes)
        for shortcut in self._shortcuts:
            shortcut.deleteLater()
        for button in self.class_buttons.values():
            self._class_row.layout().removeWidget(button)
            self._reasons.pop(button, None)
            button.deleteLater()
        self.class_buttons, self._shortcuts = {}, []
        for number, name in enumerate(classes, start=1):
            key = f"Alt+{number}" if number <= MAX_KEYED_CLASSES else ""
            button = QPushButton(f"{printable(name)} ({key})" if key else printable(name))
            button.clicked.connect(partial(self._give_class, name))
            self._class_row.layout().addWidget(button, 1)
            self.class_buttons[name] = button
            self._shortcuts += [self._add_key(key, button)] if key else []
        self.other_class.clear()
        self.other_class.addItem(ANY_CLASS, "")
        for name in classes:
            self.other_class.addItem(printable(name), name)

    def _give_class(self, name: str, *_: Any) -> None:
        self.class_given.emit(name)


def _field_row(field: QLineEdit, widget: QWidget) -> QWidget:
    """Return a line edit that takes the spare width, and a widget to its right."""
    row = make_row(field, widget)
    row.layout().setStretch(0, 1)
    row.layout().setStretch(1, 0)
    return row


def _short_box(label: QLabel) -> QScrollArea:
    """Return a scroll area of a few lines, so that long warnings leave the verdict buttons on a small screen."""
    inner = HeightForWidthColumn()
    column = QVBoxLayout(inner)
    column.setContentsMargins(0, 0, 0, 0)
    column.addWidget(label)
    column.addStretch(1)
    box = QScrollArea()
    box.setWidgetResizable(True)
    box.setFrameShape(QScrollArea.Shape.NoFrame)
    box.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    box.setWidget(inner)
    return box


def _answer_line(entry: WorklistEntry | None, *, is_hidden: bool) -> str:
    if entry is None:
        return "No slide of the list is shown."
    if is_hidden:
        return "The answer is hidden until your verdict."
    if entry.answer is None:
        return "Failed" if entry.problem else "No answer yet."
    calibration = "calibrated" if entry.answer.calibrated else "not calibrated"
    return f"{entry.answer.text}, {calibration}"


def _caution(text: str) -> str:
    """Return a caution in one line; of a notice on a model, only its sentences on tissue, if it has any."""
    if not text.startswith(ABOUT_MODEL):
        return f"⚠ {text}"
    name, _, about = text.removeprefix(ABOUT_MODEL).partition(": ")
    sentences = [sentence.strip(" .") for sentence in about.split(". ") if "tissue" in sentence]
    return f"⚠ {name}: {'. '.join(sentences)}." if sentences else f"⚠ {name}: {about}"


def _detail_lines(entry: WorklistEntry | None, is_hidden: bool) -> str:
    """Return what concerns this slide alone first, because the box shows few lines; what the model says comes last."""
    if entry is None:
        return ""
    lines, answer = [entry.problem], entry.answer
    if answer is not None and not is_hidden:
        side = f"{answer.side[0].upper()}{answer.side[1:]}" if answer.side else ""
        lines += [*map(_caution, answer.slide_warnings), answer.set_text and f"Set: {answer.set_text}", side]
    lines += entry.notes
    if answer is not None and not is_hidden:
        lines += map(_caution, answer.model_notices)
    review = entry.review
    if review is not None and review.is_blind:
        lines.append(f"Your blind class: {printable(review.label) or 'unsure'}")
    return "\n".join(filter(None, lines))
