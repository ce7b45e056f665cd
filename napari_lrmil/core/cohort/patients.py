"""Prediction of all slides of a table and one answer for each patient, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.cohort.predict_task import PredictTask
from napari_lrmil.core.cohort.run import CohortProgress, run_cohort
from napari_lrmil.core.cohort.task import SerialBackend, SlideJob
from napari_lrmil.core.events import Event, Finished
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.results.cohort_tables import write_failure_rows, write_predictions_table
from napari_lrmil.core.results.patient_answers import (
    PatientModel,
    PatientSlide,
    answer_patients,
    write_patient_answers,
)


@dataclass(frozen=True)
class PatientTask:
    """Model, folder of the results, and options of `run_patients`."""

    bundle: Bundle
    folder: Path
    device: str = "auto"
    runtime: str = "auto"
    allow_missing: bool = False
    is_unnamed: bool = False

    def slide_task(self) -> PredictTask:
        """Return the task for one slide."""
        return PredictTask(
            bundle=self.bundle.path.absolute(),
            bundle_sha256=self.bundle.sha256,
            bundle_name=self.bundle.name,
            folder=self.folder,
            device=self.device,
            runtime=self.runtime,
            allow_missing=self.allow_missing,
            is_unnamed=self.is_unnamed,
        )


def run_patients(
    jobs: Sequence[SlideJob], patients: Mapping[str, Sequence[PatientSlide]], task: PatientTask
) -> Iterator[Event]:
    """Predict slides, write the tables, and yield `Finished` last, with a `PatientAnswer` for each patient.

    Parameters
    ----------
    jobs
        The slides.
    patients
        Patient -> slides.
    task
        Model, folder and options.

    Raises
    ------
    LrmilError
        If the model is broken or the disk full. Slides that fail are left out of the answers.
    """
    folder, model = task.folder, PatientModel.of(task.bundle)

    def list_failures(progress: CohortProgress) -> None:
        write_failure_rows(folder, progress.rows, progress.settled_slides)

    progress = CohortProgress()
    yield from run_cohort(jobs, task.slide_task(), SerialBackend(), progress, on_failure=list_failures)
    list_failures(progress)
    write_predictions_table(folder)
    answers = answer_patients(folder, patients, model)
    write_patient_answers(folder, answers, model)
    yield Finished(answers)
