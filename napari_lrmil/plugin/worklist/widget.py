"""The Worklist dock: a folder or table of slides, gone through one by one, with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING

import napari.viewer
from napari.utils.notifications import show_info
from qtpy.QtCore import QFileSystemWatcher, Qt, QTimer
from qtpy.QtGui import QDropEvent, QKeySequence, QShowEvent
from qtpy.QtWidgets import QApplication, QFileDialog, QShortcut, QWidget

from napari_lrmil.core.events import Event, Failed, Finished, Partial
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.worklist.build import read_entry
from napari_lrmil.core.worklist.entry import Status, WorklistEntry
from napari_lrmil.plugin.analyse.widget import AnalyseWidget
from napari_lrmil.plugin.guards import guard_viewer
from napari_lrmil.plugin.qt.docks import find_dock, open_dock, tabify_beside
from napari_lrmil.plugin.qt.errors import show_error
from napari_lrmil.plugin.qt.signals import connect_until_destroyed
from napari_lrmil.plugin.qt.worker import BackgroundWorker, LatestOnly
from napari_lrmil.plugin.viewer.opening.slide_drops import open_dropped_slides
from napari_lrmil.plugin.worklist.cautions import RowCautions
from napari_lrmil.plugin.worklist.dock_layout import WorklistLayout
from napari_lrmil.plugin.worklist.edit_field import takes_text
from napari_lrmil.plugin.worklist.jobs import (
    ReadList,
    ReadListJob,
    RunAllJob,
    Thumbnail,
    ThumbnailsJob,
    kept_answers_text,
    slides_without_answer,
    why_run_all_blocked,
)
from napari_lrmil.plugin.worklist.pager import SlidePager
from napari_lrmil.plugin.worklist.reviewing import Reviewing
from napari_lrmil.plugin.worklist.slide_answers import SlideAnswers
from napari_lrmil.plugin.worklist.slide_order import Arrangement, SlideOrder

if TYPE_CHECKING:
    from napari_lrmil.plugin.session.session import Session

TITLE, ANALYSE_TITLE = "Worklist (LRMIL)", "Analyse (LRMIL)"
RUN_ALL_TIP = "Predict every slide that has no answer"


class WorklistWidget(WorklistLayout):
    """The Worklist dock. Slides are shown with the session of the Analyse dock of its window.

    Parameters
    ----------
    viewer
        The napari viewer. If its window has no Analyse dock, one is opened.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        guard_viewer(viewer)
        open_dropped_slides(viewer, partial(open_worklist, viewer))
        self.order = SlideOrder(is_hidden=lambda entry: self.reviewing.is_hidden(entry))
        self.results: Path | None = None
        self._paths: tuple[Path, ...] = ()
        self._title = ""
        self._notices: tuple[str, ...] = ()
        self._problems: dict[Path, str] = {}  # of slides that could not be opened; no file states them
        self.cautions = RowCautions()
        self._sha256 = ""
        self._thumbnails: BackgroundWorker | None = None
        self._has_analyse = False
        self.pager = SlidePager(viewer, self)
        self._lister = LatestOnly(self._on_list_event, self)
        self._watcher = QFileSystemWatcher(self)
        self.reviewing, self.answers = Reviewing(self), SlideAnswers(self)
        self._connect()
        self.join_analyse()

    @property
    def layer_viewer(self) -> napari.viewer.Viewer:
        """The viewer with the slides."""
        return self._viewer

    def _connect(self) -> None:
        self.folder_button.clicked.connect(self._ask_folder)
        self.table_button.clicked.connect(self._ask_table)
        self.results_button.clicked.connect(self._ask_results)
        self.previous.clicked.connect(lambda _: self.step(-1))
        self.next.clicked.connect(lambda _: self.step(1))
        self.filling.requested.connect(self._start_run_all)
        self.filling.predicted.connect(self._on_predicted)
        self.filling.skipped.connect(self._on_skipped)
        self.filling.failed.connect(self._refresh_named)
        self.filling.ended.connect(self._on_run_all_end)
        self.list.slide_chosen.connect(self.show_slide)
        self.list.arranged.connect(self._arrange)
        self.pager.progress.connect(self.show_status)
        self._watcher.fileChanged.connect(self._on_file_changed)
        for key, by in (("PgDown", 1), ("PgUp", -1)):
            shortcut = QShortcut(QKeySequence(key), self, activated=partial(self.step, by))
            shortcut.setContext(Qt.ShortcutContext.WindowShortcut)
        self.review.edit_ended.connect(self._focus_canvas)
        self.list.search.returnPressed.connect(self._focus_canvas)
        QApplication.instance().focusChanged.connect(self._on_focus_changed)

    def _focus_canvas(self) -> None:
        """Give the keyboard back, so that the next key pages or judges."""
        unwrap(self._viewer).window._qt_viewer.canvas.native.setFocus()

    def _on_focus_changed(self, _: QWidget | None, focus: QWidget | None) -> None:
        """Leave all keys to a text field that has the focus, also those of other docks."""
        for shortcut in self.findChildren(QShortcut):
            shortcut.setEnabled(not takes_text(focus))

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # Qt's name
        """Become a tab beside the Analyse dock, after napari has wrapped this widget in a dock."""
        super().showEvent(event)
        QTimer.singleShot(0, self, self._tabify)

    def _tabify(self) -> None:
        tabify_beside(self, self.analyse)

    # ------------------------------------------------------------ the Analyse dock

    @property
    def session(self) -> Session:
        """The session of the Analyse dock."""
        return self.analyse.session

    def join_analyse(self) -> None:
        """Share the session of the window's Analyse dock; open that dock if it is missing."""
        analyse = find_dock(self._viewer, AnalyseWidget)
        self.analyse = analyse if analyse is not None else open_dock(self._viewer, AnalyseWidget, ANALYSE_TITLE)
        self.analyse.removed.connect(self._on_analyse_removed)
        self._has_analyse = True
        session = self.session
        connect_until_destroyed(
            self, [(session.changed, self._on_session_changed), (session.finished, self.answers.take_run)]
        )
        self.pager.join(session)
        self.reviewing.join(session)
        self._refresh()

    def hide_in_analyse(self, path: Path | None) -> None:
        """Let the Analyse dock say that the answer of a slide is hidden; None for no slide."""
        if self._has_analyse:
            self.analyse.results.set_hidden_slide(path)

    def _on_analyse_removed(self) -> None:
        self.session.changed.disconnect(self._on_session_changed)
        self.session.finished.disconnect(self.answers.take_run)
        self._has_analyse = False
        self.pager.stop()
        self.filling.stop()

    def _on_removed(self) -> None:
        self.reviewing.leave()
        self.hide_in_analyse(None)
        self.pager.stop()
        self._lister.stop()
        self.filling.stop()
        if self._thumbnails is not None:
            self._thumbnails.cancel()

    def _on_session_changed(self) -> None:
        bundle = self.session.bundle
        self.answers.note_model()
        sha256 = bundle.sha256 if bundle is not None else ""
        if sha256 != self._sha256:
            self._sha256 = sha256
            self._on_model_changed()
        self.pager.sync()
        self.reviewing.follow_canvas()
        self._refresh_run_all()

    def _on_model_changed(self) -> None:
        self.reviewing.note_models(self._sha256)
        self.answers.renew()

    # ------------------------------------------------------------ list

    def open_paths(self, paths: Sequence[Path], results: Path | None = None) -> None:
        """Read a list: one table, or folders and files of slides.

        Parameters
        ----------
        paths
            The paths.
        results
            Folder in which results are stored; None looks for it.
        """
        if not paths:
            return
        if not self._has_analyse:
            self.join_analyse()
        self.reviewing.leave()
        self.pager.stop()
        self.filling.stop()
        self._paths = tuple(paths)
        self.show_status("reading the list")
        self._lister.submit(ReadListJob(self._paths, results, self._sha256 or None).events)

    def _ask_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of slides")
        if folder:
            self.open_paths([Path(folder)])

    def _ask_table(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, "Cohort table", "", "Tables (*.csv *.tsv *.txt)")
        if name:
            self.open_paths([Path(name)])

    def _ask_results(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of the results")
        if folder and self.order.entries:
            self.open_paths(self._paths, Path(folder))

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802  # Qt's name
        """Open what was dropped as a list."""
        paths = [Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()]
        event.acceptProposedAction()
        self.open_paths(paths)

    def _on_list_event(self, event: Event) -> None:
        match event:
            case Finished(ReadList() as read):
                self._show_list(read)
            case Failed(message):
                self.show_status("")
                show_error(message)

    def _show_list(self, read: ReadList) -> None:
        self._title, self.results, self._notices = read.title, read.results, read.notices
        self._problems, self.cautions = {}, RowCautions()
        self.order.set_entries(read.entries)
        self.reviewing.open(read.results)
        self.pager.start()
        self.show_status("")
        self._fill_list()
        self._read_thumbnails()
        first = self.order.step(1)
        if first is not None:
            self.show_slide(first)

    def _fill_list(self) -> None:
        self.reviewing.see_listed(self.order.entries)
        self.list.show_order(self.order, self.reviewing.is_hidden)
        self._refresh()

    def _arrange(self, arrangement: Arrangement) -> None:
        self.order.arrange(arrangement)
        self._fill_list()

    def _read_thumbnails(self) -> None:
        if self._thumbnails is not None:
            self._thumbnails.cancel()
        slides = tuple(entry.slide for entry in self.order.entries if not entry.slide.problem)
        self._thumbnails = BackgroundWorker(ThumbnailsJob(slides).events, self._on_thumbnail_event, lambda: None, self)
        self._thumbnails.start()

    def _on_thumbnail_event(self, event: Event) -> None:
        match event:
            case Partial(Thumbnail(path, pixels, problem, is_phantom)):
                if pixels is not None:
                    self.list.show_thumbnail(path, pixels)
                    self._note_kind(path, is_phantom=is_phantom)
                else:
                    self.set_problem(path, problem)

    # ------------------------------------------------------------ entries

    @property
    def current(self) -> WorklistEntry | None:
        """The entry that is shown; None before the first."""
        return self.order.entries[self.order.current] if self.order.current is not None else None

    def set_problem(self, path: Path, problem: str) -> None:
        """Note why a slide cannot be opened; an empty text ends the problem."""
        if problem:
            self._problems[path] = problem
        else:
            self._problems.pop(path, None)
        self.refresh_path(path)

    def refresh_path(self, path: Path) -> None:
        """Read the files of a slide's entry again, if it is in the list, and show it."""
        index = self.order.index_of_path(path)
        if index is not None:
            self.refresh_entry(index)

    def _note_kind(self, path: Path, *, is_phantom: bool) -> None:
        """Note whether a slide is a phantom; the row of tissue says so if its answer is of a model of phantoms."""
        index = self.order.index_of_path(path)
        if is_phantom or index is None:
            return
        self.cautions.note_tissue(path)
        entry = self.order.entries[index]
        noted = self.cautions.add_to(entry, self.session.bundle)
        if noted is not entry:
            self.replace_entry(index, noted)

    def refresh_entry(self, index: int) -> None:
        """Read the files of an entry again, and show it."""
        entry = self.order.entries[index]
        if self.results is None:
            return
        fresh = read_entry(entry.slide, self.results, self.reviewing.verdict(entry.name))
        problem = self._problems.get(entry.path, "")
        if problem and not fresh.problem:
            fresh = replace(fresh, problem=problem)
        self.replace_entry(index, self.cautions.add_to(fresh, self.session.bundle))
        self.reviewing.note_models(self._sha256)

    def replace_entry(self, index: int, entry: WorklistEntry) -> None:
        """Show a changed entry in its row, and in the panel if it is the current one."""
        self.order.entries[index] = entry
        self.reviewing.see_listed([entry])
        self.list.update_entry(index)
        if index == self.order.current:
            self.reviewing.show_current()
        self._refresh()

    def _on_file_changed(self, _: str) -> None:
        if self.order.current is not None:
            self.refresh_entry(self.order.current)

    # ------------------------------------------------------------ one slide

    def step(self, by: int) -> None:
        """Show the slide `by` rows further."""
        index = self.order.step(by)
        if index is not None:
            self.show_slide(index)

    def show_slide(self, index: int) -> None:
        """Show the slide of an entry, and no other one of the list."""
        if index == self.order.current and self.pager.has_arrived:
            return
        if not self._has_analyse:
            self.join_analyse()
        self.reviewing.leave()
        self.order.current = index
        self.refresh_entry(index)
        self.list.show_current(index)
        entry = self.order.entries[index]
        if self._watcher.files():
            self._watcher.removePaths(self._watcher.files())
        if entry.slide.problem or not entry.path.exists():
            self.pager.show_nothing()
            self.answers.prepare_next()
        else:
            self._watcher.addPath(str(entry.path))
            self.pager.show(entry.slide)
        self.reviewing.show_current()

    # ------------------------------------------------------------ run all

    def _start_run_all(self) -> None:
        bundle, slides = self.session.bundle, slides_without_answer(self.order.entries, self.session.bundle)
        if bundle is not None and self.results is not None and slides:
            self._end_skipped()
            name, device = self.session.bundle_name, self.session.choices.device
            folders = {slide.path.parent for slide in slides}
            unchosen = frozenset(folder for folder in folders if not self.session.is_model_for(folder))
            job = RunAllJob(slides, self.results, bundle, name, device, phantoms_only_in=unchosen)
            self.filling.start(job)
            self._refresh_run_all()

    def _end_skipped(self) -> None:
        for path in self.cautions.forget_skipped():
            self.refresh_path(path)

    def _on_skipped(self, path: Path) -> None:
        self.cautions.note_skipped(path)
        self.refresh_path(path)

    def _on_predicted(self, path: Path) -> None:
        self.set_problem(path, "")
        if self.current is not None and self.current.path == path:
            self.answers.fetch()

    def _refresh_named(self, file_name: str) -> None:
        """Show the failures of slides by the names of their files, which the table of failures states."""
        for index, entry in enumerate(self.order.entries):
            if printable(entry.path.name) == file_name:
                self.refresh_entry(index)

    def _on_run_all_end(self) -> None:
        failed = self.order.count([Status.FAILED])
        if failed:
            show_info(_failed_text(failed))
        if self.cautions.skipped_text:
            show_info(self.cautions.skipped_text)
        self._refresh()

    # ------------------------------------------------------------ refresh

    def _refresh(self) -> None:
        self.show_summary(self.order, self._title, self.results, self._notices)
        self._refresh_run_all()

    def _refresh_run_all(self) -> None:
        entries, bundle = self.order.entries, self.session.bundle
        tip = f"{RUN_ALL_TIP}. {kept_answers_text(entries, bundle)}".strip()
        self.filling.refresh(why_run_all_blocked(entries, bundle), tip)


def _failed_text(count: int) -> str:
    slides = format_count(count, "slide of the list has", "slides of the list have")
    return f"{slides} failed; {'its row says' if count == 1 else 'their rows say'} why."


def open_worklist(viewer: napari.viewer.Viewer, paths: Sequence[Path]) -> WorklistWidget:
    """Open slides, folders or a table in the Worklist dock of a window; add the dock if there is none."""
    dock = open_dock(viewer, WorklistWidget, TITLE)
    dock.open_paths(paths)
    return dock
