"""The dock: choose slide, model and device, ask about a part or all of a slide, and read what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari.viewer
from magicgui import widgets
from napari.utils.notifications import show_error, show_warning
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QKeySequence, QShowEvent
from qtpy.QtWidgets import QFileDialog, QLabel, QShortcut

from napari_lrmil.core.features.devices import DEVICES, available_devices
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import shipped_bundles
from napari_lrmil.plugin.analyse.actions import ViewerActions
from napari_lrmil.plugin.analyse.file_dialogs import FileDialogs
from napari_lrmil.plugin.analyse.live_view import LiveView
from napari_lrmil.plugin.analyse.result_view import ResultView
from napari_lrmil.plugin.analyse.sections import ResultsBox, RoiForm, SaveSection, TissueSection, WhatIfSection
from napari_lrmil.plugin.analyse.slide_display import SlideDisplay
from napari_lrmil.plugin.qt.docks import DockWidget
from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.qt.section import Section, fill_dock, make_label
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.session import Session, SessionState
from napari_lrmil.plugin.viewer.attention_layers import AttentionStyle
from napari_lrmil.plugin.viewer.gl_context import guard_layer_removal
from napari_lrmil.plugin.viewer.image_as_slide import make_slide_opener
from napari_lrmil.plugin.viewer.layers import get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.navigation_panel import NavigationSection
from napari_lrmil.plugin.viewer.split_view import arrange_views

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.patching.regions import Region
    from napari_lrmil.core.patching.roi import Kind

DOCK_MIN_WIDTH_PX = 340
SAVE_SETTINGS_DELAY_MS = 600
LAYOUT_DELAY_MS = 100  # by then new figures have their place in the dock
KEYS_TEXT = (
    "Keys: Ctrl+R run or cancel · Esc cancel · Ctrl+L follow the view · 1 to 6 magnification · arrows in the gallery"
)
DEVICE_LABELS = {"auto": "best there is", "cpu": "CPU", "cuda": "GPU (CUDA)", "mps": "GPU (Apple)"}


class AnalyseWidget(DockWidget):
    """The Analyse dock: a view of a `Session` and of the viewer's slides.

    Parameters
    ----------
    viewer
        The napari viewer in which the slides are.
    session
        The session to show; a new one by default.
    """

    left = Signal()  # it was closed: what it shared with other docks ends

    def __init__(self, viewer: napari.viewer.Viewer, session: Session | None = None) -> None:
        super().__init__()
        self._viewer = viewer
        guard_layer_removal(viewer)
        self.session = session or Session(open_slide=make_slide_opener(viewer))
        self.wishes = ViewerActions(viewer, self.session)
        self._run: BackgroundWorker | None = None
        self._devices = available_devices()
        loaded = self.session.settings_store.load_settings()
        self._settings = loaded.settings
        if loaded.notice is not None:
            show_warning(loaded.notice.message)
        self._watched: Any = None  # the drawing that is listened to
        self._build()
        self.screen = SlideDisplay(self._viewer, self.session, self.navigation, self.image)
        self._restore()
        self._connect()
        if self.session.bundle is None:
            self.open_model(next(iter(shipped_bundles())))
        self._slides_changed()
        self._refresh()

    # ------------------------------------------------------------ what there is to see

    def _build(self) -> None:
        self.setMinimumWidth(DOCK_MIN_WIDTH_PX)
        self.about, self.note = make_label("about", bold=True), make_label("note")
        self.form, self.scope = self._form(), RoiForm()
        self.run_button = widgets.PushButton(text="Run")
        self.run_button.native.setMinimumHeight(30)
        self.progress = widgets.ProgressBar(max=100, visible=False)
        self.results = ResultsBox()
        self.navigation = NavigationSection(self._viewer)
        self.reading = ResultView(self._viewer, self.session, self)
        self.what_if, self.tissue, self.keep = WhatIfSection(), TissueSection(), SaveSection()
        self.files = FileDialogs(self.wishes, self.session, self.keep, self)
        running = (self.run_button.native, self.progress.native, self.results, self.note)
        column = (self.about, self.navigation, self.form.native, self.scope, *running, *self.sections[1:])
        keys = make_label("keys", KEYS_TEXT, small=True)
        below = (self.reading.hover, make_label("footer", self._research_use(), small=True))
        self._scroll = fill_dock(self, (*column, keys), below)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The parts that fold, from top to bottom."""
        return (self.navigation, *self.reading.sections, self.what_if, self.tissue, self.keep)

    def _form(self) -> widgets.Container[Any]:
        self.slide = widgets.ComboBox(label="Slide", choices=[], nullable=True)
        self.model = widgets.ComboBox(label="Model", choices=list(shipped_bundles()), nullable=True)
        self.folder = widgets.PushButton(text="Model from a folder…", tooltip="Choose the folder of a trained model")
        self.image = widgets.PushButton(text="Use an image as a slide", visible=False)
        self.device = widgets.ComboBox(label="Device", choices=[(self._device_words(d), d) for d in DEVICES])
        self._bar_devices()
        self.beside = widgets.CheckBox(text="Teacher (HR) beside it, for comparison")
        form = widgets.Container(
            widgets=[self.slide, self.image, self.model, self.folder, self.device, self.beside], labels=True
        )
        form.margins = (0, 0, 0, 0)
        return form

    def _device_words(self, name: str) -> str:
        here = self._devices.get(name)
        return f"{DEVICE_LABELS[name]}: {here}" if name == "auto" else (here or DEVICE_LABELS[name])

    def _bar_devices(self) -> None:
        """Grey out devices that this machine has not."""
        model = self.device.native.model()
        for row, name in enumerate(DEVICES):
            if name not in self._devices:
                model.item(row).setEnabled(False)
                model.item(row).setToolTip(f"{DEVICE_LABELS[name]} is not available on this machine")

    @staticmethod
    def _research_use() -> str:
        from napari_lrmil.core.visualize.overlay import RESEARCH_USE

        return RESEARCH_USE

    def _restore(self) -> None:
        """Show the dock as the user left it."""
        told = self._settings
        self.reading.attention.set_value(AttentionStyle(told.attention_mode, told.smooth, told.opacity))
        for section in self.sections:
            if section.name in told.sections_open:
                section.expand(animate=False)
        if told.device in self._devices:
            self.device.value = told.device
            self.session.choose_device(told.device)

    def _save_settings(self) -> None:
        look = self.reading.attention.value()
        settings = replace(
            self._settings,
            device=self.session.device,
            attention_mode=look.mode,
            opacity=look.opacity,
            smooth=look.smooth,
            sections_open=tuple(s.name for s in self.sections if s.isExpanded()),
        )
        if settings != self._settings:
            self._settings = settings
            show_errors(partial(self.session.settings_store.save_settings, settings))

    # ------------------------------------------------------------ wishes and news

    def _connect(self) -> None:
        session = self.session
        self.slide.changed.connect(session.choose_slide)
        self.model.changed.connect(session.choose_bundle)
        self.folder.changed.connect(self._folder_asked)
        self.image.changed.connect(self.screen.adopt_image)
        self.device.changed.connect(session.choose_device)
        self.beside.changed.connect(
            lambda on: session.choose_teacher(TeacherPatches.ALL if on else TeacherPatches.NONE)
        )
        self.run_button.changed.connect(self._run_or_cancel)
        self.follower = LiveView(self._viewer, session, self)
        self._store = self._timer(SAVE_SETTINGS_DELAY_MS, self._save_settings)
        self._connect_sections()
        self._keys = [
            QShortcut(QKeySequence("Escape"), self, activated=self.cancel),
            QShortcut(QKeySequence("Ctrl+R"), self, activated=self._run_or_cancel),
            QShortcut(QKeySequence("Ctrl+L"), self, activated=lambda: self._follow(not session.follows_view)),
        ]
        for key in self._keys:
            key.setContext(Qt.ShortcutContext.WindowShortcut)
        self._settle = self._timer(0, self._layers_settled)  # napari is still in the middle of it when it tells of it
        self._drawn = self._timer(50, self._take_drawn)
        self._laid_out = self._timer(LAYOUT_DELAY_MS, lambda: self._scroll.ensureWidgetVisible(self.results))
        self._subscribe()
        self.destroyed.connect(session.close)  # where the window goes, docks get no close event

    def _timer(self, ms: int, callback: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(ms)
        timer.timeout.connect(callback)
        return timer

    def _connect_sections(self) -> None:
        told: tuple[tuple[Any, Callable[..., None]], ...] = (
            (self.scope.kind_chosen, self._kind_chosen),
            (self.scope.follow_chosen, self._follow),
            (self.scope.drawing_wanted, self._draw),
            (self.scope.import_wanted, self.files.ask_import),
            (self.scope.export_wanted, self.files.ask_export),
            (self.reading.attention.changed, self._store.start),
            (self.what_if.exclude_wanted, lambda: self._what_if(self.session.exclude)),
            (self.what_if.keep_wanted, lambda: self._what_if(self.session.keep_only)),
            (self.what_if.undo_wanted, self._undo),
            (self.tissue.edit_wanted, self._edit_tissue),
            (self.tissue.use_wanted, lambda: self._tissue_changed(self.wishes.use_tissue)),
            (self.tissue.back_wanted, lambda: self._tissue_changed(self.wishes.found_tissue)),
            (self.navigation.icc_toggled, self.screen.choose_colours),
            (self.navigation.label_requested, self.screen.show_labels),
        )
        for signal, callback in told:
            signal.connect(callback)
        for section in self.sections:
            section.fold_changed.connect(lambda *_: self._store.start())

    def _subscribe(self) -> None:
        """Listen to what outlives the dock, until the dock goes."""
        layers = self._viewer.layers.events
        connect_until_destroyed(
            self,
            [
                (self.session.changed, self._refresh),
                (self.session.finished, self._finished),
                (self.session.prediction_updated, self._answered),
                (self.session.failed, self._show_error),
                (layers.inserted, self._layers_changed),
                (layers.removed, self._layers_changed),
            ],
        )

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Line the fields up, now that the theme has set the fonts."""
        super().showEvent(event)
        labels = self.form.native.findChildren(QLabel)
        widest = max(label.sizeHint().width() for label in labels)
        for one in labels:
            one.setFixedWidth(widest)

    def _on_removed(self) -> None:
        self.cancel()
        self.files.stop()
        self.follower.stop()
        self.reading.stop()
        self.session.close()
        self.left.emit()

    def _layers_changed(self, _: Any = None) -> None:
        self._settle.start()

    def _layers_settled(self) -> None:
        arrange_views(self._viewer)
        self._slides_changed()
        drawing = self.wishes.drawing()
        if drawing is not None and drawing is not self._watched:
            drawing.events.data.connect(self._drawing_changed)
            self._watched = drawing
        self._take_drawn()

    def _slides_changed(self) -> None:
        tags = [(layer.name, get_tag(layer)) for layer in lrmil_layers(self._viewer, role="slide", side="student")]
        self.session.set_slides(
            [SlideChoice(name, tag.path, tag.mpp, tag.given_mpp) for name, tag in tags if tag is not None]
        )
        self.screen.show()

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

    # ------------------------------------------------------------ scope and regions

    def _kind_chosen(self, kind: Kind) -> None:
        self.follower.look()
        self.session.choose_roi_kind(kind)

    def _follow(self, follow: bool) -> None:
        self.session.set_follows_view(follow)
        if follow:
            self.follower.look()
        else:
            self.follower.answers.stop()

    def _draw(self) -> None:
        show_errors(self.wishes.draw)
        self.session.choose_roi_kind("region")

    def _drawing_changed(self, _: Any = None) -> None:
        self._drawn.start()

    def _take_drawn(self) -> None:
        if self.session.slide is not None:
            show_errors(self.wishes.take_drawn)

    # ------------------------------------------------------------ a run

    def _run_or_cancel(self) -> None:
        if self.session.is_busy:
            self.cancel()
        elif not self.session.run_blocked_by:
            self.run()

    def run(self, teacher: TeacherPatches | None = None) -> None:
        """Begin the analysis of what is chosen, with these patches read by the teacher; None takes what is chosen."""
        self.follower.answers.stop()
        self._run = BackgroundWorker(
            self.session.prepare_run(teacher), self.session.on_event, self.session.on_finished, self
        )
        self._run.start()

    def cancel(self) -> None:
        """End the analysis under way after the step that it is at."""
        if self._run is not None and self.session.is_busy:
            self._run.cancel()
            self.session.cancel()

    def _show_error(self, sentence: str) -> None:
        show_error(sentence)

    def _finished(self, prediction: Prediction) -> None:
        chosen = self._choice_of(prediction)
        if chosen is not None:
            self.reading.show_new(prediction, chosen)
            self._laid_out.start()

    def _answered(self, prediction: Prediction) -> None:
        chosen = self._choice_of(prediction)
        if chosen is not None:
            self.reading.show_changed(prediction, chosen)

    def _choice_of(self, prediction: Prediction) -> SlideChoice | None:
        return next((s for s in self.session.slides if s.path == prediction.path), None)

    # ------------------------------------------------------------ what if

    def _what_if(self, step: Callable[[Sequence[Region]], None]) -> None:
        step(self.session.regions)
        self.wishes.mark_left_out()
        self.follower.answers.submit(self.session.prepare_what_if())

    def _undo(self) -> None:
        self.session.undo()
        self.wishes.mark_left_out()
        self.follower.answers.submit(self.session.prepare_what_if())

    def _edit_tissue(self) -> None:
        self.wishes.edit_tissue()
        self._refresh()

    def _tissue_changed(self, change: Callable[[], None]) -> None:
        show_errors(change)
        self.follower.prepare()
        self.follower.answers.submit(self.session.prepare_what_if())

    # ------------------------------------------------------------ showing the session

    def _refresh(self) -> None:
        session = self.session
        self._show_choices()
        self.about.setText(self._summary())
        blocked = session.run_blocked_by
        self.run_button.text = {SessionState.RUNNING: "Cancel", SessionState.CANCELLING: "Cancelling…"}.get(
            session.state, "Run"
        )
        self.run_button.enabled = session.state is not SessionState.CANCELLING and (session.is_busy or not blocked)
        self.run_button.tooltip = blocked or ("Esc cancels too" if session.is_busy else "Ask the model (Ctrl+R)")
        self._keys[0].setEnabled(session.state is SessionState.RUNNING)
        self._show_progress()
        self._show_notes(blocked)
        self.results.show_prediction(session.prediction)
        self.scope.show_session(session)
        self.what_if.show_session(session)
        self.tissue.show_session(session, self.wishes.editing() is not None)
        answer = session.prediction is not None
        told = show_errors(self.wishes.command) if answer else None
        self.keep.show_state(session.slide is not None, answer, told or "")
        self.follower.prepare()

    def _show_choices(self) -> None:
        session = self.session
        with self.slide.changed.blocked():
            self.slide.choices = [(s.name, s) for s in session.slides]
            self.slide.value = session.slide
        with self.beside.changed.blocked():
            self.beside.value = session.runs_teacher
        barred = session.teacher_blocked_by
        for widget in (self.slide, self.model, self.folder, self.device, self.beside):
            widget.enabled = not session.is_busy
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
        pace = self.session.progress
        self.progress.visible = self.session.is_busy
        self.progress.value = round(100 * pace.fraction) if pace else 0
        self.progress.native.setFormat(pace.text if pace else "starting")

    def _show_notes(self, blocked: str) -> None:
        session = self.session
        lines = list(dict.fromkeys(filter(None, (session.message, "" if session.is_busy else blocked))))
        lines += [f"⚠ {text}" for text in session.warnings]
        self.note.setText("\n".join(lines))
        self.note.setVisible(bool(lines))
