"""Frame of the cohort tasks that predict a slide: open it, check its folder, reuse or compute a result, write it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from napari_lrmil.core.cohort.task import SlideJob, TaskResult
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.models.model_choice import unnamed_model_warning
from napari_lrmil.core.patching.roi import RegionOfInterest, read_scope
from napari_lrmil.core.results.schema import require_replaceable
from napari_lrmil.core.results.writer import require_result_folder, write_steps
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import path_in_cohort
from napari_lrmil.core.slides.tile_reader import AUTO
from napari_lrmil.core.threads import set_compute_threads
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.core.visualize.slide_report import ReportRequest

REGION_OPTIONS = ("roi", "keep", "exclude")
Model = TypeVar("Model")
WriteFile = Callable[[Path], None]


@dataclass(frozen=True)
class SlideOutput:
    """Result of a slide before it is written.

    Attributes
    ----------
    prediction
        Its contents are those of ``prediction.json``.
    text
        One line for the terminal.
    also
        Returns functions that write further files to a folder, given the prediction as it is written.
    """

    prediction: Prediction
    text: str
    also: Callable[[Prediction], list[WriteFile]] = lambda _: []


@dataclass(frozen=True, kw_only=True)
class SlidePredictionTask(ABC, Generic[Model]):
    """Cohort task that predicts one slide at a time.

    Attributes
    ----------
    folder
        Folder of the results.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``, resolved on the machine of the worker.
    files
        Option (`REGION_OPTIONS`, and those of a subclass) -> file. They belong to one slide.
    resume
        Whether matching results of earlier calls are kept. If not, those of a newer schema version are replaced too.
    runtime
        ``auto``, ``torch`` or ``openvino``.
    reader
        ``auto``, ``openslide`` or ``tiles``, see `Slide`.
    overlay
        Whether ``overlay.png`` is drawn.
    full_paths
        Whether absolute paths are written into the results. If not, the path of a slide begins with its cohort.
    allow_missing
        Whether slides are predicted of which more than a third of the tissue is missing.
    is_unnamed
        Whether nobody named the model, so that a slide of real tissue gets a warning.
    exclude_artefacts
        Whether artefacts are left out of the tissue although the model was trained with them.
    """

    shared_imports: ClassVar = ("napari_lrmil.core.cohort.predict_imports",)
    folder: Path
    device: str = "auto"
    files: Mapping[str, Path | None] = field(default_factory=dict)
    resume: bool = True
    runtime: str = "auto"
    reader: str = AUTO
    overlay: bool = True
    full_paths: bool = False
    allow_missing: bool = False
    is_unnamed: bool = False
    exclude_artefacts: bool = False

    def prepare(self, threads: int) -> None:
        """Set the number of threads that computations use in this process."""
        set_compute_threads(threads)

    def __call__(self, job: SlideJob) -> Generator[Event, None, TaskResult]:
        """Predict a slide and write its results to its folder."""
        model = self.open_model()
        began = time.perf_counter()
        with Slide(job.path, mpp=job.mpp, remembered=SettingsStore().remembered_mpp, reader=self.reader) as slide:
            open_seconds = time.perf_counter() - began
            require_result_folder(self.folder / slide.name, job.path)  # before hours of work, not after them
            if self.resume:
                require_replaceable(self.folder / slide.name)
            unnamed = unnamed_model_warning(slide) if self.is_unnamed else ""
            if unnamed:  # of a reused result too, which may be from a call that named its model
                yield Notice(unnamed, slide.name)
            # The result files do not hold the regions, so a stored result cannot be matched to them.
            may_reuse = self.resume and all(file is None for file in self.files.values())
            if may_reuse and (text := self.find_earlier(slide, model)):
                return TaskResult(text, self.folder / slide.name, is_reused=True)
            answer = yield from self.compute(slide, model, open_seconds)
            prediction = answer.prediction
            if unnamed:
                prediction = replace(prediction, warnings=(unnamed, *prediction.warnings))
            yield from write_steps(
                self.folder,
                slide,
                prediction,
                report=self.report_request(job, model),
                also=answer.also(prediction),
                replace_newer=not self.resume,
                overlay=self.overlay,
                path=self.slide_path(job),
            )
        return TaskResult(answer.text, self.folder / slide.name)

    @abstractmethod
    def open_model(self) -> Model:
        """Return the model, opened once per process."""

    @abstractmethod
    def find_earlier(self, slide: Slide, model: Model) -> str:
        """Return the line of an equal result of an earlier call; empty if there is none."""

    @abstractmethod
    def compute(self, slide: Slide, model: Model, open_seconds: float) -> Generator[Event, None, SlideOutput]:
        """Predict an open slide, and return what is to be written."""

    def report_request(self, job: SlideJob, model: Model) -> ReportRequest | None:  # for subclasses
        """Return the contents of the report; None without one."""
        return None

    def read_regions(self, slide: Slide) -> RegionOfInterest:
        """Return the part of a slide that the files of regions name."""
        return read_scope({name: file for name, file in self.files.items() if name in REGION_OPTIONS}, slide.bounds)

    def slide_path(self, job: SlideJob) -> str:
        """Return the path of a slide as the results state it."""
        if self.full_paths:
            return str(job.path.absolute())
        return job.path_in_cohort or path_in_cohort(job.path, job.path)
