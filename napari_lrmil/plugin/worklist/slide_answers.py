"""Answers for the slides of a Worklist dock: restored or computed, shown, stored, and prepared for the next slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.plugin.qt.docks import find_dock
from napari_lrmil.plugin.viewer.maps.attention_layers import CompareMode, CompareView
from napari_lrmil.plugin.worklist.answer_jobs import (
    AnswerJob,
    SlideAnswer,
    StoreAnswerJob,
    shipped_model_of,
    why_not_stored,
)
from napari_lrmil.plugin.worklist.cautions import model_caution
from napari_lrmil.plugin.worklist.pager import MAX_ANSWERS
from napari_lrmil.plugin.worklist.run_store import RunStore

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.patching.regions import Region
    from napari_lrmil.core.worklist.entry import WorklistEntry
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.worklist.widget import WorklistWidget

SINGLE_VIEW = CompareMode(view="wipe", wipe=1 << 20)  # more columns than a slide has: the student's map alone
SAME_PX = 0.01  # of level 0, between two conversions of one outline


@dataclass(frozen=True, eq=False)  # it holds arrays
class _PartAnswer:
    """Answer for a part of a slide, and the slide as it was opened: another resolution gives other patches."""

    slide: SlideChoice
    prediction: Prediction


class SlideAnswers:
    """Connects the pager of a dock with the session of the Analyse dock and with the folder of results.

    Parameters
    ----------
    dock
        The dock, which has its pager.

    Attributes
    ----------
    run_store
        Stores the answers of runs that the user has started in the Analyse dock.
    """

    def __init__(self, dock: WorklistWidget) -> None:
        self._dock = dock
        self._model = ""  # name of the model that the user chose for a slide of the list
        self._parts: dict[Path, _PartAnswer] = {}  # last runs of few slides, of which no file has the answer
        self.run_store = RunStore(dock)
        self.run_store.stored.connect(self._on_stored)
        dock.pager.arrived.connect(self._on_arrived)
        dock.pager.answered.connect(self._on_answered)
        dock.pager.failed.connect(self._on_failed)

    def note_model(self) -> None:
        """Note the model that the user has chosen for a slide of the list: the list has one model."""
        if self._dock.pager.has_arrived and not self._dock.session.is_model_automatic:
            self._model = self._dock.session.bundle_name

    def renew(self) -> None:
        """Get the answer of the current slide again, because another model was chosen."""
        dock = self._dock
        if dock.pager.has_arrived and dock.current is not None:
            dock.pager.forget(dock.current)
            self.fetch()

    # ------------------------------------------------------------ the current slide

    def _on_arrived(self, path: Path) -> None:
        dock = self._dock
        entry = dock.current
        if entry is None or entry.path != path:
            return
        if not dock.session.bundle_name:  # each subfolder has a model of its own, a list has one
            model = self._model or self._model_of_answer(entry)
            if model:
                dock.analyse.open_model(model)
        dock.reviewing.open_annotations()
        dock.set_problem(path, "")
        if dock.pager.answer(path) is None:
            self.show()  # the answer for a part of the slide, if there is one
            self.fetch()
        else:
            self._on_answered(path)

    def _model_of_answer(self, entry: WorklistEntry) -> str:
        """Return the shipped model of a stored answer; empty if it knows phantoms only and the slide is tissue."""
        slide, answer = self._dock.session.slide, entry.answer
        is_tissue = slide is not None and not slide.is_phantom
        if answer is None or (is_tissue and model_caution(answer, None)):
            return ""
        return shipped_model_of(answer)

    def fetch(self) -> None:
        """Restore or compute the answer of the current slide, if the session shows it."""
        slide, entry = self._dock.session.slide, self._dock.current
        if entry is None or slide is None or slide.path != entry.path:
            return
        job = self._answer_job(entry, slide)
        if job is not None:
            self._dock.pager.fetch_answer(job)

    def _answer_job(self, entry: WorklistEntry, choice: SlideChoice) -> AnswerJob | None:
        dock, session = self._dock, self._dock.session
        if session.bundle is None or dock.results is None:
            return None
        may_compute = choice.is_phantom or session.is_model_for(choice.path.parent)
        return AnswerJob(
            entry,
            choice,
            dock.results,
            session.bundle,
            session.choices.device,
            session.open_slides,
            session.cache,
            computes=may_compute and not dock.filling.is_running and not session.is_busy,
        )

    def _on_answered(self, path: Path) -> None:
        dock = self._dock
        index = dock.order.index_of_path(path)
        if index is None:
            return
        dock.refresh_entry(index)
        if index == dock.order.current:
            self.show()
            self.prepare_next()

    def _on_failed(self, path: Path, problem: str) -> None:
        dock = self._dock
        dock.set_problem(path, problem)
        if dock.current is not None and path == dock.current.path:
            dock.reviewing.stop_waiting()
            dock.reviewing.show_current()
            self.prepare_next()

    def prepare_next(self) -> None:
        """Open the next slide of the list, and get its answer, while the user reads the current one."""
        order, pager = self._dock.order, self._dock.pager
        following = order.step(1)
        entry = order.entries[following] if following is not None else None
        if entry is None or entry.slide.problem or not entry.path.exists():
            pager.prepare(None, lambda _: None)
        else:
            pager.prepare(entry.slide, partial(self._answer_job, entry))

    # ------------------------------------------------------------ canvas

    def show(self) -> None:
        """Show the answer of the current slide on the canvas, unless it is hidden until the verdict."""
        dock = self._dock
        entry = dock.current
        if entry is None or not dock.pager.has_arrived:
            return
        if dock.reviewing.is_hidden(entry):
            if dock.session.prediction is not None:  # of a verdict that was taken back
                dock.session.forget_shown()
            return
        part = self._part_of(entry)
        if part is not None and part is dock.session.prediction:
            return
        prediction = part or dock.pager.answer(entry.path)
        if prediction is not None:
            dock.reviewing.see(entry.path)
            if prediction.teacher is not None and not self._has_compare():
                self._set_view("side", SINGLE_VIEW)
            if part is not None:
                self._choose_part(part)
            dock.session.show_stored(prediction)

    def _has_compare(self) -> bool:
        from napari_lrmil.plugin.compare.widget import CompareWidget  # here, because few readers compare

        return find_dock(self._dock.layer_viewer, CompareWidget) is not None

    def leave_side_by_side(self) -> None:
        """Show student and teacher in one view, because napari cannot draw in two."""
        self._set_view("side", replace(self._dock.analyse.result_view.compare_mode, view="wipe"))

    def _set_view(self, before: CompareView, mode: CompareMode) -> None:
        view = self._dock.analyse.result_view
        if view.compare_mode.view == before:
            view.set_compare_mode(mode)

    # ------------------------------------------------------------ runs of the user

    def take_run(self, prediction: Prediction) -> None:
        """Store an answer that the user has computed in the Analyse dock. One that the list has shown is stored."""
        dock, path = self._dock, prediction.path
        dock.reviewing.see(path)
        dock.refresh_path(path)  # a list that is read blind hides it no longer
        if prediction is dock.pager.answer(path) or prediction is self._part(path):
            return
        slide = next((slide for slide in dock.session.slides if slide.path == path), None)
        self._keep_part(slide, prediction)
        view = dock.analyse.result_view
        if prediction.teacher is not None and view.compare_mode == SINGLE_VIEW:
            view.set_compare_mode(CompareMode())  # the user has asked for the teacher
        index = dock.order.index_of_path(path)
        if index is None or dock.results is None:
            return
        entry = dock.order.entries[index]
        reason = why_not_stored(entry, prediction)
        dock.show_status(reason)
        if not reason:
            mpp = slide.given_mpp if slide else entry.slide.mpp
            self.run_store.store(StoreAnswerJob(entry.slide, mpp, dock.results, prediction))

    # ------------------------------------------------------------ runs on a part of a slide

    def _keep_part(self, slide: SlideChoice | None, prediction: Prediction) -> None:
        """Keep the answer of a run for drawn regions or a view, until another run. Steps of "what if" end with a slide.

        Few are kept: they hold arrays.
        """
        scope = prediction.scope
        self._parts.pop(prediction.path, None)
        if slide is not None and scope.regions and not (scope.included or scope.excluded):
            self._parts[prediction.path] = _PartAnswer(slide, prediction)
        for path in list(self._parts)[:-MAX_ANSWERS]:
            del self._parts[path]

    def _part(self, path: Path) -> Prediction | None:
        return self._parts[path].prediction if path in self._parts else None

    def _part_of(self, entry: WorklistEntry) -> Prediction | None:
        """Return the answer for a part of the current slide that may come back: of this model and of these regions."""
        session, part = self._dock.session, self._parts.get(entry.path)
        if part is None or part.slide != session.slide or self._dock.reviewing.is_unseen(entry):
            return None
        scope = part.prediction.scope
        is_drawn = scope.kind == "view" or _are_alike(scope.regions, session.regions)
        is_of_model = session.bundle is not None and session.bundle.sha256 == part.prediction.bundle_sha256
        return part.prediction if is_drawn and is_of_model else None

    def _choose_part(self, prediction: Prediction) -> None:
        """Choose what an answer is about as the part of the slide."""
        session, scope = self._dock.session, prediction.scope
        if scope.kind == "view":
            session.set_view(scope.regions[0])
            session.choose_roi_kind("view")
        else:
            session.use_drawn_regions()

    def _on_stored(self, answer: SlideAnswer) -> None:
        self._dock.pager.keep_answer(answer.path, answer.prediction)
        self._dock.set_problem(answer.path, "")


def _are_alike(analysed: Sequence[Region], drawn: Sequence[Region]) -> bool:
    """Return whether the drawn regions are those of an answer: the user may have changed them since."""
    return len(analysed) == len(drawn) and all(
        a.geometry.equals_exact(d.geometry, SAME_PX) for a, d in zip(analysed, drawn, strict=True)
    )
