"""The Compare dock: get the HR teacher's attention beside the student's, see both, measure how far they agree."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import napari.viewer
from napari.utils.notifications import show_error
from numpy.typing import NDArray
from qtpy.QtCore import QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QDockWidget, QFileDialog, QWidget

from napari_lrmil.core.events import Event, Failed, Finished, Partial, Progress
from napari_lrmil.core.results.reader import StoredResult
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.plugin.analyse.widget import DOCK_MIN_WIDTH_PX, AnalyseWidget
from napari_lrmil.plugin.compare.cohort_section import ICON_PX, CohortSection
from napari_lrmil.plugin.compare.comparison_model import (
    Comparison,
    LesionScores,
    LoadStoredJob,
    ReadCohortJob,
    ScoreLesionsJob,
    make_comparison,
)
from napari_lrmil.plugin.compare.sections import CompareModeSection, MeasuresSection, ScatterSection, TeacherRunForm
from napari_lrmil.plugin.qt.docks import DockWidget, find_dock, open_dock
from napari_lrmil.plugin.qt.errors import show_errors
from napari_lrmil.plugin.qt.section import Section, fill_dock, make_button, make_label
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.worker import BackgroundWorker, LatestOnly
from napari_lrmil.plugin.session.session import SessionState
from napari_lrmil.plugin.viewer.attention_layers import CompareMode, count_columns
from napari_lrmil.plugin.viewer.cursor import CursorTracker
from napari_lrmil.plugin.viewer.gl_context import guard_layer_removal
from napari_lrmil.plugin.viewer.layers import add_layers, lrmil_layers
from napari_lrmil.plugin.viewer.reader import ask_mpp_with_estimate, read_slides

if TYPE_CHECKING:
    import numpy as np

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.patching.regions import Region
    from napari_lrmil.plugin.session.session import Session

ANALYSE_TITLE = "Analyse (LRMIL)"
COMPARE_HOVER_HINT = "Point at the map to read both networks at once."
ANALYSE_CLOSED = "The Analyse dock, which knows slide and model, was closed: open it again."


class CompareWidget(DockWidget):
    """The Compare dock: shares slide, model, device and answers with the Analyse dock of its window.

    Parameters
    ----------
    viewer
        The napari viewer in which the slides are; where no Analyse dock lies in its window, one is opened.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        guard_layer_removal(viewer)
        self._prediction: Prediction | None = None
        self._comparison: Comparison | None = None
        self._lesions: LesionScores | None = None
        self._drawn: tuple[Region, ...] = ()
        self._expected: tuple[Path, Path] | None = None  # a slide that was opened, and where its results lie
        self._joined, self._began, self._loading = False, False, ""
        self._loader: BackgroundWorker | None = None
        self._cohort_reader: BackgroundWorker | None = None
        self._build()
        self._measuring = LatestOnly(self._measured, self)
        self._pointer = CursorTracker(viewer, self._pointed, self)
        self._connect()
        self.join()

    # ------------------------------------------------------------ what there is to see

    def _build(self) -> None:
        self.setMinimumWidth(DOCK_MIN_WIDTH_PX)
        self.about, self.form = make_label("about", bold=True), TeacherRunForm()
        self.rejoin = make_button("Open the Analyse dock", ANALYSE_CLOSED)
        self.rejoin.setVisible(False)
        self.pairing, self.measures = CompareModeSection(), MeasuresSection()
        self.scatter, self.cohort = ScatterSection(), CohortSection()
        self.hover = make_label("hover", COMPARE_HOVER_HINT, small=True)
        footer = make_label("footer", RESEARCH_USE, small=True)
        fill_dock(self, (self.about, self.rejoin, self.form, *self.sections), (self.hover, footer))
        for section in self.sections[:-1]:
            section.expand(animate=False)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The parts that fold, from top to bottom."""
        return self.pairing, self.measures, self.scatter, self.cohort

    @property
    def session(self) -> Session:
        """What is chosen and known, the same as in the Analyse dock."""
        return self.analyse.session

    def _connect(self) -> None:
        self.rejoin.clicked.connect(self.join)
        self.form.kind_chosen.connect(self._kind_chosen)
        self.form.drawing_wanted.connect(self._draw_region)
        self.form.changed.connect(self._refresh)
        self.form.get_wanted.connect(self._get)
        self.form.cancel_wanted.connect(self.cancel)
        self.form.load_wanted.connect(self._ask_stored)
        self.pairing.changed.connect(self._pair)
        self.scatter.picked.connect(self._picked)
        self.scatter.drawing_wanted.connect(self._draw)
        self.cohort.folder_wanted.connect(self._ask_cohort)
        self.cohort.stop_wanted.connect(self._stop_cohort)
        self.cohort.opened.connect(self._open)

    def join(self) -> None:
        """Share everything with the Analyse dock of the window, opened if there is none."""
        there = find_dock(self._viewer, AnalyseWidget)
        self.analyse = there if there is not None else open_dock(self._viewer, AnalyseWidget, ANALYSE_TITLE)
        self.analyse.left.connect(self._analyse_left)
        connect_until_destroyed(self, [(self.session.changed, self._refresh)])
        self._enable(True)
        self._refresh()

    def _analyse_left(self) -> None:
        self.session.changed.disconnect(self._refresh)
        self._enable(False)

    def _enable(self, there: bool) -> None:
        self._joined = there
        self.rejoin.setVisible(not there)
        parts: tuple[QWidget, ...] = (self.form, *self.sections)
        for part in parts:
            part.setEnabled(there)
            part.setToolTip("" if there else ANALYSE_CLOSED)
        if not there:
            self.about.setText(ANALYSE_CLOSED)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Lie beside the Analyse dock as a tab, once napari has made a dock of this."""
        super().showEvent(event)
        QTimer.singleShot(0, self, self._lie_beside)

    def _lie_beside(self) -> None:
        mine, other = self.parentWidget(), self.analyse.parentWidget()
        if not (isinstance(mine, QDockWidget) and isinstance(other, QDockWidget)) or mine.isFloating():
            return
        window = mine.parentWidget()
        if window is other.parentWidget() and other not in window.tabifiedDockWidgets(mine):
            window.tabifyDockWidget(other, mine)
            mine.raise_()

    def _on_removed(self) -> None:
        self._measuring.stop()
        self._stop_cohort()
        if not self._joined:
            return
        self.cancel()
        if lrmil_layers(self._viewer, role="slide"):
            self.analyse.reading.pick(None)
            self.analyse.reading.pair(CompareMode())

    # ------------------------------------------------------------ showing the session

    def _refresh(self) -> None:
        session = self.session
        self._began = self._began and session.is_busy
        self.about.setText(self.analyse.about.text())
        self.form.show_session(session, self._loading, session.state is SessionState.CANCELLING)
        if session.prediction is not self._prediction:
            self._take(session.prediction)
        if session.regions != self._drawn:
            self._drawn = session.regions
            self._light(self._drawn)
            self._measure()
        self._load_expected()

    def _take(self, prediction: Prediction | None) -> None:
        self._prediction, self._comparison, self._lesions = prediction, make_comparison(prediction), None
        there = self._comparison
        self.pairing.show_columns(count_columns(there.prediction) if there else None)
        self.measures.show_comparison(there, None)
        self.scatter.show_points(there.both if there else None)
        self.hover.setText(COMPARE_HOVER_HINT)
        if there is not None:
            self._pair()
            self._light(self._drawn)
            self._measure()

    def _pair(self) -> None:
        self.analyse.reading.pair(self.pairing.value())

    def _pointed(self, x_um: float, y_um: float) -> None:
        if self._comparison is not None:
            self.hover.setText(self._comparison.text_at(x_um, y_um))

    # ------------------------------------------------------------ figures and points

    def _measure(self) -> None:
        slide, there = self.session.slide, self._comparison
        if there is not None and slide is not None and there.prediction.path == slide.path:
            self._measuring.submit(
                ScoreLesionsJob(there.prediction, slide, self.session.open_slides, self._drawn).events
            )

    def _measured(self, event: Event) -> None:
        match event:
            case Finished(lesions):
                self._lesions = lesions
                self.measures.show_comparison(self._comparison, lesions)
            case Failed(message):
                show_error(message)

    def _light(self, regions: tuple[Region, ...]) -> None:
        """Let the points of the patches light up that belong to regions, and these patches too."""
        if self._comparison is not None:
            points = self._comparison.points_in(regions)
            self.scatter.light(points)
            self._picked(points)

    def _picked(self, points: NDArray[np.bool_]) -> None:
        if self._comparison is not None:
            self.analyse.reading.pick(self._comparison.rows(points))

    def _draw(self) -> None:
        self._one_view()
        show_errors(self.analyse.wishes.draw)

    def _draw_region(self) -> None:
        """Draw what the next run is to be about."""
        self._one_view()
        self.analyse.scope.draw.click()

    def _one_view(self) -> None:
        """Two views cannot be drawn on."""
        if self._comparison is not None and self.pairing.value().view == "side":
            self.pairing.choose("wipe")

    # ------------------------------------------------------------ getting the teacher's attention

    def _kind_chosen(self, kind: str) -> None:
        self.analyse.scope.kinds[kind].click()

    def _get(self) -> None:
        choice = self.form.value().choice(self.session.planned_patches)
        if choice is not None and not self.session.is_busy:
            self._began = True
            self.analyse.run(choice)

    def cancel(self) -> None:
        """End what this dock has under way after the step that it is at."""
        if self._began:
            self.analyse.cancel()
        if self._loader is not None:
            self._loading = "stopping"
            self._loader.cancel()

    def _ask_stored(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Results of this slide, or of many")
        if folder:
            self.load(Path(folder))

    def load(self, folder: Path) -> None:
        """Show what was stored about the chosen slide, below `folder` or in it."""
        session = self.session
        if self._loader is not None or session.is_busy or session.slide is None or session.bundle is None:
            return
        self._loading = "starting"
        work = LoadStoredJob(folder, session.slide, session.bundle, session.open_slides)
        self._loader = BackgroundWorker(work.events, self._loaded, self._load_ended, self)
        self._loader.start()
        self._refresh()

    def _loaded(self, event: Event) -> None:
        match event:
            case Progress(stage):
                self._loading = stage
                self._refresh()
            case Finished(prediction):
                self.session.show_stored(prediction)
            case Failed(message):
                show_error(message)

    def _load_ended(self) -> None:
        self._loader, self._loading = None, ""
        self._refresh()

    # ------------------------------------------------------------ a cohort

    def _ask_cohort(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Results of many slides")
        if folder and self._cohort_reader is None:
            self.cohort.clear()
            self.cohort.show_reading("starting", 0.0)
            work = ReadCohortJob(Path(folder), ICON_PX)
            self._cohort_reader = BackgroundWorker(work.events, self._cohort_read, self._cohort_ended, self)
            self._cohort_reader.start()

    def _stop_cohort(self) -> None:
        if self._cohort_reader is not None:
            self._cohort_reader.cancel()

    def _cohort_read(self, event: Event) -> None:
        match event:
            case Progress(stage, done, total, unit):
                if stage == "pictures" and done == 0:
                    self.cohort.show_lines()
                self.cohort.show_reading(f"{stage} · {done} of {total} {unit}", done / total)
            case Partial(StoredResult() as line):
                self.cohort.add_line(line)
            case Partial((folder, pixels)):
                self.cohort.show_picture(folder, pixels)
            case Failed(message):
                show_error(message)

    def _cohort_ended(self) -> None:
        self._cohort_reader = None
        self.cohort.show_lines()
        self.cohort.show_reading("", None)

    def _open(self, line: StoredResult) -> None:
        """Open a slide of the cohort with both maps, as they were stored."""
        path = self._find(line)
        if path is None or self.session.is_busy:
            return
        self._expected = path, line.folder
        if all(slide.path != path for slide in self.session.slides):
            added = show_errors(partial(self._show_slide, path))
            self._expected = self._expected if added else None
        self._refresh()

    def _find(self, line: StoredResult) -> Path | None:
        if line.path is not None and line.path.exists():
            return line.path
        name, _ = QFileDialog.getOpenFileName(self, f"Where is the slide {line.name} now?")
        return Path(name) if name else None

    def _show_slide(self, path: Path) -> bool:
        memory = self.session.settings_store
        return bool(add_layers(self._viewer, read_slides(path, ask=ask_mpp_with_estimate, memory=memory)))

    def _load_expected(self) -> None:
        """Load what was stored about the slide that was just opened, as soon as the session knows it."""
        if self._expected is None:
            return
        path, folder = self._expected
        there = next((slide for slide in self.session.slides if slide.path == path), None)
        if there is not None:
            self._expected = None
            self.session.choose_slide(there)
            self.load(folder)
