"""Background jobs of the worklist as streams of events: thumbnails, opening ahead, and running all. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_lrmil.core.cohort.run import CohortProgress, run_cohort
from napari_lrmil.core.cohort.task import SerialBackend, SlideJob, one_line
from napari_lrmil.core.errors import ResolutionError, SlideError
from napari_lrmil.core.events import Event, Finished, Partial, Progress
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.results.cohort_tables import write_failure_rows, write_predictions_table
from napari_lrmil.core.slides.phantom_mark import has_phantom_mark
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import is_table
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.core.visualize.overlay import slide_thumbnail
from napari_lrmil.core.worklist.build import find_results_folder, list_folder, read_entries
from napari_lrmil.plugin.session.jobs import reserve_core_for_window
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.viewer.layers import read_tag
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from napari_lrmil.plugin.worklist.answer_jobs import EXPECTED_ERRORS, AnswerJob

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.slides.slide import Pixels
    from napari_lrmil.core.worklist.entry import ListedSlide, WorklistEntry
    from napari_lrmil.plugin.viewer.layers import LayerData

THUMBNAIL_PX = 48
NO_LIST, NO_MODEL = "Open a folder or a table first.", "Choose a model in the Analyse dock first."
ALL_DONE = "Every slide has an answer, or a problem in the list."
KEPT_ANSWERS = "{slides} an answer of another model, which is kept. Results… chooses another folder for this model."
OVERVIEW_PX = 1024, 4096  # longer side of the level that napari shows if the whole slide is in view


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
    is_phantom
        Whether the slide has the mark of a phantom.
    """

    path: Path
    pixels: Pixels | None
    problem: str = ""
    is_phantom: bool = False


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
            pixels = slide_thumbnail(opened, THUMBNAIL_PX)[0]
            return Thumbnail(slide.path, pixels, is_phantom=has_phantom_mark(opened.properties))
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


# ---------------------------------------------------------------- all slides


@dataclass(frozen=True)
class SkippedSlide:
    """A slide that was not predicted, because no model is chosen for it."""

    path: Path


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
    phantoms_only_in
        Folders for whose slides the user did not choose this model. Of these slides phantoms alone are predicted.
    """

    slides: tuple[ListedSlide, ...]
    results: Path
    bundle: Bundle
    bundle_name: str
    device: str
    allow_missing: bool = False
    phantoms_only_in: frozenset[Path] = frozenset()

    def events(self) -> Iterator[Event]:
        """Yield `Partial` with a `SkippedSlide` for each slide without a model, then the events of `run_cohort`.

        These are `Partial` with an `Outcome`, or `Failed`, for each other slide.
        """
        reserve_core_for_window()
        todo = []
        for slide in self.slides:
            if slide.path.parent in self.phantoms_only_in and _is_tissue(slide):
                yield Partial(SkippedSlide(slide.path))
            else:
                todo.append(slide)
        if todo:
            yield from self._predict(todo)

    def _predict(self, slides: Sequence[ListedSlide]) -> Iterator[Event]:
        from napari_lrmil.core.cohort.predict_task import PredictTask

        task = PredictTask(
            bundle=self.bundle.path.absolute(),
            bundle_sha256=self.bundle.sha256,
            bundle_name=self.bundle_name,
            folder=self.results,
            device=self.device,
            allow_missing=self.allow_missing,
        )
        jobs = [SlideJob(slide.path, slide.mpp, slide.path_in_cohort) for slide in slides]
        progress = CohortProgress()
        try:
            yield from run_cohort(jobs, task, SerialBackend(), progress, on_failure=self._list_failures)
        finally:  # also after a cancel: finished slides must be in the tables
            self._list_failures(progress)
            if self.results.is_dir():
                write_predictions_table(self.results)

    def _list_failures(self, progress: CohortProgress) -> None:
        write_failure_rows(self.results, progress.rows, progress.settled_slides)


def _is_tissue(slide: ListedSlide) -> bool:
    """Return whether a slide can be opened and has no mark of a phantom; the run says why one cannot be opened."""
    try:
        with Slide(slide.path, mpp=slide.mpp, remembered=SettingsStore().remembered_mpp) as opened:
            return not has_phantom_mark(opened.properties)
    except EXPECTED_ERRORS:
        return False


def slides_without_answer(entries: Sequence[WorklistEntry], bundle: Bundle | None) -> tuple[ListedSlide, ...]:
    """Return the slides that *Run all* predicts; none without a model. Answers of other models are kept."""
    return tuple(entry.slide for entry in entries if bundle and entry.answer is None and not entry.slide.problem)


def why_run_all_blocked(entries: Sequence[WorklistEntry], bundle: Bundle | None) -> str:
    """Return why *Run all* cannot start; empty if it can."""
    if not entries:
        return NO_LIST
    if bundle is None:
        return NO_MODEL
    return "" if slides_without_answer(entries, bundle) else f"{ALL_DONE} {kept_answers_text(entries, bundle)}".strip()


def kept_answers_text(entries: Sequence[WorklistEntry], bundle: Bundle | None) -> str:
    """Return a sentence on the answers of other models; empty if there are none."""
    answers = [entry.answer for entry in entries if entry.answer is not None]
    count = sum(bundle is not None and answer.bundle_sha256 != bundle.sha256 for answer in answers)
    return KEPT_ANSWERS.format(slides=format_count(count, "slide has", "slides have")) if count else ""
