"""Verdicts of the reviewer of a Worklist dock: stored with every click, hidden answers revealed, annotations kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari.utils.notifications import show_info

from napari_lrmil.core.errors import ReviewError
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.worklist.build import note_other_models
from napari_lrmil.core.worklist.entry import WorklistEntry
from napari_lrmil.core.worklist.review import REVIEW_FILE, ReviewFile, ReviewRow, Verdict, time_now
from napari_lrmil.core.worklist.seen import ANYBODY, SEEN_FILE, SeenAnswers, Where
from napari_lrmil.core.worklist.verdicts import blind_verdict, open_verdict
from napari_lrmil.plugin.qt.errors import show_error, show_errors
from napari_lrmil.plugin.worklist.annotation_layer import AnnotationLayer
from napari_lrmil.plugin.worklist.review_panel import OPENING

if TYPE_CHECKING:
    from napari_lrmil.plugin.session.session import Session
    from napari_lrmil.plugin.worklist.widget import WorklistWidget

OTHER_SLIDE = "The canvas shows another slide ({name}). Choose a slide of the list to go on."
NOT_ON_CANVAS = "The canvas does not show this slide. Choose a slide of the list to go on."
SEEN_BEFORE = "You have seen this answer before, so your verdict is not stored as blind."
NAMELESS_BEFORE = (
    "This answer was shown to somebody who entered no name, so your verdict is not stored as blind. If it was not you, "
    f"enter who it was in the rows of {SEEN_FILE} that have no reviewer, then open the list again."
)
UNKNOWN_SEEN = f"{SEEN_FILE} cannot be read, so your verdict is not stored as blind."


class Reviewing:
    """Connects the review panel of a dock with ``review.csv`` and with the annotations of the slide.

    Parameters
    ----------
    dock
        The dock.
    """

    def __init__(self, dock: WorklistWidget) -> None:
        self._dock, self._panel = dock, dock.review
        self._session: Session | None = None
        self._results: Path | None = None
        self._file: ReviewFile | None = None
        self._seen_file: SeenAnswers | None = None
        self._seen_files: dict[Path, SeenAnswers] = {}  # of all lists of this session
        # Name and slides whose answer was on the canvas, also of slides outside the list.
        self._seen: set[tuple[str, Path]] = set()
        self._has_told_unwritten = False
        self._reader = ""  # whose verdicts are shown
        self._drafts: dict[Path, str] = {}  # comments without a verdict
        self._absence = ""  # sentence that the panel shows
        self._class_to_draw = ""  # once the slide that is being opened is there
        self.annotations = AnnotationLayer(
            dock.layer_viewer, show_error, self._show_count, self._panel.draw.setChecked, dock
        )
        panel = self._panel
        panel.verdict_given.connect(self.give)
        panel.class_given.connect(self.give_blind)
        panel.comment_edited.connect(self.store_comment)
        panel.undo_requested.connect(self.undo)
        panel.reviewer_changed.connect(self.set_reviewer)
        panel.blind_toggled.connect(self._on_blind_toggled)
        panel.draw_requested.connect(self._start_drawing)
        panel.draw_ended.connect(self._stop_drawing)
        panel.class_typed.connect(self.annotations.set_next_class)
        panel.class_chosen.connect(self._choose_class)

    def join(self, session: Session) -> None:
        """Use a session from now on."""
        if self._session is None:  # before a list is open, so that no answer is shown first
            self._panel.blind.setChecked(session.settings_store.remembered_blind())
        self._session = session
        if not self._panel.reviewer.text():
            self._panel.reviewer.setText(session.settings_store.remembered_reviewer())

    @property
    def reviewer(self) -> str:
        """Name of the reviewer; empty without one."""
        return str(self._panel.reviewer.text()).strip()

    # ------------------------------------------------------------ file

    def open(self, results: Path) -> None:
        """Read the verdicts in a folder of results into the entries of the dock."""
        self._results, self._drafts = results, {}
        self._seen_file = show_errors(lambda: self._open_seen(results / SEEN_FILE))
        self._has_told_unwritten = False
        self._open_file()
        self._show_verdicts()

    def _open_seen(self, path: Path) -> SeenAnswers:
        if path in self._seen_files:
            self._seen_files[path].refresh()
        else:
            self._seen_files[path] = SeenAnswers(path)
        return self._seen_files[path]

    def _open_file(self) -> None:
        """Open ``review.csv``; one that is no table of verdicts is shown as an error and left alone."""
        self._file = None
        if self._results is not None:
            results = self._results
            self._file = show_errors(lambda: ReviewFile(results / REVIEW_FILE, self.reviewer))
        if self._file is not None and self._file.reviewer != self.reviewer:
            self._panel.reviewer.show_text(self._file.reviewer)
        self._reader = self.reviewer

    def _take_over(self) -> None:
        """Let the reviewer have seen what this session has shown before a name was entered."""
        if self._reader:
            self._seen = {(name or self._reader, path) for name, path in self._seen}
            for file in self._seen_files.values():
                show_errors(partial(file.take_over, self._reader))

    def set_reviewer(self, name: str) -> None:
        """Give verdicts under another name."""
        if self._file is not None and self._file.table.spelling_of(name) == self._file.reviewer:
            self._panel.reviewer.show_text(self._file.reviewer)
            return
        self._open_file()
        if self._session is not None:
            show_errors(partial(self._session.settings_store.remember_reviewer, self._reader))
        self._take_over()
        entry = self._dock.current
        if entry is not None and self._session is not None and self._session.prediction is not None:
            self.see(self._session.prediction.path)  # the answer is on the canvas
        self._show_verdicts()
        self._show_list()
        self.open_annotations()

    def verdict(self, slide: str) -> ReviewRow | None:
        """Return the reviewer's verdict on a slide, or None."""
        return self._file.table.verdict(slide, self._file.reviewer) if self._file is not None else None

    def _show_verdicts(self) -> None:
        """Show the verdicts of the file in all entries that they change."""
        verdicts = self._file.verdicts if self._file is not None else {}
        entries = self._dock.order.entries
        self.see_listed([replace(entry, review=verdicts.get(entry.name)) for entry in entries])  # in one write
        for index, entry in enumerate(entries):
            review = verdicts.get(entry.name)
            if review != entry.review:
                self._dock.replace_entry(index, replace(entry, review=review))
        self.show_current()

    def note_models(self, sha256: str) -> None:
        """Show in the entries which answers are of another model than the chosen one."""
        entries = self._dock.order.entries
        for index, entry in enumerate(note_other_models(entries, sha256 or None)):
            if entry is not entries[index]:
                self._dock.replace_entry(index, entry)

    # ------------------------------------------------------------ verdicts

    def give(self, verdict: Verdict, label: str) -> None:
        """Store a verdict on the current slide."""
        entry = self._dock.current
        if entry is None or self.why_absent(entry) or self.is_hidden(entry):
            return
        if entry.answer is not None or verdict is Verdict.UNSURE:
            self._record(open_verdict(entry, verdict, label=label, comment=self._panel.comment.text()))

    def give_blind(self, label: str) -> None:
        """Store the class that the reviewer gave before the answer was shown, then show the answer."""
        entry = self._dock.current
        if entry is None or self.why_absent(entry) or not self.is_hidden(entry):
            return
        if entry.answer is not None or not label:
            is_blind = not self.why_not_blind(entry)
            self._record(blind_verdict(entry, label, comment=self._panel.comment.text(), is_blind=is_blind))
            self._dock.answers.show()

    def store_comment(self) -> None:
        """Store a changed comment with the verdict; without a verdict it waits for one."""
        entry, comment = self._dock.current, self._panel.comment.text().strip()
        if entry is None:
            return
        if entry.review is None:
            self._drafts[entry.path] = comment
        elif entry.review.comment != comment:
            self._record(replace(entry.review, comment=comment, time=time_now()))

    def _record(self, row: ReviewRow) -> None:
        file = self._ready_file()
        if file is None:
            return
        try:
            file.record(row)
        except ReviewError as error:
            show_error(str(error))
        self._show_verdicts()

    def _ready_file(self) -> ReviewFile | None:
        if self._file is None:
            self._open_file()  # it may have been mended meanwhile
        return self._file

    def undo(self) -> None:
        """Take the last verdict back, say so, and show its slide."""
        file = self._ready_file()
        if file is None:
            return
        step = show_errors(file.undo)
        self._show_verdicts()
        if step is None:
            return
        show_info(step.text)
        index = next((i for i, entry in enumerate(self._dock.order.entries) if entry.name == step.slide), None)
        if index is not None:
            self._dock.show_slide(index)
            self._dock.answers.show()  # or hide it again

    # ------------------------------------------------------------ blind reading

    def is_hidden(self, entry: WorklistEntry) -> bool:
        """Return whether the answer of an entry is hidden until the verdict."""
        return entry.answer is not None and self.is_unseen(entry)

    def is_unseen(self, entry: WorklistEntry) -> bool:
        """Return whether an answer for the slide of an entry would spoil a blind verdict."""
        return self._is_blind and entry.review is None and not self._was_on_canvas(entry)

    @property
    def _is_blind(self) -> bool:
        return bool(self._panel.blind.isChecked())

    def _was_on_canvas(self, entry: WorklistEntry) -> bool:
        if self._seen & {(ANYBODY, entry.path), (self._reader, entry.path)}:
            return True
        return self._seen_file is not None and self._seen_file.was_seen(entry.name, self._reader, Where.CANVAS)

    def why_not_blind(self, entry: WorklistEntry) -> str:
        """Return why a verdict would not count as blind; empty if it would, or if the reviewer has seen the answer."""
        if self._seen_file is None:
            return UNKNOWN_SEEN
        if self._reader and self._seen_file.was_seen_by_anybody(entry.name):
            return NAMELESS_BEFORE
        if not self.is_hidden(entry):
            return ""
        return SEEN_BEFORE if self._seen_file.was_seen(entry.name, self._reader, Where.LIST) else ""

    def see(self, path: Path) -> None:
        """Note that the answer of a slide is shown on the canvas: its verdict cannot be blind any more.

        One that a blind verdict has revealed is hidden again if the verdict is taken back, as those in the list are.
        """
        entries = [entry for entry in self._dock.order.entries if entry.path == path]
        is_revealed = self._is_blind and any(entry.review is not None for entry in entries)
        if not is_revealed:
            self._seen.add((self._reader, path))
        self._note([entry.name for entry in entries], Where.LIST if is_revealed else Where.CANVAS)

    def see_listed(self, entries: Iterable[WorklistEntry]) -> None:
        """Note that the list shows the answers of these entries which are not hidden."""
        shown = [entry for entry in entries if entry.answer is not None and not self.is_hidden(entry)]
        self._note([entry.name for entry in shown if not self._was_on_canvas(entry)], Where.LIST)

    def _note(self, slides: Sequence[str], where: Where) -> None:
        if self._seen_file is None:
            return
        try:
            self._seen_file.add(slides, self._reader, where)
        except ReviewError as error:
            if not self._has_told_unwritten:  # else each slide would say so
                self._has_told_unwritten = True
                show_info(str(error))

    def _on_blind_toggled(self, is_blind: bool) -> None:
        if self._session is not None:
            show_errors(partial(self._session.settings_store.remember_blind, is_blind))
        self._dock.order.arrange(self._dock.order.arrangement)  # an order by class would tell it
        self._show_list()
        self.show_current()
        self._dock.answers.show()

    def _show_list(self) -> None:
        """Show the answers in the list that are not hidden, and hide the others."""
        self.see_listed(self._dock.order.entries)
        self._dock.list.show_order(self._dock.order, self.is_hidden)

    # ------------------------------------------------------------ the current slide

    def show_current(self) -> None:
        """Show the answer and the verdict of the current slide."""
        entry = self._dock.current
        draft = self._drafts.get(entry.path, "") if entry is not None else ""
        is_hidden = entry is not None and self.is_hidden(entry)
        is_asked = entry is not None and entry.review is None and entry.answer is not None
        caution = self.why_not_blind(entry) if is_asked and entry is not None and self._is_blind else ""
        self._absence = self.why_absent(entry) if entry is not None else ""
        self._panel.show_entry(entry, is_hidden=is_hidden, draft=draft, caution=caution, absence=self._absence)
        self._dock.hide_in_analyse(entry.path if entry is not None and is_hidden else None)
        self._panel.enable_undo(is_possible=self._file is not None and self._file.can_undo)

    def why_absent(self, entry: WorklistEntry) -> str:
        """Return why the canvas does not show a slide that is current; empty if it does, or if the slide failed."""
        pager, slide = self._dock.pager, self._session.slide if self._session is not None else None
        if slide is not None and not pager.is_on_canvas(slide.path):  # the session learns of a removal later
            slide = None
        if (pager.has_arrived and pager.wanted == entry.path) or (slide is None and entry.problem):
            return ""
        if pager.is_opening:
            return OPENING
        return OTHER_SLIDE.format(name=printable(slide.path.name)) if slide is not None else NOT_ON_CANVAS

    def follow_canvas(self) -> None:
        """Notice that the user has opened another slide, or returned to that of the list."""
        entry = self._dock.current
        absence = self.why_absent(entry) if entry is not None else ""
        if absence == self._absence:
            return
        if absence:
            self.annotations.close()
        self.show_current()

    def open_annotations(self) -> None:
        """Show the reviewer's annotations of the slide on the canvas."""
        entry, session = self._dock.current, self._session
        if entry is None or session is None or self._results is None or not self._dock.pager.has_arrived:
            return
        slide, class_to_draw = show_errors(lambda: session.opened_slide), self._class_to_draw
        if slide is not None:
            self.annotations.open(self._results, entry.name, slide, self.reviewer)
        self.stop_waiting()
        if class_to_draw:
            self.annotations.start_drawing(class_to_draw)

    def _start_drawing(self, name: str) -> None:
        """Draw regions of a class; on a slide that is being opened, as soon as it is there."""
        self._dock.answers.leave_side_by_side()
        if self.annotations.is_open or self._dock.current is None or self._dock.current.problem:
            self.annotations.start_drawing(name)
        else:
            self._class_to_draw = name

    def _stop_drawing(self) -> None:
        self._class_to_draw = ""
        self.annotations.stop_drawing()

    def stop_waiting(self) -> None:
        """Draw on no slide that is being opened, because another one is chosen or it cannot be opened."""
        if self._class_to_draw:
            self._stop_drawing()

    def _choose_class(self, name: str) -> None:
        changed = self.annotations.choose_class(name)
        if changed:
            annotations = format_count(changed, "selected annotation is", "selected annotations are")
            show_info(f"{annotations} now {name.strip()}.")

    def leave(self) -> None:
        """Store what is not stored yet of the current slide."""
        self.store_comment()
        self.stop_waiting()
        self.annotations.close()

    def _show_count(self, count: int) -> None:
        self._panel.annotations.setText(format_count(count, "annotation") if count else "")
