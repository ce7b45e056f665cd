"""Cohort task that predicts a slide: open it, predict, write the results. The model is loaded once per process."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

from napari_lrmil.core.cohort.task import SlideJob, TaskResult
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.events import Event, Finished, Notice
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.formatting import format_agreement, format_probabilities
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.slide_limits import SlideLimits, slide_limits
from napari_lrmil.core.inference.teacher_comparison import read_lesions
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.cohort_distance import CohortDistance
from napari_lrmil.core.models.model_choice import unnamed_model_warning
from napari_lrmil.core.patching.grid import TissueGrid, find_tissue_grid, tissue_grid_from_mask
from napari_lrmil.core.patching.regions import RegionFile
from napari_lrmil.core.patching.roi import read_scope
from napari_lrmil.core.patching.tissue import read_mask
from napari_lrmil.core.results.equivalent_command import predict_command
from napari_lrmil.core.results.resume import ResultRequirements, find_reusable_result, has_limits_of
from napari_lrmil.core.results.schema import require_replaceable
from napari_lrmil.core.results.writer import build_agreement_file, require_result_folder, write_steps
from napari_lrmil.core.runtimes.select import REFERENCE
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import path_in_cohort
from napari_lrmil.core.slides.tile_reader import AUTO
from napari_lrmil.core.threads import set_compute_threads
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.core.visualize.comparison_figure import draw_comparison
from napari_lrmil.core.visualize.slide_report import ReportRequest

REGION_OPTIONS = ("roi", "keep", "exclude")


@dataclass(frozen=True)
class PredictTask:
    """Cohort task of the commands ``predict`` and ``compare``.

    Attributes
    ----------
    bundle, bundle_sha256
        Folder of the model, and the hash that it must have.
    bundle_name
        Name or path that the caller gave, for the command line in the report.
    folder
        Folder of the results.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``, resolved on the machine of the worker.
    teacher
        LR patches that the teacher reads.
    report
        Whether ``report.html`` is written.
    files
        Option (`REGION_OPTIONS`, ``tissue``, ``lesions``) -> file. They belong to one slide.
    compare
        Whether the comparison of student and teacher is drawn.
    resume
        Whether matching results of earlier calls are kept. If not, those of a newer schema version are replaced too.
    runtime
        ``auto``, ``torch`` or ``openvino``. Results of any runtime are reused for ``auto`` and ``openvino``, because
        these agree with torch. For ``torch``, the reference, only results of torch are reused.
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
    bundle: Path
    bundle_sha256: str
    bundle_name: str
    folder: Path
    device: str = "auto"
    teacher: TeacherPatches = TeacherPatches.NONE
    report: bool = False
    files: Mapping[str, Path | None] = field(default_factory=dict)
    compare: bool = False
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
        model = open_bundle_once(self.bundle, self.bundle_sha256)
        began = time.perf_counter()
        with Slide(job.path, mpp=job.mpp, remembered=SettingsStore().remembered_mpp, reader=self.reader) as slide:
            seconds_open = time.perf_counter() - began
            require_result_folder(self.folder / slide.name, job.path)  # before hours of work, not after them
            if self.resume:
                require_replaceable(self.folder / slide.name)
            unnamed = unnamed_model_warning(slide) if self.is_unnamed else ""
            if unnamed:  # of a reused result too, which may be from a call that named its model
                yield Notice(unnamed, slide.name)
            reused = self._reusable_result(slide, model)
            if reused is not None:
                return reused
            # Before the networks run: a broken file must not cost their time.
            lesions = read_lesions(slide.path, slide.bounds, self.files.get("lesions")) if self.compare else None
            prediction = yield from _pass_on(self._predict(slide, model, seconds_open))
            if unnamed:
                prediction = replace(prediction, warnings=(unnamed, *prediction.warnings))
            also = []
            if lesions is not None:
                yield from (Notice(text, slide.name) for text in lesions.warnings)
                prediction = replace(prediction, warnings=(*prediction.warnings, *lesions.warnings))
                also = [partial(_write_comparison, slide, prediction, lesions)]
            report, replace_newer = self._report_request(job, model), not self.resume
            yield from write_steps(
                self.folder,
                slide,
                prediction,
                report=report,
                also=also,
                replace_newer=replace_newer,
                overlay=self.overlay,
                path=self._slide_path(job),
            )
        return TaskResult(summarize_prediction(prediction), self.folder / prediction.slide)

    def _predict(self, slide: Slide, model: Bundle, seconds_open: float) -> Iterator[Event]:
        """Return the events of the prediction, on the requested regions and with an edited tissue mask if given."""
        return predict(
            slide,
            model,
            device=resolve_device(self.device),
            teacher=self.teacher,
            seconds_open=seconds_open,
            scope=read_scope({k: v for k, v in self.files.items() if k in REGION_OPTIONS}, slide.bounds),
            tissue_grid=self._edited_tissue(slide, model),
            runtime=self.runtime,
            allow_missing=self.allow_missing,
            exclude_artefacts=self.exclude_artefacts,
        )

    def _reusable_result(self, slide: Slide, model: Bundle) -> TaskResult | None:
        """Return the result of an earlier call, if it can be reused. A region is always predicted again."""
        # prediction.json does not hold the regions, so a stored result cannot be matched to them.
        if not self.resume or self.compare or any(file is not None for file in self.files.values()):
            return None
        folder = self.folder / slide.name
        reader = None if self.reader == AUTO else self.reader
        runtime = REFERENCE if self.runtime == REFERENCE.name else None
        requirements = ResultRequirements(
            self.bundle_sha256,
            self.teacher,
            self.report,
            reader,
            runtime,
            self.overlay,
            self.allow_missing,
            self.exclude_artefacts or model.card.tissue.exclude_artefacts,
        )
        file = find_reusable_result(folder, slide, requirements)
        # Another calibration of the same weights has other limits under the same hash.
        if file is None or not has_limits_of(file, model):
            return None
        text = join_texts(format_probabilities(file.probabilities), slide_limits(model, file.probabilities))
        distance = f"; {CohortDistance(**dict(file.cohort_distance)).text}" if file.cohort_distance else ""
        return TaskResult(f"{text} (already there){distance}", folder, is_reused=True)

    def _edited_tissue(self, slide: Slide, model: Bundle) -> TissueGrid | None:
        """Return the tissue grid of a mask that was edited by hand; None without one."""
        file, card = self.files.get("tissue"), model.card
        if file is None:
            return None
        slide.count_damaged_tiles()  # `predict` checks their number
        # An edited mask has the raster of the detected one.
        detected = find_tissue_grid(slide, card.plan, card.tissue)
        return tissue_grid_from_mask(slide.path, detected, read_mask(file, detected.tissue), card.tissue)

    def _report_request(self, job: SlideJob, model: Bundle) -> ReportRequest | None:
        """Return the contents of the report. Its command names the actual device, so that it gives the same numbers."""
        if not self.report:
            return None
        command = predict_command(
            Path(self._slide_path(job)),
            bundle=self.bundle_name,
            out=self.folder.absolute() if self.full_paths else self.folder,
            # Not "auto", which could be another device on another machine.
            device=str(resolve_device(self.device)),
            mpp=job.mpp,
            runtime=self.runtime,
            teacher=self.teacher,
            files={name: file.absolute() for name, file in self.files.items() if file is not None},
            full_paths=self.full_paths,
            report=True,
            reader=self.reader,
            allow_missing=self.allow_missing,
            exclude_artefacts=self.exclude_artefacts,
        )
        return ReportRequest(command, model.card.hr_mpp)

    def _slide_path(self, job: SlideJob) -> str:
        """Return the path of a slide as the results state it."""
        if self.full_paths:
            return str(job.path.absolute())
        return job.path_in_cohort or path_in_cohort(job.path, job.path)


# One model at a time: an older one would keep its weights in memory.
@lru_cache(maxsize=1)
def open_bundle_once(folder: Path, sha256: str) -> Bundle:
    """Return a bundle, opened once per process. Its networks are loaded on first use.

    Raises
    ------
    BundleError
        If the bundle in `folder` has another hash.
    """
    bundle = Bundle(folder)
    if bundle.sha256 != sha256:
        raise BundleError(folder, "", "the bundle is not the one that the work began with; start the call again")
    return bundle


def _write_comparison(slide: Slide, prediction: Prediction, lesions: RegionFile, folder: Path) -> None:
    """Write ``compare.png`` and ``agreement.json``, with the lesions."""
    draw_comparison(folder / "compare.png", slide, prediction, lesions.regions)
    build_agreement_file(prediction, lesions.regions).write(folder)


def _pass_on(events: Iterator[Event]) -> Generator[Event, None, Prediction]:
    """Pass the events of a prediction on, and return its result."""
    for event in events:
        if isinstance(event, Finished):
            prediction: Prediction = event.result
        else:
            yield event
    return prediction


def summarize_prediction(prediction: Prediction) -> str:
    """Return a prediction in one line, for the terminal."""
    n_lr = len(prediction.grid.lr_index)
    agreement = prediction.agreement
    teacher = f"; with the teacher: {format_agreement(agreement, n_lr)}" if agreement else ""
    patches = f"{n_lr} LR patches in place of {prediction.n_hr_patches} HR"
    region = "" if prediction.scope.is_whole_slide else f"{prediction.scope.text}, region score: "
    probabilities = join_texts(format_probabilities(prediction.student.probabilities), prediction.limits)
    distance = f"; {prediction.cohort_distance.text}" if prediction.cohort_distance else ""
    return f"{region}{probabilities} ({patches}{teacher}){distance}"


def join_texts(probabilities: str, limits: SlideLimits) -> str:
    """Return probabilities and limits in one line."""
    return "; ".join((probabilities, *limits.texts))
