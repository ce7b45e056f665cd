"""Cohort task that predicts a slide: open it, predict, write the results. The model is loaded once per process."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from napari_lrmil.core.cohort.slide_task import SlideOutput, SlidePredictionTask
from napari_lrmil.core.cohort.task import SlideJob
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
from napari_lrmil.core.patching.grid import TissueGrid, find_tissue_grid, tissue_grid_from_mask
from napari_lrmil.core.patching.regions import RegionFile
from napari_lrmil.core.patching.tissue import read_mask
from napari_lrmil.core.results.equivalent_command import predict_command
from napari_lrmil.core.results.resume import ResultRequirements, find_reusable_result, has_limits_of
from napari_lrmil.core.results.writer import build_agreement_file
from napari_lrmil.core.runtimes.select import REFERENCE
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.tile_reader import AUTO
from napari_lrmil.core.visualize.comparison_figure import draw_comparison
from napari_lrmil.core.visualize.slide_report import ReportRequest


@dataclass(frozen=True, kw_only=True)
class PredictTask(SlidePredictionTask[Bundle]):
    """Cohort task of the commands ``predict`` and ``compare``.

    Attributes
    ----------
    bundle, bundle_sha256
        Folder of the model, and the hash that it must have.
    bundle_name
        Name or path that the caller gave, for the command line in the report.
    teacher
        LR patches that the teacher reads.
    report
        Whether ``report.html`` is written.
    compare
        Whether the comparison of student and teacher is drawn.

    Notes
    -----
    `files` may also have ``tissue`` and ``lesions``. Results of any `runtime` are reused for ``auto`` and ``openvino``,
    because these agree with torch. For ``torch``, the reference, only results of torch are reused.
    """

    bundle: Path
    bundle_sha256: str
    bundle_name: str
    teacher: TeacherPatches = TeacherPatches.NONE
    report: bool = False
    compare: bool = False

    def open_model(self) -> Bundle:
        """Return the bundle, opened once per process."""
        return open_bundle_once(self.bundle, self.bundle_sha256)

    def compute(self, slide: Slide, model: Bundle, open_seconds: float) -> Generator[Event, None, SlideOutput]:
        """Predict the slide, and compare student and teacher if that was requested."""
        # Before the networks run: a broken file must not cost their time.
        lesions = read_lesions(slide.path, slide.bounds, self.files.get("lesions")) if self.compare else None
        prediction = yield from _pass_on(self._predict(slide, model, open_seconds))
        text = summarize_prediction(prediction)
        if lesions is None:
            return SlideOutput(prediction, text)
        yield from (Notice(text, slide.name) for text in lesions.warnings)
        prediction = replace(prediction, warnings=(*prediction.warnings, *lesions.warnings))
        return SlideOutput(prediction, text, lambda written: [partial(_write_comparison, slide, written, lesions)])

    def _predict(self, slide: Slide, model: Bundle, seconds_open: float) -> Iterator[Event]:
        """Return the events of the prediction, on the requested regions and with an edited tissue mask if given."""
        return predict(
            slide,
            model,
            device=resolve_device(self.device),
            teacher=self.teacher,
            seconds_open=seconds_open,
            scope=self.read_regions(slide),
            tissue_grid=self._edited_tissue(slide, model),
            runtime=self.runtime,
            allow_missing=self.allow_missing,
            exclude_artefacts=self.exclude_artefacts,
        )

    def find_earlier(self, slide: Slide, model: Bundle) -> str:
        """Return the line of an equal result of an earlier call; empty if there is none, and for a comparison."""
        if self.compare:
            return ""
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
            return ""
        text = join_texts(format_probabilities(file.probabilities), slide_limits(model, file.probabilities))
        distance = f"; {CohortDistance(**dict(file.cohort_distance)).text}" if file.cohort_distance else ""
        return f"{text} (already there){distance}"

    def _edited_tissue(self, slide: Slide, model: Bundle) -> TissueGrid | None:
        """Return the tissue grid of a mask that was edited by hand; None without one."""
        file, card = self.files.get("tissue"), model.card
        if file is None:
            return None
        slide.count_damaged_tiles()  # `predict` checks their number
        # An edited mask has the raster of the detected one.
        detected = find_tissue_grid(slide, card.plan, card.tissue)
        return tissue_grid_from_mask(slide.path, detected, read_mask(file, detected.tissue), card.tissue)

    def report_request(self, job: SlideJob, model: Bundle) -> ReportRequest | None:
        """Return the contents of the report. Its command names the actual device, so that it gives the same numbers."""
        if not self.report:
            return None
        command = predict_command(
            Path(self.slide_path(job)),
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
