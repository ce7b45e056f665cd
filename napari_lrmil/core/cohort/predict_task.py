"""Prediction of a slide as work that travels: open, predict, write; the model is loaded once in each process."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil.core.cohort import SlideJob, TaskResult
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.events import Event, Finished
from napari_lrmil.core.formatting import format_agreement, format_probabilities
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_comparison import find_lesion_outlines
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import TissueGrid, find_tissue_grid, tissue_grid_from_mask
from napari_lrmil.core.patching.regions import read_regions
from napari_lrmil.core.patching.roi import read_scope
from napari_lrmil.core.patching.tissue import read_mask
from napari_lrmil.core.results.equivalent_command import predict_command
from napari_lrmil.core.results.resume import ResultRequirements, find_reusable_result
from napari_lrmil.core.results.schema import require_replaceable
from napari_lrmil.core.results.writer import build_agreement_file, write_steps
from napari_lrmil.core.runtimes.select import REFERENCE
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.tile_reader import AUTO
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.core.visualize.comparison_figure import draw_comparison
from napari_lrmil.core.visualize.slide_report import ReportRequest

if TYPE_CHECKING:
    import torch

REGION_OPTIONS = ("roi", "keep", "exclude")


@dataclass(frozen=True)
class PredictTask:
    """What every slide of a call is asked: by which model, where, with what beside it, about which part.

    Attributes
    ----------
    bundle, bundle_sha256
        Folder of the model, and the hash that it has to have.
    named
        How the caller named it.
    folder
        Where the results go.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``, on whatever machine does the work.
    teacher
        LR patches that the teacher reads.
    report
        Whether ``report.html`` is written.
    files
        Regions and mask, by option; they are about one slide.
    compare
        Whether student and teacher are drawn side by side.
    resume
        Whether results that are there already are left as they are; if not, those of a newer schema version are
        replaced too.
    runtime
        ``auto``, ``torch`` or ``openvino``. What is not torch agrees with it, so that results of any runtime answer for
        it; only torch, the reference, answers for torch.
    reader
        ``auto``, ``openslide`` or ``tiles``, see `Slide`.
    """

    bundle: Path
    bundle_sha256: str
    named: str
    folder: Path
    device: str = "auto"
    teacher: TeacherPatches = TeacherPatches.NONE
    report: bool = False
    files: Mapping[str, Path | None] = field(default_factory=dict)
    compare: bool = False
    resume: bool = True
    runtime: str = "auto"
    reader: str = AUTO

    def prepare(self, threads: int) -> None:
        """Set the threads of this process's computing."""
        import torch

        torch.set_num_threads(threads)

    def __call__(self, work: SlideJob) -> Generator[Event, None, TaskResult]:
        """Predict a slide and leave its results in its folder."""
        model = open_bundle_once(self.bundle, self.bundle_sha256)
        began = time.perf_counter()
        with Slide(work.path, mpp=work.mpp, remembered=SettingsStore().remembered_mpp, reader=self.reader) as slide:
            opened = time.perf_counter() - began
            if self.resume:
                require_replaceable(self.folder / slide.name)  # before hours of work, not after them
            there = self._earlier(slide)
            if there is not None:
                return there
            stream = predict(
                slide,
                model,
                device=_device(self.device),
                teacher=self.teacher,
                seconds_open=opened,
                scope=read_scope({k: v for k, v in self.files.items() if k in REGION_OPTIONS}, slide.bounds),
                tissue_grid=self._edited(slide, model),
                runtime=self.runtime,
            )
            prediction = yield from _finished(stream)
            where = self.folder / prediction.slide
            also = [partial(self._write_comparison, slide, prediction)] if self.compare else []
            report, again = self._report(work, model), not self.resume
            yield from write_steps(self.folder, slide, prediction, report=report, also=also, replace_newer=again)
        return TaskResult(_told(prediction), where)

    def _earlier(self, slide: Slide) -> TaskResult | None:
        """Return what is told of a slide whose results are there; a question about a part is always asked anew."""
        if not self.resume or self.compare or any(file is not None for file in self.files.values()):
            return None
        where = self.folder / slide.name
        reader = None if self.reader == AUTO else self.reader
        runtime = REFERENCE if self.runtime == REFERENCE.name else None
        wanted = ResultRequirements(self.bundle_sha256, self.teacher, self.report, reader, runtime)
        file = find_reusable_result(where, slide, wanted)
        if file is None:
            return None
        return TaskResult(f"{format_probabilities(file.probabilities)} (already there)", where, is_reused=True)

    def _edited(self, slide: Slide, model: Bundle) -> TissueGrid | None:
        """Return the tissue of a mask that was changed by hand; None where there is none."""
        file, card = self.files.get("tissue"), model.card
        if file is None:
            return None
        found = find_tissue_grid(slide, card.plan, card.tissue)
        return tissue_grid_from_mask(slide.path, found, read_mask(file, found.tissue), card.tissue)

    def _report(self, work: SlideJob, model: Bundle) -> ReportRequest | None:
        """Return what a slide's report needs; the device is the one that was chosen, so that the numbers come again."""
        if not self.report:
            return None
        files = {name: file.absolute() for name, file in self.files.items() if file is not None}
        command = predict_command(
            work.path,
            bundle=self.named,
            out=self.folder.absolute(),
            device=str(_device(self.device)),
            mpp=work.mpp,
            runtime=self.runtime,
            teacher=self.teacher,
            files=files,
            report=True,
            reader=self.reader,
        )
        return ReportRequest(command, model.card.hr_mpp)

    def _write_comparison(self, slide: Slide, prediction: Prediction, where: Path) -> None:
        lesions = self.files.get("lesions")
        known = (
            read_regions(lesions, slide.bounds, may_be_empty=True).regions
            if lesions
            else find_lesion_outlines(slide.path, slide.bounds)
        )
        draw_comparison(where / "compare.png", slide, prediction, known)
        build_agreement_file(prediction, known).write(where)


@lru_cache(maxsize=1)
def open_bundle_once(where: Path, sha256: str) -> Bundle:
    """Return a bundle, opened once in each process; its networks are loaded when they are first asked for.

    Raises
    ------
    BundleError
        Where it is not the one with that hash.
    """
    bundle = Bundle(where)
    if bundle.sha256 != sha256:
        raise BundleError(where, "", "the bundle is not the one that the work began with; start the call again")
    return bundle


def _device(name: str) -> torch.device:
    from napari_lrmil.core.features.devices import resolve_device

    return resolve_device(name)


def _finished(stream: Any) -> Generator[Event, None, Prediction]:
    """Pass the events of a prediction on, and return what it ended with."""
    for event in stream:
        if isinstance(event, Finished):
            prediction: Prediction = event.result
        else:
            yield event
    return prediction


def _told(prediction: Prediction) -> str:
    n_lr = len(prediction.grid.lr_index)
    agreement = prediction.agreement
    beside = f"; with the teacher: {format_agreement(agreement, n_lr)}" if agreement else ""
    patches = f"{n_lr} LR patches in place of {len(prediction.grid.hr_index)} HR"
    part = "" if prediction.scope.is_whole_slide else f"{prediction.scope.text}, region score: "
    return f"{part}{format_probabilities(prediction.student.probabilities)} ({patches}{beside})"
