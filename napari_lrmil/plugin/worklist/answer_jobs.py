"""Background jobs for answers of a worklist: restore one, compute and store one, store one of a run. No Qt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.cohort.task import SlideJob, one_line
from napari_lrmil.core.errors import LrmilError, StoredError
from napari_lrmil.core.events import Event, Finished, Partial, Progress
from napari_lrmil.core.models.bundle import Bundle, shipped_bundles
from napari_lrmil.core.results.cohort_tables import write_failure_rows, write_predictions_table
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.plugin.session.jobs import PredictJob, reserve_core_for_window
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice

if TYPE_CHECKING:
    from napari_lrmil.core.features.embedding_cache import EmbeddingCache
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.worklist.entry import ListedSlide, StoredAnswer, WorklistEntry

EXPECTED_ERRORS = (LrmilError, OSError, MemoryError)  # of a single slide: the row says so, the others go on
PART_NOT_STORED = "This answer is of a part of the slide. The list stores answers of whole slides only."
OTHER_KEPT = "The stored answer of {model} is kept. Results… chooses another folder for this one."


@dataclass(frozen=True, eq=False)  # it holds arrays
class SlideAnswer:
    """Answer for a slide of the list: restored, or computed and stored now."""

    path: Path
    prediction: Prediction


@dataclass(frozen=True)
class SlideProblem:
    """Reason why a slide has no answer."""

    path: Path
    problem: str


@dataclass(frozen=True)
class AnswerJob:
    """Restores the stored answer of a slide, or computes and stores one; then finds its tissue for the session.

    Attributes
    ----------
    entry, choice
        The slide in the list and in the session.
    results
        Folder of all results.
    bundle, device
        Model and device.
    open_slides, cache
        Slides that are open for analysis, and embeddings.
    computes
        Whether an answer is computed if none is stored.
    """

    entry: WorklistEntry
    choice: SlideChoice
    results: Path
    bundle: Bundle
    device: str
    open_slides: OpenSlides
    cache: EmbeddingCache
    computes: bool

    def events(self) -> Iterator[Event]:
        """Yield progress and `Partial` with a `SlideAnswer` or a `SlideProblem`."""
        path = self.entry.path
        reserve_core_for_window()
        try:
            if self._is_stored:
                yield Partial(SlideAnswer(path, self._restore()))
            elif self.computes and self.entry.answer is None:  # that of another model is kept
                yield from self._compute()
            self.open_slides.get_tissue_grid(self.choice, self.bundle)
        except EXPECTED_ERRORS as error:
            yield Partial(SlideProblem(path, one_line(error, prefix=f"{path}: ")))

    @property
    def _is_stored(self) -> bool:
        answer = self.entry.answer
        return answer is not None and answer.bundle_sha256 == self.bundle.sha256

    def _restore(self) -> Prediction:
        from napari_lrmil.core.results.reader import restore_answer

        return restore_answer(self.results / self.entry.name, self.open_slides.get_slide(self.choice), self.bundle)

    def _compute(self) -> Iterator[Event]:
        job = PredictJob(self.choice, self.bundle, self.device, self.open_slides, self.cache)
        with closing(job.events()) as events:  # type: ignore[type-var]  # generators close
            for event in events:
                if isinstance(event, Finished):
                    store_answer(self.results, self.open_slides.get_slide(self.choice), event.result, self.entry.slide)
                    yield Partial(SlideAnswer(self.entry.path, event.result))
                elif isinstance(event, Progress):
                    yield event


@dataclass(frozen=True)
class StoreAnswerJob:
    """Stores the answer of a run that the user has started in the Analyse dock.

    Attributes
    ----------
    listed
        The slide in the list.
    mpp
        µm per level-0 pixel as the user gave it; None if the file states it.
    results
        Folder of all results.
    prediction
        The answer.
    """

    listed: ListedSlide
    mpp: float | None
    results: Path
    prediction: Prediction

    def events(self) -> Iterator[Event]:
        """Yield `Partial` with a `SlideAnswer`.

        Raises
        ------
        LrmilError
            If the slide cannot be opened any more, or the answer cannot be stored.
        """
        with Slide(self.listed.path, mpp=self.mpp) as slide:
            store_answer(self.results, slide, self.prediction, self.listed)
        yield Partial(SlideAnswer(self.listed.path, self.prediction))


def why_not_stored(entry: WorklistEntry, prediction: Prediction) -> str:
    """Return why the list does not store the answer of a run; empty if it does."""
    if not prediction.scope.is_whole_slide:
        return PART_NOT_STORED
    answer = entry.answer
    if answer is not None and answer.bundle_sha256 != prediction.bundle_sha256:
        return OTHER_KEPT.format(model=answer.model_text)
    return ""


def shipped_model_of(answer: StoredAnswer | None) -> str:
    """Return the name of the shipped model that gave a stored answer; empty if it was another model or version."""
    return _shipped_name(answer.bundle, answer.bundle_sha256) if answer is not None else ""


@lru_cache  # the hash of a model reads its files, which takes too long for each row
def _shipped_name(name: str, sha256: str) -> str:
    return name if name in shipped_bundles() and Bundle(name).sha256 == sha256 else ""


def store_answer(results: Path, slide: Slide, prediction: Prediction, listed: ListedSlide) -> None:
    """Write the result files of a slide as ``predict`` does, and list it in ``predictions.csv``.

    Raises
    ------
    LrmilError
        If the folder cannot be written, or holds results of a newer version.
    """
    from napari_lrmil.core.results.writer import require_result_folder, write_steps

    require_result_folder(results / slide.name, listed.path)
    try:
        for _ in write_steps(results, slide, prediction, path=listed.path_in_cohort):
            pass
        write_failure_rows(results, [], {SlideJob(listed.path).file_name})
        write_predictions_table(results)
    except OSError as error:
        reason = f"the result was not stored ({error.strerror}); choose another folder of results"
        raise StoredError(results, reason) from error
