"""Cohort task of ``predict --ladder`` and ``predict --cascade``: one slide on all rungs, or on those that it needs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from napari_lrmil.core.cohort.task import SlideJob, TaskResult
from napari_lrmil.core.errors import BundleError, NewerSchemaError, StoredError
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.ladder.cascade import run_cascade
from napari_lrmil.core.ladder.climb import Climber, ClimbOptions, MissingRung, RungResult
from napari_lrmil.core.ladder.rungs import Ladder, open_ladder
from napari_lrmil.core.ladder.schema import CascadeFile, LadderFile
from napari_lrmil.core.ladder.table import (
    build_cascade_file,
    build_ladder_file,
    write_cascade_table,
    write_ladder_table,
)
from napari_lrmil.core.models.model_choice import unnamed_model_warning
from napari_lrmil.core.results.schema import PREDICTION, require_replaceable
from napari_lrmil.core.results.writer import require_result_folder, write_steps
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import path_in_cohort
from napari_lrmil.core.slides.tile_reader import AUTO
from napari_lrmil.core.threads import set_compute_threads
from napari_lrmil.core.user_settings import SettingsStore

WriteFile = Callable[[Path], None]


@dataclass(frozen=True)
class ClimbTask:
    """Cohort task of a ladder or a cascade.

    Attributes
    ----------
    bundles
        Folders of the models, the coarsest student first.
    ladder_sha256
        Hash that the ladder must have.
    teacher
        Whether the teacher is the finest rung.
    folder
        Folder of the results.
    is_cascade
        Whether a finer rung is read only if the set of the coarser one leaves the answer open.
    budget
        Wall seconds of a cascade for each slide; None for no limit.
    device, runtime, reader, overlay, full_paths, allow_missing, is_unnamed, resume
        As in `napari_lrmil.core.cohort.predict_task.PredictTask`.
    """

    shared_imports: ClassVar = ("napari_lrmil.core.cohort.predict_imports",)
    bundles: tuple[Path, ...]
    ladder_sha256: str
    teacher: bool
    folder: Path
    is_cascade: bool = False
    budget: float | None = None
    device: str = "auto"
    runtime: str = "auto"
    reader: str = AUTO
    overlay: bool = True
    full_paths: bool = False
    allow_missing: bool = False
    is_unnamed: bool = False
    resume: bool = True

    def prepare(self, threads: int) -> None:
        """Set the number of threads that computations use in this process."""
        set_compute_threads(threads)

    def __call__(self, job: SlideJob) -> Generator[Event, None, TaskResult]:
        """Read a slide on the rungs, and write the results to its folder."""
        ladder = open_ladder_once(self.bundles, self.teacher, self.ladder_sha256)
        began = time.perf_counter()
        with Slide(job.path, mpp=job.mpp, remembered=SettingsStore().remembered_mpp, reader=self.reader) as slide:
            open_seconds = time.perf_counter() - began
            require_result_folder(self.folder / slide.name, job.path)
            if self.resume:
                require_replaceable(self.folder / slide.name)
            unnamed = unnamed_model_warning(slide) if self.is_unnamed else ""
            if unnamed:
                yield Notice(unnamed, slide.name)
            if self.resume and (text := self._earlier_text(slide)):
                return TaskResult(f"{text} (already there)", self.folder / slide.name, is_reused=True)
            options = ClimbOptions(resolve_device(self.device), self.runtime, self.allow_missing)
            climber = Climber(slide, ladder, options, open_seconds)
            prediction, text, also = yield from self._cascade(climber) if self.is_cascade else self._ladder(climber)
            if unnamed:
                prediction = replace(prediction, warnings=(unnamed, *prediction.warnings))
            yield from write_steps(
                self.folder,
                slide,
                prediction,
                also=also,
                replace_newer=not self.resume,
                overlay=self.overlay,
                path=self._slide_path(job),
            )
        return TaskResult(text, self.folder / slide.name)

    def _slide_path(self, job: SlideJob) -> str:
        """Return the path of a slide as the results state it."""
        if self.full_paths:
            return str(job.path.absolute())
        return job.path_in_cohort or path_in_cohort(job.path, job.path)

    @property
    def request_sha256(self) -> str:
        """Hash of everything that the results depend on besides the slide."""
        options = [self.ladder_sha256, self.is_cascade, self.budget, self.runtime, self.reader, self.allow_missing]
        return hashlib.sha256(json.dumps(options).encode()).hexdigest()

    def _ladder(self, climber: Climber) -> Generator[Event, None, tuple[Prediction, str, list[WriteFile]]]:
        """Read all rungs. The prediction is that of the finest one that was read."""
        outcomes = list[RungResult | MissingRung]()
        for rung in climber.ladder.rungs:
            outcome = yield from climber.try_read(rung)
            if isinstance(outcome, MissingRung):
                yield Notice(f"{rung.label} is missing: {outcome.reason}", climber.slide.name)
            outcomes.append(outcome)
        read = [outcome for outcome in outcomes if isinstance(outcome, RungResult)]
        if not read:
            raise next(outcome.error for outcome in outcomes if isinstance(outcome, MissingRung))
        file = build_ladder_file(climber.slide, climber.ladder, outcomes, self.request_sha256)
        return read[-1].prediction, file.text, [file.write, lambda folder: write_ladder_table(folder, [file])]

    def _cascade(self, climber: Climber) -> Generator[Event, None, tuple[Prediction, str, list[WriteFile]]]:
        """Read the rungs that the slide needs. The prediction is that of the rung whose answer holds."""
        result, answer = yield from run_cascade(climber, self.budget)
        request = self.request_sha256, self.budget
        file = build_cascade_file(climber.slide, climber.ladder, result, climber.figures, request)
        prediction = answer.prediction
        if answer.rung.is_teacher:  # a reader of prediction.json would take the student's probabilities for the answer
            text = f"the cascade was answered by the teacher: {file.text}; the student here had left it open"
            yield Notice(text, climber.slide.name)
            prediction = replace(prediction, warnings=(*prediction.warnings, text))
        return prediction, file.text, [file.write, lambda folder: write_cascade_table(folder, [file])]

    def _earlier_text(self, slide: Slide) -> str:
        """Return the sentence of an equal earlier result; empty if there is none."""
        folder = self.folder / slide.name
        kind = CascadeFile if self.is_cascade else LadderFile
        if not (folder / kind.FILE_NAME).is_file() or not (folder / PREDICTION).is_file():
            return ""
        try:
            file = kind.read(folder)
        except NewerSchemaError:
            raise
        except StoredError:  # broken: the slide is read again
            return ""
        is_equal = (file.slide_fingerprint, file.request_sha256) == (slide.fingerprint, self.request_sha256)
        return file.text if is_equal else ""


@lru_cache(maxsize=1)
def open_ladder_once(bundles: tuple[Path, ...], teacher: bool, sha256: str) -> Ladder:
    """Return a ladder, opened once per process. Its networks are loaded on first use.

    Raises
    ------
    BundleError
        If a bundle changed since the work began.
    """
    ladder = open_ladder(bundles, teacher=teacher)
    if ladder.sha256 != sha256:
        raise BundleError(bundles[0], "", "the bundles are not those that the work began with; start the call again")
    return ladder
