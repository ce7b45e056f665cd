"""The Compare dock: run the HR teacher, view both attention maps, and measure their agreement."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import napari.viewer
from numpy.typing import NDArray
from qtpy.QtCore import QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QFileDialog, QWidget

from napari_lrmil.core.events import Event, Failed, Finished, Partial, Progress
from napari_lrmil.core.results.moved_slides import find_moved_slides
from napari_lrmil.core.results.reader import StoredResult, locate_slide
from napari_lrmil.core.slides.slide_names import slide_name
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.plugin.analyse.widget import DOCK_MIN_WIDTH_PX, AnalyseWidget
from napari_lrmil.plugin.compare.cohort_section import COHORT_ICON_PX, CohortSection
from napari_lrmil.plugin.compare.comparison_model import (
    Comparison,
    LoadStoredJob,
    ReadCohortJob,
    ScoreLesionsJob,
    make_comparison,
)
from napari_lrmil.plugin.compare.ladder_section import LadderSection, ReadLadderJob
from napari_lrmil.plugin.compare.sections import (
    LASSO_HINT,
    NO_PATCH_DRAWN,
    CompareModeSection,
    MeasuresSection,
    ScatterSection,
    TeacherRunForm,
    why_no_teacher,
)
from napari_lrmil.plugin.guards import guard_viewer
from napari_lrmil.plugin.qt.docks import DockWidget, find_dock, is_in_front, open_dock, tabify_beside
from napari_lrmil.plugin.qt.errors import show_error, show_errors
from napari_lrmil.plugin.qt.section import Section, fill_dock, make_button, make_label
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.worker import BackgroundWorker, LatestOnly
from napari_lrmil.plugin.session.run_state import SessionState
from napari_lrmil.plugin.viewer.layers import add_layers, lrmil_layers
from napari_lrmil.plugin.viewer.maps.attention_layers import CompareMode, count_columns
from napari_lrmil.plugin.viewer.navigation.cursor import CursorTracker
from napari_lrmil.plugin.viewer.opening.reader import ask_mpp_with_estimate, read_slide_layers

if TYPE_CHECKING:
    import numpy as np

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.patching.regions import Region
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.session.session import Session

ANALYSE_TITLE = "Analyse (LRMIL)"
COMPARE_HOVER_HINT = "Point at the map to read both networks."
ANALYSE_CLOSED = "The Analyse dock, which holds slide and model, was closed. Open it again."


class CompareWidget(DockWidget):
    """The Compare dock. It shares slide, model, device and results with the Analyse dock of its window.

    Parameters
    ----------
    viewer
        The napari viewer with the slides. If its window has no Analyse dock, one is opened.
    """

    TAB_TITLE = "Compare"

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        guard_viewer(viewer)
        self._prediction: Prediction | None = None
        self._comparison: Comparison | None = None
        self._drawn: tuple[Region, ...] = ()
        self._ladder_slide: SlideChoice | None = None  # slide of the ladder section
        self._pending_load: tuple[Path, Path] | None = None  # a slide that is being opened, and its result folder
        self._slide_folders: list[Path] = []  # where slides were opened, for others of a cohort
        self._moved_slides: dict[Path, Path] = {}  # folder of results -> slide, in a folder that the user named
        self._has_analyse, self._started_run = False, False
        self._loading = ""  # step of loading a stored result
        self._loader: BackgroundWorker | None = None
        self._cohort_reader: BackgroundWorker | None = None
        self._build()
        self._lesion_scorer = LatestOnly(self._on_lesion_event, self)
        self._ladder_reader = LatestOnly(self._on_ladder_event, self)
        self._cursor = CursorTracker(viewer, self._on_cursor_moved, self._on_cursor_left, self)
        self._connect()
        self.join_analyse()

    # ------------------------------------------------------------ layout

    def _build(self) -> None:
        self.setMinimumWidth(DOCK_MIN_WIDTH_PX)
        self.summary, self.form = make_label("summary", bold=True), TeacherRunForm()
        self.reopen = make_button("Open the Analyse dock", ANALYSE_CLOSED)
        self.reopen.setVisible(False)
        self.maps, self.measures = CompareModeSection(), MeasuresSection()
        self.scatter, self.ladder, self.cohort = ScatterSection(), LadderSection(), CohortSection()
        self.hover = make_label("hover", COMPARE_HOVER_HINT, small=True)
        footer = make_label("footer", RESEARCH_USE, small=True)
        fill_dock(self, (self.summary, self.reopen, self.form, *self.sections), (self.hover, footer))
        for section in (self.maps, self.measures, self.scatter):
            section.expand(animate=False)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The foldable sections, from top to bottom."""
        return self.maps, self.measures, self.scatter, self.ladder, self.cohort

    @property
    def session(self) -> Session:
        """The session of the Analyse dock."""
        return self.analyse.session

    def _connect(self) -> None:
        self.reopen.clicked.connect(self.join_analyse)
        self.form.kind_chosen.connect(self._choose_roi_kind)
        self.form.draw_requested.connect(self._draw_roi)
        self.form.changed.connect(self._refresh)
        self.form.run_requested.connect(self._run_teacher)
        self.form.cancel_requested.connect(self.cancel)
        self.form.load_requested.connect(self._ask_result_folder)
        self.maps.changed.connect(self._apply_compare_mode)
        self.scatter.points_picked.connect(self._outline_points)
        self.scatter.draw_requested.connect(self._draw_to_pick)
        self.ladder.folder_requested.connect(self._ask_ladder_folder)
        self.cohort.folder_requested.connect(self._ask_cohort_folder)
        self.cohort.cancel_requested.connect(self._cancel_cohort)
        self.cohort.slide_opened.connect(self._open_cohort_slide)

    # ------------------------------------------------------------ the Analyse dock

    def join_analyse(self) -> None:
        """Share the session of the window's Analyse dock; open that dock if it is missing."""
        analyse = find_dock(self._viewer, AnalyseWidget)
        self.analyse = analyse if analyse is not None else open_dock(self._viewer, AnalyseWidget, ANALYSE_TITLE)
        self.analyse.removed.connect(self._on_analyse_removed)
        self.analyse.take_run_key = self._take_run_key
        self.analyse.result_view.compare_mode_changed.connect(self._show_compare_mode)
        connect_until_destroyed(self, [(self.session.changed, self._refresh)])
        self._show_joined(True)
        self._refresh()

    def _show_compare_mode(self) -> None:
        """Show the arrangement that the Analyse dock has chosen, for drawing."""
        view = self.analyse.result_view.compare_mode.view
        if self._comparison is not None and self.maps.value().view != view:
            self.maps.choose(view)

    def _on_analyse_removed(self) -> None:
        self.session.changed.disconnect(self._refresh)
        self._show_joined(False)

    def _show_joined(self, has_analyse: bool) -> None:
        self._has_analyse = has_analyse
        self.reopen.setVisible(not has_analyse)
        parts: tuple[QWidget, ...] = (self.form, *self.sections)
        for part in parts:
            part.setEnabled(has_analyse)
            part.setToolTip("" if has_analyse else ANALYSE_CLOSED)
        if not has_analyse:
            self.summary.setText(ANALYSE_CLOSED)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Become a tab beside the Analyse dock, after napari has wrapped this widget in a dock."""
        super().showEvent(event)
        QTimer.singleShot(0, self, self._tabify)

    def _tabify(self) -> None:
        tabify_beside(self, self.analyse)

    def _on_removed(self) -> None:
        self._lesion_scorer.stop()
        self._ladder_reader.stop()
        self._cancel_cohort()
        if not self._has_analyse:  # its widgets may be deleted already
            return
        self.analyse.take_run_key = None
        self.cancel()
        if lrmil_layers(self._viewer, role="slide"):
            self.analyse.result_view.show_picked(None)
            self.analyse.result_view.set_compare_mode(CompareMode())

    # ------------------------------------------------------------ refresh

    def _refresh(self) -> None:
        """Show the state of the session in all widgets."""
        session = self.session
        self._started_run = self._started_run and session.is_busy  # a run of the Analyse dock is not cancelled here
        folders = [slide.path.parent for slide in session.slides]
        self._slide_folders += [folder for folder in dict.fromkeys(folders) if folder not in self._slide_folders]
        self.summary.setText(self.analyse.summary.text())
        self.form.show_session(session, self._loading, session.state is SessionState.CANCELLING)
        if session.slide != self._ladder_slide:
            self._ladder_slide = session.slide
            self._ladder_reader.stop()
            self.ladder.show_slide(session.slide)
        if session.prediction is not self._prediction:
            self._set_prediction(session.prediction)
        if session.regions != self._drawn:
            self._drawn = session.regions
            self._pick_regions(self._drawn)
            self._score_lesions()
        self._load_pending()

    def _set_prediction(self, prediction: Prediction | None) -> None:
        self._prediction, self._comparison = prediction, make_comparison(prediction)
        comparison = self._comparison
        no_teacher = why_no_teacher(self.session.bundle)
        self.maps.show_columns(count_columns(comparison.prediction) if comparison else None, no_teacher)
        self.measures.show_comparison(comparison, None, no_teacher)
        self.scatter.show_points(comparison.shared if comparison else None, no_teacher)
        self.hover.setText(COMPARE_HOVER_HINT)
        if comparison is not None:
            self._apply_compare_mode()
            self._pick_regions(self._drawn)
            self._score_lesions()

    def _apply_compare_mode(self) -> None:
        self.analyse.result_view.set_compare_mode(self.maps.value())

    def _on_cursor_left(self) -> None:
        self.hover.setText(COMPARE_HOVER_HINT)

    def _on_cursor_moved(self, x_um: float, y_um: float) -> None:
        if self._comparison is not None:
            self.hover.setText(self._comparison.text_at(x_um, y_um))

    # ------------------------------------------------------------ lesions and picked points

    def _score_lesions(self) -> None:
        slide, comparison = self.session.slide, self._comparison
        if comparison is not None and slide is not None and comparison.prediction.path == slide.path:
            job = ScoreLesionsJob(comparison.prediction, slide, self.session.open_slides, self._drawn)
            self._lesion_scorer.submit(job.events)

    def _on_lesion_event(self, event: Event) -> None:
        match event:
            case Finished(scores):
                self.measures.show_comparison(self._comparison, scores)
            case Failed(message):
                show_error(message)

    def _pick_regions(self, regions: tuple[Region, ...]) -> None:
        """Mark the points of the patches in regions, and outline these patches on the slide."""
        if self._comparison is not None:
            points = self._comparison.points_in(regions)
            self.scatter.show_picked(points, NO_PATCH_DRAWN if regions else LASSO_HINT)
            self._outline_points(points)

    def _outline_points(self, points: NDArray[np.bool_]) -> None:
        if self._comparison is not None:
            self.analyse.result_view.show_picked(self._comparison.rows_of(points))

    def _draw_to_pick(self) -> None:
        self._leave_side_by_side()
        show_errors(self.analyse.viewer_actions.start_drawing)

    def _draw_roi(self) -> None:
        self._leave_side_by_side()
        self.analyse.roi_form.draw.click()

    def _leave_side_by_side(self) -> None:
        """Choose Wipe if two views are shown, because regions cannot be drawn in two views."""
        if self._comparison is not None and self.maps.value().view == "side":
            self.maps.choose("wipe")

    # ------------------------------------------------------------ teacher run

    def _choose_roi_kind(self, kind: str) -> None:
        self.analyse.roi_form.kinds.buttons[kind].click()

    def _run_teacher(self) -> None:
        patches = self.form.value().teacher_patches(self.session.planned_patches)
        if patches is not None and not self.session.is_busy:
            self._started_run = True
            self.analyse.run(patches)

    def _take_run_key(self) -> bool:
        """Run student and teacher if this dock is in front of the Analyse dock, and return whether it is."""
        has_key = is_in_front(self) and not is_in_front(self.analyse)
        if has_key:
            self.form.run_button.click()  # a disabled button does nothing, and the note below it says why
        return has_key

    def cancel(self) -> None:
        """Cancel a run or a load that this dock has started, after its current step."""
        if self._started_run:
            self.analyse.cancel()
        if self._loader is not None:
            self._loading = "cancelling"
            self._loader.cancel()

    # ------------------------------------------------------------ stored results

    def _ask_result_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Results of this slide, or of many")
        if folder:
            self.load(Path(folder))

    def load(self, folder: Path) -> None:
        """Load the stored result of the chosen slide in the background.

        Parameters
        ----------
        folder
            Folder of the slide's result, or its parent.
        """
        session = self.session
        if self._loader is not None or session.is_busy or session.slide is None or session.bundle is None:
            return
        self._loading = "starting"
        job = LoadStoredJob(folder, session.slide, session.bundle, session.open_slides)
        self._loader = BackgroundWorker(job.events, self._on_load_event, self._on_load_finished, self)
        self._loader.start()
        self._refresh()

    def _on_load_event(self, event: Event) -> None:
        match event:
            case Progress(stage):
                self._loading = stage
                self._refresh()
            case Finished(prediction):
                self.session.show_stored(prediction)
            case Failed(message):
                show_error(message)

    def _on_load_finished(self) -> None:
        self._loader, self._loading = None, ""
        self._refresh()

    # ------------------------------------------------------------ resolution ladder

    def _ask_ladder_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Results of `predict --ladder`")
        if folder:
            self.load_ladder(Path(folder))

    def load_ladder(self, folder: Path) -> None:
        """Show the stored ladder of the chosen slide.

        Parameters
        ----------
        folder
            Folder of the slide's results, or its parent.
        """
        slide = self.session.slide
        if slide is not None:
            self._ladder_reader.submit(ReadLadderJob(folder, slide, self.session.open_slides).events)

    def _on_ladder_event(self, event: Event) -> None:
        match event:
            case Finished(file):
                slide = self.session.slide
                if slide is not None and slide_name(slide.path) == file.slide:  # another may have been chosen meanwhile
                    self.ladder.show_ladder(file)
            case Failed(message):
                show_error(message)

    # ------------------------------------------------------------ cohort

    def _ask_cohort_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Results of many slides")
        if folder and self._cohort_reader is None:
            self.cohort.clear()
            self._moved_slides = {}
            self.cohort.show_progress("starting", 0.0)
            job = ReadCohortJob(Path(folder), COHORT_ICON_PX)
            self._cohort_reader = BackgroundWorker(job.events, self._on_cohort_event, self._on_cohort_finished, self)
            self._cohort_reader.start()

    def _cancel_cohort(self) -> None:
        if self._cohort_reader is not None:
            self._cohort_reader.cancel()

    def _on_cohort_event(self, event: Event) -> None:
        match event:
            case Progress(stage, done, total, unit):
                if stage == "pictures" and done == 0:  # all rows are read
                    self.cohort.show_results()
                self.cohort.show_progress(f"{stage} · {done} of {total} {unit}", done / total)
            case Partial(StoredResult() as result):
                self.cohort.add_result(result)
            case Partial((folder, pixels)):
                self.cohort.show_picture(folder, pixels)
            case Failed(message):
                show_error(message)

    def _on_cohort_finished(self) -> None:
        self._cohort_reader = None
        self.cohort.show_results()
        self.cohort.show_progress("", None)

    def _open_cohort_slide(self, result: StoredResult) -> None:
        """Open a slide of the cohort, then load its stored result."""
        path = self._find_slide_file(result)
        if path is None or self.session.is_busy:
            return
        self._pending_load = path, result.folder
        if all(slide.path != path for slide in self.session.slides):
            is_added = show_errors(partial(self._add_slide, path))
            self._pending_load = self._pending_load if is_added else None
        self._refresh()

    def _find_slide_file(self, result: StoredResult) -> Path | None:
        """Return the path of a result's slide; ask for the folder of the slides if the file has moved.

        The answer serves all slides of the cohort.
        """
        path = self._moved_slides.get(result.folder)
        if path is None and result.path is not None:
            path = locate_slide(result.path, self._slide_folders)
        return path if path is not None else self._ask_slide_folder(result)

    def _ask_slide_folder(self, result: StoredResult) -> Path | None:
        folder = QFileDialog.getExistingDirectory(self, f"Folder of the slides ({result.name} and the others)")
        if not folder:
            return None
        moved = show_errors(partial(find_moved_slides, self.cohort.results, Path(folder)))
        if moved is None:  # the folder cannot be read, which has been said
            return None
        self._moved_slides |= moved
        if result.folder not in moved:
            show_error(f"{result.name} is not in {folder} or a folder below it; choose the folder that holds it.")
        return moved.get(result.folder)

    def _add_slide(self, path: Path) -> bool:
        memory = self.session.settings_store
        return bool(add_layers(self._viewer, read_slide_layers(path, ask=ask_mpp_with_estimate, memory=memory)))

    def _load_pending(self) -> None:
        """Load the result of the slide that is being opened, once the session has that slide.

        The session learns of new layers from a timer of the Analyse dock, not while they are added.
        """
        if self._pending_load is None:
            return
        path, folder = self._pending_load
        slide = next((slide for slide in self.session.slides if slide.path == path), None)
        if slide is not None:
            self._pending_load = None
            self.session.choose_slide(slide)
            self.load(folder)
