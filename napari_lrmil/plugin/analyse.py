"""The dock: choose slide, model and device, run, and read what came out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

import napari.viewer
from magicgui import widgets
from napari.utils.notifications import show_error
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtGui import QCloseEvent, QKeySequence, QShowEvent
from qtpy.QtWidgets import QFileDialog, QFrame, QLabel, QScrollArea, QShortcut, QVBoxLayout, QWidget

from napari_lrmil.plugin.bars import ProbabilityBars
from napari_lrmil.plugin.layers import ours, tag_of
from napari_lrmil.plugin.session import DEVICES, Session, SlideChoice, State, devices_here, shipped_bundles
from napari_lrmil.plugin.viewport import arrange, show
from napari_lrmil.plugin.worker import Run

if TYPE_CHECKING:
    from napari_lrmil.core.compare import Agreement
    from napari_lrmil.core.predict import Prediction

WIDTH_PX = 340
DEVICE_WORDS = {"auto": "best there is", "cpu": "CPU", "cuda": "GPU (CUDA)", "mps": "GPU (Apple)"}


class AnalyseWidget(QWidget):  # type: ignore[misc]  # qtpy has no types
    """The Analyse dock: a view of a `Session` and of the viewer's slides.

    Parameters
    ----------
    viewer
        The napari viewer in which the slides are.
    session
        The session to show; a new one by default.
    """

    def __init__(self, viewer: napari.viewer.Viewer, session: Session | None = None) -> None:
        super().__init__()
        self._viewer, self.session = viewer, session or Session()
        self._run: Run | None = None
        self._devices = devices_here()
        self._build()
        self._connect()
        if self.session.bundle is None:
            self.session.choose_bundle(next(iter(shipped_bundles()), None))
        self._slides_changed()
        self._refresh()

    # ------------------------------------------------------------ what there is to see

    def _build(self) -> None:
        self.setMinimumWidth(WIDTH_PX)
        self.about = _text("about", bold=True)
        self.form = self._form()
        self.run_button = widgets.PushButton(text="Run")
        self.run_button.native.setMinimumHeight(30)
        self.progress = widgets.ProgressBar(max=100, visible=False)
        self.note = _text("note")
        self.results = self._results()
        column = (
            self.about,
            _line(),
            self.form.native,
            self.run_button.native,
            self.progress.native,
            self.note,
            self.results,
        )
        self._lay_out(column, _text("footer", self._research_use(), small=True))

    def _form(self) -> widgets.Container[Any]:
        self.slide = widgets.ComboBox(label="Slide", choices=[], nullable=True)
        self.model = widgets.ComboBox(label="Model", choices=list(shipped_bundles()), nullable=True)
        self.folder = widgets.PushButton(text="Model from a folder…", tooltip="Choose the folder of a trained model")
        self.device = widgets.ComboBox(label="Device", choices=[(self._device_words(d), d) for d in DEVICES])
        self._bar_devices()
        self.beside = widgets.CheckBox(text="Teacher (HR) beside it, for comparison")
        form = widgets.Container(widgets=[self.slide, self.model, self.folder, self.device, self.beside], labels=True)
        form.margins = (0, 0, 0, 0)
        return form

    def _device_words(self, name: str) -> str:
        here = self._devices.get(name)
        return f"{DEVICE_WORDS[name]}: {here}" if name == "auto" else (here or DEVICE_WORDS[name])

    def _bar_devices(self) -> None:
        """Grey out devices that this machine has not."""
        model = self.device.native.model()
        for row, name in enumerate(DEVICES):
            if name not in self._devices:
                model.item(row).setEnabled(False)
                model.item(row).setToolTip(f"{DEVICE_WORDS[name]} is not available on this machine")

    def _results(self) -> QWidget:
        self.student, self.teacher = ProbabilityBars(), ProbabilityBars()
        self.student_title, self.teacher_title = _text("student", bold=True), _text("teacher", bold=True)
        self.calibration, self.agreement, self.legend = (
            _text("calibration", small=True),
            _text("agreement"),
            _text("legend"),
        )
        box = QWidget()
        column = QVBoxLayout(box)
        column.setContentsMargins(0, 0, 0, 0)
        parts = (_line(), self.student_title, self.student, self.teacher_title, self.teacher)
        for part in (*parts, self.calibration, self.agreement, self.legend):
            column.addWidget(part)
        box.setVisible(False)
        return box

    def _lay_out(self, parts: tuple[QWidget, ...], footer: QWidget) -> None:
        inner = QWidget()
        column = QVBoxLayout(inner)
        for part in parts:
            column.addWidget(part)
        column.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QFrame.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(inner)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scroll, 1)
        outer.addWidget(footer)

    @staticmethod
    def _research_use() -> str:
        from napari_lrmil.core.overlay import RESEARCH_USE

        return RESEARCH_USE

    # ------------------------------------------------------------ wishes and news

    def _connect(self) -> None:
        self.slide.changed.connect(self.session.choose_slide)
        self.model.changed.connect(self._model_chosen)
        self.folder.changed.connect(self._folder_asked)
        self.device.changed.connect(self.session.choose_device)
        self.beside.changed.connect(self.session.choose_beside)
        self.run_button.changed.connect(self._run_or_cancel)
        self._escape = QShortcut(QKeySequence("Escape"), self, activated=self.cancel)
        self._escape.setContext(Qt.ShortcutContext.WindowShortcut)
        self._settle = QTimer(self)  # napari is still in the middle of the change when it tells of it
        self._settle.setSingleShot(True)
        self._settle.timeout.connect(self._layers_settled)
        self._subscribe()

    def _subscribe(self) -> None:
        """Listen to what outlives the dock, until the dock goes."""
        layers = self._viewer.layers.events
        heard: list[tuple[Any, Callable[..., None]]] = [
            (self.session.changed, self._refresh),
            (self.session.finished, self._finished),
            (self.session.failed, self._show_error),
            (layers.inserted, self._layers_changed),
            (layers.removed, self._layers_changed),
        ]
        for signal, callback in heard:
            signal.connect(callback)
        mine = [(signal, WeakMethod(callback)) for signal, callback in heard]
        self.destroyed.connect(partial(_unsubscribe, mine))

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Line the fields up, now that the theme has set the fonts."""
        super().showEvent(event)
        labels = self.form.native.findChildren(QLabel)
        widest = max(label.sizeHint().width() for label in labels)
        for label in labels:
            label.setFixedWidth(widest)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802  # Qt's name
        """Cancel what is under way."""
        self.cancel()
        super().closeEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802  # Qt's name
        """Cancel what is under way where napari has taken the dock out of its window."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self.cancel()

    def _layers_changed(self, _: Any = None) -> None:
        self._settle.start(0)

    def _layers_settled(self) -> None:
        arrange(self._viewer)
        self._slides_changed()

    def _slides_changed(self) -> None:
        tags = [(layer.name, tag_of(layer)) for layer in ours(self._viewer, role="slide", side="student")]
        self.session.offer(
            [SlideChoice(name, tag.path, tag.mpp, tag.given_mpp) for name, tag in tags if tag is not None]
        )

    def _model_chosen(self, where: str | None) -> None:
        self.session.choose_bundle(where)

    def _folder_asked(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of a trained model")
        if folder:
            self.open_model(folder)

    def open_model(self, where: str | Path) -> None:
        """Offer a model, a folder or a shipped one by its name, and choose it."""
        text = str(where)
        if text not in self.model.choices:
            self.model.choices = [*(c for c in self.model.choices if c is not None), text]
        if self.model.value == text:
            self.session.choose_bundle(text)
        self.model.value = text

    # ------------------------------------------------------------ a run

    def _run_or_cancel(self) -> None:
        if self.session.busy:
            self.cancel()
        else:
            self.run()

    def run(self) -> None:
        """Begin the analysis of what is chosen."""
        self._run = Run(self.session.start(), self.session.handle, self.session.end, self)
        self._run.start()

    def cancel(self) -> None:
        """End the analysis under way after the step that it is at."""
        if self._run is not None and self.session.busy:
            self._run.cancel()
            self.session.cancel()

    def _show_error(self, sentence: str) -> None:
        show_error(sentence)

    def _finished(self, prediction: Prediction) -> None:
        chosen = next((s for s in self.session.slides if s.path == prediction.path), None)
        if chosen is not None:
            show(self._viewer, prediction, chosen)

    # ------------------------------------------------------------ showing the session

    def _refresh(self) -> None:
        session = self.session
        self._show_choices()
        self.about.setText(self._summary())
        blocked = session.run_blocked_by
        self.run_button.text = {State.RUNNING: "Cancel", State.CANCELLING: "Cancelling…"}.get(session.state, "Run")
        self.run_button.enabled = session.state is not State.CANCELLING and (session.busy or not blocked)
        self.run_button.tooltip = blocked or ("Esc cancels too" if session.busy else "Read the slide with the model")
        self._escape.setEnabled(session.state is State.RUNNING)
        self._show_progress()
        self._show_notes(blocked)
        self._show_results(session.prediction)

    def _show_choices(self) -> None:
        session = self.session
        with self.slide.changed.blocked():
            self.slide.choices = [(s.name, s) for s in session.slides]
            self.slide.value = session.slide
        with self.beside.changed.blocked():
            self.beside.value = session.runs_teacher
        barred = session.teacher_blocked_by
        for widget in (self.slide, self.model, self.folder, self.device, self.beside):
            widget.enabled = not session.busy
        self.slide.enabled = self.slide.enabled and bool(session.slides)
        self.beside.enabled = self.beside.enabled and not barred
        self.beside.tooltip = (
            barred or "Also reads every high-resolution patch: slower, shows how far the student agrees"
        )

    def _summary(self) -> str:
        slide, bundle = self.session.slide, self.session.bundle
        parts = [
            f"{slide.name} ({slide.mpp:.3g} µm/px)" if slide else "no slide",
            f"{bundle.name}: {' | '.join(bundle.card.classes)}" if bundle else "no model",
            self._devices.get(self.session.device, self.session.device),
        ]
        return " · ".join(parts)

    def _show_progress(self) -> None:
        pace = self.session.pace
        self.progress.visible = self.session.busy
        self.progress.value = round(100 * pace.share) if pace else 0
        self.progress.native.setFormat(pace.text if pace else "starting")

    def _show_notes(self, blocked: str) -> None:
        session = self.session
        lines = list(dict.fromkeys(filter(None, (session.message, "" if session.busy else blocked))))
        lines += [f"⚠ {text}" for text in session.cautions]
        self.note.setText("\n".join(lines))
        self.note.setVisible(bool(lines))

    def _show_results(self, prediction: Prediction | None) -> None:
        self.results.setVisible(prediction is not None)
        if prediction is None:
            return
        teacher = prediction.teacher
        self.student_title.setText(f"Student (LR), {prediction.student.target_mpp:g} µm per pixel")
        self.student.set_value(prediction.student.probabilities)
        self.teacher_title.setText(f"Teacher (HR), {teacher.target_mpp:g} µm per pixel" if teacher else "")
        self.teacher.set_value(teacher.probabilities if teacher else {})
        for widget in (self.teacher_title, self.teacher, self.agreement):
            widget.setVisible(teacher is not None)
        known = "calibrated on validation slides" if prediction.calibrated else "not calibrated"
        self.calibration.setText(f"Probabilities, {known}.")
        self.agreement.setText(agreement_text(prediction.agreement) if prediction.agreement else "")
        self.legend.setText(_legend(prediction))


def agreement_text(agreement: Agreement) -> str:
    """Return one line on how far student and teacher look at the same places."""
    rho = "not defined here" if agreement.spearman is None else f"{agreement.spearman:.2f}"
    return (
        f"Agreement on where they looked: rank correlation ρ {rho}, top-10 % overlap {agreement.jaccard_top10:.2f}, "
        f"JS divergence {agreement.js_divergence:.2f} ({agreement.n_patches} patches)."
    )


def _legend(prediction: Prediction) -> str:
    from napari_lrmil.core.overlay import LEGEND

    grid = prediction.grid
    return (
        f"Where the model looked (attention): colours show {LEGEND}. {len(grid.lr_index)} patches of "
        f"{grid.lattice.lr_um:.0f} µm, read in {prediction.student.seconds['total']:.1f} s on {prediction.device}."
    )


def _unsubscribe(heard: list[tuple[Any, WeakMethod[Any]]], _: Any = None) -> None:
    """Forget a dock that Qt has deleted, though Python may still know it."""
    for signal, callback in heard:
        if (alive := callback()) is not None:
            signal.disconnect(alive)


def _text(name: str, text: str = "", *, bold: bool = False, small: bool = False) -> QLabel:
    label = QLabel(text)
    label.setObjectName(name)
    label.setWordWrap(True)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    font = label.font()
    font.setBold(bold)
    if small:
        font.setPointSizeF(font.pointSizeF() * 0.9)
        font.setItalic(True)
    label.setFont(font)
    return label


def _line() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    return line
