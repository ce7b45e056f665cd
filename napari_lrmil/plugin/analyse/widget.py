"""The Analyse dock: choice of slide, model, device and region of interest; run, result and export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import napari.viewer
from napari.utils.notifications import show_warning
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QFileDialog, QShortcut

from napari_lrmil.core.features.devices import available_devices
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.plugin.analyse.actions import ViewerActions
from napari_lrmil.plugin.analyse.artefacts_section import ArtefactsSection
from napari_lrmil.plugin.analyse.canvas import Canvas
from napari_lrmil.plugin.analyse.choices_form import ChoicesForm
from napari_lrmil.plugin.analyse.file_dialogs import FileDialogs
from napari_lrmil.plugin.analyse.live_view import LiveView
from napari_lrmil.plugin.analyse.result_view import ResultView
from napari_lrmil.plugin.analyse.results_box import ResultsBox
from napari_lrmil.plugin.analyse.roi_form import RoiForm
from napari_lrmil.plugin.analyse.run_bar import RunBar
from napari_lrmil.plugin.analyse.sections import SaveSection, TissueSection, WhatIfSection
from napari_lrmil.plugin.analyse.slide_display import SlideDisplay
from napari_lrmil.plugin.guards import guard_viewer
from napari_lrmil.plugin.qt.docks import DockWidget
from napari_lrmil.plugin.qt.errors import show_error, show_errors
from napari_lrmil.plugin.qt.section import Section, fill_dock, make_label
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.timers import single_shot
from napari_lrmil.plugin.qt.worker import BackgroundWorker
from napari_lrmil.plugin.session.analyse_state import AnalyseState
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.run_state import SessionState
from napari_lrmil.plugin.session.session import Session
from napari_lrmil.plugin.viewer.doctor_action import add_doctor_action
from napari_lrmil.plugin.viewer.layers import get_tag, lrmil_layers
from napari_lrmil.plugin.viewer.maps.attention_layers import AttentionStyle
from napari_lrmil.plugin.viewer.maps.split_view import arrange_views
from napari_lrmil.plugin.viewer.navigation.panel import NavigationSection
from napari_lrmil.plugin.viewer.opening.image_as_slide import make_slide_opener
from napari_lrmil.plugin.viewer.opening.open_action import add_open_action, ask_slides
from napari_lrmil.plugin.viewer.opening.slide_drops import open_dropped_slides

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.patching.roi import Kind

DOCK_MIN_WIDTH_PX = 340
SAVE_SETTINGS_DELAY_MS = 600  # dragging a slider writes the settings file once, not at every step
LAYOUT_DELAY_MS = 100  # Qt has laid out the new result by then, so scrolling to it reaches its end
DRAWING_DELAY_MS = 50  # napari emits several events while one shape is drawn
KEYS_TEXT = (
    "Keys: Ctrl+R run or cancel · Esc cancel · Ctrl+L follow the view · 1 to 6 magnification · arrows in the gallery"
)


class AnalyseWidget(DockWidget):
    """The Analyse dock. It shows a `Session` and passes the user's choices to it.

    Parameters
    ----------
    viewer
        The napari viewer with the slides.
    session
        The session to show; None starts a new one.

    Attributes
    ----------
    removed
        Emitted when the dock was closed or taken out of the window. Other docks must let go of its session.
    take_run_key
        Asked by the run key before the dock itself runs: starts the run of another dock that is in front, and returns
        whether there is one.
    """

    TAB_TITLE = "Analyse"
    removed = Signal()

    def __init__(self, viewer: napari.viewer.Viewer, session: Session | None = None) -> None:
        super().__init__()
        self._viewer = viewer
        guard_viewer(viewer)
        open_dropped_slides(viewer)
        add_open_action(viewer)
        add_doctor_action(viewer)
        self.session = session or Session(open_slide=make_slide_opener(viewer))
        self.viewer_actions = ViewerActions(viewer, self.session)
        self.take_run_key: Callable[[], bool] | None = None
        self._worker: BackgroundWorker | None = None
        self._devices = available_devices()
        loaded = self.session.settings_store.load_settings()
        self._settings = loaded.settings
        if loaded.notice is not None:
            show_warning(loaded.notice.message)
        self._watched: WeakSet[Layer] = WeakSet()  # slide layers whose tag is watched
        self._connected_drawing: Any = None  # the region layer whose events arrive already
        self._build()
        self.canvas = Canvas(self._viewer, self.session, self)
        self._state = AnalyseState()
        self.slide_display = SlideDisplay(self._viewer, self.session, self.navigation, self.use_image)
        self._restore_settings()
        self._connect()
        self._sync_slides()
        self._refresh()

    # ------------------------------------------------------------ layout

    def _build(self) -> None:
        self.setMinimumWidth(DOCK_MIN_WIDTH_PX)
        self.summary = make_label("summary", small=True)
        self.form, self.roi_form = ChoicesForm(self._devices), RoiForm()
        self.slide, self.model, self.device = self.form.slide, self.form.model, self.form.device
        self.with_teacher, self.allow_missing = self.form.with_teacher, self.form.allow_missing
        self.open_slide, self.model_folder = self.form.open_slide, self.form.model_folder
        self.use_image = self.form.use_image
        self.run_bar = RunBar()
        self.run_button, self.progress = self.run_bar.button, self.run_bar.progress
        self.results = ResultsBox()
        self.note = self.results.note
        self.navigation = NavigationSection(self._viewer)
        self.result_view = ResultView(self._viewer, self.session, self)
        self.what_if, self.tissue, self.save_section = WhatIfSection(), TissueSection(), SaveSection()
        self.artefacts = ArtefactsSection()
        self.file_dialogs = FileDialogs(self.viewer_actions, self.session, self.save_section, self)
        column = (self.summary, self.results, self.form.native, self.roi_form, *self.sections)
        keys = make_label("keys", KEYS_TEXT, small=True)
        running = (self.run_button.native, self.progress.native)
        footer = (*running, self.result_view.hover, make_label("footer", RESEARCH_USE, small=True))
        self._scroll = fill_dock(self, (*column, keys), footer)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The foldable sections, from top to bottom."""
        of_slide = (self.what_if, self.tissue, self.artefacts)
        return (self.navigation, *self.result_view.sections, *of_slide, self.save_section)

    # ------------------------------------------------------------ settings

    def _restore_settings(self) -> None:
        settings = self._settings
        self.result_view.attention.set_value(AttentionStyle(settings.attention_mode, settings.smooth, settings.opacity))
        for section in self.sections:
            if section.name in settings.sections_open:
                section.expand(animate=False)
        if settings.device in self._devices:  # the settings may come from a machine with a GPU
            self.device.value = settings.device
            self.session.choose_device(settings.device)

    def _save_settings(self) -> None:
        style = self.result_view.attention.value()
        settings = replace(
            self._settings,
            device=self.session.device,
            attention_mode=style.mode,
            opacity=style.opacity,
            smooth=style.smooth,
            sections_open=tuple(s.name for s in self.sections if s.isExpanded()),
        )
        if settings != self._settings:
            self._settings = settings
            show_errors(partial(self.session.settings_store.save_settings, settings))

    # ------------------------------------------------------------ signals

    def _connect(self) -> None:
        self.live_view = LiveView(self._viewer, self.session, self)
        self._settings_timer = single_shot(self, SAVE_SETTINGS_DELAY_MS, self._save_settings)
        # With a delay of 0 the slot runs after napari's own handlers, when its layer list is consistent again.
        self._layers_timer = single_shot(self, 0, self._on_layers_settled)
        self._drawing_timer = single_shot(self, DRAWING_DELAY_MS, self._sync_drawn_regions)
        self._scroll_timer = single_shot(self, LAYOUT_DELAY_MS, lambda: self._scroll.verticalScrollBar().setValue(0))
        self._connect_form()
        self._connect_sections()
        self._connect_shortcuts()
        self._connect_session_and_layers()
        self.destroyed.connect(self.session.close)  # docks get no close event if the whole window closes

    def _connect_form(self) -> None:
        session = self.session
        self.slide.changed.connect(session.choose_slide)
        self.model.changed.connect(session.choose_bundle)
        self.open_slide.changed.connect(self._ask_slides)
        self.model_folder.changed.connect(self._ask_model_folder)
        self.use_image.changed.connect(self.slide_display.use_image)
        self.device.changed.connect(session.choose_device)
        self.with_teacher.changed.connect(
            lambda on: session.choose_teacher(TeacherPatches.ALL if on else TeacherPatches.NONE)
        )
        self.allow_missing.changed.connect(session.choose_allow_missing)
        self.run_button.changed.connect(self._run_or_cancel)

    def _connect_sections(self) -> None:
        session, actions = self.session, self.viewer_actions
        connections: tuple[tuple[Any, Callable[..., None]], ...] = (
            (self.roi_form.kind_chosen, self._choose_roi_kind),
            (self.roi_form.follow_toggled, self._set_follows_view),
            (self.roi_form.draw_requested, self._start_drawing),
            (self.roi_form.import_requested, self.file_dialogs.import_regions),
            (self.roi_form.export_requested, self.file_dialogs.export_regions),
            (self.result_view.attention.changed, self._settings_timer.start),
            (self.what_if.exclude_requested, lambda: self._change_what_if(partial(session.exclude, session.regions))),
            (self.what_if.keep_requested, lambda: self._change_what_if(partial(session.keep_only, session.regions))),
            (self.what_if.undo_requested, lambda: self._change_what_if(session.undo)),
            (self.tissue.edit_requested, self._start_tissue_edit),
            (self.tissue.tool_chosen, actions.choose_tissue_tool),
            (self.tissue.size_chosen, actions.set_tissue_brush),
            (self.tissue.apply_requested, lambda: self._change_tissue(actions.apply_tissue_edit)),
            (self.tissue.reset_requested, lambda: self._change_tissue(actions.reset_tissue)),
            (self.artefacts.outlines_toggled, self._show_artefacts),
            (self.artefacts.exclusion_toggled, self._exclude_artefacts),
            (self.navigation.icc_toggled, self.slide_display.set_true_colours),
            (self.navigation.label_requested, self.slide_display.show_labels),
            (self.navigation.tools.measuring, self.result_view.leave_side_by_side),
        )
        for signal, callback in connections:
            signal.connect(callback)
        for section in self.sections:
            section.fold_changed.connect(lambda *_: self._settings_timer.start())

    def _connect_shortcuts(self) -> None:
        self._cancel_key = QShortcut(QKeySequence("Escape"), self, activated=self.cancel)
        run_key = QShortcut(QKeySequence("Ctrl+R"), self, activated=self._on_run_key)
        follow_key = QShortcut(QKeySequence("Ctrl+L"), self, activated=self._toggle_follows_view)
        for key in (self._cancel_key, run_key, follow_key):
            key.setContext(Qt.ShortcutContext.WindowShortcut)

    def _connect_session_and_layers(self) -> None:
        """Connect to objects that outlive the dock; the connections end with it."""
        layers = self._viewer.layers.events
        connect_until_destroyed(
            self,
            [
                (self.session.changed, self._refresh),
                (self.session.finished, self._on_finished),
                (self.session.failed, self._show_error),
                (layers.inserted, self._on_layers_changed),
                (layers.removed, self._on_layers_changed),
            ],
        )

    def _show_error(self, message: str) -> None:
        show_error(message)

    def _on_removed(self) -> None:
        self.cancel()
        self.file_dialogs.cancel()
        self.live_view.stop()
        self.result_view.stop()
        self.session.close()
        self.removed.emit()

    # ------------------------------------------------------------ slides and models

    def _on_layers_changed(self, _: Any = None) -> None:
        self._layers_timer.start()

    def _on_layers_settled(self) -> None:
        slide = self.session.slide
        arrange_views(self._viewer, slide.path if slide is not None else None)
        before = {slide.path for slide in self.session.slides}
        self._sync_slides()
        is_restored = self.canvas.restore_drawings(before)
        drawing = self.viewer_actions.region_layer()
        if drawing is not None and drawing is not self._connected_drawing:
            drawing.events.data.connect(self._on_drawing_changed)
            self._connected_drawing = drawing
        self._sync_drawn_regions()
        if is_restored and self.session.slide is not None:
            self.viewer_actions.mark_excluded_regions()  # steps of "what if" have ended with the slide

    def _sync_slides(self) -> None:
        """Pass the slides in the layer list to the session, and show a slide that was just opened."""
        session, before = self.session, {slide.path for slide in self.session.slides}
        layers = lrmil_layers(self._viewer, role="slide", side="student")
        self._watch_tags(layers)
        tags = [(layer.name, get_tag(layer)) for layer in layers]
        slides = [
            SlideChoice(name, tag.path, tag.mpp, tag.given_mpp, tag.is_phantom) for name, tag in tags if tag is not None
        ]
        opened = [slide for slide in slides if slide.path not in before]
        if opened and not session.awaits_slide:
            session.show_slide(opened[0].path)  # awaited: it is among the slides that follow
        session.set_slides(slides)
        self.slide_display.refresh()

    def _watch_tags(self, layers: Sequence[Layer]) -> None:
        """Notice when a layer shows another slide than before, as in a worklist."""
        new = [layer for layer in layers if layer not in self._watched]
        self._watched.update(new)
        connect_until_destroyed(self, [(layer.events.metadata, self._on_layers_changed) for layer in new])

    def _ask_slides(self) -> None:
        slide = self.session.slide
        ask_slides(self._viewer, self, slide.path.parent if slide is not None else None)

    def _ask_model_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of a trained model")
        if folder:
            self.open_model(folder)

    def open_model(self, model: str | Path) -> None:
        """Add a model to the list and choose it.

        Parameters
        ----------
        model
            Folder of a bundle, or name of a shipped one.
        """
        name = str(model)
        self.form.list_model(name)
        if self.model.value == name:  # the list emits nothing then, but the folder may have new files
            self.session.choose_bundle(name)
        self.model.value = name

    # ------------------------------------------------------------ region of interest

    def _choose_roi_kind(self, kind: Kind) -> None:
        self.live_view.update_view()  # the session needs the current view before it is the region of interest
        self.session.choose_roi_kind(kind)

    def _toggle_follows_view(self) -> None:
        self._set_follows_view(not self.session.follows_view)

    def _set_follows_view(self, is_on: bool) -> None:
        self.session.set_follows_view(is_on)
        if is_on:
            self.live_view.update_view()
        else:
            self.live_view.predictions.stop()

    def _start_drawing(self) -> None:
        self.result_view.leave_side_by_side()
        show_errors(self.viewer_actions.start_drawing)
        self.session.use_drawn_regions()

    def _on_drawing_changed(self, _: Any = None) -> None:
        self._drawing_timer.start()

    def _sync_drawn_regions(self) -> None:
        if self.session.slide is not None:
            show_errors(self.viewer_actions.sync_drawn_regions)

    # ------------------------------------------------------------ run

    def _on_run_key(self) -> None:
        is_taken = not self.session.is_busy and self.take_run_key is not None and self.take_run_key()
        if not is_taken:
            self._run_or_cancel()

    def _run_or_cancel(self) -> None:
        if self.session.is_busy:
            self.cancel()
        elif not self.session.run_blocked_by:
            self.run()

    def run(self, teacher: TeacherPatches | None = None) -> None:
        """Start a run in a background thread.

        Parameters
        ----------
        teacher
            LR patches that the teacher reads; None takes the choice of the session.
        """
        self.live_view.predictions.stop()
        session = self.session
        self._worker = BackgroundWorker(session.prepare_run(teacher), session.on_event, session.on_finished, self)
        self._worker.start()

    def cancel(self) -> None:
        """Cancel the run after its current step."""
        if self._worker is not None and self.session.is_busy:
            self._worker.cancel()
            self.session.cancel()

    def _on_finished(self, _: Prediction) -> None:
        self._scroll_timer.start()

    # ------------------------------------------------------------ changes to the bag of patches

    def _change_what_if(self, change: Callable[[], None]) -> None:
        change()
        self.viewer_actions.mark_excluded_regions()
        self.live_view.predictions.submit(self.session.prepare_what_if())

    def _start_tissue_edit(self) -> None:
        self.result_view.leave_side_by_side()
        self.viewer_actions.start_tissue_edit()
        layer = self.viewer_actions.tissue_layer()
        if layer is not None:  # napari's own keys and controls change the tool too
            for emitter in (layer.events.mode, layer.events.brush_size, layer.events.selected_label):
                emitter.connect(self._show_tissue_tools)
        self._refresh()

    def _show_tissue_tools(self, _: Any = None) -> None:
        self.tissue.show_tools(self.viewer_actions.tissue_layer())

    def _change_tissue(self, change: Callable[[], None]) -> None:
        show_errors(change)
        self.live_view.find_tissue()
        self.live_view.predictions.submit(self.session.prepare_what_if())

    def _show_artefacts(self, is_shown: bool) -> None:
        show_errors(partial(self.viewer_actions.show_artefacts, is_shown))
        self._refresh()

    def _exclude_artefacts(self, exclude: bool) -> None:
        self._change_tissue(partial(self.session.choose_exclude_artefacts, exclude))

    # ------------------------------------------------------------ refresh

    def _refresh(self) -> None:
        """Resolve the state anew, and show it in all widgets and on the canvas."""
        shown = self._state.slide
        state = self._apply_to_canvas()
        if state.slide != shown:
            self.live_view.predictions.stop()  # it would answer for the slide that was left
            self.slide_display.refresh()
        if self.result_view.show_answer(state.prediction, state.slide):
            state = self._apply_to_canvas()  # its maps are new layers
        self._state = state
        self.form.show_state(state)
        self.summary.setText(self.form.summary_text(state))
        self.run_bar.show_state(state)
        self._cancel_key.setEnabled(state.stage is SessionState.RUNNING)  # a disabled shortcut leaves Esc to napari
        self.results.show_state(state)
        self.roi_form.show_state(state)
        self.what_if.show_state(state)
        self.tissue.show_state(state, self.viewer_actions.tissue_layer())
        self.artefacts.show_state(state, has_outlines=self.viewer_actions.has_artefact_outlines)
        self.save_section.show_state(state.slide is not None, state.prediction is not None)
        self.file_dialogs.show_state(state)
        self.live_view.find_tissue()

    def _apply_to_canvas(self) -> AnalyseState:
        state = self.session.resolve(self.canvas.layer_facts(), is_grid_on=self.canvas.is_grid_on)
        self.canvas.apply(state)
        return state
