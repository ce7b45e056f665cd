"""Background jobs of the worklist as streams of events: thumbnails, opening ahead, and running all. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_lrmil.core.cohort.run import CohortProgress, run_cohort
from napari_lrmil.core.cohort.task import SerialBackend, SlideJob, one_line
from napari_lrmil.core.errors import LrmilError, ResolutionError, SlideError, StoredError
from napari_lrmil.core.events import Event, Finished, Partial, Progress
from napari_lrmil.core.results.cohort_tables import write_failure_rows, write_predictions_table
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import is_table
from napari_lrmil.core.visualize.overlay import slide_thumbnail
from napari_lrmil.core.worklist.build import find_results_folder, list_folder, read_entries
from napari_lrmil.plugin.session.jobs import PredictJob, reserve_core_for_window
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice
from napari_lrmil.plugin.viewer.layers import read_tag
from napari_lrmil.plugin.viewer.reader import read_slide_layers

if TYPE_CHECKING:
    from napari_lrmil.core.features.embedding_cache import EmbeddingCache
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.slides.slide import Pixels
    from napari_lrmil.core.worklist.entry import ListedSlide, WorklistEntry
    from napari_lrmil.plugin.viewer.layers import LayerData

THUMBNAIL_PX = 48
OVERVIEW_PX = 1024, 4096  # longer side of the level that napari shows if the whole slide is in view
EXPECTED_ERRORS = (LrmilError, OSError, MemoryError)  # of a single slide: the row says so, the others go on


# ---------------------------------------------------------------- list


@dataclass(frozen=True)
class ReadList:
    """A list of slides as it was read.

    Attributes
    ----------
    title
        Name of the folder or table.
    results
        Folder of the results.
    entries
        Its rows, without verdicts.
    notices
        Sentences on what was left out.
    """

    title: str
    results: Path
    entries: tuple[WorklistEntry, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadListJob:
    """Reads the slides at some paths: one table, or folders and files.

    Attributes
    ----------
    paths
        The paths.
    results
        Folder of the results; None looks for it, see `find_results_folder`.
    model_sha256
        Hash of the chosen model, see `read_entries`.
    """

    paths: tuple[Path, ...]
    results: Path | None = None
    model_sha256: str | None = None

    def events(self) -> Iterator[Event]:
        """Yield `Finished` with a `ReadList`.

        Raises
        ------
        LrmilError
            If a table cannot be read, or nothing is a slide.
        """
        first = self.paths[0]
        yield Progress("reading the list", 0, 1, "list")
        if is_table(first) and len(self.paths) == 1:
            from lrmil_training.data.listed_slides import list_table

            listing, root = list_table(first), first.parent
        else:
            listing, root = list_folder(self.paths), first if first.is_dir() else first.parent
        if not listing.slides:
            raise SlideError(first, "; ".join(("no slide here", *listing.notices)))
        results = self.results or find_results_folder(root, listing.slides)
        entries = read_entries(listing.slides, results, model_sha256=self.model_sha256)
        yield Finished(ReadList(first.name or str(first), results, tuple(entries), listing.notices))


# ---------------------------------------------------------------- thumbnails


@dataclass(frozen=True)
class Thumbnail:
    """Small picture of a slide, or the reason why there is none.

    Attributes
    ----------
    path
        The slide's file.
    pixels
        (height, width, 3) uint8, at most `THUMBNAIL_PX` squared; None if the slide cannot be read.
    problem
        Why it cannot be read; empty if it can.
    """

    path: Path
    pixels: Pixels | None
    problem: str = ""


@dataclass(frozen=True)
class ThumbnailsJob:
    """Reads a small picture of each slide, which also shows which slides are broken."""

    slides: tuple[ListedSlide, ...]

    def events(self) -> Iterator[Event]:
        """Yield `Partial` with a `Thumbnail` for each slide."""
        reserve_core_for_window()
        for done, slide in enumerate(self.slides):
            yield Partial(read_thumbnail(slide))
            yield Progress("thumbnails", done + 1, len(self.slides), "slides")


def read_thumbnail(slide: ListedSlide) -> Thumbnail:
    """Return the thumbnail of a slide; a slide that cannot be read has a problem instead."""
    try:
        with Slide(slide.path, mpp=slide.mpp) as opened:
            return Thumbnail(slide.path, slide_thumbnail(opened, THUMBNAIL_PX)[0])
    except EXPECTED_ERRORS as error:
        return Thumbnail(slide.path, None, one_line(error, prefix=f"{slide.path}: "))


# ---------------------------------------------------------------- one slide


@dataclass(frozen=True, eq=False)  # it holds layers and arrays
class OpenedSlide:
    """A slide that is ready for the canvas.

    Attributes
    ----------
    path
        The slide's file.
    layers
        Its layers; none if it needs a question to the user, or cannot be opened.
    problem
        Why it cannot be opened; empty if it can.
    asks_mpp
        Whether its resolution must be asked for.
    """

    path: Path
    layers: tuple[LayerData, ...] = ()
    problem: str = ""
    asks_mpp: bool = False

    @property
    def choice(self) -> SlideChoice | None:
        """The slide as the session names it; None without layers."""
        if not self.layers:
            return None
        options = self.layers[-1][1]
        tag = read_tag(options["metadata"])
        if tag is None:
            return None
        return SlideChoice(options["name"], tag.path, tag.mpp, tag.given_mpp, tag.is_phantom)


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
class OpenSlideJob:
    """Opens a slide for the canvas and reads what a view of all of it shows, so that showing it takes no time.

    Attributes
    ----------
    slide
        The slide.
    cache_bytes
        Upper bound of its decoded tiles in memory.
    """

    slide: ListedSlide
    cache_bytes: int

    def events(self) -> Iterator[Event]:
        """Yield `Partial` with an `OpenedSlide`."""
        yield Partial(self.open())

    def open(self) -> OpenedSlide:
        """Return the slide; a fault becomes part of it."""
        path = self.slide.path
        try:
            layers = read_slide_layers(path, self.slide.mpp, cache_bytes=self.cache_bytes)
            _read_overview(layers[-1][0])
        except ResolutionError:
            return OpenedSlide(path, asks_mpp=True)
        except EXPECTED_ERRORS as error:
            return OpenedSlide(path, problem=one_line(error, prefix=f"{path}: "))
        return OpenedSlide(path, tuple(layers))


def _read_overview(levels: Any) -> None:
    """Read the coarsest level, and the one that fills a window, into the cache of tiles."""
    levels = levels if isinstance(levels, list) else [levels]  # finest first
    filling = [level for level in levels if OVERVIEW_PX[0] < max(level.shape[:2]) <= OVERVIEW_PX[1]]
    for level in (levels[-1], *filling[-1:]):
        np.asarray(level)


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
            elif self.computes and self.entry.answer is None:  # that of another model is replaced by Run all only
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
class AheadJob:
    """Opens the next slide for canvas and analysis, and gets its answer, while the user reads another one.

    Attributes
    ----------
    opening
        Opens its layers.
    answering
        Returns the job for its answer, given the slide as the session will name it; None without a model.
    """

    opening: OpenSlideJob
    answering: Callable[[SlideChoice], AnswerJob | None]

    def events(self) -> Iterator[Event]:
        """Yield the events of both jobs."""
        opened = self.opening.open()
        yield Partial(opened)
        choice = opened.choice
        answering = self.answering(choice) if choice is not None else None
        del opened  # this thread must not keep the layers of a slide that the user has left
        if answering is not None:
            yield from answering.events()


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


# ---------------------------------------------------------------- all slides


@dataclass(frozen=True)
class RunAllJob:
    """Predicts slides one after the other, with the task of ``predict``.

    Attributes
    ----------
    slides
        Slides without an answer of this model.
    results
        Folder of all results.
    bundle, bundle_name, device
        The model, its name as the user gave it, and the device.
    allow_missing
        Whether slides are analysed of which more than a third of the tissue is missing.
    """

    slides: tuple[ListedSlide, ...]
    results: Path
    bundle: Bundle
    bundle_name: str
    device: str
    allow_missing: bool = False

    def events(self) -> Iterator[Event]:
        """Yield the events of `run_cohort`: `Partial` with an `Outcome`, or `Failed`, for each slide."""
        from napari_lrmil.core.cohort.predict_task import PredictTask

        reserve_core_for_window()
        task = PredictTask(
            self.bundle.path.absolute(),
            self.bundle.sha256,
            self.bundle_name,
            self.results,
            device=self.device,
            allow_missing=self.allow_missing,
        )
        jobs = [SlideJob(slide.path, slide.mpp, slide.path_in_cohort) for slide in self.slides]
        progress = CohortProgress()
        try:
            yield from run_cohort(jobs, task, SerialBackend(), progress, on_failure=self._list_failures)
        finally:  # also after a cancel: finished slides must be in the tables
            self._list_failures(progress)
            if self.results.is_dir():
                write_predictions_table(self.results)

    def _list_failures(self, progress: CohortProgress) -> None:
        write_failure_rows(self.results, progress.rows, progress.settled_slides)


def needs_answer(entry: WorklistEntry, bundle: Bundle) -> bool:
    """Return whether *Run all* predicts a slide: it has no answer of this model, and nothing in the list forbids it."""
    if entry.slide.problem:
        return False
    return entry.answer is None or entry.answer.bundle_sha256 != bundle.sha256


def slides_without_answer(entries: Sequence[WorklistEntry], bundle: Bundle | None) -> tuple[ListedSlide, ...]:
    """Return the slides that *Run all* predicts; none without a model."""
    return tuple(entry.slide for entry in entries if bundle is not None and needs_answer(entry, bundle))
